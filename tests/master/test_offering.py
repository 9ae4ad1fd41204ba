"""Dialogues: who is offered what, when, and when again (OFF-*, GPU-3, RSV-7, design.md §6, §7)."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.messages.framework import Offers, Rescind, UpdateDemand
from bursar.core.messages.offers import Demand, Operation, Reserve, Shape
from bursar.core.resources import ReservedResources, ResourceRequest, holding_total, to_holding
from bursar.core.tasks import TaskState

HOUR_MS = 3_600_000


# --- at once ---


def test_what_becomes_free_is_offered_in_the_same_breath(book: Any) -> None:
    agent = book.agent(gpus=1)
    framework = book.framework()
    framework.run(book.spec("t", cpus=8, mem=16, gpus=1))
    assert not framework.offers
    agent.update("t", TaskState.FINISHED)
    assert framework.offered() == book.resources(8, 16, ["a-gpu0"])


def test_without_demand_one_framework_gets_the_whole_remainder(book: Any) -> None:
    book.agent(gpus=4, ports="31000-31009")
    one, two = book.framework("f"), book.framework("g")
    assert sorted([len(one.offers), len(two.offers)]) == [0, 1]
    (offer,) = (*one.offers.values(), *two.offers.values())
    assert holding_total(to_holding(offer.resources)) == book.resources(
        8, 16, book.agents["a"].uuids, ports="31000-31009"
    )
    assert offer.expires_in_ms == 30_000


def test_agents_go_round_by_share(book: Any) -> None:
    one, two = book.framework("f"), book.framework("g")
    with book.batch():
        for name in "abcd":
            book.agent(name)
    assert len(one.offers) == len(two.offers) == 2


def test_an_offer_has_at_least_some_cpu_or_some_memory(book: Any) -> None:
    """OFF-11: 0.01 CPUs or 32 MiB."""
    book.agent(cpus=0.009, mem=31 / 1024, gpus=1)
    framework = book.framework()
    assert not framework.offers
    book.agent("b", cpus=0.01, mem=0)
    book.agent("c", cpus=0, mem=32 / 1024)
    assert framework.agents == {"b", "c"}


# --- expiry and damping ---


def test_an_offer_that_is_not_answered_is_rescinded_and_others_get_it(book: Any) -> None:
    book.agent()
    framework = book.framework("f")
    offer = framework.offer
    other = book.framework("g")
    book.advance(29_999)
    assert framework.offers
    book.advance(1)
    (rescind,) = framework.heard(Rescind)
    assert rescind.offer_ids == (offer.offer_id,) and "in time" in rescind.reason
    assert other.agents == {"a"}


def test_what_expired_comes_back_after_an_allocation_interval(book: Any) -> None:
    book.agent()
    framework = book.framework()
    book.advance(30_000)
    assert not framework.offers
    book.advance(999)
    assert not framework.offers
    book.advance(1)
    assert framework.agents == {"a"}


@pytest.mark.parametrize(
    ("refuse_ms", "hidden_ms"),
    [(None, 5000), (0, 1000), (1, 1000), (1000, 1000), (7000, 7000), (10**15, 365 * 24 * HOUR_MS)],
)
def test_a_decline_hides_the_same_for_a_while(new_book: Any, refuse_ms: int | None, hidden_ms: int) -> None:
    book = new_book(agent_ping_timeout="1000d", offer_timeout="1000d")
    framework = book.framework()
    book.agent()
    framework.decline(framework.offer, refuse_ms=refuse_ms)
    book.quiet()
    cluster = book.machine.cluster
    assert cluster.filters.deadlines.next_ms() == book.now.monotonic_ms + hidden_ms
    if hidden_ms < HOUR_MS:
        book.advance(hidden_ms - 1)
        assert not framework.offers
        book.advance(1)
        assert framework.agents == {"a"}


def test_the_interval_of_damping_is_the_allocation_interval(new_book: Any) -> None:
    book = new_book(allocation_interval="20s")
    book.agent()
    framework = book.framework()
    framework.decline(framework.offer, refuse_ms=0)
    book.advance(19_999)
    assert not framework.offers
    book.advance(1)
    assert framework.offers


def test_others_are_offered_at_once_what_one_declined(book: Any) -> None:
    book.agent()
    one, two = book.framework("f"), book.framework("g")
    for _ in range(2):
        owner, onlooker = (one, two) if one.offers else (two, one)
        offer = owner.offer
        owner.decline(offer, refuse_ms=HOUR_MS)
        if not onlooker.offers:
            break
        assert onlooker.agents == {"a"}
    assert not one.offers and not two.offers
    book.quiet()


def test_a_filter_is_of_one_role(book: Any) -> None:
    book.agent()
    framework = book.framework(roles=["x", "y"])
    first = framework.offer
    framework.decline(first, refuse_ms=HOUR_MS)
    assert framework.offer.role != first.role


def test_more_or_other_than_was_declined_is_offered(book: Any) -> None:
    agent = book.agent(cpus=4)
    framework = book.framework()
    framework.run(book.spec("t", cpus=1), refuse_ms=HOUR_MS)
    assert not framework.offers, "the leftover is not offered again"
    book.quiet()
    agent.update("t", TaskState.FINISHED)
    assert framework.offered().scalars["cpus"] == 4000, "more than was left over"
    framework.decline(framework.offer, refuse_ms=HOUR_MS)
    book.reserve("a", "other", book.request(cpus=1))
    assert not framework.offers, "less"


def test_the_leftover_of_an_accept_is_damped(book: Any) -> None:
    book.agent()
    framework = book.framework()
    framework.run(book.spec("t", cpus=1))
    book.advance(4999)
    assert not framework.offers
    book.advance(1)
    assert framework.offered().scalars["cpus"] == 7000


def test_declining_what_is_not_ones_own_is_ignored(book: Any) -> None:
    book.agent()
    one, two = book.framework("f"), book.framework("g")
    owner, other = (one, two) if one.offers else (two, one)
    other.decline(owner.offer)
    assert owner.offers and not book.machine.cluster.filters


# --- suppress and revive ---


def test_suppressing_stops_new_offers_and_leaves_old_ones(book: Any) -> None:
    book.agent("a")
    framework = book.framework()
    framework.suppress()
    assert framework.agents == {"a"}
    book.agent("b")
    assert framework.agents == {"a"}
    framework.revive()
    assert framework.agents == {"a", "b"}


def test_suppressing_is_per_role(book: Any) -> None:
    framework = book.framework(roles=["x", "y"])
    framework.suppress("x", "not one of its roles")
    book.agent("a")
    book.agent("b")
    assert {offer.role for offer in framework.offers.values()} == {"y"}
    framework.revive("x")
    book.agent("c")
    assert {offer.role for offer in framework.offers.values()} == {"x", "y"}


def test_reviving_drops_filters(book: Any) -> None:
    book.agent()
    framework = book.framework()
    framework.decline(framework.offer, refuse_ms=HOUR_MS)
    framework.revive()
    assert framework.agents == {"a"}


def test_what_is_suppressed_is_said_anew_with_each_subscription(book: Any) -> None:
    book.agent()
    framework = book.framework()
    framework.suppress()
    framework.connect()
    assert framework.offers
    framework.connect(suppressed=["*"])
    assert not framework.offers


# --- the filter of GPUs (GPU-3) ---


@pytest.mark.parametrize("filter_value", ["true", "false"])
@pytest.mark.parametrize("capable", [True, False])
@pytest.mark.parametrize("busy", [True, False])
def test_gpu_agents_are_hidden_whole_from_those_who_do_not_know_gpus(
    new_book: Any, filter_value: str, capable: bool, busy: bool
) -> None:
    book = new_book(filter_gpu_resources=filter_value)
    book.agent("gpu", cpus=8, gpus=1)
    book.agent("plain", cpus=8)
    if busy:
        user = book.framework("user")
        offer = next(offer for offer in user.offers.values() if offer.agent_id == "gpu")
        user.run(book.spec("t", cpus=1, gpus=1), offer=offer)
        user.disconnect()
    framework = book.framework("f", gpu=capable)
    hidden = filter_value == "true" and not capable
    assert framework.agents == ({"plain"} if hidden else {"gpu", "plain"})
    book.quiet()


def test_what_hides_an_agent_is_the_gpus_in_its_total(book: Any) -> None:
    """Devices that are described but not offered (`gpus:0`) do not count, nor do those that are broken stop counting."""
    book.agent("none", parts=[ReservedResources((), book.resources(8, 16))], devices=book.devices("none", 2))
    book.agent("broken", devices=book.devices("broken", 1, unhealthy=[0]))
    framework = book.framework(gpu=False)
    assert framework.agents == {"none"}


def test_an_agent_hides_also_what_is_reserved_to_the_framework(book: Any) -> None:
    book.agent(
        parts=[ReservedResources(book.static("ml"), book.resources(8, 16, ["a-gpu0"]))], devices=book.devices("a", 1)
    )
    assert not book.framework("f", roles=["ml"], gpu=False).offers
    assert book.framework("g", roles=["ml"]).offers


def test_toggling_rescinds_exactly_what_is_forbidden_before_it_answers(book: Any) -> None:
    book.agent("gpu1", gpus=1)
    book.agent("gpu2", gpus=1)
    book.agent("plain1")
    book.agent("plain2")
    legacy = book.framework("legacy", gpu=False)
    assert legacy.agents == {"plain1", "plain2"}
    answer = book.set_flag("filter-gpu-resources", "false")
    assert answer.rescinded_offers == 0
    assert legacy.agents == {"gpu1", "gpu2", "plain1", "plain2"}, "at once"
    capable = book.framework("capable")
    with book.batch():
        answer = book.set_flag("filter_gpu_resources", "true")
        assert legacy.agents == {"plain1", "plain2"}, "rescinded in the step that answered"
        (rescind,) = legacy.heard(Rescind)
        assert len(rescind.offer_ids) == 2 and "filter-gpu-resources" in rescind.reason
    assert answer.rescinded_offers == 2
    assert capable.agents == {"gpu1", "gpu2"}
    book.quiet()


def test_an_accept_that_crosses_the_toggle_is_refused_an_earlier_one_stands(book: Any) -> None:
    book.set_flag("filter-gpu-resources", "false")
    book.agent(gpus=1)
    legacy = book.framework("legacy", gpu=False)
    legacy.run(book.spec("t", cpus=1))
    book.advance(5000)
    late = legacy.offer
    book.set_flag("filter-gpu-resources", "true")
    result = legacy.accept([late.offer_id], book.launch(book.spec("t2")))
    assert result.error is not None
    assert [key.task_id for key in book.machine.cluster.tasks] == ["t"]


def test_capable_frameworks_see_no_difference(new_book: Any) -> None:
    """M-03."""

    def offers(value: str) -> list[Any]:
        book = new_book(filter_gpu_resources=value)
        framework = book.framework("capable")
        book.agent("a", gpus=2)
        book.agent("b")
        framework.decline(framework.offers[next(iter(framework.offers))], refuse_ms=0)
        book.advance(2000)
        return [event for event in framework.heard(Offers)]

    assert offers("true") == offers("false")


def test_a_capability_that_comes_or_goes_counts_from_the_next_subscription(book: Any) -> None:
    book.agent(gpus=1)
    framework = book.framework(gpu=False)
    assert not framework.offers
    framework.connect(capabilities=("GPU_RESOURCES", "SOMETHING_NEW"))
    assert framework.agents == {"a"}
    framework.connect(capabilities=())
    assert not framework.offers


# --- reservations decide who is offered what (RSV-7) ---


@pytest.mark.parametrize(
    ("role", "sees"),
    [("eng", True), ("eng/backend", True), ("eng/backend/db", True), ("ops", False), ("engine", False), ("*", False)],
)
def test_what_is_reserved_flows_down_the_tree_and_nowhere_else(book: Any, role: str, sees: bool) -> None:
    book.agent(
        parts=[
            ReservedResources((), book.resources(1, 1)),
            ReservedResources(book.static("eng"), book.resources(7, 15)),
        ]
    )
    framework = book.framework(roles=[role])
    stacks = {part.stack for part in framework.offer.resources}
    assert stacks == ({(), book.static("eng")} if sees else {()})


# --- demand ---


def test_offers_are_cut_to_what_is_wanted(book: Any) -> None:
    book.agent(cpus=8, mem=16, gpus=4)
    framework = book.framework(demand=Demand(1, (book.shape(2, cpus=1, mem=1, gpus=1),)))
    assert framework.offered() == book.resources(2, 2, ["a-gpu0", "a-gpu1"])
    other = book.framework("g")
    assert other.offered().scalars["cpus"] == 6000, "the rest is somebody else's"
    book.quiet()


def test_what_is_on_offer_is_not_offered_twice(book: Any) -> None:
    framework = book.framework(demand=Demand(1, (book.shape(3, cpus=4),)))
    for name in "abc":
        book.agent(name, cpus=8)
    assert framework.offered() == book.resources(12)
    book.quiet()


def test_no_offer_that_fits_nothing(book: Any) -> None:
    book.agent("small", cpus=2)
    framework = book.framework(demand=Demand(1, (book.shape(cpus=4), book.shape(gpus=1))))
    assert not framework.offers
    book.agent("large", cpus=4)
    assert framework.agents == {"large"}


def test_a_demand_of_nothing_gets_no_offers(book: Any) -> None:
    book.agent()
    framework = book.framework(demand=Demand(1, ()))
    assert not framework.offers
    framework.call(UpdateDemand(Demand(0, ())))
    assert not framework.offers, "0 is no statement"


def test_a_newer_version_replaces_an_older_one_is_ignored(book: Any) -> None:
    book.agent(cpus=8)
    framework = book.framework(demand=Demand(5, (book.shape(cpus=1),)))
    assert framework.offered().scalars["cpus"] == 1000
    framework.want(book.shape(4, cpus=1), version=4)
    assert framework.offered().scalars["cpus"] == 1000
    framework.want(book.shape(4, cpus=1), version=6)
    assert framework.offered().scalars["cpus"] == 4000, "what was on offer counts for the new version"


def test_an_accept_takes_from_what_is_wanted(book: Any) -> None:
    book.agent(cpus=8)
    framework = book.framework(demand=Demand(1, (book.shape(2, cpus=2),)))
    framework.run(book.spec("t1", cpus=2), book.spec("t2", cpus=2))
    assert not framework.offers
    book.advance(10_000)
    assert not framework.offers, "nothing more is wanted"


def test_an_accept_of_less_opens_the_rest_everywhere(book: Any) -> None:
    framework = book.framework(demand=Demand(1, (book.shape(2, cpus=4),)))
    book.agent("a", cpus=8)
    book.agent("b", cpus=8)
    offer = framework.offer
    other = {"a": "b", "b": "a"}[offer.agent_id]
    framework.run(book.spec("t1", cpus=4), offer=offer)
    assert framework.agents == {other}, "the second of the two, on the other agent, at once"
    book.quiet()


@pytest.mark.parametrize("how", ["decline", "expire", "rescind", "reject"])
def test_an_offer_that_ended_opens_its_demand_everywhere(book: Any, how: str) -> None:
    framework = book.framework(demand=Demand(1, (book.shape(cpus=4),)))
    book.agent("a", cpus=4)
    book.agent("b", cpus=4)
    offer = framework.offer
    other = {"a": "b", "b": "a"}[offer.agent_id]
    if how == "decline":
        framework.decline(offer, refuse_ms=HOUR_MS)
    elif how == "expire":
        book.advance(30_000)
    elif how == "rescind":
        book.agents[offer.agent_id].disconnect()
    else:
        framework.accept(offer, book.launch(book.spec("t", cpus=99)), refuse_ms=HOUR_MS)
    assert framework.agents == {other}
    book.quiet()


def test_a_filter_that_hid_one_cut_does_not_hide_another(book: Any) -> None:
    """What a demand is cut to depends on what is open; when that changes elsewhere, an agent must be looked at again."""
    book.agent("a", cpus=8, gpus=4)
    framework = book.framework(
        demand=Demand(1, (book.shape(cpus=1, gpus=4), book.shape(cpus=8, gpus=1))),
    )
    framework.decline(framework.offer, refuse_ms=HOUR_MS)
    book.quiet()
    book.agent("b", cpus=1, gpus=4)
    book.quiet()
    assert framework.agents == {"a", "b"}


def test_a_task_counts_for_the_shape_that_it_fulfils(book: Any) -> None:
    book.agent(cpus=8, gpus=4)
    framework = book.framework(demand=Demand(1, (book.shape(1, cpus=2), book.shape(1, cpus=2, gpus=1))))
    framework.run(book.spec("t", cpus=1, gpus=1))
    book.advance(10_000)
    assert framework.offered() == book.resources(2), "the one without a GPU is still wanted"


def test_shapes_are_of_roles(book: Any) -> None:
    framework = book.framework(
        roles=["x", "y"], demand=Demand(1, (book.shape(cpus=1, role="x"), book.shape(cpus=2, role="y")))
    )
    book.agent(cpus=8)
    assert {offer.role: holding_total(to_holding(offer.resources)) for offer in framework.offers.values()} == {
        "x": book.resources(1),
        "y": book.resources(2),
    }
    book.quiet()


def test_devices_that_are_named_are_offered(book: Any) -> None:
    book.agent(gpus=4)
    named = ResourceRequest({"cpus": 1000}, devices=("a-gpu3",))
    framework = book.framework(demand=Demand(1, (Shape("*", named, 1),)))
    assert framework.offered().devices == {"a-gpu3"}


@pytest.mark.parametrize(
    "shape",
    [lambda book: book.shape(cpus=1, role="not mine"), lambda book: book.shape(), lambda book: book.shape(cpus=-1)],
)
def test_a_demand_that_cannot_be_ends_the_stream_with_a_reason(book: Any, shape: Any) -> None:
    book.agent()
    framework = book.framework()
    framework.want(shape(book))
    assert framework.closed is not None and "demand.shapes[0]" in framework.closed.field
    assert framework.connection is None and not book.machine.cluster.offers


def test_reserved_for_a_role_is_used_before_what_is_free_for_all(book: Any) -> None:
    book.agent(
        parts=[
            ReservedResources((), book.resources(8, 16)),
            ReservedResources(book.static("ml"), book.resources(2, 2)),
        ]
    )
    framework = book.framework(roles=["ml"], demand=Demand(1, (book.shape(cpus=3, role="ml"),)))
    assert dict(to_holding(framework.offer.resources)) == {
        book.static("ml"): book.resources(2),
        (): book.resources(1),
    }


def test_what_a_call_reserved_is_wanted_again(book: Any) -> None:
    book.agent(cpus=4)
    framework = book.framework(roles=["ml"], demand=Demand(1, (book.shape(2, cpus=2, role="ml"),)))
    framework.accept(framework.offer, Operation("r", Reserve("a", book.request(cpus=2), "ml")))
    assert dict(to_holding(framework.offer.resources)) == {
        book.dynamic("ml"): book.resources(2),
        (): book.resources(2),
    }
    book.quiet()


def test_a_newer_demand_is_covered_by_the_oldest_offers(book: Any) -> None:
    """The ninth offer before the tenth: the order is that of time, not of texts."""
    framework = book.framework()
    for index in range(11):
        book.agent(f"a{index}", cpus=1, mem=0)
    first, oldest, *_ = framework.offers.values()
    framework.decline(first, refuse_ms=HOUR_MS)
    framework.want(book.shape(cpus=1))
    book.agent("z", cpus=1, mem=0)
    assert "z" not in framework.agents, "covered by what is on offer"
    framework.decline(oldest, refuse_ms=HOUR_MS)
    assert "z" in framework.agents


def test_a_suppressed_framework_may_hold_nothing_but_ports(book: Any) -> None:
    """Ports are in no share; giving them back is not the end of the master."""
    book.agent(ports="1-2")
    framework = book.framework(demand=Demand(1, (book.shape(ports="1"),)))
    framework.suppress()
    framework.decline(framework.offer)
    book.quiet()


def test_a_filter_does_not_outlive_the_rule_that_made_offers_small(book: Any) -> None:
    """What was refused was stripped; what is shown now is more."""
    book.set_flag("filter-gpu-resources", "strip")
    book.agent(gpus=2)
    framework = book.framework(gpu=False)
    framework.decline(framework.offer, refuse_ms=HOUR_MS)
    book.quiet()
    book.set_flag("filter-gpu-resources", "false")
    assert len(framework.offered().devices) == 2
