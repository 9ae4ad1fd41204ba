"""Where the tasks of a gang could go: counted per agent by arithmetic; nothing is carved before the places are chosen.

Two questions. *Do all tasks fit at once?* (`place`): few agents first – those that take the most tasks –, for the last one the
agent that is the tightest. *What should be kept for them meanwhile?* (`plan_hold`): tasks that fit now keep their place, and for the
others the agents that lack the least keep what becomes free. Both are functions of what agents have for the gang, what is kept for
it included, so that they come to the same whatever the way there; ties are broken by the agents' order.

Packing several shapes is hard: each is placed by itself, the largest first, and then in the order given and in its reverse. A gang
that fits in none of these ways waits, although a way may exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import nsmallest
from operator import attrgetter
from typing import NamedTuple

from bursar.core.devices import Device
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.messages.gangs import GangGroup
from bursar.core.resources import GPUS, Holding, Ports, ResourceRequest, holding_total, subtract_ports
from bursar.core.text import format_amounts

Cliques = tuple[frozenset[DeviceUuid], ...]
"""An agent's GPUs in disjoint sets of which each GPU has an NVLink to every other."""

_MANY = 1 << 40


def cliques_of(devices: Iterable[Device]) -> Cliques:
    """Part the GPUs of an agent into cliques, the largest first. Exact where NVLinks form disjoint groups, as they mostly do."""
    known = sorted(
        (device for device in devices if device.kind == GPUS), key=lambda device: (device.index, device.uuid)
    )
    position = {device.uuid: index for index, device in enumerate(known)}
    neighbours = [0] * len(known)
    for index, device in enumerate(known):
        for link in device.links:
            peer = position.get(link.peer_uuid)
            if link.kind == "nvlink" and peer is not None and peer != index:
                # Whichever end describes it.
                neighbours[index] |= 1 << peer
                neighbours[peer] |= 1 << index
    return tuple(frozenset(known[index].uuid for index in part) for part in _parted(tuple(neighbours)))


