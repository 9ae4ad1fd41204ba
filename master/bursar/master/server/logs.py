"""Task logs on their way from an agent to whoever asked: a relay with credit, apart from control messages.

The agent may send no more bytes than the reader has taken; so a slow reader costs its own stream only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId
from bursar.core.messages.agent import OpenLog
from bursar.core.messages.operator import TaskView
from bursar.master.server.hub import Hub
from bursar.master.server.streams import Refusal
from bursar.runtime.codec import decode
from bursar.runtime.rpc import abort
from bursar.v1 import agent_service_pb2

WINDOW_BYTES = 256 << 10
MAX_RELAYS = 1000
MAX_RELAYS_PER_AGENT = 200
OPEN_TIMEOUT_S = 10

_BROKEN_OFF = ErrorDetail(
    ErrorReason.AGENT_UNAVAILABLE,
    "the agent broke off in the middle of the log",
    "try again when `bursar agent ls` shows it active",
)
_TOO_MUCH = ErrorDetail(
    ErrorReason.INTERNAL, "the agent sent more of the log than it was credited", "update the agent, and read it again"
)


class _Relay:
    """One reader and the agent's stream that feeds it."""

    def __init__(self, agent_id: AgentId) -> None:
        self.agent_id = agent_id
        #: Chunks; None after the last one, an ErrorDetail where there is no more to be had. Bounded by the credit.
        self.chunks: asyncio.Queue[Any] = asyncio.Queue()
        #: Bytes that the reader took, and the agent may send anew; None once the reader is gone.
        self.taken: asyncio.Queue[int | None] = asyncio.Queue()
        #: Bytes that the agent may send beyond what it has sent.
        self.credit_bytes = 0
        self.opened = asyncio.Event()


class LogRelays:
    """All relays."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._relays: dict[str, _Relay] = {}

    async def read(self, task: TaskView, follow: bool, tail_bytes: int | None) -> AsyncIterator[Any]:
        """Yield `LogChunk` messages of a task. Raises Refusal."""
        mine = sum(relay.agent_id == task.agent_id for relay in self._relays.values())
        if len(self._relays) >= MAX_RELAYS or mine >= MAX_RELAYS_PER_AGENT:
            raise Refusal(ErrorDetail(ErrorReason.TOO_SLOW, "too many logs are being read", "try again later"))
        stream_id = str(uuid4())
        relay = self._relays[stream_id] = _Relay(task.agent_id)
        try:
            order = OpenLog(stream_id, task.framework_id, task.task_id, follow, tail_bytes)
            if not self._hub.tell_agent(task.agent_id, order):
                raise _unavailable(task, "is not connected")
            try:
                await asyncio.wait_for(relay.opened.wait(), OPEN_TIMEOUT_S)
            except TimeoutError:
                raise _unavailable(task, "does not answer") from None
            while True:
                item = await relay.chunks.get()
                if item is None:
                    return
                if isinstance(item, ErrorDetail):
                    raise Refusal(item)
                yield item
                relay.taken.put_nowait(len(item.data))
        finally:
            del self._relays[stream_id]
            relay.taken.put_nowait(None)

    async def receive(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Feed a relay from an agent's stream; yield credit."""
        iterator = aiter(requests)
        try:
            first = await anext(iterator)
        except StopAsyncIteration:
            return
        relay = self._relays.get(first.stream_id)
        if relay is None or relay.opened.is_set():
            await abort(context, ErrorDetail(ErrorReason.NOT_FOUND, "nobody waits for this log (any more)", ""))
            return
        relay.opened.set()
        relay.taken.put_nowait(WINDOW_BYTES)
        reader = asyncio.create_task(_feed(relay, first, iterator))
        try:
            while (taken := await relay.taken.get()) is not None:
                if taken:
                    relay.credit_bytes += taken
                    yield agent_service_pb2.SendLogResponse(credit_bytes=taken)
        finally:
            reader.cancel()
            relay.chunks.put_nowait(_BROKEN_OFF)


async def _feed(relay: _Relay, first: Any, requests: AsyncIterator[Any]) -> None:
    """Take over what the agent sends, until it is done, fails or sends more than it may."""
    request = first
    try:
        while True:
            if request.HasField("error"):
                relay.chunks.put_nowait(decode(ErrorDetail, request.error))
                return
            if request.complete:
                relay.chunks.put_nowait(None)
                return
            if request.HasField("chunk"):
                relay.credit_bytes -= len(request.chunk.data)
                if relay.credit_bytes < 0:
                    relay.chunks.put_nowait(_TOO_MUCH)
                    return
                relay.chunks.put_nowait(request.chunk)
            request = await anext(requests)
    except StopAsyncIteration:
        pass
    finally:
        # After the end nobody looks at this; before it, it tells a dead agent from the end of a log.
        relay.chunks.put_nowait(_BROKEN_OFF)


def _unavailable(task: TaskView, why: str) -> Refusal:
    return Refusal(
        ErrorDetail(
            ErrorReason.AGENT_UNAVAILABLE,
            f"the log of task {task.task_id} is on agent {task.hostname}, which {why}",
            "try again when `bursar agent ls` shows it active",
        )
    )
