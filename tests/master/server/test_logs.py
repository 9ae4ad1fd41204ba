"""Logs on their way through the master: bounded, and ended by whoever leaves first."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.agent import OpenLog
from bursar.master.server import logs
from bursar.runtime.codec import encode
from bursar.v1 import agent_service_pb2, agent_service_pb2_grpc
from bursar.v1 import operator_service_pb2 as pb

#: What gRPC raises of a write to a stream that has ended, or ends at that moment.
CANNOT_WRITE = (grpc.aio.AioRpcError, asyncio.InvalidStateError)


def chunk(data: bytes) -> Any:
    return agent_service_pb2.SendLogRequest(chunk=agent_service_pb2.LogChunk(stream=1, data=data))


class Sender:
    """An agent's stream of one log."""

    def __init__(self, master: Any, channel: Any, stream_id: str) -> None:
        self.call = agent_service_pb2_grpc.AgentServiceStub(channel).SendLog()
        self.stream_id = stream_id
        self.credit = 0
        self.ended = False

    async def open(self) -> Sender:
        await self.call.write(agent_service_pb2.SendLogRequest(stream_id=self.stream_id))
        await self.read_credit()
        return self

    async def read_credit(self) -> bool:
        """More credit; False at the end of the stream."""
        response = await self.call.read()
        if response is grpc.aio.EOF:
            self.ended = True
            return False
        self.credit += response.credit_bytes
        return True

    async def send(self, data: bytes) -> None:
        self.credit -= len(data)
        await self.call.write(chunk(data))

    async def end(self) -> None:
        await self.call.write(agent_service_pb2.SendLogRequest(complete=True))
        await self.call.done_writing()
        # Its status comes after the last credit.
        while await self.read_credit():
            pass


class Scene:
    """A task of an agent, and somebody who reads its log."""

    def __init__(self, master: Any, agent: Any) -> None:
        self.master, self.agent = master, agent
        self.channel = master.channel()

    @property
    def relays(self) -> Any:
        return self.master.logs._relays

    def read(self) -> Any:
        return self.master.operator.ReadTaskLog(pb.ReadTaskLogRequest(task="f/task", follow=True))

    async def sender(self) -> Sender:
        order = await self.agent.hear_of(OpenLog)
        assert order.follow and (order.framework_id, order.task_id) == ("f", "task")
        return await Sender(self.master, self.channel, order.stream_id).open()


@pytest.fixture
async def scene(master: Any) -> Scene:
    agent = await master.agent("a")
    framework = await master.framework("f")
    await master.launch(framework)
    return Scene(master, agent)


async def collect(call: Any) -> bytes:
    return b"".join([response.chunk.data async for response in call])


async def test_what_the_agent_sends_arrives_in_order(scene: Scene) -> None:
    reading = asyncio.create_task(collect(scene.read()))
    sender = await scene.sender()
    for number in range(100):
        await sender.send(b"%d," % number)
    await sender.end()
    assert await asyncio.wait_for(reading, 10) == b"".join(b"%d," % number for number in range(100))
    assert not scene.master.hub._replies


async def test_a_slow_reader_holds_up_its_own_agents_stream_and_memory_stays_bounded(scene: Scene) -> None:
    call = scene.read()
    sender = await scene.sender()
    assert sender.credit == logs.WINDOW_BYTES
    sent = 0

    async def produce() -> None:
        nonlocal sent
        while True:
            while sender.credit < 4096:
                if not await sender.read_credit():
                    return
            await sender.send(b"x" * 4096)
            sent += 4096

    producing = asyncio.create_task(produce())
    last = -1
    # The reader takes nothing: it goes on until what gRPC holds for the reader is full, then stands still.
    while sent != last:
        last = sent
        assert sent < 32 << 20, "nothing stops it"
        await asyncio.sleep(0.3)
    (relay,) = scene.relays.values()
    held = [relay.chunks.get_nowait() for _ in range(relay.chunks.qsize())]
    assert 0 < sum(len(chunk.data) for chunk in held) <= logs.WINDOW_BYTES
    for chunk in held:
        relay.chunks.put_nowait(chunk)
    assert not producing.done()
    stuck = sent
    while sent == stuck:
        await asyncio.wait_for(call.read(), 10)
    call.cancel()
    # Its stream ends: it sees the end, or cannot write any more.
    with contextlib.suppress(*CANNOT_WRITE):
        await asyncio.wait_for(producing, 10)
    await asyncio.wait_for(sender.call.code(), 10)


