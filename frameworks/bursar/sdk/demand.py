"""What a framework wants, as it was stated last: shapes, counts, and a version that says which word is newer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from bursar.core.messages.offers import Demand, Shape
from bursar.core.resources import ResourceRequest


class StatedDemand:
    """The newest statement, and what was launched since: the master subtracts that by itself."""

    def __init__(self) -> None:
        self.demand = Demand()
        self._launched: Counter[tuple[str, ResourceRequest]] = Counter()

    @property
    def is_used(self) -> bool:
        """Whether anything was launched since: the same words mean *more* now, and must be said again."""
        return bool(self._launched)

    def begin(self, shapes: tuple[Shape, ...]) -> None:
        """The first statement of a life."""
        self.demand = Demand(1, shapes)

    def state(self, shapes: tuple[Shape, ...]) -> set[str]:
        """Make it the demand; return the roles in which more is wanted than is left of the one before, if one was stated."""
        before = {(shape.role, shape.resources): shape.count for shape in self.demand.shapes}
        for key, count in self._launched.items():
            before[key] = before.get(key, 0) - count
        self._launched.clear()
        more = {shape.role for shape in shapes if shape.count > before.get((shape.role, shape.resources), 0)}
        stated = self.demand.version > 0
        self.demand = Demand(self.demand.version + 1, shapes)
        return more if stated else set()

    def renew(self) -> None:
        """The same with a greater version than anything that was said; what was never stated stays so."""
        if self.demand.version:
            self.demand = Demand(self.demand.version + 1, self.demand.shapes)

    def note_launched(self, role: str, requests: Iterable[ResourceRequest]) -> None:
        """Such tasks were launched in a role."""
        if self.demand.version:
            self._launched.update((role, request) for request in requests)

    def within(self, roles: Collection[str]) -> Demand:
        """The demand without what is wanted in roles that the master does not know yet, or no more."""
        return Demand(self.demand.version, tuple(shape for shape in self.demand.shapes if shape.role in roles))
