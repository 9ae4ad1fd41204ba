"""What somebody who is no operator hears: of its own frameworks and tasks, as if there were nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages import operator as op
from bursar.core.tasks import TaskState
from bursar.master.events import OperatorCalled


@pytest.fixture
def hears(book: Any) -> Any:
    """Asks as a principal that is no operator."""

    def ask(principal: str, asked: Any) -> Any:
        book._tokens += 1
        book.step(OperatorCalled(book._tokens, asked, principal, own_only=True))
        return book._replies.pop(book._tokens)

    return ask


def running(book: Any, framework_id: str, principal: str, task_id: str) -> None:
    framework = book.framework(framework_id, principal=principal)
    # Offered to the one that has nothing yet.
    book.agent(f"of-{framework_id}", cpus=1)
    (offer,) = (offer for offer in framework.offers.values() if offer.agent_id == f"of-{framework_id}")
    framework.run(book.spec(task_id, cpus=1), offer=offer, refuse_ms=3_600_000)


def test_a_removed_frameworks_tasks_are_nobodys(book: Any, hears: Any) -> None:
    """Neither that of one whose id begins as the removed one's does, nor its own principal's."""
    running(book, "F", "victim", "t")
    book.ask(op.TeardownFrameworkRequest("r", "F"))
    book.framework("Fx", principal="eve")
    assert [task.framework_id for task in book.ask(op.ListTasksRequest()).tasks] == ["F"], "it is listed yet"
    assert book.ask(op.GetFrameworkRequest("F")).framework.info.framework_id == "Fx", "by its prefix"
    for principal in ("eve", "victim"):
        for name in ("F/t", "t", "F"):
            answer = hears(principal, op.GetTaskRequest(name))
            assert isinstance(answer, ErrorDetail) and answer.reason is ErrorReason.NOT_FOUND, (principal, name)


def test_what_is_anothers_is_told_from_nothing_by_nothing(book: Any, hears: Any) -> None:
    running(book, "f", "victim", "task-1")
    running(book, "g", "victim", "task-2")
    for there, not_there in (("f/task-1", "f/task-3"), ("task-1", "nobody"), ("task", "x"), ("f/", "y/")):
        answers = [hears("eve", op.GetTaskRequest(name)) for name in (there, not_there)]
        assert str(answers[0]).replace(repr(there), "-") == str(answers[1]).replace(repr(not_there), "-")
        assert {answer.reason for answer in answers} == {ErrorReason.NOT_FOUND}
    explained = [hears("eve", op.ExplainFrameworkRequest(name)) for name in ("f", "h")]
    assert [answer.reason for answer in explained] == [ErrorReason.NOT_FOUND] * 2
    assert str(explained[0]).replace("'f'", "") == str(explained[1]).replace("'h'", "")


def test_its_own_are_found_by_what_is_unique_among_them(book: Any, hears: Any) -> None:
    running(book, "f", "victim", "task-1")
    running(book, "fe", "eve", "task-2")
    own = hears("eve", op.GetTaskRequest("task")).task
    assert (own.framework_id, own.task_id, own.state) == ("fe", "task-2", TaskState.STAGING)
    assert hears("eve", op.ExplainFrameworkRequest("f")).framework_id == "fe"
    running(book, "few", "eve", "task-3")
    ambiguous = hears("eve", op.GetTaskRequest("task"))
    assert ambiguous.reason is ErrorReason.AMBIGUOUS and "task-1" not in str(ambiguous)


def test_who_has_no_principal_owns_nothing_and_nothing_else_is_answered(book: Any, hears: Any) -> None:
    running(book, "f", "", "t")
    assert hears("", op.GetTaskRequest("f/t")).reason is ErrorReason.NOT_FOUND
    for asked in (op.ListTasksRequest(), op.SetFlagRequest("r", "offer-timeout", "1s"), op.GetFrameworkRequest("f")):
        assert hears("", asked).reason is ErrorReason.PERMISSION_DENIED
