"""Where the devices of an agent come from, and what it offers with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bursar.agent.containers.belonging import container_of_process, program_of
from bursar.agent.containers.runtime import ContainerId
from bursar.agent.devices.cutting import CannotCut, CardLayout, Step
from bursar.agent.devices.driver import (
    CardCutter,
    DeviceDriver,
    DriverUnavailable,
    card_cutters,
    health_watchers,
    user_tellers,
)
from bursar.agent.devices.health import Remedy
from bursar.agent.devices.users import DeviceUser
from bursar.agent.resources import HostResources, ResolvedResources, resolve_resources
from bursar.core.devices import Device, DeviceCondition, DeviceHealth
from bursar.core.errors import InvalidText
from bursar.core.ids import DeviceUuid
from bursar.core.resources import ReservedResources

#: Of `--tolerated-programs`: whatever uses a device.
ANY_PROGRAM = "*"


Users = dict[DeviceUuid, tuple[DeviceUser, ...] | None]


def with_containers(users: Users, first: Mapping[ContainerId, int]) -> Users:
    """The same, each process with the container that it belongs to; `first`: the first process of each container. Blocks."""
    return {
        uuid: said and tuple(replace(one, container_id=container_of_process(one.pid, first)) for one in said)
        for uuid, said in users.items()
    }


@dataclass(frozen=True, slots=True)
class DeviceSource:
    """Finds devices, and what the agent offers with them."""

    driver: DeviceDriver
    #: Value of --resources.
    declared: str
    host: HostResources
    #: Programs that may use devices beside tasks; `*`: any, so that nobody is asked.
    tolerated: frozenset[str] = frozenset()

    def discover(self) -> tuple[Device, ...]:
        """Every device there is; none where the driver has nothing. Blocks."""
        return self.driver.discover()

    def remedies(self) -> dict[DeviceUuid, Remedy]:
        """What drivers say must be done to devices, as of the last discovery."""
        return {uuid: remedy for one in health_watchers(self.driver) for uuid, remedy in one.remedies().items()}

    def probe(self, uuid: DeviceUuid) -> str:
        """Whether a device works again: it is there, no driver complains, and no probe fails. What is wrong, or nothing. Blocks."""
        try:
            device = next((device for device in self.discover() if device.uuid == uuid), None)
        except DriverUnavailable as error:
            return str(error)
        if device is None:
            return "it is not there"
        if device.health is DeviceHealth.UNHEALTHY and device.condition is not DeviceCondition.UNCONFIGURED:
            return device.health_reason or "its driver says that it is unhealthy"
        return next(filter(None, (one.probe(uuid) for one in health_watchers(self.driver))), "")

    @property
    def tells_users(self) -> bool:
        """Whether some driver can say who uses its devices, and it matters."""
        return ANY_PROGRAM not in self.tolerated and any(True for _ in user_tellers(self.driver))

    def users(self, uuids: Collection[DeviceUuid]) -> Users:
        """Who uses each of these, but for programs that may; None where nobody can say. Blocks."""
        users: Users = dict.fromkeys(uuids)
        for uuid, said in self.all_users(uuids).items() if self.tells_users else ():
            named = (replace(one, name=one.name or program_of(one.pid)) for one in said or ())
            users[uuid] = None if said is None else tuple(one for one in named if one.name not in self.tolerated)
        return users

    @property
    def measures_shares(self) -> bool:
        """Whether some driver may say what tasks use of their devices' memory."""
        return any(True for _ in user_tellers(self.driver))

    def all_users(self, uuids: Collection[DeviceUuid]) -> Users:
        """Who uses each of these, whatever its program; None where nobody can say. Blocks."""
        users: Users = dict.fromkeys(uuids)
        for teller in user_tellers(self.driver):
            users.update(teller.users(uuids))
        return users

    @property
    def can_cut(self) -> bool:
        """Whether some driver can cut cards."""
        return any(True for _ in card_cutters(self.driver))

    def layout_of(self, card: DeviceUuid) -> CardLayout:
        """Into what a card is cut. Raises CannotCut. Blocks."""
        return self._cutter().layout_of(card)

    def cut(self, card: DeviceUuid, step: Step) -> None:
        """Do one step of cutting it. Raises CannotCut. Blocks."""
        self._cutter().cut(card, step)

    def _cutter(self) -> CardCutter:
        for cutter in card_cutters(self.driver):
            return cutter
        raise CannotCut("no device driver here can cut cards")

    def resolve(self, found: Sequence[Device], assignment: Mapping[str, Sequence[Any]]) -> ResolvedResources:
        """What to offer. Raises InvalidText."""
        return resolve_resources(self.declared, self.host, found, assignment)

    def resolve_again(self, found: Sequence[Device], now: ResolvedResources) -> ResolvedResources:
        """As `resolve`, while the agent runs: devices that vanished are left out instead of being an error."""
        try:
            return resolve_resources(self.declared, self.host, found, now.assignment, now.devices)
        except InvalidText:
            there = {device.uuid: device for device in found}
            parts = tuple(
                ReservedResources(
                    part.stack,
                    type(part.resources)(
                        part.resources.scalars, part.resources.ports, part.resources.devices.intersection(there)
                    ),
                )
                for part in now.resources
            )
            devices = tuple(there[device.uuid] for device in now.devices if device.uuid in there)
            return ResolvedResources(parts, devices, now.assignment)
