"""Short words for what dialogues are about: amounts, tasks, stacks of reservations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bursar.core.ids import DeviceUuid, TaskId
from bursar.core.messages.offers import (
    Launch,
    Operation,
)
from bursar.core.resources import (
    PortRange,
    Reservation,
    ReservationType,
    ResourceRequest,
    Resources,
)
from bursar.core.tasks import TaskSpec

CLUSTER = "cluster-1"
GIB = 2**30


def request(cpus: float = 0, mem: float = 0, gpus: int = 0, *, ports: str = "", **more: Any) -> ResourceRequest:
    """What somebody asks for: CPUs, GiB of memory, whole GPUs."""
    scalars = {}
    if cpus:
        scalars["cpus"] = round(cpus * 1000)
    if mem:
        scalars["mem"] = round(mem * GIB)
    return ResourceRequest(scalars, _ports(ports), gpus, **more)


def resources(cpus: float = 0, mem: float = 0, devices: Iterable[str] = (), ports: str = "") -> Resources:
    """Concrete resources."""
    asked = request(cpus, mem)
    return Resources(asked.scalars, _ports(ports), frozenset(map(DeviceUuid, devices)))


def _ports(text: str) -> tuple[PortRange, ...]:
    if not text:
        return ()
    first, _, last = text.partition("-")
    return (PortRange(int(first), int(last or first)),)


def static(role: str) -> tuple[Reservation, ...]:
    """The stack of a static reservation."""
    return (Reservation(ReservationType.STATIC, role),)


def dynamic(role: str, principal: str = "", **labels: str) -> tuple[Reservation, ...]:
    """The stack of a dynamic reservation."""
    return (Reservation(ReservationType.DYNAMIC, role, principal, tuple(sorted(labels.items()))),)


def spec(
    task_id: str,
    cpus: float = 1,
    mem: float = 0,
    gpus: int = 0,
    *,
    ports: str = "",
    devices: Sequence[str] = (),
    **more: Any,
) -> TaskSpec:
    """A task that sleeps."""
    asked = request(cpus, mem, gpus, ports=ports, devices=tuple(map(DeviceUuid, devices)))
    fields: dict[str, Any] = {"command": ("sleep", "1"), "resources": asked} | more
    return TaskSpec(TaskId(task_id), **fields)


def launch(*specs: TaskSpec, operation_id: str = "op") -> Operation:
    """One launch."""
    return Operation(operation_id, Launch(tuple(specs)))
