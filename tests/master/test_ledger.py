"""The ledger against a model that counts every unit by itself, and derives what is free anew after every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, OfferId, TaskId
from bursar.core.resources import (
    UNRESERVED,
    InsufficientResources,
    PortRange,
    Reservation,
    ReservationType,
    Resources,
    Stack,
    iter_ports,
    normalize_ports,
)
from bursar.master.allocator.shares import Client
from bursar.master.ledger import Ledger, TaskKey

AGENT = AgentId("a")
STATIC: Stack = (Reservation(ReservationType.STATIC, "ml"),)
DYNAMIC: Stack = (Reservation(ReservationType.DYNAMIC, "eng"),)
STACKS = (UNRESERVED, STATIC, DYNAMIC)
DEVICES = [DeviceUuid(f"gpu{index}") for index in range(4)]

Units = Counter[tuple[Stack, str]]
"""(bucket, kind or port or device) → how much: the model's view of resources."""


class Books:
    """Accounts that only add up, so that nothing is charged twice or forgotten."""

    def __init__(self) -> None:
        self.charged: Counter[tuple[str, str, str]] = Counter()
        self.total: Counter[str] = Counter()

        #: The part of it that comes out of reservations, and what is reserved.
        self.charged_reserved: Counter[tuple[str, str, str]] = Counter()
        self.kept: Counter[tuple[str, str]] = Counter()

    def charge(self, client: Client, amounts: Mapping[str, int], reserved: Mapping[str, int]) -> None:
        self.charged.update({(*client, kind): amount for kind, amount in amounts.items()})
        self.charged_reserved.update({(*client, kind): amount for kind, amount in reserved.items()})

    def discharge(self, client: Client, amounts: Mapping[str, int], reserved: Mapping[str, int]) -> None:
        self.charged.subtract({(*client, kind): amount for kind, amount in amounts.items()})
        self.charged_reserved.subtract({(*client, kind): amount for kind, amount in reserved.items()})

    def keep(self, role: str, amounts: Mapping[str, int]) -> None:
        self.kept.update({(role, kind): amount for kind, amount in amounts.items()})

    def release(self, role: str, amounts: Mapping[str, int]) -> None:
        self.kept.subtract({(role, kind): amount for kind, amount in amounts.items()})

    def add_total(self, amounts: Mapping[str, int]) -> None:
        self.total.update(amounts)

    def subtract_total(self, amounts: Mapping[str, int]) -> None:
        self.total.subtract(amounts)


def units(holding: Mapping[Stack, Resources]) -> Units:
    found: Units = Counter()
    for stack, part in holding.items():
        for kind, amount in part.scalars.items():
            found[stack, kind] += amount
        for port in iter_ports(part.ports):
            found[stack, f"port {port}"] += 1
        for uuid in part.devices:
            found[stack, uuid] += 1
    return found


def holding_of(found: Units) -> dict[Stack, Resources]:
    result = {}
    for stack in {stack for (stack, _), amount in found.items() if amount > 0}:
        mine = {kind: amount for (owner, kind), amount in found.items() if owner == stack and amount > 0}
        ports = [int(kind.removeprefix("port ")) for kind in mine if kind.startswith("port ")]
        devices = frozenset(DeviceUuid(kind) for kind in mine if kind in DEVICES)
        scalars = {kind: amount for kind, amount in mine.items() if kind in ("cpus", "mem")}
        result[stack] = Resources(scalars, normalize_ports(PortRange(port, port) for port in ports), devices)
    return result


@st.composite
def totals(draw: st.DrawFn) -> dict[Stack, Resources]:
    """What an agent has: every device and port in one bucket at most."""
    found: Units = Counter()
    for uuid in DEVICES:
        if (stack := draw(st.sampled_from([None, *STACKS]))) is not None:
            found[stack, uuid] = 1
    for port in range(1, 6):
        if (stack := draw(st.sampled_from([None, *STACKS]))) is not None:
            found[stack, f"port {port}"] = 1
    for stack in STACKS:
        for kind in ("cpus", "mem"):
            found[stack, kind] = draw(st.integers(0, 4))
    return holding_of(found)


