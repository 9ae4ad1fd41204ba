"""What agents have for a gang, and where all of its tasks have room.

Found once for all agents, then again for those that changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bursar.core.ids import AgentId
from bursar.core.messages.operator import AgentState
from bursar.core.messages.rules import RuleAction
from bursar.core.resources import EMPTY, Holding, Resources, add_holdings, holding_total
from bursar.master.allocator.constraints import is_foreign
from bursar.master.allocator.cycle import offerable
from bursar.master.allocator.gangs import Cliques, Counts, Room, Spot, cliques_of, fits, place_somewhere, room_in
from bursar.master.allocator.rules import CompiledRule
from bursar.master.allocator.visibility import strip
from bursar.master.bundles import Gang
from bursar.master.state import Agent, Cluster, Framework


def look(cluster: Cluster, gang: Gang, agent_ids: Iterable[AgentId] | None, *, sweep: bool = False) -> None:
    """Find out what these agents have for a gang (None, or the first time: all); with `sweep`, also where it is another thing now."""
    if gang.spots is None or agent_ids is None or agent_ids:
        gang.chosen = None
    framework = cluster.frameworks[gang.key.framework_id]
    books_of = cluster.ledger.books
    spots = gang.spots
    agents: Iterable[Agent]
    if spots is None or agent_ids is None:
        spots = gang.spots = {}
        gang.sums, gang.capacities = {}, {}
        agents = cluster.agents_in_order
    else:
        wanted = {agent_id for agent_id in agent_ids if agent_id in cluster.agents}
        if sweep:
            wanted |= {
                agent.agent_id
                for agent in cluster.agents_in_order
                if (spot := spots.get(agent.agent_id)) is None or spot.free is not books_of[agent.agent_id].free
            }
        agents = [cluster.agents[agent_id] for agent_id in wanted]
        for gone in [agent_id for agent_id in agent_ids if agent_id not in cluster.agents]:
            _forget_spot(gang, gone)
    groups = gang.request.groups
    attribute, by_clique = gang.request.topology.same_attribute, gang.request.topology.nvlink_clique
    role, sums, active = gang.request.role, gang.sums, AgentState.ACTIVE
    holds = cluster.gangs.holder is gang
    if spots:
        agents = list(agents)
        for agent in agents:
            _forget_spot(gang, agent.agent_id)
    # Agents alike are decided alike.
    capabilities = framework.info.capabilities
    known: dict[tuple[object, ...], tuple[Room, tuple[int, ...]]] = {}
    for agent, rule in permitted(cluster, framework, role, agents):
        if agent.state is not active:
            continue
        agent_id = agent.agent_id
        value = agent.info.attributes.get(attribute) if attribute else None
        if attribute and value is None:
            continue
        books = books_of[agent_id]
        plain = rule is None and not holds
        available = (
            offerable(cluster.holders, books.free, role, capabilities)
            if plain
            else available_on(cluster, gang, agent_id)
        )
        if by_clique:
            room = room_in(available, cliques_on(cluster, agent))
            counts = tuple([fits(room, group.resources) for group in groups])
        else:
            part = holding_total(available) if available else EMPTY
            key = (part.gpus, part.ports, *part.amounts().items())
            found = known.get(key)
            if found is None:
                room = room_in(available, None)
                found = known[key] = room, tuple([fits(room, group.resources) for group in groups])
            room, counts = found
        spots[agent_id] = Spot(agent_id, agent.order, books.free, room, counts, value)
        total = sums.get(value)
        if total is None:
            sums[value] = list(counts)
        else:
            for index, count in enumerate(counts):
                total[index] += count


def _forget_spot(gang: Gang, agent_id: AgentId) -> None:
    assert gang.spots is not None
    spot = gang.spots.pop(agent_id, None)
    gang.capacities.pop(agent_id, None)
    if spot is not None:
        total = gang.sums[spot.value]
        for index, count in enumerate(spot.fits):
            total[index] -= count


def _enough(gang: Gang) -> list[str | int | None]:
    """The values under which as many tasks of each group have room, each group taken alone."""
    needed = [group.count for group in gang.request.groups]
    return [
        value
        for value, total in gang.sums.items()
        if all(there >= count for there, count in zip(total, needed, strict=True))
    ]


def by_value(gang: Gang, values: Iterable[str | int | None] | None = None) -> dict[str | int | None, list[Spot]]:
    """The agents that it may use, by the attribute that all must share."""
    assert gang.spots is not None
    if not gang.request.topology.same_attribute:
        return {None: list(gang.spots.values())}
    wanted = set(gang.sums if values is None else values)
    found: dict[str | int | None, list[Spot]] = {}
    for spot in gang.spots.values():
        if spot.value in wanted:
            found.setdefault(spot.value, []).append(spot)
    return found


def places_of(cluster: Cluster, gang: Gang) -> Counts | None:
    """Where all tasks of a gang have room now, or None."""
    gang.hindrance, gang.at_quota = "", False
    if not _enough(gang):
        return None
    assert gang.spots is not None
    # Whatever was given away since it was looked at.
    books = cluster.ledger.books
    chosen = gang.chosen
    if chosen and all((spot := gang.spots.get(one)) and spot.free is books[one].free for one in chosen):
        return chosen
    stale = [spot.agent_id for spot in gang.spots.values() if spot.free is not books[spot.agent_id].free]
    if stale:
        look(cluster, gang, stale)
    values = _enough(gang)
    gang.chosen = place_somewhere(gang.request.groups, by_value(gang, values)) if values else None
    return gang.chosen


def available_on(cluster: Cluster, gang: Gang, agent_id: AgentId) -> Holding:
    """What an agent has for a gang now: what its role may be offered of what is free or held for it."""
    books = cluster.ledger.books[agent_id]
    there = books.free
    if books.gang_hold and cluster.gangs.holder is gang:
        there = add_holdings(there, books.gang_hold)
    available = offerable(cluster.holders, there, gang.request.role, _capabilities(cluster, gang))
    if not cluster.visibility.rules or not available:
        return available
    framework, agent = cluster.frameworks[gang.key.framework_id], cluster.agents[agent_id]
    rule = _rule_of(cluster, framework, gang.request.role, agent)
    if rule is None:
        return available
    takes_gpus = any(group.resources.gpus for group in gang.request.groups)
    return cluster.visibility.restrict(rule, agent.info, books, available, there, takes_gpus)


def capacity_of(cluster: Cluster, gang: Gang, agent: Agent) -> Room:
    """What it has once nothing else runs there."""
    books = cluster.ledger.books[agent.agent_id]
    total: Holding = books.total
    if books.withheld_devices:
        total = {
            stack: Resources(part.scalars, part.ports, part.devices - books.withheld_devices.keys())
            for stack, part in total.items()
        }
    cliques = cliques_on(cluster, agent) if gang.request.topology.nvlink_clique else None
    available = offerable(cluster.holders, total, gang.request.role, _capabilities(cluster, gang))
    if cluster.visibility.rules:
        rule = _rule_of(cluster, cluster.frameworks[gang.key.framework_id], gang.request.role, agent)
        if rule is not None:
            available = strip(available, rule.stripped)
    return room_in(available, cliques)


def permitted(
    cluster: Cluster, framework: Framework, role: str, agents: Iterable[Agent]
) -> Iterator[tuple[Agent, CompiledRule | None]]:
    """The agents that a framework may be offered at all: the steps of `cycle.consider` that look at an agent as a whole. Filters are
    not among them: a gang was asked for. With each the rule that takes something of it, if one does.
    """
    capabilities, visibility, region = framework.info.capabilities, cluster.visibility, cluster.region
    settings = framework.settings.get(role)
    client_class = visibility.class_of_client(role, framework.info) if visibility.rules else 0
    for agent in agents:
        rule = None
        if client_class and client_class & visibility.class_of_agent(agent.info):
            rule = _rule_of(cluster, framework, role, agent)
            if rule is not None and rule.action is RuleAction.HIDE_AGENT:
                continue
        if region and is_foreign(region, capabilities, agent.facts):
            continue
        if settings is None or settings.may_take(agent.facts):
            yield agent, rule


def _rule_of(cluster: Cluster, framework: Framework, role: str, agent: Agent) -> CompiledRule | None:
    """The rule that takes something of an agent from a framework in a role."""
    rule = cluster.visibility.judge(agent.info, role, framework.info).winner
    return None if rule is None or rule.action is RuleAction.ALLOW else rule


def cliques_on(cluster: Cluster, agent: Agent) -> Cliques:
    """The cliques of an agent's GPUs, found once for as long as its devices stay."""
    known = cluster.gangs.cliques.get(agent.agent_id)
    if known is None or known[0] is not agent.devices:
        known = cluster.gangs.cliques[agent.agent_id] = (agent.devices, cliques_of(agent.devices.values()))
    return known[1]


def _capabilities(cluster: Cluster, gang: Gang) -> tuple[str, ...]:
    return cluster.frameworks[gang.key.framework_id].info.capabilities
