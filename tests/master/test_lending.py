"""What is idle of reservations is lent, and comes back with a notice (issue 3; Mesos never had it: OVR-4)."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from dialogue import loans
from dialogue.loans import LONG_MS, NOTICE_MS, notices, pass_time
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages import operator as op
from bursar.core.messages.framework import GPU_RESOURCES, REVOCABLE_RESOURCES, Kill, Rescind
from bursar.core.messages.offers import Demand, Operation, Reserve, Unreserve
from bursar.core.resources import ReservedResources
from bursar.core.tasks import StatusReason, TaskState

#: A framework that gives back, and wants GPUs.
borrower = partial(loans.borrower, count=9, gpus=1)


def lent_agent(book: Any, name: str = "a", *, gpus: int = 4, cpus: float = 4, role: str = "ml", **more: Any) -> Any:
    """An agent of which that is kept for a role, and lent."""
    agent = book.agent(name, cpus=8, gpus=gpus)
    asked = book.request(cpus=cpus, gpus=gpus)
    answer = book.ask(op.ReserveResourcesRequest("", name, role, asked, lend=True, **more))
    assert not isinstance(answer, ErrorDetail), answer
    return agent


def book_demand(book: Any, role: str, count: int, *, cpus: float = 1, gpus: int = 1, version: int = 1) -> Any:
    return Demand(version, (book.shape(count, role=role, cpus=cpus, gpus=gpus),))


def owner(book: Any, name: str = "o", *, role: str = "ml/train", count: int = 1, gpus: int = 1) -> Any:
    """A framework for which it is kept."""
    return book.framework(name, roles=(role,), demand=book_demand(book, role, count, gpus=gpus))


def run_all(book: Any, framework: Any, count: int, prefix: str = "t", **more: Any) -> None:
    """Launch that many tasks with a GPU each, a second apart."""
    for index in range(count):
        book.advance(1_000)
        framework.run(book.spec(f"{prefix}{index}", gpus=1), refuse_ms=0, **more)
    book.advance(2_000)


def end(book: Any, task_id: str, *, framework: str = "b") -> None:
    """A task ends by itself."""
    book.agents["a"].update(task_id, TaskState.FINISHED, framework=framework)


def view(book: Any) -> Any:
    """The one reservation."""
    (found,) = book.ask(op.ListReservationsRequest()).reservations
    return found


# --- who borrows ---


def test_what_is_idle_is_offered_as_revocable_to_those_who_give_back_alone(book: Any) -> None:
    capable, other = borrower(book), book.framework("n", roles=("eng",), demand=book_demand(book, "eng", 9))
    lent_agent(book)
    assert not other.offers
    assert capable.offer.revocable and len(capable.offered().devices) == 4
    assert view(book).lend and len(view(book).on_loan.devices) == 4


def test_without_lend_nobody_borrows(book: Any) -> None:
    capable = borrower(book)
    book.agent("a", gpus=2)
    capable.decline(capable.offer, refuse_ms=0)
    book.reserve("a", "ml", book.request(gpus=2, cpus=8))
    assert not capable.offers
    assert not view(book).lend


def test_whom_it_is_kept_for_comes_first_and_never_borrows(book: Any) -> None:
    mine = book.framework("o", roles=("ml",), connect=False).connect(
        capabilities=(GPU_RESOURCES, REVOCABLE_RESOURCES), demand=book_demand(book, "ml", 2)
    )
    theirs = borrower(book)
    lent_agent(book, gpus=3)
    assert not mine.offer.revocable and len(mine.offered().devices) == 2
    assert theirs.offer.revocable and len(theirs.offered().devices) == 1


def test_unreserved_parts_go_with_a_loan_and_limits_count_those_alone(book: Any) -> None:
    capable = borrower(book, demand=book_demand(book, "eng", 2, cpus=2))
    book.set_quotas(book.quota("eng", limit="cpus:4;gpus:0"))
    lent_agent(book, cpus=0)
    assert {len(part.stack) for part in capable.offer.resources} == {0, 1}
    run_all(book, capable, 2)
    (role,) = [one for one in book.ask(op.ListRolesRequest()).roles if one.role == "eng"]
    assert role.consumed == {"cpus": 2000}


def test_a_capability_that_is_given_up_takes_the_offers_with_it(book: Any) -> None:
    capable = borrower(book)
    lent_agent(book)
    run_all(book, capable, 1)
    capable.update(capabilities=(GPU_RESOURCES,))
    assert not capable.offers
    book.advance(5_000)
    assert not capable.offers and not notices(capable), "what runs goes on"


def test_what_is_borrowed_can_be_neither_reserved_nor_mixed(book: Any) -> None:
    capable = borrower(book)
    lent_agent(book, cpus=4)
    book.agent("free", gpus=1)
    by_kind = {offer.revocable: offer for offer in capable.offers.values()}
    loan = by_kind[True]
    for operation in (
        Reserve(loan.agent_id, book.request(cpus=1), "eng"),
        Unreserve(loan.agent_id, ReservedResources(loan.resources[0].stack, book.resources(cpus=1))),
    ):
        result = capable.accept(loan, Operation("op", operation), refuse_ms=0)
        book.advance(2_000)
        assert "lent" in result.operations[0].error.message and result.operations[0].error.hint
        by_kind = {offer.revocable: offer for offer in capable.offers.values()}
        loan = by_kind[True]
    result = capable.accept(by_kind.values(), book.launch(book.spec("t", gpus=1)))
    assert result.error.reason is ErrorReason.INVALID_OFFERS and "revocable" in result.error.message


# --- and gives back ---


def test_tasks_get_a_notice_and_then_their_end_and_the_owner_those_devices(book: Any) -> None:
    capable = borrower(book)
    lent_agent(book)
    run_all(book, capable, 4)
    capable.statuses()
    wanting = owner(book, gpus=2)
    assert not wanting.offers
    assert notices(capable) == {"t3": NOTICE_MS, "t2": NOTICE_MS}, "as many as are needed, the youngest first"
    task = book.ask(op.GetTaskRequest("b/t3")).task
    assert task.revocable and task.preempt_at_ms == book.now.wall_ms + NOTICE_MS
    devices = {
        uuid
        for name in ("t2", "t3")
        for part in book.ask(op.GetTaskRequest(f"b/{name}")).task.resources
        for uuid in part.resources.devices
    }
    book.advance(NOTICE_MS - 1_000)
    assert not capable.states() and not wanting.offers
    pass_time(book, 2_000)
    ends = {status.task_id: status for status in capable.statuses()}
    assert {status.state for status in ends.values()} == {TaskState.KILLED} and ends.keys() == {"t2", "t3"}
    assert {status.reason for status in ends.values()} == {StatusReason.REVOKED}
    assert not wanting.offer.revocable and wanting.offered().devices == devices
    assert view(book).lend


def test_what_comes_back_piece_by_piece_is_kept_together(book: Any) -> None:
    capable = borrower(book)
    lent_agent(book)
    run_all(book, capable, 4)
    wanting = owner(book, gpus=2)
    other = owner(book, "p", role="ml", gpus=1)
    end(book, "t3")
    assert not wanting.offers and not other.offers, "the first who asked, and all that it asked for"
    (agent,) = book.ask(op.ListAgentsRequest()).agents
    assert any("earmark for o in ml/train" in why and "gpus:1" in why for why in agent.withheld_reasons)
    end(book, "t2")
    assert len(wanting.offered().devices) == 2


def test_offers_come_back_at_once(book: Any) -> None:
    capable = borrower(book)
    lent_agent(book)
    assert capable.offers
    wanting = owner(book, gpus=4)
    assert "o wants what a.host keeps for ml/train" in capable.heard(Rescind)[-1].reason
    assert len(wanting.offered().devices) == 4


def test_one_task_that_could_run_anywhere_takes_back_at_one_place(book: Any) -> None:
    capable = borrower(book, count=99)
    for name in ("a", "b", "c"):
        lent_agent(book, name, gpus=1, cpus=1)
        run_all(book, capable, 1, prefix=name)
    wanting = owner(book)
    assert len(notices(capable)) == 1
    book.agent("d", gpus=1)
    if not wanting.offers:
        # Others were asked first: there is no free place.
        capable.decline(*capable.offers.values(), refuse_ms=LONG_MS)
    assert not notices(capable)


def test_whoever_finds_room_takes_nothing_back(book: Any) -> None:
    capable = borrower(book)
    lent_agent(book)
    run_all(book, capable, 4)
    capable.suppress()
    book.agent("free", gpus=1)
    wanting = owner(book)
    assert wanting.agents == {"free"} and not notices(capable)


def test_whoever_declines_what_is_back_takes_no_more(book: Any) -> None:
    capable = borrower(book)
    lent_agent(book)
    run_all(book, capable, 4)
    wanting = owner(book)
    pass_time(book, NOTICE_MS + 1_000)
    assert len(notices(capable)) == 1
    wanting.decline(wanting.offer, refuse_ms=LONG_MS)
    book.advance(10_000)
    assert not notices(capable)
    assert capable.offer.revocable, "lent again"


def test_whoever_goes_away_takes_nothing_more_and_what_is_back_is_lent_again(book: Any) -> None:
    capable = borrower(book)
    lent_agent(book)
    run_all(book, capable, 4)
    wanting = owner(book, gpus=2)
    end(book, "t3")
    assert not capable.offers
    wanting.disconnect()
    pass_time(book, NOTICE_MS + 2_000)
    book.advance(2_000)
    assert len(capable.offered().devices) == 2


def test_a_framework_without_demand_wants_whatever_it_did_not_decline(book: Any) -> None:
    capable = borrower(book)
    lent_agent(book, cpus=8)
    run_all(book, capable, 4)
    silent = book.framework("o", roles=("ml",))
    silent.decline(*silent.offers.values(), refuse_ms=LONG_MS)
    assert len(notices(capable)) == 4


# --- orders ---


def lend(book: Any, role: str = "ml", **more: Any) -> Any:
    return book.ask(op.LendReservationsRequest("", role=role, **more))


def test_a_lend_that_is_withdrawn(book: Any) -> None:
    capable = borrower(book)
    lent_agent(book)
    run_all(book, capable, 2)
    answer = lend(book, withdraw=True)
    assert (answer.rescinded_offers, answer.preempted_tasks) == (1, 2)
    assert not view(book).lend and len(view(book).on_loan.devices) == 2
    assert set(notices(capable).values()) == {NOTICE_MS}
    pass_time(book, NOTICE_MS + 5_000)
    assert not view(book).on_loan and not capable.offers
    assert lend(book).reservations[0].lend
    assert capable.offer.revocable


def test_static_reservations_are_lent_on_order(book: Any) -> None:
    capable = borrower(book)
    part = ReservedResources(book.static("ml"), book.resources(cpus=2))
    capable.want(book.shape(1, role="eng", cpus=1), version=2)
    book.agent("a", parts=(part,))
    assert not capable.offers
    lend(book)
    assert capable.offer.revocable
    book.agents["a"].connect(incarnation=2)
    assert capable.offer.revocable, "a new life of the agent"


def test_some_of_several_are_lent(book: Any) -> None:
    for name in ("a", "b"):
        book.agent(name, cpus=8)
        book.reserve(name, "ml", book.request(cpus=1), project="x")
        book.reserve(name, "ml", book.request(cpus=2))
    lent = lend(book, agent="a", labels={"project": "x"}).reservations
    assert [(one.agent_id, one.resources.scalars["cpus"]) for one in lent] == [("a", 1000)]
    assert sum(one.lend for one in book.ask(op.ListReservationsRequest()).reservations) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"role": "nobody"}, "no agent keeps anything for nobody"),
        ({"role": "ml", "agent": "b"}, "b.host keeps nothing for ml"),
        ({"role": "ml", "agent": "none"}, "none"),
        ({"role": ""}, "role"),
        ({"role": "ml", "roles": "ml"}, "role"),
        ({"role": "", "roles": "ml &"}, "ml &"),
        ({"role": "ml", "labels": {"a": "b"}}, "no agent keeps anything"),
    ],
)
def test_bad_orders_change_nothing(book: Any, words: dict[str, Any], said: str) -> None:
    book.agent("b")
    book.agent("a")
    book.reserve("a", "ml", book.request(cpus=1))
    before = len(book.records)
    answer = book.ask(op.LendReservationsRequest("", **words))
    assert isinstance(answer, ErrorDetail) and said in answer.message and answer.hint
    assert len(book.records) == before and not view(book).lend


def test_a_dry_run_lends_nothing(book: Any) -> None:
    book.agent("a")
    request = op.ReserveResourcesRequest("", "a", "ml", book.request(cpus=1), lend=True, dry_run=True)
    assert book.ask(request).reservation.lend
    assert not book.ask(op.ListReservationsRequest()).reservations
    book.reserve("a", "ml", book.request(cpus=1))
    assert not view(book).lend


def test_what_is_given_back_is_lent_no_more(book: Any) -> None:
    lent_agent(book)
    book.unreserve("a", "ml", book.request(cpus=4, gpus=4))
    book.reserve("a", "ml", book.request(cpus=4, gpus=4))
    assert not view(book).lend


def test_a_framework_lends_what_it_reserves(book: Any) -> None:
    mine = book.framework("o", roles=("ml",))
    book.agent("a", cpus=8)
    capable = borrower(book, demand=book_demand(book, "eng", 1, gpus=0))
    reserve = Operation("op", Reserve(mine.offer.agent_id, book.request(cpus=8), "ml", lend=True))
    assert mine.accept(mine.offer, reserve, refuse_ms=LONG_MS).error is None
    mine.decline(*mine.offers.values(), refuse_ms=LONG_MS)
    assert view(book).lend
    assert capable.offer.revocable


# --- why not ---


def why(book: Any, framework: str) -> Any:
    (refusal,) = book.ask(op.ExplainFrameworkRequest(framework)).refusals
    return refusal


def test_why_what_is_lent_is_not_offered(book: Any) -> None:
    lent_agent(book)
    book.framework("n", roles=("eng",), demand=book_demand(book, "eng", 9))
    refusal = why(book, "n")
    assert refusal.reason is op.RefusalReason.RESERVED_FOR_OTHERS
    assert "lent while it is idle" in refusal.obstacles[0].message and "REVOCABLE_RESOURCES" in refusal.hint
    capable = borrower(book)
    answer = book.ask(op.ExplainFrameworkRequest("b"))
    assert (answer.offered, answer.refusals) == (1, ())
    run_all(book, capable, 4)
    owner(book, gpus=4)
    assert why(book, "b").reason is op.RefusalReason.NOT_FREE
    assert why(book, "o").reason is op.RefusalReason.NOT_FREE
    assert "t0" in " ".join(obstacle.message for obstacle in why(book, "o").obstacles)


# --- what outlives the master ---


def test_loans_and_notices_outlive_the_master(book: Any) -> None:
    capable = borrower(book)
    lent_agent(book)
    run_all(book, capable, 2)
    wanting = owner(book, gpus=4)
    assert len(notices(capable)) == 2
    book.advance(10_000)
    book.restart()
    assert view(book).lend
    book.agents["a"].connect()
    capable.connect()
    assert notices(capable) == {"t0": NOTICE_MS - 10_000, "t1": NOTICE_MS - 10_000}, "told again"
    wanting.connect(demand=wanting.demand)
    pass_time(book, NOTICE_MS - 9_000)
    assert {status.reason for status in capable.statuses() if status.state is TaskState.KILLED} == {
        StatusReason.REVOKED
    }
    assert len(wanting.offered().devices) == 4


def test_a_notice_that_ran_out_meanwhile(book: Any) -> None:
    capable = borrower(book)
    lent_agent(book)
    run_all(book, capable, 1)
    lend(book, withdraw=True)
    book.restart()
    book.leap(NOTICE_MS + 5_000)
    book.agents["a"].connect()
    capable.connect()
    pass_time(book, 1_000)
    assert ("t0", "KILLED") in capable.states()


def test_the_notice_of_a_task_is_not_that_of_the_next_one_of_its_name(book: Any) -> None:
    capable = borrower(book)
    lent_agent(book, gpus=1)
    run_all(book, capable, 1)
    lend(book, withdraw=True)
    end(book, "t0")
    capable.acknowledge(*capable.statuses())
    lend(book)
    book.advance(1_000)
    result = capable.accept(capable.offer, book.launch(book.spec("t0", gpus=1)))
    if result.error is None:
        book.advance(2 * NOTICE_MS)
        assert not any(state == "KILLED" for _, state in capable.states())


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whoever_it_is_kept_for_has_it_after_the_notice(new_book: Any, data: Any) -> None:
    """Whatever was borrowed in whatever pieces: after the notice the owner is offered what it wants, up to what is kept; and no more
    is ended than what stood in the way.
    """
    book = new_book(preemption_notice="2s", allocation_interval="5s")
    gpus = [data.draw(st.integers(1, 4)) for _ in range(data.draw(st.integers(1, 3)))]
    frameworks = [borrower(book, f"b{index}", role=f"eng{index}", count=20) for index in range(2)]
    for index, count in enumerate(gpus):
        lent_agent(book, f"a{index}", gpus=count, cpus=count)
    held = 0
    for framework in frameworks:
        for offer in list(framework.offers.values()):
            there = sum(len(part.resources.devices) for part in offer.resources)
            taken = data.draw(st.integers(0, there))
            held += taken
            names = [f"{framework.info.framework_id}-{offer.agent_id}-{index}" for index in range(taken)]
            if names:
                framework.accept(offer, book.launch(*(book.spec(name, gpus=1) for name in names)), refuse_ms=LONG_MS)
            else:
                framework.decline(offer, refuse_ms=LONG_MS)
    wanted = data.draw(st.integers(1, 12))
    wanting = owner(book, count=wanted)
    pass_time(book, 3_000)
    book.advance(6_000)
    assert len(wanting.offered().devices) == min(wanted, sum(gpus))
    given = sum(len(notices(framework)) for framework in frameworks)
    assert given == max(0, min(wanted, sum(gpus)) - (sum(gpus) - held))


def test_who_has_saved_what_it_needs_answers_a_notice_by_ending_its_tasks(book: Any) -> None:
    capable = borrower(book)
    lent_agent(book)
    run_all(book, capable, 4)
    capable.statuses()
    wanting = owner(book, gpus=2)
    assert notices(capable).keys() == {"t2", "t3"}
    for name in ("t3", "t2"):
        assert not wanting.offers
        capable.call(Kill(name))
        pass_time(book, 1_000)
    ends = {status.task_id: status.reason for status in capable.statuses()}
    assert ends == dict.fromkeys(("t2", "t3"), StatusReason.KILLED_BY_FRAMEWORK)
    pass_time(book, 1_000)
    assert len(wanting.offered().devices) == 2 and not wanting.offer.revocable, "long before the notice is over"
