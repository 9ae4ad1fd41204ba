"""What a client may have of an agent: a list of named steps, each of which narrows it down or says why nothing.

The same steps answer the cycle and `bursar explain`. A step that has nothing to say as the cluster and the framework are set up is
left out of the list (`steps_for`); the cheap ones come first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import NamedTuple

from bursar.core.messages.framework import RESERVATION_REFINEMENT
from bursar.core.messages.operator import RefusalReason
from bursar.core.messages.rules import RuleAction
from bursar.core.resources import UNRESERVED, Holding
from bursar.core.text import Minimum
from bursar.master.allocator.carve import fitting_count
from bursar.master.allocator.constraints import RoleSettings, is_allocatable, is_foreign
from bursar.master.allocator.demand import Shapes, cut_to_demand, open_shapes
from bursar.master.allocator.filters import AgentFilters
from bursar.master.allocator.held_back import Within, cut_to_quota
from bursar.master.allocator.holders import Holders
from bursar.master.allocator.rules import CompiledRule
from bursar.master.allocator.shares import Client
from bursar.master.state import Agent, Cluster, Framework


class Proposal(NamedTuple):
    """What a (role, framework) may have of an agent."""

    holding: Holding
    #: index of the shape of the demand → how often it fits in.
    promised: Mapping[int, int]


Decision = Proposal | RefusalReason

#: What `Proposal(…)` comes to, without a detour.
_make_proposal: Callable[[type[Proposal], tuple[Holding, Mapping[int, int]]], Proposal] = tuple.__new__
NO_PROMISE: Mapping[int, int] = MappingProxyType({})


class Question:
    """What may a client have of what is free on an agent? Asked again and again of one object, for a cycle asks often.

    The framework is active and the role not suppressed: the order of shares holds no others.
    """

    __slots__ = (
        "agent",
        "available",
        "client",
        "cluster",
        "everything",
        "exact",
        "filters",
        "framework",
        "free",
        "promised",
        "rule",
        "settings",
        "within",
    )

    agent: Agent
    client: Client
    framework: Framework
    free: Holding
    #: Those on the agent.
    filters: AgentFilters | None
    #: What the framework said of its offers in the role.
    settings: RoleSettings | None
    #: What the steps so far leave, and what they left before quota.
    available: Holding
    everything: Holding
    #: The rule that decides, and what quota left where it cut anything.
    rule: CompiledRule | None
    within: Within | None
    promised: Mapping[int, int]

    def __init__(self, cluster: Cluster, *, exact: bool = False) -> None:
        """A cycle need not know which of several reasons it is that no shape fits; for people it is found out (`exact`)."""
        self.cluster = cluster
        self.exact = exact

    def decide(
        self,
        agent: Agent,
        client: Client,
        framework: Framework,
        free: Holding,
        filters: AgentFilters | None,
        steps: Steps,
    ) -> Decision:
        """Go through the steps of `steps_for`."""
        self.agent, self.client, self.framework = agent, client, framework
        self.free, self.filters = free, filters
        self.settings = framework.settings.get(client.role) if framework.settings else None
        self.rule = self.within = None
        self.promised = NO_PROMISE
        for step in steps:
            reason = step(self)
            if reason is not None:
                return reason
        return _make_proposal(Proposal, (self.available, self.promised))


Step = Callable[[Question], RefusalReason | None]
Steps = tuple[Step, ...]


def steps_for(cluster: Cluster, client: Client, framework: Framework, rules: int | None = None) -> Steps:
    """The steps that decide about a client, without those that have nothing to say as things are set up; `rules`: the rules that speak
    of it, if that was found out.
    """
    quota, states_demand = cluster.shares.quota_kinds, framework.demand.version > 0
    if rules is None:
        rules = rules_about(cluster, client, framework)
    settings = framework.settings.get(client.role)
    steps: list[tuple[object, Step]] = [
        (rules, may_see_agent),
        (cluster.region, is_at_home),
        (settings and settings.groups, takes_such_agents),
        (True, may_use_buckets),
        (rules, may_see_resources),
        (True, did_not_decline),
        (quota, is_within_quota),
        (states_demand, can_use),
        (quota and not states_demand, did_not_decline_rest),
        (settings and settings.judges_offers, takes_such_offers),
        (minimum_of(cluster, settings, framework), is_worth_an_offer),
        (quota, has_anything_left),
    ]
    return tuple([step for is_set_up, step in steps if is_set_up])


def consider(
    cluster: Cluster,
    agent: Agent,
    client: Client,
    framework: Framework,
    free: Holding,
    filters: AgentFilters | None,
) -> Decision:
    """Decide once, as exactly as people want to know it; `filters` are those on the agent."""
    steps = steps_for(cluster, client, framework)
    return Question(cluster, exact=True).decide(agent, client, framework, free, filters, steps)


# --- the steps, in their order ---


def may_see_agent(question: Question) -> RefusalReason | None:
    """Does a rule hide the agent?"""
    rule = question.cluster.visibility.verdict(question.agent.info, question.client.role, question.framework.info)
    if rule is None:
        return None
    question.rule = rule
    return RefusalReason.HIDDEN_BY_RULE if rule.action is RuleAction.HIDE_AGENT else None


def is_at_home(question: Question) -> RefusalReason | None:
    """Is the agent in a region that the framework understands?"""
    foreign = is_foreign(question.cluster.region, question.framework.info.capabilities, question.agent.facts)
    return RefusalReason.OTHER_REGION if foreign else None


def takes_such_agents(question: Question) -> RefusalReason | None:
    """Do the framework's constraints speak against the agent?"""
    assert question.settings is not None
    return None if question.settings.may_take(question.agent.facts) else RefusalReason.OFFER_CONSTRAINTS


