"""The data of persistent volumes on a simulated machine: it outlives the agent, and somebody may remove it by hand."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from bursar.agent.effects import KeepVolumes
from bursar.agent.events import VolumesKept
from bursar.core.ids import DeviceUuid


class SimulatedVolumes:
    """What is on the disk of one machine."""

    def __init__(self, random: Random, note: Callable[[str], None]) -> None:
        self._random = random
        self._note = note
        self.data: set[DeviceUuid] = set()
        #: What was there once and is not, by nobody's order.
        self.lost: set[DeviceUuid] = set()

    def carry_out(self, effect: KeepVolumes) -> VolumesKept:
        """Make and remove, and look."""
        self.data |= set(effect.make)
        self.data -= set(effect.remove)
        self.lost -= self.data
        return VolumesKept(effect.asked, tuple(sorted(self.data)))

    def lose_one(self) -> None:
        """Somebody removes the data of a volume."""
        if self.data:
            lost = self._random.choice(sorted(self.data))
            self._note(f"loses the data of {lost}")
            self.data.discard(lost)
            self.lost.add(lost)
