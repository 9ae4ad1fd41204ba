"""Calling back for a gang what is on loan, once that is all that it lacks; all or nothing.

What is free or on loan is looked at together; where all tasks have room in that, what stands in the way is called back: offers at once,
tasks with a notice. Until it is there, what the bundle will have is withheld as it comes, and lent to nobody. A gang that gets that far does
not wait for what another one holds, only for notices to be over: so the next in line may hold meanwhile, and nothing can be stuck.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from bursar.core.ids import AgentId
from bursar.core.messages.operator import AgentState
from bursar.core.resources import EMPTY, Holding, Resources, Stack, add_holdings, holding_contains
from bursar.master import lending
from bursar.master.allocator.loans import Loan
from bursar.master.bundles import Gang, release_hold
from bursar.master.gangs.holding import withhold
from bursar.master.gangs.limits import quota_in_the_way
from bursar.master.gangs.offering import carve_tasks, offer_bundle
from bursar.master.gangs.room import (
    available_on,
    coming_back,
    counted_with_loans,
    loans_for,
    look,
    places_of,
    usable,
)
from bursar.master.state import Agent, Cluster, Turn


def call_back(cluster: Cluster, turn: Turn, gang: Gang) -> None:
    """Call back what is on loan, if all tasks have room with it."""
    chosen = choose(cluster, gang)
    if chosen is None:
        return
    places, promised, loans = chosen
    release_hold(cluster, gang)
    gang.recalls, gang.promised = places, promised
    cluster.gangs.recalling.update(dict.fromkeys((agent_id for agent_id, some in loans.items() if some), gang))
    name = cluster.frameworks[gang.key.framework_id].info.name or gang.key.framework_id
    why = f"gang {gang.key.gang_id} of {name} has room with it"
    lending.call_in(cluster, turn, [loan for some in loans.values() for loan in some], why)
    turn.publish(
        "gang_recall_began",
        f"what is on loan is called back for gang {gang.key.gang_id}, which has room with it",
        framework_id=gang.key.framework_id,
    )
    go_on(cluster, turn, gang)


Chosen = tuple[dict[AgentId, list[int]], dict[AgentId, Holding], dict[AgentId, Sequence[Loan]]]
"""How many tasks of each group go where, what they have there, and what must come back for that."""


def choose(cluster: Cluster, gang: Gang) -> Chosen | None:
    """Where all tasks of a gang have room once what is on loan is back; None where they have not."""
    counting = counted_with_loans(cluster, gang)
    if counting is gang or places_of(cluster, counting) is None:
        return None
    # The same once more, the other way round: agents on which nothing must be called back first.
    sparing = gang.counting_loans(1)
    look(cluster, sparing, ())
    places = places_of(cluster, sparing, fresh=True) or counting.chosen
    assert places is not None
    promised: dict[AgentId, Holding] = {}
    loans: dict[AgentId, Sequence[Loan]] = {}
    for agent in sorted([cluster.agents[agent_id] for agent_id in places], key=lambda agent: agent.order):
        needed = _needed(cluster, gang, agent, places[agent.agent_id])
        if needed is None:
            return None
        promised[agent.agent_id], loans[agent.agent_id] = needed
    if cluster.shares.quota_kinds:
        books = cluster.ledger.books
        back = [coming_back(books[agent_id], loan) for agent_id, some in loans.items() for loan in some]
        problem = quota_in_the_way(cluster, gang, promised.values(), back)
        if problem is not None:
            gang.hinder(*problem)
            return None
    return places, promised, loans


def _needed(cluster: Cluster, gang: Gang, agent: Agent, counts: Sequence[int]) -> tuple[Holding, Sequence[Loan]] | None:
    """What some tasks have of an agent, and which loans must come back for that: no more than it takes, the youngest first."""
    books = cluster.ledger.books[agent.agent_id]
    free: Holding = add_holdings(books.free, cluster.ledger.held_for(gang.number).get(agent.agent_id, {}))
    loans = sorted(loans_for(cluster, gang, agent.agent_id), key=lambda loan: lending.reluctance(cluster, loan))

    def cut(given_up: Sequence[Loan]) -> dict[Stack, Resources] | None:
        there = reduce(add_holdings, (coming_back(books, loan) for loan in given_up), free)
        return carve_tasks(cluster, gang, agent, usable(cluster, gang, agent.agent_id, there), counts, [])

    needed, most = list(loans), cut(loans)
    if most is None:
        return None
    for loan in reversed(loans):
        rest = [other for other in needed if other is not loan]
        if (fewer := cut(rest)) is not None:
            needed, most = rest, fewer
    return most, needed


def go_on(cluster: Cluster, turn: Turn, gang: Gang) -> bool:
    """Withhold what is back of what was called back, or make the bundle if all is; say no, and let all go, where it will never be."""
    assert gang.recalls is not None
    there: dict[AgentId, Holding] = {}
    is_complete = True
    for agent_id, promised in gang.promised.items():
        agent = cluster.agents.get(agent_id)
        if agent is None or agent.state is not AgentState.ACTIVE:
            break
        available = available_on(cluster, gang, agent_id)
        there[agent_id] = lending.overlap(promised, available)
        if missing := _missing(promised, available):
            is_complete = False
            books, loans = cluster.ledger.books[agent_id], loans_for(cluster, gang, agent_id)
            due = [coming_back(books, loan) for loan in loans if lending.is_due(cluster, loan)]
            if agent_id not in cluster.gangs.recalling or not holding_contains(reduce(add_holdings, due, {}), missing):
                break
    else:
        if not is_complete:
            withhold(cluster, gang, there)
            return True
        if offer_bundle(cluster, turn, gang, gang.recalls):
            return True
    release_hold(cluster, gang)
    return False


def _missing(wanted: Holding, there: Holding) -> Holding:
    return {stack: left for stack, part in wanted.items() if (left := part.minus_saturating(there.get(stack, EMPTY)))}
