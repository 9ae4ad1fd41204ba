"""Long messages travel in parts: each far below 4 MiB, in order, nothing lost, nothing told twice."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, FrameworkId, Generation, OfferId, TaskId
from bursar.core.messages.agent import DesiredState, KillTask, Ping, TaskRef
from bursar.core.messages.framework import LookupResults, Offers, Rescind, StatusUpdates
from bursar.core.messages.offers import AgentDescription, CallResult, Offer
from bursar.core.tasks import AssignedTask, TaskSpec, TaskState, TaskStatus
from bursar.master.server.hub import in_parts
from bursar.runtime.codec import unwrap, wrap
from bursar.runtime.outbox import MAX_BATCH_BYTES, MAX_MESSAGE_BYTES

KIB = 1 << 10
#: A part may be as large as the largest item, or the limit, and its envelope.
LARGEST_ITEM = 800 * KIB

#: How many items, and how large each is.
bulk = st.lists(st.tuples(st.integers(0, 12), st.sampled_from([0, KIB, 100 * KIB, LARGEST_ITEM])), max_size=3)


def spread(shape: list[tuple[int, int]]) -> list[int]:
    return [size for count, size in shape for _ in range(count)][:20]


def parts_of(wrapper: str, value: Any) -> list[Any]:
    wrapped = list(in_parts(wrapper, value))
    for part in wrapped:
        assert part.ByteSize() <= MAX_BATCH_BYTES + LARGEST_ITEM < MAX_MESSAGE_BYTES
    result = [unwrap(wrapper, part) for part in wrapped]
    assert all(type(part) is type(value) for part in result)
    # As few as possible, within a factor: two neighbours never fit into one.
    for left, right in itertools.pairwise(wrapped):
        assert left.ByteSize() + right.ByteSize() > MAX_BATCH_BYTES / 2
    return result


@settings(max_examples=25, deadline=None)
@given(bulk, bulk, bulk, st.booleans())
def test_a_desired_state(launches: Any, kills: Any, keeps: Any, full: bool) -> None:
    framework = FrameworkId("f")
    state = DesiredState(
        Generation(1, 7),
        None if full else Generation(1, 6),
        False,
        tuple(
            AssignedTask(framework, "*", TaskSpec(TaskId(f"l{i}"), command=("x" * size,)), ())
            for i, size in enumerate(spread(launches))
        ),
        tuple(KillTask(framework, TaskId(f"k{i}-{'x' * min(size, KIB)}")) for i, size in enumerate(spread(kills))),
        tuple(TaskRef(framework, TaskId(f"t{i}-{'x' * min(size, KIB)}")) for i, size in enumerate(spread(keeps))),
    )
    parts = parts_of("MasterMessage", state)
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    assert {(part.generation, part.base) for part in parts} == {(state.generation, state.base)}
    for name in ("launch", "kill", "keep"):
        assert tuple(item for part in parts for item in getattr(part, name)) == getattr(state, name)


@settings(max_examples=25, deadline=None)
@given(bulk, bulk)
def test_offers_come_after_the_descriptions_that_they_refer_to(described: Any, offered: Any) -> None:
    descriptions = tuple(
        AgentDescription(AgentId(f"a{i}"), 1, "h", {"note": "x" * size}) for i, size in enumerate(spread(described))
    )
    offers = tuple(
        Offer(OfferId(f"o{i}"), FrameworkId("f"), "*", AgentId(f"a{i}"), 1, (), 0, "x" * size)
        for i, size in enumerate(spread(offered))
    )
    parts = parts_of("FrameworkEvent", Offers(descriptions, offers))
    assert tuple(item for part in parts for item in part.descriptions) == descriptions
    assert tuple(item for part in parts for item in part.offers) == offers
    seen: set[str] = set()
    known = {description.agent_id for description in descriptions}
    for part in parts:
        seen.update(description.agent_id for description in part.descriptions)
        for offer in part.offers:
            assert offer.agent_id in seen or offer.agent_id not in known


@settings(max_examples=25, deadline=None)
@given(bulk)
def test_statuses_lookups_and_rescinded_offers(shape: Any) -> None:
    sizes = spread(shape)
    statuses = tuple(
        TaskStatus(TaskId(f"t{i}"), FrameworkId("f"), AgentId("a"), TaskState.RUNNING, message="x" * size)
        for i, size in enumerate(sizes)
    )
    assert tuple(s for part in parts_of("FrameworkEvent", StatusUpdates(statuses)) for s in part.statuses) == statuses
    results = tuple(
        CallResult(f"c{i}", error=ErrorDetail(ErrorReason.CALL_REFUSED, "x" * size)) for i, size in enumerate(sizes)
    )
    assert tuple(r for part in parts_of("FrameworkEvent", LookupResults(results)) for r in part.results) == results
    ids = tuple(OfferId(f"{i}{'x' * min(size, KIB)}") for i, size in enumerate(sizes)) * 50
    parts = parts_of("FrameworkEvent", Rescind(ids, "why"))
    assert tuple(i for part in parts for i in part.offer_ids) == ids and {part.reason for part in parts} == {"why"}


def test_what_is_short_is_one_message_as_it_is() -> None:
    for wrapper, value in (
        ("MasterMessage", Ping(3)),
        ("MasterMessage", DesiredState(Generation(1, 1))),
        ("FrameworkEvent", Offers((), ())),
        ("FrameworkEvent", StatusUpdates(())),
    ):
        assert list(in_parts(wrapper, value)) == [wrap(wrapper, value)]  # type: ignore[arg-type]
