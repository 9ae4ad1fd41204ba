"""Lending: who may borrow what of an agent, and which loans must come back for whom it was lent from (OVR-2; Mesos never had it: OVR-4).

What is lent stays in its bucket. It is offered, as revocable, to frameworks with the capability REVOCABLE_RESOURCES that its holder
does not cover, once nobody whom it is kept for took it; together with unreserved resources, of which a task needs some, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bursar.core.ids import AgentId
from bursar.core.messages.operator import RefusalReason
from bursar.core.resources import (
    UNRESERVED,
    Holding,
    Resources,
    Stack,
    add_holdings,
)
from bursar.core.volumes import without_volumes
from bursar.master.allocator.decision import (
    Proposal,
    Question,
    Step,
    Steps,
    is_within_quota,
    may_use_buckets,
    offerable,
    steps_for,
)
from bursar.master.allocator.filters import AgentFilters
from bursar.master.allocator.loans import Claim, Loan
from bursar.master.allocator.shares import Client, Node
from bursar.master.state import Agent, Cluster, Framework


def may_lend(cluster: Cluster, agent: Agent) -> bool:
    """Not while something is on its way back: what is back is for whom it is wanted by."""
    if agent.agent_id in cluster.claims or agent.agent_id in cluster.first_in_line:
        return False
    if agent.agent_id in cluster.gangs.recalling:
        return False
    entries = cluster.ledger.books[agent.agent_id].allocated
    return not any(entry.revocable and cluster.tasks[key].preempt_at_ms for key, entry in entries.items())


def lending_steps(cluster: Cluster, client: Client, framework: Framework) -> Steps:
    """The steps that decide about a borrower: those of everybody, but about other buckets, and quota about what is unreserved alone."""
    replaced: dict[Step, Step] = {may_use_buckets: may_borrow_buckets, is_within_quota: is_within_quota_beside_loans}
    steps = [replaced.get(step, step) for step in steps_for(cluster, client, framework)]
    return (*steps, is_a_loan)


def hold_steps(cluster: Cluster, client: Client, framework: Framework) -> Steps:
    """The steps that decide about a borrower of what is held while a gang fills: quota counts nothing of it."""
    return tuple([step for step in steps_for(cluster, client, framework) if step is not is_within_quota])


def may_borrow_buckets(question: Question) -> RefusalReason | None:
    """Which buckets are lent to the role? Not those that it may be offered for good. A volume is its role's, idle or not: never lent."""
    covers, role, lent = question.cluster.holders.covers, question.client.role, question.agent.lent
    available = {
        stack: left
        for stack, part in question.free.items()
        if stack in lent
        and stack != UNRESERVED
        and not covers(stack[-1].holder, role)
        and (left := without_volumes(part))
    }
    if not available:
        return RefusalReason.RESERVED_FOR_OTHERS
    if UNRESERVED in question.free:
        available[UNRESERVED] = question.free[UNRESERVED]
    question.available = question.everything = available
    return None


def is_within_quota_beside_loans(question: Question) -> RefusalReason | None:
    """What do limits and headroom leave of what is unreserved? What is lent counts for neither (mesos.md §3.3: non-revocable)."""
    whole = question.available
    if UNRESERVED not in whole:
        return None
    question.available = {UNRESERVED: whole[UNRESERVED]}
    reason = is_within_quota(question)
    left = question.available
    question.available = {stack: part for stack, part in whole.items() if stack} | dict(left)
    return reason


def is_a_loan(question: Question) -> RefusalReason | None:
    """Is anything in it that is lent?"""
    return None if any(question.available) else RefusalReason.RESERVED_FOR_OTHERS


def first_in_line(cluster: Cluster, agent_id: AgentId) -> Iterator[Node]:
    """Whom what came back was lent from, if it was waited for."""
    claim = cluster.first_in_line.get(agent_id)
    node = None if claim is None else cluster.shares.client_node(claim.client)
    if node is not None and claim is not None and is_active(cluster, claim.client):
        yield node


def is_active(cluster: Cluster, client: Client) -> bool:
    """Whether it may be made an offer at all."""
    framework = cluster.frameworks.get(client.framework_id)
    if framework is None or framework.connection is None:
        return False
    return client.role in framework.info.roles and client.role not in framework.suppressed


def loans_on(cluster: Cluster, agent_id: AgentId) -> list[Loan]:
    """What is on loan of an agent: offers, then tasks, each the newest first."""
    books = cluster.ledger.books[agent_id]
    offers = [Loan(offer_id, entry.holding) for offer_id, entry in books.offered.items() if entry.revocable]
    tasks = [Loan(key, entry.holding) for key, entry in books.allocated.items() if entry.revocable]
    return [*reversed(offers), *reversed(tasks)]


