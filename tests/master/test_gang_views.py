"""What operators are shown of gangs that wait, and of what is on loan: who lent it, who has it."""

from __future__ import annotations

from typing import Any

from dialogue.loans import borrow_all, borrower, last_in_use

from bursar.core.messages import operator as op
from bursar.core.messages.gangs import GangGroup
from bursar.core.messages.offers import Demand
from bursar.core.messages.operator import GangPhase, GangView, Page
from bursar.core.tasks import TaskState
from bursar.core.text import parse_request


def shown(book: Any) -> dict[str, GangView]:
    """Gang → how it is shown; asking changes nothing."""
    gangs = book.ask(op.ListGangsRequest()).gangs
    assert gangs == book.ask(op.ListGangsRequest()).gangs and book.full_cycle_offers() == 0
    return {view.standing.gang_id: view for view in gangs}


def test_a_gang_is_shown_from_the_line_to_its_bundle(book: Any) -> None:
    last_in_use(book)
    first, second = book.asleep("f", roles=["ml"]), book.asleep("s", roles=["ml"])
    asked_at_ms = book.now.wall_ms
    first.ask_for_gang((3, book.request(cpus=4)), role="ml", gang_id="one")
    book.advance(1000)
    second.ask_for_gang((2, book.request(cpus=3)), (1, book.request(cpus=1)), role="ml", gang_id="two")
    one, two = shown(book).values()
    assert (one.phase, two.phase) == (GangPhase.FILLING, GangPhase.IN_LINE)
    assert one.groups == (GangGroup(parse_request("cpus:4"), 3),) and one.standing.framework_name == "f"
    assert one.wanted == {"cpus": 12_000} and two.wanted == {"cpus": 7000}
    assert (one.held, one.held_agents, one.missing) == ({"cpus": 8000}, 2, {"cpus": 4000})
    assert (two.held, two.held_agents, two.missing) == ({}, 0, {"cpus": 7000})
    assert (one.requested_at_ms, two.requested_at_ms) == (asked_at_ms, asked_at_ms + 1000)
    assert one.holds_since_ms == asked_at_ms and one.holds_until_ms - asked_at_ms == 600_000
    assert two.holds_since_ms == two.holds_until_ms == 0
    assert one.standing.until_ms > asked_at_ms
    # What it holds is lent; then all of it is called back.
    tasks = borrow_all(book, borrower(book, count=2))
    one = shown(book)["one"]
    assert (one.held, one.on_loan, one.missing) == ({"cpus": 6000}, {"cpus": 2000}, {"cpus": 6000})
    book.agents["c"].update("u", TaskState.FINISHED, framework="user")
    book.advance(0)
    one, two = shown(book).values()
    assert (one.phase, one.on_loan, one.holds_since_ms) == (GangPhase.CALLING_BACK, {"cpus": 2000}, 0)
    assert two.phase is GangPhase.FILLING
    for name in tasks:
        agent = next(agent for agent in book.agents.values() if ("b", name) in agent.tasks)
        agent.update(name, TaskState.FINISHED, framework="b")
    book.advance(0)
    one, two = shown(book).values()
    assert (one.phase, one.held, one.held_agents, one.missing) == (GangPhase.ON_OFFER, {"cpus": 12_000}, 3, {})
    assert one.standing.until_ms == 0 and two.phase is GangPhase.FILLING
    first.disconnect()
    assert list(shown(book)) == ["two"]


def test_many_gangs_come_in_pages(book: Any) -> None:
    book.agent("a", cpus=2, mem=0)
    framework = book.asleep("f", roles=["ml"])
    user = book.framework("user")
    user.run(book.spec("u", cpus=2), refuse_ms=0)
    for index in range(25):
        framework.ask_for_gang((1, book.request(cpus=1)), role="ml", gang_id=f"g{index}")
    pages, token = [], ""
    while not pages or token:
        answer = book.ask(op.ListGangsRequest(Page(500, token)))
        pages.append([view.standing.gang_id for view in answer.gangs])
        token = answer.next_page_token
    assert [len(page) for page in pages] == [20, 5]
    assert [name for page in pages for name in page] == [f"g{index}" for index in range(25)], "the oldest first"


def loans(views: Any) -> list[tuple[Any, ...]]:
    return [
        (loan.holder, loan.framework_id, loan.role, loan.resources, loan.offers, loan.tasks, loan.ending)
        for loan in views
    ]


def test_who_lent_and_who_borrowed_is_shown_of_roles_agents_and_reservations(book: Any) -> None:
    book.agent("a", cpus=4, mem=0)
    book.agent("b", cpus=2, mem=0)
    book.ask(op.ReserveResourcesRequest("r", "a", "ml/train", book.request(cpus=4), lend=True))
    framework = borrower(book, count=9)
    held = book.resources(cpus=4)
    (revocable,) = [offer for offer in framework.offers.values() if offer.revocable]
    assert revocable.agent_id == "a"
    roles = {view.role: view for view in book.ask(op.ListRolesRequest()).roles}
    assert roles["ml"].lent == roles["ml/train"].lent == held and not roles["ml"].borrowed
    assert roles["eng"].borrowed == held and not roles["eng"].lent
    assert loans(book.ask(op.GetAgentRequest("a")).agent.loans) == [("ml/train", "b", "eng", held, 1, 0, 0)]
    assert not book.ask(op.GetAgentRequest("b")).agent.loans, "what is offered there is nobody's"
    borrow_all(book, framework)
    (kept,) = book.ask(op.ListReservationsRequest()).reservations
    assert kept.on_loan == held and loans(kept.loans) == [("ml/train", "b", "eng", held, 0, 4, 0)]
    # Whoever it is kept for wants some of it: tasks that are to end are counted.
    demand = Demand(1, (book.shape(1, role="ml/train", cpus=3),))
    book.framework("t", roles=("ml/train",), connect=False).connect(demand=demand)
    assert loans(book.ask(op.GetAgentRequest("a")).agent.loans) == [("ml/train", "b", "eng", held, 0, 4, 3)]


def test_what_is_lent_of_a_hold_names_no_holder(book: Any) -> None:
    book.agent("a", cpus=2, mem=0)
    book.agent("b", cpus=2, mem=0)
    user = book.framework("user")
    (offer,) = [offer for offer in user.offers.values() if offer.agent_id == "b"]
    user.run(book.spec("u", cpus=2), offer=offer, refuse_ms=0)
    user.suppress()
    user.decline(*user.offers.values(), refuse_ms=0)
    book.asleep("g", roles=["ml"]).ask_for_gang((2, book.request(cpus=2)), role="ml")
    borrow_all(book, borrower(book, count=2))
    assert loans(book.ask(op.GetAgentRequest("a")).agent.loans) == [("", "b", "eng", book.resources(cpus=2), 0, 2, 0)]
    roles = {view.role: view for view in book.ask(op.ListRolesRequest()).roles}
    assert roles["eng"].borrowed == book.resources(cpus=2)
    assert not any(view.lent for view in roles.values()), "a hold is nobody's reservation"
