"""Names, amounts and the like, as obstacles tell them."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import nsmallest

from bursar.core.device_names import device_kinds
from bursar.core.ids import FrameworkId
from bursar.core.messages.operator import Obstacle, ObstacleKind
from bursar.core.resources import (
    GPUS,
    MILLI,
    PORTS,
    ResourceRequest,
    Resources,
    Stack,
    count_ports,
    subtract_ports,
)
from bursar.core.text import format_amount
from bursar.master.state import Agent, Cluster, Framework

#: Names in one sentence; the rest is counted.
MAX_NAMES = 3


def covers_role(cluster: Cluster, stack: Stack, role: str) -> bool:
    """Whether what is reserved by a stack is for a role."""
    return cluster.holders.covers(stack[-1].holder, role)


def amounts_of(request: ResourceRequest) -> list[tuple[str, int]]:
    """What is asked for, kind by kind, in integer units; the scarcest kind of thing first."""
    amounts = [(GPUS, request.gpu_count * MILLI)] if request.gpu_count else []
    amounts += sorted(request.scalars.items())
    if request.ports or request.port_count:
        amounts.append((PORTS, count_ports(request.ports) + request.port_count))
    return amounts


def how_much(request: ResourceRequest, kind: str, resources: Resources) -> int:
    """How much of a kind is there, of what would do."""
    if kind == PORTS:
        named = count_ports(request.ports) - count_ports(subtract_ports(request.ports, resources.ports))
        others = count_ports(subtract_ports(resources.ports, request.ports))
        return named + min(request.port_count, others)
    if kind == GPUS and request.devices:
        return MILLI * len(resources.devices.intersection(request.devices))
    return resources.amount(kind)


def with_amount(
    kind: ObstacleKind,
    name: str,
    text: str,
    part: Resources,
    kinds: Iterable[str],
    agent: Agent,
    framework_id: str = "",
) -> Obstacle:
    """An obstacle that names how much it holds of the first kind that matters."""
    there = [GPUS] if part.gpus else []
    there += [*device_kinds(part.devices), *sorted(part.scalars)]
    resource = next((kind for kind in kinds if part.amount(kind)), there[0] if there else "")
    amount = part.amount(resource) if resource else 0
    return Obstacle(kind, name, text, framework_id, agent.agent_id, resource, amount)


def of_reservation(holder: str, part: Resources, agent: Agent, text: str, kinds: Iterable[str] = ()) -> Obstacle:
    """An obstacle that is a reservation of so much."""
    return with_amount(ObstacleKind.RESERVATION, holder, text, part, kinds, agent)


def format_of(kind: str, amount: int) -> str:
    """An amount of a kind, as users write it."""
    return str(amount) if kind == PORTS else format_amount(kind, amount)


def percent(millionths: int) -> str:
    """Of millionths, with two digits behind the point."""
    return f"{millionths // 10_000}.{millionths % 10_000 // 100:02d} %"


def framework_name(framework: Framework) -> str:
    """The id, and the name where that is another."""
    name = framework.info.name
    return framework.framework_id if name in ("", framework.framework_id) else f"{framework.framework_id} ({name})"


def name_of(cluster: Cluster, framework_id: FrameworkId) -> str:
    """The same of one that may be gone, with tasks that still end."""
    framework = cluster.frameworks.get(framework_id)
    return framework_id if framework is None else framework_name(framework)


def first_names(names: Iterable[str]) -> str:
    """The first few."""
    shown: list[str] = []
    for name in names:
        if len(shown) == MAX_NAMES:
            return ", ".join(shown) + ", …"
        shown.append(name)
    return ", ".join(shown)


def name_some(names: Iterable[str]) -> str:
    """The first few names in order, and a mark where there are more."""
    return first_names(nsmallest(MAX_NAMES + 1, names))
