"""Dialogues: tasks on executors, as far as the master has a say (TSK-6, TSK-13)."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import ErrorReason
from bursar.core.ids import TaskId
from bursar.core.messages.agent import DesiredState
from bursar.core.tasks import TaskExecutor


def executor(book: Any, name: str = "x", **more: Any) -> Any:
    return book.spec(name, executor=TaskExecutor(serves=True), **more)


def on(book: Any, name: str, executor_id: str = "x", **more: Any) -> Any:
    return book.spec(name, command=(), executor=TaskExecutor(False, TaskId(executor_id)), **more)


def test_a_task_on_an_executor_is_charged_besides_it(book: Any) -> None:
    agent = book.agent(cpus=8, gpus=2)
    framework = book.framework()
    framework.run(executor(book, cpus=2), refuse_ms=0)
    book.advance(1000)
    agent.heard(DesiredState)
    framework.run(on(book, "t", cpus=3, gpus=1))
    (state,) = agent.heard(DesiredState)
    assert [task.spec.runs_on for task in state.launch] == ["x"]
    assert agent.view.allocated == book.resources(5, 0, ["a-gpu0"])


@pytest.mark.parametrize(
    ("make", "words", "field"),
    [
        (lambda book: on(book, "t", "nobody"), "'nobody' does not run", "executor.executor_id"),
        (lambda book: on(book, "t", "plain"), "is no executor", "executor.executor_id"),
        (lambda book: on(book, "t", "ended"), "does not run", "executor.executor_id"),
        (lambda book: on(book, "t", "t"), "cannot run itself", "executor.executor_id"),
        (lambda book: on(book, "t", image="i"), "say this of the executor", "image"),
        (lambda book: book.spec("t", executor=TaskExecutor()), "say one of them", "executor"),
        (lambda book: book.spec("t", executor=TaskExecutor(True, TaskId("x"))), "say one of them", "executor"),
    ],
)
def test_a_task_whose_executor_cannot_run_it(book: Any, make: Any, words: str, field: str) -> None:
    book.agent()
    framework = book.framework()
    framework.run(executor(book), book.spec("plain"), executor(book, "ended"), refuse_ms=0)
    book.advance(1000)
    framework.kill("ended")
    result = framework.accept(framework.offer, book.launch(make(book)))
    assert result.error is not None and result.error.reason is ErrorReason.TASK_INVALID
    assert words in result.error.message and result.error.field == f"operations[0].launch.tasks[0].{field}"


def test_it_is_on_the_executors_agent(book: Any) -> None:
    book.agent("a")
    framework = book.framework()
    framework.run(executor(book), refuse_ms=0)
    book.advance(1000)
    book.agent("b")
    (offer,) = [offer for offer in framework.offers.values() if offer.agent_id == "b"]
    result = framework.accept(offer, book.launch(on(book, "t")))
    assert result.error is not None and "accept an offer of the executor's agent" in result.error.hint


def test_an_older_agent_and_a_container_refuse_what_they_cannot_do(book: Any) -> None:
    book.agent(capabilities=())
    framework = book.framework()
    result = framework.accept(framework.offer, book.launch(executor(book)))
    assert result.error is not None and "knows no executors" in result.error.message


def test_a_container_takes_no_gpus_for_a_task_on_an_executor(book: Any) -> None:
    book.agent(gpus=1, runtime="docker")
    framework = book.framework()
    framework.run(executor(book), refuse_ms=0)
    book.advance(1000)
    result = framework.accept(framework.offer, book.launch(on(book, "t", gpus=1)))
    assert result.error is not None and "let the executor itself ask" in result.error.hint
