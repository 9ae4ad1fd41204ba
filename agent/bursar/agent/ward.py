"""All devices of an agent under observation: each has a record of its health, and is shown to others as that says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bursar.agent.books import Books
from bursar.agent.devices.cut_record import CutRecord
from bursar.agent.devices.cutting import NO_INSTANCE
from bursar.agent.devices.driver import UNKNOWN
from bursar.agent.devices.health import (
    DeviceSignal,
    HealthEvent,
    HealthRecord,
    Ordered,
    Probed,
    Released,
    Remedy,
    Seen,
    Severity,
    Signalled,
    Started,
    step,
)
from bursar.agent.effects import ProbeDevice
from bursar.agent.events import DevicesDiscovered
from bursar.agent.reporting import Reporting
from bursar.agent.state import DeviceHealthForgotten, DeviceHealthSaved
from bursar.agent.tasks import Verdict
from bursar.core.device_names import parent_of
from bursar.core.devices import Device, DeviceCondition, DeviceHealth
from bursar.core.ids import DeviceUuid
from bursar.core.messages.agent import DeviceOrder
from bursar.core.tasks import StatusReason


@dataclass(frozen=True, slots=True)
class Change:
    """One record that is different now: to be made durable and, as its properties say, acted upon."""

    before: HealthRecord
    after: HealthRecord

    @property
    def wants_probe(self) -> bool:
        """Whether the device is to be probed now."""
        recovering = DeviceCondition.RECOVERING
        return self.after.condition is recovering and self.before.condition is not recovering

    @property
    def news(self) -> str:
        """For people, where the device is shown in another condition or for another reason; else empty."""
        if (self.before.shown, self.before.shown_reason) == (self.after.shown, self.after.shown_reason):
            return ""
        why = f": {self.after.shown_reason}" if self.after.shown_reason else ""
        return f"device {self.after.uuid} is {self.after.shown.name.lower()}{why}"

    @property
    def notice(self) -> tuple[StatusReason, str] | None:
        """What a task that holds the device is told; None: nothing."""
        before, after = self.before, self.after
        if after.has_failed and not before.has_failed:
            return StatusReason.DEVICE_FAILED, f"device {after.uuid} has failed: {after.reason}"
        if after.order and not before.order:
            return StatusReason.DEVICE_CORDONED, f"device {after.uuid} was taken out of service {after.shown_reason}"
        return None


class Ward:
    """The room of the devices: what happens to them, recorded first, then acted upon."""

    def __init__(self, books: Books, reporting: Reporting) -> None:
        self._books = books
        self._reporting = reporting
        #: Devices as their drivers describe them; the books have them as others are told.
        self._described = books.info.devices
        self._there: set[DeviceUuid] = set()
        #: Cards that were being cut at the last look.
        self._cutting: set[DeviceUuid] = set()
        #: Cards without instances that the log has named.
        self._unconfigured: set[DeviceUuid] = set()
        self._show()

    def check(self) -> None:
        """Assert what must hold."""
        books = self._books
        assert books.info.devices == self._stamped()
        for uuid in books.held:
            assert not books.recovered or self._record(uuid).condition is not DeviceCondition.RECOVERING, uuid

    def begin(self) -> None:
        """Take up where an earlier life of the agent ended; once, when it is known what runs."""
        for uuid in list(self._books.state.health):
            recovering = self._record(uuid).condition is DeviceCondition.RECOVERING
            self._happened(uuid, Started(self._books.info.boot_id))
            self._arm(uuid)
            if recovering:
                self._books.effects.append(ProbeDevice(uuid))
        self._look(self._described, {})

    def discovered(self, event: DevicesDiscovered) -> None:
        """Drivers looked at their devices."""
        books = self._books
        for uuid in sorted({device.uuid for device in event.devices} - books.devices.keys()):
            books.log("warning", f"device {uuid} is new", device=uuid)
        self._described = event.devices
        books.info = replace(books.info, resources=event.resources)
        if books.recovered:
            self._look(event.devices, event.remedies)

    def signalled(self, signals: Iterable[DeviceSignal]) -> None:
        """Drivers said something of their own accord."""
        for signal in signals:
            if signal.severity is Severity.NOTED:
                self._books.log("info", signal.text, device=signal.uuid)
            self._happened(signal.uuid, Signalled(signal))

    def ordered(self, orders: Iterable[DeviceOrder]) -> None:
        """All that operators ordered; what was carried out before is not carried out again."""
        for order in orders:
            if order.layout:
                continue
            self._happened(order.uuid, Ordered(order.cordoned, order.reason, order.ordered_at_ms))

    def probed(self, uuid: DeviceUuid, problem: str) -> None:
        """A probe is over."""
        self._happened(uuid, Probed(problem))

    def due(self, uuid: DeviceUuid) -> None:
        """It is time to look whether something happens by itself."""
        self._happened(uuid, Released())
        self._arm(uuid)

    def settle(self) -> None:
        """A step ends: what waited for a container may go on, and what is told of devices is as it should be."""
        for uuid, record in list(self._books.state.health.items()):
            if record.condition is DeviceCondition.CORDONED and not self._is_used(uuid):
                self._happened(uuid, Released())
        self._show()

    def _look(self, devices: Iterable[Device], remedies: Mapping[DeviceUuid, Remedy]) -> None:
        found = {device.uuid: device for device in devices}
        # Whose card was switched over to instances has it no more.
        unusable = {uuid for uuid, device in found.items() if device.condition is DeviceCondition.UNCONFIGURED}
        switched = {uuid: found.pop(uuid).health_reason for uuid in unusable & self._books.held.keys()}
        cutting = {record.card for record in self._books.state.cuts.values() if record.is_open}
        for uuid in sorted(self._there | self._books.state.health.keys()):
            # What was cut or joined is no more, and that is no illness.
            if uuid not in found and (parent_of(uuid) or uuid) in self._cutting | cutting:
                self._there.discard(uuid)
                if uuid in self._books.state.health:
                    self._books.persist(DeviceHealthForgotten(uuid))
                    self._books.deadlines.cancel(("device", uuid))
        self._cutting = cutting
        for uuid in sorted(unusable - cutting - self._unconfigured):
            self._books.log("warning", f"device {uuid} is unconfigured: {NO_INSTANCE}", device=uuid)
        self._unconfigured = unusable - cutting
        for uuid, device in found.items():
            if device.health_reason.startswith(UNKNOWN):
                continue
            # One without instances is well, and of no use.
            ill = device.health is DeviceHealth.UNHEALTHY and uuid not in unusable
            complaint = (device.health_reason or "its driver says that it is unhealthy") if ill else ""
            self._happened(uuid, Seen(complaint, remedies.get(uuid)))
        # What a task has was there, whether or not this life of the agent has seen it.
        known = (
            self._there
            | self._books.held.keys()
            | {uuid for uuid, record in self._books.state.health.items() if record.has_failed}
        )
        for uuid in sorted(known - found.keys()):
            why = f": {switched[uuid]}" if uuid in switched else ""
            self._happened(uuid, Seen(f"it is not there any more{why}"))
        self._there = set(found)

    def _happened(self, uuid: DeviceUuid, event: HealthEvent) -> None:
        books = self._books
        before = self._record(uuid)
        held = uuid in books.held
        after = step(before, event, books.now.wall_ms, self._is_used(uuid), books.info.boot_id, books.config.health)
        if after == before:
            return
        books.persist(DeviceHealthSaved(after))
        self._arm(uuid)
        change = Change(before, after)
        if change.news:
            books.log("warning", change.news, device=uuid)
        if change.wants_probe:
            books.effects.append(ProbeDevice(uuid))
        key = books.live.get(books.held[uuid]) if held else None
        if change.notice is not None and key is not None and books.state.tasks[key].kill is None:
            record = books.state.tasks[key]
            self._reporting.report(record, Verdict(record.state, *change.notice))

    def _is_used(self, uuid: DeviceUuid) -> bool:
        return uuid in self._books.held or uuid in self._books.busy

    def _record(self, uuid: DeviceUuid) -> HealthRecord:
        return self._books.state.health.get(uuid) or HealthRecord(uuid)

    def _arm(self, uuid: DeviceUuid) -> None:
        """Look again when something is due."""
        books = self._books
        left_ms = self._record(uuid).due_ms - books.now.wall_ms
        if left_ms > 0:
            books.deadlines.set(("device", uuid), books.now.monotonic_ms + left_ms)
        else:
            books.deadlines.cancel(("device", uuid))

    def _stamped(self) -> tuple[Device, ...]:
        """The devices as others are told; those that were never ill as their driver describes them."""
        health = self._books.state.health
        stamped = (health[one.uuid].stamp(one) if one.uuid in health else one for one in self._described)
        cuts = {record.card: record for record in self._books.state.cuts.values() if record.is_open}
        if not self._books.busy and not cuts:
            return tuple(stamped)
        return tuple(self._as_busy(one, cuts.get(parent_of(one.uuid) or one.uuid)) for one in stamped)

    def _as_busy(self, device: Device, cut: CutRecord | None) -> Device:
        """A device as well as it is, but used by somebody, or being cut; what is worse than that is told instead."""
        busy = self._books.busy.get(device.uuid)
        between_steps = cut is not None and device.condition is DeviceCondition.UNCONFIGURED
        if (busy is None and cut is None) or (device.health is DeviceHealth.UNHEALTHY and not between_steps):
            return device
        reason = f"its card is being cut: {cut.layout}" if cut is not None else busy.reason if busy is not None else ""
        return replace(device, health=DeviceHealth.UNHEALTHY, condition=DeviceCondition.BUSY, health_reason=reason)

    def _show(self) -> None:
        books = self._books
        devices = self._stamped()
        if devices != books.info.devices:
            books.info = replace(books.info, devices=devices)
            books.devices = {device.uuid: device for device in devices}
