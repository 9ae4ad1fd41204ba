"""The one name of a task's container: the same after a restart of the agent, so that what runs is found again."""

from __future__ import annotations

import hashlib
import re

from bursar.agent.containers.runtime import ContainerId, NetworkId
from bursar.core.ids import AgentId, FrameworkId, TaskId
from bursar.core.task_groups import TaskGroup

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


def container_id_for(agent_id: AgentId, framework_id: FrameworkId, task_id: TaskId) -> ContainerId:
    """`bursar-<agent>-<framework>-<task>-<digest>`: parts made safe for an engine and shortened for people, the digest unique.

    At most 100 characters out of letters, digits, `_`, `.` and `-`: good for Docker and as the name of a file.
    """
    digest = hashlib.sha256(f"{agent_id}\0{framework_id}\0{task_id}".encode("utf-8", "surrogatepass")).hexdigest()
    parts = (_readable(agent_id, 8), _readable(framework_id, 16), _readable(task_id, 32))
    return ContainerId("-".join(("bursar", *filter(None, parts), digest[:16])))


def network_id_for(agent_id: AgentId, framework_id: FrameworkId, group: TaskGroup) -> NetworkId:
    """`bursar-<agent>-net-<group>-<digest>`, as safe and as unique as a container's: task ids are never used twice."""
    parts = (agent_id, framework_id, group.name, *group.task_ids)
    digest = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
    return NetworkId("-".join(("bursar", _readable(agent_id, 8), "net", _readable(group.name, 32), digest[:16])))


def _readable(text: str, length: int) -> str:
    return _UNSAFE.sub("_", text)[:length].strip("-._")
