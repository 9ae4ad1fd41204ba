"""Tasks after their launch: statuses and their acknowledgement, kills, reconciliation (SU-*, TSK-8, RC-*)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, FrameworkId, Generation, TaskId
from bursar.core.messages.agent import (
    AcknowledgedUpdate,
    AcknowledgeUpdates,
    DesiredState,
    KillTask,
    RestartTask,
    TaskReport,
)
from bursar.core.messages.framework import StatusUpdates, UpdateRef
from bursar.core.messages.operator import AgentState
from bursar.core.resources import to_holding
from bursar.core.tasks import AssignedTask, StatusReason, StatusSource, TaskState, TaskStatus, may_follow
from bursar.master.allocator.shares import Client
from bursar.master.bundles import others_of_lost_start
from bursar.master.differences import ask_for_books
from bursar.master.ledger import TaskKey
from bursar.master.records import (
    MAX_ENDED_TASK_AGE_MS,
    MAX_ENDED_TASKS,
    MAX_ENDED_TASKS_PER_FRAMEWORK,
    EndAcknowledged,
    KillRecorded,
    RestartOrder,
    RestartOrdered,
    TaskEnded,
    TaskForgotten,
    TaskRecorded,
)
from bursar.master.state import Agent, Cluster, Framework, Task, Turn

#: Updates that the master made itself; they are never acknowledged to an agent.
MASTER_UPDATE_PREFIX = "master-"
#: How often unacknowledged updates of the master are repeated.
RETRY_MS = 10_000


def next_generation(agent: Agent, term: int) -> tuple[Generation, Generation]:
    """Advance what the agent should be at: (base, new)."""
    base = agent.generation
    agent.generation = Generation(term, base.sequence + 1)
    return base, agent.generation


def send_launches(
    turn: Turn, agent: Agent, generations: tuple[Generation, Generation], launches: Iterable[AssignedTask]
) -> None:
    """Tell an agent what it should run in addition; `generations`: (base, new), as `next_generation` gave them for these tasks."""
    base, generation = generations
    turn.to_agent(agent, DesiredState(generation, base, launch=tuple(launches)))


def on_update(cluster: Cluster, turn: Turn, agent: Agent, status: TaskStatus) -> None:
    """An agent reports; repeats are told again until the framework acknowledges."""
    key = TaskKey(status.framework_id, status.task_id)
    task = cluster.tasks.get(key)
    if task is None and status.framework_id in cluster.frameworks:
        # Lost here, or ended and pruned long ago: its framework hears of it, once the agent has said what it was.
        ask_for_books(cluster, turn, agent)
        return
    if task is None or task.agent_id != agent.agent_id:
        # Nobody is left to acknowledge it.
        _acknowledge_to_agent(cluster, turn, agent, status)
        return
    if status.update_id in task.seen_updates:
        pending = next((known for known in task.unacknowledged if known.update_id == status.update_id), None)
        if pending is None:
            _acknowledge_to_agent(cluster, turn, agent, status)
        else:
            _tell_framework(cluster, turn, task, pending)
        return
    if task.state.is_terminal:
        # What the master declared stands (S7): the agent is told to forget it.
        _acknowledge_to_agent(cluster, turn, agent, status)
        return
    if status.state != task.state and not may_follow(task.state, status.state):
        _acknowledge_to_agent(cluster, turn, agent, status)
        return
    task.seen_updates.add(status.update_id)
    apply_status(cluster, turn, task, replace(status, agent_id=agent.agent_id, source=StatusSource.AGENT))


def apply_status(cluster: Cluster, turn: Turn, task: Task, status: TaskStatus) -> None:
    """Take a new status over: resources are free at once when it is terminal, and the framework is told."""
    task.state = status.state
    task.status = status
    turn.publish(
        "task_status",
        f"{status.state.name}{f': {status.message}' if status.message else ''}",
        agent_id=task.agent_id,
        framework_id=status.framework_id,
        task_id=status.task_id,
    )
    if status.state.is_terminal:
        task.ended_at_ms = turn.now.wall_ms
        turn.persist(TaskEnded(status, turn.now.wall_ms))
        cluster.ledger.release_task(task.key)
        cluster.agents[task.agent_id].tasks.discard(task.key)
        cluster.touch(task.agent_id)
        ended = cluster.counters.tasks_ended
        ended[status.state] = ended.get(status.state, 0) + 1
    if task.key in cluster.gangs.starting:
        _start_gang_member(cluster, turn, task, status)
    if task.assigned.framework_id in cluster.frameworks:
        task.unacknowledged.append(status)
        _tell_framework(cluster, turn, task, status)
    else:
        agent = cluster.agents[task.agent_id]
        if status.source is StatusSource.AGENT:
            _acknowledge_to_agent(cluster, turn, agent, status)
        if status.state.is_terminal:
            _end_is_known(cluster, turn, task)


def _start_gang_member(cluster: Cluster, turn: Turn, task: Task, status: TaskStatus) -> None:
    """A task of a gang that starts together or not at all: where it never ran, the others end, too."""
    gang_id, others = others_of_lost_start(cluster, task.key, status)
    for other in cluster.live_tasks(others):
        kill(cluster, turn, other, StatusReason.GANG_MEMBER_LOST, None)
    if others:
        turn.publish(
            "gang_released",
            f"a task of gang {gang_id} ended without having run, and so do its other tasks ({len(others)})",
            framework_id=task.assigned.framework_id,
            task_id=task.key.task_id,
        )


def master_status(
    cluster: Cluster, turn: Turn, task: Task, state: TaskState, reason: StatusReason, message: str
) -> None:
    """The master itself says where a task is; repeated until acknowledged, like an agent's word."""
    task.master_updates += 1
    status = TaskStatus(
        task.key.task_id,
        task.key.framework_id,
        task.agent_id,
        state,
        reason,
        StatusSource.MASTER,
        message,
        f"{MASTER_UPDATE_PREFIX}{cluster.term}-{task.master_updates}",
        turn.now.wall_ms,
        device_uuids=task.assigned.device_uuids,
        service_ports=task.assigned.spec.service_ports,
    )
    apply_status(cluster, turn, task, status)
    retry = ("retry", task.key.framework_id)
    if task.key.framework_id in cluster.frameworks and retry not in cluster.deadlines:
        cluster.deadlines.set(retry, turn.now.monotonic_ms + RETRY_MS)


