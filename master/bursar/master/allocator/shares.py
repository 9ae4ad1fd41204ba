"""Hierarchical weighted DRF: the order in which (role, framework) are served.

Share of a node: the largest, over all kinds that count, of `held · 10^18 // (total · weight in thousandths)`; siblings are
ordered by share, then by how often they were given something, then by path: a total order (mesos.md §3.2). A role that has
both frameworks and children takes part among its children as the virtual leaf `role/.`, of weight 1. Orders are kept sorted and
repaired where something changed, never sorted anew for an agent.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from bursar.core.ids import FrameworkId

SCALE = 10**18
DEFAULT_WEIGHT_MILLI = 1000

_Key = tuple[int, int, str]


@dataclass(slots=True, eq=False)
class _Node:
    """A role, a virtual leaf, or a framework inside a role; ordered among its siblings.

    Invariant: it is in `parent.order` iff `active` > 0, under its `key`, which is that of its amounts and count; an only
    child's may be out of date, for it is compared with nobody.
    """

    path: str
    parent: _Node | None
    weight_milli: int = DEFAULT_WEIGHT_MILLI
    held: dict[str, int] = field(default_factory=dict)
    #: How often something was given to it: the second criterion.
    count: int = 0
    children: dict[str, _Node] = field(default_factory=dict)
    order: list[tuple[_Key, _Node]] = field(default_factory=list)
    key: _Key = (0, 0, "")
    #: Frameworks below (or itself, for a framework) that may be given something.
    active: int = 0
    #: (role, framework) for a framework's node.
    client: tuple[str, FrameworkId] | None = None


class Shares:
    """The tree of roles, and what they and their frameworks hold (offered and allocated)."""

    def __init__(self, excluded: frozenset[str] = frozenset()) -> None:
        self._root = _Node("", None)
        self._total: dict[str, int] = {}
        #: What of it counts.
        self._counted: dict[str, int] = {}
        self._excluded = excluded
        self._weights: dict[str, int] = {}
        self._clients: dict[tuple[str, FrameworkId], _Node] = {}
        self._stale = False

    # --- Accounts (called by the ledger) ---

    def charge(self, role: str, framework_id: FrameworkId, amounts: Mapping[str, int]) -> None:
        """A client was given something."""
        self._change(self._client(role, framework_id), _add, amounts, 1)

    def discharge(self, role: str, framework_id: FrameworkId, amounts: Mapping[str, int]) -> None:
        """A client gave something back."""
        self._change(self._client(role, framework_id), _subtract, amounts, 0)
        self._drop_if_unused((role, framework_id))

    def add_total(self, amounts: Mapping[str, int]) -> None:
        """The cluster grew."""
        _add(self._total, amounts)
        self._stale = True

    def subtract_total(self, amounts: Mapping[str, int]) -> None:
        """The cluster shrank."""
        _subtract(self._total, amounts)
        self._stale = True

    # --- clients ---

    def set_active(self, role: str, framework_id: FrameworkId, active: bool) -> None:
        """Say whether a framework may be given something in a role (connected and not suppressed)."""
        if not active and (role, framework_id) not in self._clients:
            return
        node = self._client(role, framework_id)
        difference = int(active) - node.active
        if difference:
            walk: _Node | None = node
            while walk is not None and walk.parent is not None:
                was = walk.active
                walk.active += difference
                if bool(was) != bool(walk.active):
                    if walk.active:
                        _list(walk)
                    else:
                        self._unlist(walk)
                walk = walk.parent
        self._drop_if_unused((role, framework_id))

    def set_weight(self, role: str, weight_milli: int) -> None:
        """Change a role's weight, in thousandths, at least 1."""
        assert weight_milli >= 1, weight_milli
        self._weights[role] = weight_milli
        node = self._find(role)
        if node is not None:
            node.weight_milli = weight_milli
            self._place(node)

    def weight_milli(self, role: str) -> int:
        """A role's weight, in thousandths."""
        return self._weights.get(role, DEFAULT_WEIGHT_MILLI)

    def set_excluded(self, names: frozenset[str]) -> None:
        """Kinds that do not count (GPU-6, M-15)."""
        if names != self._excluded:
            self._excluded = names
            self._stale = True

    # --- order ---

    def order(self) -> Iterator[tuple[str, FrameworkId]]:
        """Every active (role, framework), the one to be served next first.

        Take from a fresh iterator after anything was charged.
        """
        if self._stale:
            self._counted = {kind: total for kind, total in self._total.items() if kind not in self._excluded}
            self._rebuild(self._root)
            self._stale = False
        return self._walk(self._root)

    def share_millionths(self, role: str) -> int:
        """A role's dominant share, weight not applied, in millionths."""
        node = self._find(role)
        if node is None:
            return 0
        return max(
            (amount * 1_000_000 // total for kind, amount in node.held.items() if (total := self._total_of(kind))),
            default=0,
        )

    def roles(self) -> list[str]:
        """Every role that has clients or is above one that has, sorted."""
        found: list[str] = []
        stack = [self._root]
        while stack:
            node = stack.pop()
            for child in node.children.values():
                if child.client is None and not child.path.endswith("/."):
                    found.append(child.path)
                    stack.append(child)
        return sorted(found)

    def held(self, role: str) -> Mapping[str, int]:
        """What the subtree of a role holds."""
        node = self._find(role)
        return {} if node is None else node.held

    def check(self) -> None:
        """Assert the invariants of the tree."""

        def visit(node: _Node) -> None:
            listed = [child for _, child in node.order]
            expected = [child for child in node.children.values() if child.active]
            assert sorted(map(id, listed)) == sorted(map(id, expected)), node.path
            assert node.order == sorted(node.order, key=lambda entry: entry[0]), node.path
            for key, child in node.order:
                assert key == child.key, child.path
            if node.client is None and node.parent is not None:
                assert node.children, node.path
            if node.children:
                total: dict[str, int] = {}
                for child in node.children.values():
                    for kind, amount in child.held.items():
                        total[kind] = total.get(kind, 0) + amount
                assert total == node.held or node.parent is None, (node.path, total, node.held)
                assert node.parent is None or node.active == sum(c.active for c in node.children.values()), node.path
            for child in node.children.values():
                visit(child)

        visit(self._root)

    # --- inside ---

    def _total_of(self, kind: str) -> int:
        return 0 if kind in self._excluded else self._total.get(kind, 0)

    def _share(self, node: _Node) -> int:
        counted = self._counted
        shares = [amount * SCALE // counted[kind] for kind, amount in node.held.items() if kind in counted]
        # Divided by the weight once, at the end: the same integer.
        return max(shares) // node.weight_milli if shares else 0

    def _walk(self, node: _Node) -> Iterator[tuple[str, FrameworkId]]:
        # Most often there is one way only, down to the frameworks of a role.
        while len(node.order) == 1 and node.order[0][1].client is None:
            node = node.order[0][1]
        for _, child in node.order:
            if child.client is not None:
                yield child.client
            else:
                yield from self._walk(child)

    def _rebuild(self, node: _Node) -> None:
        for child in node.children.values():
            child.key = (self._share(child), child.count, child.path)
            self._rebuild(child)
        node.order = sorted(
            ((child.key, child) for child in node.children.values() if child.active), key=lambda e: e[0]
        )

    def _place(self, node: _Node) -> None:
        """Put a node where its key belongs."""
        if self._stale or node.parent is None:
            self._stale = True
            return
        if node.active:
            self._unlist(node)
        node.key = (self._share(node), node.count, node.path)
        if node.active:
            _list(node)

    def _unlist(self, node: _Node) -> None:
        assert node.parent is not None
        order = node.parent.order
        index = _index(node)
        if index < len(order) and order[index][1] is node:
            del order[index]
        else:
            # Keys are out of date until the next rebuild.
            node.parent.order = [entry for entry in order if entry[1] is not node]

    def _change(
        self,
        client: _Node,
        change: Callable[[dict[str, int], Mapping[str, int]], None],
        amounts: Mapping[str, int],
        times_given: int,
    ) -> None:
        node: _Node | None = client
        while node is not None and node.parent is not None:
            change(node.held, amounts)
            node.count += times_given
            if len(node.parent.children) > 1 and not self._stale:
                self._place(node)
            node = node.parent

    def _client(self, role: str, framework_id: FrameworkId) -> _Node:
        node = self._clients.get((role, framework_id))
        if node is None:
            leaf = self._leaf(role)
            node = _Node(f"{leaf.path} {framework_id}", leaf, client=(role, framework_id))
            self._adopt(leaf, framework_id, node)
            self._clients[role, framework_id] = node
        return node

    def _leaf(self, role: str) -> _Node:
        """The virtual leaf that holds the frameworks of a role; alone among its siblings it is the role itself."""
        node = self._root
        path = ""
        for component in (*role.split("/"), "."):
            path = f"{path}/{component}" if path else component
            child = node.children.get(component)
            if child is None:
                child = _Node(path, node, DEFAULT_WEIGHT_MILLI if component == "." else self.weight_milli(path))
                self._adopt(node, component, child)
            node = child
        return node

    def _adopt(self, parent: _Node, name: str, child: _Node) -> None:
        child.key = (0, 0, child.path)
        if len(parent.children) == 1:
            # From now on it is compared with somebody.
            self._place(next(iter(parent.children.values())))
        parent.children[name] = child

    def _find(self, role: str) -> _Node | None:
        node: _Node | None = self._root
        for component in role.split("/"):
            node = None if node is None else node.children.get(component)
        return node

    def _drop_if_unused(self, client: tuple[str, FrameworkId]) -> None:
        """Forget a client that neither holds nor may get anything, and the roles that end with it."""
        node: _Node | None = self._clients.get(client)
        if node is None or node.active or node.held:
            return
        del self._clients[client]
        name: str = client[1]
        while node is not None and node.parent is not None and not node.children:
            parent = node.parent
            del parent.children[name]
            name = parent.path.rsplit("/", 1)[-1]
            node = parent


def _index(node: _Node) -> int:
    """Where a node is, or belongs, among its siblings."""
    assert node.parent is not None
    # A prefix of an entry sorts before it: nodes themselves are never compared, as no two keys are equal.
    return bisect_left(node.parent.order, (node.key,))


def _list(node: _Node) -> None:
    assert node.parent is not None
    node.parent.order.insert(_index(node), (node.key, node))


def _add(held: dict[str, int], amounts: Mapping[str, int]) -> None:
    for kind, amount in amounts.items():
        held[kind] = held.get(kind, 0) + amount


def _subtract(held: dict[str, int], amounts: Mapping[str, int]) -> None:
    for kind, amount in amounts.items():
        left = held[kind] - amount
        assert left >= 0, (kind, left)
        if left:
            held[kind] = left
        else:
            del held[kind]
