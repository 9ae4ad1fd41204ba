"""Dialogues: statuses and their acknowledgement, kills, reconciliation, pruning (SU-*, TSK-8, RC-*)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bursar.core.messages.agent import DesiredState
from bursar.core.messages.framework import Acknowledge, UpdateRef
from bursar.core.messages.operator import GetTaskRequest, KillTaskRequest, ListTasksRequest
from bursar.core.tasks import StatusReason, StatusSource, TaskState
from bursar.master.records import MAX_ENDED_TASKS_PER_FRAMEWORK as LIMIT


@pytest.fixture
def running(book: Any) -> tuple[Any, Any, Any]:
    """An agent and a framework with one task `t`."""
    agent = book.agent(gpus=1)
    framework = book.framework()
    framework.run(book.spec("t", gpus=1))
    agent.heard(DesiredState)
    return book, agent, framework


# --- updates ---


def test_an_update_is_told_and_acknowledged_only_by_the_framework(running: Any) -> None:
    _book, agent, framework = running
    sent = agent.update("t", TaskState.RUNNING)
    (status,) = framework.statuses()
    assert status == replace(sent, agent_id="a", source=StatusSource.AGENT)
    assert agent.acknowledged() == []
    framework.acknowledge(status)
    assert agent.acknowledged() == [("t", sent.update_id)]


def test_a_repeat_is_told_again_until_it_is_acknowledged_then_acknowledged_at_once(running: Any) -> None:
    _book, agent, framework = running
    sent = agent.update("t", TaskState.RUNNING)
    agent.repeat(sent)
    assert framework.states() == [("t", "RUNNING")] * 2
    framework.acknowledge(sent)
    agent.acknowledged()
    agent.repeat(sent)
    assert framework.states() == [] and agent.acknowledged() == [("t", sent.update_id)]


def test_acknowledgements_that_nobody_waits_for_are_ignored(running: Any) -> None:
    _book, agent, framework = running
    sent = agent.update("t", TaskState.RUNNING)
    framework.call(Acknowledge((UpdateRef("t", "other"), UpdateRef("unknown", sent.update_id), UpdateRef("t", ""))))
    assert agent.acknowledged() == []
    framework.acknowledge(sent)
    framework.acknowledge(sent)
    assert agent.acknowledged() == [("t", sent.update_id)]


def test_another_framework_cannot_acknowledge(running: Any) -> None:
    book, agent, _framework = running
    sent = agent.update("t", TaskState.RUNNING)
    book.framework("g").acknowledge(sent)
    assert agent.acknowledged() == []


@pytest.mark.parametrize("state", [TaskState.FINISHED, TaskState.FAILED, TaskState.KILLED, TaskState.ERROR])
def test_a_terminal_state_frees_at_once_acknowledged_or_not(running: Any, state: TaskState) -> None:
    book, agent, framework = running
    agent.update("t", state)
    assert framework.offered().devices == {"a-gpu0"} or agent.view.free.devices == {"a-gpu0"}
    assert agent.view.allocated == book.resources()


def test_a_task_has_one_end(running: Any) -> None:
    _book, agent, framework = running
    agent.update("t", TaskState.FINISHED)
    late = agent.update("t", TaskState.FAILED)
    assert framework.states() == [("t", "FINISHED")]
    assert agent.acknowledged() == [("t", late.update_id)], "what nobody will hear need not be repeated"


def test_no_state_goes_backwards(running: Any) -> None:
    _book, agent, framework = running
    agent.update("t", TaskState.RUNNING)
    late = agent.update("t", TaskState.STARTING)
    unknown = agent.update("t", TaskState.UNSPECIFIED)
    assert framework.states() == [("t", "RUNNING")]
    assert agent.acknowledged() == [("t", late.update_id), ("t", unknown.update_id)]


def test_an_update_of_a_task_of_another_agent_changes_nothing(running: Any) -> None:
    book, _agent, framework = running
    liar = book.agent("liar")
    sent = liar.update("t", TaskState.FINISHED)
    assert framework.states() == [] and liar.acknowledged() == [("t", sent.update_id)]
    assert book.ask(GetTaskRequest("t")).task.state is TaskState.STAGING


def test_updates_of_a_disconnected_framework_wait(running: Any) -> None:
    _book, agent, framework = running
    framework.disconnect()
    sent = agent.update("t", TaskState.FINISHED)
    assert agent.acknowledged() == []
    framework.connect()
    framework.acknowledge(*framework.statuses())
    assert agent.acknowledged() == [("t", sent.update_id)]


def test_an_end_survives_a_restart_and_is_told_until_acknowledged(running: Any) -> None:
    book, agent, framework = running
    sent = agent.update("t", TaskState.FINISHED, exit_code=0, message="done")
    framework.statuses()
    book.restart()
    framework.connect()
    (status,) = framework.statuses()
    assert (status.update_id, status.exit_code, status.message) == (sent.update_id, 0, "done")
    agent.connect()
    framework.statuses()
    framework.acknowledge(status)
    assert agent.acknowledged()[-1] == ("t", sent.update_id)
    book.restart()
    framework.connect()
    agent.connect()
    assert framework.statuses() == []


def test_what_the_master_says_itself_is_repeated_and_survives_its_restart(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    agent.update("t", TaskState.RUNNING)
    framework.acknowledge(*framework.statuses())
    agent.acknowledged()
    agent.tasks.clear()
    agent.connect(boot_id="boot-2", incarnation=2)
    (gone,) = framework.statuses()
    assert (gone.state, gone.source) == (TaskState.GONE, StatusSource.MASTER) and gone.update_id
    book.advance(10_000)
    assert framework.statuses() == [gone], "every ten seconds"
    book.restart()
    framework.connect()
    assert framework.statuses() == [gone]
    framework.acknowledge(gone)
    book.advance(30_000)
    book.restart()
    framework.connect()
    assert framework.statuses() == []
    assert not agent.acknowledged(), "the agent never said it"


# --- kills ---


def test_a_kill_is_recorded_and_told_with_its_reason(running: Any) -> None:
    book, agent, framework = running
    framework.kill("t", grace_ms=10)
    (state,) = agent.heard(DesiredState)
    (kill,) = state.kill
    assert (kill.task_id, kill.reason, kill.grace_ms) == ("t", StatusReason.KILLED_BY_FRAMEWORK, 10)
    assert type(book.records[-1]).__name__ == "KillRecorded"
    framework.kill("t", grace_ms=10)
    assert type(book.records[-2]).__name__ != "KillRecorded", "recorded once"
    assert len(agent.heard(DesiredState)) == 1, "but said again"


def test_an_operator_kills_by_name(running: Any) -> None:
    book, agent, _framework = running
    answer = book.ask(KillTaskRequest("r", "f/t", 5))
    assert answer.task.task_id == "t"
    (state,) = agent.heard(DesiredState)
    assert state.kill[0].reason is StatusReason.KILLED_BY_OPERATOR


def test_killing_what_is_unknown_says_so(book: Any) -> None:
    framework = book.framework()
    framework.kill("nobody")
    (status,) = framework.statuses()
    assert (status.state, status.update_id) == (TaskState.UNKNOWN, "")


def test_killing_what_has_ended_tells_its_end_again(running: Any) -> None:
    _book, agent, framework = running
    agent.update("t", TaskState.FINISHED)
    framework.acknowledge(*framework.statuses())
    agent.heard(DesiredState)
    framework.kill("t")
    (status,) = framework.statuses()
    assert (status.state, status.reason, status.update_id) == (
        TaskState.FINISHED,
        StatusReason.RECONCILIATION,
        "",
    )
    assert not agent.heard(DesiredState)


def test_a_task_of_another_framework_cannot_be_killed(running: Any) -> None:
    book, agent, _framework = running
    other = book.framework("g")
    other.kill("t")
    assert [status.state for status in other.statuses()] == [TaskState.UNKNOWN]
    assert not agent.heard(DesiredState)


# --- reconciliation ---


def test_asked_by_name_everything_is_answered(running: Any) -> None:
    """RC-1."""
    _book, agent, framework = running
    agent.update("t", TaskState.RUNNING)
    answers = framework.reconcile("t", "unknown")
    assert [(s.task_id, s.state, s.reason, s.source, s.update_id) for s in answers] == [
        ("t", TaskState.RUNNING, StatusReason.RECONCILIATION, StatusSource.MASTER, ""),
        ("unknown", TaskState.UNKNOWN, StatusReason.RECONCILIATION, StatusSource.MASTER, ""),
    ]


def test_nothing_is_said_of_unknown_tasks_while_agents_are_awaited(running: Any) -> None:
    """RC-1: one of them may run it."""
    book, agent, framework = running
    book.restart()
    framework.connect()
    assert [status.task_id for status in framework.reconcile("t", "unknown")] == ["t"]
    agent.connect()
    assert [status.task_id for status in framework.reconcile("t", "unknown")] == ["t", "unknown"]


def test_asked_for_all_those_that_have_not_ended_are_answered(book: Any) -> None:
    """RC-2."""
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t1"), book.spec("t2"), book.spec("t3"))
    agent.update("t2", TaskState.RUNNING)
    agent.update("t3", TaskState.FINISHED)
    assert [(s.task_id, s.state.name) for s in framework.reconcile()] == [("t1", "STAGING"), ("t2", "RUNNING")]
    agent.disconnect()
    book.advance(75_000)
    assert {s.state.name for s in framework.reconcile()} == {"UNREACHABLE"}


# --- forgetting ---


def test_ended_tasks_are_forgotten_when_there_are_many(book: Any) -> None:
    agent = book.agent(cpus=10_000)
    framework = book.framework()
    for start in range(0, LIMIT + 50, 350):
        names = [f"t{start + index}" for index in range(350)]
        framework.run(*[book.spec(name) for name in names], refuse_ms=0)
        with book.batch():
            for name in names:
                book.machine.check = lambda: None
                agent.update(name, TaskState.FINISHED)
            framework.acknowledge(*framework.statuses())
            del book.machine.check
        book.advance(1000)
        agent.tasks.clear()
    ended = book.ask(ListTasksRequest(all=True, page=book.page(5000))).tasks
    assert len(ended) == LIMIT
    assert "t0" not in {task.task_id for task in ended}, "the oldest first"
    assert len(book.registry.tasks) == LIMIT


def test_a_framework_may_go_with_more_ended_tasks_than_are_remembered(book: Any) -> None:
    agent = book.agent(cpus=10_000)
    framework = book.framework(failover_ms=0)
    names = [f"t{index:05d}" for index in range(LIMIT + 5)]
    framework.run(*[book.spec(name) for name in names])
    with book.batch():
        book.machine.check = lambda: None
        for name in reversed(names):
            agent.update(name, TaskState.FINISHED)
        framework.acknowledge(*framework.statuses()[:LIMIT])
        del book.machine.check
    framework.disconnect()
    assert len(book.registry.tasks) == LIMIT


def test_ended_tasks_of_frameworks_that_came_and_went_do_not_pile_up(book: Any) -> None:
    """Each `bursar run` is a framework of its own."""
    agent = book.agent()
    for index in range(3):
        framework = book.framework(f"run{index}", failover_ms=0)
        framework.run(book.spec("t"), refuse_ms=0)
        framework.acknowledge(agent.update("t", TaskState.FINISHED, framework=f"run{index}"))
        framework.disconnect()
        book.advance(1000)
    assert len(book.registry.tasks) == 3
    book.leap(8 * 24 * 3_600_000)
    assert len(book.registry.tasks) == 0
    book.judge()


def test_the_age_of_ended_tasks_counts_over_restarts(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    framework.acknowledge(agent.update("t", TaskState.FINISHED))
    book.leap(6 * 24 * 3_600_000)
    book.restart()
    book.leap(24 * 3_600_000 + 60_000)
    assert not book.registry.tasks
