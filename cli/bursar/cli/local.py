"""A whole cluster on this machine, as real processes: for `bursar dev` and the demo.

Everything lives under one directory, so that what an interrupted run left behind can be found by that directory and removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import psutil

from bursar.cli.problems import Failure
from bursar.core.errors import BursarError
from bursar.runtime.credentials import NOBODY
from bursar.sdk import MasterUnreachable, OperatorClient

T = TypeVar("T")

START_S = 20.0
STOP_S = 10.0
_LABEL_SANDBOX = "bursar.sandbox"
_READY = re.compile(r"event=ready address=(\S+)")


@dataclass(frozen=True, slots=True)
class LocalAgent:
    """One agent to start."""

    hostname: str
    runtime: str
    devices: str
    default_image: str = ""
    resources: str = ""
    flags: tuple[str, ...] = ()


class Interrupted(BaseException):
    """SIGINT or SIGTERM came; not an Exception, so that nothing mistakes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """SIGINT and SIGTERM, taken only where nothing is half done: a process that is started is always known to be ours.

    The first one counts; those after it are ignored, so that tidying up is not interrupted.
    """

    def __init__(self) -> None:
        #: The signal that came; 0: none.
        self.number = 0
        self._task: asyncio.Task[Any] | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def check(self) -> None:
        """Raise Interrupted where a signal has come; for loops that wait."""
        if self.number:
            raise Interrupted(self.number)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """`asyncio.run`; a signal cancels the work. Raises Interrupted."""

        async def main() -> T:
            self._task = asyncio.current_task()
            if self.number:
                work.close()
                raise asyncio.CancelledError
            return await work

        try:
            result = asyncio.run(main())
        except asyncio.CancelledError:
            self.check()
            raise
        finally:
            self._task = None
        self.check()
        return result

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            return
        self.number = number
        if self._task is not None:
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)


@dataclass
class LocalCluster:
    """A master and some agents; `start`, then `stop`, whatever happens in between."""

    directory: Path
    listen: str = "127.0.0.1:0"
    metrics: str = "127.0.0.1:0"
    interrupts: Interrupts | None = None
    #: Where the master can be reached, once it is started.
    address: str = ""
    _processes: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)

    def start_master(self, *flags: str) -> None:
        """Start the master and wait until it serves. Raises Failure with its last words."""
        log = self._spawn(
            "master",
            "bursar.master.main",
            ["--listen", self.listen, "--metrics", self.metrics, "--work-dir", str(self.directory / "master"), *flags],
        )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            found = _READY.search(log.read_text("utf-8", "replace"))
            if found:
                self.address = found[1]
                return
            self.check()
            time.sleep(0.02)
        raise Failure("the master did not start in time", f"its log is {log}")

    def start_agent(self, agent: LocalAgent) -> None:
        """Start an agent; it registers when it is ready (`wait_for_agents`)."""
        flags = ["--master", self.address, "--work-dir", str(self.directory / agent.hostname)]
        flags += ["--hostname", agent.hostname, "--runtime", agent.runtime, "--devices", agent.devices]
        if agent.default_image:
            flags += ["--default-image", agent.default_image]
        if agent.resources:
            flags += ["--resources", agent.resources]
        self._spawn(agent.hostname, "bursar.agent.main", [*flags, *agent.flags])

    async def wait_for_agents(self, count: int) -> None:
        """Wait until so many agents are active. Raises Failure."""
        deadline = time.monotonic() + START_S
        async with OperatorClient(self.address, credentials=NOBODY) as client:
            while time.monotonic() < deadline:
                active = [agent for agent in await client.agents() if agent.state == 1]
                if len(active) >= count:
                    return
                self.check()
                await asyncio.sleep(0.05)
        raise Failure("the agents did not register in time", f"their logs are in {self.directory}")

    def check(self) -> None:
        """Raise Failure with the last words of a process that has ended, or Interrupted."""
        if self.interrupts is not None:
            self.interrupts.check()
        for name, process in self._processes:
            if process.poll() is not None:
                what, hint = _last_words((self.directory / f"{name}.log").read_text("utf-8", "replace"))
                raise Failure(f"{name} ended with exit code {process.returncode}: {what}", hint)

    def stop(self) -> None:
        """End all tasks, then all processes. Tasks outlive agents, so they are ended first."""
        if self.address and self._processes:
            with contextlib.suppress(BursarError, Failure, TimeoutError):
                asyncio.run(asyncio.wait_for(self._end_tasks(), STOP_S))
        for _, process in reversed(self._processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for _, process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    async def _end_tasks(self) -> None:
        async with OperatorClient(self.address, timeout_s=2, credentials=NOBODY) as client:
            for framework in await client.frameworks():
                await client.teardown_framework(framework.info.framework_id)
            for task in await client.tasks():
                with contextlib.suppress(BursarError):
                    await client.kill_task(f"{task.framework_id}/{task.task_id}", 0)
            while await client.tasks():
                await asyncio.sleep(0.05)

    def _spawn(self, name: str, module: str, flags: Sequence[str]) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        log = self.directory / f"{name}.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("BURSAR_")}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *flags],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                # Of its own, so that Ctrl-C reaches us alone and the end is orderly.
                start_new_session=True,
            )
        self._processes.append((name, process))
        return log


