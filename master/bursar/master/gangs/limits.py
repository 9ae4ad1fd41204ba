"""Quota of gangs: limits, and what is kept for guarantees, looked at for all that a gang needs together."""

from __future__ import annotations

from collections.abc import Iterable

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.operator import RefusalReason
from bursar.core.resources import EMPTY, GPUS, MILLI, UNRESERVED, Holding
from bursar.core.role_expressions import plain_holder
from bursar.core.text import format_amounts
from bursar.master.allocator.quota import allowance, headroom, least_limit_left
from bursar.master.allocator.shares import Client, Node
from bursar.master.bundles import Gang
from bursar.master.state import Cluster


def limit_in_the_way(cluster: Cluster, gang: Gang) -> ErrorDetail | None:
    """Which limit a gang could not keep even if its role held nothing; what is reserved to the role or above it may come on top."""
    shares = cluster.shares
    role = gang.request.role
    top = shares.find(role.split("/")[0])
    for kind in shares.quota_kinds:
        needed = needed_of(gang, kind) - (top.reserved.get(kind, 0) if top is not None else 0)
        node: Node | None = shares.nearest(role)
        while node is not None:
            limit = node.limit.get(kind)
            if limit is not None and needed > limit:
                return ErrorDetail(
                    ErrorReason.INSUFFICIENT_RESOURCES,
                    f"the gang needs {format_amounts({kind: needed_of(gang, kind)})}, and the limit of {node.path} is"
                    f" {format_amounts({kind: limit}) or 'none'}",
                    "ask for less, or have the limit raised",
                    "groups",
                )
            node = node.parent
    return None


def limit_left_in_the_way(cluster: Cluster, gang: Gang) -> bool:
    """Whether a limit, as far as it is used now, leaves less than a gang needs: holding would not bring it nearer."""
    shares = cluster.shares
    node = shares.nearest(gang.request.role)
    top = shares.find(gang.request.role.split("/")[0])
    for kind in shares.quota_kinds:
        left = least_limit_left(node, kind)
        if left is not None and needed_of(gang, kind) - (top.reserved.get(kind, 0) if top is not None else 0) > left:
            gang.hinder(RefusalReason.QUOTA_LIMIT, f"of {kind}, a limit of its role or of one above it is used up")
            return True
    return False


def quota_in_the_way(
    cluster: Cluster, gang: Gang, holdings: Iterable[Holding], back: Iterable[Holding] = ()
) -> tuple[RefusalReason, str] | None:
    """Why limits or headroom do not let a gang have all this together; None where they do (`held_back.cut_to_quota`).

    `back`: what will be free besides, for it is called back.
    """
    shares = cluster.shares
    client, back = client_of(gang), tuple(back)
    node = shares.client_node(client) or shares.nearest(client.role)
    loose: dict[tuple[str, bool], int] = {}
    for holding in holdings:
        for stack, part in holding.items():
            if not stack or plain_holder(stack[-1].holder) is None:
                for kind in shares.quota_kinds:
                    key = kind, bool(stack)
                    loose[key] = loose.get(key, 0) + part.amount(kind)
    for kind in shares.quota_kinds:
        unreserved, shared = loose.get((kind, False), 0), loose.get((kind, True), 0)
        if not unreserved and not shared:
            continue
        free = cluster.ledger.free_unreserved().get(kind, 0)
        mine = cluster.ledger.held_for(gang.number).values()
        free += sum(held.get(UNRESERVED, EMPTY).amount(kind) for held in (*mine, *back))
        most, by_limits = allowance(node, kind, free), allowance(node, kind, None)
        least = min(most.amount, by_limits.amount - shared)
        if free < headroom(shares.root, kind):
            least = min(least, most.amount - shared)
        if unreserved > least or shared > by_limits.amount:
            if most.reason is RefusalReason.HEADROOM:
                return most.reason, f"of {kind}, what it needs is kept free for the guarantees of others"
            return RefusalReason.QUOTA_LIMIT, f"of {kind}, a limit of its role or of one above it is used up"
    return None


def needed_of(gang: Gang, kind: str) -> int:
    """How much of a kind all its tasks need."""
    if kind == GPUS:
        return sum(MILLI * group.resources.gpus * group.count for group in gang.request.groups)
    return sum(group.resources.scalars.get(kind, 0) * group.count for group in gang.request.groups)


def client_of(gang: Gang) -> Client:
    """Who asks, as the tree of shares knows them."""
    return Client(gang.request.role, gang.key.framework_id)
