"""Cutting a request out of what there is: used when an offer is cut to demand, when an accept is carried out, and when an
operator reserves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bursar.core.device_names import devices_of_kind, gpus_among, parent_of, views_hidden_by
from bursar.core.devices import Device, pick_connected
from bursar.core.ids import DeviceUuid
from bursar.core.resources import (
    EMPTY,
    MILLI,
    Holding,
    ResourceRequest,
    Resources,
    Stack,
    add_holdings,
    count_ports,
    first_ports,
    holding_total,
    intersect_ports,
    subtract_holdings,
    subtract_ports,
)
from bursar.core.volumes import volumes_in


def carve(
    available: Holding, request: ResourceRequest, devices: Mapping[DeviceUuid, Device], count: int = 1
) -> dict[Stack, Resources] | None:
    """Cut `count` times a request out of `available`; None where it is not there.

    Reserved resources are used before unreserved ones, the most refined first. Devices that are named are taken; the others are
    the best-connected set, within one bucket where one suffices.
    """
    if request.devices and (volumes := volumes_in(request.devices)):
        return _carve_beside(available, request, volumes, devices, count)
    if len(available) == 1:
        ((only, part),) = available.items()
        cut = _carve_one(part, request, devices, count)
        return None if cut is None else {only: cut} if cut else {}
    stacks = sorted(available, key=lambda stack: (-len(stack), stack))
    result: dict[Stack, Resources] = {}

    def take(stack: Stack, part: Resources) -> None:
        result[stack] = result.get(stack, EMPTY) + part

    for kind, amount in request.scalars.items():
        missing = amount * count
        for stack in stacks:
            there = min(available[stack].scalars.get(kind, 0), missing)
            if there > 0:
                take(stack, Resources({kind: there}))
                missing -= there
        for stack in stacks if missing > 0 else ():
            named = frozenset(request.devices)
            uuids = pick_of_kind(available[stack].devices - named, kind, missing // MILLI, devices)
            if uuids and missing % MILLI == 0:
                take(stack, Resources(devices=uuids))
                missing -= MILLI * len(uuids)
        if missing > 0:
            return None
    if request.ports:
        if count > 1:
            return None
        wanted = request.ports
        for stack in stacks:
            common = intersect_ports(wanted, available[stack].ports)
            if common:
                take(stack, Resources(ports=common))
                wanted = subtract_ports(wanted, common)
        if wanted:
            return None
    if missing := request.port_count * count:
        for stack in stacks:
            found = first_ports(subtract_ports(available[stack].ports, request.ports), missing)
            if found:
                take(stack, Resources(ports=found))
                missing -= count_ports(found)
        if missing:
            return None
    picked = _pick_devices(available, stacks, request, devices, count)
    if picked is None:
        return None
    for stack, uuids in picked.items():
        take(stack, Resources(devices=uuids))
    every = holding_total(result).devices
    return None if views_hidden_by(every, every) else result


def _carve_beside(
    available: Holding,
    request: ResourceRequest,
    volumes: list[DeviceUuid],
    devices: Mapping[DeviceUuid, Device],
    count: int,
) -> dict[Stack, Resources] | None:
    """The same where persistent volumes are named: they count as no GPUs that are."""
    named = frozenset(volumes)
    held = {stack: Resources(devices=common) for stack, part in available.items() if (common := named & part.devices)}
    if count > 1 or sum(len(part.devices) for part in held.values()) != len(named):
        return None
    others = replace(request, devices=tuple(uuid for uuid in request.devices if uuid not in named))
    rest = carve(subtract_holdings(available, held), others, devices)
    return None if rest is None else add_holdings(rest, held)


def _carve_one(
    part: Resources, request: ResourceRequest, devices: Mapping[DeviceUuid, Device], count: int
) -> Resources | None:
    """The same from one bucket, as it mostly is; the bucket's own value where all of it is taken."""
    scalars = {}
    others: frozenset[DeviceUuid] = frozenset()
    for kind, amount in request.scalars.items():
        wanted = amount * count
        if wanted > part.scalars.get(kind, 0):
            pool = part.devices.difference(
                request.devices, views_hidden_by(others.union(request.devices), part.devices)
            )
            of_kind = pick_of_kind(pool, kind, wanted // MILLI, devices)
            if MILLI * len(of_kind) != wanted:
                return None
            others |= of_kind
        elif wanted > 0:
            scalars[kind] = wanted
    ports = request.ports
    if ports and (count > 1 or subtract_ports(ports, part.ports)):
        return None
    if request.port_count:
        chosen = replace(request, port_count=request.port_count * count).pick_ports(part.ports)
        if chosen is None:
            return None
        ports = chosen
    picked: frozenset[DeviceUuid] = frozenset()
    if request.devices:
        picked = frozenset(request.devices)
        if count > 1 or request.gpus > len(request.devices) or not picked <= part.devices:
            return None
    elif wanted := request.gpu_count * count:
        gpus = gpus_among(part.devices)
        if others:
            gpus -= views_hidden_by(others, gpus)
        if wanted > len(gpus):
            return None
        picked = frozenset(pick_connected(gpus, wanted, devices))
    if others:
        picked |= others
    if scalars == part.scalars and ports == part.ports and picked == part.devices:
        return part
    return Resources(scalars, ports, picked)


def _pick_devices(
    available: Holding,
    stacks: list[Stack],
    request: ResourceRequest,
    devices: Mapping[DeviceUuid, Device],
    count: int,
) -> dict[Stack, frozenset[DeviceUuid]] | None:
    wanted = request.gpu_count * count
    if wanted == 0 and not request.devices:
        return {}
    if request.devices:
        if count > 1 or request.gpus > len(request.devices):
            return None
        named = frozenset(request.devices)
        found = {stack: common for stack in stacks if (common := named & available[stack].devices)}
        return found if sum(map(len, found.values())) == len(named) else None
    # One bucket where one suffices: the most refined that has enough.
    for stack in stacks:
        if len(pool := gpus_among(available[stack].devices)) >= wanted:
            return {stack: frozenset(pick_connected(pool, wanted, devices))}
    result: dict[Stack, frozenset[DeviceUuid]] = {}
    for stack in stacks:
        pool = gpus_among(available[stack].devices)
        part = min(len(pool), wanted)
        if part:
            result[stack] = frozenset(pick_connected(pool, part, devices))
            wanted -= part
    return result if wanted == 0 else None


def pick_of_kind(
    pool: frozenset[DeviceUuid], kind: str, count: int, devices: Mapping[DeviceUuid, Device]
) -> frozenset[DeviceUuid]:
    """At most `count` devices of a kind other than whole GPUs: of slices and shares the ones of cards that are broken already, the
    fullest card first; of others the best-connected.
    """
    there = devices_of_kind(pool, kind) if pool else pool
    if not there or count <= 0:
        return frozenset()
    if len(there) <= count:
        return there
    parents = {uuid: parent_of(uuid) for uuid in there}
    if not any(parents.values()):
        return frozenset(pick_connected(there, count, devices))
    left: dict[DeviceUuid | None, int] = {}
    for uuid in pool:
        card = parent_of(uuid)
        left[card] = left.get(card, 0) + 1
    order = sorted(there, key=lambda uuid: (parents[uuid] in pool, left[parents[uuid]], parents[uuid] or "", uuid))
    return frozenset(order[:count])


def _amount(total: Resources, kind: str, of: int) -> int:
    """What is there of a kind; of devices nothing where a part of one is asked for."""
    found = total.scalars.get(kind, 0)
    return total.amount(kind) if found < of and total.devices and of % MILLI == 0 else found


def fitting_count(available: Holding, request: ResourceRequest, limit: int) -> int:
    """How often a request fits into what is available, at most `limit`; amounts only."""
    if not request:
        return 0
    total = holding_total(available)
    fits = limit
    for kind, amount in request.scalars.items():
        if amount > 0:
            fits = min(fits, _amount(total, kind, amount) // amount)
    if request.gpu_count:
        fits = min(fits, total.gpus // request.gpu_count)
    if request.devices:
        fits = min(fits, 1 if total.devices.issuperset(request.devices) else 0)
    if request.ports:
        fits = min(fits, 0 if subtract_ports(request.ports, total.ports) else 1)
    if request.port_count:
        fits = min(fits, count_ports(subtract_ports(total.ports, request.ports)) // request.port_count)
    return fits
