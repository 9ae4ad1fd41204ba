"""Where the tasks of a gang could go: counted per agent by arithmetic; nothing is carved before the places are chosen.

Two questions. *Do all tasks fit at once?* (`place`): few agents first – those that take the most tasks –, for the last one the
agent that is the tightest. *What should be kept for them meanwhile?* (`plan_hold`): tasks that fit now keep their place, and for the
others the agents that lack the least keep what becomes free. Both are functions of what agents have for the gang, what is kept for
it included, so that they come to the same whatever the way there; ties are broken by the agents' order.

Packing several shapes is hard: each is placed by itself, the largest first, and then in the order given and in its reverse. A gang
that fits in none of these ways waits, although a way may exist.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import merge, nsmallest
from itertools import islice
from typing import NamedTuple

from bursar.core.devices import Device
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.messages.gangs import GangGroup
from bursar.core.resources import (
    GPUS,
    MILLI,
    Ports,
    ResourceRequest,
    Resources,
    count_ports,
    first_ports,
    subtract_ports,
)
from bursar.core.text import format_amounts, format_request
from bursar.core.volumes import without_volumes

Cliques = tuple[frozenset[DeviceUuid], ...]
"""An agent's GPUs in disjoint sets of which each GPU has an NVLink to every other."""

_MANY = 1 << 40


def cliques_of(devices: Iterable[Device]) -> Cliques:
    """Part the GPUs of an agent into cliques, the largest first. Exact where NVLinks form disjoint groups, as they mostly do."""
    known = sorted([(device.index, device.uuid, device.links) for device in devices if device.kind == GPUS])
    bits = {uuid: 1 << index for index, (_, uuid, _) in enumerate(known)}
    everyone = (1 << len(known)) - 1
    neighbours = []
    for index, (_, _, links) in enumerate(known):
        linked = 0
        for link in links:
            if link.kind == "nvlink":
                linked |= bits.get(link.peer_uuid, 0)
        neighbours.append(linked & ~(1 << index))
    if any(linked | 1 << index != everyone for index, linked in enumerate(neighbours)):
        for index, linked in enumerate(neighbours):
            # Whichever end describes it.
            for other in range(len(neighbours)):
                if linked >> other & 1:
                    neighbours[other] |= 1 << index
    return tuple(frozenset([known[index][1] for index in part]) for part in _parted(tuple(neighbours)))


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


