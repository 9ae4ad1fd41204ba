"""From whom rules hide agents, found once for a class of agents and remembered for a cycle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bursar.master.allocator.shares import Node, OrderEntry
from bursar.master.allocator.visibility import Cell


class Hidden:
    """From whom rules hide all agents of a class, as far as is known, and which rule it is.

    A role is hidden from as a whole where all its clients are that may be given anything: nobody looks at them one by one again.
    """

    __slots__ = ("_below", "_cells", "by_client")

    def __init__(self) -> None:
        self.by_client: dict[Node, Cell] = {}
        #: Role → how many clients below it; and which rules it is, so often each.
        self._below: dict[Node, int] = {}
        self._cells: dict[Node, dict[Cell, int]] = {}

    def add(self, client: Node, cell: Cell) -> None:
        """A rule was found to hide these agents from a client."""
        if client in self.by_client:
            return
        self.by_client[client] = cell
        node = client.parent
        while node is not None:
            self._below[node] = self._below.get(node, 0) + 1
            cells = self._cells.setdefault(node, {})
            cells[cell] = cells.get(cell, 0) + 1
            node = node.parent

    def others(self, order: Iterable[OrderEntry], passed: set[Node]) -> Iterator[Node]:
        """The clients at and below these nodes, in order, without roles that are hidden from as a whole: those are counted, once for
        the agent at hand, and noted.
        """
        for entry in order:
            node = entry[3]
            if node.client is not None:
                yield node
            elif self._below.get(node) != node.active:
                yield from self.others(node.order, passed)
            elif node not in passed:
                passed.add(node)
                for cell, times in self._cells[node].items():
                    cell.decisions += times

    def clients_in(self, roles: set[Node]) -> Iterator[Node]:
        """The clients in roles that were passed over."""
        for client in self.by_client:
            node = client.parent
            while node is not None and node not in roles:
                node = node.parent
            if node is not None:
                yield client
