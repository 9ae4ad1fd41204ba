"""Quantities and their arithmetic: integers only, never below zero.

A scalar is counted in thousandths (`cpus`, `gpus`, custom kinds) or bytes (`mem`, `disk`); ports are inclusive ranges;
GPUs are devices with identity, named by uuid. `Resources` is concrete (what an agent has, an offer contains, a task
holds); a `ResourceRequest` is what somebody asks for, in which GPUs may be a mere count. design.md §4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType

from bursar.core.device_names import (
    device_kind,
    devices_of_kind,
    gpus_among,
    is_volume,
    parent_of,
    volume_bytes,
    weight_milli,
)
from bursar.core.errors import InvalidText
from bursar.core.ids import DeviceUuid
from bursar.core.role_expressions import RoleExpression, read_holder
from bursar.core.roles import is_strict_subrole

CPUS, MEM, DISK, GPUS, PORTS = "cpus", "mem", "disk", "gpus", "ports"
#: Kinds that are counted in bytes; all other scalars are counted in thousandths.
BYTE_KINDS = frozenset({MEM, DISK})
MILLI = 1000
MAX_AMOUNT = 2**53

_EMPTY: Mapping[str, int] = MappingProxyType({})


class InsufficientResources(ArithmeticError):
    """A subtraction would have gone below zero: a bug of the caller, never of a peer."""


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """An inclusive range of ports, `first <= last`."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1


Ports = tuple[PortRange, ...]
"""Sorted, disjoint and not adjacent."""


def normalize_ports(ranges: Iterable[PortRange]) -> Ports:
    """Sort and merge ranges."""
    merged: list[PortRange] = []
    for span in sorted(ranges):
        if merged and span.first <= merged[-1].last + 1:
            if span.last > merged[-1].last:
                merged[-1] = PortRange(merged[-1].first, span.last)
        else:
            merged.append(span)
    return tuple(merged)


def subtract_ports(left: Ports, right: Ports) -> Ports:
    """Return `left` without what is also in `right`."""
    if not right or not left:
        return left
    result: list[PortRange] = []
    for span in left:
        first = span.first
        for cut in right:
            if cut.last < first or cut.first > span.last:
                continue
            if cut.first > first:
                result.append(PortRange(first, cut.first - 1))
            first = cut.last + 1
        if first <= span.last:
            result.append(PortRange(first, span.last))
    return tuple(result)


def intersect_ports(left: Ports, right: Ports) -> Ports:
    """Return what is in both."""
    return subtract_ports(left, subtract_ports(left, right))


def count_ports(ports: Ports) -> int:
    """How many ports there are in some ranges."""
    return sum(len(span) for span in ports)


def first_ports(ports: Ports, count: int) -> Ports:
    """The `count` lowest; all where there are fewer."""
    taken: list[PortRange] = []
    for span in ports:
        if count <= 0:
            break
        taken.append(span if len(span) <= count else PortRange(span.first, span.first + count - 1))
        count -= len(span)
    return tuple(taken)


