"""What a container's host configuration says of the pools of its memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bursar.agent.containers.limits import host_limits
from bursar.agent.containers.runtime import ContainerId, ContainerSpec
from bursar.core.ids import FrameworkId, TaskId
from bursar.core.memory.tasks import plan_task
from bursar.core.memory.text import parse_memory_text
from bursar.core.ulimits import parse_ulimits

MIB = 1 << 20


def spec(sandbox: Path, memory: str) -> ContainerSpec:
    plan = plan_task(parse_memory_text(memory)) if memory else None
    return ContainerSpec(
        ContainerId("c"), FrameworkId("f"), TaskId("t"), ("true",), "image", {}, sandbox, 1000, 0, memory=plan
    )


def test_each_pool_that_the_kernel_can_hold_is_given_to_it(tmp_path: Path) -> None:
    limits = host_limits(spec(tmp_path, "app=100MiB,shm=70MiB,tmpfs=20MiB,managed=16MiB"))
    assert limits["shm_size"] == 70 * MIB
    assert limits["tmpfs"] == {"/tmp": f"size={20 * MIB},mode=1777"}
    (memlock,) = limits["ulimits"]
    assert (memlock["Name"], memlock["Soft"], memlock["Hard"]) == ("memlock", 16 * MIB, 16 * MIB)


def test_an_engine_that_may_not_raise_the_limit_of_locked_memory_is_not_asked_to(tmp_path: Path) -> None:
    assert "ulimits" not in host_limits(spec(tmp_path, "app=100MiB,managed=16MiB"), lock=False)


def test_without_a_plan_nothing_is_set_and_no_shm_is_not_the_engines_default(tmp_path: Path) -> None:
    assert not {"shm_size", "tmpfs", "ulimits"} & host_limits(spec(tmp_path, "")).keys()
    assert host_limits(spec(tmp_path, "app=100MiB,shm=0"))["shm_size"] == 4096


def test_what_a_task_says_of_a_limit_wins_over_what_its_pools_come_to(tmp_path: Path) -> None:
    planned = spec(tmp_path, "app=100MiB,managed=16MiB")

    def limits(*texts: str) -> dict[str, tuple[int, int]]:
        host = host_limits(replace(planned, ulimits=parse_ulimits(texts)))
        return {one["Name"]: (one["Soft"], one["Hard"]) for one in host["ulimits"]}

    assert limits("nofile=10", "memlock=-1") == {"nofile": (10, 10), "memlock": (-1, -1)}
    assert limits("nofile=10:20") == {"memlock": (16 * MIB, 16 * MIB), "nofile": (10, 20)}
