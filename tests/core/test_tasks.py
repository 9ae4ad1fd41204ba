"""What a task may be, and where it may go."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.ids import DeviceUuid, TaskId
from bursar.core.memory.pools import GIB, PoolSetting
from bursar.core.memory.tasks import MemorySettings
from bursar.core.resources import PortRange, ResourceRequest
from bursar.core.tasks import (
    TERMINAL_STATES,
    TRANSITIONS,
    EnvironmentVariable,
    TaskSpec,
    TaskState,
    may_follow,
    spec_problem,
)

ONE = ResourceRequest({"cpus": 1})


def make(**fields: Any) -> TaskSpec:
    return TaskSpec(**({"task_id": TaskId("t"), "command": ("true",), "resources": ONE} | fields))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"command": (), "image": "busybox"},
        {"command": ("sh", "-c", ""), "environment": (EnvironmentVariable("A", "=;\n"),)},
        {"resources": ResourceRequest(gpus=1)},
        {"resources": ResourceRequest(ports=(PortRange(1, 1),))},
        {"resources": ResourceRequest(gpus=2, devices=(DeviceUuid("a"), DeviceUuid("b")))},
        {"resources": ResourceRequest(devices=(DeviceUuid("a"),))},
        {"kill_grace_ms": 0},
    ],
)
def test_tasks_that_can_be(fields: dict[str, Any]) -> None:
    assert spec_problem(make(**fields)) is None


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"task_id": TaskId("")}, "task_id"),
        ({"task_id": TaskId("a/b")}, "task_id"),
        ({"command": ()}, "command"),
        ({"command": ("",)}, "command[0]"),
        ({"command": ("a\x00",)}, "command"),
        ({"image": "a b"}, "image"),
        ({"image": "a\x00"}, "image"),
        ({"environment": (EnvironmentVariable("", "x"),)}, "environment"),
        ({"environment": (EnvironmentVariable("A=B", "x"),)}, "environment"),
        ({"environment": (EnvironmentVariable("A", "\x00"),)}, "environment"),
        ({"resources": ResourceRequest()}, "resources"),
        ({"resources": ResourceRequest({"cpus": 0})}, "resources"),
        ({"resources": ResourceRequest({"cpus": -1})}, "resources.cpus"),
        ({"resources": ResourceRequest({"gpus": 1500})}, "resources"),
        ({"resources": ResourceRequest({"cpus": 1}, gpus=-1)}, "resources.gpus"),
        ({"resources": ResourceRequest(gpus=2, devices=(DeviceUuid("a"),))}, "resources.gpus"),
        ({"resources": ResourceRequest(devices=(DeviceUuid("a"), DeviceUuid("a")))}, "resources.device_uuids"),
        ({"kill_grace_ms": -1}, "kill_grace_ms"),
        ({"memory": MemorySettings(pools=(PoolSetting("shm", GIB),))}, "memory"),
        ({"memory": MemorySettings("jwm")}, "memory"),
        ({"memory": MemorySettings(total_bytes=4 * GIB), "resources": ResourceRequest({"mem": 8 * GIB})}, "memory"),
        ({"memory": MemorySettings(total_bytes=4 * GIB)}, "memory"),
        (
            {
                "memory": MemorySettings("jvm"),
                "resources": ResourceRequest({"mem": 8 * GIB}),
                "environment": (EnvironmentVariable("JAVA_TOOL_OPTIONS", "-Xmx1g"),),
            },
            "memory",
        ),
    ],
)
def test_tasks_that_cannot_be(fields: dict[str, Any], where: str) -> None:
    problem = spec_problem(make(**fields))
    assert problem is not None and problem[0] == where and problem[1]


def test_nothing_follows_an_end_and_every_other_state_has_one() -> None:
    lives = set(TRANSITIONS)
    assert not lives & TERMINAL_STATES
    assert lives | TERMINAL_STATES | {TaskState.UNSPECIFIED, TaskState.UNKNOWN} == set(TaskState)
    for state, following in TRANSITIONS.items():
        assert state not in following and following <= lives | TERMINAL_STATES
        assert following & TERMINAL_STATES, f"{state} never ends"
    for state in TERMINAL_STATES:
        assert state.is_terminal and not any(may_follow(state, other) for other in TaskState)


def test_an_unreachable_task_may_be_anywhere_when_it_is_back() -> None:
    assert TRANSITIONS[TaskState.UNREACHABLE] >= set(TRANSITIONS) - {TaskState.UNREACHABLE}
    assert all(
        TaskState.UNREACHABLE in TRANSITIONS[state] for state in TRANSITIONS if state is not TaskState.UNREACHABLE
    )


@pytest.mark.parametrize(
    ("state", "following"), [("RUNNING", "STARTING"), ("KILLING", "RUNNING"), ("RUNNING", "STAGING")]
)
def test_no_state_goes_backwards(state: str, following: str) -> None:
    assert not may_follow(TaskState[state], TaskState[following])
