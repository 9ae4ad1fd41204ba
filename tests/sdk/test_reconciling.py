"""An author asks where tasks are, by their ids: of this life, of an earlier one, or of none."""

from __future__ import annotations

from typing import Any

from tests.sdk.test_machine import AWAY, calls, of, started

from bursar.core.ids import TaskId
from bursar.core.messages.framework import MasterHeartbeat, Reconcile
from bursar.core.tasks import TaskState
from bursar.sdk import effects, events


def told(out: Any) -> list[tuple[str, TaskState]]:
    """What the author hears."""
    return [(status.task_id, status.state) for one in of(out, effects.DeliverStatuses) for status in one.statuses]


def test_a_task_of_an_earlier_life_is_told_and_followed() -> None:
    world = started()
    (asked,) = calls(world.step(events.ReconcileRequested((TaskId("old"),))), Reconcile)
    assert asked.task_ids == ("old",)
    assert told(world.status("old", TaskState.RUNNING, "")) == [("old", TaskState.RUNNING)]
    assert told(world.status("old", TaskState.FINISHED, "u9")) == [("old", TaskState.FINISHED)]


def test_a_task_that_nobody_knows_is_told_once_and_not_followed() -> None:
    world = started()
    world.step(events.ReconcileRequested((TaskId("never"),)))
    assert told(world.status("never", TaskState.UNKNOWN, "")) == [("never", TaskState.UNKNOWN)]
    assert not told(world.status("never", TaskState.UNKNOWN, "")), "nobody asked"
    assert "never" not in world.machine.tasks.by_id


def test_it_is_asked_until_it_is_answered_over_broken_connections() -> None:
    world = started()
    world.step(events.StreamEnded(world.connection, AWAY))
    assert not calls(world.step(events.ReconcileRequested((TaskId("old"),))), Reconcile)
    world.wait(200)
    assert calls(world.subscribe(), Reconcile)
    world.hear(MasterHeartbeat())
    assert calls(world.wait(1000), Reconcile), "agents may be on their way back"
    world.status("old", TaskState.UNKNOWN, "")
    for _ in range(5):
        world.hear(MasterHeartbeat())
        assert not calls(world.wait(1000), Reconcile)
