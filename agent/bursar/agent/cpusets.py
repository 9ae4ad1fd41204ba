"""Which CPUs a task runs on: those near its devices, where the machine has several NUMA nodes and the near ones are enough."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from bursar.core.devices import Device

_NODES = Path("/sys/devices/system/node")


def near_cpus(
    devices: Sequence[Device], cpus_milli: int, allowed: Iterable[int] | None = None, nodes: Path = _NODES
) -> str:
    """A list as the kernel writes it (`0-7,16-23`), or nothing where the task may run anywhere.

    That is so without devices, where one of them does not know its node, where the nodes have fewer CPUs (of those that this agent may
    use, `allowed`) than the task asked for, and where they have all of them.
    """
    wanted = {device.numa_node for device in devices}
    if not wanted or None in wanted:
        return ""
    mine = set(os.sched_getaffinity(0) if allowed is None else allowed)
    near = mine & {cpu for node in wanted if node is not None for cpu in _cpus_of(nodes, node)}
    if near == mine or len(near) * 1000 < max(cpus_milli, 1):
        return ""
    return format_cpus(near)


def format_cpus(cpus: Iterable[int]) -> str:
    """As the kernel writes a list of CPUs."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def parse_cpus(text: str) -> set[int]:
    """Read such a list. Raises ValueError."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _cpus_of(nodes: Path, node: int) -> set[int]:
    try:
        return parse_cpus((nodes / f"node{node}" / "cpulist").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return set()
