"""Whose a host port is: for those who name one that another task has."""

from __future__ import annotations

from collections.abc import Mapping

from bursar.core.ids import AgentId, TaskId
from bursar.core.resources import Holding, holding_total, intersect_ports, subtract_ports
from bursar.core.tasks import TaskSpec
from bursar.master.state import Cluster


def whose_port(
    cluster: Cluster, spec: TaskSpec, agent_id: AgentId, left: Holding, launched: Mapping[TaskId, Holding]
) -> str:
    """Say which task has a port that `spec` asks for by number and that is not in `left`; empty where no task has one.

    `launched`: what tasks before it in the same call take on this agent.
    """
    missing = subtract_ports(spec.resources.ports, holding_total(left).ports)
    if not missing:
        return ""
    names = {one.host_port: f" ({one.name})" for one in spec.service_ports}
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
