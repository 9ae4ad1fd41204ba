from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bursar.agent.checkpoint import Checkpoint
from bursar.agent.containers.runtime import ContainerId
from bursar.agent.devices.health import HealthRecord, Remedy
from bursar.agent.state import (
    AgentState,
    ClusterJoined,
    DeviceHealthSaved,
    FinishedForgotten,
    GenerationSeen,
    Record,
    SandboxDropped,
    TaskFinished,
    TaskSaved,
)
from bursar.agent.tasks import FinishedTask, TaskKey, TaskRecord
from bursar.agent.work_dir import WorkDir
from bursar.core.devices import DeviceCondition
from bursar.core.errors import BursarError
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, Generation, TaskId
from bursar.core.messages.agent import KillTask
from bursar.core.resources import (
    PortRange,
    Reservation,
    ReservationType,
    ReservedResources,
    ResourceRequest,
    Resources,
)
from bursar.core.tasks import (
    AssignedTask,
    EnvironmentVariable,
    StatusReason,
    StatusSource,
    TaskSpec,
    TaskState,
    TaskStatus,
)

# --- every field of every record ------------------------------------------------------------------------------------

names = st.sampled_from(["a", "b", "c"])
keys = st.builds(TaskKey, names.map(FrameworkId), names.map(TaskId))
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
amounts = st.dictionaries(st.sampled_from(["cpus", "mem", "x"]), st.integers(1, 2**53), max_size=3)
ports = st.sampled_from([(), (PortRange(1, 5), PortRange(9, 9))])
uuids = st.sampled_from(["GPU-1", "GPU-2"]).map(DeviceUuid)
resources = st.builds(Resources, amounts, ports, st.frozensets(uuids))
reservations = st.builds(
    Reservation,
    st.sampled_from(ReservationType),
    words,
    words,
    st.lists(st.tuples(words, words), max_size=2).map(tuple),
)
parts = st.builds(ReservedResources, st.lists(reservations, max_size=2).map(tuple), resources)
requests = st.builds(ResourceRequest, amounts, ports, st.integers(0, 9), st.lists(uuids, max_size=2).map(tuple))
health = st.builds(
    HealthRecord,
    uuids,
    st.sampled_from(DeviceCondition),
    words,
    st.integers(0, 2**53),
    st.integers(0, 9),
    st.integers(0, 9),
    st.integers(0, 2**53),
    st.sampled_from(Remedy),
    words,
    words,
    st.integers(0, 2**53),
    words,
    st.integers(0, 2**53),
)
statuses = st.builds(
    TaskStatus,
    task_id=names.map(TaskId),
    framework_id=names.map(FrameworkId),
    agent_id=st.just(AgentId("a")),
    state=st.sampled_from(TaskState),
    reason=st.sampled_from(StatusReason),
    source=st.sampled_from(StatusSource),
    message=words,
    update_id=words,
    timestamp_ms=st.integers(0, 2**53),
    exit_code=st.none() | st.integers(0, 255),
    device_uuids=st.lists(uuids, max_size=2).map(tuple),
)


@st.composite
def tasks(draw: st.DrawFn) -> TaskRecord:
    key = draw(keys)
    spec = TaskSpec(
        key.task_id,
        draw(words),
        AgentId("a"),
        tuple(draw(st.lists(words, max_size=2))),
        draw(words),
        tuple(draw(st.lists(st.builds(EnvironmentVariable, words, words), max_size=2))),
        draw(requests),
        draw(st.none() | st.integers(0, 9)),
        draw(st.dictionaries(words, words, max_size=2)),
    )
    assigned = AssignedTask(key.framework_id, draw(words), spec, tuple(draw(st.lists(parts, max_size=2))), 5)
    kills = st.builds(
        KillTask, names.map(FrameworkId), names.map(TaskId), st.sampled_from(StatusReason), st.none() | st.just(0)
    )
    return TaskRecord(
        assigned,
        draw(st.sampled_from(TaskState)),
        draw(words),
        draw(st.integers(1, 99)),
        tuple(draw(st.lists(statuses, max_size=2))),
        draw(st.none() | kills),
    )


@st.composite
def batches(draw: st.DrawFn) -> list[list[Record]]:
    """Records as a machine makes them: only what exists is finished, dropped or forgotten."""
    state = AgentState()
    result: list[list[Record]] = []
    for _ in range(draw(st.integers(1, 5))):
        batch: list[Record] = []
        for _ in range(draw(st.integers(0, 6))):
            choices: list[st.SearchStrategy[Record]] = [
                st.builds(ClusterJoined, words),
                st.builds(GenerationSeen, st.builds(Generation, st.integers(0, 9), st.integers(0, 9))),
                tasks().filter(lambda task: task.key not in state.finished).map(TaskSaved),
            ]
            if state.tasks:
                chosen = st.sampled_from(list(state.tasks))
                choices.append(
                    st.builds(
                        lambda key, status, sandbox: TaskFinished(
                            FinishedTask(replace(status, framework_id=key[0], task_id=key[1]), 7, sandbox)
                        ),
                        chosen,
                        statuses,
                        st.booleans(),
                    )
                )
            choices.append(health.map(DeviceHealthSaved))
            if state.finished:
                chosen = st.sampled_from(list(state.finished))
                choices += [st.builds(SandboxDropped, chosen), st.builds(FinishedForgotten, chosen)]
            record = draw(st.one_of(choices))
            state.apply(record)
            batch.append(record)
        result.append(batch)
    return result


