"""For the program inside a task: which devices it was granted, described (F108-10)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from bursar.core.devices import Device, DeviceLink
from bursar.core.errors import BursarError
from bursar.core.ids import DeviceUuid

DEVICES_FILE = "BURSAR_DEVICES_FILE"


def granted_devices(kind: str = "", environ: Mapping[str, str] = os.environ) -> tuple[Device, ...]:
    """The devices of this task, of one kind (`gpus`, `fpgas`) or all, in the order granted; links to each other only.

    Nothing outside a task. Raises BursarError where the agent's file cannot be read.
    """
    path = environ.get(DEVICES_FILE)
    if not path:
        return ()
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
        devices = tuple(_device(item) for item in said)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BursarError(
            f"the file of this task's devices, {path}, cannot be read: {error}",
            f"leave the file and the variable {DEVICES_FILE} as the agent made them",
        ) from error
    return tuple(device for device in devices if kind in ("", device.kind))


def _device(item: Mapping[str, object]) -> Device:
    fields = {name: item[name] for name in ("kind", "model", "mem_bytes", "index", "numa_node", "pci_address")}
    links = item["links"]
    if not isinstance(links, list):
        raise TypeError("its links are no list")
    return Device(
        uuid=DeviceUuid(str(item["uuid"])),
        parent_uuid=str(item.get("parent_uuid", "")),
        attributes={"visible_as": str(item["visible_as"]), **dict(item.get("attributes") or {})},  # type: ignore[call-overload]
        links=tuple(DeviceLink(DeviceUuid(one["peer_uuid"]), one["kind"], one["strength"]) for one in links),
        **fields,  # type: ignore[arg-type]
    )
