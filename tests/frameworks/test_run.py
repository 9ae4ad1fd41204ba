"""The framework behind `bursar run`, against a simulated master over real gRPC."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.framework import Accept, UpdateDemand
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
        (Status(TaskState.FAILED, StatusReason.COMMAND_EXITED, "exited with code 2", 2), 2, ""),
        (Status(TaskState.FAILED, StatusReason.COMMAND_EXITED, "exited with code 2; no forks", 2), 2, "no forks"),
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
