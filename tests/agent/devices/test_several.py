"""Several drivers as one: devices of two of them in one task."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bursar.agent.containers.runtime import Decoration, LaunchFailed
from bursar.agent.devices.several import SeveralDevices
from bursar.agent.pinning import visible_devices, visible_id
from bursar.core.devices import Device
from bursar.core.ids import DeviceUuid


class Vendor:
    """Decorates as the driver of that vendor does."""

    def __init__(self, name: str, kind: str = "gpus") -> None:
        self.name = name
        self.device = Device(DeviceUuid(f"{name}-0" if kind == "gpus" else f"{kind}/{name}-0"), kind, driver=name)

    def discover(self) -> tuple[Device, ...]:
        return (self.device,)

    def decorate(self, granted: Sequence[Device], runtime: str) -> Decoration:
        ids = [visible_id(device) for device in granted]
        if self.name == "nvml":
            return Decoration(environment=visible_devices(ids))
        if self.name == "rocm":
            pinning = {"ROCR_VISIBLE_DEVICES": ",".join(ids)} | ({"CUDA_VISIBLE_DEVICES": "0"} if ids else {})
            return Decoration(environment=visible_devices(()), pinning=pinning)
        return Decoration(environment={"FPGA_VISIBLE_DEVICES": ",".join(ids)})

    def close(self) -> None:
        pass


def test_gpus_of_two_vendors_in_one_task_are_refused_and_said_why() -> None:
    nvidia, amd = Vendor("nvml"), Vendor("rocm")
    several = SeveralDevices([nvidia, amd])
    several.discover()
    with pytest.raises(LaunchFailed, match="devices of rocm and of nvml: both are chosen by CUDA_VISIBLE_DEVICES"):
        several.decorate([nvidia.device, amd.device], "process")
    alone = several.decorate([nvidia.device], "process")
    assert alone.environment["CUDA_VISIBLE_DEVICES"] == "nvml-0" and "CUDA_VISIBLE_DEVICES" not in alone.pinning
    assert several.decorate([amd.device], "process").pinning["ROCR_VISIBLE_DEVICES"] == "rocm-0"


def test_other_devices_beside_gpus_are_told_together() -> None:
    nvidia, fpga = Vendor("nvml"), Vendor("toy", "fpgas")
    several = SeveralDevices([nvidia, fpga])
    several.discover()
    both = several.decorate([nvidia.device, fpga.device], "process").environment
    assert (both["CUDA_VISIBLE_DEVICES"], both["FPGA_VISIBLE_DEVICES"]) == ("nvml-0", "toy-0")
