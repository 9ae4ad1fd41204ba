"""Programs next to a plain process: in its sandbox, with its environment, ended with it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import struct
import subprocess
import termios
from pathlib import Path

from bursar.agent.containers.sessions import SessionRefused
from bursar.agent.containers.shim import around_shell
from bursar.agent.containers.thread_session import READ_BYTES
from bursar.core.messages.sessions import SessionStart, TerminalSize

#: A process of nobody's waits, in the program's group, for the agent's end, which the kernel tells: then the group is killed.
_LEASHED = '((read _ <"$1"; kill -KILL 0) >/dev/null 2>&1 &); shift; unset PWD OLDPWD SHLVL; '
_PROGRAM = 'exec "$@"'
#: With a session of its own, the first terminal that a process opens is the one that controls it.
_ON_TERMINAL = 'exec 0<>"$1" 1>&0 2>&0; shift; exec "$@"'
_DEFAULT_TERM = "xterm-256color"


class Leash:
    """What sessions hang on: a pipe that only this process can write to. Nobody ever does; it closes when the agent ends, however it does."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC)

    @property
    def path(self) -> str:
        """To be opened for reading, by whoever may see this process."""
        return f"/proc/{os.getpid()}/fd/{self._read_end}"

    def close(self) -> None:
        """Let go: what still hangs on it ends."""
        os.close(self._read_end)
        os.close(self._write_end)


class ProcessSession:
    """A program, and all that it starts, as one group of processes."""

    def __init__(self, process: asyncio.subprocess.Process, terminal: int | None) -> None:
        self._process = process
        #: Our end of the terminal.
        self._terminal = terminal
        self._outputs: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(4)
        self._pumps: list[asyncio.Task[None]] = []
        self._writer: asyncio.StreamWriter | None = process.stdin
        self._transports: list[asyncio.BaseTransport] = []
        self._ended = asyncio.create_task(self._until_ended())

    @classmethod
    async def open(
        cls, start: SessionStart, sandbox: Path, environment: dict[bytes, bytes], leash: Leash
    ) -> ProcessSession:
        """Start a program. Raises SessionRefused where it cannot be run."""
        named = {os.fsdecode(name): os.fsdecode(value) for name, value in environment.items()}
        _see_that_it_runs(start.command, sandbox, named.get("PATH", os.defpath))
        if start.terminal is None:
            around, kept = around_shell(start.command, named)
            script = ("/bin/sh", "-c", _LEASHED + _PROGRAM, "sh", leash.path)
            process = await _spawn((*script, *around), sandbox, kept, subprocess.PIPE)
            session = cls(process, None)
            assert process.stdout is not None and process.stderr is not None
            session._pump(1, process.stdout)
            session._pump(2, process.stderr)
            return session
        ours, theirs = os.openpty()
        try:
            _set_size(ours, start.terminal)
            around, kept = around_shell(start.command, {"TERM": _DEFAULT_TERM, **named})
            shell = ("/bin/sh", "-c", _LEASHED + _ON_TERMINAL, "sh", leash.path, os.ttyname(theirs))
            process = await _spawn((*shell, *around), sandbox, kept, theirs)
            session = cls(process, ours)
            await session._open_terminal(ours)
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        return session

    async def _open_terminal(self, ours: int) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(ours), "rb", 0)
        )
        write_transport, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(os.dup(ours), "wb", 0)
        )
        self._transports = [transport, write_transport]
        self._writer = asyncio.StreamWriter(write_transport, protocol, None, loop)
        self._pump(1, reader)

    def _pump(self, stream: int, reader: asyncio.StreamReader) -> None:
        self._pumps.append(asyncio.create_task(self._copy(stream, reader)))

    async def _copy(self, stream: int, reader: asyncio.StreamReader) -> None:
        # A terminal whose program has ended answers with an error rather than with an end.
        with contextlib.suppress(OSError):
            while data := await reader.read(READ_BYTES):
                await self._outputs.put((stream, data))

    async def _until_ended(self) -> None:
        await self._process.wait()
        _signal_group(self._process.pid, signal.SIGKILL)
        if self._pumps:
            await asyncio.wait(self._pumps, timeout=1.0 if self._terminal is not None else 10.0)
        await self._outputs.put(None)

    async def read(self) -> tuple[int, bytes] | None:
        """As the interface says."""
        return await self._outputs.get()

    async def write(self, data: bytes) -> None:
        """As the interface says."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.write(data)
                await self._writer.drain()

    async def end_input(self) -> None:
        """As the interface says; on a terminal that is its end-of-file character."""
        if self._terminal is not None:
            await self.write(b"\x04")
        elif self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()

    async def resize(self, size: TerminalSize) -> None:
        """As the interface says; the kernel tells the program."""
        if self._terminal is not None:
            with contextlib.suppress(OSError):
                _set_size(self._terminal, size)

    async def exit_code(self) -> int:
        """As the interface says."""
        code = await self._process.wait()
        return 128 - code if code < 0 else code

    async def close(self) -> None:
        """As the interface says."""
        if self._process.returncode is None:
            _signal_group(self._process.pid, signal.SIGKILL)
        for task in (*self._pumps, self._ended):
            task.cancel()
        # Whoever reads learns of the end, too.
        while not self._outputs.empty():
            self._outputs.get_nowait()
        self._outputs.put_nowait(None)
        for transport in self._transports:
            transport.close()
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None


def task_environment_of(shim_pid: int) -> dict[bytes, bytes]:
    """The environment of the command that a shim runs; as far as it can be read."""
    for pid in [*_children(shim_pid), shim_pid]:
        with contextlib.suppress(OSError):
            parts = Path(f"/proc/{pid}/environ").read_bytes().split(b"\x00")
            return dict(part.split(b"=", 1) for part in parts if b"=" in part)
    return {}


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_bytes().split()]
    except OSError:
        return []


def _see_that_it_runs(command: tuple[str, ...], sandbox: Path, path: str) -> None:
    """Said here, as the shell around it could only print it. Raises SessionRefused."""
    program = command[0]
    found = shutil.which(str(sandbox / program)) if "/" in program else shutil.which(program, path=path)
    if not found:
        raise SessionRefused(f"{program} cannot be run: no such file or directory, or not to be run")


async def _spawn(
    command: tuple[str, ...], sandbox: Path, environment: dict[str, str], stream: int
) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *command, cwd=sandbox, env=environment, stdin=stream, stdout=stream, stderr=stream, start_new_session=True
        )
    except OSError as error:
        raise SessionRefused(f"{command[0]} cannot be run: {error.strerror or error}") from error
    except ValueError as error:
        raise SessionRefused(f"the command cannot be run: {error}") from error


def _set_size(terminal: int, size: TerminalSize) -> None:
    rows, columns = (min(max(number, 1), 65535) for number in (size.rows, size.columns))
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
