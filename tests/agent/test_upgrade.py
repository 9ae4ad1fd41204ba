"""An agent on the checkpoint of the version before (N-1 → N): nothing is lost, and its tasks go on."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from bursar.agent.books import AgentConfig
from bursar.agent.checkpoint import SCHEMA_VERSION, Checkpoint
from bursar.agent.containers.runtime import RecoveredContainer
from bursar.agent.devices.health import DeviceSignal, Severity
from bursar.agent.effects import KillContainer, RemoveContainer, SendToMaster, StartContainer
from bursar.agent.events import ContainersRecovered, DevicesSignalled, MasterConnected
from bursar.agent.machine import AgentMachine
from bursar.agent.tasks import TaskKey, container_of
from bursar.core.clock import Instant
from bursar.core.devices import Device, DeviceCondition
from bursar.core.ids import AgentId, ConnectionId, DeviceUuid, FrameworkId, Generation, TaskId
from bursar.core.machine import Persist
from bursar.core.messages.agent import AgentInfo, Register, TaskReports
from bursar.core.tasks import StatusReason, TaskState

DATA = Path(__file__).parent / "data"
GPU = DeviceUuid("GPU-a")


def key(name: str) -> TaskKey:
    return TaskKey(FrameworkId("f-1"), TaskId(name))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file as the version before wrote it."""
    path = tmp_path / "checkpoint.db"
    with sqlite3.connect(path) as db:
        db.executescript((DATA / "checkpoint-1.sql").read_text(encoding="utf-8"))
    db.close()
    return path


def test_everything_of_an_old_checkpoint_is_there(old: Path) -> None:
    checkpoint = Checkpoint(old)
    state = checkpoint.load()
    assert (state.cluster_id, state.generation) == ("cluster-1", Generation(4, 17))
    assert checkpoint.device_assignment() == {"ml": (GPU,)}
    assert {task.task_id: record.state for task, record in state.tasks.items()} == {
        "running": TaskState.RUNNING,
        "ending": TaskState.KILLING,
    }
    running = state.tasks[key("running")]
    assert running.task.device_uuids == (GPU,) and running.next_update == 3 and len(running.unacknowledged) == 1
    kill = state.tasks[key("ending")].kill
    assert kill is not None and (kill.reason, kill.grace_ms) == (StatusReason.KILLED_BY_OPERATOR, 100)
    assert state.finished[key("done")].sandbox and state.finished[key("done")].status.exit_code == 0
    assert state.health == {}
    assert checkpoint.begin_life() == (AgentId("3f0c5e0e-6a0e-4a53-9f0a-5a2f7c1f0001"), 4)


def test_an_agent_goes_on_where_the_old_one_stopped(old: Path) -> None:
    checkpoint = Checkpoint(old)
    agent_id, _ = checkpoint.begin_life()
    info = AgentInfo(agent_id, boot_id="boot-1", devices=(Device(GPU, "gpus"),), runtime="docker")
    machine = AgentMachine(AgentConfig(info), checkpoint.load())
    running, ending = (container_of(agent_id, key(name)) for name in ("running", "ending"))
    found = (RecoveredContainer(running, None), RecoveredContainer(ending, None))
    effects = machine.step(ContainersRecovered(found), Instant(0, 1_700_000_001_000))
    assert [effect.container_id for effect in effects if isinstance(effect, KillContainer)] == [ending]
    assert not [effect for effect in effects if isinstance(effect, StartContainer | RemoveContainer)]
    said = [
        effect.message
        for effect in machine.step(MasterConnected(ConnectionId(1)), Instant(1, 1_700_000_001_001))
        if isinstance(effect, SendToMaster)
    ]
    register, reports = said
    assert isinstance(register, Register) and register.cluster_id == "cluster-1"
    assert isinstance(reports, TaskReports) and len(reports.tasks) == 2
    machine.check()


def test_what_is_new_is_kept_in_it(old: Path) -> None:
    checkpoint = Checkpoint(old)
    info = AgentInfo(checkpoint.begin_life()[0], boot_id="boot-1", devices=(Device(GPU, "gpus"),))
    machine = AgentMachine(AgentConfig(info), checkpoint.load())
    fault = DevicesSignalled((DeviceSignal(GPU, Severity.FATAL, "XID 79"),))
    effects = machine.step(fault, Instant(0, 1_700_000_001_000))
    checkpoint.write([effect.record for effect in effects if isinstance(effect, Persist)])
    checkpoint.close()
    again = Checkpoint(old)
    assert again.load() == machine.state
    assert again.load().health[GPU].condition is DeviceCondition.CORDONED
    assert again._db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


def test_a_step_that_fails_leaves_the_old_file(old: Path) -> None:
    with sqlite3.connect(old) as db:
        # Somebody's own table stands where ours is to be.
        db.execute("CREATE TABLE device_health (x)")
    with pytest.raises(Exception, match="device_health"):
        Checkpoint(old)
    with sqlite3.connect(old) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