def retry_updates(cluster: Cluster, turn: Turn, framework: Framework) -> None:
    """Repeat what the master itself said and was not acknowledged; agents repeat their own."""
    pending = [
        status
        for task in pending_tasks(cluster, framework)
        for status in task.unacknowledged
        if status.source is StatusSource.MASTER
    ]
    if pending:
        turn.to_framework(framework, StatusUpdates(tuple(pending)))
        cluster.deadlines.set(("retry", framework.framework_id), turn.now.monotonic_ms + RETRY_MS)


def pending_tasks(cluster: Cluster, framework: Framework) -> list[Task]:
    """The framework's tasks with unacknowledged updates, by id."""
    return [task for key in sorted(framework.tasks) if (task := cluster.tasks[key]).unacknowledged]


def resend_unacknowledged(cluster: Cluster, turn: Turn, framework: Framework) -> None:
    """Repeat everything to a framework that is (back) on line."""
    statuses = [status for task in pending_tasks(cluster, framework) for status in task.unacknowledged]
    if statuses:
        turn.to_framework(framework, StatusUpdates(tuple(statuses)))
    if any(status.source is StatusSource.MASTER for status in statuses):
        cluster.deadlines.set(("retry", framework.framework_id), turn.now.monotonic_ms + RETRY_MS)


def acknowledge(cluster: Cluster, turn: Turn, framework: Framework, updates: Iterable[UpdateRef]) -> None:
    """The framework knows; what nobody waits for is ignored (SU-2)."""
    for update in updates:
        task = cluster.tasks.get(TaskKey(framework.framework_id, update.task_id))
        if task is None:
            continue
        status = next((known for known in task.unacknowledged if known.update_id == update.update_id), None)
        if status is None:
            continue
        task.unacknowledged.remove(status)
        if status.source is StatusSource.AGENT:
            _acknowledge_to_agent(cluster, turn, cluster.agents[task.agent_id], status)
        if status.state.is_terminal:
            _end_is_known(cluster, turn, task)


def forget_framework(cluster: Cluster, turn: Turn, keys: Iterable[TaskKey]) -> None:
    """Nobody will acknowledge these tasks' updates any more: the master does."""
    for key in sorted(keys):
        task = cluster.tasks.get(key)
        if task is None:
            # Pruned meanwhile: one more end that is known was one too many.
            continue
        pending, task.unacknowledged = task.unacknowledged, []
        for status in pending:
            if status.source is StatusSource.AGENT:
                _acknowledge_to_agent(cluster, turn, cluster.agents[task.agent_id], status)
        if task.state.is_terminal and not task.end_acknowledged:
            _end_is_known(cluster, turn, task)


