"""Where to reserve, when the operator leaves that to the master: on the fewest agents, the best-connected devices, cliques whole.

A pure choice among spots, each one bucket of one agent. What is asked for is dealt out in equal parts – one per GPU, or one per CPU or
GiB where no GPU is asked for – so that every GPU comes with its share of the CPUs and the memory. The order of preference is: fewest
agents; best-connected devices; fewest cliques of NVLinks broken; what is free before what is offered; what fits most closely.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bursar.core.device_names import gpus_among
from bursar.core.devices import Device, pick_connected
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.resources import (
    BYTE_KINDS,
    MILLI,
    ResourceRequest,
    Resources,
    Stack,
    count_ports,
    intersect_ports,
    subtract_ports,
)
from bursar.master.allocator.gangs import cliques_of

#: Into so many parts at most a request without GPUs is dealt.
MAX_PARTS = 1000
#: So many spots are compared closely; the others are of the kind that comes after them anyway.
MAX_COMPARED = 500


@dataclass(frozen=True, slots=True)
class Spot:
    """A bucket of an agent, and what of it may be taken."""

    agent_id: AgentId
    stack: Stack
    free: Resources
    offered: Resources
    #: By tasks; never taken.
    held: Resources
    devices: Mapping[DeviceUuid, Device]
    #: Place in the order of agents.
    order: int = 0

    @property
    def usable(self) -> Resources:
        """Free or offered."""
        return self.free + self.offered


@dataclass(frozen=True, slots=True)
class Choice:
    """What to take of a spot; every device is named."""

    spot: Spot
    request: ResourceRequest


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Nothing can be chosen.

    `closest`: how much of it would be possible, dealt out as it would be; where not even one part is, what one agent has of it;
    empty where none has anything of it. `spots`: where that much, or more, is.
    """

    closest: ResourceRequest
    spots: tuple[tuple[Spot, ResourceRequest], ...]
    #: Whether it would be possible if no task held anything.
    in_use: bool


