"""The GPUs of a simulated machine: they fall ill, vanish and come back, and can be cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from bursar.agent.devices.health import Remedy
from bursar.agent.devices.users import DeviceUser
from bursar.core.device_names import parent_of
from bursar.core.devices import Device, DeviceCondition, DeviceHealth, DeviceLink
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.resources import PortRange, Reservation, ReservationType, ReservedResources, Resources
from bursar.simulation.cards import SimulatedCard

#: Of every machine: few, so that they run out.
PORTS = (PortRange(31000, 31003),)


class SimulatedGpus:
    """What a machine declares: CPUs and memory, its GPUs, and a static reservation of some of each."""

    def __init__(
        self,
        agent_id: AgentId,
        gpus: int,
        cpus: int,
        mem_bytes: int,
        static: tuple[str, int] | None,
        disk_bytes: int = 0,
    ) -> None:
        """`static`: a role, and how many GPUs are reserved to it with a quarter of CPUs and memory."""
        uuids = [DeviceUuid(f"GPU-{agent_id}-{index}") for index in range(gpus)]
        self.cards = {
            uuid: SimulatedCard(
                Device(
                    uuid,
                    "gpus",
                    model="Simulated GPU",
                    mem_bytes=1 << 34,
                    index=index,
                    numa_node=index % 2,
                    links=tuple(DeviceLink(peer, "nvlink", 4) for peer in uuids if peer != uuid),
                )
            )
            for index, uuid in enumerate(uuids)
        }
        self._scalars = {"cpus": cpus, "mem": mem_bytes} | ({"disk": disk_bytes} if disk_bytes else {})
        self._static = static
        self._ill: set[DeviceUuid] = set()
        self._away: set[DeviceUuid] = set()
        #: How often something befell a card behind its agent's back: it vanished, or the machine was started anew.
        self.troubles: Counter[DeviceUuid] = Counter()
        #: Processes that containers left behind, and those of nobody's task, by the device that they use.
        self.left: dict[DeviceUuid, int] = {}
        self.strangers: dict[DeviceUuid, int] = {}

    def share(self, enforcement: str) -> None:
        """Every GPU is a share of some card from now on, held to its memory by `soft` or by `none`; empty: none is."""
        for card in self.cards.values():
            card.describe({"enforcement": enforcement} if enforcement else {})

    @property
    def all(self) -> tuple[Device, ...]:
        """All that is there, well or not."""
        return tuple(device for card in self.cards.values() for device in card.devices())

    @property
    def uuids(self) -> list[DeviceUuid]:
        """The cards that the machine was built with, cut or not."""
        return list(self.cards)

    @property
    def there(self) -> list[DeviceUuid]:
        """What the cards are cut into at this moment, ill or well; a card that is not cut is one device."""
        return [device.uuid for card in self.cards.values() for device in card.devices()]

    def views_of(self, card: DeviceUuid) -> list[DeviceUuid]:
        """What a card is cut into."""
        return [device.uuid for device in self.cards[card].devices()]

    def is_used(self, card: DeviceUuid) -> bool:
        """Whether a process that no container accounts for uses some of it."""
        return any(card in (uuid, parent_of(uuid)) for uuid in (*self.left, *self.strangers))

    def is_away(self, card: DeviceUuid) -> bool:
        """Whether it is off the bus."""
        return card in self._away

    def restart(self, forgets: bool) -> None:
        """The machine is started anew: nothing uses its cards, and what waited for that takes effect; `forgets`: with their instances gone."""
        self.desert()
        self.troubles.update(self.uuids)
        for card in self.cards.values():
            card.restart(forgets)

    def fail(self, uuid: DeviceUuid, vanish: bool) -> None:
        """A card falls ill or off the bus, with all that it is cut into."""
        (self._away if vanish else self._ill).add(uuid)
        self.troubles[uuid] += 1

    def mend(self, uuid: DeviceUuid) -> None:
        """It is well again."""
        self._away.discard(uuid)
        self._ill.discard(uuid)

    def is_ill(self, uuid: DeviceUuid) -> bool:
        """Whether it would fail a probe."""
        card = parent_of(uuid) or uuid
        return card in self._ill or card in self._away or uuid not in self.there

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
        return dict.fromkeys(self.there, Remedy.NONE)

    def discover(self) -> tuple[tuple[Device, ...], tuple[ReservedResources, ...]]:
        """What a look at the machine finds: devices, and the agent's whole offer to the master."""
        seen = [
            _ill(device) if uuid in self._ill else device
            for uuid, card in self.cards.items()
            if uuid not in self._away
            for device in card.devices()
        ]
        devices = tuple(replace(device, index=index) for index, device in enumerate(seen))
        there = {device.uuid for device in devices}
        if self._static is None:
            return devices, (ReservedResources((), Resources(self._scalars, PORTS, frozenset(there))),)
        role, count = self._static
        kept = frozenset(uuid for uuid in self.uuids[:count] if uuid in there and not self.cards[uuid].is_bare)
        part = {kind: amount // 4 for kind, amount in self._scalars.items()}
        rest = {kind: amount - part[kind] for kind, amount in self._scalars.items()}
        stack = (Reservation(ReservationType.STATIC, role),)
        return devices, (
            ReservedResources((), Resources(rest, PORTS, frozenset(there) - kept)),
            ReservedResources(stack, Resources(part, (), kept)),
        )


def _ill(device: Device) -> Device:
    ill, condition = DeviceHealth.UNHEALTHY, DeviceCondition.UNSPECIFIED
    return replace(device, health=ill, condition=condition, health_reason="fell ill")
