"""Dialogues: agents come, go, come back, and what becomes of their tasks (mesos.md §2.3, design.md §8)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bursar.core.devices import DeviceHealth
from bursar.core.errors import ErrorReason
from bursar.core.ids import AgentId, ConnectionId, Generation
from bursar.core.messages.agent import (
    AgentInfo,
    DesiredState,
    DevicesChanged,
    Ping,
    Pong,
    Refused,
    Register,
    Registered,
    ResyncRequest,
    TaskRef,
)
from bursar.core.messages.framework import AgentFailure, Offers, Rescind
from bursar.core.messages.operator import AgentState, GetTaskRequest, ListAgentsRequest
from bursar.core.resources import PortRange, ReservedResources, Resources
from bursar.core.tasks import StatusReason, StatusSource, TaskState
from bursar.master.events import AgentRegistering, AgentStreamEnded


def state_of(book: Any, task_id: str) -> TaskState:
    task = book.ask(GetTaskRequest(task_id)).task
    assert isinstance(task.state, TaskState)
    return task.state


def told(agent: Any) -> Any:
    """The full state that the agent was told last."""
    state = agent.heard(DesiredState)[-1]
    assert state.base is None
    return state


# --- coming in ---


def test_a_new_agent_is_told_the_cluster_and_a_full_state_then_offered(book: Any) -> None:
    framework = book.framework()
    agent = book.agent()
    (registered,) = agent.heard(Registered)
    assert (registered.cluster_id, registered.term) == (book.CLUSTER, 1)
    assert (registered.ping_interval_ms, registered.max_missed_pings) == (15_000, 5)
    state = told(agent)
    assert state.generation == Generation(1, 1) and not (state.launch or state.kill or state.keep)
    assert framework.agents == {"a"}
    assert agent.view.state is AgentState.ACTIVE


def test_an_agent_of_another_cluster_is_refused_with_what_to_do(book: Any) -> None:
    agent = book.agent(connect=False)
    agent.connect(cluster_id="cluster-2")
    (refused,) = agent.heard(Refused)
    assert refused.error.reason is ErrorReason.CLUSTER_MISMATCH
    assert "cluster-2" in refused.error.message and "--work-dir" in refused.error.hint
    assert not book.machine.cluster.agents and agent.connection is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"agent_id": AgentId("a/b")}, "agent_id"),
        ({"resources": (ReservedResources((), Resources(devices=frozenset({"GPU-x"}))),)}, "not described"),
        ({"resources": (ReservedResources((), Resources({"cpus": 2**53 + 1})),)}, "largest amount"),
        (
            {
                "resources": (
                    ReservedResources((), Resources(ports=(PortRange(1, 10),))),
                    ReservedResources((), Resources(ports=(PortRange(10, 20),))),
                )
            },
            "10",
        ),
    ],
)
def test_an_agent_that_contradicts_itself_is_refused(book: Any, change: dict[str, Any], words: str) -> None:
    agent = book.agent(connect=False)
    agent.connect(**change)
    (refused,) = agent.heard(Refused)
    assert refused.error.reason in (ErrorReason.INVALID_ARGUMENT, ErrorReason.INCOMPATIBLE_RESOURCES)
    assert words in refused.error.message
    assert not book.machine.cluster.agents


@pytest.mark.parametrize("kind", ["ports", "devices"])
def test_nothing_is_in_two_buckets(book: Any, kind: str) -> None:
    part = Resources(ports=(PortRange(5, 8),)) if kind == "ports" else book.resources(devices=["a-gpu0"])
    agent = book.agent(
        gpus=1,
        parts=[ReservedResources((), part), ReservedResources(book.static("ml"), part)],
        connect=False,
    )
    agent.connect()
    (refused,) = agent.heard(Refused)
    assert refused.error.reason is ErrorReason.INVALID_ARGUMENT and "twice" in refused.error.message


@pytest.mark.parametrize("holder", ["*", "a//b", "-x", "a b", ".", ""])
def test_static_reservations_are_to_valid_roles(book: Any, holder: str) -> None:
    agent = book.agent(parts=[ReservedResources(book.static(holder), book.resources(1))], connect=False)
    agent.connect()
    (refused,) = agent.heard(Refused)
    assert refused.error.reason is ErrorReason.INVALID_ARGUMENT


def test_one_stream_is_one_agent(book: Any) -> None:
    agent = book.agent("a")
    book.step(AgentRegistering(agent.connection, Register(AgentInfo(AgentId("b"))), ()))
    assert set(book.machine.cluster.agents) == {"a"}


# --- streams ---


def test_the_newest_stream_counts(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    before = framework.offer
    old = agent.connection
    agent.connect()
    assert book.closed[old].reason is ErrorReason.SUPERSEDED
    assert before.offer_id not in framework.offers and framework.agents == {"a"}
    # Words from the old stream are not heard.
    book.step(AgentStreamEnded(old))
    assert agent.view.state is AgentState.ACTIVE


def test_an_older_life_does_not_replace_a_newer_one(book: Any) -> None:
    agent = book.agent(incarnation=5)
    connection = agent.connection
    twin = ConnectionId(900)
    book.step(AgentRegistering(twin, Register(replace(agent.info, incarnation=4), book.CLUSTER), ()))
    assert book.closed[twin].reason is ErrorReason.SUPERSEDED
    assert book.machine.cluster.agents["a"].connection == connection


def test_offers_refer_to_a_description_that_is_sent_once_and_after_changes(book: Any) -> None:
    agent = book.agent(attributes={"rack": "r1"})
    framework = book.framework()
    assert framework.descriptions["a"].attributes == {"rack": "r1"}
    first = framework.descriptions["a"]
    framework.decline(framework.offer, refuse_ms=0)
    book.advance(1000)
    assert [len(event.descriptions) for event in framework.heard(Offers)] == [1, 0]
    agent.connect(attributes={"rack": "r2"}, incarnation=2)
    assert framework.descriptions["a"].version > first.version
    assert framework.descriptions["a"].attributes == {"rack": "r2"}


# --- the link breaks ---


def test_a_broken_link_voids_offers_and_nothing_else(book: Any) -> None:
    agent = book.agent(gpus=2)
    framework = book.framework()
    framework.run(book.spec("t", gpus=1))
    agent.update("t", TaskState.RUNNING)
    book.advance(5000)
    assert framework.agents == {"a"}
    agent.disconnect()
    assert not framework.offers and framework.heard(Rescind)
    assert agent.view.state is AgentState.DISCONNECTED
    assert state_of(book, "t") is TaskState.RUNNING
    agent.connect()
    assert agent.view.state is AgentState.ACTIVE and framework.agents == {"a"}
    assert told(agent).keep == (TaskRef("f", "t"),)
    assert framework.heard(AgentFailure) == []


def test_pings_go_out_and_anything_said_is_a_sign_of_life(book: Any) -> None:
    agent = book.agent()
    agent.answers_pings = False
    for _ in range(20):
        book.advance(15_000)
        (ping,) = agent.heard(Ping)
        assert ping.number == 1
        agent.say(ResyncRequest(Generation(1, 1)) if ping.number % 2 else Pong(ping.number))
    assert agent.view.state is AgentState.ACTIVE


def test_a_silent_agent_is_unreachable_after_five_pings(book: Any) -> None:
    agent = book.agent()
    agent.answers_pings = False
    framework = book.framework()
    framework.run(book.spec("t"))
    book.advance(15_000 * 5)
    assert agent.view.state is AgentState.ACTIVE and len(agent.heard(Ping)) == 5
    connection = agent.connection
    book.advance(15_000)
    assert agent.view.state is AgentState.UNREACHABLE
    assert book.closed[connection].reason is ErrorReason.SILENT
    assert ("t", "UNREACHABLE") in framework.states()
    (failure,) = framework.heard(AgentFailure)
    assert failure.agent_id == "a"
    assert book.registry.agents["a"].unreachable


def test_a_broken_link_is_given_as_long_as_pings_would_take(book: Any) -> None:
    agent = book.agent()
    agent.disconnect()
    book.advance(74_999)
    assert agent.view.state is AgentState.DISCONNECTED
    book.advance(1)
    assert agent.view.state is AgentState.UNREACHABLE


def test_a_stall_of_the_master_declares_nobody_dead(book: Any) -> None:
    agent = book.agent()
    agent.disconnect()
    book.advance(70_000)
    book.stall(60_000)
    assert agent.view.state is AgentState.DISCONNECTED
    book.advance(5_000)
    assert agent.view.state is AgentState.UNREACHABLE


def test_a_stall_does_not_delay_what_is_free(book: Any) -> None:
    """Only peers are owed the time; an allocation that is due is due."""
    framework = book.framework()
    with book.batch():
        book.agent()
        book.stall(60_000)
    assert framework.agents == {"a"}


def test_unreachable_tasks_keep_their_devices_and_do_not_count(book: Any) -> None:
    agent = book.agent("a", gpus=2)
    book.agent("b", gpus=2)
    framework = book.framework()
    offer = next(offer for offer in framework.offers.values() if offer.agent_id == "a")
    framework.run(book.spec("t", gpus=2), offer=offer)
    agent.disconnect()
    book.advance(75_000)
    assert state_of(book, "t") is TaskState.UNREACHABLE
    assert agent.view.allocated.devices == {"a-gpu0", "a-gpu1"}
    assert book.machine.cluster.shares.held("*").get("gpus", 0) == 2000, "only what is offered of b"
    agent.connect()
    assert book.machine.cluster.shares.held("*")["gpus"] == 4000, "t's and b's"


def test_an_unreachable_task_returns_and_says_so(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    framework.acknowledge(agent.update("t", TaskState.RUNNING))
    agent.disconnect()
    book.advance(75_000)
    framework.statuses()
    agent.connect()
    (status,) = framework.statuses()
    assert (status.state, status.reason) == (TaskState.RUNNING, StatusReason.AGENT_REREGISTERED)
    assert status.source is StatusSource.MASTER and status.update_id
    assert told(agent).keep == (TaskRef("f", "t"),)


def test_an_unreachable_task_may_return_ended(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    framework.acknowledge(agent.update("t", TaskState.RUNNING))
    agent.disconnect()
    book.advance(75_000)
    framework.statuses()
    ended = agent.update("t", TaskState.FINISHED, deliver=False, exit_code=0)
    agent.connect()
    assert framework.states() == [("t", "FINISHED")]
    assert agent.view.allocated == Resources()
    framework.acknowledge(ended)
    assert agent.acknowledged()[-1] == ("t", ended.update_id)


# --- task by task ---


def test_a_launch_that_never_arrived_is_sent_again_while_it_is_young(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    agent.never_got("t")
    agent.disconnect()
    book.advance(60_000)
    agent.connect()
    assert [task.spec.task_id for task in told(agent).launch] == ["t"]
    assert framework.states() == []


def test_a_launch_that_is_too_old_is_dropped_and_reported(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    agent.never_got("t")
    agent.disconnect()
    book.advance(60_001)
    agent.connect()
    assert not told(agent).launch
    (status,) = framework.statuses()
    assert (status.state, status.reason) == (TaskState.DROPPED, StatusReason.LAUNCH_TIMEOUT)
    assert framework.offered() == book.resources(8, 16), "its resources are free at once"


def test_a_task_that_is_not_there_any_more_is_gone(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    framework.acknowledge(agent.update("t", TaskState.RUNNING))
    framework.statuses()
    agent.tasks.clear()
    agent.connect()
    (status,) = framework.statuses()
    assert (status.state, status.reason) == (TaskState.GONE, StatusReason.CONTAINER_LOST)


def test_a_launch_that_the_agent_had_and_lost_while_the_master_was_away_is_never_sent_again(book: Any) -> None:
    """A new master has heard nothing of it; that its agent was told, the agent's generation says."""
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    framework.acknowledge(agent.update("t", TaskState.RUNNING))
    framework.statuses()
    del agent.tasks["f", "t"]
    book.restart()
    framework.connect()
    agent.connect()
    assert not told(agent).launch
    (status,) = framework.statuses()
    assert (status.state, status.reason) == (TaskState.GONE, StatusReason.CONTAINER_LOST)


