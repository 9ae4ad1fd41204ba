"""Gangs as operators see them: what each asked for, how far it is, what it holds and what it lacks."""

from __future__ import annotations

from bursar.core.clock import Instant
from bursar.core.messages.operator import GangPhase, GangView, ListGangsRequest, ListGangsResponse
from bursar.master.allocator.gangs import needs_of
from bursar.master.bundles import Gang
from bursar.master.gangs.explaining import amounts_of, examine
from bursar.master.gangs.line import line_up
from bursar.master.state import Cluster
from bursar.master.views import page_of

#: Gangs of one page, at most; each is looked for on all agents.
MAX_PAGE = 20


def list_gangs(cluster: Cluster, now: Instant, request: ListGangsRequest) -> ListGangsResponse:
    """Those that wait, or whose bundle is on offer; the oldest first."""
    gangs, line = cluster.gangs.by_number, line_up(cluster)
    part, token = page_of(
        [gangs[number] for number in sorted(gangs)], lambda gang: f"{gang.number:020d}", request.page, most=MAX_PAGE
    )

    def view(gang: Gang) -> GangView:
        found = examine(cluster, now, gang, line)
        if gang.bundle_id:
            offered = [(cluster.offers[offer_id].offer.agent_id, offer_id) for offer_id in gang.offer_ids]
            held = [cluster.ledger.offer_holding(agent_id, offer_id) for agent_id, offer_id in offered]
        else:
            held = list(cluster.ledger.held_for(gang.number).values())
        return GangView(
            found.standing,
            phase_of(cluster, gang),
            gang.request.groups,
            gang.request.topology,
            gang.request.on_member_lost,
            needs_of(gang.request.groups),
            amounts_of(held),
            len(held),
            amounts_of(found.on_loan),
            found.missing,
            gang.requested_at_ms,
            gang.holds_since_ms,
            gang.holds_until_ms,
        )

    return ListGangsResponse(tuple(map(view, part)), token)


def phase_of(cluster: Cluster, gang: Gang) -> GangPhase:
    """Where it is on its way to its bundle."""
    if gang.bundle_id:
        return GangPhase.ON_OFFER
    if gang.recalls is not None:
        return GangPhase.CALLING_BACK
    return GangPhase.FILLING if cluster.gangs.holder is gang else GangPhase.IN_LINE
