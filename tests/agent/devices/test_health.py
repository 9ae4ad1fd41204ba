"""The illness of one device, from its first warning to its return or its retirement."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bursar.agent.devices.health import (
    DeviceSignal,
    HealthEvent,
    HealthRecord,
    HealthRules,
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
from bursar.core.devices import Device, DeviceCondition, DeviceHealth
from bursar.core.ids import DeviceUuid

C = DeviceCondition
UUID = DeviceUuid("GPU-1")
RULES = HealthRules(
    suspect_ms=1_000,
    suspicions=3,
    cool_down_ms=100,
    longest_cool_down_ms=350,
    relapse_window_ms=10_000,
    relapses=3,
)


def signal(severity: Severity, remedy: Remedy = Remedy.NONE, text: str = "XID 1: something") -> Signalled:
    return Signalled(DeviceSignal(UUID, severity, text, remedy))


FATAL, WARNING = signal(Severity.FATAL), signal(Severity.SUSPICIOUS)


class Patient:
    """A record, a clock, and a container that may hold the device."""

    def __init__(self) -> None:
        self.record = HealthRecord(UUID)
        self.now_ms = 1_000_000
        self.held = False
        self.boot_id = "boot-1"

    def tell(self, event: HealthEvent) -> DeviceCondition:
        self.record = step(self.record, event, self.now_ms, self.held, self.boot_id, RULES)
        return self.record.shown

    def wait(self, ms: int) -> DeviceCondition:
        self.now_ms += ms
        return self.tell(Released())


def test_a_fault_cools_down_is_probed_and_is_healthy_again() -> None:
    patient = Patient()
    assert patient.tell(FATAL) is C.CORDONED
    assert patient.record.shown_reason == "XID 1: something"
    assert patient.wait(99) is C.CORDONED
    assert patient.wait(1) is C.RECOVERING
    assert patient.tell(Probed()) is C.HEALTHY
    assert (patient.record.shown_reason, patient.record.relapses) == ("", 0)


def test_warnings_make_it_suspect_and_are_forgiven_or_become_a_fault() -> None:
    patient = Patient()
    assert patient.tell(WARNING) is C.SUSPECT
    assert patient.wait(999) is C.SUSPECT
    assert patient.tell(WARNING) is C.SUSPECT, "and the quiet begins anew"
    assert patient.wait(999) is C.SUSPECT
    assert patient.wait(1) is C.HEALTHY
    assert [patient.tell(WARNING) for _ in range(3)] == [C.SUSPECT, C.SUSPECT, C.CORDONED]


def test_a_programs_own_mistakes_are_no_illness() -> None:
    patient = Patient()
    for _ in range(100):
        assert patient.tell(signal(Severity.NOTED)) is C.HEALTHY
    assert patient.record == HealthRecord(UUID)


def test_it_is_not_probed_while_a_container_holds_it() -> None:
    patient = Patient()
    patient.held = True
    patient.tell(FATAL)
    assert patient.wait(100_000) is C.CORDONED
    patient.held = False
    assert patient.tell(Released()) is C.RECOVERING


def test_it_is_not_probed_while_its_driver_complains_or_it_is_not_there() -> None:
    patient = Patient()
    assert patient.tell(Seen("GPU is lost")) is C.CORDONED
    assert patient.wait(1_000) is C.CORDONED
    assert patient.tell(Seen("it is not there any more")) is C.CORDONED
    assert patient.tell(Seen()) is C.RECOVERING


def test_a_reset_is_waited_for_until_the_driver_or_a_reboot_says_that_it_was_done() -> None:
    for remedied in ("driver", "reboot"):
        patient = Patient()
        patient.tell(signal(Severity.FATAL, Remedy.RESET))
        assert patient.record.shown_reason == "XID 1: something; reset the GPU"
        assert patient.wait(1_000) is C.CORDONED
        assert patient.tell(Seen()) is C.CORDONED, "a driver that never speaks of resets says nothing by its silence"
        assert patient.tell(Started("boot-1")) is C.CORDONED, "only the agent was started anew"
        assert patient.tell(Seen() if remedied != "driver" else Seen(remedy=Remedy.RESET)) is C.CORDONED
        event: HealthEvent = Seen(remedy=Remedy.NONE) if remedied == "driver" else Started("boot-2")
        assert patient.tell(event) is C.RECOVERING, remedied


def test_the_recovery_action_alone_is_a_fault_too() -> None:
    patient = Patient()
    assert patient.tell(Seen(remedy=Remedy.RESET)) is C.CORDONED
    assert "reset the GPU" in patient.record.shown_reason


def test_relapses_take_longer_and_end_in_retirement_and_an_operator_ends_that() -> None:
    patient = Patient()
    for relapse, cool_down_ms in enumerate((100, 200, 350)):
        assert patient.tell(FATAL) is C.CORDONED
        assert patient.record.relapses == relapse
        assert patient.wait(cool_down_ms - 1) is C.CORDONED
        assert patient.wait(1) is C.RECOVERING
        assert patient.tell(Probed()) is C.HEALTHY
    assert patient.tell(FATAL) is C.RETIRED
    assert patient.record.shown_reason == "XID 1: something (3 relapses)"
    assert patient.wait(10**9) is C.RETIRED
    assert patient.tell(Seen(remedy=Remedy.NONE)) is C.RETIRED
    assert patient.tell(Ordered(False, "", patient.now_ms)) is C.RECOVERING
    assert patient.tell(Probed()) is C.HEALTHY
    assert patient.record.relapses == 0


def test_a_fault_long_after_the_last_is_no_relapse() -> None:
    patient = Patient()
    for _ in range(10):
        patient.tell(FATAL)
        patient.wait(100)
        assert patient.tell(Probed()) is C.HEALTHY
        patient.wait(10_000)
    assert patient.record.relapses == 0


def test_a_failed_probe_is_a_relapse() -> None:
    patient = Patient()
    patient.tell(FATAL)
    patient.wait(100)
    assert patient.tell(Probed("no memory")) is C.CORDONED
    assert (patient.record.relapses, patient.record.reason) == (1, "its probe failed: no memory")


def test_one_illness_that_says_much_is_one_fault_with_the_greatest_need() -> None:
    patient = Patient()
    patient.tell(signal(Severity.FATAL, Remedy.RESET))
    for remedy in (Remedy.NONE, Remedy.REBOOT, Remedy.RESET):
        assert patient.tell(signal(Severity.FATAL, remedy)) is C.CORDONED
    assert (patient.record.relapses, patient.record.remedy) == (0, Remedy.REBOOT)


def test_a_card_to_be_replaced_is_retired_at_once_and_stays_so_over_a_reboot() -> None:
    patient = Patient()
    assert patient.tell(signal(Severity.FATAL, Remedy.REPLACE)) is C.RETIRED
    assert patient.tell(Started("boot-2")) is C.RETIRED
    assert patient.tell(Seen(remedy=Remedy.NONE)) is C.RETIRED
    assert patient.record.shown_reason.endswith("; replace the card")


def test_an_order_lies_on_top_and_leaves_the_rest_alone() -> None:
    patient = Patient()
    assert patient.tell(Ordered(True, "maintenance", 5)) is C.CORDONED
    assert patient.record.shown_reason == "by an operator: maintenance"
    assert patient.wait(10**9) is C.CORDONED, "no time brings it back"
    patient.held = True
    assert patient.tell(Ordered(False, "", 6)) is C.HEALTHY, "it was well beneath: no probe, also while a task has it"
    assert patient.tell(Ordered(True, "late, and sent again", 5)) is C.HEALTHY, "older orders are not heard again"


def test_lifting_an_order_pardons_a_fault() -> None:
    patient = Patient()
    patient.tell(signal(Severity.FATAL, Remedy.RESET))
    assert patient.tell(Ordered(True, "being reset", 5)) is C.CORDONED
    assert patient.tell(Ordered(False, "", 6)) is C.RECOVERING, "the operator says that it was done"


def test_a_record_is_shown_as_a_device() -> None:
    patient = Patient()
    device = Device(UUID, "gpus")
    patient.tell(FATAL)
    ill = patient.record.stamp(device)
    assert (ill.health, ill.health_reason, ill.condition) == (DeviceHealth.UNHEALTHY, "XID 1: something", C.CORDONED)
    patient.tell(Ordered(False, "", 1))
    patient.tell(Probed())
    well = patient.record.stamp(device)
    assert (well.health, well.health_reason, well.condition) == (DeviceHealth.HEALTHY, "", C.HEALTHY)


EVENTS = st.one_of(
    st.builds(signal, st.sampled_from(Severity), st.sampled_from(Remedy)),
    st.builds(Seen, st.sampled_from(["", "ill"]), st.sampled_from([None, *Remedy])),
    st.builds(Started, st.sampled_from(["boot-1", "boot-2"])),
    st.builds(Released),
    st.builds(Probed, st.sampled_from(["", "broken"])),
    st.builds(Ordered, st.booleans(), st.just("why"), st.integers(0, 20)),
)


@given(st.lists(st.tuples(EVENTS, st.integers(0, 2_000), st.booleans())))
def test_whatever_happens(story: list[tuple[HealthEvent, int, bool]]) -> None:
    patient = Patient()
    for event, ms, held in story:
        patient.now_ms, patient.held = patient.now_ms + ms, held
        before = patient.record
        patient.tell(event)
        after = patient.record
        assert after.relapses <= RULES.relapses
        assert (after.condition is C.HEALTHY) == (after.reason == "")
        if after.condition is C.RECOVERING and before.condition is not C.RECOVERING:
            assert not held and not after.complaint and after.remedy is Remedy.NONE
        if after.condition is C.HEALTHY and before.has_failed:
            assert event == Probed() and before.condition is C.RECOVERING, "only a probe brings it back"
        if before.condition is C.RETIRED and after.condition is not C.RETIRED:
            assert isinstance(event, Ordered) and not event.cordoned
        if after.condition is C.SUSPECT:
            assert after.due_ms > patient.now_ms, "it ends by itself"
    # However ill it was: with everything done that can be asked for, it comes back.
    patient.held = False
    patient.now_ms += 1
    patient.tell(Seen())
    patient.tell(Ordered(False, "", patient.now_ms))
    for _ in range(3):
        patient.wait(1_000)
        patient.tell(Probed())
    assert patient.record.shown is C.HEALTHY
