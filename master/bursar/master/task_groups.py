"""Task groups at the master: the tasks of one launch that name one group, on one agent (TSK-4). Their agent does the rest."""

from __future__ import annotations

from dataclasses import replace

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, TaskId
from bursar.core.messages.offers import Launch
from bursar.core.service_ports import common_port
from bursar.core.task_groups import TASK_GROUPS, TaskGroup
from bursar.core.tasks import TaskSpec
from bursar.master.state import Cluster


def completed(launch: Launch) -> tuple[TaskSpec, ...]:
    """The tasks of a launch, each with all members of its group where the framework did not list them."""
    members: dict[str, dict[TaskId, None]] = {}
    for spec in launch.tasks:
        if spec.task_group is not None:
            members.setdefault(spec.task_group.name, {})[spec.task_id] = None
    if not members:
        return launch.tasks
    return tuple(
        replace(spec, task_group=TaskGroup(spec.task_group.name, tuple(members[spec.task_group.name])))
        if spec.task_group is not None and not spec.task_group.task_ids
        else spec
        for spec in launch.tasks
    )


def group_refusal(
    cluster: Cluster, specs: tuple[TaskSpec, ...], agent_ids: tuple[AgentId, ...], taken: set[str], path: str
) -> ErrorDetail | None:
    """Say why the groups of a launch cannot be; `taken` are the names of groups in other launches of the same accept."""
    agent_of: dict[str, AgentId] = {}
    for index, (spec, agent_id) in enumerate(zip(specs, agent_ids, strict=True)):
        group = spec.task_group
        if group is None:
            continue
        where = f"{path}.launch.tasks[{index}].task_group"
        members = [one for one in specs if one.task_group is not None and one.task_group.name == group.name]
        named = {one.task_id for one in members}
        if group.name in taken:
            return _invalid(
                f"group {group.name!r} is in two launches of this call",
                "launch all its tasks with one",
                f"{where}.name",
            )
        if set(group.task_ids) != named:
            odd = min(set(group.task_ids) ^ named)
            return _invalid(
                f"group {group.name!r} must list just the tasks of this launch that name it, and {odd!r} is not both",
                "launch all its tasks together; leave task_ids out, and the master fills it in",
                f"{where}.task_ids",
            )
        if agent_of.setdefault(group.name, agent_id) != agent_id:
            return _invalid(
                f"group {group.name!r} has tasks on agents {agent_of[group.name]} and {agent_id}: they share a network",
                "place all tasks of a group on one agent; for tasks on several ask for a gang",
                f"{path}.launch.tasks[{index}].agent_id",
            )
        common = common_port([one.service_ports for one in members], [one.task_id for one in members])
        if common is not None and members[common[0]].task_id == spec.task_id:
            return _invalid(
                common[1], "have one of them listen elsewhere", f"{path}.launch.tasks[{index}].service_ports"
            )
        info = cluster.agents[agent_id].info
        if TASK_GROUPS not in info.capabilities:
            return _invalid(
                f"agent {info.hostname} is of a version that knows no task groups",
                "use offers of other agents, or upgrade this one",
                where,
            )
    return None


def _invalid(message: str, hint: str, path: str) -> ErrorDetail:
    return ErrorDetail(ErrorReason.TASK_INVALID, message, hint, path)
