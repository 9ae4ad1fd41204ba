"""The health of one device: healthy → suspect → cordoned → recovering → healthy, with relapses counted, retired at last.

Pure: `step` is handed what happened, when, and whether a container holds the device; it returns the record that is true from then
on. What must be remembered over the agent's death is in the record, so its times are wall time.

* A driver's warning makes a device **suspect**: nobody new gets it, its task goes on. After a quiet while it is healthy again; with
  more warnings it is cordoned.
* A fault makes it **cordoned**. It stays so for a cool-down (doubled with each relapse), while a container holds it, while its driver
  complains, and while a reset, a reboot or a replacement is due.
* Then it is **recovering**: a probe decides. It is healthy again, or cordoned anew.
* A fault soon after an earlier one is a **relapse**; too many, or a fault that needs another card, and it is **retired** until an
  operator says otherwise.

An operator's order lies on top and leaves all that alone: a device that was cordoned by order is as it was once the order is lifted. Lifting
one also pardons: relapses and needs are forgotten, and a cordoned or retired device is probed at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import assert_never

from bursar.core.devices import Device, DeviceCondition, DeviceHealth
from bursar.core.ids import DeviceUuid


class Severity(IntEnum):
    """What a signal says of the device."""

    #: The program's own fault: the device is well.
    NOTED = 0
    #: Once is nothing; again and again it is a fault.
    SUSPICIOUS = 1
    #: Not to be used until something was done.
    FATAL = 2


class Remedy(IntEnum):
    """What must be done to a device before it can be probed; worse ones are greater."""

    NONE = 0
    #: Of the card, with nothing running on it.
    RESET = 1
    REBOOT = 2
    REPLACE = 3


#: Begins the reason of what an operator ordered.
_BY_ORDER = "by an operator: "

#: For people: what is to be done.
REMEDY_TEXTS = {
    Remedy.NONE: "",
    Remedy.RESET: "reset the GPU",
    Remedy.REBOOT: "start the machine anew",
    Remedy.REPLACE: "replace the card",
}


@dataclass(frozen=True, slots=True)
class DeviceSignal:
    """Something that a driver said of a device, of its own accord."""

    uuid: DeviceUuid
    severity: Severity
    #: For people, such as `XID 79: GPU has fallen off the bus`.
    text: str
    remedy: Remedy = Remedy.NONE


@dataclass(frozen=True, slots=True)
class HealthRules:
    """How patient an agent is with its devices."""

    #: Without another warning, a suspect device is healthy after this.
    suspect_ms: int = 300_000
    #: So many warnings in that time are a fault.
    suspicions: int = 3
    #: From a fault to the first probe, doubled with each relapse up to the longest.
    cool_down_ms: int = 60_000
    longest_cool_down_ms: int = 3_600_000
    #: A fault within this time of the one before is a relapse; with so many relapses the device is retired.
    relapse_window_ms: int = 86_400_000
    relapses: int = 3


@dataclass(frozen=True, slots=True)
class HealthRecord:
    """One device as its agent remembers it. The default is that of a device that was never ill."""

    uuid: DeviceUuid
    condition: DeviceCondition = DeviceCondition.HEALTHY
    #: Why, for people; empty while healthy.
    reason: str = ""
    #: Wall time of the last change of `condition`.
    since_ms: int = 0
    #: Warnings since it became suspect.
    suspicions: int = 0
    relapses: int = 0
    #: Wall time of the last fault; 0: none that counts.
    failed_at_ms: int = 0
    remedy: Remedy = Remedy.NONE
    #: Of the machine at the last fault: another one has been reset with it.
    boot_id: str = ""
    #: What its driver says at every look; empty: nothing.
    complaint: str = ""
    #: Wall time before which nothing happens by itself; 0: nothing waits for it.
    due_ms: int = 0
    #: Why an operator took it out of service; empty: nobody did.
    order: str = ""
    #: When the newest order was given: older ones are not heard again.
    order_ms: int = 0

    @property
    def shown(self) -> DeviceCondition:
        """Its condition with the operator's order on top."""
        if self.order and self.condition is not DeviceCondition.RETIRED:
            return DeviceCondition.CORDONED
        return self.condition

    @property
    def shown_reason(self) -> str:
        """Why, for people; empty while healthy."""
        if self.order and self.condition is not DeviceCondition.RETIRED:
            return f"{_BY_ORDER}{self.order}"
        todo = REMEDY_TEXTS[self.remedy]
        return f"{self.reason}; {todo}" if todo and self.condition is not DeviceCondition.HEALTHY else self.reason

    @property
    def has_failed(self) -> bool:
        """Whether a fault, not an order or a suspicion, keeps it out of service."""
        return self.condition in (DeviceCondition.CORDONED, DeviceCondition.RECOVERING, DeviceCondition.RETIRED)

    def stamp(self, device: Device) -> Device:
        """The device as others are told: with its condition, and unhealthy unless that is HEALTHY."""
        healthy = self.shown is DeviceCondition.HEALTHY
        if healthy and device.condition is DeviceCondition.UNCONFIGURED:
            return replace(device, relapses=self.relapses)
        if healthy and device.health is DeviceHealth.UNHEALTHY:
            # Nobody can say how it is: not its own fault, and no reason to give it to anybody.
            return replace(device, condition=DeviceCondition.SUSPECT, relapses=self.relapses)
        return replace(
            device,
            health=DeviceHealth.HEALTHY if healthy else DeviceHealth.UNHEALTHY,
            health_reason=self.shown_reason,
            condition=self.shown,
            relapses=self.relapses,
        )


