"""Where an agent's word of its tasks is not what the master believes, and the news of what is repaired (B-18)."""

from __future__ import annotations

from collections.abc import Iterable

from bursar.core.ids import Generation
from bursar.core.messages.agent import BooksRequest, Repair, TaskReport
from bursar.core.tasks import StatusReason, TaskState
from bursar.master.ledger import TaskKey
from bursar.master.state import Agent, Asked, Cluster, Task, Turn

#: What no interruption explains: said as a repair at a registration, too. The others are caught up with there, as a matter of course.
NEVER_NORMAL = frozenset({"adopted", "ended", "gone"})


def is_to_end(task: Task) -> bool:
    """Whether it was asked to end, by whomever."""
    return task.kill_reason is not StatusReason.UNSPECIFIED or task.state is TaskState.KILLING


def is_news(cluster: Cluster, report: TaskReport) -> bool:
    """Whether the end of a task that no record knows is still to be told to somebody."""
    return bool(report.unacknowledged) and report.framework_id in cluster.frameworks


def ask_for_books(cluster: Cluster, turn: Turn, agent: Agent) -> None:
    """Have an agent say all that it believes, unless it is about to: the answer is judged by `comparing`."""
    comparing = agent.comparing
    if comparing.asked:
        return
    comparing.differing = 0
    comparing.last_number += 1
    to_end = frozenset(task.key for task in cluster.live_tasks(agent.tasks) if is_to_end(task))
    comparing.asked = Asked(comparing.last_number, frozenset(agent.tasks), to_end)
    comparing.parts = []
    turn.to_agent(agent, BooksRequest(comparing.last_number))


def differences(
    cluster: Cluster, agent: Agent, reports: Iterable[TaskReport], seen: Generation, asked: Asked | None = None
) -> list[Repair]:
    """What will be repaired when these reports of an agent at generation `seen` are judged; `asked`: what was known when they were asked for, None: at a registration."""
    found: list[Repair] = []
    reported: set[TaskKey] = set()
    for report in reports:
        key = TaskKey(report.framework_id, report.task.spec.task_id)
        reported.add(key)
        task = cluster.tasks.get(key)
        if task is None:
            if report.state.is_terminal and is_news(cluster, report):
                found.append(Repair("end", *key, message="it had ended on its agent, and nobody knew of it"))
            elif not report.state.is_terminal:
                found.append(Repair("adopted", *key, message="it ran on its agent, and nobody knew of it"))
        elif task.agent_id == agent.agent_id:
            what, words = _difference(task, report, asked)
            if what:
                found.append(Repair(what, *key, message=words))
    for key in sorted(agent.tasks - reported):
        task = cluster.tasks[key]
        if asked is not None and key not in asked.tasks:
            continue
        if task.status is None and task.state is TaskState.STAGING and not task.assigned.was_told_by(seen):
            found.append(Repair("launch", *key, message="its agent never got it"))
        else:
            found.append(Repair("gone", *key, message=f"it was {task.state.name}, and its agent does not have it"))
    return found


def _difference(task: Task, report: TaskReport, asked: Asked | None) -> tuple[str, str]:
    """What is wrong with a task that both know, and in words; empty where nothing is."""
    there = report.state
    if task.state.is_terminal:
        if there.is_terminal or there is TaskState.KILLING:
            return "", ""
        return "ended", f"it was {task.state.name}, and ran on its agent; it is ended there"
    if there.is_terminal:
        return "state", f"it was {task.state.name}, and by its agent {there.name}"
    if there is TaskState.KILLING:
        return ("", "") if is_to_end(task) else ("state", f"it was {task.state.name}, and is ending by its agent")
    if is_to_end(task):
        was_told = asked is None or task.key in asked.to_end
        return ("kill", "it was to end, and its agent did not know") if was_told else ("", "")
    return ("", "") if there is task.state else ("state", f"it was {task.state.name}, and by its agent {there.name}")


def report_repairs(cluster: Cluster, turn: Turn, agent: Agent, repairs: Iterable[Repair]) -> None:
    """Each repair is told to those who watch, and counted by what was wrong."""
    counts = cluster.counters.repairs
    for repair in repairs:
        counts[repair.what] = counts.get(repair.what, 0) + 1
        text = f"{repair.what}: {repair.message}"
        ids = {"framework_id": repair.framework_id, "task_id": repair.task_id}
        turn.publish("repaired", text, agent_id=agent.agent_id, **ids)
