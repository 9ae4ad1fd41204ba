"""Making the bundle: what was chosen is carved and offered, all of it or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bursar.core.ids import OfferId
from bursar.core.messages.framework import Offers
from bursar.core.messages.gangs import Bundle, BundleMember
from bursar.core.messages.offers import Offer
from bursar.core.messages.operator import RefusalReason
from bursar.core.resources import (
    Holding,
    Resources,
    Stack,
    add_holdings,
    holding_total,
    subtract_holdings,
    to_reserved,
)
from bursar.master.allocator.carve import carve
from bursar.master.allocator.gangs import Counts, pick_clique
from bursar.master.bundles import Gang, release_hold
from bursar.master.gangs.limits import client_of, quota_in_the_way
from bursar.master.gangs.room import available_on, cliques_on
from bursar.master.offers import new_descriptions
from bursar.master.state import Agent, Cluster, OutstandingOffer, Turn

Cut = list[tuple[Agent, dict[Stack, Resources]]]
"""What a bundle has of which agent."""


def cut_bundle(cluster: Cluster, gang: Gang, places: Counts) -> tuple[Cut, list[BundleMember]] | None:
    """Carve what was chosen; None where that cannot be, or quota does not allow it: the gang's `hindrance` then says why."""
    chosen = sorted([cluster.agents[agent_id] for agent_id in places], key=lambda agent: agent.order)
    holdings: Cut = []
    members: list[BundleMember] = []
    for agent in chosen:
        there = available_on(cluster, gang, agent.agent_id)
        holding = carve_tasks(cluster, gang, agent, there, places[agent.agent_id], members)
        if holding is None:
            # Amounts are there, but not in this form.
            gang.hinder(RefusalReason.NOT_FREE, f"{agent.info.hostname} has the amounts, but not together")
            return None
        holdings.append((agent, holding))
    if cluster.shares.quota_kinds:
        problem = quota_in_the_way(cluster, gang, [holding for _, holding in holdings])
        if problem is not None:
            gang.hinder(*problem)
            return None
    return holdings, members


def offer_bundle(cluster: Cluster, turn: Turn, gang: Gang, places: Counts) -> bool:
    """Carve what was chosen and offer it, all of it or nothing; say whether it was."""
    framework = cluster.frameworks[gang.key.framework_id]
    cut = cut_bundle(cluster, gang, places)
    if cut is None:
        return False
    holdings, members = cut
    release_hold(cluster, gang)
    cluster.deadlines.cancel(("gang", str(gang.number)))
    cluster.gangs.bundles_made += 1
    bundle_id = f"{cluster.term}-B{cluster.gangs.bundles_made}"
    expires_in_ms = cluster.flags.duration_ms("offer-timeout")
    client = client_of(gang)
    offers = []
    for agent, holding in holdings:
        cluster.offer_sequence += 1
        offer_id = OfferId(f"{cluster.term}-O{cluster.offer_sequence}")
        cluster.ledger.offer(agent.agent_id, offer_id, client, holding)
        offer = Offer(
            offer_id,
            framework.framework_id,
            client.role,
            agent.agent_id,
            agent.description_version,
            to_reserved(holding),
            expires_in_ms,
            bundle_id,
        )
        cluster.offers[offer_id] = OutstandingOffer(offer, turn.now.wall_ms)
        framework.offers.add(offer_id)
        offers.append(offer)
    gang.bundle_id, gang.offer_ids = bundle_id, tuple(offer.offer_id for offer in offers)
    gang.forget_room()
    cluster.gangs.by_bundle[bundle_id] = gang
    expires_at_ms = turn.now.monotonic_ms + expires_in_ms
    cluster.expiring_offers.setdefault(str(expires_at_ms), []).extend(gang.offer_ids)
    cluster.deadlines.set(("offers", str(expires_at_ms)), expires_at_ms)
    cluster.counters.offers_made += len(offers)
    if descriptions := new_descriptions(cluster, framework, offers):
        turn.to_framework(framework, Offers(descriptions, ()))
    turn.to_framework(framework, Bundle(bundle_id, gang.key.gang_id, tuple(offers), tuple(members)))
    return True


def carve_tasks(
    cluster: Cluster, gang: Gang, agent: Agent, there: Holding, counts: Sequence[int], members: list[BundleMember]
) -> dict[Stack, Resources] | None:
    """Cut the tasks that go to an agent out of what there is, and note them as members; None where that is not possible."""
    rest = there
    holding: dict[Stack, Resources] = {}
    for index, count in enumerate(counts):
        request = gang.request.groups[index].resources
        if not count:
            continue
        if request.gpus and gang.request.topology.nvlink_clique:
            cliques = cliques_on(cluster, agent)
            for _ in range(count):
                try:
                    uuids = tuple(pick_clique(holding_total(rest).devices, cliques, agent.devices, request.gpus))
                except ValueError:
                    return None
                named = replace(request, gpus=0, devices=uuids)
                part = carve(rest, named, agent.devices)
                if part is None:
                    return None
                rest, holding = subtract_holdings(rest, part), add_holdings(holding, part)
                members.append(BundleMember(index, agent.agent_id, uuids))
            continue
        part = carve(rest, request, agent.devices, count)
        if part is None:
            return None
        rest, holding = subtract_holdings(rest, part), add_holdings(holding, part)
        members += [BundleMember(index, agent.agent_id)] * count
    return holding
