"""What containers and devices use, in the shapes of the field's boards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agent_dialogue import Agent, container, task
from prometheus_client import CollectorRegistry, generate_latest

from bursar.agent.containers.runtime import ContainerId
from bursar.agent.devices.simulated import SimulatedDevices
from bursar.agent.usage import UsageMeter
from bursar.core.ids import AgentId


class Runtime:
    """One that says what it is told to say."""

    def __init__(self) -> None:
        self.figures: dict[ContainerId, Mapping[str, int]] = {}
        self.fails = False

    def usages(self, container_ids: Iterable[ContainerId]) -> Mapping[ContainerId, Mapping[str, int]]:
        if self.fails:
            raise OSError("the engine is away")
        return {one: self.figures[one] for one in container_ids if one in self.figures}


def lines(registry: CollectorRegistry, *words: str) -> list[str]:
    text = generate_latest(registry).decode()
    return [line for line in text.splitlines() if all(word in line for word in words) and not line.startswith("#")]


def meter(agent: Agent, runtime: Any) -> tuple[UsageMeter, CollectorRegistry]:
    registry = CollectorRegistry()
    return UsageMeter(agent.machine, runtime, SimulatedDevices(AgentId("a1"), 2), registry), registry


async def test_a_task_has_current_capacity_and_percent_of_what_it_was_given() -> None:
    agent, runtime = Agent().ready(), Runtime()
    agent.run(task("t", 0))
    usage, registry = meter(agent, runtime)
    runtime.figures[container("t")] = {"cpu_ns": 0, "mem_bytes": 2**20, "pids": 3}
    await usage.measure()
    runtime.figures[container("t")] = {"cpu_ns": 10**15, "mem_bytes": 2**20, "pids": 3}
    await usage.measure()
    labels = 'agent_id="a1",container_metric_name="%s",framework="f",role="*",task_id="t",value_type="%s"'
    assert lines(registry, "container_utilization", labels % ("mem", "current"), "1.048576e+06")
    assert lines(registry, "container_utilization", labels % ("cpu_util", "capacity"), " 100.0")
    assert lines(registry, "container_utilization", labels % ("pids", "current"), " 3.0")
    (line,) = lines(registry, "container_utilization", labels % ("cpu_util", "pct"))
    assert float(line.split()[-1]) > 100, "a thousand seconds in less"


async def test_an_ended_task_is_not_shown_any_more_and_a_total_that_shrinks_is_no_negative_use() -> None:
    agent, runtime = Agent().ready(), Runtime()
    agent.run(task("t", 0))
    usage, registry = meter(agent, runtime)
    for total in (10**12, 5):
        runtime.figures[container("t")] = {"cpu_ns": total}
        await usage.measure()
    (line,) = lines(registry, "container_utilization", '"cpu_util"', '"current"')
    assert line.endswith(" 0.0")
    agent.exit("t")
    await usage.measure()
    assert not lines(registry, "container_utilization{")


async def test_an_engine_that_is_away_is_counted_and_devices_are_measured_all_the_same() -> None:
    agent, runtime = Agent().ready(), Runtime()
    agent.run(task("t", 0))
    usage, registry = meter(agent, runtime)
    runtime.fails = True
    await usage.measure()
    assert lines(registry, "stat_task_failure_count_total", 'exception="OSError"', 'stat_scope="container"', " 1.0")
    assert lines(registry, "stat_task_success_count_total", 'stat_scope="device"', " 1.0")
    assert len(lines(registry, "device_utilization", '"mem"', '"pct"')) == 2


async def test_a_runtime_that_measures_nothing_is_no_failure() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    usage, registry = meter(agent, object())
    await usage.measure()
    assert not lines(registry, "container_utilization{") and not lines(registry, "failure_count_total{")
