"""Which gangs are refused at once: those that are not well formed, and those that this cluster could never hold."""

from __future__ import annotations

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import id_problem
from bursar.core.messages.gangs import RequestGang
from bursar.core.text import format_duration
from bursar.master.allocator.gangs import (
    group_by_value,
    missing_of,
    nearest_value,
    place_somewhere,
    room_for,
    worth_trying,
)
from bursar.master.bundles import Gang
from bursar.master.gangs.room import Classes, cliques_on, once_empty, permitted
from bursar.master.reservations import request_problem
from bursar.master.state import Cluster, Framework

MAX_GROUPS = 16
#: A bundle is one message: as many fit into it.
MAX_TASKS = 1024
MAX_GPUS = 8192
MIN_TTL_MS = 1000
MAX_TTL_MS = 30 * 86_400_000
MAX_GANGS_PER_FRAMEWORK = 100


def form_problem(cluster: Cluster, framework: Framework, call: RequestGang) -> ErrorDetail | None:
    """Say what is wrong with the words of a request."""

    def invalid(what: str, hint: str, field: str) -> ErrorDetail:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, what, hint, field)

    if problem := id_problem(call.gang_id):
        return invalid(f"gang_id: {problem}", "choose an id for each gang", "gang_id")
    if call.role not in framework.info.roles:
        return invalid(f"{call.role!r} is not a role of the framework", "name one of its roles", "role")
    if not 1 <= len(call.groups) <= MAX_GROUPS:
        return invalid(
            f"a gang has at least one group and at most {MAX_GROUPS}, not {len(call.groups)}",
            "put equal tasks into one group",
            "groups",
        )
    for index, group in enumerate(call.groups):
        if group.count < 1:
            return invalid("a group has at least one task", "leave the group out", f"groups[{index}].count")
        if error := request_problem(group.resources, f"groups[{index}].resources"):
            return error
        if group.resources.devices:
            return invalid("a gang asks for GPUs by number, not by name", "write gpus:N", f"groups[{index}].resources")
    tasks = sum(group.count for group in call.groups)
    gpus = sum(group.count * group.resources.gpus for group in call.groups)
    if tasks > MAX_TASKS or gpus > MAX_GPUS:
        return invalid(
            f"a gang has at most {MAX_TASKS} tasks and {MAX_GPUS} GPUs, not {tasks} and {gpus}",
            "ask for fewer, larger tasks, or for several gangs",
            "groups",
        )
    if not MIN_TTL_MS <= call.ttl_ms <= MAX_TTL_MS:
        return invalid(
            f"a gang waits for at least {format_duration(MIN_TTL_MS)} and at most {format_duration(MAX_TTL_MS)},"
            f" not {call.ttl_ms} ms",
            "choose another ttl_ms",
            "ttl_ms",
        )
    if len(call.topology.same_attribute) > 255:
        return invalid("the name of an attribute is too long", "name one such as rack", "topology.same_attribute")
    mine = sum(key.framework_id == framework.framework_id for key in cluster.gangs.by_key)
    if mine >= MAX_GANGS_PER_FRAMEWORK:
        return invalid(f"{mine} gangs of the framework wait already", "cancel some, or ask later", "gang_id")
    return None


def never_fits(cluster: Cluster, framework: Framework, gang: Gang) -> ErrorDetail | None:
    """Say what is missing if a gang could not start on the whole cluster, empty; agents that are away count."""
    groups, attribute = gang.request.groups, gang.request.topology.same_attribute
    by_clique = gang.request.topology.nvlink_clique
    seen = 0
    classes = Classes(gang, {})
    for agent, rule in permitted(cluster, framework, gang.request.role, cluster.agents_in_order):
        seen += 1
        value = agent.info.attributes.get(attribute) if attribute else None
        if not attribute or value is not None:
            whole = once_empty(cluster, gang, agent, rule)
            cliques = cliques_on(cluster, agent) if by_clique else None
            gpus_only = cluster.ledger.books[agent.agent_id].has_gpus_only
            classes.enter(agent.order, value, whole, cliques, gpus_only)
    there = group_by_value(classes.known.values())
    field, hint = "groups", "ask for less, or add agents"
    candidates = worth_trying(groups, there)
    if candidates and place_somewhere(groups, candidates) is not None:
        return None
    if not seen:
        hidden = len(cluster.agents)
        why = f"none of the {hidden} agents may be offered to the framework" if hidden else "there are no agents"
    elif not there:
        why, field = f"no agent has the attribute {attribute}", "topology.same_attribute"
        hint = "name one that agents have (see `bursar agent show`), or start them with --attributes"
    else:
        short = missing_of(groups, [alike for some in there.values() for alike in some])
        why = short.message if short is not None else ""
        if not why and attribute:
            # Together they are enough, so no value alone is: the one that comes the nearest.
            best = nearest_value(groups, there)
            short = missing_of(groups, there[best])
            why = f"no {attribute} has enough; on {attribute} {best}, "
            why += short.message if short is not None else f"{room_for(groups, {best: there[best]})} tasks have room"
            field = "topology.same_attribute"
        if not why:
            why = f"{room_for(groups, there)} of its {gang.tasks} tasks have room"
        if seen < len(cluster.agents):
            why += f"; {len(cluster.agents) - seen} more agents may not be offered to it: see `bursar explain`"
    return ErrorDetail(
        ErrorReason.INSUFFICIENT_RESOURCES,
        f"the gang could never start in this cluster: {why}",
        hint,
        field,
    )
