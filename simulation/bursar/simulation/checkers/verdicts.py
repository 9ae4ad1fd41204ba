"""What a judge is, and what it says."""

from __future__ import annotations

from collections import Counter


class Violation(AssertionError):
    """A rule of the cluster was broken."""


def require(holds: bool, message: str) -> None:
    """Raise Violation unless a rule holds."""
    if not holds:
        raise Violation(message)


class Judge:
    """Who looks at one side of the cluster. Counts how often each rule was looked at: a judge that never sat proves nothing."""

    def __init__(self, verdicts: Counter[str]) -> None:
        self._verdicts = verdicts

    def _judged(self, rule: str) -> None:
        self._verdicts[rule] += 1
