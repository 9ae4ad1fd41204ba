"""Dialogues: gangs and the bundles that answer them (design.md §7, docs/gangs.md)."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import ErrorReason
from bursar.core.messages.framework import Kill, Offers, Rescind
from bursar.core.messages.gangs import Bundle, CancelGang, GangTopology, RequestGang
from bursar.core.resources import ReservedResources, ResourceRequest, holding_total, to_holding
from bursar.core.tasks import StatusReason, TaskState

MINUTE_MS = 60_000


def placed(bundle: Bundle) -> dict[str, int]:
    """Agent → tasks."""
    found: dict[str, int] = {}
    for member in bundle.members:
        found[member.agent_id] = found.get(member.agent_id, 0) + 1
    return found


# --- the answer ---


def test_a_gang_that_fits_is_answered_by_one_bundle_over_its_agents(book: Any) -> None:
    for name in "abc":
        book.agent(name, gpus=4)
    framework = book.asleep()
    shape = book.request(cpus=1, gpus=4)
    framework.ask_for_gang((2, shape))
    bundle = framework.bundle
    assert framework.gang_states() == ["WAITING", "BUNDLE"]
    assert bundle.gang_id == "g" and len(bundle.offers) == 2 and len(set(placed(bundle))) == 2
    for offer in bundle.offers:
        assert holding_total(to_holding(offer.resources)).amounts() == {"cpus": 1000, "gpus": 4000}, (
            "just what it needs"
        )
        assert offer.expires_in_ms == 30_000
    result = framework.take(bundle, {0: shape})
    assert result.error is None
    assert len(book.machine.cluster.tasks) == 2
    assert not book.machine.cluster.gangs.by_key
    book.quiet()


def test_few_agents_are_used_and_the_last_one_is_the_tightest(book: Any) -> None:
    for name, cpus in (("a", 8), ("b", 2), ("c", 4), ("d", 8)):
        book.agent(name, cpus=cpus)
    framework = book.asleep()
    framework.ask_for_gang((17, book.request(cpus=1)))
    assert placed(framework.bundle) == {"a": 8, "d": 8, "b": 1}


def test_several_shapes_lie_together(book: Any) -> None:
    book.agent("gpu", cpus=8, gpus=8)
    book.agent("plain", cpus=8)
    framework = book.asleep()
    framework.ask_for_gang((1, book.request(cpus=2)), (4, book.request(cpus=1, gpus=2)))
    bundle = framework.bundle
    assert sorted(member.group for member in bundle.members) == [0, 1, 1, 1, 1]
    assert {member.agent_id for member in bundle.members if member.group == 1} == {"gpu"}
    assert framework.take(bundle, {0: book.request(cpus=2), 1: book.request(cpus=1, gpus=2)}).error is None


def test_all_agents_have_the_same_value_of_an_attribute(book: Any) -> None:
    for name, rack in (("a", "r1"), ("b", "r1"), ("c", "r2"), ("d", "r2"), ("e", "r2")):
        book.agent(name, cpus=4, attributes={"rack": rack})
    book.agent("without", cpus=64)
    framework = book.asleep()
    framework.ask_for_gang((3, book.request(cpus=3)), same="rack")
    assert set(placed(framework.bundle)) == {"c", "d", "e"}


def test_each_task_gets_gpus_that_are_linked(book: Any) -> None:
    book.agent("a", devices=book.linked("a", [[0, 1, 2, 3], [4, 5, 6, 7]]))
    user = book.framework("user")
    user.run(book.spec("x", devices=["a-gpu0"]), offer=user.offer)
    user.suppress()
    framework = book.asleep()
    shape = book.request(cpus=1, gpus=3)
    framework.ask_for_gang((2, shape), clique=True)
    bundle = framework.bundle
    assert [set(member.device_uuids) <= {f"a-gpu{n}" for n in range(4)} for member in bundle.members] == [True, False]
    assert framework.take(bundle, {0: shape}).error is None
    held = [
        set(task.assigned.device_uuids) for task in book.machine.cluster.tasks.values() if task.key.framework_id == "f"
    ]
    assert {"a-gpu1", "a-gpu2", "a-gpu3"} in held
    framework.ask_for_gang((1, book.request(cpus=1, gpus=2)), clique=True)
    assert framework.gang_states() == ["WAITING", "BUNDLE", "WAITING"], "two are free, one of each clique"
    book.quiet()


def test_what_is_reserved_to_the_role_is_used_and_what_is_for_others_is_not(book: Any) -> None:
    mine = ReservedResources(book.static("ml"), book.resources(cpus=4))
    others = ReservedResources(book.static("eng"), book.resources(cpus=4))
    book.agent("a", parts=[mine])
    book.agent("b", parts=[others])
    book.agent("c", cpus=2)
    framework = book.asleep(roles=["ml"])
    framework.ask_for_gang((3, book.request(cpus=2)))
    assert placed(framework.bundle) == {"a": 2, "c": 1}
    stacks = {offer.agent_id: offer.resources[0].stack for offer in framework.bundle.offers}
    assert stacks["a"] == book.static("ml") and stacks["c"] == ()


def test_a_filter_does_not_stand_in_the_way_of_what_was_asked_for(book: Any) -> None:
    book.agent()
    framework = book.framework()
    framework.decline(framework.offer, refuse_ms=MINUTE_MS)
    framework.ask_for_gang((1, book.request(cpus=1)))
    assert framework.gang_states() == ["WAITING", "BUNDLE"]


def test_rules_hide_agents_from_gangs(book: Any) -> None:
    book.agent("gpu", cpus=8, gpus=1)
    book.agent("plain", cpus=1)
    framework = book.asleep(gpu=False)
    framework.ask_for_gang((2, book.request(cpus=1)))
    assert framework.gang_states() == ["REFUSED"]
    framework.ask_for_gang((1, book.request(cpus=1)))
    assert placed(framework.bundle) == {"plain": 1}


# --- as a whole ---


@pytest.mark.parametrize("named", [0, 1])
def test_declining_one_offer_declines_the_bundle(book: Any, named: int) -> None:
    book.agent("a")
    book.agent("b")
    framework = book.asleep()
    framework.ask_for_gang((2, book.request(cpus=8)))
    offers = framework.bundle.offers
    framework.decline(offers[named])
    assert framework.gang_states() == ["WAITING", "BUNDLE", "CANCELLED"]
    assert not book.machine.cluster.offers and not book.machine.cluster.gangs.by_key
    book.quiet()


def test_an_accept_of_a_bundle_is_all_of_it_or_nothing(book: Any) -> None:
    book.agent("a")
    book.agent("b")
    framework = book.asleep()
    shape = book.request(cpus=8)
    framework.ask_for_gang((2, shape))
    bundle = framework.bundle
    wrong = framework.take(bundle, {0: book.request(cpus=9)})
    assert wrong.error is not None and wrong.error.reason is ErrorReason.TASK_INVALID
    assert framework.gang_states() == ["WAITING", "BUNDLE", "CANCELLED"]
    assert not book.machine.cluster.offers and not book.machine.cluster.tasks


def test_a_bundle_is_not_mixed_with_other_offers_nor_taken_in_part(book: Any) -> None:
    book.agent("a", cpus=4)
    framework = book.framework()
    book.agent("b", cpus=8)
    single = next(offer for offer in framework.offers.values() if offer.agent_id == "a")
    framework.decline(*[offer for offer in framework.offers.values() if offer.agent_id == "b"])
    framework.ask_for_gang((1, book.request(cpus=8)))
    bundle = framework.bundle
    mixed = framework.accept([single, bundle.offers[0]])
    assert mixed.error is not None and "together with other offers" in mixed.error.message
    framework.ask_for_gang((1, book.request(cpus=8)))
    bundle = framework.bundle
    part = framework.take(bundle, {0: book.request(cpus=8)}, partial=True)
    assert part.error is not None and "in part" in part.error.message


def test_one_lost_member_voids_the_bundle_and_the_gang_waits_again(book: Any) -> None:
    for name in "ab":
        book.agent(name)
    framework = book.asleep()
    framework.ask_for_gang((2, book.request(cpus=8)))
    bundle = framework.bundle
    assert framework.gang_states() == ["WAITING", "BUNDLE"]
    book.agents["b"].disconnect()
    (rescind,) = framework.heard(Rescind)
    assert set(rescind.offer_ids) == {offer.offer_id for offer in bundle.offers}
    assert framework.gang_states() == ["WAITING"]
    book.quiet()
    book.agents["b"].connect()
    assert framework.gang_states() == ["BUNDLE"]
    late = framework.accept([bundle.offers[0].offer_id])
    assert late.error is not None and late.error.reason is ErrorReason.INVALID_OFFERS


def test_an_unanswered_bundle_expires_as_a_whole_and_ends_the_gang(book: Any) -> None:
    for name in "ab":
        book.agent(name)
    framework = book.asleep()
    framework.ask_for_gang((2, book.request(cpus=8)))
    book.advance(30_000)
    assert not framework.offers and len(framework.heard(Rescind)) == 1
    assert framework.gang_states() == ["WAITING", "BUNDLE", "EXPIRED"]
    book.quiet()


def test_a_flag_that_forbids_one_member_voids_the_bundle(new_book: Any) -> None:
    book = new_book(filter_gpu_resources="false")
    book.agent("gpu", cpus=4, gpus=1)
    book.agent("plain", cpus=4)
    framework = book.asleep(gpu=False)
    framework.ask_for_gang((2, book.request(cpus=4)))
    assert len(framework.offers) == 2
    book.set_flag("filter-gpu-resources", "true")
    assert not framework.offers
    assert framework.gang_states()[-1] == "WAITING"


def test_an_operators_reservation_voids_the_bundle_in_its_way(book: Any) -> None:
    for name in "ab":
        book.agent(name)
    framework = book.asleep()
    framework.ask_for_gang((2, book.request(cpus=8)))
    book.reserve("a", "eng", book.request(cpus=1))
    assert framework.gang_states() == ["WAITING", "BUNDLE", "WAITING"]
    assert not framework.offers


# --- asked for ---


def test_the_same_words_change_nothing_and_others_replace_it(book: Any) -> None:
    book.agent("a", cpus=4)
    user = book.framework("user")
    user.run_on("a", "x", cpus=4)
    framework = book.asleep()
    for _ in range(2):
        framework.ask_for_gang((2, book.request(cpus=2)))
    assert len(book.machine.cluster.gangs.by_key) == 1
    framework.ask_for_gang((1, book.request(cpus=2)))
    (gang,) = book.machine.cluster.gangs.by_key.values()
    assert gang.tasks == 1
    assert framework.gang_states() == ["WAITING"] * 3


def test_cancelling_takes_a_bundle_back(book: Any) -> None:
    book.agent()
    framework = book.asleep()
    framework.ask_for_gang((1, book.request(cpus=1)))
    framework.call(CancelGang("g"))
    assert framework.gang_states() == ["WAITING", "BUNDLE", "CANCELLED"]
    assert not framework.offers
    framework.call(CancelGang("g"))
    assert framework.gang_states() == []


def test_giving_up_the_role_ends_its_gangs(book: Any) -> None:
    book.agent()
    framework = book.asleep(roles=["x", "y"])
    framework.ask_for_gang((1, book.request(cpus=1)), role="y")
    framework.update(roles=("x",), suppressed=["x"])
    assert framework.gang_states() == ["WAITING", "BUNDLE", "CANCELLED"]
    assert not framework.offers


def test_gangs_end_with_the_stream(book: Any) -> None:
    book.agent()
    framework = book.asleep()
    framework.ask_for_gang((1, book.request(cpus=1)))
    framework.disconnect()
    assert not book.machine.cluster.gangs.by_key and not book.machine.cluster.offers
    framework.connect(suppressed=["*"])
    assert not framework.offers
    framework.ask_for_gang((1, book.request(cpus=1)))
    book.restart()
    assert not book.machine.cluster.gangs.by_key


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gang_id": ""}, "gang_id"),
        ({"role": "other"}, "not a role"),
        ({"groups": ()}, "at least one group"),
        ({"ttl_ms": 0}, "waits for at least 1s"),
        ({"ttl_ms": 2**62}, "at most"),
        ({"topology": GangTopology("x" * 300)}, "too long"),
    ],
)
def test_what_is_not_well_formed_is_refused_by_name(book: Any, change: dict[str, Any], said: str) -> None:
    book.agent()
    framework = book.asleep()
    framework.ask_for_gang((1, book.request(cpus=1)))
    framework.inbox.clear()
    good = {
        "gang_id": "h",
        "role": "*",
        "groups": book.machine.cluster.gangs.by_key["f", "g"].request.groups,
        "ttl_ms": 5000,
    }
    framework.call(RequestGang(**(good | change)))
    assert said in str(framework.gang_error())


@pytest.mark.parametrize(
    ("count", "shape", "said"),
    [
        (0, ResourceRequest({"cpus": 1}), "at least one task"),
        (1, ResourceRequest(), "no resources are named"),
        (1, ResourceRequest({"cpus": -1}), "above zero"),
        (1, ResourceRequest({}, (), 0, ("a-gpu0",)), "by number"),
        (1025, ResourceRequest({"cpus": 1}), "at most 1024 tasks"),
        (1024, ResourceRequest({}, (), 9), "8192 GPUs"),
    ],
)
def test_shapes_that_nobody_can_have_are_refused(book: Any, count: int, shape: Any, said: str) -> None:
    book.agent(gpus=1)
    framework = book.asleep()
    framework.ask_for_gang((count, shape))
    assert said in str(framework.gang_error())


# --- never ---


@pytest.mark.parametrize(
    ("groups", "more", "said"),
    [
        ([(1, {"gpus": 5})], {}, "needs gpus:5, and no agent has more than gpus:4"),
        ([(1, {"cpus": 9})], {}, "needs cpus:9, and no agent has more than cpus:8"),
        ([(5, {"cpus": 4})], {}, "need cpus:20, and there are cpus:16"),
        ([(3, {"cpus": 5})], {}, "there are places for 2 of its 3 tasks"),
        ([(2, {"gpus": 3})], {"clique": True}, "3 GPUs linked by NVLink, and no agent has more than 2"),
        (
            [(3, {"cpus": 4})],
            {"same": "rack"},
            "no rack has enough; on rack r2, its tasks need cpus:12, and there are cpus:8",
        ),
        ([(1, {"cpus": 4})], {"same": "zone"}, "no agent has the attribute zone"),
    ],
)
def test_what_could_never_fit_is_refused_at_once_with_what_is_missing(
    book: Any, groups: Any, more: Any, said: str
) -> None:
    for name, rack in (("a", "r1"), ("b", "r2")):
        book.agent(name, devices=book.linked(name, [[0, 1], [2, 3]]), attributes={"rack": rack})
    framework = book.asleep()
    framework.ask_for_gang(*[(count, book.request(**shape)) for count, shape in groups], **more)
    error = framework.gang_error()
    assert error.reason is ErrorReason.INSUFFICIENT_RESOURCES and said in error.message, error.message
    assert not book.machine.cluster.gangs.by_key


def test_agents_that_are_away_count_for_what_could_ever_fit(book: Any) -> None:
    book.agent("a")
    book.agent("b")
    book.agents["b"].disconnect()
    framework = book.asleep()
    framework.ask_for_gang((2, book.request(cpus=8)))
    assert framework.gang_states() == ["WAITING"]
    book.agents["b"].connect()
    assert framework.gang_states() == ["BUNDLE"]


# --- together or not at all ---


def launched(book: Any, **more: Any) -> Any:
    for name in "ab":
        book.agent(name)
    framework = book.asleep()
    shape = book.request(cpus=8)
    framework.ask_for_gang((2, shape), **more)
    assert framework.take(framework.bundle, {0: shape}).error is None
    where = {task.key.task_id: book.agents[task.agent_id] for task in book.machine.cluster.tasks.values()}
    return framework, where


def test_a_task_that_never_ran_ends_the_others(book: Any) -> None:
    _, where = launched(book)
    where["t0"].update("t0", TaskState.RUNNING)
    where["t1"].update("t1", TaskState.FAILED, reason=StatusReason.IMAGE_NOT_FOUND)
    (kill,) = [kill for state in where["t0"].inbox for kill in getattr(state, "kill", ())]
    assert kill.task_id == "t0" and kill.reason is StatusReason.GANG_MEMBER_LOST
    assert any(event.kind == "gang_released" for event in book.published)
    assert not book.machine.cluster.gangs.starting


@pytest.mark.parametrize("keep", [True, False])
def test_keeping_or_having_run_leaves_the_others_alone(book: Any, keep: bool) -> None:
    _, where = launched(book, keep=keep)
    if not keep:
        for task_id, agent in where.items():
            agent.update(task_id, TaskState.RUNNING)
        assert not book.machine.cluster.gangs.starting
    where["t1"].update("t1", TaskState.FAILED, exit_code=None if keep else 1)
    assert not [kill for state in where["t0"].inbox for kill in getattr(state, "kill", ())]


def test_a_framework_that_kills_a_member_before_it_ran_loses_the_others(book: Any) -> None:
    framework, where = launched(book)
    framework.call(Kill("t1"))
    where["t1"].update("t1", TaskState.KILLED)
    assert [kill.task_id for state in where["t0"].inbox for kill in getattr(state, "kill", ())] == ["t0"]


def test_without_gangs_nothing_is_different(book: Any) -> None:
    book.agent()
    framework = book.framework()
    assert len(framework.heard(Offers)) == 1
    assert book.machine.cluster.gangs.requests == 0