async def test_an_agent_that_ignores_its_credit_is_stopped(scene: Scene) -> None:
    reading = asyncio.create_task(collect(scene.read()))
    sender = await scene.sender()
    # Blindly, and the reader may take it as fast as it can; its stream may end at any of these.
    with contextlib.suppress(*CANNOT_WRITE):
        for _ in range(4):
            await sender.call.write(chunk(b"x" * (1 << 20)))
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await asyncio.wait_for(reading, 10)
    assert failure.value.code() is grpc.StatusCode.INTERNAL
    await asyncio.wait_for(sender.call.code(), 10)


async def test_when_the_reader_goes_the_agents_stream_ends(scene: Scene) -> None:
    call = scene.read()
    sender = await scene.sender()
    await sender.send(b"a")
    await call.read()
    call.cancel()
    while await asyncio.wait_for(sender.read_credit(), 10):
        pass
    assert sender.ended


async def test_when_the_agent_breaks_off_the_reader_is_told(scene: Scene, detail_of: Any) -> None:
    call = scene.read()
    sender = await scene.sender()
    await sender.send(b"half")
    assert (await call.read()).chunk.data == b"half"
    sender.call.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        while (await asyncio.wait_for(call.read(), 10)) is not grpc.aio.EOF:
            pass
        code = await call.code()
        assert code is grpc.StatusCode.OK, code
    assert detail_of(failure.value).reason is ErrorReason.AGENT_UNAVAILABLE


async def test_an_agent_that_never_opens_the_stream_is_given_up(
    scene: Scene, detail_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "OPEN_TIMEOUT_S", 0.2)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await asyncio.wait_for(collect(scene.read()), 10)
    error = detail_of(failure.value)
    assert error.reason is ErrorReason.AGENT_UNAVAILABLE and "does not answer" in error.message and error.hint
    # Should it come after all, nobody waits.
    order = await scene.agent.hear_of(OpenLog)
    late = agent_service_pb2_grpc.AgentServiceStub(scene.channel).SendLog()
    await late.write(agent_service_pb2.SendLogRequest(stream_id=order.stream_id))
    assert await late.code() is grpc.StatusCode.NOT_FOUND


async def test_an_agent_that_is_away_is_named(scene: Scene, detail_of: Any, eventually: Any) -> None:
    scene.agent.cancel()
    await eventually(lambda: scene.master.machine.cluster.agents["a"].connection is None)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await asyncio.wait_for(collect(scene.read()), 10)
    error = detail_of(failure.value)
    assert error.reason is ErrorReason.AGENT_UNAVAILABLE and "a.host" in error.message


async def test_an_agents_own_error_reaches_the_reader(scene: Scene, detail_of: Any) -> None:
    call = scene.read()
    sender = await scene.sender()
    error = ErrorDetail(ErrorReason.INTERNAL, "the output cannot be read: no such file", "look for it")
    await sender.call.write(agent_service_pb2.SendLogRequest(error=encode(error)))
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await asyncio.wait_for(collect(call), 10)
    assert detail_of(failure.value) == error


async def test_a_task_that_does_not_exist(scene: Scene, detail_of: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await collect(scene.master.operator.ReadTaskLog(pb.ReadTaskLogRequest(task="f/nothing")))
    assert detail_of(failure.value).reason is ErrorReason.NOT_FOUND


async def test_readers_are_limited(scene: Scene, detail_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_RELAYS_PER_AGENT", 1)
    first = scene.read()
    await scene.sender()
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await asyncio.wait_for(collect(scene.read()), 10)
    assert detail_of(failure.value).reason is ErrorReason.TOO_SLOW
    first.cancel()
