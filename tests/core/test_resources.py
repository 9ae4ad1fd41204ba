"""Arithmetic of resources, with ports against plain sets."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar.core.ids import DeviceUuid
from bursar.core.resources import (
    EMPTY,
    InsufficientResources,
    PortRange,
    Reservation,
    ReservationType,
    ResourceRequest,
    Resources,
    Stack,
    add_holdings,
    holding_contains,
    holding_total,
    intersect_ports,
    iter_ports,
    normalize_ports,
    stack_problem,
    subtract_holdings,
    subtract_ports,
    to_holding,
    to_reserved,
)
from bursar.core.text import format_shortfall

spans = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 6)).map(lambda pair: PortRange(pair[0], sum(pair))))
ports = spans.map(normalize_ports)
scalars = st.dictionaries(st.sampled_from(["cpus", "mem", "widgets"]), st.integers(1, 10))
devices = st.frozensets(st.sampled_from([DeviceUuid(f"gpu{index}") for index in range(6)]))
resources = st.builds(Resources, scalars, ports, devices)


def as_set(some: tuple[PortRange, ...]) -> set[int]:
    return set(iter_ports(some))


def is_normal(some: tuple[PortRange, ...]) -> bool:
    return all(left.last + 1 < right.first for left, right in itertools.pairwise(some)) and all(
        span.first <= span.last for span in some
    )


@given(spans)
def test_ports_are_normalized(some: list[PortRange]) -> None:
    normal = normalize_ports(some)
    assert is_normal(normal) and as_set(normal) == {port for span in some for port in range(span.first, span.last + 1)}


@given(ports, ports)
def test_ports_are_sets(left: tuple[PortRange, ...], right: tuple[PortRange, ...]) -> None:
    assert as_set(subtract_ports(left, right)) == as_set(left) - as_set(right)
    assert as_set(intersect_ports(left, right)) == as_set(left) & as_set(right)
    assert is_normal(subtract_ports(left, right)) and is_normal(intersect_ports(left, right))


@given(resources, resources)
def test_what_is_added_can_be_taken_again(left: Resources, right: Resources) -> None:
    if left.devices & right.devices or as_set(left.ports) & as_set(right.ports):
        with pytest.raises(InsufficientResources):
            left + right
        return
    total = left + right
    assert total - right == left and total - left == right
    assert total == right + left and hash(total) == hash(right + left)
    assert total.contains(left) and total.contains(right)
    for kind in ("cpus", "mem", "widgets", "gpus", "ports"):
        assert total.amount(kind) == left.amount(kind) + right.amount(kind)


@given(resources, resources)
def test_nothing_is_ever_below_zero(left: Resources, right: Resources) -> None:
    if left.contains(right):
        rest = left - right
        assert rest + right == left
        assert all(amount > 0 for amount in rest.scalars.values())
    else:
        with pytest.raises(InsufficientResources):
            left - right


@given(resources, resources)
def test_saturating_difference_and_intersection_share_out(left: Resources, right: Resources) -> None:
    rest, common = left.minus_saturating(right), left.intersection(right)
    assert rest + common == left
    assert left.contains(common) and right.contains(common)
    assert common == right.intersection(left)
    assert all(amount > 0 for amount in (*rest.scalars.values(), *common.scalars.values()))


@given(resources)
def test_nothing_is_neutral(some: Resources) -> None:
    assert some + EMPTY == some == EMPTY + some == some - EMPTY
    assert some - some == EMPTY and not (some - some)
    assert some.amounts().get("gpus", 0) == 1000 * len(some.devices)


@given(resources, st.integers(0, 6), st.lists(st.sampled_from([f"gpu{index}" for index in range(6)]), unique=True))
def test_a_request_fits_where_nothing_is_short(there: Resources, gpus: int, named: list[str]) -> None:
    request = ResourceRequest({"cpus": 3}, (PortRange(5, 8),), gpus, tuple(map(DeviceUuid, named)))
    enough = (
        there.scalars.get("cpus", 0) >= 3
        and {5, 6, 7, 8} <= as_set(there.ports)
        and max(gpus, len(named)) <= len(there.devices)
        and set(named) <= there.devices
    )
    assert request.fits_in(there) == enough == (not format_shortfall(request, there))


STATIC: Stack = (Reservation(ReservationType.STATIC, "a"),)
DYNAMIC: Stack = (Reservation(ReservationType.DYNAMIC, "a"),)
holdings = st.dictionaries(
    st.sampled_from([(), STATIC, DYNAMIC]), st.builds(Resources, scalars).filter(bool), max_size=3
)


@given(holdings, holdings)
def test_holdings_are_added_bucket_by_bucket(left: dict[Stack, Resources], right: dict[Stack, Resources]) -> None:
    total = add_holdings(left, right)
    assert subtract_holdings(total, right) == left
    assert holding_contains(total, left) and holding_total(total) == holding_total(left) + holding_total(right)
    assert to_holding(to_reserved(total)) == total
    if not holding_contains(left, right):
        with pytest.raises(InsufficientResources):
            subtract_holdings(left, right)


def level(kind: ReservationType, role: str) -> Reservation:
    return Reservation(kind, role)


S, D = ReservationType.STATIC, ReservationType.DYNAMIC


@pytest.mark.parametrize(
    ("stack", "valid"),
    [
        ((), True),
        (((S, "a"),), True),
        (((D, "a"),), True),
        (((S, "a"), (D, "a/b")), True),
        (((D, "a"), (D, "a/b/c")), True),
        (((D, "a"), (S, "a/b")), False),
        (((D, "a"), (D, "a")), False),
        (((D, "a"), (D, "b")), False),
        (((D, "a/b"), (D, "a")), False),
        (((D, "a"), (D, "ab")), False),
        (((D, "*"),), False),
        (((D, "a//b"),), False),
        (((ReservationType.UNSPECIFIED, "a"),), False),
    ],
)
def test_stacks(stack: tuple[tuple[ReservationType, str], ...], valid: bool) -> None:
    """mesos.md §2.5."""
    assert (stack_problem(tuple(Reservation(*entry) for entry in stack)) is None) == valid
