"""Programs, files and figures of a running Docker container, over the engine's own interface."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import docker.errors

from bursar.agent.containers.docker_engine import ENGINE_ERRORS, SESSION_VARIABLE, DockerEngine, words_of
from bursar.agent.containers.runtime import ContainerId
from bursar.agent.containers.sessions import Session, SessionRefused
from bursar.agent.containers.thread_session import READ_BYTES, ThreadSession
from bursar.agent.containers.usage import stats_work
from bursar.core.messages.sessions import SessionKind, SessionStart, TerminalSize

T = TypeVar("T")

_PREFIX = f"{SESSION_VARIABLE}=".encode()
#: The engine's name for a container, in the path of its cgroup.
_CONTAINER = re.compile(r"[0-9a-f]{64}")

#: Of the engine's frames: which output, and how many bytes.
_HEADER_BYTES = 8
#: The engine learns of an end a moment after the output has ended.
_EXIT_POLLS, _EXIT_POLL_S = 100, 0.05
_COPY_BYTES = 64 * 1024


class DockerExec:
    """One program in a container."""

    def __init__(self, api: Any, calls: Executor, container: str, exec_id: str, tty: bool) -> None:
        self._api, self._calls, self._container, self._exec_id, self._tty = api, calls, container, exec_id, tty
        self._socket: Any = None
        self._early = b""
        self._is_over = False

    @classmethod
    async def open(cls, api: Any, calls: Executor, container: str, start: SessionStart, life: str) -> DockerExec:
        """Start a program. Raises SessionRefused with the engine's words."""

        def begin() -> DockerExec:
            created = api.exec_create(
                container,
                list(start.command),
                stdin=True,
                stdout=True,
                stderr=True,
                tty=start.terminal is not None,
                environment={SESSION_VARIABLE: life},
            )
            session = cls(api, calls, container, created["Id"], start.terminal is not None)
            session._connect()
            return session

        try:
            session = await asyncio.get_running_loop().run_in_executor(calls, begin)
        except docker.errors.DockerException as error:
            raise SessionRefused(words_of(error)) from error
        except ENGINE_ERRORS as error:
            raise SessionRefused(f"the Docker engine does not answer: {error}") from error
        if start.terminal is not None:
            await session.resize(start.terminal)
        return session

    def _connect(self) -> None:
        stream = self._api.exec_start(self._exec_id, tty=self._tty, socket=True)
        self._stream = stream
        self._socket = getattr(stream, "_sock", stream)
        if not isinstance(self._socket, socket.socket):
            raise docker.errors.DockerException(
                "sessions need an engine on a plain socket (unix:// or tcp:// without TLS)"
            )
        self._socket.setblocking(False)
        # What came together with the head of the answer is in the client's buffer, and would be lost.
        with contextlib.suppress(AttributeError, BlockingIOError):
            buffered = stream._response.raw._fp.fp
            self._early = bytes(buffered.peek(1) or b"")

    async def _receive(self, count: int) -> bytes:
        if self._early:
            data, self._early = self._early[:count], self._early[count:]
            return data
        with contextlib.suppress(OSError):
            return await asyncio.get_running_loop().sock_recv(self._socket, count)
        return b""

    async def _receive_all(self, count: int) -> bytes:
        parts = []
        while count:
            data = await self._receive(count)
            if not data:
                return b""
            parts.append(data)
            count -= len(data)
        return b"".join(parts)

    async def read(self) -> tuple[int, bytes] | None:
        """As the interface says."""
        if self._tty:
            data = await self._receive(READ_BYTES)
            return (1, data) if data else None
        while header := await self._receive_all(_HEADER_BYTES):
            length = int.from_bytes(header[4:], "big")
            if length:
                # A frame may be as large as what the program wrote at once.
                return (2 if header[0] == 2 else 1), await self._receive_all(length)
        return None

    async def write(self, data: bytes) -> None:
        """As the interface says."""
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def end_input(self) -> None:
        """As the interface says; on a terminal that is its end-of-file character."""
        if self._tty:
            await self.write(b"\x04")
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    async def resize(self, size: TerminalSize) -> None:
        """As the interface says."""
        if self._tty:
            with contextlib.suppress(*ENGINE_ERRORS):
                await self._call(lambda: self._api.exec_resize(self._exec_id, size.rows or 24, size.columns or 80))

    async def exit_code(self) -> int:
        """As the interface says. Raises SessionRefused where the engine does not know."""
        try:
            for _ in range(_EXIT_POLLS):
                seen = await self._call(lambda: self._api.exec_inspect(self._exec_id))
                if not seen.get("Running") and seen.get("ExitCode") is not None:
                    self._is_over = True
                    return int(seen["ExitCode"])
                await asyncio.sleep(_EXIT_POLL_S)
        except ENGINE_ERRORS as error:
            raise SessionRefused(f"its exit code cannot be had: {error}") from error
        raise SessionRefused("its exit code cannot be had: the engine says that it still runs")

    async def close(self) -> None:
        """The engine cannot end such a program, so its process is signalled, if it is surely this container's."""
        if self._socket is None:
            return
        if not self._is_over:
            with contextlib.suppress(*ENGINE_ERRORS):
                await self._call(self._kill)
        self._socket.close()
        self._socket = None

    def _kill(self) -> None:
        _kill_exec(self._api.exec_inspect(self._exec_id))

    async def _call(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._calls, function)


