"""The sockets of executors: one each, in a directory of its own, for nobody but the executor's user.

What is heard there goes to the agent's machine under the name of that executor's container, so that none can speak for another.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from bursar.agent.containers.runtime import ContainerId, LaunchFailed
from bursar.agent.events import ExecutorCalled, ExecutorLeft
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.executor import ExecutorEvent, ExecutorSubscribe
from bursar.core.tasks import StatusReason
from bursar.runtime.codec import unwrap, wrap
from bursar.runtime.outbox import Outbox
from bursar.runtime.rpc import SERVER_OPTIONS, abort
from bursar.v1 import executor_service_pb2, executor_service_pb2_grpc

SOCKET_NAME = "executor.sock"
#: What the kernel takes as the path of a socket.
_MAX_PATH_BYTES = 107
_CAPACITY = 10_000


class ExecutorSockets:
    """All sockets of an agent. They outlive it: an executor finds the next life of the agent at the same path."""

    def __init__(self, directory: Path, post: Callable[[ExecutorCalled | ExecutorLeft], object]) -> None:
        self._directory = _short(directory)
        self._post = post
        self._servers: dict[ContainerId, _Server] = {}

    def directory_of(self, container_id: ContainerId) -> Path:
        """Where an executor's socket is: short, as the kernel takes no long path."""
        return self._directory / hashlib.sha256(container_id.encode()).hexdigest()[:16]

    async def open(self, container_id: ContainerId, owner: tuple[int, int] | None) -> None:
        """Make a socket and listen; `owner`: user and group, where that is not the agent's. Raises LaunchFailed, OSError."""
        directory = self.directory_of(container_id)
        path = directory / SOCKET_NAME
        self._directory.mkdir(mode=0o700, exist_ok=True)
        base = self._directory.lstat()
        if not stat.S_ISDIR(base.st_mode) or base.st_uid != os.geteuid() or stat.S_IMODE(base.st_mode) & 0o077:
            raise LaunchFailed(
                StatusReason.LAUNCH_FAILED,
                f"{self._directory}, for the sockets of executors, is not this agent's: remove it",
            )
        directory.mkdir(mode=0o700, exist_ok=True)
        path.unlink(missing_ok=True)
        server = _Server(container_id, self._post)
        mask = os.umask(0o177)
        try:
            await server.start(path)
        finally:
            os.umask(mask)
        self._servers[container_id] = server
        path.chmod(0o600)
        if owner is not None:
            for one in (directory, path):
                os.chown(one, *owner)

    def tell(self, container_id: ContainerId, event: ExecutorEvent) -> None:
        """Say something; dropped where nobody is connected."""
        if (server := self._servers.get(container_id)) is not None:
            server.tell(event)

    async def remove(self, container_id: ContainerId) -> None:
        """The executor is no more."""
        if (server := self._servers.pop(container_id, None)) is not None:
            await server.stop()
        await asyncio.to_thread(shutil.rmtree, self.directory_of(container_id), True)

    async def close(self) -> None:
        """The agent stops; executors go on."""
        servers, self._servers = list(self._servers.values()), {}
        await asyncio.gather(*(server.stop() for server in servers))
        with contextlib.suppress(OSError):
            self._directory.rmdir()  # where nobody needs it


def _short(directory: Path) -> Path:
    """The directory itself, or one in /tmp that belongs to it where the paths of sockets would be too long for the kernel."""
    longest = directory / ("x" * 16) / SOCKET_NAME
    if len(os.fsencode(longest)) <= _MAX_PATH_BYTES:
        return directory
    return Path("/tmp") / f"bursar-{hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]}"


class _Server(executor_service_pb2_grpc.ExecutorServiceServicer):
    """One socket."""

    def __init__(self, container_id: ContainerId, post: Callable[[ExecutorCalled | ExecutorLeft], object]) -> None:
        self._container_id = container_id
        self._post = post
        self._server: Any = None
        self._outbox: Outbox[Any] | None = None

    async def start(self, path: Path) -> None:
        """Raises OSError."""
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        executor_service_pb2_grpc.add_ExecutorServiceServicer_to_server(self, self._server)
        try:
            self._server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise OSError(str(error)) from error
        await self._server.start()

    async def stop(self) -> None:
        if self._outbox is not None:
            self._outbox.close()
        await self._server.stop(0.1)

    def tell(self, event: ExecutorEvent) -> None:
        if self._outbox is not None:
            self._outbox.put(wrap("ExecutorEvent", event))

    async def Connect(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        """One stream; a newer one takes its place."""
        outbox: Outbox[Any] = Outbox(_CAPACITY)
        reader = asyncio.create_task(self._read(request_iterator, outbox))
        try:
            while batch := await outbox.next_batch():
                await context.write(executor_service_pb2.ExecutorServiceConnectResponse(events=batch))
        finally:
            outbox.close()
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.RpcError, grpc.aio.BaseError):
                error = await reader
            if self._outbox is outbox:
                self._outbox = None
                self._post(ExecutorLeft(self._container_id))
        if not reader.cancelled() and (error := reader.result()) is not None:
            await abort(context, error)

    async def _read(self, requests: Any, outbox: Outbox[Any]) -> ErrorDetail | None:
        """Until the stream ends; or why it has to."""
        try:
            async for request in requests:
                for message in request.calls:
                    call = unwrap("ExecutorCall", message)
                    if call is None:
                        continue  # of a newer version
                    if isinstance(call, ExecutorSubscribe):
                        if self._outbox is not None and self._outbox is not outbox:
                            self._outbox.close()
                        self._outbox = outbox
                    if self._outbox is not outbox:
                        return ErrorDetail(
                            ErrorReason.INVALID_ARGUMENT,
                            "the first call of a stream is ExecutorSubscribe, and the newest stream counts",
                            "subscribe first",
                        )
                    self._post(ExecutorCalled(self._container_id, call))
        except (grpc.RpcError, grpc.aio.BaseError):
            pass
        finally:
            outbox.close()
        return None
