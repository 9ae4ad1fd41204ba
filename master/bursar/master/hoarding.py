"""What frameworks do with their offers: measured, and answered by longer pauses where the same is refused again and again."""

from __future__ import annotations

from bursar.core.messages.operator import OfferHistory
from bursar.core.resources import Holding, holding_total
from bursar.master.allocator.backoff import (
    FREE_ROUNDS,
    MAX_DECLINE_PAUSE_MS,
    MAX_SILENCE_PAUSE_MS,
    decline_pause_ms,
    pause_ms,
    shape_of,
)
from bursar.master.allocator.shares import Client
from bursar.master.state import Cluster, Framework, OutstandingOffer, Turn


def declined_all(
    cluster: Cluster, turn: Turn, framework: Framework, all_ended: list[tuple[OutstandingOffer, Holding]], until_ms: int
) -> dict[int, list[tuple[OutstandingOffer, Holding]]]:
    """Note that offers were declined; return when their filters end: `until_ms`, or later by what was declined before.

    Bundles, which were asked for, have no history.
    """
    now_ms, interval_ms = turn.now.monotonic_ms, _interval_ms(cluster)
    framework.history.declined += len(all_ended)
    _came_back(cluster, turn, framework, all_ended)
    if until_ms - now_ms >= MAX_DECLINE_PAUSE_MS:
        return {until_ms: all_ended}
    by_end: dict[int, list[tuple[OutstandingOffer, Holding]]] = {}
    #: Of agents that share what they have, and were offered together, the same becomes: by identity.
    alike: dict[tuple[str, int, int], list[tuple[OutstandingOffer, Holding]]] = {}
    books_of, history = cluster.ledger.books, cluster.filters.history
    for one in all_ended:
        ended, offer = one[0], one[0].offer
        if offer.bundle_id:
            by_end.setdefault(until_ms, []).append(one)
            continue
        total = books_of[offer.agent_id].total
        key = (offer.role, id(total), ended.created_at_ms)
        same = alike.get(key)
        if same is None:
            client = Client(offer.role, offer.framework_id)
            rounds = history.declined(client, shape_of(total), ended.created_at_ms, turn.now.wall_ms)
            end_ms = max(until_ms, now_ms + decline_pause_ms(rounds, interval_ms))
            same = alike[key] = by_end.setdefault(end_ms, [])
        same.append(one)
    return by_end


def used(cluster: Cluster, ended: OutstandingOffer) -> None:
    """Something of an offer was taken."""
    offer = ended.offer
    cluster.frameworks[offer.framework_id].history.accepted += 1
    client = Client(offer.role, offer.framework_id)
    cluster.filters.history.used(client, shape_of(cluster.ledger.books[offer.agent_id].total))


def left_unanswered(
    cluster: Cluster, turn: Turn, framework: Framework, all_ended: list[tuple[OutstandingOffer, Holding]]
) -> int:
    """Note offers that were not answered in time, together; return how long the pause is.

    Several silent frameworks, or one in several roles, would otherwise pass the parts of an agent to each other for ever, and whoever
    needs two parts at once would starve.
    """
    now_ms = turn.now.monotonic_ms
    framework.history.unanswered += len(all_ended)
    _came_back(cluster, turn, framework, all_ended)
    made_ms = now_ms - cluster.flags.duration_ms("offer-timeout")
    rounds = cluster.filters.left_unanswered(framework.framework_id, made_ms, now_ms)
    return pause_ms(rounds, _interval_ms(cluster), MAX_SILENCE_PAUSE_MS)


def history_of(cluster: Cluster, framework: Framework) -> OfferHistory:
    """What became of a framework's offers, and what follows from it."""
    filters, counts = cluster.filters, framework.history
    declined_rounds = filters.history.most_rounds(framework.framework_id, framework.info.roles)
    silent_rounds = filters.rounds_unanswered(framework.framework_id)
    interval_ms = _interval_ms(cluster)
    pause = max(
        decline_pause_ms(declined_rounds, interval_ms), pause_ms(silent_rounds, interval_ms, MAX_SILENCE_PAUSE_MS)
    )
    return OfferHistory(
        counts.accepted, counts.declined, counts.unanswered, counts.unused_ms, declined_rounds, silent_rounds, pause
    )


def backs_off_for(cluster: Cluster, framework: Framework) -> str:
    """Why a framework is offered the same less often: `silence`, `declines`; empty where it is not."""
    filters = cluster.filters
    if filters.rounds_unanswered(framework.framework_id):
        return "silence"
    rounds = filters.history.most_rounds(framework.framework_id, framework.info.roles)
    return "declines" if rounds > FREE_ROUNDS else ""


def _came_back(
    cluster: Cluster, turn: Turn, framework: Framework, all_ended: list[tuple[OutstandingOffer, Holding]]
) -> None:
    """Count what was out for nothing, and for how long."""
    unused, wall_ms = cluster.counters.unused, turn.now.wall_ms
    for ended, holding in all_ended:
        out_ms = wall_ms - ended.created_at_ms
        if out_ms <= 0:
            continue
        framework.history.unused_ms += out_ms
        for kind, amount in holding_total(holding).amounts().items():
            unused[kind] = unused.get(kind, 0) + amount * out_ms


def _interval_ms(cluster: Cluster) -> int:
    return cluster.flags.duration_ms("allocation-interval")