@dataclass(frozen=True, slots=True)
class Resources:
    """An amount of concrete resources; immutable, compared by value.

    Invariant: no scalar is zero or negative, none is called `gpus` or `ports`.
    """

    #: kind → thousandths, or bytes for `mem` and `disk`.
    scalars: Mapping[str, int] = field(default_factory=lambda: _EMPTY)
    ports: Ports = ()
    devices: frozenset[DeviceUuid] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.scalars or self.ports or self.devices)

    def __hash__(self) -> int:
        return hash((frozenset(self.scalars.items()), self.ports, self.devices))

    def __add__(self, other: Resources) -> Resources:
        """Sum; devices or ports that are in both are a bug and raise InsufficientResources."""
        if not other:
            return self
        if not self:
            return other
        if self.devices and other.devices and not self.devices.isdisjoint(other.devices):
            raise InsufficientResources(f"added twice: {sorted(self.devices & other.devices)}")
        ports = self.ports
        if other.ports:
            if ports and intersect_ports(ports, other.ports):
                raise InsufficientResources(f"added twice: {intersect_ports(ports, other.ports)}")
            ports = normalize_ports((*ports, *other.ports))
        scalars = dict(self.scalars)
        for kind, amount in other.scalars.items():
            scalars[kind] = scalars.get(kind, 0) + amount
        return Resources(scalars, ports, self.devices | other.devices)

    def __sub__(self, other: Resources) -> Resources:
        """Difference; raises InsufficientResources unless `self` contains `other`."""
        if not other:
            return self
        if not other.devices <= self.devices:
            raise InsufficientResources(f"not there: {sorted(other.devices - self.devices)}")
        scalars = dict(self.scalars)
        for kind, amount in other.scalars.items():
            left = scalars.get(kind, 0) - amount
            if left > 0:
                scalars[kind] = left
            elif left == 0:
                scalars.pop(kind, None)
            else:
                raise InsufficientResources(f"{kind}: {scalars.get(kind, 0)} is less than {amount}")
        ports = self.ports
        if other.ports:
            if subtract_ports(other.ports, ports):
                raise InsufficientResources(f"not there: {subtract_ports(other.ports, ports)}")
            ports = subtract_ports(ports, other.ports)
        return Resources(scalars, ports, self.devices - other.devices)

    def contains(self, other: Resources) -> bool:
        """Say whether `other` could be subtracted."""
        mine = self.scalars
        for kind, amount in other.scalars.items():
            if mine.get(kind, 0) < amount:
                return False
        if not other.devices <= self.devices:
            return False
        return not other.ports or not subtract_ports(other.ports, self.ports)

    def minus_saturating(self, other: Resources) -> Resources:
        """Difference that stops at zero, kind by kind."""
        mine = self.scalars
        scalars = {kind: left for kind in mine if (left := mine[kind] - other.scalars.get(kind, 0)) > 0}
        return Resources(scalars, subtract_ports(self.ports, other.ports), self.devices - other.devices)

    def intersection(self, other: Resources) -> Resources:
        """What is in both, kind by kind."""
        return self.minus_saturating(self.minus_saturating(other))

    def amount(self, kind: str) -> int:
        """Amount of one kind in its integer unit; devices count 1000 each, ports as their number."""
        if kind == GPUS:
            return MILLI * len(gpus_among(self.devices))
        if kind == PORTS:
            return sum(len(span) for span in self.ports)
        found = self.scalars.get(kind)
        if found is None:
            return MILLI * len(devices_of_kind(self.devices, kind)) if self.devices else 0
        return found

    @property
    def gpus(self) -> int:
        """Number of whole GPUs."""
        return len(gpus_among(self.devices))

    def amounts(self) -> Mapping[str, int]:
        """All scalar kinds, devices among them: what fair share and quota see. Ports are not in it.

        Slices and shares count as themselves and as their thousandths of `gpus`, except where their card is there too: as views of one
        thing they count once. A persistent volume counts as the disk that it takes, and as nothing else.
        """
        if not self.devices:
            return self.scalars
        for uuid in self.devices:
            if "/" in uuid:
                amounts = _device_amounts(self.devices)
                if DISK in amounts and DISK in self.scalars:
                    amounts[DISK] += self.scalars[DISK]
                return {**self.scalars, **amounts}
        return {**self.scalars, GPUS: MILLI * len(self.devices)}


def _device_amounts(devices: frozenset[DeviceUuid]) -> dict[str, int]:
    amounts: dict[str, int] = {}
    for uuid in devices:
        if is_volume(uuid):
            amounts[DISK] = amounts.get(DISK, 0) + volume_bytes(uuid)
            continue
        kind = device_kind(uuid)
        amounts[kind] = amounts.get(kind, 0) + MILLI
        if (weight := weight_milli(uuid)) and parent_of(uuid) not in devices:
            amounts[GPUS] = amounts.get(GPUS, 0) + weight
    return amounts


EMPTY = Resources()


def sum_resources(parts: Iterable[Resources]) -> Resources:
    """Add many."""
    total = EMPTY
    for part in parts:
        total = total + part
    return total


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """Resources asked for: devices are a count, unless particular ones are named."""

    #: kind → thousandths or bytes; never `gpus`. Device kinds of other names are in it, 1000 for each device.
    scalars: Mapping[str, int] = field(default_factory=lambda: _EMPTY)
    ports: Ports = ()
    #: Whole GPUs, the named ones included.
    gpus: int = 0
    #: These very devices, in the order in which they were named.
    devices: tuple[DeviceUuid, ...] = ()
    #: So many ports beside the named ones, whichever.
    port_count: int = 0

    def __bool__(self) -> bool:
        return bool(self.scalars or self.ports or self.gpus or self.devices or self.port_count)

    def __hash__(self) -> int:
        return hash((frozenset(self.scalars.items()), self.ports, self.gpus, self.devices, self.port_count))

    def pick_ports(self, available: Ports) -> Ports | None:
        """The named ports and the lowest others; None where they are not there."""
        if not self.port_count:
            return None if subtract_ports(self.ports, available) else self.ports
        others = first_ports(subtract_ports(available, self.ports), self.port_count)
        if subtract_ports(self.ports, available) or count_ports(others) < self.port_count:
            return None
        return normalize_ports((*self.ports, *others))

    @property
    def gpu_count(self) -> int:
        """How many whole GPUs are wanted in all."""
        if not self.devices:
            return self.gpus
        return max(self.gpus, sum("/" not in uuid for uuid in self.devices))

    def fits_in(self, resources: Resources) -> bool:
        """Say whether `resources` are enough, whichever devices are picked."""
        available = resources.scalars
        for kind, amount in self.scalars.items():
            if available.get(kind, 0) < amount and (not resources.devices or resources.amount(kind) < amount):
                return False
        if self.gpu_count > len(resources.devices) or self.gpu_count > resources.gpus:
            return False
        if self.devices and not resources.devices.issuperset(self.devices):
            return False
        return not (self.ports or self.port_count) or self.pick_ports(resources.ports) is not None


