"""What lies in deploy/ must fit the daemons: their flags, their rule about loopback, and systemd's own judgement."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
DAEMONS = ("master", "agent")
OFF_LOOPBACK = re.compile(r"0\.0\.0\.0|\[::\]")


@cache
def flags(daemon: str) -> frozenset[str]:
    """The flags that a daemon says it has."""
    command = [sys.executable, "-m", f"bursar.{daemon}.main", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return frozenset(re.findall(r"--(?:\[no-\])?([a-z][a-z-]*[a-z])", done.stdout))


def compose() -> dict[str, Any]:
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert isinstance(document, dict)
    return document


def instructions(daemon: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, arguments) of a Dockerfile, continuation lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / f"{daemon}.Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def image_command(daemon: str) -> list[str]:
    """What a container of the image runs."""
    found = dict(instructions(daemon))
    return [*json.loads(found["ENTRYPOINT"]), *json.loads(found["CMD"])]


def flags_used(arguments: list[str]) -> set[str]:
    return {argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")}


def variables(daemon: str) -> dict[str, str]:
    """Every variable of the example and of the unit, those that are commented out included."""
    text = (DEPLOY / "systemd" / f"{daemon}.env").read_text() + (
        DEPLOY / "systemd" / f"bursar-{daemon}.service"
    ).read_text()
    return dict(
        re.findall(rf"^#?(?:Environment=)?BURSAR_{daemon.upper()}_([A-Z0-9_]+)=(.*)$", text, flags=re.MULTILINE)
    )


@pytest.mark.parametrize("daemon", DAEMONS)
def test_every_flag_and_variable_exists(daemon: str) -> None:
    used = flags_used(image_command(daemon)) | flags_used(compose()["services"][daemon]["command"])
    assert used and used <= flags(daemon)
    named = {name.lower().replace("_", "-") for name in variables(daemon)}
    assert "work-dir" in named
    assert named <= flags(daemon)


@pytest.mark.parametrize("daemon", DAEMONS)
def test_every_flag_stands_in_the_example(daemon: str) -> None:
    """An operator reads the example to learn what can be set."""
    meta = {"help", "config", "version"}
    named = {name.lower().replace("_", "-") for name in variables(daemon)}
    optional = {"insecure", "log-level", "log-format"}
    assert flags(daemon) - meta - named - optional - {f"no-{name}" for name in flags(daemon)} == set()


@pytest.mark.parametrize("daemon", DAEMONS)
def test_who_listens_off_loopback_says_that_this_is_insecure(daemon: str) -> None:
    service = compose()["services"][daemon]
    for arguments in (image_command(daemon), service["command"]):
        if any(OFF_LOOPBACK.search(argument) for argument in arguments):
            assert "--insecure" in arguments
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), "published to the whole network"
    if OFF_LOOPBACK.search(variables(daemon).get("LISTEN", "")):
        assert variables(daemon)["INSECURE"] == "true"
    for name in (f"{daemon}.Dockerfile", "compose.yaml", f"systemd/bursar-{daemon}.service"):
        text = (DEPLOY / name).read_text()
        if "--insecure" in text:
            assert "NOT SECURED YET" in text, f"{name} opens the master without saying so"


@pytest.mark.parametrize("daemon", DAEMONS)
def test_dockerfile(daemon: str) -> None:
    steps = instructions(daemon)
    bases = [arguments for name, arguments in steps if name == "FROM"]
    assert bases == ["${BASE} AS build", "${BASE}"], "two stages from one base that can be chosen"
    for name, arguments in steps:
        if name == "COPY" and not arguments.startswith("--from"):
            for source in arguments.split()[:-1]:
                assert (ROOT / source).exists(), f"{source} does not exist"
    assert image_command(daemon)[0] == f"/opt/bursar/bin/bursar-{daemon}"
    assert "HEALTHCHECK" in dict(steps)
    copied = {Path(arguments.split()[0]).name for name, arguments in steps if name == "COPY"}
    assert not copied & (set(DAEMONS) - {daemon}), "a daemon's image needs core and itself"


def test_the_master_is_not_root_in_its_image() -> None:
    assert dict(instructions("master"))["USER"] not in ("root", "0")


def test_compose_keeps_the_paths_that_the_images_use() -> None:
    services = compose()["services"]
    assert set(services) == set(DAEMONS)
    for daemon in DAEMONS:
        command = image_command(daemon)
        work_dir = command[command.index("--work-dir") + 1]
        targets = [volume.split(":")[1] for volume in services[daemon]["volumes"]]
        assert work_dir in targets, "its state would end with its container"
        assert services[daemon]["build"]["dockerfile"] == f"deploy/{daemon}.Dockerfile"
    assert "/var/lib/bursar-agent:/var/lib/bursar-agent" in services["agent"]["volumes"], (
        "the engine mounts sandboxes by the path outside"
    )


@pytest.mark.parametrize("daemon", DAEMONS)
def test_systemd_accepts_the_unit(daemon: str, tmp_path: Path) -> None:
    """systemd's own verifier, with a program that exists in the place of the installed one."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = (DEPLOY / "systemd" / f"bursar-{daemon}.service").read_text()
    assert f"ExecStart=/opt/bursar/bin/bursar-{daemon}\n" in text
    unit = tmp_path / f"bursar-{daemon}.service"
    unit.write_text(text.replace(f"/opt/bursar/bin/bursar-{daemon}", "/bin/true").replace(" docker.service", ""))
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if unit.name in line]
    assert done.returncode == 0 and not complaints, done.stderr


def settings(daemon: str) -> dict[str, str]:
    text = (DEPLOY / "systemd" / f"bursar-{daemon}.service").read_text()
    return dict(re.findall(r"^([A-Z]\w+)=(.*)$", text, flags=re.MULTILINE))


def test_tasks_outlive_the_agents_unit() -> None:
    agent = settings("agent")
    assert agent["KillMode"] == "process"
    assert agent["Delegate"] == "yes"
    assert agent["OOMPolicy"] == "continue"
    closing = {
        "PrivateDevices",
        "ProtectClock",
        "PrivateTmp",
        "ProtectHome",
        "ProtectControlGroups",
        "DeviceAllow",
        "DevicePolicy",
    }
    assert not closing & set(agent), "tasks of the process runtime would inherit it"


@pytest.mark.parametrize("daemon", DAEMONS)
def test_units_start_again_and_keep_their_state(daemon: str) -> None:
    unit = settings(daemon)
    assert unit["Restart"] == "on-failure"
    assert variables(daemon)["WORK_DIR"] == f"/var/lib/{unit['StateDirectory']}"


@pytest.mark.parametrize("kind", ["grpc", "http"])
def test_the_health_check_fails_when_nobody_answers(kind: str) -> None:
    command = [sys.executable, str(DEPLOY / "health.py"), kind, "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) >= 1 and "Traceback" not in done.stderr
