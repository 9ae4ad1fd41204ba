"""Time as the machines see it: an argument, never read."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Generic, NamedTuple, TypeVar


class Instant(NamedTuple):
    """When an event is handled."""

    #: Milliseconds of a clock that never jumps; all time-outs are measured on it.
    monotonic_ms: int
    #: Milliseconds since 1970; only for what people read and for deadlines that are persisted.
    wall_ms: int


K = TypeVar("K")


class Deadlines(Generic[K]):
    """Keyed deadlines on the monotonic clock, cheap to move.

    Invariant: `_due[key]` is the one valid deadline of `key`; heap entries that differ from it are stale.
    """

    def __init__(self) -> None:
        self._due: dict[K, int] = {}
        self._heap: list[tuple[int, int, K]] = []
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, key: K) -> bool:
        return key in self._due

    def set(self, key: K, at_ms: int) -> None:
        """Set or move the deadline of `key`."""
        if self._due.get(key) == at_ms:
            return
        self._due[key] = at_ms
        self._sequence += 1
        heappush(self._heap, (at_ms, self._sequence, key))
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._due):
            self._heap = [entry for entry in self._heap if self._due.get(entry[2]) == entry[0]]
            heapify(self._heap)

    def cancel(self, key: K) -> None:
        """Forget the deadline of `key`, if there is one."""
        self._due.pop(key, None)

    def next_ms(self) -> int | None:
        """Return the earliest deadline, or None where there is none."""
        heap = self._heap
        while heap and self._due.get(heap[0][2]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None

    def pop_due(self, now_ms: int) -> list[K]:
        """Remove and return the keys whose time has come, earliest first."""
        due: list[K] = []
        while True:
            at = self.next_ms()
            if at is None or at > now_ms:
                return due
            key = heappop(self._heap)[2]
            del self._due[key]
            due.append(key)

    def shift(self, by_ms: int) -> None:
        """Move every deadline: the process stalled, so its peers had no chance to be heard."""
        self._due = {key: at + by_ms for key, at in self._due.items()}
        self._heap = [(at, index, key) for index, (key, at) in enumerate(self._due.items())]
        self._sequence = len(self._heap)
        heapify(self._heap)
