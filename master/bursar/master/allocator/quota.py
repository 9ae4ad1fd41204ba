"""How much of the cluster a role may still be given: limits that hold down the tree, guarantees that are kept free for it.

A limit bounds what a role and all roles below it consume. A guarantee is kept free for as long as it is not consumed: what is
unmet of it is *headroom*, and nobody else is given unreserved resources that would cut into it. Per kind, in its integer unit
(`gpus` in thousandths), over any tree of `QuotaNode`:

    unmet(n)  = min(max(0, guarantee − consumed, Σ unmet(children)), least limit − consumed up the tree)
    headroom  = Σ unmet over the top of the tree

What an offer holds counts as consumed. `unmet` and the sums of it are counters on the nodes, kept by `settle` along one path:
no decision walks over roles. Each counter is capped by the limit of its own node alone; the least limit up the tree then need
not be asked for a sum: a child that hopes for more than a limit above it leaves is cut where that limit is.

The same rule holds inside a limit: what is unmet of one child's guarantee is kept from its siblings when their parent's limit
leaves no more than that. A limit is to its subtree what the cluster's free resources are to the whole tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, Self

from bursar.core.messages.operator import RefusalReason


class QuotaNode(Protocol):
    """A role in a tree; the root has neither parent nor quota."""

    @property
    def path(self) -> str:
        """The role."""

    @property
    def parent(self) -> Self | None:
        """The role above, or the root."""

    @property
    def children(self) -> Mapping[str, Self]:
        """The roles below, by any key."""

    @property
    def guarantee(self) -> Mapping[str, int]:
        """Kind → least that is kept for it; absent: nothing."""

    @property
    def limit(self) -> Mapping[str, int]:
        """Kind → most that it may consume; absent: any amount."""

    #: kind → what is unmet of guarantees here and below, capped by this node's own limit; absent: 0. Kept by `settle`.
    unmet: dict[str, int]
    #: kind → sum of `unmet` over the children; absent: 0. Kept by `settle`.
    unmet_below: dict[str, int]

    def consumed(self, kind: str) -> int:
        """All that is reserved to plain roles of the subtree, in use or not, and what the subtree holds of anything else."""


class Allowance(NamedTuple):
    """The most that a client may be given, and what it is that allows no more."""

    amount: int
    #: QUOTA_LIMIT or HEADROOM.
    reason: RefusalReason


def settle(node: QuotaNode, kind: str) -> None:
    """Bring the counters of a node and of all above it up to date, after consumption or quota of that path changed."""
    above = node.parent
    while above is not None:
        if not (node.unmet_below or node.guarantee or node.limit or node.unmet):
            # As it is with frameworks, and most roles.
            node, above = above, above.parent
            continue
        amount = node.unmet_below.get(kind, 0)
        guarantee, limit = node.guarantee.get(kind), node.limit.get(kind)
        if guarantee is not None or limit is not None:
            consumed = node.consumed(kind)
            amount = max(amount, (guarantee or 0) - consumed)
            if limit is not None:
                amount = max(0, min(amount, limit - consumed))
        before = node.unmet.get(kind, 0)
        if amount != before:
            _put(node.unmet, kind, amount)
            _put(above.unmet_below, kind, above.unmet_below.get(kind, 0) + amount - before)
        node, above = above, above.parent


def least_limit_left(node: QuotaNode, kind: str) -> int | None:
    """What the tightest limit of a role and those above it leaves, below 0 where one is passed; None without any limit."""
    least: int | None = None
    walk: QuotaNode | None = node
    while walk is not None:
        limit = walk.limit.get(kind)
        if limit is not None:
            left = limit - walk.consumed(kind)
            least = left if least is None else min(least, left)
        walk = walk.parent
    return least


def unmet(node: QuotaNode, kind: str) -> int:
    """What is kept free for a role and those below it."""
    amount = node.unmet.get(kind, 0)
    left = least_limit_left(node, kind)
    return amount if left is None else max(0, min(amount, left))


def headroom(root: QuotaNode, kind: str) -> int:
    """What is kept free for all guarantees together."""
    return root.unmet_below.get(kind, 0)


def own(node: QuotaNode, kind: str) -> int:
    """How much of the headroom would be fulfilled, unit by unit, if the role itself took something.

    At each level: where the children hope for more than the role's own guarantee leaves, what the child on the path fulfils; else
    what the role's own guarantee adds to that.
    """
    fulfilled = 0
    walk, above = node, node.parent
    while above is not None:
        fulfilled += _added(walk, kind)
        walk, above = above, above.parent
    left = least_limit_left(node, kind)
    return fulfilled if left is None else max(0, min(fulfilled, left))


def bound(node: QuotaNode, kind: str, free_unreserved: int) -> int:
    """The most of unreserved `kind` that a client of this role may be given; `free_unreserved` is that of the whole cluster."""
    return allowance(node, kind, free_unreserved).amount


def allowance(node: QuotaNode, kind: str, free_unreserved: int | None) -> Allowance:
    """The same with its reason; None for what is free: of resources that the cluster's headroom is not taken from.

    Up the path: what a limit leaves; of that, what is not kept for guarantees of others below it, or fulfils one by being taken.
    At the root the same with what is free in the place of what a limit leaves. So a guarantee that can still be kept stays so.
    """
    least: int | None = None
    reason = RefusalReason.QUOTA_LIMIT
    fulfilled = 0
    walk, above = node, node.parent
    while above is not None:
        if walk.limit or walk.guarantee:
            consumed = walk.consumed(kind)
            unmet_below = walk.unmet_below.get(kind, 0)
            limit = walk.limit.get(kind)
            if limit is not None:
                left = max(0, limit - consumed)
                if least is None or left <= least:
                    least, reason = left, RefusalReason.QUOTA_LIMIT
                spare = fulfilled + max(0, left - unmet_below)
                if spare < least:
                    least, reason = spare, RefusalReason.HEADROOM
            # As `_added`.
            fulfilled += max(0, walk.guarantee.get(kind, 0) - consumed - unmet_below)
        walk, above = above, above.parent
    if free_unreserved is not None:
        spare = fulfilled + max(0, free_unreserved - walk.unmet_below.get(kind, 0))
        if least is None or spare < least:
            least, reason = spare, RefusalReason.HEADROOM
    return Allowance(UNBOUNDED if least is None else least, reason)


def surely(node: QuotaNode, kind: str, free_unreserved: int) -> int:
    """An amount of unreserved `kind` that is allowed whichever guarantees the role itself fulfils by taking it.

    It falls by no more than what anybody is given: whoever was told it knows how far it reaches without asking again.
    """
    least = UNBOUNDED
    walk, above = node, node.parent
    while above is not None:
        limit = walk.limit.get(kind)
        if limit is not None:
            least = min(least, limit - walk.consumed(kind) - walk.unmet_below.get(kind, 0))
        walk, above = above, above.parent
    return min(least, free_unreserved - walk.unmet_below.get(kind, 0))


#: More than any amount there is: nothing limits.
UNBOUNDED = 2**63


def is_own(node: QuotaNode, kind: str) -> bool:
    """Whether taking something would fulfil the node's own guarantee, beyond what its children hope for."""
    return kind in node.guarantee and _added(node, kind) > 0


