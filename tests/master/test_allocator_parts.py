"""The steps of an allocation by themselves: what is cut out, what a demand can use, what a filter hides, which rule decides."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from bursar.core.devices import Device
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId
from bursar.core.messages.offers import Demand, Shape
from bursar.core.resources import (
    PortRange,
    Reservation,
    ReservationType,
    ResourceRequest,
    Resources,
    Stack,
    holding_contains,
    holding_total,
    normalize_ports,
    subtract_holdings,
    sum_resources,
)
from bursar.master.allocator.carve import carve, fitting_count
from bursar.master.allocator.demand import cut_to_demand, open_shapes, shape_of_task
from bursar.master.allocator.filters import RefuseFilters
from bursar.master.allocator.shares import Client

STATIC: Stack = (Reservation(ReservationType.STATIC, "ml"),)
REFINED: Stack = (*STATIC, Reservation(ReservationType.DYNAMIC, "ml/train"))
STACKS: list[Stack] = [(), STATIC, REFINED]
UUIDS = [DeviceUuid(f"gpu{index}") for index in range(6)]
DEVICES = {uuid: Device(uuid, "gpus", index=index, numa_node=index // 3) for index, uuid in enumerate(UUIDS)}


@st.composite
def holdings(draw: st.DrawFn) -> dict[Stack, Resources]:
    owners = {uuid: draw(st.sampled_from([None, *STACKS])) for uuid in UUIDS}
    ports = {port: draw(st.sampled_from([None, *STACKS])) for port in range(1, 5)}
    result = {}
    for stack in STACKS:
        scalars = {kind: amount for kind in ("cpus", "mem") if (amount := draw(st.integers(0, 6)))}
        mine = normalize_ports(PortRange(port, port) for port, owner in ports.items() if owner == stack)
        part = Resources(scalars, mine, frozenset(uuid for uuid, owner in owners.items() if owner == stack))
        if part:
            result[stack] = part
    return result


requests = st.builds(
    ResourceRequest,
    st.dictionaries(st.sampled_from(["cpus", "mem"]), st.integers(1, 4)),
    st.sampled_from([(), (), (PortRange(2, 3),)]),
    st.integers(0, 3),
) | st.builds(
    ResourceRequest,
    st.just({}),
    st.just(()),
    st.just(0),
    st.lists(st.sampled_from(UUIDS), min_size=1, max_size=2, unique=True).map(tuple),
)


# --- carve ---


@settings(deadline=None)
@given(holdings(), requests, st.integers(1, 3))
def test_what_is_cut_out_is_exactly_what_was_asked_for(
    available: dict[Stack, Resources], request: ResourceRequest, count: int
) -> None:
    part = carve(available, request, DEVICES, count)
    there = sum_resources(available.values())
    times = fitting_count(available, request, count)
    if part is None:
        assert times < count or not request
        return
    assert times == count or not request
    assert holding_contains(available, part) and all(part.values())
    total = holding_total(part)
    assert dict(total.scalars) == {kind: amount * count for kind, amount in request.scalars.items()}
    assert total.ports == request.ports
    assert len(total.devices) == request.gpu_count * count and total.devices >= set(request.devices)
    assert request.fits_in(there)


@settings(deadline=None)
@given(holdings(), requests)
def test_what_is_reserved_is_used_before_what_is_not(
    available: dict[Stack, Resources], request: ResourceRequest
) -> None:
    part = carve(available, request, DEVICES)
    if part is None:
        return
    left = subtract_holdings(available, part)
    for kind in request.scalars:
        for refined, coarser in [(REFINED, STATIC), (STATIC, ()), (REFINED, ())]:
            if coarser in part and kind in part[coarser].scalars:
                assert kind not in left.get(refined, Resources()).scalars, "taken from below while there was some above"
    if request.gpus and not request.devices:
        enough = [
            stack for stack in (REFINED, STATIC, ()) if len(available.get(stack, Resources()).devices) >= request.gpus
        ]
        used = [stack for stack, piece in part.items() if piece.devices]
        assert used == enough[:1] or not enough


@given(holdings(), requests, st.integers(0, 4))
def test_how_often_something_fits(available: dict[Stack, Resources], request: ResourceRequest, limit: int) -> None:
    there = sum_resources(available.values())
    times = fitting_count(available, request, limit)
    assert 0 <= times <= limit
    expected = 0
    while expected < limit and request.fits_in(there):
        expected += 1
        part = carve({(): there}, request, DEVICES)
        assert part is not None
        if not request:
            break
        there = there - part[()]
    assert times == (expected if request else 0)


# --- demand ---


@settings(deadline=None)
@given(holdings(), st.lists(st.tuples(requests.filter(bool), st.integers(1, 3)), max_size=4))
def test_a_cut_is_what_the_shapes_in_order_can_use(
    available: dict[Stack, Resources], wanted: list[tuple[ResourceRequest, int]]
) -> None:
    shapes = [(index, request, count) for index, (request, count) in enumerate(wanted)]
    cut = cut_to_demand(available, shapes, DEVICES)
    if cut is None:
        assert not any(request.fits_in(sum_resources(available.values())) for _, request, _ in shapes)
        return
    assert holding_contains(available, cut.holding)
    total, left = holding_total(cut.holding), sum_resources(subtract_holdings(available, cut.holding).values())
    for kind in ("cpus", "mem"):
        assert total.amount(kind) == sum(
            wanted[index][0].scalars.get(kind, 0) * count for index, count in cut.promised.items()
        )
    assert len(total.devices) == sum(wanted[index][0].gpu_count * count for index, count in cut.promised.items())
    for index, request, count in shapes:
        promised = cut.promised.get(index, 0)
        assert promised <= count
        assert promised == count or not request.fits_in(left), "more of it would have fitted"


def test_open_shapes_are_those_of_the_role_that_are_not_on_offer() -> None:
    one = ResourceRequest({"cpus": 1})
    demand = Demand(1, (Shape("x", one, 3), Shape("y", one, 3), Shape("x", one, 1)))
    assert open_shapes(demand, [3, 3, 1], [1, 0, 1], "x") == [(0, one, 2)]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (ResourceRequest({"cpus": 2}, gpus=1), 1),
        (ResourceRequest({"cpus": 1}), 0),
        (ResourceRequest({"cpus": 1}, gpus=1), 1),
        (ResourceRequest({"cpus": 9}), None),
        (ResourceRequest({"cpus": 3}), None),
    ],
)
def test_a_task_fulfils_the_equal_shape_or_the_first_that_is_as_large(
    request_: ResourceRequest, expected: int | None
) -> None:
    shapes = [ResourceRequest({"cpus": 2}), ResourceRequest({"cpus": 2}, gpus=1), ResourceRequest({"cpus": 9})]
    demand = Demand(1, tuple(Shape("x", shape, 1) for shape in shapes))
    assert shape_of_task(demand, [1, 1, 0], "x", request_) == expected
    assert shape_of_task(demand, [1, 1, 0], "y", request_) is None


# --- filters ---

keys = st.tuples(
    st.sampled_from([FrameworkId("f"), FrameworkId("g")]),
    st.sampled_from(["x", "y"]),
    st.sampled_from([AgentId("a"), AgentId("b")]),
)
small = st.dictionaries(
    st.sampled_from([(), STATIC]),
    st.builds(
        Resources,
        st.dictionaries(st.sampled_from(["cpus", "mem"]), st.integers(1, 3)),
        st.just(()),
        st.frozensets(st.sampled_from(UUIDS[:2])),
    ).filter(bool),
)


class FiltersMachine(RuleBasedStateMachine):
    """Against a list of everything that was ever refused."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = RefuseFilters()
        self.model: list[tuple[Any, Any, int]] = []
        self.now = 0

    @rule(key=keys, refused=small, lives=st.integers(1, 20))
    def add(self, key: Any, refused: Any, lives: int) -> None:
        self.filters.add(Client(key[1], key[0]), key[2], refused, self.now + lives)
        if refused:
            self.model.append((key, refused, self.now + lives))

    @rule(ms=st.integers(1, 15))
    def expire(self, ms: int) -> None:
        self.now += ms
        gone = {key[2] for key, _, until in self.model if until <= self.now}
        self.model = [entry for entry in self.model if entry[2] > self.now]
        woken = self.filters.expire(self.now)
        # What was contained in something that lives longer need not wake anybody.
        assert woken <= gone

    @rule(
        framework=st.sampled_from([FrameworkId("f"), FrameworkId("g")]),
        roles=st.none() | st.sets(st.sampled_from(["x", "y"])),
    )
    def drop_framework(self, framework: FrameworkId, roles: set[str] | None) -> None:
        woken = self.filters.drop_framework(framework, roles)
        assert woken == {
            key[2] for key, _, _ in self.model if key[0] == framework and (roles is None or key[1] in roles)
        }
        self.model = [
            entry
            for entry in self.model
            if entry[0][0] != framework or (roles is not None and entry[0][1] not in roles)
        ]

    @rule(agent=st.sampled_from([AgentId("a"), AgentId("b")]))
    def drop_agent(self, agent: AgentId) -> None:
        self.filters.drop_agent(agent)
        self.model = [entry for entry in self.model if entry[0][2] != agent]

    @rule(key=keys, offered=small)
    def ask(self, key: Any, offered: Any) -> None:
        if offered:
            expected = any(mine == key and holding_contains(refused, offered) for mine, refused, _ in self.model)
            assert self.filters.blocks(Client(key[1], key[0]), key[2], offered) == expected

    @invariant()
    def agrees(self) -> None:
        assert len(self.filters) == len({key for key, _, _ in self.model})
        for framework in (FrameworkId("f"), FrameworkId("g")):
            assert self.filters.agents_of(framework) == {key[2] for key, _, _ in self.model if key[0] == framework}
        due = self.filters.deadlines.next_ms()
        # What was dropped with an agent may still be due, for nothing.
        assert due is not None or not self.model
        assert not self.model or due is not None and due <= min(until for _, _, until in self.model)


TestFilters = FiltersMachine.TestCase
TestFilters.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
