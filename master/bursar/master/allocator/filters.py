"""What a framework declined a moment ago (OFF-5).

A filter of (framework, role, agent) suppresses an offer iff what was refused contains what would be offered, so a larger or
different offer still goes out. It lives `max(allocation interval, refuse_ms)`, which also is the damping of design.md §7.
"""

from __future__ import annotations

from collections.abc import Collection

from bursar.core.clock import Deadlines
from bursar.core.ids import AgentId, FrameworkId
from bursar.core.resources import Holding, holding_contains

FilterKey = tuple[FrameworkId, str, AgentId]


class RefuseFilters:
    """All filters; soft state, lost with the master."""

    def __init__(self) -> None:
        self._filters: dict[FilterKey, list[tuple[int, Holding]]] = {}
        self._by_framework: dict[FrameworkId, set[FilterKey]] = {}
        self.deadlines: Deadlines[FilterKey] = Deadlines()
        #: For frameworks that left offers unanswered: in how many rounds in a row, and when the last one began.
        self._unanswered: dict[FrameworkId, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._filters)

    def add(self, key: FilterKey, refused: Holding, until_ms: int) -> None:
        """Suppress what `refused` contains until then."""
        if not refused:
            return
        kept = [
            entry
            for entry in self._filters.get(key, ())
            if entry[0] > until_ms or not holding_contains(refused, entry[1])
        ]
        kept.append((until_ms, refused))
        self._filters[key] = kept
        self._by_framework.setdefault(key[0], set()).add(key)
        self.deadlines.set(key, min(at for at, _ in kept))

    def blocks(self, key: FilterKey, offered: Holding) -> bool:
        """Whether an offer is suppressed."""
        entries = self._filters.get(key)
        return entries is not None and any(holding_contains(refused, offered) for _, refused in entries)

    def left_unanswered(self, framework_id: FrameworkId, made_ms: int, now_ms: int) -> int:
        """Note that an offer was left unanswered; return in how many rounds in a row, from 1. Offers that were out together
        are one round.
        """
        rounds, since_ms = self._unanswered.get(framework_id, (0, made_ms))
        if made_ms >= since_ms:
            rounds, since_ms = rounds + 1, now_ms
            self._unanswered[framework_id] = (rounds, since_ms)
        return rounds

    def answered(self, framework_id: FrameworkId) -> None:
        """The framework is awake."""
        self._unanswered.pop(framework_id, None)

    def expire(self, now_ms: int) -> set[AgentId]:
        """Drop what has expired; return the agents that may be offered again."""
        agents = set()
        for key in self.deadlines.pop_due(now_ms):
            rest = [entry for entry in self._filters[key] if entry[0] > now_ms]
            if rest:
                self._filters[key] = rest
                self.deadlines.set(key, min(at for at, _ in rest))
            else:
                self._forget(key)
            agents.add(key[2])
        return agents

    def agents_of(self, framework_id: FrameworkId) -> set[AgentId]:
        """The agents of which a framework declined something."""
        return {key[2] for key in self._by_framework.get(framework_id, ())}

    def drop_framework(self, framework_id: FrameworkId, roles: Collection[str] | None = None) -> None:
        """Forget a framework's filters, of some roles or of all (revive, disconnection)."""
        self._unanswered.pop(framework_id, None)
        for key in list(self._by_framework.get(framework_id, ())):
            if roles is None or key[1] in roles:
                self._forget(key)
        if roles is None:
            self._unanswered.pop(framework_id, None)

    def drop_agent(self, agent_id: AgentId) -> None:
        """Forget what was declined of an agent: it has changed."""
        for key in [key for key in self._filters if key[2] == agent_id]:
            self._forget(key)

    def _forget(self, key: FilterKey) -> None:
        del self._filters[key]
        self.deadlines.cancel(key)
        keys = self._by_framework[key[0]]
        keys.discard(key)
        if not keys:
            del self._by_framework[key[0]]
