"""Tasks run near their devices, where that is possible."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar.agent.cpusets import format_cpus, near_cpus, parse_cpus
from bursar.core.devices import Device
from bursar.core.ids import DeviceUuid


def gpu(node: int | None) -> Device:
    return Device(DeviceUuid(f"GPU-{node}"), "gpus", numa_node=node)


@pytest.fixture
def nodes(tmp_path: Path) -> Path:
    """Two nodes of eight CPUs, with their threads."""
    for node, text in enumerate(("0-3,8-11\n", "4-7,12-15\n")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("devices", "cpus_milli", "near"),
    [
        ([gpu(0)], 4000, "0-3,8-11"),
        ([gpu(1), gpu(1)], 8000, "4-7,12-15"),
        ([], 1000, ""),
        ([gpu(0), gpu(1)], 1000, ""),
        ([gpu(0), gpu(None)], 1000, ""),
        ([gpu(0)], 8001, ""),
        ([gpu(7)], 1000, ""),
    ],
)
def test_near_cpus(nodes: Path, devices: list[Device], cpus_milli: int, near: str) -> None:
    assert near_cpus(devices, cpus_milli, range(16), nodes) == near


def test_only_cpus_that_the_agent_may_use(nodes: Path) -> None:
    assert near_cpus([gpu(0)], 1000, [1, 2, 9, 4], nodes) == "1-2,9"
    assert near_cpus([gpu(0)], 1000, [1, 2, 9], nodes) == "", "all that it has are near"


@given(st.sets(st.integers(0, 300)))
def test_lists_are_read_as_they_are_written(cpus: set[int]) -> None:
    assert parse_cpus(format_cpus(cpus)) == cpus
