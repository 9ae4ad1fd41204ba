"""Copying what a container of a Docker engine prints into its sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from bursar.agent.containers.docker_engine import DockerEngine, root_cause
from bursar.agent.containers.logs import LogFile, log_files
from bursar.agent.containers.runtime import ContainerId

log = logging.getLogger(__name__)

_PUMP_ENDS_S = 10.0


class LogPump:
    """Copies both outputs of one container into its sandbox, each in a thread, until the container has ended.

    What an earlier pump has copied is skipped, so that an agent that was restarted copies nothing twice.
    """

    def __init__(self, engine: DockerEngine, container_id: ContainerId, sandbox: Path, follow: bool) -> None:
        self.files = log_files(sandbox)
        self._engine = engine
        self._container_id = container_id
        self._follow = follow
        self._is_stopped = False
        self._streams: list[Any] = []
        self._done: list[Future[None]] = []
        for file in self.files:
            done: Future[None] = Future()
            self._done.append(done)
            threading.Thread(target=self._run, args=(file, done), name="docker-logs", daemon=True).start()

    async def wait(self, timeout_s: float) -> None:
        """Until everything is copied, or the time is over."""
        _, late = await asyncio.wait([asyncio.wrap_future(done) for done in self._done], timeout=timeout_s)
        if late:
            log.warning("container %s: its outputs do not end; what was copied so far is kept", self._container_id)
            self.stop()

    def stop(self) -> None:
        """Let go."""
        self._is_stopped = True
        for stream in list(self._streams):
            with contextlib.suppress(Exception):  # whatever state it is in
                stream.close()

    def _run(self, file: LogFile, done: Future[None]) -> None:
        try:
            self._copy(file)
        except Exception as error:  # noqa: BLE001 - a thread of its own: nobody else would hear of it
            if not self._is_stopped:
                log.warning("container %s: %s cannot be copied: %s", self._container_id, file.stream, root_cause(error))
        done.set_result(None)

    def _copy(self, file: LogFile) -> None:
        _, end = file.extent()
        skip = end - file.run_began_at()
        with open(file.path, "ab", buffering=0) as target:
            stream = self._engine.logs(self._container_id, file.stream, self._follow)
            self._streams.append(stream)
            for data in stream:
                if self._is_stopped:
                    return
                if skip >= len(data):
                    skip -= len(data)
                    continue
                target.write(data[skip:])
                skip = 0


class LogPumps:
    """The pumps of an engine's containers, one each. `limit_bytes` holds for each output."""

    def __init__(self, engine: DockerEngine, limit_bytes: int) -> None:
        self._engine = engine
        self._limit_bytes = limit_bytes
        self._pumps: dict[ContainerId, LogPump] = {}

    def follow(self, container_id: ContainerId, sandbox: Path) -> None:
        """Copy what it prints from now on, beginning with what it printed before."""
        if container_id not in self._pumps:
            self._pumps[container_id] = LogPump(self._engine, container_id, sandbox, follow=True)

    async def save(self, container_id: ContainerId, sandbox: Path) -> None:
        """All that was printed is in the sandbox afterwards, by the pump that copies it already, or by one of now."""
        pump = self._pumps.get(container_id)
        if pump is None:
            pump = self._pumps[container_id] = LogPump(self._engine, container_id, sandbox, follow=False)
        try:
            await pump.wait(_PUMP_ENDS_S)
        finally:
            self._pumps.pop(container_id, None)
        for file in pump.files:
            try:
                file.cut(self._limit_bytes)
                file.compact()
            except OSError as error:
                log.warning("cannot tidy %s: %s", file.path, error)

    def cut(self) -> None:
        """Hold what has been copied to the limit."""
        for pump in self._pumps.values():
            for file in pump.files:
                file.cut(self._limit_bytes)

    def stop(self) -> None:
        """Copy no more."""
        for pump in self._pumps.values():
            pump.stop()
