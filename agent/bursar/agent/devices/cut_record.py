"""What an agent remembers of the cutting of one card."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from bursar.agent.devices.cutting import Goal, Step
from bursar.core.ids import DeviceUuid


class CutPhase(IntEnum):
    """How far it is."""

    ORDERED = 0
    CUTTING = 1
    #: A step failed: what was there before is to be there again.
    UNDOING = 2
    #: The card is as it will be; the devices are looked at.
    VERIFYING = 3
    DONE = 4


@dataclass(frozen=True, slots=True)
class CutRecord:
    """The newest order about one card, and how far it is; durable as a whole."""

    card: DeviceUuid
    #: Names the order: a later one is another.
    ordered_at_ms: int
    layout: str
    phase: CutPhase = CutPhase.ORDERED
    #: What the card should have, until a look at the devices has shown that it has; None where nothing was reached.
    goal: Goal | None = None
    #: What was there when it began.
    before: Goal | None = None
    #: The step that was asked for last, before it was asked for.
    doing: Step | None = None
    #: Why it failed; empty: it did not.
    problem: str = ""
    #: What the card had when it was looked at last, for people.
    now: str = ""

    @property
    def is_open(self) -> bool:
        """Whether nothing of the card may be given to anybody."""
        return self.phase is not CutPhase.DONE
