"""The shipped frameworks, against a simulated master over real gRPC."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.framework import Accept, UpdateDemand
from bursar.frameworks.batch import Batch, Ended
from bursar.frameworks.run import RunOnce, describe_end, exit_code
from bursar.sdk import FrameworkSession, Status, StatusReason, Task, TaskState


async def run_to_end(framework: RunOnce, master: Any) -> Status:
    def changed() -> None:
        if framework.end:
            framework.stop()

    framework.on_change = changed
    await asyncio.wait_for(FrameworkSession(framework, master.address).run(), 15)
    assert framework.end is not None
    return framework.end


async def test_run_gives_the_commands_exit_code(master: Any) -> None:
    status = await run_to_end(RunOnce(Task("exit 7", gpus=2), name="r", capabilities=["GPU_RESOURCES"]), master)
    assert exit_code(status) == 7 and describe_end(status) == "" and len(status.device_uuids) == 2
    assert master.said(UpdateDemand)[-1].demand.shapes == ()


async def test_run_waits_for_another_offer_after_a_refusal(master: Any) -> None:
    master.refuse_accepts = [ErrorDetail(ErrorReason.INVALID_OFFERS, "too late")]
    status = await run_to_end(RunOnce(Task("exit 0"), name="r"), master)
    assert exit_code(status) == 0 and len(master.said(Accept)) == 2


async def test_run_gives_up_where_the_task_is_wrong(master: Any) -> None:
    master.refuse_accepts = [ErrorDetail(ErrorReason.TASK_INVALID, "no image here", "leave --image out")]
    status = await run_to_end(RunOnce(Task("exit 0"), name="r"), master)
    assert exit_code(status) == 125
    assert describe_end(status) == "the task was refused: no image here (leave --image out)"


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (Status(TaskState.FAILED, StatusReason.COMMAND_EXITED, "", 137), 137, ""),
        (Status(TaskState.FAILED, StatusReason.MEM_LIMIT, "over 128MiB", 137), 137, "mem limit"),
        (Status(TaskState.FAILED, StatusReason.IMAGE_NOT_FOUND, "no image x"), 125, "image not found"),
        (Status(TaskState.GONE, StatusReason.AGENT_REBOOTED), 125, "lost"),
        (Status(TaskState.GONE, StatusReason.ENGINE_LOST, exit_code=143), 125, "lost"),
        (Status(TaskState.KILLED, StatusReason.KILLED_BY_OPERATOR, "", 143), 143, "operator"),
        (Status(TaskState.UNKNOWN), 125, "lost"),
    ],
)
def test_ends_as_a_shell_would_say_them(status: Status, code: int, words: str) -> None:
    assert exit_code(status) == code and words in describe_end(status) and bool(words) == bool(describe_end(status))


async def test_a_batch_runs_every_index_as_offers_allow(master: Any) -> None:
    heard: list[Ended] = []
    batch = Batch(
        ["sh", "-c", "test {index} -lt {count} && test $NUMBER = {index} && exit {index}"],
        6,
        env={"NUMBER": "{index}"},
        cpus=2,
        on_end=heard.append,
    )
    await asyncio.wait_for(FrameworkSession(batch, master.address).run(), 30)
    assert {ended.index: ended.status.exit_code for ended in batch.ended} == {index: index for index in range(6)}
    assert heard == batch.ended and not batch.succeeded and {ended.attempts for ended in heard} == {1}
    assert max(len(accept.operations) for accept in master.said(Accept)) == 2, "two fit into one offer"


async def test_a_batch_keeps_to_its_limit(master: Any) -> None:
    most = 0

    class Watched(Batch):
        def on_status(self, task: Task, status: Status) -> None:
            nonlocal most
            most = max(most, len(self.running))
            super().on_status(task, status)

    batch = Watched(["true"], 4, parallel=1)
    await asyncio.wait_for(FrameworkSession(batch, master.address).run(), 30)
    assert batch.succeeded and most == 1


async def test_a_batch_tries_again_what_never_ran(master: Any) -> None:
    master.refuse_accepts = [ErrorDetail(ErrorReason.INVALID_OFFERS, "too late")] * 2
    batch = Batch(["true"], 1)
    await asyncio.wait_for(FrameworkSession(batch, master.address).run(), 30)
    assert batch.succeeded and batch.ended[0].attempts == 3


async def test_an_empty_batch_is_done(master: Any) -> None:
    batch = Batch(["true"], 0)
    await asyncio.wait_for(FrameworkSession(batch, master.address).run(), 10)
    assert batch.succeeded
