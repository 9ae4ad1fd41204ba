"""The allocation cycle.

For each agent with something free, in the order of a permutation: ask the shares who comes next; decide what that (role,
framework) may have of the agent (`decision`); hand it out; go on with what is left. A cycle runs for the agents that changed, at
once, and for all as the guarantee of progress; when the former is quiet, the latter makes no offer (design.md §7).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from itertools import chain
from operator import attrgetter
from typing import NamedTuple

from bursar.core.ids import AgentId, FrameworkId, OfferId
from bursar.core.messages.offers import Offer
from bursar.core.messages.operator import RefusalReason
from bursar.core.resources import UNRESERVED, Holding, Ports, to_reserved
from bursar.core.text import Minimum
from bursar.master.allocator.constraints import is_allocatable
from bursar.master.allocator.decision import (
    NO_PROMISE,
    TAKES_ALL,
    Decision,
    Proposal,
    Question,
    minimum_of,
    rules_about,
    steps_for,
)
from bursar.master.allocator.held_back import guaranteed_first
from bursar.master.allocator.lending import first_in_line
from bursar.master.allocator.line import Line, Place
from bursar.master.allocator.shares import Client, Node
from bursar.master.allocator.visibility import Cell
from bursar.master.state import Agent, Cluster, Framework, OutstandingOffer


class Made(NamedTuple):
    """What a cycle made."""

    offers: int
    #: Whom to tell, in the order in which they got their first.
    by_framework: dict[FrameworkId, list[Offer]]


def run_cycle(cluster: Cluster, agent_ids: AbstractSet[AgentId], now_ms: int, wall_ms: int) -> Made:
    """Offer what is free on these agents; return the new offers, already booked in the ledger."""
    cycle = Cycle(cluster, wall_ms)
    cluster.held_back.forget(in_cycle=True)
    cycle.offer_agents(in_order(cluster, agent_ids))
    cluster.held_back.forget(in_cycle=False)
    cluster.counters.cycles += 1
    return cycle.finish(now_ms)


def in_order(cluster: Cluster, agent_ids: AbstractSet[AgentId]) -> list[Agent]:
    """Agents in the order of the permutation. Where anybody says what they want, those with the fewest free devices come first: so a
    small demand is met by what is broken up already, or has no devices at all, and whole agents are left for those who need them.
    """
    if 4 * len(agent_ids) > len(cluster.agents_in_order):
        agents = [agent for agent in cluster.agents_in_order if agent.agent_id in agent_ids]
    else:
        agents = sorted([cluster.agents[agent_id] for agent_id in agent_ids], key=attrgetter("order"))
    if len(agents) > 1 and any(
        framework.demand.version and framework.connection is not None for framework in cluster.frameworks.values()
    ):
        books_of = cluster.ledger.books
        wholes = [_wholeness(books_of[agent.agent_id].free) for agent in agents]
        if any(wholes):
            agents = [agents[index] for index in sorted(range(len(agents)), key=wholes.__getitem__)]
    return agents


def _wholeness(free: Holding) -> int:
    """How many devices are free and unreserved, and, where that is the same, how many are free."""
    number = 0
    for stack, part in free.items():
        number += len(part.devices) if stack else len(part.devices) * 0x1_0001
    return number


class _Alike:
    """Agents of which the same amounts are free: who was refused one of them in this cycle is refused all of them."""

    __slots__ = ("cut", "refused")

    def __init__(self) -> None:
        self.refused: set[Node] = set()
        #: What quota cut off for these: (role, kind).
        self.cut: set[tuple[str, str]] = set()


class Plan(Place):
    """How a cycle deals with a client, worked out once."""

    __slots__ = ("client", "framework", "minimum", "offers", "rules", "steps", "takes_all")

    def __init__(self, cluster: Cluster, node: Node, offers: list[Offer]) -> None:
        super().__init__(node)
        assert node.client is not None
        self.client = node.client
        self.framework = cluster.frameworks[node.client.framework_id]
        self.steps = steps_for(cluster, self.client, self.framework)
        self.minimum = minimum_of(cluster, self.framework.settings.get(self.client.role), self.framework)
        #: The rules that speak of it, as bits; where none of them speaks of the agent, and nothing on it was declined, it may have
        #: all that is unreserved: nothing else is set up.
        self.rules = rules_about(cluster, self.client, self.framework)
        self.takes_all = TAKES_ALL.issuperset(self.steps)
        #: Those to the framework in this cycle.
        self.offers = offers


class _Bag:
    """What is free on an agent, or on several that share it; with what follows from it."""

    __slots__ = ("amounts", "holding", "is_plain", "minimum", "parts")

    def __init__(self, holding: Holding, known: dict[frozenset[tuple[str, int]], Mapping[str, int]]) -> None:
        #: Kept alive: it is found by its identity.
        self.holding = holding
        #: Nothing of it is reserved.
        self.is_plain = len(holding) == 1 and UNRESERVED in holding
        self.parts = to_reserved(holding)
        self.amounts: Mapping[str, int] = {}
        #: One that it is worth an offer by.
        self.minimum: Minimum | None = None
        if self.is_plain:
            amounts = holding[UNRESERVED].amounts()
            # Such as are alike are one object: shares are worked out once for all of them.
            self.amounts = known.setdefault(frozenset(amounts.items()), amounts)

    def is_worth(self, minimum: Minimum) -> bool:
        """Whether it is worth an offer."""
        if not is_allocatable(self.holding, minimum):
            return False
        self.minimum = minimum
        return True


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


class Cycle:
    """One run over agents: what is configured holds for all of it."""

    #: Whether what it offers is on loan.
    revocable = False

    def __init__(self, cluster: Cluster, wall_ms: int) -> None:
        self.cluster = cluster
        self.wall_ms = wall_ms
        self.expires_in_ms = cluster.flags.duration_ms("offer-timeout")
        self.offer_ids: list[OfferId] = []
        self.by_framework: dict[FrameworkId, list[Offer]] = {}
        self._boxes: dict[FrameworkId, list[Offer]] = {}
        self._plans: dict[Node, Plan] = {}
        self._refused: dict[_Amounts, _Alike] = {}
        self._bags: dict[int, _Bag] = {}
        #: Class of agents → whom rules hide them from, and the rule.
        self._hidden: dict[int, dict[Node, Cell]] = {}
        self._amounts: dict[frozenset[tuple[str, int]], Mapping[str, int]] = {}
        self.question = Question(cluster)
        self.has_quota = bool(cluster.shares.quota_kinds)
        self._offer_prefix = f"{cluster.term}-O"

    def finish(self, now_ms: int) -> Made:
        """The offers that were made. They expire together: one deadline for all of them."""
        cluster = self.cluster
        if self.offer_ids:
            expires_at_ms = now_ms + self.expires_in_ms
            cluster.expiring_offers.setdefault(str(expires_at_ms), []).extend(self.offer_ids)
            cluster.deadlines.set(("offers", str(expires_at_ms)), expires_at_ms)
        cluster.counters.offers_made += len(self.offer_ids)
        return Made(len(self.offer_ids), self.by_framework)

    def offer_agents(self, agents: Iterable[Agent]) -> None:
        """Offer each agent until nothing is left of it, or nobody may have it."""
        if self.has_quota:
            for agent in agents:
                self._ask_in_turn(agent)
            return
        line = Line(self.cluster.shares, self.plan_for)
        for agent in self._offer_whole(agents, line):
            line.close()
            self._ask_in_turn(agent)
        line.close()

    def _offer_whole(self, agents: Iterable[Agent], line: Line[Plan]) -> Iterator[Agent]:
        """Offer all of each agent to whoever comes first, if nothing speaks against it, as most often: there is nothing to decide then.
        Return the others, one by one, in their turn.
        """
        cluster = self.cluster
        ledger, filters_on, class_of = cluster.ledger, cluster.filters.on, cluster.visibility.class_of_agent
        books_of, outstanding, bags = ledger.books, cluster.offers, self._bags
        for agent in agents:
            agent_id = agent.agent_id
            books = books_of[agent_id]
            bag = bags.get(id(books.free)) or self._bag(books.free)
            plan = line.first()
            if plan is None:
                return
            if (
                not (bag.is_plain and plan.takes_all and books.counted)
                or filters_on(agent_id) is not None
                or (plan.rules and plan.rules & class_of(agent.info))
                or (bag.minimum is not plan.minimum and not bag.is_worth(plan.minimum))
            ):
                yield agent
                continue
            cluster.offer_sequence = number = cluster.offer_sequence + 1
            offer_id = OfferId(f"{self._offer_prefix}{number}")
            client, framework, offers = plan.client, plan.framework, plan.offers
            ledger.offer_whole(agent_id, books, offer_id, client, bag.amounts)
            line.serve(plan, bag.amounts)
            offer = Offer(
                offer_id, client[1], client[0], agent_id, agent.description_version, bag.parts, self.expires_in_ms
            )
            outstanding[offer_id] = OutstandingOffer(offer, self.wall_ms, 0, NO_PROMISE)
            framework.offers.add(offer_id)
            self.offer_ids.append(offer_id)
            if not offers:
                self.by_framework[framework.framework_id] = offers
            offers.append(offer)

    def _ask_in_turn(self, agent: Agent) -> None:
        # What is free only shrinks here: whoever was refused or served once need not be asked again. But a demand may be cut
        # differently from less, and so get past the filter that blocked its first cut.
        done: set[Node] = set()
        cluster, has_quota = self.cluster, self.has_quota
        books, filters = cluster.ledger.books[agent.agent_id], cluster.filters.on(agent.agent_id)
        shares, held_back = cluster.shares, cluster.held_back
        by_rule = self._hidden.setdefault(cluster.visibility.class_of_agent(agent.info), {})
        if has_quota:
            held_back.begin()
        passed: list[Node] = []
        served = False
        while free := books.free:
            hidden = filters.known_hidden(free) if filters is not None else None
            amounts = _amounts_of(free) if self._refused else None
            alike = None if amounts is None else self._refused.get(amounts)
            if alike is not None:
                held_back.cut |= alike.cut
                if len(alike.refused) + len(done - alike.refused) == shares.root.active:
                    break
            refused = alike.refused if alike is not None else done
            order = chain(guaranteed_first(shares, free), shares.order()) if has_quota else shares.order()
            if cluster.first_in_line:
                order = chain(first_in_line(cluster, agent.agent_id), order)
            for node in order:
                if node in by_rule:
                    if not served or node not in done:
                        by_rule[node].decisions += 1
                        passed.append(node)
                    continue
                if node in done or node in refused or hidden and node.client in hidden:
                    continue
                plan = self.plan_for(node)
                client, framework = plan.client, plan.framework
                decision = self.question.decide(agent, client, framework, free, filters, plan.steps)
                if type(decision) is Proposal:
                    self.hand_out(agent, plan, decision)
                    if has_quota:
                        held_back.forget(in_cycle=True)
                    if books.free:
                        done.add(node)
                        done.update(passed)
                        served = True
                    break
                if not _may_change(decision, framework):
                    done.add(node)
                if decision is RefusalReason.HIDDEN_BY_RULE:
                    cell = cluster.visibility.hider(agent.info, client.role, framework.info)
                    if cell is not None:
                        by_rule[node] = cell
                if decision in _WANT_OF_AMOUNTS and _is_for_want_of_amounts(cluster, agent, client, framework):
                    if alike is None and (amounts := _amounts_of(free)) is not None:
                        alike = self._refused.setdefault(amounts, _Alike())
                    if alike is not None:
                        alike.refused.add(node)
                        alike.cut |= held_back.cut
            else:
                break
        if has_quota and books.free:
            held_back.park(agent.agent_id, shares, cluster.ledger.free_unreserved())

    def plan_for(self, node: Node) -> Plan:
        """How a client is dealt with."""
        plan = self._plans.get(node)
        if plan is None:
            assert node.client is not None
            offers = self._boxes.setdefault(node.client.framework_id, [])
            plan = self._plans[node] = Plan(self.cluster, node, offers)
        return plan

    def _bag(self, free: Holding) -> _Bag:
        bag = self._bags[id(free)] = _Bag(free, self._amounts)
        return bag

    def hand_out(self, agent: Agent, plan: Plan, proposal: Proposal) -> None:
        """Offer it; the ledger has it from now on."""
        cluster, agent_id, client, framework = self.cluster, agent.agent_id, plan.client, plan.framework
        holding, promised = proposal
        cluster.offer_sequence += 1
        offer_id = OfferId(f"{self._offer_prefix}{cluster.offer_sequence}")
        cluster.ledger.offer(agent_id, offer_id, client, holding, self.revocable)
        offer = Offer(
            offer_id,
            client.framework_id,
            client.role,
            agent_id,
            agent.description_version,
            to_reserved(holding),
            self.expires_in_ms,
            revocable=self.revocable,
        )
        cluster.offers[offer_id] = OutstandingOffer(offer, self.wall_ms, framework.demand.version, promised)
        framework.offers.add(offer_id)
        if promised:
            for index, count in promised.items():
                framework.promised[index] += count
            cluster.reopened.add(framework.framework_id)
        self.offer_ids.append(offer_id)
        if not plan.offers:
            self.by_framework[client.framework_id] = plan.offers
        plan.offers.append(offer)


def _is_for_want_of_amounts(cluster: Cluster, agent: Agent, client: Client, framework: Framework) -> bool:
    """Whether an agent alike would be refused, too: no rule took anything away, and no device is asked for by name."""
    visibility = cluster.visibility
    if visibility.rules and visibility.class_of_client(client.role, framework.info) & visibility.class_of_agent(
        agent.info
    ):
        return False
    return not any(shape.resources.devices for shape in framework.demand.shapes)


def _may_change(decision: Decision, framework: Framework) -> bool:
    """Whether less of the agent may be offered where more was not: a demand is cut differently, `gpus<=2` is true at last."""
    if decision is RefusalReason.DECLINED:
        return framework.demand.version > 0
    return decision is RefusalReason.OFFER_CONSTRAINTS
