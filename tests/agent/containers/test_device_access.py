"""What an engine is asked for, by what it can do."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from bursar.agent.containers.device_access import EngineDevices, Way, access, engine_devices
from bursar.agent.containers.runtime import Decoration, LaunchFailed
from bursar.agent.doctor import engine
from bursar.agent.doctor.findings import Verdict

GPUS = Decoration(device_requests=("GPU-1", "GPU-2"), fallback_nodes=("/dev/nvidia0", "/dev/nvidiactl"))
CDI = EngineDevices(False, ("/etc/cdi",), frozenset({"nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-2", "toy.com/x=a"}))


def asked(decoration: Decoration, engine: EngineDevices) -> tuple[list[tuple[str, Any]], list[str]]:
    """(driver, ids) of every request, and the nodes."""
    requests, nodes = access(decoration, engine)
    said = [(request["Driver"], request["DeviceIDs"]) for request in requests or []]
    return said, [node.partition(":")[0] for node in nodes or []]


def test_the_vendors_runtime_then_cdi_then_nodes() -> None:
    assert asked(GPUS, EngineDevices(True, CDI.cdi_directories, CDI.cdi_names)) == (
        [("", ["GPU-1", "GPU-2"])],
        ["/dev/nvidia0", "/dev/nvidiactl"],
    ), "the engine has to know the nodes, too"
    assert asked(GPUS, CDI) == ([("cdi", ["nvidia.com/gpu=GPU-1", "nvidia.com/gpu=GPU-2"])], [])
    assert asked(GPUS, EngineDevices()) == ([], ["/dev/nvidia0", "/dev/nvidiactl"])
    assert [one.way(GPUS.device_requests) for one in (EngineDevices(True), CDI, EngineDevices())] == list(Way)


def test_one_gpu_that_cdi_does_not_list_is_enough_for_nodes() -> None:
    some = EngineDevices(False, CDI.cdi_directories, frozenset({"nvidia.com/gpu=GPU-1", "nvidia.com/gpu=1"}))
    assert asked(GPUS, some) == ([], ["/dev/nvidia0", "/dev/nvidiactl"])


def test_without_any_way_the_engine_is_asked_and_says_what_it_lacks() -> None:
    assert asked(Decoration(device_requests=("GPU-1",)), EngineDevices()) == ([("", ["GPU-1"])], [])


def test_nodes_of_other_devices_stay_whatever_way_the_gpus_take() -> None:
    both = Decoration(
        device_requests=("GPU-1",), fallback_nodes=("/dev/nvidia0",), device_nodes=("/dev/fpga0",), cdi=("toy.com/x=a",)
    )
    assert asked(both, CDI) == ([("cdi", ["nvidia.com/gpu=GPU-1", "toy.com/x=a"])], ["/dev/fpga0"])
    plain = Decoration(device_requests=("GPU-1",), fallback_nodes=("/dev/nvidia0",), device_nodes=("/dev/fpga0",))
    assert asked(plain, EngineDevices(True)) == ([("", ["GPU-1"])], ["/dev/nvidia0", "/dev/fpga0"])
    assert asked(plain, EngineDevices()) == ([], ["/dev/nvidia0", "/dev/fpga0"])


def test_a_name_of_cdi_needs_an_engine_that_has_it() -> None:
    with pytest.raises(LaunchFailed, match=r"no CDI, by which toy.com/x=a is to be given: use Docker 25"):
        access(Decoration(cdi=("toy.com/x=a",)), EngineDevices(True))


def test_names_are_what_the_engine_lists_or_else_what_its_specifications_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = {"cdiVersion": "0.6.0", "kind": "toy.com/x", "devices": [{"name": "a"}, {"name": "b"}]}
    (tmp_path / "toy.json").write_text(json.dumps(spec))
    (tmp_path / "nvidia.yaml").write_text('kind: "nvidia.com/gpu"\ndevices:\n- name: GPU-1\n- name: "0"\n')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "notes.txt").write_text("not ours")
    with caplog.at_level(logging.WARNING):
        found = engine_devices({"CDISpecDirs": [str(tmp_path), str(tmp_path / "away")], "Runtimes": {"runc": {}}})
    assert found.cdi_names == {"toy.com/x=a", "toy.com/x=b", "nvidia.com/gpu=GPU-1", "nvidia.com/gpu=0"}
    assert found.has_cdi and not found.has_nvidia_runtime and found.cdi_name("GPU-1") == "nvidia.com/gpu=GPU-1"
    assert len(caplog.records) == 2
    listed = [{"Source": "cdi", "ID": "toy.com/x=listed"}, {"Source": "other", "ID": "no"}]
    newer = engine_devices({"CDISpecDirs": [str(tmp_path)], "DiscoveredDevices": listed, "Runtimes": {"nvidia": {}}})
    assert newer.cdi_names == {"toy.com/x=listed"} and newer.has_nvidia_runtime
    old = engine_devices({"Runtimes": {"runc": {}}})
    assert old == EngineDevices() and not old.has_cdi


def test_the_doctor_looks_at_the_real_engine(docker_image: str) -> None:
    info, findings = engine.look(docker_image)
    assert info is not None and all(finding.verdict is not Verdict.FAIL for finding in findings)
    assert findings[0].found.startswith(info["ServerVersion"])
    assert [one.verdict for one in findings if one.check == "default image"] == [Verdict.OK]
    _, findings = engine.look("bursar.invalid/no/such:image")
    assert [one.verdict for one in findings if one.check == "default image"] == [Verdict.WARN]
