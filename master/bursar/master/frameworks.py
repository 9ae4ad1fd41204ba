"""Frameworks: subscribe, come back, demand, suppress and revive, leave (REG-*, OFF-7, OFF-8, mesos.md §2.2)."""

from __future__ import annotations

from dataclasses import replace

from bursar.core.device_names import VOLUMES
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import ConnectionId, id_problem
from bursar.core.messages.framework import (
    FrameworkInfo,
    MasterHeartbeat,
    StreamError,
    Subscribe,
    Subscribed,
    UpdateFramework,
)
from bursar.core.messages.offers import CallResult, Demand
from bursar.core.messages.operator import FrameworkState
from bursar.core.resources import to_holding
from bursar.core.roles import role_problem
from bursar.core.tasks import StatusReason
from bursar.master import gangs
from bursar.master.allocator.constraints import settings_by_role, settings_problem
from bursar.master.allocator.demand import cut_to_demand, open_shapes
from bursar.master.bundles import forget_gangs_of
from bursar.master.described import Described
from bursar.master.effects import SendToFramework
from bursar.master.lending import repeat_notices
from bursar.master.offers import end_offers, rescind, rescind_forbidden
from bursar.master.records import CallDone, FailoverDeadlineRecorded, FrameworkRecorded, FrameworkRemoved
from bursar.master.state import Cluster, Framework, Turn
from bursar.master.tasks import forget_framework, kill, resend_unacknowledged

HEARTBEAT_INTERVAL_MS = 15_000
#: Heartbeats that a framework may miss.
MAX_MISSED_HEARTBEATS = 5
MAX_ROLES = 1000
MAX_FAILOVER_TIMEOUT_MS = 365 * 86_400_000
#: Of name, labels and the like together: they are kept, and shown in every list.
MAX_INFO_CHARACTERS = 65_536
MAX_SHAPES = 1000


def subscribe(cluster: Cluster, turn: Turn, connection: ConnectionId, call: Subscribe, principal: str) -> None:
    """A framework registers, or registers again; the newest stream counts."""
    call = replace(call, info=_as_authenticated(call.info, principal))
    refusal = _refusal(cluster, call, principal)
    if refusal is not None:
        refuse(turn, connection, refusal)
        return
    info = call.info
    known = cluster.frameworks.get(info.framework_id)
    if known is None:
        framework = Framework(info, FrameworkState.ACTIVE, turn.now.wall_ms)
        cluster.frameworks[info.framework_id] = framework
        framework.tasks = cluster.orphans.pop(info.framework_id, set())
        turn.publish("framework_added", f"framework {info.name} subscribed", framework_id=info.framework_id)
    else:
        framework = known
        _drop_stream(cluster, turn, framework, superseded_by=info if framework.connection != connection else None)
        for role in framework.info.roles:
            cluster.shares.set_active(role, framework.framework_id, False)
        turn.publish("framework_state_changed", f"framework {info.name} is back", framework_id=info.framework_id)
    framework.info, framework.settings = info, settings_by_role(info.offer_settings)
    framework.state = FrameworkState.ACTIVE
    framework.connection = connection
    framework.failover_deadline_ms = 0
    framework.suppressed = set(call.suppressed_roles)
    framework.described = Described()
    framework.demand, framework.wanted, framework.promised, framework.settled = Demand(), [], [], []
    cluster.framework_connections[connection] = framework.framework_id
    cluster.deadlines.cancel(("failover", framework.framework_id))
    turn.persist(FrameworkRecorded(info, framework.subscribed_at_ms))
    turn.to_framework(
        framework, Subscribed(framework.framework_id, cluster.cluster_id, cluster.term, HEARTBEAT_INTERVAL_MS)
    )
    resend_unacknowledged(cluster, turn, framework)
    repeat_notices(cluster, turn, framework)
    set_demand(cluster, framework, call.demand)
    _activate(cluster, framework)
    heard(cluster, turn, framework)
    cluster.touch_all()
    cluster.counters.framework_subscriptions += 1


