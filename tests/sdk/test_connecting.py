"""Connections of the SDK that break, masters that are silent or gone, and what is said again afterwards; over real gRPC."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sweep import Sweep, running, states

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.framework import (
    Accept,
    Acknowledge,
    FrameworkHeartbeat,
    Kill,
    LookupCalls,
    Reconcile,
    Revive,
    StreamError,
    Subscribe,
    Suppress,
)
from bursar.core.tasks import TaskState
from bursar.sdk import (
    BursarError,
    Framework,
    FrameworkSession,
    MasterUnreachable,
    Task,
)


async def test_a_broken_connection_is_healed_with_the_same_ids(master: Any) -> None:
    framework = Sweep(Task("sleep 60"))
    framework.stop_when_done = False
    async with running(framework, master) as session:
        await master.until(lambda: master.said(Acknowledge))
        master.cut()
        await master.until(lambda: len(master.said(Subscribe)) == 2)
        reconcile = (await master.until(lambda: master.said(Reconcile)))[0]
        first, second = master.said(Subscribe)
        assert first.info == second.info and second.cluster_id == master.cluster_id == session.cluster_id
        assert reconcile.task_ids == tuple(session.running)
        session.kill(next(iter(session.running)))
        await master.until(lambda: not master.unacknowledged and not session.running)
    assert [status.state for _, status in framework.statuses] == [TaskState.RUNNING, TaskState.KILLED]
    assert framework.heard == [("subscribed", False), ("disconnected",), ("subscribed", True)]


async def test_a_restarted_master_is_found_again(master: Any) -> None:
    framework = Sweep(Task("sleep 60"))
    async with running(framework, master) as session:
        await master.until(lambda: master.said(Acknowledge))
        await master.stop()
        await asyncio.sleep(0.5)
        await master.start()
        await master.until(lambda: len(master.said(Subscribe)) == 2)
        framework.kill(next(iter(session.running.values())))
        await master.until(lambda: master.torn_down)
    assert states(framework) == [TaskState.RUNNING, TaskState.KILLED]


async def test_an_accept_whose_answer_was_lost_is_asked_for(master: Any) -> None:
    master.lose_results = 1
    framework = Sweep(Task("exit 0"))
    launched: list[Task] = []
    framework.on_launched = launched.append  # type: ignore[method-assign]
    await asyncio.wait_for(FrameworkSession(framework, master.address).run(), 10)
    assert len(master.tasks) == 1, "it was not launched twice"
    assert TaskState.FINISHED in states(framework) and len(launched) == 1
    assert master.said(LookupCalls)[0].call_ids == (master.said(Accept)[0].call_id,)


async def test_an_accept_that_never_arrived_is_tried_again(master: Any) -> None:
    master.swallow_accepts = 1
    framework = Sweep(Task("exit 0"))
    await asyncio.wait_for(FrameworkSession(framework, master.address).run(), 10)
    assert states(framework)[0] is TaskState.DROPPED and states(framework)[-1] is TaskState.FINISHED
    first, second = master.said(Accept)
    assert first.operations[0].operation.tasks[0].task_id != second.operations[0].operation.tasks[0].task_id
    assert first.call_id != second.call_id and len(master.tasks) == 1


async def test_suppress_lasts_over_a_reconnect(master: Any) -> None:
    framework = Sweep()
    async with running(framework, master):
        await master.until(lambda: master.said(Subscribe))
        framework.suppress()
        await master.until(lambda: master.said(Suppress))
        master.cut()
        await master.until(lambda: len(master.said(Subscribe)) == 2)
        assert master.said(Subscribe)[1].suppressed_roles == ("ml/sweep",)
        framework.revive("ml/sweep")
        await master.until(lambda: master.said(Revive))


async def test_a_kill_is_repeated_after_a_reconnect(master: Any) -> None:
    framework = Sweep(Task("sleep 60"))
    framework.stop_when_done = False
    async with running(framework, master) as session:
        await master.until(lambda: master.said(Acknowledge))
        master._kill = lambda task: None  # the kill is lost
        session.kill(next(iter(session.running)))
        await master.until(lambda: master.said(Kill))
        del master._kill
        master.cut()
        await master.until(lambda: not session.running)
    assert states(framework)[-1] is TaskState.KILLED


async def test_tasks_of_an_earlier_life_are_taken_over(master: Any) -> None:
    first = Sweep(Task("sleep 60"))
    async with running(first, master) as session:
        await master.until(lambda: master.said(Acknowledge))
        framework_id, task_id = session.framework_id, next(iter(session.running))
    second = Sweep()
    second.framework_id = framework_id
    second.stop_when_done = False
    async with running(second, master) as session:
        await master.until(lambda: task_id in session.running)
        session.kill(task_id)
        await master.until(lambda: not session.running and not master.unacknowledged)
    assert [(task.id, status.state) for task, status in second.statuses] == [
        (task_id, TaskState.RUNNING),
        (task_id, TaskState.KILLED),
    ]


async def test_a_task_that_nobody_knows_is_reported(master: Any) -> None:
    framework = Sweep(Task("sleep 60"))
    framework.stop_when_done = False
    async with running(framework, master) as session:
        await master.until(lambda: master.said(Acknowledge))
        task = master.tasks.pop(next(iter(session.running)))
        master.offering = False
        master.cut()
        await master.until(lambda: TaskState.UNKNOWN in states(framework))
        assert framework.statuses[-1][1].terminal and framework.statuses[-1][1].retryable and not session.running
        master.tasks["for cleaning up"] = task


async def test_reconciliation_is_repeated_until_it_is_answered(master: Any) -> None:
    framework = Sweep(Task("sleep 60"))
    async with running(framework, master):
        await master.until(lambda: master.said(Acknowledge))
        master.silent_reconcile = 1
        master.cut()
        await master.until(lambda: len(master.said(Reconcile)) == 2)
        assert master.said(Reconcile)[0] == master.said(Reconcile)[1]


@pytest.mark.parametrize(
    "reason", [ErrorReason.SUPERSEDED, ErrorReason.FRAMEWORK_REMOVED, ErrorReason.CLUSTER_MISMATCH]
)
async def test_a_fatal_error_says_what_and_what_to_do(master: Any, reason: ErrorReason) -> None:
    session = FrameworkSession(Sweep(), master.address)
    job = asyncio.get_running_loop().create_task(session.run())
    await master.until(lambda: master.said(Subscribe))
    master.say(StreamError(ErrorDetail(reason, "what is wrong", "what to do")))
    with pytest.raises(BursarError, match=r"what is wrong \(what to do\)") as caught:
        await asyncio.wait_for(job, 30)
    assert caught.value.detail.reason is reason


async def test_another_error_is_followed_by_another_attempt(master: Any) -> None:
    async with running(Sweep(), master):
        await master.until(lambda: master.said(Subscribe))
        master.say(StreamError(ErrorDetail(ErrorReason.TOO_SLOW, "you do not read")))
        await master.until(lambda: len(master.said(Subscribe)) == 2)


async def test_a_silent_master_is_left(master: Any) -> None:
    """Nothing is said for three heartbeats, though the connection stands."""
    async with running(Sweep(), master):
        await master.until(lambda: len(master.said(FrameworkHeartbeat)) > 4)
        assert len(master.said(Subscribe)) == 1
        master.silent = True
        await master.until(lambda: len(master.said(Subscribe)) == 2)


async def test_the_second_address_is_tried(master: Any, unused_tcp_port: int) -> None:
    framework = Sweep(Task("exit 0"))
    await asyncio.wait_for(FrameworkSession(framework, f"127.0.0.1:{unused_tcp_port},{master.address}").run(), 10)
    assert framework.statuses[-1][1].ok


async def test_no_master_is_an_error_once_patience_ends(unused_tcp_port: int) -> None:
    with pytest.raises(MasterUnreachable, match=rf"no master answers at 127.0.0.1:{unused_tcp_port}.*bursar-master"):
        await FrameworkSession(Sweep(), f"127.0.0.1:{unused_tcp_port}", connect_timeout=0.5).run()


async def test_stop_before_any_master_was_found(unused_tcp_port: int) -> None:
    framework = Sweep()
    session = FrameworkSession(framework, f"127.0.0.1:{unused_tcp_port}")
    asyncio.get_running_loop().call_later(0.3, framework.stop)
    await asyncio.wait_for(session.run(), 30)


async def test_teardown_is_repeated_until_it_is_certain(master: Any) -> None:
    """The connection breaks with the teardown on its way."""
    framework = Sweep()
    session = FrameworkSession(framework, master.address)
    job = asyncio.get_running_loop().create_task(session.run())
    await master.until(lambda: master.said(Subscribe))
    await master.stop()
    framework.stop()
    await asyncio.sleep(0.3)
    await master.start()
    await asyncio.wait_for(job, 30)
    assert master.torn_down == {session.framework_id}


@pytest.mark.parametrize(
    "address", ["", "localhost", "localhost:", "localhost:0", "localhost:99999", "http://a:1", "a b:1", "::1:5"]
)
def test_wrong_addresses_are_refused(address: str) -> None:
    with pytest.raises(BursarError, match="HOST:PORT"):
        FrameworkSession(Framework(), address or " ")
