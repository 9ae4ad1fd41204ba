"""Both bidirectional streams: how they end, and that one peer's trouble is nobody else's."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from bursar.core.errors import ErrorReason
from bursar.core.ids import AgentId, FrameworkId, TaskId
from bursar.core.messages.agent import DesiredState, Pong, Refused, Registered, TaskReports
from bursar.core.messages.framework import FrameworkInfo, Reconcile, StatusUpdates, Subscribe, Subscribed, Suppress
from bursar.core.messages.operator import AgentState, FrameworkState
from bursar.core.tasks import TaskState, TaskStatus
from bursar.master.effects import SendToFramework
from bursar.master.events import AgentStreamEnded, FrameworkCalled, FrameworkStreamEnded
from bursar.master.server import hub as hub_module
from bursar.runtime.rpc import status_code


def status(size: int) -> StatusUpdates:
    report = TaskStatus(TaskId("t"), FrameworkId("slow"), AgentId("a"), TaskState.RUNNING, message="x" * size)
    return StatusUpdates((report,))


async def test_a_peer_that_does_not_read_is_cut_off_and_nobody_else(
    master: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "STREAM_CAPACITY", 30)
    good = await master.framework("good")
    slow = await master.framework("slow", failover_timeout_ms=60_000)
    connection = master.machine.cluster.frameworks["slow"].connection
    for _ in range(1000):
        # The peer takes nothing out; gRPC itself holds a few, then the outbox fills.
        master.hub.perform(SendToFramework(connection, status(200_000)))
        await asyncio.sleep(0)
        if master.posted(FrameworkStreamEnded):
            break
    await eventually(lambda: master.posted(FrameworkStreamEnded), "the slow peer to be cut off")
    await eventually(lambda: master.machine.cluster.frameworks["slow"].state is FrameworkState.DISCONNECTED)
    assert master.posted(FrameworkStreamEnded) == [FrameworkStreamEnded(connection)]
    assert master.machine.cluster.frameworks["good"].state is FrameworkState.ACTIVE
    await good.say(Reconcile((TaskId("nothing"),)))
    assert (await good.hear_of(StatusUpdates)).statuses[0].state is TaskState.UNKNOWN
    # When it reads at last, it learns why.
    error = await slow.end()
    assert error is not None and error.reason is ErrorReason.TOO_SLOW


async def test_a_client_that_vanishes_ends_its_stream_once(master: Any, eventually: Any) -> None:
    framework, agent = await master.framework(), await master.agent()
    framework.cancel()
    agent.cancel()
    await eventually(lambda: master.posted(FrameworkStreamEnded) and master.posted(AgentStreamEnded))
    cluster = master.machine.cluster
    await eventually(lambda: cluster.agents["a"].connection is None and cluster.frameworks == {})
    await master.driver.settled()
    assert len(master.posted(FrameworkStreamEnded)) == 1 and len(master.posted(AgentStreamEnded)) == 1
    assert cluster.agents["a"].state is not AgentState.ACTIVE


async def test_a_client_that_is_done_writing_ends_its_stream_once(master: Any, eventually: Any) -> None:
    framework = await master.framework()
    await framework.call.done_writing()
    assert await framework.end() is None
    await eventually(lambda: master.posted(FrameworkStreamEnded))
    assert len(master.posted(FrameworkStreamEnded)) == 1


async def test_calls_are_handled_in_order_and_what_is_unknown_is_left_out(master: Any, eventually: Any) -> None:
    from bursar.v1 import framework_service_pb2 as pb

    framework = await master.framework()
    await framework.call.write(pb.FrameworkServiceConnectRequest(calls=[pb.FrameworkCall()]))
    await framework.say(*(Suppress((f"r{number}",)) for number in range(50)))
    await framework.say(*(Suppress((f"r{number}",)) for number in range(50, 80)))
    await eventually(lambda: len(master.posted(FrameworkCalled)) == 81)
    assert [event.call.roles for event in master.posted(FrameworkCalled)[1:]] == [(f"r{n}",) for n in range(80)]


async def test_the_reason_of_a_refusal_reaches_programs(master: Any) -> None:
    stream = master.framework_stream()
    await stream.say(Subscribe(FrameworkInfo(FrameworkId("f"), "1", "f", ("a//b",))))
    error = await stream.end()
    assert error is not None and error.reason is ErrorReason.INVALID_ARGUMENT
    assert error.field == "info.roles" and "a//b" in error.message and error.hint


async def test_the_status_of_a_refusal_is_one_that_generic_tools_understand(master: Any) -> None:
    stream = master.framework_stream()
    await stream.say(Reconcile())
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        while await stream.hear() is not None:
            pass
    assert failure.value.code() is status_code(ErrorReason.NOT_SUBSCRIBED)
    assert "Subscribe" in (failure.value.details() or "")


@pytest.mark.parametrize("first", ["nothing", "pong", "reports", "register, then pong"])
async def test_an_agent_that_does_not_register_is_told_so(master: Any, registration: Any, first: str) -> None:
    stream = master.agent_stream()
    if first == "nothing":
        await stream.call.done_writing()
    elif first == "pong":
        await stream.say(Pong())
    elif first == "reports":
        await stream.say(TaskReports((), True))
    else:
        await stream.say(registration("a"), Pong())
    error = await stream.end()
    assert error is not None and error.reason is ErrorReason.NOT_SUBSCRIBED
    assert master.machine.cluster.agents == {}


async def test_an_agent_cannot_register_twice_on_one_stream(master: Any, registration: Any, eventually: Any) -> None:
    agent = await master.agent()
    await agent.say(registration("b"))
    error = await agent.end()
    assert error is not None and error.reason is ErrorReason.INVALID_ARGUMENT
    await eventually(lambda: len(master.posted(AgentStreamEnded)) == 1)


async def test_reports_may_come_in_parts(master: Any, registration: Any) -> None:
    stream = master.agent_stream()
    await stream.say(registration("a"))
    await stream.say(TaskReports((), False))
    await stream.say(TaskReports((), False), TaskReports((), True))
    await stream.hear_of(Registered)
    assert (await stream.hear_of(DesiredState)).base is None


async def test_a_message_that_is_too_large_ends_its_stream_alone(master: Any, eventually: Any) -> None:
    good = await master.framework("good")
    bad = master.framework_stream(master.channel(("grpc.max_send_message_length", -1)))
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await bad.say(Subscribe(FrameworkInfo(FrameworkId("x" * (50 << 20)), "1", "bad")))
        while await bad.hear() is not None:
            pass
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await good.say(Reconcile((TaskId("t"),)))
    await good.hear_of(StatusUpdates)


async def test_the_newest_stream_of_a_framework_counts(master: Any) -> None:
    old = await master.framework("f")
    new = master.framework_stream()
    await new.say(Subscribe(FrameworkInfo(FrameworkId("f"), "2", "f")))
    await new.hear_of(Subscribed)
    error = await old.end()
    assert error is not None and error.reason is ErrorReason.SUPERSEDED
    await new.say(Reconcile((TaskId("t"),)))
    await new.hear_of(StatusUpdates)


async def test_a_refused_agent_hears_why_and_its_twin_is_not_disturbed(
    master: Any, registration: Any, eventually: Any
) -> None:
    good = await master.agent("a", incarnation=5)
    twin = master.agent_stream()
    await twin.say(registration("a", incarnation=4), TaskReports((), True))
    refused = await twin.hear_of(Refused)
    assert refused.error.reason is ErrorReason.SUPERSEDED
    await twin.end()
    # Logs still find the one that is in.
    from bursar.core.messages.agent import OpenLog

    await eventually(lambda: len(master.posted(AgentStreamEnded)) == 1)
    assert master.hub.tell_agent("a", OpenLog("s", FrameworkId("f"), TaskId("t")))
    assert (await good.hear_of(OpenLog)).stream_id == "s"


async def test_when_the_master_ends_every_peer_is_told(master: Any) -> None:
    from bursar.core.errors import ErrorDetail

    framework, agent = await master.framework(), await master.agent()
    master.hub.close_all(ErrorDetail(ErrorReason.SHUTTING_DOWN, "the master is ending", "connect again"))
    for peer in (framework, agent):
        error = await peer.end()
        assert error is not None and error.reason is ErrorReason.SHUTTING_DOWN
    assert isinstance(framework.heard[0], Subscribed)
