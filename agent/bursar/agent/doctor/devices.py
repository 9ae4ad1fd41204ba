"""Devices: what each driver finds, who has them, and how a task will be pinned to them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bursar.agent.containers.device_access import EngineDevices, Way
from bursar.agent.devices.driver import DeviceDriver, DriverUnavailable, user_tellers
from bursar.agent.devices.exclusive import holder_of, shared_directories
from bursar.agent.devices.source import DeviceSource
from bursar.agent.devices.users import names_of
from bursar.agent.doctor.findings import Finding, fail, ok, warn
from bursar.agent.resources import HostResources
from bursar.core.devices import Device, DeviceHealth

_REMEDIES = {
    "nvml": "install NVIDIA's driver and see that `nvidia-smi` lists the GPUs; without GPUs say --devices none",
    "rocm": "install AMD's driver and its `amdsmi` package for this Python; without GPUs say --devices none",
    "tpu": "see that the TPU's device files are there and can be opened by this user",
    "script": "run the script yourself with the amount as its first argument: it has to print one line of devices",
    "plugin": "the plugin's own words are above; start it by `python -m bursar.agent.devices.plugin_host NAME`",
}


def look(driver: DeviceDriver) -> tuple[tuple[Device, ...], list[Finding]]:
    """What one driver finds. It is not claimed: an agent that runs, or starts now, is not disturbed."""
    check = driver.name
    if check == "none":
        return (), [ok(check, "no devices are wanted")]
    try:
        found = driver.discover()
    except DriverUnavailable as error:
        todo = _REMEDIES.get(check.partition(":")[0], "see docs/devices.md")
        # A machine may have no GPU; but whoever names a script or a plugin expects something of it.
        say = warn if check == "nvml" else fail
        return (), [say(check, str(error), "the agent offers none of these devices until that is repaired", todo)]
    kinds = sorted({device.kind for device in found})
    models = sorted({device.model for device in found if device.model})
    text = ", ".join(f"{sum(device.kind == kind for device in found)} {kind}" for kind in kinds) or "no device"
    named = f" ({', '.join(models)})" if models else ""
    findings = [ok(check, text + named)]
    if ill := [device for device in found if device.health is not DeviceHealth.HEALTHY]:
        findings.append(
            warn(
                check,
                f"{len(ill)} unhealthy: {ill[0].uuid}: {ill[0].health_reason}",
                "devices that are not well are shown and not offered",
                "repair or replace them, or leave them out",
            )
        )
    return found, findings


def users(found: Sequence[Device], driver: DeviceDriver, tolerated: frozenset[str]) -> list[Finding]:
    """Which devices somebody uses already, who may be a task of an agent that runs."""
    if not any(True for _ in user_tellers(driver)):
        return []
    source = DeviceSource(driver, "", HostResources(0, 0, 0), tolerated)
    used = {uuid: who for uuid, who in source.users([device.uuid for device in found]).items() if who}
    check = f"{driver.name} users"
    if not used:
        return [
            ok(check, "nobody uses these devices" if source.tells_users else "whoever they are, they are tolerated")
        ]
    return [
        warn(
            check,
            f"{uuid}: {names_of(who)}",
            "a device is not offered while somebody who is no task uses it (all is well if that is a task)",
            "end that program, or name it in --tolerated-programs",
        )
        for uuid, who in used.items()
    ]


def owners(found: Sequence[Device]) -> list[Finding]:
    """Which of the devices an agent has already."""
    directories = shared_directories()
    if not directories:
        return [
            fail(
                "device locks",
                "no directory for lock files can be written to",
                "two agents of this machine could hand out the same device",
                "let this user write to /run/lock or /tmp",
            )
        ]
    held: dict[str, list[str]] = {}
    for device in found:
        if holder := holder_of(device.uuid, directories):
            held.setdefault(holder, []).append(device.uuid)
    where = ", ".join(map(str, directories))
    if not held:
        return [ok("device locks", f"in {where}; nobody has these devices")]
    return [
        warn(
            "device locks",
            f"{len(uuids)} of {len(found)} belong to {holder}",
            "they are left out by every other agent (all is well if that is this agent, running now)",
            "stop that agent, or share the devices out with --resources gpus:N",
        )
        for holder, uuids in held.items()
    ]


def pinning(runtime: str, found: Sequence[Device], engine: EngineDevices | None, nodes: Path = Path("/dev")) -> Finding:
    """How a task is going to get its GPUs and be kept from others."""
    gpus = [device for device in found if device.driver == "nvml"]
    others = sorted({device.driver for device in found} - {"nvml", "simulated"})
    if not gpus and not others:
        return ok(
            "pinning", "no real device to give to a container; tasks are told of none (CUDA_VISIBLE_DEVICES is empty)"
        )
    if runtime != "docker":
        return warn(
            "pinning",
            "by environment only",
            "a plain process that wants to sees every device of the machine",
            "use --runtime docker where tasks are not trusted",
        )
    if not gpus:
        return ok("pinning", f"as the drivers say, by device nodes or CDI: {', '.join(others)}")
    if engine is None:
        return fail("pinning", "unknown: no engine answers", "GPUs are given by the engine", "see docker")
    way = engine.way([device.uuid for device in gpus])
    if way is Way.RUNTIME:
        return ok("pinning", "by NVIDIA's runtime: the engine is told uuids")
    if way is Way.CDI:
        return ok("pinning", f"by CDI, from specifications in {', '.join(engine.cdi_directories)}")
    if not list(nodes.glob("nvidia[0-9]*")):
        return fail(
            "pinning",
            "impossible: the engine has neither NVIDIA's runtime nor CDI, and there are no device nodes",
            "no task can get a GPU",
            "install nvidia-container-toolkit, then `nvidia-ctk runtime configure --runtime=docker` and restart the engine",
        )
    cdi = "no CDI" if not engine.has_cdi else "CDI, whose specifications do not list these GPUs by uuid"
    return warn(
        "pinning",
        f"by device nodes: the engine has no NVIDIA runtime, and {cdi}",
        "an image has to bring the driver's libraries of exactly this version along",
        "install nvidia-container-toolkit, then either `nvidia-ctk runtime configure --runtime=docker` or"
        " `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml --device-name-strategy=uuid`",
    )


def rules(found: Sequence[Device], info: Mapping[str, Any], dev: Path = Path("/dev")) -> list[Finding]:
    """Whether containers keep their GPUs when systemd writes the rules of their control groups anew (pain 3); nothing where it does not."""
    if info.get("CgroupDriver") != "systemd" or not any(device.driver == "nvml" for device in found):
        return []
    nameless = []
    for node in sorted(dev.glob("nvidia*")):
        seen = node.stat()
        if (
            stat.S_ISCHR(seen.st_mode)
            and not (dev / "char" / f"{os.major(seen.st_rdev)}:{os.minor(seen.st_rdev)}").exists()
        ):
            nameless.append(node.name)
    if not nameless:
        return [ok("device rules", "systemd knows the GPUs' nodes by their links in /dev/char")]
    return [
        warn(
            "device rules",
            f"no link in /dev/char to {', '.join(nameless)}",
            "systemd does not know these devices: `systemctl daemon-reload` takes them away from containers that run",
            "nvidia-ctk system create-dev-char-symlinks --create-all (by a rule of udev, so that it lasts), or have the engine"
            ' use cgroupfs: {"exec-opts": ["native.cgroupdriver=cgroupfs"]}',
        )
    ]
