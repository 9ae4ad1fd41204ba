"""A framework that comes and goes."""

from __future__ import annotations

from bursar.core.messages.framework import Teardown
from bursar.simulation.frameworks.greedy import Greedy
from bursar.simulation.network import CLIENT, Stream


class Flapping(Greedy):
    """Connects, takes, disconnects."""

    def on_subscribed(self) -> None:
        """Soon gone."""
        super().on_subscribed()
        self.world.timeline.after(self.random.randint(10, 30_000), self._flap, self.stream)

    def _flap(self, stream: Stream) -> None:
        if stream is not self.stream or self.world.calm:
            return
        if self.random.random() < 0.2:
            self.call(Teardown())
            return
        stream.close(CLIENT)
        self._forget_stream()
        self.world.timeline.after(self.random.randint(50, 5_000), self._connect, self._life)
