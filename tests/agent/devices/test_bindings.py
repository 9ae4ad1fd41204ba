"""A device whose task outlived its agent is not handed out by the next agent of the machine (F108-08)."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bursar.agent.containers.runtime import ContainerId
from bursar.agent.devices import bindings
from bursar.agent.devices.bindings import DeviceBindings, started_at
from bursar.agent.devices.exclusive import ExclusiveDevices
from bursar.agent.devices.simulated import SimulatedDevices
from bursar.core.devices import Device
from bursar.core.ids import AgentId, DeviceUuid

REAL = SimulatedDevices(AgentId("machine"), 3)
DEVICES = REAL.discover()
ONE = ContainerId("bursar-first-f-t1")


@pytest.fixture
def task() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def agent(name: str, directory: Path) -> ExclusiveDevices:
    return ExclusiveDevices(REAL, AgentId(name), [directory])


def indexes(driver: ExclusiveDevices) -> list[int]:
    return [device.index for device in driver.discover()]


def test_a_task_that_runs_on_keeps_its_devices_from_other_agents_but_not_from_its_own(
    tmp_path: Path, task: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    first = agent("first", tmp_path)
    first.discover()
    notes = DeviceBindings(AgentId("first"), [tmp_path])
    notes.bind(ONE, DEVICES[:2])
    notes.bind_running(ONE, DEVICES[:2], task.pid)
    first.close()
    second = agent("second", tmp_path)
    with caplog.at_level(logging.WARNING):
        assert indexes(second) == [2]
    told = caplog.records[0].getMessage()
    assert "belongs to a task of agent first that runs on, container bursar-first-f-t1" in told
    again = agent("first", tmp_path)
    assert indexes(again) == [0, 1], "its own agent adopts it"
    again.close()
    task.kill()
    task.wait()
    assert indexes(second) == [0, 1, 2]
    second.close()
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_an_agent_that_died_while_it_started_a_task_may_have_started_it(tmp_path: Path) -> None:
    DeviceBindings(AgentId("first"), [tmp_path]).bind(ONE, DEVICES[:1])
    second = agent("second", tmp_path)
    assert indexes(second) == [1, 2]
    DeviceBindings(AgentId("first"), [tmp_path]).keep_only(set())
    assert indexes(second) == [0, 1, 2], "its own next life knows better"
    second.close()


def test_what_ended_or_never_began_is_forgotten(tmp_path: Path, task: subprocess.Popen[bytes]) -> None:
    notes = DeviceBindings(AgentId("first"), [tmp_path])
    notes.bind(ONE, DEVICES)
    notes.bind_running(ONE, DEVICES, 0)
    assert list(tmp_path.iterdir()) == []
    notes.bind_running(ONE, DEVICES, task.pid)
    assert len(list(tmp_path.iterdir())) == 3
    notes.keep_only({ONE})
    assert len(list(tmp_path.iterdir())) == 3
    notes.unbind(ONE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "free"),
    [
        ({"boot_id": "an earlier one"}, True),
        ({"started": 1}, True),
        ({"pid": 2**22 + 1}, True),
        ({"pid_namespace": "pid:[1]"}, False),
        ({}, False),
    ],
)
def test_only_what_surely_ended_is_stale(
    tmp_path: Path, task: subprocess.Popen[bytes], change: dict[str, object], free: bool
) -> None:
    notes = DeviceBindings(AgentId("first"), [tmp_path])
    notes.bind_running(ONE, DEVICES[:1], task.pid)
    (path,) = tmp_path.iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert (DeviceBindings(AgentId("second"), [tmp_path]).user_of(DEVICES[0].uuid) is None) is free
    assert path.exists() is not free


def test_garbage_and_links_are_ignored(tmp_path: Path) -> None:
    card = DEVICES[0].uuid
    for number, text in enumerate(("", "[]", "{}", '{"agent_id": 1}', "x" * 10_000)):
        (tmp_path / f"bursar-device-{card}-task-{number}.json").write_text(text)
    (tmp_path / f"bursar-device-{card}-task-link.json").symlink_to("/etc/passwd")
    assert DeviceBindings(AgentId("second"), [tmp_path]).user_of(card) is None


def test_shares_of_one_card_are_claimed_with_it(tmp_path: Path, task: subprocess.Popen[bytes]) -> None:
    card = DEVICES[0].uuid
    share = Device(DeviceUuid(f"gpu-quarters@250/{card}/1"), "gpu-quarters", parent_uuid=card)
    DeviceBindings(AgentId("first"), [tmp_path]).bind_running(ONE, [share], task.pid)
    other = DeviceBindings(AgentId("second"), [tmp_path])
    assert other.user_of(card) == other.user_of(share.uuid) is not None


def test_start_times_tell_processes_apart(task: subprocess.Popen[bytes]) -> None:
    assert started_at(task.pid) >= started_at(os.getpid()) > 0
    assert started_at(2**22 + 1) == 0
    assert bindings._pid_namespace().startswith("pid:[")
