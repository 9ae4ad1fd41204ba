"""Names for devices whose own ids (`0`, `slot-3`) mean something on one machine only."""

from __future__ import annotations

import functools
import hashlib
import re
import socket
import uuid
from pathlib import Path

from bursar.core.device_names import device_name
from bursar.core.ids import DeviceUuid
from bursar.core.resources import CPUS, DISK, GPUS, MEM, PORTS

_MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_NAMESPACE = uuid.UUID("0d9e1f53-52a0-5b8f-9f0e-6a2f1c7b9d11")
_KIND = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
_ID = re.compile(r"[!-.0-~]{1,96}")
_SLICE_OF_NVIDIA = re.compile(r"(GPU|MIG)-[0-9a-fA-F-]{8,}")


@functools.cache
def machine_id() -> str:
    """What tells this machine from others: its machine-id, or its name where it has none."""
    path = machine_id_file()
    return path.read_text(encoding="ascii").strip() if path else socket.gethostname()


def machine_id_file() -> Path | None:
    """The file with the machine's id, where it has one."""
    for path in map(Path, _MACHINE_ID_FILES):
        try:
            if path.read_text(encoding="ascii").strip():
                return path
        except (OSError, ValueError):
            continue
    return None


def on_this_machine(kind: str, native: str) -> DeviceUuid:
    """The name in the cluster of what a driver of this machine calls `native`: the same each time, another on every machine.

    A GPU gets a uuid in NVML's form, unless it has one. Raises ValueError where `native` cannot be part of a name.
    """
    if problem := id_problem(native):
        raise ValueError(problem)
    if kind == GPUS:
        if _SLICE_OF_NVIDIA.fullmatch(native):
            return DeviceUuid(native)
        return DeviceUuid(f"GPU-{uuid.uuid5(_NAMESPACE, f'{machine_id()}/{native}')}")
    machine = hashlib.sha256(machine_id().encode()).hexdigest()[:8]
    return device_name(kind, f"{machine}.{native}")


def file_safe(uuid: str) -> str:
    """A device's name as a part of a file's."""
    if len(uuid) <= 128 and all(character.isalnum() or character in "-_" for character in uuid):
        return uuid
    return hashlib.sha256(uuid.encode()).hexdigest()[:32]


def id_problem(native: str) -> str | None:
    """Say what is wrong with a driver's id of a device, or nothing."""
    if _ID.fullmatch(native):
        return None
    shown = native if len(native) <= 40 and native.isprintable() else repr(native[:40])
    return f"{shown!r} cannot name a device: use 1 to 96 printable ASCII characters, no space and no '/'"


def kind_problem(kind: str) -> str | None:
    """Say what is wrong with the name of a kind of devices, or nothing."""
    if not _KIND.fullmatch(kind):
        return f"{kind[:40]!r} is no name of a kind: use letters, digits, '_', '.', '-', beginning with a letter"
    if kind in (CPUS, MEM, DISK, PORTS):
        return f"{kind} are not devices"
    return None


def kind_of_resource(name: str) -> str:
    """The kind that a resource is counted as, in the plural as `gpus` is: `gpu` → `gpus`, `fpga` → `fpgas`."""
    return name if name.endswith("s") else f"{name}s"
