"""The memory of machines and GPUs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar.core.errors import InvalidText
from bursar.core.memory.agents import describe, plan_agent, plan_gpu
from bursar.core.memory.pools import GIB, MIB, MemoryConflict
from bursar.core.memory.text import parse_pools


def test_a_machine_keeps_some_for_its_system_the_agent_and_caches() -> None:
    plan = plan_agent(64 * GIB)
    assert plan["system-reserve"] == 64 * GIB * 50 // 1000
    assert (plan["agent"], plan["cache"]) == (256 * MIB, 256 * MIB)
    assert plan["offerable"] == 64 * GIB - plan["system-reserve"] - 512 * MIB
    assert "offerable" in describe(plan)


def test_what_is_offered_may_be_said_if_the_rest_agrees() -> None:
    pools, _ = parse_pools({"system-reserve": "4GiB", "agent": "1GiB", "cache": "3GiB", "offerable": "56GiB"})
    assert plan_agent(64 * GIB, pools)["offerable"] == 56 * GIB
    with pytest.raises(MemoryConflict) as caught:
        plan_agent(60 * GIB, pools)
    for part in ("host 60GiB (the machine)", "system-reserve 4GiB", "agent 1GiB", "cache 3GiB", "offerable 56GiB"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("pools", "problem"),
    [
        ({"swap": "1GiB"}, "no pool 'swap'"),
        ({"system-reserve": "70GiB"}, "more than it has"),
        ({"agent": "100%"}, "not below 1"),
    ],
)
def test_a_machine_that_cannot_be_divided_says_why(pools: dict[str, object], problem: str) -> None:
    with pytest.raises(InvalidText, match=problem):
        plan_agent(64 * GIB, parse_pools(pools)[0])


def test_a_machine_too_small_for_its_own_needs_has_nothing_to_offer() -> None:
    with pytest.raises(MemoryConflict, match="offerable"):
        plan_agent(600 * MIB)


def test_a_gpu_keeps_a_context_for_each_process() -> None:
    one, four = plan_gpu(80 * GIB), plan_gpu(80 * GIB, 4)
    assert one["context-overhead"] == 512 * MIB
    assert four["context-overhead"] == 2 * GIB
    assert one["task"] - four["task"] == 1536 * MIB
    with pytest.raises(InvalidText):
        plan_gpu(80 * GIB, 0)
    with pytest.raises(MemoryConflict):
        plan_gpu(1 * GIB, 4)


@given(st.integers(-1, 1 << 54), st.integers(1, 64))
def test_whatever_the_size_the_pools_are_the_whole(size: int, processes: int) -> None:
    for plan_of in (lambda: plan_agent(size), lambda: plan_gpu(size, processes)):
        try:
            plan = plan_of()
        except InvalidText:
            continue
        assert sum(item.size_bytes for item in plan.components if not item.is_sum) == size
