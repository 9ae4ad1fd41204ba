"""Dialogues: gangs and the bundles that answer them (design.md §7, docs/gangs.md)."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import ErrorReason
from bursar.core.messages import operator as op
from bursar.core.messages.framework import Kill, Offers, Rescind
from bursar.core.messages.gangs import Bundle, CancelGang, GangTopology, RequestGang
from bursar.core.resources import ReservedResources, ResourceRequest, holding_total, to_holding
from bursar.core.tasks import StatusReason, TaskState

MINUTE_MS = 60_000


def quiet(book: Any) -> None:
    """design.md §7: when event-driven work is quiet, a full cycle makes no offer, and no bundle."""
    assert book.full_cycle_offers() == 0


def asleep(book: Any, framework_id: str = "f", **more: Any) -> Any:
    """A framework that wants nothing but what it asks for."""
    framework = book.framework(framework_id, connect=False, **more)
    return framework.connect(suppressed=framework.info.roles)


def placed(bundle: Bundle) -> dict[str, int]:
    """Agent → tasks."""
    found: dict[str, int] = {}
    for member in bundle.members:
        found[member.agent_id] = found.get(member.agent_id, 0) + 1
    return found


def busy(book: Any, agent: str, framework: Any, task_id: str, **amounts: Any) -> None:
    """Have a framework hold part of an agent by a task."""
    (offer,) = [offer for offer in framework.offers.values() if offer.agent_id == agent]
    framework.run(book.spec(task_id, **amounts), offer=offer, refuse_ms=0)


# --- the answer ---


def test_a_gang_that_fits_is_answered_by_one_bundle_over_its_agents(book: Any) -> None:
    for name in "abc":
        book.agent(name, gpus=4)
    framework = asleep(book)
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
    quiet(book)


def test_few_agents_are_used_and_the_last_one_is_the_tightest(book: Any) -> None:
    for name, cpus in (("a", 8), ("b", 2), ("c", 4), ("d", 8)):
        book.agent(name, cpus=cpus)
    framework = asleep(book)
    framework.ask_for_gang((17, book.request(cpus=1)))
    assert placed(framework.bundle) == {"a": 8, "d": 8, "b": 1}


def test_several_shapes_lie_together(book: Any) -> None:
    book.agent("gpu", cpus=8, gpus=8)
    book.agent("plain", cpus=8)
    framework = asleep(book)
    framework.ask_for_gang((1, book.request(cpus=2)), (4, book.request(cpus=1, gpus=2)))
    bundle = framework.bundle
    assert sorted(member.group for member in bundle.members) == [0, 1, 1, 1, 1]
    assert {member.agent_id for member in bundle.members if member.group == 1} == {"gpu"}
    assert framework.take(bundle, {0: book.request(cpus=2), 1: book.request(cpus=1, gpus=2)}).error is None


def test_all_agents_have_the_same_value_of_an_attribute(book: Any) -> None:
    for name, rack in (("a", "r1"), ("b", "r1"), ("c", "r2"), ("d", "r2"), ("e", "r2")):
        book.agent(name, cpus=4, attributes={"rack": rack})
    book.agent("without", cpus=64)
    framework = asleep(book)
    framework.ask_for_gang((3, book.request(cpus=3)), same="rack")
    assert set(placed(framework.bundle)) == {"c", "d", "e"}


def test_each_task_gets_gpus_that_are_linked(book: Any) -> None:
    book.agent("a", devices=book.linked("a", [[0, 1, 2, 3], [4, 5, 6, 7]]))
    user = book.framework("user")
    user.run(book.spec("x", devices=["a-gpu0"]), offer=user.offer)
    user.suppress()
    framework = asleep(book)
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
    quiet(book)


def test_what_is_reserved_to_the_role_is_used_and_what_is_for_others_is_not(book: Any) -> None:
    mine = ReservedResources(book.static("ml"), book.resources(cpus=4))
    others = ReservedResources(book.static("eng"), book.resources(cpus=4))
    book.agent("a", parts=[mine])
    book.agent("b", parts=[others])
    book.agent("c", cpus=2)
    framework = asleep(book, roles=["ml"])
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
    framework = asleep(book, gpu=False)
    framework.ask_for_gang((2, book.request(cpus=1)))
    assert framework.gang_states() == ["REFUSED"]
    framework.ask_for_gang((1, book.request(cpus=1)))
    assert placed(framework.bundle) == {"plain": 1}


# --- as a whole ---


@pytest.mark.parametrize("named", [0, 1])
def test_declining_one_offer_declines_the_bundle(book: Any, named: int) -> None:
    book.agent("a")
    book.agent("b")
    framework = asleep(book)
    framework.ask_for_gang((2, book.request(cpus=8)))
    offers = framework.bundle.offers
    framework.decline(offers[named])
    assert framework.gang_states() == ["WAITING", "BUNDLE", "CANCELLED"]
    assert not book.machine.cluster.offers and not book.machine.cluster.gangs.by_key
    quiet(book)


def test_an_accept_of_a_bundle_is_all_of_it_or_nothing(book: Any) -> None:
    book.agent("a")
    book.agent("b")
    framework = asleep(book)
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
    framework = asleep(book)
    framework.ask_for_gang((2, book.request(cpus=8)))
    bundle = framework.bundle
    assert framework.gang_states() == ["WAITING", "BUNDLE"]
    book.agents["b"].disconnect()
    (rescind,) = framework.heard(Rescind)
    assert set(rescind.offer_ids) == {offer.offer_id for offer in bundle.offers}
    assert framework.gang_states() == ["WAITING"]
    quiet(book)
    book.agents["b"].connect()
    assert framework.gang_states() == ["BUNDLE"]
    late = framework.accept([bundle.offers[0].offer_id])
    assert late.error is not None and late.error.reason is ErrorReason.INVALID_OFFERS


def test_an_unanswered_bundle_expires_as_a_whole_and_ends_the_gang(book: Any) -> None:
    for name in "ab":
        book.agent(name)
    framework = asleep(book)
    framework.ask_for_gang((2, book.request(cpus=8)))
    book.advance(30_000)
    assert not framework.offers and len(framework.heard(Rescind)) == 1
    assert framework.gang_states() == ["WAITING", "BUNDLE", "EXPIRED"]
    quiet(book)


def test_a_flag_that_forbids_one_member_voids_the_bundle(new_book: Any) -> None:
    book = new_book(filter_gpu_resources="false")
    book.agent("gpu", cpus=4, gpus=1)
    book.agent("plain", cpus=4)
    framework = asleep(book, gpu=False)
    framework.ask_for_gang((2, book.request(cpus=4)))
    assert len(framework.offers) == 2
    book.set_flag("filter-gpu-resources", "true")
    assert not framework.offers
    assert framework.gang_states()[-1] == "WAITING"


def test_an_operators_reservation_voids_the_bundle_in_its_way(book: Any) -> None:
    for name in "ab":
        book.agent(name)
    framework = asleep(book)
    framework.ask_for_gang((2, book.request(cpus=8)))
    book.reserve("a", "eng", book.request(cpus=1))
    assert framework.gang_states() == ["WAITING", "BUNDLE", "WAITING"]
    assert not framework.offers


# --- asked for ---


def test_the_same_words_change_nothing_and_others_replace_it(book: Any) -> None:
    book.agent("a", cpus=4)
    user = book.framework("user")
    busy(book, "a", user, "x", cpus=4)
    framework = asleep(book)
    for _ in range(2):
        framework.ask_for_gang((2, book.request(cpus=2)))
    assert len(book.machine.cluster.gangs.by_key) == 1
    framework.ask_for_gang((1, book.request(cpus=2)))
    (gang,) = book.machine.cluster.gangs.by_key.values()
    assert gang.tasks == 1
    assert framework.gang_states() == ["WAITING"] * 3


def test_cancelling_takes_a_bundle_back(book: Any) -> None:
    book.agent()
    framework = asleep(book)
    framework.ask_for_gang((1, book.request(cpus=1)))
    framework.call(CancelGang("g"))
    assert framework.gang_states() == ["WAITING", "BUNDLE", "CANCELLED"]
    assert not framework.offers
    framework.call(CancelGang("g"))
    assert framework.gang_states() == []


def test_giving_up_the_role_ends_its_gangs(book: Any) -> None:
    book.agent()
    framework = asleep(book, roles=["x", "y"])
    framework.ask_for_gang((1, book.request(cpus=1)), role="y")
    framework.update(roles=("x",), suppressed=["x"])
    assert framework.gang_states() == ["WAITING", "BUNDLE", "CANCELLED"]
    assert not framework.offers


def test_gangs_end_with_the_stream(book: Any) -> None:
    book.agent()
    framework = asleep(book)
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
    framework = asleep(book)
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
    framework = asleep(book)
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
    framework = asleep(book)
    framework.ask_for_gang(*[(count, book.request(**shape)) for count, shape in groups], **more)
    error = framework.gang_error()
    assert error.reason is ErrorReason.INSUFFICIENT_RESOURCES and said in error.message, error.message
    assert not book.machine.cluster.gangs.by_key


def test_agents_that_are_away_count_for_what_could_ever_fit(book: Any) -> None:
    book.agent("a")
    book.agent("b")
    book.agents["b"].disconnect()
    framework = asleep(book)
    framework.ask_for_gang((2, book.request(cpus=8)))
    assert framework.gang_states() == ["WAITING"]
    book.agents["b"].connect()
    assert framework.gang_states() == ["BUNDLE"]


# --- waiting and holding ---


def test_a_gang_that_waited_long_enough_hears_why(book: Any) -> None:
    for name in "abc":
        book.agent(name)
    user = book.framework("user")
    busy(book, "b", user, "x", cpus=8)
    user.suppress()
    framework = asleep(book)
    framework.ask_for_gang((3, book.request(cpus=8)), ttl_ms=5000)
    book.advance(5000)
    assert framework.gang_states()[-1] == "EXPIRED" or framework.gang_error()


def test_its_reason_counts_the_tasks_that_had_room(book: Any) -> None:
    for name in "abc":
        book.agent(name)
    user = book.framework("user")
    for name in "abc":
        busy(book, name, user, name, cpus=8)
    user.suppress()
    framework = asleep(book)
    framework.ask_for_gang((3, book.request(cpus=8)), ttl_ms=5000)
    book.agents["a"].update("a", TaskState.FINISHED, framework="user")
    book.advance(5000)
    assert "no bundle within 5s: 1 of its 3 tasks had room" in framework.gang_error().message
    assert not book.machine.cluster.ledger.gang_holds
    quiet(book)


def full_cluster(book: Any, names: str = "abcd") -> Any:
    """Agents of 8 CPUs, each full with eight tasks of one CPU: `<agent><n>`."""
    user = book.framework("user", roles=["small"])
    for name in names:
        book.agent(name)
        offer = next(offer for offer in user.offers.values() if offer.agent_id == name)
        user.run(*[book.spec(f"{name}{n}", cpus=1) for n in range(8)], offer=offer, refuse_ms=0)
    return user


def test_a_stream_of_small_tasks_does_not_starve_a_gang(book: Any) -> None:
    """One CPU at a time becomes free, and small tasks wait for each: what the gang needs is kept for it."""
    user = full_cluster(book)
    framework = asleep(book)
    shape = book.request(cpus=8)
    framework.ask_for_gang((2, shape))
    names = [f"{name}{n}" for n in range(8) for name in "abcd"]
    for index, task_id in enumerate(names):
        if framework.gang_states()[-1:] == ["BUNDLE"]:
            break
        agent = book.agents[task_id[0]]
        agent.update(task_id, TaskState.FINISHED, framework="user")
        # The small tasks take at once whatever they are offered, but memory alone is no use.
        for offer in list(user.offers.values()):
            cpus = holding_total(to_holding(offer.resources)).scalars.get("cpus", 0)
            if cpus:
                user.run(*[book.spec(f"more{index}{n}", cpus=1) for n in range(cpus // 1000)], offer=offer, refuse_ms=0)
            else:
                user.decline(offer)
        quiet(book)
    assert len(framework.offers) == 2
    more = [key for key in book.machine.cluster.tasks if key.task_id.startswith("more")]
    assert len(more) > 10, "elsewhere they go on"


def test_what_is_held_is_shown_and_bounded_by_what_is_needed(book: Any) -> None:
    user = full_cluster(book, "ab")
    user.suppress()
    framework = asleep(book)
    framework.ask_for_gang((1, book.request(cpus=6)), gang_id="big")
    for n in range(5):
        book.agents["a"].update(f"a{n}", TaskState.FINISHED, framework="user")
        book.agents["b"].update(f"b{n}", TaskState.FINISHED, framework="user")
    views = {name: book.agents[name].view for name in "ab"}
    held = {name: view.withheld.scalars.get("cpus", 0) for name, view in views.items()}
    assert sorted(held.values()) == [0, 5000]
    (reason,) = [text for view in views.values() for text in view.withheld_reasons]
    assert reason == "gang hold for f/big: cpus:5"
    user.revive()
    assert {
        offer.agent_id
        for offer in user.offers.values()
        if holding_total(to_holding(offer.resources)).scalars.get("cpus")
    } == {name for name in "ab" if not held[name]}
    (name,) = [name for name in "ab" if held[name]]
    book.agents[name].update(f"{name}5", TaskState.FINISHED, framework="user")
    assert framework.gang_states("big")[-1] == "BUNDLE"
    assert not book.agents[name].view.withheld


def test_two_gangs_that_each_need_most_of_the_cluster_come_one_after_the_other(book: Any) -> None:
    user = full_cluster(book)
    user.suppress()
    one, two = asleep(book, "one", roles=["one"]), asleep(book, "two", roles=["two"])
    shape = book.request(cpus=8)
    one.ask_for_gang((3, shape))
    two.ask_for_gang((3, shape))
    for n in range(8):
        for name in "abcd":
            book.agents[name].update(f"{name}{n}", TaskState.FINISHED, framework="user")
    assert (one.gang_states()[-1], two.gang_states()[-1]) == ("BUNDLE", "WAITING")
    bundle = [event for event in one.offers.values()]
    assert len(bundle) == 3 and len(book.machine.cluster.ledger.gang_holds) == 1, "the second one holds what is left"
    specs = [book.spec(f"t{offer.agent_id}", cpus=8, agent_id=offer.agent_id) for offer in bundle]
    result = one.accept([bundle[0]], book.launch(*specs))
    assert result.error is None
    for offer in bundle:
        book.agents[offer.agent_id].update(f"t{offer.agent_id}", TaskState.RUNNING, framework="one")
        book.agents[offer.agent_id].update(f"t{offer.agent_id}", TaskState.FINISHED, framework="one")
    assert two.gang_states() == ["BUNDLE"]
    quiet(book)


def test_the_role_that_has_less_comes_first_whatever_its_age(book: Any) -> None:
    for name in "ab":
        book.agent(name)
    rich = book.framework("rich", roles=["rich"])
    busy(book, "a", rich, "x", cpus=8)
    busy(book, "b", rich, "y", cpus=8)
    rich.suppress()
    poor = asleep(book, "poor", roles=["poor"])
    with book.batch():
        rich.ask_for_gang((1, book.request(cpus=8)))
        poor.ask_for_gang((1, book.request(cpus=8)))
    book.agents["b"].update("y", TaskState.FINISHED, framework="rich")
    assert (rich.gang_states()[-1], poor.gang_states()[-1]) == ("WAITING", "BUNDLE")


def test_of_those_that_have_the_same_the_older_comes_first(book: Any) -> None:
    user = full_cluster(book, "a")
    user.suppress()
    late, early = asleep(book, "1-late"), asleep(book, "2-early")
    with book.batch():
        early.ask_for_gang((1, book.request(cpus=8)))
        late.ask_for_gang((1, book.request(cpus=8)))
    for n in range(8):
        book.agents["a"].update(f"a{n}", TaskState.FINISHED, framework="user")
    assert (early.gang_states()[-1], late.gang_states()[-1]) == ("BUNDLE", "WAITING")


def test_a_hold_ends_in_time_and_the_next_gang_has_its_turn(new_book: Any) -> None:
    book = new_book(gang_hold_timeout="10s", agent_ping_timeout="1000d")
    user = full_cluster(book, "ab")
    user.suppress()
    one, two = asleep(book, "one"), asleep(book, "two")
    one.ask_for_gang((2, book.request(cpus=8)))
    two.ask_for_gang((2, book.request(cpus=8)))
    for n in range(4):
        book.agents["a"].update(f"a{n}", TaskState.FINISHED, framework="user")
    gangs = book.machine.cluster.gangs
    assert gangs.holder.key == ("one", "g")
    book.advance(10_000)
    assert gangs.holder.key == ("two", "g")
    assert book.agents["a"].view.withheld.scalars["cpus"] == 4000
    book.advance(10_000)
    assert gangs.holder.key == ("one", "g"), "it has rested, and held as often"
    quiet(book)


def test_a_gang_alone_rests_too_and_what_it_held_is_offered(new_book: Any) -> None:
    book = new_book(gang_hold_timeout="10s", agent_ping_timeout="1000d")
    user = full_cluster(book, "a")
    framework = asleep(book)
    framework.ask_for_gang((1, book.request(cpus=8)))
    book.agents["a"].update("a0", TaskState.FINISHED, framework="user")

    def cpus() -> int:
        return sum(holding_total(to_holding(offer.resources)).scalars.get("cpus", 0) for offer in user.offers.values())

    assert cpus() == 0
    book.advance(10_000)
    assert cpus() == 1000
    book.advance(10_000)
    assert book.machine.cluster.gangs.holder is not None


def test_a_hold_gives_way_to_reservations_and_to_changes_of_the_agent(book: Any) -> None:
    user = full_cluster(book, "ab")
    user.suppress()
    framework = asleep(book)
    framework.ask_for_gang((2, book.request(cpus=8)))
    for n in range(4):
        book.agents["a"].update(f"a{n}", TaskState.FINISHED, framework="user")
    assert book.agents["a"].view.withheld.scalars["cpus"] == 4000
    answer = book.reserve("a", "eng", book.request(cpus=2))
    assert isinstance(answer, op.ReserveResourcesResponse)
    # The gang could not fit any more: it holds nothing.
    assert not book.machine.cluster.ledger.gang_holds
    book.unreserve("a", "eng", book.request(cpus=2))
    assert book.agents["a"].view.withheld.scalars["cpus"] == 4000
    book.agents["a"].disconnect()
    assert not book.machine.cluster.ledger.gang_holds
    book.agents["a"].connect()
    assert book.agents["a"].view.withheld.scalars["cpus"] == 4000


def test_a_hold_of_linked_gpus_fills_a_clique(book: Any) -> None:
    book.agent("a", devices=book.linked("a", [[0, 1, 2, 3], [4, 5, 6, 7]]))
    user = book.framework("user", roles=["small"])
    user.run(*[book.spec(f"x{n}", cpus=0.5, devices=[f"a-gpu{n}"]) for n in range(8)], offer=user.offer)
    user.suppress()
    framework = asleep(book)
    framework.ask_for_gang((1, book.request(cpus=1, gpus=4)), clique=True)
    for n in (0, 4, 5, 6):
        book.agents["a"].update(f"x{n}", TaskState.FINISHED, framework="user")
    assert framework.gang_states() == ["WAITING"]
    assert {f"a-gpu{n}" for n in (4, 5, 6)} <= book.agents["a"].view.withheld.devices
    devices = book.ask(op.ListDevicesRequest(book.page())).devices
    assert {view.use for view in devices if view.device.uuid == "a-gpu4"} == {"withheld"}
    book.agents["a"].update("x7", TaskState.FINISHED, framework="user")
    assert set(framework.bundle.members[0].device_uuids) == {f"a-gpu{n}" for n in (4, 5, 6, 7)}


# --- quota ---


def test_a_gang_beyond_its_roles_limit_is_refused(book: Any) -> None:
    book.agent()
    book.ask(op.SetQuotasRequest("", (op.Quota("ml", {}, {"cpus": 3000}),)))
    framework = asleep(book, roles=["ml/train"])
    framework.ask_for_gang((4, book.request(cpus=1)))
    assert "needs cpus:4, and the limit of ml is cpus:3" in framework.gang_error().message


def test_a_gang_waits_for_its_limit_and_holds_nothing_meanwhile(book: Any) -> None:
    book.agent("a")
    book.agent("b")
    book.ask(op.SetQuotasRequest("", (op.Quota("ml", {}, {"cpus": 8000}),)))
    user = book.framework("user", roles=["ml"])
    offer = next(iter(user.offers.values()))
    user.run(book.spec("x", cpus=6), offer=offer)
    user.suppress()
    framework = asleep(book, roles=["ml"])
    framework.ask_for_gang((4, book.request(cpus=1)))
    assert framework.gang_states() == ["WAITING"]
    assert not book.machine.cluster.ledger.gang_holds
    quiet(book)
    book.agents[offer.agent_id].update("x", TaskState.FINISHED, framework="user")
    assert framework.gang_states() == ["BUNDLE"]


def test_what_is_kept_for_guarantees_is_not_for_gangs(book: Any) -> None:
    book.agent("a")
    book.agent("b")
    book.ask(op.SetQuotasRequest("", (op.Quota("eng", {"cpus": 10_000}, {}),)))
    framework = asleep(book, roles=["ml"])
    framework.ask_for_gang((7, book.request(cpus=1)))
    assert framework.gang_states() == ["WAITING"]
    assert "kept free" in next(iter(book.machine.cluster.gangs.by_key.values())).hindrance
    framework.ask_for_gang((6, book.request(cpus=1)))
    assert framework.gang_states() == ["WAITING", "BUNDLE"]


def test_a_fulfilled_guarantee_lets_a_gang_go(book: Any) -> None:
    for name in "abc":
        book.agent(name)
    book.ask(op.SetQuotasRequest("", (op.Quota("eng", {"cpus": 8000}, {}),)))
    framework = asleep(book, roles=["ml"])
    framework.ask_for_gang((17, book.request(cpus=1)))
    assert framework.gang_states() == ["WAITING"]
    book.reserve("c", "eng", book.request(cpus=8))
    framework.ask_for_gang((16, book.request(cpus=1)))
    assert framework.gang_states()[-1] == "BUNDLE"
    quiet(book)


# --- together or not at all ---


def launched(book: Any, **more: Any) -> Any:
    for name in "ab":
        book.agent(name)
    framework = asleep(book)
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
