"""Dialogues: tasks on executors, as far as the master has a say (TSK-6, TSK-13)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bursar.core.errors import ErrorReason
from bursar.core.ids import FrameworkId, TaskId
from bursar.core.messages.agent import DesiredState
from bursar.core.messages.executor import ExecutorMessage
from bursar.core.tasks import EXECUTORS, TaskExecutor
from bursar.core.ulimits import ULIMITS, parse_ulimits


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


def test_an_agent_that_would_ignore_limits_of_processes_is_given_no_task_with_any(book: Any) -> None:
    """It knows nothing of them, and says nothing."""
    book.agent(capabilities=(EXECUTORS,))
    framework = book.framework()
    spec = replace(book.spec("t", cpus=1), ulimits=parse_ulimits(["nofile=64"]))
    result = framework.accept(framework.offer, book.launch(spec))
    assert result.error is not None and "would ignore them" in result.error.message
    assert result.error.field.endswith(".ulimits") and "upgrade" in result.error.hint
    book.agent("b", capabilities=(EXECUTORS, ULIMITS))
    framework.revive()
    (offer,) = [offer for offer in framework.offers.values() if offer.agent_id == "b"]
    assert framework.accept(offer, book.launch(spec)).error is None


def test_a_container_takes_no_gpus_for_a_task_on_an_executor(book: Any) -> None:
    book.agent(gpus=1, runtime="docker")
    framework = book.framework()
    framework.run(executor(book), refuse_ms=0)
    book.advance(1000)
    result = framework.accept(framework.offer, book.launch(on(book, "t", gpus=1)))
    assert result.error is not None and "let the executor itself ask" in result.error.hint


def test_messages_pass_between_a_framework_and_its_executors_alone(book: Any) -> None:
    agent, elsewhere = book.agent("a"), book.agent("b")
    framework, other = book.framework("f"), book.framework("g")
    framework.run(executor(book), book.spec("plain"), offer=next(iter(framework.offers.values())))
    home, stranger = (agent, elsewhere) if agent.heard(DesiredState)[-1].launch else (elsewhere, agent)

    framework.call(ExecutorMessage(executor_id=TaskId("x"), data=b"hello"))
    assert home.heard(ExecutorMessage) == [ExecutorMessage(FrameworkId("f"), TaskId("x"), b"hello")]
    said = ExecutorMessage(FrameworkId("f"), TaskId("x"), b"hi")
    home.say(said)
    assert framework.heard(ExecutorMessage) == [said]

    # What is not between the two is dropped: another framework's, a plain task's, another agent's word, too much.
    other.call(ExecutorMessage(FrameworkId("f"), TaskId("x"), b"hello"))
    framework.call(ExecutorMessage(executor_id=TaskId("plain"), data=b"hello"))
    framework.call(ExecutorMessage(executor_id=TaskId("x"), data=bytes(70_000)))
    stranger.say(said)
    home.say(ExecutorMessage(FrameworkId("g"), TaskId("x"), b"hi"))
    assert not home.heard(ExecutorMessage) and not other.heard(ExecutorMessage) and not framework.heard(ExecutorMessage)
    framework.disconnect()
    home.say(said)
    framework.connect()
    assert not framework.heard(ExecutorMessage), "what came while it was away is lost"
    assert book.machine.cluster.counters.executor_messages == {"to_executor": 1, "to_framework": 1, "dropped": 6}
    assert not [record for record in book.records if "Message" in type(record).__name__], "nothing of it is durable"


def test_a_framework_that_speaks_without_end_drowns_no_agent(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(executor(book))
    for _ in range(300):
        framework.call(ExecutorMessage(executor_id=TaskId("x"), data=b"x"))
    assert len(agent.heard(ExecutorMessage)) == 100


def test_a_container_has_the_gpus_that_its_executor_asked_for(book: Any) -> None:
    book.agent(gpus=2, runtime="docker")
    framework = book.framework()
    framework.run(executor(book, image="i", cpus=1), refuse_ms=0)
    book.advance(1000)
    result = framework.accept(framework.offer, book.launch(on(book, "t", cpus=1, gpus=1)))
    assert result.error is not None and "a container gets its devices when it is made" in result.error.message
    assert result.error.hint == "let the executor itself ask for the GPUs of its tasks"
