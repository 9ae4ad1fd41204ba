"""The master's allocator against the reference, side by side: random clusters, and after every step the same offers.

`BURSAR_REFERENCE_RUNS=5000` looks deeper, with other seeds each time; `BURSAR_REFERENCE_SHORTEN=yes` looks for the shortest story of a
disagreement, which takes minutes.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from side_by_side.choices import EXPRESSIONS
from side_by_side.duet import Duet
from side_by_side.model import reference
from side_by_side.plays import Accepting, SideBySide, UnderQuota

from bursar.core.resources import Reservation, ReservationType, ReservedResources, Resources
from bursar.core.role_expressions import parse_role_expression

#: How many random clusters, from another seed each time; 0: a few, always the same.
RUNS = int(os.environ.get("BURSAR_REFERENCE_RUNS", "0"))
#: Whether to look for the shortest story of a disagreement.
SHORTEN = os.environ.get("BURSAR_REFERENCE_SHORTEN", "no") == "yes"


@pytest.fixture(autouse=True)
def _book(new_book: Any) -> None:
    SideBySide.new_book = new_book


def how(runs: int) -> settings:
    return settings(
        max_examples=RUNS or runs,
        stateful_step_count=25,
        deadline=None,
        derandomize=not RUNS,
        suppress_health_check=list(HealthCheck),
        phases=[phase for phase in Phase if SHORTEN or phase is not Phase.shrink],
    )


def enough(done: Counter[str], **least: int) -> None:
    """What is seldom accepted is seldom compared: of the fixed runs, so much of each."""
    assert RUNS or all(done[kind] >= count for kind, count in least.items()), f"{dict(done)} instead of {least}"


# To shorten a story takes minutes.
@pytest.mark.timeout(900)
class TestSideBySide(SideBySide.TestCase):  # type: ignore[misc, valid-type]
    settings = how(120)

    @classmethod
    def tearDownClass(cls) -> None:
        enough(SideBySide.done, Launch=5, Reserve=5)


@pytest.mark.timeout(900)
class TestUnderQuota(UnderQuota.TestCase):  # type: ignore[misc, valid-type]
    settings = how(80)

    @classmethod
    def tearDownClass(cls) -> None:
        enough(UnderQuota.done, Launch=5, Reserve=5)


@pytest.mark.timeout(900)
class TestAccepting(Accepting.TestCase):  # type: ignore[misc, valid-type]
    settings = how(160)

    @classmethod
    def tearDownClass(cls) -> None:
        enough(Accepting.done, Launch=80, Reserve=15, Unreserve=10)


@pytest.mark.parametrize("refuse_ms", [0, 3_000, None, 60_000])
def test_long_rows_of_declines(new_book: Any, refuse_ms: int | None) -> None:
    """What random runs are too short for: the pauses grow as the rules say, and end with what ends them."""
    duet = Duet(new_book())
    total = Resources({"cpus": 4000, "mem": 4 << 30})
    for name in ("m1", "m2"):
        duet.agent(name, [ReservedResources((), total)], [])
    duet.framework("f", ["a", "e"])
    for turn in range(60):
        by_role = [[offer for offer in duet.model.offers if offer.role == role] for role in ("a", "e")]
        for offers in filter(None, by_role):
            if turn == 40:
                one = duet.book.request(cpus=1)
                duet.accept("f", offers[:1], [(offers[0].agent_id, one)], refuse_ms)
            else:
                duet.decline("f", offers[: 1 + turn % 2], refuse_ms)
        if turn == 50:
            duet.revive("f", ["a"])
        duet.advance((500, 1000, 3500, 20_000)[turn % 4])


def test_reservations_inside_accepts_and_from_holder_to_holder(new_book: Any) -> None:
    """What random runs seldom come to: each step done, by both, and the buckets the same afterwards."""
    duet = Duet(new_book())
    devices = duet.book.devices("m", 4)
    uuids = [device.uuid for device in devices]
    duet.agent("m", [ReservedResources((), duet.book.resources(8, 8, uuids))], devices)
    duet.framework("f", ["a/b"], refines=True)
    principal = duet.book.machine.cluster.frameworks["f"].info.principal
    level = Reservation(ReservationType.DYNAMIC, "a/b", principal)

    def offered() -> Any:
        (offer,) = duet.model.offers
        return offer

    two = duet.book.request(cpus=2, gpus=2)
    duet.accept("f", [offered()], [reference.Reserve("m", (), level, two), ("m", duet.book.request(cpus=1))], 0)
    duet.advance(1000)
    assert offered().holding[(level,)].gpus == 2, "what it made was not refused"
    duet.accept("f", [offered()], [reference.Unreserve("m", (level,), duet.book.resources(1))], 0)
    duet.advance(1000)
    # An operator's level below, refined by the framework inside an accept, and then popped by the operator for somebody else.
    duet.reserve("m", "a", duet.book.request(gpus=2))
    (below,) = [stack for stack in duet.model.agents["m"].buckets if stack and stack[-1].holder == "a"]
    duet.accept("f", [offered()], [reference.Reserve("m", below, level, duet.book.request(gpus=1))], 0)
    assert (*below, level) in duet.model.agents["m"].buckets
    duet.advance(1000)
    duet.reserve("m", "e", duet.book.request(gpus=1), source="a/b")
    duet.reserve("m", "a/c", duet.book.request(gpus=1), source="a/b")
    holders = {tuple(one.holder for one in stack) for stack, part in duet.model.agents["m"].buckets.items() if part}
    assert ("a", "a/c") in holders or ("e",) in holders


def test_what_an_offer_uses_of_a_reservation_may_leave_it_more_of_the_rest(new_book: Any) -> None:
    """A random run found it: the offer itself fulfils the guarantee for which its CPUs were held back. Whoever has it is asked again."""
    duet = Duet(new_book())
    holder = str(parse_role_expression("=a | e"))
    duet.model.meanings[holder] = EXPRESSIONS["=a | e"]
    kept = ReservedResources((Reservation(ReservationType.STATIC, holder),), duet.book.resources(3, 1))
    one = ReservedResources((), duet.book.resources(1, 1))
    for name, parts in (("m1", [one]), ("m2", [one, kept]), ("m3", [one, kept])):
        duet.agent(name, parts)
    duet.set_quotas({"e": ({"cpus": 2000}, {}), "a": ({"cpus": 2000}, {})}, True)
    duet.framework("f", ["a"])
    given = [offer.holding.get((), Resources()).amount("cpus") for offer in duet.model.offers]
    assert sorted(given) == [0, 0, 0, 1000], "two are kept for e"
