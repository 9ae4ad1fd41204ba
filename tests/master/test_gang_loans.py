"""Dialogues: what is held while a gang fills is lent, and what is on loan is called back for gangs (docs/gangs.md)."""

from __future__ import annotations

from typing import Any

import pytest
from dialogue.loans import LONG_MS, NOTICE_MS, borrow_all, borrower, bundles, end, last_in_use, notices, pass_time
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages import operator as op
from bursar.core.messages.framework import GPU_RESOURCES, REVOCABLE_RESOURCES, Rescind
from bursar.core.messages.gangs import CancelGang
from bursar.core.tasks import StatusReason, TaskState
from bursar.master.metrics import MasterMetrics


class Driver:
    """What metrics read of one."""

    events_total = stalls_total = 0


def filling(book: Any) -> Any:
    """A gang that needs all of three agents, and holds the two that are not in use."""
    last_in_use(book)
    gang = book.asleep("g")
    gang.ask_for_gang((3, book.request(cpus=4)))
    return gang


def lending(book: Any, count: int) -> tuple[Any, Any]:
    """The same, and so many tasks of somebody who borrows what it holds."""
    gang, capable = filling(book), borrower(book, count=count)
    assert len(borrow_all(book, capable)) == count
    return gang, capable


def held(book: Any) -> dict[str, int]:
    """Agent → thousandths of CPUs that are withheld for gangs."""
    ledger = book.machine.cluster.ledger
    return {agent_id: ledger.books[agent_id].gang_hold[()].scalars["cpus"] for agent_id in sorted(ledger.gang_holds)}


def test_what_is_held_is_offered_as_revocable_to_those_who_give_back_alone(book: Any) -> None:
    filling(book)
    assert held(book) == {"a": 4000, "b": 4000}
    other = book.framework("n", roles=("web",))
    capable = borrower(book)
    assert not other.offers
    assert capable.agents == {"a", "b"} and all(offer.revocable for offer in capable.offers.values())
    assert held(book) == {}, "what is lent is held by those who borrow it"
    assert len(borrow_all(book, capable)) == 8
    assert all(task.assigned.revocable for task in book.machine.cluster.tasks.values() if task.key.framework_id == "b")
    assert book.full_cycle_offers() == 0
    (view,) = [agent for agent in book.ask(op.ListAgentsRequest()).agents if agent.agent_id == "a"]
    assert view.allocated.scalars["cpus"] == 4000


def test_no_more_is_held_because_what_was_held_is_lent(book: Any) -> None:
    last_in_use(book)
    book.asleep("g").ask_for_gang((2, book.request(cpus=4)), (1, book.request(cpus=3)))
    capable = borrower(book, count=4)
    assert len(borrow_all(book, capable)) == 4
    book.agent("d", mem=0, cpus=2)
    other = book.framework("n", roles=("web",))
    assert other.agents == {"d"}, "too small for what is lacking"
    assert sum(held(book).values()) == 4000


def test_what_is_held_and_what_is_free_are_never_in_one_offer(book: Any) -> None:
    last_in_use(book)
    book.asleep("g").ask_for_gang((3, book.request(cpus=3)))
    assert held(book) == {"a": 3000, "b": 3000}
    assert not borrower(book, "large", role="large", cpus=4).offers, "one is free and three are held"
    capable = borrower(book, count=99)
    parts = [(offer.agent_id, offer.revocable, offer.resources[0].resources) for offer in capable.offers.values()]
    one, three = book.resources(cpus=1), book.resources(cpus=3)
    assert sorted(parts, key=str) == sorted(
        [(name, revocable, part) for name in "ab" for revocable, part in ((False, one), (True, three))], key=str
    )


def test_a_gang_does_not_borrow_what_waits_for_it(book: Any) -> None:
    last_in_use(book)
    framework = book.framework("g", connect=False).connect(capabilities=(GPU_RESOURCES, REVOCABLE_RESOURCES))
    framework.decline(*framework.offers.values(), refuse_ms=0)
    framework.ask_for_gang((3, book.request(cpus=4)))
    book.advance(10_000)
    assert not framework.offers and sum(held(book).values()) == 8000


