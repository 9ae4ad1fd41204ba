"""AMD's GPUs, through AMD's own Python package `amdsmi` (which comes with ROCm, not from an index), where it is there.

A card is known by the uuid that the library gives it, or by its PCI address on this machine where that says nothing. A card that
does not answer any more stays in the list as it was last seen, unhealthy and with the library's words.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from bursar.agent.containers.runtime import Decoration
from bursar.agent.devices.driver import DriverUnavailable
from bursar.agent.devices.names import on_this_machine
from bursar.agent.devices.users import DeviceUser
from bursar.agent.pinning import visible_devices, visible_id
from bursar.core.devices import Device, DeviceHealth, DeviceLink
from bursar.core.ids import DeviceUuid
from bursar.core.resources import GPUS

log = logging.getLogger(__name__)

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: What every program for ROCm opens beside the node of its card.
_COMMON_NODE = "dev/kfd"
#: amdsmi's name of a direct link between two cards.
_XGMI = "XGMI"


class RocmDevices:
    """The AMD GPUs of this machine; `root` is where `/sys` and `/dev` are."""

    name = "rocm"

    def __init__(self, root: Path = Path("/"), load: Callable[[str], Any] = importlib.import_module) -> None:
        self._root, self._load = root, load
        self._library: Any = None
        #: By PCI address.
        self._seen: dict[str, Device] = {}
        self._handles: dict[DeviceUuid, Any] = {}

    def discover(self) -> tuple[Device, ...]:
        """All GPUs, by PCI address. Raises DriverUnavailable where there is no library, no driver or no GPU."""
        smi = self._open()
        try:
            handles = {
                str(smi.amdsmi_get_gpu_device_bdf(one)).lower(): one for one in smi.amdsmi_get_processor_handles()
            }
        except Exception as error:
            raise DriverUnavailable(f"AMD's driver cannot list its GPUs: {_words(error)}") from error
        if not handles and not self._seen:
            raise DriverUnavailable("AMD's driver is there, but it has no GPU")
        there: dict[str, Device] = {}
        for address in sorted({*handles, *self._seen}):
            try:
                if address not in handles:
                    raise LookupError("the driver does not list it any more")
                there[address] = self._describe(smi, handles[address], address)
            except Exception as error:  # noqa: BLE001 - the library has many exceptions, and more in each version
                if (before := self._seen.get(address)) is None:
                    log.error("GPU at %s cannot be used: %s", address, _words(error))
                    continue
                there[address] = dataclasses.replace(before, health=DeviceHealth.UNHEALTHY, health_reason=_words(error))
        named = _named([dataclasses.replace(one, index=index) for index, one in enumerate(there.values())])
        by_address = {one.pci_address: one for one in named}
        found = tuple(dataclasses.replace(one, links=_links(smi, one, handles, by_address)) for one in named)
        self._handles = {one.uuid: handles[one.pci_address] for one in found if one.pci_address in handles}
        self._seen |= {one.pci_address: one for one in found if one.health is DeviceHealth.HEALTHY}
        return found

    def decorate(self, granted: Sequence[Device], runtime: str) -> Decoration:
        """ROCm chooses by the cards' unique ids, HIP counts what ROCm shows; for `docker` the nodes of the cards."""
        ordinals = ",".join(str(number) for number in range(len(granted)))
        pinning = {"ROCR_VISIBLE_DEVICES": ",".join(map(visible_id, granted)), "HIP_VISIBLE_DEVICES": ordinals}
        if not granted:
            return Decoration(environment=visible_devices(()), pinning=pinning)
        # HIP obeys CUDA's variable as its own; NVIDIA's runtime has nothing to do here.
        pinning |= {"CUDA_VISIBLE_DEVICES": ordinals, "NVIDIA_VISIBLE_DEVICES": "void"}
        if runtime != "docker":
            return Decoration(environment=visible_devices(()), pinning=pinning)
        nodes = [node for device in granted if (node := device.attributes.get("node"))]
        return Decoration(
            environment=visible_devices(()), pinning=pinning, device_nodes=(str(self._root / _COMMON_NODE), *nodes)
        )

    def users(self, uuids: Collection[DeviceUuid]) -> Mapping[DeviceUuid, tuple[DeviceUser, ...]]:
        """Who has memory of a card; whoever only looks at it (an exporter of metrics, this agent) is none of these."""
        found: dict[DeviceUuid, tuple[DeviceUser, ...]] = {}
        for uuid in uuids if self._library is not None else ():
            handle = self._handles.get(uuid)
            said = None if handle is None else _ask(self._library.amdsmi_get_gpu_process_list, handle)
            if said is not None:
                users = (_user(one) for one in said)
                found[uuid] = tuple(one for one in users if one is not None and one.pid != os.getpid())
        return found

    def close(self) -> None:
        """Let go of the library."""
        if self._library is not None:
            library, self._library = self._library, None
            try:
                library.amdsmi_shut_down()
            except Exception as error:  # noqa: BLE001
                log.debug("amdsmi_shut_down: %s", error)

    def _open(self) -> Any:
        if self._library is not None:
            return self._library
        try:
            library = self._load("amdsmi")
        except Exception as error:  # it looks for its C library while it is imported, and fails in many ways
            raise DriverUnavailable(
                f"AMD's package amdsmi cannot be loaded ({_words(error)}): it comes with ROCm, under /opt/rocm/share/amd_smi"
            ) from error
        try:
            library.amdsmi_init()
        except Exception as error:
            raise DriverUnavailable(f"AMD's driver does not answer: {_words(error)}") from error
        self._library = library
        return library

    def _describe(self, smi: Any, handle: Any, address: str) -> Device:
        """One card. Raises whatever the library does where it does not say who it is."""
        uuid = str(smi.amdsmi_get_gpu_device_uuid(handle)).lower()
        asic = _ask(smi.amdsmi_get_gpu_asic_info, handle) or {}
        vram = _ask(smi.amdsmi_get_gpu_memory_total, handle, smi.AmdSmiMemoryType.VRAM)
        numa = _ask(smi.amdsmi_topo_get_numa_node_number, handle)
        sysfs = self._root / "sys/bus/pci/devices" / address
        attributes = {"vendor": "amd"}
        if renders := sorted((sysfs / "drm").glob("renderD*")):
            attributes["node"] = str(self._root / "dev/dri" / renders[0].name)
        if unique := _read(sysfs / "unique_id"):
            attributes["visible_as"] = f"GPU-{unique.removeprefix('0x')}"
        return Device(
            uuid=DeviceUuid(f"GPU-{uuid}"),
            kind=GPUS,
            model=str(asic.get("market_name") or "AMD GPU"),
            mem_bytes=int(vram or 0),
            numa_node=int(numa) if isinstance(numa, int) and numa >= 0 else _node(sysfs),
            pci_address=address,
            driver="rocm",
            attributes=attributes,
        )