def is_of_hold(holding: Holding) -> bool:
    """Whether a loan is of what was held while a gang filled: nothing of it is reserved to anybody."""
    return not any(holding)


def find_claim(cluster: Cluster, agent: Agent, loans: Sequence[Loan], have: Holding) -> Claim | None:
    """The first in the order of shares whom what is on loan is kept for, and who could be offered nothing without it, but with it.

    `loans`: the ones to give up first in front; `have`: what is free, or withheld for such a claim.
    """
    on_loan = frozenset(stack for loan in loans for stack in loan.holding if stack)
    # Who waits already goes on waiting.
    waiting = cluster.claims.get(agent.agent_id)
    clients = [node.client for node in cluster.shares.order() if node.client is not None]
    if waiting is not None and waiting.client in clients:
        clients = [waiting.client, *(client for client in clients if client != waiting.client)]
    for client in clients:
        framework = cluster.frameworks[client.framework_id]
        capabilities = framework.info.capabilities
        if any(offerable(cluster.holders, {stack: _ANY}, client.role, capabilities) for stack in on_loan):
            claim = _Claimant(cluster, agent, client, framework, on_loan).claim(loans, have)
            if claim is not None:
                return claim
    return None


_ANY = Resources()


class _Claimant:
    """Somebody who may want back what is on loan of an agent."""

    def __init__(
        self, cluster: Cluster, agent: Agent, client: Client, framework: Framework, on_loan: frozenset[Stack]
    ) -> None:
        self._cluster = cluster
        self._agent = agent
        self._client = client
        self._framework = framework
        self._on_loan = on_loan
        self._question = Question(cluster)
        self._steps = steps_for(cluster, client, framework)
        self._filters = cluster.filters.on(agent.agent_id)
        self._withheld = cluster.ledger.books[agent.agent_id].withheld_devices.keys()

    def claim(self, loans: Sequence[Loan], have: Holding) -> Claim | None:
        """What of the loans must come back, if anything."""
        framework = self._framework
        promised = framework.promised
        # What is on its way to it from elsewhere is as good as offered.
        framework.promised = _with_claims(self._cluster, framework, self._agent.agent_id)
        try:
            needed = self._needed(loans, have)
        finally:
            framework.promised = promised
        if needed is None:
            return None
        given_up, most = needed
        return Claim(self._client, given_up, most.holding, most.promised, framework.demand.version)

    def _needed(self, loans: Sequence[Loan], have: Holding) -> tuple[tuple[Loan, ...], Proposal] | None:
        there = self._could_have((), have, None)
        if there is not None and (there.promised or not self._on_loan.isdisjoint(there.holding)):
            return None
        most = self._could_have(loans, have, None)
        if most is None:
            return None
        needed = list(loans)
        for loan in reversed(loans):
            rest = [other for other in needed if other is not loan]
            fewer = self._could_have(rest, have, None)
            if fewer is not None and _as_much(fewer, most):
                needed, most = rest, fewer
        # What it needs is found without regard to what it declined: whoever declines that calls in no more instead.
        if not needed or self._could_have(needed, have, self._filters) is None:
            return None
        return tuple(needed), most

    def _could_have(self, given_up: Sequence[Loan], have: Holding, filters: AgentFilters | None) -> Proposal | None:
        there: Holding = dict(have)
        for loan in given_up:
            there = add_holdings(there, loan.holding)
        there = {
            stack: left
            for stack, part in there.items()
            if (left := Resources(part.scalars, part.ports, part.devices.difference(self._withheld)))
        }
        if not there:
            return None
        decision = self._question.decide(self._agent, self._client, self._framework, there, filters, self._steps)
        return decision if isinstance(decision, Proposal) else None


def _with_claims(cluster: Cluster, framework: Framework, but_for: AgentId) -> list[int]:
    """How much of each shape is promised to a framework, by offers and by claims to other agents."""
    promised = list(framework.promised)
    for agent_id, claim in (*cluster.claims.items(), *cluster.first_in_line.items()):
        mine = claim.client.framework_id == framework.framework_id and claim.demand_version == framework.demand.version
        if mine and agent_id != but_for:
            for index, count in claim.promised.items():
                promised[index] += count
    return promised


def _as_much(fewer: Proposal, most: Proposal) -> bool:
    """Whether a framework gets as much with fewer loans given up: as many of its shapes, or the same where it states none."""
    if most.promised:
        return fewer.promised == most.promised
    return dict(fewer.holding) == dict(most.holding)
