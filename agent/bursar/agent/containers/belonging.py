"""To which container a process belongs, as far as the kernel tells. Reads `/proc`: called from worker threads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from bursar.agent.containers.runtime import ContainerId


def container_of_process(pid: int, first: Mapping[ContainerId, int], proc: Path = Path("/proc")) -> ContainerId:
    """The one in whose PID namespace it lives, or else in whose session; empty where it is none of these.

    `first`: of each container its first process, as this machine numbers it.
    """
    own, theirs = _namespace(os.getpid(), proc), _namespace(pid, proc)
    if theirs and theirs != own:
        return next((name for name, init in first.items() if _namespace(init, proc) == theirs), ContainerId(""))
    session = _session(pid, proc)
    return next((name for name, init in first.items() if init and session == init), ContainerId(""))


def program_of(pid: int, proc: Path = Path("/proc")) -> str:
    """The name of a process's program, as `ps` shows it; empty where it cannot be seen."""
    try:
        return (proc / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _namespace(pid: int, proc: Path) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(proc / str(pid) / "ns" / "pid")
    return ""


def _session(pid: int, proc: Path) -> int:
    try:
        text = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[3])
    except (OSError, ValueError, IndexError):
        return 0
