"""Quota: limits that are reached, guarantees of others."""

from __future__ import annotations

from collections.abc import Iterator

from bursar.core.messages.operator import Obstacle, ObstacleKind
from bursar.master.allocator.shares import Node
from bursar.master.obstacles.asking import Group
from bursar.master.obstacles.wording import amounts_of, format_of


def limits_reached(group: Group) -> Iterator[Obstacle]:
    """Limits of the role and of those above it that leave less than is wanted; all of them where nothing is stated."""
    node: Node | None = group.cluster.shares.nearest(group.client.role)
    wanted: dict[str, int] = {}
    for shape, _ in group.shapes:
        for kind, amount in amounts_of(shape.resources):
            wanted[kind] = min(amount, wanted.get(kind, amount))
    found: list[tuple[int, Obstacle]] = []
    while node is not None and node.parent is not None:
        for kind, limit in node.limit.items():
            consumed = node.consumed(kind)
            left = limit - consumed
            if (left < wanted.get(kind, 0)) if wanted else left <= 0:
                text = f"{node.path} has consumed {format_of(kind, consumed)} of its limit of {format_of(kind, limit)} {kind}"
                found.append(
                    (left, Obstacle(ObstacleKind.LIMIT, node.path, text, resource=kind, amount=consumed, of=limit))
                )
        node = node.parent
    for _, obstacle in sorted(found, key=lambda entry: entry[0]):
        yield obstacle


def limit_hint(group: Group) -> str:
    """What would leave more below the limit that leaves least."""
    for obstacle in limits_reached(group):
        return (
            f"wait for tasks of {obstacle.name} to end, ask for less {obstacle.resource}, or raise the limit with "
            f"`bursar quota set --role {obstacle.name}`"
        )
    return "raise the limit with `bursar quota set`; see `bursar quota ls`"


def guarantees_unmet(group: Group) -> Iterator[Obstacle]:
    """Guarantees of others that are not met: what is kept free for them."""
    own = set()
    node: Node | None = group.cluster.shares.nearest(group.client.role)
    while node is not None:
        own.add(node.path)
        node = node.parent
    kinds = {kind for shape, _ in group.shapes for kind, _ in amounts_of(shape.resources)}
    found: list[tuple[int, Obstacle]] = []
    for node in group.cluster.shares.nodes():
        for kind, guarantee in node.guarantee.items():
            left = guarantee - node.consumed(kind)
            if left > 0 and node.path not in own and (not kinds or kind in kinds):
                text = f"{kind}: {format_of(kind, left)} kept free for {node.path}, which is guaranteed {format_of(kind, guarantee)}"
                found.append(
                    (
                        -left,
                        Obstacle(
                            ObstacleKind.GUARANTEE,
                            node.path,
                            text,
                            resource=kind,
                            amount=guarantee - left,
                            of=guarantee,
                        ),
                    )
                )
    for _, obstacle in sorted(found, key=lambda entry: (entry[0], entry[1].name)):
        yield obstacle


def guarantee_hint(group: Group) -> str:
    """What would leave more beside the largest guarantee."""
    for obstacle in guarantees_unmet(group):
        return (
            f"wait until {obstacle.name} uses it or more is free, lower its guarantee with `bursar quota set --role {obstacle.name}`, or "
            f"give {group.client.role} a guarantee of its own"
        )
    return "lower a guarantee with `bursar quota set`; see `bursar quota ls`"
