"""Sessions on their way through the master: held to their credit, and ended by whoever leaves first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.agent import OpenSession
from bursar.core.messages.sessions import SessionKind
from bursar.master.server import sessions
from bursar.runtime.codec import decode
from bursar.v1 import agent_service_pb2_grpc
from bursar.v1 import sessions_pb2 as pb

EXEC = pb.SessionStart(kind=pb.SESSION_KIND_EXEC, command=["true"])


class End:
    """The operator's or the agent's end of a session."""

    def __init__(self, call: Any, message: Any) -> None:
        self.call, self.message = call, message

    async def send(self, **field: Any) -> None:
        await self.call.write(self.message(frame=pb.SessionFrame(**field)))

    async def hear(self) -> Any:
        """The next frame; None at the end."""
        response = await asyncio.wait_for(self.call.read(), 10)
        return None if response is grpc.aio.EOF else response.frame

    async def hear_the_end(self) -> None:
        while await self.hear() is not None:
            pass

    async def hear_error(self) -> ErrorDetail:
        frame = await self.hear()
        assert frame is not None and frame.WhichOneof("frame") == "error", frame
        return decode(ErrorDetail, frame.error)


class Scene:
    def __init__(self, master: Any, agent: Any) -> None:
        self.master, self.agent, self.channel = master, agent, master.channel()

    async def operator(self, start: Any = EXEC, task: str = "f/task") -> End:
        call = self.master.operator.OpenTaskSession()
        await call.write(pb.OpenTaskSessionRequest(task=task, start=start))
        return End(call, pb.OpenTaskSessionRequest)

    async def serving(self) -> End:
        order = await self.agent.hear_of(OpenSession)
        assert order.start.kind is SessionKind.EXEC and order.start.command == ("true",)
        call = agent_service_pb2_grpc.AgentServiceStub(self.channel).ServeSession()
        await call.write(pb.ServeSessionRequest(stream_id=order.stream_id))
        return End(call, pb.ServeSessionRequest)

    async def both(self) -> tuple[End, End]:
        operator = await self.operator()
        agent = await self.serving()
        # Until each has heard of the other.
        await agent.send(credit_bytes=0)
        assert (await operator.hear()).WhichOneof("frame") == "credit_bytes"
        return operator, agent


@pytest.fixture
async def scene(master: Any, eventually: Any) -> AsyncIterator[Scene]:
    agent = await master.agent("a")
    await master.launch(await master.framework("f"))
    made = Scene(master, agent)
    yield made
    await eventually(lambda: not master.sessions._relays, "nothing is left of a session")
    await made.channel.close()


async def test_frames_go_both_ways_and_the_exit_code_ends_it(scene: Scene) -> None:
    operator, agent = await scene.both()
    await operator.send(credit_bytes=100)
    assert (await agent.hear()).credit_bytes == 100
    await agent.send(credit_bytes=10)
    assert (await operator.hear()).credit_bytes == 10
    await operator.send(input=b"in")
    assert (await agent.hear()).input == b"in"
    await operator.send(resize=pb.TerminalSize(rows=1, columns=2))
    assert (await agent.hear()).resize.columns == 2
    await agent.send(output=pb.SessionOutput(data=b"out", stderr=True))
    assert (await operator.hear()).output.stderr
    await operator.call.done_writing()
    assert (await agent.hear()).input_end, "who says no more gives no more"
    await agent.send(exit_code=0)
    frame = await operator.hear()
    assert frame.WhichOneof("frame") == "exit_code" and await operator.hear() is None
    assert await agent.hear() is None


@pytest.mark.parametrize("guilty", ["operator", "agent"])
async def test_who_sends_more_than_is_taken_ends_it(scene: Scene, guilty: str) -> None:
    operator, agent = await scene.both()
    if guilty == "operator":
        await operator.send(input=b"x")
    else:
        await agent.send(output=pb.SessionOutput(data=b"x"))
    assert (await operator.hear_error()).reason is ErrorReason.TOO_SLOW
    operator.call.cancel()
    await agent.hear_the_end()


async def test_credit_and_other_words_are_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, agent = await scene.both()
    await operator.send(credit_bytes=1 << 60)
    assert (await operator.hear_error()).reason is ErrorReason.TOO_SLOW
    operator.call.cancel()
    monkeypatch.setattr(sessions, "MAX_WAITING_FRAMES", 5)
    # Long enough for 50 words, on a busy machine, too.
    monkeypatch.setattr(sessions, "OPEN_TIMEOUT_S", 3)
    await agent.hear_the_end()
    operator = await scene.operator()
    for _ in range(50):
        await operator.send(input_end=True)
    (relay,) = scene.master.sessions._relays.values()
    await operator.hear_error()
    assert relay.to_agent.frames.qsize() <= 8, "what nobody takes is not kept"
    operator.call.cancel()
    await scene.agent.hear_of(OpenSession)


async def test_when_the_operator_goes_the_agent_hears_it(scene: Scene) -> None:
    operator, agent = await scene.both()
    operator.call.cancel()
    await agent.hear_the_end()


async def test_when_the_agent_goes_the_operator_hears_it(scene: Scene) -> None:
    operator, agent = await scene.both()
    agent.call.cancel()
    error = await operator.hear_error()
    assert error.reason is ErrorReason.AGENT_UNAVAILABLE and "broke the session off" in error.message and error.hint


async def test_an_agent_that_never_opens_it_is_given_up(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "OPEN_TIMEOUT_S", 0.2)
    operator = await scene.operator()
    assert "does not open a session" in (await operator.hear_error()).message
    order = await scene.agent.hear_of(OpenSession)
    late = agent_service_pb2_grpc.AgentServiceStub(scene.channel).ServeSession()
    await late.write(pb.ServeSessionRequest(stream_id=order.stream_id))
    assert await late.code() is grpc.StatusCode.NOT_FOUND


async def test_an_agent_that_is_away_is_named(scene: Scene, eventually: Any) -> None:
    scene.agent.cancel()
    await eventually(lambda: scene.master.machine.cluster.agents["a"].connection is None)
    error = await (await scene.operator()).hear_error()
    assert error.reason is ErrorReason.AGENT_UNAVAILABLE and "a.host" in error.message


@pytest.mark.parametrize(
    ("start", "task", "reason"),
    [
        (EXEC, "f/nothing", ErrorReason.NOT_FOUND),
        (pb.SessionStart(), "f/task", ErrorReason.INVALID_ARGUMENT),
        (pb.SessionStart(kind=99), "f/task", ErrorReason.INVALID_ARGUMENT),  # type: ignore[arg-type]
        (pb.SessionStart(kind=pb.SESSION_KIND_EXEC), "f/task", ErrorReason.INVALID_ARGUMENT),
        (pb.SessionStart(kind=pb.SESSION_KIND_COPY_IN), "f/task", ErrorReason.INVALID_ARGUMENT),
        (pb.SessionStart(kind=pb.SESSION_KIND_EXEC, command=["a\0b"]), "f/task", ErrorReason.INVALID_ARGUMENT),
    ],
)
async def test_what_cannot_be_is_refused(scene: Scene, start: Any, task: str, reason: ErrorReason) -> None:
    assert (await (await scene.operator(start, task)).hear_error()).reason is reason


async def test_sessions_are_limited(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS_PER_AGENT", 1)
    operator, agent = await scene.both()
    assert (await (await scene.operator()).hear_error()).reason is ErrorReason.TOO_SLOW
    operator.call.cancel()
    await agent.hear_the_end()
