"""What a task's program reads of its devices is what the agent wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from bursar.agent.devices.simulated import SimulatedDevices
from bursar.agent.pinning import devices_file_content
from bursar.core.errors import BursarError
from bursar.core.ids import AgentId
from bursar.sdk import granted_devices


def test_the_devices_of_a_task_are_described(tmp_path: Path) -> None:
    granted = SimulatedDevices(AgentId("a"), 8, "H100").discover()[1:3]
    path = tmp_path / "devices.json"
    path.write_text(devices_file_content(granted))
    environ = {"BURSAR_DEVICES_FILE": str(path)}
    found = granted_devices(environ=environ)
    assert [(one.uuid, one.model, one.mem_bytes, one.numa_node) for one in found] == [
        (one.uuid, one.model, one.mem_bytes, one.numa_node) for one in granted
    ]
    assert [link.peer_uuid for link in found[0].links] == [granted[1].uuid], "of the others it learns nothing"
    assert granted_devices("gpus", environ) == found and granted_devices("fpgas", environ) == ()
    assert found[0].attributes["visible_as"] == granted[0].uuid


def test_outside_a_task_there_are_none_and_a_broken_file_is_said(tmp_path: Path) -> None:
    assert granted_devices(environ={}) == ()
    for text in ("", "{}x", "[1]", '[{"uuid": 1}]'):
        (tmp_path / "devices.json").write_text(text)
        with pytest.raises(BursarError, match="cannot be read"):
            granted_devices(environ={"BURSAR_DEVICES_FILE": str(tmp_path / "devices.json")})