def may_use_buckets(question: Question) -> RefusalReason | None:
    """Which buckets may the role be offered?"""
    free = question.free
    if len(free) == 1 and UNRESERVED in free:
        question.available = question.everything = free
        return None
    cluster, role, framework = question.cluster, question.client.role, question.framework
    available = offerable(cluster.holders, free, role, framework.info.capabilities)
    if not available:
        return not_for(cluster, free, role, framework) if free else RefusalReason.NOT_FREE
    question.available = question.everything = available
    return None


def may_see_resources(question: Question) -> RefusalReason | None:
    """What does a rule that strips or keeps headroom leave?"""
    rule = question.rule
    if rule is None:
        return None
    cluster, agent, framework = question.cluster, question.agent, question.framework
    demand = framework.demand
    takes_gpus = not demand.version or any(
        request.gpu_count
        for _, request, _ in open_shapes(demand, framework.wanted, framework.promised, question.client.role)
    )
    books = cluster.ledger.books[agent.agent_id]
    left = cluster.visibility.restrict(rule, agent.info, books, question.available, question.free, takes_gpus)
    question.available = question.everything = left
    return None if left else RefusalReason.STRIPPED_BY_RULE


def did_not_decline(question: Question) -> RefusalReason | None:
    """Did it decline all of this a moment ago?"""
    filters = question.filters
    if filters is None or not filters.blocks(question.client, question.available):
        return None
    if question.rule is None:
        # Whatever is cut out of it was refused, too; for as long as no more is free. A rule may show more tomorrow.
        filters.note_hidden(question.client, question.free)
    return RefusalReason.DECLINED


def is_within_quota(question: Question) -> RefusalReason | None:
    """What do limits and the headroom of guarantees leave?"""
    cluster, client = question.cluster, question.client
    shares, held_back = cluster.shares, cluster.held_back
    node = shares.client_node(client) or shares.nearest(client.role)
    free = cluster.ledger.free_unreserved()
    allowances = held_back.allowances(client.role, node, shares.quota_kinds, free)
    within = cut_to_quota(node, allowances, question.available, free, shares.root, question.agent.devices)
    if within is not None:
        question.within, question.available = within, within.holding
        held_back.note_cut(client.role, within.kinds)
    return None


