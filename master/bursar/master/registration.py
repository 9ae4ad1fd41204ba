"""How an agent gets in, or back in: refused with what to do, or a verdict on every task that it reports (design.md §8)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import Generation, id_problem
from bursar.core.messages.agent import (
    DesiredState,
    DevicesChanged,
    KillTask,
    Refused,
    TaskRef,
    TaskReport,
)
from bursar.core.messages.operator import AgentState
from bursar.core.resources import (
    EMPTY,
    Holding,
    InsufficientResources,
    Resources,
    Stack,
    add_holdings,
    holding_contains,
    holding_total,
    intersect_ports,
    to_holding,
)
from bursar.core.tasks import TRANSITIONS, AssignedTask, StatusReason, TaskState, may_follow
from bursar.core.text import format_resources
from bursar.core.volumes import read_volume
from bursar.master.agents import (
    LAUNCH_TIMEOUT_MS,
    enter_agent,
    info_problem,
    registered,
    tell_device_orders,
    tell_of_arrivals,
    tell_of_health,
    tell_of_vacancies,
    tell_volumes,
    withhold_unhealthy,
)
from bursar.master.differences import NEVER_NORMAL, differences, is_news, is_to_end, report_repairs
from bursar.master.effects import CloseStream, SendToAgent
from bursar.master.events import AgentRegistering
from bursar.master.images import greet
from bursar.master.ledger import TaskKey
from bursar.master.offers import offers_on, rescind
from bursar.master.records import (
    AgentPrincipalRecorded,
    AgentReachabilityRecorded,
    AgentRecorded,
    KillRecorded,
    TaskRecorded,
    TermRaised,
)
from bursar.master.state import Agent, Asked, Cluster, Comparing, Task, Turn, buckets_of
from bursar.master.tasks import add_task, enter_ended, master_status, on_update, tell_restart
from bursar.master.vacant import vacancies_of, with_vacancies
from bursar.master.volumes import judge_silent

_Judged = tuple[list[AssignedTask], list[KillTask], list[TaskRef]]
"""What an agent is told of tasks: to launch, to kill, to keep."""


def register(cluster: Cluster, turn: Turn, event: AgentRegistering) -> None:
    """An agent is (back): refuse it, or take it in and answer task by task."""
    said = event.register.info
    known = cluster.agents.get(said.agent_id)
    if known is not None and known.reservations and info_problem(said) is None:
        info = with_vacancies(said, known.devices, known.reservations)
        event = replace(event, register=replace(event.register, info=info))
    info = event.register.info
    refusal = refusal_of(cluster, event, known)
    if refusal is not None:
        turn.publish("agent_refused", str(refusal), agent_id=info.agent_id)
        turn.effects.extend(_refuse(event, refusal))
        return
    if known is not None and known.connection is not None and known.connection != event.connection:
        old = known.connection
        cluster.agent_connections.pop(old, None)
        detail = ErrorDetail(ErrorReason.SUPERSEDED, "the agent connected again", "only the newest stream counts")
        turn.close(old, detail)
    if known is not None:
        rescind(cluster, turn, offers_on(cluster, info.agent_id), f"agent {info.hostname} registered again")
    rebooted = known is not None and known.info.boot_id != info.boot_id
    vacant = vacancies_of(known)
    before = known.devices if known is not None else None
    agent = _take_in(cluster, turn, event, known)
    if event.principal and cluster.durable.agents[info.agent_id].principal != event.principal:
        turn.persist(AgentPrincipalRecorded(info.agent_id, event.principal))
    if info is not said:
        agent.comparing.untaken = DevicesChanged(said.devices, said.resources)
    if before is not None:
        tell_of_health(turn, agent, before)
    tell_of_vacancies(turn, agent, vacant)
    if before is not None:
        tell_of_arrivals(turn, agent, before)
    repairs = (
        []
        if rebooted
        else [
            one
            for one in differences(cluster, agent, event.tasks, event.register.generation)
            if one.what in NEVER_NORMAL
        ]
    )
    tasks: _Judged = ([], [], [])
    if known is not None or event.tasks:
        tasks = judge_tasks(cluster, turn, agent, event.tasks, event.register.generation, rebooted=rebooted)
    launches, kills, keeps = tasks
    agent.generation = generation_above(cluster, turn, agent, event.register.generation)
    turn.to_agent(agent, registered(cluster))
    tell_device_orders(cluster, turn, agent)
    agent.volumes.order = 0
    tell_volumes(turn, agent)
    judge_silent(cluster, turn, agent)
    greet(cluster, turn, agent)
    turn.to_agent(agent, DesiredState(agent.generation, None, False, tuple(launches), tuple(kills), tuple(keeps)))
    repeat_restarts(cluster, turn, agent, event.tasks)
    cluster.deadlines.set(
        ("ping", agent.agent_id), turn.now.monotonic_ms + cluster.flags.duration_ms("agent-ping-timeout")
    )
    cluster.touch(agent.agent_id)
    cluster.counters.agent_registrations += 1
    turn.publish(
        "agent_added" if known is None else "agent_state_changed",
        f"agent {info.hostname} is active",
        agent_id=info.agent_id,
    )
    report_repairs(cluster, turn, agent, repairs)


def repeat_restarts(cluster: Cluster, turn: Turn, agent: Agent, reports: Iterable[TaskReport]) -> None:
    """Tell the orders to restart that the agent has not taken, by its own word."""
    for report in reports:
        task = cluster.tasks.get(TaskKey(report.framework_id, report.task.spec.task_id))
        if task is None or task.agent_id != agent.agent_id or task.state.is_terminal or is_to_end(task):
            continue
        task.restart_taken = max(task.restart_taken, report.restart_order)
        if task.restart is not None and task.restart.number > report.restart_order:
            tell_restart(cluster, turn, task)


def generation_above(cluster: Cluster, turn: Turn, agent: Agent, seen: Generation) -> Generation:
    """A generation above all that the agent has seen, or it would refuse this master for ever.

    A higher term than ours comes from a registry that was restored from an older copy: the term is raised above it.
    """
    if seen.term > cluster.term:
        cluster.term = seen.term + 1
        turn.persist(TermRaised(cluster.term))
        turn.publish("term_raised", f"an agent had seen term {seen.term}: this is term {cluster.term} now")
    known = max((g.sequence for g in (agent.generation, seen) if g.term == cluster.term), default=0)
    return Generation(cluster.term, known + 1)


def _refuse(event: AgentRegistering, error: ErrorDetail) -> list[SendToAgent | CloseStream]:
    return [SendToAgent(event.connection, Refused(error)), CloseStream(event.connection, error)]


def refusal_of(cluster: Cluster, event: AgentRegistering, known: Agent | None) -> ErrorDetail | None:
    """Say why an agent cannot be in."""
    register, info = event.register, event.register.info
    if problem := id_problem(info.agent_id):
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, f"agent_id: {problem}", "", "info.agent_id")
    if cluster.agent_connections.get(event.connection, info.agent_id) != info.agent_id:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT, "one stream, one agent", "open another stream", "info.agent_id"
        )
    if register.cluster_id and register.cluster_id != cluster.cluster_id:
        return ErrorDetail(
            ErrorReason.CLUSTER_MISMATCH,
            f"the agent's work directory belongs to cluster {register.cluster_id}, this is cluster {cluster.cluster_id}",
            "give the agent another --work-dir, or the right --master",
        )
    owner = "" if known is None else cluster.durable.agents[info.agent_id].principal
    if owner and event.principal and event.principal != owner:
        return ErrorDetail(
            ErrorReason.PERMISSION_DENIED,
            f"agent {info.agent_id} ({info.hostname}) belongs to the principal {owner}, and this is {event.principal}",
            "show what it was first let in with, or give the agent another --work-dir",
            "info.agent_id",
        )
    if known is not None and known.connection is not None and info.incarnation < known.info.incarnation:
        return ErrorDetail(ErrorReason.SUPERSEDED, "a newer life of this agent is registered", "stop one of the two")
    if problem := info_problem(info):
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT, problem, "see `bursar-agent --help` for --resources", "info.resources"
        )
    reservations = {} if known is None else known.reservations
    volumes = () if known is None else known.volumes.kept.values()
    if not reservations and not volumes and not event.tasks:
        return None
    try:
        total = buckets_of(info.resources, reservations, volumes)
    except InsufficientResources as error:
        kept = "; ".join(
            [
                *(f"{format_resources(part, stack[-1].holder)}{_uuids(part)}" for stack, part in reservations.items()),
                *(f"volume {read_volume(volume.uuid)}" for volume in volumes),
            ]
        )
        return ErrorDetail(
            ErrorReason.INCOMPATIBLE_RESOURCES,
            f"the agent came back with less than is reserved on it ({kept}): {error}",
            "start it with its former --resources and --devices, or unreserve first (`bursar unreserve`)"
            + ("; volumes are in `bursar volume ls`" if volumes else ""),
            "info.resources",
        )
    needed: dict[Stack, Resources] = {}
    for report in _live_reports(cluster, event.tasks):
        try:
            needed = add_holdings(needed, to_holding(report.task.resources))
        except InsufficientResources as error:
            return ErrorDetail(
                ErrorReason.INVALID_ARGUMENT,
                f"two tasks of the agent hold the same: {error}",
                "kill one of them on the agent",
                "task_reports",
            )
    if known is not None and known.info.resources == info.resources:
        # What vanished under its tasks is known already: a broken link must not shut the agent out for it.
        return None
    for stack, part in needed.items():
        there = total.get(stack, EMPTY)
        if not there.contains(part):
            lacking = part.minus_saturating(there)
            return ErrorDetail(
                ErrorReason.INCOMPATIBLE_RESOURCES,
                f"the agent came back with less than its tasks hold: {format_resources(lacking)}{_uuids(lacking)} is missing",
                "start it with its former --resources and --devices, or kill the tasks first (`bursar task ls`)",
                "info.resources",
            )
    return None


def _live_reports(cluster: Cluster, reports: Iterable[TaskReport]) -> list[TaskReport]:
    """The reports of tasks that will hold resources."""
    live = {}
    for report in reports:
        key = TaskKey(report.framework_id, report.task.spec.task_id)
        task = cluster.tasks.get(key)
        ends = report.state.is_terminal or any(status.state.is_terminal for status in report.unacknowledged)
        if not ends and not (task is not None and task.state.is_terminal):
            live[key] = report
    return list(live.values())


def _uuids(resources: Resources) -> str:
    return f" ({', '.join(sorted(resources.devices))})" if resources.devices else ""


def _take_in(cluster: Cluster, turn: Turn, event: AgentRegistering, known: Agent | None) -> Agent:
    info, connection = event.register.info, event.connection
    cluster.agent_connections[connection] = info.agent_id
    if known is None:
        agent = Agent(info, AgentState.ACTIVE, turn.now.wall_ms, connection=connection)
        enter_agent(cluster, agent, counted=True)
        turn.persist(AgentRecorded(info, agent.description_version, agent.registered_at_ms))
        return agent
    agent = known
    agent.comparing = Comparing()
    was_unreachable = agent.state is AgentState.UNREACHABLE
    agent.state, agent.connection, agent.missed_pings = AgentState.ACTIVE, connection, 0
    if info != agent.info:
        cluster.describe_anew(agent, info)
        agent.registered_at_ms = turn.now.wall_ms
        agent.devices = {device.uuid: device for device in info.devices}
        turn.persist(AgentRecorded(info, agent.description_version, agent.registered_at_ms))
        cluster.filters.drop_agent(agent.agent_id)
    elif was_unreachable:
        turn.persist(AgentReachabilityRecorded(agent.agent_id, False))
    for kind in ("unreachable", "reregister"):
        cluster.deadlines.cancel((kind, agent.agent_id))
    return agent


def judge_tasks(
    cluster: Cluster,
    turn: Turn,
    agent: Agent,
    reports: Iterable[TaskReport],
    seen: Generation,
    *,
    rebooted: bool,
    asked: Asked | None = None,
) -> _Judged:
    """Answer task by task: keep, kill for a recorded reason, launch what it never got; what is unknown is adopted.

    In this order: what has ended frees what it held; then what runs there unknown is adopted; only then is anything launched.
    `seen`: the generation that the agent has recorded: what was launched up to it and is missing was lost there, and is not begun again.
    `asked`: the reports are of a registered agent, and lack what it was told after that.
    """
    reported: dict[TaskKey, TaskReport] = {}
    unknown: list[TaskReport] = []
    for report in reports:
        key = TaskKey(report.framework_id, report.task.spec.task_id)
        task = cluster.tasks.get(key)
        if task is None and report.state.is_terminal and is_news(cluster, report):
            enter_ended(cluster, turn, agent, report)
        elif task is None and report.state.is_terminal:
            for status in report.unacknowledged:
                on_update(cluster, turn, agent, status)
        elif task is None:
            unknown.append(report)
            reported[key] = report
        elif task.agent_id == agent.agent_id:
            _catch_up(cluster, turn, agent, task, report)
            reported[key] = report
    missing = agent.tasks - reported.keys()
    known = missing if asked is None else missing & asked.tasks
    staged, lost = _judge_missing(cluster, turn, known, seen, rebooted)
    on_their_way = [cluster.tasks[key] for key in sorted(missing - known)]
    kills: list[KillTask] = []
    held = [to_holding(report.task.resources) for report in _live_reports(cluster, unknown)]
    for key in list(lost):
        if any(_collide(to_holding(cluster.tasks[key].assigned.resources), other) for other in held):
            # Another task has what it had: then it is no more.
            words = "its agent came back without it, and another task has its devices or ports"
            master_status(cluster, turn, cluster.tasks[key], TaskState.GONE, StatusReason.CONTAINER_LOST, words)
            lost.remove(key)
    total = agent.buckets()
    launches: list[AssignedTask] = []
    for task in (*staged, *on_their_way):
        holding = to_holding(task.assigned.resources)
        words = ""
        if any(_collide(holding, other) for other in held):
            words = "a task that was found on its agent holds the same devices or ports"
        elif not holding_contains(total, holding):
            words = "its agent came back with less than it was to have"
        if words:
            master_status(cluster, turn, task, TaskState.DROPPED, StatusReason.DEVICES_CHANGED, words)
            kills += [KillTask(*task.key, StatusReason.DEVICES_CHANGED)] * (asked is not None)
        elif task.key in known:
            launches.append(task.assigned)
    for report in unknown:
        _catch_up(cluster, turn, agent, _adopt(cluster, turn, agent, report), report)
    keeps = [TaskRef(*key) for key in lost]
    for key, report in reported.items():
        task = cluster.tasks[key]
        if report.state.is_terminal:
            continue
        if task.state.is_terminal:
            reason = task.status.reason if task.status is not None else StatusReason.UNSPECIFIED
            kills.append(KillTask(*key, reason))
        elif task.kill_reason is not StatusReason.UNSPECIFIED:
            kills.append(KillTask(*key, task.kill_reason, task.kill_grace_ms))
        else:
            keeps.append(TaskRef(*key))
    # Only now is it known what is held: the total may have changed, and unreachable tasks count again.
    cluster.ledger.set_total(agent.agent_id, total)
    cluster.ledger.set_counted(agent.agent_id, True)
    cluster.ledger.set_present(agent.agent_id, True)
    withhold_unhealthy(cluster, agent)
    return launches, kills, keeps


def _judge_missing(
    cluster: Cluster, turn: Turn, missing: Iterable[TaskKey], seen: Generation, rebooted: bool
) -> tuple[list[Task], list[TaskKey]]:
    """What the agent does not know: what it never got and is still to be launched, and what it has lost.

    What it has lost may run there all the same, where its books were lost and a container was not: it is told to keep it, and answers that
    it is GONE when that is certain. Until then it holds what it holds.
    """
    staged: list[Task] = []
    lost: list[TaskKey] = []
    for key in sorted(missing):
        task = cluster.tasks[key]
        if task.status is not None or task.state is not TaskState.STAGING or task.assigned.was_told_by(seen):
            if rebooted:
                words = "the machine was started anew"
                master_status(cluster, turn, task, TaskState.GONE, StatusReason.AGENT_REBOOTED, words)
            else:
                lost.append(key)
        elif task.kill_reason is not StatusReason.UNSPECIFIED:
            master_status(
                cluster, turn, task, TaskState.KILLED, StatusReason.KILLED_DURING_LAUNCH, "killed before it started"
            )
        elif turn.now.wall_ms - task.assigned.launched_at_ms > LAUNCH_TIMEOUT_MS:
            master_status(
                cluster,
                turn,
                task,
                TaskState.DROPPED,
                StatusReason.LAUNCH_TIMEOUT,
                "its agent was away for too long to start it",
            )
        else:
            staged.append(task)
    return staged, lost


def _collide(left: Holding, right: Holding) -> bool:
    """Whether two holdings name a device or a port in common, in whatever bucket."""
    one, other = holding_total(left), holding_total(right)
    return not one.devices.isdisjoint(other.devices) or bool(intersect_ports(one.ports, other.ports))


def _adopt(cluster: Cluster, turn: Turn, agent: Agent, report: TaskReport) -> Task:
    """A task that no record knows runs there: it is shown, never killed for being unknown.

    One of a removed framework is killed, but holds what it holds until it has ended, like any other.
    """
    task = Task(agent.agent_id, report.task, state=TaskState.STAGING)
    add_task(cluster, task, held=False)
    turn.persist(TaskRecorded(agent.agent_id, report.task))
    if report.framework_id in cluster.durable.removed_frameworks:
        task.kill_reason = StatusReason.FRAMEWORK_REMOVED
        turn.persist(KillRecorded(*task.key, task.kill_reason, None))
    turn.publish(
        "task_adopted",
        "found running on its agent",
        agent_id=agent.agent_id,
        framework_id=report.framework_id,
        task_id=report.task.spec.task_id,
    )
    return task


def _catch_up(cluster: Cluster, turn: Turn, agent: Agent, task: Task, report: TaskReport) -> None:
    """Bring a task to where its agent says it is."""
    returned = task.state is TaskState.UNREACHABLE
    # A state that this version does not know is one of a task that lives.
    state = report.state if report.state in TRANSITIONS or report.state.is_terminal else TaskState.RUNNING
    for status in report.unacknowledged:
        on_update(cluster, turn, agent, status)
    if task.state is TaskState.UNREACHABLE or (returned and not task.state.is_terminal and task.state is not state):
        master_status(cluster, turn, task, state, StatusReason.AGENT_REREGISTERED, "its agent is back")
    elif task.state is not state and may_follow(task.state, state):
        # The update was acknowledged in an earlier reign; only the state is news to this master.
        if state.is_terminal:
            master_status(
                cluster, turn, task, state, StatusReason.AGENT_REREGISTERED, "ended while the master was away"
            )
        else:
            task.state = state
