"""A playbook for dialogues with the master's machine: peers speak, the machine is stepped as its driver would, and after every
step its invariants hold and the records that it emitted mean exactly its durable state.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import pytest

from bursar.core.clock import Instant
from bursar.core.devices import Device, DeviceHealth, DeviceLink
from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, ConnectionId, DeviceUuid, FrameworkId, Generation, OfferId, TaskId
from bursar.core.machine import Persist, Stalled, TimePassed
from bursar.core.messages import operator as op
from bursar.core.messages.agent import (
    AcknowledgeUpdates,
    AgentInfo,
    DesiredState,
    DevicesChanged,
    Ping,
    Pong,
    Register,
    ResyncRequest,
    TaskReport,
    TaskUpdates,
)
from bursar.core.messages.framework import (
    GPU_RESOURCES,
    Acknowledge,
    FrameworkHeartbeat,
    FrameworkInfo,
    Kill,
    LookupCalls,
    LookupResults,
    MasterHeartbeat,
    Offers,
    Reconcile,
    Rescind,
    Revive,
    StatusUpdates,
    Subscribe,
    Suppress,
    UpdateDemand,
    UpdateFramework,
    UpdateRef,
)
from bursar.core.messages.gangs import Bundle, GangGroup, GangTopology, GangUpdate, OnMemberLost, RequestGang
from bursar.core.messages.offers import (
    Accept,
    AgentDescription,
    CallResult,
    Decline,
    Demand,
    Filters,
    Launch,
    Offer,
    Operation,
    Shape,
)
from bursar.core.resources import (
    PortRange,
    Reservation,
    ReservationType,
    ReservedResources,
    ResourceRequest,
    Resources,
    holding_total,
    to_holding,
)
from bursar.core.role_expressions import plain_holder
from bursar.core.roles import ancestors
from bursar.core.task_groups import TASK_GROUPS
from bursar.core.tasks import (
    AssignedTask,
    StatusSource,
    TaskSpec,
    TaskState,
    TaskStatus,
)
from bursar.core.text import parse_amounts
from bursar.master.effects import CloseStream, Publish, Reply, SendToAgent, SendToFramework
from bursar.master.events import (
    AgentRegistering,
    AgentSpoke,
    AgentStreamEnded,
    FrameworkCalled,
    FrameworkStreamEnded,
    OperatorCalled,
)
from bursar.master.flags import FlagValues
from bursar.master.machine import MasterMachine
from bursar.master.records import Durable

NO_DEMAND = Demand()
CLUSTER = "cluster-1"
EPOCH_MS = 1_700_000_000_000
GIB = 2**30


def request(cpus: float = 0, mem: float = 0, gpus: int = 0, *, ports: str = "", **more: Any) -> ResourceRequest:
    """What somebody asks for: CPUs, GiB of memory, whole GPUs."""
    scalars = {}
    if cpus:
        scalars["cpus"] = round(cpus * 1000)
    if mem:
        scalars["mem"] = round(mem * GIB)
    return ResourceRequest(scalars, _ports(ports), gpus, **more)


def resources(cpus: float = 0, mem: float = 0, devices: Iterable[str] = (), ports: str = "") -> Resources:
    """Concrete resources."""
    asked = request(cpus, mem)
    return Resources(asked.scalars, _ports(ports), frozenset(map(DeviceUuid, devices)))


def _ports(text: str) -> tuple[PortRange, ...]:
    if not text:
        return ()
    first, _, last = text.partition("-")
    return (PortRange(int(first), int(last or first)),)


def static(role: str) -> tuple[Reservation, ...]:
    """The stack of a static reservation."""
    return (Reservation(ReservationType.STATIC, role),)


def dynamic(role: str, principal: str = "", **labels: str) -> tuple[Reservation, ...]:
    """The stack of a dynamic reservation."""
    return (Reservation(ReservationType.DYNAMIC, role, principal, tuple(sorted(labels.items()))),)


def spec(
    task_id: str,
    cpus: float = 1,
    mem: float = 0,
    gpus: int = 0,
    *,
    ports: str = "",
    devices: Sequence[str] = (),
    **more: Any,
) -> TaskSpec:
    """A task that sleeps."""
    asked = request(cpus, mem, gpus, ports=ports, devices=tuple(map(DeviceUuid, devices)))
    fields: dict[str, Any] = {"command": ("sleep", "1"), "resources": asked} | more
    return TaskSpec(TaskId(task_id), **fields)


def launch(*specs: TaskSpec, operation_id: str = "op") -> Operation:
    """One launch."""
    return Operation(operation_id, Launch(tuple(specs)))


class AgentPeer:
    """An agent as the master sees it: obedient, it runs whatever it is told to."""

    def __init__(self, book: Playbook, agent_id: str, info: AgentInfo) -> None:
        self.book = book
        self.agent_id = AgentId(agent_id)
        self.info = info
        self.connection: ConnectionId | None = None
        self.inbox: list[Any] = []
        #: What it would report at a registration.
        self.tasks: dict[tuple[str, str], TaskReport] = {}
        self.answers_pings = True
        #: The highest that it has seen; it refuses lower ones.
        self.generation = Generation()
        self._updates = 0

    def connect(
        self, *, cluster_id: str = CLUSTER, reports: Iterable[TaskReport] | None = None, **changes: Any
    ) -> AgentPeer:
        """Open a stream and register; `changes` are fields of its info."""
        if changes:
            self.info = replace(self.info, **changes)
        old = self.connection
        self.connection = self.book.new_connection(self)
        said = tuple(self.tasks.values()) if reports is None else tuple(reports)
        if old is not None and old in self.book.peers:
            self.book.peers.pop(old)
        self.book.step(AgentRegistering(self.connection, Register(self.info, cluster_id, self.generation), said))
        return self

    def disconnect(self) -> None:
        """The link breaks."""
        connection, self.connection = self.connection, None
        assert connection is not None
        self.book.peers.pop(connection, None)
        self.book.step(AgentStreamEnded(connection))

    def say(self, message: TaskUpdates | Pong | ResyncRequest | DevicesChanged) -> None:
        assert self.connection is not None, "not connected"
        self.book.step(AgentSpoke(self.connection, message))

    def hear(self, message: Any) -> None:
        self.inbox.append(message)
        match message:
            case DesiredState():
                assert message.generation >= self.generation, "an agent would refuse it"
                self.generation = message.generation
                for assigned in message.launch:
                    key = (assigned.framework_id, assigned.spec.task_id)
                    self.tasks.setdefault(key, TaskReport(assigned.framework_id, assigned, TaskState.STAGING))
            case AcknowledgeUpdates(updates):
                for update in updates:
                    key = (update.framework_id, update.task_id)
                    report = self.tasks.get(key)
                    if report is None:
                        continue
                    left = tuple(s for s in report.unacknowledged if s.update_id != update.update_id)
                    if report.state.is_terminal and not left:
                        del self.tasks[key]
                    else:
                        self.tasks[key] = replace(report, unacknowledged=left)

    def update(
        self,
        task_id: str,
        state: TaskState,
        *,
        framework: str = "f",
        update_id: str = "",
        deliver: bool = True,
        **more: Any,
    ) -> TaskStatus:
        """A task changed its state; with `deliver`, the master is told."""
        self._updates += 1
        status = TaskStatus(
            TaskId(task_id),
            FrameworkId(framework),
            self.agent_id,
            state,
            update_id=update_id or f"{self.agent_id}-u{self._updates}",
            source=StatusSource.AGENT,
            **more,
        )
        key = (framework, task_id)
        report = self.tasks.get(key)
        if report is not None:
            self.tasks[key] = replace(report, state=state, unacknowledged=(*report.unacknowledged, status))
        if deliver:
            self.say(TaskUpdates((status,)))
        return status

    def repeat(self, status: TaskStatus) -> None:
        self.say(TaskUpdates((status,)))

    def heard(self, kind: type) -> list[Any]:
        """All messages of a kind, oldest first; they are taken out of the inbox."""
        found = [message for message in self.inbox if isinstance(message, kind)]
        self.inbox = [message for message in self.inbox if not isinstance(message, kind)]
        return found

    def acknowledged(self) -> list[tuple[str, str]]:
        """(task, update) of all acknowledgements since last asked."""
        return [(u.task_id, u.update_id) for message in self.heard(AcknowledgeUpdates) for u in message.updates]

    @property
    def view(self) -> op.AgentView:
        return self.book.ask(op.GetAgentRequest(self.agent_id)).agent

    @property
    def uuids(self) -> list[DeviceUuid]:
        return [device.uuid for device in self.info.devices]


class FrameworkPeer:
    """A framework as the master sees it; `offers` are those that it believes to be outstanding."""

    def __init__(self, book: Playbook, info: FrameworkInfo) -> None:
        self.book = book
        self.info = info
        self.connection: ConnectionId | None = None
        self.inbox: list[Any] = []
        self.offers: dict[OfferId, Offer] = {}
        self.descriptions: dict[AgentId, AgentDescription] = {}
        self.closed: ErrorDetail | None = None
        self.sends_heartbeats = True
        self.demand = NO_DEMAND
        self._calls = 0

    def connect(
        self, *, cluster_id: str = "", suppressed: Sequence[str] = (), demand: Demand = NO_DEMAND, **changes: Any
    ) -> FrameworkPeer:
        """Open a stream and subscribe; `changes` are fields of its info."""
        if changes:
            self.info = replace(self.info, **changes)
        self.connection = self.book.new_connection(self)
        self.offers, self.closed, self.descriptions, self.demand = {}, None, {}, demand
        self.call(Subscribe(self.info, cluster_id, tuple(suppressed), demand))
        return self

    def disconnect(self) -> None:
        connection, self.connection = self.connection, None
        assert connection is not None
        self.book.peers.pop(connection, None)
        self.offers = {}
        self.book.step(FrameworkStreamEnded(connection))

    def call(self, call: Any) -> None:
        assert self.connection is not None, "not connected"
        self.book.step(FrameworkCalled(self.connection, call))

    def hear(self, event: Any) -> None:
        self.inbox.append(event)
        match event:
            case Offers(descriptions, offers):
                for description in descriptions:
                    self.descriptions[description.agent_id] = description
                for offer in offers:
                    assert self.descriptions[offer.agent_id].version == offer.description_version
                    self.offers[offer.offer_id] = offer
            case Bundle(bundle_id, _, offers):
                assert len({offer.agent_id for offer in offers}) == len(offers), "one offer per agent"
                for offer in offers:
                    assert offer.bundle_id == bundle_id
                    assert self.descriptions[offer.agent_id].version == offer.description_version
                    self.offers[offer.offer_id] = offer
            case Rescind(offer_ids):
                for offer_id in offer_ids:
                    assert self.offers.pop(offer_id, None) is not None, "rescinded, but not outstanding"

    def heard(self, kind: type) -> list[Any]:
        found = [event for event in self.inbox if isinstance(event, kind)]
        self.inbox = [event for event in self.inbox if not isinstance(event, kind)]
        return found

    def statuses(self) -> list[TaskStatus]:
        """Everything heard of tasks since last asked."""
        return [status for event in self.heard(StatusUpdates) for status in event.statuses]

    def states(self) -> list[tuple[str, str]]:
        """(task, state) of everything heard since last asked."""
        return [(status.task_id, status.state.name) for status in self.statuses()]

    def acknowledge(self, *statuses: TaskStatus) -> None:
        self.call(Acknowledge(tuple(UpdateRef(status.task_id, status.update_id) for status in statuses)))

    def accept(
        self,
        offers: Offer | Iterable[Offer | str],
        *operations: Operation,
        call_id: str = "",
        refuse_ms: int | None = None,
        partial: bool = False,
    ) -> CallResult:
        """Accept, and return the one answer."""
        self._calls += 1
        several = [offers] if isinstance(offers, Offer) else list(offers)
        ids = tuple(OfferId(offer) if isinstance(offer, str) else offer.offer_id for offer in several)
        self._answered(ids)
        self.heard(CallResult)
        call_id = call_id or f"call-{self._calls}"
        with self.book.batch():
            self.call(Accept(call_id, ids, tuple(operations), Filters(refuse_ms), partial))
            (result,) = self.heard(CallResult)
        assert result.call_id == call_id
        return result

    def ask_for_gang(
        self,
        *groups: tuple[int, ResourceRequest],
        gang_id: str = "g",
        role: str = "",
        same: str = "",
        clique: bool = False,
        ttl_ms: int = 3_600_000,
        keep: bool = False,
    ) -> None:
        """Ask for a gang: groups of (count, resources)."""
        self.call(
            RequestGang(
                gang_id,
                role or self.info.roles[0],
                tuple(GangGroup(resources, count) for count, resources in groups),
                GangTopology(same, clique),
                ttl_ms,
                OnMemberLost.KEEP if keep else OnMemberLost.UNSPECIFIED,
            )
        )

    def gang_states(self, gang_id: str = "g") -> list[str]:
        """What it heard of a gang since last asked; `BUNDLE` for a bundle."""
        found = [event for event in self.inbox if isinstance(event, Bundle | GangUpdate) and event.gang_id == gang_id]
        self.inbox = [event for event in self.inbox if event not in found]
        return ["BUNDLE" if isinstance(event, Bundle) else event.state.name for event in found]

    def gang_error(self) -> ErrorDetail:
        """The error of the last update on a gang."""
        error = self.heard(GangUpdate)[-1].error
        assert error is not None
        return error

    @property
    def bundle(self) -> Bundle:
        """The last bundle that it heard of."""
        return [event for event in self.inbox if isinstance(event, Bundle)][-1]

    def take(self, bundle: Bundle, gang: dict[int, ResourceRequest], prefix: str = "t", **more: Any) -> CallResult:
        """Accept a bundle by its first offer, with all its tasks: `<prefix>0`…"""
        specs = [
            TaskSpec(
                TaskId(f"{prefix}{index}"),
                agent_id=member.agent_id,
                command=("sleep", "1"),
                resources=ResourceRequest(gang[member.group].scalars, (), 0, member.device_uuids)
                if member.device_uuids
                else gang[member.group],
            )
            for index, member in enumerate(bundle.members)
        ]
        return self.accept([bundle.offers[0]], launch(*specs), **more)

    def _answered(self, offer_ids: Iterable[OfferId]) -> None:
        """An answer to one offer of a bundle is the answer to all."""
        for offer_id in offer_ids:
            offer = self.offers.pop(offer_id, None)
            if offer is not None and offer.bundle_id:
                self.offers = {key: other for key, other in self.offers.items() if other.bundle_id != offer.bundle_id}

    def run(self, *specs: TaskSpec, offer: Offer | None = None, refuse_ms: int | None = None) -> None:
        """Launch tasks on the only offer that there is."""
        offer = offer or self.offer
        result = self.accept(offer, launch(*specs), refuse_ms=refuse_ms)
        assert result.error is None, result.error

    def decline(self, *offers: Offer, refuse_ms: int | None = None) -> None:
        self._answered(offer.offer_id for offer in offers)
        self.call(Decline(tuple(offer.offer_id for offer in offers), Filters(refuse_ms)))

    def want(self, *shapes: Shape, version: int = 1) -> None:
        self.demand = Demand(version, tuple(shapes))
        self.call(UpdateDemand(self.demand))

    def suppress(self, *roles: str) -> None:
        self.call(Suppress(roles))

    def revive(self, *roles: str) -> None:
        self.call(Revive(roles))

    def kill(self, task_id: str, grace_ms: int | None = None) -> None:
        self.call(Kill(TaskId(task_id), grace_ms))

    def reconcile(self, *task_ids: str) -> list[TaskStatus]:
        self.statuses()
        self.call(Reconcile(tuple(map(TaskId, task_ids))))
        return self.statuses()

    def lookup(self, *call_ids: str, operations: Sequence[str] = ()) -> tuple[CallResult, ...]:
        self.call(LookupCalls(tuple(call_ids), tuple(operations)))
        (found,) = self.heard(LookupResults)
        return found.results

    def update(
        self, *, suppressed: Sequence[str] = (), demand: Demand = NO_DEMAND, call_id: str = "", **changes: Any
    ) -> CallResult:
        """Change fields of its info; return the one answer. Offers wait, so that a test sees what was rescinded."""
        self._calls += 1
        info = replace(self.info, **changes)
        call_id = call_id or f"call-{self._calls}"
        with self.book.batch():
            self.call(UpdateFramework(call_id, info, tuple(suppressed), demand))
            (result,) = self.heard(CallResult)
        assert result.call_id == call_id
        if result.error is None:
            self.info = info
            self.demand = demand if demand.version else self.demand
        return result

    @property
    def offer(self) -> Offer:
        """The only outstanding offer."""
        (offer,) = self.offers.values()
        return offer

    def offered(self) -> Resources:
        """All that is offered, ports left out: those of several agents are different ones."""
        return _sum(holding_total(to_holding(offer.resources)) for offer in self.offers.values())

    @property
    def agents(self) -> set[str]:
        """The agents of the outstanding offers."""
        return {offer.agent_id for offer in self.offers.values()}

    @property
    def view(self) -> op.FrameworkView:
        return self.book.ask(op.GetFrameworkRequest(self.info.framework_id)).framework


def _sum(parts: Iterable[Resources]) -> Resources:
    total = Resources()
    for part in parts:
        total = total + Resources(part.scalars, (), part.devices)
    return total


class _Batch:
    def __init__(self, book: Playbook) -> None:
        self.book = book

    def __enter__(self) -> None:
        self.book.batching += 1

    def __exit__(self, *_: object) -> None:
        self.book.batching -= 1
        if not self.book.batching:
            self.book.timers()


class Playbook:
    """A master and its peers."""

    request = staticmethod(request)
    resources = staticmethod(resources)
    spec = staticmethod(spec)
    launch = staticmethod(launch)
    static = staticmethod(static)
    dynamic = staticmethod(dynamic)
    CLUSTER = CLUSTER

    def __init__(self, **flags: str) -> None:
        self.flags = flags
        self.now = Instant(1_000_000, EPOCH_MS)
        self.peers: dict[ConnectionId, AgentPeer | FrameworkPeer] = {}
        self.agents: dict[str, AgentPeer] = {}
        self.frameworks: dict[str, FrameworkPeer] = {}
        #: What a registry that only ever saw the records would mean.
        self.registry = Durable(CLUSTER, 1)
        self.closed: dict[ConnectionId, ErrorDetail | None] = {}
        self.published: list[op.ClusterEvent] = []
        self.records: list[Any] = []
        self.batching = 0
        self._seen_offers: set[OfferId] = set()
        self._connections = 0
        self._tokens = 0
        self._replies: dict[int, Any] = {}
        self.machine = self._machine()

    def _machine(self) -> MasterMachine:
        durable = _loaded(self.registry)
        return MasterMachine(durable, FlagValues.defaults(**self.flags), self.now, answers=(_ANSWERS.put, _ANSWERS.get))

    # --- peers ---

    def new_connection(self, peer: AgentPeer | FrameworkPeer) -> ConnectionId:
        self._connections += 1
        connection = ConnectionId(self._connections)
        self.peers[connection] = peer
        return connection

    def agent(
        self,
        agent_id: str = "a",
        *,
        cpus: float = 8,
        mem: float = 16,
        gpus: int = 0,
        parts: Sequence[ReservedResources] | None = None,
        devices: Sequence[Device] | None = None,
        ports: str = "",
        connect: bool = True,
        **info: Any,
    ) -> AgentPeer:
        """A new agent, registered. `parts`: its resources instead of the amounts."""
        found = tuple(self.devices(agent_id, gpus) if devices is None else devices)
        if parts is None:
            parts = (ReservedResources((), resources(cpus, mem, [device.uuid for device in found], ports)),)
        fields: dict[str, Any] = {"boot_id": "boot-1", "hostname": f"{agent_id}.host", "incarnation": 1} | info
        fields.setdefault("capabilities", (TASK_GROUPS,))
        peer = AgentPeer(self, agent_id, AgentInfo(AgentId(agent_id), resources=tuple(parts), devices=found, **fields))
        self.agents[agent_id] = peer
        return peer.connect(cluster_id="") if connect else peer

    @staticmethod
    def devices(agent_id: str, count: int, *, unhealthy: Sequence[int] = ()) -> list[Device]:
        """GPUs `<agent>-gpu0`…"""
        return [
            Device(
                DeviceUuid(f"{agent_id}-gpu{index}"),
                "gpus",
                index=index,
                health=DeviceHealth.UNHEALTHY if index in unhealthy else DeviceHealth.HEALTHY,
            )
            for index in range(count)
        ]

    @staticmethod
    def linked(agent_id: str, cliques: Sequence[Sequence[int]]) -> list[Device]:
        """GPUs in cliques that are tightly linked."""
        found = []
        for clique in cliques:
            for index in clique:
                links = tuple(
                    DeviceLink(DeviceUuid(f"{agent_id}-gpu{peer}"), "nvlink", 10) for peer in clique if peer != index
                )
                found.append(Device(DeviceUuid(f"{agent_id}-gpu{index}"), "gpus", index=index, links=links))
        return sorted(found, key=lambda device: device.index)

    def framework(
        self,
        framework_id: str = "f",
        *,
        roles: Sequence[str] = ("*",),
        gpu: bool = True,
        failover_ms: int = 60_000,
        connect: bool = True,
        demand: Demand = NO_DEMAND,
        **info: Any,
    ) -> FrameworkPeer:
        """A new framework, subscribed."""
        peer = FrameworkPeer(
            self,
            FrameworkInfo(
                FrameworkId(framework_id),
                name=framework_id,
                roles=tuple(roles),
                capabilities=(GPU_RESOURCES,) if gpu else (),
                failover_timeout_ms=failover_ms,
                **info,
            ),
        )
        self.frameworks[framework_id] = peer
        return peer.connect(demand=demand) if connect else peer

    @staticmethod
    def shape(count: int = 1, *, role: str = "*", **amounts: Any) -> Shape:
        return Shape(role, request(**amounts), count)

    @staticmethod
    def assigned(
        task_id: str, parts: Resources, *, framework: str = "f", role: str = "*", stack: Any = ()
    ) -> AssignedTask:
        """A task as an agent reports it."""
        return AssignedTask(FrameworkId(framework), role, spec(task_id), (ReservedResources(stack, parts),), EPOCH_MS)

    def report(self, task_id: str, parts: Resources, state: TaskState = TaskState.RUNNING, **more: Any) -> TaskReport:
        assigned = self.assigned(task_id, parts, **more)
        return TaskReport(assigned.framework_id, assigned, state)

    # --- stepping ---

    def batch(self) -> _Batch:
        """Events inside are read as one batch: time passes only after the last."""
        return _Batch(self)

    def step(self, event: Any) -> None:
        self.perform(self.machine.step(event, self.now))
        self.judge()
        if not self.batching:
            self.timers()

    def timers(self) -> None:
        """Let time pass as the driver does, until nothing is due now."""
        for _ in range(100):
            due = self.machine.next_deadline_ms()
            if due is None or due > self.now.monotonic_ms:
                return
            self.perform(self.machine.step(TimePassed(), self.now))
            self.judge()
        raise AssertionError("the machine is never quiet")

    def advance(self, ms: int) -> None:
        """Let so much time pass, deadline by deadline."""
        until = self.now.monotonic_ms + ms
        while (due := self.machine.next_deadline_ms()) is not None and due <= until:
            self._move(max(0, due - self.now.monotonic_ms))
            self.timers()
            self.signs_of_life()
        self._move(until - self.now.monotonic_ms)
        self.timers()

    def leap(self, ms: int) -> None:
        """Let so much time pass at once: everything that was due meanwhile is due now."""
        self._move(ms)
        self.timers()

    def signs_of_life(self) -> None:
        """Peers answer pings and heartbeats, unless they were told not to."""
        for peer in list(self.peers.values()):
            if isinstance(peer, AgentPeer) and peer.answers_pings:
                for ping in peer.heard(Ping):
                    peer.say(Pong(ping.number))
            elif isinstance(peer, FrameworkPeer) and peer.sends_heartbeats and peer.heard(MasterHeartbeat):
                peer.call(FrameworkHeartbeat(peer.demand))

    def _move(self, ms: int) -> None:
        self.now = Instant(self.now.monotonic_ms + ms, self.now.wall_ms + ms)

    def stall(self, ms: int) -> None:
        """The process was not running."""
        self._move(ms)
        self.step(Stalled(ms))

    def perform(self, effects: Iterable[Any]) -> None:
        talk = []
        for effect in effects:
            match effect:
                case Persist(record):
                    self.records.append(record)
                    self.registry.apply(record)
                case _:
                    talk.append(effect)
        for effect in talk:
            match effect:
                case SendToAgent(connection, message) | SendToFramework(connection, message):
                    assert connection not in self.closed, f"said on a closed stream: {message}"
                    peer = self.peers.get(connection)
                    if peer is not None:
                        peer.hear(message)
                case CloseStream(connection, error):
                    assert connection not in self.closed, "closed twice"
                    self.closed[connection] = error
                    peer = self.peers.pop(connection, None)
                    if isinstance(peer, FrameworkPeer):
                        peer.closed = error
                    if peer is not None and peer.connection == connection:
                        peer.connection = None
                        ended = AgentStreamEnded if isinstance(peer, AgentPeer) else FrameworkStreamEnded
                        self.perform(self.machine.step(ended(connection), self.now))
                case Reply(token, answer):
                    self._replies[token] = answer
                case Publish(event):
                    self.published.append(event)
                case _:
                    raise AssertionError(effect)

    def judge(self) -> None:
        """What must hold after every step."""
        self.machine.check()
        assert self.registry == self.machine.cluster.durable
        self.judge_limits()
        for peer in self.frameworks.values():
            if peer.connection is not None:
                framework = self.machine.cluster.frameworks.get(peer.info.framework_id)
                assert framework is not None
                assert framework.offers == peer.offers.keys(), "the framework believes in other offers"

    def judge_limits(self) -> None:
        """An offer that was not there before leaves every limit of its role and those above it unpassed, kind by kind.

        Consumption is reckoned from scratch: what is reserved to plain roles, and what is held of anything else.
        """
        cluster = self.machine.cluster
        fresh = [outstanding.offer for key, outstanding in cluster.offers.items() if key not in self._seen_offers]
        self._seen_offers = set(cluster.offers)
        if not fresh or not cluster.durable.quotas:
            return
        consumed: dict[str, Counter[str]] = {}
        for books in cluster.ledger.books.values():
            kept = [
                (role, part)
                for stack, part in books.total.items()
                if stack and (role := plain_holder(stack[-1].holder)) is not None
            ]
            held = [
                (entry.client.role, part)
                for entry in (*books.offered.values(), *books.allocated.values())
                for stack, part in entry.holding.items()
                if not stack or plain_holder(stack[-1].holder) is None
            ]
            for role, part in (*kept, *held):
                if books.counted:
                    for path in (role, *ancestors(role)):
                        consumed.setdefault(path, Counter()).update(part.amounts())
        for offer in fresh:
            for path in (offer.role, *ancestors(offer.role)):
                for kind, limit in cluster.durable.quotas.get(path, op.Quota(path)).limits.items():
                    loose = [p for p in offer.resources if not p.stack or plain_holder(p.stack[-1].holder) is None]
                    if any(part.resources.amount(kind) for part in loose):
                        assert consumed[path][kind] <= limit, (offer, path, kind)

    def restart(self) -> None:
        """The master dies and is started again on its registry; every stream breaks."""
        for peer in self.peers.values():
            peer.connection = None
            if isinstance(peer, FrameworkPeer):
                peer.offers = {}
        self.peers.clear()
        self.registry.term += 1
        self.machine = self._machine()
        self.judge()

    # --- operators ---

    @staticmethod
    def page(size: int = 0, token: str = "") -> op.Page:
        return op.Page(size, token)

    def ask(self, asked: Any) -> Any:
        """The answer to an operator, whatever it is."""
        self._tokens += 1
        self.step(OperatorCalled(self._tokens, asked, "operator"))
        return self._replies.pop(self._tokens)

    def set_flag(self, name: str, value: str, request_id: str = "") -> Any:
        return self.ask(op.SetFlagRequest(request_id, name, value))

    def unset_flag(self, name: str) -> Any:
        return self.ask(op.UnsetFlagRequest("", name))

    def reserve(
        self, agent: str, role: str, asked: ResourceRequest, *, request_id: str = "", force: bool = False, **labels: str
    ) -> Any:
        return self.ask(op.ReserveResourcesRequest(request_id, agent, role, asked, labels, force=force))

    def unreserve(self, agent: str, role: str, asked: ResourceRequest, *, request_id: str = "", **labels: str) -> Any:
        return self.ask(op.UnreserveResourcesRequest(request_id, agent, role, asked, labels))

    def set_weights(self, weights_milli: Mapping[str, int], request_id: str = "") -> Any:
        weights = tuple(op.RoleWeight(role, milli) for role, milli in weights_milli.items())
        return self.ask(op.SetWeightsRequest(request_id, weights))

    def set_quotas(self, *quotas: op.Quota, force: bool = False, request_id: str = "") -> Any:
        return self.ask(op.SetQuotasRequest(request_id, quotas, force))

    @staticmethod
    def quota(role: str, guarantee: str = "", limit: str = "") -> op.Quota:
        """Amounts as texts, such as `gpus:4;cpus:16`."""
        return op.Quota(role, parse_amounts(guarantee), parse_amounts(limit))

    def full_cycle_offers(self) -> int:
        """How many offers a full cycle makes now: none when event-driven work is quiet (design.md §7)."""
        before = self.machine.cluster.counters.offers_made
        due = self.machine.next_deadline_ms()
        assert due is None or due > self.now.monotonic_ms, "not quiet"
        self.machine.cluster.deadlines.set(("cycle", ""), self.now.monotonic_ms)
        self.timers()
        return self.machine.cluster.counters.offers_made - before


def _loaded(registry: Durable) -> Durable:
    """What another process would load: the same values, no shared containers."""
    loaded = Durable()
    for field in fields(Durable):
        value = getattr(registry, field.name)
        if isinstance(value, dict):
            value = {key: dict(item) if isinstance(item, dict) else item for key, item in value.items()}
        setattr(loaded, field.name, value)
    return loaded


class _Answers:
    """Stands for the registry's JSON: an answer is kept under a text and found again."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}

    def put(self, answer: Any) -> str:
        text = json.dumps([type(answer).__name__, len(self._kept)])
        self._kept[text] = answer
        return text

    def get(self, kind: str, text: str) -> Any:
        answer = self._kept[text]
        assert type(answer).__name__ == kind
        return answer


_ANSWERS: Any = _Answers()


@pytest.fixture
def book() -> Playbook:
    """A master with default flags."""
    return Playbook()


@pytest.fixture
def new_book() -> type[Playbook]:
    """Makes masters with other flags."""
    return Playbook
