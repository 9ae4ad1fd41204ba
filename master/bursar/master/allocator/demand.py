"""What a framework can use of an agent, by the shapes that it said it wants (level-triggered: field.md pain 18)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bursar.core.devices import Device
from bursar.core.ids import DeviceUuid
from bursar.core.messages.offers import Demand
from bursar.core.resources import Holding, ResourceRequest, Resources, Stack, add_holdings, subtract_holdings
from bursar.master.allocator.carve import carve, fitting_count
from bursar.master.ledger import without_views


class Cut(NamedTuple):
    """What a framework can use."""

    holding: dict[Stack, Resources]
    #: index of the shape → how often it fits in.
    promised: dict[int, int]


Shapes = list[tuple[int, ResourceRequest, int]]
"""(index in the demand, what one takes, how many are open)."""


def open_shapes(demand: Demand, wanted: list[int], promised: list[int], role: str) -> Shapes:
    """The shapes of a role that are wanted and not covered by outstanding offers."""
    return [
        (index, shape.resources, wanted[index] - promised[index])
        for index, shape in enumerate(demand.shapes)
        if shape.role == role and wanted[index] > promised[index]
    ]


def cut_to_demand(available: Holding, shapes: Shapes, devices: Mapping[DeviceUuid, Device]) -> Cut | None:
    """Cut what is available to shapes × counts, in the framework's order; None where no shape fits."""
    if len(shapes) == 1:
        ((index, request, count),) = shapes
        fits = fitting_count(available, request, count)
        part = carve(available, request, devices, fits) if fits > 0 else None
        return None if part is None else Cut(part, {index: fits})
    rest: Holding = available
    holding: dict[Stack, Resources] = {}
    promised: dict[int, int] = {}
    for index, request, count in shapes:
        fits = fitting_count(rest, request, count)
        if fits <= 0:
            continue
        part = carve(rest, request, devices, fits)
        if part is None:
            continue
        rest = without_views(subtract_holdings(rest, part), part)
        holding = add_holdings(holding, part)
        promised[index] = fits
        if not rest:
            break
    return Cut(holding, promised) if promised else None


def shape_of_task(demand: Demand, wanted: list[int], role: str, request: ResourceRequest) -> int | None:
    """The shape that a launched task fulfils: the equal one, else the first that is at least as large."""
    candidates = [index for index, shape in enumerate(demand.shapes) if shape.role == role and wanted[index] > 0]
    for index in candidates:
        if demand.shapes[index].resources == request:
            return index
    for index in candidates:
        shape = demand.shapes[index].resources
        within = all(shape.scalars.get(kind, 0) >= amount for kind, amount in request.scalars.items())
        if within and shape.gpu_count >= request.gpu_count and shape.port_count >= request.port_count:
            return index
    return None
