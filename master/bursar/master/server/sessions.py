"""Sessions with running tasks, relayed between an operator and the task's agent, apart from control messages.

The two ends credit each other; the relay holds them to it, so that what waits here is bounded, and ends both when one ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.agent import OpenSession
from bursar.core.messages.operator import TaskView
from bursar.core.messages.sessions import SessionStart, start_problem
from bursar.core.tasks import TaskState
from bursar.master.server.hub import Hub
from bursar.master.server.streams import Refusal
from bursar.runtime.codec import encode
from bursar.runtime.frames import data_of, frames_of
from bursar.runtime.rpc import abort
from bursar.v1 import sessions_pb2

MAX_SESSIONS = 1000
MAX_SESSIONS_PER_AGENT = 100
OPEN_TIMEOUT_S = 15
#: How long the caller of a session that is over is waited for: gRPC may lose the last words to one who is writing just then.
HANG_UP_S = 10
#: Of credit that an end may give at once, and of frames without data that may wait.
MAX_WINDOW_BYTES = 4 << 20
MAX_WAITING_FRAMES = 1000

_TOO_MUCH = ErrorDetail(ErrorReason.TOO_SLOW, "one end of the session sent more than the other takes", "open another")


class _Way:
    """Frames in one direction, and how many bytes of data their sender may still send."""

    def __init__(self) -> None:
        #: An ErrorDetail stands for the end; None for one without words.
        self.frames: asyncio.Queue[Any] = asyncio.Queue()
        self.credit_bytes = 0


class _Relay:
    """One operator and the agent that serves."""

    def __init__(self, task: TaskView | ErrorDetail) -> None:
        self.agent_id = None if isinstance(task, ErrorDetail) else task.agent_id
        self.to_operator, self.to_agent = _Way(), _Way()
        self.opened = asyncio.Event()

    async def feed(self, frames: AsyncIterator[Any], way: _Way, back: _Way) -> None:
        """Pass one end's frames on until it has no more. Raises Refusal for an end that does not keep to its credit."""
        async for frame in frames:
            data = data_of(frame)
            way.credit_bytes -= len(data)
            if frame.WhichOneof("frame") == "credit_bytes":
                back.credit_bytes += frame.credit_bytes
            if way.credit_bytes < 0 or back.credit_bytes > MAX_WINDOW_BYTES:
                raise Refusal(_TOO_MUCH)
            if not data and way.frames.qsize() > MAX_WAITING_FRAMES:
                raise Refusal(_TOO_MUCH)
            way.frames.put_nowait(frame)


class SessionRelays:
    """All sessions."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._relays: dict[str, _Relay] = {}

    async def open(
        self, task: TaskView | ErrorDetail, start: SessionStart, requests: AsyncIterator[Any]
    ) -> AsyncIterator[Any]:
        """Yield the frames for an operator, whose own come in `requests`; the last is an exit code, or an error."""
        relay = _Relay(task)
        feeding = asyncio.create_task(_feed_from_operator(relay, requests))
        try:
            try:
                if isinstance(task, ErrorDetail):
                    raise Refusal(task)
                async for frame in self._frames(relay, task, start):
                    yield frame
            except Refusal as refusal:
                yield sessions_pb2.SessionFrame(error=encode(refusal.error))
            await asyncio.wait({feeding}, timeout=HANG_UP_S)
        finally:
            feeding.cancel()

    async def _frames(self, relay: _Relay, task: TaskView, start: SessionStart) -> AsyncIterator[Any]:
        """What the agent says. Raises Refusal."""
        self._check(task, start)
        stream_id = str(uuid4())
        self._relays[stream_id] = relay
        try:
            if not self._hub.tell_agent(task.agent_id, OpenSession(stream_id, task.framework_id, task.task_id, start)):
                raise Refusal(_unavailable(task, "is not connected"))
            try:
                await asyncio.wait_for(relay.opened.wait(), OPEN_TIMEOUT_S)
            except TimeoutError:
                raise Refusal(_unavailable(task, "does not open a session")) from None
            while True:
                item = await relay.to_operator.frames.get()
                if item is None or isinstance(item, ErrorDetail):
                    raise Refusal(item or _unavailable(task, "broke the session off"))
                yield item
                if item.WhichOneof("frame") in ("exit_code", "error"):
                    return
        finally:
            del self._relays[stream_id]
            relay.to_agent.frames.put_nowait(None)

    async def serve(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """An agent's end: take its frames, yield those for it."""
        iterator = aiter(requests)
        try:
            first = await anext(iterator)
        except StopAsyncIteration:
            return
        relay = self._relays.get(first.stream_id)
        if relay is None or relay.opened.is_set():
            await abort(context, ErrorDetail(ErrorReason.NOT_FOUND, "nobody waits for this session (any more)"))
            return
        relay.opened.set()
        feeding = asyncio.create_task(_feed_from_agent(relay, iterator))
        try:
            while (frame := await relay.to_agent.frames.get()) is not None:
                yield _for_agent(frame)
        finally:
            feeding.cancel()
            relay.to_operator.frames.put_nowait(None)

    def _check(self, task: TaskView, start: SessionStart) -> None:
        if problem := start_problem(start):
            field, words = problem
            raise Refusal(ErrorDetail(ErrorReason.INVALID_ARGUMENT, words, "see bursar task exec --help", field))
        if task.state.is_terminal:
            raise Refusal(
                ErrorDetail(
                    ErrorReason.CALL_REFUSED,
                    f"task {task.task_id} has ended ({task.state.name.lower()})",
                    "bursar task logs shows what it printed, as long as its agent keeps it",
                )
            )
        if task.state is TaskState.UNREACHABLE:
            raise Refusal(_unavailable(task, "does not answer"))
        mine = sum(relay.agent_id == task.agent_id for relay in self._relays.values())
        if len(self._relays) >= MAX_SESSIONS or mine >= MAX_SESSIONS_PER_AGENT:
            raise Refusal(ErrorDetail(ErrorReason.TOO_SLOW, "too many sessions are open", "try again later"))


def _for_agent(frame: Any) -> Any:
    return sessions_pb2.ServeSessionResponse(frame=frame)


async def _feed_from_operator(relay: _Relay, requests: AsyncIterator[Any]) -> None:
    try:
        await relay.feed(frames_of(requests), relay.to_agent, relay.to_operator)
        relay.to_agent.frames.put_nowait(sessions_pb2.SessionFrame(input_end=True))
    except Refusal as refusal:
        relay.to_operator.frames.put_nowait(refusal.error)


async def _feed_from_agent(relay: _Relay, requests: AsyncIterator[Any]) -> None:
    end: ErrorDetail | None = None
    try:
        with contextlib.suppress(StopAsyncIteration):
            await relay.feed(frames_of(requests), relay.to_operator, relay.to_agent)
    except Refusal as refusal:
        end = refusal.error
    finally:
        # After the exit code nobody looks at this; before it, it tells a dead agent from an end.
        relay.to_operator.frames.put_nowait(end)


def _unavailable(task: TaskView, why: str) -> ErrorDetail:
    return ErrorDetail(
        ErrorReason.AGENT_UNAVAILABLE,
        f"task {task.task_id} is on agent {task.hostname or task.agent_id}, which {why}",
        "try again when `bursar agent ls` shows it active",
    )
