"""Serves sessions with running containers over `AgentService.ServeSession`, on a connection of its own.

A session ends with its program, with its task, and with whoever asked for it: what it started does not outlive it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from bursar.agent.containers.sessions import Session, SessionRefused
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.sessions import TerminalSize
from bursar.runtime.client import Channels
from bursar.runtime.codec import decode, encode
from bursar.runtime.credentials import NOBODY, Credentials
from bursar.runtime.frames import WINDOW_BYTES, FrameSender, output_frame
from bursar.v1 import agent_service_pb2_grpc, sessions_pb2

#: Open at once; more are refused.
MAX_SESSIONS = 64
#: How long the master may take to hang up after the last frame.
HANG_UP_S = 10

_GONE = (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError)


class SessionServer:
    """All sessions of the agent."""

    def __init__(self, credentials: Credentials = NOBODY) -> None:
        self._sessions: set[asyncio.Task[None]] = set()
        # Not shared with the control stream, also not below gRPC's surface.
        self._channels = Channels(credentials)

    def serve(self, address: str, stream_id: str, open: Callable[[], Awaitable[Session]]) -> None:
        """Serve what `open` gives; where it raises SessionRefused, say why."""
        if len(self._sessions) >= MAX_SESSIONS:

            async def full() -> Session:
                raise SessionRefused(f"{MAX_SESSIONS} sessions are open on this agent already")

            open = full
        task = asyncio.create_task(self._serve(address, stream_id, open))
        self._sessions.add(task)
        task.add_done_callback(self._sessions.discard)

    async def close(self) -> None:
        """End all sessions."""
        for task in list(self._sessions):
            task.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)
        await self._channels.close()

    def _stub(self, address: str) -> Any:
        return agent_service_pb2_grpc.AgentServiceStub(self._channels.to(address))

    async def _serve(self, address: str, stream_id: str, open: Callable[[], Awaitable[Session]]) -> None:
        call = self._stub(address).ServeSession()
        sender = FrameSender(lambda frame: call.write(sessions_pb2.ServeSessionRequest(frame=frame)))
        try:
            with contextlib.suppress(*_GONE):
                await call.write(sessions_pb2.ServeSessionRequest(stream_id=stream_id))
                try:
                    await _run(call, sender, await open())
                except SessionRefused as error:
                    await sender.send(error=encode(ErrorDetail(ErrorReason.CALL_REFUSED, str(error), error.hint)))
                except OSError as error:
                    words = f"the session failed: {error.strerror or error}"
                    await sender.send(error=encode(ErrorDetail(ErrorReason.INTERNAL, words)))
                if not call.done():
                    await call.done_writing()
                    await asyncio.wait_for(call.code(), HANG_UP_S)
        finally:
            call.cancel()


async def _run(call: Any, sender: FrameSender, session: Session) -> None:
    """Pass frames on until the program, or the other end, has ended, and both know. Raises SessionRefused for an unknown end."""
    listening = asyncio.create_task(_Listener(call, sender, session).run())
    telling = asyncio.create_task(_tell(sender, session))
    try:
        await asyncio.wait({listening, telling}, return_when=asyncio.FIRST_COMPLETED)
        if telling.done():
            telling.result()
            await call.done_writing()
            # A read that is cancelled would end the call before all was delivered.
            await asyncio.wait({listening}, timeout=HANG_UP_S)
    finally:
        for task in (listening, telling):
            task.cancel()
        await asyncio.gather(listening, telling, return_exceptions=True)
        await session.close()


async def _tell(sender: FrameSender, session: Session) -> None:
    """Send outputs to their end, and the exit code."""
    while (piece := await session.read()) is not None:
        stream, data = piece
        if not await sender.send_data(data, lambda part, stream=stream: output_frame(stream, part)):  # type: ignore[misc]
            return
    await sender.send(exit_code=await session.exit_code())


class _Listener:
    """Does what the other end says. Input waits in a queue of its own, so that a program that reads nothing delays no credit."""

    def __init__(self, call: Any, sender: FrameSender, session: Session) -> None:
        self._call, self._sender, self._session = call, sender, session
        self._input: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def run(self) -> None:
        """Until the other end is gone."""
        giving = asyncio.create_task(self._give())
        try:
            await self._sender.send(credit_bytes=WINDOW_BYTES)
            while (response := await self._call.read()) is not grpc.aio.EOF:
                await self._obey(response.frame)
        except _GONE:
            pass
        finally:
            self._sender.end()
            giving.cancel()

    async def _obey(self, frame: Any) -> None:
        match frame.WhichOneof("frame"):
            case "input":
                self._input.put_nowait(frame.input)
            case "input_end":
                self._input.put_nowait(None)
            case "credit_bytes":
                self._sender.credited(frame.credit_bytes)
            case "resize":
                await self._session.resize(decode(TerminalSize, frame.resize))

    async def _give(self) -> None:
        while True:
            data = await self._input.get()
            if data is None:
                await self._session.end_input()
                continue
            await self._session.write(data)
            with contextlib.suppress(*_GONE):
                await self._sender.send(credit_bytes=len(data))
