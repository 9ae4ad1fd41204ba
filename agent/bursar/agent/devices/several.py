"""Several drivers as one: each fails by itself, and never takes the devices of the others with it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from bursar.agent.containers.runtime import Decoration, LaunchFailed
from bursar.agent.devices.driver import UNKNOWN, ContainerDecorator, DeviceDriver, DriverUnavailable
from bursar.core.devices import Device, DeviceCondition, DeviceHealth
from bursar.core.tasks import StatusReason

log = logging.getLogger(__name__)


class SeveralDevices:
    """The devices of several drivers, in the order in which the drivers were named."""

    def __init__(self, drivers: Sequence[DeviceDriver]) -> None:
        self.name = ",".join(driver.name for driver in drivers)
        self.may_block = any(getattr(driver, "may_block", False) for driver in drivers)
        self.inner = tuple(drivers)
        self._drivers = tuple(drivers)
        #: What each driver found when it last answered, to be shown as unknown while it does not.
        self._before: list[tuple[Device, ...]] = [() for _ in drivers]
        self._failing: list[str] = ["" for _ in drivers]

    def discover(self) -> tuple[Device, ...]:
        """Every device of every driver. One that a driver found before and cannot speak of now is unknown: shown, not offered.

        Raises DriverUnavailable where no driver ever found anything, with the words of each.
        """
        found: list[Device] = []
        for index, driver in enumerate(self._drivers):
            try:
                mine = driver.discover()
            except DriverUnavailable as error:
                if self._failing[index] != str(error):
                    log.warning("devices of %s: %s", driver.name, error)
                self._failing[index] = str(error)
                mine = tuple(unknown(device, str(error)) for device in self._before[index])
            else:
                self._failing[index] = ""
                self._before[index] = mine
            found += mine
        if not found and any(self._failing):
            raise DriverUnavailable("; ".join(filter(None, self._failing)))
        return _without_repeats(found)

    def decorate(self, granted: Sequence[Device], runtime: str) -> Decoration:
        """What all drivers say, each of its own devices; one that was granted none hides them. Raises LaunchFailed."""
        parts, given = [], []
        for index, driver in enumerate(self._drivers):
            if isinstance(driver, ContainerDecorator):
                known = {device.uuid for device in self._before[index]}
                mine = [device for device in granted if device.uuid in known]
                parts.append(driver.decorate(mine, runtime))
                if mine:
                    given.append((driver.name, parts[-1]))
        _refuse_two_vendors(given)
        return merge(parts)

    def keep_only(self, uuids: Sequence[str]) -> None:
        """Give back what this agent was told not to use."""
        for driver in self._drivers:
            if keep_only := getattr(driver, "keep_only", None):
                keep_only(uuids)

    def close(self) -> None:
        """Let go of all."""
        for driver in self._drivers:
            driver.close()


def _refuse_two_vendors(given: Sequence[tuple[str, Decoration]]) -> None:
    """Devices of two vendors whose libraries read one variable in two ways cannot be told to one program. Raises LaunchFailed."""
    for name, part in given:
        for other_name, other in given:
            said = {**other.environment, **other.pinning}
            for variable, value in part.pinning.items():
                theirs = said.get(variable, "")
                if other is not part and value not in ("", "void", theirs) and theirs not in ("", "void"):
                    raise LaunchFailed(
                        StatusReason.LAUNCH_FAILED,
                        f"a task cannot have devices of {name} and of {other_name}: both are chosen by {variable}, each in its own way;"
                        " ask for devices of one vendor in one task",
                    )


def unknown(device: Device, why: str) -> Device:
    """A device of which nobody can say how it is."""
    ill, condition = DeviceHealth.UNHEALTHY, DeviceCondition.UNSPECIFIED
    return dataclasses.replace(device, health=ill, condition=condition, health_reason=f"{UNKNOWN}{why}")


def merge(parts: Sequence[Decoration]) -> Decoration:
    """All of them together; what comes later wins where two name one variable, unless it hides what another one gives."""
    environment: dict[str, str] = {}
    pinning: dict[str, str] = {}
    for part in parts:
        for target, source in ((environment, part.environment), (pinning, part.pinning)):
            for name, value in source.items():
                if value not in ("", "void") or not target.get(name):
                    target[name] = value
    return Decoration(
        environment=environment,
        device_nodes=tuple(dict.fromkeys(node for part in parts for node in part.device_nodes)),
        mounts=tuple(dict.fromkeys(mount for part in parts for mount in part.mounts)),
        device_requests=tuple(uuid for part in parts for uuid in part.device_requests),
        pinning=pinning,
        fallback_nodes=tuple(dict.fromkeys(node for part in parts for node in part.fallback_nodes)),
        cdi=tuple(dict.fromkeys(name for part in parts for name in part.cdi)),
    )


def _without_repeats(found: Sequence[Device]) -> tuple[Device, ...]:
    """A device that two drivers find is the first one's."""
    seen: dict[str, Device] = {}
    for device in found:
        other = seen.setdefault(device.uuid, device)
        if other is not device:
            log.warning(
                "device %s is found by %s and by %s: the first one has it", device.uuid, other.driver, device.driver
            )
    return tuple(seen.values())
