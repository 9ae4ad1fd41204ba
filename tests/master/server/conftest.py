"""The master's services in this process: the real machine, hub and servicers on a loopback port, and peers that speak raw gRPC.

The registry is a list behind a gate: a test can hold a commit up, or have it fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, TaskId
from bursar.core.messages.agent import AgentInfo, Register, TaskReports
from bursar.core.messages.framework import FrameworkInfo, Subscribe, Subscribed
from bursar.core.messages.offers import Accept, Launch, Operation
from bursar.core.resources import ReservedResources, ResourceRequest, Resources
from bursar.core.tasks import TaskSpec
from bursar.master.flags import FlagValues
from bursar.master.machine import MasterMachine
from bursar.master.main import SERVICES, _server
from bursar.master.records import Durable
from bursar.master.registry.answers import ANSWERS
from bursar.master.server.hub import Hub
from bursar.master.server.logs import LogRelays
from bursar.master.server.sessions import SessionRelays
from bursar.runtime.codec import decode, unwrap, wrap
from bursar.runtime.driver import Driver, now
from bursar.runtime.rpc import CLIENT_OPTIONS, ERROR_METADATA_KEY, serve
from bursar.runtime.rpc_metrics import RpcMetrics
from bursar.v1 import (
    agent_service_pb2,
    agent_service_pb2_grpc,
    errors_pb2,
    framework_service_pb2,
    framework_service_pb2_grpc,
    operator_service_pb2_grpc,
)

T = TypeVar("T")
TIMEOUT_S = 30.0


async def until(condition: Callable[[], T], why: str = "", timeout_s: float = TIMEOUT_S) -> T:
    """Look until something is true, and return it."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not (value := condition()):
        assert loop.time() < deadline, f"not within {timeout_s} s: {why or condition}"
        await asyncio.sleep(0.005)
    return value


def error_of(failure: grpc.aio.AioRpcError) -> ErrorDetail:
    """The detail that travels in the trailing metadata of a refused call."""
    found = dict(failure.trailing_metadata() or ())
    assert ERROR_METADATA_KEY in found, (failure, found)
    value = found[ERROR_METADATA_KEY]
    assert isinstance(value, bytes)
    return decode(ErrorDetail, errors_pb2.ErrorDetail.FromString(value))


class Peer:
    """One bidirectional stream: core values up, core values down."""

    def __init__(self, call: Any, up: str, down: str, request: Callable[[Any], Any], items: str) -> None:
        self.call = call
        self._up, self._down, self._request, self._items = up, down, request, items
        self.heard: list[Any] = []
        self._queue: list[Any] = []

    async def say(self, *values: Any) -> None:
        await self.call.write(self._request([wrap(self._up, value) for value in values]))

    async def hear(self) -> Any:
        """The next value; None at the end of the stream. Raises AioRpcError."""
        while not self._queue:
            response = await asyncio.wait_for(self.call.read(), TIMEOUT_S)
            if response is grpc.aio.EOF:
                code = await self.call.code()
                if code is not grpc.StatusCode.OK:
                    raise grpc.aio.AioRpcError(
                        code,
                        await self.call.initial_metadata(),
                        await self.call.trailing_metadata(),
                        await self.call.details(),
                    )
                return None
            self._queue.extend(unwrap(self._down, item) for item in getattr(response, self._items))
        value = self._queue.pop(0)
        self.heard.append(value)
        return value

    async def hear_of(self, kind: type[T]) -> T:
        """The next value of a class; others are kept in `heard`."""
        while True:
            value = await self.hear()
            assert value is not None, f"the stream ended before {kind.__name__}: {self.heard}"
            if isinstance(value, kind):
                return value

    async def end(self) -> Any:
        """How the stream ends: the detail of its error, or None."""
        try:
            while await self.hear() is not None:
                pass
        except grpc.aio.AioRpcError as failure:
            return error_of(failure)
        return None

    def cancel(self) -> None:
        self.call.cancel()


@dataclass
class Registry:
    """A list, and a gate before it."""

    records: list[object] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    failure: Exception | None = None

    async def commit(self, records: Sequence[object]) -> None:
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        self.records.extend(records)


