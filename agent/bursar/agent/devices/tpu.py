"""Google's TPUs of a TPU VM, found by their device files: there is no library to ask.

A chip is a PCI device of Google's; newer ones are given to programs through VFIO (`/dev/vfio/N`), older ones by a driver of
their own (`/dev/accelN`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from bursar.agent.containers.runtime import Decoration
from bursar.agent.devices.driver import DriverUnavailable
from bursar.agent.devices.names import on_this_machine
from bursar.agent.devices.node_users import users_of_nodes
from bursar.agent.devices.users import DeviceUser
from bursar.core.devices import Device, DeviceHealth
from bursar.core.ids import DeviceUuid

KIND = "tpus"
_GOOGLE = "0x1ae0"
#: By PCI device id.
_MODELS = {
    "0x0027": "TPU v3",
    "0x005e": "TPU v4",
    "0x0062": "TPU v5p",
    "0x0063": "TPU v5e",
    "0x006f": "TPU v6e",
    "0x0076": "TPU7x",
}
_VFIO = "dev/vfio/vfio"
#: The shape that libtpu has to be told where it does not get all chips of a machine.
_BOUNDS = {1: "1,1,1", 2: "1,2,1"}


class TpuDevices:
    """The chips of this machine; `root` is where `/sys` and `/dev` are."""

    name = "tpu"

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._nodes: dict[DeviceUuid, str] = {}

    def discover(self) -> tuple[Device, ...]:
        """All chips, by PCI address; one whose file is away is unhealthy. Raises DriverUnavailable where there is none."""
        found = [
            path
            for path in sorted((self._root / "sys/bus/pci/devices").glob("*"))
            if _read(path / "vendor") == _GOOGLE and _read(path / "device") in _MODELS
        ]
        if not found:
            raise DriverUnavailable("no TPU on this machine: no PCI device is a chip of Google's")
        chips = tuple(self._describe(index, path) for index, path in enumerate(found))
        self._nodes |= {chip.uuid: chip.attributes["node"] for chip in chips if "node" in chip.attributes}
        return chips

    def decorate(self, granted: Sequence[Device], runtime: str) -> Decoration:
        """Which chips libtpu may open, in the machine's numbering; for `docker` their files."""
        chips = ",".join(str(device.index) for device in granted)
        pinning = {"TPU_VISIBLE_CHIPS": chips, "TPU_VISIBLE_DEVICES": chips}
        bounds = _BOUNDS.get(len(granted))
        environment = {"TPU_CHIPS_PER_PROCESS_BOUNDS": bounds, "TPU_PROCESS_BOUNDS": "1,1,1"} if bounds else {}
        if runtime != "docker":
            return Decoration(environment=environment, pinning=pinning)
        nodes = [device.attributes["node"] for device in granted if "node" in device.attributes]
        if any("/vfio/" in node for node in nodes):
            nodes.append(str(self._root / _VFIO))
        return Decoration(environment=environment, pinning=pinning, device_nodes=tuple(nodes))

    def users(self, uuids: Collection[DeviceUuid]) -> Mapping[DeviceUuid, tuple[DeviceUser, ...]]:
        """Who has a chip's file open."""
        return users_of_nodes({uuid: (self._nodes[uuid],) for uuid in uuids if uuid in self._nodes})

    def close(self) -> None:
        """Nothing to let go of."""

    def _describe(self, index: int, path: Path) -> Device:
        node = self._node(path)
        numa = _read(path / "numa_node")
        problem = ""
        if node is None:
            problem = "no driver gives it to programs: it has neither an accel file nor an IOMMU group"
        elif not node.exists():
            problem = f"its file {node} is not there"
        return Device(
            uuid=on_this_machine(KIND, path.name),
            kind=KIND,
            model=_MODELS[_read(path / "device")],
            index=index,
            numa_node=int(numa) if numa.isdecimal() else None,
            pci_address=path.name,
            health=DeviceHealth.UNHEALTHY if problem else DeviceHealth.HEALTHY,
            health_reason=problem,
            driver="tpu",
            attributes={"visible_as": str(index)} | ({"node": str(node)} if node else {}),
        )

    def _node(self, path: Path) -> Path | None:
        if accel := sorted((path / "accel").glob("accel*")):
            return self._root / "dev" / accel[0].name
        try:
            return self._root / "dev/vfio" / (path / "iommu_group").readlink().name
        except OSError:
            return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
