"""The framework behind `bursar batch --gang`, alone: the test plays the bundles, the statuses and the clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.frameworks.batch import from_template
from bursar.frameworks.gang_batch import GangBatch
from bursar.sdk import InvalidText, Status, StatusReason, Task, TaskState

FAILED = Status(TaskState.FAILED, StatusReason.COMMAND_EXITED, "", 1)
LOST = Status(TaskState.GONE, StatusReason.AGENT_REBOOTED)
KILLED = Status(TaskState.KILLED)
RELEASED = Status(TaskState.KILLED, StatusReason.GANG_MEMBER_LOST)
DONE = Status(TaskState.FINISHED, exit_code=0)


class Alone(GangBatch):
    """Without a session."""

    def __init__(self, count: int = 3, **options: Any) -> None:
        self.asked: list[Any] = []
        self.killed: list[int] = []
        self.pauses: list[float] = []
        self.waiting: list[Callable[[], None]] = []
        self.launched: dict[str, Task] = {}
        self.stopped = False
        super().__init__(from_template(["rank", "{index}"], count, {"NAME": "n{index}"}), later=self._wait, **options)

    @property
    def running(self) -> Mapping[str, Task]:
        return self.launched

    def _wait(self, seconds: float, function: Callable[[], None]) -> None:
        self.pauses.append(seconds)
        self.waiting.append(function)

    def request_gang(self, groups: Any, **options: Any) -> str:
        self.asked.append((list(groups), options))
        return "g"

    def kill(self, task: Any, grace_ms: int | None = None) -> None:
        self.killed.append(task.data)

    def stop(self) -> None:
        self.stopped = True

    def launch(self, *hosts: str) -> list[Task]:
        places = [SimpleNamespace(offer=SimpleNamespace(hostname=host)) for host in hosts or ("a", "b", "b")]
        tasks = list(self.on_bundle(SimpleNamespace(places=places)))  # type: ignore[arg-type]
        self.launched = {str(task.data): task for task in tasks}
        return tasks

    def end(self, index: int, status: Status) -> None:
        self.on_status(self.launched.pop(str(index)), status)

    def pass_time(self) -> None:
        due, self.waiting = self.waiting, []
        for function in due:
            function()


def started(count: int = 3, **options: Any) -> Alone:
    batch = Alone(count, **options)
    batch.start()
    batch.on_subscribed(False)
    return batch


def test_all_are_asked_for_at_once_and_nothing_else() -> None:
    batch = started(gpus=2, cpus=1, same="rack", nvlink=True, wait_s=60)
    ((groups, options),) = batch.asked
    ((task, count),) = groups
    assert (task.request.gpus, count, batch.wants()) == (2, 3, [])
    assert options == {"ttl": 60, "same": "rack", "nvlink": True}
    batch.on_subscribed(True)
    assert len(batch.asked) == 1, "after an interruption the SDK asks"


def test_each_knows_its_rank_and_where_all_are() -> None:
    tasks = started().launch("a", "b", "c")
    assert [task.command for task in tasks] == [("rank", str(index)) for index in range(3)]
    for index, task in enumerate(tasks):
        assert task.env == {
            "NAME": f"n{index}",
            "BURSAR_GANG_RANK": str(index),
            "BURSAR_GANG_SIZE": "3",
            "BURSAR_GANG_HOSTS": "a,b,c",
        }


def test_it_is_done_when_all_have_ended_well() -> None:
    batch = started()
    batch.launch()
    for index in (2, 0, 1):
        assert not batch.stopped
        batch.end(index, DONE)
    assert batch.stopped and batch.succeeded and not batch.killed
    assert [ended.index for ended in batch.ended] == [0, 1, 2]


def test_where_one_fails_the_others_are_ended_and_all_have_ended_for_good() -> None:
    batch = started()
    batch.launch()
    batch.end(0, DONE)
    batch.end(1, FAILED)
    assert batch.killed == [2] and not batch.stopped
    batch.end(2, KILLED)
    assert batch.stopped and not batch.succeeded
    assert [ended.status.state.name for ended in batch.ended] == ["FINISHED", "FAILED", "KILLED"]


def test_a_failure_is_retried_by_all_of_them_after_a_pause() -> None:
    again: list[Any] = []
    batch = started(retries=1, pause_s=2.0, on_again=lambda *args: again.append(args))
    batch.launch()
    batch.end(1, FAILED)
    batch.end(0, KILLED)
    batch.end(2, DONE)
    assert again == [(1, FAILED, 2.0)] and len(batch.asked) == 1 and batch.pausing == 3
    batch.pass_time()
    assert len(batch.asked) == 2 and batch.pausing == 0
    tasks = batch.launch("d", "d", "d")
    assert tasks[0].env["BURSAR_GANG_HOSTS"] == "d,d,d"
    for index in range(3):
        batch.end(index, DONE)
    assert batch.succeeded and batch.retried == 1
    assert {(ended.launches, ended.retried, ended.relaunched) for ended in batch.ended} == {(2, 1, 0)}


def test_losses_are_repeated_free_of_charge_up_to_a_bound() -> None:
    batch = started(max_losses=2)
    for first in (LOST, RELEASED, LOST):
        batch.launch()
        batch.end(0, first)
        batch.end(1, RELEASED)
        batch.end(2, KILLED)
        batch.pass_time()
    assert batch.pauses == [0, 0.5] and len(batch.asked) == 3
    assert batch.stopped and not batch.succeeded and batch.relaunched == 2


def test_what_is_wrong_with_a_job_is_not_repeated_as_if_it_were_lost() -> None:
    """A refused call: the master says what is wrong with one, and drops the others."""
    batch = started()
    batch.launch()
    batch.end(0, Status(TaskState.DROPPED, StatusReason.INVALID_OFFERS))
    batch.end(1, Status(TaskState.ERROR, message="no such image"))
    batch.end(2, Status(TaskState.DROPPED, StatusReason.INVALID_OFFERS))
    assert batch.stopped and batch.relaunched == 0


def test_no_room_ends_it_with_the_reason() -> None:
    batch = started()
    error = ErrorDetail(ErrorReason.INSUFFICIENT_RESOURCES, "the gang could never start")
    batch.on_gang_ended("g", error)
    assert batch.stopped and batch.error == error and not batch.succeeded


def test_a_gang_of_none_is_done_and_a_wrong_one_is_refused() -> None:
    batch = started(0)
    assert batch.stopped and not batch.asked and batch.succeeded
    with pytest.raises(InvalidText):
        Alone(2, cpus="many")
