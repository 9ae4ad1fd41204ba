"""Task groups: all of a group's tasks are launched or none, and where one fails or is killed, the others are killed (TSK-4).

Nothing is remembered of a group but its tasks: each names all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence

from bursar.agent.books import Books
from bursar.agent.containers.names import network_id_for
from bursar.agent.containers.runtime import ContainerId, NetworkId
from bursar.agent.effects import ReleaseNetwork
from bursar.agent.tasks import TaskKey, Verdict, container_of
from bursar.core.ids import AgentId, FrameworkId
from bursar.core.messages.agent import KillTask
from bursar.core.task_groups import TaskGroup
from bursar.core.tasks import AssignedTask, StatusReason, TaskState, TaskStatus

_REASON = StatusReason.GROUP_MEMBER_ENDED


def together(tasks: Iterable[AssignedTask]) -> Iterator[tuple[AssignedTask, ...]]:
    """Tasks to launch, those of one group together; in the order in which they come."""
    groups: dict[object, list[AssignedTask]] = {}
    for task in tasks:
        group = task.spec.task_group
        identity = task.spec.task_id if group is None else group
        groups.setdefault((task.framework_id, identity), []).append(task)
    yield from map(tuple, groups.values())


def network_of(agent_id: AgentId, task: AssignedTask) -> NetworkId:
    """What a task shares with its group; empty for one that is on its own."""
    group = task.spec.task_group
    return NetworkId("") if group is None else network_id_for(agent_id, task.framework_id, group)


def incomplete(group: TaskGroup, fresh: Sequence[AssignedTask]) -> Verdict | None:
    """Why a part of a group cannot be launched: the others are elsewhere, or have ended. Nothing where it is all of it."""
    if missing := [name for name in group.task_ids if name not in {task.spec.task_id for task in fresh}]:
        message = (
            f"its group {group.name} is launched as a whole or not at all, and {missing[0]} is not among its tasks"
        )
        return Verdict(TaskState.DROPPED, _REASON, message)
    return None


def undone(group: TaskGroup, culprit: AssignedTask, verdict: Verdict) -> Verdict:
    """What a task ends with because another of its group could not be launched; it never ran."""
    message = f"{culprit.spec.task_id} of its group {group.name} was not launched: {verdict.message}"
    return Verdict(TaskState.DROPPED, _REASON, message)


class TaskGroups:
    """Looks, at the end of each step, at the groups of which something was reported in it."""

    def __init__(self, books: Books, kill: Callable[[KillTask, str], None], leaving: Container[ContainerId]) -> None:
        """`kill` has a task ended, for a reason in words; `leaving` are containers that have ended, and their tasks not yet."""
        self._leaving = leaving
        self._books = books
        self._kill = kill

    def check(self, leaving: Container[ContainerId]) -> None:
        """Assert what must hold between steps; `leaving`: have ended, and their tasks with them once their devices are free."""
        for record in self._books.state.tasks.values():
            group = record.task.spec.task_group
            if group is None or record.state.is_terminal or not self._books.recovered:
                continue
            if container_of(self._books.info.agent_id, record.key) in leaving:
                continue
            cause = self._cause(record.key.framework_id, group)
            gone = container_of(self._books.info.agent_id, record.key) in self._leaving
            assert not cause or gone or record.kill is not None, f"{record.key} goes on although {cause}"

    def recovered(self) -> None:
        """Look at all that there are: a life of the agent begins."""
        for record in self._books.state.tasks.values():
            if record.task.spec.task_group is not None:
                self._books.groups[record.key.framework_id, record.task.spec.task_group] = None

    def settle(self) -> None:
        """A step ends: have those killed whose group has lost a member, and let go of networks that nobody uses."""
        groups = self._books.groups
        while groups:
            # Who is killed here is reported, and the group looked at once more: nothing new follows then.
            (framework_id, group), _ = groups.popitem()
            cause = self._cause(framework_id, group)
            live = self._live(framework_id, group)
            for key in live:
                if cause and self._books.state.tasks[key].kill is None:
                    self._kill(KillTask(*key, _REASON), cause)
            if not live:
                network_id = network_id_for(self._books.info.agent_id, framework_id, group)
                self._books.effects.append(ReleaseNetwork(network_id))

    def _live(self, framework_id: FrameworkId, group: TaskGroup) -> list[TaskKey]:
        keys = (TaskKey(framework_id, task_id) for task_id in group.task_ids)
        tasks = self._books.state.tasks
        return [key for key in keys if key in tasks and not tasks[key].state.is_terminal]

    def _cause(self, framework_id: FrameworkId, group: TaskGroup) -> str:
        """Which member has failed or is being killed, and why, in words; empty: none. The first one, not its victims."""
        words = ""
        for task_id in group.task_ids:
            key = TaskKey(framework_id, task_id)
            record, finished = self._books.state.tasks.get(key), self._books.state.finished.get(key)
            status: TaskStatus | None = finished.status if finished else None
            if record is not None and record.state.is_terminal:
                status = record.unacknowledged[-1]
            if status is not None and status.state is not TaskState.FINISHED:
                why = status.message or status.reason.name.lower()
                told = f"{task_id} of its group {group.name} {_ENDED.get(status.state, 'has ended')}: {why}"
                reason = status.reason
            elif record is not None and record.kill is not None:
                told, reason = f"{task_id} of its group {group.name} is killed", record.kill.reason
            else:
                continue
            if reason is not _REASON:
                return told
            words = words or told
        return words


_ENDED = {
    TaskState.FAILED: "failed",
    TaskState.KILLED: "was killed",
    TaskState.DROPPED: "never ran",
    TaskState.ERROR: "was refused",
}