def _user(said: Mapping[str, Any]) -> DeviceUser | None:
    """A process as the library describes it; None where it has no memory of the card."""
    usage = said.get("memory_usage") or {}
    used = [size for key in ("vram_mem", "gtt_mem") if isinstance(size := usage.get(key), int)]
    vram = usage.get("vram_mem")
    if not any(used):
        return None
    return DeviceUser(int(said["pid"]), mem_bytes=vram if isinstance(vram, int) else None)


def _named(found: Sequence[Device]) -> list[Device]:
    """With the library's uuids where these are uuids, and tell cards apart; else with names of this machine."""
    count = Counter(one.uuid for one in found)
    named = []
    for one in found:
        good = count[one.uuid] == 1 and _UUID.fullmatch(one.uuid.removeprefix("GPU-"))
        uuid = one.uuid if good else on_this_machine(GPUS, one.pci_address)
        # Without a unique id ROCm knows a card by its number only.
        attributes = {"visible_as": str(one.index), **one.attributes}
        named.append(dataclasses.replace(one, uuid=uuid, attributes=attributes))
    return named


def _links(smi: Any, one: Device, handles: dict[str, Any], there: dict[str, Device]) -> tuple[DeviceLink, ...]:
    """Direct links between cards; the fewer hops the stronger."""
    if one.health is not DeviceHealth.HEALTHY:
        return one.links
    links = []
    for address, other in there.items():
        if address == one.pci_address or other.health is not DeviceHealth.HEALTHY:
            continue
        said = _ask(smi.amdsmi_topo_get_link_type, handles[one.pci_address], handles[address])
        if said and _XGMI in str(getattr(said["type"], "name", said["type"])):
            links.append(DeviceLink(other.uuid, "xgmi", max(1, 16 // max(1, int(said["hops"])))))
    return tuple(links)


def _ask(function: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None where the card has no such thing."""
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001
        log.debug("%s: %s", getattr(function, "__name__", function), error)
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _node(sysfs: Path) -> int | None:
    text = _read(sysfs / "numa_node")
    return int(text) if text.isdecimal() else None


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