def _last_words(log: str) -> tuple[str, str]:
    """What a daemon said in the end, and its advice: `PROGRAM: what is wrong`, then an indented line."""
    lines = log.strip().splitlines()
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith("bursar-"):
            return lines[index], " ".join(line.strip() for line in lines[index + 1 :])
    return (lines[-1] if lines else "without a word"), ""


class OwnedDirectory:
    """A temporary directory that tells whether its owner still lives."""

    def __init__(self, parent: Path, prefix: str) -> None:
        self.path = parent / f"{prefix}{os.getpid()}-{time.time_ns():x}"
        self.path.mkdir(mode=0o700)
        # Locked before it has its name: nobody ever sees an owner that seems dead.
        unnamed = self.path / "owner.new"
        self._lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self.path / "owner")

    def remove(self) -> None:
        """Remove everything in it that is left, processes and containers included."""
        remove_remains(self.path)
        os.close(self._lock)


def remove_orphans(parent: Path, prefix: str) -> int:
    """Remove what owners that were killed left behind; return how many there were."""
    count = 0
    for path in sorted(parent.glob(f"{prefix}*")):
        if not path.is_dir() or path.stat().st_uid != os.geteuid() or _has_owner(path):
            continue
        remove_remains(path)
        count += 1
    return count


def remove_remains(directory: Path) -> None:
    """End every process and container that belongs to a directory, and remove it."""
    # Agents first: they would notice the end of their tasks and tell a master that is going away.
    for _ in range(5):
        found = list(_processes_of(directory))
        if not found:
            break
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(found, timeout=2)
    _remove_containers(directory)
    shutil.rmtree(directory, ignore_errors=True)


def _has_owner(path: Path) -> bool:
    try:
        descriptor = os.open(path / "owner", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        # Being made this very moment, or half removed.
        return time.time() - path.stat().st_mtime < 60
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _processes_of(directory: Path) -> Iterator[psutil.Process]:
    """Daemons that name the directory on their command line, and tasks whose sandbox is in it."""
    mark = str(directory)
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            named = any(mark in argument for argument in process.cmdline())
            if named or process.environ().get("BURSAR_SANDBOX", "").startswith(mark):
                yield process
        except (psutil.Error, OSError):
            continue


def _remove_containers(directory: Path) -> None:
    """Containers whose sandbox is in the directory, and images that were made for it (they bear its name)."""
    try:
        import docker

        client = docker.from_env(timeout=10)
        # Others end theirs meanwhile: one that has gone since it was listed is none of ours.
        containers = client.containers.list(all=True, filters={"label": _LABEL_SANDBOX}, ignore_removed=True)
        for container in containers:
            if container.labels.get(_LABEL_SANDBOX, "").startswith(str(directory)):
                container.remove(force=True)
        for image in client.images.list(name=directory.name.lower()):
            client.images.remove(str(image.id), force=True)
    except Exception:  # noqa: BLE001 - no engine, or it is going away: then there is nothing that we could remove
        return


async def reachable(address: str) -> bool:
    """Whether a master answers there."""
    try:
        async with OperatorClient(address, timeout_s=0.5, credentials=NOBODY) as client:
            await client.master()
    except MasterUnreachable:
        return False
    return True
