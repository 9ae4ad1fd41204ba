"""Work of blocking calls as a session: for files and figures."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from typing import BinaryIO

from bursar.core.messages.sessions import TerminalSize

READ_BYTES = 32 * 1024


class ThreadSession:
    """Work of blocking calls as a session: `work(source, target)` reads the input and writes the output, in a thread.

    Exit code 0; 1 where it raises OSError, whose words are the last of stderr.
    """

    def __init__(self, work: Callable[[BinaryIO, BinaryIO], None]) -> None:
        self._work = work
        self._done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.StreamReader()
        self._writer: asyncio.StreamWriter | None = None
        self._transports: list[asyncio.BaseTransport] = []
        self._told = False

    async def open(self) -> ThreadSession:
        """Begin."""
        loop = asyncio.get_running_loop()
        source_fd, input_fd = os.pipe()
        output_fd, target_fd = os.pipe()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(self._reader), os.fdopen(output_fd, "rb", 0)
        )
        write_transport, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(input_fd, "wb", 0)
        )
        self._writer = asyncio.StreamWriter(write_transport, protocol, None, loop)
        self._transports = [transport, write_transport]
        threading.Thread(
            target=self._run, args=(loop, os.fdopen(source_fd, "rb"), os.fdopen(target_fd, "wb")), daemon=True
        ).start()
        return self

    def _run(self, loop: asyncio.AbstractEventLoop, source: BinaryIO, target: BinaryIO) -> None:
        problem = ""
        try:
            with source, target:
                self._work(source, target)
        except BrokenPipeError:
            problem = "nobody reads any more\n"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told, not the agent's end
            words = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            name = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
            problem = f"{words}{name}\n"
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._tell, problem)

    def _tell(self, problem: str) -> None:
        if not self._done.done():
            self._done.set_result(problem)

    async def read(self) -> tuple[int, bytes] | None:
        """As the interface says."""
        if data := await self._reader.read(READ_BYTES):
            return 1, data
        problem = await self._done
        if problem and not self._told:
            self._told = True
            return 2, problem.encode()
        return None

    async def write(self, data: bytes) -> None:
        """As the interface says."""
        assert self._writer is not None
        with contextlib.suppress(OSError):
            self._writer.write(data)
            await self._writer.drain()

    async def end_input(self) -> None:
        """As the interface says."""
        if self._writer is not None:
            self._writer.close()

    async def resize(self, size: TerminalSize) -> None:
        """There is no terminal."""

    async def exit_code(self) -> int:
        """As the interface says."""
        return 1 if await self._done else 0

    async def close(self) -> None:
        """Closing the pipes ends the work."""
        for transport in self._transports:
            if isinstance(transport, asyncio.WriteTransport):
                if not transport.is_closing() or transport.get_write_buffer_size():
                    transport.abort()
            else:
                transport.close()
