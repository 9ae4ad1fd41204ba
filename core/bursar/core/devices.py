"""Devices with identity, and which of them to pick together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from itertools import combinations

from bursar.core.ids import DeviceUuid


class DeviceHealth(IntEnum):
    """Mirrors `bursar.v1.DeviceHealth`."""

    UNSPECIFIED = 0
    HEALTHY = 1
    UNHEALTHY = 2


class DeviceCondition(IntEnum):
    """Where a device is in its illness, if it has one; mirrors `bursar.v1.DeviceCondition`."""

    UNSPECIFIED = 0
    HEALTHY = 1
    SUSPECT = 2
    CORDONED = 3
    RECOVERING = 4
    RETIRED = 5
    BUSY = 6
    #: Switched over to instances (MIG), and it has none.
    UNCONFIGURED = 7
    #: Only the master says so: the place of a device that its agent has no more.
    VACANT = 8


#: The kind of a link over the machine's bus, and its greatest strength: on one board, then over one switch, several, a host bridge.
PCIE, PCIE_MOST = "pcie", 4


@dataclass(frozen=True, slots=True)
class DeviceLink:
    """How a device is connected to another one of the same agent."""

    peer_uuid: DeviceUuid
    #: `nvlink`, `xgmi`, …; `PCIE`: over the machine's bus.
    kind: str
    #: Higher is closer; comparable within one agent only, and among links of one kind. Every link is closer than one over the bus.
    strength: int


@dataclass(frozen=True, slots=True)
class Device:
    """One device; mirrors `bursar.v1.Device`."""

    uuid: DeviceUuid
    kind: str
    model: str = ""
    mem_bytes: int = 0
    #: Position in the driver's enumeration; not an identity.
    index: int = 0
    numa_node: int | None = None
    pci_address: str = ""
    parent_uuid: str = ""
    links: tuple[DeviceLink, ...] = ()
    health: DeviceHealth = DeviceHealth.HEALTHY
    health_reason: str = ""
    driver: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)
    condition: DeviceCondition = DeviceCondition.UNSPECIFIED
    #: Faults again, soon after it had recovered.
    relapses: int = 0


#: Beyond this many candidate sets the search is greedy.
_MAX_SETS = 2000

_Closeness = tuple[tuple[int, ...], ...]
"""By position in the pool. Machines of one kind have the same, so that what was searched once is remembered."""


def pick_connected(
    candidates: Iterable[DeviceUuid], count: int, devices: Mapping[DeviceUuid, Device]
) -> tuple[DeviceUuid, ...]:
    """Pick `count` of `candidates` that are best connected, and that leave well-connected ones behind.

    Closeness of a pair is 1 + the strength of its link – over the bus at most `PCIE_MOST`, which any other link is above –, or 1 on the same
    NUMA node, or 0. Among sets of equal closeness the one
    with the weakest ties to the rest wins (cliques are kept whole), then the one of lowest indices: the choice is total.
    Raises ValueError where there are not enough.
    """
    pool = sorted(candidates, key=lambda uuid: (devices[uuid].index if uuid in devices else 1 << 30, uuid))
    if count > len(pool):
        raise ValueError(f"{count} devices wanted, {len(pool)} there")
    if count == 0:
        return ()
    if count == len(pool):
        return tuple(pool)
    position = {uuid: index for index, uuid in enumerate(pool)}
    closeness = [[0] * len(pool) for _ in pool]
    uniform = True
    for left in pool:
        known = devices.get(left)
        if known is None:
            continue
        for link in known.links:
            peer = position.get(link.peer_uuid)
            if peer is not None and link.peer_uuid != left:
                # Whichever end describes it, and the closest where there are several.
                here = position[left]
                closest = max(closeness[here][peer], _closeness(link))
                closeness[here][peer] = closeness[peer][here] = closest
                uniform = False
        for right in pool:
            other = devices.get(right)
            if other and right != left and known.numa_node is not None and known.numa_node == other.numa_node:
                here = position[left]
                closeness[here][position[right]] = max(closeness[here][position[right]], 1)
                uniform = False
    if uniform:
        return tuple(pool[:count])
    chosen = _best_set(tuple(map(tuple, closeness)), count)
    return tuple(pool[index] for index in sorted(chosen))


def _closeness(link: DeviceLink) -> int:
    return 1 + (min(link.strength, PCIE_MOST) if link.kind == PCIE else PCIE_MOST + link.strength)


@lru_cache(maxsize=4096)
def _best_set(closeness: _Closeness, count: int) -> tuple[int, ...]:
    size = len(closeness)
    sets = 1
    for step in range(count):
        sets = sets * (size - step) // (step + 1)
    if sets <= _MAX_SETS:
        return max(combinations(range(size), count), key=lambda group: _score(closeness, group))
    best: tuple[int, ...] = ()
    for seed in range(size):
        group = [seed]
        while len(group) < count:
            rest = [index for index in range(size) if index not in group]
            group.append(max(rest, key=lambda index: (sum(closeness[index][member] for member in group), -index)))
        candidate = tuple(sorted(group))
        if not best or _score(closeness, candidate) > _score(closeness, best):
            best = candidate
    return best


def _score(closeness: _Closeness, group: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
    inside = sum(closeness[left][right] for left, right in combinations(group, 2))
    outside = sum(closeness[member][other] for member in group for other in range(len(closeness)) if other not in group)
    return inside, -outside, tuple(-index for index in group)
