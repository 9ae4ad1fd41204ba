"""Which pool is named when the kernel ended a task at its limit."""

from __future__ import annotations

import pytest

from bursar.core.memory.overrun import MemoryUsage, explain_limit, find_overrun
from bursar.core.memory.pools import GIB, MIB
from bursar.core.memory.tasks import plan_task
from bursar.core.memory.text import parse_memory_text

PLAN = plan_task(parse_memory_text("total=8GiB,shm=1GiB,managed=1GiB,tmpfs=1GiB,overhead=1GiB"))


@pytest.mark.parametrize(
    ("usage", "pool", "used"),
    [
        (MemoryUsage(anon_bytes=GIB, shm_bytes=3 * GIB), "shm", 3 * GIB),
        (MemoryUsage(anon_bytes=GIB, tmpfs_bytes=2 * GIB), "tmpfs", 2 * GIB),
        (MemoryUsage(anon_bytes=4 * GIB, locked_bytes=3 * GIB), "managed", 3 * GIB),
        (MemoryUsage(anon_bytes=9 * GIB), "app", 7 * GIB),
        (MemoryUsage(anon_bytes=5 * GIB, kernel_bytes=3 * GIB), "app", 6 * GIB),
        # Two are over: the farther one is named.
        (MemoryUsage(anon_bytes=8 * GIB, shm_bytes=1 * GIB + MIB), "app", 6 * GIB),
    ],
)
def test_the_pool_that_is_farthest_over_is_named(usage: MemoryUsage, pool: str, used: int) -> None:
    overrun = find_overrun(PLAN, usage)
    assert overrun is not None
    assert (overrun.pool, overrun.planned_bytes, overrun.used_bytes) == (pool, PLAN[pool], used)
    assert f"{pool} held" in str(overrun)
    assert overrun.option == f"{pool}: {PLAN[pool] * 3 // 2 // MIB / 1024:g}GiB"


def test_where_all_kept_to_the_plan_the_overhead_was_too_small() -> None:
    usage = MemoryUsage(anon_bytes=6 * GIB, shm_bytes=GIB, tmpfs_bytes=GIB)
    assert find_overrun(PLAN, usage) is None
    assert "raise overhead" in explain_limit(PLAN, usage)
    assert "raise" not in explain_limit(PLAN, MemoryUsage(shm_bytes=9 * GIB))