def test_once_the_rest_is_there_loans_come_back_with_a_notice_and_then_the_bundle_goes_out(book: Any) -> None:
    gang, capable = lending(book, 5)
    assert not notices(capable)
    end(book, "u")
    assert notices(capable) == {f"n{index}": NOTICE_MS for index in range(5)}
    assert bundles(gang) == 0 and sum(held(book).values()) == 7000
    book.advance(NOTICE_MS - 1_000)
    assert bundles(gang) == 0
    pass_time(book, 2_000)
    assert bundles(gang) == 1
    ends = {status.reason for status in capable.statuses() if status.state is TaskState.KILLED}
    assert ends == {StatusReason.REVOKED}
    assert gang.take(gang.bundle, {0: book.request(cpus=4)}).error is None
    assert held(book) == {} and not book.machine.cluster.ledger.with_loans


def test_offers_come_back_at_once_and_of_what_is_back_nothing_is_lent(book: Any) -> None:
    gang = filling(book)
    capable, late = borrower(book, count=2), borrower(book, "late", role="late", count=99)
    (first,) = capable.offers.values()
    capable.accept(first, book.launch(book.spec("n0", cpus=1), book.spec("n1", cpus=1)), refuse_ms=LONG_MS)
    assert late.offers
    end(book, "u")
    assert not late.offers and "gang g of g has room with it" in late.heard(Rescind)[-1].reason
    assert len(notices(capable)) == 2
    end(book, "n0", first.agent_id, "b")
    book.advance(5_000)
    assert not late.offers and sum(held(book).values()) == 11_000
    end(book, "n1", first.agent_id, "b")
    assert bundles(gang) == 1


def test_only_what_stands_in_the_way_is_called_back_the_youngest_first(book: Any) -> None:
    last_in_use(book)
    gang = book.asleep("g")
    gang.ask_for_gang((1, book.request(cpus=4)), (1, book.request(cpus=3)), (1, book.request(cpus=2)))
    capable = borrower(book, count=4)
    for index in range(4):
        book.advance(1_000)
        offer = next(iter(capable.offers.values()))
        capable.accept(offer, book.launch(book.spec(f"n{index}", cpus=1)), refuse_ms=0)
        book.advance(1_000)
    agents = {task.key.task_id: task.agent_id for task in book.machine.cluster.tasks.values() if task.agent_id != "c"}
    end(book, "u")
    given = notices(capable)
    pass_time(book, NOTICE_MS)
    assert bundles(gang) == 1
    oldest = [min(name for name in agents if agents[name] == agent_id) for agent_id in set(agents.values())]
    assert len(given) < 4 and not given.keys() & set(oldest), (agents, given)


def test_where_enough_is_free_nothing_is_called_back(book: Any) -> None:
    gang, capable = lending(book, 8)
    with book.batch():
        for name in "de":
            book.agent(name, cpus=4, mem=0)
    assert bundles(gang) == 0
    assert len(notices(capable)) == 4, "the agents without loans, and one more"


def test_two_gangs_and_a_borrower_come_one_after_the_other(book: Any) -> None:
    last_in_use(book)
    first, second = book.asleep("one"), book.asleep("two")
    shape = book.request(cpus=4)
    for framework in (first, second):
        framework.ask_for_gang((3, shape))
    capable = borrower(book)
    borrow_all(book, capable)
    end(book, "u")
    pass_time(book, NOTICE_MS)
    assert (bundles(first), bundles(second)) == (1, 0)
    first.take(first.bundle, {0: shape}, prefix="f")
    for index, name in enumerate("abc"):
        for task in list(book.agents[name].tasks):
            end(book, task[1], name, task[0])
        if index == 0:
            borrow_all(book, capable, "again")
    pass_time(book, NOTICE_MS)
    assert bundles(second) == 1


