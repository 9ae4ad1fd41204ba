"""An engine in memory: the same interface and the same manners as the real ones, for tests of the agent.

The `SimulatedEngine` outlives the `SimulatedRuntime`s that are opened on it, as Docker outlives an agent. What a container
does is a `SimulatedProgram`, chosen by a function of its specification.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from bursar.agent.containers import usage
from bursar.agent.containers.logs import log_files
from bursar.agent.containers.runtime import (
    ContainerExit,
    ContainerId,
    ContainerSpec,
    ExitCallback,
    ImageMissing,
    LaunchFailed,
    NetworkId,
    ProgressCallback,
    PullFailed,
    RecoveredContainer,
    RuntimeUnavailable,
)
from bursar.agent.containers.sessions import Session, SessionRefused
from bursar.agent.containers.thread_session import ThreadSession
from bursar.core.images import Image, PullFailure, PullProgress
from bursar.core.lives import Check, CheckStatus
from bursar.core.messages.sessions import SessionKind, SessionStart
from bursar.core.tasks import StatusReason

log = logging.getLogger(__name__)

_POLL_INTERVAL_S = 0.005


@dataclass(frozen=True, slots=True)
class SimulatedProgram:
    """What a container does: print, run for a while, end."""

    exit_code: int = 0
    #: None: until it is killed, or until `until_file` is there.
    run_ms: int | None = 0
    #: Ends when a file of this name appears in its sandbox.
    until_file: str = ""
    stdout: bytes = b""
    stderr: bytes = b""
    #: Its exit code after SIGTERM; None ignores the signal.
    on_term: int | None = 143
    #: What the evidence says of its end.
    reason: StatusReason = StatusReason.COMMAND_EXITED
    #: What a look at it finds.
    check: Callable[[ContainerSpec, Check], CheckStatus] = lambda spec, check: CheckStatus()


Behaviour = Callable[[ContainerSpec], SimulatedProgram]
"""Says what a container does. May raise LaunchFailed."""


def shell_words(spec: ContainerSpec) -> SimulatedProgram:
    """A few commands as a shell knows them: `true`, `false`, `exit N`, `sleep SECONDS`, `echo WORDS…`; others are not found."""
    words = spec.command
    match words:
        case ("true",) | ():
            return SimulatedProgram()
        case ("false",):
            return SimulatedProgram(1)
        case ("exit", code) if code.isdecimal():
            return SimulatedProgram(int(code))
        case ("sleep", seconds):
            return SimulatedProgram(run_ms=int(float(seconds) * 1000))
        case ("echo", *rest):
            return SimulatedProgram(stdout=f"{' '.join(rest)}\n".encode())
    return SimulatedProgram(127, stderr=f"{words[0]}: not found\n".encode())


@dataclass(slots=True, eq=False)
class _Container:
    spec: ContainerSpec
    program: SimulatedProgram
    exit: ContainerExit | None = None
    timers: list[asyncio.TimerHandle] = field(default_factory=list)


class SimulatedEngine:
    """Holds containers; survives the runtimes that talk to it. All calls in one event loop."""

    def __init__(self, behaviour: Behaviour = shell_words) -> None:
        self._behaviour = behaviour
        self._containers: dict[ContainerId, _Container] = {}
        #: The runtimes that are open, told of every end.
        self._watchers: list[Callable[[ContainerId, ContainerExit], None]] = []
        #: Images that are not on this machine, and those of them that can be pulled.
        self.missing_images: set[str] = set()
        self.registry: set[str] = set()
        #: What containers share.
        self.networks: set[NetworkId] = set()
        #: False: every call fails, as with a stopped daemon.
        self.is_up = True

    def end(self, container_id: ContainerId, end: ContainerExit) -> None:
        """Make a running container end; otherwise without effect."""
        container = self._containers.get(container_id)
        if container is None or container.exit is not None:
            return
        for timer in container.timers:
            timer.cancel()
        container.timers.clear()
        container.exit = end
        for watcher in list(self._watchers):
            watcher(container_id, end)

    @property
    def running(self) -> list[ContainerId]:
        """What runs, in the order started."""
        return [container_id for container_id, container in self._containers.items() if container.exit is None]

    def _start(self, spec: ContainerSpec) -> None:
        if spec.container_id in self._containers:
            raise LaunchFailed(StatusReason.LAUNCH_FAILED, f"{spec.container_id} was started already")
        program = self._behaviour(spec)
        if spec.network_id:
            self.networks.add(spec.network_id)
        container = self._containers[spec.container_id] = _Container(spec, program)
        for file, data in zip(log_files(spec.sandbox), (program.stdout, program.stderr), strict=True):
            with file.path.open("ab") as output:
                output.write(data)
        if program.run_ms is not None and not program.until_file:
            self._after(container, program.run_ms, program.exit_code)
        elif program.until_file:
            self._poll(container, spec.sandbox / program.until_file)

    def _poll(self, container: _Container, path: Path) -> None:
        if path.exists():
            self._end_with(container, container.program.exit_code)
        elif container.exit is None:
            loop = asyncio.get_running_loop()
            container.timers[:] = [loop.call_later(_POLL_INTERVAL_S, self._poll, container, path)]

    def _after(self, container: _Container, delay_ms: int, code: int) -> None:
        loop = asyncio.get_running_loop()
        container.timers.append(loop.call_later(delay_ms / 1000, self._end_with, container, code))

    def _end_with(self, container: _Container, code: int) -> None:
        self.end(container.spec.container_id, ContainerExit(code, container.program.reason))

    def _kill(self, container_id: ContainerId, grace_ms: int) -> None:
        container = self._containers.get(container_id)
        if container is None or container.exit is not None:
            return
        if grace_ms > 0 and container.program.on_term is not None:
            self._after(container, 0, container.program.on_term)
        else:
            self._after(container, grace_ms, 137)


class SimulatedExec(ThreadSession):
    """A program of `shell_words` that ends at once, or `cat`."""

    def __init__(self, program: SimulatedProgram, command: tuple[str, ...]) -> None:
        def work(source: BinaryIO, target: BinaryIO) -> None:
            target.write(source.read() if command == ("cat",) else program.stdout)

        super().__init__(work)
        self._code = 0 if command == ("cat",) else program.exit_code

    async def exit_code(self) -> int:
        """As the interface says."""
        return await super().exit_code() or self._code


class SimulatedRuntime:
    """One agent's connection to an engine."""

    name = "simulated"
    own_network = False

    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine
        self._watched: set[ContainerId] = set()
        self._on_exit: ExitCallback | None = None

    async def open(self, on_exit: ExitCallback) -> None:
        """Connect. Raises RuntimeUnavailable where the engine is down."""
        if not self._engine.is_up:
            raise RuntimeUnavailable("the simulated engine is down")
        self._on_exit = on_exit
        self._engine._watchers.append(self._ended)

    async def recover(self) -> list[RecoveredContainer]:
        """All containers of the engine."""
        found = []
        for container_id, container in self._engine._containers.items():
            if container_id in self._watched:
                continue
            if container.exit is None:
                self._watched.add(container_id)
            found.append(RecoveredContainer(container_id, container.exit))
        return found

    async def start(self, spec: ContainerSpec) -> None:
        """Start a container. Raises LaunchFailed."""
        if not self._engine.is_up:
            raise LaunchFailed(StatusReason.ENGINE_LOST, "the simulated engine is down")
        if spec.image in self._engine.missing_images:
            raise ImageMissing(spec.image)
        self._engine._start(spec)
        self._watched.add(spec.container_id)

    async def pull(self, image: str, on_progress: ProgressCallback | None = None) -> None:
        """Raises PullFailed where the engine's registry does not have it."""
        if image not in self._engine.registry:
            raise PullFailed(PullFailure.IMAGE_NOT_FOUND, f"image {image}: no such image")
        if on_progress is not None:
            on_progress(PullProgress(1, 1, 1000, 1000))
        self._engine.missing_images.discard(image)

    async def images(self) -> list[Image]:
        """Of the registry, what is not missing."""
        return [
            Image(f"sha256:{name}", (name,), 1000)
            for name in sorted(self._engine.registry - self._engine.missing_images)
        ]

    async def kill(self, container_id: ContainerId, grace_ms: int) -> None:
        """As the interface says."""
        self._engine._kill(container_id, grace_ms)

    async def end_stray(self, container_id: ContainerId) -> None:
        """As the interface says. Raises OSError while the engine is down."""
        if not self._engine.is_up:
            raise OSError("the simulated engine is down")
        self._engine.end(container_id, ContainerExit(137, StatusReason.COMMAND_EXITED))

    async def pid_of(self, container_id: ContainerId) -> int:
        """There is no process."""
        return 0

    async def check(self, container_id: ContainerId, check: Check) -> CheckStatus:
        """As its program says."""
        container = self._engine._containers.get(container_id)
        if container is None or container.exit is not None:
            return CheckStatus()
        return container.program.check(container.spec, check)

    async def remove(self, container_id: ContainerId) -> None:
        """As the interface says."""
        container = self._engine._containers.get(container_id)
        if container is not None and container.exit is not None:
            del self._engine._containers[container_id]

    async def release_network(self, network_id: NetworkId) -> None:
        """As the interface says."""
        self._engine.networks.discard(network_id)

    async def prepare_logs(self, container_id: ContainerId) -> None:
        """Outputs are in the sandbox from the start."""

    async def open_session(self, container_id: ContainerId, start: SessionStart) -> Session:
        """As the interface says: programs of `shell_words`, `cat`, files of the sandbox, figures of nothing used."""
        container = self._engine._containers.get(container_id)
        if container is None or container.exit is not None:
            raise SessionRefused("the task does not run any more")
        sandbox = container.spec.sandbox
        match start.kind:
            case SessionKind.EXEC:
                return await SimulatedExec(
                    shell_words(replace(container.spec, command=start.command)), start.command
                ).open()
            case SessionKind.COPY_OUT:
                return await ThreadSession(usage.copy_out(sandbox, start.path)).open()
            case SessionKind.COPY_IN:
                return await ThreadSession(usage.copy_in(sandbox, start.path)).open()
        return await ThreadSession(usage.stats_work(lambda: {"cpu_ns": 0, "mem_bytes": 0, "pids": 1})).open()

    async def close(self) -> None:
        """Stop watching."""
        if self._ended in self._engine._watchers:
            self._engine._watchers.remove(self._ended)
        self._watched.clear()

    def _ended(self, container_id: ContainerId, end: ContainerExit) -> None:
        if container_id in self._watched and self._on_exit is not None:
            self._watched.discard(container_id)
            self._on_exit(container_id, end)
