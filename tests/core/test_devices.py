"""Which devices are picked together, against all sets there are."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bursar.core.devices import PCIE_MOST, Device, DeviceLink, pick_connected
from bursar.core.ids import DeviceUuid


def uuid(index: int) -> DeviceUuid:
    return DeviceUuid(f"gpu{index}")


@st.composite
def machines(draw: st.DrawFn) -> list[Device]:
    """Up to six devices; a link may be described by one end only, and there may be several between two."""
    size = draw(st.integers(1, 6))
    kinds = st.sampled_from(["nvlink", "pcie"])
    ends = st.integers(0, size - 1)
    links = draw(st.lists(st.tuples(ends, ends, kinds, st.integers(0, 6)), max_size=8))
    return [
        Device(
            uuid(index),
            "gpus",
            index=index,
            numa_node=draw(st.none() | st.integers(0, 1)),
            links=tuple(DeviceLink(uuid(peer), kind, s) for left, peer, kind, s in links if left == index != peer),
        )
        for index in range(size)
    ]


def closeness(left: Device, right: Device) -> int:
    between = [link for link in left.links if link.peer_uuid == right.uuid]
    between += [link for link in right.links if link.peer_uuid == left.uuid]
    strengths = [1 + min(4, link.strength) if link.kind == "pcie" else 5 + link.strength for link in between]
    if left.numa_node is not None and left.numa_node == right.numa_node:
        strengths.append(1)
    return max(strengths, default=0)


@settings(deadline=None)
@given(machines(), st.data())
def test_the_pick_is_the_best_of_all_sets(devices: list[Device], data: st.DataObject) -> None:
    known = {device.uuid: device for device in devices}
    pool = data.draw(st.sets(st.sampled_from(sorted(known)), min_size=1))
    count = data.draw(st.integers(0, len(pool)))
    picked = pick_connected(pool, count, known)

    def score(group: tuple[Device, ...]) -> tuple[int, int, tuple[int, ...]]:
        rest = [known[name] for name in pool if known[name] not in group]
        inside = sum(closeness(left, right) for left, right in combinations(group, 2))
        outside = sum(closeness(member, other) for member in group for other in rest)
        return inside, -outside, tuple(-device.index for device in group)

    ordered = sorted((known[name] for name in pool), key=lambda device: device.index)
    best = max(combinations(ordered, count), key=score)
    assert picked == tuple(device.uuid for device in best)


def test_any_link_is_closer_than_the_best_path_over_the_bus() -> None:
    one = Device(
        uuid(0), "gpus", links=(DeviceLink(uuid(1), "pcie", PCIE_MOST), DeviceLink(uuid(2), "nvlink", 1)), numa_node=0
    )
    known = {d.uuid: d for d in [one, Device(uuid(1), "gpus", index=1, numa_node=0), Device(uuid(2), "gpus", index=2)]}
    assert pick_connected(known, 2, known) == (uuid(0), uuid(2))


def test_cliques_are_kept_whole() -> None:
    def linked(index: int, *peers: int) -> Device:
        return Device(
            uuid(index), "gpus", index=index, links=tuple(DeviceLink(uuid(peer), "nvlink", 5) for peer in peers)
        )

    known = {
        d.uuid: d
        for d in [linked(0, 1, 2, 3), linked(1, 0, 2, 3), linked(2, 0, 1, 3), linked(3, 0, 1, 2), linked(4), linked(5)]
    }
    assert pick_connected(known, 1, known) == (uuid(4),)
    assert pick_connected(known, 4, known) == tuple(map(uuid, range(4)))


def test_many_devices_are_picked_in_bounded_time() -> None:
    known = {uuid(index): Device(uuid(index), "gpus", index=index, numa_node=index // 16) for index in range(64)}
    picked = pick_connected(known, 16, known)
    assert len({known[name].numa_node for name in picked}) == 1


def test_devices_that_are_not_described_come_last() -> None:
    known = {uuid(1): Device(uuid(1), "gpus", index=1)}
    assert pick_connected([uuid(0), uuid(1)], 1, known) == (uuid(1),)


def test_more_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 devices wanted, 1 there"):
        pick_connected([uuid(0)], 2, {})
