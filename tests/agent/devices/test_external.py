"""FLIP-108's keys, and its discovery scripts, good and bad."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bursar.agent.devices.driver import DriverUnavailable
from bursar.agent.devices.external import DockerKeys, ExternalResource, declared_with, parse_external, read_external
from bursar.agent.devices.names import on_this_machine
from bursar.agent.devices.script import ScriptDevices
from bursar.core.errors import InvalidText

WHOLE = """
# as in flink-conf.yaml
external-resources: gpu;fpga
external-resource.gpu.amount: 2
external-resource.gpu.driver-factory.class: org.apache.flink.externalresource.gpu.GPUDriverFactory
external-resource.gpu.param.discovery-script.path: find-gpus.sh
external-resource.gpu.param.discovery-script.args: --only "0, 1"
external-resource.gpu.yarn.config-key: yarn.io/gpu
external-resource.fpga.amount = 1
external-resource.fpga.docker.devices: /dev/fpga{index}; /dev/fpga-control
external-resource.fpga.docker.env: FPGA_VISIBLE_DEVICES
external-resource.tape.amount: broken, but not listed
"""


def test_listed_names_take_effect_and_only_params_reach_the_driver() -> None:
    gpu, fpga = parse_external(WHOLE)
    assert (gpu.name, gpu.kind, gpu.amount, gpu.driver) == ("gpu", "gpus", 2, "script")
    assert gpu.params == {"discovery-script.path": "find-gpus.sh", "discovery-script.args": '--only "0, 1"'}
    assert (fpga.kind, fpga.driver, fpga.params) == ("fpgas", "", {})
    assert fpga.docker == DockerKeys(("/dev/fpga{index}", "/dev/fpga-control"), ("FPGA_VISIBLE_DEVICES",))


def test_none_and_nothing_list_nothing() -> None:
    assert parse_external("external-resources: none") == [] == parse_external("external-resource.gpu.amount: 1")


def test_a_resource_without_a_driver_exists_without_information() -> None:
    _, fpga = parse_external(WHOLE)
    assert declared_with("cpus:4", [fpga]) == "cpus:4;fpgas:1"
    assert declared_with("fpgas(ml):3", [fpga]) == "fpgas(ml):3"
    with pytest.raises(InvalidText, match="driver-factory.class is missing"):
        declared_with("", [ExternalResource("gpu", "gpus", 1)])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("external-resources", "line 1 is not"),
        ("external-resources: gpu\nexternal-resources: fpga", "there twice"),
        ("external-resources: gpu", "there is no amount"),
        ("external-resources: gpu\nexternal-resource.gpu.amount: 0", "'0' is no amount"),
        ("external-resources: gpu\nexternal-resource.gpu.amount: -1", "'-1' is no amount"),
        ("external-resources: gpu\nexternal-resource.gpu.amount: 99999999999", "is no amount"),
        ("external-resources: cpu\nexternal-resource.cpu.amount: 1", "cpus are not devices"),
        ("external-resources: a b\nexternal-resource.a b.amount: 1", "no name of a kind"),
        ("external-resources: gpu;gpus\nexternal-resource.gpu.amount:1\nexternal-resource.gpus.amount:1", "counted as"),
        ("external-resources: x\nexternal-resource.x.amount: 1\nexternal-resource.x.docker.env: A=B", "variable"),
    ],
)
def test_mistakes_are_explained(text: str, why: str) -> None:
    with pytest.raises(InvalidText, match=why):
        parse_external(text.replace("\nexternal-resource.a b.", "\nexternal-resource.a-b."))


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidText, match="No such file"):
        read_external(tmp_path / "away")


def script(tmp_path: Path, body: str, amount: int = 2, args: str = "", *, timeout_s: float = 10.0) -> ScriptDevices:
    path = tmp_path / "find.sh"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    params = {"discovery-script.path": "find.sh", "discovery-script.args": args}
    resource = ExternalResource("fpga", "fpgas", amount, "script", params, DockerKeys(("/dev/f{index}",), ("FPGAS",)))
    return ScriptDevices(resource, tmp_path, timeout_s)


def test_a_script_names_devices_and_is_asked_until_it_answered_well(tmp_path: Path) -> None:
    driver = script(tmp_path, f'echo "$@" >> {tmp_path}/calls; echo " slot-1,, slot-2 , "', args="--only 'a b'")
    devices = driver.discover()
    assert driver.discover() == devices
    assert (tmp_path / "calls").read_text() == "2 --only a b\n", "the amount, the user's own, and once"
    assert [device.attributes["index"] for device in devices] == ["slot-1", "slot-2"]
    assert [device.uuid for device in devices] == [on_this_machine("fpgas", name) for name in ("slot-1", "slot-2")]
    assert {device.kind for device in devices} == {"fpgas"}
    given = driver.decorate(devices, "docker")
    assert (given.device_nodes, given.pinning) == (("/dev/fslot-1", "/dev/fslot-2"), {"FPGAS": "slot-1,slot-2"})
    assert driver.decorate((), "process").pinning == {"FPGAS": ""}


def test_extra_lines_and_extra_devices_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        devices = script(tmp_path, "printf '0,1,2\\nnoise\\n'").discover()
    assert [device.attributes["index"] for device in devices] == ["0", "1"]
    told = [record.getMessage() for record in caplog.records]
    assert "printed 2 lines, only the first counts" in told[0] and "the first 2 are offered" in told[1]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("sleep 60 & sleep 60", "did not end within 0.5 s"),
        ("echo lost; echo broken >&2; exit 3", "exited with 3; it printed: lost broken"),
        ("kill -9 $$", "exited with -9; it printed: nothing"),
        ("echo 0", "named 1 fpgas, external-resource.fpga.amount wants 2"),
        ("true", "named 0 fpgas"),
        ("echo 0,0", "named '0' twice"),
        ("echo 'Segmentation fault (core dumped)'", "no list of devices"),
        ("echo ../../etc/passwd,1", "no list of devices"),
        ("printf '\\377\\376,1'", "printed what is no text"),
        ("head -c 200000 /dev/zero | tr '\\0' 'x'", "printed more than"),
    ],
)
def test_a_bad_script_offers_nothing_and_is_explained(tmp_path: Path, body: str, why: str) -> None:
    driver = script(tmp_path, body, timeout_s=0.5 if "sleep" in body else 10.0)
    with pytest.raises(DriverUnavailable, match=why):
        driver.discover()


def test_a_script_that_works_later_is_found_later(tmp_path: Path) -> None:
    driver = script(tmp_path, f"test -e {tmp_path}/ready && echo 0,1")
    with pytest.raises(DriverUnavailable):
        driver.discover()
    (tmp_path / "ready").touch()
    assert len(driver.discover()) == 2


@pytest.mark.parametrize(
    ("path", "mode", "args", "why"),
    [
        ("", 0o755, "", "discovery-script.path is missing"),
        ("away.sh", 0o755, "", "is not there"),
        ("find.sh", 0o644, "", "is not executable"),
        ("find.sh", 0o755, "'open", "No closing quotation"),
    ],
)
def test_the_script_is_checked_at_start(tmp_path: Path, path: str, mode: int, args: str, why: str) -> None:
    (tmp_path / "find.sh").write_text("#!/bin/sh\n")
    (tmp_path / "find.sh").chmod(mode)
    params = {"discovery-script.path": path, "discovery-script.args": args}
    with pytest.raises(InvalidText, match=why):
        ScriptDevices(ExternalResource("fpga", "fpgas", 1, "script", params), tmp_path)


def test_gpus_of_a_script_are_seen_by_cuda_as_the_script_names_them(tmp_path: Path) -> None:
    (gpu,) = parse_external("external-resources: gpu\nexternal-resource.gpu.amount: 1")
    assert gpu.docker.env == ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
    assert on_this_machine("gpus", "0").startswith("GPU-") and on_this_machine("gpus", "0") != on_this_machine(
        "gpus", "1"
    )
    assert on_this_machine("gpus", "MIG-0123-4567") == "MIG-0123-4567"
