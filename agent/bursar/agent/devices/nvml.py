"""Real NVIDIA GPUs, through nvidia-ml-py (the library that nvidia-smi is made of).

Health is what the driver says: a device that it cannot reach any more stays in the list, with the identity it had when it was
last seen, unhealthy and with the driver's words.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pynvml as _pynvml

from bursar.agent.containers.runtime import Decoration
from bursar.agent.devices import nvml_cut
from bursar.agent.devices.cutting import CannotCut, CardLayout, Step, unconfigured
from bursar.agent.devices.driver import DriverUnavailable
from bursar.agent.devices.health import DeviceSignal, Remedy
from bursar.agent.devices.nvml_health import NvmlEvents, measure_gpu, recovery_of, users_of
from bursar.agent.devices.nvml_mig import like_card, nodes_of, slices_of
from bursar.agent.devices.users import DeviceUser
from bursar.agent.pinning import visible_devices, visible_id
from bursar.core.device_names import native_id, parent_of
from bursar.core.devices import PCIE, PCIE_MOST, Device, DeviceHealth, DeviceLink
from bursar.core.ids import DeviceUuid
from bursar.core.resources import GPUS

log = logging.getLogger(__name__)

#: The library has no types.
pynvml: Any = _pynvml

_T = TypeVar("_T")

#: Nodes that every CUDA program needs beside the one of its GPU.
_COMMON_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
#: The driver's answers that mean: this card cannot be used until somebody does something about it.
_BROKEN = frozenset(
    {
        pynvml.NVML_ERROR_GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED,
        pynvml.NVML_ERROR_INSUFFICIENT_POWER,
        pynvml.NVML_ERROR_IRQ_ISSUE,
        pynvml.NVML_ERROR_UNKNOWN,
    }
)
#: A switch: all that have links to one reach each other at full width.
_SWITCH = "switch"


@dataclasses.dataclass(slots=True)
class _Found:
    """One device, before it is known who its peers are."""

    device: Device
    minor: int | None
    #: Number of active NVLinks by PCI address of the other end, or `_SWITCH`.
    links: dict[str, int]


#: NVML's level of what two cards have in common → strength of a link over the bus.
_PATHS = {
    pynvml.NVML_TOPOLOGY_INTERNAL: PCIE_MOST,
    pynvml.NVML_TOPOLOGY_SINGLE: 3,
    pynvml.NVML_TOPOLOGY_MULTIPLE: 2,
    pynvml.NVML_TOPOLOGY_HOSTBRIDGE: 1,
}


class NvmlDevices:
    """The GPUs of this machine."""

    name = "nvml"

    def __init__(self, sysfs: Path = Path("/sys")) -> None:
        self._sysfs = sysfs
        self._open = False
        #: What each index was when it was last well, for the days when it is not.
        self._seen: dict[int, _Found] = {}
        self._minors: dict[DeviceUuid, int] = {}
        #: Handles, and what the driver says must be done, of the GPUs that could be described in the last discovery.
        self._handles: dict[DeviceUuid, Any] = {}
        self._remedies: dict[DeviceUuid, Remedy] = {}
        #: The instances of the cards that are cut.
        self._slices: dict[DeviceUuid, tuple[Device, ...]] = {}
        #: Strengths of the paths over the bus, as they were told last.
        self._told_paths: dict[tuple[DeviceUuid, DeviceUuid], int] = {}
        self._events = NvmlEvents()

    def discover(self) -> tuple[Device, ...]:
        """All GPUs, ordered by index. Raises DriverUnavailable where there is no library, no driver or no GPU."""
        self._ensure_open()
        try:
            count = int(pynvml.nvmlDeviceGetCount())
        except pynvml.NVMLError as error:
            raise DriverUnavailable(f"the NVIDIA driver cannot count its GPUs: {error}") from error
        if count == 0:
            raise DriverUnavailable("the NVIDIA driver is there, but it has no GPU")
        found = [device for index in range(count) if (device := self._device(index)) is not None]
        for device in found:
            if device.minor is not None:
                self._minors[device.device.uuid] = device.minor
        cards = [dataclasses.replace(one.device, links=_links(one, found) + self._paths(one, found)) for one in found]
        views = [view for card in cards for view in self._views(card)]
        if not self._slices:
            return tuple(views)
        return tuple(dataclasses.replace(view, index=index) for index, view in enumerate(views))

    def _views(self, card: Device) -> tuple[Device, ...]:
        """What a card is there as: its instances where it is cut into some (then nothing can use it whole), else itself."""
        slices: tuple[Device, ...] | None = self._slices.get(card.uuid)
        if card.health is DeviceHealth.HEALTHY or slices is None:
            minor = self._minors.get(card.uuid)
            known = dataclasses.replace(card, attributes={"minor": "" if minor is None else str(minor)})
            try:
                slices = slices_of(self._handles[card.uuid], known)
            except (pynvml.NVMLError, KeyError) as error:
                log.warning("GPU %s does not say whether it is cut into instances: %s", card.uuid, error)
        if slices is None:
            self._slices.pop(card.uuid, None)
            return (card,)
        self._slices[card.uuid] = slices
        if not slices:
            return (unconfigured(card) if card.health is DeviceHealth.HEALTHY else card,)
        return tuple(like_card(one, card) for one in slices)

    def decorate(self, granted: Sequence[Device], runtime: str) -> Decoration:
        """Environment everywhere; for `docker` the uuids, and the nodes for an engine that cannot be told uuids."""
        environment = visible_devices([visible_id(device) for device in granted])
        if runtime != "docker" or not granted:
            return Decoration(environment=environment)
        nodes = [
            node
            for device in granted
            if (minor := self._minors.get(parent_of(device.uuid) or device.uuid)) is not None
            for node in (f"/dev/nvidia{minor}", *nodes_of(device))
            if os.path.exists(node)
        ]
        if nodes:
            nodes += [node for node in _COMMON_NODES if os.path.exists(node)]
        return Decoration(
            environment=environment,
            fallback_nodes=tuple(nodes),
            device_requests=tuple(visible_id(device) for device in granted),
        )

    def watch(self, timeout_s: float) -> tuple[DeviceSignal, ...] | None:
        """XIDs as they happen; see `HealthWatcher`."""
        said = self._events.wait(timeout_s, list(self._handles.items()) if self._open else ())
        return said and tuple(
            dataclasses.replace(signal, uuid=uuid) for signal in said for uuid in self._names_of(signal.uuid)
        )

    def remedies(self) -> Mapping[DeviceUuid, Remedy]:
        """Recovery actions, of GPUs whose driver knows such a thing."""
        return {uuid: remedy for card, remedy in self._remedies.items() for uuid in self._names_of(card)}

    def _names_of(self, card: DeviceUuid) -> tuple[DeviceUuid, ...]:
        """A card as it is there: what befalls it befalls every slice of it."""
        return tuple(one.uuid for one in self._slices.get(card, ())) or (card,)

    def measure(self) -> Mapping[DeviceUuid, Mapping[str, tuple[float, float | None]]]:
        """Use, memory, temperature and power of GPUs that answer (B-10)."""
        return {uuid: measure_gpu(handle) for uuid, handle in list(self._handles.items())} if self._open else {}

    def users(self, uuids: Collection[DeviceUuid]) -> Mapping[DeviceUuid, tuple[DeviceUser, ...]]:
        """Processes with a context of CUDA or graphics on a GPU, or on an instance; what the driver does not tell is left out."""
        found: dict[DeviceUuid, tuple[DeviceUser, ...]] = {}
        for uuid in uuids if self._open else ():
            try:
                slice_ = pynvml.nvmlDeviceGetHandleByUUID(native_id(uuid)) if parent_of(uuid) else None
                handle = slice_ or self._handles[uuid]
                found[uuid] = users_of(handle)
            except (pynvml.NVMLError, KeyError) as error:
                log.debug("GPU %s does not say who uses it: %s", uuid, error)
        return found

    def layout_of(self, card: DeviceUuid) -> CardLayout:
        """Into what a card is cut; see `CardCutter`."""
        return nvml_cut.layout_of(self._handle_of(card))

    def cut(self, card: DeviceUuid, step: Step) -> None:
        """One step of cutting it; see `CardCutter`."""
        if step.kind in ("enable", "disable"):
            # A card that somebody waits on is in use.
            self._events.close()
        nvml_cut.cut(self._handle_of(card), step)

    def _handle_of(self, card: DeviceUuid) -> Any:
        handle = self._handles.get(card)
        if handle is None:
            raise CannotCut(f"the driver cannot describe {card}")
        return handle

    def probe(self, uuid: DeviceUuid) -> str:
        """All that can be asked without running something: the driver answers, and nothing is left to be done."""
        handle = self._handles.get(parent_of(uuid) or uuid)
        if handle is None:
            return "the driver cannot describe it"
        try:
            pynvml.nvmlDeviceGetMemoryInfo(handle)
            pynvml.nvmlDeviceGetUUID(handle)
        except pynvml.NVMLError as error:
            return str(error)
        remedy, complaint = recovery_of(handle)
        return complaint or ("the driver still asks for it to be reset" if remedy else "")

    def close(self) -> None:
        """Let go of the library."""
        self._events.close()
        if self._open:
            self._open = False
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError as error:
                log.debug("nvmlShutdown: %s", error)

    def _ensure_open(self) -> None:
        if self._open:
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
                raise DriverUnavailable(
                    "no NVIDIA library (libnvidia-ml.so.1) on this machine: it has no NVIDIA driver"
                ) from error
            raise DriverUnavailable(f"the NVIDIA driver does not answer: {error}") from error
        self._open = True

    def _device(self, index: int) -> _Found | None:
        """One device, or what is known of it with the reason why it is unhealthy; None if it was never seen well."""
        try:
            found = self._describe(index)
        except pynvml.NVMLError as error:
            before = self._seen.get(index)
            if before is None:
                # Without its uuid it cannot be named, so nobody can be offered it.
                log.error("GPU %d cannot be used: %s", index, error)
                return None
            return dataclasses.replace(before, device=_unhealthy(before.device, str(error)))
        self._seen[index] = found
        return found

    def _describe(self, index: int) -> _Found:
        """Ask the driver. Raises NVMLError where the device does not say who it is."""
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = DeviceUuid(str(pynvml.nvmlDeviceGetUUID(handle)))
        complaints: list[str] = []

        def ask(function: Callable[..., _T], *arguments: Any) -> _T | None:
            """The answer, or None where the device does not have such a thing or is broken (then it is remembered)."""
            try:
                return function(handle, *arguments)
            except pynvml.NVMLError as error:
                if error.value in _BROKEN and str(error) not in complaints:
                    complaints.append(str(error))
                return None

        memory = ask(pynvml.nvmlDeviceGetMemoryInfo)
        address = _address(ask(pynvml.nvmlDeviceGetPciInfo))
        name = ask(pynvml.nvmlDeviceGetName)
        minor = ask(pynvml.nvmlDeviceGetMinorNumber)
        rows = ask(pynvml.nvmlDeviceGetRemappedRows)
        if rows is not None and rows[3]:
            complaints.append("remapping of broken memory rows has failed: the card needs to be replaced")
        elif rows is not None and rows[2]:
            log.warning("GPU %s: remapped memory rows wait for a reset of the card", uuid)
        device = Device(
            uuid=uuid,
            kind=GPUS,
            model=str(name or ""),
            mem_bytes=int(memory.total) if memory is not None else 0,
            index=index,
            numa_node=self._numa_node(ask, address),
            pci_address=address,
            driver="nvml",
        )
        remedy, complaint = recovery_of(handle)
        if complaint:
            complaints.append(complaint)
        self._handles[uuid] = handle
        self._remedies.pop(uuid, None)
        if remedy is not None:
            self._remedies[uuid] = remedy
        links = _active_links(handle)
        return _Found(_unhealthy(device, "; ".join(complaints)) if complaints else device, minor, links)

    def _paths(self, one: _Found, found: Sequence[_Found]) -> tuple[DeviceLink, ...]:
        """How near the others are over the bus, where nothing else joins them; what only a NUMA node has in common is told by its number."""
        links = []
        for other in found:
            pair = (one.device.uuid, other.device.uuid)
            if other is one or _nvlinks(one, other):
                continue
            try:
                level = pynvml.nvmlDeviceGetTopologyCommonAncestor(*(self._handles[uuid] for uuid in pair))
                self._told_paths[pair] = _PATHS.get(int(level), 0)
            except (pynvml.NVMLError, KeyError):
                pass  # not supported, or lost by now: what it was
            if strength := self._told_paths.get(pair, 0):
                links.append(DeviceLink(other.device.uuid, PCIE, strength))
        return tuple(links)

    def _numa_node(self, ask: Callable[..., Any], address: str) -> int | None:
        """The host's node that is nearest.

        nvmlDeviceGetNumaNodeId is the last resort: where it is supported at all, a GPU's memory is a node of its own.
        """
        mask = ask(pynvml.nvmlDeviceGetMemoryAffinity, 4, pynvml.NVML_AFFINITY_SCOPE_NODE)
        if mask is not None:
            nodes = [64 * word + bit for word, bits in enumerate(mask) for bit in range(64) if bits >> bit & 1]
            if len(nodes) == 1:
                return nodes[0]
        short = address[4:] if address.startswith("0000") and len(address) == 16 else address
        try:
            node = int((self._sysfs / "bus/pci/devices" / short / "numa_node").read_text(encoding="ascii"))
        except (OSError, ValueError):
            node = -1
        if node >= 0:
            return node
        answer = ask(pynvml.nvmlDeviceGetNumaNodeId)
        return int(answer) if answer is not None and answer >= 0 else None


def _unhealthy(device: Device, reason: str) -> Device:
    return dataclasses.replace(device, health=DeviceHealth.UNHEALTHY, health_reason=reason)


def _address(pci: Any) -> str:
    """`00000000:65:00.0`, in small letters as in sysfs; empty where unknown."""
    if pci is None:
        return ""
    address = pci.busId
    return (address.decode("ascii", "replace") if isinstance(address, bytes) else str(address)).lower()


def _active_links(handle: Any) -> dict[str, int]:
    """Count active NVLinks by what is at their other end."""
    links: dict[str, int] = {}
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        try:
            if not pynvml.nvmlDeviceGetNvLinkState(handle, link):
                continue
        except pynvml.NVMLError as error:
            if error.value in (pynvml.NVML_ERROR_INVALID_ARGUMENT, pynvml.NVML_ERROR_NOT_SUPPORTED):
                break  # beyond the last link, or no NVLink at all
            continue
        peer = _link_peer(handle, link)
        if peer:
            links[peer] = links.get(peer, 0) + 1
    return links


def _link_peer(handle: Any, link: int) -> str:
    try:
        if pynvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link) == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
            return _SWITCH
    except pynvml.NVMLError:
        pass  # an old driver: the address will tell
    try:
        return _address(pynvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link))
    except pynvml.NVMLError:
        return ""


def _links(one: _Found, found: Sequence[_Found]) -> tuple[DeviceLink, ...]:
    """Strength of a pair is the number of NVLinks between the two, or to the switch that joins them."""
    links = []
    for other in found:
        if other is one:
            continue
        if strength := _nvlinks(one, other):
            links.append(DeviceLink(other.device.uuid, "nvlink", strength))
    return tuple(links)


def _nvlinks(one: _Found, other: _Found) -> int:
    return one.links.get(other.device.pci_address, 0) or min(one.links.get(_SWITCH, 0), other.links.get(_SWITCH, 0))
