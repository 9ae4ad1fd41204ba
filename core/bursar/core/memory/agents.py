"""The memory of an agent's machine, and that of a GPU: what is kept back, and what can be given to tasks (F49-10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bursar.core.errors import InvalidText
from bursar.core.memory.division import Part, divide
from bursar.core.memory.pools import (
    GIB,
    MAX_BYTES,
    MIB,
    Component,
    MemoryPlan,
    PoolRule,
    PoolSetting,
    format_bytes,
    rule_with,
)
from bursar.core.memory.tasks import check_setting

SYSTEM, AGENT, CACHE, OFFERABLE, HOST = "system-reserve", "agent", "cache", "offerable", "host"
CONTEXT, SAFETY, TASK, DEVICE = "context-overhead", "safety", "task", "device"

#: The agent and its machine: as much as Mesos leaves to the system (1 GiB, half of a small machine) is what these come to.
AGENT_RULES: Mapping[str, PoolRule] = {
    SYSTEM: PoolRule(50, 512 * MIB, 8 * GIB),
    AGENT: PoolRule(0, 256 * MIB, 256 * MIB),
    CACHE: PoolRule(0, 256 * MIB, 256 * MIB),
    OFFERABLE: PoolRule(0, 32 * MIB),
}
#: A CUDA context with its kernels, for each process, and what fragments.
GPU_RULES: Mapping[str, PoolRule] = {
    CONTEXT: PoolRule(0, 512 * MIB, 512 * MIB),
    SAFETY: PoolRule(20, 64 * MIB, GIB),
    TASK: PoolRule(0, MIB),
}


@dataclass(frozen=True, slots=True)
class PoolsOf:
    """A whole that is divided: its name, how its pools are sized, and which of them is what is left."""

    whole: str
    rules: Mapping[str, PoolRule]
    rest: str


AGENT_POOLS = PoolsOf(HOST, AGENT_RULES, OFFERABLE)
GPU_POOLS = PoolsOf(DEVICE, GPU_RULES, TASK)


def plan_agent(host_bytes: int, settings: tuple[PoolSetting, ...] = (), source: str = "--memory") -> MemoryPlan:
    """The memory of a machine: what the system, the agent and its caches keep, and what is offerable.

    Raises InvalidText, MemoryConflict.
    """
    return _plan(host_bytes, AGENT_POOLS, settings, source, "the machine")


def plan_gpu(
    device_bytes: int, processes: int = 1, settings: tuple[PoolSetting, ...] = (), source: str = "the settings"
) -> MemoryPlan:
    """The memory of a GPU that `processes` processes share: their contexts, a margin, and what tasks can use.

    Nothing enforces this: a GPU has one limit, its size. Raises InvalidText, MemoryConflict.
    """
    if processes < 1:
        raise InvalidText(f"memory: {processes} processes on a GPU", "at least 1")
    rule = GPU_RULES[CONTEXT]
    assert rule.max_bytes is not None
    context = replace(rule, min_bytes=rule.min_bytes * processes, max_bytes=rule.max_bytes * processes)
    pools = replace(GPU_POOLS, rules={**GPU_RULES, CONTEXT: context})
    return _plan(device_bytes, pools, settings, source, "the device")


def _plan(whole_bytes: int, pools: PoolsOf, settings: tuple[PoolSetting, ...], source: str, origin: str) -> MemoryPlan:
    if not 0 < whole_bytes <= MAX_BYTES:
        raise InvalidText(f"memory: {pools.whole} has {whole_bytes} bytes", "more than 0, at most 8 PiB")
    said: dict[str, PoolSetting] = {}
    for setting in settings:
        if setting.name not in pools.rules:
            raise InvalidText(f"memory: {pools.whole} has no pool {setting.name!r}", f"it has {', '.join(pools.rules)}")
        if setting.name in said:
            raise InvalidText(f"memory: {setting.name} is set twice", "say it once")
        check_setting(setting)
        said[setting.name] = setting
    parts = [
        Part(name, rule_with(rule, said.get(name)), said.get(name), "default", source)
        for name, rule in pools.rules.items()
    ]
    division = divide(whole_bytes, parts, pools.whole, origin, rest=(pools.rest,))
    return MemoryPlan(
        (*division.components, Component(pools.whole, whole_bytes, origin, enforced_by="size", is_sum=True)),
        division.notes,
    )


def describe(plan: MemoryPlan) -> str:
    """A plan in one line, for logs."""
    return ", ".join(f"{item.name} {format_bytes(item.size_bytes)}" for item in plan.components)
