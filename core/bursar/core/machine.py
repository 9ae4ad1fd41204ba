"""What every machine of Bursar looks like, and the few words that all of them share (design.md §2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from bursar.core.clock import Instant


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Event: a deadline of the machine has come. Given only after the inbox was read."""


@dataclass(frozen=True, slots=True)
class Stalled:
    """Event: the process was not running for a while; peers could not be heard, so their deadlines move."""

    by_ms: int


@dataclass(frozen=True, slots=True)
class Persist:
    """Effect: make a named record durable, before any message of the same batch leaves."""

    #: A frozen dataclass out of the program's own closed set of records.
    record: object


E_contra = TypeVar("E_contra", contravariant=True)
F_co = TypeVar("F_co", covariant=True)


class Machine(Protocol[E_contra, F_co]):
    """Pure and synchronous: events in, effects out; no clock, no randomness, no input or output."""

    def step(self, event: E_contra, now: Instant) -> Sequence[F_co]:
        """Handle one event. Never raises for a peer's mistake; AssertionError is a bug of ours and ends the process."""

    def next_deadline_ms(self) -> int | None:
        """Monotonic time at which `TimePassed` is due; None while nothing is awaited."""

    def check(self) -> None:
        """Assert every invariant; on in all tests and in the simulation."""
