"""What containers and devices use, measured now and then for Prometheus, in the shapes of the field's boards (B-10, B-17)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import psutil
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bursar.agent.containers.runtime import ContainerId
from bursar.agent.devices.driver import DeviceDriver, DeviceMeter, device_meters
from bursar.agent.machine import AgentMachine
from bursar.agent.tasks import container_of
from bursar.core.ids import DeviceUuid
from bursar.core.resources import CPUS, MEM, MILLI, sum_resources
from bursar.core.tasks import AssignedTask
from bursar.runtime.telemetry import logger

#: Between two measurements, and how much longer than one itself it is at least: measuring takes a fiftieth of a core at most.
INTERVAL_S, PATIENCE = 15.0, 50

_SCOPES = ("node", "container", "device")


@runtime_checkable
class UsageReader(Protocol):
    """A runtime that knows what its containers use."""

    def usages(self, container_ids: Iterable[ContainerId]) -> Mapping[ContainerId, Mapping[str, int]]:
        """`cpu_ns`, `mem_bytes`, `pids`, `read_bytes`, `written_bytes` as far as known; who has ended is left out. Blocks."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure, what it can be at most, or None where nothing limits it."""

    current: float
    capacity: float | None = None

    def values(self) -> Iterator[tuple[str, float]]:
        """By `value_type`."""
        yield "current", self.current
        if self.capacity:
            yield "capacity", self.capacity
            yield "pct", 100 * self.current / self.capacity


@dataclass(frozen=True, slots=True)
class _Task:
    assigned: AssignedTask
    measures: Mapping[str, Measure]


