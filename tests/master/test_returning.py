"""Dialogues: an agent is back, and what becomes of its tasks, one by one (design.md §8)."""

from __future__ import annotations

from typing import Any

from bursar.core.messages.agent import (
    Refused,
    TaskRef,
)
from bursar.core.tasks import StatusReason, TaskState


def test_a_launch_that_never_arrived_is_sent_again_while_it_is_young(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    agent.never_got("t")
    agent.disconnect()
    book.advance(60_000)
    agent.connect()
    assert [task.spec.task_id for task in agent.told().launch] == ["t"]
    assert framework.states() == []


def test_a_launch_that_is_too_old_is_dropped_and_reported(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    agent.never_got("t")
    agent.disconnect()
    book.advance(60_001)
    agent.connect()
    assert not agent.told().launch
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
    assert not agent.told().launch
    (status,) = framework.statuses()
    assert (status.state, status.reason) == (TaskState.GONE, StatusReason.CONTAINER_LOST)


def test_a_launch_that_was_under_way_when_the_master_died_is_sent_once_more(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    agent.never_got("t")
    book.restart()
    agent.connect()
    assert [task.spec.task_id for task in agent.told().launch] == ["t"]
    # It was taken this time, and its agent dies before it has said anything.
    del agent.tasks["f", "t"]
    agent.connect()
    assert not agent.told().launch and book.state_of("t") is TaskState.GONE


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
    (kill,) = agent.told().kill
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
    assert book.state_of("t") is TaskState.GONE
    agent.tasks["f", "t"] = report
    agent.connect()
    assert [kill.task_id for kill in agent.told().kill] == ["t"]
    assert book.state_of("t") is TaskState.GONE, "what was declared stands"


def test_a_task_that_nobody_knows_is_adopted_and_shown_never_killed(book: Any) -> None:
    agent = book.agent(gpus=2, connect=False)
    report = book.report("t", book.resources(1, devices=["a-gpu1"]), framework="ghost")
    agent.connect(reports=[report])
    state = agent.told()
    assert state.keep == (TaskRef("ghost", "t"),) and not state.kill
    assert book.state_of("t") is TaskState.RUNNING
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
    (kill,) = agent.told().kill
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
    (kill,) = agent.told().kill
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
    assert book.state_of("new") is TaskState.RUNNING
    assert framework.states() == [("old", "DROPPED")]
    assert not agent.told().launch


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
