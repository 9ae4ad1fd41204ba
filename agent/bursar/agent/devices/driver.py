"""The hooks of a device driver: discovery, decoration of a container, and health. A driver may have the first alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from bursar.agent.containers.runtime import Decoration
from bursar.agent.devices.cutting import CardLayout, Step
from bursar.agent.devices.health import DeviceSignal, Remedy
from bursar.agent.devices.users import DeviceUser
from bursar.core.devices import Device
from bursar.core.ids import DeviceUuid

#: Begins the `health_reason` of devices of which a driver cannot say how they are: not offered, and no fault of theirs.
UNKNOWN = "unknown: "


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


@runtime_checkable
class HealthWatcher(Protocol):
    """A driver that speaks of its devices' health of its own accord. Called from worker threads."""

    def watch(self, timeout_s: float) -> tuple[DeviceSignal, ...] | None:
        """Wait until the driver has something to say, at most so long; None: nothing. Empty: look at the devices again."""

    def remedies(self) -> Mapping[DeviceUuid, Remedy]:
        """What must be done to devices, as of the last discovery; only those of which the driver says so or says nothing is due."""

    def probe(self, uuid: DeviceUuid) -> str:
        """Find out whether a device works, with nothing running on it; what is wrong, or nothing."""


def health_watchers(driver: DeviceDriver) -> Iterator[HealthWatcher]:
    """The driver, or those that it stands for (`inner`), as far as they watch their devices."""
    for inner in getattr(driver, "inner", ()):
        yield from health_watchers(inner)
    if isinstance(driver, HealthWatcher):
        yield driver


@runtime_checkable
class UserTeller(Protocol):
    """A driver that knows which processes use its devices (F49-14). Called from worker threads."""

    def users(self, uuids: Collection[DeviceUuid]) -> Mapping[DeviceUuid, tuple[DeviceUser, ...]]:
        """Who uses each of these; devices of which it cannot say are left out. Processes by the numbers of the machine."""


def user_tellers(driver: DeviceDriver) -> Iterator[UserTeller]:
    """The driver, or those that it stands for (`inner`), as far as they know who uses their devices."""
    for inner in getattr(driver, "inner", ()):
        yield from user_tellers(inner)
    if isinstance(driver, UserTeller):
        yield driver


@runtime_checkable
class CardCutter(Protocol):
    """A driver that can cut its cards into instances (MIG). Called from worker threads, for cards that nothing runs on."""

    def layout_of(self, card: DeviceUuid) -> CardLayout:
        """What a card has, and could have. Raises CannotCut."""

    def cut(self, card: DeviceUuid, step: Step) -> None:
        """Do one step. Raises CannotCut with the driver's words."""


def card_cutters(driver: DeviceDriver) -> Iterator[CardCutter]:
    """The driver, or those that it stands for (`inner`), as far as they can cut cards."""
    for inner in getattr(driver, "inner", ()):
        yield from card_cutters(inner)
    if isinstance(driver, CardCutter):
        yield driver


@runtime_checkable
class DeviceMeter(Protocol):
    """A driver that knows what its devices do. Called from worker threads."""

    def measure(self) -> Mapping[DeviceUuid, Mapping[str, tuple[float, float | None]]]:
        """By device and name (`gpu_util` in percent, `mem` in bytes, `temperature` in °C, `power` in watts): the figure and what it can be
        at most. What a device does not tell is left out.
        """


def device_meters(driver: DeviceDriver) -> Iterator[DeviceMeter]:
    """The driver, or those that it stands for (`inner`), as far as they measure."""
    for inner in getattr(driver, "inner", ()):
        yield from device_meters(inner)
    if isinstance(driver, DeviceMeter):
        yield driver
