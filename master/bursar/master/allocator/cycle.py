"""The allocation cycle.

For each agent with something free, in the order of a permutation: ask the shares who comes next; decide what that (role,
framework) may have of the agent (`decision`); hand it out; go on with what is left. A cycle runs for the agents that changed, at
once, and for all as the guarantee of progress; when the former is quiet, the latter makes no offer (design.md §7).
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from itertools import chain
from operator import attrgetter

from bursar.core.ids import AgentId, OfferId
from bursar.core.messages.offers import Offer
from bursar.core.messages.operator import RefusalReason
from bursar.core.resources import UNRESERVED, Holding, Ports, to_reserved
from bursar.master.allocator.decision import Decision, Proposal, Question, Steps, steps_for
from bursar.master.allocator.held_back import guaranteed_first
from bursar.master.allocator.shares import Client
from bursar.master.state import Agent, Cluster, Framework, OutstandingOffer


def run_cycle(cluster: Cluster, agent_ids: AbstractSet[AgentId], now_ms: int, wall_ms: int) -> list[OutstandingOffer]:
    """Offer what is free on these agents; return the new offers, already booked in the ledger."""
    expires_in_ms = cluster.flags.duration_ms("offer-timeout")
    cycle = _Cycle(cluster, wall_ms, expires_in_ms)
    cluster.held_back.forget(in_cycle=True)
    for agent in _in_order(cluster, agent_ids):
        cycle.offer_agent(agent)
    cluster.held_back.forget(in_cycle=False)
    made = cycle.made
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


class _Cycle:
    """One run over agents: what is configured holds for all of it."""

    def __init__(self, cluster: Cluster, wall_ms: int, expires_in_ms: int) -> None:
        self.cluster = cluster
        self.wall_ms = wall_ms
        self.expires_in_ms = expires_in_ms
        self.made: list[OutstandingOffer] = []
        self._refused: dict[_Amounts, _Alike] = {}
        self._steps: dict[Client, Steps] = {}
        self._question = Question(cluster)
        self._has_quota = bool(cluster.shares.quota_kinds)

    def offer_agent(self, agent: Agent) -> None:
        """Offer one agent until nothing is left, or nobody may have it."""
        cluster = self.cluster
        agent_id = agent.agent_id
        books = cluster.ledger.books[agent_id]
        filters = cluster.filters.on(agent_id)
        # What is free only shrinks here: whoever was refused or served once need not be asked again. But a demand may be cut
        # differently from less, and so get past the filter that blocked its first cut.
        done: set[Client] = set()
        shares, held_back, has_quota = cluster.shares, cluster.held_back, self._has_quota
        if has_quota:
            held_back.begin()
        while free := books.free:
            hidden = None if filters is None else filters.known_hidden(free)
            amounts = _amounts_of(free) if self._refused else None
            alike = None if amounts is None else self._refused.get(amounts)
            if alike is not None:
                hidden = alike.refused if hidden is None else hidden | alike.refused
                held_back.cut |= alike.cut
            order = chain(guaranteed_first(shares, free), shares.order()) if has_quota else shares.order()
            for node in order:
                client = node.client
                assert client is not None
                if done and client in done or hidden and client in hidden:
                    continue
                framework = cluster.frameworks[client.framework_id]
                steps = self._steps.get(client)
                if steps is None:
                    steps = self._steps[client] = steps_for(cluster, client, framework)
                decision = self._question.decide(agent, client, framework, free, filters, steps)
                if type(decision) is Proposal:
                    self._hand_out(agent, client, framework, decision)
                    if has_quota:
                        held_back.forget(in_cycle=True)
                    if books.free:
                        done.add(client)
                    break
                if not _may_change(decision, framework):
                    done.add(client)
                if decision in _WANT_OF_AMOUNTS and _is_for_want_of_amounts(cluster, agent, client, framework):
                    if alike is None and (amounts := _amounts_of(free)) is not None:
                        alike = self._refused.setdefault(amounts, _Alike())
                    if alike is not None:
                        alike.refused.add(client)
                        alike.cut |= held_back.cut
            else:
                if has_quota:
                    held_back.park(agent_id, shares, cluster.ledger.free_unreserved())
                return

    def _hand_out(self, agent: Agent, client: Client, framework: Framework, proposal: Proposal) -> None:
        cluster, agent_id = self.cluster, agent.agent_id
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
            self.expires_in_ms,
        )
        outstanding = OutstandingOffer(offer, self.wall_ms, framework.demand.version, promised)
        cluster.offers[offer_id] = outstanding
        framework.offers.add(offer_id)
        if promised:
            for index, count in promised.items():
                framework.promised[index] += count
            cluster.reopened.add(framework.framework_id)
        self.made.append(outstanding)


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