@lru_cache(maxsize=4096)
def _parted(neighbours: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Positions in disjoint cliques, the largest that is found first; `neighbours[n]` are the bits of those linked to n."""
    left = list(range(len(neighbours)))
    found: list[tuple[int, ...]] = []
    while left:
        best: tuple[int, ...] = ()
        for seed in left:
            clique, common = [seed], neighbours[seed]
            for index in left:
                if common >> index & 1:
                    clique.append(index)
                    common &= neighbours[index]
            if len(clique) > len(best):
                best = tuple(clique)
        found.append(best)
        left = [index for index in left if index not in best]
    return tuple(found)


class Room(NamedTuple):
    """What there is on one agent, as far as a gang is concerned."""

    scalars: Mapping[str, int]
    gpus: int
    #: Free GPUs of each clique, ascending; None where cliques do not matter.
    parts: tuple[int, ...] | None
    ports: Ports


NO_ROOM = Room({}, 0, None, ())


def room_in(available: Holding, cliques: Cliques | None) -> Room:
    """The room that resources make."""
    total = holding_total(available)
    parts = None
    if cliques is not None:
        parts = tuple(sorted(size for clique in cliques if (size := len(clique & total.devices))))
    if total.gpus == len(total.devices):
        return Room(total.scalars, len(total.devices), parts, total.ports)
    amounts = {kind: amount for kind, amount in total.amounts().items() if kind != GPUS}
    return Room(amounts, total.gpus, parts, total.ports)


def fits(room: Room, request: ResourceRequest) -> int:
    """How many such tasks have room."""
    least = _MANY
    scalars = room.scalars
    for kind, amount in request.scalars.items():
        if amount > 0:
            count = scalars.get(kind, 0) // amount
            if count < least:
                if not count:
                    return 0
                least = count
    gpus = request.gpus
    if gpus:
        least = min(least, room.gpus // gpus if room.parts is None else sum(part // gpus for part in room.parts))
    if request.ports:
        least = min(least, 0 if subtract_ports(request.ports, room.ports) else 1)
    return least


def take(room: Room, request: ResourceRequest, count: int) -> Room:
    """What is left after so many tasks, which must fit. GPUs come out of the smallest cliques that have enough."""
    if not count:
        return room
    scalars = dict(room.scalars)
    for kind, amount in request.scalars.items():
        scalars[kind] = scalars.get(kind, 0) - amount * count
    parts = room.parts
    if parts is not None and request.gpus:
        sizes = list(parts)
        for _ in range(count):
            index = next(index for index, size in enumerate(sizes) if size >= request.gpus)
            sizes[index] -= request.gpus
            sizes.sort()
        parts = tuple(sizes)
    ports = subtract_ports(room.ports, request.ports) if request.ports else room.ports
    return Room(scalars, room.gpus - request.gpus * count, parts, ports)


def lacking(room: Room, request: ResourceRequest) -> int:
    """How far the room is from one task: the largest missing part of a kind, in thousandths of what the task needs of it."""
    most = 0
    for kind, amount in request.scalars.items():
        if (missing := amount - room.scalars.get(kind, 0)) > 0:
            most = max(most, missing * 1000 // amount)
    if request.gpus:
        there = room.gpus if room.parts is None else max(room.parts, default=0)
        if there < request.gpus:
            most = max(most, (request.gpus - there) * 1000 // request.gpus)
    return most


@dataclass(slots=True, eq=False)
class Spot:
    """An agent that a gang may use."""

    agent_id: AgentId
    #: Place in the order of agents.
    order: tuple[int, AgentId]
    #: What was free when this was found: another object means that it is out of date.
    free: Holding
    room: Room
    #: How many tasks of each group, taken alone, have room.
    fits: tuple[int, ...]
    #: The attribute that all must share.
    value: str | int | None = None
    #: How many would have room on the empty agent, and what the next one lacks now; found when something is to be kept.
    could: tuple[int, ...] | None = None
    lacks: tuple[int, ...] = ()


_by_order = attrgetter("order")
Counts = dict[AgentId, list[int]]
"""How many tasks of each group go to an agent."""


def _orders(groups: Sequence[GangGroup]) -> list[tuple[int, ...]]:
    """Orders in which groups are placed."""
    given = tuple(range(len(groups)))
    if len(groups) == 1:
        return [given]
    size = tuple(
        sorted(
            given, key=lambda i: (-groups[i].resources.gpus, -max(groups[i].resources.scalars.values(), default=0), i)
        )
    )
    return list(dict.fromkeys((size, given, given[::-1])))


def _fill(groups: Sequence[GangGroup], order: tuple[int, ...], spots: Sequence[Spot]) -> tuple[Counts, list[int]]:
    """Place what has room; return where, and how many of each group have none."""
    counts: Counts = {}
    rooms: dict[AgentId, Room] = {}
    left = [group.count for group in groups]
    for index in order:
        request, need = groups[index].resources, left[index]
        by_count: dict[int, list[Spot]] = {}
        for spot in spots:
            count = spot.fits[index]
            if count and rooms and spot.agent_id in rooms:
                count = fits(rooms[spot.agent_id], request)
            if count:
                by_count.setdefault(count, []).append(spot)
        chosen: list[tuple[Spot, int]] = []
        spare: list[Spot] = []
        for count in sorted(by_count, reverse=True):
            if not need or (spare and count < need):
                break
            here = by_count[count]
            whole = min(len(here), need // count)
            here = sorted(here, key=_by_order) if len(here) <= whole + 1 else nsmallest(whole + 1, here, key=_by_order)
            chosen += [(spot, count) for spot in here[:whole]]
            need -= whole * count
            # Those of which the rest would take a part only: the last of them is the tightest.
            spare = here[whole:] or spare
        if need and spare:
            chosen.append((spare[0], need))
            need = 0
        for spot, count in chosen:
            rooms[spot.agent_id] = take(rooms.get(spot.agent_id, spot.room), request, count)
            counts.setdefault(spot.agent_id, [0] * len(groups))[index] += count
        left[index] = need
    return counts, left


def place(groups: Sequence[GangGroup], spots: Sequence[Spot]) -> Counts | None:
    """Places for all tasks, or None."""
    for order in _orders(groups):
        counts, left = _fill(groups, order, spots)
        if not any(left):
            return counts
    return None


def place_somewhere(groups: Sequence[GangGroup], spots: Mapping[str | int | None, Sequence[Spot]]) -> Counts | None:
    """The same where all must share a value: among the values where all fit, the one that needs the fewest agents."""
    best: Counts | None = None
    for value in sorted(spots, key=_text):
        counts = place(groups, spots[value])
        if counts is not None and (best is None or len(counts) < len(best)):
            best = counts
    return best


def room_for(groups: Sequence[GangGroup], spots: Mapping[str | int | None, Sequence[Spot]]) -> int:
    """How many tasks have room together, under the value where most have."""
    most = 0
    for some in spots.values():
        counts, _ = _fill(groups, _orders(groups)[0], some)
        most = max(most, sum(map(sum, counts.values())))
    return most


def _text(value: str | int | None) -> tuple[bool, str]:
    return isinstance(value, int), str(value)


@dataclass(slots=True, eq=False)
class HoldPlan:
    """What should be kept for a gang that fills."""

    #: Tasks that have room now, by agent.
    filled: Counts = field(default_factory=dict)
    #: Further tasks, for which what becomes free on the agent is kept.
    filling: Counts = field(default_factory=dict)
    #: Tasks without any place: no agent could take them, empty or not.
    homeless: int = 0

    @property
    def tasks(self) -> int:
        """How many have room now."""
        return sum(map(sum, self.filled.values()))


def plan_hold(groups: Sequence[GangGroup], spots: Sequence[Spot], capacity: Callable[[AgentId], Room]) -> HoldPlan:
    """Keep what fits; then let the agents that lack the least fill up. `capacity`: what an agent has for the gang once it is empty."""
    order = _orders(groups)[0]
    filled, left = _fill(groups, order, spots)
    plan = HoldPlan(filled)
    for index in order:
        need = left[index]
        if not need:
            continue
        candidates: list[tuple[int, tuple[int, AgentId], int]] = []
        for spot in spots:
            if spot.could is None:
                most = capacity(spot.agent_id)
                spot.could = tuple([fits(most, group.resources) for group in groups])
                spot.lacks = tuple([lacking(spot.room, group.resources) for group in groups])
            more, lacks = spot.could[index], spot.lacks[index]
            if more and (spot.agent_id in plan.filled or spot.agent_id in plan.filling):
                more, lacks = _further(groups, index, spot, plan, capacity)
            if more > 0:
                candidates.append((lacks, spot.order, more))
        for _, (_, agent_id), more in nsmallest(need, candidates):
            count = min(more, need)
            plan.filling.setdefault(agent_id, [0] * len(groups))[index] += count
            need -= count
            if not need:
                break
        plan.homeless += need
    return plan


def _further(
    groups: Sequence[GangGroup], index: int, spot: Spot, plan: HoldPlan, capacity: Callable[[AgentId], Room]
) -> tuple[int, int]:
    """How many more tasks of a group an agent of the plan could take, and what the next one lacks."""
    most, rest = capacity(spot.agent_id), spot.room
    for counts in (plan.filled.get(spot.agent_id), plan.filling.get(spot.agent_id)):
        for other, count in enumerate(counts or ()):
            if count:
                most, rest = _less(most, groups[other].resources, count), _less(rest, groups[other].resources, count)
    return fits(most, groups[index].resources), lacking(rest, groups[index].resources)


def _less(room: Room, request: ResourceRequest, count: int) -> Room:
    """As `take`, for tasks that need not fit: no amount falls below zero, and cliques give what they have."""
    scalars = {kind: max(0, amount - request.scalars.get(kind, 0) * count) for kind, amount in room.scalars.items()}
    parts = room.parts
    if parts is not None and request.gpus:
        sizes = sorted(parts)
        for _ in range(count):
            index = next((index for index, size in enumerate(sizes) if size >= request.gpus), len(sizes) - 1)
            if index >= 0:
                sizes[index] = max(0, sizes[index] - request.gpus)
                sizes.sort()
        parts = tuple(sizes)
    ports = subtract_ports(room.ports, request.ports) if request.ports else room.ports
    return Room(scalars, max(0, room.gpus - request.gpus * count), parts, ports)


def pick_clique(
    free: frozenset[DeviceUuid], cliques: Cliques, devices: Mapping[DeviceUuid, Device], count: int
) -> list[DeviceUuid]:
    """`count` linked GPUs out of the smallest clique that has as many free; by index. Raises ValueError where none has."""
    parts = [clique & free for clique in cliques if len(clique & free) >= count]
    if not parts:
        raise ValueError(f"no clique has {count} free GPUs")
    index = {uuid: (device.index, uuid) for uuid, device in devices.items()}
    part = min(parts, key=lambda part: (len(part), min(index[uuid] for uuid in part)))
    return sorted(part, key=index.__getitem__)[:count]


def missing_of(groups: Sequence[GangGroup], rooms: Sequence[Room]) -> str:
    """Say which dimension is missing if a gang does not fit into rooms even when they are empty; empty where none is found.

    First a task that no agent could take, then a kind of which all together have too little, then the number of places.
    """
    for index, group in enumerate(groups):
        request = group.resources
        if any(fits(room, request) for room in rooms):
            continue
        worst = min(rooms, key=lambda room: lacking(room, request), default=NO_ROOM)
        for kind, amount in {**request.scalars, **({GPUS: 1000 * request.gpus} if request.gpus else {})}.items():
            largest = max(
                (room.gpus * 1000 if kind == GPUS else room.scalars.get(kind, 0) for room in rooms), default=0
            )
            if largest < amount:
                return f"a task of group {index} needs {_amount(kind, amount)}, and no agent has more than {_amount(kind, largest)}"
        if request.gpus and worst.parts is not None and max(worst.parts, default=0) < request.gpus:
            most = max((max(room.parts or (0,), default=0) for room in rooms), default=0)
            return (
                f"a task of group {index} needs {request.gpus} GPUs linked by NVLink, and no agent has more than {most}"
            )
        return f"no agent has all that a task of group {index} needs"
    needed: dict[str, int] = {}
    there: dict[str, int] = {}
    for group in groups:
        for kind, amount in group.resources.scalars.items():
            needed[kind] = needed.get(kind, 0) + amount * group.count
        if group.resources.gpus:
            needed[GPUS] = needed.get(GPUS, 0) + 1000 * group.resources.gpus * group.count
    for room in rooms:
        for kind, amount in room.scalars.items():
            there[kind] = there.get(kind, 0) + amount
        there[GPUS] = there.get(GPUS, 0) + 1000 * room.gpus
    for kind in sorted(needed):
        if there.get(kind, 0) < needed[kind]:
            return f"its tasks need {_amount(kind, needed[kind])}, and there are {_amount(kind, there.get(kind, 0))}"
    for index, group in enumerate(groups):
        places = sum(fits(room, group.resources) for room in rooms)
        if places < group.count:
            return f"group {index} has {group.count} tasks, and there is room for {places}"
    return ""


def _amount(kind: str, amount: int) -> str:
    return format_amounts({kind: amount}) if amount else f"{kind}:0"
