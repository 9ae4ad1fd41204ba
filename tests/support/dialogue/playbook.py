"""The playbook of a dialogue: peers speak, the machine is stepped as its driver would, and after every step its invariants hold and
the records that it emitted mean exactly its durable state.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from bursar.core.clock import Instant
from bursar.core.devices import Device, DeviceHealth, DeviceLink
from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, ConnectionId, DeviceUuid, FrameworkId, OfferId
from bursar.core.machine import Persist, Stalled, TimePassed
from bursar.core.messages import operator as op
from bursar.core.messages.agent import (
    AgentInfo,
    Ping,
    Pong,
    TaskReport,
)
from bursar.core.messages.framework import (
    GPU_RESOURCES,
    FrameworkHeartbeat,
    FrameworkInfo,
    MasterHeartbeat,
)
from bursar.core.messages.offers import (
    Demand,
    Shape,
)
from bursar.core.resources import (
    ReservedResources,
    ResourceRequest,
    Resources,
)
from bursar.core.role_expressions import plain_holder
from bursar.core.roles import ancestors
from bursar.core.task_groups import TASK_GROUPS
from bursar.core.tasks import EXECUTORS, AssignedTask, TaskState
from bursar.core.text import parse_amounts
from bursar.core.volumes import PERSISTENT_VOLUMES
from bursar.master.effects import CloseStream, Publish, Reply, SendToAgent, SendToFramework
from bursar.master.events import (
    AgentStreamEnded,
    FrameworkStreamEnded,
    OperatorCalled,
)
from bursar.master.flags import FlagValues
from bursar.master.machine import MasterMachine
from bursar.master.records import Durable
from dialogue.agent_peer import AgentPeer
from dialogue.amounts import CLUSTER, dynamic, launch, request, resources, spec, static
from dialogue.framework_peer import NO_DEMAND, FrameworkPeer

EPOCH_MS = 1_700_000_000_000


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
        fields.setdefault("capabilities", (TASK_GROUPS, EXECUTORS, PERSISTENT_VOLUMES))
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

    def asleep(self, framework_id: str = "f", **info: Any) -> FrameworkPeer:
        """A new framework that wants nothing but what it asks for."""
        framework = self.framework(framework_id, connect=False, **info)
        return framework.connect(suppressed=framework.info.roles)

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
                # What was lent while a gang filled counts in no quota.
                if not entry.revocable or any(entry.holding)
                for stack, part in entry.holding.items()
                if not stack or plain_holder(stack[-1].holder) is None
            ]
            for role, part in (*kept, *held):
                if books.counted:
                    for path in (role, *ancestors(role)):
                        consumed.setdefault(path, Counter()).update(part.amounts())
        for offer in fresh:
            if offer.revocable and not any(part.stack for part in offer.resources):
                continue
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

    def quiet(self) -> None:
        """When event-driven work is quiet, a full cycle makes no offer, and no bundle (design.md §7)."""
        assert self.full_cycle_offers() == 0

    def state_of(self, task_id: str) -> TaskState:
        """As operators see it."""
        state = self.ask(op.GetTaskRequest(task_id)).task.state
        assert isinstance(state, TaskState)
        return state


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
