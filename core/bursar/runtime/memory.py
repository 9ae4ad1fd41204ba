"""The garbage collector, for a program that keeps many small objects and makes few cycles."""

from __future__ import annotations

import gc

#: New containers between two looks at the youngest: an allocation cycle makes ten for every offer.
YOUNG_OBJECTS = 50_000


def calm_garbage_collector() -> None:
    """Look for cycles more rarely, and never again through what is there now (modules, code, flags).

    Called once, when a daemon is ready. Memory is freed by reference counts as before; the default of 700 has the collector walk
    through the state of a large cluster again and again, at a third of the price of a cycle of the allocator.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 20)