def update(cluster: Cluster, turn: Turn, framework: Framework, call: UpdateFramework, principal: str) -> None:
    """Change what a framework says of itself (M-04, REG-7): all of it, or nothing and the reason; its stream goes on.

    What it may not be offered any more – in a role that it gave up, or for want of a capability – is rescinded before it hears
    the answer, so that a later accept of it gets INVALID_OFFERS.
    """
    known = cluster.durable.calls.get((framework.framework_id, call.call_id))
    if known is not None:
        turn.to_framework(framework, known)
        return
    call = replace(call, info=_as_authenticated(call.info, principal))
    refusal = _update_refusal(framework, call, principal)
    if refusal is not None:
        cluster.counters.calls_refused += 1
        turn.to_framework(framework, CallResult(call.call_id, error=refusal))
        return
    before, info = framework.info, call.info
    gone = set(before.roles) - set(info.roles)
    revived = framework.suppressed - set(call.suppressed_roles)
    framework.info, framework.settings = info, settings_by_role(info.offer_settings)
    framework.suppressed = set(call.suppressed_roles)
    # Those that it is in now first: what is above them is never without anybody, and keeps its count.
    _activate(cluster, framework)
    for role in gone:
        cluster.shares.set_active(role, framework.framework_id, False)
    if gone or revived:
        cluster.filters.drop_framework(framework.framework_id, gone | revived)
    if set(before.capabilities) != set(info.capabilities):
        cluster.filters.forget_hidden()
    turn.persist(FrameworkRecorded(info, framework.subscribed_at_ms))
    gangs.end_in_roles(cluster, turn, framework, gone)
    in_roles_gone = [offer_id for offer_id in framework.offers if cluster.offers[offer_id].offer.role in gone]
    rescind(cluster, turn, in_roles_gone, "the framework gave up the role")
    rescind_forbidden(cluster, turn, "the framework lacks a capability now", framework)
    set_demand(cluster, framework, call.demand)
    cluster.touch_all()
    result = CallResult(call.call_id)
    turn.persist(CallDone(framework.framework_id, result))
    turn.to_framework(framework, result)
    turn.publish("framework_updated", f"framework {info.name} changed", framework_id=framework.framework_id)


def _update_refusal(framework: Framework, call: UpdateFramework, principal: str) -> ErrorDetail | None:
    info, before = call.info, framework.info
    if not call.call_id:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, "an update needs a call_id", "choose one per call", "call_id")
    for what in ("framework_id", "incarnation", "principal"):
        if getattr(info, what) != getattr(before, what):
            return ErrorDetail(
                ErrorReason.INVALID_ARGUMENT,
                f"the {what} of a framework cannot change while it is subscribed",
                "repeat the one that it subscribed with, or subscribe anew",
                f"info.{what}",
            )
    problem = _info_problem(info, call.suppressed_roles, principal)
    if problem is None:
        newer = call.demand.version > framework.demand.version
        problem = demand_problem(call.demand if newer else framework.demand, info.roles)
    return problem


def _refusal(cluster: Cluster, call: Subscribe, principal: str) -> ErrorDetail | None:
    info = call.info
    if problem := id_problem(info.framework_id):
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"framework_id: {problem}",
            "choose an id once, such as a UUID",
            "info.framework_id",
        )
    if call.cluster_id and call.cluster_id != cluster.cluster_id:
        return ErrorDetail(
            ErrorReason.CLUSTER_MISMATCH,
            f"the framework belongs to cluster {call.cluster_id}, this is cluster {cluster.cluster_id}",
            "connect to the right master, or subscribe without a cluster id as a new framework",
            "cluster_id",
        )
    if info.framework_id in cluster.durable.removed_frameworks:
        return ErrorDetail(
            ErrorReason.FRAMEWORK_REMOVED,
            f"framework {info.framework_id} was removed: torn down, or away for longer than its failover timeout",
            "subscribe with a new framework id",
            "info.framework_id",
        )
    known = cluster.frameworks.get(info.framework_id)
    # One that came before anybody was asked who they are becomes that of the first who comes with its id.
    adopted = known is not None and principal and not known.info.principal
    if known is not None and known.info.principal != info.principal and not adopted:
        # Whoever knows an id must not take over the tasks of somebody else (REG-6).
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"framework {info.framework_id} belongs to another principal",
            "subscribe as the principal that it began with, or with a new framework id",
            "info.principal",
        )
    return _info_problem(info, call.suppressed_roles, principal) or demand_problem(call.demand, info.roles)


def _as_authenticated(info: FrameworkInfo, principal: str) -> FrameworkInfo:
    """With the principal that was authenticated, unless it says another one itself."""
    return replace(info, principal=principal) if principal and not info.principal else info


