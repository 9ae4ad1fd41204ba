"""Restarts that an operator or a framework asks for: told to the agent, which does it."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import TaskId
from bursar.core.messages.agent import RestartTask
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


def test_an_agent_that_is_away_is_said(running: Any) -> None:
    book, agent, _framework = running
    agent.disconnect()
    refused = book.ask(RestartTaskRequest("r", "f/t"))
    assert refused.reason is ErrorReason.AGENT_UNAVAILABLE