class Served:
    """A master that is served."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.registry.open.set()
        self.machine = MasterMachine(Durable("cluster-1", 1), FlagValues.defaults(), now(), answers=ANSWERS)
        self.hub = Hub()
        self.driver = self.hub.driver = Driver(self.machine, commit=self.registry.commit, perform=self.hub.perform)
        self.events: list[Any] = []
        self.logs = LogRelays(self.hub)
        self.sessions = SessionRelays(self.hub)
        self.server = _server(self.hub, self.logs, self.sessions, RpcMetrics(CollectorRegistry()))
        self.running: asyncio.Task[None] | None = None
        self._channels: list[grpc.aio.Channel] = []
        self.address = ""

    async def start(self) -> None:
        post = self.driver.post

        def noted(event: object) -> None:
            self.events.append(event)
            post(event)

        self.driver.post = noted  # type: ignore[method-assign]
        self.address = f"127.0.0.1:{await serve(self.server, '127.0.0.1:0', SERVICES)}"
        self.running = asyncio.create_task(self.driver.run())

    async def stop(self) -> None:
        for channel in self._channels:
            await channel.close()
        await self.server.stop(0)
        self.registry.open.set()
        self.driver.stop()
        assert self.running is not None
        if self.registry.failure is None:
            await asyncio.wait_for(self.running, TIMEOUT_S)

    def channel(self, *options: tuple[str, Any]) -> grpc.aio.Channel:
        """A connection of its own."""
        channel = grpc.aio.insecure_channel(
            self.address,
            options=tuple((dict(CLIENT_OPTIONS) | {"grpc.use_local_subchannel_pool": 1} | dict(options)).items()),
        )
        self._channels.append(channel)
        return channel

    @property
    def operator(self) -> Any:
        return operator_service_pb2_grpc.OperatorServiceStub(self.channel())

    def framework_stream(self, channel: grpc.aio.Channel | None = None) -> Peer:
        call = framework_service_pb2_grpc.FrameworkServiceStub(channel or self.channel()).Connect()
        return Peer(
            call,
            "FrameworkCall",
            "FrameworkEvent",
            lambda calls: framework_service_pb2.FrameworkServiceConnectRequest(calls=calls),
            "events",
        )

    def agent_stream(self, channel: grpc.aio.Channel | None = None) -> Peer:
        call = agent_service_pb2_grpc.AgentServiceStub(channel or self.channel()).Connect()
        return Peer(
            call,
            "AgentMessage",
            "MasterMessage",
            lambda messages: agent_service_pb2.AgentServiceConnectRequest(messages=messages),
            "messages",
        )

    async def framework(self, name: str = "f", **info: Any) -> Peer:
        """A framework that is subscribed."""
        peer = self.framework_stream()
        await peer.say(Subscribe(FrameworkInfo(FrameworkId(name), "1", name, **info)))
        await peer.hear_of(Subscribed)
        return peer

    async def agent(self, agent_id: str = "a", *, gpus: Sequence[str] = (), **fields: Any) -> Peer:
        """An agent that is registered."""
        from bursar.core.messages.agent import DesiredState

        peer = self.agent_stream()
        await peer.say(register(agent_id, **fields), TaskReports((), True))
        await peer.hear_of(DesiredState)
        return peer

    async def launch(self, framework: Peer, name: str = "task") -> None:
        """Take the next offer for one task."""
        from bursar.core.messages.framework import Offers
        from bursar.core.messages.offers import CallResult

        offers = (await framework.hear_of(Offers)).offers
        spec = TaskSpec(TaskId(name), command=("true",), resources=ResourceRequest({"cpus": 1000}))
        operation = Operation("op", Launch((spec,)))
        await framework.say(Accept(f"call-{name}", tuple(offer.offer_id for offer in offers), (operation,)))
        result = await framework.hear_of(CallResult)
        assert result.error is None, result

    def posted(self, kind: type[T]) -> list[T]:
        """Events of a class that reached the machine's inbox."""
        return [event for event in self.events if isinstance(event, kind)]


def register(agent_id: str, **fields: Any) -> Register:
    total = Resources({"cpus": 8000, "mem": 8 << 30}, (), frozenset[DeviceUuid]())
    info: dict[str, Any] = {
        "incarnation": 1,
        "boot_id": "boot",
        "hostname": f"{agent_id}.host",
        "resources": (ReservedResources((), total),),
    } | fields
    return Register(AgentInfo(AgentId(agent_id), **info))


@pytest.fixture
async def master() -> AsyncIterator[Served]:
    served = Served()
    await served.start()
    yield served
    await served.stop()


@pytest.fixture
def eventually() -> Callable[..., Awaitable[Any]]:
    return until


@pytest.fixture
def detail_of() -> Callable[[grpc.aio.AioRpcError], ErrorDetail]:
    return error_of


@pytest.fixture
def registration() -> Callable[..., Register]:
    return register
