"""Dialogues: what quota lets a role have, what it keeps for others, and when that changes (mesos.md §3.2, §3.3, RSV-15, design.md §5).

The rules in words; the arithmetic is in `test_quota_rules`, setting quotas in `test_quotas`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages import operator as op
from bursar.core.messages.framework import Rescind
from bursar.core.messages.offers import Demand, Operation, Reserve, Unreserve
from bursar.core.messages.operator import Quota, RefusalReason
from bursar.core.resources import ReservedResources
from bursar.core.tasks import TaskState


@pytest.fixture(autouse=True)
def law(book: Any) -> Iterator[None]:
    """design.md §7: when event-driven work is quiet, a full cycle makes no offer – whatever the quotas are."""
    yield
    assert book.full_cycle_offers() == 0


def set_quotas(book: Any, *quotas: Quota, force: bool = False) -> None:
    answer = book.set_quotas(*quotas, force=force)
    assert isinstance(answer, op.SetQuotasResponse), answer


def gpus(*peers: Any) -> int:
    """How many GPUs are offered to these."""
    return sum(len(peer.offered().devices) for peer in peers)


def wanting(book: Any, name: str, role: str, count: int = 1, **amounts: Any) -> Any:
    shape = {"cpus": 1, "gpus": 1} | amounts
    return book.framework(name, roles=[role], demand=Demand(1, (book.shape(count, role=role, **shape),)))


def why(book: Any, peer: Any) -> dict[RefusalReason, int]:
    answer = book.ask(op.ExplainFrameworkRequest(peer.info.framework_id))
    return {refusal.reason: refusal.agents for refusal in answer.refusals}


# --- limits ---


def test_without_stated_demand_an_offer_is_cut_to_the_limit(book: Any) -> None:
    book.agent(cpus=8, mem=16, gpus=4)
    set_quotas(book, book.quota("ml", limit="gpus:3;cpus:2.5"))
    ml = book.framework("f", roles=["ml"])
    assert (gpus(ml), ml.offered().scalars["cpus"], ml.offered().scalars["mem"]) == (3, 2500, 16 * 2**30)


def test_of_several_offers_the_last_is_cut(book: Any) -> None:
    for name in "abc":
        book.agent(name, gpus=4)
    set_quotas(book, book.quota("ml", limit="gpus:6"))
    ml = book.framework("f", roles=["ml"])
    assert sorted(len(offer.resources[0].resources.devices) for offer in ml.offers.values()) == [0, 2, 4]


def test_gpus_are_cut_to_those_that_are_best_connected(book: Any) -> None:
    book.agent("a", devices=book.linked("a", [[0, 2], [1, 3]]))
    set_quotas(book, book.quota("ml", limit="gpus:2"))
    ml = book.framework("f", roles=["ml"])
    assert ml.offered().devices in ({"a-gpu0", "a-gpu2"}, {"a-gpu1", "a-gpu3"})


def test_what_is_wanted_and_no_longer_fits_is_refused_for_the_limit(book: Any) -> None:
    book.agent(gpus=4)
    set_quotas(book, book.quota("ml", limit="gpus:1"))
    large = wanting(book, "f", "ml", gpus=2)
    assert not large.offers and why(book, large) == {RefusalReason.QUOTA_LIMIT: 1}
    small = wanting(book, "g", "ml", 3, gpus=1)
    assert gpus(small) == 1, "as often as it fits"
    other = wanting(book, "h", "other", gpus=2)
    assert gpus(other) == 2


def test_a_limit_of_nothing_leaves_the_rest(book: Any) -> None:
    book.agent(gpus=4)
    set_quotas(book, book.quota("*", limit="gpus:0"))
    everybody = book.framework("f")
    assert gpus(everybody) == 0 and everybody.offered().scalars["cpus"] == 8000
    everybody.decline(*everybody.offers.values(), refuse_ms=3_600_000)
    assert gpus(book.framework("g", roles=["ml"])) == 4


def test_a_limit_holds_for_all_below_together(book: Any) -> None:
    """In Mesos quota is for roles at the top alone (MESOS-7402)."""
    for name in "abc":
        book.agent(name, gpus=2)
    set_quotas(book, book.quota("eng", limit="gpus:3"), book.quota("eng/web", limit="gpus:100"))
    peers = [wanting(book, role.replace("/", "-"), role, 2) for role in ("eng", "eng/web", "eng/db/big")]
    assert gpus(*peers) == 3
    assert gpus(wanting(book, "other", "ml", 6)) == 3


def test_what_is_offered_counts_and_comes_back(book: Any) -> None:
    """design.md §7: what a limit holds back is looked at again when something of the role is free, on whatever agent."""
    for name in "ab":
        book.agent(name, gpus=2)
    set_quotas(book, book.quota("ml", limit="gpus:2"))
    one, two = wanting(book, "f", "ml", gpus=2), wanting(book, "g", "ml", gpus=2)
    assert sorted([gpus(one), gpus(two)]) == [0, 2]
    first, second = (one, two) if one.offers else (two, one)
    task_agent = book.agents[first.offer.agent_id]
    first.run(book.spec("t", cpus=1, gpus=2), refuse_ms=3_600_000)
    assert not second.offers and why(book, second)[RefusalReason.QUOTA_LIMIT] == 1
    task_agent.update("t", TaskState.FINISHED)
    assert gpus(second) == 2


def test_what_a_limit_held_back_elsewhere_is_looked_at_when_the_role_has_less(book: Any) -> None:
    """design.md §7: agents are parked under the limit; the end of a task anywhere wakes them, at once."""
    small = book.agent("a", cpus=1, gpus=2)
    set_quotas(book, book.quota("ml", limit="gpus:2"))
    one = wanting(book, "f", "ml", gpus=2)
    one.run(book.spec("t", cpus=1, gpus=2))
    book.agent("b", cpus=8, gpus=2)
    two = wanting(book, "g", "ml", cpus=4, gpus=2)
    assert not two.offers
    small.update("t", TaskState.FINISHED)
    assert two.agents == {"b"}


def test_an_agent_that_is_given_up_wakes_what_its_tasks_held_back(book: Any) -> None:
    """Tasks on it do not count until they return; what is free elsewhere can be had at once."""
    agent = book.agent("a", gpus=2)
    set_quotas(book, book.quota("ml", limit="gpus:2"))
    ml = wanting(book, "f", "ml", 2, gpus=2)
    ml.run(book.spec("t", cpus=1, gpus=2))
    book.agent("b", gpus=2)
    assert not ml.offers
    agent.disconnect()
    book.advance(100_000)
    assert ml.agents == {"b"}
    ml.run(book.spec("u", cpus=1, gpus=2))
    # It comes back with its task: the limit is passed, nothing is taken away, and nothing more is given.
    agent.connect()
    book.agent("c", gpus=2)
    ml.want(book.shape(1, role="ml", cpus=1, gpus=1), version=2)
    assert not ml.offers and ml.view.tasks == 2


def test_a_limit_that_is_raised_or_removed_is_felt_at_once(book: Any) -> None:
    book.agent(gpus=4)
    set_quotas(book, book.quota("ml", limit="gpus:0"))
    ml = wanting(book, "f", "ml", 4)
    assert not ml.offers
    set_quotas(book, book.quota("ml", limit="gpus:1"))
    assert gpus(ml) == 1
    set_quotas(book, Quota("ml"))
    assert gpus(ml) == 4


def test_a_limit_that_is_lowered_takes_offers_back_and_lets_tasks_be(book: Any) -> None:
    for name in "ab":
        book.agent(name, gpus=2)
    ml = book.framework("f", roles=["ml"])
    ml.run(book.spec("t", cpus=1, gpus=1), offer=next(iter(ml.offers.values())), refuse_ms=3_600_000)
    set_quotas(book, book.quota("ml", limit="gpus:1"))
    assert gpus(ml) == 0 and ml.heard(Rescind) and ml.view.tasks == 1


# --- guarantees ---


def test_what_is_guaranteed_is_kept_for_a_role_that_nobody_uses_yet(book: Any) -> None:
    book.agent(gpus=4)
    set_quotas(book, book.quota("ml", "gpus:3"))
    assert gpus(wanting(book, "f", "other", 4)) == 1
    assert gpus(book.framework("g", roles=["ml/vision"])) == 3


def test_it_is_kept_kind_by_kind_and_whoever_needs_several_is_guaranteed_several(book: Any) -> None:
    """As in Mesos, by quantity: GPUs without a CPU next to them are of no use."""
    book.agent(cpus=8, mem=16, gpus=4)
    set_quotas(book, book.quota("ml", "gpus:3;cpus:6;mem:12GiB"))
    other = book.framework("f", roles=["other"])
    assert other.offered() == book.resources(2, 4, other.offered().devices) and gpus(other) == 1
    ml = book.framework("g", roles=["ml/vision"])
    assert (gpus(ml), ml.offered().scalars) == (3, {"cpus": 6000, "mem": 12 * 2**30})


def test_what_is_wanted_and_kept_for_others_is_refused_for_headroom(book: Any) -> None:
    book.agent(gpus=4)
    set_quotas(book, book.quota("ml", "gpus:3"))
    other = wanting(book, "f", "other", gpus=2)
    assert not other.offers and why(book, other) == {RefusalReason.HEADROOM: 1}


def test_only_as_much_is_kept_as_is_unmet(book: Any) -> None:
    for name in "ab":
        book.agent(name, gpus=2)
    set_quotas(book, book.quota("ml", "gpus:2"))
    ml = wanting(book, "f", "ml", gpus=2)
    ml.run(book.spec("t", cpus=1, gpus=2))
    other = wanting(book, "g", "other", 2)
    assert gpus(other) == 2, "the guarantee is consumed: nothing is kept"


def test_guarantees_come_first(book: Any) -> None:
    """Stage 1: a role whose guarantee is unmet is served before roles with a smaller share."""
    book.agent("x", cpus=4, mem=4)
    ml = book.framework("f", roles=["ml"])
    ml.run(book.spec("t", cpus=4, mem=4))
    book.framework("g", roles=["other"])
    book.agent("a", gpus=1)
    assert gpus(ml) == 0, "fair share: the other has nothing yet"
    set_quotas(book, book.quota("ml", "gpus:1"))
    assert gpus(ml) == 1


def test_capacity_that_grows_is_given_to_whom_it_was_kept_from(book: Any) -> None:
    book.agent("a", cpus=1, mem=1, gpus=2)
    set_quotas(book, book.quota("ml", "gpus:2"))
    other = wanting(book, "f", "other", cpus=1, gpus=1)
    assert not other.offers
    book.agent("b", cpus=0.005, mem=0, gpus=1)
    # The GPU of b can be kept for ml now: the one on a is free for others.
    assert other.agents == {"a"}


def test_a_parent_s_guarantee_is_for_all_of_its_children(book: Any) -> None:
    book.agent(gpus=4)
    set_quotas(book, book.quota("eng", "gpus:3"), book.quota("eng/web", "gpus:2"))
    db = wanting(book, "f", "eng/db", 4)
    # One more than web's two is eng's, and one is anybody's.
    assert gpus(db) == 2
    assert gpus(wanting(book, "g", "ml", 4)) == 0
    assert gpus(wanting(book, "h", "eng/web", 4)) == 2


def test_a_limit_above_keeps_what_a_child_is_guaranteed(book: Any) -> None:
    book.agent(gpus=8)
    set_quotas(book, book.quota("eng", limit="gpus:4"), book.quota("eng/web", "gpus:3"))
    db = wanting(book, "f", "eng/db", 8)
    assert gpus(db) == 1 and why(book, db) == {RefusalReason.HEADROOM: 1}
    assert gpus(wanting(book, "g", "eng/web", 8)) == 3


def test_a_quota_that_was_loaded_is_in_force_from_the_first_cycle(book: Any) -> None:
    book.agent(gpus=4)
    set_quotas(book, book.quota("ml", "gpus:2"), book.quota("other", limit="gpus:1"))
    book.restart()
    other, third = wanting(book, "f", "other", 2), wanting(book, "g", "third", 2)
    book.agents["a"].connect()
    assert (gpus(other), gpus(third)) == (1, 1)


def test_what_free_agents_that_are_away_have_is_not_kept_there(book: Any) -> None:
    """A guarantee is kept of what could be offered now."""
    away = book.agent("a", gpus=2)
    set_quotas(book, book.quota("ml", "gpus:2"))
    away.disconnect()
    book.agent("b", gpus=2)
    other = wanting(book, "f", "other", 2)
    assert gpus(other) == 0
    away.connect()
    assert gpus(other) == 2


# --- reservations ---


def test_what_is_reserved_counts_whether_it_is_used_or_not(book: Any) -> None:
    """RSV-15: and it is offered whatever the limit is."""
    book.agent(gpus=4)
    book.reserve("a", "ml", book.request(gpus=2))
    set_quotas(book, book.quota("ml", limit="gpus:3"))
    ml = wanting(book, "f", "ml", 4)
    assert gpus(ml) == 3, "two that are reserved, and one more up to the limit"
    set_quotas(book, book.quota("ml", limit="gpus:2"))
    assert gpus(ml) == 2


def test_a_reservation_fulfils_a_guarantee(book: Any) -> None:
    book.agent(gpus=4)
    set_quotas(book, book.quota("ml", "gpus:2"))
    other = wanting(book, "f", "other", 4)
    assert gpus(other) == 2
    book.reserve("a", "ml/vision", book.request(gpus=2))
    assert gpus(other) == 2
    assert gpus(wanting(book, "g", "ml", 4)) == 0, "they are for ml/vision"
    assert gpus(wanting(book, "h", "ml/vision", 4)) == 2


def test_reserving_what_was_offered_changes_nothing_that_counts(book: Any) -> None:
    book.agent(gpus=4)
    set_quotas(book, book.quota("ml", limit="gpus:2"))
    ml = wanting(book, "f", "ml", 4)
    result = ml.accept(ml.offer, Operation("r", Reserve("a", book.request(gpus=2), "ml")))
    assert result.error is None
    assert gpus(ml) == 2
    (part,) = [part for part in ml.offer.resources if part.stack and part.resources.devices]
    back = ReservedResources(part.stack, part.resources)
    assert ml.accept(ml.offer, Operation("u", Unreserve("a", back))).error is None
    assert gpus(ml) <= 2


def test_an_operator_reserves_within_limits_unless_forced(book: Any) -> None:
    """T21: in Mesos an operator's reservation passes limits without a word."""
    book.agent(gpus=6)
    set_quotas(book, book.quota("eng", limit="gpus:3"))
    wanting(book, "f", "eng/web").run(book.spec("t", cpus=1, gpus=1))
    web = wanting(book, "g", "eng/web")
    assert gpus(web) == 1
    refused = book.reserve("a", "eng/db", book.request(gpus=2))
    assert isinstance(refused, ErrorDetail) and refused.reason is ErrorReason.RESOURCES_IN_USE
    assert refused.message == "role 'eng' would have gpus: 4, more than its limit of 3" and "--force" in refused.hint
    assert gpus(web) == 1 and not book.registry.agents["a"].reservations, "nothing changed"
    assert isinstance(book.reserve("a", "eng/db", book.request(gpus=1)), op.ReserveResourcesResponse)
    assert isinstance(book.reserve("a", "eng/db", book.request(gpus=2), force=True), op.ReserveResourcesResponse)
    assert isinstance(book.reserve("a", "ml", book.request(gpus=1)), op.ReserveResourcesResponse)


