"""Dialogues about setting quotas: what is refused, what is kept, which offers go (QTA-1, QTA-2, T28; mesos.md §3.3)."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages import operator as op
from bursar.core.messages.framework import Rescind
from bursar.core.messages.offers import Demand
from bursar.core.messages.operator import Quota
from bursar.core.text import parse_amounts
from bursar.master.records import Audited, QuotasRecorded


def quotas(book: Any) -> dict[str, tuple[dict[str, int], dict[str, int]]]:
    answer = book.ask(op.ListQuotasRequest())
    return {view.quota.role: (dict(view.quota.guarantees), dict(view.quota.limits)) for view in answer.quotas}


def view(book: Any, role: str) -> Any:
    answer = book.ask(op.ListQuotasRequest())
    (found,) = [found for found in answer.quotas if found.quota.role == role]
    return found


def amounts(text: str) -> dict[str, int]:
    return parse_amounts(text)


# --- what is kept ---


def test_a_quota_is_set_shown_replaced_and_removed(book: Any) -> None:
    book.agent(gpus=8, cpus=32)
    answer = book.set_quotas(book.quota("ml", "gpus:2;cpus:4", "gpus:4"), book.quota("eng/web", limit="mem:1GiB"))
    assert answer.rescinded_offers == 0
    assert [shown.quota.role for shown in answer.quotas] == ["ml", "eng/web"]
    assert answer.quotas[0].unmet == amounts("gpus:2;cpus:4")
    assert quotas(book) == {
        "eng/web": ({}, amounts("mem:1GiB")),
        "ml": (amounts("gpus:2;cpus:4"), amounts("gpus:4")),
    }
    # It is replaced as a whole; others keep theirs.
    book.set_quotas(book.quota("ml", limit="gpus:0"))
    assert quotas(book)["ml"] == ({}, {"gpus": 0}) and "eng/web" in quotas(book)
    answer = book.set_quotas(Quota("ml"))
    assert answer.quotas == (op.QuotaView(Quota("ml")),)
    assert list(quotas(book)) == ["eng/web"] == list(book.registry.quotas)


def test_everybody_may_have_a_quota_too(book: Any) -> None:
    book.agent()
    assert book.set_quotas(book.quota("*", limit="cpus:4")).quotas[0].quota.role == "*"


def test_quotas_outlive_the_master(book: Any) -> None:
    book.agent(gpus=4)
    book.set_quotas(book.quota("ml", "gpus:2", "gpus:4"))
    book.restart()
    assert quotas(book) == {"ml": (amounts("gpus:2"), amounts("gpus:4"))}


def test_what_was_changed_is_recorded_audited_and_told(book: Any) -> None:
    book.agent(gpus=4)
    first = book.set_quotas(book.quota("ml", "gpus:2"), request_id="r1")
    kinds = [type(record) for record in book.records]
    assert kinds.count(QuotasRecorded) == 1 and kinds.count(Audited) == 1
    assert [event.message for event in book.published if event.kind == "quotas_changed"] == ["quotas changed: ml"]
    book.set_quotas(book.quota("ml", "gpus:3"))
    assert book.set_quotas(book.quota("ml", "gpus:2"), request_id="r1") == first
    assert quotas(book)["ml"] == (amounts("gpus:3"), {})


def test_what_counts_is_shown(book: Any) -> None:
    """Reservations count, used or not; so does what is offered or held beyond them, of the whole subtree."""
    book.agent("a", cpus=8, gpus=2)
    book.reserve("a", "ml/vision", book.request(gpus=2, cpus=1))
    vision = book.framework("v", roles=["ml/vision"], demand=Demand(1, (book.shape(role="ml/vision", cpus=1, gpus=1),)))
    vision.run(book.spec("in the reservation", cpus=1, gpus=1))
    book.agent("b", cpus=8, gpus=4)
    text = book.framework("t", roles=["ml/text"], demand=Demand(1, (book.shape(2, role="ml/text", cpus=1, gpus=2),)))
    text.run(book.spec("beyond any", cpus=1, gpus=2))
    book.set_quotas(book.quota("ml", limit="gpus:16;cpus:32"), book.quota("ml/vision", "gpus:1"))
    # Two reserved, one of them used; two in a task, two more offered or given back.
    offered = len(text.offered().devices)
    assert view(book, "ml").consumed["gpus"] == 1000 * (2 + 2 + offered)
    assert view(book, "ml").consumed["cpus"] == 1000 + 1000 + text.offered().scalars.get("cpus", 0)
    assert view(book, "ml/vision").consumed == {"gpus": 2000}
    assert view(book, "ml/vision").unmet == {}


# --- what is refused ---


REFUSED = {
    "nothing": ((), ErrorReason.INVALID_ARGUMENT, "quotas"),
    "a name that is none": ((Quota("a//b", {}, {"gpus": 0}),), ErrorReason.INVALID_ARGUMENT, "quotas[0].role"),
    "a role twice": (
        (Quota("a", {}, {"gpus": 0}), Quota("a", {}, {"gpus": 1000})),
        ErrorReason.INVALID_ARGUMENT,
        "quotas[1].role",
    ),
    "removing what is not there": ((Quota("nobody"),), ErrorReason.NOT_FOUND, "quotas[0].role"),
    "a kind that nobody has": ((Quota("a", {}, {"gpu": 1000}),), ErrorReason.INVALID_ARGUMENT, "quotas[0].limits"),
    "ports": ((Quota("a", {"ports": 1}, {}),), ErrorReason.INVALID_ARGUMENT, "quotas[0].guarantees"),
    "less than nothing": ((Quota("a", {"cpus": -1}, {}),), ErrorReason.INVALID_ARGUMENT, "quotas[0].guarantees"),
    "more than there can be": (
        (Quota("a", {}, {"cpus": 2**53 + 1}),),
        ErrorReason.INVALID_ARGUMENT,
        "quotas[0].limits",
    ),
    "half a GPU": ((Quota("a", {}, {"gpus": 500}),), ErrorReason.INVALID_ARGUMENT, "quotas[0].limits"),
    "a guarantee above the limit": (
        (Quota("a", {"gpus": 2000}, {"gpus": 1000}),),
        ErrorReason.INVALID_ARGUMENT,
        "quotas[0].guarantees",
    ),
    "children's guarantees above their parent's limit": (
        (Quota("a", {}, {"gpus": 3000}), Quota("a/b", {"gpus": 2000}, {}), Quota("a/c/d", {"gpus": 2000}, {})),
        ErrorReason.INVALID_ARGUMENT,
        "quotas",
    ),
    "a guarantee that the cluster cannot meet": (
        (Quota("a", {"gpus": 5000}, {}),),
        ErrorReason.INSUFFICIENT_RESOURCES,
        "quotas",
    ),
    "guarantees that the cluster cannot meet together": (
        (Quota("a", {"gpus": 2000}, {}), Quota("b", {"gpus": 2000}, {})),
        ErrorReason.INSUFFICIENT_RESOURCES,
        "quotas",
    ),
    "a limit that tasks have passed": ((Quota("used", {}, {"cpus": 500}),), ErrorReason.RESOURCES_IN_USE, "quotas"),
    "a limit above such a role": ((Quota("x", {}, {"gpus": 0}),), ErrorReason.RESOURCES_IN_USE, "quotas"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_changes_nothing(book: Any, what: str) -> None:
    named, reason, field = REFUSED[what]
    book.agent(gpus=4)
    book.framework("u", roles=["used"]).run(book.spec("t", cpus=1))
    book.reserve("a", "x/y", book.request(gpus=1))
    book.set_quotas(book.quota("kept", limit="gpus:1"))
    framework = book.framework("f", roles=["free"])
    before = dict(framework.offers)
    for with_a_good_one in ((), (book.quota("good", limit="cpus:100"),)):
        refused = book.set_quotas(*named, *(with_a_good_one if named else ()))
        assert isinstance(refused, ErrorDetail) and refused.message
        assert (refused.reason, refused.field) == (reason, field)
    assert quotas(book) == {"kept": ({}, amounts("gpus:1"))} and framework.offers == before


def test_a_refusal_says_what_and_what_to_do(book: Any) -> None:
    book.agent("a", gpus=4)
    book.reserve("a", "kept", book.request(gpus=1))
    refused = book.set_quotas(book.quota("ml", "gpus:4"))
    assert refused.message == "guarantees of gpus come to 4 besides 1 reserved elsewhere, and the cluster has 4"
    assert "--force" in refused.hint
    assert "did you mean gpus?" in book.set_quotas(Quota("a", {}, {"gpu": 1000})).hint


def test_force_is_for_what_may_come_right_and_not_for_nonsense(book: Any) -> None:
    book.agent(gpus=4)
    framework = book.framework("f", roles=["ml"])
    framework.run(book.spec("t", cpus=1, gpus=2))
    assert not isinstance(book.set_quotas(book.quota("eng", "gpus:8"), force=True), ErrorDetail)
    assert not isinstance(book.set_quotas(book.quota("ml", limit="gpus:1"), force=True), ErrorDetail)
    assert not isinstance(book.set_quotas(Quota("ml", {}, {"fpga": 1000}), force=True), ErrorDetail)
    for named in (Quota("a", {"gpus": 2000}, {"gpus": 1000}), Quota("a", {"gpus": -1000}), Quota("a", {"ports": 1})):
        assert isinstance(book.set_quotas(named, force=True), ErrorDetail)
    assert framework.view.tasks == 1, "tasks are never touched"


def test_agents_that_are_awaited_after_a_restart_count_as_capacity(book: Any) -> None:
    """T28: Mesos sees no capacity then, and refuses every guarantee."""
    book.agent(gpus=4)
    book.restart()
    assert not isinstance(book.set_quotas(book.quota("ml", "gpus:4")), ErrorDetail)


def test_what_could_not_be_met_before_does_not_forbid_another_change(book: Any) -> None:
    agent = book.agent("a", gpus=4)
    book.agent("b", gpus=4)
    book.set_quotas(book.quota("ml", "gpus:6"))
    agent.disconnect()
    book.advance(600_000)
    assert view(book, "ml").unmet == {"gpus": 6000}
    assert not isinstance(book.set_quotas(book.quota("eng", limit="gpus:1")), ErrorDetail)
    assert not isinstance(book.set_quotas(book.quota("ml", "gpus:5")), ErrorDetail)
    assert isinstance(book.set_quotas(book.quota("ml", "gpus:6")), ErrorDetail)


# --- which offers go ---


def offered_gpus(peer: Any) -> int:
    return len(peer.offered().devices)


def test_a_limit_rescinds_just_enough_of_the_role_and_of_nobody_else(book: Any) -> None:
    for name in "abc":
        book.agent(name, cpus=4, gpus=4)
    shapes = {role: Demand(1, (book.shape(6, role=role, cpus=1, gpus=1),)) for role in ("ml", "eng")}
    ml, eng = (book.framework(role, roles=[role], demand=demand) for role, demand in shapes.items())
    others = dict(eng.offers)
    assert offered_gpus(ml) == 6 and len(ml.offers) == 2
    smallest = sorted(ml.offers.values(), key=lambda offer: len(offer.resources[0].resources.devices))[:1]
    answer = book.set_quotas(book.quota("ml", limit="gpus:5"))
    # One of the two offers has to go, and the smaller one is enough.
    assert answer.rescinded_offers == 1
    assert eng.offers == others and not eng.heard(Rescind)
    (rescind,) = ml.heard(Rescind)
    assert [len(offer.resources[0].resources.devices) for offer in smallest] == [2]
    assert rescind.offer_ids == (smallest[0].offer_id,)


def test_a_limit_above_counts_the_offers_of_all_below(book: Any) -> None:
    book.agent("a", gpus=2)
    book.agent("b", gpus=2)
    one, two = book.framework("f", roles=["ml/x"]), book.framework("g", roles=["ml/y"])
    assert offered_gpus(one) + offered_gpus(two) == 4
    assert book.set_quotas(book.quota("ml", limit="gpus:2")).rescinded_offers == 1


def test_headroom_rescinds_just_enough_of_others(book: Any) -> None:
    for name in "abcd":
        book.agent(name, gpus=2)
    other = book.framework("f", roles=["other"])
    assert offered_gpus(other) == 8
    answer = book.set_quotas(book.quota("ml", "gpus:3"))
    assert answer.rescinded_offers == 2
    assert view(book, "ml").unmet == {"gpus": 3000}


def test_offers_of_the_guaranteed_role_itself_are_no_hindrance(book: Any) -> None:
    for name in "ab":
        book.agent(name, gpus=2)
    ml = book.framework("f", roles=["ml"])
    assert offered_gpus(ml) == 4
    assert book.set_quotas(book.quota("ml", "gpus:4")).rescinded_offers == 0
    assert view(book, "ml").unmet == {}


def test_offers_that_bring_nothing_stay(book: Any) -> None:
    book.agent("a", gpus=2)
    book.agent("b", cpus=32, mem=64)
    other = book.framework("f", roles=["other"])
    assert len(other.offers) == 2
    assert book.set_quotas(book.quota("ml", "gpus:1")).rescinded_offers == 1
    assert "b" in other.agents


def test_raising_a_limit_rescinds_nothing(book: Any) -> None:
    book.agent(gpus=4)
    book.framework("f", roles=["ml"])
    book.set_quotas(book.quota("ml", limit="gpus:8"))
    assert book.set_quotas(book.quota("ml", limit="gpus:16")).rescinded_offers == 0
    assert book.set_quotas(Quota("ml")).rescinded_offers == 0
