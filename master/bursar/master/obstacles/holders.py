"""Who has it: reservations, tasks, offers, gangs, and those whose turn it is."""

from __future__ import annotations

from collections.abc import Iterator

from bursar.core.device_names import is_volume, volume_bytes
from bursar.core.ids import DeviceUuid, FrameworkId
from bursar.core.messages.framework import REVOCABLE_RESOURCES
from bursar.core.messages.operator import Obstacle, ObstacleKind, RefusalReason
from bursar.core.resources import (
    DISK,
    GPUS,
    MILLI,
    Holding,
    ReservationType,
    Resources,
    add_holdings,
    holding_total,
)
from bursar.core.role_expressions import plain_holder
from bursar.core.text import format_milli, format_request, format_resources
from bursar.master.allocator.decision import Proposal
from bursar.master.allocator.shares import Node
from bursar.master.obstacles.asking import Group, ask, in_order
from bursar.master.obstacles.wording import (
    amounts_of,
    covers_role,
    format_of,
    framework_name,
    how_much,
    name_of,
    of_reservation,
    percent,
    with_amount,
)
from bursar.master.state import Agent

#: Clients that are asked whether they would be served before.
MAX_RIVALS_ASKED = 100


def reservations_of_others(group: Group) -> Iterator[Obstacle]:
    """What is reserved to others; that of which there is most first."""
    found: dict[str, tuple[Agent, Resources, int]] = {}
    for agent in group.agents.values():
        for stack, part in group.books_of(agent).total.items():
            if stack and not covers_role(group.cluster, stack, group.client.role):
                holder = stack[-1].holder
                known = found.get(holder)
                found[holder] = (agent, part, 1) if known is None else (*known[:2], known[2] + 1)
    for holder, (agent, part, places) in sorted(found.items(), key=lambda item: (-item[1][2], item[0])):
        more = f", and something in {places - 1} other places" if places > 1 else ""
        lent = ", lent while it is idle" if any(stack[-1].holder == holder for stack in agent.lent) else ""
        text = f"{format_resources(part)} of {agent.info.hostname} reserved to {holder}{lent}{more}"
        yield of_reservation(
            holder, part, agent, text, [kind for shape, _ in group.shapes for kind, _ in amounts_of(shape.resources)]
        )


def reservation_hint(group: Group) -> str:
    """How to come by what is reserved to others."""
    for stack, part in sorted(group.books_of(group.agent).total.items()):
        if stack and not covers_role(group.cluster, stack, group.client.role):
            holder = stack[-1].holder
            if stack in group.agent.lent:
                capabilities = group.frameworks[group.client.framework_id].info.capabilities
                if REVOCABLE_RESOURCES not in capabilities:
                    return f"add the capability {REVOCABLE_RESOURCES}, where the framework can do with notices: it is lent while it is idle"
            if stack[-1].type is ReservationType.STATIC:
                return f"run in a role that {holder} covers; the reservation is static: the agent's --resources says it"
            role = plain_holder(holder)
            whose = f"--roles '{holder}'" if role is None or role != holder else f"--role {holder}"
            return (
                f"run in a role that {holder} covers, or `bursar unreserve {whose} --agent {group.agent.info.hostname} "
                f"--resources '{format_resources(part)}'`"
            )
    return "see `bursar reservation ls`; run in a role that is covered, or unreserve"


def who_holds_it(group: Group) -> Iterator[Obstacle]:
    """What is not free on the agent that lacks least, and who holds it: those first that hold most of what is wanted."""
    books, agent = group.books_of(group.agent), group.agent
    if group.reason is RefusalReason.NOT_FREE:
        yield from _not_free(group)
    kinds = list(dict.fromkeys(kind for shape, _ in group.shapes for kind, _ in amounts_of(shape.resources)))
    found: list[tuple[int, int, Obstacle]] = []
    by_framework: dict[FrameworkId, tuple[int, str, Holding]] = {}
    for key, entry in books.allocated.items():
        count, name, held = by_framework.get(key.framework_id, (0, key.task_id, {}))
        by_framework[key.framework_id] = (count + 1, min(name, key.task_id), add_holdings(held, entry.holding))
    for framework_id, (count, name, held) in by_framework.items():
        part = holding_total(held)
        tasks = f"task {name}" if count == 1 else f"{count} tasks ({name}, …)"
        who, holds = name_of(group.cluster, framework_id), "holds" if count == 1 else "hold"
        text = f"{tasks} of {who} {holds} {format_resources(part)} of {agent.info.hostname}"
        obstacle = with_amount(ObstacleKind.TASK, name, text, part, kinds, agent, framework_id)
        found.append((0, -obstacle.amount, obstacle))
    for offer_id, offered in books.offered.items():
        if offered.client == group.client:
            continue
        part = holding_total(offered.holding)
        client = offered.client
        who = name_of(group.cluster, client.framework_id)
        text = f"{format_resources(part)} of {agent.info.hostname} offered to {who} in role {client.role}"
        obstacle = with_amount(ObstacleKind.OFFER, offer_id, text, part, kinds, agent, client.framework_id)
        found.append((1, -obstacle.amount, obstacle))
    for uuid, why in sorted(books.withheld_devices.items()):
        resource, amount = (DISK, volume_bytes(uuid)) if is_volume(uuid) else (GPUS, MILLI)
        if resource == DISK and not _is_for(group, uuid):
            continue
        text = f"{uuid} of {agent.info.hostname} is not offered: {why}"
        found.append(
            (2, 0, Obstacle(ObstacleKind.DEVICE, uuid, text, agent_id=agent.agent_id, resource=resource, amount=amount))
        )
    for number, withheld in sorted(group.cluster.ledger.holders_on(agent.agent_id).items()):
        holder, part = group.cluster.gangs.by_number[number].key, holding_total(withheld)
        who = name_of(group.cluster, holder.framework_id)
        text = f"{format_resources(part)} of {agent.info.hostname} is withheld for gang {holder.gang_id} of {who}"
        obstacle = with_amount(ObstacleKind.GANG, holder.gang_id, text, part, kinds, agent, holder.framework_id)
        found.append((2, -obstacle.amount, obstacle))
    if group.reason is RefusalReason.OTHERS_FIRST:
        found = [entry for entry in found if entry[0] == 1]
    for _, _, obstacle in sorted(found, key=lambda entry: (entry[0], entry[1], entry[2].name)):
        yield obstacle
    yield from _rivals(group)