def _info_problem(info: FrameworkInfo, suppressed_roles: tuple[str, ...], principal: str) -> ErrorDetail | None:
    """Say what is wrong with what a framework says of itself."""
    if not info.roles or len(info.roles) > MAX_ROLES:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"a framework has at least one role and at most {MAX_ROLES}",
            "subscribe with the role '*'",
            "info.roles",
        )
    for role in info.roles:
        if problem := role_problem(role):
            return ErrorDetail(
                ErrorReason.INVALID_ARGUMENT, problem, "write a role such as research or eng/backend", "info.roles"
            )
    if len(set(info.roles)) != len(info.roles):
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, "a role is named twice", "name each role once", "info.roles")
    if not set(suppressed_roles) <= set(info.roles):
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT, "suppressed roles must be among the roles", "", "suppressed_roles"
        )
    if info.failover_timeout_ms > MAX_FAILOVER_TIMEOUT_MS:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"a failover timeout of {info.failover_timeout_ms} ms is longer than 365 days",
            f"ask for at most {MAX_FAILOVER_TIMEOUT_MS} ms",
            "info.failover_timeout_ms",
        )
    texts = [info.incarnation, info.name, info.hostname, info.webui_url, *info.capabilities]
    texts += [name + value for name, value in info.labels.items()]
    for settings in info.offer_settings:
        texts += [*settings.constraints, settings.min_allocatable or ""]
    if sum(len(text) for text in texts) > MAX_INFO_CHARACTERS:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"what the framework says of itself is longer than {MAX_INFO_CHARACTERS} characters",
            "shorten its name, labels, capabilities and constraints",
            "info",
        )
    if info.principal and principal and info.principal != principal:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"the framework says that its principal is {info.principal!r}, and it is {principal!r} by what it shows",
            "leave the principal empty",
            "info.principal",
        )
    return settings_problem(info.offer_settings, info.roles)


def demand_problem(demand: Demand, roles: tuple[str, ...]) -> ErrorDetail | None:
    """Say what is wrong with a stated demand."""
    if len(demand.shapes) > MAX_SHAPES:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT, f"more than {MAX_SHAPES} shapes", "state fewer shapes", "demand.shapes"
        )
    for index, shape in enumerate(demand.shapes):
        path = f"demand.shapes[{index}]"
        if shape.role not in roles:
            return ErrorDetail(
                ErrorReason.INVALID_ARGUMENT,
                f"{shape.role!r} is not a role of the framework",
                "name one of its roles",
                path,
            )
        if not shape.resources or any(amount < 0 or kind == "gpus" for kind, amount in shape.resources.scalars.items()):
            return ErrorDetail(ErrorReason.INVALID_ARGUMENT, "a shape needs amounts above zero, GPUs whole", "", path)
        if VOLUMES in shape.resources.scalars:
            return ErrorDetail(
                ErrorReason.INVALID_ARGUMENT,
                "a volume is named, not counted",
                "name it among the shape's devices, as offers do: volumes/BYTES/ROLE/ID",
                path,
            )
    return None


def refuse(turn: Turn, connection: ConnectionId, error: ErrorDetail) -> None:
    """Say why, and end the stream."""
    turn.effects.append(SendToFramework(connection, StreamError(error)))
    turn.close(connection, error)


def cut_off(cluster: Cluster, turn: Turn, framework: Framework, error: ErrorDetail) -> None:
    """End a subscribed framework's stream for a reason of the master's."""
    connection = framework.connection
    if connection is not None:
        refuse(turn, connection, error)
        stream_ended(cluster, turn, framework)


def set_demand(cluster: Cluster, framework: Framework, demand: Demand) -> None:
    """Replace the demand by a newer version; older ones and repeats are ignored."""
    if demand.version <= framework.demand.version:
        return
    framework.demand = demand
    framework.wanted = [shape.count for shape in demand.shapes]
    framework.promised = [0] * len(demand.shapes)
    # What is on offer already covers part of the new version, oldest first (O9 before O10).
    for offer_id in sorted(framework.offers, key=lambda offer_id: (len(offer_id), offer_id)):
        outstanding = cluster.offers[offer_id]
        offer = outstanding.offer
        if offer.bundle_id:
            # Asked for by itself.
            continue
        shapes = open_shapes(demand, framework.wanted, framework.promised, offer.role)
        cut = cut_to_demand(to_holding(offer.resources), shapes, cluster.agents[offer.agent_id].devices)
        outstanding.demand_version, outstanding.promised = demand.version, {} if cut is None else cut.promised
        for index, fits in outstanding.promised.items():
            framework.promised[index] += fits
    framework.settled = framework.open
    cluster.touch_all()


def heard(cluster: Cluster, turn: Turn, framework: Framework) -> None:
    """A framework spoke: it is not silent."""
    cluster.deadlines.set(
        ("silent", framework.framework_id), turn.now.monotonic_ms + HEARTBEAT_INTERVAL_MS * MAX_MISSED_HEARTBEATS
    )


