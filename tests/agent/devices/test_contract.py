"""What every device driver does."""

from __future__ import annotations

import re
from typing import Any

import pytest

from bursar.core.device_names import native_id

DRIVERS = ["simulated:8", "simulated:3:T4", "simulated:0", "none", "nvml", "nvml:cut", "rocm", "tpu", "script"]
_UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: What the name of a device of each kind looks like; slices have their profile in it.
NAMES = {
    "gpus": re.compile(f"GPU-{_UUID}"),
    "tpus": re.compile(r"tpus/[!-.0-~]+"),
    "fpgas": re.compile(r"fpgas/[!-.0-~]+"),
    "mig": re.compile(rf"mig-[0-9]g\.[0-9]+gb(-me)?@[0-9]+/GPU-{_UUID}/MIG-{_UUID}"),
}


@pytest.fixture(params=DRIVERS)
def said(request: pytest.FixtureRequest, observe: Any) -> dict[str, Any]:
    result: dict[str, Any] = observe(request.param)
    return result


def test_discovery_is_ordered_unique_and_repeatable(said: dict[str, Any]) -> None:
    first, second = said["discoveries"]
    assert first == second
    assert [device["index"] for device in first] == list(range(len(first)))
    uuids = [device["uuid"] for device in first]
    assert len(set(uuids)) == len(uuids)
    assert all(NAMES[device["kind"].partition("-")[0]].fullmatch(device["uuid"]) for device in first)
    assert first or said["name"] in ("none", "simulated")


def test_devices_are_described(said: dict[str, Any]) -> None:
    for device in said["discoveries"][0]:
        if device["driver"] != "script":  # which says no more than names
            assert device["model"] and device["pci_address"]
            assert device["mem_bytes"] > 0 or device["kind"] == "tpus"
        assert device["driver"] == said["name"].partition(":")[0]
        assert (device["health"], device["health_reason"]) == (1, "")


def test_links_are_mutual_and_of_known_devices(said: dict[str, Any]) -> None:
    ties = {
        (device["uuid"], link["peer_uuid"]): (link["kind"], link["strength"])
        for device in said["discoveries"][0]
        for link in device["links"]
    }
    for (left, right), tie in ties.items():
        assert left != right
        assert ties[right, left] == tie
        assert tie[1] > 0


@pytest.mark.parametrize("runtime", ["process", "docker"])
def test_without_devices_everything_is_hidden(said: dict[str, Any], runtime: str) -> None:
    decoration = said["decorated"][runtime]["none"]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void"}
    assert decoration.pop("environment") == ({} if said["name"] in ("tpu", "script:fpga") else hidden)
    assert set(decoration.pop("pinning").values()) <= {""}
    assert not any(decoration.values())


@pytest.mark.parametrize("runtime", ["process", "docker"])
def test_decoration_names_exactly_what_was_granted(said: dict[str, Any], runtime: str) -> None:
    """Each granted device has its place in a variable that pins, and nothing else has."""
    devices = said["discoveries"][1]
    decoration = said["decorated"][runtime]["all"]
    names = {"tpu": "TPU_VISIBLE_CHIPS", "rocm": "ROCR_VISIBLE_DEVICES", "script:fpga": "FPGAS"}
    name = names.get(said["name"], "CUDA_VISIBLE_DEVICES")
    value = {**decoration["environment"], **decoration["pinning"]}[name]
    own = [native_id(device["uuid"]) for device in devices]
    told = [device["attributes"].get("visible_as") or one for device, one in zip(devices, own, strict=True)]
    assert value.split(",") == told or (value == "" and not devices)
    assert decoration["device_requests"] in ([], own)
    assert runtime == "docker" or not any(
        decoration[key] for key in ("device_requests", "device_nodes", "fallback_nodes", "cdi", "mounts")
    )
