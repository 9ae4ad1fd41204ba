"""Virtual time: one heap ordered by (time, sequence), nothing else ever moves the clock."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class Timeline:
    """What is going to happen, and when it is now, in milliseconds since the world began."""

    def __init__(self) -> None:
        self.now_ms = 0
        self._sequence = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def after(self, delay_ms: int, action: Callable[..., None], *arguments: Any) -> None:
        """Have something happen later; at equal times, in the order in which it was asked for."""
        assert delay_ms >= 0, delay_ms
        self._sequence += 1
        heappush(self._heap, (self.now_ms + delay_ms, self._sequence, action, arguments))

    def next_ms(self) -> int | None:
        """When something happens next."""
        return self._heap[0][0] if self._heap else None

    def advance(self) -> None:
        """Let the next thing happen."""
        self.now_ms, _, action, arguments = heappop(self._heap)
        action(*arguments)
