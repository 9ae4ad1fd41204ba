"""Clients that do it wrong, in the bare contract. Each hears what is wrong; nobody else feels anything."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from bursar.v1 import (
    errors_pb2,
    framework_service_pb2,
    framework_service_pb2_grpc,
    offers_pb2,
    operator_service_pb2,
    operator_service_pb2_grpc,
    resources_pb2,
    tasks_pb2,
)

OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
Reason = errors_pb2.ErrorReason


class Wire:
    """A framework that speaks the contract and nothing else."""

    def __init__(self, address: str, *, options: tuple[tuple[str, Any], ...] = (), reads: bool = True) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=[*OPTIONS, *options])
        self.call = framework_service_pb2_grpc.FrameworkServiceStub(self.channel).Connect()
        self.events: list[Any] = []
        self.framework_id = str(uuid.uuid4())
        self._used: set[str] = set()
        #: The status that the stream ended with.
        self.status: grpc.StatusCode | None = None
        self.detail: errors_pb2.ErrorDetail | None = None
        self._changed = asyncio.Event()
        self._reader = asyncio.create_task(self._read()) if reads else None

    async def _read(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            async for response in self.call:
                self.events += response.events
                self._changed.set()
        self.status = await self.call.code()
        for key, value in await self.call.trailing_metadata() or ():
            if key == "bursar-error-bin":
                self.detail = errors_pb2.ErrorDetail.FromString(value)
        self._changed.set()

    async def send(self, **call: Any) -> None:
        await self.call.write(
            framework_service_pb2.FrameworkServiceConnectRequest(calls=[framework_service_pb2.FrameworkCall(**call)])
        )

    async def subscribe(self, *roles: str, capabilities: tuple[str, ...] = ("GPU_RESOURCES",), **info: Any) -> None:
        await self.send(
            subscribe=framework_service_pb2.Subscribe(
                info=framework_service_pb2.FrameworkInfo(
                    **{"framework_id": self.framework_id, "incarnation": "1", "name": "wire", "roles": roles or ("wire",),
                       "capabilities": capabilities} | info
                )
            )
        )  # fmt: skip

    async def until(self, condition: Callable[[], Any], timeout_s: float = 20) -> Any:
        async with asyncio.timeout(timeout_s):
            while not (value := condition()):
                self._changed.clear()
                await self._changed.wait()
            return value

    def all(self, kind: str) -> list[Any]:
        return [getattr(event, kind) for event in self.events if event.HasField(kind)]

    def offers(self) -> dict[str, Any]:
        """Outstanding ones, by id."""
        made = [offer for event in self.all("offers") for offer in event.offers]
        offers = {offer.offer_id: offer for offer in made if offer.offer_id not in self._used}
        for event in self.all("rescind"):
            for offer_id in event.offer_ids:
                offers.pop(offer_id, None)
        return offers

    async def an_offer(self, hostname: str = "node-gpu") -> Any:
        def find() -> Any:
            agents = {d.agent_id for event in self.all("offers") for d in event.descriptions if d.hostname == hostname}
            return next((offer for offer in self.offers().values() if offer.agent_id in agents), None)

        return await self.until(find)

    async def result(self, call_id: str) -> Any:
        return await self.until(lambda: next((r for r in self.all("call_result") if r.call_id == call_id), None))

    def statuses(self, task_id: str) -> list[Any]:
        return [s for event in self.all("status_updates") for s in event.statuses if s.task_id == task_id]

    async def launch(self, offers: list[str], *tasks: tasks_pb2.TaskSpec, call_id: str = "") -> Any:
        """Accept offers for tasks; return the call's result."""
        call_id = call_id or str(uuid.uuid4())
        self._used.update(offers)
        operations = [offers_pb2.Operation(operation_id=f"{call_id}-1", launch=offers_pb2.Launch(tasks=tasks))]
        await self.send(accept=offers_pb2.Accept(call_id=call_id, offer_ids=offers, operations=operations))
        return await self.result(call_id)

    async def leave(self) -> None:
        if self.status is None:
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                await self.send(teardown=framework_service_pb2.Teardown())
                await self.until(lambda: self.status is not None, 5)
        await self.close()

    async def close(self) -> None:
        self.call.cancel()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        await self.channel.close()


@pytest.fixture
async def wire(cluster: Any) -> AsyncIterator[Wire]:
    one = Wire(cluster.address)
    yield one
    await one.leave()


@pytest.fixture
async def other(cluster: Any) -> AsyncIterator[Wire]:
    one = Wire(cluster.address)
    yield one
    await one.leave()