def kill(cluster: Cluster, turn: Turn, task: Task, reason: StatusReason, grace_ms: int | None) -> None:
    """Have a task ended: recorded, told to its agent now or when it is back; the task's status tells the outcome."""
    if task.state.is_terminal:
        return
    if (task.kill_reason, task.kill_grace_ms) == (
        reason,
        grace_ms,
    ) or task.kill_reason is StatusReason.FRAMEWORK_REMOVED:
        # Asked before: once more to the agent does no harm, once more to the registry is no use.
        reason, grace_ms = task.kill_reason, task.kill_grace_ms
    else:
        task.kill_reason, task.kill_grace_ms = reason, grace_ms
        turn.persist(KillRecorded(task.key.framework_id, task.key.task_id, reason, grace_ms))
    agent = cluster.agents[task.agent_id]
    if agent.state is AgentState.ACTIVE:
        base, generation = next_generation(agent, cluster.term)
        order = KillTask(task.key.framework_id, task.key.task_id, reason, grace_ms)
        turn.to_agent(agent, DesiredState(generation, base, kill=(order,)))


def restart(cluster: Cluster, turn: Turn, task: Task, message: str, grace_ms: int | None) -> ErrorDetail | None:
    """Have a running task started again by its agent: recorded, told now and until it is taken; or say why not."""
    name = f"{task.key.framework_id}/{task.key.task_id}"
    if task.state is not TaskState.RUNNING or task.kill_reason is not StatusReason.UNSPECIFIED:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"task {name} is {task.state.name}: only what runs, and is not to end, can be restarted",
            "launch it anew where it has ended",
            "task",
        )
    if task.assigned.spec.executor is not None:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"task {name} is an executor, or run by one, and is not started again",
            "kill it, and launch another",
            "task",
        )
    if task.assigned.spec.task_group is not None:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"task {name} is one of the group {task.assigned.spec.task_group.name}, and is not started again alone",
            "kill it, which ends the group, and launch the group again",
            "task",
        )
    newest = task.restart.number if task.restart is not None else 0
    task.restart = RestartOrder(max(newest, task.restart_taken) + 1, message, grace_ms)
    turn.persist(RestartOrdered(*task.key, task.restart))
    tell_restart(cluster, turn, task)
    return None


def tell_restart(cluster: Cluster, turn: Turn, task: Task) -> None:
    """Say the newest order to restart a task; its agent heeds it once."""
    if task.restart is not None:
        order = task.restart
        told = RestartTask(*task.key, order.message, order.grace_ms, order.number)
        turn.to_agent(cluster.agents[task.agent_id], told)


def reconcile(cluster: Cluster, turn: Turn, framework: Framework, task_ids: tuple[TaskId, ...]) -> None:
    """Say where tasks are (RC-1, RC-2); answers need no acknowledgement."""
    answers: list[TaskStatus] = []
    if task_ids:
        for task_id in task_ids:
            task = cluster.tasks.get(TaskKey(framework.framework_id, task_id))
            if task is not None:
                answers.append(_reconciliation(turn, task))
            elif not any(agent.state is AgentState.RECOVERING for agent in cluster.agents.values()):
                answers.append(unknown_status(turn, framework.framework_id, task_id))
    else:
        answers = [_reconciliation(turn, task) for task in cluster.live_tasks(sorted(framework.tasks))]
    if answers:
        turn.to_framework(framework, StatusUpdates(tuple(answers)))


def unknown_status(turn: Turn, framework_id: FrameworkId, task_id: TaskId) -> TaskStatus:
    """Nobody knows this task."""
    return TaskStatus(
        task_id,
        framework_id,
        agent_id=AgentId(""),
        state=TaskState.UNKNOWN,
        reason=StatusReason.RECONCILIATION,
        source=StatusSource.MASTER,
        message="no task of this framework has that id",
        timestamp_ms=turn.now.wall_ms,
    )


def add_task(cluster: Cluster, task: Task, *, held: bool) -> None:
    """Enter a task; `held`: its resources are taken from what is free, else they are its already."""
    key = task.key
    agent = cluster.agents[task.agent_id]
    cluster.tasks[key] = task
    framework = cluster.frameworks.get(key.framework_id)
    if framework is not None:
        framework.tasks.add(key)
    else:
        cluster.orphans.setdefault(key.framework_id, set()).add(key)
    if task.state.is_terminal:
        return
    agent.tasks.add(key)
    client = Client(task.assigned.role, key.framework_id)
    book = cluster.ledger.allocate if held else cluster.ledger.adopt
    book(agent.agent_id, key, client, to_holding(task.assigned.resources), task.assigned.revocable)
    if task.assigned.revocable:
        cluster.lenders.add(agent.agent_id)


