"""Task groups: tasks of one agent that are launched, live and end together (TSK-4)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from bursar.core.ids import TaskId, id_problem
from bursar.core.lives import RestartMode, RestartPolicy

#: The capability of agents that launch groups as groups.
TASK_GROUPS = "TASK_GROUPS"


@dataclass(frozen=True, slots=True)
class TaskGroup:
    """The group of a task; mirrors `bursar.v1.TaskGroup`."""

    name: str
    #: All of its tasks, in the order launched; empty until the master has filled it in.
    task_ids: tuple[TaskId, ...] = ()


def group_problem(group: TaskGroup, task_id: TaskId, restart: RestartPolicy | None) -> tuple[str, str] | None:
    """Say what is wrong with a task's part in its group as (field, problem), as far as one task shows it; or nothing."""
    if problem := id_problem(group.name):
        return "task_group.name", problem
    if twice := [name for name, count in Counter(group.task_ids).items() if count > 1]:
        return "task_group.task_ids", f"task {twice[0]!r} is named twice"
    if group.task_ids and task_id not in group.task_ids:
        return "task_group.task_ids", f"task {task_id!r} is not among the tasks of its own group"
    if restart is not None and restart.mode is not RestartMode.UNSPECIFIED:
        return (
            "restart",
            "a task of a group is not started again alone: leave the policy out, and launch the group again",
        )
    return None
