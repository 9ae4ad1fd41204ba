"""The doctor as a whole, its look at engines, devices and masters, and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bursar.agent.containers.device_access import EngineDevices
from bursar.agent.devices.driver import DriverUnavailable
from bursar.agent.devices.exclusive import ExclusiveDevices
from bursar.agent.devices.simulated import SimulatedDevices
from bursar.agent.doctor import devices, engine, masters
from bursar.agent.doctor.findings import Verdict
from bursar.core.devices import Device, DeviceHealth
from bursar.core.ids import AgentId, DeviceUuid

GPU = Device(DeviceUuid("GPU-1"), "gpus", model="H100", driver="nvml")


def doctor(*flags: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "bursar.agent.main", "doctor", *flags],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr and done.stderr == "", done.stderr
    return done.returncode, done.stdout


def verdicts(text: str) -> dict[str, str]:
    return {one["check"]: one["verdict"] for one in json.loads(text)["findings"]}


async def test_with_a_master_nothing_has_to_be_repaired_and_nothing_is_changed(
    scripted_master: Any, tmp_path: Path
) -> None:
    """The scripted master has no health service: it is reached, and told from a Bursar master."""
    import asyncio

    work = tmp_path / "work"
    flags = ("--runtime", "process", "--devices", "simulated:2", "--work-dir", str(work), "--json")
    code, text = await asyncio.to_thread(doctor, *flags, "--master", scripted_master.address)
    assert code == 1 and "no Bursar master" in text
    code, text = await asyncio.to_thread(doctor, *flags, "--master", "127.0.0.1:1")
    assert code == 1 and verdicts(text)["master"] == "fail" and "Connection refused" in text
    assert not work.exists()


def test_every_driver_is_looked_at_and_explained(tmp_path: Path) -> None:
    script, settings = tmp_path / "find.sh", tmp_path / "external"
    script.write_text("#!/bin/sh\necho lost the bus >&2; exit 3\n")
    script.chmod(0o755)
    settings.write_text(
        "external-resources: fpga\nexternal-resource.fpga.amount: 1\nexternal-resource.fpga.driver-factory.class: script\n"
        f"external-resource.fpga.param.discovery-script.path: {script}\n"
    )
    (tmp_path / "crash.py").write_text("import os\nos._exit(4)\n")
    code, text = doctor(
        *("--runtime", "process", "--work-dir", str(tmp_path), "--external-resources", str(settings), "--json"),
        *("--devices", f"simulated:2,plugin:{tmp_path / 'crash.py'}"),
    )
    assert code == 1
    said = verdicts(text)
    assert (said["simulated"], said["plugin:crash.py"], said["script:fpga"]) == ("ok", "fail", "fail")
    assert "lost the bus" in text and "ended with status 4" in text
    assert said["offers"] == "ok" and "gpus:2" in text


@pytest.mark.parametrize(
    ("flags", "check", "why"),
    [
        (("--devices", "nonsense"), "devices", "is no device driver"),
        (("--devices", "none", "--resources", "gpus:4"), "offers", "0 are there"),
        (("--devices", "none", "--memory", "system-reserve=100TiB"), "memory", "system-reserve"),
        (("--devices", "none", "--external-resources", "/no/such/file"), "devices", "cannot read /no/such/file"),
    ],
)
def test_settings_with_which_no_agent_starts(flags: tuple[str, ...], check: str, why: str, tmp_path: Path) -> None:
    code, text = doctor("--runtime", "process", "--work-dir", str(tmp_path), "--json", *flags)
    found = [one for one in json.loads(text)["findings"] if one["verdict"] == "fail" and one["check"] == check]
    assert code == 1 and found and why in found[0]["found"] and found[0]["todo"]


def test_a_wrong_flag_is_a_wrong_use() -> None:
    code, text = doctor("--devizes", "none")
    assert code == 2 and "did you mean 'devices'" in text


def test_variables_that_name_no_flag_are_told(tmp_path: Path) -> None:
    _, text = doctor(
        *("--runtime", "process", "--devices", "none", "--work-dir", str(tmp_path), "--json"), BURSAR_AGENT_DEVISES="x"
    )
    assert verdicts(text)["flags"] == "warn"


def test_an_engine_that_is_away_and_one_that_forbids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    info, (finding,) = engine.look()
    assert info is None and finding.verdict is Verdict.FAIL and "--runtime process" in finding.todo
    forbidden = engine._unreachable(PermissionError(13, "Permission denied"))
    assert "group docker" in forbidden.todo


def test_what_an_engine_cannot_do_is_told() -> None:
    limits = {"MemoryLimit": True, "CpuCfsQuota": True, "CPUShares": True, "CPUSet": True, "PidsLimit": True}
    well = engine.judge({**limits, "LiveRestoreEnabled": True, "ServerVersion": "28"})
    assert {finding.verdict for finding in well} == {Verdict.OK}
    poor = engine.judge({**limits, "MemoryLimit": False, "PidsLimit": False})
    assert [finding.verdict for finding in poor] == [Verdict.OK, Verdict.WARN, Verdict.WARN]
    assert "memory, numbers of processes" in poor[1].found


def test_how_tasks_will_be_pinned(tmp_path: Path) -> None:
    runtime, none = EngineDevices(True), EngineDevices()
    cdi = EngineDevices(False, ("/etc/cdi",), frozenset({"nvidia.com/gpu=GPU-1"}))
    said = {
        name: devices.pinning("docker", (GPU,), facts, tmp_path)
        for name, facts in (("runtime", runtime), ("cdi", cdi), ("none", none), ("away", None))
    }
    assert (said["runtime"].verdict, said["runtime"].found) == (
        Verdict.OK,
        "by NVIDIA's runtime: the engine is told uuids",
    )
    assert said["cdi"].found == "by CDI, from specifications in /etc/cdi"
    assert said["none"].verdict is said["away"].verdict is Verdict.FAIL
    (tmp_path / "nvidia0").touch()
    nodes = devices.pinning("docker", (GPU,), none, tmp_path)
    assert nodes.verdict is Verdict.WARN and nodes.found.startswith("by device nodes")
    other = EngineDevices(False, ("/etc/cdi",), frozenset({"nvidia.com/gpu=0"}))
    assert "do not list these GPUs by uuid" in devices.pinning("docker", (GPU,), other, tmp_path).found
    assert devices.pinning("process", (GPU,), None).verdict is Verdict.WARN
    assert devices.pinning("docker", (), none).verdict is Verdict.OK
    amd = Device(DeviceUuid("GPU-3"), "gpus", driver="rocm")
    assert devices.pinning("docker", (amd,), none).found == "as the drivers say, by device nodes or CDI: rocm"


def test_devices_of_another_agent_are_named_and_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "shared_directories", lambda: [tmp_path])
    real = SimulatedDevices(AgentId("machine"), 3)
    assert [one.verdict for one in devices.owners(real.discover())] == [Verdict.OK]
    assert list(tmp_path.iterdir()) == [], "nothing is claimed"
    agent = ExclusiveDevices(real, AgentId("first"), [tmp_path])
    agent.discover()
    (finding,) = devices.owners(real.discover())
    assert finding.verdict is Verdict.WARN and finding.found.startswith("3 of 3 belong to agent first, pid ")
    agent.close()
    monkeypatch.setattr(devices, "shared_directories", list)
    assert [one.verdict for one in devices.owners(real.discover())] == [Verdict.FAIL]


class Broken:
    """A driver that finds nothing, or what is ill."""

    def __init__(self, name: str, *found: Device) -> None:
        self.name, self._found = name, found

    def discover(self) -> tuple[Device, ...]:
        if not self._found:
            raise DriverUnavailable("it is not there")
        return self._found

    def close(self) -> None:
        pass


def test_a_driver_that_was_asked_for_has_to_find_something_and_nvml_may_find_nothing() -> None:
    assert devices.look(Broken("nvml"))[1][0].verdict is Verdict.WARN
    assert devices.look(Broken("plugin:x"))[1][0].verdict is Verdict.FAIL
    ill = Device(DeviceUuid("GPU-2"), "gpus", health=DeviceHealth.UNHEALTHY, health_reason="Xid 79")
    found, findings = devices.look(Broken("nvml", GPU, ill))
    assert len(found) == 2 and findings[0].found == "2 gpus (H100)"
    assert findings[1].verdict is Verdict.WARN and "GPU-2: Xid 79" in findings[1].found


def test_one_master_that_serves_is_enough() -> None:
    findings = masters.look(["127.0.0.1:1"], 1.0)
    assert [finding.verdict for finding in findings] == [Verdict.FAIL]
    assert findings[0].found == "127.0.0.1:1: Failed to connect to remote host: Connection refused"


def test_who_uses_a_gpu_already_is_named_unless_it_may(tmp_path: Path) -> None:
    orders = tmp_path / "faults"
    driver = SimulatedDevices(AgentId("a"), 2, faults=orders)
    (fine,) = devices.users(driver.discover(), driver, frozenset())
    assert fine.verdict is Verdict.OK
    orders.write_text("1 process 4194305\n")
    (finding,) = devices.users(driver.discover(), driver, frozenset())
    assert finding.verdict is Verdict.WARN and "4194305" in finding.found and "--tolerated-programs" in finding.todo
    (tolerated,) = devices.users(driver.discover(), driver, frozenset({"*"}))
    assert tolerated.verdict is Verdict.OK


def test_gpus_that_systemd_would_take_away_are_found(tmp_path: Path) -> None:
    (tmp_path / "char").mkdir()
    (tmp_path / "nvidia-caps").mkdir()
    (tmp_path / "nvidia0").symlink_to("/dev/null")
    systemd = {"CgroupDriver": "systemd"}
    (found,) = devices.rules((GPU,), systemd, tmp_path)
    assert found.verdict is Verdict.WARN and found.found == "no link in /dev/char to nvidia0"
    assert "daemon-reload" in found.why and "create-dev-char-symlinks" in found.todo
    (tmp_path / "char" / "1:3").symlink_to("/dev/null")
    (found,) = devices.rules((GPU,), systemd, tmp_path)
    assert found.verdict is Verdict.OK
    assert devices.rules((GPU,), {"CgroupDriver": "cgroupfs"}, tmp_path) == [] == devices.rules((), systemd, tmp_path)
