"""To which container a process belongs, as far as the kernel tells. Reads `/proc`: called from worker threads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from bursar.agent.containers.runtime import ContainerId

#: A chain of parents is followed so far.
_MOST_ANCESTORS = 256


def container_of_process(pid: int, first: Mapping[ContainerId, int], proc: Path = Path("/proc")) -> ContainerId:
    """The one in whose PID namespace it lives, or in whose session, or whose first process is an ancestor of it; empty: none of these.

    `first`: of each container its first process, as this machine numbers it.
    """
    own, theirs = _namespace(os.getpid(), proc), _namespace(pid, proc)
    if theirs and theirs != own:
        for name, init in first.items():
            if _namespace(init, proc) == theirs:
                return name
    owners = {init: name for name, init in first.items() if init}
    parent, session = _parent_and_session(pid, proc)
    for _ in range(_MOST_ANCESTORS):
        if owner := owners.get(session) or owners.get(parent):
            return owner
        if parent <= 1:
            break
        parent, session = _parent_and_session(parent, proc)
    return ContainerId("")


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


def _parent_and_session(pid: int, proc: Path) -> tuple[int, int]:
    """0 and 0 where it is no more."""
    try:
        text = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        fields = text.rpartition(")")[2].split()
        return int(fields[1]), int(fields[3])
    except (OSError, ValueError, IndexError):
        return 0, 0
