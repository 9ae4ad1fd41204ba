"""`ListTasks`: what an operator narrows the list of tasks to."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import ErrorReason
from bursar.core.messages import operator as op
from bursar.core.tasks import TaskState

HOUR_MS = 3_600_000


@pytest.fixture
def names(book: Any) -> Any:
    """Three tasks of two roles on two agents; whose are shown."""
    first, vision = book.agent(cpus=1), book.framework("f", roles=("ml/vision",))
    vision.run(book.spec("t1", cpus=1, labels={"sweep": "lr", "owner": "ada"}), refuse_ms=HOUR_MS)
    book.agent("b", cpus=2)
    vision.run(book.spec("t2", cpus=1, labels={"sweep": "lr", "owner": "bob"}), refuse_ms=HOUR_MS)
    other = book.framework("g", roles=("eng",))
    (offer,) = (offer for offer in other.offers.values() if offer.agent_id == "b")
    other.run(book.spec("t3", cpus=1), offer=offer)
    first.update("t1", TaskState.FINISHED)
    return lambda **how: [task.task_id for task in book.ask(op.ListTasksRequest(**how)).tasks]


def test_each_part_narrows_it(names: Any) -> None:
    assert names() == ["t2", "t3"] and names(all=True) == ["t1", "t2", "t3"]
    assert names(all=True, agent="a") == ["t1"] and names(agent="b") == ["t2", "t3"]
    assert names(all=True, roles="ml/**") == ["t1", "t2"] and names(roles="!ml/**") == ["t3"]
    assert names(all=True, labels={"sweep": "lr"}) == ["t1", "t2"]
    assert names(all=True, labels={"sweep": "lr", "owner": "bob"}) == ["t2"] and names(labels={"sweep": ""}) == []
    assert names(all=True, framework="f", agent="b", roles="ml/vision", labels={"owner": "bob"}) == ["t2"]


def test_a_role_group_is_what_it_is_now(book: Any, names: Any) -> None:
    book.ask(op.SetRoleGroupRequest("r", "lab", ("eng",)))
    assert names(roles="@lab") == ["t3"]


def test_the_default_role_is_named_by_its_star(book: Any) -> None:
    book.agent()
    book.framework("f").run(book.spec("t", cpus=1))
    names = lambda roles: [task.task_id for task in book.ask(op.ListTasksRequest(roles=roles)).tasks]
    assert names("*") == ["t"] and names("ml") == []


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"framework": "x"}, ErrorReason.NOT_FOUND),
        ({"agent": "x"}, ErrorReason.NOT_FOUND),
        ({"roles": "@nobody"}, ErrorReason.NOT_FOUND),
        ({"roles": "ml & ("}, ErrorReason.INVALID_ARGUMENT),
    ],
)
def test_what_there_is_not_is_refused(book: Any, names: Any, how: dict[str, str], reason: ErrorReason) -> None:
    assert book.ask(op.ListTasksRequest(**how)).reason is reason
