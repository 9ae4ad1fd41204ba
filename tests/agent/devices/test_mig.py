"""Instances of MIG, told by a stand-in for NVIDIA's library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bursar.agent.devices.nvml_mig import _cap_nodes
from bursar.core.device_names import device_kind, parent_of, weight_milli
from bursar.core.devices import Device, DeviceCondition, DeviceHealth
from bursar.core.ids import DeviceUuid

CUT = """\
device GPU-aaaaaaaa-0000-1111-2222-000000000000 NVIDIA_H100_80GB_HBM3 85899345920 00000000:19:00.0 0 1 0
device GPU-bbbbbbbb-0000-1111-2222-000000000000 NVIDIA_H100_80GB_HBM3 85899345920 00000000:3B:00.0 1 0 0
mig 0 7
instance 0 0 MIG-11111111-0000-1111-2222-000000000000 NVIDIA_H100_80GB_HBM3_MIG_3g.40gb 2 0 3 40448
instance 0 2 MIG-22222222-0000-1111-2222-000000000000 NVIDIA_H100_80GB_HBM3_MIG_1g.10gb+me 7 0 1 9984
instance 0 3 MIG-GPU-aaaaaaaa-0000-1111-2222-000000000000/9/0 NVIDIA_H100_80GB_HBM3_MIG_1g.10gb 9 0 1 9984
"""
CARD, WHOLE = "GPU-aaaaaaaa-0000-1111-2222-000000000000", "GPU-bbbbbbbb-0000-1111-2222-000000000000"
THREE = f"mig-3g.40gb@428/{CARD}/MIG-11111111-0000-1111-2222-000000000000"
ONE = f"mig-1g.10gb-me@142/{CARD}/MIG-22222222-0000-1111-2222-000000000000"


def test_a_cut_card_is_offered_as_its_instances_only(observe: Any) -> None:
    devices = observe("nvml", CUT)["discoveries"][0]
    assert [one["uuid"] for one in devices] == [THREE, ONE, WHOLE], "an old form of name is no name"
    three = devices[0]
    assert (three["kind"], three["parent_uuid"], three["mem_bytes"]) == ("mig-3g.40gb", CARD, 40448 << 20)
    assert (three["numa_node"], three["pci_address"]) == (1, "00000000:19:00.0")
    assert three["attributes"]["enforcement"] == "hard"
    assert [one["index"] for one in devices] == [0, 1, 2]
    name = DeviceUuid(THREE)
    assert (device_kind(name), weight_milli(name), parent_of(name)) == ("mig-3g.40gb", 428, CARD)


def test_tasks_are_told_the_instances_own_uuids(observe: Any) -> None:
    uuids = [THREE.rpartition("/")[2], ONE.rpartition("/")[2], WHOLE]
    decorated = observe("nvml", CUT)["decorated"]
    assert decorated["process"]["all"]["environment"]["CUDA_VISIBLE_DEVICES"] == ",".join(uuids)
    assert decorated["docker"]["all"]["device_requests"] == uuids


def test_what_befalls_a_card_befalls_its_instances(observe: Any) -> None:
    lost = CUT.replace("00000000:19:00.0 0 1 0", "00000000:19:00.0 0 1 15")
    said = observe("nvml", CUT, lost, CUT + "recovery 0 1\n", CUT + "xid 0 79\n")
    well, ill, _, _ = said["discoveries"]
    assert [one["uuid"] for one in ill] == [one["uuid"] for one in well]
    assert [one["health_reason"] for one in ill] == ["GPU is lost", "GPU is lost", ""]
    assert said["remedies"][2] == {THREE: "RESET", ONE: "RESET"}
    assert {signal["uuid"] for signal in said["heard"][3]} == {THREE, ONE}
    assert said["probes"][1][THREE] and not said["probes"][0][THREE]


NOTHING = "".join(line for line in CUT.splitlines(True) if not line.startswith("instance"))


def test_a_card_that_is_cut_into_nothing_is_there_as_itself_and_ill_for_that(observe: Any) -> None:
    """As a restart of the machine leaves it, where no service makes the instances again."""
    first, second, third = observe("nvml", NOTHING, NOTHING, CUT)["discoveries"]
    assert [one["uuid"] for one in first] == [CARD, WHOLE] == [one["uuid"] for one in second]
    assert [one["uuid"] for one in third] == [THREE, ONE, WHOLE]
    card, whole = first
    assert (card["kind"], card["parent_uuid"], card["index"]) == ("gpus", "", 0)
    assert (card["health"], card["condition"]) == (DeviceHealth.UNHEALTHY, DeviceCondition.UNCONFIGURED)
    assert card["health_reason"].startswith("MIG is switched on, and it has no instance; ")
    assert (whole["health"], whole["condition"]) == (DeviceHealth.HEALTHY, DeviceCondition.UNSPECIFIED)


def test_what_befalls_a_card_without_instances_befalls_it(observe: Any) -> None:
    lost = NOTHING.replace("00000000:19:00.0 0 1 0", "00000000:19:00.0 0 1 15")
    said = observe("nvml", NOTHING, lost, NOTHING + "recovery 0 1\n", NOTHING + "xid 0 79\n")
    ill = said["discoveries"][1][0]
    assert (ill["uuid"], ill["health_reason"]) == (CARD, "GPU is lost"), "its other ills are no want of instances"
    assert ill["condition"] == DeviceCondition.UNSPECIFIED
    assert said["remedies"][2] == {CARD: "RESET"} and [one["uuid"] for one in said["heard"][3]] == [CARD]
    assert not said["probes"][0][CARD] and said["probes"][1][CARD], "for its probe it is well"


def test_cutting_and_joining_is_seen(observe: Any) -> None:
    joined = "".join(line for line in CUT.splitlines(True) if line.startswith("device"))
    first, second, third = observe("nvml", joined, CUT, joined)["discoveries"]
    assert [one["uuid"] for one in first] == [CARD, WHOLE] == [one["uuid"] for one in third]
    assert [one["uuid"] for one in second] == [THREE, ONE, WHOLE]


def test_files_of_instances_are_those_that_the_kernel_names(tmp_path: Path) -> None:
    base = tmp_path / "driver/nvidia/capabilities/gpu3/mig/gi2"
    (base / "ci0").mkdir(parents=True)
    (base / "access").write_text("DeviceFileMinor: 30\nDeviceFileMode: 292\n")
    card = Device(DeviceUuid(CARD), "gpus", attributes={"minor": "3"})
    assert _cap_nodes(card, (2, 0), tmp_path) == [], "both or none"
    (base / "ci0" / "access").write_text("DeviceFileMinor: 31\n")
    assert _cap_nodes(card, (2, 0), tmp_path) == ["/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31"]


def test_who_uses_an_instance_uses_no_other(observe: Any) -> None:
    busy = CUT + "process_of MIG-22222222-0000-1111-2222-000000000000 4711 1024\nprocess 1 7 0\n"
    assert observe("nvml", busy)["users"] == [{THREE: [], ONE: [[4711, 1024]], WHOLE: [[7, 0]]}]