class UsageMeter(Collector):
    """Measures in the background; a scrape sees the newest figures."""

    def __init__(
        self, machine: AgentMachine, runtime: object, driver: DeviceDriver, registry: CollectorRegistry
    ) -> None:
        self._machine = machine
        self._reader = runtime if isinstance(runtime, UsageReader) else None
        self._meters: tuple[DeviceMeter, ...] = tuple(device_meters(driver))
        self._tasks: list[_Task] = []
        self._devices: Mapping[DeviceUuid, Mapping[str, Measure]] = {}
        self._node: Mapping[str, Measure] = {}
        #: CPU time of each container, and when it was measured.
        self._before: dict[ContainerId, tuple[int, float]] = {}
        self._counts: dict[tuple[str, str, str], int] = {
            (what, scope, ""): 0 for what in ("trigger", "success") for scope in _SCOPES
        }
        registry.register(self)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            begun = time.monotonic()
            await self.measure()
            await asyncio.sleep(max(INTERVAL_S, PATIENCE * (time.monotonic() - begun)))

    async def measure(self) -> None:
        """Once, everything; what fails is counted, and does not keep the rest from being measured."""
        agent_id = self._machine.info.agent_id
        tasks = {
            container_of(agent_id, key): record.task
            for key, record in self._machine.state.tasks.items()
            if not record.state.is_terminal
        }
        works = (("node", self._of_node, ()), ("container", self._of_tasks, (tasks,)), ("device", self._of_devices, ()))
        for scope, work, arguments in works:
            self._count("trigger", scope)
            try:
                await asyncio.to_thread(work, *arguments)
            except Exception as error:  # noqa: BLE001 - an engine or a driver that fails is counted, and asked again later
                self._count("failure", scope, type(error).__name__)
                logger().debug("cannot measure", scope=scope, reason=str(error))
            else:
                self._count("success", scope)

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        agent_id = self._machine.info.agent_id
        names = ["container_metric_name", "agent_id", "task_id", "framework", "role", "value_type"]
        family = GaugeMetricFamily("bursar_container_utilization", "What tasks use.", labels=names)
        for task in list(self._tasks):
            whose = [agent_id, task.assigned.spec.task_id, task.assigned.framework_id, task.assigned.role]
            for name, measure in task.measures.items():
                for kind, value in measure.values():
                    family.add_metric([name, *whose, kind], value)
        yield family
        family = GaugeMetricFamily(
            "bursar_device_utilization",
            "What devices do.",
            labels=["device_metric_name", "agent_id", "device_id", "value_type"],
        )
        for uuid, measures in self._devices.items():
            for name, measure in measures.items():
                for kind, value in measure.values():
                    family.add_metric([name, agent_id, uuid, kind], value)
        yield family
        family = GaugeMetricFamily(
            "bursar_node_utilization",
            "What all of the machine uses.",
            labels=["node_metric_name", "agent_id", "value_type"],
        )
        for name, measure in self._node.items():
            for kind, value in measure.values():
                family.add_metric([name, agent_id, kind], value)
        yield family
        for what in ("trigger", "success", "failure"):
            labels = ["agent_id", "stat_scope"] + (["exception"] if what == "failure" else [])
            counts = CounterMetricFamily(f"bursar_stat_task_{what}_count", "Measurements of usage.", labels=labels)
            for (kind, scope, exception), count in sorted(self._counts.items()):
                if kind == what:
                    counts.add_metric([agent_id, scope, *([exception] if what == "failure" else [])], count)
            yield counts

    def _count(self, what: str, scope: str, exception: str = "") -> None:
        key = (what, scope, exception)
        self._counts[key] = self._counts.get(key, 0) + 1

    def _of_node(self) -> None:
        memory = psutil.virtual_memory()
        cores = psutil.cpu_count() or 1
        self._node = {
            "cpu_util": Measure(psutil.cpu_percent() * cores, 100.0 * cores),
            "mem": Measure(memory.total - memory.available, memory.total),
        }

    def _of_tasks(self, tasks: Mapping[ContainerId, AssignedTask]) -> None:
        usages = self._reader.usages(tasks) if self._reader is not None and tasks else {}
        now = time.monotonic()
        shares: dict[ContainerId, list[tuple[int, int]]] = {}
        for (key, _), figures in list(self._machine.overuse.used.items()):
            shares.setdefault(container_of(self._machine.info.agent_id, key), []).append(figures)
        found = []
        before, self._before = self._before, {}
        for container_id, usage in usages.items():
            assigned = tasks[container_id]
            amounts = sum_resources(part.resources for part in assigned.resources).scalars
            measures = dict(_plain_measures(usage))
            if "mem_bytes" in usage:
                measures["mem"] = Measure(usage["mem_bytes"], amounts.get(MEM))
            if shared := shares.get(container_id):
                measures["device_mem"] = Measure(*map(sum, zip(*shared, strict=True)))
            if "cpu_ns" in usage:
                self._before[container_id] = (usage["cpu_ns"], now)
                measures["cpu_used"] = Measure(usage["cpu_ns"] / 1e9)
                last_ns, last = before.get(container_id, (usage["cpu_ns"], 0.0))
                # What ended meanwhile is not counted any more: a total may shrink.
                percent = max(0.0, (usage["cpu_ns"] - last_ns) / 1e7 / (now - last)) if now > last else 0.0
                measures["cpu_util"] = Measure(percent, 100 * amounts.get(CPUS, 0) / MILLI or None)
            found.append(_Task(assigned, measures))
        self._tasks = found

    def _of_devices(self) -> None:
        measured: dict[DeviceUuid, Mapping[str, Measure]] = {}
        for meter in self._meters:
            for uuid, figures in meter.measure().items():
                measured[uuid] = {name: Measure(*figure) for name, figure in figures.items()}
        self._devices = measured


def _plain_measures(usage: Mapping[str, Any]) -> Iterator[tuple[str, Measure]]:
    names = {
        "pids": "pids",
        "read_bytes": "io_read",
        "written_bytes": "io_write",
        "received_bytes": "net_rx",
        "sent_bytes": "net_tx",
    }
    for key, name in names.items():
        if key in usage:
            yield name, Measure(usage[key])
