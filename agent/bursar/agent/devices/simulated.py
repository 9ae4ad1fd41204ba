"""As many GPUs as asked for, without a GPU: the same code path as real ones, up to the environment of the task."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bursar.agent.containers.runtime import Decoration
from bursar.agent.devices.health import DeviceSignal, Remedy
from bursar.agent.devices.users import DeviceUser
from bursar.agent.devices.xids import signal_of
from bursar.agent.pinning import visible_devices
from bursar.core.devices import Device, DeviceHealth, DeviceLink
from bursar.core.errors import BursarError
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.resources import GPUS, MEM
from bursar.core.text import parse_amount

MAX_DEVICES = 1024
DEFAULT_MODEL = "Simulated GPU"

_GIB = 2**30
_DEFAULT_MEM_BYTES = 80 * _GIB
#: Memory of well-known models, the first name that the asked-for model contains.
_MEM_BYTES = {
    "B200": 192 * _GIB,
    "H200": 141 * _GIB,
    "H100": 80 * _GIB,
    "A100": 80 * _GIB,
    "L40S": 48 * _GIB,
    "A10": 24 * _GIB,
    "L4": 24 * _GIB,
    "V100": 32 * _GIB,
    "T4": 16 * _GIB,
}
_NAMESPACE = uuid.UUID("6d6c0b0e-7f0c-5f0f-9d6b-0e6a3c1b52aa")
_CLIQUE = 4
_LINKS_PER_PAIR = 12
#: Between two looks at the file of faults.
_POLL_S = 0.1


class SimulatedDevices:
    """`count` GPUs of one model: two NUMA nodes, NVLink within groups of four.

    Their uuids derive from the agent's id and the index: stable over restarts, different on every agent.

    Faults can be ordered in a file, one a line, and are over when the line is gone: `INDEX ill WHY` (the driver complains), `INDEX gone` (it
    is not there any more), `INDEX xid NUMBER` (said once, when the line appears), `INDEX process PID` or `INDEX process PID SIZE` (that process uses it, and so much of its memory). Other lines mean nothing.
    """

    name = "simulated"

    def __init__(self, agent_id: AgentId, count: int, model: str = DEFAULT_MODEL, faults: Path | None = None) -> None:
        if not 0 <= count <= MAX_DEVICES:
            raise ValueError(f"{count} simulated devices: 0 to {MAX_DEVICES} are possible")
        self._devices = tuple(_device(agent_id, index, count, model) for index in range(count))
        self._faults = faults
        #: The orders that were heard, so that each XID is said once.
        self._heard: Counter[tuple[int, str, str]] = Counter(self._orders())

    def discover(self) -> tuple[Device, ...]:
        """The same devices each time, but for the faults that were ordered."""
        ill = {index: text for index, kind, text in self._orders() if kind == "ill"}
        gone = {index for index, kind, _ in self._orders() if kind == "gone"}
        return tuple(
            replace(device, health=DeviceHealth.UNHEALTHY, health_reason=ill[device.index])
            if device.index in ill
            else device
            for device in self._devices
            if device.index not in gone
        )

    def watch(self, timeout_s: float) -> tuple[DeviceSignal, ...] | None:
        """Wait until other faults are ordered; see `HealthWatcher`."""
        deadline = time.monotonic() + timeout_s
        while (orders := Counter(self._orders())) == self._heard:
            if time.monotonic() >= deadline:
                return None
            time.sleep(_POLL_S)
        new = orders - self._heard
        self._heard = orders
        return tuple(
            signal_of(self._devices[index].uuid, int(text))
            for index, kind, text in new.elements()
            if kind == "xid" and text.isdecimal()
        )

    def remedies(self) -> Mapping[DeviceUuid, Remedy]:
        """A simulated GPU is reset when its orders are gone: nothing is ever left to do."""
        busy = {index for index, kind, _ in self._orders() if kind == "xid"}
        return {device.uuid: Remedy.NONE for device in self._devices if device.index not in busy}

    def measure(self) -> Mapping[DeviceUuid, Mapping[str, tuple[float, float | None]]]:
        """A simulated GPU does nothing."""
        return {device.uuid: {"gpu_util": (0, 100), "mem": (0, device.mem_bytes)} for device in self.discover()}

    def users(self, uuids: Collection[DeviceUuid]) -> Mapping[DeviceUuid, tuple[DeviceUser, ...]]:
        """Those that were ordered."""
        orders = [
            (self._uuid(index), text) for index, kind, text in self._orders() if kind == "process" and _is_user(text)
        ]
        return {uuid: tuple(_user(text) for which, text in orders if which == uuid) for uuid in uuids}

    def probe(self, uuid: DeviceUuid) -> str:
        """It works unless an order says otherwise."""
        return next(
            (
                f"{kind} {text}".strip()
                for index, kind, text in self._orders()
                if self._uuid(index) == uuid and kind != "process"
            ),
            "",
        )

    def _uuid(self, index: int) -> DeviceUuid:
        return self._devices[index].uuid

    def _orders(self) -> list[tuple[int, str, str]]:
        """Index, kind and text of each fault that is ordered now."""
        if self._faults is None:
            return []
        try:
            lines = self._faults.read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        words = [line.split(maxsplit=2) for line in lines]
        return [
            (int(first), kind, " ".join(rest))
            for first, kind, *rest in (line for line in words if len(line) > 1)
            if first.isascii() and first.isdecimal() and int(first) < len(self._devices)
        ]

    def decorate(self, granted: Sequence[Device], runtime: str) -> Decoration:
        """Environment only: there is no device node to give."""
        return Decoration(environment=visible_devices([device.uuid for device in granted]))

    def close(self) -> None:
        """Nothing to let go of."""


def _user(text: str) -> DeviceUser:
    """`4711` or `4711 30GiB`."""
    pid, _, size = text.partition(" ")
    return DeviceUser(int(pid), mem_bytes=parse_amount(MEM, size.strip()) if size else None)


def _is_user(text: str) -> bool:
    try:
        return _user(text).pid > 0
    except (ValueError, BursarError):
        return False


def _uuid(agent_id: AgentId, index: int) -> DeviceUuid:
    return DeviceUuid(f"GPU-{uuid.uuid5(_NAMESPACE, f'{agent_id}/{index}')}")


def _device(agent_id: AgentId, index: int, count: int, model: str) -> Device:
    first = index - index % _CLIQUE
    peers = [peer for peer in range(first, min(first + _CLIQUE, count)) if peer != index]
    return Device(
        uuid=_uuid(agent_id, index),
        kind=GPUS,
        model=model,
        mem_bytes=next((size for name, size in _MEM_BYTES.items() if name in model.upper()), _DEFAULT_MEM_BYTES),
        index=index,
        numa_node=0 if index < (count + 1) // 2 else 1,
        pci_address=f"{index // 128:08x}:{0x10 + index % 128:02x}:00.0",
        links=tuple(DeviceLink(_uuid(agent_id, peer), "nvlink", _LINKS_PER_PAIR) for peer in peers),
        driver="simulated",
    )