def enter_ended(cluster: Cluster, turn: Turn, agent: Agent, report: TaskReport) -> None:
    """A task has ended that no record knows: its framework is told all the same, until it acknowledges that."""
    statuses = [replace(one, agent_id=agent.agent_id, source=StatusSource.AGENT) for one in report.unacknowledged]
    end = statuses[-1]
    task = Task(agent.agent_id, report.task, report.state, end, statuses, ended_at_ms=turn.now.wall_ms)
    task.seen_updates = {status.update_id for status in statuses}
    add_task(cluster, task, held=False)
    turn.persist(TaskRecorded(agent.agent_id, report.task))
    turn.persist(TaskEnded(end, turn.now.wall_ms))
    ended = cluster.counters.tasks_ended
    ended[end.state] = ended.get(end.state, 0) + 1
    turn.publish(
        "task_status",
        f"{end.state.name}: it had ended on its agent, and nobody knew of it",
        agent_id=agent.agent_id,
        framework_id=report.framework_id,
        task_id=task.key.task_id,
    )
    for status in statuses:
        _tell_framework(cluster, turn, task, status)


def note_ended(cluster: Cluster, task: Task) -> None:
    """Remember an ended and acknowledged task as prunable."""
    cluster.ended.setdefault(task.key.framework_id, {})[task.key] = None
    cluster.ended_anywhere[task.key] = None


def prune(cluster: Cluster, turn: Turn) -> None:
    """Forget what ended long ago, and what ended first where there is too much."""
    anywhere = cluster.ended_anywhere
    while anywhere:
        oldest = next(iter(anywhere))
        age_ms = turn.now.wall_ms - cluster.tasks[oldest].ended_at_ms
        if len(anywhere) <= MAX_ENDED_TASKS and age_ms < MAX_ENDED_TASK_AGE_MS:
            return
        _forget(cluster, turn, oldest)


def _end_is_known(cluster: Cluster, turn: Turn, task: Task) -> None:
    task.end_acknowledged = True
    turn.persist(EndAcknowledged(*task.key))
    note_ended(cluster, task)
    mine = cluster.ended[task.key.framework_id]
    while len(mine) > MAX_ENDED_TASKS_PER_FRAMEWORK:
        _forget(cluster, turn, next(iter(mine)))
    prune(cluster, turn)


def _forget(cluster: Cluster, turn: Turn, key: TaskKey) -> None:
    mine = cluster.ended[key.framework_id]
    del mine[key]
    if not mine:
        del cluster.ended[key.framework_id]
    del cluster.ended_anywhere[key]
    del cluster.tasks[key]
    framework = cluster.frameworks.get(key.framework_id)
    if framework is not None:
        framework.tasks.discard(key)
    else:
        orphans = cluster.orphans[key.framework_id]
        orphans.discard(key)
        if not orphans:
            del cluster.orphans[key.framework_id]
    turn.persist(TaskForgotten(*key))


def _reconciliation(turn: Turn, task: Task) -> TaskStatus:
    status = task.status or TaskStatus(
        task.key.task_id,
        task.key.framework_id,
        task.agent_id,
        task.state,
        device_uuids=task.assigned.device_uuids,
        service_ports=task.assigned.spec.service_ports,
    )
    return replace(
        status,
        state=task.state,
        reason=StatusReason.RECONCILIATION,
        source=StatusSource.MASTER,
        update_id="",
        timestamp_ms=turn.now.wall_ms,
    )


def _tell_framework(cluster: Cluster, turn: Turn, task: Task, status: TaskStatus) -> None:
    framework = cluster.frameworks.get(task.key.framework_id)
    if framework is not None:
        turn.to_framework(framework, StatusUpdates((status,)))


def _acknowledge_to_agent(cluster: Cluster, turn: Turn, agent: Agent, status: TaskStatus) -> None:
    if status.update_id and not status.update_id.startswith(MASTER_UPDATE_PREFIX):
        update = AcknowledgedUpdate(status.framework_id, status.task_id, status.update_id)
        turn.to_agent(agent, AcknowledgeUpdates((update,)))