async def open_session(
    engine: DockerEngine, calls: Executor, container_id: ContainerId, start: SessionStart
) -> Session:
    """As `ContainerRuntime.open_session` says, of a container that runs."""
    api, name = engine.api, str(container_id)
    match start.kind:
        case SessionKind.EXEC:
            return await DockerExec.open(api, calls, name, start, engine.life)
        case SessionKind.COPY_OUT:
            return await ThreadSession(copy_out(api, name, start.path)).open()
        case SessionKind.COPY_IN:
            return await ThreadSession(copy_in(api, name, start.path)).open()
    return await ThreadSession(stats_work(lambda: _usage_of(engine.usage(container_id)))).open()


def _kill_exec(seen: dict[str, Any]) -> bool:
    """Kill a program that the engine runs in a container, with its group, if that is surely it. Return whether that was done."""
    pid = seen.get("Pid")
    if not seen.get("Running") or not pid:
        return False
    with contextlib.suppress(OSError):
        if seen["ContainerID"] in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8"):
            # A program in a container leads a session and a group of its own.
            (os.killpg if os.getpgid(pid) == pid else os.kill)(pid, signal.SIGKILL)
            return True
    return False


def end_left(api: Any, agent_id: str, life: str) -> int:
    """End the programs that earlier lives of this agent started in containers; their number. Where their processes cannot be seen, none.

    The engine ends none of them, and names them only by their container: so they are looked for among all processes first.
    """
    left: dict[int, str] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (directory / "environ").read_bytes().split(b"\0")
            values = [one.partition(b"=")[2].decode() for one in environment if one.startswith(_PREFIX)]
            if any(value.startswith(f"{agent_id}/") and value != life for value in values):
                found = _CONTAINER.search((directory / "cgroup").read_text(encoding="utf-8"))
                left[int(directory.name)] = found.group() if found else ""
    count = 0
    for container in sorted(set(left.values()) - {""}):
        with contextlib.suppress(docker.errors.APIError):
            for exec_id in api.inspect_container(container).get("ExecIDs") or ():
                seen = api.exec_inspect(exec_id)
                if seen.get("Pid") in left:
                    count += _kill_exec(seen)
    return count


def copy_out(api: Any, container: str, path: str) -> Callable[[BinaryIO, BinaryIO], None]:
    """The work of a session that sends a path as tar."""

    def work(source: BinaryIO, target: BinaryIO) -> None:
        try:
            chunks, _ = api.get_archive(container, path, chunk_size=_COPY_BYTES)
            target.writelines(chunks)
        except docker.errors.APIError as error:
            raise OSError(words_of(error)) from error

    return work


def copy_in(api: Any, container: str, path: str) -> Callable[[BinaryIO, BinaryIO], None]:
    """The work of a session that unpacks a tar into a directory."""

    def pieces(source: BinaryIO) -> Iterator[bytes]:
        while data := source.read(_COPY_BYTES):
            yield data

    def work(source: BinaryIO, target: BinaryIO) -> None:
        try:
            api.put_archive(container, path, pieces(source))
        except docker.errors.APIError as error:
            raise OSError(words_of(error)) from error

    return work


def usages(engine: DockerEngine, container_ids: Iterable[ContainerId]) -> dict[ContainerId, dict[str, int]]:
    """What those of them that run use, in our units. Raises DockerException too."""
    found = {}
    for container_id in container_ids:
        with contextlib.suppress(docker.errors.NotFound):
            figures = _usage_of(engine.usage(container_id))
            if figures["pids"]:
                found[container_id] = figures
    return found


def _usage_of(stats: dict[str, Any]) -> dict[str, int]:
    """What the engine's figures say, in our units."""
    memory = stats.get("memory_stats") or {}
    details = memory.get("stats") or {}
    # What the kernel would give back at once does not count, as in `docker stats`.
    cache = details.get("total_inactive_file", details.get("inactive_file", 0))
    blocks = (stats.get("blkio_stats") or {}).get("io_service_bytes_recursive") or []
    networks = (stats.get("networks") or {}).values()

    def moved(word: str) -> int:
        return sum(entry["value"] for entry in blocks if str(entry.get("op", "")).lower() == word)

    return {
        "cpu_ns": int(((stats.get("cpu_stats") or {}).get("cpu_usage") or {}).get("total_usage", 0)),
        "mem_bytes": max(0, int(memory.get("usage", 0)) - int(cache)),
        "mem_limit_bytes": int(memory.get("limit", 0)),
        "pids": int((stats.get("pids_stats") or {}).get("current", 0)),
        "read_bytes": moved("read"),
        "written_bytes": moved("write"),
        "received_bytes": sum(int(network.get("rx_bytes", 0)) for network in networks),
        "sent_bytes": sum(int(network.get("tx_bytes", 0)) for network in networks),
    }
