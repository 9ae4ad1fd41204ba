"""The tree of roles: what each holds and keeps, and the order in which (role, framework) are served.

Hierarchical weighted DRF (mesos.md §3.2). Share of a node: the largest, over all kinds that count, of
`held · 10^18 // (total · weight in thousandths)`; siblings are ordered by share, then by how often they were given something, then
by path: a total order. A role that has both frameworks and children takes part among its children as the virtual leaf `role/.`, of
weight 1 unless it was given one (T24). Orders are kept sorted and repaired where something changed, never sorted anew for an agent.

The same nodes carry what quota is reckoned from: reservations, and which part of what is held comes out of them.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Mapping
from operator import itemgetter
from types import MappingProxyType
from typing import NamedTuple

from bursar.core.ids import FrameworkId
from bursar.master.allocator import quota

SCALE = 10**18
DEFAULT_WEIGHT_MILLI = 1000

Amounts = Mapping[str, int]
"""Kind → amount in its integer unit, GPUs in thousandths (`Resources.amounts`)."""

_NOTHING: Amounts = MappingProxyType({})
_by_key = itemgetter(0, 1, 2)


class Client(NamedTuple):
    """Who is served, and who pays: a framework in one of its roles."""

    role: str
    framework_id: FrameworkId


class Node:
    """A role, a virtual leaf, or a client inside a role; ordered among its siblings.

    Invariants: `entry` is in `parent.order` iff `active` > 0, and holds the node's share and count; an only child's may be out of
    date, for it is compared with nobody. An only child may share its parent's `held`.
    """

    __slots__ = (
        "active",
        "children",
        "client",
        "count",
        "entry",
        "guarantee",
        "held",
        "held_reserved",
        "limit",
        "order",
        "parent",
        "path",
        "reserved",
        "unmet",
        "unmet_below",
        "weight_milli",
    )

    def __init__(
        self, path: str, parent: Node | None, weight_milli: int = DEFAULT_WEIGHT_MILLI, client: Client | None = None
    ) -> None:
        self.path = path
        self.parent = parent
        self.weight_milli = weight_milli
        #: Offered and allocated, by the whole subtree.
        self.held: dict[str, int] = {}
        #: How often something was given to it: the second criterion.
        self.count = 0
        self.children: dict[str, Node] = {}
        #: (share, count, path, node) of the active children, sorted.
        self.order: list[_Entry] = []
        self.entry: _Entry = (0, 0, path, self)
        #: Clients below (or itself, for a client) that may be given something.
        self.active = 0
        #: For a client's node.
        self.client = client
        #: Quota: what the role shall be able to have, and the most that it may have; kinds not named: 0, and without limit.
        self.guarantee: Amounts = _NOTHING
        self.limit: Amounts = _NOTHING
        #: Kept for plain roles of the subtree, used or not.
        self.reserved: Amounts = _NOTHING
        #: What of `held` comes out of such reservations.
        self.held_reserved: Amounts = _NOTHING
        #: What is kept free for guarantees, here and below; counters of `quota.settle`.
        self.unmet: dict[str, int] = {}
        self.unmet_below: dict[str, int] = {}

    def consumed(self, kind: str) -> int:
        """What counts against quota (mesos.md §3.3): all reservations of the subtree, used or not, and what it holds beyond them;
        what is offered counts as consumed.
        """
        return self.held.get(kind, 0) - self.held_reserved.get(kind, 0) + self.reserved.get(kind, 0)

    @property
    def is_kept(self) -> bool:
        """Whether the node is there for another reason than its clients: a reservation or a quota."""
        return bool(self.reserved or self.guarantee or self.limit)


OrderEntry = tuple[int, int, str, Node]
"""Share, count, path: by which siblings are ordered."""
_Entry = OrderEntry
_node_of = itemgetter(3)


class Shares:
    """The tree of roles. What roles and their frameworks hold is told by the ledger alone."""

    def __init__(self, excluded: frozenset[str] = frozenset()) -> None:
        self.root = Node("", None)
        self._total: dict[str, int] = {}
        #: What of it counts.
        self._counted: dict[str, int] = {}
        self._excluded = excluded
        self._weights: dict[str, int] = {}
        self._clients: dict[Client, Node] = {}
        #: Totals or the like changed: every share is another one.
        self._stale = False
        #: Where only one way leads down from the top, the order that it leads to; found anew where activity changed.
        self._flat: list[_Entry] | None = None
        #: The kinds that any quota names; nothing is reckoned for others.
        self.quota_kinds: frozenset[str] = frozenset()
        self._kinds_by_role: dict[str, frozenset[str]] = {}
        #: Whether anything changed that quota is reckoned from; set back by whoever looked at it.
        self.quota_moved = False

    # --- Accounts (called by the ledger) ---

    def charge(self, client: Client, amounts: Amounts, reserved: Amounts = _NOTHING) -> None:
        """A client was given something; `reserved` is what of it comes out of reservations to plain roles."""
        if not amounts:
            # Ports are in no share.
            return
        leaf = node = self._clients.get(client) or self._enter(client)
        if reserved:
            _change_up(node, "held_reserved", reserved, 1)
        compare = not self._stale
        seen: dict[str, int] | None = None
        parent = node.parent
        while parent is not None:
            held = node.held
            if held is not seen:
                seen = held
                for kind, amount in amounts.items():
                    held[kind] = held.get(kind, 0) + amount
            node.count += 1
            if compare and len(parent.children) > 1:
                self._place(node, parent)
            node = parent
            parent = node.parent
        if self.quota_kinds:
            self._settle(leaf, amounts)

    def discharge(self, client: Client, amounts: Amounts, reserved: Amounts = _NOTHING) -> None:
        """A client gave something back."""
        if not amounts:
            return
        leaf = node = self._clients[client]
        if reserved:
            _change_up(node, "held_reserved", reserved, -1)
        seen: dict[str, int] | None = None
        parent = node.parent
        while parent is not None:
            held = node.held
            if held is not seen:
                seen = held
                for kind, amount in amounts.items():
                    left = held[kind] - amount
                    assert left >= 0, (kind, left)
                    if left:
                        held[kind] = left
                    else:
                        del held[kind]
            if len(parent.children) > 1 and not self._stale:
                self._place(node, parent)
            node = parent
            parent = node.parent
        if self.quota_kinds:
            self._settle(leaf, amounts)
        if not leaf.active and not leaf.held:
            self._drop_if_unused(client)

    def keep(self, role: str, amounts: Amounts) -> None:
        """Resources were reserved to a plain role."""
        if not amounts:
            return
        node = self._role(role)
        _change_up(node, "reserved", amounts, 1)
        self._settle(node, amounts)

    def release(self, role: str, amounts: Amounts) -> None:
        """A plain role's reservation ended."""
        if not amounts:
            return
        node = self._role(role)
        _change_up(node, "reserved", amounts, -1)
        self._settle(node, amounts)
        self._drop_empty(node)

    def add_total(self, amounts: Amounts) -> None:
        """The cluster grew."""
        for kind, amount in amounts.items():
            self._total[kind] = self._total.get(kind, 0) + amount
        self._stale = True

    def subtract_total(self, amounts: Amounts) -> None:
        """The cluster shrank."""
        for kind, amount in amounts.items():
            left = self._total[kind] - amount
            assert left >= 0, (kind, left)
            if left:
                self._total[kind] = left
            else:
                del self._total[kind]
        self._stale = True

    # --- clients, weights, quota ---

    def set_active(self, role: str, framework_id: FrameworkId, active: bool) -> None:
        """Say whether a framework may be given something in a role (connected and not suppressed)."""
        client = Client(role, framework_id)
        leaf = self._clients.get(client)
        if leaf is None:
            if not active:
                return
            leaf = self._enter(client)
        difference = int(active) - leaf.active
        if difference:
            self._flat = None
            node, parent = leaf, leaf.parent
            while parent is not None:
                was = node.active
                node.active += difference
                if not was:
                    insort(parent.order, node.entry)
                elif not node.active:
                    self._unlist(node, parent)
                node, parent = parent, parent.parent
            self.root.active += difference
        if not active:
            self._drop_if_unused(client)

    def is_active(self, client: Client) -> bool:
        """Whether a client may be given something."""
        node = self._clients.get(client)
        return node is not None and bool(node.active)

    def set_weight(self, role: str, weight_milli: int) -> None:
        """Change a role's weight, in thousandths, at least 1. It is remembered whether the role is in use or not."""
        assert weight_milli >= 1, weight_milli
        if weight_milli == DEFAULT_WEIGHT_MILLI:
            self._weights.pop(role, None)
        else:
            self._weights[role] = weight_milli
        node = self.find(role)
        if node is not None and node.parent is not None:
            node.weight_milli = weight_milli
            if not self._stale:
                self._place(node, node.parent)

    def weight_milli(self, role: str) -> int:
        """A role's weight, in thousandths."""
        return self._weights.get(role, DEFAULT_WEIGHT_MILLI)

    def set_quota(self, role: str, guarantee: Amounts, limit: Amounts) -> None:
        """What a role shall be able to have and the most that it may have; both empty: no quota."""
        node = self._role(role)
        before = self._kinds_by_role.pop(role, frozenset())
        after = frozenset((*guarantee, *limit))
        if after:
            self._kinds_by_role[role] = after
        node.guarantee, node.limit = guarantee, limit
        for kind in sorted(before | after):
            quota.settle(node, kind)
        self.quota_moved = True
        if not after <= self.quota_kinds or not before <= after:
            self.quota_kinds = frozenset().union(*self._kinds_by_role.values())
        self._drop_empty(node)

    def set_excluded(self, names: frozenset[str]) -> None:
        """Kinds that do not count (GPU-6, M-15)."""
        if names != self._excluded:
            self._excluded = names
            self._stale = True

    # --- order ---

    def order(self) -> Iterator[Node]:
        """Every active client's node, the one to be served next first. Take a fresh iterator after anything was charged."""
        if self._stale:
            self._refresh()
        if self._flat is not None:
            return in_order(self._flat)
        order = self.root.order
        # Most often there is one way only, down to the frameworks of a role.
        while len(order) == 1 and order[0][3].client is None:
            order = order[0][3].order
        if order and order[0][3].client is not None:
            # The children of a node are clients, or none of them is.
            self._flat = order
        return in_order(order)

    def top(self) -> list[_Entry]:
        """The order of those among whom the way down from the top forks first, the one to be served next first. Kept up to date by
        `charge`, until totals or who is active change.
        """
        if self._stale:
            self._refresh()
        return self._flat or self.root.order

    @property
    def counted(self) -> Amounts:
        """What of the total shares are reckoned from."""
        return self._counted

    def add_up(self, leaf: Node, amounts: Amounts, times: int, counted: Collection[Node]) -> None:
        """A client was given the same several times, and is where it belongs already (`line`); so often these nodes were counted."""
        seen: dict[str, int] | None = None
        node, parent = leaf, leaf.parent
        while parent is not None:
            held = node.held
            if held is not seen:
                seen = held
                for kind, amount in amounts.items():
                    held[kind] = held.get(kind, 0) + amount * times
            if node not in counted:
                node.count += times
            node, parent = parent, parent.parent
        if self.quota_kinds:
            self._settle(leaf, amounts)

    def standing(self, client: Client) -> tuple[int, ...]:
        """How far a client is served: the shares of its role and of those above it, from the top, then its own. Compared as tuples, the
        smaller one comes first; active or not.
        """
        if self._stale:
            self._refresh()
        shares = []
        node: Node | None = self.root
        for component in (*client.role.split("/"), ".", client.framework_id):
            node = None if node is None else node.children.get(component)
            shares.append(0 if node is None else self._entry_of(node)[0])
        return tuple(shares)

    @property
    def total(self) -> Amounts:
        """All that the cluster has, kind by kind; of agents that count."""
        return self._total

    def share_millionths(self, role: str) -> int:
        """A role's dominant share, weight not applied, in millionths."""
        node = self.find(role)
        return 0 if node is None else self.dominant_millionths(node)

    def dominant_millionths(self, node: Node) -> int:
        """The same of any node."""
        return max(
            (
                amount * 1_000_000 // total
                for kind, amount in node.held.items()
                if kind not in self._excluded and (total := self._total.get(kind, 0))
            ),
            default=0,
        )

    def roles(self) -> list[str]:
        """Every role that has clients, reservations or quota, or is above one that has; sorted."""
        return sorted(node.path for node in self.nodes())

    def nodes(self) -> Iterator[Node]:
        """The nodes of all roles, each after the role above it; neither virtual leaves nor clients."""
        stack = [self.root]
        while stack:
            for child in stack.pop().children.values():
                if child.client is None and not child.path.endswith("/."):
                    yield child
                    stack.append(child)

    def find(self, role: str) -> Node | None:
        """The node of a role that is in use."""
        node: Node | None = self.root
        for component in role.split("/"):
            node = None if node is None else node.children.get(component)
        return node

    def nearest(self, role: str) -> Node:
        """The node of a role, or of the nearest above it that is in use; the root where none is."""
        node = self.root
        for component in role.split("/"):
            child = node.children.get(component)
            if child is None:
                return node
            node = child
        return node

    def client_node(self, client: Client) -> Node | None:
        """The node of a client."""
        return self._clients.get(client)

    def held(self, role: str) -> Amounts:
        """What the subtree of a role holds."""
        node = self.find(role)
        return _NOTHING if node is None else node.held

    def check(self) -> None:
        """Assert the invariants of the tree."""

        def visit(node: Node) -> None:
            listed = [entry[3] for entry in node.order]
            expected = [child for child in node.children.values() if child.active]
            assert sorted(map(id, listed)) == sorted(map(id, expected)), node.path
            assert node.order == sorted(node.order, key=_by_key), node.path
            for entry in node.order:
                assert entry is entry[3].entry, entry[2]
            if node.parent is not None and node.client is None:
                assert node.children or node.is_kept, node.path
            if node.children and node.parent is not None:
                total: dict[str, int] = {}
                for child in node.children.values():
                    for kind, amount in child.held.items():
                        total[kind] = total.get(kind, 0) + amount
                assert total == node.held, (node.path, total, node.held)
                assert node.active == sum(child.active for child in node.children.values()), node.path
            assert node.parent is not None or node.active == sum(child.active for child in node.children.values())
            for kind, amount in node.held_reserved.items():
                assert 0 < amount <= node.held[kind], (node.path, kind)
            for child in node.children.values():
                visit(child)

        visit(self.root)
        quota.check(self.root)

    # --- inside ---

    def _settle(self, node: Node, amounts: Amounts) -> None:
        for kind in amounts:
            if kind in self.quota_kinds:
                quota.settle(node, kind)
                self.quota_moved = True

    def _refresh(self) -> None:
        self._counted = {kind: total for kind, total in self._total.items() if kind not in self._excluded}
        self._rebuild(self.root)
        self._stale = False
        self._flat = None

    def _share(self, node: Node) -> int:
        counted = self._counted
        share = 0
        for kind, amount in node.held.items():
            if kind in counted:
                share = max(share, amount * SCALE // counted[kind])
        # Divided by the weight once, at the end: the same integer.
        return share // node.weight_milli

    def _rebuild(self, node: Node) -> None:
        for child in node.children.values():
            child.entry = (self._share(child), child.count, child.path, child)
            if child.client is None:
                self._rebuild(child)
        node.order = sorted([child.entry for child in node.children.values() if child.active], key=_by_key)

    def _entry_of(self, node: Node) -> _Entry:
        return self._share(node), node.count, node.path, node

    def _place(self, node: Node, parent: Node) -> None:
        """Put a node where its share and count belong."""
        # As in `_share`, without a call: for every offer.
        counted = self._counted
        share = 0
        for kind, amount in node.held.items():
            if kind in counted and (of_kind := amount * SCALE // counted[kind]) > share:
                share = of_kind
        entry = (share // node.weight_milli, node.count, node.path, node)
        if node.active:
            order = parent.order
            if order[0] is node.entry:
                del order[0]
            else:
                self._unlist(node, parent)
            # Paths are different: nodes themselves are never compared. Whoever was given something mostly goes to the end.
            if order and order[-1] > entry:
                insort(order, entry)
            else:
                order.append(entry)
        node.entry = entry

    def _unlist(self, node: Node, parent: Node) -> None:
        order = parent.order
        index = bisect_left(order, node.entry)
        if index < len(order) and order[index] is node.entry:
            del order[index]
        else:
            # Entries are out of date until the next rebuild.
            parent.order[:] = [entry for entry in order if entry is not node.entry]

    def _enter(self, client: Client) -> Node:
        leaf = self._role(client.role, virtual_leaf=True)
        node = Node(f"{leaf.path} {client.framework_id}", leaf, client=client)
        self._adopt(leaf, client.framework_id, node)
        self._clients[client] = node
        return node

    def _role(self, role: str, *, virtual_leaf: bool = False) -> Node:
        """The node of a role, or its virtual leaf, which holds its frameworks: alone among its siblings it is the role itself."""
        node = self.root
        path = ""
        for component in (*role.split("/"), ".") if virtual_leaf else role.split("/"):
            path = f"{path}/{component}" if path else component
            child = node.children.get(component)
            if child is None:
                child = Node(path, node, self.weight_milli(path))
                self._adopt(node, component, child)
            node = child
        return node

    def _adopt(self, parent: Node, name: str, child: Node) -> None:
        if not parent.children:
            if parent is not self.root:
                # They hold the same for as long as there is one.
                assert not parent.held, parent.path
                child.held = parent.held
        elif len(parent.children) == 1:
            # From now on it is compared with somebody.
            (sibling,) = parent.children.values()
            if sibling.held is parent.held:
                _unshare(sibling)
            if not self._stale:
                self._place(sibling, parent)
        parent.children[name] = child

    def _drop_if_unused(self, client: Client) -> None:
        """Forget a client that neither holds nor may get anything, and the roles that end with it."""
        node = self._clients.get(client)
        if node is None or node.active or node.held:
            return
        del self._clients[client]
        assert node.parent is not None
        del node.parent.children[client.framework_id]
        self._drop_empty(node.parent)

    def _drop_empty(self, node: Node) -> None:
        while node.parent is not None and not node.children and not node.is_kept:
            del node.parent.children[node.path.rsplit("/", 1)[-1]]
            node = node.parent


def in_order(order: list[_Entry]) -> Iterator[Node]:
    """The clients at and below these nodes, in order."""
    if order and order[0][3].client is not None:
        # The children of a node are clients, or none of them is.
        return map(_node_of, order)
    return _walk(order)


def _walk(order: list[_Entry]) -> Iterator[Node]:
    for entry in order:
        node = entry[3]
        if node.client is not None:
            yield node
        else:
            yield from _walk(node.order)


def _unshare(node: Node) -> None:
    """Give a node, and those below that share with it, amounts of their own."""
    shared = node.held
    own = dict(shared)
    while True:
        node.held = own
        if len(node.children) != 1:
            return
        (below,) = node.children.values()
        if below.held is not shared:
            return
        node = below


def _change_up(node: Node, name: str, amounts: Amounts, sign: int) -> None:
    """Add to one of a node's sums, and to those of all above it."""
    walk = node
    while walk.parent is not None:
        changed = dict(getattr(walk, name))
        for kind, amount in amounts.items():
            left = changed.get(kind, 0) + sign * amount
            assert left >= 0, (walk.path, name, kind, left)
            if left:
                changed[kind] = left
            else:
                changed.pop(kind, None)
        setattr(walk, name, changed or _NOTHING)
        walk = walk.parent
