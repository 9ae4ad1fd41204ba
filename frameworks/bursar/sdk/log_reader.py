"""Reading a task's outputs to their end, whatever happens on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bursar.core.errors import BursarError, ErrorReason, MasterUnreachable
from bursar.sdk.operator import OperatorClient
from bursar.v1 import agent_service_pb2


@dataclass
class LogReader:
    """A task's outputs to the end, over interruptions, each byte once.

    The place in each output is counted, skipped bytes included; after an interruption the log is read from its start again and
    what was seen is left out. Where only the end was asked for, places are not known: what came during the interruption is left out.
    """

    client: OperatorClient
    task: str
    #: Called with 1 for stdout or 2 for stderr; what it returns is awaited before more is read.
    write: Callable[[int, bytes], Awaitable[None]]
    #: Told of bytes that are not kept any more: output, number (0: not known how many).
    on_skipped: Callable[[int, int], None] = lambda stream, count: None
    #: Place in each output.
    positions: dict[int, int] = field(default_factory=lambda: {1: 0, 2: 0})

    async def read(self, *, follow: bool = False, tail_bytes: int | None = None) -> None:
        """Read once, from the places reached; returns when the master says that this is all. Raises BursarError."""
        places = {1: 0, 2: 0} if tail_bytes is None else dict(self.positions)
        async for chunk in self.client.read_task_log(self.task, follow=follow, tail_bytes=tail_bytes):
            stream = 2 if chunk.stream == agent_service_pb2.LOG_STREAM_STDERR else 1
            start = places[stream] + chunk.skipped_bytes
            places[stream] = start + len(chunk.data)
            seen = self.positions[stream]
            if start > seen:
                self.on_skipped(stream, start - seen)
                seen = start
            fresh = chunk.data[seen - start :]
            self.positions[stream] = max(seen, places[stream])
            if fresh:
                await self.write(stream, fresh)

    async def follow(self, *, tail_bytes: int | None = None, patience_s: float = 60) -> None:
        """Read until the task has ended and all was read; interruptions of up to `patience_s` are waited out. Raises BursarError."""
        lost_at: float | None = None
        while True:
            before = dict(self.positions)
            try:
                await self.read(follow=True, tail_bytes=tail_bytes)
                return
            except BursarError as error:
                if self.positions != before:
                    lost_at = None
                lost_at = lost_at or time.monotonic()
                if not _passes(error) or time.monotonic() - lost_at > patience_s:
                    raise
            if tail_bytes and any(self.positions.values()):
                self.on_skipped(1, 0)
                tail_bytes = 0
            await asyncio.sleep(0.3)


def _passes(error: BursarError) -> bool:
    """Whether a log may be had later: the master or the agent is away for a moment."""
    return isinstance(error, MasterUnreachable) or error.detail.reason in (
        ErrorReason.AGENT_UNAVAILABLE,
        ErrorReason.SHUTTING_DOWN,
        ErrorReason.SILENT,
        ErrorReason.TOO_SLOW,
    )
