"""The two hooks of a device driver: discovery, and decoration of a container. A driver may have the first alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from bursar.agent.containers.runtime import Decoration
from bursar.core.devices import Device


class DriverUnavailable(Exception):
    """There is nothing for this driver on this machine; the message says why. Not an error: such an agent has no GPUs."""


class DeviceDriver(Protocol):
    """Finds devices. Called from a worker thread: may block.

    Devices come with their whole names (`core/device_names`): a driver whose own ids mean nothing elsewhere makes them with
    `names.on_this_machine`.
    """

    #: `nvml`, `simulated`, `none`, ….
    name: str

    def discover(self) -> tuple[Device, ...]:
        """Every device there is now, ordered by index; health included. Raises DriverUnavailable."""

    def close(self) -> None:
        """Let go of the library."""


@runtime_checkable
class ContainerDecorator(Protocol):
    """Says how a container gets granted devices; never sees an engine's own objects (F108-04)."""

    def decorate(self, granted: Sequence[Device], runtime: str) -> Decoration:
        """What to add to a container of `runtime` (`docker`, `process`) that was granted these devices, none included.

        Raises LaunchFailed where the driver cannot say. Called from a worker thread if the driver has `may_block`.
        """
