"""What an operator looks at first, in Prometheus' form.

The event loop takes a snapshot now and then; scrapes, which come in a thread of their own, only see snapshots.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bursar.core.messages.framework import GPU_RESOURCES
from bursar.core.messages.operator import AgentState, FrameworkState, RefusalReason
from bursar.core.resources import BYTE_KINDS, MILLI, holding_total
from bursar.master.explain import count_refusals
from bursar.master.hoarding import backs_off_for
from bursar.master.machine import MasterMachine
from bursar.runtime.driver import Driver

#: Pairs of a framework and an agent that are asked for a reason at every so many snapshots: a few milliseconds.
MAX_SAMPLED_PAIRS, REFUSALS_EVERY = 500, 5
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


@dataclass(slots=True)
class _Snapshot:
    gauges: list[tuple[str, str, dict[str, str], float]] = field(default_factory=list)
    counters: list[tuple[str, str, dict[str, str], float]] = field(default_factory=list)
    #: Metrics addresses of agents that have one, with what tells them apart.
    agents: list[tuple[str, dict[str, str]]] = field(default_factory=list)


class MasterMetrics(Collector):
    """Metrics of one master, prefixed `bursar_master_`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._snapshot = _Snapshot()
        #: Where these metrics are served; empty: nowhere.
        self.address = ""
        self._taken = 0
        self._refusals: dict[tuple[str, RefusalReason], int] = {}
        self.commit_seconds = Histogram(
            "bursar_master_registry_commit_seconds",
            "Time to make one batch durable",
            registry=registry,
            buckets=BUCKETS_S,
        )
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """The newest snapshot."""
        snapshot = self._snapshot
        for make, rows in ((GaugeMetricFamily, snapshot.gauges), (CounterMetricFamily, snapshot.counters)):
            families: dict[str, Metric] = {}
            for name, help_text, labels, value in rows:
                family = families.get(name)
                if family is None:
                    family = families[name] = make(f"bursar_master_{name}", help_text, labels=list(labels))
                family.add_metric(list(labels.values()), value)  # type: ignore[attr-defined]
            yield from families.values()

    def targets(self) -> str:
        """The master and its agents in the form of Prometheus' HTTP service discovery (B-20)."""
        groups = [{"targets": [self.address], "labels": {"job": "bursar-master"}}] if self.address else []
        groups += [
            {"targets": [address], "labels": {"job": "bursar-agent", **labels}}
            for address, labels in self._snapshot.agents
        ]
        return json.dumps(groups)

    def take(self, machine: MasterMachine, driver: Driver) -> None:
        """Take a snapshot; called in the event loop."""
        now_ms = time.time_ns() // 1_000_000
        cluster = machine.cluster
        snapshot = _Snapshot()

        def gauge(name: str, help_text: str, value: float, **labels: str) -> None:
            snapshot.gauges.append((name, help_text, labels, value))

        def counter(name: str, help_text: str, value: float, **labels: str) -> None:
            snapshot.counters.append((name, help_text, labels, value))

        gauge("term", "This master's reign", cluster.term)
        agent_states = Counter(agent.state for agent in cluster.agents.values())
        for agent_state in list(AgentState)[1:]:
            gauge("agents", "Agents by state", agent_states[agent_state], state=agent_state.name.lower())
        framework_states = Counter(framework.state for framework in cluster.frameworks.values())
        for framework_state in (FrameworkState.ACTIVE, FrameworkState.DISCONNECTED):
            gauge(
                "frameworks",
                "Frameworks by state",
                framework_states[framework_state],
                state=framework_state.name.lower(),
            )
        lacking = sum(
            framework.state is FrameworkState.ACTIVE and GPU_RESOURCES not in framework.info.capabilities
            for framework in cluster.frameworks.values()
        )
        gauge("frameworks_without_gpu_resources", "Active frameworks that lack the capability GPU_RESOURCES", lacking)
        starved = Counter(hunger.rule for hunger in cluster.hunger.values() if hunger.rule)
        for compiled in cluster.visibility.rules:
            name, mode = compiled.name, compiled.rule.mode.name.lower()
            gauge("frameworks_starved_by_rule", "Frameworks without offers because of a rule", starved[name], rule=name)
            decisions = cluster.visibility.decisions.get(name, 0)
            counter("rule_decisions", "Decisions of visibility rules in cycles", decisions, rule=name, mode=mode)
        task_states = Counter(cluster.tasks[key].state for agent in cluster.agents.values() for key in agent.tasks)
        for task_state, count in sorted(task_states.items()):
            gauge("tasks", "Tasks that are not terminal, by state", count, state=task_state.name.lower())
        gauge("offers_outstanding", "Offers that wait for an answer", len(cluster.offers))
        oldest: dict[str, int] = {}
        for outstanding in cluster.offers.values():
            role, since_ms = outstanding.offer.role, outstanding.created_at_ms
            oldest[role] = min(oldest.get(role, since_ms), since_ms)
        for role, since_ms in sorted(oldest.items()):
            help_text = "Age of the oldest offer that waits for an answer"
            gauge("oldest_offer_seconds", help_text, max(0, now_ms - since_ms) / 1000, role=role)
        backing_off = Counter(backs_off_for(cluster, framework) for framework in cluster.frameworks.values())
        for why in ("declines", "silence"):
            help_text = "Frameworks that are offered the same less often, for what they did with their offers"
            gauge("frameworks_backing_off", help_text, backing_off[why], why=why)
        gauge("refuse_filters", "Filters of declined offers", len(cluster.filters))
        uses: dict[str, Counter[str]] = {
            "total": Counter(),
            "free": Counter(),
            "offered": Counter(),
            "allocated": Counter(),
        }
        for books in cluster.ledger.books.values():
            if books.counted:
                uses["total"].update(holding_total(books.total).amounts())
                uses["free"].update(holding_total(books.free).amounts())
                uses["offered"].update(books.offered_total().amounts())
                uses["allocated"].update(books.allocated_total().amounts())
        for use, amounts in uses.items():
            for kind in sorted(uses["total"]):
                scale = 1 if kind in BYTE_KINDS else MILLI
                help_text = "Resources of reachable agents; bytes for mem and disk"
                gauge("resources", help_text, amounts[kind] / scale, kind=kind, use=use)
        if self._taken % REFUSALS_EVERY == 0:
            self._refusals = count_refusals(cluster, MAX_SAMPLED_PAIRS)
        self._taken += 1
        for (role, reason), count in sorted(self._refusals.items()):
            help_text = "Pairs of a framework in a role and an agent without an offer, by reason; an estimate where there are many"
            gauge("offer_refusals", help_text, count, role=role, reason=reason.name.lower())
        counters = cluster.counters
        for outcome in ("made", "accepted", "declined", "rescinded", "expired"):
            counter("offers", "Offers by outcome", getattr(counters, f"offers_{outcome}"), outcome=outcome)
        for kind, amount_ms in sorted(counters.unused.items()):
            scale = 1000 * (1 if kind in BYTE_KINDS else MILLI)
            help_text = "Resources that were on offer and came back unused, times the seconds they were out"
            counter("offered_unused_resource_seconds", help_text, amount_ms / scale, kind=kind)
        counter("calls_refused", "Accepts that were refused", counters.calls_refused)
        counter("allocation_cycles", "Allocation cycles", counters.cycles)
        counter("tasks_launched", "Tasks launched", counters.tasks_launched)
        counter(
            "tasks_preempted",
            "Tasks that were given notice, for what they run on is wanted back",
            counters.tasks_preempted,
        )
        for task_state, count in sorted(counters.tasks_ended.items()):
            counter("tasks_ended", "Tasks ended, by state", count, state=task_state.name.lower())
        counter("agent_heartbeats", "Answers of agents to pings", counters.agent_heartbeats)
        for outcome, count in sorted(counters.comparisons.items()):
            help_text = "Digests of agents' books, compared with what the master believes"
            counter("comparisons", help_text, count, outcome=outcome)
        for outcome, count in sorted(counters.executor_messages.items()):
            counter(
                "executor_messages",
                "Messages between frameworks and executors, by what came of them",
                count,
                outcome=outcome,
            )
        for what, count in sorted(counters.repairs.items()):
            counter("repairs", "Differences of views that were repaired, here or by agents", count, what=what)
        conditions = Counter(
            (device.condition or device.health).name.lower()
            for agent in cluster.agents.values()
            for device in agent.devices.values()
        )
        for condition, count in sorted(conditions.items()):
            gauge("devices", "Devices by condition", count, condition=condition)
        for agent in cluster.agents_in_order:
            if agent.info.metrics_address:
                labels = {"agent_id": agent.agent_id, "hostname": agent.info.hostname}
                snapshot.agents.append((agent.info.metrics_address, labels))
        counter("agent_registrations", "Agents that registered", counters.agent_registrations)
        counter("agents_made_unreachable", "Agents given up", counters.agents_made_unreachable)
        counter("framework_subscriptions", "Frameworks that subscribed", counters.framework_subscriptions)
        counter("events", "Events stepped", driver.events_total)
        counter("stalls", "Times that the process did not run for a while", driver.stalls_total)
        self._snapshot = snapshot
