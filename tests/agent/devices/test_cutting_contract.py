"""What every driver does that can cut cards, the simulation's as the real one with a stand-in for NVIDIA's library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bursar.agent.devices.cutting import NO_INSTANCE
from bursar.core.device_names import device_kind, parent_of, weight_milli
from bursar.core.devices import DeviceCondition, DeviceHealth
from bursar.core.ids import DeviceUuid

HERE = Path(__file__).parent
STANDIN = """\
device GPU-aaaaaaaa-0000-1111-2222-000000000000 NVIDIA_H100_80GB_HBM3 85899345920 00000000:19:00.0 0 1 0
card 0
"""
LAYOUTS = ("3g.40gb=1,1g.10gb=2", "1g.10gb=7", "4g.40gb,3g.40gb", "whole", "7g.80gb", "2g.20gb=3,1g.10gb=1")


@pytest.fixture(params=["nvml", "simulation"])
def said(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """What a driver says of one card that is cut into each layout in turn."""
    environment = dict(os.environ)
    if request.param == "nvml":
        (tmp_path / "standin").write_text(STANDIN)
        environment["LD_LIBRARY_PATH"] = str(request.getfixturevalue("nvml_standin"))
        environment["NVML_STANDIN"] = str(tmp_path / "standin")
    command = [sys.executable, str(HERE / "recut.py"), request.param, *LAYOUTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_each_layout_is_reached_from_the_one_before(said: dict[str, Any]) -> None:
    assert [cut["shown"] for cut in said["cuts"]] == [
        "2 1g.10gb, 1 3g.40gb",
        "7 1g.10gb",
        "1 3g.40gb, 1 4g.40gb",
        "whole",
        "1 7g.80gb",
        "1 1g.10gb, 3 2g.20gb",
    ]
    assert [cut["is_cut"] for cut in said["cuts"]] == [True, True, True, False, True, True]


def test_what_stays_is_not_touched(said: dict[str, Any]) -> None:
    """The first layout takes a switch and two steps per instance; of the next, the two small ones are there."""
    assert [cut["steps"] for cut in said["cuts"][:2]] == [7, 12]


def test_a_cut_card_is_its_instances_and_not_itself(said: dict[str, Any]) -> None:
    card = said["card"]
    for cut in said["cuts"]:
        devices = cut["devices"]
        if not cut["is_cut"]:
            assert [one["uuid"] for one in devices] == [card] and not devices[0]["parent_uuid"]
            continue
        assert len({one["uuid"] for one in devices}) == len(devices) > 0
        for one in devices:
            assert one["parent_uuid"] == card == parent_of(one["uuid"])
            assert one["kind"] == device_kind(one["uuid"]) and one["kind"].startswith("mig-")
            assert one["mem_bytes"] > 0 and one["numa_node"] is not None
        assert 0 < sum(weight_milli(one["uuid"]) for one in devices) <= 1000


def test_slices_weigh_what_they_have_of_the_engines(said: dict[str, Any]) -> None:
    weights = {one["kind"]: weight_milli(one["uuid"]) for cut in said["cuts"] for one in cut["devices"]}
    del weights["gpus"]
    assert weights == {
        "mig-1g.10gb": 142,
        "mig-2g.20gb": 285,
        "mig-3g.40gb": 428,
        "mig-4g.40gb": 571,
        "mig-7g.80gb": 1000,
    }


def test_what_cannot_be_done_is_refused_and_changes_nothing(said: dict[str, Any]) -> None:
    for refused in said["refused"]:
        assert refused["why"] and refused["is_as_before"], refused


def test_a_card_without_instances_is_there_as_itself_and_of_no_use(said: dict[str, Any]) -> None:
    """As a restart of the machine leaves it; whoever cuts it again finds as many as there were."""
    bare = said["bare"]
    assert (bare["is_cut"], bare["shown"]) == (True, "no instance")
    (card,) = bare["devices"]
    assert (card["uuid"], card["kind"], card["parent_uuid"]) == (said["card"], "gpus", "")
    assert (card["health"], card["condition"]) == (DeviceHealth.UNHEALTHY, DeviceCondition.UNCONFIGURED)
    assert card["health_reason"] == NO_INSTANCE
    assert [kind_of(uuid) for uuid in bare["again"]] == [kind_of(one["uuid"]) for one in said["cuts"][-1]["devices"]]


def kind_of(uuid: str) -> str:
    return device_kind(DeviceUuid(uuid))
