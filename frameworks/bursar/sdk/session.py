"""The shell around the session machine: one gRPC stream, the clock, and the author's methods."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import grpc
import grpc.aio

from bursar.core.clock import Instant
from bursar.core.errors import BursarError, ErrorDetail, ErrorReason, InvalidText
from bursar.core.ids import AgentId, ConnectionId, DeviceUuid, FrameworkId, OfferId, TaskId, id_problem
from bursar.core.machine import Stalled, TimePassed
from bursar.core.messages.framework import FrameworkCall, FrameworkInfo, UpdateFramework, UpdateRef
from bursar.core.messages.gangs import GangGroup, GangTopology, OnMemberLost, RequestGang
from bursar.core.messages.offers import Accept, Shape
from bursar.core.tasks import TaskSpec
from bursar.runtime.client import connect, explained, masters, to_bursar_error, unreachable
from bursar.runtime.codec import unwrap, wrap
from bursar.runtime.credentials import Credentials
from bursar.runtime.outbox import MAX_MESSAGE_BYTES, Outbox
from bursar.sdk import effects, events
from bursar.sdk.amounts import seconds_to_ms
from bursar.sdk.framework import (
    Framework,
    WantedShape,
    all_roles,
    as_request,
    checked_roles,
    checked_settings,
    stated_demand,
)
from bursar.sdk.machine import CREDENTIAL_REASONS, SessionMachine
from bursar.sdk.offers import Bundle, Offer
from bursar.sdk.tasks import Status, Task, TaskGroup
from bursar.v1 import framework_service_pb2, framework_service_pb2_grpc

log = logging.getLogger("bursar.sdk")

#: Calls that wait for a master that does not read.
OUTBOX_CAPACITY = 100_000
#: Lateness of the event loop that counts as a stall: an author's method blocked it, or the machine was suspended.
STALL_MS = 2_000
#: What an encoded batch may add to a call without passing the limit of a message.
_ENVELOPE_BYTES = 64


def run(
    framework: Framework,
    master: str | Iterable[str] | None = None,
    *,
    connect_timeout: float | str | None = None,
    credentials: Credentials | None = None,
) -> None:
    """Run a framework until it calls `stop`. Raises BursarError where the cluster will not have it, or what the author raised.

    `master`: `HOST:PORT[,HOST:PORT…]`; BURSAR_MASTER, then 127.0.0.1:5050 where it is not given.
    `connect_timeout`: how long to look for a master (seconds, or a text such as `10s`); without end where it is not given.
    `credentials`: what to show to the master, and what to expect of it; what the environment says (BURSAR_TLS_CA …) where it is not given.
    """
    asyncio.run(FrameworkSession(framework, master, connect_timeout=connect_timeout, credentials=credentials).run())


class FrameworkSession:
    """One life of a framework, for programs that have an event loop of their own."""

    def __init__(
        self,
        framework: Framework,
        master: str | Iterable[str] | None = None,
        *,
        connect_timeout: float | str | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        """See `run`. Raises BursarError where the framework's attributes or the credentials are not valid."""
        self.framework = framework
        self.credentials = Credentials.from_environment() if credentials is None else credentials
        self.credentials.check()
        self.addresses = masters(master)
        self.roles = all_roles(framework)
        self.incarnation = uuid.uuid4().hex
        resume = bool(framework.framework_id)
        self.framework_id = framework.framework_id or str(uuid.uuid4())
        if problem := id_problem(self.framework_id):
            raise BursarError(f"framework_id: {problem}", "leave it empty, or give the id of an earlier life")
        info = FrameworkInfo(
            FrameworkId(self.framework_id),
            self.incarnation,
            framework.name or type(framework).__name__,
            self.roles,
            _capabilities(framework.capabilities),
            seconds_to_ms(framework.failover_timeout, "failover_timeout"),
            socket.gethostname(),
            framework.webui_url,
            dict(framework.labels),
            offer_settings=checked_settings(framework.constraints, framework.min_allocatable, self.roles),
        )
        #: What the author says of offers, once all updates are answered.
        self._constraints, self._minima = framework.constraints, framework.min_allocatable
        self._first_ms = None if connect_timeout is None else seconds_to_ms(connect_timeout, "connect_timeout")
        self._machine = SessionMachine(info, self.addresses, resume=resume, first_subscribe_ms=self._first_ms)
        self._tasks: dict[str, Task] = {}
        #: Tasks by id, from being yielded until their end was reported.
        self.running: Mapping[str, Task] = MappingProxyType(self._tasks)
        self._launches = 0
        self._inbox: deque[events.Event] = deque()
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._streams: dict[ConnectionId, _Stream] = {}
        self._shapes: tuple[Shape, ...] | None = None
        self._stopping = False
        self._ended: effects.End | None = None
        self._refused: ErrorDetail | None = None
        framework._session = self

    @property
    def cluster_id(self) -> str:
        """Of the cluster that the framework is registered with; empty before."""
        return self._machine.cluster_id

    # --- from any thread -------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Unregister and end `run`."""
        self._stopping = True
        self.post(events.StopRequested())

    def kill(self, task_id: str, grace_ms: int | None = None) -> None:
        """End a task."""
        self.post(events.KillRequested(TaskId(task_id), grace_ms))

    def restart(self, task_id: str, grace_ms: int | None = None) -> None:
        """Start a running task again."""
        self.post(events.RestartRequested(TaskId(task_id), grace_ms))

    def message(self, executor_id: str, data: bytes) -> None:
        """Say something to an executor."""
        self.post(events.MessageRequested(TaskId(executor_id), data))

    def reconcile(self, *task_ids: str) -> None:
        """Ask where tasks are."""
        self.post(events.ReconcileRequested(tuple(map(TaskId, task_ids))))

    def suppress(self, *roles: str) -> None:
        """Want no offers for these roles (none: all)."""
        self.post(events.SuppressRequested(roles))

    def revive(self, *roles: str) -> None:
        """Want offers for these roles again (none: all)."""
        self.post(events.ReviveRequested(roles))

    def request_gang(
        self,
        groups: Iterable[tuple[WantedShape, int]],
        *,
        ttl: float | str,
        role: str = "",
        same: str = "",
        nvlink: bool = False,
        release_all: bool = True,
        gang_id: str = "",
    ) -> str:
        """Ask for a gang; see `Framework.request_gang`. Raises InvalidText."""
        gang_id = gang_id or f"gang-{uuid.uuid4().hex[:12]}"
        wanted = tuple(GangGroup(as_request(shape), count) for shape, count in groups)
        lost = OnMemberLost.RELEASE_ALL if release_all else OnMemberLost.KEEP
        topology = GangTopology(same, nvlink)
        request = RequestGang(gang_id, role or self.roles[0], wanted, topology, seconds_to_ms(ttl, "ttl"), lost)
        self.post(events.GangRequested(request))
        return gang_id

    def cancel_gang(self, gang_id: str) -> None:
        """Want a gang no more."""
        self.post(events.GangCancelled(gang_id))

    def update(self, **changes: Any) -> None:
        """Have `wants` asked again; `changes`: see `Framework.update`. Raises InvalidText."""
        if not changes:
            self.post(TimePassed())
            return
        fields = _info_changes(changes)
        roles = fields.get("roles", self.roles)
        checked_settings(changes.get("constraints", ()), changes.get("min_allocatable"), roles)
        self.post(events.UpdateRequested(fields))

    def post(self, event: events.Event) -> None:
        """Put an event into the inbox."""
        self._inbox.append(event)
        if self._loop is None or threading.get_ident() == self._thread:
            self._wake.set()
        else:
            self._loop.call_soon_threadsafe(self._wake.set)

    # --- the loop --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until `stop`; see `bursar.sdk.run`. Cancelling it leaves the tasks running for the failover timeout."""
        if self._loop is not None:
            raise BursarError("a session runs once", "make a new one")
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        try:
            self.framework.start()
            self._shapes = stated_demand(self.framework, self.roles)
            self._inbox.appendleft(events.SessionStarted(self._shapes))
            while self._ended is None:
                await self._wait()
                self._turn()
        finally:
            for stream in list(self._streams.values()):
                stream.close()
            await asyncio.gather(*(stream.task for stream in self._streams.values()), return_exceptions=True)
        self._raise(self._ended)

    def _raise(self, end: effects.End) -> None:
        if end.unreachable:
            raise unreachable(",".join(self.addresses), f"tried for {(self._first_ms or 0) / 1000:g} s")
        if end.error is not None:
            raise BursarError(end.error)

    async def _wait(self) -> None:
        """Until something is in the inbox or a deadline has come; what waits in the inbox goes first."""
        due = self._machine.next_deadline_ms()
        if not self._inbox:
            self._wake.clear()
            try:
                await asyncio.wait_for(
                    self._wake.wait(), None if due is None else max(0, due - _now().monotonic_ms) / 1000
                )
            except TimeoutError:
                pass
        if due is not None and not self._inbox:
            late = _now().monotonic_ms - due
            # After a stall, what the master said meanwhile is still in the sockets: read it before it is found silent.
            self._inbox.append(Stalled(late + 1000) if late > STALL_MS else TimePassed())

    def _turn(self) -> None:
        while self._inbox and self._ended is None:
            event = self._inbox.popleft()
            if isinstance(event, events.UpdateRequested):
                event = self._with_demand(event)
            for effect in self._machine.step(event, _now()):
                self._perform(effect)
            if not self._inbox:
                self._ask_for_demand()

    def _ask_for_demand(self) -> None:
        if self._ended is not None or self._stopping:
            return
        shapes = stated_demand(self.framework, self.roles)
        if shapes is None:
            shapes = self._shapes and ()
        if shapes is not None and (shapes != self._shapes or self._machine.demand_is_used):
            self._shapes = shapes
            self._inbox.append(events.DemandStated(shapes))

    def _with_demand(self, event: events.UpdateRequested) -> events.UpdateRequested:
        """Ask what is wanted with other roles: it changes in the same moment, as do the offers that they take."""
        changes = dict(event.changes)
        self.roles = changes.get("roles", self.roles)
        self._constraints = _of_roles(changes.pop("constraints", self._constraints), self.roles)
        self._minima = _of_roles(changes.pop("min_allocatable", self._minima), self.roles)
        changes["offer_settings"] = checked_settings(self._constraints, self._minima, self.roles)
        shapes = stated_demand(self.framework, self.roles)
        if shapes == self._shapes and not self._machine.demand_is_used:
            shapes = None
        elif shapes is not None:
            self._shapes = shapes
        return events.UpdateRequested(changes, shapes)

    def _perform(self, effect: effects.Effect) -> None:
        framework = self.framework
        match effect:
            case effects.SendCalls(connection, calls):
                for call in calls:
                    self._send(connection, call)
            case effects.DeliverOffers(offers):
                self._inbox.appendleft(events.OffersAnswered(tuple(self._answer(Offer(*item)) for item in offers)))
            case effects.DeliverBundle(bundle, descriptions):
                members = [Offer(offer, about) for offer, about in zip(bundle.offers, descriptions, strict=True)]
                answer = self._answer_bundle(Bundle(bundle.gang_id, members, bundle.members))
                self._inbox.appendleft(events.BundleAnswered(bundle.bundle_id, answer))
            case effects.DeliverGangEnded(gang_id, error):
                framework.on_gang_ended(gang_id, error)
            case effects.DeliverStatuses(statuses):
                for report in statuses:
                    self._deliver_status(report.task_id, Status.reported(report))
                refs = tuple(UpdateRef(report.task_id, report.update_id) for report in statuses if report.update_id)
                self._inbox.appendleft(events.StatusesHandled(refs))
            case effects.DeliverLaunched(task_ids):
                for task_id in task_ids:
                    if task_id in self._tasks:
                        framework.on_launched(self._tasks[task_id])
            case effects.DeliverRefusal(task_id, error):
                task = self._tasks.pop(task_id, None)
                if task is not None:
                    task.status = Status.refused(error)
                    framework.on_refused(task, error)
            case effects.DeliverSubscribed(cluster_id, again):
                log.info(
                    "%s with cluster %s as %s",
                    "registered again" if again else "registered",
                    cluster_id,
                    self.framework_id,
                )
                framework.on_subscribed(again)
            case effects.DeliverDisconnected(error):
                log.warning("the master is away, trying again: %s", error)
                framework.on_disconnected(error)
            case effects.DeliverRescind(offer_ids, reason):
                for offer_id in offer_ids:
                    framework.on_rescinded(offer_id, reason)
            case effects.DeliverUpdated(info, error):
                self.roles = self._machine.statement.wanted_info.roles
                if error is not None:
                    log.warning("the master refused an update: %s", error)
                    self._constraints, self._minima = framework.constraints, framework.min_allocatable
                framework.constraints, framework.min_allocatable = self._constraints, self._minima
                framework.name, framework.role, framework.roles = info.name, info.roles[0], info.roles
                framework.capabilities, framework.labels = frozenset(info.capabilities), info.labels
                framework.failover_timeout, framework.webui_url = info.failover_timeout_ms / 1000, info.webui_url
                framework.on_updated(error)
            case effects.DeliverPreemption(task_id, kill_in_ms, reason):
                if task_id in self._tasks:
                    framework.on_preempted(self._tasks[task_id], kill_in_ms / 1000, reason)
            case effects.DeliverMessage(executor_id, data):
                if executor_id in self._tasks:
                    framework.on_message(self._tasks[executor_id], data)
            case effects.DeliverAgentFailure(agent_id, message):
                framework.on_agent_failure(agent_id, message)
            case effects.OpenStream(connection, address):
                self._streams[connection] = _Stream(self, connection, address)
            case effects.CloseStream(connection):
                if connection in self._streams:
                    self._streams[connection].close()
            case effects.EndCalls(connection):
                if connection in self._streams:
                    self._streams[connection].outbox.close()
            case effects.End():
                self._ended = effect

    def _answer(self, offer: Offer) -> events.OfferAnswer:
        """Ask the author; what is yielded is taken from the offer before the author goes on."""
        specs: list[TaskSpec] = []
        if not self._stopping:
            for item in self.framework.on_offer(offer) or ():
                if isinstance(item, TaskGroup):
                    specs += self._take_group(offer, item)
                else:
                    specs.append(self._take(offer, item))
        return events.OfferAnswer(OfferId(offer.id), tuple(specs), volumes=tuple(offer.volume_operations))

    def _answer_bundle(self, bundle: Bundle) -> tuple[TaskSpec, ...]:
        """Ask the author for a task for each place."""
        if self._stopping:
            return ()
        specs = []
        for index, task in enumerate(self.framework.on_bundle(bundle) or ()):
            if index >= len(bundle.places):
                raise BursarError(
                    f"on_bundle yields more tasks than gang {bundle.gang_id} has places: {len(bundle.places)}",
                    "yield one task for each of bundle.places",
                )
            place = bundle.places[index]
            spec = replace(self._take(place.offer, task), agent_id=AgentId(place.offer.agent_id))
            if place.device_uuids and len(place.device_uuids) == task.request.gpu_count:
                named = replace(spec.resources, gpus=0, devices=tuple(map(DeviceUuid, place.device_uuids)))
                spec = replace(spec, resources=named)
            specs.append(spec)
        return tuple(specs)

    def _take_group(self, offer: Offer, group: TaskGroup) -> tuple[TaskSpec, ...]:
        if not offer.fits(group):
            raise BursarError(
                ErrorDetail(
                    ErrorReason.TASK_INVALID,
                    f"the {len(group.tasks)} tasks of group {group.name or '(unnamed)'} do not fit what is left of offer {offer.id}",
                    "ask offer.fits(group) before yielding it",
                )
            )
        return group.join([self._take(offer, task) for task in group.tasks])

    def _take(self, offer: Offer, task: Task) -> TaskSpec:
        if task.id in self._tasks:
            raise BursarError(
                f"task {task.id} is launched already and has not ended", "make a new Task for each launch"
            )
        offer.take(task)
        self._launches += 1
        spec = task.prepare(f"{self.incarnation[:12]}-{self._launches}")
        task.agent_id, task.hostname, task.role = offer.agent_id, offer.hostname, offer.role
        self._tasks[task.id] = task
        return spec

    def _deliver_status(self, task_id: str, status: Status) -> None:
        task = self._tasks.get(task_id)
        if task is None:
            # Of an earlier life: nothing but its id is known here.
            task = Task(("unknown",), id=task_id)
            task.agent_id = status.agent_id
            self._tasks[task_id] = task
        task.status = status
        if status.terminal:
            del self._tasks[task_id]
        self.framework.on_status(task, status)

    def _send(self, connection: ConnectionId, call: FrameworkCall) -> None:
        stream = self._streams.get(connection)
        if stream is None:
            return
        message = wrap("FrameworkCall", call)
        size = message.ByteSize()
        if size <= MAX_MESSAGE_BYTES - _ENVELOPE_BYTES:
            stream.outbox.put(message)
            return
        error = ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"{type(call).__name__} is too large: {size} bytes, a message holds {MAX_MESSAGE_BYTES}",
            "launch fewer or smaller tasks at once; large inputs belong into files or images",
        )
        if isinstance(call, Accept | UpdateFramework):
            log.error("not sent: %s", error)
            self._inbox.append(events.CallNotSent(call.call_id, error))
        else:
            raise BursarError(error)

    def say_refused(self, error: ErrorDetail) -> None:
        """Log that the credentials are not accepted, once for each reason: the session may go on trying."""
        if error.reason in CREDENTIAL_REASONS and error != self._refused:
            log.error("not let in: %s", error)
            self._refused = error

    def closed(self, stream: _Stream) -> None:
        """For the stream: it is gone."""
        self._streams.pop(stream.connection, None)