class ReservationType(IntEnum):
    """How a reservation came about; mirrors `bursar.v1.ReservationType`."""

    UNSPECIFIED = 0
    STATIC = 1
    DYNAMIC = 2


@dataclass(frozen=True, slots=True, order=True)
class Reservation:
    """One level of a reservation stack (RSV-5)."""

    type: ReservationType
    #: Canonical text of a role expression; a role path means the role and its descendants.
    holder: str
    principal: str = ""
    #: Sorted pairs; part of the identity (RSV-11).
    labels: tuple[tuple[str, str], ...] = ()


Stack = tuple[Reservation, ...]
"""Reservation levels, bottom first; empty is unreserved. The owner is the top."""

UNRESERVED: Stack = ()


def stack_problem(stack: Stack) -> str | None:
    """Say what is wrong with a reservation stack, or nothing (mesos.md §2.5, format validity).

    What is above the bottom refines it, and is one plain role each. Whether an expression with groups covers such a role depends
    on the day, and is not asked here.
    """
    below: RoleExpression | None = None
    for level, reservation in enumerate(stack):
        if reservation.holder == "*":
            return "resources cannot be reserved to '*': unreserved resources are everybody's already"
        try:
            expression = read_holder(reservation.holder)
        except InvalidText as error:
            return error.detail.message
        if reservation.type not in (ReservationType.STATIC, ReservationType.DYNAMIC):
            return f"a reservation is static or dynamic, not {reservation.type!r}"
        if level and reservation.type is ReservationType.STATIC:
            return "a static reservation can only be at the bottom of a stack"
        if below is None:
            if not expression.groups and expression.covers_nothing():
                return f"{reservation.holder!r} covers no role"
        else:
            role = expression.plain
            if role is None:
                return f"{reservation.holder!r} does not refine {stack[level - 1].holder!r}: it must be one role"
            if below.plain is not None and not is_strict_subrole(role, below.plain):
                return f"{role!r} does not refine {below.plain!r}: it must be below it"
            if below.plain is None and not below.groups and not below.covers(role):
                return f"{role!r} does not refine {stack[level - 1].holder!r}, which does not cover it"
        below = expression
    return None


@dataclass(slots=True, unsafe_hash=True)
class ReservedResources:
    """Resources of one agent under one reservation stack. Never changed; not frozen, for a cycle makes many."""

    stack: Stack = UNRESERVED
    resources: Resources = EMPTY


Holding = Mapping[Stack, Resources]
"""Resources of one agent by reservation stack; no empty values. What an offer contains and a task holds."""


def holding_total(holding: Holding) -> Resources:
    """All buckets of a holding together."""
    if len(holding) == 1:
        (part,) = holding.values()
        return part
    return sum_resources(holding.values())


def add_holdings(left: Holding, right: Holding) -> dict[Stack, Resources]:
    """Bucket by bucket sum; parts of `right` may be empty."""
    if not left and all(right.values()):
        return dict(right)
    result = dict(left)
    for stack, part in right.items():
        if stack in result:
            result[stack] = result[stack] + part
        elif part:
            result[stack] = part
    return result


def subtract_holdings(left: Holding, right: Holding) -> dict[Stack, Resources]:
    """Bucket by bucket difference; raises InsufficientResources."""
    result = dict(left)
    for stack, part in right.items():
        there = result.get(stack, EMPTY)
        # Whole buckets move most often, as they are: nothing to work out then.
        rest = EMPTY if there is part else there - part
        if rest:
            result[stack] = rest
        else:
            result.pop(stack, None)
    return result


def holding_contains(left: Holding, right: Holding) -> bool:
    """Say whether `right` could be subtracted from `left`."""
    return all(left.get(stack, EMPTY).contains(part) for stack, part in right.items())


def to_reserved(holding: Holding) -> tuple[ReservedResources, ...]:
    """As a list, unreserved first, then by stack: the form that travels."""
    if len(holding) == 1:
        ((stack, part),) = holding.items()
        return (ReservedResources(stack, part),)
    return tuple([ReservedResources(stack, holding[stack]) for stack in sorted(holding) if holding[stack]])


def to_holding(parts: Iterable[ReservedResources]) -> dict[Stack, Resources]:
    """The inverse of `to_reserved`; parts under one stack are added."""
    result: dict[Stack, Resources] = {}
    for part in parts:
        if part.resources:
            result[part.stack] = result.get(part.stack, EMPTY) + part.resources
    return result


def iter_ports(ports: Ports) -> Iterator[int]:
    """Every single port, ascending."""
    for span in ports:
        yield from range(span.first, span.last + 1)
