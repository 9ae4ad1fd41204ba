"""The session machine alone: events in, effects out; no network, no clock."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bursar.core.clock import Instant
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.machine import Stalled, TimePassed
from bursar.core.messages.framework import (
    Acknowledge,
    FrameworkHeartbeat,
    FrameworkInfo,
    Kill,
    LookupCalls,
    LookupResults,
    MasterHeartbeat,
    Offers,
    Reconcile,
    Rescind,
    StatusUpdates,
    StreamError,
    Subscribe,
    Subscribed,
    Teardown,
    UpdateDemand,
    UpdateRef,
)
from bursar.core.messages.offers import Accept, AgentDescription, CallResult, Decline, Offer, OperationResult, Shape
from bursar.core.resources import ReservedResources, ResourceRequest, Resources
from bursar.core.tasks import TaskSpec, TaskState, TaskStatus
from bursar.sdk import effects, events
from bursar.sdk.machine import Phase, SessionMachine

INFO: Any = FrameworkInfo("framework-1", "life", "test", ("*",))  # type: ignore[arg-type]
AWAY = ErrorDetail(ErrorReason.UNSPECIFIED, "away")
SHAPE = Shape("*", ResourceRequest({"cpus": 1000}), 1)


class World:
    """A machine, its clock, and everything that it asked for."""

    def __init__(self, **options: Any) -> None:
        self.machine = SessionMachine(INFO, ("one:1", "two:2"), **options)
        self.ms = 1000
        self.all: list[Any] = []

    def step(self, *happened: Any) -> list[Any]:
        out = []
        for event in happened:
            out += self.machine.step(event, Instant(self.ms, 0))
            self.machine.check()
        self.all += out
        return out

    def wait(self, ms: int) -> list[Any]:
        """Let time pass, ringing every deadline when it is due."""
        end, out = self.ms + ms, []
        while (due := self.machine.next_deadline_ms()) is not None and due <= end:
            self.ms = max(self.ms, due)
            out += self.step(TimePassed())
        self.ms = end
        return out

    @property
    def connection(self) -> Any:
        return self.machine._connection

    def hear(self, *said: Any) -> list[Any]:
        return self.step(events.EventsReceived(self.connection, said))

    def subscribe(self) -> list[Any]:
        return self.hear(Subscribed(INFO.framework_id, "cluster", 1, 1000))

    def offer(self, number: str = "O1") -> list[Any]:
        agent: Any = AgentDescription("agent", 1, "node")  # type: ignore[arg-type]
        offer: Any = Offer(
            number, INFO.framework_id, "*", "agent", 1, (ReservedResources((), Resources({"cpus": 1000})),)
        )  # type: ignore[arg-type]
        return self.hear(Offers((agent,), (offer,)))

    def launch(self, task: str = "t1", number: str = "O1") -> list[Any]:
        self.offer(number)
        return self.step(events.OffersAnswered((events.OfferAnswer(number, (TaskSpec(task),)),)))  # type: ignore[arg-type]

    def status(self, task: str, state: TaskState, update: str = "") -> list[Any]:
        return self.hear(StatusUpdates((TaskStatus(task, INFO.framework_id, "agent", state, update_id=update),)))  # type: ignore[arg-type]


def calls(out: list[Any], kind: type = object) -> list[Any]:
    return [
        call
        for effect in out
        if isinstance(effect, effects.SendCalls)
        for call in effect.calls
        if isinstance(call, kind)
    ]


def of(out: list[Any], kind: type) -> list[Any]:
    return [effect for effect in out if isinstance(effect, kind)]


def started(**options: Any) -> World:
    world = World(**options)
    world.step(events.SessionStarted((SHAPE,)))
    world.subscribe()
    return world


def test_attempts_slow_down_and_take_turns() -> None:
    world = World()
    world.step(events.SessionStarted())
    begins = []
    for _ in range(8):
        begins.append(world.ms)
        world.step(events.StreamEnded(world.connection, AWAY))
        due = world.machine.next_deadline_ms()
        assert due is not None
        world.wait(due - world.ms)
    gaps = [later - earlier for earlier, later in itertools.pairwise(begins)]
    assert gaps == [100, 200, 400, 800, 1600, 2000, 2000]
    assert [effect.address for effect in of(world.all, effects.OpenStream)][:4] == ["one:1", "two:2", "one:1", "two:2"]


def test_an_attempt_without_an_answer_is_given_up() -> None:
    world = World()
    world.step(events.SessionStarted())
    out = world.wait(5_200)
    assert of(out, effects.CloseStream) and of(out, effects.OpenStream)


def test_words_of_an_earlier_connection_count_for_nothing() -> None:
    world = started()
    earlier = world.connection
    world.step(events.StreamEnded(earlier, AWAY))
    world.wait(200)
    assert world.step(events.EventsReceived(earlier, (Subscribed(INFO.framework_id, "other", 9, 1),))) == []
    assert world.machine.phase is Phase.CONNECTING and world.machine.cluster_id == "cluster"
    assert world.step(events.StreamEnded(earlier, AWAY)) == []


def test_patience_for_the_first_master_ends() -> None:
    world = World(first_subscribe_ms=10_000)
    world.step(events.SessionStarted())
    out = world.wait(20_000)
    (end,) = of(out, effects.End)
    assert end.unreachable and world.machine.phase is Phase.ENDED and world.step(events.StopRequested()) == []


def test_heartbeats_and_silence() -> None:
    world = started()
    assert len(calls(world.wait(2_500), FrameworkHeartbeat)) == 2
    world.hear(MasterHeartbeat())
    assert not of(world.wait(2_900), effects.CloseStream)
    assert of(world.wait(200), effects.CloseStream)


def test_a_stall_of_ours_is_not_the_masters_silence() -> None:
    world = started()
    world.ms += 60_000
    out = world.step(Stalled(60_000))
    assert out == [] and world.machine.phase is Phase.SUBSCRIBED and not of(world.wait(900), effects.CloseStream)


def test_an_offer_that_was_rescinded_meanwhile_is_not_accepted() -> None:
    world = started()
    world.offer()
    world.hear(Rescind(("O1",)))  # type: ignore[arg-type]
    out = world.step(events.OffersAnswered((events.OfferAnswer("O1", (TaskSpec("t1"),)),)))  # type: ignore[arg-type]
    assert not calls(out) and of(out, effects.DeliverRefusal)[0].error.reason is ErrorReason.INVALID_OFFERS


def test_offers_are_void_once_the_connection_is_lost() -> None:
    world = started()
    world.offer()
    world.step(events.StreamEnded(world.connection, AWAY))
    out = world.step(events.OffersAnswered((events.OfferAnswer("O1", (TaskSpec("t1"),)),)))  # type: ignore[arg-type]
    assert not calls(out) and of(out, effects.DeliverRefusal) and not world.machine.tasks.by_id


def test_declines_are_gathered() -> None:
    world = started()
    world.offer("O1")
    world.offer("O2")
    out = world.step(events.OffersAnswered((events.OfferAnswer("O1"), events.OfferAnswer("O2"))))  # type: ignore[arg-type]
    assert [call.offer_ids for call in calls(out, Decline)] == [("O1", "O2")]


def test_a_status_before_the_answer_means_that_it_was_taken() -> None:
    world = started()
    (accept,) = calls(world.launch(), Accept)
    out = world.status("t1", TaskState.RUNNING, "u1")
    assert of(out, effects.DeliverLaunched) and of(out, effects.DeliverStatuses)
    assert world.hear(CallResult(accept.call_id)) == []


def test_one_guilty_operation_is_told_apart_from_its_neighbours() -> None:
    world = started()
    world.offer()
    specs = (TaskSpec("t1"), TaskSpec("t2"))  # type: ignore[arg-type]
    (accept,) = calls(world.step(events.OffersAnswered((events.OfferAnswer("O1", specs),))), Accept)  # type: ignore[arg-type]
    guilty = ErrorDetail(ErrorReason.TASK_INVALID, "bad")
    other = ErrorDetail(ErrorReason.CALL_REFUSED, "another one was bad")
    first, second = accept.operations
    answer = CallResult(
        accept.call_id,
        False,
        guilty,
        (OperationResult(first.operation_id, guilty), OperationResult(second.operation_id, other)),
    )
    refusals = of(world.hear(answer), effects.DeliverRefusal)
    assert [(refusal.task_id, refusal.error) for refusal in refusals] == [("t1", guilty), ("t2", other)]
    assert not world.machine.tasks.by_id


def test_a_lost_answer_is_asked_for_after_the_return() -> None:
    world = started()
    (accept,) = calls(world.launch(), Accept)
    world.step(events.StreamEnded(world.connection, AWAY))
    world.wait(200)
    (lookup,) = calls(world.subscribe(), LookupCalls)
    assert lookup.call_ids == (accept.call_id,)
    out = world.hear(LookupResults((CallResult(accept.call_id, unknown=True),)))
    assert of(out, effects.DeliverRefusal) and not world.machine.tasks.by_id


def test_an_answer_that_never_comes_is_asked_for() -> None:
    world = started()
    world.launch()
    out: list[Any] = []
    for _ in range(40):
        world.hear(MasterHeartbeat())
        out += world.wait(1000)
    assert len(calls(out, LookupCalls)) == 1


def test_a_kill_is_repeated_until_the_task_has_ended() -> None:
    world = started()
    (accept,) = calls(world.launch(), Accept)
    world.hear(CallResult(accept.call_id))
    assert calls(world.step(events.KillRequested("t1", 5)), Kill)[0].grace_ms == 5  # type: ignore[arg-type]
    world.step(events.StreamEnded(world.connection, AWAY))
    world.wait(200)
    assert calls(world.subscribe(), Kill)
    world.status("t1", TaskState.KILLED, "u1")
    world.step(events.StreamEnded(world.connection, AWAY))
    world.wait(200)
    assert not calls(world.subscribe(), Kill)


def test_reconciliation_slows_down_and_ends() -> None:
    world = started()
    (accept,) = calls(world.launch(), Accept)
    world.hear(CallResult(accept.call_id))
    world.step(events.StreamEnded(world.connection, AWAY))
    world.wait(200)
    out = world.subscribe()
    asked = [0] if calls(out, Reconcile) else []
    for second in range(1, 40):
        world.hear(MasterHeartbeat())
        if calls(world.wait(1000), Reconcile):
            asked.append(second)
    assert asked == [0, 1, 3, 7, 15, 31]
    assert of(world.status("t1", TaskState.RUNNING), effects.DeliverStatuses)
    for _ in range(70):
        world.hear(MasterHeartbeat())
        assert not calls(world.wait(1000), Reconcile)


def test_everything_is_compared_every_quarter_of_an_hour() -> None:
    world = started()
    found = 0
    for _ in range(1900):
        world.hear(MasterHeartbeat())
        found += len(calls(world.wait(1000), Reconcile))
    assert found == 2


def test_a_repeated_update_is_acknowledged_again() -> None:
    world = started()
    world.launch()
    world.status("t1", TaskState.RUNNING, "u1")
    assert calls(world.step(events.StatusesHandled((UpdateRef("t1", "u1"),))), Acknowledge)  # type: ignore[arg-type]
    out = world.status("t1", TaskState.RUNNING, "u1")
    assert calls(out, Acknowledge) and not of(out, effects.DeliverStatuses)
    world.status("t1", TaskState.FINISHED, "u2")
    out = world.status("t1", TaskState.FINISHED, "u2")
    assert calls(out, Acknowledge) and not of(out, effects.DeliverStatuses)


def test_stop_unregisters_and_waits_for_the_end_of_the_stream() -> None:
    world = started()
    out = world.step(events.StopRequested())
    assert calls(out, Teardown) and of(out, effects.EndCalls) and not of(out, effects.End)
    (end,) = of(world.step(events.StreamEnded(world.connection)), effects.End)
    assert end.error is None


def test_stop_is_repeated_where_it_is_not_certain() -> None:
    world = started()
    world.step(events.StopRequested(), events.StreamEnded(world.connection, AWAY))
    world.wait(200)
    gone = StreamError(ErrorDetail(ErrorReason.FRAMEWORK_REMOVED, "torn down"))
    (end,) = of(world.hear(gone), effects.End)
    assert end.error is None


def test_stop_without_a_master_ends_with_what_to_do() -> None:
    world = started()
    world.step(events.StreamEnded(world.connection, AWAY), events.StopRequested())
    out = []
    while not of(out, effects.End):
        world.step(events.StreamEnded(world.connection, AWAY))
        out += world.wait(500)
    assert "could not be unregistered" in str(of(out, effects.End)[0].error)


_EVENTS = st.sampled_from(
    [
        "end", "time", "subscribe", "offer", "accept", "decline", "running", "finished", "unknown", "result", "refuse",
        "lookup", "rescind", "kill", "demand", "suppress", "revive", "silent", "too slow",
    ]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(_EVENTS, max_size=60))
def test_whatever_happens_the_invariants_hold_and_every_task_gets_one_end(happening: list[str]) -> None:
    """Each launch is delivered exactly one end or refusal, at most; and after peace returns the session is subscribed."""
    world = World()
    world.step(events.SessionStarted((SHAPE,)))
    for number, word in enumerate(happening, 1):
        task: Any = next(reversed(world.machine.tasks.by_id), f"t{number}")
        accepts: list[Accept] = calls(world.all, Accept)
        match word:
            case "end":
                world.step(events.StreamEnded(world.connection, AWAY))
            case "time":
                world.wait(3_000)
            case "subscribe":
                if world.machine.phase is Phase.CONNECTING:
                    world.subscribe()
            case "offer":
                world.offer(f"O{number}")
            case "accept":
                world.launch(f"t{number}", f"O{number}")
            case "decline":
                world.step(events.OffersAnswered((events.OfferAnswer(f"O{number - 1}"),)))  # type: ignore[arg-type]
            case "running":
                world.status(task, TaskState.RUNNING, f"u{number}")
            case "finished":
                world.status(task, TaskState.FINISHED, f"u{number}")
            case "unknown":
                world.status(task, TaskState.UNKNOWN)
            case "result" if accepts:
                world.hear(CallResult(accepts[-1].call_id))
            case "refuse" if accepts:
                world.hear(CallResult(accepts[-1].call_id, error=AWAY))
            case "lookup" if accepts:
                world.hear(LookupResults(tuple(CallResult(accept.call_id, unknown=True) for accept in accepts)))
            case "rescind":
                world.hear(Rescind(tuple(world.machine._offers)))
            case "kill":
                world.step(events.KillRequested(task))
            case "demand":
                world.step(events.DemandStated((SHAPE,) * (number % 2)))
            case "suppress":
                world.step(events.SuppressRequested())
            case "revive":
                world.step(events.ReviveRequested())
            case "too slow":
                world.hear(StreamError(ErrorDetail(ErrorReason.TOO_SLOW, "slow")))
    ends: dict[str, int] = {}
    for effect in world.all:
        if isinstance(effect, effects.DeliverRefusal):
            ends[effect.task_id] = ends.get(effect.task_id, 0) + 1
        elif isinstance(effect, effects.DeliverStatuses):
            for status in effect.statuses:
                if status.state.is_terminal or status.state is TaskState.UNKNOWN:
                    ends[status.task_id] = ends.get(status.task_id, 0) + 1
    launched = {
        operation.operation.tasks[0].task_id for accept in calls(world.all, Accept) for operation in accept.operations
    }
    assert all(count == 1 for count in ends.values()), ends
    assert launched - ends.keys() <= world.machine.tasks.by_id.keys()
    versions = [call.demand.version for call in calls(world.all, UpdateDemand)]
    assert versions == sorted(versions)
    for _ in range(5):
        if world.machine.phase is Phase.CONNECTING:
            world.subscribe()
        if world.machine.phase is Phase.SUBSCRIBED:
            break
        world.wait(2_100)
    assert world.machine.phase is Phase.SUBSCRIBED
    assert calls(world.all, Subscribe)[-1].info == INFO


# --- updates ---