def room_in(total: Resources, cliques: Cliques | None) -> Room:
    """The room that resources make."""
    parts = None
    if cliques is not None:
        parts = tuple(sorted(size for clique in cliques if (size := len(clique & total.devices))))
    if total.gpus == len(total.devices):
        return Room(total.scalars, len(total.devices), parts, total.ports)
    # What is on a volume is no room for anybody who asks for disk.
    amounts = {kind: amount for kind, amount in without_volumes(total).amounts().items() if kind != GPUS}
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
    if request.port_count:
        least = min(least, count_ports(subtract_ports(room.ports, request.ports)) // request.port_count)
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
    return Room(scalars, room.gpus - request.gpus * count, parts, _ports_left(room.ports, request, count))


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


Order = tuple[int, AgentId]
"""Where an agent stands in the order of agents, and who it is."""


@dataclass(slots=True, eq=False)
class Alike:
    """Agents that are alike for a gang: the same room, and the same value of the attribute that all must share."""

    room: Room
    #: How many tasks of each group, taken alone, have room on each.
    fits: tuple[int, ...]
    value: str | int | None = None
    #: The agents, in order.
    orders: list[Order] = field(default_factory=list)
    #: By how many tasks of each group would have room on them once they are empty; found when something is to be kept.
    emptied: dict[tuple[int, ...], list[Order]] = field(default_factory=dict)
    _could: dict[Order, tuple[int, ...]] = field(default_factory=dict)
    _lacks: tuple[int, ...] | None = None

    def remove(self, order: Order) -> None:
        """An agent of these is not like them any more."""
        del self.orders[bisect_left(self.orders, order)]
        could = self._could.pop(order, None)
        if could is not None:
            part = self.emptied[could]
            del part[bisect_left(part, order)]

    def once_empty(
        self, groups: Sequence[GangGroup], capacity: Callable[[AgentId], Room]
    ) -> Mapping[tuple[int, ...], list[Order]]:
        """The agents by what they could take once nothing else runs there."""
        if len(self._could) < len(self.orders):
            for order in self.orders:
                if order not in self._could:
                    most = capacity(order[1])
                    could = self._could[order] = tuple([fits(most, group.resources) for group in groups])
                    _enter(self.emptied.setdefault(could, []), order)
        return self.emptied

    def lacks(self, groups: Sequence[GangGroup]) -> tuple[int, ...]:
        """What each of them lacks for one (more) task of each group."""
        if self._lacks is None:
            self._lacks = tuple([lacking(self.room, group.resources) for group in groups])
        return self._lacks


def _enter(orders: list[Order], order: Order) -> None:
    if not orders or orders[-1] < order:
        orders.append(order)
    else:
        insort(orders, order)


ByValue = Mapping[str | int | None, Sequence[Alike]]
"""Agents alike, by the value of the attribute that all must share."""
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


@dataclass(slots=True, eq=False)
class _Filled:
    """Where tasks were placed."""

    counts: Counts
    #: How many tasks of each group have no place.
    left: list[int]
    #: The agents that got some: where they stand, and the room that they had.
    homes: dict[AgentId, tuple[Order, Room]] = field(default_factory=dict)


def _fill(groups: Sequence[GangGroup], order: tuple[int, ...], there: Sequence[Alike]) -> _Filled:
    """Place what has room."""
    filled = _Filled({}, [group.count for group in groups])
    #: What is left of agents that got some tasks.
    rooms: dict[Order, Room] = {}
    for index in order:
        request, need = groups[index].resources, filled.left[index]
        chosen: list[tuple[Order, Room, int]] = []
        spare: tuple[Order, Room] | None = None
        by_count = _by_count(request, index, there, rooms)
        for count in sorted(by_count, reverse=True):
            if not need or (spare and count < need):
                break
            whole = need // count
            here = list(islice(merge(*by_count[count]), whole + 1))
            chosen += [(one, room, count) for one, room in here[:whole]]
            need -= min(whole, len(here)) * count
            # Those of which the rest would take a part only: the last of them is the tightest.
            spare = here[whole] if len(here) > whole else spare
        if need and spare:
            chosen.append((*spare, need))
            need = 0
        for one, room, count in chosen:
            rooms[one] = take(room, request, count)
            filled.homes.setdefault(one[1], (one, room))
            filled.counts.setdefault(one[1], [0] * len(groups))[index] += count
        filled.left[index] = need
    return filled


def _by_count(
    request: ResourceRequest, index: int, there: Sequence[Alike], rooms: Mapping[Order, Room]
) -> dict[int, list[Iterable[tuple[Order, Room]]]]:
    """How many tasks of a group have room → agents with as much, in order; `rooms` are of those that got some tasks before."""
    found: dict[int, list[Iterable[tuple[Order, Room]]]] = {}
    for alike in there:
        if count := alike.fits[index]:
            found.setdefault(count, []).append(_untouched(alike, rooms))
    for one, room in sorted(rooms.items()) if rooms else ():
        if count := fits(room, request):
            found.setdefault(count, []).append(((one, room),))
    return found


def _untouched(alike: Alike, rooms: Mapping[Order, Room]) -> Iterator[tuple[Order, Room]]:
    room = alike.room
    return ((one, room) for one in alike.orders if one not in rooms)


def place(groups: Sequence[GangGroup], there: Sequence[Alike]) -> Counts | None:
    """Places for all tasks, or None."""
    for order in _orders(groups):
        filled = _fill(groups, order, there)
        if not any(filled.left):
            return filled.counts
    return None


def group_by_value(classes: Iterable[Alike]) -> dict[str | int | None, list[Alike]]:
    """Agents alike, by the value that all must share."""
    found: dict[str | int | None, list[Alike]] = {}
    for alike in classes:
        if alike.orders:
            found.setdefault(alike.value, []).append(alike)
    return found


def totals(groups: Sequence[GangGroup], there: Sequence[Alike]) -> list[int]:
    """How many tasks of each group have room, each group taken alone."""
    return [sum([alike.fits[index] * len(alike.orders) for alike in there]) for index in range(len(groups))]


def worth_trying(groups: Sequence[GangGroup], there: ByValue) -> ByValue:
    """The values under which as many tasks of each group have room, each group taken alone."""
    needed = [group.count for group in groups]
    return {
        value: some
        for value, some in there.items()
        if all(most >= count for most, count in zip(totals(groups, some), needed, strict=True))
    }


def nearest_value(groups: Sequence[GangGroup], there: ByValue) -> str | int | None:
    """The value under which most tasks have room, each group taken alone."""

    def most(value: str | int | None) -> tuple[int, str]:
        sums = totals(groups, there[value])
        return sum(min(total, group.count) for total, group in zip(sums, groups, strict=True)), str(value)

    return max(there, key=most)


def place_somewhere(groups: Sequence[GangGroup], there: ByValue) -> Counts | None:
    """The same where all must share a value: among the values where all fit, the one that needs the fewest agents."""
    best: Counts | None = None
    classes = [alike for some in there.values() for alike in some]
    # No value needs fewer agents than this, where each agent takes as many tasks of a group as any does.
    least = max(
        -(-group.count // max(1, max((alike.fits[index] for alike in classes), default=1)))
        for index, group in enumerate(groups)
    )
    for value in sorted(there, key=_text):
        counts = place(groups, there[value])
        if counts is not None and (best is None or len(counts) < len(best)):
            best = counts
            if len(best) == least:
                break
    return best


def room_for(groups: Sequence[GangGroup], there: ByValue) -> int:
    """How many tasks have room together, under the value where most have."""
    most = 0
    for some in there.values():
        filled = _fill(groups, _orders(groups)[0], some)
        most = max(most, sum(map(sum, filled.counts.values())))
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


def plan_hold(groups: Sequence[GangGroup], there: Sequence[Alike], capacity: Callable[[AgentId], Room]) -> HoldPlan:
    """Keep what fits; then let the agents that lack the least fill up. `capacity`: what an agent has for the gang once it is empty."""
    order = _orders(groups)[0]
    filled = _fill(groups, order, there)
    plan, homes = HoldPlan(filled.counts), filled.homes
    for index in order:
        need = filled.left[index]
        if not need:
            continue
        candidates: list[tuple[int, Order, int, Room]] = []
        for agent_id, (one, room) in homes.items():
            more, lacks = _further(groups, index, agent_id, room, plan, capacity)
            if more > 0:
                candidates.append((lacks, one, more, room))
        for alike in there:
            lacks = alike.lacks(groups)[index]
            for could, orders in alike.once_empty(groups, capacity).items():
                if more := could[index]:
                    others = islice((one for one in orders if one[1] not in homes), need)
                    candidates += [(lacks, one, more, alike.room) for one in others]
        for _, one, more, room in nsmallest(need, candidates):
            count = min(more, need)
            homes[one[1]] = one, room
            plan.filling.setdefault(one[1], [0] * len(groups))[index] += count
            need -= count
            if not need:
                break
        plan.homeless += need
    return plan


def _further(
    groups: Sequence[GangGroup],
    index: int,
    agent_id: AgentId,
    rest: Room,
    plan: HoldPlan,
    capacity: Callable[[AgentId], Room],
) -> tuple[int, int]:
    """How many more tasks of a group an agent of the plan could take, and what the next one lacks; `rest` is its room now."""
    most = capacity(agent_id)
    for counts in (plan.filled.get(agent_id), plan.filling.get(agent_id)):
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
    ports = _ports_left(room.ports, request, count)
    return Room(scalars, max(0, room.gpus - request.gpus * count), parts, ports)


def _ports_left(ports: Ports, request: ResourceRequest, count: int) -> Ports:
    if request.ports:
        ports = subtract_ports(ports, request.ports)
    if request.port_count:
        ports = subtract_ports(ports, first_ports(ports, request.port_count * count))
    return ports


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


class Shortage(NamedTuple):
    """Of what a gang has not enough."""

    message: str
    #: The kind of resource, where it is one: how much is wanted, and how much there is.
    kind: str = ""
    wanted: int = 0
    there: int = 0


def missing_of(groups: Sequence[GangGroup], agents: Sequence[Alike]) -> Shortage | None:
    """In which dimension a gang does not fit into what agents have; None where none is found.

    First a task that no agent could take, then a kind of which all together have too little, then the number of places.
    """
    rooms = [alike.room for alike in agents]
    for index, group in enumerate(groups):
        request = group.resources
        # People did not number their groups.
        each = "each of its tasks" if len(groups) == 1 else f"each of its tasks of {format_request(request)}"
        if any(alike.fits[index] for alike in agents):
            continue
        for kind, amount in _needs(request).items():
            largest = max((_there(room, kind) for room in rooms), default=0)
            if largest < amount:
                text = f"{each} needs {_amount(kind, amount)}, and no agent has more than {_amount(kind, largest)}"
                return Shortage(text, kind, amount, largest)
        if request.gpus:
            most = max((max(room.parts or (0,), default=0) for room in rooms if room.parts is not None), default=None)
            if most is not None and most < request.gpus:
                text = f"{each} needs {request.gpus} GPUs linked by NVLink, and no agent has more than {most}"
                return Shortage(text, GPUS, MILLI * request.gpus, MILLI * most)
        return Shortage(f"no agent has all that {each} needs")
    needed = needs_of(groups)
    for kind in sorted(needed):
        there = _there_in_all(agents, kind)
        if there < needed[kind]:
            text = f"its tasks need {_amount(kind, needed[kind])}, and there are {_amount(kind, there)}"
            return Shortage(text, kind, needed[kind], there)
    for group, places in zip(groups, totals(groups, agents), strict=True):
        if places < group.count:
            which = f" of {format_request(group.resources)}" if len(groups) > 1 else ""
            return Shortage(f"there are places for {places} of its {group.count} tasks{which}")
    return None


def needs_of(groups: Sequence[GangGroup]) -> dict[str, int]:
    """What all tasks of a gang need together, by kind."""
    needed: dict[str, int] = {}
    for group in groups:
        for kind, amount in _needs(group.resources).items():
            needed[kind] = needed.get(kind, 0) + amount * group.count
    return needed


def lacks_in_all(groups: Sequence[GangGroup], agents: Sequence[Alike]) -> dict[str, int]:
    """How much more than agents have together all tasks need, by kind; none of a kind of which there is enough."""
    needed = needs_of(groups)
    return {kind: lack for kind in sorted(needed) if (lack := needed[kind] - _there_in_all(agents, kind)) > 0}


def _there_in_all(agents: Sequence[Alike], kind: str) -> int:
    return sum(_there(alike.room, kind) * len(alike.orders) for alike in agents)


def _needs(request: ResourceRequest) -> dict[str, int]:
    return {**request.scalars, **({GPUS: MILLI * request.gpus} if request.gpus else {})}


def _there(room: Room, kind: str) -> int:
    return MILLI * room.gpus if kind == GPUS else room.scalars.get(kind, 0)


def _amount(kind: str, amount: int) -> str:
    return format_amounts({kind: amount}) if amount else f"{kind}:0"
