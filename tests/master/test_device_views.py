"""Cards, slices and shares in the ledger: views of one thing, of which never two are held that exclude each other."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from bursar.core.device_names import device_name, views_hidden_by
from bursar.core.devices import Device
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, OfferId, TaskId
from bursar.core.resources import (
    UNRESERVED,
    Reservation,
    ReservationType,
    ResourceRequest,
    Resources,
    holding_total,
    subtract_holdings,
)
from bursar.master.allocator.carve import carve, fitting_count
from bursar.master.allocator.shares import Client, Shares
from bursar.master.ledger import Ledger, TaskKey, without_views

AGENT = AgentId("a")
CLIENT = Client("eng", FrameworkId("f"))
STACK = (Reservation(ReservationType.DYNAMIC, "ml"),)


def _card(name: str) -> list[DeviceUuid]:
    return [
        device_name("gpus", name),
        *(device_name("mig-3g.40gb", f"M{n}", parent=name, weight_milli=428) for n in range(2)),
        *(device_name("gpu-shares", f"{n}", parent=name, weight_milli=250) for n in range(4)),
    ]


DEVICES = [*_card("GPU-1"), *_card("GPU-2"), *_card("GPU-3"), device_name("fpgas", "0"), device_name("fpgas", "1")]
KNOWN = {uuid: Device(uuid, "x", index=index) for index, uuid in enumerate(DEVICES)}
REQUESTS = st.builds(
    ResourceRequest,
    st.dictionaries(st.sampled_from(["fpgas", "gpu-shares", "mig-3g.40gb"]), st.sampled_from([1000, 2000, 3000])),
    gpus=st.integers(0, 2),
).filter(bool)


def _ledger() -> Ledger:
    ledger = Ledger(Shares())
    ledger.add_agent(AGENT, {UNRESERVED: Resources(devices=frozenset(DEVICES))}, present=True)
    return ledger


@given(
    st.lists(st.tuples(st.sampled_from(["offer", "whole", "launch", "reserve", "end", "ill"]), REQUESTS), max_size=25)
)
def test_no_two_views_of_one_card_are_ever_held(steps: list[tuple[str, ResourceRequest]]) -> None:
    ledger = _ledger()
    books = ledger.books[AGENT]
    offers: list[OfferId] = []
    tasks: list[TaskKey] = []
    for number, (what, request) in enumerate(steps):
        part = carve(books.free, request, KNOWN)
        if what == "offer" and part:
            offers.append(OfferId(f"O{number}"))
            ledger.offer(AGENT, offers[-1], CLIENT, part)
        elif what == "whole" and books.free:
            offers.append(OfferId(f"O{number}"))
            ledger.offer(AGENT, offers[-1], CLIENT, books.free)
        elif what == "launch" and offers:
            # As an accept: the offer comes back, and tasks are cut out of it until it is used up.
            left = ledger.release_offer(AGENT, offers.pop())
            while (cut := carve(left, request, KNOWN)) is not None:
                tasks.append(TaskKey(FrameworkId("f"), TaskId(f"T{len(tasks)}-{number}")))
                ledger.allocate(AGENT, tasks[-1], CLIENT, cut)
                left = without_views(subtract_holdings(left, cut), cut)
        elif what == "reserve" and part and UNRESERVED in part:
            ledger.restack(AGENT, UNRESERVED, STACK, part[UNRESERVED])
        elif what == "end":
            if tasks:
                ledger.release_task(tasks.pop(0))
            elif offers:
                ledger.release_offers([(AGENT, offers.pop(0))])
        elif what == "ill":
            withheld = {DEVICES[number % len(DEVICES)]: "ill"} if number % 2 else {}
            ledger.set_withheld(AGENT, withheld)
            # As the master does: offers that hold one of them are rescinded.
            for offer in [
                offer for offer in offers if holding_total(books.offered[offer].holding).devices & withheld.keys()
            ]:
                offers.remove(offer)
                ledger.release_offer(AGENT, offer)
        ledger.check()
        held = [holding_total(entry.holding).devices for entry in books.allocated.values()]
        for left_task, right_task in combinations(held, 2):
            assert not views_hidden_by(left_task, right_task)
    for task in tasks:
        ledger.release_task(task)
    ledger.release_offers([(AGENT, offer) for offer in offers])
    ledger.set_withheld(AGENT, {})
    ledger.check()
    reserved = books.total.get(STACK, Resources()).devices
    assert holding_total(books.free).devices == frozenset(DEVICES) - views_hidden_by(reserved, set(DEVICES) - reserved)


@given(REQUESTS, st.integers(1, 4))
def test_a_cut_never_contains_two_views_of_one_card(request: ResourceRequest, count: int) -> None:
    whole = {UNRESERVED: Resources(devices=frozenset(DEVICES))}
    for available in (whole, {UNRESERVED: whole[UNRESERVED], STACK: Resources({"cpus": 1})}):
        cut = carve(available, request, KNOWN, count)
        if cut is not None:
            picked = holding_total(cut).devices
            assert not views_hidden_by(picked, picked)
            assert holding_total(cut).gpus == request.gpus * count
            assert all(holding_total(cut).amount(kind) == count * of for kind, of in request.scalars.items())
            assert fitting_count(available, request, count) == count


def test_shares_are_cut_from_the_card_that_is_broken_already() -> None:
    ledger = _ledger()
    first = carve(ledger.books[AGENT].free, ResourceRequest({"gpu-shares": 1000}), KNOWN)
    assert first is not None
    ledger.allocate(AGENT, TaskKey(FrameworkId("f"), TaskId("1")), CLIENT, first)
    second = carve(ledger.books[AGENT].free, ResourceRequest({"gpu-shares": 3000}), KNOWN)
    assert second is not None
    ledger.allocate(AGENT, TaskKey(FrameworkId("f"), TaskId("2")), CLIENT, second)
    assert fitting_count(ledger.books[AGENT].free, ResourceRequest(gpus=1), 9) == 2
