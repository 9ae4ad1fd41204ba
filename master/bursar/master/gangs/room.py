"""What agents have for a gang, and where all of its tasks have room.

Found once for all agents, then again for those that changed.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator
from itertools import repeat

from bursar.core.device_names import gpus_among
from bursar.core.ids import AgentId
from bursar.core.messages.operator import AgentState, RefusalReason
from bursar.core.messages.rules import RuleAction
from bursar.core.resources import EMPTY, Holding, Resources, add_holdings, holding_total
from bursar.core.volumes import without_volumes
from bursar.master.allocator.constraints import is_foreign
from bursar.master.allocator.decision import offerable
from bursar.master.allocator.gangs import (
    Alike,
    ByValue,
    Cliques,
    Counts,
    Order,
    Room,
    cliques_of,
    fits,
    group_by_value,
    place_somewhere,
    room_in,
    worth_trying,
)
from bursar.master.allocator.lending import is_of_hold, loans_on
from bursar.master.allocator.loans import Loan
from bursar.master.allocator.rules import CompiledRule
from bursar.master.allocator.visibility import strip
from bursar.master.bundles import Gang
from bursar.master.ledger import Books
from bursar.master.state import Agent, Cluster, Framework

#: Further than any two agents are apart in the order of agents.
_BEHIND = 1 << 40
#: So many kinds of agents more than there may be, of which most must be of the past.
_MANY_CLASSES = 100


def look(cluster: Cluster, gang: Gang, agent_ids: Iterable[AgentId], *, sweep: bool = False) -> None:
    """Find out what these agents have for a gang (the first time: all); with `sweep`, also where it is another thing now."""
    if gang.spots is None:
        gang.spots, gang.classes, gang.capacities, gang.chosen = {}, {}, {}, None
        _note(cluster, gang, cluster.agents_in_order)
        return
    changed = set(agent_ids)
    if sweep:
        changed.update(_out_of_date(cluster, gang))
    if not changed:
        return
    gang.chosen = None
    for agent_id in changed:
        _forget(gang, agent_id)
    if len(gang.classes) > 2 * len(gang.spots) + _MANY_CLASSES:
        gang.classes = {key: alike for key, alike in gang.classes.items() if alike.orders}
    _note(cluster, gang, [cluster.agents[agent_id] for agent_id in changed if agent_id in cluster.agents])


def _out_of_date(cluster: Cluster, gang: Gang) -> Iterator[AgentId]:
    """Agents of which another thing is free than was when they were looked at, and those that never were."""
    spots, books_of = gang.spots, cluster.ledger.books
    assert spots is not None
    for agent in cluster.agents_in_order:
        spot = spots.get(agent.agent_id)
        if spot is None or spot[0] is not books_of[agent.agent_id].free:
            yield agent.agent_id


def counted_with_loans(cluster: Cluster, gang: Gang) -> Gang:
    """The gang, looked for room as if what can be called back for it were back; itself where nothing is on loan."""
    if not cluster.ledger.with_loans:
        gang.with_loans = None
        return gang
    if gang.with_loans is None:
        gang.with_loans = gang.counting_loans(-1)
        look(cluster, gang.with_loans, ())
    return gang.with_loans


def _forget(gang: Gang, agent_id: AgentId) -> None:
    assert gang.spots is not None
    spot = gang.spots.pop(agent_id, None)
    gang.capacities.pop(agent_id, None)
    if spot is not None:
        _, alike, order = spot
        alike.remove(order)


def _note(cluster: Cluster, gang: Gang, agents: Iterable[Agent]) -> None:
    """Enter agents among those that are like them, as far as the gang may use them at all."""
    spots, books_of = gang.spots, cluster.ledger.books
    assert spots is not None
    framework = cluster.frameworks[gang.key.framework_id]
    role, capabilities, holders = gang.request.role, framework.info.capabilities, cluster.holders
    attribute, by_clique = gang.request.topology.same_attribute, gang.request.topology.nvlink_clique
    held, active = cluster.ledger.held_for(gang.number), AgentState.ACTIVE
    on_loan = cluster.ledger.with_loans if gang.counts_loans else ()
    first_in_line = cluster.first_in_line
    enter = Classes(gang, gang.classes).enter
    value: str | int | None = None
    cliques: Cliques | None = None
    for agent, rule in permitted(cluster, framework, role, agents):
        if agent.state is not active or agent.agent_id in first_in_line:
            # What is back is for whoever waited for it.
            continue
        if attribute and (value := agent.info.attributes.get(attribute)) is None:
            continue
        agent_id = agent.agent_id
        books = books_of[agent_id]
        free = books.free
        order = agent.order
        if agent_id in on_loan and loans_for(cluster, gang, agent_id):
            order = order[0] + gang.counts_loans * _BEHIND, agent_id
        if rule is None and agent_id not in held and agent_id not in on_loan:
            available = offerable(holders, free, role, capabilities)
        else:
            available = available_on(cluster, gang, agent_id)
        if by_clique:
            cliques = cliques_on(cluster, agent)
        spots[agent_id] = free, enter(order, value, available, cliques, books.has_gpus_only), order


class Classes:
    """Agents by what they have for a gang: agents alike are decided alike."""

    def __init__(self, gang: Gang, known: dict[object, Alike]) -> None:
        self.known = known
        self._groups = gang.request.groups
        self._rooms: dict[object, tuple[Room, tuple[int, ...]]] = {}

    def enter(
        self, order: Order, value: str | int | None, available: Holding, cliques: Cliques | None, gpus_only: bool
    ) -> Alike:
        """Put an agent among those that are like it; `gpus_only`: it has no other devices."""
        if len(available) == 1:
            (total,) = available.values()
        else:
            total = holding_total(available) if available else EMPTY
        devices = total.devices
        parts = None if cliques is None else tuple([len(clique & devices) for clique in cliques])
        gpus = devices if gpus_only else gpus_among(devices)
        amounts = total.scalars if gpus is devices else without_volumes(total).amounts()
        key = (value, len(gpus), parts, total.ports, *amounts.items())
        alike = self.known.get(key)
        if alike is None:
            room, fit = self._room(key[1:], total, cliques)
            alike = self.known[key] = Alike(room, fit, value, [])
        orders = alike.orders
        if not orders or orders[-1] < order:
            orders.append(order)
        else:
            insort(orders, order)
        return alike

    def _room(self, key: object, total: Resources, cliques: Cliques | None) -> tuple[Room, tuple[int, ...]]:
        """The room that agents alike have, and how many tasks of each group it takes; whatever value they share."""
        known = self._rooms.get(key)
        if known is None:
            room = room_in(total, cliques)
            known = self._rooms[key] = room, tuple([fits(room, group.resources) for group in self._groups])
        return known


def by_value(gang: Gang) -> ByValue:
    """The agents that it may use, by the attribute that all must share."""
    return group_by_value(gang.classes.values())


def places_of(cluster: Cluster, gang: Gang, *, fresh: bool = False) -> Counts | None:
    """Where all tasks of a gang have room now, or None; `fresh`: nothing was given away since it was looked at."""
    gang.hinder(RefusalReason.UNSPECIFIED, "")
    spots, books = gang.spots, cluster.ledger.books
    assert spots is not None
    there = worth_trying(gang.request.groups, by_value(gang))
    if not there:
        return None
    chosen = gang.chosen
    if chosen and all((spot := spots.get(one)) and spot[0] is books[one].free for one in chosen):
        return chosen
    if not fresh:
        stale = [agent_id for agent_id, (free, _, _) in spots.items() if free is not books[agent_id].free]
        look(cluster, gang, stale)
        if stale:
            there = worth_trying(gang.request.groups, by_value(gang))
    gang.chosen = place_somewhere(gang.request.groups, there)
    return gang.chosen


def available_on(cluster: Cluster, gang: Gang, agent_id: AgentId) -> Holding:
    """What an agent has for a gang now: what its role may be offered of what is free or held for it; with what it counts of loans."""
    books = cluster.ledger.books[agent_id]
    there: Holding = books.free
    if held := cluster.ledger.held_for(gang.number).get(agent_id):
        there = add_holdings(there, held)
    for loan in loans_for(cluster, gang, agent_id) if gang.counts_loans else ():
        there = add_holdings(there, coming_back(books, loan))
    return usable(cluster, gang, agent_id, there)


def loans_for(cluster: Cluster, gang: Gang, agent_id: AgentId) -> list[Loan]:
    """What is on loan of an agent and can be called back for a gang: what is kept for its role, and in its turn what was lent while a
    gang fills, itself or one before it. Nothing where others have called something back already.
    """
    if (
        agent_id not in cluster.ledger.with_loans
        or agent_id in cluster.claims
        or agent_id in cluster.first_in_line
        or cluster.ledger.books[agent_id].in_excess
    ):
        return []
    other, holder = cluster.gangs.recalling.get(agent_id), cluster.gangs.holder
    if other is not None and other.number != gang.number:
        return []
    in_turn = other is not None or (holder is not None and holder.number == gang.number)
    return [
        loan
        for loan in loans_on(cluster, agent_id)
        if (in_turn if is_of_hold(loan.holding) else _is_for(cluster, gang, loan.holding))
    ]


def _is_for(cluster: Cluster, gang: Gang, holding: Holding) -> bool:
    return any(offerable(cluster.holders, holding, gang.request.role, _capabilities(cluster, gang)))


def coming_back(books: Books, loan: Loan) -> Holding:
    """What will be there of a loan that is given back."""
    withheld = books.withheld_devices.keys()
    if not withheld:
        return loan.holding
    return {
        stack: left
        for stack, part in loan.holding.items()
        if (left := Resources(part.scalars, part.ports, part.devices - withheld))
    }


def usable(cluster: Cluster, gang: Gang, agent_id: AgentId, there: Holding) -> Holding:
    """What a gang may be offered of what there is on an agent."""
    books = cluster.ledger.books[agent_id]
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
    """The room on an agent once nothing else runs there."""
    rule = _rule_of(cluster, cluster.frameworks[gang.key.framework_id], gang.request.role, agent)
    cliques = cliques_on(cluster, agent) if gang.request.topology.nvlink_clique else None
    return room_in(holding_total(once_empty(cluster, gang, agent, rule)), cliques)


def once_empty(cluster: Cluster, gang: Gang, agent: Agent, rule: CompiledRule | None) -> Holding:
    """What an agent has for a gang once nothing else runs there; `rule` takes something of it."""
    books = cluster.ledger.books[agent.agent_id]
    total: Holding = books.total
    if books.withheld_devices:
        total = {
            stack: Resources(part.scalars, part.ports, part.devices.difference(books.withheld_devices))
            for stack, part in total.items()
        }
    available = offerable(cluster.holders, total, gang.request.role, _capabilities(cluster, gang))
    return available if rule is None else strip(available, rule.stripped)


def permitted(
    cluster: Cluster, framework: Framework, role: str, agents: Iterable[Agent]
) -> Iterator[tuple[Agent, CompiledRule | None]]:
    """The agents that a framework may be offered at all: the steps of `cycle.consider` that look at an agent as a whole. Filters are
    not among them: a gang was asked for. With each the rule that takes something of it, if one does.
    """
    capabilities, visibility, region = framework.info.capabilities, cluster.visibility, cluster.region
    settings = framework.settings.get(role)
    spoken_of = visibility.rules and visibility.class_of_client(role, framework.info)
    if not spoken_of and not region and settings is None:
        yield from zip(agents, repeat(None))
        return
    for agent in agents:
        rule = _rule_of(cluster, framework, role, agent) if spoken_of else None
        if rule is not None and rule.action is RuleAction.HIDE_AGENT:
            continue
        if region and is_foreign(region, capabilities, agent.facts):
            continue
        if settings is None or settings.may_take(agent.facts):
            yield agent, rule


def _rule_of(cluster: Cluster, framework: Framework, role: str, agent: Agent) -> CompiledRule | None:
    """The rule that takes something of an agent from a framework in a role."""
    visibility = cluster.visibility
    if not visibility.class_of_client(role, framework.info) & visibility.class_of_agent(agent.info):
        return None
    rule = visibility.judge(agent.info, role, framework.info).winner
    return None if rule is None or rule.action is RuleAction.ALLOW else rule


def cliques_on(cluster: Cluster, agent: Agent) -> Cliques:
    """The cliques of an agent's GPUs, found once for as long as its devices stay."""
    known = cluster.gangs.cliques.get(agent.agent_id)
    if known is None or known[0] is not agent.devices:
        known = cluster.gangs.cliques[agent.agent_id] = (agent.devices, cliques_of(agent.devices.values()))
    return known[1]


def _capabilities(cluster: Cluster, gang: Gang) -> tuple[str, ...]:
    return cluster.frameworks[gang.key.framework_id].info.capabilities