def task(
    task_id: str = "", cpus_milli: int = 100, gpus: int = 0, command: str = "true", **more: Any
) -> tasks_pb2.TaskSpec:
    resources = resources_pb2.ResourceRequest(cpus_milli=cpus_milli, mem_bytes=1 << 20, gpus=gpus)
    return tasks_pb2.TaskSpec(
        task_id=task_id or str(uuid.uuid4()), name="t", command=["sh", "-c", command], resources=resources, **more
    )


async def check_served(cluster: Any) -> None:
    """Somebody else is served as ever."""
    done = await asyncio.to_thread(cluster.bursar, "run", "--gpus", "1", "--wait", "20s", "--", "echo", "served")
    assert (done.code, done.stdout) == (0, "served\n"), done


# --- offers ---------------------------------------------------------------------------------------------------------


async def test_an_offer_is_used_once(cluster: Any, wire: Wire) -> None:
    await wire.subscribe()
    offer = await wire.an_offer()
    first = task(command="sleep 0.1")
    done = await wire.launch([offer.offer_id], first)
    assert not done.HasField("error"), done
    again = await wire.launch([offer.offer_id], task())
    assert again.error.reason == Reason.ERROR_REASON_INVALID_OFFERS and again.error.message and again.error.hint
    await wire.until(lambda: [s.state for s in wire.statuses(first.task_id)][-1:] == [tasks_pb2.TASK_STATE_FINISHED])


async def test_a_foreign_offer_stays_its_owners(cluster: Any, wire: Wire, other: Wire) -> None:
    await wire.subscribe()
    offer = await wire.an_offer()
    await other.subscribe("thief")
    await other.until(lambda: other.all("subscribed"))
    refused = await other.launch([offer.offer_id], task())
    assert refused.error.reason == Reason.ERROR_REASON_INVALID_OFFERS
    done = await wire.launch([offer.offer_id], task())
    assert not done.HasField("error"), "the theft did not void it"


async def test_an_invented_offer(cluster: Any, wire: Wire) -> None:
    await wire.subscribe()
    for offer_ids in (["no-such-offer"], [], ["x" * 10_000]):
        refused = await wire.launch(offer_ids, task())
        assert refused.error.reason == Reason.ERROR_REASON_INVALID_OFFERS, refused
    assert wire.status is None, "a refused call does not end the stream"


async def test_a_rescinded_offer(cluster: Any, wire: Wire) -> None:
    await wire.subscribe()
    offer = await wire.an_offer()
    what = ("--role", "lab", "--agent", "node-gpu", "--resources", "gpus:4")
    assert (await asyncio.to_thread(cluster.bursar, "reserve", *what)).code == 0
    try:
        refused = await wire.launch([offer.offer_id], task())
        assert refused.error.reason == Reason.ERROR_REASON_INVALID_OFFERS
        assert any(offer.offer_id in event.offer_ids and event.reason for event in wire.all("rescind"))
    finally:
        assert (await asyncio.to_thread(cluster.bursar, "unreserve", *what)).code == 0


async def test_a_framework_that_never_answers_keeps_nothing(cluster: Any, wire: Wire) -> None:
    """Its offers expire, somebody else gets them, and an accept after that is refused."""
    assert cluster.bursar("flag", "set", "offer-timeout", "300ms").code == 0
    try:
        await wire.subscribe()
        offer = await wire.an_offer()
        await wire.until(lambda: offer.offer_id not in wire.offers())
        refused = await wire.launch([offer.offer_id], task())
        assert refused.error.reason == Reason.ERROR_REASON_INVALID_OFFERS and "expired" in str(refused.error).lower()
        await check_served(cluster)
    finally:
        assert cluster.bursar("flag", "unset", "offer-timeout").code == 0


# --- tasks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (task(cpus_milli=1_000_000), Reason.ERROR_REASON_TASK_INVALID),
        (task(gpus=5), Reason.ERROR_REASON_TASK_INVALID),
        (task(cpus_milli=-1), Reason.ERROR_REASON_TASK_INVALID),
        (task("a/b"), Reason.ERROR_REASON_TASK_INVALID),
        (task("x" * 256), Reason.ERROR_REASON_TASK_INVALID),
        (task(".."), Reason.ERROR_REASON_TASK_INVALID),
        (task("a\nb"), Reason.ERROR_REASON_TASK_INVALID),
        (task(agent_id="nobody"), Reason.ERROR_REASON_TASK_INVALID),
        (task(image="busybox"), Reason.ERROR_REASON_TASK_INVALID),
        (tasks_pb2.TaskSpec(task_id="no-command"), Reason.ERROR_REASON_TASK_INVALID),
        (tasks_pb2.TaskSpec(), Reason.ERROR_REASON_TASK_INVALID),
    ],
    ids=["cpus", "gpus", "negative", "slash", "long", "dots", "newline", "agent", "image", "command", "empty"],
)
async def test_a_task_that_cannot_be(cluster: Any, wire: Wire, bad: tasks_pb2.TaskSpec, reason: int) -> None:
    """Refused as a whole with the field to blame; the good task beside it is not started either."""
    await wire.subscribe()
    offer = await wire.an_offer()
    good = task()
    refused = await wire.launch([offer.offer_id], good, bad)
    assert refused.HasField("error")
    details = [refused.error, *(operation.error for operation in refused.operations)]
    assert reason in [detail.reason for detail in details] or refused.error.reason in (
        Reason.ERROR_REASON_INSUFFICIENT_RESOURCES,
    ), refused
    assert all("tasks[1]" in d.field for d in details if d.field), refused
    assert wire.status is None and all(detail.message for detail in details)
    assert not wire.statuses(good.task_id)
    assert not cluster.ask(lambda client: client.tasks(wire.framework_id, ended=True))


