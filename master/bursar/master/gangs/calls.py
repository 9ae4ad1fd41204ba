"""What frameworks say of gangs: asking for one, cancelling it, taking its bundle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from bursar.core.ids import OfferId, TaskId
from bursar.core.messages.gangs import GangState, OnMemberLost, RequestGang
from bursar.master.bundles import Gang, GangKey, GangLaunch, forget_gang, tell
from bursar.master.gangs.admission import form_problem, never_fits
from bursar.master.gangs.limits import limit_in_the_way
from bursar.master.gangs.room import look, places_of
from bursar.master.ledger import TaskKey
from bursar.master.offers import rescind
from bursar.master.state import Cluster, Framework, Turn


def request(cluster: Cluster, turn: Turn, framework: Framework, call: RequestGang) -> None:
    """A framework asks for a gang: it waits from now on, or is refused with what is missing."""
    key = GangKey(framework.framework_id, call.gang_id)
    gangs = cluster.gangs
    known = gangs.by_key.get(key)
    if known is not None:
        if known.request == call:
            if not known.bundle_id:
                tell(cluster, turn, known, GangState.WAITING)
            return
        end(cluster, turn, known, "the framework asked for something else under the same gang id")
    gangs.requests += 1
    gang = Gang(
        key,
        call,
        gangs.requests,
        deadline_ms=turn.now.monotonic_ms + call.ttl_ms,
        requested_at_ms=turn.now.wall_ms,
    )
    error = form_problem(cluster, framework, call)
    if error is None:
        look(cluster, gang, ())
        if places_of(cluster, gang, fresh=True) is None:
            error = never_fits(cluster, framework, gang)
        error = error or limit_in_the_way(cluster, gang)
    if error is not None:
        cluster.counters.calls_refused += 1
        tell(cluster, turn, gang, GangState.REFUSED, error)
        return
    gangs.by_key[key] = gangs.by_number[gang.number] = gang
    cluster.deadlines.set(("gang", str(gang.number)), gang.deadline_ms)
    # It is served once the rest of the batch was read.
    cluster.deadlines.set(("allocate", ""), turn.now.monotonic_ms)
    tell(cluster, turn, gang, GangState.WAITING)


def cancel(cluster: Cluster, turn: Turn, framework: Framework, gang_id: str) -> None:
    """A framework wants a gang no more; one that is not there is ignored."""
    gang = cluster.gangs.by_key.get(GangKey(framework.framework_id, gang_id))
    if gang is not None:
        end(cluster, turn, gang, "the framework cancelled the gang")
        tell(cluster, turn, gang, GangState.CANCELLED)


def end_in_roles(cluster: Cluster, turn: Turn, framework: Framework, roles: AbstractSet[str]) -> None:
    """A framework gave up roles: its gangs in them are over."""
    for gang in list(cluster.gangs.by_key.values()):
        if gang.key.framework_id == framework.framework_id and gang.request.role in roles:
            end(cluster, turn, gang, "the framework gave up the role")
            tell(cluster, turn, gang, GangState.CANCELLED)


def gang_of(cluster: Cluster, offer_ids: Sequence[OfferId]) -> Gang | None:
    """The gang whose bundle these outstanding offers belong to."""
    bundle_id = cluster.offers[offer_ids[0]].offer.bundle_id
    return cluster.gangs.by_bundle[bundle_id] if bundle_id else None


def taken(cluster: Cluster, gang: Gang, task_ids: Iterable[TaskId]) -> None:
    """A gang's bundle was accepted; its offers have ended. Its tasks must all run, unless it keeps what does."""
    del cluster.gangs.by_bundle[gang.bundle_id]
    gang.bundle_id, gang.offer_ids = "", ()
    forget_gang(cluster, gang)
    keys = [TaskKey(gang.key.framework_id, task_id) for task_id in task_ids]
    if gang.request.on_member_lost is not OnMemberLost.KEEP and len(keys) > 1:
        launch = GangLaunch(gang.key.gang_id, keys, set(keys))
        cluster.gangs.starting.update(dict.fromkeys(keys, launch))


def end(cluster: Cluster, turn: Turn, gang: Gang, why: str) -> None:
    """Take a gang out of the line, and its bundle back; nobody is told what became of the gang."""
    offer_ids = gang.offer_ids
    cluster.gangs.by_bundle.pop(gang.bundle_id, None)
    gang.bundle_id, gang.offer_ids = "", ()
    forget_gang(cluster, gang)
    if offer_ids:
        for offer_id in offer_ids:
            # No bundle any more: single offers that go together.
            cluster.offers[offer_id].offer.bundle_id = ""
        rescind(cluster, turn, offer_ids, why)