class _Stream:
    """One gRPC stream: an outbox that is written, a reader that posts."""

    def __init__(self, session: FrameworkSession, connection: ConnectionId, address: str) -> None:
        self.connection = connection
        self._session = session
        self._address = address
        self.outbox: Outbox[Any] = Outbox(OUTBOX_CAPACITY, self.close)
        self.task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        self.outbox.close()
        self.task.cancel()

    async def _run(self) -> None:
        session, connection = self._session, self.connection
        error: ErrorDetail | None = None
        try:
            async with connect(self._address, session.credentials) as channel:
                stub = framework_service_pb2_grpc.FrameworkServiceStub(channel)
                async for response in stub.Connect(self._requests()):
                    received = (unwrap("FrameworkEvent", event) for event in response.events)
                    session.post(
                        events.EventsReceived(connection, tuple(event for event in received if event is not None))
                    )
        except grpc.aio.AioRpcError as problem:
            said = to_bursar_error(problem, self._address)
            error = (await explained(said, self._address, session.credentials)).detail
            session.say_refused(error)
        except BursarError as problem:
            # The files of the credentials are not in order.
            error = replace(problem.detail, reason=ErrorReason.UNAUTHENTICATED)
            session.say_refused(error)
        except asyncio.CancelledError:
            error = ErrorDetail(ErrorReason.TOO_SLOW, "the connection was given up")
        finally:
            session.closed(self)
            session.post(events.StreamEnded(connection, error))

    async def _requests(self) -> Any:
        while batch := await self.outbox.next_batch():
            yield framework_service_pb2.FrameworkServiceConnectRequest(calls=batch)


