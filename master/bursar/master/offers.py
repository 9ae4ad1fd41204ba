"""The life of an offer after it was made: sent, declined, expired, rescinded (mesos.md §2.1)."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import replace

from bursar.core.device_names import is_volume
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, FrameworkId, OfferId
from bursar.core.messages.framework import RESERVATION_REFINEMENT, REVOCABLE_RESOURCES, Offers, Rescind
from bursar.core.messages.gangs import GangState
from bursar.core.messages.offers import DEFAULT_REFUSE_MS, MAX_REFUSE_MS, AgentDescription, Decline, Filters, Offer
from bursar.core.messages.rules import RuleAction
from bursar.core.resources import Holding, holding_total
from bursar.master import hoarding
from bursar.master.allocator.constraints import is_foreign
from bursar.master.allocator.cycle import Made, run_cycle
from bursar.master.allocator.lend_cycle import run_lend_cycle
from bursar.master.allocator.rules import CompiledRule
from bursar.master.allocator.shares import Client
from bursar.master.allocator.visibility import Visibility, strip
from bursar.master.bundles import bundles_among, end_bundles, held_while_filling, whole_bundles
from bursar.master.starvation import fed
from bursar.master.state import Agent, Cluster, Framework, OutstandingOffer, Turn


def allocate(cluster: Cluster, turn: Turn, *, full: bool) -> int:
    """Run an allocation cycle for the agents that changed, or for all; send the offers; return how many were made."""
    _wake_for_demand(cluster)
    _wake_for_quota(cluster)
    with_free = cluster.ledger.with_free
    # A copy: offers take agents out of the set.
    agents = set(with_free) if full or cluster.all_dirty else cluster.dirty & with_free
    cluster.dirty.clear()
    cluster.all_dirty = False
    if not agents or not cluster.framework_connections:
        return 0
    return _send(cluster, turn, run_cycle(cluster, agents, turn.now.monotonic_ms, turn.now.wall_ms))


def lend_idle(cluster: Cluster, turn: Turn, agent_ids: AbstractSet[AgentId]) -> int:
    """Offer as revocable what is lent of these agents and was not taken in the cycle, or is held for the gang that fills; return how many
    offers were made.
    """
    agent_ids = agent_ids & ((cluster.lenders & cluster.ledger.with_free) | held_while_filling(cluster))
    if not agent_ids:
        return 0
    return _send(cluster, turn, run_lend_cycle(cluster, agent_ids, turn.now.monotonic_ms, turn.now.wall_ms))


def _send(cluster: Cluster, turn: Turn, made: Made) -> int:
    _wake_for_demand(cluster)
    _wake_for_quota(cluster)
    for framework_id, offers in made.by_framework.items():
        send_offers(cluster, turn, cluster.frameworks[framework_id], offers)
    return made.offers


def _wake_for_demand(cluster: Cluster) -> None:
    """Look again at agents that were parked under a demand which is another one now.

    Where more is open, any agent may have it. Where less is, an agent that a filter hid may be cut differently, and so be offered.
    """
    for framework_id in sorted(cluster.reopened):
        framework = cluster.frameworks.get(framework_id)
        if framework is None or framework.connection is None:
            continue
        now, before = framework.open, framework.settled
        if any(more > less for more, less in zip(now, before, strict=True)):
            cluster.touch_all()
        elif now != before:
            cluster.dirty |= cluster.filters.agents_of(framework_id)
        framework.settled = now
    cluster.reopened.clear()


def _wake_for_quota(cluster: Cluster) -> None:
    """Look again at agents of which quota held something back, if it allows somebody more now."""
    if cluster.held_back.agents and cluster.shares.quota_kinds:
        cluster.dirty |= cluster.held_back.wake(cluster.shares, cluster.ledger.free_unreserved())
    cluster.shares.quota_moved = False


def send_offers(cluster: Cluster, turn: Turn, framework: Framework, offers: list[Offer]) -> None:
    """Send offers, and before them the descriptions that the stream has not seen in this version."""
    turn.to_framework(framework, Offers(new_descriptions(cluster, framework, offers), tuple(offers)))
    if framework.framework_id in cluster.hunger:
        fed(cluster, turn, framework)


def new_descriptions(cluster: Cluster, framework: Framework, offers: list[Offer]) -> tuple[AgentDescription, ...]:
    """The descriptions that offers refer to and the stream has not seen in this version; from now on it has."""
    agents, is_news = cluster.agents, framework.described.note
    return tuple([agent.describe() for offer in offers if is_news((agent := agents[offer.agent_id]).number)])


def refuse_until_ms(cluster: Cluster, turn: Turn, filters: Filters) -> int:
    """When a filter ends: not before an allocation interval, at most after 365 days (OFF-5, T9)."""
    refuse_ms = DEFAULT_REFUSE_MS if filters.refuse_ms is None else min(filters.refuse_ms, MAX_REFUSE_MS)
    return turn.now.monotonic_ms + max(cluster.flags.duration_ms("allocation-interval"), refuse_ms)


def end_offer(cluster: Cluster, offer_id: OfferId) -> tuple[OutstandingOffer, Holding]:
    """Take an offer off the books: its resources are free, its promise is open again."""
    return end_offers(cluster, (offer_id,))[0]


def end_offers(cluster: Cluster, offer_ids: Iterable[OfferId]) -> list[tuple[OutstandingOffer, Holding]]:
    """The same for many, in this order."""
    ended = [cluster.offers.pop(offer_id) for offer_id in offer_ids]
    offers = [ending.offer for ending in ended]
    holdings = cluster.ledger.release_offers([(offer.agent_id, offer.offer_id) for offer in offers])
    cluster.dirty.update([offer.agent_id for offer in offers])
    for ending, offer in zip(ended, offers, strict=True):
        framework = cluster.frameworks[offer.framework_id]
        framework.offers.discard(offer.offer_id)
        if ending.promised and ending.demand_version == framework.demand.version:
            for index, count in ending.promised.items():
                framework.promised[index] -= count
            cluster.reopened.add(offer.framework_id)
    return list(zip(ended, holdings, strict=True))


def damp(cluster: Cluster, offer: Offer, holding: Holding, until_ms: int) -> None:
    """Do not offer the same or less of this agent to the same framework and role before then."""
    cluster.filters.add(Client(offer.role, offer.framework_id), offer.agent_id, holding, until_ms)


def damp_all(
    cluster: Cluster, framework: Framework, ended: Iterable[tuple[OutstandingOffer, Holding]], until_ms: int
) -> None:
    """The same for offers to one framework that have ended."""
    by_role: dict[str, list[tuple[AgentId, Holding]]] = {}
    for outstanding, holding in ended:
        offer = outstanding.offer
        if offer.role not in by_role:
            by_role[offer.role] = []
        by_role[offer.role].append((offer.agent_id, holding))
    for role, refused in by_role.items():
        cluster.filters.add_all(Client(role, framework.framework_id), refused, until_ms)


def decline(cluster: Cluster, turn: Turn, framework: Framework, call: Decline) -> None:
    """The framework does not want these; ids that are not outstanding are ignored (OFF-4)."""
    until_ms = refuse_until_ms(cluster, turn, call.filters)
    cluster.filters.answered(framework.framework_id)
    mine = [offer_id for offer_id in dict.fromkeys(call.offer_ids) if offer_id in framework.offers]
    mine, bundles = whole_bundles(cluster, mine), bundles_among(cluster, mine)
    ended = end_offers(cluster, mine)
    for end_ms, some in hoarding.declined_all(cluster, turn, framework, ended, until_ms).items():
        damp_all(cluster, framework, some, end_ms)
    cluster.counters.offers_declined += len(mine)
    end_bundles(cluster, turn, bundles, GangState.CANCELLED)


def expire_all(cluster: Cluster, turn: Turn, expires_at: str) -> None:
    """The offers that were made to expire at this time, and are still outstanding, do."""
    for offer_id in cluster.expiring_offers.pop(expires_at):
        if offer_id in cluster.offers:
            expire(cluster, turn, offer_id)


def expire(cluster: Cluster, turn: Turn, offer_id: OfferId) -> None:
    """The framework did not answer in time: in none of its roles is it offered the same for a while. A bundle expires as a whole."""
    bundles, offer_ids = bundles_among(cluster, (offer_id,)), whole_bundles(cluster, (offer_id,))
    all_ended = end_offers(cluster, offer_ids)
    framework = cluster.frameworks[all_ended[0][0].offer.framework_id]
    until_ms = turn.now.monotonic_ms + hoarding.left_unanswered(cluster, turn, framework, all_ended)
    for ended, holding in all_ended:
        for role in framework.info.roles:
            damp(cluster, replace(ended.offer, role=role), holding, until_ms)
    cluster.counters.offers_expired += len(all_ended)
    why = "the offer was not answered in time"
    turn.to_framework(framework, Rescind(tuple(offer_ids), why))
    detail = ErrorDetail(
        ErrorReason.INVALID_OFFERS, "its bundle was not answered in time", "ask again, and answer sooner"
    )
    end_bundles(cluster, turn, bundles, GangState.EXPIRED, detail)


def rescind(cluster: Cluster, turn: Turn, offer_ids: Iterable[OfferId], reason: str) -> int:
    """Withdraw offers, bundles as a whole: void in the ledger and the rescind queued in the same step; return how many."""
    by_framework: dict[FrameworkId, list[OfferId]] = {}
    count = 0
    void = sorted(offer_ids)
    bundles = bundles_among(cluster, void)
    if bundles:
        void = sorted(whole_bundles(cluster, void))
    for outstanding, _ in end_offers(cluster, void):
        by_framework.setdefault(outstanding.offer.framework_id, []).append(outstanding.offer.offer_id)
        count += 1
    for framework_id, ids in by_framework.items():
        turn.to_framework(cluster.frameworks[framework_id], Rescind(tuple(ids), reason))
    cluster.counters.offers_rescinded += count
    detail = ErrorDetail(ErrorReason.INVALID_OFFERS, f"its bundle was rescinded: {reason}", "it waits for another one")
    end_bundles(cluster, turn, bundles, GangState.WAITING, detail)
    return count


def offers_on(cluster: Cluster, agent_id: AgentId) -> list[OfferId]:
    """The outstanding offers of an agent."""
    return list(cluster.ledger.books[agent_id].offered)


def rescind_forbidden(cluster: Cluster, turn: Turn, reason: str, only: Framework | None = None) -> int:
    """Rescind exactly the offers (of one framework, or of all) that rules and regions no longer permit; return how many."""
    forbidden = set(forbidden_offers(cluster, cluster.visibility, only))
    for offer_id in (cluster.offers if only is None else only.offers) if cluster.region else ():
        offer = cluster.offers[offer_id].offer
        capabilities = cluster.frameworks[offer.framework_id].info.capabilities
        if is_foreign(cluster.region, capabilities, cluster.agents[offer.agent_id].facts):
            forbidden.add(offer_id)
    for offer_id in cluster.offers if only is None else only.offers:
        offer = cluster.offers[offer_id].offer
        capabilities = cluster.frameworks[offer.framework_id].info.capabilities
        if offer.revocable:
            if REVOCABLE_RESOURCES not in capabilities:
                forbidden.add(offer_id)
        elif RESERVATION_REFINEMENT not in capabilities and any(len(part.stack) > 1 for part in offer.resources):
            forbidden.add(offer_id)
    return rescind(cluster, turn, forbidden, reason)


def forbidden_offers(cluster: Cluster, visibility: Visibility, only: Framework | None = None) -> list[OfferId]:
    """The offers (of one framework, or of all) that rules do not permit.

    Those on hidden agents, those that contain what is stripped, and of those that hold what is to be kept for GPUs the newest,
    until enough is kept.
    """
    forbidden: list[OfferId] = []
    restricted: dict[AgentId, list[tuple[OfferId, CompiledRule]]] = {}
    for offer_id in cluster.offers if only is None else only.offers:
        offer = cluster.offers[offer_id].offer
        framework = cluster.frameworks[offer.framework_id]
        judgement = visibility.judge(cluster.agents[offer.agent_id].info, offer.role, framework.info)
        rule = judgement.winner
        if rule is None or rule.action is RuleAction.ALLOW:
            continue
        offered = {part.stack: part.resources for part in offer.resources}
        if rule.action is RuleAction.HIDE_AGENT or strip(offered, rule.stripped) != offered:
            forbidden.append(offer_id)
        else:
            restricted.setdefault(offer.agent_id, []).append((offer_id, rule))
    for agent_id, candidates in restricted.items():
        forbidden += _offers_in_headroom(cluster, visibility, cluster.agents[agent_id], candidates)
    return forbidden


def _offers_in_headroom(
    cluster: Cluster, visibility: Visibility, agent: Agent, candidates: list[tuple[OfferId, CompiledRule]]
) -> list[OfferId]:
    """The newest of some offers that hold what should be kept for the GPUs of their agent."""
    books = cluster.ledger.books[agent.agent_id]
    chosen: list[OfferId] = []
    returned: dict[str, int] = {}
    for offer_id, rule in sorted(candidates, key=lambda item: (len(item[0]), item[0]), reverse=True):
        lacking = visibility.kept_for_gpus(rule, agent.info, books, books.free, frozenset()).lacking
        holding = holding_total(cluster.ledger.offer_holding(agent.agent_id, offer_id))
        if all(map(is_volume, holding.devices)) and any(
            amount > returned.get(kind, 0) and holding.scalars.get(kind, 0) for kind, amount in lacking.items()
        ):
            chosen.append(offer_id)
            for kind, amount in holding.scalars.items():
                returned[kind] = returned.get(kind, 0) + amount
    return chosen