def check(root: QuotaNode) -> None:
    """Assert that the counters are what they mean, from scratch."""

    def visit(node: QuotaNode) -> None:
        below: dict[str, int] = {}
        for child in node.children.values():
            visit(child)
            for kind, amount in child.unmet.items():
                below[kind] = below.get(kind, 0) + amount
        assert node.unmet_below == below, (node.path, node.unmet_below, below)
        if node.parent is None:
            return
        expected = {}
        for kind in {*node.guarantee, *below}:
            consumed = node.consumed(kind)
            amount = max(0, node.guarantee.get(kind, 0) - consumed, below.get(kind, 0))
            if kind in node.limit:
                amount = max(0, min(amount, node.limit[kind] - consumed))
            if amount:
                expected[kind] = amount
        assert node.unmet == expected, (node.path, node.unmet, expected)

    visit(root)


def _added(node: QuotaNode, kind: str) -> int:
    """How much more than its child on the path a role fulfils, of what is unmet, by its own guarantee."""
    guarantee = node.guarantee.get(kind)
    if guarantee is None:
        return 0
    return max(0, guarantee - node.consumed(kind) - node.unmet_below.get(kind, 0))


def _put(counters: dict[str, int], kind: str, amount: int) -> None:
    if amount:
        counters[kind] = amount
    else:
        counters.pop(kind, None)
