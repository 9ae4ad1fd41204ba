"""Withholding for a gang what it can use of what becomes free; what of that is on loan counts as held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

from bursar.core.device_names import gpus_among
from bursar.core.devices import Device, pick_connected
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.messages.gangs import GangGroup
from bursar.core.messages.operator import RefusalReason
from bursar.core.resources import (
    EMPTY,
    MILLI,
    Holding,
    Resources,
    Stack,
    add_holdings,
    count_ports,
    first_ports,
    holding_total,
    intersect_ports,
    subtract_ports,
)
from bursar.master.allocator.carve import pick_of_kind
from bursar.master.allocator.gangs import Cliques, HoldPlan, Room, pick_clique, plan_hold
from bursar.master.bundles import Gang
from bursar.master.gangs.limits import limit_left_in_the_way, quota_in_the_way
from bursar.master.gangs.room import (
    available_on,
    by_value,
    capacity_of,
    cliques_on,
    coming_back,
    counted_with_loans,
    loans_for,
    usable,
)
from bursar.master.state import Agent, Cluster


def plan_of(cluster: Cluster, gang: Gang) -> HoldPlan | None:
    """What should be withheld for a gang; None where it would not fit even with everything free that is there now."""

    def capacity(agent_id: AgentId) -> Room:
        room = gang.capacities.get(agent_id)
        if room is None:
            room = gang.capacities[agent_id] = capacity_of(cluster, gang, cluster.agents[agent_id])
        return room

    best: HoldPlan | None = None
    for _, there in sorted(by_value(gang).items(), key=lambda item: str(item[0])):
        plan = plan_hold(gang.request.groups, there, capacity)
        if not plan.homeless and (best is None or plan.tasks > best.tasks):
            best = plan
    if best is None:
        gang.hinder(RefusalReason.AGENT_INACTIVE, "agents that it needs are away or were changed")
    return best


def hold(cluster: Cluster, gang: Gang) -> bool:
    """Withhold what a gang can use of what is free; say whether it may hold at all: with everything free, it would fit."""
    assert gang.spots is not None
    counting = counted_with_loans(cluster, gang)
    best = plan_of(cluster, counting)
    if best is None:
        gang.hinder(counting.hindered_by, counting.hindrance)
        return False
    wanted: dict[AgentId, dict[Stack, Resources]] = {}
    if gang.at_quota or (cluster.shares.quota_kinds and limit_left_in_the_way(cluster, gang)):
        return False
    for agent_id in (*best.filled, *(agent_id for agent_id in best.filling if agent_id not in best.filled)):
        if holding := _part_to_hold(cluster, gang, cluster.agents[agent_id], best):
            if cluster.shares.quota_kinds and quota_in_the_way(cluster, gang, (*wanted.values(), holding)):
                # The rest is kept for guarantees.
                continue
            wanted[agent_id] = holding
    withhold(cluster, gang, wanted)
    return True


def withhold(cluster: Cluster, gang: Gang, wanted: Mapping[AgentId, Holding]) -> None:
    """Exactly this is withheld for a gang from now on."""
    held = cluster.ledger.held_for(gang.number)
    for agent_id in sorted(held.keys() | wanted.keys()):
        books = cluster.ledger.books[agent_id]
        before, after = held.get(agent_id, {}), wanted.get(agent_id, {})
        if before == after:
            continue
        cluster.ledger.hold_for_gang(agent_id, gang.number, after)
        # What is let go is for others, what is held more can be lent.
        cluster.touch(agent_id)
        for looked_at in (gang, gang.with_loans):
            if looked_at is not None and looked_at.spots is not None and (spot := looked_at.spots.get(agent_id)):
                # All in all it has what it had.
                looked_at.spots[agent_id] = (books.free, *spot[1:])


def _part_to_hold(cluster: Cluster, gang: Gang, agent: Agent, plan: HoldPlan) -> dict[Stack, Resources]:
    """What an agent has of what the tasks of a plan need there, besides what is on loan of it."""
    available = available_on(cluster, gang, agent.agent_id)
    books = cluster.ledger.books[agent.agent_id]
    loans = [coming_back(books, loan) for loan in loans_for(cluster, gang, agent.agent_id)]
    lent = holding_total(usable(cluster, gang, agent.agent_id, reduce(add_holdings, loans, {}))) if loans else EMPTY
    groups = gang.request.groups
    none = (0,) * len(groups)
    filled, filling = plan.filled.get(agent.agent_id, none), plan.filling.get(agent.agent_id, none)
    counts = [now + later for now, later in zip(filled, filling, strict=True)]
    stacks = sorted(available, key=lambda stack: (-len(stack), stack))
    result: dict[Stack, Resources] = {}

    def take(stack: Stack, part: Resources) -> None:
        result[stack] = result.get(stack, EMPTY) + part

    needed: dict[str, int] = {}
    for group, count in zip(groups, counts, strict=True):
        for kind, amount in group.resources.scalars.items():
            needed[kind] = needed.get(kind, 0) + amount * count
        if count and group.resources.ports:
            for stack in stacks:
                if common := intersect_ports(subtract_ports(group.resources.ports, lent.ports), available[stack].ports):
                    take(stack, Resources(ports=common))
        for stack in stacks if (wanted := group.resources.port_count * count - count_ports(lent.ports)) > 0 else ():
            free = subtract_ports(available[stack].ports, result.get(stack, EMPTY).ports)
            if found := first_ports(free, wanted):
                take(stack, Resources(ports=found))
                wanted -= count_ports(found)
    for kind, amount in needed.items():
        amount = max(0, amount - lent.amount(kind))
        for stack in stacks:
            there = min(amount, available[stack].scalars.get(kind, 0))
            if there > 0:
                take(stack, Resources({kind: there}))
                amount -= there
        for stack in stacks if amount > 0 else ():
            uuids = pick_of_kind(available[stack].devices, kind, -(-amount // MILLI), agent.devices)
            if uuids:
                take(stack, Resources(devices=uuids))
                amount -= MILLI * len(uuids)
    cliques = cliques_on(cluster, agent) if gang.request.topology.nvlink_clique else None
    devices = _devices_to_hold(
        gpus_among(holding_total(available).devices),
        gpus_among(lent.devices),
        groups,
        filled,
        filling,
        cliques,
        agent.devices,
    )
    for stack in stacks:
        if part := available[stack].devices & devices:
            take(stack, Resources(devices=part))
    return result


def _devices_to_hold(
    free: frozenset[DeviceUuid],
    lent: frozenset[DeviceUuid],
    groups: Sequence[GangGroup],
    filled: Sequence[int],
    filling: Sequence[int],
    cliques: Cliques | None,
    devices: Mapping[DeviceUuid, Device],
) -> frozenset[DeviceUuid]:
    wanted = sum(
        group.resources.gpus * (now + later) for group, now, later in zip(groups, filled, filling, strict=True)
    )
    if wanted >= len(free) + len(lent):
        return free
    if cliques is None or not wanted:
        wanted -= len(lent)
        return free if wanted >= len(free) else frozenset(pick_connected(free, max(0, wanted), devices))
    rest = free | lent
    for group, now, later in zip(groups, filled, filling, strict=True):
        for task in range(now + later if group.resources.gpus else 0):
            if task < now:
                picked = frozenset(pick_clique(rest, cliques, devices, group.resources.gpus))
            else:
                # It fills where most is there already.
                part = max((clique & rest for clique in cliques), key=lambda part: (len(part), min(part, default="")))
                picked = frozenset(sorted(part)[: group.resources.gpus])
            rest -= picked
    return free - rest
