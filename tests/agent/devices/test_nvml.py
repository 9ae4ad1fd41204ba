"""The NVML path: nvidia-ml-py against a compiled stand-in, and against real GPUs where there are some."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest

UNHEALTHY = 2


def test_describes_what_the_driver_tells(observe: Any, layout: str) -> None:
    (devices,) = observe("nvml", layout)["discoveries"]
    assert [device["uuid"][:12] for device in devices] == [
        "GPU-aaaaaaaa",
        "GPU-bbbbbbbb",
        "GPU-cccccccc",
        "GPU-dddddddd",
    ]
    first = devices[0]
    assert (first["model"], first["mem_bytes"]) == ("NVIDIA H100 80GB HBM3", 80 * 2**30)
    assert first["pci_address"] == "00000000:19:00.0"
    assert [device["numa_node"] for device in devices[:3]] == [0, 0, 1]
    assert devices[3]["numa_node"] is None, "not supported there, and tolerated"


def test_links_count_between_two_devices(observe: Any, layout: str) -> None:
    (devices,) = observe("nvml", layout)["discoveries"]
    links = {
        device["uuid"][4]: [(link["peer_uuid"][4], link["strength"]) for link in device["links"]] for device in devices
    }
    assert links == {"a": [("b", 12)], "b": [("a", 12)], "c": [("d", 4)], "d": [("c", 4)]}


def test_a_switch_joins_all_that_are_linked_to_it(observe: Any, layout: str) -> None:
    switched = layout.partition("link")[0] + "switch 0 18\nswitch 1 18\nswitch 3 16\n"
    (devices,) = observe("nvml", switched)["discoveries"]
    links = {
        device["uuid"][4]: [(link["peer_uuid"][4], link["strength"]) for link in device["links"]] for device in devices
    }
    assert links == {"a": [("b", 18), ("d", 16)], "b": [("a", 18), ("d", 16)], "c": [], "d": [("a", 16), ("b", 16)]}


def test_paths_over_the_bus_where_nothing_else_joins_two(observe: Any, layout: str) -> None:
    """One switch between a and c, a host bridge between a and d, two processors between b and c; a and b have NVLinks."""
    paths = layout + "path 0 1 10\npath 0 2 10\npath 0 3 30\npath 1 2 50\n"
    lost = paths.replace("3B:00.0 1 0 0", "3B:00.0 1 0 15")
    well, ill = observe("nvml", paths, lost)["discoveries"]
    links = {
        device["uuid"][4]: [(link["peer_uuid"][4], link["kind"], link["strength"]) for link in device["links"]]
        for device in well
    }
    assert links["a"] == [("b", "nvlink", 12), ("c", "pcie", 3), ("d", "pcie", 1)]
    assert links["b"] == [("a", "nvlink", 12)] and links["c"] == [("d", "nvlink", 4), ("a", "pcie", 3)]
    assert [device["links"] for device in ill] == [device["links"] for device in well], "as they were told last"


def test_a_lost_device_stays_unhealthy_with_the_drivers_words_and_recovers(observe: Any, layout: str) -> None:
    lost = layout.replace("3B:00.0 1 0 0", "3B:00.0 1 0 15")
    well, ill, again = observe("nvml", layout, lost, layout)["discoveries"]
    assert again == well
    assert [device["uuid"] for device in ill] == [device["uuid"] for device in well]
    assert [device["health"] for device in ill] == [1, UNHEALTHY, 1, 1]
    assert ill[1]["health_reason"] == "GPU is lost"
    assert ill[0]["links"] == well[0]["links"]


def test_a_device_lost_before_the_start_has_no_name_and_is_left_out(observe: Any, layout: str) -> None:
    (devices,) = observe("nvml", layout.replace("19:00.0 0 0 0", "19:00.0 0 0 15"))["discoveries"]
    assert [device["index"] for device in devices] == [1, 2, 3]


def test_failed_row_remapping_is_unhealthy_pending_is_not(observe: Any, layout: str) -> None:
    (devices,) = observe("nvml", layout + "rows 0 1 0\nrows 2 0 1\n")["discoveries"]
    assert [device["health"] for device in devices] == [1, 1, UNHEALTHY, 1]
    assert "replaced" in devices[2]["health_reason"]


@pytest.mark.parametrize(
    ("layout", "why"),
    [("", "it has no GPU"), ("init 9\n", "does not answer: Driver Not Loaded")],
)
def test_no_device_or_no_driver_is_said(observe: Any, layout: str, why: str) -> None:
    # Counted from the first start on: the layout is in place before the library is opened.
    (said,) = observe("nvml", layout)["discoveries"]
    assert why in said["unavailable"]


def test_a_driver_that_comes_up_later_is_found(observe: Any, layout: str) -> None:
    before, after = observe("nvml", "init 9\n", layout)["discoveries"]
    assert "unavailable" in before
    assert len(after) == 4


def test_no_library_is_said(observe: Any) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has NVIDIA's library")
    said = observe("nvml", standin=False)["discoveries"][0]
    assert "libnvidia-ml.so.1" in said["unavailable"]


def test_docker_gets_the_uuids(observe: Any, layout: str) -> None:
    said = observe("nvml", layout)
    assert said["decorated"]["docker"]["all"]["device_requests"] == [
        device["uuid"] for device in said["discoveries"][0]
    ]


def test_real_gpus_are_found_as_nvidia_smi_lists_them(observe: Any) -> None:
    if not shutil.which("nvidia-smi"):
        pytest.skip("no NVIDIA GPU on this machine")
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    uuids = re.findall(r"^GPU .*\(UUID: (GPU-[0-9a-f-]+)\)", listed, re.MULTILINE)
    if not uuids:
        pytest.skip("nvidia-smi lists no GPU")
    devices = observe("nvml", standin=False)["discoveries"][0]
    assert [device["uuid"] for device in devices] == uuids
    assert all(device["mem_bytes"] > 0 and device["model"] for device in devices)


def test_xids_are_heard_as_they_happen_each_once(observe: Any, layout: str) -> None:
    said = observe("nvml", layout, layout + "xid 1 79\n", layout + "xid 1 79\n", layout + "xid 1 79\nxid 0 13\n")
    heard = [
        signals and [(one["uuid"][4], one["text"][:7], one["severity"]) for one in signals] for signals in said["heard"]
    ]
    assert heard == [None, [("b", "XID 79:", 2)], None, [("a", "XID 13:", 0)]]


def test_an_xid_of_a_gpu_that_is_lost_names_it(observe: Any, layout: str) -> None:
    lost = layout.replace("3B:00.0 1 0 0", "3B:00.0 1 0 15") + "xid 1 79\n"
    _, (signal,) = observe("nvml", layout, lost)["heard"]
    assert signal["uuid"].startswith("GPU-bbbbbbbb")


def test_the_recovery_action_says_what_must_be_done_where_the_driver_knows_it(observe: Any, layout: str) -> None:
    said = observe("nvml", layout, layout + "recovery 0 0\nrecovery 1 1\nrecovery 2 2\nrecovery 3 3\n")
    uuids = [device["uuid"] for device in said["discoveries"][0]]
    assert said["remedies"] == [{}, dict(zip(uuids, ["NONE", "RESET", "REBOOT", "NONE"], strict=True))]
    fourth = said["discoveries"][1][3]
    assert fourth["health"] == UNHEALTHY and "traffic with other GPUs" in fourth["health_reason"]
    before, after = said["probes"]
    assert set(before.values()) == {""}
    assert [bool(after[uuid]) for uuid in uuids] == [False, True, True, True]


def test_who_uses_a_gpu_is_told_unless_the_driver_does_not_say(observe: Any, layout: str) -> None:
    first, second = observe("nvml", layout + "process 1 4711 1024\nprocess 1 4712 1024\n", layout + "mute 0\n")["users"]
    assert list(first.values()) == [[], [[4711, 1024], [4712, 1024]], [], []]
    assert len(second) == 3


def test_what_processes_use_is_told_through_mps_too(observe: Any, layout: str) -> None:
    everybody = "process 0 4711 1024\nmps_process 0 4712 2048\nprocess 0 4713 18446744073709551615\n"
    (users,) = observe("nvml", layout + everybody)["users"]
    assert next(iter(users.values())) == [[4711, 1024], [4712, 2048], [4713, None]], (
        "the last one's, the driver does not know"
    )
