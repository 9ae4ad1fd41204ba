"""The Docker engine: whether it answers, what it can hold tasks to, and how it can give them devices."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bursar.agent.doctor.findings import Finding, fail, ok, warn
from bursar.agent.doctor.machine import disk

_LIMITS = {
    "MemoryLimit": "memory",
    "CpuCfsQuota": "CPU quotas",
    "CPUShares": "CPU shares",
    "CPUSet": "CPU sets",
    "PidsLimit": "numbers of processes",
}
_TIMEOUT_S = 10
_NO_ENGINE = "with --runtime docker every task is a container of this engine"


def look(default_image: str = "") -> tuple[dict[str, Any] | None, list[Finding]]:
    """What the engine says of itself (`GET /info`; None where it does not answer), judged."""
    import docker

    from bursar.agent.containers.docker_engine import ENGINE_ERRORS

    client: Any = None
    try:
        client = docker.from_env(version="auto", timeout=_TIMEOUT_S)
        info: dict[str, Any] = client.info()
        findings = judge(info)
        if default_image:
            findings.append(_image(client, default_image))
    except ENGINE_ERRORS as error:
        return None, [_unreachable(error)]
    finally:
        if client is not None:
            client.close()
    root = Path(str(info.get("DockerRootDir", "")))
    if root.is_dir():
        findings.append(disk("image disk", root))
    return info, findings


def judge(info: Mapping[str, Any]) -> list[Finding]:
    """What an engine says of itself."""
    version, driver = info.get("ServerVersion", "?"), info.get("Driver", "?")
    control = f"cgroups {info.get('CgroupVersion', '1')} by {info.get('CgroupDriver', '?')}"
    findings = [ok("docker", f"{version}, {driver}, {control}")]
    if missing := [name for key, name in _LIMITS.items() if info.get(key) is False]:
        findings.append(
            warn(
                "docker limits",
                f"none of {', '.join(missing)}",
                "the engine cannot hold tasks to these",
                "switch the kernel's controllers on (see cgroups), then start the engine again",
            )
        )
    else:
        findings.append(ok("docker limits", f"{', '.join(_LIMITS.values())}"))
    if info.get("LiveRestoreEnabled"):
        findings.append(ok("live restore", "on: containers outlive a restart of the engine"))
    else:
        findings.append(
            warn(
                "live restore",
                "off",
                "when the engine is restarted or upgraded, every task on this machine ends (and is reported as lost)",
                'put {"live-restore": true} into /etc/docker/daemon.json and reload the engine',
            )
        )
    return findings


def _unreachable(error: Exception) -> Finding:
    from bursar.agent.containers.docker_engine import root_cause

    words = root_cause(error)
    where = os.environ.get("DOCKER_HOST") or "/var/run/docker.sock"
    todo = "start it (systemctl start docker), or use --runtime process, which isolates nothing"
    if "ermission denied" in words:
        todo = "add this user to the group docker (usermod -aG docker …) and log in again, or run the agent as root"
    return fail("docker", f"no engine answers at {where}: {words}", _NO_ENGINE, todo)


def _image(client: Any, name: str) -> Finding:
    import docker.errors

    try:
        client.images.get(name)
    except docker.errors.ImageNotFound:
        return warn(
            "default image",
            f"{name} is not here",
            "the first task without an image waits until it is pulled, or fails",
            f"docker pull {name}",
        )
    return ok("default image", name)
