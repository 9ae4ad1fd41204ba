"""Tasks as plain process groups, each under a shim of its own (see `shim.py`).

No isolation: a task runs as the agent's user and sees the machine; CPUs, memory and devices are advice (environment only).
Everything happens on the event loop: a start is one `Popen`, an end is a readable pidfd, no thread and no polling.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bursar.agent.containers import checks, process_sessions, shim, usage
from bursar.agent.containers.evidence import BUS_ERROR, KILLED, Testimony, judge
from bursar.agent.containers.logs import DEFAULT_LOG_LIMIT_BYTES, log_files
from bursar.agent.containers.process_limits import limits_command
from bursar.agent.containers.runtime import (
    ContainerExit,
    ContainerId,
    ContainerSpec,
    ExitCallback,
    LaunchFailed,
    NetworkId,
    ProgressCallback,
    RecoveredContainer,
    RuntimeUnavailable,
)
from bursar.agent.containers.sessions import Session, SessionRefused
from bursar.agent.containers.signals import pass_on_no_ignored_signals
from bursar.agent.containers.thread_session import ThreadSession
from bursar.core.images import Image
from bursar.core.lives import Check, CheckStatus
from bursar.core.messages.sessions import SessionKind, SessionStart
from bursar.core.tasks import StatusReason

log = logging.getLogger(__name__)

#: Only where the kernel has no pidfd.
_POLL_INTERVAL_S = 0.05
#: So long is waited for the end of a task that nobody accounts for, before that is tried again.
_STRAY_ENDS_S, _STRAY_PAUSE_S = 8.0, 0.02
#: How long a locked record may go without the shim's first line.
_SHIM_BEGINS_S = 10.0


@dataclass(slots=True, eq=False)
class _Running:
    """A shim that lives."""

    container_id: ContainerId
    sandbox: Path
    record: Path
    #: Also the id of its process group and session.
    pid: int
    #: None where an earlier agent started it.
    popen: subprocess.Popen[bytes] | None
    #: -1 where the kernel has none: then it is polled.
    pidfd: int = -1
    #: Set once it was asked to end.
    kill_timer: asyncio.TimerHandle | None = None
    #: Opened with it, ended with it.
    sessions: list[Session] = field(default_factory=list)


class ProcessRuntime:
    """Runs tasks as plain processes.

    `records` is a directory of this agent alone, on a file system that can lock files. `log_limit_bytes` holds for each of
    the two outputs of a task and is looked at every `log_check_interval_s`: a task may exceed it by what it prints meanwhile.
    """

    name = "process"
    own_network = False

    def __init__(
        self,
        records: Path,
        *,
        log_limit_bytes: int = DEFAULT_LOG_LIMIT_BYTES,
        log_check_interval_s: float = 1.0,
    ) -> None:
        self._records = records
        self._log_limit_bytes = log_limit_bytes
        self._log_check_interval_s = log_check_interval_s
        self._running: dict[ContainerId, _Running] = {}
        #: Sandboxes of containers that have ended and are not removed.
        self._ended: dict[ContainerId, Path] = {}
        self._boot_id = ""
        self._closing: set[asyncio.Task[None]] = set()
        self._on_exit: ExitCallback | None = None
        self._log_timer: asyncio.TimerHandle | None = None
        self._poll_timer: asyncio.TimerHandle | None = None

    async def open(self, on_exit: ExitCallback) -> None:
        """Make the records' directory and see that it can be locked in. Raises RuntimeUnavailable."""
        try:
            self._boot_id = boot_id()
            self._records.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._records) as locked:
                fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RuntimeUnavailable(
                f"the process runtime cannot keep its records in {self._records}: {error.strerror or error}; "
                "choose a --work-dir on a local file system that this user may write to"
            ) from error
        if not os.access("/bin/sh", os.X_OK):
            raise RuntimeUnavailable("the process runtime needs /bin/sh, which is not there; install a POSIX shell")
        pass_on_no_ignored_signals()
        self._on_exit = on_exit
        self._leash = process_sessions.Leash()
        self._log_timer = asyncio.get_running_loop().call_later(self._log_check_interval_s, self._check_logs)

    async def recover(self) -> list[RecoveredContainer]:
        """Read every record, and watch the shims that live."""
        recovered = []
        for path in sorted(self._records.iterdir()):
            if path.suffix == _SUFFIX and (found := await self._recover(path)) is not None:
                recovered.append(found)
        return recovered

    async def _recover(self, path: Path) -> RecoveredContainer | None:
        deadline = asyncio.get_running_loop().time() + _SHIM_BEGINS_S
        while True:
            # In this order: what is read after the lock was found free is final.
            alive = shim.shim_lives(path)
            record = shim.read_record(path)
            if record is None or (not alive and record.pid is None):
                # The agent died between the record and the start: there is no such container and never was.
                if not alive:
                    path.unlink(missing_ok=True)
                return None
            container_id = ContainerId(record.container_id)
            if container_id in self._running:
                return None
            if not alive:
                self._ended[container_id] = Path(record.sandbox)
                return RecoveredContainer(container_id, self._exit_of(record))
            if record.pid is not None:
                running = _Running(container_id, Path(record.sandbox), path, record.pid, None, _open_pidfd(record.pid))
                # Locked still, so that pid was the shim's when the pidfd was opened: not a stranger that got its number.
                if shim.shim_lives(path):
                    self._watch(running)
                    return RecoveredContainer(container_id, None)
                _close_pidfd(running)
            elif asyncio.get_running_loop().time() > deadline:
                log.error("container %s: %s is locked, but no shim has begun", container_id, path)
                return None
            await asyncio.sleep(0.002)

    async def start(self, spec: ContainerSpec) -> None:
        """Start a shim. Raises LaunchFailed."""
        if not spec.command:
            raise LaunchFailed(
                StatusReason.LAUNCH_FAILED, "a process task needs a command: there is no image to have one"
            )
        limiting = limits_command(spec.ulimits)
        path = self._record_path(spec.container_id)
        try:
            record_fd = shim.create_record(path, spec.container_id, spec.sandbox, self._boot_id)
        except FileExistsError:
            raise LaunchFailed(StatusReason.LAUNCH_FAILED, f"{spec.container_id} was started already") from None
        except OSError as error:
            raise _launch_failed("the record cannot be written", error) from error
        opened = [record_fd]
        try:
            for file in log_files(spec.sandbox):
                opened.append(os.open(file.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644))
            command = spec.command
            if spec.cpuset and (taskset := shutil.which("taskset")):
                command = (taskset, "-c", spec.cpuset, *command)
            command = (*limiting, *command)
            arguments, environment = shim.shim_arguments(command, spec.environment)
            # No preexec_fn: it would triple the cost, as would uvloop.
            popen = subprocess.Popen(  # noqa: ASYNC220 - a millisecond; a thread or a transport costs more
                arguments,
                stdin=record_fd,
                stdout=opened[1],
                stderr=opened[2],
                cwd=spec.sandbox,
                env=environment,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                path.unlink()
            raise _launch_failed("the task cannot be started", error) from error
        finally:
            for fd in opened:
                os.close(fd)
        self._watch(_Running(spec.container_id, spec.sandbox, path, popen.pid, popen, _open_pidfd(popen.pid)))

    async def pull(self, image: str, on_progress: ProgressCallback | None = None) -> None:
        """Nothing to do: processes have no images."""

    async def images(self) -> list[Image]:
        """None."""
        return []

    async def kill(self, container_id: ContainerId, grace_ms: int) -> None:
        """SIGTERM to the process group, SIGKILL after the grace. A second kill can shorten the grace, never lengthen it."""
        running = self._running.get(container_id)
        if running is None:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + grace_ms / 1000
        if running.kill_timer is not None:
            if running.kill_timer.when() <= due:
                return
            running.kill_timer.cancel()
        elif grace_ms > 0:
            self._signal(running, signal.SIGTERM)
        if grace_ms <= 0:
            self._signal(running, signal.SIGKILL)
        running.kill_timer = loop.call_at(due, self._signal, running, signal.SIGKILL)

    async def end_stray(self, container_id: ContainerId) -> None:
        """As the interface says: all that runs here was found when the agent began, or was started by it. Raises TimeoutError."""
        await self.kill(container_id, 0)
        async with asyncio.timeout(_STRAY_ENDS_S):
            while container_id in self._running:
                await asyncio.sleep(_STRAY_PAUSE_S)

    async def pid_of(self, container_id: ContainerId) -> int:
        """The process that lives as long as the container does; 0 where there is none."""
        running = self._running.get(container_id)
        return running.pid if running else 0

    async def check(self, container_id: ContainerId, check: Check) -> CheckStatus:
        """A command runs beside the task, in its sandbox and with its environment."""
        running = self._running.get(container_id)
        if running is None:
            return CheckStatus()
        if check.command:
            return await checks.run_command(check.command, _environment_of(running.pid), running.sandbox)
        make = functools.partial(socket.socket, socket.AF_INET, socket.SOCK_STREAM)
        return await asyncio.to_thread(checks.look, check, make)

    async def remove(self, container_id: ContainerId) -> None:
        """Forget an ended container; its outputs stay in the sandbox."""
        if container_id in self._running:
            log.warning("container %s still runs: not removed", container_id)
            return
        path = self._record_path(container_id)
        sandbox = self._ended.pop(container_id, None)
        if sandbox is None and (record := shim.read_record(path)) is not None:
            sandbox = Path(record.sandbox)
        if sandbox is not None:
            for file in log_files(sandbox):
                try:
                    file.compact()
                except OSError as error:
                    log.warning("cannot tidy %s: %s", file.path, error)
        path.unlink(missing_ok=True)

    async def release_network(self, network_id: NetworkId) -> None:
        """Nothing to do: processes share the machine's."""

    async def prepare_logs(self, container_id: ContainerId) -> None:
        """Nothing to do: tasks write into their sandbox."""

    async def open_session(self, container_id: ContainerId, start: SessionStart) -> Session:
        """As the interface says."""
        running = self._running.get(container_id)
        if running is None:
            raise SessionRefused("the task does not run any more")
        session: Session
        match start.kind:
            case SessionKind.EXEC:
                environment = process_sessions.task_environment_of(running.pid)
                session = await process_sessions.ProcessSession.open(start, running.sandbox, environment, self._leash)
            case SessionKind.COPY_OUT:
                session = await ThreadSession(usage.copy_out(running.sandbox, start.path)).open()
            case SessionKind.COPY_IN:
                session = await ThreadSession(usage.copy_in(running.sandbox, start.path)).open()
            case _:
                session = await ThreadSession(usage.stats_work(lambda: usage.session_usage(running.pid))).open()
        if container_id not in self._running:
            await session.close()
            raise SessionRefused("the task has just ended")
        running.sessions.append(session)
        return session

    def running(self) -> set[ContainerId]:
        """See `ContainerLister`."""
        found = set()
        for container_id, one in list(self._running.items()):
            if shim.shim_lives(one.record):
                found.add(container_id)
        return found

    def usages(self, container_ids: Iterable[ContainerId]) -> dict[ContainerId, dict[str, int]]:
        """See `UsageReader`: sums over the processes of each task's session; what ended meanwhile is not counted any more."""
        running = list(self._running.items())
        sessions = {one.pid: container_id for container_id, one in running}
        wanted = set(container_ids)
        found: dict[ContainerId, dict[str, int]] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                container_id = sessions.get(os.getsid(process.pid))
                if container_id not in wanted or container_id is None:
                    continue
                figures = found.setdefault(container_id, {"cpu_ns": 0, "mem_bytes": 0, "pids": 0})
                with process.oneshot():
                    times = process.cpu_times()
                    figures["cpu_ns"] += int((times.user + times.system) * 1_000_000_000)
                    figures["mem_bytes"] += process.memory_info().rss
                    figures["pids"] += process.num_threads()
        return found

    async def close(self) -> None:
        """Stop watching; tasks run on, and the next `recover` finds them."""
        loop = asyncio.get_running_loop()
        for timer in (self._log_timer, self._poll_timer):
            if timer is not None:
                timer.cancel()
        for running in self._running.values():
            if running.kill_timer is not None:
                running.kill_timer.cancel()
            if running.pidfd >= 0:
                loop.remove_reader(running.pidfd)
            _close_pidfd(running)
            if running.popen is not None:
                running.popen.returncode = 0  # it is nobody's to wait for now: no warning, no second wait
        self._running.clear()
        self._ended.clear()
        if self._on_exit is not None:
            self._leash.close()
        self._on_exit = None

    def _record_path(self, container_id: ContainerId) -> Path:
        name = str(container_id)
        if "/" in name or len(name.encode("utf-8", "surrogatepass")) > 200:
            name = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        return self._records / f"{name}{_SUFFIX}"

    def _watch(self, running: _Running) -> None:
        self._running[running.container_id] = running
        loop = asyncio.get_running_loop()
        if running.pidfd >= 0:
            loop.add_reader(running.pidfd, self._ended_running, running)
        elif self._poll_timer is None:
            self._poll_timer = loop.call_later(_POLL_INTERVAL_S, self._poll)

    def _poll(self) -> None:
        polled = [running for running in self._running.values() if running.pidfd < 0]
        for running in polled:
            if not shim.shim_lives(running.record):
                self._ended_running(running)
        self._poll_timer = asyncio.get_running_loop().call_later(_POLL_INTERVAL_S, self._poll) if polled else None

    def _ended_running(self, running: _Running) -> None:
        """The shim is dead, and not waited for yet if it is our child: its pid is not anybody else's."""
        if running.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(running.pidfd)
            _close_pidfd(running)
        if running.kill_timer is not None:
            running.kill_timer.cancel()
        del self._running[running.container_id]
        for session in running.sessions:
            closing = asyncio.get_running_loop().create_task(session.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        record = shim.read_record(running.record)
        cleaned_up = record is not None and record.exit_code is not None
        if not cleaned_up and (running.popen is not None or _is_dead(running.pid)):
            _signal_group(running.pid, signal.SIGKILL)
        if running.popen is not None:
            running.popen.poll()
        else:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(running.pid, os.WNOHANG)
        self._ended[running.container_id] = running.sandbox
        if record is None:
            end = ContainerExit(None, StatusReason.CONTAINER_LOST, f"the record of the task is gone: {running.record}")
        else:
            end = self._exit_of(record, _shm_now())
        if self._on_exit is not None:
            self._on_exit(running.container_id, end)

    def _exit_of(self, record: shim.Record, testimony: Testimony | None = None) -> ContainerExit:
        """What a final record says, and what was seen when it was written."""
        if record.exit_code == BUS_ERROR or (record.exit_code == KILLED and record.last_signal is None):
            return judge(record.exit_code, testimony or Testimony())
        if record.exit_code is not None:
            return ContainerExit(record.exit_code, StatusReason.COMMAND_EXITED, _describe(record.exit_code))
        if record.boot_id != self._boot_id:
            return ContainerExit(None, StatusReason.AGENT_REBOOTED, "the machine was booted again while the task ran")
        if record.last_signal is not None:
            code = 128 + record.last_signal
            return ContainerExit(code, StatusReason.COMMAND_EXITED, _describe(code))
        return ContainerExit(
            None, StatusReason.CONTAINER_LOST, "the process that watched the task was killed and left no exit code"
        )

    def _signal(self, running: _Running, number: signal.Signals) -> None:
        if self._running.get(running.container_id) is not running:
            return
        shim.append_kill(running.record, number)
        _signal_group(running.pid, number)

    def _check_logs(self) -> None:
        for running in self._running.values():
            for file in log_files(running.sandbox):
                file.cut(self._log_limit_bytes)
        self._log_timer = asyncio.get_running_loop().call_later(self._log_check_interval_s, self._check_logs)


_SUFFIX = ".record"


def boot_id() -> str:
    """Identity of the current boot of the machine. Raises OSError."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _launch_failed(what: str, error: Exception) -> LaunchFailed:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    name = f": {error.filename}" if isinstance(error, OSError) and error.filename else ""
    return LaunchFailed(StatusReason.LAUNCH_FAILED, f"{what}: {why}{name}")


def _shm_now() -> Testimony:
    """How full the machine's /dev/shm is: a process task has no other."""
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return Testimony()
    return Testimony(None, status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize)


def _environment_of(pid: int) -> dict[str, str]:
    """What a process was started with: that of the task, also where another life of the agent started it."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {"PATH": os.defpath}
    pairs = (os.fsdecode(entry).partition("=") for entry in content.split(b"\0") if b"=" in entry)
    return {name: value for name, _, value in pairs}


def _describe(code: int) -> str:
    if code > 128:
        with contextlib.suppress(ValueError):
            return f"ended by {signal.Signals(code - 128).name}"
    return f"exited with code {code}"


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1  # no such call, no such process any more, or no descriptor left: the record's lock is polled


def _close_pidfd(running: _Running) -> None:
    if running.pidfd >= 0:
        os.close(running.pidfd)
        running.pidfd = -1


def _is_dead(pid: int) -> bool:
    """Whether no living process has this pid."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return True
    return stat.rpartition(b")")[2].split()[:1] == [b"Z"]


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        log.warning("process group %d: %s", pid, error)
