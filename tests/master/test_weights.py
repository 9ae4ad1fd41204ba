"""Dialogues about weights and about kinds that do not count (WGT-1, ROL-6, GPU-6, M-15; mesos.md §3.2, §3.4)."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages import operator as op
from bursar.core.messages.framework import Rescind
from bursar.master.records import Audited, WeightsRecorded


def agents(book: Any, count: int) -> None:
    with book.batch():
        for number in range(count):
            book.agent(f"a{number:02d}")


def shared_out(book: Any, roles: tuple[str, ...], count: int) -> dict[str, int]:
    """How many of so many equal agents each role is offered, all at once."""
    peers = {role: book.framework(role.replace("/", "-").replace("*", "star"), roles=[role]) for role in roles}
    agents(book, count)
    return {role: len(peer.offers) for role, peer in peers.items()}


def weights(book: Any) -> dict[str, int]:
    answer = book.ask(op.ListWeightsRequest())
    return {weight.role: weight.weight_milli for weight in answer.weights}


def test_a_role_of_weight_two_gets_twice_as_much(book: Any) -> None:
    assert book.set_weights({"b": 2000}).weights == (op.RoleWeight("b", 2000),)
    assert shared_out(book, ("a", "b"), 9) == {"a": 3, "b": 6}


def test_weights_count_at_every_level(book: Any) -> None:
    book.set_weights({"eng": 3000, "eng/web": 2000})
    assert shared_out(book, ("eng/web", "eng/db", "ml"), 12) == {"eng/web": 6, "eng/db": 3, "ml": 3}


def test_a_role_among_its_own_children_has_a_weight_of_its_own(book: Any) -> None:
    """T24: in Mesos the place of a role's own frameworks among its children always weighs 1."""
    assert shared_out(book, ("eng", "eng/web"), 4) == {"eng": 2, "eng/web": 2}
    other = type(book)()
    other.set_weights({"eng/.": 3000})
    assert shared_out(other, ("eng", "eng/web"), 4) == {"eng": 3, "eng/web": 1}


def test_a_change_rescinds_nothing_and_is_felt_in_the_next_cycle(book: Any) -> None:
    """T22: Mesos rescinds every offer of the cluster."""
    one, two = book.framework("f", roles=["a"]), book.framework("g", roles=["b"])
    agents(book, 4)
    before = [dict(one.offers), dict(two.offers)]
    book.set_weights({"b": 3000})
    book.advance(2_000)
    assert [one.offers, two.offers] == before
    assert not one.heard(Rescind) and not two.heard(Rescind)
    with book.batch():
        for number in range(4, 8):
            book.agent(f"a{number:02d}")
    # Of eight in all b shall have six.
    assert (len(one.offers), len(two.offers)) == (2, 6)


def test_others_keep_their_weight_and_one_is_forgotten(book: Any) -> None:
    book.set_weights({"a": 2000, "b": 500})
    book.set_weights({"b": 1000, "c/d": 1})
    assert weights(book) == {"a": 2000, "c/d": 1} == book.registry.weights
    assert book.set_weights({"x": 1000}).weights == (op.RoleWeight("x", 1000),)
    assert weights(book) == {"a": 2000, "c/d": 1}


def test_weights_outlive_the_master_and_roles_that_nobody_uses(book: Any) -> None:
    book.set_weights({"b": 2000, "b/.": 5000})
    framework = book.framework("f", roles=["b"])
    book.advance(1_000)
    framework.disconnect()
    book.restart()
    assert weights(book) == {"b": 2000, "b/.": 5000}
    agents(book, 0)
    assert shared_out(book, ("a", "b"), 6) == {"a": 2, "b": 4}


def test_what_was_changed_is_recorded_audited_and_told(book: Any) -> None:
    book.set_weights({"a": 1500}, request_id="r1")
    kinds = [type(record) for record in book.records]
    assert kinds.count(WeightsRecorded) == 1 and kinds.count(Audited) == 1
    assert [event.message for event in book.published if event.kind == "weights_changed"] == ["weights: a=1.5"]
    # A repeat gets the first answer, and changes nothing.
    book.set_weights({"a": 7000})
    assert book.set_weights({"a": 1500}, request_id="r1").weights == (op.RoleWeight("a", 1500),)
    assert weights(book) == {"a": 7000}


REFUSED = {
    "nothing": ({}, "weights"),
    "zero": ({"a": 2000, "b": 0}, "weights[1].weight_milli"),
    "less than nothing": ({"a": -1}, "weights[0].weight_milli"),
    "more than a million": ({"a": 10**9 + 1}, "weights[0].weight_milli"),
    "a name that is none": ({"a": 2000, "a//b": 2000}, "weights[1].role"),
    "no name": ({"": 2000}, "weights[0].role"),
    "a place where nothing can be": ({"*/.": 2000}, "weights[0].role"),
    "a leaf of a leaf": ({"a/./.": 2000}, "weights[0].role"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_changes_nothing(book: Any, what: str) -> None:
    asked, field = REFUSED[what]
    book.set_weights({"c": 3000})
    refused = book.set_weights(asked)
    assert isinstance(refused, ErrorDetail)
    assert refused.reason is ErrorReason.INVALID_ARGUMENT and refused.field == field and refused.hint
    assert weights(book) == {"c": 3000}


def test_a_role_named_twice_is_refused(book: Any) -> None:
    twice = (op.RoleWeight("a", 2000), op.RoleWeight("a", 3000))
    assert book.ask(op.SetWeightsRequest("", twice)).field == "weights[1].role"
    assert weights(book) == {}


# --- kinds that do not count ---


def test_who_holds_one_of_few_gpus_is_still_offered_cpus(new_book: Any) -> None:
    """MESOS-5377: with one GPU machine among many, its GPU is all of the share of whoever holds it, and CPUs go elsewhere."""

    def offered(**flags: str) -> tuple[int, int]:
        book = new_book(**flags)
        ml, web = book.framework("ml", roles=["ml"]), book.framework("web", roles=["web"], gpu=False)
        book.agent("gpu", cpus=1, mem=1, gpus=1)
        ml.run(book.spec("train", cpus=1, mem=1, gpus=1))
        agents(book, 8)
        return len(ml.offers), len(web.offers)

    # All GPUs of the cluster: no CPU is left for ml until web has everything.
    assert offered() == (0, 8)
    assert offered(fair_sharing_excluded_resource_names="gpus") == (4, 4)


def test_the_kinds_that_count_can_be_changed_at_run_time(book: Any) -> None:
    ml, web = book.framework("ml", roles=["ml"]), book.framework("web", roles=["web"], gpu=False)
    book.agent("gpu", cpus=1, mem=1, gpus=1)
    ml.run(book.spec("train", cpus=1, mem=1, gpus=1))
    agents(book, 2)
    assert (len(ml.offers), len(web.offers)) == (0, 2)
    book.set_flag("fair-sharing-excluded-resource-names", "gpus")
    assert (len(ml.offers), len(web.offers)) == (0, 2), "nothing is rescinded"
    with book.batch():
        for name in ("b1", "b2"):
            book.agent(name)
    assert (len(ml.offers), len(web.offers)) == (2, 2)
