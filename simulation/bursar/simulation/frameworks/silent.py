"""A framework that hoards offers."""

from __future__ import annotations

from bursar.core.messages.offers import Offer
from bursar.simulation.frameworks.raw import RawFramework


class Silent(RawFramework):
    """Never answers an offer."""

    def on_offer(self, offer: Offer) -> None:
        """Hoard it."""
