"""The GPUs of a simulated machine: they fall ill, vanish, and come back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from bursar.agent.devices.health import Remedy
from bursar.agent.devices.users import DeviceUser
from bursar.core.devices import Device, DeviceHealth, DeviceLink
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.resources import PortRange, Reservation, ReservationType, ReservedResources, Resources

#: Of every machine: few, so that they run out.
PORTS = (PortRange(31000, 31003),)


class SimulatedGpus:
    """What a machine declares: CPUs and memory, its GPUs, and a static reservation of some of each."""

    def __init__(self, agent_id: AgentId, gpus: int, cpus: int, mem_bytes: int, static: tuple[str, int] | None) -> None:
        """`static`: a role, and how many GPUs are reserved to it with a quarter of CPUs and memory."""
        uuids = [DeviceUuid(f"GPU-{agent_id}-{index}") for index in range(gpus)]
        self._all = tuple(
            Device(
                uuid,
                "gpus",
                model="Simulated GPU",
                mem_bytes=1 << 34,
                index=index,
                numa_node=index % 2,
                links=tuple(DeviceLink(peer, "nvlink", 4) for peer in uuids if peer != uuid),
            )
            for index, uuid in enumerate(uuids)
        )
        self._scalars = {"cpus": cpus, "mem": mem_bytes}
        self._static = static
        self._ill: set[DeviceUuid] = set()
        self._away: set[DeviceUuid] = set()
        #: Processes that containers left behind, and those of nobody's task, by the device that they use.
        self.left: dict[DeviceUuid, int] = {}
        self.strangers: dict[DeviceUuid, int] = {}

    def share(self, enforcement: str) -> None:
        """Every GPU is a share of some card from now on, held to its memory by `soft` or by `none`; empty: none is."""
        attributes = {"enforcement": enforcement} if enforcement else {}
        self._all = tuple(replace(device, attributes=attributes) for device in self._all)

    @property
    def all(self) -> tuple[Device, ...]:
        """All that the machine was built with, well or not."""
        return self._all

    @property
    def uuids(self) -> list[DeviceUuid]:
        """All that the machine was built with."""
        return [device.uuid for device in self._all]

    def fail(self, uuid: DeviceUuid, vanish: bool) -> None:
        """A device falls ill or off the bus."""
        (self._away if vanish else self._ill).add(uuid)

    def mend(self, uuid: DeviceUuid) -> None:
        """It is well again."""
        self._away.discard(uuid)
        self._ill.discard(uuid)

    def is_ill(self, uuid: DeviceUuid) -> bool:
        """Whether it would fail a probe."""
        return uuid in self._ill or uuid in self._away

    def users(self, uuids: Iterable[DeviceUuid]) -> dict[DeviceUuid, tuple[DeviceUser, ...] | None]:
        """Who uses each of these beside containers."""
        return {
            uuid: tuple(DeviceUser(pids[uuid], "simulated") for pids in (self.left, self.strangers) if uuid in pids)
            for uuid in uuids
        }

    def desert(self) -> None:
        """All processes are gone."""
        self.left.clear()
        self.strangers.clear()

    def remedies(self) -> dict[DeviceUuid, Remedy]:
        """Every look comes after whatever was to be done."""
        return {device.uuid: Remedy.NONE for device in self._all}

    def discover(self) -> tuple[tuple[Device, ...], tuple[ReservedResources, ...]]:
        """What a look at the machine finds: devices, and the agent's whole offer to the master."""
        devices = tuple(
            replace(device, health=DeviceHealth.UNHEALTHY, health_reason="fell ill")
            if device.uuid in self._ill
            else device
            for device in self._all
            if device.uuid not in self._away
        )
        there = {device.uuid for device in devices}
        if self._static is None:
            return devices, (ReservedResources((), Resources(self._scalars, PORTS, frozenset(there))),)
        role, count = self._static
        kept = frozenset(device.uuid for device in self._all[:count]) & there
        part = {kind: amount // 4 for kind, amount in self._scalars.items()}
        rest = {kind: amount - part[kind] for kind, amount in self._scalars.items()}
        stack = (Reservation(ReservationType.STATIC, role),)
        return devices, (
            ReservedResources((), Resources(rest, PORTS, frozenset(there) - kept)),
            ReservedResources(stack, Resources(part, (), kept)),
        )
