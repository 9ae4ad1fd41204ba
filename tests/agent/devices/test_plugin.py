"""Drivers of strangers: an FPGA's in twenty lines, and ones that crash, hang and lie."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bursar.agent.containers.runtime import LaunchFailed
from bursar.agent.devices.driver import DriverUnavailable
from bursar.agent.devices.exclusive import ExclusiveDevices
from bursar.agent.devices.plugin import PluginDevices
from bursar.agent.devices.select import driver_for
from bursar.agent.devices.several import SeveralDevices
from bursar.agent.devices.simulated import SimulatedDevices
from bursar.core.devices import DeviceHealth
from bursar.core.errors import InvalidText
from bursar.core.ids import AgentId

FPGA = """
import os, sys, time

class Fpgas:
    def __init__(self, params):
        self.root = params.get("root", "")
    def discover(self):
        print("looking")
        {discover}
        return [{"kind": "fpgas", "id": f"slot-{n}", "model": "Toy 9P", "mem_bytes": 2**30, "numa_node": 0} for n in range(2)]
    def decorate(self, granted, runtime):
        {decorate}
        ids = [device["id"] for device in granted]
        return {"environment": {"FPGA_VISIBLE_DEVICES": ",".join(ids)}, "device_nodes": [f"/dev/{i}" for i in ids]}

def driver(params):
    return Fpgas(params)
