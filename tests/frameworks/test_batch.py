"""The framework behind `bursar batch`: alone, and against a simulated master over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.framework import Accept
from bursar.frameworks.batch import Batch, Ended, Job, from_lines, from_template
from bursar.sdk import FrameworkSession, InvalidText, Status, StatusReason, Task, TaskState

LATE = ErrorDetail(ErrorReason.INVALID_OFFERS, "too late")
FAILED = Status(TaskState.FAILED, StatusReason.COMMAND_EXITED, "", 1)
LOST = Status(TaskState.GONE, StatusReason.AGENT_REBOOTED)


class Alone(Batch):
    """Without a session: the test plays the offers, the statuses and the clock."""

    def __init__(self, jobs: list[Job], **options: Any) -> None:
        self.pauses: list[float] = []
        self.waiting: list[Callable[[], None]] = []
        self.stopped = False
        super().__init__(jobs, later=self._wait, **options)

    def _wait(self, seconds: float, function: Callable[[], None]) -> None:
        self.pauses.append(seconds)
        self.waiting.append(function)

    def update(self, **changes: Any) -> None:
        pass

    def stop(self) -> None:
        self.stopped = True

    def launch(self) -> list[Task]:
        """All that are wanted now."""
        return list(self.on_offer(Everything()))  # type: ignore[arg-type]

    def end(self, task: Task, status: Status) -> None:
        task.hostname = "node"
        self.on_status(task, status)

    def pass_time(self) -> None:
        due, self.waiting = self.waiting, []
        for function in due:
            function()


class Everything:
    def fits(self, task: Task) -> bool:
        return True


async def run(batch: Batch, master: Any) -> None:
    await asyncio.wait_for(FrameworkSession(batch, master.address).run(), 30)


async def test_every_index_runs_as_offers_allow(master: Any) -> None:
    heard: list[Ended] = []
    jobs = from_template(
        ["sh", "-c", "test {index} -lt {count} && test $NUMBER = {index} && exit {index}"], 6, {"NUMBER": "{index}"}
    )
    batch = Batch(jobs, cpus=2, on_end=heard.append)
    await run(batch, master)
    assert {ended.index: ended.status.exit_code for ended in batch.ended} == {index: index for index in range(6)}
    assert heard == batch.ended and not batch.succeeded and {ended.launches for ended in heard} == {1}
    assert max(len(accept.operations) for accept in master.said(Accept)) == 2, "two fit into one offer"


async def test_no_more_at_once_than_allowed(master: Any) -> None:
    most = 0

    class Watched(Batch):
        def on_status(self, task: Task, status: Status) -> None:
            nonlocal most
            most = max(most, len(self.running))
            super().on_status(task, status)

    batch = Watched(from_template(["true"], 4), parallel=1)
    await run(batch, master)
    assert batch.succeeded and most == 1


async def test_what_never_ran_is_launched_again(master: Any) -> None:
    master.refuse_accepts = [LATE] * 2
    batch = Batch(from_template(["true"], 1))
    await run(batch, master)
    assert batch.succeeded and batch.ended[0].launches == 3
    assert (batch.ended[0].retried, batch.ended[0].relaunched) == (0, 2)


async def test_what_failed_is_retried_as_often_as_allowed(master: Any, tmp_path: Any) -> None:
    """Succeeds when it runs the third time."""
    script = f"echo x >> {tmp_path}/{{index}}; test $(wc -l < {tmp_path}/{{index}}) -ge 3"
    batch = Batch(from_template(["sh", "-c", script], 2), retries=2, pause_s=0.01)
    await run(batch, master)
    assert batch.succeeded and [ended.launches for ended in batch.ended] == [3, 3]
    assert batch.retried == 4 and {ended.retried for ended in batch.ended} == {2}


async def test_a_job_that_is_due_while_another_is_launched_is_not_forgotten(master: Any) -> None:
    """One is wanted, it is launched, and one is wanted again: the same words, in one turn of the session."""

    waiting: list[Callable[[], None]] = []

    def later(seconds: float, resume: Callable[[], None]) -> None:
        """The first comes by itself once both wait, the second while the first is being launched."""
        waiting.append(resume)
        if len(waiting) == 2:
            asyncio.get_running_loop().call_soon(waiting.pop(0))

    class Crossing(Batch):
        def on_offer(self, offer: Any) -> Any:
            yield from super().on_offer(offer)
            if len(self.ended) + self.retried == 2 and len(waiting) == 1:
                waiting.pop()()

    batch = Crossing(from_template(["false"], 2), retries=1, later=later)
    await run(batch, master)
    assert [ended.launches for ended in batch.ended] == [2, 2]


async def test_an_empty_batch_is_done(master: Any) -> None:
    batch = Batch([])
    await run(batch, master)
    assert batch.succeeded


def test_retries_wait_twice_as_long_each_time_up_to_five_minutes() -> None:
    batch = Alone([Job("false")], retries=12, pause_s=1.0)
    for _ in range(12):
        (task,) = batch.launch()
        batch.end(task, FAILED)
        assert batch.pausing == 1 and batch.wants() == [] and not batch.ended
        batch.pass_time()
    assert batch.pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    (task,) = batch.launch()
    batch.end(task, FAILED)
    (ended,) = batch.ended
    assert (ended.launches, ended.retried, ended.relaunched) == (13, 12, 0) and batch.stopped and not batch.succeeded


def test_losses_do_not_count_as_failures_and_are_bounded() -> None:
    batch = Alone([Job("true")], retries=1, max_losses=3)
    for _ in range(3):
        (task,) = batch.launch()
        batch.end(task, LOST)
        batch.pass_time()
    assert batch.pauses == [0.5, 1.0], "the first is repeated at once"
    (task,) = batch.launch()
    batch.end(task, FAILED)
    assert not batch.ended, "its retry is still there"
    batch.pass_time()
    (task,) = batch.launch()
    batch.end(task, LOST)
    (ended,) = batch.ended
    assert (ended.launches, ended.retried, ended.relaunched) == (5, 1, 3)
    assert (batch.retried, batch.relaunched) == (1, 3)


@pytest.mark.parametrize(
    "status",
    [
        Status(TaskState.ERROR, message="no such image here"),
        Status(TaskState.KILLED, StatusReason.KILLED_BY_OPERATOR, "", 143),
    ],
)
def test_what_was_killed_or_can_never_run_is_not_repeated(status: Status) -> None:
    batch = Alone([Job("true")], retries=5)
    (task,) = batch.launch()
    batch.end(task, status)
    assert batch.ended[0].launches == 1 and batch.stopped


def test_tasks_of_an_earlier_life_are_left_alone() -> None:
    batch = Alone([Job("true")])
    batch.on_status(Task("unknown"), Status(TaskState.FINISHED))
    assert not batch.ended


def test_the_lowest_index_goes_first_also_when_repeated() -> None:
    batch = Alone(from_template(["true"], 5))
    tasks = batch.launch()
    for index in (3, 1):
        batch.end(tasks[index], LOST)
    assert [task.data for task in batch.launch()] == [1, 3]


def test_lines_of_a_file_are_jobs() -> None:
    text = "# rates\n0.1\n\n  0.01 \n{index}\n"
    jobs = from_lines(text, ["train", "--lr={line}", "--n={index}/{count}"], {"RATE": "{line}"})
    assert [job.command for job in jobs] == [
        ("train", "--lr=0.1", "--n=0/3"),
        ("train", "--lr=0.01", "--n=1/3"),
        ("train", "--lr={index}", "--n=2/3"),
    ]
    assert [job.env["RATE"] for job in jobs] == ["0.1", "0.01", "{index}"]
    assert [job.command for job in from_lines("echo {index} $HOME\n")] == ["echo {index} $HOME"], "as the shell has it"
    with pytest.raises(InvalidText, match="no line with a job"):
        from_lines("# nothing\n\n")
