"""AMD's GPUs, told by a stand-in for AMD's package."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bursar.agent.devices.driver import DriverUnavailable
from bursar.agent.devices.names import on_this_machine
from bursar.agent.devices.rocm import RocmDevices


@pytest.fixture
def amd() -> dict[str, Any]:
    gpus = [
        {"bdf": f"0000:{bus}:00.0", "uuid": uuid, "name": "AMD Instinct MI300X", "vram": 192 << 30, "numa": number}
        for number, (bus, uuid) in enumerate(
            [("05", "75ff74a1-0000-1000-802d-000000000001"), ("26", "N/A"), ("85", "N/A")]
        )
    ]
    return {"gpus": gpus, "links": [[0, 1, 1], [0, 2, 2]]}


def test_cards_are_described_with_their_links(observe: Any) -> None:
    first, second, third, fourth = observe("rocm")["discoveries"][0]
    assert (first["uuid"], first["model"]) == ("GPU-75ff74a1-0000-1000-802d-000000000001", "AMD Instinct MI300X")
    assert (first["mem_bytes"], first["numa_node"], third["numa_node"]) == (192 << 30, 0, 1)
    assert [(one["kind"], one["strength"]) for one in first["links"]] == [("xgmi", 16), ("xgmi", 8)]
    assert {one["peer_uuid"] for one in first["links"]} == {second["uuid"], third["uuid"]}
    assert third["uuid"] == on_this_machine("gpus", "0000:85:00.0"), "where the library does not know its uuid"
    assert (third["attributes"]["visible_as"], fourth["attributes"]["visible_as"]) == ("GPU-0000000000000002", "3")


def test_containers_get_the_nodes_of_their_cards_and_hip_counts_what_is_shown(observe: Any) -> None:
    said = observe("rocm")["decorated"]
    docker = said["docker"]["all"]
    assert [Path(node).name for node in docker["device_nodes"]] == [
        "kfd",
        *(f"renderD{number}" for number in range(128, 132)),
    ]
    assert docker["pinning"]["HIP_VISIBLE_DEVICES"] == docker["pinning"]["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert said["process"]["all"]["pinning"]["ROCR_VISIBLE_DEVICES"].startswith("GPU-0000000000000000,")


def test_a_card_that_fails_or_vanishes_is_shown_as_it_was(observe: Any, amd: dict[str, Any]) -> None:
    fails, gone = copy.deepcopy(amd), copy.deepcopy(amd)
    fails["gpus"][1]["error"] = "AMDSMI_STATUS_BUSY: the card hangs"
    del gone["gpus"][2]
    well, ill, away, again = observe("rocm", *map(json.dumps, (amd, fails, gone, amd)))["discoveries"]
    assert [one["health_reason"] for one in ill] == ["", "AMDSMI_STATUS_BUSY: the card hangs", ""]
    assert [one["health"] for one in away] == [1, 1, 2] and "not list it" in away[2]["health_reason"]
    assert [one["uuid"] for one in well] == [one["uuid"] for one in ill] == [one["uuid"] for one in away]
    assert again == well


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"gpus": [], "init_error": "AMDSMI_STATUS_DRIVER_NOT_LOADED"}, "does not answer: AMDSMI_STATUS_DRIVER"),
        ({"gpus": []}, "it has no GPU"),
    ],
)
def test_no_driver_and_no_card_are_said(observe: Any, said: dict[str, Any], why: str) -> None:
    assert why in observe("rocm", json.dumps(said))["discoveries"][0]["unavailable"]


def test_no_package_is_said() -> None:
    def load(name: str) -> Any:
        raise KeyError("ROCM_PATH")  # what some versions do where ROCm is not there

    with pytest.raises(DriverUnavailable, match=r"amdsmi cannot be loaded \('ROCM_PATH'\): it comes with ROCm"):
        RocmDevices(load=load).discover()


def test_who_has_memory_of_a_card_uses_it_and_who_only_looks_does_not(observe: Any, amd: dict[str, Any]) -> None:
    amd["gpus"][0]["processes"] = [[4711, 1 << 30], [4712, 0]]
    amd["gpus"][1]["processes"] = []
    (users,) = observe("rocm", json.dumps(amd))["users"]
    assert list(users.values()) == [[[4711, 1 << 30]], []], "the third one's library does not say"
