"""The offers that stand in the way of what is wanted of one bucket of an agent: as few as can be."""

from __future__ import annotations

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import OfferId
from bursar.core.resources import (
    EMPTY,
    UNRESERVED,
    Holding,
    ResourceRequest,
    Resources,
    Stack,
    count_ports,
    intersect_ports,
    subtract_ports,
    sum_resources,
)
from bursar.core.text import format_request, format_shortfall
from bursar.master.allocator.carve import carve
from bursar.master.ledger import Books
from bursar.master.state import Agent, Cluster


def offers_in_the_way(
    cluster: Cluster, agent: Agent, request: ResourceRequest, stack: Stack, free: Resources
) -> list[OfferId] | ErrorDetail:
    """The fewest offers, greedily, whose return makes a request possible within one bucket; or why nothing does."""
    if _fits(free, request, stack, agent):
        return []
    books = cluster.ledger.books[agent.agent_id]
    candidates: list[tuple[OfferId, Resources]] = [
        (offer_id, entry.holding[stack]) for offer_id, entry in books.offered.items() if stack in entry.holding
    ]
    chosen: list[OfferId] = []
    pool = free
    # Those that bring most of what is missing first.
    while candidates and not _fits(pool, request, stack, agent):
        missing = _missing(pool, request)
        candidates.sort(key=lambda item: (-_brings(item[1], missing, request), item[0]))
        offer_id, part = candidates.pop(0)
        if _brings(part, missing, request) == 0:
            break
        chosen.append(offer_id)
        pool = pool + part
    if _fits(pool, request, stack, agent):
        return _needed(chosen, books, free, request, stack, agent)
    held = books.allocated_in(stack)
    offered = [entry.holding.get(stack, EMPTY) for entry in books.offered.values()]
    all_of_it = sum_resources([free, *offered])
    reason = ErrorReason.INSUFFICIENT_RESOURCES
    hint = "ask for less, or another agent; see `bursar agent show`"
    if _fits(all_of_it + held, request, stack, agent):
        reason = ErrorReason.RESOURCES_IN_USE
        hint = "the rest is held by tasks, which are never touched: wait for their end or kill them (`bursar task ls`)"
    where = "unreserved on" if stack == UNRESERVED else f"reserved to {stack[-1].holder} on"
    lacking = format_shortfall(request, all_of_it) or f"{format_request(request)} wanted"
    return ErrorDetail(
        reason, f"not enough that is free or offered, {where} {agent.info.hostname}: {lacking}", hint, "resources"
    )


def _needed(
    chosen: list[OfferId], books: Books, free: Resources, request: ResourceRequest, stack: Stack, agent: Agent
) -> list[OfferId]:
    """The chosen offers without those that later ones made superfluous."""
    needed = list(chosen)
    for offer_id in chosen:
        rest = [other for other in needed if other != offer_id]
        if _fits(
            sum_resources([free, *(books.offered[other].holding[stack] for other in rest)]), request, stack, agent
        ):
            needed = rest
    return needed


def _fits(resources: Resources, request: ResourceRequest, stack: Stack, agent: Agent) -> bool:
    available: Holding = {stack: resources}
    return carve(available, request, agent.devices) is not None


def _missing(pool: Resources, request: ResourceRequest) -> dict[str, int]:
    missing = {kind: amount - pool.amount(kind) for kind, amount in request.scalars.items()}
    missing["gpus"] = request.gpu_count - pool.gpus
    if request.devices:
        missing["gpus"] = len(set(request.devices) - pool.devices)
    if request.ports:
        missing["ports"] = Resources(ports=subtract_ports(request.ports, pool.ports)).amount("ports")
    if request.port_count:
        others = count_ports(subtract_ports(pool.ports, request.ports))
        missing["ports"] = missing.get("ports", 0) + request.port_count - others
    return {kind: amount for kind, amount in missing.items() if amount > 0}


def _brings(part: Resources, missing: dict[str, int], request: ResourceRequest) -> int:
    """How many parts in a million of what is missing an offer brings, summed over kinds."""
    score = 0
    for kind, amount in missing.items():
        there = part.amount(kind)
        if kind == "gpus":
            there = len(part.devices.intersection(request.devices)) if request.devices else part.gpus
        elif kind == "ports":
            there = part.amount(kind) if request.port_count else count_ports(intersect_ports(request.ports, part.ports))
        score += min(there, amount) * 1_000_000 // amount if there else 0
    return score
