"""Who refuses the same again and again, or never answers, is offered it less often; what came back unused is counted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from bursar.core.ids import FrameworkId
from bursar.core.messages.operator import OfferHistory
from bursar.master.allocator.backoff import (
    FREE_ROUNDS,
    MAX_DECLINE_PAUSE_MS,
    DeclineHistory,
    decline_pause_ms,
)
from bursar.master.allocator.shares import Client
from bursar.master.metrics import MasterMetrics

CLIENT, SHAPE = Client("eng", FrameworkId("f")), (("cpus", 4000),)


def decline_all(framework: Any, refuse_ms: int = 0) -> None:
    framework.decline(*framework.offers.values(), refuse_ms=refuse_ms)


def until_offered(book: Any, framework: Any) -> int:
    """How long it takes until there is an offer again, in steps of half a second."""
    for waited_ms in range(0, 2 * MAX_DECLINE_PAUSE_MS, 500):
        if framework.offers:
            return waited_ms
        book.advance(500)
    raise AssertionError("never offered again")


@pytest.fixture
def picky(book: Any) -> Any:
    book.agent("a", cpus=4, mem=8)
    return book.framework("picky")


def test_pauses_grow_from_the_sixth_decline_in_a_row_to_a_minute(book: Any, picky: Any) -> None:
    pauses = []
    for _ in range(14):
        decline_all(picky)
        pauses.append(until_offered(book, picky))
    assert pauses == [1000] * 6 + [2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000]
    history = picky.view.history
    assert (history.declined, history.declined_rounds, history.pause_ms) == (14, 14, 60_000)


def test_its_own_longer_filter_stands(book: Any, picky: Any) -> None:
    for _ in range(8):
        decline_all(picky, refuse_ms=20_000)
        assert until_offered(book, picky) == 20_000


def test_who_asks_for_a_long_filter_has_no_history(book: Any, picky: Any) -> None:
    for _ in range(7):
        decline_all(picky, refuse_ms=MAX_DECLINE_PAUSE_MS)
        until_offered(book, picky)
    assert picky.view.history.declined_rounds == 0 and picky.view.history.declined == 7


def test_agents_alike_are_one_shape_and_offers_that_were_out_together_one_round(book: Any, picky: Any) -> None:
    book.agent("b", cpus=4, mem=8)
    book.agent("large", cpus=8, mem=16)
    for _ in range(4):
        assert len(picky.offers) == 3
        decline_all(picky)
        until_offered(book, picky)
    assert picky.view.history.declined_rounds == 4


def test_using_something_or_reviving_begins_anew(book: Any, picky: Any) -> None:
    for _ in range(9):
        decline_all(picky)
        until_offered(book, picky)
    picky.run(book.spec("t1", cpus=1), refuse_ms=0)
    assert picky.view.history.declined_rounds == 0 and picky.view.history.accepted == 1
    until_offered(book, picky)
    for _ in range(9):
        decline_all(picky)
        until_offered(book, picky)
    decline_all(picky)
    picky.revive()
    assert until_offered(book, picky) == 0 and picky.view.history.declined_rounds == 0


def test_others_are_offered_it_at_once(book: Any, picky: Any) -> None:
    for _ in range(10):
        decline_all(picky)
        until_offered(book, picky)
    decline_all(picky)
    other = book.framework("other")
    assert other.offers and not picky.offers


def test_an_accept_that_takes_nothing_is_a_decline(book: Any, picky: Any) -> None:
    for _ in range(7):
        (offer,) = picky.offers.values()
        assert picky.accept([offer], refuse_ms=0).error is None
        until_offered(book, picky)
    assert picky.view.history == OfferHistory(0, 7, 0, picky.view.history.unused_ms, 7, 0, 2000)


def test_what_was_out_for_nothing_is_measured(book: Any, picky: Any) -> None:
    class Driver:
        events_total = stalls_total = 0

    for _ in range(6):
        book.advance(10_000)
        decline_all(picky)
        until_offered(book, picky)
    view = picky.view
    assert view.history.unused_ms == 60_000
    book.framework("silent", roles=["eng"])
    book.advance(31_000)
    book.agent("b", cpus=4, mem=8)
    outstanding = next(iter(book.machine.cluster.offers.values()))
    registry = CollectorRegistry()
    MasterMetrics(registry).take(book.machine, Driver())  # type: ignore[arg-type]
    value = registry.get_sample_value
    unused = value("bursar_master_offered_unused_resource_seconds_total", {"kind": "cpus"})
    assert unused is not None and unused >= 4 * 60
    assert value("bursar_master_frameworks_backing_off", {"why": "silence"}) == 1
    assert value("bursar_master_oldest_offer_seconds", {"role": outstanding.offer.role}) is not None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=40))
def test_rounds_grow_by_one_at_most_and_never_with_offers_that_were_out_together(steps: list[tuple[int, int]]) -> None:
    history, now_ms, before = DeclineHistory(), 0, 0
    for wait_ms, age_ms in steps:
        now_ms += wait_ms
        since_ms = history._clients.get(CLIENT, {}).get(SHAPE, (0, -1))[1]
        made_ms = now_ms - age_ms
        rounds = history.declined(CLIENT, SHAPE, made_ms, now_ms)
        assert rounds == before + (made_ms > since_ms or before == 0)
        before = rounds
    history.forget(CLIENT.framework_id)
    assert history.rounds(CLIENT, SHAPE) == 0 == history.most_rounds(CLIENT.framework_id, ["eng"])


@given(st.integers(0, 100), st.integers(1, 120_000))
def test_a_pause_is_at_least_an_interval_or_nothing_and_at_most_a_minute(rounds: int, interval_ms: int) -> None:
    pause = decline_pause_ms(rounds, interval_ms)
    assert pause == 0 if rounds <= FREE_ROUNDS else interval_ms <= pause <= max(interval_ms, MAX_DECLINE_PAUSE_MS)
