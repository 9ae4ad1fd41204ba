"""OperatorService over the wire: every method is served, lists come in pages, watchers hear."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages import operator as op
from bursar.core.messages.operator import KillTaskRequest
from bursar.core.resources import ResourceRequest
from bursar.master.server.operator_service import STREAMED, OperatorServicer
from bursar.runtime.codec import encode, operator_types
from bursar.v1 import operator_service_pb2 as pb

METHODS = {method.name: method for method in pb.DESCRIPTOR.services_by_name["OperatorService"].methods}


@pytest.mark.parametrize("method", METHODS)
async def test_every_method_of_the_contract_is_served(master: Any, method: str) -> None:
    """An empty request is answered, or refused with a detail; it is never unknown to us."""
    call = getattr(master.operator, method)
    request = GetMessageClass(METHODS[method].input_type)()
    try:
        if method == "Watch":
            stream = call(request)
            await stream.initial_metadata()
            stream.cancel()
        elif METHODS[method].client_streaming:
            stream = call()
            await stream.write(request)
            assert await asyncio.wait_for(stream.read(), 10) is not grpc.aio.EOF
        elif method in STREAMED:
            assert await asyncio.wait_for(call(request).read(), 10) is not grpc.aio.EOF
        else:
            answer = await asyncio.wait_for(call(request), 10)
            assert type(answer).__name__ == f"{method}Response"
    except grpc.aio.AioRpcError as failure:
        assert failure.code() not in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN), failure
        assert "bursar-error-bin" in dict(failure.trailing_metadata() or ())


def test_methods_are_made_for_the_contract_and_nothing_else() -> None:
    served = {name for name in vars(OperatorServicer) if name[0].isupper()}
    assert served == set(METHODS)
    for method in METHODS:
        assert getattr(OperatorServicer, method).__name__ == method
        if method not in STREAMED:
            assert [kind.__name__ for kind in operator_types(method)] == [f"{method}Request", f"{method}Response"]


async def all_pages(call: Any, request_type: Any, items: str, size: int) -> list[list[Any]]:
    pages, token = [], ""
    while True:
        response = await call(request_type(page=pb.Page(page_size=size, page_token=token)))
        pages.append(list(getattr(response, items)))
        token = response.next_page_token
        if not token:
            return pages


async def test_lists_come_in_pages_with_everything_once(master: Any) -> None:
    for number in range(23):
        await master.agent(f"agent-{number:02}")
    operator = master.operator
    pages = await all_pages(operator.ListAgents, pb.ListAgentsRequest, "agents", 10)
    assert [len(page) for page in pages] == [10, 10, 3]
    ids = [view.agent_id for page in pages for view in page]
    assert ids == [f"agent-{number:02}" for number in range(23)]
    exact = await all_pages(operator.ListAgents, pb.ListAgentsRequest, "agents", 23)
    assert [len(page) for page in exact if page] == [23]
    flags = await all_pages(operator.ListFlags, pb.ListFlagsRequest, "flags", 3)
    names = [view.name for page in flags for view in page]
    assert names == sorted(set(names)) and len(flags) > 1


async def test_what_changes_between_two_pages_is_neither_repeated_nor_hides_others(master: Any) -> None:
    for number in range(6):
        await master.agent(f"agent-{number}")
    operator = master.operator
    first = await operator.ListAgents(pb.ListAgentsRequest(page=pb.Page(page_size=3)))
    await master.agent("agent-00")
    second = await operator.ListAgents(
        pb.ListAgentsRequest(page=pb.Page(page_size=3, page_token=first.next_page_token))
    )
    found = [view.agent_id for view in (*first.agents, *second.agents)]
    assert found == [f"agent-{number}" for number in range(6)]


async def test_a_watcher_hears_what_happens_from_then_on(master: Any, eventually: Any) -> None:
    await master.agent("before")
    stream = master.operator.Watch(pb.WatchRequest())
    # From here on nothing is missed.
    await stream.initial_metadata()
    await master.agent("a")
    await master.operator.SetFlag(pb.SetFlagRequest(name="filter-gpu-resources", value="false"))
    heard: list[Any] = []
    async with asyncio.timeout(10):
        while not heard or heard[-1].kind != "flag_changed":
            heard.extend((await stream.read()).events)
    assert [(event.kind, event.agent_id) for event in heard] == [("agent_added", "a"), ("flag_changed", "")]
    stream.cancel()
    await eventually(lambda: not master.hub._watchers, "the watcher to be forgotten")


async def test_a_watcher_that_does_not_read_is_dropped_and_costs_nobody_else(
    master: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bursar.core.messages.operator import ClusterEvent
    from bursar.master.effects import Publish
    from bursar.master.server import hub as hub_module

    monkeypatch.setattr(hub_module, "WATCH_CAPACITY", 20)
    stream = master.operator.Watch(pb.WatchRequest())
    await eventually(lambda: master.hub._watchers)
    (outbox,) = master.hub._watchers
    for _ in range(3000):
        master.hub.perform(Publish(ClusterEvent(0, "noise", "", "", "", "x" * 100_000)))
        await asyncio.sleep(0)
        if outbox.overflowed:
            break
    assert outbox.overflowed and len(outbox) == 0
    assert (await master.operator.GetMaster(pb.GetMasterRequest())).master.cluster_id == "cluster-1"
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        while await asyncio.wait_for(stream.read(), 10) is not grpc.aio.EOF:
            pass
        code = await stream.code()
        raise AssertionError(f"ended as if all were well: {code}")
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_caller_that_goes_away_leaves_nothing_behind(master: Any, eventually: Any) -> None:
    master.registry.open.clear()
    call = master.operator.SetFlag(pb.SetFlagRequest(name="filter-gpu-resources", value="false"))
    await eventually(lambda: master.hub._replies)
    call.cancel()
    await eventually(lambda: not master.hub._replies, "the reply to be forgotten")
    master.registry.open.set()
    await asyncio.wait_for(master.driver.settled(), 10)


async def test_a_repeated_request_gets_the_first_answer(master: Any) -> None:
    operator = master.operator
    request = pb.SetFlagRequest(request_id="once", name="filter-gpu-resources", value="false")
    first = await operator.SetFlag(request)
    await operator.SetFlag(pb.SetFlagRequest(name="filter-gpu-resources", value="true"))
    assert await operator.SetFlag(request) == first
    flag = await operator.GetFlag(pb.GetFlagRequest(name="filter-gpu-resources"))
    assert flag.flag.value == "true", "the repeat changed nothing"


async def test_a_refusal_has_reason_hint_and_status(master: Any, detail_of: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await master.operator.KillTask(encode(KillTaskRequest("", "nothing")))
    error = detail_of(failure.value)
    assert error.reason is ErrorReason.NOT_FOUND and "nothing" in error.message
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND
    await master.agent("a")
    from bursar.core.messages.operator import ReserveResourcesRequest

    with pytest.raises(grpc.aio.AioRpcError) as failure:
        wanted = ResourceRequest({"cpus": 1_000_000})
        await master.operator.ReserveResources(encode(ReserveResourcesRequest("", "a", "research", wanted, {})))
    error = detail_of(failure.value)
    assert error.message and error.hint and failure.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_who_got_past_the_guard_unseen_is_no_operator(master: Any) -> None:
    """A guard that did not look, by whatever mistake, has let nobody in."""
    servicer: Any = OperatorServicer(master.hub, master.logs, master.sessions, guarded=True)
    await master.agent("a")
    for request, reason in (
        (op.ListAgentsRequest(op.Page()), ErrorReason.PERMISSION_DENIED),
        (op.SetFlagRequest("", "filter-gpu-resources", "false"), ErrorReason.PERMISSION_DENIED),
        (op.GetTaskRequest("t"), ErrorReason.NOT_FOUND),
    ):
        answer = await servicer.ask(request)
        assert isinstance(answer, ErrorDetail) and answer.reason is reason, answer
    open_to_all: Any = OperatorServicer(master.hub, master.logs, master.sessions, guarded=False)
    assert len((await open_to_all.ask(op.ListAgentsRequest(op.Page()))).agents) == 1
