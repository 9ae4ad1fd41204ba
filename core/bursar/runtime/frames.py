"""One end of a session: data within what the other end has credited, everything else in between.

Both ends are alike but for what they call data: to a task it is `input`, from a task it is `output`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from bursar.v1 import sessions_pb2 as pb

#: What an end lets the other send before it has taken anything.
WINDOW_BYTES = 256 << 10
#: The longest piece of data in one frame.
PIECE_BYTES = 32 << 10


class FrameSender:
    """Sends frames one at a time. The stream allows no two writes at once, and several tasks write."""

    def __init__(self, write: Callable[[Any], Awaitable[None]]) -> None:
        self._write = write
        self._lock = asyncio.Lock()
        self._credit = 0
        self._over = False
        self._changed = asyncio.Event()
        self._writes: set[asyncio.Task[None]] = set()

    def credited(self, count: int) -> None:
        """The other end takes so many bytes more."""
        self._credit += count
        self._changed.set()

    def end(self) -> None:
        """The other end is gone: who waits for credit need not."""
        self._over = True
        self._changed.set()

    async def send(self, **field: Any) -> None:
        """Send a frame with this one field."""
        await self._send(pb.SessionFrame(**field))

    async def send_data(self, data: bytes, make: Callable[[bytes], Any]) -> bool:
        """Send data as `make(piece)` frames, as fast as it is taken; False where the other end is gone."""
        while data:
            while self._credit <= 0 and not self._over:
                self._changed.clear()
                await self._changed.wait()
            if self._over:
                return False
            count = min(len(data), self._credit, PIECE_BYTES)
            piece, data = data[:count], data[count:]
            self._credit -= count
            await self._send(make(piece))
        return not self._over

    async def _send(self, frame: Any) -> None:
        # gRPC cancels a whole call when a task that writes to it is cancelled.
        writing = asyncio.create_task(self._write_one(frame))
        self._writes.add(writing)
        writing.add_done_callback(self._written)
        await asyncio.shield(writing)

    async def _write_one(self, frame: Any) -> None:
        async with self._lock:
            await self._write(frame)

    def _written(self, writing: asyncio.Task[None]) -> None:
        self._writes.discard(writing)
        if not writing.cancelled():
            # Whoever waited has it; whoever was cancelled does not want it.
            writing.exception()


def input_frame(data: bytes) -> Any:
    """Towards the task."""
    return pb.SessionFrame(input=data)


def output_frame(stream: int, data: bytes) -> Any:
    """From the task: stream 1 is stdout, 2 is stderr."""
    return pb.SessionFrame(output=pb.SessionOutput(data=data, stderr=stream == 2))


def data_of(frame: Any) -> bytes:
    """The bytes of data that a frame holds, for which credit is due."""
    kind = frame.WhichOneof("frame")
    if kind == "input":
        return bytes(frame.input)
    return bytes(frame.output.data) if kind == "output" else b""


async def frames_of(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The frames that messages of a stream carry; those that carry none say nothing."""
    async for message in messages:
        if message.HasField("frame"):
            yield message.frame