"""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., PluginDevices]:
    """`make(discover=…, decorate=…)`: a plugin with these statements in it."""

    def build(discover: str = "pass", decorate: str = "pass", **options: object) -> PluginDevices:
        path = tmp_path / "fpga.py"
        path.write_text(FPGA.replace("{discover}", discover).replace("{decorate}", decorate))
        plugin = PluginDevices(str(path), **options)  # type: ignore[arg-type]
        request.addfinalizer(plugin.close)
        return plugin

    return build


def test_a_plugin_finds_devices_and_decorates(make: Callable[..., PluginDevices]) -> None:
    plugin = make()
    devices = plugin.discover()
    assert devices == plugin.discover()
    assert [(one.kind, one.model, one.mem_bytes, one.numa_node) for one in devices] == [
        ("fpgas", "Toy 9P", 2**30, 0)
    ] * 2
    assert all(one.uuid.startswith("fpgas/") for one in devices)
    given = plugin.decorate(devices[1:], "docker")
    assert (given.pinning, given.device_nodes) == ({"FPGA_VISIBLE_DEVICES": "slot-1"}, ("/dev/slot-1",))
    assert plugin.decorate((), "docker").pinning == {"FPGA_VISIBLE_DEVICES": ""}


def test_a_plugin_may_name_devices_of_cdi(make: Callable[..., PluginDevices]) -> None:
    plugin = make(decorate="return {'cdi': [f'toy.com/fpga={one[\"id\"]}' for one in granted]}")
    devices = plugin.discover()
    assert plugin.decorate(devices, "docker").cdi == ("toy.com/fpga=slot-0", "toy.com/fpga=slot-1")


def test_an_entry_point_of_a_package_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site"
    (package / "toy_fpga-1.dist-info").mkdir(parents=True)
    (package / "toy_fpga-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-fpga\nVersion: 1\n")
    (package / "toy_fpga-1.dist-info" / "entry_points.txt").write_text(
        "[bursar.device_drivers]\ntoy = toy_fpga:driver\n"
    )
    (package / "toy_fpga.py").write_text(FPGA.replace("{discover}", "pass").replace("{decorate}", "pass"))
    monkeypatch.setenv("PYTHONPATH", str(package))
    driver = driver_for("simulated:2,plugin:toy", AgentId("a"), [tmp_path])
    devices = driver.discover()
    assert [one.kind for one in devices] == ["gpus", "gpus", "fpgas", "fpgas"]
    given = driver.decorate((devices[0], devices[2]), "process")  # type: ignore[attr-defined]
    assert given.pinning == {"FPGA_VISIBLE_DEVICES": "slot-0"}
    assert given.environment["CUDA_VISIBLE_DEVICES"] == devices[0].uuid
    driver.close()


def test_every_plugin_of_a_directory_is_a_driver(make: Callable[..., PluginDevices], tmp_path: Path) -> None:
    make()
    (tmp_path / "_helper.py").write_text("not a plugin")
    other = (tmp_path / "fpga.py").read_text().replace("fpgas", "tapes")
    (tmp_path / "tape.py").write_text(other)
    driver = driver_for(f"simulated:1,plugin:{tmp_path}", AgentId("a"), [tmp_path])
    assert driver.name == "simulated,plugin:fpga.py,plugin:tape.py"
    assert [one.kind for one in driver.discover()] == ["gpus", "fpgas", "fpgas", "tapes", "tapes"]
    driver.close()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidText, match="has no plugin"):
        driver_for(f"plugin:{tmp_path / 'empty'}", AgentId("a"), [tmp_path])


@pytest.mark.parametrize(
    ("discover", "why"),
    [
        ("os._exit(3)", "ended with status 3"),
        ("os.kill(os.getpid(), 11)", "ended by signal 11"),
        ("time.sleep(60)", "did not answer within"),
        ("raise RuntimeError('no bus')", "RuntimeError: no bus"),
        ("return [{'kind': 'cpus', 'id': '1'}]", "cpus are not devices"),
        ("return [{'kind': 'fpgas', 'id': '../x'}]", "cannot name a device"),
        ("return [{'kind': 'fpgas'}]", "described wrongly"),
        ("return [{'kind': 'fpgas', 'id': '1'}] * 2", "one device twice"),
        ("os.write(3, b'nonsense\\n') if os.path.exists('/proc/self/fd/3') else None; os._exit(0)", "plugin"),
        ("return 7", "plugin"),
    ],
)
def test_a_bad_plugin_offers_nothing_and_is_explained(
    make: Callable[..., PluginDevices], discover: str, why: str
) -> None:
    plugin = make(discover, timeout_s=2.0 if "sleep" in discover else 10.0)
    with pytest.raises(DriverUnavailable, match=why):
        plugin.discover()


def test_a_plugin_that_is_not_there_or_does_not_load_is_said(tmp_path: Path) -> None:
    with pytest.raises(DriverUnavailable, match="no package here has an entry point 'away'"):
        PluginDevices("away").discover()
    (tmp_path / "bad.py").write_text("import nothing_of_that_name")
    with pytest.raises(DriverUnavailable, match="ModuleNotFoundError"):
        PluginDevices(str(tmp_path / "bad.py")).discover()


def test_devices_of_a_crashed_plugin_are_unknown_until_it_is_back_after_a_pause(
    make: Callable[..., PluginDevices], tmp_path: Path
) -> None:
    clock = Clock()
    plugin = make(f"if os.path.exists({str(tmp_path / 'crash')!r}): os._exit(9)", clock=clock)
    well = plugin.discover()
    (tmp_path / "crash").touch()
    ill = plugin.discover()
    assert [one.uuid for one in ill] == [one.uuid for one in well]
    assert {one.health for one in ill} == {DeviceHealth.UNHEALTHY}
    assert all(one.health_reason.startswith("unknown: plugin ") for one in ill)
    (tmp_path / "crash").unlink()
    assert plugin.discover() == ill, "not started again at once"
    clock.now = 6.0
    assert plugin.discover() == well


def test_a_crash_while_a_container_is_decorated_is_a_failed_launch(make: Callable[..., PluginDevices]) -> None:
    plugin = make(decorate="os._exit(1) if granted else None")
    devices = plugin.discover()
    with pytest.raises(LaunchFailed, match="ended with status 1"):
        plugin.decorate(devices, "docker")
    assert plugin.decorate((), "docker").pinning == {}


def test_no_process_is_left_behind(make: Callable[..., PluginDevices]) -> None:
    plugin = make()
    plugin.discover()
    process = plugin._process
    assert process is not None
    plugin.close()
    plugin.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process._process.pid, signal.SIGCONT)


def test_one_driver_that_fails_leaves_the_others_alone(make: Callable[..., PluginDevices], tmp_path: Path) -> None:
    plugin = make(f"if os.path.exists({str(tmp_path / 'crash')!r}): os._exit(9)")
    several = SeveralDevices([SimulatedDevices(AgentId("a"), 2), ExclusiveDevices(plugin, AgentId("a"), [tmp_path])])
    assert several.may_block and [one.health for one in several.discover()] == [DeviceHealth.HEALTHY] * 4
    (tmp_path / "crash").touch()
    assert [one.health for one in several.discover()] == [DeviceHealth.HEALTHY] * 2 + [DeviceHealth.UNHEALTHY] * 2
    several.close()


def test_the_agent_loads_nothing_of_a_plugin(make: Callable[..., PluginDevices]) -> None:
    make().discover()
    assert not any("bursar_device_plugin" in name for name in sys.modules)