def is_lost(device: Device) -> bool:
    """Whether a device, as others are told of it, has failed: not only suspect or busy, nor out of service by an order."""
    if device.health is not DeviceHealth.UNHEALTHY:
        return False
    if device.condition in (DeviceCondition.SUSPECT, DeviceCondition.BUSY):
        return False
    return not device.health_reason.startswith(_BY_ORDER)


@dataclass(frozen=True, slots=True)
class Signalled:
    """The driver said something of its own accord."""

    signal: DeviceSignal


@dataclass(frozen=True, slots=True)
class Seen:
    """A look at the device found it like this."""

    #: What its driver complains of, or that it is not there; empty: nothing.
    complaint: str = ""
    #: What its driver says must be done; None where it never says such things.
    remedy: Remedy | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """The agent began a life, on a machine of this boot id."""

    boot_id: str


@dataclass(frozen=True, slots=True)
class Released:
    """The last container that held it is gone, or it is time to look whether something is due."""


@dataclass(frozen=True, slots=True)
class Probed:
    """The probe of a recovering device is over."""

    #: Empty: it works.
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Ordered:
    """An operator takes the device out of service, or lifts that."""

    cordoned: bool
    reason: str
    at_ms: int


HealthEvent = Signalled | Seen | Started | Released | Probed | Ordered


def step(
    record: HealthRecord, event: HealthEvent, now_ms: int, held: bool, boot_id: str, rules: HealthRules
) -> HealthRecord:
    """What is true of a device after an event; `now_ms` is wall time, `held` whether a container has it.

    Whoever sees the condition become RECOVERING has it probed, and answers with Probed.
    """
    context = _Context(now_ms, boot_id, rules)
    match event:
        case Signalled(signal):
            after = _signalled(record, signal, context)
        case Seen():
            after = _seen(record, event, context)
        case Started():
            after = _started(record, event)
        case Released():
            after = record
        case Probed(problem):
            after = _probed(record, problem, context)
        case Ordered():
            after = _ordered(record, event, now_ms)
        case _:
            assert_never(event)
    return _in_time(after, now_ms, held)


@dataclass(frozen=True, slots=True)
class _Context:
    now_ms: int
    boot_id: str
    rules: HealthRules


def _signalled(record: HealthRecord, signal: DeviceSignal, context: _Context) -> HealthRecord:
    if signal.severity is Severity.NOTED:
        return record
    if signal.severity is Severity.FATAL:
        return _fail(record, signal.text, signal.remedy, context)
    match record.condition:
        case DeviceCondition.HEALTHY:
            due_ms = context.now_ms + context.rules.suspect_ms
            suspect = replace(record, suspicions=1, due_ms=due_ms)
            return _become(suspect, DeviceCondition.SUSPECT, signal.text, context.now_ms)
        case DeviceCondition.SUSPECT if record.suspicions + 1 < context.rules.suspicions:
            return replace(
                record,
                suspicions=record.suspicions + 1,
                reason=signal.text,
                due_ms=context.now_ms + context.rules.suspect_ms,
            )
        case DeviceCondition.SUSPECT | DeviceCondition.RECOVERING:
            return _fail(record, signal.text, signal.remedy, context)
        case _:
            return record


