"""The memory of a task as authors of frameworks write it."""

from __future__ import annotations

import pytest

from bursar.core.errors import InvalidText
from bursar.sdk import Task

GIB = 1 << 30


def test_a_task_asks_for_what_its_pools_come_to() -> None:
    task = Task("x", memory="profile=jvm,total=8GiB,overhead=1GiB")
    assert task.request.scalars["mem"] == 9 * GIB + (256 << 20)
    assert task.prepare("t").memory.profile == "jvm"
    assert Task("x").request.scalars["mem"] == 128 << 20


def test_pools_divide_the_mem_that_is_asked_for() -> None:
    task = Task("x", mem="8GiB", memory={"shm": "1GiB"})
    assert task.request.scalars["mem"] == 8 * GIB
    assert task.prepare("t").memory.pools[0].size_bytes == GIB


def test_a_conflict_is_told_before_anything_is_sent() -> None:
    with pytest.raises(InvalidText, match=r"total 8GiB \(total in the memory settings\)"):
        Task("x", mem="8GiB", memory="total=8GiB")
    with pytest.raises(InvalidText, match="128MiB|not enough"):
        Task("x", memory="shm=1GiB")