async def test_two_tasks_with_one_id(cluster: Any, wire: Wire) -> None:
    """In one call, while the first runs, and when it has ended: never twice."""
    await wire.subscribe()
    offer = await wire.an_offer()
    refused = await wire.launch([offer.offer_id], task("same"), task("same"))
    assert Reason.ERROR_REASON_TASK_ID_IN_USE in [
        refused.error.reason,
        *(operation.error.reason for operation in refused.operations),
    ]
    await wire.send(revive=framework_service_pb2.Revive())
    offer = await wire.an_offer()
    assert not (await wire.launch([offer.offer_id], task("same"))).HasField("error")
    await wire.until(lambda: [s.state for s in wire.statuses("same")][-1:] == [tasks_pb2.TASK_STATE_FINISHED])
    await wire.send(
        acknowledge=framework_service_pb2.Acknowledge(
            updates=[
                framework_service_pb2.UpdateRef(task_id="same", update_id=s.update_id) for s in wire.statuses("same")
            ]
        )
    )
    offer = await wire.an_offer()
    again = await wire.launch([offer.offer_id], task("same"))
    assert again.HasField("error") and Reason.ERROR_REASON_TASK_ID_IN_USE in [
        again.error.reason,
        *(operation.error.reason for operation in again.operations),
    ]


async def test_acknowledgements_and_kills_of_nothing(cluster: Any, wire: Wire) -> None:
    """Nobody waits for them: no effect, and the stream goes on."""
    await wire.subscribe()
    await wire.until(lambda: wire.all("subscribed"))
    for update in (("no-task", "no-update"), ("", "")):
        ref = framework_service_pb2.UpdateRef(task_id=update[0], update_id=update[1])
        await wire.send(acknowledge=framework_service_pb2.Acknowledge(updates=[ref]))
    await wire.send(kill=framework_service_pb2.Kill(task_id="no-task"))
    await wire.send(decline=offers_pb2.Decline(offer_ids=["no-offer"]))
    await wire.send()
    offer = await wire.an_offer()
    assert not (await wire.launch([offer.offer_id], task())).HasField("error")


# --- streams --------------------------------------------------------------------------------------------------------


async def test_the_first_call_must_be_subscribe(cluster: Any, wire: Wire) -> None:
    await wire.send(revive=framework_service_pb2.Revive())
    await wire.until(lambda: wire.status is not None)
    assert wire.status is grpc.StatusCode.FAILED_PRECONDITION
    assert wire.detail is not None and wire.detail.reason == Reason.ERROR_REASON_NOT_SUBSCRIBED and wire.detail.hint


@pytest.mark.parametrize(
    "info",
    [{"roles": ("a//b",)}, {"roles": ("-x",)}, {"roles": ("a b",)}, {"roles": (".",)}, {"roles": ("a/*",)}, {"roles": ()},
     {"framework_id": ""}, {"framework_id": "a/b"}, {"failover_timeout_ms": 2**63},
     {"name": "x" * 3_000_000}],
    ids=lambda info: str(info)[:40],
)  # fmt: skip
async def test_a_subscription_that_cannot_be(cluster: Any, wire: Wire, info: dict[str, Any]) -> None:
    await wire.subscribe(**info)
    await wire.until(lambda: wire.status is not None)
    assert wire.status is grpc.StatusCode.INVALID_ARGUMENT and wire.detail is not None, wire.status
    assert wire.detail.reason == Reason.ERROR_REASON_INVALID_ARGUMENT and wire.detail.message


