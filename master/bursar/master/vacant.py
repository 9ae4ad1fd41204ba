"""The places of reserved devices that their agent has no more: part of what the agent is known to have, and offered to nobody.

A place is a device like others, never healthy, of the condition `VACANT`; so it is recorded, shown and withheld as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bursar.core.device_names import device_kind
from bursar.core.devices import Device, DeviceCondition, DeviceHealth
from bursar.core.ids import DeviceUuid
from bursar.core.messages.agent import AgentInfo
from bursar.core.resources import (
    Holding,
    Resources,
    Stack,
    add_holdings,
    subtract_holdings,
    to_holding,
    to_reserved,
)
from bursar.master.state import Agent

#: Why a vacancy is not healthy, for people.
_VANISHED = "its agent has it no more"


def is_vacancy(device: Device) -> bool:
    """Whether this is the place of a device, and not one."""
    return device.health is DeviceHealth.UNHEALTHY and device.condition is DeviceCondition.VACANT


def vacancies_of(agent: Agent | None) -> frozenset[DeviceUuid]:
    """The reserved devices that an agent has no more; none of one that is new."""
    return frozenset(device.uuid for device in (agent.devices.values() if agent else ()) if is_vacancy(device))


def with_vacancies(info: AgentInfo, known: Mapping[DeviceUuid, Device], reservations: Holding) -> AgentInfo:
    """What an agent says of itself, and a place for each device that a dynamic reservation names and the agent does not.

    `known`: the devices as they were. Each place is where the device was taken from: unreserved, or in a static reservation. The same
    object where nothing is missing.
    """
    there = {uuid for part in info.resources for uuid in part.resources.devices}
    bases: dict[DeviceUuid, Stack] = {}
    for stack in sorted(reservations, key=len):
        for uuid in reservations[stack].devices - there:
            # The lowest level that names it was cut from the bucket below.
            bases.setdefault(uuid, stack[:-1])
    if not bases:
        return info
    kept: Holding = to_holding(info.resources)
    for uuid, base in sorted(bases.items()):
        kept = add_holdings(kept, {base: Resources(devices=frozenset({uuid}))})
    devices = [device for device in info.devices if device.uuid not in bases]
    devices += [_place_of(uuid, known.get(uuid)) for uuid in sorted(bases)]
    return replace(info, devices=tuple(sorted(devices, key=lambda device: device.index)), resources=to_reserved(kept))


def without_vacancies(info: AgentInfo) -> AgentInfo:
    """What the agent said of itself."""
    vacant = {device.uuid for device in info.devices if is_vacancy(device)}
    if not vacant:
        return info
    said = to_holding(info.resources)
    for stack, part in list(said.items()):
        if gone := part.devices & vacant:
            said = subtract_holdings(said, {stack: Resources(devices=frozenset(gone))})
    devices = tuple(device for device in info.devices if device.uuid not in vacant)
    return replace(info, devices=devices, resources=to_reserved(said))


def _place_of(uuid: DeviceUuid, device: Device | None) -> Device:
    place = device if device is not None else Device(uuid, device_kind(uuid))
    vacant = DeviceCondition.VACANT
    return replace(place, links=(), health=DeviceHealth.UNHEALTHY, health_reason=_VANISHED, condition=vacant)
