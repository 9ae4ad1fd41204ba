"""Why not? Each reason of refusal is provoked, told with its facts and with what would change it, and changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages import operator as op
from bursar.core.messages.framework import OfferSettings
from bursar.core.messages.offers import Demand
from bursar.core.messages.operator import Obstacle, ObstacleKind, Refusal, RefusalReason
from bursar.master import explain
from bursar.master.obstacles.words import WORDS

HOUR_MS = 3_600_000
GIB = 2**30

Dialogue = Callable[[Any], Refusal]
DIALOGUES: dict[RefusalReason, Dialogue] = {}
FLAGS: dict[RefusalReason, dict[str, str]] = {}


def provokes(reason: RefusalReason, **flags: str) -> Callable[[Dialogue], Dialogue]:
    """The dialogue ends with the only refusal of the framework `f`, by a master with these flags."""

    def keep(dialogue: Dialogue) -> Dialogue:
        DIALOGUES[reason] = dialogue
        FLAGS[reason] = flags
        return dialogue

    return keep


def refusals(book: Any, framework: str = "f", **only: str) -> list[Refusal]:
    return list(book.ask(op.ExplainFrameworkRequest(framework, **only)).refusals)


def the_refusal(book: Any, framework: str = "f", **only: str) -> Refusal:
    (refusal,) = refusals(book, framework, **only)
    return refusal


def only(refusal: Refusal, kind: ObstacleKind) -> Obstacle:
    (found,) = (obstacle for obstacle in refusal.obstacles if obstacle.kind is kind)
    return found


# --- a dialogue for each reason ---


@provokes(RefusalReason.AGENT_INACTIVE)
def agent_inactive(book: Any) -> Refusal:
    book.agent("gone").disconnect()
    book.framework()
    refusal = the_refusal(book)
    assert only(refusal, ObstacleKind.STATE).name == "disconnected"
    assert "gone.host" in refusal.message and "agent ls" in refusal.hint
    return refusal


@provokes(RefusalReason.SUPPRESSED)
def suppressed(book: Any) -> Refusal:
    book.agent()
    framework = book.framework(connect=False)
    framework.connect()
    framework.suppress("*")
    framework.decline(framework.offer)
    refusal = the_refusal(book)
    assert only(refusal, ObstacleKind.STATE).name == "suppressed" and "revive" in refusal.hint
    return refusal


@provokes(RefusalReason.HIDDEN_BY_RULE)
def hidden(book: Any) -> Refusal:
    book.agent(gpus=2)
    book.framework(gpu=False, roles=["ml"])
    book.reserve("a", "ml", book.request(gpus=1))
    refusal = the_refusal(book)
    rule = only(refusal, ObstacleKind.RULE)
    assert rule.name == "filter-gpu-resources" and "lacks the capability GPU_RESOURCES" in rule.message
    kept = only(refusal, ObstacleKind.RESERVATION)
    assert (kept.name, kept.resource, kept.amount) == ("ml", "gpus", 1000) and "hidden, too" in kept.message
    assert "bursar flag set filter-gpu-resources false" in refusal.hint
    return refusal


@provokes(RefusalReason.STRIPPED_BY_RULE, filter_gpu_resources="strip")
def stripped(book: Any) -> Refusal:
    book.agent(gpus=2)
    book.framework(gpu=False, demand=Demand(1, (book.shape(gpus=1),)))
    refusal = the_refusal(book)
    rule = only(refusal, ObstacleKind.RULE)
    assert rule.name == "filter-gpu-resources" and "lacks the capability GPU_RESOURCES" in rule.message
    assert "what is kept for them" in refusal.message and "add the capability" in refusal.hint
    return refusal


@provokes(RefusalReason.OTHER_REGION, region="eu")
def other_region(book: Any) -> Refusal:
    book.agent(attributes={"region": "us"})
    book.framework()
    refusal = the_refusal(book)
    assert only(refusal, ObstacleKind.STATE).name == "us"
    assert only(refusal, ObstacleKind.CAPABILITY).name == "REGION_AWARE"
    return refusal


@provokes(RefusalReason.OFFER_CONSTRAINTS)
def offer_constraints(book: Any) -> Refusal:
    book.agent(gpus=2, attributes={"rack": "r1"})
    book.framework(offer_settings=(OfferSettings("*", ("rack=r1,gpus>=4", "rack=r2")),))
    refusal = the_refusal(book)
    first, second = refusal.obstacles
    assert {first.kind, second.kind} == {ObstacleKind.CONSTRAINT}
    assert (first.name, second.name) == ("rack=r1,gpus>=4", "rack=r2")
    assert "gpus>=4 is not true of a.host" in first.message and "rack=r2 is not true" in second.message
    return refusal


@provokes(RefusalReason.EXCEEDS_AGENT)
def exceeds(book: Any) -> Refusal:
    book.agent("a", cpus=8, gpus=2)
    book.agent("b", cpus=16, gpus=4)
    book.framework(demand=Demand(1, (book.shape(cpus=4, gpus=9),)))
    refusal = the_refusal(book)
    shape = only(refusal, ObstacleKind.SHAPE)
    assert (shape.resource, shape.amount, shape.of, shape.agent_id) == ("gpus", 9000, 4000, "b")
    assert "no agent could ever fit" in refusal.message and "gpus: 9 wanted, b.host has 4" in refusal.message
    assert "at most gpus:4" in refusal.hint
    return refusal


@provokes(RefusalReason.RESERVED_FOR_OTHERS)
def reserved(book: Any) -> Refusal:
    book.agent(cpus=8, gpus=4)
    book.reserve("a", "others", book.request(cpus=6, gpus=4))
    book.framework(demand=Demand(1, (book.shape(cpus=4, gpus=1),)))
    refusal = the_refusal(book)
    kept = only(refusal, ObstacleKind.RESERVATION)
    assert (kept.name, kept.resource, kept.amount) == ("others", "gpus", 4000)
    assert "bursar unreserve --role others --agent a.host --resources 'cpus:6;gpus:4'" in refusal.hint
    return refusal


@provokes(RefusalReason.CAPABILITY_MISSING)
def refined(book: Any) -> Refusal:
    book.agent(cpus=8)
    book.reserve("a", "eng", book.request(cpus=6))
    book.ask(op.ReserveResourcesRequest("", "a", "eng/a", book.request(cpus=6), source="eng"))
    book.framework(roles=["eng/a"], demand=Demand(1, (book.shape(cpus=4, role="eng/a"),)))
    refusal = the_refusal(book)
    assert only(refusal, ObstacleKind.CAPABILITY).name == "RESERVATION_REFINEMENT"
    assert only(refusal, ObstacleKind.RESERVATION).name == "eng/a"
    return refusal


@provokes(RefusalReason.NOT_FREE)
def not_free(book: Any) -> Refusal:
    book.agent(cpus=8)
    other = book.framework("other", roles=["batch"])
    other.run(book.spec("t1", cpus=6), offer=other.offer)
    book.framework(demand=Demand(1, (book.shape(cpus=4),)))
    refusal = the_refusal(book)
    task = only(refusal, ObstacleKind.TASK)
    assert (task.name, task.framework_id, task.resource, task.amount) == ("t1", "other", "cpus", 6000)
    assert "bursar task kill" in refusal.hint
    return refusal


@provokes(RefusalReason.QUOTA_LIMIT)
def quota_limit(book: Any) -> Refusal:
    book.agent(cpus=8)
    book.set_quotas(book.quota("eng", limit="cpus:4"))
    other = book.framework("other", roles=["eng/x"])
    other.run(book.spec("t", cpus=3), offer=other.offer)
    other.disconnect()
    book.framework("f", roles=["eng/y"], demand=Demand(1, (book.shape(cpus=2, role="eng/y"),)))
    refusal = the_refusal(book)
    limit = only(refusal, ObstacleKind.LIMIT)
    assert (limit.name, limit.resource, limit.amount, limit.of) == ("eng", "cpus", 3000, 4000)
    assert "bursar quota set --role eng" in refusal.hint
    return refusal


@provokes(RefusalReason.HEADROOM)
def headroom(book: Any) -> Refusal:
    book.agent(cpus=8)
    book.set_quotas(book.quota("kept", guarantee="cpus:6"))
    book.framework("f", roles=["eng"], demand=Demand(1, (book.shape(cpus=4, role="eng"),)))
    refusal = the_refusal(book)
    guarantee = only(refusal, ObstacleKind.GUARANTEE)
    assert (guarantee.name, guarantee.resource, guarantee.amount, guarantee.of) == ("kept", "cpus", 0, 6000)
    assert "cpus: 6 kept free for kept, which is guaranteed 6" in guarantee.message
    return refusal


@provokes(RefusalReason.TOO_SMALL)
def too_small(book: Any) -> Refusal:
    agent = book.agent(cpus=8, mem=16)
    other = book.framework("other", roles=["batch"])
    other.run(book.spec("t1", cpus=7.995, mem=15.99), offer=other.offer)
    other.disconnect()
    assert agent is not None
    book.framework()
    refusal = the_refusal(book)
    least = {obstacle.resource: obstacle for obstacle in refusal.obstacles}
    assert {kind: obstacle.kind for kind, obstacle in least.items()} == dict.fromkeys(
        ("cpus", "mem"), ObstacleKind.MINIMUM
    )
    assert (least["cpus"].amount, least["cpus"].of) == (5, 10)
    return refusal


@provokes(RefusalReason.DECLINED)
def declined(book: Any) -> Refusal:
    book.agent()
    framework = book.framework()
    framework.decline(framework.offer, refuse_ms=HOUR_MS)
    book.advance(60_000)
    refusal = the_refusal(book)
    declined = only(refusal, ObstacleKind.FILTER)
    assert declined.until_ms == book.now.wall_ms + HOUR_MS - 60_000 and declined.agent_id == "a"
    assert "59m" in declined.message and "revive" in refusal.hint
    return refusal


@provokes(RefusalReason.OTHERS_FIRST)
def others_first(book: Any) -> Refusal:
    book.agent("a", cpus=8, gpus=2)
    book.agent("big", cpus=24, connect=False)
    first = book.framework("first", roles=["eng/x"])
    book.framework("f", roles=["eng/y"], demand=Demand(1, (book.shape(cpus=4, role="eng/y"),)))
    assert first.offer.agent_id == "a"
    refusal = the_refusal(book)
    offer = only(refusal, ObstacleKind.OFFER)
    assert (offer.name, offer.framework_id, offer.amount) == (first.offer.offer_id, "first", 8000)
    assert "bursar weight set" in refusal.hint
    return refusal


# --- the table ---


#: Reasons of steps that the allocator does not have yet. Take one out when its dialogue is written; never add one.
OWED: set[RefusalReason] = set()


def test_every_reason_that_is_given_has_a_section_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "explain.md").read_text(encoding="utf-8")
    sections = [line.removeprefix("### ") for line in page.splitlines() if line.startswith("### ")]
    assert sections == [reason.name for reason in sorted(DIALOGUES)]


def test_every_reason_has_words_and_a_dialogue() -> None:
    reasons = set(RefusalReason) - {RefusalReason.UNSPECIFIED}
    assert WORDS.keys() == reasons
    assert reasons - DIALOGUES.keys() == OWED


@pytest.mark.parametrize("reason", sorted(DIALOGUES), ids=lambda reason: reason.name)
def test_reason(reason: RefusalReason, new_book: Any) -> None:
    book = new_book(**FLAGS[reason])
    refusal = DIALOGUES[reason](book)
    assert refusal.reason is reason
    assert refusal.message and refusal.hint and refusal.obstacles
    assert all(obstacle.message and obstacle.kind for obstacle in refusal.obstacles)
    # The other two questions have the same answer.
    agent, framework = refusal.example_agent_id, refusal.example_framework_id
    alone = the_refusal(book, framework, agent=agent, role=refusal.role)
    assert (alone.reason, alone.agents, alone.frameworks, alone.pairs) == (reason, 1, 1, 1)
    for answer in (book.ask(op.ExplainAgentRequest(agent)), book.ask(op.ExplainRoleRequest(refusal.role))):
        assert reason in {found.reason for found in answer.refusals}
        assert answer.pairs == answer.examined == sum(r.pairs for r in answer.refusals) + answer.offered + answer.due


@pytest.mark.parametrize("reason", sorted(DIALOGUES), ids=lambda reason: reason.name)
def test_asking_changes_nothing(reason: RefusalReason, new_book: Any) -> None:
    """Two clusters with the same past, one of which was asked: the same offers from then on."""
    asked, silent = new_book(**FLAGS[reason]), new_book(**FLAGS[reason])
    for book in (asked, silent):
        DIALOGUES[reason](book)
    for _ in range(3):
        for name in list(asked.machine.cluster.frameworks):
            asked.ask(op.ExplainFrameworkRequest(name))
        for name in list(asked.machine.cluster.agents):
            asked.ask(op.ExplainAgentRequest(name))
    hidden = [
        {agent_id: set(filters.hidden) for agent_id, filters in book.machine.cluster.filters._agents.items()}
        for book in (asked, silent)
    ]
    assert hidden[0] == hidden[1]
    for book in (asked, silent):
        book.agent("late", cpus=32, mem=64, gpus=16)
        book.advance(2 * HOUR_MS)
    assert history(asked) == history(silent)


def history(book: Any) -> dict[str, Any]:
    return {
        name: [(offer.agent_id, offer.role, copy.copy(offer.resources)) for offer in peer.offers.values()]
        for name, peer in book.frameworks.items()
    }


# --- what is asked for ---


def test_who_has_an_offer_is_not_refused(book: Any) -> None:
    book.agent("a")
    book.framework("f", roles=["x", "y"])
    answer = book.ask(op.ExplainFrameworkRequest("f"))
    assert (answer.pairs, answer.examined, answer.offered, answer.due, answer.outstanding_offers) == (2, 2, 1, 0, 1)
    (refusal,) = answer.refusals
    assert (refusal.role, refusal.reason) == ("y", RefusalReason.OTHERS_FIRST), "its own other role has it"


def test_nearest_to_success_is_last(book: Any) -> None:
    book.agent("gone").disconnect()
    book.agent("small", cpus=1)
    book.agent("kept", cpus=8)
    book.reserve("kept", "others", book.request(cpus=8))
    book.agent("gpu", cpus=8, gpus=1)
    book.framework("f", gpu=False, demand=Demand(1, (book.shape(cpus=4),)))
    assert [refusal.reason.name for refusal in refusals(book)] == [
        "AGENT_INACTIVE",
        "HIDDEN_BY_RULE",
        "EXCEEDS_AGENT",
        "RESERVED_FOR_OTHERS",
    ]


def test_what_would_not_fit_is_not_said_to_be_in_use(book: Any) -> None:
    """Everything is offered to somebody else: for nine GPUs that is not what stands in the way."""
    book.agent("a", gpus=4)
    book.framework("other")
    book.framework("f", demand=Demand(1, (book.shape(cpus=1, gpus=9),)))
    assert the_refusal(book).reason is RefusalReason.EXCEEDS_AGENT


def test_a_shape_that_fits_nowhere_as_a_whole_says_what_is_lacking(book: Any) -> None:
    book.agent("much-cpu", cpus=32, mem=8)
    book.agent("much-mem", cpus=4, mem=64)
    book.framework("f", demand=Demand(1, (book.shape(cpus=8, mem=32),)))
    refusal = the_refusal(book)
    shape = only(refusal, ObstacleKind.SHAPE)
    assert (shape.resource, shape.amount, shape.of, shape.agent_id) == ("mem", 32 * GIB, 8 * GIB, "much-cpu")


def test_who_would_be_served_before_is_named_with_shares(book: Any) -> None:
    book.agent("a", cpus=8)
    greedy = book.framework("greedy", roles=["greedy"])
    greedy.run(book.spec("t", cpus=5), offer=greedy.offer, refuse_ms=HOUR_MS)
    greedy.want(book.shape(cpus=6, role="greedy"))
    book.framework("modest", roles=["eng/x"], demand=Demand(1, (book.shape(cpus=6, role="eng/x"),)))
    refusal = the_refusal(book, "greedy")
    assert refusal.reason is RefusalReason.NOT_FREE
    rival = only(refusal, ObstacleKind.COMPETITOR)
    assert (rival.framework_id, rival.name, rival.amount, rival.of) == ("modest", "eng/x", 0, 1000)
    assert "share 0.00 %, weight 1, against 62.50 % and 1 of greedy" in rival.message
    assert not [o for o in the_refusal(book, "modest").obstacles if o.kind is ObstacleKind.COMPETITOR]


def test_an_unhealthy_device_is_named(book: Any) -> None:
    devices = book.devices("a", 2, unhealthy=[1])
    book.agent("a", devices=devices)
    book.framework("f", demand=Demand(1, (book.shape(cpus=1, gpus=2),)))
    refusal = the_refusal(book)
    assert refusal.reason is RefusalReason.NOT_FREE
    assert only(refusal, ObstacleKind.DEVICE).name == "a-gpu1"


def test_wishes_are_told_apart(book: Any) -> None:
    book.agent()
    book.framework("away", roles=["x"]).disconnect()
    book.framework("quiet", roles=["x"], demand=Demand(1, ()))
    answer = book.ask(op.ExplainRoleRequest("x"))
    (refusal,) = answer.refusals
    assert refusal.reason is RefusalReason.SUPPRESSED and refusal.frameworks == 2 and refusal.pairs == 2
    assert [obstacle.name for obstacle in refusal.obstacles] == ["disconnected", "no-demand"]


def test_places_in_the_order_of_shares(book: Any) -> None:
    book.agent("a", cpus=8)
    for name in ("f1", "f2", "f3", "f4", "f5"):
        book.framework(name, roles=[f"role-{name}"], demand=Demand(1, (book.shape(cpus=99, role=f"role-{name}"),)))
    answer = book.ask(op.ExplainFrameworkRequest("f5"))
    assert [(place.framework_id, place.place, place.places) for place in answer.order] == [
        ("f1", 1, 5),
        ("f2", 2, 5),
        ("f3", 3, 5),
        ("f5", 5, 5),
    ]


def test_a_role_is_explained_with_those_below_it(book: Any) -> None:
    book.agent("a", cpus=8)
    book.framework("f", roles=["eng/x"], demand=Demand(1, (book.shape(cpus=99, role="eng/x"),)))
    book.framework("g", roles=["eng"], demand=Demand(1, (book.shape(cpus=99, role="eng"),)))
    book.framework("h", roles=["ops"])
    answer = book.ask(op.ExplainRoleRequest("eng"))
    assert answer.frameworks == 2 and {refusal.role for refusal in answer.refusals} == {"eng", "eng/x"}
    assert answer.outstanding_offers == 0


def test_bad_questions_are_refused_with_a_hint(book: Any) -> None:
    book.agent()
    book.framework("f", roles=["x"])
    for question, reason in (
        (op.ExplainFrameworkRequest("nobody"), ErrorReason.NOT_FOUND),
        (op.ExplainFrameworkRequest("f", "nowhere"), ErrorReason.NOT_FOUND),
        (op.ExplainFrameworkRequest("f", role="y"), ErrorReason.INVALID_ARGUMENT),
        (op.ExplainRoleRequest("nothing/here"), ErrorReason.NOT_FOUND),
        (op.ExplainAgentRequest("nowhere"), ErrorReason.NOT_FOUND),
    ):
        answer = book.ask(question)
        assert isinstance(answer, ErrorDetail) and answer.reason is reason and answer.hint, question


# --- size ---


def test_an_answer_is_bounded(book: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "MAX_PAIRS", 40)
    with book.batch():
        for index in range(30):
            book.agent(f"a{index:02}", cpus=2)
    roles = [f"r{index:02}" for index in range(40)]
    demand = Demand(1, tuple(book.shape(cpus=99, role=role) for role in roles))
    book.framework("f", roles=roles, demand=demand)
    answer = book.ask(op.ExplainFrameworkRequest("f"))
    assert answer.pairs == 1200 and answer.examined == 40
    (refusal,) = answer.refusals
    assert refusal.role == "" and refusal.pairs == 40 and refusal.agents == 30, "evenly spread over roles and agents"
    assert len(refusal.message) < 300 and len(refusal.obstacles) <= explain.MAX_OBSTACLES
    assert len(answer.order) <= explain.MAX_PLACES + explain.MAX_PLACES_BEFORE


def test_refusals_are_counted_by_role_and_reason(book: Any) -> None:
    for index in range(20):
        book.agent(f"a{index:02}", cpus=2)
    for name in ("f", "g"):
        book.framework(name, roles=["x"], demand=Demand(1, (book.shape(cpus=99, role="x"),)))
    book.framework("h", roles=["y"])
    cluster = book.machine.cluster
    assert explain.count_refusals(cluster, 60) == {("x", RefusalReason.EXCEEDS_AGENT): 40}, "h has offers of all"
    assert explain.count_refusals(cluster, 12) == {("x", RefusalReason.EXCEEDS_AGENT): 40}, "scaled up"
    assert explain.count_refusals(cluster, 1) in ({}, {("x", RefusalReason.EXCEEDS_AGENT): 60})
