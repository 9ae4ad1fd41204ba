"""Who has the files of a device open."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bursar.agent.devices.driver import DriverUnavailable, UserTeller, user_tellers
from bursar.agent.devices.exclusive import ExclusiveDevices
from bursar.agent.devices.external import DockerKeys, ExternalResource
from bursar.agent.devices.node_users import users_of_nodes
from bursar.agent.devices.plugin import PluginDevices
from bursar.agent.devices.script import PATH_KEY, ScriptDevices
from bursar.agent.devices.several import SeveralDevices
from bursar.agent.devices.tpu import TpuDevices
from bursar.core.ids import AgentId, DeviceUuid

from .conftest import tpu_tree

A, B = DeviceUuid("a"), DeviceUuid("b")
PLUGIN = """
class Plugin:
    def __init__(self, params): self.held = open({path!r}) if {holds} else None
    def discover(self): return [{{"kind": "fpgas", "id": "0", "nodes": {nodes}}}]
driver = Plugin
"""


@contextmanager
def holding(*paths: object) -> Iterator[int]:
    """A process that has these files open."""
    program = "import sys; held = [open(path, 'rb', 0) for path in sys.argv[1:]]; print(flush=True); sys.stdin.read()"
    arguments = [sys.executable, "-c", program, *map(str, paths)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def test_a_device_is_known_by_its_numbers_and_not_by_its_name(tmp_path: Path) -> None:
    other_name = tmp_path / "tty-by-another-name"
    other_name.symlink_to("/dev/ptmx")
    with holding("/dev/ptmx") as pid, holding(tmp_path / "tty-by-another-name") as second:
        users = users_of_nodes({A: (str(other_name), "/no/such"), B: ("/no/such",)})
        assert B not in users, "of what is not there nobody can say"
        assert {pid, second} <= {one.pid for one in users[A]}
        beside = users_of_nodes({A: ("/dev/ptmx",)}, beside=(second,))[A]
        assert pid in {one.pid for one in beside} and second not in {one.pid for one in beside}


def test_files_of_each_device_are_its_own_and_ours_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "0").touch()
    (tmp_path / "1").touch()
    with holding(tmp_path / "0") as pid, open(tmp_path / "1", encoding="utf-8") as ours:
        users = users_of_nodes({A: (str(tmp_path / "0"),), B: (ours.name,)})
        assert {uuid: [one.pid for one in who] for uuid, who in users.items()} == {A: [pid], B: []}
        assert users[A][0].mem_bytes is None
    assert users_of_nodes({A: (str(tmp_path / "0"),)}) == {A: ()}
    assert users_of_nodes({}) == {}


def test_what_lies_elsewhere_is_never_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be on a network disk that does not answer, and whoever asks it for a file waits for ever."""
    device, disk = tmp_path / "device", tmp_path / "disk"
    for path in (device, disk):
        path.touch()
    asked: list[str] = []
    stat = os.stat

    def noted(path: Any, *rest: Any, **more: Any) -> os.stat_result:
        asked.append(os.path.realpath(path))
        assert asked[-1] != str(disk), "it would hang"
        return stat(path, *rest, **more)

    monkeypatch.setattr(os, "stat", noted)
    with holding(device, disk, "/dev/ptmx") as pid:
        users = users_of_nodes({A: (str(device),), B: ("/dev/ptmx",)})
        assert pid in {one.pid for one in users[A]} and pid in {one.pid for one in users[B]}
    elsewhere = [path for path in asked if not path.startswith(("/dev/", "/proc/")) and path != str(device)]
    assert not elsewhere, "nor anything else that some process has open"


def test_chips_whose_files_are_open_are_used(tmp_path: Path) -> None:
    driver = TpuDevices(tpu_tree(tmp_path))
    chips = [chip.uuid for chip in driver.discover()]
    with holding(tmp_path / "dev/vfio/2", tmp_path / "dev/vfio/vfio") as pid:
        users = driver.users([*chips, A])
        assert [[one.pid for one in users[chip]] for chip in chips] == [[], [], [pid], []] and A not in users


def test_a_plugin_names_the_files_that_are_its_devices_own_and_may_open_them_itself(tmp_path: Path) -> None:
    node, plugin = tmp_path / "fpga0", tmp_path / "fpga.py"
    node.touch()
    plugin.write_text(PLUGIN.format(path=str(node), holds=True, nodes=[str(node)]))
    driver = PluginDevices(str(plugin))
    try:
        whole = ExclusiveDevices(SeveralDevices([driver]), AgentId("a"), [tmp_path])
        (device,) = whole.discover()
        (teller,) = user_tellers(whole)
        assert teller.users([device.uuid]) == {device.uuid: ()}
        with holding(node) as pid:
            assert [one.pid for one in teller.users([device.uuid])[device.uuid]] == [pid]
        whole.close()
    finally:
        driver.close()


@pytest.mark.parametrize("nodes", ["'/dev/x'", "[1]"])
def test_a_plugin_whose_nodes_are_nonsense_is_told_so(tmp_path: Path, nodes: str) -> None:
    plugin = tmp_path / "fpga.py"
    plugin.write_text(PLUGIN.format(path="", holds=False, nodes=nodes))
    driver = PluginDevices(str(plugin))
    with pytest.raises(DriverUnavailable, match="its nodes are no list of paths"):
        driver.discover()
    driver.close()


def test_of_a_plugins_devices_without_nodes_nobody_can_say(tmp_path: Path) -> None:
    plugin = tmp_path / "fpga.py"
    plugin.write_text(PLUGIN.format(path="", holds=False, nodes="[]"))
    driver = PluginDevices(str(plugin))
    (device,) = driver.discover()
    assert driver.users([device.uuid]) == {}
    driver.close()


def test_nodes_of_a_script_are_its_devices_own_where_they_are_named_by_their_index(tmp_path: Path) -> None:
    script = tmp_path / "find"
    script.write_text("#!/bin/sh\necho 0,1\n")
    script.chmod(0o755)
    for name in ("card0", "card1", "all"):
        (tmp_path / name).touch()
    keys = DockerKeys((f"{tmp_path}/card{{index}}", f"{tmp_path}/all"))
    driver = ScriptDevices(ExternalResource("card", "cards", 2, "script", {PATH_KEY: str(script)}, keys), tmp_path)
    assert isinstance(driver, UserTeller)
    first, second = (device.uuid for device in driver.discover())
    with holding(tmp_path / "card1", tmp_path / "all") as pid:
        users = driver.users([first, second])
        assert {uuid: [one.pid for one in who] for uuid, who in users.items()} == {first: [], second: [pid]}
