"""The stage: one master's real machine, its registry, its peers and the clock; stepped as its driver would step it.

Everything that is in the inbox is read before time passes, records are committed before anything else of a step leaves, and the
machine's own invariants are checked.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from bursar.core.clock import Instant
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, ConnectionId, FrameworkId, TaskId
from bursar.core.machine import Persist, TimePassed
from bursar.core.messages import operator as op
from bursar.core.messages.agent import AgentInfo
from bursar.core.messages.framework import FrameworkInfo, Offers
from bursar.core.messages.offers import Offer
from bursar.core.messages.operator import OperatorRequest, OperatorResponse, RefusalReason
from bursar.core.resources import ResourceRequest, Resources, sum_resources
from bursar.core.tasks import TaskState
from bursar.master.effects import CloseStream, Publish, Reply, SendToAgent, SendToFramework
from bursar.master.events import MasterEvent, OperatorCalled
from bursar.master.flags import FlagValues
from bursar.master.machine import MasterMachine
from bursar.simulation.registry import ANSWERS, SimulatedRegistry
from bursar.simulation.scenario.outcomes import Kind, Outcome, describe, refused
from bursar.simulation.scenario.peers import AgentPeer, FrameworkPeer, name_offer

CLUSTER = "scenario"
#: Time at which every script starts.
EPOCH_MS = 1_700_000_000_000
#: Operators of a script act under this name.
OPERATOR = "operator"
MAX_ADVANCE_MS = 86_400_000
#: Steps of one moment after which somebody must be talking in circles.
MAX_STEPS = 200_000
#: Remembered tasks beyond which the invariants are checked after every command, and no longer after every step.
MAX_CHECKED_TASKS = 100

#: What peers tell or notice themselves, in words of their own.
_TOLD_OTHERWISE = frozenset({"task_status", "task_launched", "agent_refused", "task_preempted"})
#: Reasons that are nobody's policy: nothing is free, nobody is there, nothing is wanted, somebody else comes first.
_NO_POLICY = frozenset(
    {
        RefusalReason.UNSPECIFIED,
        RefusalReason.AGENT_INACTIVE,
        RefusalReason.SUPPRESSED,
        RefusalReason.NOT_FREE,
        RefusalReason.OTHERS_FIRST,
    }
)


class Stage:
    """Where a script is carried out. Same script, same outcomes."""

    def __init__(self) -> None:
        self._start = Instant(0, EPOCH_MS)
        self.now = self._start
        self._flags: dict[str, str] = {}
        self._registry = SimulatedRegistry(CLUSTER)
        self._machine: MasterMachine | None = None
        self.agents: dict[str, AgentPeer] = {}
        self.frameworks: dict[str, FrameworkPeer] = {}
        #: Agent → what the script has said of its machine; `verbs` knows the form.
        self.machines: dict[str, Any] = {}
        #: Task → its framework; names are the script's, unique in it.
        self.tasks: dict[str, str] = {}
        self._unnamed: dict[str, int] = {}
        self.outcomes: list[Outcome] = []
        #: How many records were committed: whether something lasting was changed.
        self.records = 0
        self._peers: dict[ConnectionId, AgentPeer | FrameworkPeer] = {}
        self._connections = 0
        self._inbox: deque[MasterEvent] = deque()
        self._later: list[tuple[int, int, Callable[..., object], tuple[Any, ...]]] = []
        self._sequence = 0
        self._offers_made = 0
        self._bundles_made = 0
        self._tokens = 0
        self._replies: dict[int, OperatorResponse | ErrorDetail] = {}
        self._refusals: set[tuple[str, str, int, str]] = set()

    # --- the master -----------------------------------------------------------------------------------------------------

    @property
    def machine(self) -> MasterMachine:
        """The master's machine; it starts with the first thing that needs it."""
        if self._machine is None:
            flags = FlagValues.defaults(**self._flags)
            self._machine = MasterMachine(self._registry.begin_term(), flags, self.now, answers=ANSWERS)
        return self._machine

    @property
    def has_started(self) -> bool:
        """Whether the master runs, so that its command line cannot be changed any more."""
        return self._machine is not None

    def set_flag(self, name: str, value: str) -> None:
        """A flag of the master's command line. Raises InvalidText."""
        FlagValues.defaults(**{name: value})
        self._flags[name] = value

    def restart(self) -> None:
        """The master dies and starts again on its registry; agents and frameworks come back at once."""
        for framework in self.frameworks.values():
            if framework.connection is not None:
                self.forget(framework.connection)
                framework.lose()
        self._machine = None
        self._inbox.clear()
        peers: list[AgentPeer | FrameworkPeer] = [*self.agents.values(), *self.frameworks.values()]
        for peer in peers:
            if peer.connection is not None:
                peer.connect()

    def ask(self, request: OperatorRequest) -> OperatorResponse | ErrorDetail:
        """What the master answers an operator."""
        self._tokens += 1
        self.post(OperatorCalled(self._tokens, request, OPERATOR))
        self.settle()
        return self._replies.pop(self._tokens)

    # --- what peers need ------------------------------------------------------------------------------------------------

    @property
    def at_ms(self) -> int:
        """Virtual time since the start."""
        return self.now.monotonic_ms - self._start.monotonic_ms

    def connect(self, peer: AgentPeer | FrameworkPeer) -> ConnectionId:
        """A new stream."""
        self._connections += 1
        connection = ConnectionId(self._connections)
        self._peers[connection] = peer
        return connection

    def forget(self, connection: ConnectionId) -> None:
        """Nobody listens on a stream any more."""
        self._peers.pop(connection, None)

    def post(self, event: MasterEvent) -> None:
        """Into the master's inbox."""
        self._inbox.append(event)

    def note(self, outcome: Outcome) -> None:
        """For the transcript."""
        self.outcomes.append(outcome)

    def refuse(self, message: str, hint: str = "", **who: str) -> None:
        """A command could not be carried out as things are."""
        self.note(refused(self.at_ms, ErrorDetail(ErrorReason.NOT_FOUND, message, hint), **who))

    def show(self, text: str) -> None:
        """A line that was asked for."""
        self.note(Outcome(Kind.SHOWN, self.at_ms, text))

    def later(self, after_ms: int, action: Callable[..., object], *arguments: Any) -> None:
        """Do something when so much time has passed."""
        self._sequence += 1
        heappush(self._later, (self.now.monotonic_ms + after_ms, self._sequence, action, arguments))

    # --- steps and time -------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Read the inbox to its end, then do what is due, until it is quiet."""
        machine = self.machine
        for _ in range(MAX_STEPS):
            if self._inbox:
                self._step(self._inbox.popleft())
            elif (due := machine.next_deadline_ms()) is not None and due <= self.now.monotonic_ms:
                self._step(TimePassed())
            else:
                return
        raise AssertionError(f"not quiet after {MAX_STEPS} steps of one moment")

    def quiet(self) -> None:
        """The end of a command: everything that it caused, and what frameworks are refused now."""
        if self._inbox or self._machine is not None:
            self.settle()
            self.machine.check()
            self.note_refusals()

    def advance(self, ms: int) -> None:
        """Let time pass, from one thing that is due to the next."""
        until = self.now.monotonic_ms + ms
        while (due := self._next_due()) is not None and due <= until:
            self._move_to(due)
            while self._later and self._later[0][0] <= self.now.monotonic_ms:
                _, _, action, arguments = heappop(self._later)
                action(*arguments)
            self.settle()
        self._move_to(until)
        self.settle()

    def full_cycle(self) -> None:
        """Run the cycle over all agents now; the master itself does so once in every allocation interval."""
        self.machine.cluster.deadlines.set(("cycle", ""), self.now.monotonic_ms)
        self.settle()

    def patience_ms(self) -> int:
        """How long the master waits for an agent that is silent."""
        flags = self.machine.cluster.flags
        return flags.duration_ms("agent-ping-timeout") * flags.max_agent_ping_timeouts

    def _next_due(self) -> int | None:
        own = self._later[0][0] if self._later else None
        theirs = self.machine.next_deadline_ms()
        return min((due for due in (own, theirs) if due is not None), default=None)

    def _move_to(self, monotonic_ms: int) -> None:
        ms = max(0, monotonic_ms - self.now.monotonic_ms)
        self.now = Instant(self.now.monotonic_ms + ms, self.now.wall_ms + ms)

    def _step(self, event: MasterEvent) -> None:
        machine = self.machine
        effects = machine.step(event, self.now)
        if len(machine.cluster.tasks) <= MAX_CHECKED_TASKS:
            machine.check()
        records = [effect.record for effect in effects if isinstance(effect, Persist)]
        self._registry.commit(records)
        self.records += len(records)
        made: list[tuple[FrameworkPeer, Offer]] = []
        for effect in effects:
            self._perform(effect, made)
        # Offers travel by framework; their numbers tell in which order they were decided.
        for framework, offer in sorted(made, key=lambda item: _place(item[1])):
            self._offers_made += 1
            framework.offered(self._offers_made, offer)

    def _perform(self, effect: Any, made: list[tuple[FrameworkPeer, Offer]]) -> None:
        match effect:
            case SendToFramework(connection, Offers(_, offers)):
                peer = self._peers.get(connection)
                if isinstance(peer, FrameworkPeer):
                    made.extend((peer, offer) for offer in offers)
            case SendToAgent(connection, message) | SendToFramework(connection, message):
                if (peer := self._peers.get(connection)) is not None:
                    peer.hear(message)
            case CloseStream(connection):
                if (peer := self._peers.pop(connection, None)) is not None and peer.connection == connection:
                    peer.closed()
            case Reply(token, answer):
                self._replies[token] = answer
            case Publish(event) if event.kind not in _TOLD_OTHERWISE:
                self.note(_as_outcome(event, self.at_ms))

    # --- what verbs need ------------------------------------------------------------------------------------------------

    def add_agent(self, info: AgentInfo) -> None:
        """A new machine."""
        peer = self.agents[info.agent_id] = AgentPeer(self, info)
        peer.connect()

    def add_framework(self, info: FrameworkInfo, **more: Any) -> None:
        """A new framework; `more` are fields of its peer."""
        peer = self.frameworks[info.framework_id] = FrameworkPeer(self, info, **more)
        peer.connect()

    def end_task(
        self, framework_id: FrameworkId, task_id: TaskId, state: TaskState = TaskState.FINISHED
    ) -> AgentId | None:
        """A task ends on its agent, which is returned; None where it does not run."""
        for agent in self.agents.values():
            if agent.end(framework_id, task_id, state):
                return agent.agent_id
        return None

    def new_task(self, framework_id: FrameworkId) -> TaskId:
        """A name for a task that nobody named."""
        name = TaskId("")
        while not name or name in self.tasks:
            self._unnamed[framework_id] = number = self._unnamed.get(framework_id, 0) + 1
            name = TaskId(f"{framework_id}-t{number}")
        self.tasks[name] = framework_id
        return name

    @staticmethod
    def count_fitting(offer: Offer, shape: ResourceRequest) -> int:
        """How many tasks of a shape fit into an offer."""
        rest: Resources = sum_resources(part.resources for part in offer.resources)
        counts = [rest.scalars.get(kind, 0) // amount for kind, amount in shape.scalars.items() if amount]
        if shape.gpu_count:
            counts.append(len(rest.devices) // shape.gpu_count)
        return min(counts, default=0)

    def number_bundle(self) -> int:
        """The number of a new bundle in the transcript."""
        self._bundles_made += 1
        return self._bundles_made

    def show_offers(self) -> None:
        """All offers that stand."""
        standing = [offer for framework in self.frameworks.values() for offer in framework.standing()]
        for one in sorted(standing, key=lambda one: one.number):
            offer = one.offer
            self.show(f"{name_offer(one)}: {offer.agent_id} {describe(offer.agent_id, offer.resources)}")
        bundles = [bundle for framework in self.frameworks.values() for bundle in framework.bundles.values()]
        for bundle in sorted(bundles, key=lambda bundle: bundle.number):
            for outcome in bundle.outcomes(self.at_ms):
                self.show(outcome.text)
        if not standing and not bundles:
            self.show("no offers")

    def note_refusals(self) -> None:
        """Say why frameworks are offered nothing of some agents, as far as that is a matter of policy and has changed."""
        found: set[tuple[str, str, int, str]] = set()
        for name in sorted(self.frameworks):
            if self.frameworks[name].connection is None:
                continue
            answer = self.ask(op.ExplainFrameworkRequest(name))
            if not isinstance(answer, op.ExplainFrameworkResponse):
                continue
            for refusal in answer.refusals:
                if refusal.reason in _NO_POLICY or self._has_offer(name, refusal):
                    continue
                key = (name, refusal.role, int(refusal.reason), refusal.message)
                found.add(key)
                if key not in self._refusals:
                    self.note(
                        Outcome(
                            Kind.NO_OFFER,
                            self.at_ms,
                            f"no offer to {name} for {refusal.role}: {refusal.message}",
                            framework=name,
                            role=refusal.role,
                            reason=refusal.reason.name,
                            message=refusal.message,
                            hint=refusal.hint or None,
                        )
                    )
        self._refusals = found

    def _has_offer(self, framework: str, refusal: op.Refusal) -> bool:
        """Whether it speaks of nothing but the rest of an agent of which the framework holds an offer."""
        agent = refusal.example_agent_id
        return refusal.agents == 1 and bool(self.frameworks[framework].standing(agent, refusal.role))


def _place(offer: Offer) -> tuple[int, str]:
    number = re.search(r"([0-9]+)$", offer.offer_id)
    return (int(number[1]) if number else 0), offer.offer_id


def _as_outcome(event: op.ClusterEvent, at_ms: int) -> Outcome:
    return Outcome(
        Kind.EVENT,
        at_ms,
        event.message or event.kind.replace("_", " "),
        framework=event.framework_id or None,
        agent=event.agent_id or None,
        task=event.task_id or None,
        reason=event.kind,
        message=event.message or None,
    )
