"""Who comes next while whole agents are handed out one after the other, with the sums left for the end.

The order is that of `Shares`, after every single agent. What makes it cheap: those who hold the same and are given the same hold the
same afterwards, so what a share comes to is worked out once for all of them; and what nodes hold is written down once, when the line
is closed, for nothing else is looked at until then.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from bursar.master.allocator.shares import SCALE, Amounts, Node, OrderEntry, Shares


class Standing:
    """What a node holds, and the share of the cluster that this is, its weight not applied."""

    __slots__ = ("after", "amounts", "share")

    def __init__(self, amounts: Amounts, counted: Amounts) -> None:
        self.amounts = amounts
        share = 0
        for kind, amount in amounts.items():
            if kind in counted:
                share = max(share, amount * SCALE // counted[kind])
        self.share = share
        #: What is given → the standing after it.
        self.after: dict[int, Standing] = {}


class Place:
    """A client in line; who asks for the line derives from it what else there is to know of one."""

    __slots__ = ("contests", "given", "node")

    def __init__(self, node: Node) -> None:
        self.node = node
        #: The nodes on the way up that have siblings, each with its parent.
        self.contests: list[tuple[Node, Node]] = []
        #: What it was given, by identity, and how often, since the line was opened.
        self.given: dict[int, int] = {}
        walk, parent = node, node.parent
        while parent is not None:
            if len(parent.children) > 1:
                self.contests.append((walk, parent))
            walk, parent = parent, parent.parent


P = TypeVar("P", bound=Place)


class Line(Generic[P]):
    """The order of service from here on. While anything was served, and until it is closed, `Shares` must not be asked anything.

    Totals, weights, and who is active stay as they are. What is given is reckoned against quotas when the line is closed.
    """

    def __init__(self, shares: Shares, place_of: Callable[[Node], P]) -> None:
        """`place_of` knows the place of a client's node, which stays the same one."""
        self._shares = shares
        self._place_of = place_of
        self._places: dict[Node, P] = {}
        #: From the level where the way down first forks; kept up to date by `serve`.
        self._top = shares.top()
        self._counted = shares.counted
        self._served: list[P] = []
        #: The standings of nodes that were served since it was opened; and all that were ever worked out, by what is held.
        self._now: dict[Node, Standing] = {}
        self._known: dict[frozenset[tuple[str, int]], Standing] = {}
        #: What was given, by identity, and so alive for as long as the line.
        self._gifts: dict[int, Amounts] = {}

    def first(self) -> P | None:
        """Who is to be served next; None where nobody may be given anything."""
        order = self._top
        if not order:
            return None
        node = order[0][3]
        while node.client is None:
            node = node.order[0][3]
        place = self._places.get(node)
        if place is None:
            place = self._places[node] = self._place_of(node)
        return place

    @property
    def top(self) -> list[OrderEntry]:
        """Those among whom the way down first forks, in order; until anybody is served."""
        return self._top

    def serve(self, place: P, amounts: Amounts) -> None:
        """Somebody was given something. Amounts that are alike are best told as one object."""
        if not amounts:
            # Ports are in no share.
            return
        gift, given = id(amounts), place.given
        if gift in given:
            given[gift] += 1
        else:
            if not given:
                self._served.append(place)
            given[gift] = 1
            self._gifts[gift] = amounts
        now = self._now
        for node, parent in place.contests:
            standing = now.get(node) or self._standing(node.held)
            now[node] = standing = standing.after.get(gift) or self._after(standing, amounts)
            order, before = parent.order, node.entry
            node.count = count = node.count + 1
            node.entry = entry = (standing.share // node.weight_milli, count, node.path, node)
            # Mostly it was the first on every level, and whoever was given something goes to the end.
            del order[0 if order[0] is before else bisect_left(order, before)]
            if order and order[-1] > entry:
                insort(order, entry)
            else:
                order.append(entry)

    def close(self) -> Mapping[str, int]:
        """Write down what was given: the shares are as if each had been charged. Return all of it, kind by kind."""
        often: dict[int, int] = {}
        for place in self._served:
            contested = {node for node, _ in place.contests}
            for gift, times in place.given.items():
                self._shares.add_up(place.node, self._gifts[gift], times, contested)
                often[gift] = often.get(gift, 0) + times
            place.given.clear()
        self._served.clear()
        self._now.clear()
        total: dict[str, int] = {}
        for gift, times in often.items():
            for kind, amount in self._gifts[gift].items():
                total[kind] = total.get(kind, 0) + amount * times
        return total

    def _standing(self, amounts: Amounts) -> Standing:
        key = frozenset(amounts.items())
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = Standing(dict(amounts), self._counted)
        return known

    def _after(self, standing: Standing, amounts: Amounts) -> Standing:
        held = dict(standing.amounts)
        for kind, amount in amounts.items():
            held[kind] = held.get(kind, 0) + amount
        after = standing.after[id(amounts)] = self._standing(held)
        return after
