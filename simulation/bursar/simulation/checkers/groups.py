"""Task groups: whoever is left of one that lost a member is ended, too, and shares its network until then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from bursar.agent.containers.runtime import NetworkId
from bursar.agent.leaving import ANSWER_MS, GRACE_MS
from bursar.core.ids import AgentId, TaskId
from bursar.simulation.checkers.repairs import DUE_MS
from bursar.simulation.checkers.verdicts import Judge, require
from bursar.simulation.containers import SimulatedContainer

#: Beyond the longest grace, of the time that an agent lives and does something. The end of a member is told once the driver of its devices has
#: said who uses them, or has not answered.
SLACK_MS = 5_000 + GRACE_MS + ANSWER_MS
#: So much of the time between two steps counts: an agent that stands still cannot act.
_ATTENTION_MS = 1_000


class GroupJudge(Judge):
    """Looks at what really runs."""

    def __init__(self, verdicts: Counter[str]) -> None:
        super().__init__(verdicts)
        #: By agent and network: whose containers began, or failed to.
        self._groups: dict[AgentId, dict[NetworkId, dict[TaskId, SimulatedContainer]]] = {}
        #: By agent: how long it has been awake in this life, and when it stepped last.
        self._awake: dict[AgentId, tuple[int, int]] = {}
        #: When, in time awake, a group was seen to have lost a member.
        self._since: dict[NetworkId, int] = {}

    def began(self, agent_id: AgentId, container: SimulatedContainer) -> None:
        """A container began, or could not."""
        if container.network_id:
            group = self._groups.setdefault(agent_id, {}).setdefault(container.network_id, {})
            group[container.task_id] = container

    def life_began(self, agent_id: AgentId, now_ms: int) -> None:
        """Another life of an agent: it has all the time again."""
        self._awake[agent_id] = (0, now_ms)
        for network_id in self._groups.get(agent_id, ()):
            self._since.pop(network_id, None)

    def stepped(self, agent_id: AgentId, now_ms: int) -> None:
        """An agent did something: has it done what it must about its groups?"""
        awake_ms, last_ms = self._awake[agent_id]
        awake_ms += min(now_ms - last_ms, _ATTENTION_MS)
        self._awake[agent_id] = (awake_ms, now_ms)
        groups = self._groups.get(agent_id, {})
        for network_id, members in list(groups.items()):
            live = [container for container in members.values() if container.live]
            lost = [container for container in members.values() if not container.live and container.ended_badly]
            if not live and len(members) == len(next(iter(members.values())).group):
                del groups[network_id]
            if not live or not lost:
                self._since.pop(network_id, None)
                continue
            self._judged("no member of a group runs on alone")
            since_ms = self._since.setdefault(network_id, awake_ms)
            patience_ms = max(container.grace_ms for container in live) + SLACK_MS
            if any(container.vanished for container in lost):
                # Nobody was told: it is found by comparing.
                patience_ms += DUE_MS
            require(
                awake_ms - since_ms <= patience_ms,
                f"{lost[0].task_id} has ended, and {live[0].task_id} of its group {network_id} on {agent_id} runs on",
            )

    def network_released(self, agent_id: AgentId, network_id: NetworkId, live: Iterable[SimulatedContainer]) -> None:
        """Nobody uses it any more."""
        self._judged("a network is let go of when nobody uses it")
        users = [container.task_id for container in live if container.network_id == network_id]
        require(not users, f"{agent_id} lets go of {network_id}, which {users} use")
