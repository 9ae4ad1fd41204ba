"""The limits and rights of a Docker container, as its engine takes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from docker.types import Ulimit

from bursar.agent.containers.runtime import ContainerSpec, LaunchFailed
from bursar.core.memory.pools import MemoryPlan
from bursar.core.memory.profiles import MANAGED, SHM, TMPFS
from bursar.core.surroundings import DEFAULT_PIDS_LIMIT, KEPT_CAPABILITIES, ContainerSettings
from bursar.core.tasks import StatusReason

#: 0 would be the engine's own default.
_MIN_SHM_BYTES = 4096
_BLOCK_DEVICES = Path("/sys/dev/block")


def host_limits(spec: ContainerSpec, block_devices: Path = _BLOCK_DEVICES, *, lock: bool = True) -> dict[str, Any]:
    """Arguments of `create_host_config`. Every container is held to them. Raises LaunchFailed."""
    settings = spec.settings
    limits: dict[str, Any] = {
        "cap_drop": ["ALL"],
        "cap_add": kept_capabilities(settings),
        "security_opt": ["no-new-privileges:true"],
        "pids_limit": settings.pids_limit or DEFAULT_PIDS_LIMIT,
        # Of its own, whatever the daemon's defaults are.
        "ipc_mode": "private",
    }
    if settings.shm_bytes:
        limits["shm_size"] = settings.shm_bytes
    if spec.memory is not None:
        limits |= _pool_limits(spec.memory, lock)
    if spec.ulimits:
        asked = {one.name for one in spec.ulimits}
        planned = [one for one in limits.get("ulimits", ()) if one.name not in asked]
        limits["ulimits"] = planned + [Ulimit(name=one.name, soft=one.soft, hard=one.hard) for one in spec.ulimits]
    if settings.io_read_bytes_per_s or settings.io_write_bytes_per_s:
        disk = disk_of(spec.sandbox, block_devices)
        if settings.io_read_bytes_per_s:
            limits["device_read_bps"] = [{"Path": disk, "Rate": settings.io_read_bytes_per_s}]
        if settings.io_write_bytes_per_s:
            limits["device_write_bps"] = [{"Path": disk, "Rate": settings.io_write_bytes_per_s}]
    return limits


def kept_capabilities(settings: ContainerSettings) -> list[str]:
    """Those of the small default set that the task did not drop, sorted."""
    dropped = set(settings.drop_capabilities)
    return [] if "ALL" in dropped else sorted(KEPT_CAPABILITIES - dropped)


def disk_of(path: Path, block_devices: Path = _BLOCK_DEVICES) -> str:
    """The device node of the whole disk under a path: a partition cannot be throttled. Raises LaunchFailed."""
    device = path.stat().st_dev
    entry = block_devices / f"{os.major(device)}:{os.minor(device)}"
    try:
        entry = entry.resolve(strict=True)
    except OSError:
        raise LaunchFailed(
            StatusReason.LAUNCH_FAILED,
            f"I/O limits cannot be enforced here: {path} is on no block device of this machine; leave them out",
        ) from None
    if (entry / "partition").exists():
        entry = entry.parent
    return f"/dev/{entry.name.replace('!', '/')}"


def give_to_user(spec: ContainerSpec) -> None:
    """Let the sandbox belong to the user that the task runs as. Raises LaunchFailed."""
    owner = spec.settings.owner
    if owner is None or owner[0] == os.geteuid():
        return
    try:
        os.chown(spec.sandbox, *owner)
    except OSError as error:
        raise LaunchFailed(
            StatusReason.LAUNCH_FAILED,
            f"the sandbox cannot be given to user {spec.settings.user}: {error.strerror or error}; this agent runs as user"
            f" {os.geteuid()}: run it as root, or ask for its own user",
        ) from error


def _pool_limits(plan: MemoryPlan, lock: bool) -> dict[str, Any]:
    """The pools that the kernel can hold (F49-11): all within the container's own limit, which counts them too."""
    limits: dict[str, Any] = {"shm_size": max(plan[SHM], _MIN_SHM_BYTES)}
    if plan[TMPFS]:
        limits["tmpfs"] = {"/tmp": f"size={plan[TMPFS]},mode=1777"}
    if plan[MANAGED] and lock:
        limits["ulimits"] = [Ulimit(name="memlock", soft=plan[MANAGED], hard=plan[MANAGED])]
    return limits
