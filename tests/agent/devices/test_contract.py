"""What every device driver does."""

from __future__ import annotations

import re
from typing import Any

import pytest

DRIVERS = ["simulated:8", "simulated:3:T4", "simulated:0", "none", "nvml"]
NVML_FORM = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


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
    assert all(NVML_FORM.fullmatch(uuid) for uuid in uuids)


def test_devices_are_described(said: dict[str, Any]) -> None:
    for device in said["discoveries"][0]:
        assert device["kind"] == "gpus"
        assert device["model"] and device["mem_bytes"] > 0 and device["pci_address"]
        assert device["driver"] == said["name"]
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
    assert said["decorated"][runtime]["none"] == {
        "environment": {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "void"},
        "device_nodes": [],
        "mounts": [],
        "device_requests": [],
        "pinning": {},
        "fallback_nodes": [],
        "cdi": [],
    }


@pytest.mark.parametrize("runtime", ["process", "docker"])
def test_decoration_names_exactly_what_was_granted(said: dict[str, Any], runtime: str) -> None:
    uuids = [device["uuid"] for device in said["discoveries"][1]]
    decoration = said["decorated"][runtime]["all"]
    assert decoration["environment"]["CUDA_VISIBLE_DEVICES"] == ",".join(uuids)
    assert decoration["device_requests"] in ([], uuids)
    assert runtime == "docker" or not any(
        decoration[name] for name in ("device_requests", "device_nodes", "fallback_nodes", "cdi")
    )
