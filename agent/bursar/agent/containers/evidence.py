"""What the kernel knows of how a container ended, gathered while it can still be asked.

An exit code proves nothing: anybody may send SIGKILL (137) or SIGBUS (135). What counts is the out-of-memory counter of the
cgroup and how full /dev/shm was. Both vanish with the container, so a `Witness` holds on to them: an open directory keeps the
memory file system readable after it was unmounted, and the counter is looked at while the container runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bursar.agent.containers.runtime import ContainerExit
from bursar.core.memory.overrun import MemoryUsage, explain_limit
from bursar.core.memory.pools import MemoryPlan, format_bytes
from bursar.core.tasks import StatusReason

KILLED, BUS_ERROR = 128 + signal.SIGKILL, 128 + signal.SIGBUS
_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Testimony:
    """What a witness saw; None where it could not look."""

    #: Processes of the container that the kernel killed for want of memory.
    oom_kills: int | None = None
    shm_bytes: int | None = None
    shm_free_bytes: int | None = None
    usage: MemoryUsage | None = None
    #: Forks that the kernel refused at the container's limit of processes and threads; all since its start, as the cgroup is its own.
    refused_forks: int | None = None
    pids_limit: int = 0


def with_forks(end: ContainerExit, testimony: Testimony) -> ContainerExit:
    """The same end; where forks were refused meanwhile it says so: that may be why, and nothing else shows it. Pure."""
    if not testimony.refused_forks or not end.exit_code:
        return end
    times = f"{testimony.refused_forks} times" if testimony.refused_forks > 1 else "once"
    words = f"it met its limit of {testimony.pids_limit} processes and threads {times}; allow it more with --pids"
    return replace(end, message=f"{end.message}; {words}" if end.message else words)


def judge(
    code: int, testimony: Testimony, *, engine_says_oom: bool = False, plan: MemoryPlan | None = None
) -> ContainerExit:
    """What an exit code and the evidence come to. Pure."""
    if code != 0 and (engine_says_oom or testimony.oom_kills):
        why = explain_limit(plan, testimony.usage) if plan is not None and testimony.usage is not None else ""
        message = "the task used more memory than it asked for" + (f": {why}" if why else "; ask for more with --mem")
        return ContainerExit(code, StatusReason.MEM_LIMIT, message)
    if code == BUS_ERROR:
        page = os.sysconf("SC_PAGE_SIZE")
        if testimony.shm_free_bytes is not None and testimony.shm_free_bytes < page:
            size = format_bytes(testimony.shm_bytes or 0)
            return ContainerExit(
                code,
                StatusReason.SHM_LIMIT,
                f"/dev/shm was full ({size}) when SIGBUS ended the task; give it more with --shm, or the pool shm of --memory",
            )
        known = "/dev/shm was not full" if testimony.shm_free_bytes is not None else "/dev/shm could not be looked at"
        return ContainerExit(code, StatusReason.SIGBUS, f"ended by SIGBUS, cause unknown: {known}")
    if code == KILLED:
        return ContainerExit(
            code,
            StatusReason.COMMAND_EXITED,
            "ended by SIGKILL, not sent by this agent"
            + (": the kernel counted no process of it killed for want of memory" if testimony.oom_kills == 0 else ""),
        )
    return ContainerExit(code, StatusReason.COMMAND_EXITED, f"exited with code {code}")


class Witness:
    """Holds on to what can be asked of one running container. Blocks for microseconds; close it."""

    def __init__(self, pid: int, *, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> None:
        """`pid` is the container's first process, in the agent's own pid namespace; where it is not, nothing is seen."""
        self._shm = -1
        with contextlib.suppress(OSError):
            self._shm = os.open(proc / str(pid) / "root/dev/shm", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._memory = memory_cgroup(_read(proc / str(pid) / "cgroup"), cgroups)
        self._pids = _cgroup(_read(proc / str(pid) / "cgroup"), cgroups, "pids", "pids.events")
        self._before = self._oom_kills()
        self._seen = Testimony()

    def look(self) -> None:
        """Remember how it is now: afterwards there is nothing to look at."""
        kills = self._oom_kills()
        if kills is not None:
            counted = kills - (self._before or 0)
            usage = self._usage()
            self._seen = replace(self._seen, oom_kills=counted, usage=usage)
        self.look_at_forks()

    def look_at_forks(self) -> None:
        """The same of processes alone: the kernel tells nobody when it refuses one."""
        if (refused := self._refused_forks()) is not None:
            limit = _read(self._pids / "pids.max").strip() if self._pids is not None else ""
            self._seen = replace(self._seen, refused_forks=refused, pids_limit=int(limit) if limit.isdigit() else 0)

    def testify(self) -> Testimony:
        """All that is known, now that it has ended, or still runs."""
        self.look()
        total = free = None
        if self._shm >= 0:
            with contextlib.suppress(OSError):
                status = os.fstatvfs(self._shm)
                total, free = status.f_blocks * status.f_frsize, status.f_bfree * status.f_frsize
        return replace(self._seen, shm_bytes=total, shm_free_bytes=free)

    def close(self) -> None:
        """Let go: the memory file system goes away only then."""
        if self._shm >= 0:
            os.close(self._shm)
            self._shm = -1

    def _oom_kills(self) -> int | None:
        if self._memory is None:
            return None
        # v2, v1.
        for name in ("memory.events", "memory.oom_control"):
            counted = numbers_of(_read(self._memory / name)).get("oom_kill")
            if counted is not None:
                return counted
        return None

    def _refused_forks(self) -> int | None:
        return None if self._pids is None else numbers_of(_read(self._pids / "pids.events")).get("max")

    def _usage(self) -> MemoryUsage | None:
        if self._memory is None:
            return None
        return usage_of(numbers_of(_read(self._memory / "memory.stat")))


def usage_of(stat: Mapping[str, int]) -> MemoryUsage | None:
    """A `memory.stat` of either version; None for an empty one."""
    if not stat:
        return None
    return MemoryUsage(
        anon_bytes=stat.get("anon", stat.get("total_rss", stat.get("rss", 0))),
        shm_bytes=stat.get("shmem", stat.get("total_shmem", 0)),
        locked_bytes=stat.get("unevictable", 0),
        kernel_bytes=stat.get("kernel", stat.get("slab", 0)),
    )


def memory_cgroup(text: str, cgroups: Path = _CGROUPS) -> Path | None:
    """Where the memory of a process is accounted, by its `/proc/PID/cgroup`; None where that cannot be seen from here."""
    return _cgroup(text, cgroups, "memory", "memory.events")


def _cgroup(text: str, cgroups: Path, controller: str, proof: str) -> Path | None:
    """Where a controller accounts a process; `proof`: a file that version 2 has there."""
    unified = None
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            found = cgroups / controller / path.lstrip("/")
            return found if found.is_dir() else None
        if not controllers:
            unified = cgroups / path.lstrip("/")
    return unified if unified is not None and (unified / proof).exists() else None


def numbers_of(text: str) -> dict[str, int]:
    """Lines of `name number`."""
    found = {}
    for line in text.splitlines():
        name, _, number = line.partition(" ")
        if number.isdigit():
            found[name] = int(number)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
