"""As many GPUs as asked for, without a GPU: the same code path as real ones, up to the environment of the task."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from bursar.agent.containers.runtime import Decoration
from bursar.agent.pinning import visible_devices
from bursar.core.devices import Device, DeviceLink
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.resources import GPUS

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


class SimulatedDevices:
    """`count` GPUs of one model: two NUMA nodes, NVLink within groups of four.

    Their uuids derive from the agent's id and the index: stable over restarts, different on every agent.
    """

    name = "simulated"

    def __init__(self, agent_id: AgentId, count: int, model: str = DEFAULT_MODEL) -> None:
        if not 0 <= count <= MAX_DEVICES:
            raise ValueError(f"{count} simulated devices: 0 to {MAX_DEVICES} are possible")
        self._devices = tuple(_device(agent_id, index, count, model) for index in range(count))

    def discover(self) -> tuple[Device, ...]:
        """The same devices each time."""
        return self._devices

    def decorate(self, granted: Sequence[Device], runtime: str) -> Decoration:
        """Environment only: there is no device node to give."""
        return Decoration(environment=visible_devices([device.uuid for device in granted]))

    def close(self) -> None:
        """Nothing to let go of."""


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
