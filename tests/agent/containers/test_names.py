"""Container ids: unique, the same each time, and good for every engine."""

from __future__ import annotations

import re

import pytest

from bursar.agent.containers.names import container_id_for
from bursar.core.ids import AgentId, FrameworkId, TaskId

ODD = ["x", "x" * 255, "ü" * 120, "a b", "..x", "-x", "a:b@c", "\u202e", "A" * 31 + "-"]


@pytest.mark.parametrize("task", ODD)
def test_name_is_safe_short_and_stable(task: str) -> None:
    made = container_id_for(AgentId("5d1c8a1e-77"), FrameworkId(task), TaskId(task))
    assert re.fullmatch(r"bursar[A-Za-z0-9_.-]{17,93}", made)
    assert made == container_id_for(AgentId("5d1c8a1e-77"), FrameworkId(task), TaskId(task))


def test_no_two_tasks_share_one() -> None:
    parts = ["a", "b", "a-b", "a_b", "a b", "ab", "ü", "é"]
    made = {container_id_for(AgentId(x), FrameworkId(y), TaskId(z)) for x in parts for y in parts for z in parts}
    assert len(made) == len(parts) ** 3
