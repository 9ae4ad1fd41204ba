"""Whose a host port is: for those who name one that another task has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from bursar.core.ids import AgentId, TaskId
from bursar.core.resources import (
    Holding,
    PortRange,
    holding_total,
    intersect_ports,
    normalize_ports,
    subtract_ports,
)
from bursar.core.tasks import TaskSpec
from bursar.master.ledger import TaskKey
from bursar.master.state import Cluster


def kept_by_groups(cluster: Cluster, agent_id: AgentId) -> dict[int, TaskId]:
    """Host ports of ended tasks whose group lives on, and whose each was: an engine connects them for as long as their network is there."""
    kept: dict[int, TaskId] = {}
    agent = cluster.agents[agent_id]
    for task in cluster.live_tasks(agent.tasks) if agent.info.runtime == "docker" else ():
        group = task.assigned.spec.task_group
        for task_id in group.task_ids if group is not None else ():
            other = cluster.tasks.get(TaskKey(task.key.framework_id, task_id))
            if other is not None and other.state.is_terminal:
                kept.update((one.host_port, task_id) for one in other.assigned.spec.service_ports)
    return kept


def without_ports(holding: Holding, ports: Collection[int]) -> Holding:
    """A holding without these ports."""
    if not ports:
        return holding
    gone = normalize_ports(PortRange(port, port) for port in ports)
    return {stack: replace(part, ports=subtract_ports(part.ports, gone)) for stack, part in holding.items()}


def whose_port(
    cluster: Cluster, spec: TaskSpec, agent_id: AgentId, left: Holding, launched: Mapping[TaskId, Holding]
) -> str:
    """Say which task has a port that `spec` asks for by number and that is not in `left`; empty where no task has one.

    `launched`: what tasks before it in the same call take on this agent.
    """
    names = {one.host_port: f" ({one.name})" for one in spec.service_ports}
    for port, task_id in sorted(kept_by_groups(cluster, agent_id).items()):
        if intersect_ports(spec.resources.ports, (PortRange(port, port),)):
            return (
                f"task {spec.task_id!r} asks for port {port}{names.get(port, '')} of agent {cluster.agents[agent_id].info.hostname},"
                f" which task {task_id!r} had: it has ended, and the network of its group keeps the port until the group has"
            )
    missing = subtract_ports(spec.resources.ports, holding_total(left).ports)
    if not missing:
        return ""
    holders = [(task_id, "of this very call", holding) for task_id, holding in launched.items()]
    for key, entry in cluster.ledger.books[agent_id].allocated.items():
        framework = cluster.frameworks.get(key.framework_id)
        owner = (framework.info.name if framework else "") or key.framework_id
        holders.append((key.task_id, f"of framework {owner}", entry.holding))
    for task_id, owner, holding in holders:
        if common := intersect_ports(missing, holding_total(holding).ports):
            port, hostname = common[0].first, cluster.agents[agent_id].info.hostname
            return (
                f"task {spec.task_id!r} asks for port {port}{names.get(port, '')} of agent {hostname},"
                f" which task {task_id!r} {owner} has"
            )
    return ""