class LedgerMachine(RuleBasedStateMachine):
    """Everything that may be done to the books of one agent, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.accounts = Books()
        self.ledger = Ledger(self.accounts)
        self.total: Units = Counter()
        self.offers: dict[OfferId, tuple[Client, Units]] = {}
        self.tasks: dict[TaskKey, tuple[Client, Units]] = {}
        self.withheld: set[DeviceUuid] = set()
        self.counted = True
        self.present = False
        self.names = 0
        self.ledger.add_agent(AGENT, {})

    def free(self) -> Units:
        """The definition: what is there, less what is held (never below zero), less the devices withheld."""
        left: Units = Counter(self.total)
        for _, held in (*self.offers.values(), *self.tasks.values()):
            left.subtract(held)
        return Counter({unit: n for unit, n in left.items() if n > 0 and not self.is_withheld(unit[1])})

    def is_withheld(self, kind: str) -> bool:
        """Withheld, or held under another bucket than where it is."""
        named = kind in DEVICES or kind.startswith("port")
        return kind in self.withheld or named and any(n for (_, held), n in self.held().items() if held == kind)

    def held(self) -> Units:
        return sum((held for _, held in (*self.offers.values(), *self.tasks.values())), Counter())

    def part(self, data: st.DataObject, of: Units) -> Units:
        return Counter({unit: n for unit in sorted(of, key=repr) if (n := data.draw(st.integers(0, of[unit])))})

    def charge(self, data: st.DataObject) -> Client:
        return Client(data.draw(st.sampled_from(["x", "x/y", "z"])), FrameworkId(data.draw(st.sampled_from("fg"))))

    @rule(total=totals())
    def set_total(self, total: dict[Stack, Resources]) -> None:
        self.ledger.set_total(AGENT, total)
        self.total = units(total)

    @rule(data=st.data())
    def offer(self, data: st.DataObject) -> None:
        if part := self.part(data, self.free()):
            self.names += 1
            offer_id, charge = OfferId(f"o{self.names}"), self.charge(data)
            self.ledger.offer(AGENT, offer_id, charge, holding_of(part))
            self.offers[offer_id] = charge, part

    @precondition(lambda self: self.offers)
    @rule(data=st.data())
    def release_offer(self, data: st.DataObject) -> None:
        offer_id = data.draw(st.sampled_from(sorted(self.offers)))
        assert units(self.ledger.release_offer(AGENT, offer_id)) == self.offers.pop(offer_id)[1]

    @precondition(lambda self: self.offers)
    @rule(data=st.data())
    def release_offers(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.offers)), unique=True))
        released = self.ledger.release_offers([(AGENT, offer_id) for offer_id in chosen])
        assert [units(holding) for holding in released] == [self.offers.pop(offer_id)[1] for offer_id in chosen]

    @rule(data=st.data())
    def allocate(self, data: st.DataObject) -> None:
        if part := self.part(data, self.free()):
            self.book(data, part, self.ledger.allocate)

    @rule(data=st.data())
    def adopt(self, data: st.DataObject) -> None:
        """Also what is not there, but nothing that another one holds."""
        taken = {kind for (_, kind), n in self.held().items() if n}
        part: Units = Counter()
        for kind in [*DEVICES, "port 1", "port 9"]:
            if kind not in taken and data.draw(st.booleans()):
                part[data.draw(st.sampled_from(STACKS)), kind] = 1
        part[data.draw(st.sampled_from(STACKS)), "cpus"] = data.draw(st.integers(1, 3))
        self.book(data, part, self.ledger.adopt)

    def book(self, data: st.DataObject, part: Units, how: Any) -> None:
        self.names += 1
        key, charge = TaskKey(FrameworkId("f"), TaskId(f"t{self.names}")), self.charge(data)
        how(AGENT, key, charge, holding_of(part))
        self.tasks[key] = charge, part

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def release_task(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.tasks)))
        assert self.ledger.release_task(key) == AGENT
        assert self.ledger.release_task(key) is None
        del self.tasks[key]

    @rule(data=st.data(), stacks=st.permutations(STACKS))
    def restack(self, data: st.DataObject, stacks: list[Stack]) -> None:
        source, target = stacks[:2]
        part = self.part(data, Counter({unit: n for unit, n in self.free().items() if unit[0] == source}))
        if part:
            self.ledger.restack(AGENT, source, target, holding_of(part)[source])
            self.total.subtract(part)
            self.total.update({(target, kind): n for (_, kind), n in part.items()})

    @rule(devices=st.sets(st.sampled_from(DEVICES)))
    def withhold(self, devices: set[DeviceUuid]) -> None:
        self.ledger.set_withheld(AGENT, dict.fromkeys(devices, "unhealthy"))
        self.withheld = devices

    @rule(counted=st.booleans())
    def count(self, counted: bool) -> None:
        self.ledger.set_counted(AGENT, counted)
        self.counted = counted

    @rule(data=st.data())
    def take_what_is_not_there(self, data: st.DataObject) -> None:
        part = self.free()
        part[data.draw(st.sampled_from(STACKS)), "cpus"] += 5
        part[UNRESERVED, "mem"] += 100
        before = units(self.ledger.books[AGENT].free)
        with pytest.raises(InsufficientResources):
            self.ledger.offer(AGENT, OfferId("none"), Client("x", FrameworkId("f")), holding_of(part))
        assert units(self.ledger.books[AGENT].free) == before

    @invariant()
    def agrees_with_the_model(self) -> None:
        self.ledger.check()
        books = self.ledger.books[AGENT]
        held = self.held()
        assert units(books.free) == self.free()
        assert units(books.held()) == held
        assert units(books.total) == Counter({unit: n for unit, n in self.total.items() if n})
        assert units(books.excess()) == Counter(
            {unit: n - self.total[unit] for unit, n in held.items() if n > self.total[unit]}
        )
        assert units(books.withheld()) == Counter(
            {unit: 1 for unit, n in self.total.items() if n and self.is_withheld(unit[1]) and not held[unit]}
        )
        holders = dict(self.ledger.device_holders(AGENT))
        for holder, (_, part) in (*self.offers.items(), *self.tasks.items()):
            assert {uuid for uuid, by in holders.items() if by == holder} == {k for _, k in part if k in DEVICES}

    @rule(present=st.booleans())
    def be_present(self, present: bool) -> None:
        self.ledger.set_present(AGENT, present)
        self.present = present

    @rule()
    def ask_for_what_is_free_and_unreserved(self) -> None:
        """From now on it is counted with every change."""
        assert dict(self.ledger.free_unreserved()) == self.expected_free_unreserved()

    def expected_free_unreserved(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        for (stack, kind), n in self.free().items():
            if stack == UNRESERVED and self.present and not kind.startswith("port"):
                found.update({"gpus": 1000 * n} if kind in DEVICES else {kind: n})
        return dict(found)

    @invariant()
    def only_an_agent_that_is_present_is_looked_at(self) -> None:
        assert (AGENT in self.ledger.with_free) == (self.present and bool(self.free()))

    @invariant()
    def accounts_agree(self) -> None:
        expected: Counter[tuple[str, str, str]] = Counter()
        reserved: Counter[tuple[str, str, str]] = Counter()
        total: Counter[str] = Counter()
        kept: Counter[tuple[str, str]] = Counter()
        if self.counted:
            for client, held in (*self.offers.values(), *self.tasks.values()):
                for (stack, kind), n in held.items():
                    if not kind.startswith("port"):
                        name, amount = ("gpus", 1000 * n) if kind in DEVICES else (kind, n)
                        expected[(*client, name)] += amount
                        if stack:
                            reserved[(*client, name)] += amount
            for (stack, kind), n in self.total.items():
                if not kind.startswith("port"):
                    name, amount = ("gpus", 1000 * n) if kind in DEVICES else (kind, n)
                    total[name] += amount
                    if stack:
                        kept[stack[-1].holder, name] += amount
        assert +self.accounts.charged == +expected
        assert +self.accounts.charged_reserved == +reserved
        assert +self.accounts.total == +total
        assert +self.accounts.kept == +kept


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def test_closed_books_are_gone() -> None:
    accounts = Books()
    ledger = Ledger(accounts)
    ledger.add_agent(AGENT, {UNRESERVED: Resources({"cpus": 1000})})
    ledger.remove_agent(AGENT)
    assert not ledger.books and not ledger.with_free and not +accounts.total
    ledger.check()


def test_a_restack_into_a_bucket_in_excess_pays_for_the_excess_first() -> None:
    ledger = Ledger(Books())
    ledger.add_agent(AGENT, {UNRESERVED: Resources({"cpus": 4}), DYNAMIC: Resources({"cpus": 2})})
    ledger.allocate(
        AGENT, TaskKey(FrameworkId("f"), TaskId("t")), Client("x", FrameworkId("f")), {(): Resources({"cpus": 4})}
    )
    ledger.set_total(AGENT, {UNRESERVED: Resources({"cpus": 3}), DYNAMIC: Resources({"cpus": 2})})
    ledger.restack(AGENT, DYNAMIC, UNRESERVED, Resources({"cpus": 1}))
    assert ledger.books[AGENT].free == {DYNAMIC: Resources({"cpus": 1})}
    ledger.check()


def test_what_comes_back_beside_withheld_devices_is_a_value_that_nobody_can_change() -> None:
    one, two = DeviceUuid("GPU-1"), DeviceUuid("GPU-2")
    ledger = Ledger(Books())
    ledger.add_agent(AgentId("a"), {UNRESERVED: Resources(devices=frozenset({one, two}))}, counted=True, present=True)
    key = TaskKey(FrameworkId("f"), TaskId("t"))
    ledger.allocate(AgentId("a"), key, Client("*", FrameworkId("f")), {UNRESERVED: Resources(devices=frozenset({one}))})
    ledger.set_withheld(AgentId("a"), {two: "ill"})
    ledger.release_task(key)
    assert isinstance(ledger.books[AgentId("a")].free[UNRESERVED].devices, frozenset)
