"""Restarts that an operator or a framework asks for: told to the agent, which does it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import TaskId
from bursar.core.messages.agent import DesiredState, RestartTask
from bursar.core.messages.framework import Restart
from bursar.core.messages.operator import RestartTaskRequest
from bursar.core.tasks import TaskState


@pytest.fixture
def running(book: Any) -> Any:
    """A task `t` that runs."""
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t", cpus=1))
    agent.update("t", TaskState.RUNNING)
    return book, agent, framework


def test_an_operator_restarts_by_name(running: Any) -> None:
    book, agent, _framework = running
    answer = book.ask(RestartTaskRequest("r", "f/t", 5))
    assert answer.task.task_id == "t"
    (restart,) = agent.heard(RestartTask)
    assert (restart.framework_id, restart.task_id, restart.grace_ms) == ("f", "t", 5)
    assert restart.message == "an operator asked for it"
    book.ask(RestartTaskRequest("r", "f/t", 5))
    assert not agent.heard(RestartTask), "a repeat gets the first answer"


def test_a_framework_restarts_its_own_task(running: Any) -> None:
    book, agent, framework = running
    framework.call(Restart(TaskId("t")))
    (restart,) = agent.heard(RestartTask)
    assert restart.message == "its framework asked for it"
    other = book.framework("g")
    other.call(Restart(TaskId("t")))
    assert not agent.heard(RestartTask)


def test_only_what_runs_can_be_restarted(running: Any) -> None:
    book, agent, framework = running
    framework.kill("t")
    refused = book.ask(RestartTaskRequest("r1", "f/t"))
    assert isinstance(refused, ErrorDetail) and refused.reason is ErrorReason.INVALID_ARGUMENT
    agent.update("t", TaskState.KILLED)
    assert "is KILLED" in book.ask(RestartTaskRequest("r2", "f/t")).message
    assert book.ask(RestartTaskRequest("r3", "nobody")).reason is ErrorReason.NOT_FOUND
    assert not agent.heard(RestartTask)


def test_an_order_waits_for_an_agent_that_is_away_and_is_said_until_it_is_taken(running: Any) -> None:
    book, agent, _framework = running
    agent.disconnect()
    assert not isinstance(book.ask(RestartTaskRequest("r", "f/t", 7)), ErrorDetail)
    book.restart()
    for _ in range(2):
        agent.connect()
        (restart,) = agent.heard(RestartTask)
        assert (restart.task_id, restart.grace_ms, restart.number) == ("t", 7, 1)
    agent.tasks["f", "t"] = replace(agent.tasks["f", "t"], restart_order=1)
    agent.connect()
    assert not agent.heard(RestartTask), "it has taken it"


def test_a_later_order_has_a_higher_number_whatever_the_registry_has_forgotten(running: Any) -> None:
    book, agent, _framework = running
    agent.tasks["f", "t"] = replace(agent.tasks["f", "t"], restart_order=5)
    agent.connect()
    book.ask(RestartTaskRequest("r1", "f/t"))
    book.ask(RestartTaskRequest("r2", "f/t"))
    assert [one.number for one in agent.heard(RestartTask)] == [6, 7]


def test_what_is_to_end_meanwhile_is_not_restarted(running: Any) -> None:
    book, agent, framework = running
    agent.disconnect()
    book.ask(RestartTaskRequest("r", "f/t"))
    framework.kill("t")
    agent.connect()
    (desired,) = [one for one in agent.heard(DesiredState) if one.kill]
    assert [kill.task_id for kill in desired.kill] == ["t"]
    assert not agent.heard(RestartTask)