def test_a_launch_that_was_under_way_when_the_master_died_is_sent_once_more(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    agent.never_got("t")
    book.restart()
    agent.connect()
    assert [task.spec.task_id for task in told(agent).launch] == ["t"]
    # It was taken this time, and its agent dies before it has said anything.
    del agent.tasks["f", "t"]
    agent.connect()
    assert not told(agent).launch and state_of(book, "t") is TaskState.GONE


def test_after_a_boot_of_the_machine_its_tasks_are_dead_for_that_reason(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    framework.acknowledge(agent.update("t", TaskState.RUNNING))
    framework.statuses()
    agent.tasks.clear()
    agent.disconnect()
    agent.connect(boot_id="boot-2", incarnation=2)
    (status,) = framework.statuses()
    assert (status.state, status.reason) == (TaskState.GONE, StatusReason.AGENT_REBOOTED)


def test_a_task_that_was_to_be_killed_is_killed_on_return(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t1", cpus=1))
    framework.acknowledge(agent.update("t1", TaskState.RUNNING))
    framework.revive()
    framework.run(book.spec("t2", cpus=1))
    agent.never_got("t2")
    agent.disconnect()
    framework.kill("t1", grace_ms=7)
    framework.kill("t2")
    framework.statuses()
    book.restart()
    framework.connect()
    agent.connect()
    (kill,) = told(agent).kill
    assert (kill.task_id, kill.reason, kill.grace_ms) == ("t1", StatusReason.KILLED_BY_FRAMEWORK, 7)
    (status,) = framework.statuses()
    assert (status.task_id, status.state, status.reason) == (
        "t2",
        TaskState.KILLED,
        StatusReason.KILLED_DURING_LAUNCH,
    )


def test_what_the_master_declared_ended_is_killed_where_it_still_runs(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    framework.acknowledge(agent.update("t", TaskState.RUNNING))
    report = agent.tasks.pop(("f", "t"))
    agent.connect()
    assert state_of(book, "t") is TaskState.GONE
    agent.tasks["f", "t"] = report
    agent.connect()
    assert [kill.task_id for kill in told(agent).kill] == ["t"]
    assert state_of(book, "t") is TaskState.GONE, "what was declared stands"


def test_a_task_that_nobody_knows_is_adopted_and_shown_never_killed(book: Any) -> None:
    agent = book.agent(gpus=2, connect=False)
    report = book.report("t", book.resources(1, devices=["a-gpu1"]), framework="ghost")
    agent.connect(reports=[report])
    state = told(agent)
    assert state.keep == (TaskRef("ghost", "t"),) and not state.kill
    assert state_of(book, "t") is TaskState.RUNNING
    assert agent.view.free.devices == {"a-gpu0"}
    framework = book.framework("ghost")
    assert [status.state for status in framework.reconcile()] == [TaskState.RUNNING]


def test_an_adopted_task_that_has_ended_was_never_there(book: Any) -> None:
    agent = book.agent(connect=False)
    ended = book.report("t", book.resources(1), TaskState.FINISHED, framework="ghost")
    agent.connect(reports=[ended])
    assert not book.machine.cluster.tasks


def test_a_task_of_a_removed_framework_is_killed_and_holds_its_devices_until_it_ended(book: Any) -> None:
    agent = book.agent(gpus=1)
    framework = book.framework()
    framework.run(book.spec("t", gpus=1))
    agent.update("t", TaskState.RUNNING)
    agent.disconnect()
    framework.disconnect()
    book.advance(60_000)
    assert "f" not in book.machine.cluster.frameworks
    agent.connect()
    (kill,) = told(agent).kill
    assert kill.reason is StatusReason.FRAMEWORK_REMOVED
    assert agent.view.free.devices == set()
    agent.update("t", TaskState.KILLED)
    assert agent.acknowledged()[-1][0] == "t", "the master acknowledges in its place"
    assert agent.view.free.devices == {"a-gpu0"}


def test_an_unknown_task_of_a_removed_framework_holds_its_devices_until_it_ended(book: Any) -> None:
    """No GPU has two tasks, not even while the first is being killed."""
    agent = book.agent(gpus=1)
    book.framework("gone", failover_ms=0).disconnect()
    report = book.report("t", book.resources(1, devices=["a-gpu0"]), framework="gone")
    agent.tasks["gone", "t"] = report
    agent.connect()
    (kill,) = told(agent).kill
    assert kill.reason is StatusReason.FRAMEWORK_REMOVED
    framework = book.framework()
    assert framework.offered() == book.resources(7, 16)
    agent.update("t", TaskState.KILLED, framework="gone")
    assert framework.offered() == book.resources(8, 16, ["a-gpu0"])


def test_what_is_adopted_comes_before_what_is_launched(book: Any) -> None:
    """A restored registry may hold a launch for a device that another task has had since."""
    agent = book.agent(gpus=1)
    framework = book.framework()
    framework.run(book.spec("old", gpus=1))
    agent.never_got("old")
    agent.disconnect()
    agent.connect(reports=[book.report("new", book.resources(1, devices=["a-gpu0"]))])
    assert state_of(book, "new") is TaskState.RUNNING
    assert framework.states() == [("old", "DROPPED")]
    assert not told(agent).launch


def test_a_lost_task_does_not_stand_in_the_way_of_an_unknown_one(book: Any) -> None:
    agent = book.agent(gpus=1)
    framework = book.framework()
    framework.run(book.spec("old", gpus=1))
    framework.acknowledge(agent.update("old", TaskState.RUNNING))
    framework.statuses()
    agent.tasks.clear()
    agent.disconnect()
    agent.connect(reports=[book.report("new", book.resources(1, devices=["a-gpu0"]))])
    assert framework.states() == [("old", "GONE")]
    assert agent.view.allocated.devices == {"a-gpu0"}


def test_an_agent_whose_tasks_share_a_device_is_refused(book: Any) -> None:
    agent = book.agent(gpus=1, connect=False)
    one, two = (book.report(name, book.resources(1, devices=["a-gpu0"])) for name in ("t1", "t2"))
    agent.connect(reports=[one, two])
    (refused,) = agent.heard(Refused)
    assert "a-gpu0" in refused.error.message


# --- with other resources ---


def test_an_agent_that_grew_is_taken_in_and_its_tasks_stay(book: Any) -> None:
    agent = book.agent(cpus=4)
    framework = book.framework()
    framework.run(book.spec("t", cpus=4))
    agent.disconnect()
    agent.connect(resources=(ReservedResources((), book.resources(8, 16)),), incarnation=2)
    assert framework.offered().scalars["cpus"] == 4000
    assert state_of(book, "t") is TaskState.STAGING


def test_an_agent_with_less_than_its_tasks_hold_is_refused_by_name(book: Any) -> None:
    agent = book.agent(gpus=2)
    framework = book.framework()
    framework.run(book.spec("t", cpus=4, gpus=2))
    agent.disconnect()
    agent.connect(
        resources=(ReservedResources((), book.resources(8, 16, ["a-gpu0"])),),
        devices=tuple(book.devices("a", 1)),
        incarnation=2,
    )
    (refused,) = agent.heard(Refused)
    assert refused.error.reason is ErrorReason.INCOMPATIBLE_RESOURCES
    assert "a-gpu1" in refused.error.message and refused.error.hint
    assert agent.view.state is AgentState.DISCONNECTED


def test_an_agent_with_less_than_is_reserved_on_it_is_refused_by_name(book: Any) -> None:
    agent = book.agent(gpus=2)
    book.reserve("a", "ml", book.request(cpus=2, gpus=2))
    agent.disconnect()
    agent.connect(resources=(ReservedResources((), book.resources(1, 16)),), devices=(), incarnation=2)
    (refused,) = agent.heard(Refused)
    assert refused.error.reason is ErrorReason.INCOMPATIBLE_RESOURCES
    assert "ml" in refused.error.message and "unreserve" in refused.error.hint


def test_an_agent_may_lose_what_nobody_holds(book: Any) -> None:
    agent = book.agent(gpus=2)
    framework = book.framework()
    framework.run(book.spec("t", gpus=1))
    agent.disconnect()
    agent.connect(
        resources=(ReservedResources((), book.resources(8, 16, ["a-gpu0"])),),
        devices=tuple(book.devices("a", 1)),
        incarnation=2,
    )
    assert agent.view.state is AgentState.ACTIVE
    assert framework.offered().devices == set()


def test_a_launch_that_does_not_fit_any_more_is_dropped(book: Any) -> None:
    agent = book.agent(gpus=2)
    framework = book.framework()
    framework.run(book.spec("t", gpus=2))
    agent.never_got("t")
    agent.disconnect()
    agent.connect(
        resources=(ReservedResources((), book.resources(8, 16, ["a-gpu0"])),),
        devices=tuple(book.devices("a", 1)),
        incarnation=2,
    )
    (status,) = framework.statuses()
    assert (status.state, status.reason) == (TaskState.DROPPED, StatusReason.DEVICES_CHANGED)
    assert not told(agent).launch and framework.offered().devices == {"a-gpu0"}


def test_a_device_held_under_a_reservation_that_the_registry_lost_is_nowhere_free(book: Any) -> None:
    agent = book.agent(gpus=1)
    agent.connect(
        reports=[book.report("t", book.resources(1, devices=["a-gpu0"]), stack=book.dynamic("ml"), framework="ghost")]
    )
    framework = book.framework()
    assert framework.offered().devices == set()
    agent.update("t", TaskState.FINISHED, framework="ghost")
    assert agent.view.free.devices == {"a-gpu0"}


# --- devices change while registered ---


def test_an_unhealthy_device_is_withheld_and_named(book: Any) -> None:
    agent = book.agent(gpus=2)
    framework = book.framework()
    agent.say(DevicesChanged(tuple(book.devices("a", 2, unhealthy=[1])), agent.info.resources))
    assert framework.offered().devices == {"a-gpu0"}
    assert agent.view.withheld.devices == {"a-gpu1"}
    assert any("a-gpu1: unhealthy" in reason for reason in agent.view.withheld_reasons)
    agent.say(DevicesChanged(tuple(book.devices("a", 2)), agent.info.resources))
    assert framework.offered().devices == {"a-gpu0", "a-gpu1"}


def test_a_device_that_vanishes_under_a_task_is_excess_and_the_agent_may_reconnect(book: Any) -> None:
    """A broken link must not shut an agent out for a loss that the master already knows of."""
    agent = book.agent(gpus=2)
    framework = book.framework()
    framework.run(book.spec("t", gpus=2))
    framework.acknowledge(agent.update("t", TaskState.RUNNING))
    less = (ReservedResources((), book.resources(8, 16, ["a-gpu0"])),)
    agent.info = replace(agent.info, devices=tuple(book.devices("a", 1)), resources=less)
    agent.say(DevicesChanged(agent.info.devices, less))
    assert agent.view.excess.devices == {"a-gpu1"}
    agent.connect()
    assert agent.view.state is AgentState.ACTIVE and agent.view.excess.devices == {"a-gpu1"}
    agent.update("t", TaskState.FAILED)
    assert agent.view.excess == Resources() and framework.offered().devices == {"a-gpu0"}


def test_a_reserved_device_that_vanishes_is_withheld_and_health_is_still_heard(book: Any) -> None:
    agent = book.agent(gpus=3)
    book.reserve("a", "ml", book.request(gpus=1))
    framework = book.framework(roles=["ml"])
    (kept,) = book.registry.agents["a"].reservations[0].resources.devices
    assert kept == "a-gpu0"
    left = tuple(book.devices("a", 3, unhealthy=[1])[1:])
    agent.say(DevicesChanged(left, (ReservedResources((), book.resources(8, 16, ["a-gpu1", "a-gpu2"])),)))
    assert framework.offered().devices == {"a-gpu2"}
    assert agent.view.withheld.devices == {"a-gpu0", "a-gpu1"}
    # What is offered and what is recorded is the same, also while not all of it is taken over.
    recorded = {device.uuid: device.health for device in book.registry.agents["a"].info.devices}
    assert recorded == {device.uuid: device.health for device in agent.view.devices}
    assert {uuid for uuid, health in recorded.items() if health is DeviceHealth.UNHEALTHY} == {"a-gpu0", "a-gpu1"}
    well = tuple(book.devices("a", 3)[1:])
    agent.say(DevicesChanged(well, (ReservedResources((), book.resources(8, 16, ["a-gpu1", "a-gpu2"])),)))
    assert framework.offered().devices == {"a-gpu1", "a-gpu2"}
    assert [device.health for device in book.registry.agents["a"].info.devices][1:] == [DeviceHealth.HEALTHY] * 2


def test_changes_that_contradict_themselves_do_not_take_the_master_down(book: Any) -> None:
    agent = book.agent(gpus=2)
    both = book.resources(devices=["a-gpu0"])
    agent.say(
        DevicesChanged(agent.info.devices, (ReservedResources((), both), ReservedResources(book.static("ml"), both)))
    )
    assert agent.view.total.devices == {"a-gpu0", "a-gpu1"}


def test_of_changes_that_are_not_taken_over_the_health_is_recorded_as_it_is_offered_by(book: Any) -> None:
    agent = book.agent(gpus=3)
    framework = book.framework()
    twice = agent.info.resources * 2
    agent.say(DevicesChanged(tuple(book.devices("a", 3, unhealthy=[1])[:2]), twice))
    assert any("not taken over" in event.message for event in book.published)
    assert framework.offered().devices == {"a-gpu0"} and agent.view.total.devices == {"a-gpu0", "a-gpu1", "a-gpu2"}

    def recorded() -> list[DeviceHealth]:
        return [device.health for device in book.registry.agents["a"].info.devices]

    assert recorded() == [DeviceHealth.HEALTHY, DeviceHealth.UNHEALTHY, DeviceHealth.UNHEALTHY]
    agent.say(DevicesChanged(tuple(book.devices("a", 3)), twice))
    assert framework.offered().devices == {"a-gpu0", "a-gpu1", "a-gpu2"} and set(recorded()) == {DeviceHealth.HEALTHY}


# --- desired state ---


def test_an_agent_that_missed_something_gets_everything(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t1"), book.spec("t2"), book.spec("t3"))
    framework.acknowledge(agent.update("t1", TaskState.RUNNING))
    framework.kill("t2")
    book.advance(70_000)
    agent.heard(DesiredState)
    agent.say(ResyncRequest(Generation(1, 0)))
    state = told(agent)
    assert state.keep == (TaskRef("f", "t1"),)
    assert [kill.task_id for kill in state.kill] == ["t2"]
    assert [task.spec.task_id for task in state.launch] == ["t3"], "told while connected: told again however late"


def test_generations_grow_and_a_new_master_has_a_higher_term(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t1"))
    framework.kill("t1")
    before = [state.generation for state in agent.heard(DesiredState)]
    assert before == sorted(before) and len(set(before)) == 3
    book.restart()
    agent.connect()
    assert told(agent).generation > max(before)


# --- after a restart of the master ---


def test_known_agents_are_recovering_until_they_are_back(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    book.restart()
    framework.connect()
    assert agent.view.state is AgentState.RECOVERING and not framework.offers
    assert state_of(book, "t") is TaskState.STAGING
    agent.connect()
    assert agent.view.state is AgentState.ACTIVE and framework.agents == {"a"}


def test_an_agent_that_does_not_come_back_is_given_up(book: Any) -> None:
    agent = book.agent()
    framework = book.framework(failover_ms=3_600_000)
    framework.run(book.spec("t"))
    book.restart()
    framework.connect()
    book.advance(599_999)
    framework.connect()
    assert agent.view.state is AgentState.RECOVERING
    book.advance(1)
    assert agent.view.state is AgentState.UNREACHABLE
    assert state_of(book, "t") is TaskState.UNREACHABLE


def test_unreachable_stays_unreachable_over_a_restart(book: Any) -> None:
    agent = book.agent()
    agent.disconnect()
    book.advance(75_000)
    book.restart()
    assert agent.view.state is AgentState.UNREACHABLE
    agent.connect()
    assert agent.view.state is AgentState.ACTIVE
    assert not book.registry.agents["a"].unreachable


def test_agents_are_listed_with_their_state(book: Any) -> None:
    book.agent("b")
    book.agent("a").disconnect()
    found = book.ask(ListAgentsRequest()).agents
    assert [(agent.agent_id, agent.state) for agent in found] == [
        ("a", AgentState.DISCONNECTED),
        ("b", AgentState.ACTIVE),
    ]
