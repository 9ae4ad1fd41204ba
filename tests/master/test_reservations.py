"""Stacks of reservations: pushed, popped, skipped, re-reserved, by operators and by frameworks (RSV-4 to RSV-14, mesos.md §2.5)."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages import operator as op
from bursar.core.messages.framework import GPU_RESOURCES, RESERVATION_REFINEMENT, Rescind
from bursar.core.messages.offers import Operation, Reserve, Unreserve
from bursar.core.resources import Reservation, ReservationType, ReservedResources, to_holding

BOTH = (GPU_RESOURCES, RESERVATION_REFINEMENT)


def reserve(book: Any, role: str = "", source: str = "", *, roles: str = "", labels: Any = (), **amounts: Any) -> Any:
    asked = book.request(**amounts)
    return book.ask(op.ReserveResourcesRequest("", "a", role, asked, dict(labels), roles=roles, source=source))


def kept(book: Any) -> dict[str, Any]:
    """Owners from the bottom to the top → CPUs in that bucket."""
    views = book.ask(op.ListReservationsRequest()).reservations
    return {">".join(level.holder for level in view.stack): view.resources.scalars["cpus"] / 1000 for view in views}


def check_restart(book: Any) -> None:
    """What is kept outlives the master."""
    before = kept(book)
    book.restart()
    book.agents["a"].connect()
    assert kept(book) == before


# --- by operators ---


def test_a_refinement_is_pushed_and_popped(book: Any) -> None:
    book.agent(cpus=8)
    reserve(book, "eng", cpus=6)
    answer = reserve(book, "eng/backend", "eng", cpus=4)
    assert [level.holder for level in answer.reservation.stack] == ["eng", "eng/backend"]
    assert kept(book) == {"eng": 2, "eng>eng/backend": 4}
    check_restart(book)
    back = book.unreserve("a", "eng/backend", book.request(cpus=1))
    assert back.reservation.resources.scalars["cpus"] == 1000, "a part of it"
    assert kept(book) == {"eng": 3, "eng>eng/backend": 3}
    check_restart(book)
    book.unreserve("a", "eng", book.request(cpus=3))
    assert kept(book) == {"eng>eng/backend": 3}, "what is refined is not the parent's to give back"
    book.unreserve("a", "eng/backend", book.request(cpus=3))
    assert kept(book) == {"eng": 3}
    check_restart(book)


def test_levels_may_be_skipped(book: Any) -> None:
    book.agent(cpus=8)
    reserve(book, "eng", cpus=6)
    reserve(book, "eng/backend/db", "eng", cpus=4)
    assert kept(book) == {"eng": 2, "eng>eng/backend/db": 4}


@pytest.mark.parametrize(
    ("steps", "role", "source", "expected"),
    [
        (["eng", "eng/a"], "eng/b", "eng/a", "eng>eng/b"),
        (["eng", "eng/a"], "eng/a/x", "eng/a", "eng>eng/a>eng/a/x"),
        (["eng", "eng/a", "eng/a/x"], "eng/b", "eng/a/x", "eng>eng/b"),
        (["eng", "eng/a", "eng/a/x"], "eng", "eng/a/x", "eng"),
        (["eng", "eng/a", "eng/a/x"], "ops", "eng/a/x", "ops"),
        (["eng", "eng/a"], "engine", "eng/a", "engine"),
        (["eng/a"], "eng", "eng/a", "eng"),
    ],
)
def test_what_is_re_reserved_is_popped_as_far_as_needed_and_pushed(
    book: Any, steps: list[str], role: str, source: str, expected: str
) -> None:
    book.agent(cpus=8)
    below = ""
    for step in steps:
        reserve(book, step, below, cpus=4)
        below = step
    answer = reserve(book, role, source, cpus=4)
    assert not isinstance(answer, ErrorDetail), answer
    assert kept(book) == {expected: 4}
    check_restart(book)


def test_a_static_reservation_may_be_refined_and_stays(book: Any) -> None:
    book.agent(parts=[ReservedResources(book.static("eng"), book.resources(4, 4))])
    refused = reserve(book, "ops", "eng", cpus=1)
    assert refused.reason is ErrorReason.INVALID_ARGUMENT and "statically" in refused.message
    reserve(book, "eng/a", "eng", cpus=3)
    assert kept(book) == {"eng": 1, "eng>eng/a": 3}
    refused = reserve(book, "ops", "eng/a", cpus=1)
    assert refused.reason is ErrorReason.INVALID_ARGUMENT
    check_restart(book)
    book.unreserve("a", "eng/a", book.request(cpus=3))
    assert kept(book) == {"eng": 4}
    assert "static" in book.unreserve("a", "eng", book.request(cpus=1)).hint


def test_an_expression_is_refined_by_one_role_that_it_covers(book: Any) -> None:
    book.agent(cpus=8)
    reserve(book, roles="ml/** | eng", cpus=6)
    reserve(book, "ml/train", "ml/** | eng", cpus=2)
    assert kept(book) == {"ml/** | eng": 4, "ml/** | eng>ml/train": 2}
    popped = reserve(book, "ml", "ml/** | eng", cpus=1)
    assert [level.holder for level in popped.reservation.stack] == ["ml"], "not covered: it stands alone"
    several = reserve(book, roles="ml/a | ml/b", source="ml/** | eng", cpus=1)
    assert [level.holder for level in several.reservation.stack] == ["ml/a | ml/b"], "only one role refines"
    check_restart(book)


def test_a_group_that_changes_keeps_refinements(book: Any) -> None:
    book.agent(cpus=8)
    book.ask(op.SetRoleGroupRequest("", "users", ("red", "blue")))
    reserve(book, roles="@users", cpus=4)
    reserve(book, "red", "@users", cpus=4)
    red = book.framework("red", roles=("red",))
    book.ask(op.SetRoleGroupRequest("", "users", ("blue",)))
    assert kept(book) == {"@users>red": 4}
    assert red.offered().scalars["cpus"] == 4000, "what is not reserved"
    assert not isinstance(book.unreserve("a", "red", book.request(cpus=4)), ErrorDetail)
    assert kept(book) == {"@users": 4}


def test_labels_are_part_of_what_is_kept(book: Any) -> None:
    book.agent(cpus=8)
    reserve(book, "eng", labels={"why": "paper"}, cpus=2)
    reserve(book, "eng", labels={"why": "demo"}, cpus=2)
    reserve(book, "eng", labels={"why": "demo"}, cpus=1)
    views = book.ask(op.ListReservationsRequest()).reservations
    assert [(view.stack[0].labels, view.resources.scalars["cpus"]) for view in views] == [
        ((("why", "demo"),), 3000),
        ((("why", "paper"),), 2000),
    ]
    answer = reserve(book, "eng", "eng", labels={"why": "thesis"}, cpus=2)
    assert answer.reservation.stack[0].labels == (("why", "thesis"),), "relabelled"
    assert reserve(book, "eng", "eng", cpus=1).reason is ErrorReason.INVALID_ARGUMENT


def test_a_source_gives_only_what_it_has_and_nothing_changes_where_it_has_less(book: Any) -> None:
    book.agent(cpus=8)
    reserve(book, "eng", cpus=2)
    framework = book.framework(roles=("eng",))
    before, records = dict(framework.offers), len(book.records)
    for role, source, cpus, reason in (
        ("eng/a", "eng", 3, ErrorReason.INSUFFICIENT_RESOURCES),
        ("eng/a", "ops", 1, ErrorReason.NOT_FOUND),
        ("eng/a", "eng |", 1, ErrorReason.INVALID_ARGUMENT),
        ("eng", "eng", 1, ErrorReason.INVALID_ARGUMENT),
    ):
        assert reserve(book, role, source, cpus=cpus).reason is reason
    assert framework.offers == before and len(book.records) == records
    assert not isinstance(reserve(book, "eng/a", "eng", cpus=2), ErrorDetail)
    assert framework.heard(Rescind)


def test_devices_stay_those_devices(book: Any) -> None:
    book.agent(cpus=8, gpus=4)
    reserve(book, "eng", gpus=2)
    first = book.ask(op.ListReservationsRequest()).reservations[0].resources.devices
    reserve(book, "eng/a", "eng", gpus=2)
    reserve(book, "ops", "eng/a", gpus=2)
    (view,) = book.ask(op.ListReservationsRequest()).reservations
    assert view.resources.devices == first and view.stack[0].holder == "ops"


def test_a_limit_counts_what_is_re_reserved_once(book: Any) -> None:
    book.agent(cpus=8)
    reserve(book, "eng/a", cpus=4)
    book.ask(op.SetQuotasRequest("", (op.Quota("eng", {}, {"cpus": 4000}), op.Quota("ops", {}, {"cpus": 3000}))))
    assert not isinstance(reserve(book, "eng/b", "eng/a", cpus=4), ErrorDetail)
    assert reserve(book, "ops", "eng/b", cpus=4).reason is ErrorReason.RESOURCES_IN_USE
    assert not isinstance(reserve(book, "ops", "eng/b", cpus=3), ErrorDetail)


# --- who is offered stacks ---


def test_stacks_are_hidden_from_who_does_not_understand_them(book: Any) -> None:
    book.agent(cpus=8)
    reserve(book, "eng", cpus=8)
    reserve(book, "eng/a", "eng", cpus=6)
    plain = book.framework("plain", roles=("eng/a",))
    assert plain.offered().scalars["cpus"] == 2000
    other = book.framework("other", roles=("eng/a",), gpu=False, connect=False)
    other.connect(capabilities=BOTH)
    assert other.offered().scalars["cpus"] == 6000
    other.connect(capabilities=())
    assert other.offered().scalars.get("cpus", 0) != 6000


# --- by frameworks ---


def framework_with(book: Any, role: str, capabilities: tuple[str, ...] = BOTH, name: str = "f") -> Any:
    peer = book.framework(name, roles=(role,), connect=False)
    peer.connect(capabilities=capabilities)
    return peer


def do(framework: Any, operation: Any) -> Any:
    return framework.accept(framework.offer, Operation("op", operation), refuse_ms=0)


def test_a_framework_refines_what_it_was_offered_and_gives_it_back(book: Any) -> None:
    book.agent(cpus=8)
    reserve(book, "eng", cpus=8)
    framework = framework_with(book, "eng/a")
    stack = framework.offer.resources[-1].stack
    assert do(framework, Reserve("a", book.request(cpus=3), "eng/a", {}, stack)).error is None
    assert kept(book) == {"eng": 5, "eng>eng/a": 3}
    check_restart(book)
    framework.connect()
    book.advance(2000)
    (refined,) = (part for part in framework.offer.resources if len(part.stack) == 2)
    part = ReservedResources(refined.stack, book.resources(2))
    assert do(framework, Unreserve("a", part)).error is None
    assert kept(book) == {"eng": 7, "eng>eng/a": 1}


def test_a_framework_refines_an_expression(book: Any) -> None:
    book.agent(cpus=8)
    reserve(book, roles="ml/** | eng", cpus=8)
    framework = framework_with(book, "ml/train")
    stack = framework.offer.resources[-1].stack
    assert do(framework, Reserve("a", book.request(cpus=3), "ml/train", {}, stack)).error is None
    assert kept(book) == {"ml/** | eng": 5, "ml/** | eng>ml/train": 3}


def test_a_framework_pushes_exactly_one_level_on_what_it_has(book: Any) -> None:
    book.agent(cpus=8)
    reserve(book, "eng", cpus=8)
    stack = book.dynamic("eng", "operator")
    level = Reservation(ReservationType.DYNAMIC, "eng/a")
    cases: Any = (
        ("eng/a", (GPU_RESOURCES,), stack, RESERVATION_REFINEMENT),
        ("eng", BOTH, stack, "must be below"),
        ("eng/a", BOTH, (), "less unreserved"),
        ("eng/a", BOTH, (*stack, level), "must be below"),
        ("eng/a", BOTH, book.dynamic("ops"), "must be below"),
    )
    for number, (role, capabilities, onto, words) in enumerate(cases):
        framework = framework_with(book, role, capabilities, str(number))
        answer = do(framework, Reserve("a", book.request(cpus=3), role, {}, onto))
        assert answer.error is not None and words in answer.error.message, answer
        framework.suppress(role)
    assert kept(book) == {"eng": 8}
    assert to_holding(book.registry.agents["a"].reservations).keys() == {stack}
