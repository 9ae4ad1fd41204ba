"""TPUs, by device files under a root of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from bursar.agent.devices.driver import DriverUnavailable
from bursar.agent.devices.select import bare_drivers
from bursar.agent.devices.tpu import TpuDevices
from bursar.core.devices import DeviceHealth
from bursar.core.errors import InvalidText
from bursar.core.ids import AgentId

from .conftest import tpu_tree


def test_chips_are_found_and_other_cards_of_google_are_not(tmp_path: Path) -> None:
    found = TpuDevices(tpu_tree(tmp_path)).discover()
    assert [(one.kind, one.model, one.index, one.numa_node) for one in found] == [
        ("tpus", "TPU v5e", index, index // 2) for index in range(4)
    ]
    assert all(one.health is DeviceHealth.HEALTHY for one in found)


def test_vfio_chips_come_with_the_file_that_all_share(tmp_path: Path) -> None:
    driver = TpuDevices(tpu_tree(tmp_path))
    found = driver.discover()
    given = driver.decorate(found[2:3], "docker")
    assert given.device_nodes == (f"{tmp_path}/dev/vfio/2", f"{tmp_path}/dev/vfio/vfio")
    assert given.pinning == {"TPU_VISIBLE_CHIPS": "2", "TPU_VISIBLE_DEVICES": "2"}
    assert given.environment == {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
    assert driver.decorate(found, "process").device_nodes == () and driver.decorate(found, "docker").environment == {}


def test_older_chips_have_files_of_their_own(tmp_path: Path) -> None:
    driver = TpuDevices(tpu_tree(tmp_path, 2, vfio=False))
    found = driver.discover()
    assert [one.model for one in found] == ["TPU v4", "TPU v4"]
    assert driver.decorate(found, "docker").device_nodes == (f"{tmp_path}/dev/accel0", f"{tmp_path}/dev/accel1")


def test_a_chip_whose_file_is_away_is_unhealthy(tmp_path: Path) -> None:
    driver = TpuDevices(tpu_tree(tmp_path))
    (tmp_path / "dev/vfio/1").unlink()
    (tmp_path / "sys/bus/pci/devices/0000:00:06.0/iommu_group").unlink()
    reasons = [one.health_reason for one in driver.discover()]
    assert reasons[1].endswith("dev/vfio/1 is not there") and "no driver gives it" in reasons[2]
    assert reasons[0] == reasons[3] == ""


def test_a_machine_without_chips_says_so(tmp_path: Path) -> None:
    with pytest.raises(DriverUnavailable, match="no TPU on this machine"):
        TpuDevices(tmp_path).discover()


def test_a_root_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidText, match="is no device driver"):
        bare_drivers("tpu:/no/such/root", AgentId("a"))