def _seen(record: HealthRecord, event: Seen, context: _Context) -> HealthRecord:
    after = replace(record, complaint=event.complaint)
    remedy = record.remedy if event.remedy is None else event.remedy
    if after.has_failed and after.condition is not DeviceCondition.RECOVERING:
        # A card to be replaced stays one, whatever a driver that was started anew believes of it.
        after = replace(after, remedy=remedy if record.remedy is not Remedy.REPLACE else record.remedy)
        return replace(after, reason=event.complaint) if event.complaint and not record.complaint else after
    if event.complaint or (event.remedy is not None and event.remedy is not Remedy.NONE):
        return _fail(after, event.complaint or "its driver asks for it", remedy, context)
    return after


def _started(record: HealthRecord, event: Started) -> HealthRecord:
    """A machine that was started anew has reset its cards."""
    if record.boot_id == event.boot_id or record.remedy not in (Remedy.RESET, Remedy.REBOOT):
        return record
    return replace(record, remedy=Remedy.NONE, boot_id=event.boot_id)


def _probed(record: HealthRecord, problem: str, context: _Context) -> HealthRecord:
    if record.condition is not DeviceCondition.RECOVERING:
        return record
    if problem:
        return _fail(record, f"its probe failed: {problem}", Remedy.NONE, context)
    return _become(replace(record, suspicions=0, due_ms=0), DeviceCondition.HEALTHY, "", context.now_ms)


def _ordered(record: HealthRecord, event: Ordered, now_ms: int) -> HealthRecord:
    if event.at_ms <= record.order_ms:
        return record
    if event.cordoned:
        return replace(record, order=event.reason or "no reason was given", order_ms=event.at_ms)
    after = replace(record, order="", order_ms=event.at_ms)
    if record.condition is DeviceCondition.HEALTHY:
        return replace(after, relapses=0, failed_at_ms=0)
    after = replace(after, relapses=0, failed_at_ms=0, remedy=Remedy.NONE, suspicions=0, due_ms=now_ms)
    if record.condition is DeviceCondition.RETIRED:
        return _become(after, DeviceCondition.CORDONED, record.reason, now_ms)
    return after


def _fail(record: HealthRecord, reason: str, remedy: Remedy, context: _Context) -> HealthRecord:
    """A fault; one of a device that has failed already may make its needs greater, and begins its cool-down anew."""
    now_ms, rules = context.now_ms, context.rules
    again = record.condition in (DeviceCondition.CORDONED, DeviceCondition.RETIRED)
    recent = 0 < record.failed_at_ms and now_ms - record.failed_at_ms < rules.relapse_window_ms
    relapses = record.relapses if again else record.relapses + 1 if recent else 0
    worst = max(remedy, record.remedy) if again else remedy
    failed = replace(
        record, relapses=relapses, failed_at_ms=now_ms, remedy=worst, boot_id=context.boot_id, suspicions=0
    )
    if record.condition is DeviceCondition.RETIRED:
        return failed
    if worst is Remedy.REPLACE or relapses >= rules.relapses:
        text = reason if worst is Remedy.REPLACE else f"{reason} ({relapses} relapses)"
        return _become(replace(failed, due_ms=0), DeviceCondition.RETIRED, text, now_ms)
    cool_down_ms = min(rules.cool_down_ms << relapses, rules.longest_cool_down_ms)
    return _become(replace(failed, due_ms=now_ms + cool_down_ms), DeviceCondition.CORDONED, reason, now_ms)


def _become(record: HealthRecord, condition: DeviceCondition, reason: str, now_ms: int) -> HealthRecord:
    since_ms = record.since_ms if condition is record.condition else now_ms
    return replace(record, condition=condition, reason=reason, since_ms=since_ms)


def _in_time(record: HealthRecord, now_ms: int, held: bool) -> HealthRecord:
    """What happens by itself once it is time."""
    if now_ms < record.due_ms:
        return record
    if record.condition is DeviceCondition.SUSPECT:
        return _become(replace(record, suspicions=0, due_ms=0), DeviceCondition.HEALTHY, "", now_ms)
    waits = held or record.complaint or record.remedy is not Remedy.NONE
    if record.condition is DeviceCondition.CORDONED and not waits:
        return _become(replace(record, due_ms=0), DeviceCondition.RECOVERING, record.reason, now_ms)
    return record