@dataclass(slots=True)
class _Deal:
    """A request in parts."""

    request: ResourceRequest
    parts: int

    def share(self, count: int) -> ResourceRequest:
        """So many parts, rounded down: what does not divide evenly is dealt out afterwards."""
        request, parts = self.request, self.parts
        if count == parts:
            return request
        scalars = {kind: share for kind, amount in request.scalars.items() if (share := amount * count // parts)}
        return ResourceRequest(scalars, (), count if request.gpu_count else 0)

    def most(self, resources: Resources, more: int = 0) -> int:
        """How many parts there are in some resources, each amount with so many thousandths or bytes to spare."""
        request, parts = self.request, self.parts
        most = parts
        for kind, amount in request.scalars.items():
            most = min(most, ((resources.amount(kind) - more + 1) * parts - 1) // amount)
        if request.devices:
            return most if most == parts and resources.devices.issuperset(request.devices) else 0
        if request.gpus:
            most = min(most, resources.gpus * parts // request.gpus)
        has_ports = request.ports or request.port_count
        if has_ports and (most < parts or request.pick_ports(resources.ports) is None):
            return 0
        return most


def choose(spots: Sequence[Spot], request: ResourceRequest) -> list[Choice] | Shortfall:
    """Deal a request out to spots, as the module says; all of it, or say what would be possible."""
    deal = _Deal(request, _parts(request))
    all_rooms: dict[int, int] | None = None
    # What does not divide evenly is less than one for each part.
    for more in (0, deal.parts):
        rooms = {index: room for index, spot in enumerate(spots) if (room := deal.most(spot.usable, more)) > 0}
        all_rooms = rooms if all_rooms is None else all_rooms
        ways = [way for plan in _plans(spots, rooms, deal) if (way := _carry_out(spots, plan, deal))]
        if ways:
            return min(ways, key=_rank)
    return _shortfall(spots, all_rooms or {}, deal)


def _parts(request: ResourceRequest) -> int:
    if request.devices or request.ports or request.port_count:
        return 1
    if request.gpus:
        return request.gpus
    units = [amount // (2**30 if kind in BYTE_KINDS else MILLI) for kind, amount in request.scalars.items()]
    return max(1, min([*units, MAX_PARTS]))


def _plans(spots: Sequence[Spot], rooms: Mapping[int, int], deal: _Deal) -> Iterable[dict[int, int]]:
    """Ways to deal out all parts on the fewest agents: spot → parts."""
    whole = [index for index, room in rooms.items() if room == deal.parts]
    if whole:
        closest = sorted(whole, key=lambda index: (_is_wasted(spots[index], deal), _left(spots[index], deal.parts)))
        for index in closest[:MAX_COMPARED]:
            yield {index: deal.parts}
        return
    order = sorted(rooms, key=lambda index: (-rooms[index], _is_wasted(spots[index], deal), spots[index].order))
    fewest, total = 0, 0
    while total < deal.parts and fewest < len(order):
        total += rooms[order[fewest]]
        fewest += 1
    if total < deal.parts:
        return
    # The largest first, and of those that can take the rest the one that fits it best.
    first = {index: rooms[index] for index in order[: fewest - 1]}
    rest = deal.parts - sum(first.values())
    for last in [index for index in order[fewest - 1 :] if rooms[index] >= rest][:MAX_COMPARED]:
        yield {**first, last: rest}
    # Evenly.
    shares = [deal.parts // fewest + (place < deal.parts % fewest) for place in range(fewest)]
    tight = [index for index in order if rooms[index] >= shares[0]]
    tight.sort(key=lambda index: (rooms[index], spots[index].order))
    if len(tight) >= fewest:
        yield dict(zip(tight, shares, strict=False))
    # Whole cliques only.
    left, whole_cliques = deal.parts, dict[int, int]()
    for _ in range(fewest):
        fits = {
            index: _whole_cliques(spots[index], min(left, rooms[index]))
            for index in order[:MAX_COMPARED]
            if index not in whole_cliques
        }
        best = max(fits, key=lambda index: (fits[index], -rooms[index], -spots[index].order), default=None)
        if best is None or not fits[best]:
            break
        whole_cliques[best] = fits[best]
        left -= fits[best]
    if not left:
        yield whole_cliques


def _whole_cliques(spot: Spot, at_most: int) -> int:
    """The most GPUs, up to so many, that are whole cliques of what is usable."""
    usable = spot.usable.devices
    sums = {0}
    for clique in cliques_of([spot.devices[uuid] for uuid in usable if uuid in spot.devices]):
        sums |= {before + len(clique) for before in sums if before + len(clique) <= at_most}
    return max(sums)


def _is_wasted(spot: Spot, deal: _Deal) -> bool:
    """Whether GPUs would lose CPUs and memory to what wants no GPU."""
    return not deal.request.gpu_count and bool(spot.devices)


def _left(spot: Spot, parts: int) -> tuple[int, int]:
    return len(spot.usable.devices) - parts, spot.order


def _carry_out(spots: Sequence[Spot], plan: Mapping[int, int], deal: _Deal) -> list[Choice]:
    """The choices of a plan; none where what does not divide evenly has no place."""
    shares = _shares(spots, plan, deal)
    choices = []
    for index in sorted(shares, key=lambda index: spots[index].order):
        spot, request = spots[index], shares[index]
        if request.gpus and not request.devices:
            request = replace(request, devices=tuple(sorted(_pick(spot, request.gpus))))
        choices.append(Choice(spot, request))
    return choices


def _shares(spots: Sequence[Spot], plan: Mapping[int, int], deal: _Deal) -> dict[int, ResourceRequest]:
    shares = {index: deal.share(count) for index, count in plan.items()}
    for kind, amount in deal.request.scalars.items():
        left = amount - sum(share.scalars.get(kind, 0) for share in shares.values())
        for index, share in shares.items():
            # A few thousandths or bytes.
            before = share.scalars.get(kind, 0)
            more = min(left, spots[index].usable.scalars.get(kind, 0) - before)
            if more:
                shares[index] = replace(share, scalars={**share.scalars, kind: before + more})
                left -= more
        if left:
            return {}
    return shares


def _pick(spot: Spot, count: int) -> frozenset[DeviceUuid]:
    """The best-connected devices; free ones where they are as well connected."""
    best = frozenset(pick_connected(gpus_among(spot.usable.devices), count, spot.devices))
    if count <= spot.free.gpus:
        free = frozenset(pick_connected(gpus_among(spot.free.devices), count, spot.devices))
        if _quality(spot, free) <= _quality(spot, best):
            return free
    return best


def _quality(spot: Spot, chosen: frozenset[DeviceUuid]) -> tuple[int, int]:
    """Less is better: pairs without an NVLink, cliques of usable devices that are broken."""
    linked = {
        frozenset((uuid, link.peer_uuid))
        for uuid in chosen
        if uuid in spot.devices
        for link in spot.devices[uuid].links
        if link.kind == "nvlink" and link.peer_uuid in chosen and link.peer_uuid != uuid
    }
    usable = [spot.devices[uuid] for uuid in spot.usable.devices if uuid in spot.devices]
    broken = sum(1 for clique in cliques_of(usable) if clique & chosen and not clique <= chosen)
    return len(chosen) * (len(chosen) - 1) // 2 - len(linked), broken


def _rank(choices: Sequence[Choice]) -> tuple[int, ...]:
    unlinked = broken = offered = left = 0
    for choice in choices:
        devices = frozenset(choice.request.devices)
        worse, more = _quality(choice.spot, devices)
        unlinked, broken = unlinked + worse, broken + more
        free = choice.spot.free
        offered += len(devices - free.devices)
        offered += any(free.scalars.get(kind, 0) < amount for kind, amount in choice.request.scalars.items())
        left += len(choice.spot.usable.devices) - len(devices)
    wasted = sum(bool(choice.spot.devices) and not choice.request.gpu_count for choice in choices)
    return (len(choices), wasted, unlinked, broken, offered, left, *(choice.spot.order for choice in choices))


def _shortfall(spots: Sequence[Spot], rooms: Mapping[int, int], deal: _Deal) -> Shortfall:
    order = sorted(rooms, key=lambda index: (-rooms[index], spots[index].order))
    parts = [(spots[index], deal.share(rooms[index])) for index in order]
    before = min(sum(rooms.values()), deal.parts - 1)
    without_tasks = sum(deal.most(spot.usable + spot.held) for spot in spots)
    if deal.parts == 1:
        without_tasks = max((deal.most(spot.usable + spot.held) for spot in spots), default=0)
    in_use = without_tasks >= deal.parts
    if before:
        return Shortfall(deal.share(before), tuple(parts), in_use)
    capped = [(spot, _cap(spot, deal.request)) for spot in spots]
    best = max(capped, key=lambda part: (_fulfilled(part[1], deal.request), -part[0].order), default=None)
    if best is None or not best[1]:
        return Shortfall(ResourceRequest(), (), in_use)
    return Shortfall(best[1], (best,), in_use)


def _cap(spot: Spot, request: ResourceRequest) -> ResourceRequest:
    """What there is of a request in one spot, kind by kind."""
    usable = spot.usable
    scalars = {kind: some for kind, amount in request.scalars.items() if (some := min(amount, usable.amount(kind)))}
    devices = tuple(uuid for uuid in request.devices if uuid in usable.devices)
    gpus = len(devices) if request.devices else min(request.gpus, usable.gpus)
    ports = intersect_ports(request.ports, usable.ports)
    others = min(request.port_count, count_ports(subtract_ports(usable.ports, request.ports)))
    return ResourceRequest(scalars, ports, gpus, devices, others)


def _fulfilled(capped: ResourceRequest, request: ResourceRequest) -> tuple[int, int, int]:
    """More is closer: GPUs first; then kinds that are there in full; then thousandths of all kinds."""
    pairs = [(capped.scalars.get(kind, 0), amount) for kind, amount in request.scalars.items()]
    wanted_ports = count_ports(request.ports) + request.port_count
    if wanted_ports:
        pairs.append((count_ports(capped.ports) + capped.port_count, wanted_ports))
    return (
        capped.gpus,
        sum(some >= wanted for some, wanted in pairs),
        sum(some * MILLI // wanted for some, wanted in pairs),
    )
