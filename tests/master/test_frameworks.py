"""Dialogues: frameworks subscribe, come back, are cut off, leave (REG-*, mesos.md §2.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bursar.core.errors import ErrorReason
from bursar.core.messages.agent import DesiredState
from bursar.core.messages.framework import (
    FrameworkHeartbeat,
    MasterHeartbeat,
    Revive,
    StreamError,
    Subscribe,
    Subscribed,
    Teardown,
    UpdateFramework,
)
from bursar.core.messages.offers import CallResult, Demand, Operation, Reserve
from bursar.core.messages.operator import FrameworkState, GetTaskRequest, TeardownFrameworkRequest
from bursar.core.tasks import StatusReason, TaskState

HOUR_MS = 3_600_000


# --- subscribing ---


def test_the_first_event_says_where_one_is(book: Any) -> None:
    framework = book.framework()
    first = framework.inbox[0]
    assert first == Subscribed("f", book.CLUSTER, 1, 15_000)
    assert framework.view.state is FrameworkState.ACTIVE


def test_calls_before_subscribing_end_the_stream(book: Any) -> None:
    framework = book.framework(connect=False)
    framework.connection = book.new_connection(framework)
    framework.call(Revive())
    assert framework.closed.reason is ErrorReason.NOT_SUBSCRIBED


REFUSED = {
    "an empty id": ({"framework_id": ""}, {}, "framework_id"),
    "a slash in the id": ({"framework_id": "a/b"}, {}, "framework_id"),
    "no roles": ({"roles": ()}, {}, "at least one role"),
    "a role twice": ({"roles": ("x", "x")}, {}, "twice"),
    "suppressed roles of others": ({}, {"suppressed": ("x",)}, "suppressed"),
    "a demand in a role of others": ({}, {"demand": "x"}, "'x' is not a role"),
    "another cluster": ({}, {"cluster_id": "cluster-2"}, "cluster-2"),
    **{
        f"role {role!r}": ({"roles": (role,)}, {}, "role") for role in ["", "a//b", "-x", "a b", ".", "a/*", "/a", "a/"]
    },
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_subscription_that_cannot_be_is_refused_with_a_reason(book: Any, what: str) -> None:
    info, call, words = REFUSED[what]
    call = dict(call)
    if "demand" in call:
        call["demand"] = Demand(1, (book.shape(cpus=1, role=call["demand"]),))
    framework = book.framework(connect=False)
    book.frameworks.pop("f")
    framework.connect(**call, **info)
    (error,) = framework.heard(StreamError)
    assert words in str(error.error.message) + error.error.field
    assert not book.machine.cluster.frameworks and not book.registry.frameworks


def test_a_stream_is_one_framework(book: Any) -> None:
    framework = book.framework("f")
    other = book.framework("g", connect=False)
    framework.call(Subscribe(other.info))
    assert framework.closed is not None
    assert set(book.machine.cluster.frameworks) == {"f"}
    assert framework.view.state is FrameworkState.DISCONNECTED


def test_subscribing_again_on_the_same_stream_changes_what_is_said(book: Any) -> None:
    book.agent()
    framework = book.framework(roles=["x"])
    framework.info = type(framework.info)(**{**_fields(framework.info), "roles": ("y",)})
    framework.offers.clear()
    framework.call(Subscribe(framework.info))
    assert framework.closed is None and framework.offer.role == "y"
    assert "x" not in book.machine.cluster.shares.roles()


def _fields(info: Any) -> dict[str, Any]:
    return {name: getattr(info, name) for name in info.__dataclass_fields__}


# --- coming back ---


def test_the_newest_stream_wins_and_offers_of_the_old_one_are_void(book: Any) -> None:
    book.agent()
    framework = book.framework()
    before = framework.offer
    old = framework.connection
    framework.connect(incarnation="2")
    assert book.closed[old].reason is ErrorReason.SUPERSEDED
    assert framework.offer.offer_id != before.offer_id
    result = framework.accept([before.offer_id], book.launch(book.spec("t")))
    assert result.error.reason is ErrorReason.INVALID_OFFERS


def test_a_late_subscribe_of_the_same_life_does_not_make_it_give_up(book: Any) -> None:
    """It came out of a stream that the framework had given up, and overtook nobody but itself."""
    framework = book.framework(incarnation="1")
    old = framework.connection
    framework.connect(incarnation="1")
    assert book.closed[old].reason is ErrorReason.UNSPECIFIED


def test_tasks_go_on_while_a_framework_is_away_and_it_hears_what_it_missed(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t1"), book.spec("t2"))
    framework.disconnect()
    agent.update("t1", TaskState.RUNNING)
    ended = agent.update("t2", TaskState.FAILED)
    assert agent.acknowledged() == []
    book.advance(59_999)
    framework.connect()
    assert framework.states() == [("t1", "RUNNING"), ("t2", "FAILED")]
    framework.acknowledge(ended)
    assert agent.acknowledged() == [("t2", ended.update_id)]


def test_filters_and_demand_are_gone_after_a_reconnect(book: Any) -> None:
    book.agent()
    framework = book.framework(demand=Demand(7, (book.shape(cpus=1),)))
    framework.decline(framework.offer, refuse_ms=HOUR_MS)
    framework.connect()
    assert framework.offered() == book.resources(8, 16)


def test_what_a_framework_says_of_itself_is_kept_over_a_restart(book: Any) -> None:
    framework = book.framework(roles=["x", "y"], labels={"team": "vision"}, webui_url="http://x")
    book.restart()
    assert framework.view.info == framework.info
    assert framework.view.state is FrameworkState.DISCONNECTED


# --- not coming back ---


def test_a_framework_that_does_not_come_back_in_time_is_removed_and_its_tasks_end(book: Any) -> None:
    agent = book.agent()
    framework = book.framework(failover_ms=60_000)
    framework.run(book.spec("t"))
    agent.heard(DesiredState)
    framework.disconnect()
    book.advance(59_999)
    assert "f" in book.machine.cluster.frameworks
    book.advance(1)
    assert "f" not in book.machine.cluster.frameworks
    (state,) = agent.heard(DesiredState)
    assert [(kill.task_id, kill.reason) for kill in state.kill] == [("t", StatusReason.FRAMEWORK_REMOVED)]
    assert book.ask(GetTaskRequest("f/t")).task.state is TaskState.STAGING, "not dead before it is"
    ended = agent.update("t", TaskState.KILLED)
    assert agent.acknowledged() == [("t", ended.update_id)]
    assert agent.view.allocated == book.resources()
    framework.connect()
    assert framework.closed.reason is ErrorReason.FRAMEWORK_REMOVED


def test_without_a_failover_timeout_it_ends_with_its_stream(book: Any) -> None:
    framework = book.framework(failover_ms=0)
    framework.disconnect()
    assert not book.registry.frameworks and "f" in book.registry.removed_frameworks


def test_the_time_that_is_left_survives_a_restart_of_the_master(new_book: Any) -> None:
    """REG-8: Mesos forgot it."""
    book = new_book(allocation_interval="1h")
    framework = book.framework(failover_ms=10 * HOUR_MS)
    framework.disconnect()
    book.advance(9 * HOUR_MS)
    book.restart()
    book.advance(HOUR_MS - 1)
    assert "f" in book.machine.cluster.frameworks
    book.advance(1)
    assert "f" not in book.machine.cluster.frameworks


def test_who_was_connected_when_the_master_left_gets_a_moment_to_come_back(book: Any) -> None:
    framework = book.framework(failover_ms=0)
    book.agent()
    framework.run(book.spec("t"))
    book.restart()
    book.advance(29_999)
    framework.connect()
    assert framework.view.tasks == 1


# --- silence ---


def test_the_master_says_that_it_is_there(book: Any) -> None:
    framework = book.framework()
    framework.sends_heartbeats = False
    book.advance(60_000)
    assert len(framework.heard(MasterHeartbeat)) == 4


def test_a_silent_framework_is_cut_off(book: Any) -> None:
    book.agent()
    framework = book.framework()
    framework.sends_heartbeats = False
    book.advance(74_999)
    assert framework.connection is not None
    book.advance(1)
    assert framework.closed.reason is ErrorReason.SILENT
    assert framework.view.state is FrameworkState.DISCONNECTED and not book.machine.cluster.offers


def test_a_heartbeat_repeats_the_demand(book: Any) -> None:
    book.agent()
    framework = book.framework()
    framework.call(FrameworkHeartbeat(Demand(3, (book.shape(cpus=1),))))
    assert framework.view.demand.version == 3
    framework.call(FrameworkHeartbeat())
    assert framework.view.demand.version == 3


# --- leaving ---


@pytest.mark.parametrize("who", ["itself", "an operator"])
def test_a_torn_down_framework_never_comes_back(book: Any, who: str) -> None:
    agent = book.agent("a")
    other = book.framework("g")
    other.suppress()
    other.decline(*other.offers.values(), refuse_ms=0)
    framework = book.framework("f")
    framework.run(book.spec("t"))
    book.advance(5000)
    assert framework.offers
    if who == "itself":
        framework.call(Teardown())
    else:
        answer = book.ask(TeardownFrameworkRequest("r", "f"))
        assert answer.framework.state is FrameworkState.REMOVED
    assert framework.closed.reason is ErrorReason.FRAMEWORK_REMOVED
    assert [kill.task_id for state in agent.heard(DesiredState) for kill in state.kill] == ["t"]
    assert not book.machine.cluster.offers
    other.revive()
    assert other.offered() == book.resources(7, 16)
    book.restart()
    framework.connect()
    assert framework.closed.reason is ErrorReason.FRAMEWORK_REMOVED


def test_reservations_outlive_frameworks(book: Any) -> None:
    agent = book.agent()
    framework = book.framework(roles=["ml"], failover_ms=0)
    framework.accept(framework.offer, Operation("r", Reserve("a", book.request(cpus=2), "ml")))
    framework.disconnect()
    assert {part.stack for part in agent.view.buckets} == {(), book.dynamic("ml")}


def test_an_id_is_not_taken_over_by_another_principal(book: Any) -> None:
    """Whoever knows it would have its tasks (REG-6)."""
    framework = book.framework(principal="ann")
    framework.disconnect()
    framework.connect(principal="bob")
    assert framework.closed is not None and framework.closed.field == "info.principal"
    assert "another principal" in framework.closed.message
    framework.connect(principal="ann")
    assert framework.closed is None and framework.connection is not None


def test_a_framework_is_who_it_shows(book: Any) -> None:
    """What it says of itself must match; its id stays that principal's, and changes need not repeat the name (B-11)."""
    framework = book.framework(connect=False)
    framework.shown = "ann"
    framework.connect(principal="bob")
    assert framework.closed is not None and framework.closed.field == "info.principal"
    assert "'bob'" in framework.closed.message and "'ann'" in framework.closed.message
    framework.connect(principal="")
    assert book.machine.cluster.frameworks[framework.info.framework_id].info.principal == "ann"
    framework.call(UpdateFramework("u", replace(framework.info, name="other"), (), Demand()))
    (result,) = framework.heard(CallResult)
    assert result.error is None
    known = book.machine.cluster.frameworks[framework.info.framework_id].info
    assert (known.name, known.principal) == ("other", "ann")
    framework.disconnect()
    framework.shown = "eve"
    framework.connect()
    assert framework.closed is not None and "another principal" in framework.closed.message


def test_a_framework_from_before_anybody_was_asked_is_taken_in(book: Any) -> None:
    framework = book.framework()
    framework.disconnect()
    framework.shown = "ann"
    framework.connect()
    assert framework.closed is None
    assert book.machine.cluster.frameworks[framework.info.framework_id].info.principal == "ann"
