"""Whose turn it is: gangs in one line, served before single offers; and what time does to them."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId
from bursar.core.messages.gangs import GangState
from bursar.core.text import format_duration
from bursar.master.allocator.gangs import room_for
from bursar.master.bundles import Gang, forget_gang, release_hold, tell
from bursar.master.gangs.holding import hold
from bursar.master.gangs.limits import client_of
from bursar.master.gangs.offering import offer_bundle
from bursar.master.gangs.recalling import call_back, go_on
from bursar.master.gangs.room import by_value, look, places_of
from bursar.master.state import Cluster, Turn

#: Gangs that are looked at when something changes; those behind them in line wait.
MAX_CONSIDERED = 8


def serve(cluster: Cluster, turn: Turn, *, full: bool) -> None:
    """Make bundles for those that fit, and hold for the first that does not. Before the cycle: it offers what is left."""
    gangs = cluster.gangs
    line = line_up(cluster)
    for gang in line[MAX_CONSIDERED:]:
        gang.forget_room()
    line = line[:MAX_CONSIDERED]
    given: set[AgentId] = set()
    for gang in line:
        if cluster.all_dirty:
            gang.forget_room()
        _look(cluster, gang, given, sweep=full)
        places = places_of(cluster, gang)
        if places is not None and offer_bundle(cluster, turn, gang, places):
            given.update(places)
            continue
        if gang.recalls is None or not go_on(cluster, turn, gang):
            call_back(cluster, turn, gang)
    line = [gang for gang in line if not gang.bundle_id and gang.recalls is None]
    now_ms = turn.now.monotonic_ms
    if gangs.holder is not None:
        # Those behind it may have had a bundle, and let go of what they held.
        _look(cluster, gangs.holder, given, sweep=full or cluster.all_dirty)
        if not hold(cluster, gangs.holder):
            release_hold(cluster, gangs.holder)
    for gang in line:
        if gangs.holder is not None:
            return
        if gang.rests_until_ms <= now_ms and _begins_to_hold(cluster, gang):
            timeout_ms = cluster.flags.duration_ms("gang-hold-timeout")
            gang.holds_since_ms, gang.holds_until_ms = turn.now.wall_ms, turn.now.wall_ms + timeout_ms
            cluster.deadlines.set(("gang-hold", str(gang.number)), now_ms + timeout_ms)
            turn.publish(
                "gang_hold_began",
                f"what gang {gang.key.gang_id} needs is withheld for it as it becomes free",
                framework_id=gang.key.framework_id,
            )
            call_back(cluster, turn, gang)


def _look(cluster: Cluster, gang: Gang, given: AbstractSet[AgentId], *, sweep: bool) -> None:
    """Look at what has changed by now: also where others in line were given something, or let go of it."""
    look(cluster, gang, cluster.dirty | given, sweep=sweep)
    if gang.with_loans is not None:
        look(cluster, gang.with_loans, cluster.dirty | given, sweep=sweep)


def _begins_to_hold(cluster: Cluster, gang: Gang) -> bool:
    """Give the turn to a gang, if it can make use of it: what was lent in the turns of others counts for it, too."""
    cluster.gangs.holder, gang.with_loans = gang, None
    if hold(cluster, gang):
        return True
    release_hold(cluster, gang)
    return False


def line_up(cluster: Cluster) -> list[Gang]:
    """Gangs that wait, in the order in which they are served: those that wait for what is called back for them, the one that holds; then by
    turns, fair share and age.
    """
    gangs = cluster.gangs
    waiting = [gang for gang in gangs.by_key.values() if not gang.bundle_id]
    if len(waiting) < 2:
        return waiting
    standing = {gang.number: cluster.shares.standing(client_of(gang)) for gang in waiting}
    return sorted(
        waiting,
        key=lambda gang: (
            gang.recalls is None,
            gang is not gangs.holder,
            gang.turns,
            standing[gang.number],
            gang.number,
        ),
    )


def expire(cluster: Cluster, turn: Turn, number: int) -> bool:
    """A gang has waited for as long as it wanted; return whether others must be looked at."""
    gang = cluster.gangs.by_number.get(number)
    if gang is None or gang.bundle_id:
        return False
    look(cluster, gang, ())
    why = gang.hindrance or f"{room_for(gang.request.groups, by_value(gang))} of its {gang.tasks} tasks had room"
    detail = ErrorDetail(
        ErrorReason.INSUFFICIENT_RESOURCES,
        f"no bundle within {format_duration(gang.request.ttl_ms)}: {why}",
        "ask again, for longer or for less",
        "ttl_ms",
    )
    forget_gang(cluster, gang)
    tell(cluster, turn, gang, GangState.EXPIRED, detail)
    return True


def turn_over(cluster: Cluster, turn: Turn, number: int) -> bool:
    """A gang has held for as long as it may, or has rested for as long; return whether others must be looked at."""
    gang = cluster.gangs.by_number.get(number)
    if gang is None:
        return False
    if cluster.gangs.holder is gang:
        release_hold(cluster, gang)
        gang.turns += 1
        gang.rests_until_ms = turn.now.monotonic_ms + cluster.flags.duration_ms("gang-hold-timeout")
        cluster.deadlines.set(("gang-hold", str(number)), gang.rests_until_ms)
        turn.publish(
            "gang_hold_ended",
            f"gang {gang.key.gang_id} held for as long as it may, and rests",
            framework_id=gang.key.framework_id,
        )
    return True
