"""MIG: the instances that an operator has cut a GPU into, each a device of its own (a slice) below its card."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import pynvml as _pynvml

from bursar.core.device_names import device_name
from bursar.core.devices import Device

log = logging.getLogger(__name__)

#: The library has no types.
pynvml: Any = _pynvml

_PROFILE = re.compile(r"\bMIG ([0-9]\S*)$")
#: Forms of before driver 470 name a place on the card instead, with slashes: nothing that lasts.
_UUID = re.compile(r"MIG-[0-9a-fA-F-]{8,}")


def slices_of(handle: Any, card: Device, proc: Path = Path("/proc")) -> tuple[Device, ...] | None:
    """The instances of a card, in the driver's order; None where it is not cut. Each is as well as its card is.

    A slice is of the kind `mig-PROFILE` (`mig-1g.10gb`, `mig-1g.10gb-me`) and counts for its compute slices in thousandths of the card. Raises NVMLError where the card does
    not answer.
    """
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError as error:
        if error.value in (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND):
            return None
        raise
    if not current:
        return None
    most = int(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle))
    found = []
    for place in range(most):
        try:
            instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            found.append(_describe(instance, card, most, proc))
        except pynvml.NVMLError as error:
            if error.value not in (pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_INVALID_ARGUMENT):
                log.warning("instance %d of GPU %s cannot be used: %s", place, card.uuid, error)
        except ValueError as error:
            log.warning("instance %d of GPU %s cannot be used: %s", place, card.uuid, error)
    return tuple(found)


def like_card(slice_: Device, card: Device) -> Device:
    """A slice as it was, as well as its card is now."""
    return dataclasses.replace(slice_, health=card.health, health_reason=card.health_reason)


def nodes_of(slice_: Device) -> tuple[str, ...]:
    """The files that let a container into an instance, beside that of its card; none where they are not known."""
    return tuple(filter(None, slice_.attributes.get("cap_nodes", "").split(",")))


def _describe(instance: Any, card: Device, most: int, proc: Path) -> Device:
    """One instance. Raises NVMLError, ValueError where it has no lasting name."""
    uuid = str(pynvml.nvmlDeviceGetUUID(instance))
    if not _UUID.fullmatch(uuid):
        raise ValueError(f"{uuid[:80]!r} is no lasting name; use driver 470 or newer")
    has = pynvml.nvmlDeviceGetAttributes(instance)
    name = str(pynvml.nvmlDeviceGetName(instance))
    match = _PROFILE.search(name)
    profile = match[1] if match else f"{has.gpuInstanceSliceCount}g.{has.memorySizeMB // 1024}gb"
    kind = f"mig-{profile.lower().replace('+', '-')}"
    weight = max(1, min(1000, int(has.computeInstanceSliceCount or has.gpuInstanceSliceCount) * 1000 // max(most, 1)))
    places = (
        int(pynvml.nvmlDeviceGetGpuInstanceId(instance)),
        int(pynvml.nvmlDeviceGetComputeInstanceId(instance)),
    )
    return Device(
        uuid=device_name(kind, uuid, parent=card.uuid, weight_milli=weight),
        kind=kind,
        model=name,
        mem_bytes=int(has.memorySizeMB) * 2**20,
        numa_node=card.numa_node,
        pci_address=card.pci_address,
        parent_uuid=card.uuid,
        health=card.health,
        health_reason=card.health_reason,
        driver=card.driver,
        attributes={
            "enforcement": "hard",
            "card_model": card.model,
            "cap_nodes": ",".join(_cap_nodes(card, places, proc)),
        },
    )


def _cap_nodes(card: Device, places: tuple[int, int], proc: Path) -> list[str]:
    """`/dev/nvidia-caps/nvidia-capN` of the GPU instance and of the compute instance in it."""
    minor = card.attributes.get("minor", "")
    base = proc / "driver/nvidia/capabilities" / f"gpu{minor}" / "mig" / f"gi{places[0]}"
    nodes = []
    for path in (base / "access", base / f"ci{places[1]}" / "access"):
        try:
            match = re.search(r"DeviceFileMinor:\s*(\d+)", path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return []
        if match is None:
            return []
        nodes.append(f"/dev/nvidia-caps/nvidia-cap{match[1]}")
    return nodes