def test_offers_that_end_for_a_reservation_of_their_own_role_do_not_count_twice(book: Any) -> None:
    book.agent(gpus=2)
    set_quotas(book, book.quota("ml", limit="gpus:2"))
    ml = wanting(book, "f", "ml/vision", 2)
    assert gpus(ml) == 2
    assert isinstance(book.reserve("a", "ml", book.request(gpus=2)), op.ReserveResourcesResponse)


def test_tasks_that_come_back_leave_no_room_for_what_was_offered_meanwhile(book: Any) -> None:
    """Limits hold when an offer is accepted, too: then it is refused, and what is offered next stays within the limit."""
    agent = book.agent("a", gpus=2)
    set_quotas(book, book.quota("ml", limit="gpus:2"))
    ml = wanting(book, "f", "ml", 2)
    ml.run(book.spec("t", cpus=1, gpus=1))
    agent.disconnect()
    book.advance(100_000)
    book.agent("b", gpus=2)
    ml.want(book.shape(2, role="ml", cpus=1, gpus=1), version=2)
    assert gpus(ml) == 2
    with book.batch():
        agent.connect()
        refused = ml.accept(
            list(ml.offers.values()), book.launch(*(book.spec(name, cpus=1, gpus=1, agent_id="b") for name in "uv"))
        )
    assert refused.error is not None and refused.error.reason is ErrorReason.RESOURCES_IN_USE
    assert "come back" in refused.error.message
    assert gpus(ml) == 1 and ml.view.tasks == 1
    ml.run(book.spec("w", cpus=1, gpus=1))
