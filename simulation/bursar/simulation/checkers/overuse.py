"""Who is ended for what it uses of a card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from bursar.agent.containers.runtime import ContainerId
from bursar.agent.events import SharesMeasured
from bursar.agent.state import TaskSaved
from bursar.agent.tasks import TaskKey, container_of
from bursar.core.devices import Device
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.machine import Persist
from bursar.core.tasks import StatusReason
from bursar.simulation.checkers.verdicts import Judge, require
from bursar.simulation.overuse import SHARE_GRACE_MS


class OveruseJudge(Judge):
    """Nobody is ended who did not use more than a soft share at every look of a whole grace."""

    def __init__(self, verdicts: Counter[str]) -> None:
        super().__init__(verdicts)
        #: Of each life of an agent: since when each container was found to use more, and the time of the last look.
        self._since: dict[AgentId, tuple[int, dict[tuple[ContainerId, DeviceUuid], int]]] = {}
        self._now: dict[AgentId, int] = {}
        self._ended: set[TaskKey] = set()

    def measured(
        self, agent_id: AgentId, life: int, event: SharesMeasured, devices: Iterable[Device], monotonic_ms: int
    ) -> None:
        """An agent is told what is used."""
        soft = {one.uuid: one.mem_bytes for one in devices if one.attributes.get("enforcement") == "soft"}
        greedy = {
            (user.container_id, uuid)
            for uuid, users in event.users.items()
            for user in users or ()
            if uuid in soft and (user.mem_bytes or 0) > soft[uuid]
        }
        before = self._since.get(agent_id, (life, {}))
        since = before[1] if before[0] == life else {}
        self._since[agent_id] = life, {which: since.get(which, monotonic_ms) for which in greedy}
        self._now[agent_id] = monotonic_ms

    def stepped(self, agent_id: AgentId, effects: Sequence[Any]) -> None:
        """An agent has decided."""
        for effect in effects:
            if isinstance(effect, Persist) and isinstance(effect.record, TaskSaved):
                record = effect.record.task
                kill = record.kill
                if kill is None or kill.reason is not StatusReason.DEVICE_MEM_LIMIT or record.key in self._ended:
                    continue
                self._ended.add(record.key)
                self._judged("nobody is ended for a share that it did not pass for long")
                _, since = self._since.get(agent_id, (0, {}))
                container_id = container_of(agent_id, record.key)
                longest = max(
                    (self._now[agent_id] - ms for (whose, _), ms in since.items() if whose == container_id), default=-1
                )
                require(
                    longest >= SHARE_GRACE_MS,
                    f"{agent_id} ends {record.key.task_id} for its use of a share, which it passed for {longest} ms",
                )
