"""Which pool a task overran, by how much, and which option to raise (F49-12)."""

from __future__ import annotations

from dataclasses import dataclass

from bursar.core.memory.pools import MemoryPlan, format_bytes
from bursar.core.memory.profiles import APP, CONTAINER, MANAGED, METASPACE, OVERHEAD, SHM, TMPFS, option_for


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """What the kernel counted of a container; 0 where it does not say."""

    #: Of processes themselves: heaps, stacks, libraries' own (`anon` of memory.stat).
    anon_bytes: int = 0
    #: In /dev/shm.
    shm_bytes: int = 0
    #: In other memory file systems of the task.
    tmpfs_bytes: int = 0
    #: Pinned (`unevictable` of memory.stat).
    locked_bytes: int = 0
    #: Of the kernel on its behalf: page tables, sockets, stacks.
    kernel_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Overrun:
    """A pool that holds more than was planned."""

    pool: str
    planned_bytes: int
    used_bytes: int
    #: What to write instead, such as `app: 6GiB`.
    option: str

    def __str__(self) -> str:
        return (
            f"{self.pool} held {format_bytes(self.used_bytes)} of the {format_bytes(self.planned_bytes)} planned for it;"
            f" give it more, such as {self.option}"
        )


def find_overrun(plan: MemoryPlan, usage: MemoryUsage) -> Overrun | None:
    """The pool that is farthest over its plan, or None where all are within it.

    The kernel does not tell a program's own memory from that of libraries: what is neither shm, tmpfs nor pinned is compared with
    app, overhead and metaspace together, and app is named.
    """
    own = max(0, usage.anon_bytes - usage.locked_bytes) + usage.kernel_bytes
    beside = sum(plan[name] for name in (OVERHEAD, METASPACE) if name in plan)
    # Unpinned managed memory looks like any other.
    own_planned = plan[APP] + beside + max(0, plan[MANAGED] - usage.locked_bytes)
    compared = (
        (SHM, plan[SHM], usage.shm_bytes),
        (TMPFS, plan[TMPFS], usage.tmpfs_bytes),
        (MANAGED, plan[MANAGED], usage.locked_bytes),
        (APP, plan[APP], plan[APP] + own - own_planned),
    )
    over, pool, planned, used = max((used - planned, pool, planned, used) for pool, planned, used in compared)
    if over <= 0:
        return None
    return Overrun(pool, planned, used, option_for(pool, plan))


def explain_limit(plan: MemoryPlan, usage: MemoryUsage) -> str:
    """Why the kernel ended a task at the limit of its container, and what to raise."""
    overrun = find_overrun(plan, usage)
    if overrun is not None:
        return str(overrun)
    return (
        f"no pool held more than planned when it was looked at; the container's {format_bytes(plan[CONTAINER])} were still not enough:"
        f" raise {OVERHEAD}, such as {option_for(OVERHEAD, plan)}"
    )
