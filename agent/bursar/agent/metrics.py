"""What Prometheus sees of an agent."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bursar.agent.devices.health import DeviceSignal
from bursar.agent.machine import AgentMachine
from bursar.core.devices import DeviceHealth


class AgentMetrics:
    """All metrics; counters are fed by the shell, gauges read from the machine at each scrape."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        #: Where they are served, as others reach it; empty: nowhere.
        self.address = ""
        self.launches = Counter("bursar_agent_launches", "Containers that were asked to start.", registry=registry)
        self.launch_failures = Counter(
            "bursar_agent_launch_failures", "Containers that did not start.", ["reason"], registry=registry
        )
        self.start_seconds = Histogram(
            "bursar_agent_container_start_seconds",
            "From asking the runtime to its answer.",
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
            registry=registry,
        )
        self.device_signals = Counter(
            "bursar_agent_device_signals",
            "What drivers said of devices of their own accord, by severity.",
            ["device_id", "severity"],
            registry=registry,
        )
        self.commit_seconds = Histogram(
            "bursar_agent_checkpoint_commit_seconds",
            "One transaction of the checkpoint.",
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5),
            registry=registry,
        )

    def count_signals(self, signals: Iterable[DeviceSignal]) -> None:
        """Drivers said something."""
        for signal in signals:
            self.device_signals.labels(signal.uuid, signal.severity.name.lower()).inc()

    def watch(self, machine: AgentMachine, connections: Callable[[], int]) -> None:
        """Read the gauges from here."""
        self.registry.register(_MachineCollector(machine, connections))


class _MachineCollector(Collector):
    """Copies what it reads first: a scrape comes from a thread of its own."""

    def __init__(self, machine: AgentMachine, connections: Callable[[], int]) -> None:
        self._machine = machine
        self._connections = connections

    def collect(self) -> Iterable[Metric]:
        machine = self._machine
        tasks = list(machine.state.tasks.values())
        states = Tally(task.state.name.lower() for task in tasks)
        family = GaugeMetricFamily(
            "bursar_agent_tasks", "Tasks by state; ended ones until acknowledged.", labels=["state"]
        )
        for state, count in sorted(states.items()):
            family.add_metric([state], count)
        yield family
        yield _gauge(
            "updates_unacknowledged", "Status updates that wait.", sum(len(task.unacknowledged) for task in tasks)
        )
        yield _gauge("registered", "1 while a master has let this agent in.", int(machine.registered))
        yield _gauge(
            "tasks_finished_remembered", "Ended tasks that are not started again.", len(machine.state.finished)
        )
        held = machine.live_devices()
        health: Tally[tuple[str, str]] = Tally()
        for device in machine.info.devices:
            use = "held" if device.uuid in held else "free"
            health["unhealthy" if device.health is DeviceHealth.UNHEALTHY else "healthy", use] += 1
        family = GaugeMetricFamily("bursar_agent_devices", "Devices by health and use.", labels=["health", "use"])
        for labels, count in sorted(health.items()):
            family.add_metric(list(labels), count)
        yield family
        overuse = machine.overuse
        passes = Metric("bursar_agent_share_passes", "How often a task passed its share of a GPU's memory.", "counter")
        for enforcement, number in sorted(overuse.passed.items()):
            passes.add_sample("bursar_agent_share_passes_total", {"enforcement": enforcement}, number)
        yield passes
        yield _gauge("share_ends", "Tasks that were ended for that.", overuse.ended, counter=True)
        yield _gauge("connections", "Streams to masters opened since the start.", self._connections(), counter=True)
        yield _gauge("registrations", "Registrations since the start.", machine.registrations_total, counter=True)


def _gauge(name: str, text: str, value: int, *, counter: bool = False) -> Metric:
    metric = Metric(f"bursar_agent_{name}", text, "counter" if counter else "gauge")
    metric.add_sample(f"bursar_agent_{name}" + ("_total" if counter else ""), {}, value)
    return metric