def _capabilities(names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise InvalidText(
            "capabilities: one text, where several are expected", "write capabilities = {'GPU_RESOURCES'}"
        )
    return tuple(sorted(set(names)))


def _of_roles(said: Any, roles: tuple[str, ...]) -> Any:
    """What was said by role, without roles that are gone."""
    if isinstance(said, Mapping):
        return {role: value for role, value in said.items() if role in roles}
    return said if said is None or isinstance(said, str) else tuple(said)


def _info_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """What an author changes, as fields of FrameworkInfo. Raises InvalidText."""
    fields: dict[str, Any] = {}
    for name, value in changes.items():
        match name:
            case "roles":
                fields[name] = checked_roles(value)
            case "capabilities":
                fields[name] = _capabilities(value)
            case "failover_timeout":
                fields["failover_timeout_ms"] = seconds_to_ms(value, name)
            case "labels":
                fields[name] = dict(value)
            case "constraints" | "min_allocatable":
                fields[name] = value
            case "name" | "webui_url":
                fields[name] = str(value)
            case _:
                raise InvalidText(f"update: {name!r} cannot be changed", "see Framework.update")
    return fields


def _now() -> Instant:
    return Instant(time.monotonic_ns() // 1_000_000, time.time_ns() // 1_000_000)
