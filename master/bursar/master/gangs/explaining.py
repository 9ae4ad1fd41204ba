"""Why does a gang wait? Asked of the code that decides: the gang is served once more, on paper.

A copy of it is looked for places, its bundle is cut, and what would be withheld for it is planned, exactly as in its turn; nothing of
that is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from heapq import nlargest

from bursar.core.clock import Instant
from bursar.core.ids import FrameworkId
from bursar.core.messages.operator import GangStanding, Obstacle, ObstacleKind, RefusalReason
from bursar.core.resources import GPUS, Holding, add_holdings, holding_total
from bursar.core.text import format_amount, format_amounts, format_duration
from bursar.master.allocator.gangs import Shortage, lacks_in_all, missing_of, nearest_value, room_for
from bursar.master.allocator.shares import Client
from bursar.master.bundles import Gang
from bursar.master.gangs.admission import never_fits
from bursar.master.gangs.holding import plan_of
from bursar.master.gangs.limits import client_of, limit_left_in_the_way
from bursar.master.gangs.line import MAX_CONSIDERED, line_up
from bursar.master.gangs.offering import cut_bundle
from bursar.master.gangs.room import by_value, counted_with_loans, loans_for, look, places_of
from bursar.master.ledger import TaskKey
from bursar.master.lending import is_due
from bursar.master.obstacles.wording import name_of
from bursar.master.state import Cluster

#: Gangs in one answer; each is looked for on all agents.
MAX_GANGS = 5
_MAX_BEFORE = 3
_MAX_HOLDERS = 3
#: Tasks and offers that are looked at to find who holds what is lacking.
_MAX_TASKS = 20_000


def explain_gangs(cluster: Cluster, now: Instant, clients: Collection[Client]) -> tuple[GangStanding, ...]:
    """How it stands with the gangs of these frameworks in these roles; the oldest first."""
    mine = [gang for gang in cluster.gangs.by_key.values() if client_of(gang) in clients]
    line = line_up(cluster) if mine else []
    oldest = sorted(mine, key=lambda gang: gang.number)[:MAX_GANGS]
    return tuple(examine(cluster, now, gang, line).standing for gang in oldest)


@dataclass(frozen=True, slots=True)
class Examined:
    """How it stands with a gang."""

    standing: GangStanding
    #: What its tasks want beyond what there is for it where most of them have room, kind by kind.
    missing: dict[str, int]
    #: What is on loan and can be called back for it, by agent.
    on_loan: tuple[Holding, ...]


@dataclass(slots=True)
class _Why:
    """Why a gang has no bundle."""

    reason: RefusalReason
    message: str
    hint: str
    short: Shortage | None = None


def examine(cluster: Cluster, now: Instant, gang: Gang, line: Sequence[Gang]) -> Examined:
    """Serve a gang once more, on paper; `line`: all that wait, in order."""
    holds = cluster.gangs.holder is gang or gang.recalls is not None
    name = cluster.frameworks[gang.key.framework_id].info.name
    known = (gang.key.gang_id, gang.key.framework_id, gang.request.role, gang.tasks)
    if gang.bundle_id:
        agents = len(gang.offer_ids)
        message = f"its bundle is on offer: {agents} agent{'s' if agents != 1 else ''}"
        hint = "let the framework accept or decline it"
        why = _Why(RefusalReason.UNSPECIFIED, message, hint)
        on_offer = GangStanding(
            *known, gang.tasks, 0, len(line), holds, 0, why.reason, why.message, why.hint, framework_name=name
        )
        return Examined(on_offer, {}, ())
    place = line.index(gang) + 1
    with _on_paper(cluster, gang) as copy:
        look(cluster, copy, ())
        with_room = room_for(gang.request.groups, by_value(copy))
        why = _why(cluster, now, copy, place, with_room)
        obstacles = tuple(_obstacles(cluster, now, gang, copy, line[: place - 1], why))
        there, on_loan = by_value(copy), tuple(_lent(cluster, copy))
    until_ms = now.wall_ms + gang.deadline_ms - now.monotonic_ms
    groups = gang.request.groups
    missing = lacks_in_all(groups, there[nearest_value(groups, there)] if there else ())
    standing = GangStanding(
        *known, with_room, place, len(line), holds, until_ms, why.reason, why.message, why.hint, obstacles, name
    )
    return Examined(standing, missing, on_loan)


@contextmanager
def _on_paper(cluster: Cluster, gang: Gang, *, holds: bool = False) -> Iterator[Gang]:
    """A copy of a gang, in its place: what is found out for it is forgotten. `holds`: as if what is withheld were so for it."""
    gangs = cluster.gangs
    holder = gangs.holder
    copy = gang.counting_loans(0)
    if holder is not None and holds:
        copy.number = holder.number
    if holder is gang or holds:
        gangs.holder = copy
    try:
        yield copy
    finally:
        gangs.holder = holder


def _why(cluster: Cluster, now: Instant, gang: Gang, place: int, with_room: int) -> _Why:
    """What stands in the way of a gang: the steps of `line.serve`."""
    role = gang.request.role
    if gang.recalls is not None:
        return _Why(RefusalReason.NOT_FREE, _recalled(cluster, now, gang), "wait a moment")
    places = places_of(cluster, gang, fresh=True)
    if places is not None and place > MAX_CONSIDERED:
        message = f"it would fit, but only the first {MAX_CONSIDERED} in line are looked at"
        return _Why(RefusalReason.OTHERS_FIRST, message, _turn_hint(role))
    if places is not None and cut_bundle(cluster, gang, places) is not None:
        return _Why(
            RefusalReason.UNSPECIFIED, "nothing stands in its way: its bundle comes in a moment", "wait a moment"
        )
    if places is not None:
        return _Why(gang.hindered_by, gang.hindrance, _HINTS[gang.hindered_by].format(role=role))
    never = never_fits(cluster, cluster.frameworks[gang.key.framework_id], gang)
    if never is not None:
        return _Why(RefusalReason.EXCEEDS_AGENT, never.message, never.hint)
    if cluster.shares.quota_kinds and limit_left_in_the_way(cluster, gang):
        return _Why(gang.hindered_by, gang.hindrance, _HINTS[gang.hindered_by].format(role=role))
    if plan_of(cluster, gang) is None:
        return _Why(gang.hindered_by, gang.hindrance, _HINTS[gang.hindered_by].format(role=role))
    groups, there = gang.request.groups, by_value(gang)
    message = f"{with_room} of its {gang.tasks} tasks have room now"
    counting = counted_with_loans(cluster, gang)
    if counting is not gang and (more := room_for(groups, by_value(counting))) > with_room:
        message += f", {more} with what is on loan, which is called back once all have"
    if _fits_without_the_hold(cluster, gang):
        return _Why(
            RefusalReason.OTHERS_FIRST, f"{message}: what it lacks is withheld for another gang", _turn_hint(role)
        )
    nearest = nearest_value(groups, there) if there else None
    short = missing_of(groups, there[nearest] if there else [])
    attribute = gang.request.topology.same_attribute
    where = f"on {attribute} {nearest}, " if attribute and there else ""
    if short is not None:
        message += f"; of what is free, {where}{short.message}"
    return _Why(RefusalReason.NOT_FREE, message, _HINTS[RefusalReason.NOT_FREE], short)


_HINTS = {
    RefusalReason.QUOTA_LIMIT: "wait for tasks of the role to end, ask for less, or raise the limit with `bursar quota set --role {role}`",
    RefusalReason.HEADROOM: "wait until the guarantees of others are used or more is free, or give {role} a guarantee of its own",
    RefusalReason.AGENT_INACTIVE: "bring back the agents that are away (see `bursar agent ls`), or ask for less",
    RefusalReason.NOT_FREE: (
        "wait for tasks to end, or end some with `bursar task kill` (see `bursar task ls`); in its turn what becomes free is withheld for it"
    ),
}


def _turn_hint(role: str) -> str:
    return f"wait for its turn, or raise the weight of {role} with `bursar weight set`"


def _fits_without_the_hold(cluster: Cluster, gang: Gang) -> bool:
    """Whether a gang would fit if nothing were withheld for another one."""
    if cluster.gangs.holder in (None, gang):
        return False
    with _on_paper(cluster, gang, holds=True) as copy:
        look(cluster, copy, ())
        return places_of(cluster, copy, fresh=True) is not None


def _obstacles(
    cluster: Cluster, now: Instant, gang: Gang, copy: Gang, before: Sequence[Gang], why: _Why
) -> Iterator[Obstacle]:
    if why.short is not None and why.short.kind:
        short = why.short
        text = f"{short.kind}: {format_amount(short.kind, short.wanted)} wanted, {format_amount(short.kind, short.there)} free"
        yield Obstacle(
            ObstacleKind.SHAPE, gang.key.gang_id, text, resource=short.kind, amount=short.wanted, of=short.there
        )
    if cluster.gangs.holder is copy or gang.recalls is not None:
        yield Obstacle(ObstacleKind.STATE, "holds", f"withheld for it now: {_held(cluster, gang)}")
        if lent := _on_agents(_lent(cluster, copy)):
            yield Obstacle(ObstacleKind.STATE, "lent", f"on loan meanwhile: {lent}")
    elif (rests_ms := gang.rests_until_ms - now.monotonic_ms) > 0:
        text = f"it held for as long as it may ({gang.turns}×), and rests for another {format_duration(rests_ms)}"
        yield Obstacle(ObstacleKind.STATE, "rests", text, until_ms=now.wall_ms + rests_ms)
    for other in before[:_MAX_BEFORE]:
        text = f"gang {other.key.gang_id} of {name_of(cluster, other.key.framework_id)} in role {other.request.role} comes before"
        if cluster.gangs.holder is other:
            text += f", and has withheld for it {_held(cluster, other)}"
        yield Obstacle(ObstacleKind.GANG, other.key.gang_id, text, other.key.framework_id)
    if why.reason is RefusalReason.NOT_FREE:
        yield from _holders(cluster, copy, why.short)


def _held(cluster: Cluster, gang: Gang) -> str:
    """What is withheld for a gang."""
    return _on_agents(list(cluster.ledger.held_for(gang.number).values())) or "nothing yet"


def _lent(cluster: Cluster, gang: Gang) -> list[Holding]:
    """What is on loan and can be called back for a gang, by agent."""
    loans = [loans_for(cluster, gang, agent_id) for agent_id in sorted(cluster.ledger.with_loans)]
    return [reduce(add_holdings, (loan.holding for loan in some), {}) for some in loans if some]


def amounts_of(holdings: Iterable[Holding]) -> dict[str, int]:
    """What holdings come to, kind by kind."""
    amounts: dict[str, int] = {}
    for holding in holdings:
        for kind, amount in holding_total(holding).amounts().items():
            amounts[kind] = amounts.get(kind, 0) + amount
    return amounts


def _on_agents(holdings: Sequence[Holding]) -> str:
    """What that comes to, and on how many agents."""
    text = format_amounts(amounts_of(holdings))
    return f"{text} on {len(holdings)} agent{'s' if len(holdings) != 1 else ''}" if text else ""


def _recalled(cluster: Cluster, now: Instant, gang: Gang) -> str:
    """What was called back for a gang, and how long that takes."""
    agents = [agent_id for agent_id, other in cluster.gangs.recalling.items() if other.number == gang.number]
    due = [
        cluster.tasks[loan.holder]
        for agent_id in agents
        for loan in loans_for(cluster, gang, agent_id)
        if isinstance(loan.holder, TaskKey) and is_due(cluster, loan)
    ]
    left_ms = max([task.preempt_at_ms - now.wall_ms for task in due] or [0])
    tasks = f"{len(due)} task{'s' if len(due) != 1 else ''} that borrowed it"
    last = f", the last in {format_duration(left_ms)}" if left_ms > 0 else ""
    return f"all of its {gang.tasks} tasks have room once what was called back is there: {tasks} end{last}"


def _holders(cluster: Cluster, gang: Gang, short: Shortage | None) -> Iterator[Obstacle]:
    """Who holds most of what a gang lacks, by tasks or by offers, on the agents that it may use."""
    kind = short.kind if short is not None else ""
    kind = kind or (GPUS if any(group.resources.gpus for group in gang.request.groups) else "cpus")
    held: dict[tuple[ObstacleKind, FrameworkId], int] = {}
    looked_at = 0
    for agent_id in gang.spots or ():
        books = cluster.ledger.books[agent_id]
        parts = [((ObstacleKind.TASK, key.framework_id), entry.holding) for key, entry in books.allocated.items()]
        parts += [((ObstacleKind.OFFER, entry.client.framework_id), entry.holding) for entry in books.offered.values()]
        for whose, holding in parts:
            held[whose] = held.get(whose, 0) + holding_total(holding).amount(kind)
        looked_at += len(parts)
        if looked_at > _MAX_TASKS:
            break
    for (what, framework_id), amount in nlargest(_MAX_HOLDERS, held.items(), key=lambda item: (item[1], item[0])):
        if amount:
            words = "tasks of {} hold {} on" if what is ObstacleKind.TASK else "offers to {} hold {} of"
            who = name_of(cluster, framework_id)
            text = f"{words.format(who, f'{kind}:{format_amount(kind, amount)}')} agents that it could use"
            yield Obstacle(what, "", text, framework_id=framework_id, resource=kind, amount=amount)