def can_use(question: Question) -> RefusalReason | None:
    """What of it fits the shapes that the framework wants, and did it decline that?"""
    framework, client, agent = question.framework, question.client, question.agent
    shapes = open_shapes(framework.demand, framework.wanted, framework.promised, client.role)
    if not shapes:
        return RefusalReason.SUPPRESSED
    cut = cut_to_demand(question.available, shapes, agent.devices)
    if cut is None:
        return _why_nothing_fits(question, shapes) if question.exact else RefusalReason.NOT_FREE
    question.available, question.promised = cut.holding, cut.promised
    if question.filters is not None and question.filters.blocks(client, cut.holding):
        return _but_for_less(question, RefusalReason.DECLINED)
    return None


def did_not_decline_rest(question: Question) -> RefusalReason | None:
    """Where quota cut anything: did it decline what is left?"""
    if question.within is None or question.filters is None:
        return None
    return RefusalReason.DECLINED if question.filters.blocks(question.client, question.available) else None


def takes_such_offers(question: Question) -> RefusalReason | None:
    """Do the framework's constraints speak against what would be offered?"""
    agent = question.agent
    assert question.settings is not None
    if question.settings.takes(agent.facts, question.available, agent.devices):
        return None
    return _but_for_less(question, RefusalReason.OFFER_CONSTRAINTS)


def is_worth_an_offer(question: Question) -> RefusalReason | None:
    """Is it as much as the framework, or the cluster, says that an offer must be?"""
    cluster, rule, framework = question.cluster, question.rule, question.framework
    minimum = minimum_of(cluster, question.settings, framework)
    if is_allocatable(question.available, minimum):
        return None
    if question.within is not None and is_allocatable(question.everything, minimum):
        return question.within.reason
    if rule is None:
        return RefusalReason.TOO_SMALL
    unstripped = offerable(cluster.holders, question.free, question.client.role, framework.info.capabilities)
    return RefusalReason.STRIPPED_BY_RULE if is_allocatable(unstripped, minimum) else RefusalReason.TOO_SMALL


def has_anything_left(question: Question) -> RefusalReason | None:
    """Did quota leave anything?"""
    return None if question.within is None or question.available else question.within.reason


#: The steps that leave all of what is unreserved, was not declined and is worth an offer, where no rule speaks of the agent.
TAKES_ALL: frozenset[Step] = frozenset(
    {may_see_agent, may_use_buckets, may_see_resources, did_not_decline, is_worth_an_offer}
)

# --- what they ask ---


def rules_about(cluster: Cluster, client: Client, framework: Framework) -> int:
    """The rules that speak of a client, as bits."""
    visibility = cluster.visibility
    return visibility.class_of_client(client.role, framework.info) if visibility.rules else 0


def minimum_of(cluster: Cluster, settings: RoleSettings | None, framework: Framework) -> Minimum:
    """The least that is worth an offer. Shapes are as large as the framework says: the cluster's is for those that state none."""
    if settings is not None and settings.minimum is not None:
        return settings.minimum
    return () if framework.demand.version else cluster.minimum


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


def not_for(cluster: Cluster, there: Holding, role: str, framework: Framework) -> RefusalReason:
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


def _but_for_less(question: Question, reason: RefusalReason) -> RefusalReason:
    """It is not offered, but less may be: where quota cuts it otherwise, it is to be looked at again."""
    cluster = question.cluster
    if cluster.shares.quota_kinds:
        cluster.held_back.note_blocked(question.client.role, cluster.shares.quota_kinds)
    return reason


def _why_nothing_fits(question: Question, shapes: Shapes) -> RefusalReason:
    """Which step took what a shape needs: quota, the agent's size, reservations, rules, or others who hold it."""
    cluster, agent, role, framework = question.cluster, question.agent, question.client.role, question.framework
    capabilities = framework.info.capabilities

    def fits(there: Holding) -> bool:
        return cut_to_demand(there, shapes, agent.devices) is not None

    if question.within is not None and fits(question.everything):
        return question.within.reason
    total = cluster.ledger.books[agent.agent_id].total
    if not fits(total):
        return RefusalReason.EXCEEDS_AGENT
    if not fits(offerable(cluster.holders, total, role, capabilities)):
        return not_for(cluster, total, role, framework)
    if question.rule is not None and fits(offerable(cluster.holders, question.free, role, capabilities)):
        return RefusalReason.STRIPPED_BY_RULE
    return RefusalReason.NOT_FREE
