"""Which agents and which buckets of them a reservation is taken from, and what must be rescinded for it. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bursar.core.errors import ErrorDetail, ErrorReason, InvalidText
from bursar.core.ids import AgentId, OfferId
from bursar.core.messages.operator import AgentState
from bursar.core.predicates import (
    AgentFacts,
    Predicate,
    attribute_of,
    is_about_devices,
    matches,
    matches_device,
    parse_predicates,
)
from bursar.core.resources import EMPTY, ResourceRequest, Resources, Stack, holding_total, sum_resources
from bursar.core.text import format_request
from bursar.master.in_the_way import offers_in_the_way
from bursar.master.picking import Shortfall, Spot, choose
from bursar.master.state import Agent, Cluster
from bursar.master.views import find_agent

#: Agents that a message names at most.
_MAX_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Candidates:
    """The agents that a request is about."""

    agents: tuple[Agent, ...]
    #: Predicates on single devices: others are left where they are.
    about_devices: tuple[Predicate, ...]
    #: Whether one was named: then no other will do.
    named: bool
    #: For people: ` on the agents that …`.
    that_match: str


@dataclass(frozen=True, slots=True)
class Picked:
    """What to take of one bucket of one agent, and the offers that must be rescinded for it."""

    agent: Agent
    stack: Stack
    request: ResourceRequest
    in_the_way: tuple[OfferId, ...]


def find_candidates(cluster: Cluster, name: str, where: str) -> Candidates | ErrorDetail:
    """One that is named, or all that are active; of these, those that predicates are true of."""
    try:
        predicates = parse_predicates(where, "where")
    except InvalidText as error:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, error.detail.message, error.detail.hint, "where")
    if name:
        agent = find_agent(cluster, name)
        if isinstance(agent, ErrorDetail):
            return agent
        agents = [agent]
    else:
        agents = [agent for agent in cluster.agents.values() if agent.state is AgentState.ACTIVE]
        agents.sort(key=lambda agent: (agent.info.hostname, agent.agent_id))
    matching = [agent for agent in agents if all(is_true_of(cluster, agent, predicate) for predicate in predicates)]
    if not matching:
        if not agents:
            return ErrorDetail(
                ErrorReason.INSUFFICIENT_RESOURCES, "no agent is active", "see `bursar agent ls`", "agent"
            )
        of = len(agents)
        counts = ", ".join(
            f"{predicate} of {sum(is_true_of(cluster, agent, predicate) for agent in agents)}"
            for predicate in predicates
        )
        return ErrorDetail(
            ErrorReason.INSUFFICIENT_RESOURCES,
            f"no agent matches {where!r}: of {of} agent{'s' if of > 1 else ''}, {counts}",
            _missing_attributes(agents, predicates)
            or "loosen the predicates; see `bursar agent show` and `bursar gpu ls`",
            "where",
        )
    text = f" where {where}" if where else ""
    return Candidates(tuple(matching), tuple(filter(is_about_devices, predicates)), bool(name), text)


def _missing_attributes(agents: Sequence[Agent], predicates: Iterable[Predicate]) -> str:
    """What to do about attributes that no agent has; empty where there are none such."""
    there = {
        name
        for agent in agents
        for name in (*agent.info.attributes, *sum_resources(part.resources for part in agent.info.resources).amounts())
    }
    missing = [name for predicate in predicates if (name := attribute_of(predicate)) and name not in there]
    if not missing:
        return ""
    known = ", ".join(sorted({name for agent in agents for name in agent.info.attributes})[: _MAX_SHOWN * 2])
    there_are = f"there are {known}" if known else "none has any"
    return f"no agent has the attribute {missing[0]}, {there_are}; agents are given attributes with --attributes"


def is_true_of(cluster: Cluster, agent: Agent, predicate: Predicate) -> bool:
    """Of an agent with all that it has; what is about devices, of any of them."""
    if is_about_devices(predicate):
        return any(matches_device(predicate, device) for device in agent.info.devices)
    total = holding_total(cluster.ledger.books[agent.agent_id].total)
    info = agent.info
    return matches(predicate, AgentFacts(info.hostname, info.attributes, total.amounts(), info.devices))


def pick_sources(
    cluster: Cluster, found: Candidates, routes: Mapping[AgentId, Mapping[Stack, Stack]], request: ResourceRequest
) -> list[Picked] | ErrorDetail:
    """What to take of which buckets; changes nothing."""
    agents = [agent for agent in found.agents if agent.agent_id in routes]
    if found.named and not found.about_devices:
        (agent,) = agents
        given = _first_that_gives(cluster, agent, request, list(routes[agent.agent_id]))
        if isinstance(given, ErrorDetail):
            return given
        stack, offers = given
        return [Picked(agent, stack, request, tuple(offers))]
    by_id = {agent.agent_id: agent for agent in agents}
    spots = [
        _spot(cluster, agent, stack, found.about_devices, order)
        for order, agent in enumerate(agents)
        for stack in routes[agent.agent_id]
    ]
    choices = choose(spots, request)
    if isinstance(choices, Shortfall):
        return _shortfall_problem(found, by_id, request, choices)
    picked = []
    for choice in choices:
        agent, stack = by_id[choice.spot.agent_id], choice.spot.stack
        in_the_way = offers_in_the_way(cluster, agent, choice.request, stack, free_of(cluster, agent, stack))
        if isinstance(in_the_way, ErrorDetail):
            return in_the_way
        picked.append(Picked(agent, stack, choice.request, tuple(in_the_way)))
    return picked


def _spot(cluster: Cluster, agent: Agent, stack: Stack, about_devices: Sequence[Predicate], order: int) -> Spot:
    books = cluster.ledger.books[agent.agent_id]
    offered = sum_resources(entry.holding[stack] for entry in books.offered.values() if stack in entry.holding)
    free, held = free_of(cluster, agent, stack), books.allocated_in(stack)
    if about_devices:
        suit = frozenset(
            uuid
            for uuid, device in agent.devices.items()
            if all(matches_device(predicate, device) for predicate in about_devices)
        )
        free, offered, held = (
            Resources(part.scalars, part.ports, part.devices & suit) for part in (free, offered, held)
        )
    return Spot(agent.agent_id, stack, free, offered, held, agent.devices, order)


def free_of(cluster: Cluster, agent: Agent, stack: Stack) -> Resources:
    """What is free of a bucket, with what is held for a gang or earmarked: an operator has the better right."""
    books = cluster.ledger.books[agent.agent_id]
    return books.free.get(stack, EMPTY) + books.gang_hold.get(stack, EMPTY) + books.earmark.get(stack, EMPTY)


def _shortfall_problem(
    found: Candidates, agents: Mapping[AgentId, Agent], request: ResourceRequest, short: Shortfall
) -> ErrorDetail:
    """What is lacking, and the closest that can be had."""
    where = f"{len(agents)} agents" if len(agents) > 1 else next(iter(agents.values())).info.hostname
    reason = ErrorReason.RESOURCES_IN_USE if short.in_use else ErrorReason.INSUFFICIENT_RESOURCES
    in_use = "; tasks hold the rest, and are never touched" if short.in_use else ""
    says = f"{format_request(request)} cannot be had of {where}{found.that_match}"
    if short.closest:
        shown = [
            f"{agents[spot.agent_id].info.hostname} {format_request(part)}" for spot, part in short.spots[:_MAX_SHOWN]
        ]
        more = f" and {len(short.spots) - _MAX_SHOWN} more" if len(short.spots) > _MAX_SHOWN else ""
        return ErrorDetail(
            reason,
            f"{says}: the closest is {format_request(short.closest)} ({', '.join(shown)}{more}){in_use}",
            "ask for that"
            + (", or loosen --where" if found.that_match else "; see `bursar agent ls` and `bursar reservation ls`"),
            "resources",
        )
    return ErrorDetail(
        reason,
        f"{says}: nothing of the kind is free or offered there{in_use}",
        "ask for less of each kind; see `bursar agent ls` and `bursar reservation ls`",
        "resources",
    )


def _first_that_gives(
    cluster: Cluster, agent: Agent, request: ResourceRequest, stacks: Iterable[Stack]
) -> tuple[Stack, list[OfferId]] | ErrorDetail:
    """The first bucket that has what is asked for, and the offers that must be rescinded for it; or what the last one lacks."""
    problem: ErrorDetail | None = None
    for stack in stacks:
        in_the_way = offers_in_the_way(cluster, agent, request, stack, free_of(cluster, agent, stack))
        if not isinstance(in_the_way, ErrorDetail):
            return stack, in_the_way
        problem = in_the_way
    assert problem is not None
    return problem