@settings(max_examples=60, deadline=None)
@given(batches())
def test_what_is_loaded_is_what_was_committed(
    tmp_path_factory: pytest.TempPathFactory, written: list[list[Record]]
) -> None:
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.db"
    checkpoint = Checkpoint(path)
    state = AgentState()
    for batch in written:
        checkpoint.write(batch)
        for record in batch:
            state.apply(record)
    assert checkpoint.load() == state
    checkpoint.close()
    again = Checkpoint(path)
    loaded = again.load()
    assert loaded == state
    assert list(loaded.finished) == list(state.finished), "oldest first"
    again.close()


# --- the file -------------------------------------------------------------------------------------------------------


def saved(name: str) -> TaskSaved:
    spec = TaskSpec(TaskId(name), command=("true",))
    return TaskSaved(TaskRecord(AssignedTask(FrameworkId("f"), "*", spec, ()), TaskState.STARTING, "boot"))


def test_identity_is_made_once_and_lives_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.db"
    lives = []
    for _ in range(3):
        checkpoint = Checkpoint(path)
        lives.append(checkpoint.begin_life())
        checkpoint.close()
    assert len({agent_id for agent_id, _ in lives}) == 1 and [number for _, number in lives] == [1, 2, 3]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_device_assignment_is_kept(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.db")
    assert checkpoint.device_assignment() == {}
    checkpoint.keep_device_assignment({"ml": (DeviceUuid("GPU-1"),)})
    checkpoint.close()
    checkpoint = Checkpoint(tmp_path / "checkpoint.db")
    assert checkpoint.device_assignment() == {"ml": ("GPU-1",)}
    checkpoint.close()


def test_a_batch_is_durable_when_commit_returns_even_if_the_process_dies_then(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.db"
    script = f"""
import asyncio, os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_checkpoint import Checkpoint, saved, Path
checkpoint = Checkpoint(Path({str(path)!r}))
async def main():
    await checkpoint.commit([saved("a"), saved("b")])
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    checkpoint = Checkpoint(path)
    assert [key.task_id for key in checkpoint.load().tasks] == ["a", "b"]
    checkpoint.close()


async def test_a_batch_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.db")
    await checkpoint.commit([saved("a")])
    with pytest.raises(AssertionError):
        await checkpoint.commit([saved("b"), "no record"])
    with pytest.raises(BursarError, match="UNIQUE"):
        # Twice finished: a bug of ours that the file refuses.
        finished = FinishedTask(TaskStatus(TaskId("c"), FrameworkId("f"), AgentId("a"), TaskState.FINISHED), 1)
        await checkpoint.commit([saved("d"), TaskFinished(finished), TaskFinished(finished)])
    assert [key.task_id for key in checkpoint.load().tasks] == ["a"]
    await checkpoint.commit([saved("e")])
    assert [key.task_id for key in checkpoint.load().tasks] == ["a", "e"]
    checkpoint.close()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"this is no database" * 500, "is damaged"),
        ("PRAGMA user_version=99", "is of version 99"),
        ("INSERT INTO task VALUES ('f', 't', '{broken')", "is damaged"),
        ("INSERT INTO fact VALUES ('generation', 'x.y')", "is damaged"),
    ],
)
def test_a_file_that_cannot_be_understood_is_refused_in_words(
    tmp_path: Path, content: bytes | str, problem: str
) -> None:
    path = tmp_path / "checkpoint.db"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Checkpoint(path).close()
        with sqlite3.connect(path) as db:
            db.execute(content)
    with pytest.raises(BursarError, match=problem):
        Checkpoint(path).load()


async def test_a_full_disk_is_said_in_words(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.db")
    # What the engine itself says when the disk is full.
    checkpoint._db.execute("PRAGMA max_page_count=8")
    big = saved("a").task
    big = replace(big, task=replace(big.task, spec=replace(big.task.spec, command=("x" * 200_000,))))
    with pytest.raises(BursarError, match="cannot be written: database or disk is full.*make room"):
        await checkpoint.commit([TaskSaved(big)])
    assert checkpoint.load().tasks == {}
    checkpoint.close()


async def test_commits_are_made_in_order_off_the_loop(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.db")
    await asyncio.gather(*(checkpoint.commit([GenerationSeen(Generation(1, n))]) for n in range(20)))
    assert checkpoint.load().generation == Generation(1, 19)
    checkpoint.close()


# --- the work directory ---------------------------------------------------------------------------------------------


def test_a_work_directory_has_one_agent(tmp_path: Path) -> None:
    first = WorkDir(tmp_path / "deep" / "agent")
    with pytest.raises(BursarError, match=rf"in use by another agent \(pid {os.getpid()}\)"):
        WorkDir(tmp_path / "deep" / "agent")
    first.close()
    WorkDir(tmp_path / "deep" / "agent").close()


def test_strays_are_swept(tmp_path: Path) -> None:
    work_dir = WorkDir(tmp_path)
    for name in ("a", "b", "c"):
        (work_dir.make_sandbox(ContainerId(name)) / "stdout").write_text("x")
    assert work_dir.sweep({ContainerId("b")}) == 2
    assert [path.name for path in (tmp_path / "sandboxes").iterdir()] == ["b"]
    work_dir.remove_sandbox(ContainerId("b"))
    work_dir.remove_sandbox(ContainerId("b"))
    work_dir.close()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "agent").write_text("")
    with pytest.raises(BursarError, match="cannot be used"):
        WorkDir(tmp_path / "agent")
