"""What was lost from one of the views is repaired, in due time (B-18)."""

from __future__ import annotations

from bursar.core.books import COMPARE_INTERVAL_MS
from bursar.simulation.checkers.verdicts import Judge, require

#: Two digests, and a moment for what they lead to.
DUE_MS = 2 * COMPARE_INTERVAL_MS + 5_000


class RepairJudge(Judge):
    """Sits when a repair is due."""

    def repair_is_due(self, what: str, repaired: bool) -> None:
        """Nothing has disturbed master and agent since the loss, or since they met again."""
        self._judged("what is lost from a view is repaired within two periods")
        require(repaired, f"{what}, and it is not repaired after {DUE_MS} ms")