@pytest.mark.parametrize("how", ["expired", "cancelled", "disconnected", "declined"])
def test_a_gang_that_ends_holds_nothing_and_what_it_lent_stays_revocable(book: Any, how: str) -> None:
    last_in_use(book)
    gang = book.asleep("g")
    gang.ask_for_gang((3, book.request(cpus=4)), ttl_ms=60_000)
    capable = borrower(book, count=5)
    borrow_all(book, capable)
    match how:
        case "expired":
            book.advance(61_000)
        case "cancelled":
            gang.call(CancelGang("g"))
        case "disconnected":
            gang.disconnect()
        case "declined":
            end(book, "u")
            pass_time(book, NOTICE_MS)
            gang.decline(gang.bundle.offers[0], refuse_ms=LONG_MS)
    book.advance(1_000)
    assert held(book) == {}
    if how != "declined":
        loans = [task for task in book.machine.cluster.tasks.values() if task.assigned.revocable]
        assert len(loans) == 5 and not notices(capable)
        other = book.framework("n", roles=("web",))
        assert (
            sum(part.resources.scalars["cpus"] for offer in other.offers.values() for part in offer.resources) == 3000
        )
        # The next gang whose turn it is has them back.
        other.decline(*other.offers.values(), refuse_ms=0)
        next_one = book.asleep("h")
        next_one.ask_for_gang((2, book.request(cpus=4)), gang_id="h")
        book.advance(0)
        assert len(notices(capable)) == 5
        pass_time(book, NOTICE_MS)
        assert bundles(next_one) == 1


def test_a_gang_that_ends_while_it_calls_back_holds_nothing(book: Any) -> None:
    gang, capable = lending(book, 5)
    end(book, "u")
    assert notices(capable)
    gang.call(CancelGang("g"))
    assert held(book) == {} and not book.machine.cluster.gangs.recalling
    pass_time(book, NOTICE_MS + 1_000)
    assert {status.reason for status in capable.statuses() if status.state is TaskState.KILLED} == {
        StatusReason.REVOKED
    }, "a notice is never taken back"


def test_an_agent_that_leaves_lets_everything_go(book: Any) -> None:
    gang, _ = lending(book, 5)
    end(book, "u")
    book.agents["c"].disconnect()
    book.advance(0)
    assert not book.machine.cluster.gangs.recalling
    book.agents["c"].connect(incarnation=2)
    pass_time(book, NOTICE_MS + 1_000)
    book.advance(5_000)
    assert bundles(gang) == 1


def test_it_counts_in_shares_and_not_in_quotas(book: Any) -> None:
    last_in_use(book)
    book.set_quotas(book.quota("eng", limit="cpus:2"))
    book.asleep("g").ask_for_gang((3, book.request(cpus=4)))
    capable = borrower(book)
    assert len(borrow_all(book, capable)) == 8, "what is lent is within no limit"
    (role,) = [one for one in book.ask(op.ListRolesRequest()).roles if one.role == "eng"]
    assert not role.consumed and role.allocated.scalars["cpus"] == 8000 and role.share_millionths > 600_000
    assert role.limit_left == {"cpus": 2000}
    book.agent("d", mem=0, cpus=3)
    assert [sum(part.resources.scalars["cpus"] for part in offer.resources) for offer in capable.offers.values()] == [
        2000
    ]


def test_what_was_held_and_what_was_reserved_are_not_accepted_together(book: Any) -> None:
    filling(book)
    book.agent("d", mem=0, cpus=2)
    answer = book.ask(op.ReserveResourcesRequest("", "d", "ml", book.request(cpus=2), lend=True))
    assert not isinstance(answer, ErrorDetail)
    capable = borrower(book, count=99)
    assert capable.agents == {"a", "b", "d"}
    result = capable.accept(list(capable.offers.values()), book.launch(book.spec("t", cpus=1)))
    assert result.error.reason is ErrorReason.INVALID_OFFERS and "by itself" in result.error.hint


