"""What this machine has, and what of it the operator wants to be offered (`--resources`)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bursar.core.device_names import device_kind, parent_of
from bursar.core.devices import Device, DeviceCondition
from bursar.core.errors import InvalidText
from bursar.core.ids import DeviceUuid
from bursar.core.memory.pools import format_bytes
from bursar.core.resources import (
    CPUS,
    DISK,
    GPUS,
    MEM,
    MILLI,
    PORTS,
    UNRESERVED,
    PortRange,
    Ports,
    Reservation,
    ReservationType,
    ReservedResources,
    Resources,
    Stack,
    add_holdings,
    intersect_ports,
    to_reserved,
)
from bursar.core.text import ResourceText, format_amount, parse_resources

DEFAULT_PORTS: Ports = (PortRange(31000, 32000),)
#: Memory that is left to the system and to the agent, at most half of what there is.
SYSTEM_RESERVE_MEM_BYTES = 2**30
#: Disk that is left, at most half of what there is.
SYSTEM_RESERVE_DISK_BYTES = 5 * 2**30

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class HostResources:
    """What a machine has."""

    cpus_milli: int
    #: All memory; the system's reserve is taken off when it is offered.
    mem_bytes: int
    #: Size of the file system of the work directory: unlike what is free on it, the same after a restart.
    disk_bytes: int
    ports: Ports = DEFAULT_PORTS
    #: What is left of `mem_bytes` for tasks, where its pools were planned (`bursar.core.memory.agents`); else a reserve is taken off.
    offerable_mem_bytes: int | None = None

    @property
    def mem_offered_bytes(self) -> int:
        """What is offered where nothing else is declared, in whole MiB."""
        if self.offerable_mem_bytes is not None:
            return _whole_mib(self.offerable_mem_bytes)
        return _whole_mib(after_reserve(self.mem_bytes, SYSTEM_RESERVE_MEM_BYTES))


@dataclass(frozen=True, slots=True)
class ResolvedResources:
    """What an agent offers."""

    resources: tuple[ReservedResources, ...]
    #: The devices in `resources`; the machine's others are hidden.
    devices: tuple[Device, ...]
    #: Devices by holder of the static reservation, to be recorded and given again at the next start.
    assignment: Mapping[str, tuple[DeviceUuid, ...]]
    #: For people: one sentence each.
    warnings: tuple[str, ...] = ()


#: Devices by the holder that had them; None: everybody.
_Before = Mapping[str | None, Sequence[DeviceUuid]]


@dataclass(slots=True)
class _Pick:
    """Hands out devices."""

    free: list[Device]
    warnings: list[str] = field(default_factory=list)

    def take(self, count: int, wanted: Sequence[DeviceUuid] = ()) -> list[Device]:
        """`wanted` as far as they are there, then the first ones."""
        chosen = [device for uuid in wanted for device in self.free if device.uuid == uuid][:count]
        chosen += [device for device in self.free if device not in chosen][: count - len(chosen)]
        self.free = [device for device in self.free if device not in chosen]
        return chosen


def discover_host(work_dir: Path) -> HostResources:
    """Ask the machine: the CPUs this process may use, memory (of its cgroup, if that has a limit), and disk."""
    try:
        cpus = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        cpus = os.cpu_count() or 1
    mem = int(psutil.virtual_memory().total)
    for path in _CGROUP_LIMITS:
        try:
            mem = min(mem, int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue  # no such cgroup version, or `max`
    return HostResources(cpus * MILLI, mem, shutil.disk_usage(work_dir).total)


def after_reserve(total: int, reserve: int) -> int:
    """`total` less the reserve, which never takes more than half: not negative, whatever the machine."""
    return max(0, total - min(reserve, total // 2))


def resolve_resources(
    text: str,
    host: HostResources,
    devices: Sequence[Device],
    recorded: Mapping[str, Sequence[DeviceUuid]] | None = None,
    offered: Iterable[Device] = (),
) -> ResolvedResources:
    """Combine what was declared with what was discovered. Raises InvalidText.

    A kind that `text` does not name at all is discovered; one that it names, under whatever role, is exactly what it says.
    CPUs and memory may be declared beyond the machine's (a warning), devices may not. A static reservation keeps the devices
    that were `recorded` for it as far as they are there, and what everybody is offered are those that were `offered` before.

    A card that was cut counts as a GPU that is there, and so does one without instances (`DeviceCondition.UNCONFIGURED`), which comes beside
    what is declared, as slices do: an operator can name it.
    """
    items = parse_resources(text)
    named = {item.kind for item in items}
    before: dict[str | None, Sequence[DeviceUuid]] = {None: [device.uuid for device in offered]}
    before.update(recorded or {})
    devices = _without_hidden_views(items, devices, before) if GPUS in named else devices
    items += [item for item in _discovered(host, devices) if item.kind not in named]
    given, warnings = _assign_kinds(items, devices, before)
    kept = {device.uuid for part in given.get(GPUS, {}).values() for device in part}
    bare = frozenset(device.uuid for device in devices if _is_bare(device)) - kept
    holding: dict[Stack, Resources] = {UNRESERVED: Resources(devices=bare)} if bare else {}
    ports: Ports = ()
    for item in items:
        if item.kind in given:
            part = Resources(devices=frozenset(device.uuid for device in given[item.kind][item.holder]))
        elif item.kind == PORTS:
            if twice := intersect_ports(ports, item.ports):
                raise InvalidText(
                    f"resources: ports {twice[0].first}-{twice[0].last} are there twice", "give each port to one role"
                )
            ports = (*ports, *item.ports)
            part = Resources(ports=item.ports)
        else:
            part = Resources({item.kind: item.amount} if item.amount else {})
        holding = add_holdings(holding, {_stack(item.holder): part})
    chosen = {device.uuid for kind in given.values() for part in kind.values() for device in part} | bare
    assignment: dict[str, tuple[DeviceUuid, ...]] = {}
    for _, kind in sorted(given.items()):
        for role, part_of_kind in kind.items():
            if role and part_of_kind:
                assignment[role] = (*assignment.get(role, ()), *(device.uuid for device in part_of_kind))
    return ResolvedResources(
        resources=to_reserved(holding),
        devices=tuple(device for device in sorted(devices, key=lambda one: one.index) if device.uuid in chosen),
        assignment=assignment,
        warnings=(*_excess(items, host), *warnings),
    )


def _whole_mib(amount: int) -> int:
    """Rounded down: what is found is offered in numbers that people can read."""
    return amount >> 20 << 20


def _discovered(host: HostResources, devices: Sequence[Device]) -> list[ResourceText]:
    return [
        ResourceText(CPUS, None, host.cpus_milli),
        ResourceText(MEM, None, host.mem_offered_bytes),
        ResourceText(DISK, None, _whole_mib(after_reserve(host.disk_bytes, SYSTEM_RESERVE_DISK_BYTES))),
        *(ResourceText(kind, None, len(found) * MILLI) for kind, found in _by_kind(devices).items()),
        ResourceText(PORTS, None, 0, host.ports),
    ]


def _stack(holder: str | None) -> Stack:
    return UNRESERVED if holder is None else (Reservation(ReservationType.STATIC, holder),)


def _without_hidden_views(
    items: Sequence[ResourceText], devices: Sequence[Device], recorded: _Before
) -> Sequence[Device]:
    """The devices but for shares of GPUs that are not offered, or are reserved: a share is a view of its card, and goes where that goes.

    Raises InvalidText.
    """
    cards = [device for device in devices if device.kind == GPUS]
    given, _ = _assign_kinds([item for item in items if item.kind == GPUS], devices, recorded)
    hidden = {card.uuid for card in cards} - {card.uuid for card in given[GPUS].get(None, ())}
    return [device for device in devices if parent_of(device.uuid) not in hidden]


def _by_kind(devices: Iterable[Device]) -> dict[str, list[Device]]:
    """Devices by kind, each by index; GPUs are always a kind of devices, also where there are none."""
    found: dict[str, list[Device]] = {GPUS: []}
    for device in sorted(devices, key=lambda one: one.index):
        found.setdefault(device.kind, []).append(device)
    return found


def _assign_kinds(
    items: Sequence[ResourceText], devices: Iterable[Device], recorded: _Before
) -> tuple[dict[str, dict[str | None, list[Device]]], list[str]]:
    """The devices of each kind for each holder, and warnings. Raises InvalidText."""
    given: dict[str, dict[str | None, list[Device]]] = {}
    warnings: list[str] = []
    devices = tuple(devices)
    for kind, found in _by_kind(devices).items():
        mine = [item for item in items if item.kind == kind]
        if any(item.amount % MILLI for item in mine):
            raise InvalidText(f"resources: {kind} are devices on this machine", "declare a whole number of them")
        before = {role: [uuid for uuid in uuids if device_kind(uuid) == kind] for role, uuids in recorded.items()}
        kept = {uuid for role, uuids in before.items() if role for uuid in uuids}
        pick = _Pick([device for device in found if device.uuid in kept or not _is_bare(device)])
        total = len(found) + (_count_cut(devices) if kind == GPUS else 0)
        given[kind] = _assign_devices(kind, mine, pick, total, before)
        warnings += pick.warnings
    return given, warnings


def _is_bare(device: Device) -> bool:
    """Whether it is a card without the instances that it should have: of no use but to who cuts it or makes it whole."""
    return device.condition is DeviceCondition.UNCONFIGURED


def _count_cut(devices: Iterable[Device]) -> int:
    """Cards that are there as their slices only: declared as GPUs, they are no fewer for being cut."""
    whole = {device.uuid for device in devices}
    return len({parent for device in devices if (parent := parent_of(device.uuid)) is not None} - whole)


def _assign_devices(
    kind: str, items: Iterable[ResourceText], pick: _Pick, total: int, recorded: _Before
) -> dict[str | None, list[Device]]:
    """Devices for each holder: first what each had, then the first free ones in the order of the text."""
    counts = {item.holder: item.amount // MILLI for item in items}
    wanted = sum(counts.values())
    if wanted > total:
        raise InvalidText(
            f"resources: {wanted} {kind} are declared, but {total} are there",
            f"declare at most those, or leave {kind} out to offer all that are found",
        )
    given: dict[str | None, list[Device]] = {}
    there = {device.uuid for device in pick.free}
    for role, count in counts.items():
        before = [uuid for uuid in recorded.get(role, ()) if uuid in there]
        given[role] = pick.take(min(count, len(before)), before)
        if role and (
            lost := [uuid for uuid in recorded.get(role, ()) if uuid not in there][: count - len(given[role])]
        ):
            pick.warnings.append(
                f"devices of the reservation for {role} are not there any more, others take their place: {', '.join(lost)}"
            )
    for role, count in counts.items():
        given[role] += pick.take(count - len(given[role]))
    if pick.free and counts and None not in counts:
        pick.warnings.append(
            f"{len(pick.free)} of {total} {'GPUs' if kind == GPUS else kind} are in no reservation and hidden:"
            f" add {kind}:{len(pick.free)} to offer them to all"
        )
    return given


def _excess(items: Iterable[ResourceText], host: HostResources) -> list[str]:
    """Say which declared amounts go beyond the machine."""
    declared: dict[str, int] = {}
    for item in items:
        declared[item.kind] = declared.get(item.kind, 0) + item.amount
    excess = [
        f"{kind}: {format_amount(kind, declared[kind])} are declared, the machine has {format_amount(kind, there)}"
        for kind, there in ((CPUS, host.cpus_milli), (MEM, host.mem_bytes))
        if declared.get(kind, 0) > there
    ]
    offerable, mem = host.offerable_mem_bytes, declared.get(MEM, 0)
    if offerable is not None and offerable < mem <= host.mem_bytes:
        excess.append(
            f"mem: {format_amount(MEM, mem)} are declared, but the pools of --memory leave {format_bytes(offerable)} for tasks"
        )
    return excess