def _is_for(group: Group, volume: DeviceUuid) -> bool:
    """Whether the client could be offered a volume, if it were there."""
    total = group.books_of(group.agent).total
    stack = next(stack for stack, part in total.items() if volume in part.devices)
    return covers_role(group.cluster, stack, group.client.role)


def _not_free(group: Group) -> Iterator[Obstacle]:
    free = holding_total(group.books_of(group.agent).free)
    for shape, _ in group.shapes[:1]:
        for kind, wanted in amounts_of(shape.resources):
            there = how_much(shape.resources, kind, free)
            if there < wanted:
                name = group.agent.info.hostname
                text = f"{kind}: {format_of(kind, wanted)} wanted, {format_of(kind, there)} free on {name}"
                if len(group.agents) > 1:
                    text += ", which lacks least"
                yield Obstacle(
                    ObstacleKind.SHAPE,
                    format_request(shape.resources),
                    text,
                    agent_id=group.agent.agent_id,
                    resource=kind,
                    amount=wanted,
                    of=there,
                )


def _rivals(group: Group) -> Iterator[Obstacle]:
    """Who would be served before if all that is held on the first agent were free, and would take it."""
    cluster, agent, own = group.cluster, group.agent, group.client
    node = cluster.shares.client_node(own)
    if node is None or not node.active:
        return
    total = group.books_of(agent).total
    for asked, other in enumerate(in_order(cluster, total)):
        client = other.client
        assert client is not None
        if client == own or asked >= MAX_RIVALS_ASKED:
            return
        framework = cluster.frameworks[client.framework_id]
        if type(ask(cluster, agent, client, framework, total)) is Proposal:
            theirs, mine = _siblings(other, node)
            share, weight = cluster.shares.dominant_millionths(theirs), theirs.weight_milli
            against = f"{percent(cluster.shares.dominant_millionths(mine))} and {format_milli(mine.weight_milli)}"
            text = (
                f"{framework_name(framework)} in role {client.role} would be served before: share {percent(share)}, weight "
                f"{format_milli(weight)}, against {against} of {_node_name(mine)}"
            )
            yield Obstacle(
                ObstacleKind.COMPETITOR, client.role, text, client.framework_id, agent.agent_id, amount=share, of=weight
            )


def not_free_hint(group: Group) -> str:
    """What may become free, and how."""
    name = group.agent.info.hostname
    kinds = {obstacle.kind for obstacle in who_holds_it(group)}
    hints = []
    if ObstacleKind.OFFER in kinds:
        hints.append("wait for the offers to be answered (see `bursar offer ls`)")
    if ObstacleKind.TASK in kinds or not hints:
        hints.append("wait for tasks to end, or end some with `bursar task kill` (see `bursar task ls`)")
    if ObstacleKind.DEVICE in kinds:
        hints.append(f"see `bursar agent show {name}` for what is withheld")
    return "; ".join(hints)


def _siblings(left: Node, right: Node) -> tuple[Node, Node]:
    """Where the ways down to two clients part."""
    ways = []
    for node in (left, right):
        way = [node]
        while node.parent is not None:
            node = node.parent
            way.append(node)
        ways.append(way[::-1])
    return next(pair for pair in zip(*ways, strict=False) if pair[0] is not pair[1])


def _node_name(node: Node) -> str:
    return node.client.framework_id if node.client is not None else node.path.removesuffix("/.")