def test_loans_outlive_the_master_and_the_gang_has_them_back(book: Any) -> None:
    gang, capable = lending(book, 5)
    book.restart()
    for name in "abc":
        book.agents[name].connect()
    capable.connect(suppressed=("eng",))
    gang.connect(suppressed=("*",))
    gang.ask_for_gang((3, book.request(cpus=4)))
    assert book.machine.cluster.gangs.holder is not None
    assert not notices(capable)
    end(book, "u")
    assert len(notices(capable)) == 5
    pass_time(book, NOTICE_MS)
    assert bundles(gang) == 1


def test_it_is_explained(book: Any) -> None:
    lending(book, 5)
    (standing,) = book.ask(op.ExplainFrameworkRequest("g")).gangs
    assert standing.holds and "0 of its 3 tasks have room now, 2 with what is on loan" in standing.message
    words = [obstacle.message for obstacle in standing.obstacles]
    assert "withheld for it now: cpus:3 on 1 agent" in words and "on loan meanwhile: cpus:5 on 2 agents" in words
    end(book, "u")
    (standing,) = book.ask(op.ExplainFrameworkRequest("g")).gangs
    assert "once what was called back is there: 5 tasks that borrowed it end, the last in 30s" in standing.message
    registry = CollectorRegistry()
    MasterMetrics(registry).take(book.machine, Driver())
    assert registry.get_sample_value("bursar_master_tasks_preempted_total") == 5


@settings(
    deadline=None, max_examples=25, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_was_borrowed_gangs_get_their_bundles_one_after_the_other(new_book: Any, data: Any) -> None:
    """Two gangs, loans in whatever pieces, tasks that end in whatever order: each gang has its bundle in the end, and nothing is left
    over.
    """
    book = new_book(
        preemption_notice="2s", allocation_interval="5s", gang_hold_timeout="1h", agent_ping_timeout="1000d"
    )
    agents = data.draw(st.integers(2, 4))
    for index in range(agents):
        book.agent(f"a{index}", cpus=4, mem=0)
    user = book.framework("user")
    running = {}
    for number, offer in enumerate(list(user.offers.values())):
        if data.draw(st.booleans()) or number == 0:
            user.accept(offer, book.launch(book.spec(f"u{number}", cpus=data.draw(st.integers(1, 4)))), refuse_ms=0)
            running[f"u{number}"] = offer.agent_id
    user.suppress()
    user.decline(*user.offers.values(), refuse_ms=0)
    shapes = [book.request(cpus=data.draw(st.integers(2, 4))) for _ in range(2)]
    gangs = [book.asleep(name) for name in ("one", "two")]
    for framework, shape in zip(gangs, shapes, strict=True):
        framework.ask_for_gang((agents, shape))
    capable = borrower(book)
    for task_id, agent_id in running.items():
        for offer in list(capable.offers.values()):
            if not offer.revocable:
                # For good: gangs would wait for it.
                capable.decline(offer, refuse_ms=LONG_MS)
            elif data.draw(st.booleans()):
                count = data.draw(st.integers(1, sum(p.resources.scalars["cpus"] for p in offer.resources) // 1000))
                specs = [book.spec(f"{offer.offer_id}-{index}".lower(), cpus=1) for index in range(count)]
                capable.accept(offer, book.launch(*specs), refuse_ms=0)
        book.advance(2_000)
        end(book, task_id, agent_id)
    pass_time(book, 3_000)
    book.advance(5_000)
    pass_time(book, 3_000)
    done = set()
    for _ in range(8):
        plain = [offer for offer in capable.offers.values() if not offer.revocable]
        if plain:
            capable.decline(*plain, refuse_ms=LONG_MS)
        for framework, shape in zip(gangs, shapes, strict=True):
            if framework not in done and bundles(framework):
                if framework.take(framework.bundle, {0: shape}, prefix=f"{len(done)}-").error is None:
                    done.add(framework)
                for name in [f"a{index}" for index in range(agents)]:
                    for task in [task for task in book.agents[name].tasks if task[0] in ("one", "two")]:
                        end(book, task[1], name, task[0])
        pass_time(book, 3_000)
        book.advance(5_000)
    assert len(done) == 2, [framework.gang_states() for framework in gangs]
