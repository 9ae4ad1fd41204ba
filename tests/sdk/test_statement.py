"""What a framework says of itself: demand, suppressed roles and updates, and how the master comes to know them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.sdk.test_machine import AWAY, INFO, SHAPE, World, calls, of, started

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.framework import (
    FrameworkHeartbeat,
    Revive,
    Subscribe,
    UpdateDemand,
    UpdateFramework,
)
from bursar.core.messages.offers import CallResult, Shape
from bursar.core.resources import ResourceRequest
from bursar.core.tasks import TaskSpec
from bursar.sdk import effects, events
from bursar.sdk.machine import Phase


def test_what_was_said_while_subscribing_is_said_after_it() -> None:
    world = World()
    world.step(events.SessionStarted((SHAPE,)))
    assert calls(world.step(events.DemandStated(()), events.SuppressRequested())) == []
    said = calls(world.subscribe())
    assert [type(call).__name__ for call in said] == ["Suppress", "UpdateDemand"] and said[1].demand.version == 2


def test_a_demand_that_launches_have_used_means_more_when_it_is_said_again() -> None:
    world = started()
    task = TaskSpec("t1", resources=SHAPE.resources)  # type: ignore[arg-type]
    world.offer()
    world.step(events.OffersAnswered((events.OfferAnswer("O1", (task,)),)))  # type: ignore[arg-type]
    assert world.machine.demand_is_used
    said = calls(world.step(events.DemandStated((SHAPE,))))
    assert [type(call).__name__ for call in said] == ["UpdateDemand", "Revive"] and said[0].demand.version == 2
    assert not world.machine.demand_is_used
    assert not calls(world.step(events.DemandStated((SHAPE,))), Revive), "nothing was launched in between"


def test_what_is_left_after_a_launch_is_no_more_than_before() -> None:
    world = World()
    world.step(events.SessionStarted((replace(SHAPE, count=3),)))
    world.subscribe()
    task = TaskSpec("t1", resources=SHAPE.resources)  # type: ignore[arg-type]
    world.offer()
    world.step(events.OffersAnswered((events.OfferAnswer("O1", (task,)),)))  # type: ignore[arg-type]
    said = calls(world.step(events.DemandStated((replace(SHAPE, count=2),))))
    assert [type(call).__name__ for call in said] == ["UpdateDemand"]


def update(world: World, shapes: Any = None, **changes: Any) -> list[Any]:
    return world.step(events.UpdateRequested(changes, shapes))


TOO_MANY = ErrorDetail(ErrorReason.INVALID_ARGUMENT, "too many roles", "fewer")


def test_an_update_says_everything_at_once_and_is_reported_when_it_is_answered() -> None:
    world = started()
    wanted = Shape("b", ResourceRequest({"cpus": 1000}), 2)
    (call,) = calls(update(world, (wanted,), roles=("b",), capabilities=("X",)), UpdateFramework)
    assert call.info.roles == ("b",) and call.info.capabilities == ("X",) and call.info.name == "test"
    assert call.demand.shapes == (wanted,) and call.demand.version > 1
    out = world.hear(CallResult(call.call_id))
    assert of(out, effects.DeliverUpdated) == [effects.DeliverUpdated(call.info, None)]
    assert not calls(out), "nothing else has to be said"
    assert world.machine.statement.info == call.info


def test_a_refused_update_leaves_everything_as_it_was() -> None:
    world = started()
    wanted = (Shape("b", ResourceRequest({"cpus": 1000}), 2), SHAPE)
    (call,) = calls(update(world, wanted, roles=("b", "*")), UpdateFramework)
    out = world.hear(CallResult(call.call_id, error=TOO_MANY))
    assert of(out, effects.DeliverUpdated) == [effects.DeliverUpdated(INFO, TOO_MANY)]
    (demand,) = calls(out, UpdateDemand)
    assert demand.demand.shapes == (SHAPE,) and demand.demand.version > call.demand.version
    assert world.machine.statement.info == INFO and world.machine.phase is Phase.SUBSCRIBED
    beat = calls(world.wait(1000), FrameworkHeartbeat)[0]
    assert {shape.role for shape in beat.demand.shapes} == {"*"}


def test_while_an_update_is_on_its_way_no_role_is_named_that_may_be_refused() -> None:
    world = started()
    wanted = (Shape("b", ResourceRequest({"cpus": 1000}), 2),)
    (call,) = calls(update(world, wanted, roles=("b",)), UpdateFramework)
    more = (Shape("b", ResourceRequest({"cpus": 1000}), 3),)
    assert not calls(world.step(events.DemandStated(more)))
    assert calls(world.wait(1000), FrameworkHeartbeat)[0].demand.version == 0
    out = world.hear(CallResult(call.call_id))
    assert calls(out, UpdateDemand)[0].demand.shapes == more and calls(out, Revive) == [Revive(("b",))]


def test_one_update_at_a_time_and_the_next_says_all_that_came_meanwhile() -> None:
    world = started()
    (first,) = calls(update(world, roles=("b",)), UpdateFramework)
    assert not calls(update(world, roles=("c",)))
    assert not calls(update(world, name="renamed"))
    (second,) = calls(world.hear(CallResult(first.call_id)), UpdateFramework)
    assert second.info.roles == ("c",) and second.info.name == "renamed" and second.call_id != first.call_id


def test_an_update_whose_answer_is_lost_is_said_again_after_subscribing_as_before() -> None:
    world = started()
    (lost,) = calls(update(world, roles=("b",)), UpdateFramework)
    world.step(events.StreamEnded(world.connection, AWAY))
    out = world.wait(5000)
    assert {call.info.roles for call in calls(out, Subscribe)} == {("*",)}, "a refusal of roles would end the session"
    (again,) = calls(world.subscribe(), UpdateFramework)
    assert again.info.roles == ("b",) and again.call_id != lost.call_id


def test_an_update_that_changes_nothing_is_answered_at_once() -> None:
    world = started()
    out = update(world, (), roles=("*",))
    assert of(out, effects.DeliverUpdated) == [effects.DeliverUpdated(INFO, None)]
    assert not calls(out, UpdateFramework) and calls(out, UpdateDemand)[0].demand.shapes == ()


def test_an_update_that_is_too_large_to_send_is_refused() -> None:
    world = started()
    (call,) = calls(update(world, name="x"), UpdateFramework)
    out = world.step(events.CallNotSent(call.call_id, TOO_MANY))
    assert of(out, effects.DeliverUpdated) == [effects.DeliverUpdated(INFO, TOO_MANY)]


def test_suppression_follows_the_roles() -> None:
    world = started()
    world.step(events.SuppressRequested(()))
    (call,) = calls(update(world, roles=("b", "c")), UpdateFramework)
    assert call.suppressed_roles == ()
    world.step(events.SuppressRequested(("b",)))
    world.hear(CallResult(call.call_id))
    (call,) = calls(update(world, roles=("b",)), UpdateFramework)
    assert call.suppressed_roles == ("b",)
