"""The driver of an agent that shall have no devices, whatever the machine has."""

from __future__ import annotations

from collections.abc import Sequence

from bursar.agent.containers.runtime import Decoration
from bursar.agent.pinning import visible_devices
from bursar.core.devices import Device


class NoDevices:
    """Finds nothing, and hides what there is."""

    name = "none"

    def discover(self) -> tuple[Device, ...]:
        """No device."""
        return ()

    def decorate(self, granted: Sequence[Device], runtime: str) -> Decoration:
        """Hide every device of the machine."""
        return Decoration(environment=visible_devices([device.uuid for device in granted]))

    def close(self) -> None:
        """Nothing to let go of."""