async def test_unknown_calls_and_capabilities_are_no_error(cluster: Any, wire: Wire) -> None:
    await wire.subscribe(capabilities=("GPU_RESOURCES", "FROM_THE_FUTURE"))
    await wire.call.write(
        framework_service_pb2.FrameworkServiceConnectRequest.FromString(b"\x0a\x05\xfa\x3e\x02\x08\x01\xd2\x3e\x03abc")
    )
    assert await wire.an_offer()
    shown = cluster.bursar("framework", "show", wire.framework_id, "-o", "json").json
    assert "FROM_THE_FUTURE" in shown["info"]["capabilities"]


async def test_a_message_of_50_mb(cluster: Any, wire: Wire, other: Wire) -> None:
    await other.subscribe("other")
    await wire.subscribe()
    await wire.until(lambda: wire.all("subscribed"))
    big = task(environment=[tasks_pb2.EnvironmentVariable(name="BIG", value="x" * 50_000_000)])
    with contextlib.suppress(grpc.aio.AioRpcError):
        await wire.send(
            accept=offers_pb2.Accept(
                call_id="big", offer_ids=["x"], operations=[offers_pb2.Operation(launch=offers_pb2.Launch(tasks=[big]))]
            )
        )
    await wire.until(lambda: wire.status is not None)
    assert wire.status is grpc.StatusCode.RESOURCE_EXHAUSTED, wire.status
    assert other.status is None and await other.an_offer()
    await other.send(teardown=framework_service_pb2.Teardown())
    await check_served(cluster)


async def test_garbage_on_the_port(cluster: Any) -> None:
    """Bytes of another protocol, half a preface, and silence."""
    host, _, port = cluster.address.rpartition(":")
    silent = socket.create_connection((host, int(port)))
    for data in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(range(256)) * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 5000,
    ):
        with socket.create_connection((host, int(port)), timeout=10) as client, contextlib.suppress(OSError):
            client.sendall(data)
            while client.recv(65536):
                pass
    await check_served(cluster)
    silent.close()


async def test_a_client_that_stops_reading(own_cluster: Any) -> None:
    """It asks and asks, and reads nothing: it is disconnected when its outbox is full; all the while others are served."""
    deaf = Wire(own_cluster.address, reads=False)
    calls = [framework_service_pb2.FrameworkCall(reconcile=framework_service_pb2.Reconcile(task_ids=["x"]))] * 500

    async def shout() -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await deaf.call.write(framework_service_pb2.FrameworkServiceConnectRequest(calls=calls))

    await deaf.subscribe("deaf", capabilities=())
    shouting = asyncio.create_task(shout())
    try:
        await check_served(own_cluster)
        await asyncio.to_thread(own_cluster.daemons["master"].until_stderr, "peer does not read")
        await check_served(own_cluster)
        assert own_cluster.ask(lambda client: client.frameworks()) == []
    finally:
        shouting.cancel()
        await asyncio.wait([shouting])
        await deaf.close()


async def test_the_newer_connection_wins(cluster: Any, wire: Wire, other: Wire) -> None:
    await wire.subscribe(failover_timeout_ms=10_000)
    await wire.until(lambda: wire.all("subscribed"))
    other.framework_id = wire.framework_id
    await other.subscribe(incarnation="2", failover_timeout_ms=10_000)
    await wire.until(lambda: wire.status is not None)
    assert wire.detail is not None and wire.detail.reason == Reason.ERROR_REASON_SUPERSEDED
    assert await other.an_offer()


# --- operators' requests --------------------------------------------------------------------------------------------


async def test_requests_of_no_sense(cluster: Any) -> None:
    async with grpc.aio.insecure_channel(cluster.address, options=OPTIONS) as channel:
        stub = operator_service_pb2_grpc.OperatorServiceStub(channel)
        for call in (
            lambda: stub.ReserveResources(operator_service_pb2.ReserveResourcesRequest()),
            lambda: stub.SetFlag(operator_service_pb2.SetFlagRequest(name="x" * 100_000)),
            lambda: stub.KillTask(operator_service_pb2.KillTaskRequest(request_id="r", task="")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call()
            assert caught.value.code() in (
                grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION,
            ), caught.value  # fmt: skip
            assert any(key == "bursar-error-bin" for key, _ in caught.value.trailing_metadata())


async def test_a_generic_client_finds_the_services(cluster: Any) -> None:
    """By reflection, as grpcurl does, and each says that it serves."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    async with grpc.aio.insecure_channel(cluster.address, options=OPTIONS) as channel:
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        stream = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await anext(aiter(stream))
        names = {service.name for service in answer.list_services_response.service}
        assert names >= {"bursar.v1.FrameworkService", "bursar.v1.AgentService", "bursar.v1.OperatorService"}
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", *(name for name in names if name.startswith("bursar."))):
            state = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert state.status == health_pb2.HealthCheckResponse.SERVING
