"""Sends a task's output to the master over `AgentService.SendLog`, on a connection of its own.

Bulk data never delays a control message: no more bytes are under way than the master credited, the number of streams is
capped, and a reader that falls behind loses the head of the file ("skipped N bytes"), not the task its time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from bursar.agent.containers.logs import LogChunk, LogStream, read_logs
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.runtime.client import Channels
from bursar.runtime.codec import encode
from bursar.runtime.credentials import NOBODY, Credentials
from bursar.v1 import agent_service_pb2, agent_service_pb2_grpc

#: Open at once; more are refused.
MAX_STREAMS = 64
CHUNK_BYTES = 64 * 1024

_WIRE_STREAM = {
    LogStream.STDOUT: agent_service_pb2.LOG_STREAM_STDOUT,
    LogStream.STDERR: agent_service_pb2.LOG_STREAM_STDERR,
}


class LogSender:
    """All open log streams of the agent."""

    def __init__(self, credentials: Credentials = NOBODY) -> None:
        self._streams: set[asyncio.Task[None]] = set()
        # Not shared with the control stream, also not below gRPC's surface.
        self._channels = Channels(credentials)

    def refuse(self, address: str, stream_id: str, error: ErrorDetail) -> None:
        """Say why there is no output."""
        self._spawn(self._refuse(address, stream_id, error))

    def send(
        self,
        address: str,
        stream_id: str,
        sandbox: Path,
        *,
        prepare: Callable[[], Awaitable[None]],
        ended: Callable[[], bool],
        follow: bool,
        tail_bytes: int | None,
    ) -> None:
        """Send a task's output; with `follow` until `ended()` and all was sent. `prepare` is awaited first."""
        if len(self._streams) >= MAX_STREAMS:
            error = ErrorDetail(
                ErrorReason.CALL_REFUSED,
                f"{MAX_STREAMS} outputs of this agent are being read already",
                "try again later",
            )
            self.refuse(address, stream_id, error)
            return
        self._spawn(self._send(address, stream_id, sandbox, prepare, ended, follow, tail_bytes))

    async def close(self) -> None:
        """End all streams."""
        for task in list(self._streams):
            task.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)
        await self._channels.close()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)

    def _stub(self, address: str) -> Any:
        return agent_service_pb2_grpc.AgentServiceStub(self._channels.to(address))

    async def _refuse(self, address: str, stream_id: str, error: ErrorDetail) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            call = self._stub(address).SendLog()
            await call.write(agent_service_pb2.SendLogRequest(stream_id=stream_id))
            await call.write(agent_service_pb2.SendLogRequest(error=encode(error)))
            await call.done_writing()
            await call.code()

    async def _send(
        self,
        address: str,
        stream_id: str,
        sandbox: Path,
        prepare: Callable[[], Awaitable[None]],
        ended: Callable[[], bool],
        follow: bool,
        tail_bytes: int | None,
    ) -> None:
        call = self._stub(address).SendLog()
        credit = _Credit()
        reader = asyncio.create_task(credit.read(call))
        try:
            await call.write(agent_service_pb2.SendLogRequest(stream_id=stream_id))
            try:
                await prepare()
                async for chunk in read_logs(
                    sandbox,
                    ended=lambda: credit.over or ended(),
                    follow=follow,
                    tail_bytes=tail_bytes,
                    chunk_bytes=CHUNK_BYTES,
                ):
                    if not await self._write(call, credit, chunk):
                        return
                await call.write(agent_service_pb2.SendLogRequest(complete=True))
            except OSError as error:
                detail = ErrorDetail(ErrorReason.INTERNAL, f"the output cannot be read: {error.strerror or error}")
                await call.write(agent_service_pb2.SendLogRequest(error=encode(detail)))
            await call.done_writing()
            await call.code()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            # The reader is gone; nothing depends on it.
            pass
        finally:
            reader.cancel()
            call.cancel()

    async def _write(self, call: Any, credit: _Credit, chunk: LogChunk) -> bool:
        """Send a piece as credit allows; False where the other side is gone."""
        data, skipped = chunk.data, chunk.skipped_bytes
        while data or skipped:
            allowed = await credit.take(len(data))
            if allowed is None:
                return False
            part, data = data[:allowed], data[allowed:]
            message = agent_service_pb2.LogChunk(stream=_WIRE_STREAM[chunk.stream], data=part, skipped_bytes=skipped)
            skipped = 0
            await call.write(agent_service_pb2.SendLogRequest(chunk=message))
        return True


class _Credit:
    """Bytes that the master is ready for."""

    def __init__(self) -> None:
        self._left = 0
        self._changed = asyncio.Event()
        #: Whether the other side has ended the stream.
        self.over = False

    async def read(self, call: Any) -> None:
        """Add what comes; until the stream ends."""
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                self._left += response.credit_bytes
                self._changed.set()
        except grpc.aio.AioRpcError:
            pass
        finally:
            self.over = True
            self._changed.set()

    async def take(self, wanted: int) -> int | None:
        """Wait for some credit and take at most `wanted`; None once the stream is over."""
        while not self.over and self._left <= 0 and wanted:
            self._changed.clear()
            await self._changed.wait()
        if self.over:
            return None
        taken = min(wanted, self._left)
        self._left -= taken
        return taken