def heartbeat(cluster: Cluster, turn: Turn) -> None:
    """Tell every framework that the master is there."""
    for framework in cluster.frameworks.values():
        turn.to_framework(framework, MasterHeartbeat())


def suppress(cluster: Cluster, turn: Turn, framework: Framework, roles: tuple[str, ...]) -> None:
    """No new offers for these roles; outstanding ones stay valid (OFF-8). Roles that it does not have are ignored."""
    framework.suppressed |= set(roles or framework.info.roles) & set(framework.info.roles)
    _activate(cluster, framework)
    # Whoever waited for what was lent may be among these.
    cluster.dirty.update(cluster.claims)


def revive(cluster: Cluster, turn: Turn, framework: Framework, roles: tuple[str, ...]) -> None:
    """Offers for these roles again, without filters (OFF-7)."""
    revived = set(roles or framework.info.roles)
    if framework.suppressed & revived:
        framework.suppressed -= revived
        _activate(cluster, framework)
        cluster.touch_all()
    cluster.dirty |= cluster.filters.drop_framework(framework.framework_id, revived)


def stream_ended(cluster: Cluster, turn: Turn, framework: Framework) -> None:
    """The link broke: its offers are void, its tasks go on until its failover timeout has passed."""
    _drop_stream(cluster, turn, framework, superseded_by=None)
    framework.state = FrameworkState.DISCONNECTED
    cluster.dirty.update(cluster.claims)
    for role in framework.info.roles:
        cluster.shares.set_active(role, framework.framework_id, False)
    timeout_ms = framework.info.failover_timeout_ms
    if timeout_ms == 0:
        remove(cluster, turn, framework, "disconnected, and its failover timeout is 0")
        return
    framework.failover_deadline_ms = turn.now.wall_ms + timeout_ms
    turn.persist(FailoverDeadlineRecorded(framework.framework_id, framework.failover_deadline_ms))
    cluster.deadlines.set(("failover", framework.framework_id), turn.now.monotonic_ms + timeout_ms)
    turn.publish(
        "framework_state_changed", f"framework {framework.info.name} disconnected", framework_id=framework.framework_id
    )


def remove(cluster: Cluster, turn: Turn, framework: Framework, why: str) -> None:
    """Its tasks end, for a recorded reason; its id can never come back."""
    framework_id = framework.framework_id
    if framework.connection is not None:
        detail = ErrorDetail(
            ErrorReason.FRAMEWORK_REMOVED, f"the framework was removed: {why}", "subscribe with a new id"
        )
        connection = framework.connection
        _drop_stream(cluster, turn, framework, superseded_by=None)
        refuse(turn, connection, detail)
    framework.state = FrameworkState.REMOVED
    for role in framework.info.roles:
        cluster.shares.set_active(role, framework_id, False)
    cluster.deadlines.cancel(("failover", framework_id))
    for task in cluster.live_tasks(sorted(framework.tasks)):
        kill(cluster, turn, task, StatusReason.FRAMEWORK_REMOVED, None)
    del cluster.frameworks[framework_id]
    if framework.tasks:
        cluster.orphans[framework_id] = framework.tasks
    forget_framework(cluster, turn, framework.tasks)
    turn.persist(FrameworkRemoved(framework_id))
    turn.publish("framework_removed", f"framework {framework.info.name} was removed: {why}", framework_id=framework_id)


def _drop_stream(cluster: Cluster, turn: Turn, framework: Framework, *, superseded_by: FrameworkInfo | None) -> None:
    """Forget the stream and everything that hangs on it: offers, filters, deadlines."""
    end_offers(cluster, sorted(framework.offers))
    forget_gangs_of(cluster, framework.framework_id)
    cluster.filters.drop_framework(framework.framework_id)
    for kind in ("silent", "retry"):
        cluster.deadlines.cancel((kind, framework.framework_id))
    connection = framework.connection
    if connection is None:
        return
    cluster.framework_connections.pop(connection, None)
    framework.connection = None
    if superseded_by is not None:
        # The same life of a framework may be overtaken by its own earlier Subscribe, out of a stream that it gave up: it is
        # to come back, not to give up.
        same_life = superseded_by.incarnation != "" and superseded_by.incarnation == framework.info.incarnation
        reason = ErrorReason.UNSPECIFIED if same_life else ErrorReason.SUPERSEDED
        hint = "if that one was given up, subscribe again" if same_life else "use that one"
        refuse(turn, connection, ErrorDetail(reason, "the framework subscribed on another stream", hint))


def _activate(cluster: Cluster, framework: Framework) -> None:
    for role in framework.info.roles:
        cluster.shares.set_active(role, framework.framework_id, role not in framework.suppressed)
