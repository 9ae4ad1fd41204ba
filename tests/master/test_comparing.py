"""Dialogues: what a connected agent believes is compared with what the master does, and repaired both ways (B-18)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bursar.core.books import device_lines, digest, task_line
from bursar.core.devices import DeviceHealth
from bursar.core.ids import FrameworkId, Generation, TaskId
from bursar.core.messages.agent import (
    BooksDigest,
    BooksReport,
    BooksRequest,
    DesiredState,
    DevicesChanged,
    KillTask,
    Register,
    Repair,
)
from bursar.core.messages.operator import AgentState, CordonDevicesRequest, GetTaskRequest
from bursar.core.tasks import StatusReason, TaskState
from bursar.master.ledger import TaskKey


def digest_of(agent: Any, **orders_ms: int) -> BooksDigest:
    """What a real agent would say of these tasks and devices."""
    live = [(key, report) for key, report in agent.tasks.items() if not report.state.is_terminal]
    lines = [task_line(*key, report.state, is_to_end=report.state is TaskState.KILLING) for key, report in live]
    devices = device_lines(agent.info.devices, agent.info.resources, orders_ms)
    return BooksDigest(agent.generation, len(lines), digest(lines), digest(devices))


def compare(agent: Any) -> list[BooksRequest]:
    """Two looks."""
    agent.say(digest_of(agent))
    agent.say(digest_of(agent))
    return list(agent.heard(BooksRequest))


def answer(agent: Any, request: BooksRequest) -> None:
    """All that it believes, in two parts."""
    reports = tuple(agent.tasks.values())
    register = Register(agent.info, agent.book.CLUSTER, agent.generation)
    agent.say(BooksReport(request.number, register, reports[:1], complete=False))
    agent.say(BooksReport(request.number, None, reports[1:]))


def repair(agent: Any) -> None:
    """From two looks to the answer."""
    (request,) = compare(agent)
    answer(agent, request)


def repaired(book: Any) -> list[str]:
    """The first words of each repair that was told to those who watch."""
    return [event.message.partition(":")[0] for event in book.published if event.kind == "repaired"]


def forget(book: Any, task_id: str, framework: str = "f") -> None:
    """The master loses a task, and its registry with it."""
    key = TaskKey(FrameworkId(framework), TaskId(task_id))
    cluster = book.machine.cluster
    task = cluster.tasks[key]
    cluster.ledger.release_task(key)
    cluster.agents[task.agent_id].tasks.discard(key)
    del cluster.tasks[key]
    cluster.frameworks[key.framework_id].tasks.discard(key)
    for durable in (cluster.durable, book.registry):
        durable.tasks.pop(key, None)


@pytest.fixture
def running(book: Any) -> Any:
    """A task `t` that runs on a GPU of its own, and another GPU."""
    agent = book.agent(gpus=2)
    framework = book.framework()
    framework.run(book.spec("t", cpus=1, gpus=1))
    framework.acknowledge(agent.update("t", TaskState.RUNNING))
    agent.heard(DesiredState)
    framework.statuses()
    framework.revive()
    return book, agent, framework


def test_views_that_are_equal_cost_a_few_bytes(running: Any) -> None:
    book, agent, _ = running
    for _ in range(5):
        assert not compare(agent)
    assert not agent.heard(DesiredState)
    assert book.machine.cluster.counters.comparisons == {"equal": 10}


def test_one_look_that_differs_may_be_what_is_on_its_way(running: Any) -> None:
    book, agent, _ = running
    agent.say(replace(digest_of(agent), tasks_digest="something else"))
    agent.say(digest_of(agent))
    agent.say(replace(digest_of(agent), tasks_digest="something else"))
    assert not agent.heard(BooksRequest)
    assert book.machine.cluster.counters.comparisons == {"equal": 1, "different": 2}


def test_a_task_that_the_master_has_lost_is_adopted(running: Any) -> None:
    book, agent, framework = running
    forget(book, "t")
    assert not agent.view.allocated.devices
    repair(agent)
    assert book.state_of("t") is TaskState.RUNNING
    assert len(agent.view.allocated.devices) == 1 and agent.view.state is AgentState.ACTIVE
    (desired,) = agent.heard(DesiredState)
    assert not (desired.kill or desired.launch) and [kept.task_id for kept in desired.keep] == ["t"]
    assert repaired(book) == ["adopted"]
    assert book.machine.cluster.counters.repairs == {"adopted": 1}
    assert [status.state for status in framework.reconcile()] == [TaskState.RUNNING]
    assert not compare(agent), "nothing is left to repair"


def test_what_was_offered_of_it_meanwhile_comes_back(running: Any) -> None:
    book, agent, framework = running
    forget(book, "t")
    framework.revive()
    assert any("a-gpu" in str(offer.resources) for offer in framework.offers.values())
    repair(agent)
    held = book.ask(GetTaskRequest("t")).task.resources[0].resources.devices
    assert all(
        held.isdisjoint(part.resources.devices) for offer in framework.offers.values() for part in offer.resources
    )


def test_what_was_launched_on_its_device_meanwhile_is_dropped_and_never_begins(running: Any) -> None:
    book, agent, framework = running
    forget(book, "t")
    (request,) = compare(agent)
    report = agent.tasks["f", "t"]
    device = report.task.resources[0].resources.devices
    framework.decline(framework.offer)
    framework.revive()
    framework.run(book.spec("u", cpus=1, devices=sorted(device)))
    agent.heard(DesiredState)
    agent.tasks = {("f", "t"): report}
    answer(agent, request)
    assert book.state_of("u") is TaskState.DROPPED
    (desired,) = agent.heard(DesiredState)
    assert desired.kill == (KillTask(FrameworkId("f"), TaskId("u"), StatusReason.DEVICES_CHANGED),)
    assert not desired.launch and book.state_of("t") is TaskState.RUNNING


def test_a_task_that_the_agent_has_lost_is_gone(running: Any) -> None:
    book, agent, framework = running
    del agent.tasks["f", "t"]
    repair(agent)
    (status,) = framework.statuses()
    assert (status.state, status.reason) == (TaskState.GONE, StatusReason.CONTAINER_LOST)
    assert not agent.view.allocated.devices and repaired(book) == ["gone"]


def test_the_end_of_a_task_that_the_master_has_lost_is_told(running: Any) -> None:
    book, agent, framework = running
    agent.acknowledged()
    forget(book, "t")
    end = agent.update("t", TaskState.FINISHED, message="done")
    (request,) = agent.heard(BooksRequest)
    assert not agent.acknowledged(), "nobody knows of it yet"
    agent.repeat(end)
    assert not agent.heard(BooksRequest), "it is asked already"
    answer(agent, request)
    (status,) = framework.statuses()
    assert (status.task_id, status.state, status.message) == ("t", TaskState.FINISHED, "done")
    assert repaired(book) == ["end"] and not agent.acknowledged()
    book.restart()
    framework.connect()
    agent.connect()
    again = framework.statuses()[-1]
    assert again.update_id == status.update_id
    framework.acknowledge(again)
    assert agent.acknowledged() == [("t", end.update_id)]
    assert book.state_of("t") is TaskState.FINISHED


def test_an_end_that_came_while_they_were_apart_and_the_master_has_lost_is_told(running: Any) -> None:
    book, agent, framework = running
    agent.acknowledged()
    agent.disconnect()
    forget(book, "t")
    end = agent.update("t", TaskState.FAILED, deliver=False)
    agent.connect()
    (status,) = framework.statuses()
    assert status.state is TaskState.FAILED
    framework.acknowledge(status)
    assert agent.acknowledged() == [("t", end.update_id)]


def test_a_status_of_a_task_that_the_master_has_lost_has_it_found_at_once(running: Any) -> None:
    book, agent, framework = running
    forget(book, "t")
    agent.update("t", TaskState.KILLING)
    (request,) = agent.heard(BooksRequest)
    answer(agent, request)
    assert book.state_of("t") is TaskState.KILLING and repaired(book) == ["adopted"]
    assert [status.state for status in framework.statuses()] == [TaskState.KILLING]


def test_a_launch_that_the_agent_never_got_is_said_again(running: Any) -> None:
    book, agent, framework = running
    framework.run(book.spec("u", cpus=1))
    agent.heard(DesiredState)
    agent.never_got("u")
    repair(agent)
    (desired,) = agent.heard(DesiredState)
    assert [task.spec.task_id for task in desired.launch] == ["u"] and repaired(book) == ["launch"]


def test_a_launch_that_the_agent_got_and_lost_is_gone(running: Any) -> None:
    book, agent, framework = running
    framework.run(book.spec("u", cpus=1))
    agent.heard(DesiredState)
    del agent.tasks["f", "u"]
    repair(agent)
    (desired,) = agent.heard(DesiredState)
    assert not desired.launch and book.state_of("u") is TaskState.GONE and repaired(book) == ["gone"]


def test_what_is_launched_after_the_question_is_on_its_way_and_no_difference(running: Any) -> None:
    book, agent, framework = running
    agent.say(replace(digest_of(agent), tasks=7))
    agent.say(replace(digest_of(agent), tasks=7))
    (request,) = agent.heard(BooksRequest)
    known = dict(agent.tasks)
    framework.run(book.spec("u", cpus=1))
    framework.kill("t")
    agent.heard(DesiredState)
    now, agent.tasks = agent.tasks, known
    # However late the answer comes.
    book.advance(61_000)
    answer(agent, request)
    assert not repaired(book) and book.state_of("u") is TaskState.STAGING
    assert not agent.heard(DesiredState)
    agent.tasks = now


def test_a_kill_that_the_agent_has_lost_is_said_again(running: Any) -> None:
    book, agent, framework = running
    framework.kill("t", grace_ms=7)
    agent.heard(DesiredState)
    repair(agent)
    (desired,) = agent.heard(DesiredState)
    assert [(kill.task_id, kill.grace_ms) for kill in desired.kill] == [("t", 7)] and repaired(book) == ["kill"]


def test_a_state_that_got_lost_is_caught_up_with(running: Any) -> None:
    book, agent, framework = running
    book.machine.cluster.tasks[TaskKey(FrameworkId("f"), TaskId("t"))].state = TaskState.STARTING
    repair(agent)
    assert book.state_of("t") is TaskState.RUNNING and repaired(book) == ["state"]
    agent.update("t", TaskState.FINISHED, deliver=False)
    repair(agent)
    assert book.state_of("t") is TaskState.FINISHED and repaired(book) == ["state", "state"]
    assert framework.statuses()[-1].state is TaskState.FINISHED


def test_what_the_master_declared_ended_is_ended_where_it_runs(running: Any) -> None:
    book, agent, framework = running
    report = agent.tasks.pop(("f", "t"))
    repair(agent)
    framework.acknowledge(framework.statuses()[-1])
    agent.heard(DesiredState)
    agent.tasks["f", "t"] = report
    repair(agent)
    (desired,) = agent.heard(DesiredState)
    assert [kill.task_id for kill in desired.kill] == ["t"] and repaired(book) == ["gone", "ended"]
    agent.tasks["f", "t"] = replace(report, state=TaskState.KILLING)
    repair(agent)
    assert repaired(book) == ["gone", "ended"], "it is ending"


def test_devices_are_taken_over(running: Any) -> None:
    book, agent, _ = running
    ill = replace(agent.info.devices[1], health=DeviceHealth.UNHEALTHY)
    agent.info = replace(agent.info, devices=(agent.info.devices[0], ill))
    repair(agent)
    assert repaired(book) == ["devices"]
    assert {device.uuid: device.health for device in agent.view.devices}[ill.uuid] is DeviceHealth.UNHEALTHY
    assert not compare(agent)


def test_devices_that_cannot_be_taken_over_are_not_tried_again(running: Any) -> None:
    book, agent, _ = running
    twice = agent.info.resources * 2
    agent.info = replace(agent.info, resources=twice)
    agent.say(DevicesChanged(agent.info.devices, twice))
    assert not compare(agent) and not compare(agent)
    assert not repaired(book)


def test_orders_about_devices_that_the_agent_has_lost_are_said_again(running: Any) -> None:
    from bursar.core.messages.agent import DeviceOrders

    book, agent, _ = running
    book.ask(CordonDevicesRequest(("a-gpu1",), "why"))
    assert len(agent.heard(DeviceOrders)) == 1
    repair(agent)
    assert len(agent.heard(DeviceOrders)) == 1
    order = book.machine.cluster.durable.agents["a"].device_orders[0]
    agent.say(digest_of(agent, **{order.uuid: order.ordered_at_ms}))
    assert book.machine.cluster.counters.comparisons["equal"] == 1


def test_an_agent_that_obeyed_more_than_it_was_told_is_heard_by_again(running: Any) -> None:
    book, agent, framework = running
    agent.generation = Generation(1, 500)
    repair(agent)
    (desired,) = agent.heard(DesiredState)
    assert desired.generation == Generation(1, 501) and repaired(book) == ["generation"]
    framework.revive()
    framework.run(book.spec("u", cpus=1))
    assert agent.heard(DesiredState)[0].base == desired.generation


def test_a_view_that_would_be_refused_at_a_registration_changes_nothing(running: Any) -> None:
    book, agent, _ = running
    device = next(iter(agent.tasks["f", "t"].task.resources[0].resources.devices))
    agent.tasks["g", "x"] = book.report("x", book.resources(1, devices=[device]), framework="g")
    repair(agent)
    assert book.state_of("t") is TaskState.RUNNING and not repaired(book)
    (event,) = [event for event in book.published if event.kind == "not_repaired"]
    assert "hold the same" in event.message
    repair(agent)
    assert len([event for event in book.published if event.kind == "not_repaired"]) == 1, "once"


def test_an_agent_with_which_nothing_is_found_is_asked_more_seldom(running: Any) -> None:
    book, agent, _ = running
    asked = []
    for look in range(40):
        agent.say(replace(digest_of(agent), tasks_digest="of another version"))
        for request in agent.heard(BooksRequest):
            asked.append(look)
            answer(agent, request)
    assert asked == [1, 3, 5, 9, 17, 33] and not repaired(book)
    agent.say(digest_of(agent))
    assert len(compare(agent)) == 0


def test_an_answer_to_what_was_asked_on_a_former_stream_is_not_heard(running: Any) -> None:
    book, agent, _ = running
    forget(book, "t")
    (request,) = compare(agent)
    report = agent.tasks.pop(("f", "t"))
    agent.connect()
    agent.tasks["f", "t"] = report
    answer(agent, request)
    assert not repaired(book)


def test_what_an_agent_repaired_by_itself_is_told_and_counted(running: Any) -> None:
    book, agent, _ = running
    agent.say(replace(digest_of(agent), repairs=(Repair("container-stray", message="a container is ended"),)))
    assert repaired(book) == ["container-stray"]
    assert book.machine.cluster.counters.repairs == {"container-stray": 1}


def test_what_no_interruption_explains_is_a_repair_at_a_registration_too(running: Any) -> None:
    book, agent, _ = running
    agent.disconnect()
    forget(book, "t")
    agent.connect()
    assert repaired(book) == ["adopted"]
    del agent.tasks["f", "t"]
    agent.connect()
    assert repaired(book) == ["adopted", "gone"]
    agent.connect(boot_id="boot-2", incarnation=2)
    assert repaired(book) == ["adopted", "gone"]
