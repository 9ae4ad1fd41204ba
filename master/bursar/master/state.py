"""What a cluster is: agents, frameworks, tasks, offers; what of it is durable and what soft.

Durable (folded from `records`): agents with their reservations, frameworks with failover deadlines, tasks with their devices and
ends, run-time flags, answered calls and requests. Soft, void after a restart: connections, offers, filters, suppression, demand.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from zlib import crc32

from bursar.core.clock import Deadlines, Instant
from bursar.core.device_names import volume_bytes
from bursar.core.devices import Device
from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, ConnectionId, DeviceUuid, FrameworkId, Generation, OfferId
from bursar.core.machine import Persist
from bursar.core.messages.agent import AgentInfo, BooksReport, DevicesChanged, MasterMessage
from bursar.core.messages.executor import MessagePace
from bursar.core.messages.framework import FrameworkEvent, FrameworkInfo
from bursar.core.messages.offers import AgentDescription, Demand, Offer
from bursar.core.messages.operator import AgentState, ClusterEvent, FrameworkState
from bursar.core.predicates import AgentFacts
from bursar.core.resources import (
    DISK,
    EMPTY,
    Holding,
    ReservedResources,
    Resources,
    Stack,
    subtract_holdings,
    to_holding,
)
from bursar.core.tasks import AssignedTask, StatusReason, TaskState, TaskStatus
from bursar.core.text import Minimum, parse_minimum
from bursar.master.allocator.backoff import OfferCounts
from bursar.master.allocator.constraints import RoleSettings
from bursar.master.allocator.filters import RefuseFilters
from bursar.master.allocator.held_back import HeldBack
from bursar.master.allocator.holders import Holders
from bursar.master.allocator.loans import Claim
from bursar.master.allocator.shares import Shares
from bursar.master.allocator.visibility import Visibility
from bursar.master.bundles import Gangs
from bursar.master.described import Described
from bursar.master.effects import CloseStream, MasterEffect, Publish, SendToAgent, SendToFramework
from bursar.master.flags import FlagValues
from bursar.master.image_books import ImageBooks
from bursar.master.ledger import Ledger, TaskKey
from bursar.master.records import Durable, KeptVolume, Record, RestartOrder


@dataclass(frozen=True, slots=True)
class Asked:
    """An agent was asked for all of its books; what came later may be missing in its answer."""

    number: int
    #: Tasks that it had then, by our books, and those of them that were to end.
    tasks: frozenset[TaskKey] = frozenset()
    to_end: frozenset[TaskKey] = frozenset()


@dataclass(slots=True)
class Comparing:
    """How an agent's view and the master's compare (B-18); soft, and begun anew with each registration."""

    #: Digests in a row that were not ours; answers in a row in which nothing was found.
    differing: int = 0
    fruitless: int = 0
    #: The request that is out, and the number of the last one.
    asked: Asked | None = None
    last_number: int = 0
    parts: list[BooksReport] = field(default_factory=list)
    #: What the agent said of its devices and could not be taken over.
    untaken: DevicesChanged | None = None
    #: Why its answer could not be taken over, as was said last.
    problem: str = ""


@dataclass(slots=True)
class AgentVolumes:
    """The persistent volumes of an agent: what is recorded, and what the agent said of its data."""

    kept: dict[DeviceUuid, KeptVolume] = field(default_factory=dict)
    #: Destroyed; their data is not known to be gone.
    leaving: frozenset[DeviceUuid] = frozenset()
    #: Soft. The newest order on this connection; 0: none.
    order: int = 0
    #: Soft. Why a volume cannot be had now: its data is not there.
    troubles: dict[DeviceUuid, str] = field(default_factory=dict)
    #: Soft. Data on the agent of which there is no record.
    strays: frozenset[DeviceUuid] = frozenset()


@dataclass(slots=True, eq=False)
class Agent:
    """One agent. Invariant: `connection` is set iff `state` is ACTIVE; its books are open for as long as it is known."""

    info: AgentInfo
    state: AgentState
    registered_at_ms: int
    #: Of the description that offers refer to; grows with every change.
    description_version: int = 1
    connection: ConnectionId | None = None
    #: Dynamic reservations: cut from the unreserved part of what the agent declares.
    reservations: dict[Stack, Resources] = field(default_factory=dict)
    #: The reservations, static and dynamic, that are lent while they are idle.
    lent: frozenset[Stack] = frozenset()
    volumes: AgentVolumes = field(default_factory=AgentVolumes)
    devices: dict[DeviceUuid, Device] = field(default_factory=dict)
    #: What the agent was told last; only meaningful while connected.
    generation: Generation = Generation()
    missed_pings: int = 0
    comparing: Comparing = field(default_factory=Comparing)
    #: Tasks on it that are not terminal.
    tasks: set[TaskKey] = field(default_factory=set)
    description: AgentDescription | None = None
    #: Made from this info.
    _facts: tuple[AgentInfo, AgentFacts] | None = None
    #: Place in the cycle's order: a permutation drawn from the master's term, and the id where two draw the same.
    order: tuple[int, AgentId] = (0, AgentId(""))
    #: Its id, for good, and its number among those that this master knows.
    agent_id: AgentId = AgentId("")
    number: int = 0
    #: What `has_gpus` was found of.
    _seen: AgentInfo | None = None
    _has_gpus: bool = False

    def __post_init__(self) -> None:
        self.agent_id = self.info.agent_id

    def buckets(self) -> dict[Stack, Resources]:
        """All that it has, by bucket. Raises InsufficientResources."""
        return buckets_of(self.info.resources, self.reservations, self.volumes.kept.values())

    @property
    def has_gpus(self) -> bool:
        """Whether its *total* has a GPU, in use or not (GPU-3)."""
        if self._seen is not self.info:
            self._seen = self.info
            self._has_gpus = any(part.resources.devices for part in self.info.resources)
        return self._has_gpus

    @property
    def facts(self) -> AgentFacts:
        """What predicates on the agent itself are held against: no amounts, no devices."""
        if self._facts is None or self._facts[0] is not self.info:
            self._facts = (self.info, AgentFacts(self.info.hostname, self.info.attributes))
        return self._facts[1]

    def describe(self) -> AgentDescription:
        """What offers refer to."""
        if self.description is None or self.description.version != self.description_version:
            info = self.info
            self.description = AgentDescription(
                info.agent_id,
                self.description_version,
                info.hostname,
                info.attributes,
                info.devices,
                info.runtime,
                info.runs_without_image,
            )
        return self.description


def buckets_of(
    resources: Iterable[ReservedResources], reservations: Holding, volumes: Iterable[KeptVolume] = ()
) -> dict[Stack, Resources]:
    """What an agent declares, with its dynamic reservations moved to their own buckets, and volumes in place of disk of theirs.

    A dynamic reservation comes out of the bucket below its top level. Raises InsufficientResources where it does not fit.
    """
    total = to_holding(resources)
    for stack in sorted(reservations, key=len):
        # A refinement is cut from the level below, which must have been made first.
        total = subtract_holdings(total, {stack[:-1]: reservations[stack]})
        total[stack] = total[stack] + reservations[stack] if stack in total else reservations[stack]
    for volume in volumes:
        there = total.get(volume.stack, EMPTY) - Resources({DISK: volume_bytes(volume.uuid)})
        total[volume.stack] = there + Resources(devices=frozenset({volume.uuid}))
    return {stack: part for stack, part in total.items() if part}


@dataclass(slots=True, eq=False)
class Framework:
    """One framework. Invariant: `connection` is set iff `state` is ACTIVE."""

    info: FrameworkInfo
    state: FrameworkState
    subscribed_at_ms: int
    connection: ConnectionId | None = None
    suppressed: set[str] = field(default_factory=set)
    #: Which offers it takes, by role, made ready from `info`; roles that take any are not in it.
    settings: Mapping[str, RoleSettings] = field(default_factory=dict)
    demand: Demand = Demand()
    #: How many of each shape of the demand are still wanted; parallel to `demand.shapes`.
    wanted: list[int] = field(default_factory=list)
    #: How many of each shape outstanding offers were cut for; parallel to `demand.shapes`.
    promised: list[int] = field(default_factory=list)
    #: What was open of each shape when agents were last woken for it; parallel to `demand.shapes`.
    settled: list[int] = field(default_factory=list)
    #: Wall time at which it is removed; 0 while connected.
    failover_deadline_ms: int = 0
    offers: set[OfferId] = field(default_factory=set)
    #: All its tasks that are remembered.
    tasks: set[TaskKey] = field(default_factory=set)
    #: The descriptions of agents that its stream has seen.
    described: Described = field(default_factory=Described)
    #: What became of its offers.
    history: OfferCounts = field(default_factory=OfferCounts)

    @property
    def framework_id(self) -> FrameworkId:
        """Its id."""
        return self.info.framework_id

    @property
    def open(self) -> list[int]:
        """How many of each shape are wanted and not on offer."""
        return [max(0, wanted - promised) for wanted, promised in zip(self.wanted, self.promised, strict=True)]


@dataclass(slots=True, eq=False)
class OutstandingOffer:
    """An offer that was not answered yet."""

    offer: Offer
    created_at_ms: int
    #: Version of the demand that it was cut for, and how many of each shape; empty where none was stated.
    demand_version: int = 0
    promised: Mapping[int, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Task:
    """One task, from its launch until it is pruned."""

    agent_id: AgentId
    assigned: AssignedTask
    state: TaskState = TaskState.STAGING
    #: The newest status; None until there is one.
    status: TaskStatus | None = None
    #: What the framework has not acknowledged, in order.
    unacknowledged: list[TaskStatus] = field(default_factory=list)
    call_id: str = ""
    operation_id: str = ""
    kill_reason: StatusReason = StatusReason.UNSPECIFIED
    kill_grace_ms: int | None = None
    ended_at_ms: int = 0
    end_acknowledged: bool = False
    #: When it will be ended because what it runs on is wanted back (wall time); 0: it is not.
    preempt_at_ms: int = 0
    #: The newest order to restart it, and the number of the newest one that its agent has taken, as far as it is known.
    restart: RestartOrder | None = None
    restart_taken: int = 0
    #: Updates of the agent that were seen, so that a repeat is not told twice in a row.
    seen_updates: set[str] = field(default_factory=set)
    #: Number of updates that the master itself made.
    master_updates: int = 0
    #: Of an executor that messages pass to and from: in this order.
    paces: tuple[MessagePace, MessagePace] | None = None

    @property
    def key(self) -> TaskKey:
        """Its name, cluster-wide."""
        return TaskKey(self.assigned.framework_id, self.assigned.spec.task_id)


@dataclass(slots=True)
class Hunger:
    """A framework that wants something and has no offer."""

    #: Full cycles in a row.
    cycles: int = 0
    #: The rule that starves it, as was published; empty: none.
    rule: str = ""


@dataclass(slots=True)
class Counters:
    """Numbers that only grow, for metrics; soft."""

    offers_made: int = 0
    offers_accepted: int = 0
    offers_declined: int = 0
    offers_rescinded: int = 0
    offers_expired: int = 0
    calls_refused: int = 0
    tasks_launched: int = 0
    cycles: int = 0
    tasks_preempted: int = 0
    tasks_ended: dict[TaskState, int] = field(default_factory=dict)
    agent_registrations: int = 0
    agent_heartbeats: int = 0
    agents_made_unreachable: int = 0
    #: Comparisons with agents' books by outcome, `equal` or `different`; repairs by what was wrong.
    comparisons: dict[str, int] = field(default_factory=dict)
    repairs: dict[str, int] = field(default_factory=dict)
    #: Messages between frameworks and executors, by what came of them: `to_executor`, `to_framework`, `dropped`.
    executor_messages: dict[str, int] = field(default_factory=dict)
    framework_subscriptions: int = 0
    #: Kind → amount × milliseconds that were on offer and came back unused.
    unused: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Turn:
    """One step: when it is, and what it asks for."""

    now: Instant
    #: What the registry will mean once the effects of this step are committed.
    durable: Durable
    effects: list[MasterEffect] = field(default_factory=list)

    def persist(self, record: Record) -> None:
        """Make a record durable before anything else of this step is visible."""
        self.durable.apply(record)
        self.effects.append(Persist(record))

    def to_agent(self, agent: Agent, message: MasterMessage) -> None:
        """Tell an agent, if it is connected."""
        if agent.connection is not None:
            self.effects.append(SendToAgent(agent.connection, message))

    def to_framework(self, framework: Framework, event: FrameworkEvent) -> None:
        """Tell a framework, if it is connected."""
        if framework.connection is not None:
            self.effects.append(SendToFramework(framework.connection, event))

    def close(self, connection: ConnectionId, error: ErrorDetail | None = None) -> None:
        """End a stream."""
        self.effects.append(CloseStream(connection, error))

    def publish(
        self, kind: str, message: str, *, agent_id: str = "", framework_id: str = "", task_id: str = ""
    ) -> None:
        """Tell those who watch."""
        event = ClusterEvent(self.now.wall_ms, kind, agent_id, framework_id, task_id, message)
        self.effects.append(Publish(event))


_order_of = attrgetter("order")
#: So many are put in their places one by one.
_FEW = 100


class Cluster:
    """The state of the master's machine; changed by the modules that `machine` dispatches to."""

    def __init__(self, durable: Durable, flags: FlagValues) -> None:
        #: What the registry means; changed by `Turn.persist` alone.
        self.durable = durable
        self.cluster_id = durable.cluster_id
        self.term = durable.term
        self.flags = flags
        self.started_at_ms = 0
        self.agents: dict[AgentId, Agent] = {}
        #: The same in the order of the cycle; and those that are yet to be put there.
        self._in_order: list[Agent] = []
        self._newcomers: list[Agent] = []
        self.frameworks: dict[FrameworkId, Framework] = {}
        self.tasks: dict[TaskKey, Task] = {}
        #: Tasks of frameworks that are gone, or not yet known: adopted from agents.
        self.orphans: dict[FrameworkId, set[TaskKey]] = {}
        #: Ended and acknowledged tasks per framework, oldest first: what is pruned.
        self.ended: dict[FrameworkId, dict[TaskKey, None]] = {}
        #: The same of all frameworks together, gone ones too.
        self.ended_anywhere: dict[TaskKey, None] = {}
        self.offers: dict[OfferId, OutstandingOffer] = {}
        self.shares = Shares(flags.excluded_names)
        for role, weight_milli in durable.weights.items():
            self.shares.set_weight(role, weight_milli)
        for quota in durable.quotas.values():
            self.shares.set_quota(quota.role, quota.guarantees, quota.limits)
        self.held_back = HeldBack()
        self.ledger = Ledger(self.shares)
        self.filters = RefuseFilters()
        #: The least that is worth an offer, and where the master is; made ready from flags.
        self.minimum: Minimum = parse_minimum(flags.min_allocatable)
        self.region: str = flags.region
        #: Who may see what; kept up to date by `rules.compile_rules`.
        self.visibility = Visibility()
        #: Frameworks that want something and got no offer in the last full cycles; soft.
        self.hunger: dict[FrameworkId, Hunger] = {}
        #: The role groups, and whom each reservation's holder covers.
        self.holders = Holders()
        self.agent_connections: dict[ConnectionId, AgentId] = {}
        self.framework_connections: dict[ConnectionId, FrameworkId] = {}
        #: What is due when: (kind, id); the kinds are listed in `machine`.
        self.deadlines: Deadlines[tuple[str, str]] = Deadlines()
        #: Offers by the time at which they expire, as text; some were answered meanwhile.
        self.expiring_offers: dict[str, list[OfferId]] = {}
        #: Agents whose resources, or whose onlookers, changed since the last cycle.
        self.dirty: set[AgentId] = set()
        #: Something changed that concerns every agent.
        self.all_dirty = False
        #: Frameworks of which less or more is open than agents were last woken for.
        self.reopened: set[FrameworkId] = set()
        self.offer_sequence = 0
        self.gangs = Gangs()
        #: Pulls that were ordered, and which agents have which images; soft.
        self.images = ImageBooks()
        #: Agents of which something is lent, or on loan.
        self.lenders: set[AgentId] = set()
        #: Who waits for what was lent to come back, by agent; soft.
        self.claims: dict[AgentId, Claim] = {}
        #: Who is to be asked first, once, now that it is back.
        self.first_in_line: dict[AgentId, Claim] = {}
        self.counters = Counters()

    def permuted(self, agent_id: AgentId) -> tuple[int, AgentId]:
        """Place of an agent in a permutation that the term decides (OFF-19)."""
        return crc32(f"{self.term}:{agent_id}".encode()), agent_id

    def touch(self, agent_id: AgentId) -> None:
        """Look at this agent in the next cycle."""
        self.dirty.add(agent_id)

    def touch_all(self) -> None:
        """Something changed that concerns every agent with free resources."""
        self.all_dirty = True

    @property
    def is_dirty(self) -> bool:
        """Whether a cycle has anything to look at."""
        return self.all_dirty or bool(self.dirty) or (self.shares.quota_moved and bool(self.held_back.agents))

    def add_agent(self, agent: Agent) -> None:
        """Make an agent known, at its place in the order of the cycle (OFF-19: a permutation that the term decides)."""
        agent.order, agent.number = self.permuted(agent.agent_id), len(self.agents)
        self.agents[agent.agent_id] = agent
        self._newcomers.append(agent)

    @property
    def agents_in_order(self) -> Sequence[Agent]:
        """All agents, in the order of the cycle. Many newcomers are sorted in together."""
        if self._newcomers:
            if len(self._newcomers) > _FEW:
                self._in_order = sorted((*self._in_order, *self._newcomers), key=_order_of)
            else:
                for agent in self._newcomers:
                    insort(self._in_order, agent, key=_order_of)
            self._newcomers.clear()
        return self._in_order

    def describe_anew(self, agent: Agent, info: AgentInfo) -> None:
        """An agent says something else of itself: who is offered any of it is told."""
        agent.info = info
        agent.description_version += 1
        for framework in self.frameworks.values():
            framework.described.forget(agent.number)

    def agent_of(self, connection: ConnectionId) -> Agent | None:
        """The agent whose *current* stream this is."""
        agent_id = self.agent_connections.get(connection)
        agent = None if agent_id is None else self.agents[agent_id]
        return agent if agent is not None and agent.connection == connection else None

    def framework_of(self, connection: ConnectionId) -> Framework | None:
        """The framework whose *current* stream this is."""
        framework_id = self.framework_connections.get(connection)
        framework = None if framework_id is None else self.frameworks.get(framework_id)
        return framework if framework is not None and framework.connection == connection else None

    def live_tasks(self, keys: Iterable[TaskKey]) -> list[Task]:
        """Those that are not terminal."""
        return [task for key in keys if not (task := self.tasks[key]).state.is_terminal]
