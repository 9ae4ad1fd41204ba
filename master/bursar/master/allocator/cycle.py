"""The allocation cycle, as a list of steps.

For each agent with something free, in the order of a permutation: ask the shares who comes next; consider what that (role,
framework) may have of the agent; hand it out; go on with what is left. A cycle runs for the agents that changed, at once, and for
all as the guarantee of progress; when the former is quiet, the latter makes no offer (design.md §7).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from collections.abc import Set as AbstractSet
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import NamedTuple

from bursar.core.ids import AgentId, OfferId
from bursar.core.messages.framework import RESERVATION_REFINEMENT
from bursar.core.messages.offers import Offer
from bursar.core.messages.operator import RefusalReason
from bursar.core.messages.rules import RuleAction
from bursar.core.resources import UNRESERVED, Holding, Ports, to_reserved
from bursar.master.allocator.carve import fitting_count
from bursar.master.allocator.constraints import is_allocatable, is_foreign
from bursar.master.allocator.demand import cut_to_demand, open_shapes
from bursar.master.allocator.filters import AgentFilters
from bursar.master.allocator.held_back import Within, cut_to_quota, guaranteed_first
from bursar.master.allocator.holders import Holders
from bursar.master.allocator.rules import CompiledRule
from bursar.master.allocator.shares import Client
from bursar.master.state import Agent, Cluster, Framework, OutstandingOffer


class Proposal(NamedTuple):
    """What a (role, framework) may have of an agent."""

    holding: Holding
    #: index of the shape of the demand → how often it fits in.
    promised: Mapping[int, int]


#: What `Proposal(…)` comes to, without a detour.
_make_proposal: Callable[[type[Proposal], tuple[Holding, Mapping[int, int]]], Proposal] = tuple.__new__
NO_PROMISE: Mapping[int, int] = MappingProxyType({})


def run_cycle(cluster: Cluster, agent_ids: AbstractSet[AgentId], now_ms: int, wall_ms: int) -> list[OutstandingOffer]:
    """Offer what is free on these agents; return the new offers, already booked in the ledger."""
    expires_in_ms = cluster.flags.duration_ms("offer-timeout")
    made: list[OutstandingOffer] = []
    cluster.held_back.forget(in_cycle=True)
    refused: dict[_Amounts, _Alike] = {}
    for agent in _in_order(cluster, agent_ids):
        _offer_agent(cluster, agent, wall_ms, expires_in_ms, made, refused)
    cluster.held_back.forget(in_cycle=False)
    if made:
        # They expire together: one deadline for all of them.
        expires_at_ms = now_ms + expires_in_ms
        expiring = cluster.expiring_offers.setdefault(str(expires_at_ms), [])
        expiring += [outstanding.offer.offer_id for outstanding in made]
        cluster.deadlines.set(("offers", str(expires_at_ms)), expires_at_ms)
    cluster.counters.cycles += 1
    cluster.counters.offers_made += len(made)
    return made


def _in_order(cluster: Cluster, agent_ids: AbstractSet[AgentId]) -> list[Agent]:
    """Agents with anything free, in the order of the permutation."""
    if 4 * len(agent_ids) > len(cluster.agents_in_order):
        return [agent for agent in cluster.agents_in_order if agent.agent_id in agent_ids]
    return sorted([cluster.agents[agent_id] for agent_id in agent_ids], key=attrgetter("order"))


class _Alike:
    """Agents of which the same amounts are free: who was refused one of them in this cycle is refused all of them."""

    __slots__ = ("cut", "refused")

    def __init__(self) -> None:
        self.refused: set[Client] = set()
        #: What quota cut off for these: (role, kind).
        self.cut: set[tuple[str, str]] = set()


_Amounts = tuple[tuple[tuple[str, int], ...], Ports, int]
"""What is free and unreserved of an agent: scalars, ports, how many GPUs."""

#: Refusals for want of amounts. During a cycle neither what quota allows nor what a framework wants grows, so they stand for all
#: agents alike.
_WANT_OF_AMOUNTS = frozenset(
    {
        RefusalReason.SUPPRESSED,
        RefusalReason.EXCEEDS_AGENT,
        RefusalReason.NOT_FREE,
        RefusalReason.QUOTA_LIMIT,
        RefusalReason.HEADROOM,
        RefusalReason.TOO_SMALL,
    }
)


def _amounts_of(free: Holding) -> _Amounts | None:
    """The amounts by which agents are alike; None where something is reserved."""
    if len(free) != 1 or UNRESERVED not in free:
        return None
    part = free[UNRESERVED]
    return tuple(sorted(part.scalars.items())), part.ports, len(part.devices)


def _offer_agent(
    cluster: Cluster,
    agent: Agent,
    wall_ms: int,
    expires_in_ms: int,
    made: list[OutstandingOffer],
    refused: dict[_Amounts, _Alike],
) -> None:
    """Offer one agent until nothing is left, or nobody may have it."""
    agent_id = agent.agent_id
    books = cluster.ledger.books[agent_id]
    filters = cluster.filters.on(agent_id)
    frameworks = cluster.frameworks
    # What is free only shrinks here: whoever was refused or served once need not be asked again. But a demand may be cut
    # differently from less, and so get past the filter that blocked its first cut.
    done: set[Client] = set()
    shares, held_back = cluster.shares, cluster.held_back
    if shares.quota_kinds:
        held_back.begin()
    while free := books.free:
        hidden = None if filters is None else filters.known_hidden(free)
        amounts = _amounts_of(free) if refused else None
        alike = None if amounts is None else refused.get(amounts)
        if alike is not None:
            hidden = alike.refused if hidden is None else hidden | alike.refused
            held_back.cut |= alike.cut
        order = chain(guaranteed_first(shares, free), shares.order()) if shares.quota_kinds else shares.order()
        for node in order:
            client = node.client
            assert client is not None
            if done and client in done or hidden and client in hidden:
                continue
            framework = frameworks[client.framework_id]
            proposal = consider(cluster, agent, client, framework, free, filters)
            if type(proposal) is Proposal:
                made.append(_hand_out(cluster, agent, client, framework, proposal, wall_ms, expires_in_ms))
                if shares.quota_kinds:
                    held_back.forget(in_cycle=True)
                if books.free:
                    done.add(client)
                break
            if not _may_change(proposal, framework):
                done.add(client)
            if proposal in _WANT_OF_AMOUNTS and _is_for_want_of_amounts(cluster, agent, client, framework):
                if alike is None and (amounts := _amounts_of(free)) is not None:
                    alike = refused.setdefault(amounts, _Alike())
                if alike is not None:
                    alike.refused.add(client)
                    alike.cut |= held_back.cut
        else:
            if shares.quota_kinds:
                held_back.park(agent_id, shares, cluster.ledger.free_unreserved())
            return


def _is_for_want_of_amounts(cluster: Cluster, agent: Agent, client: Client, framework: Framework) -> bool:
    """Whether an agent alike would be refused, too: no rule took anything away, and no device is asked for by name."""
    visibility = cluster.visibility
    if visibility.rules and visibility.class_of_client(client.role, framework.info) & visibility.class_of_agent(
        agent.info
    ):
        return False
    return not any(shape.resources.devices for shape in framework.demand.shapes)


def _may_change(proposal: Proposal | RefusalReason, framework: Framework) -> bool:
    """Whether less of the agent may be offered where more was not: a demand is cut differently, `gpus<=2` is true at last."""
    if proposal is RefusalReason.DECLINED:
        return framework.demand.version > 0
    return proposal is RefusalReason.OFFER_CONSTRAINTS


def consider(
    cluster: Cluster,
    agent: Agent,
    client: Client,
    framework: Framework,
    free: Holding,
    filters: AgentFilters | None,
    *,
    exact: bool = False,
) -> Proposal | RefusalReason:
    """Decide what a client may have of what is free on an agent, or why nothing; `filters` are those on the agent.

    A cycle need not know which of several reasons it is that no shape fits; for people it is found out (`exact`). The cheap steps
    come first. The framework is active and the role not suppressed: the order of shares holds no others.
    """
    role, capabilities = client.role, framework.info.capabilities
    rule = cluster.visibility.verdict(agent.info, role, framework.info) if cluster.visibility.rules else None
    if rule is not None and rule.action is RuleAction.HIDE_AGENT:
        return RefusalReason.HIDDEN_BY_RULE
    if cluster.region and is_foreign(cluster.region, capabilities, agent.facts):
        return RefusalReason.OTHER_REGION
    settings = framework.settings.get(role)
    if settings is not None and not settings.may_take(agent.facts):
        return RefusalReason.OFFER_CONSTRAINTS
    available = offerable(cluster.holders, free, role, capabilities)
    if not available:
        return _not_for(cluster, free, role, framework) if free else RefusalReason.NOT_FREE
    if rule is not None:
        available = _restrict(cluster, rule, agent, role, framework, available, free)
        if not available:
            return RefusalReason.STRIPPED_BY_RULE
    if filters is not None and filters.blocks(client, available):
        if rule is None:
            # Whatever is cut out of it was refused, too; for as long as no more is free. A rule may show more tomorrow.
            filters.known_hidden(free).add(client)
        return RefusalReason.DECLINED
    everything = available
    within = _within_quota(cluster, client, available, agent) if cluster.shares.quota_kinds else None
    if within is not None:
        available = within.holding
        cluster.held_back.note_cut(role, within.kinds)
    promised: Mapping[int, int] = NO_PROMISE
    if framework.demand.version:
        shapes = open_shapes(framework.demand, framework.wanted, framework.promised, role)
        if not shapes:
            return RefusalReason.SUPPRESSED
        cut = cut_to_demand(available, shapes, agent.devices)
        if cut is None and not exact:
            return RefusalReason.NOT_FREE
        if cut is None and within is not None and cut_to_demand(everything, shapes, agent.devices) is not None:
            return within.reason
        if cut is None:
            total = cluster.ledger.books[agent.agent_id].total
            if cut_to_demand(total, shapes, agent.devices) is None:
                return RefusalReason.EXCEEDS_AGENT
            if cut_to_demand(offerable(cluster.holders, total, role, capabilities), shapes, agent.devices) is None:
                return _not_for(cluster, total, role, framework)
            if (
                rule is not None
                and cut_to_demand(offerable(cluster.holders, free, role, capabilities), shapes, agent.devices)
                is not None
            ):
                return RefusalReason.STRIPPED_BY_RULE
            return RefusalReason.NOT_FREE
        available, promised = cut.holding, cut.promised
        if filters is not None and filters.blocks(client, available):
            if cluster.shares.quota_kinds:
                cluster.held_back.note_blocked(role, cluster.shares.quota_kinds)
            return RefusalReason.DECLINED
    elif within is not None and filters is not None and filters.blocks(client, available):
        return RefusalReason.DECLINED
    if settings is not None and settings.judges_offers and not settings.takes(agent.facts, available, agent.devices):
        if cluster.shares.quota_kinds:
            cluster.held_back.note_blocked(role, cluster.shares.quota_kinds)
        return RefusalReason.OFFER_CONSTRAINTS
    # Shapes are as large as the framework says: the cluster's minimum is for those that state none.
    minimum = settings.minimum if settings is not None else None
    if minimum is None and not framework.demand.version:
        minimum = cluster.minimum
    if minimum and not is_allocatable(available, minimum):
        if within is not None and is_allocatable(everything, minimum):
            return within.reason
        stripped = rule is not None and is_allocatable(offerable(cluster.holders, free, role, capabilities), minimum)
        return RefusalReason.STRIPPED_BY_RULE if stripped else RefusalReason.TOO_SMALL
    if within is not None and not available:
        return within.reason
    return _make_proposal(Proposal, (available, promised))


def _within_quota(cluster: Cluster, client: Client, available: Holding, agent: Agent) -> Within | None:
    """Cut what could be offered to what limits and headroom allow; None where that is everything."""
    shares = cluster.shares
    node = shares.client_node(client) or shares.nearest(client.role)
    free = cluster.ledger.free_unreserved()
    allowances = cluster.held_back.allowances(client.role, node, shares.quota_kinds, free)
    return cut_to_quota(allowances, available, free, shares.root, agent.devices)


def _restrict(
    cluster: Cluster,
    rule: CompiledRule,
    agent: Agent,
    role: str,
    framework: Framework,
    available: Holding,
    free: Holding,
) -> Holding:
    """What a rule that strips or keeps headroom leaves of what is available."""
    demand = framework.demand
    takes_gpus = not demand.version or any(
        request.gpu_count for _, request, _ in open_shapes(demand, framework.wanted, framework.promised, role)
    )
    books = cluster.ledger.books[agent.agent_id]
    return cluster.visibility.restrict(rule, agent.info, books, available, free, takes_gpus)


def offerable(holders: Holders, free: Holding, role: str, capabilities: Collection[str]) -> Holding:
    """The buckets that a role may be offered: unreserved ones, and those whose owner covers it (RSV-7).

    Refined ones are for frameworks that understand them (RSV-14).
    """
    if len(free) == 1 and UNRESERVED in free:
        return free
    return {
        stack: part
        for stack, part in free.items()
        if not stack
        or (holders.covers(stack[-1].holder, role) and (len(stack) == 1 or RESERVATION_REFINEMENT in capabilities))
    }


def _not_for(cluster: Cluster, there: Holding, role: str, framework: Framework) -> RefusalReason:
    """Why nothing, or not enough, of what is there is for a framework in a role."""
    holders, capabilities = cluster.holders, framework.info.capabilities
    everything = offerable(holders, there, role, (RESERVATION_REFINEMENT,))
    if len(everything) > len(offerable(holders, there, role, capabilities)):
        demand = framework.demand
        if not demand.version:
            return RefusalReason.CAPABILITY_MISSING
        for shape in demand.shapes:
            if shape.role == role and fitting_count(everything, shape.resources, 1):
                return RefusalReason.CAPABILITY_MISSING
    return RefusalReason.RESERVED_FOR_OTHERS


def _hand_out(
    cluster: Cluster,
    agent: Agent,
    client: Client,
    framework: Framework,
    proposal: Proposal,
    wall_ms: int,
    expires_in_ms: int,
) -> OutstandingOffer:
    agent_id = agent.agent_id
    holding, promised = proposal
    cluster.offer_sequence += 1
    offer_id = OfferId(f"{cluster.term}-O{cluster.offer_sequence}")
    cluster.ledger.offer(agent_id, offer_id, client, holding)
    offer = Offer(
        offer_id,
        client.framework_id,
        client.role,
        agent_id,
        agent.description_version,
        to_reserved(holding),
        expires_in_ms,
    )
    outstanding = OutstandingOffer(offer, wall_ms, framework.demand.version, promised)
    cluster.offers[offer_id] = outstanding
    framework.offers.add(offer_id)
    if promised:
        for index, count in promised.items():
            framework.promised[index] += count
        cluster.reopened.add(framework.framework_id)
    return outstanding
