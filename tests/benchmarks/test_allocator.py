"""One full allocation cycle, bookkeeping included, through the master's own machine.

The set-up is that of a clean cycle: empty agents `cpus:24;mem:4096;disk:4096;ports:[31000-32000]`, role `*`, one offer per
agent. Times are of the processor, not of the wall: nothing else runs in this thread.
"""

from __future__ import annotations

import heapq
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from bursar.core.clock import Instant
from bursar.core.ids import AgentId, ConnectionId, FrameworkId
from bursar.core.machine import TimePassed
from bursar.core.messages.agent import AgentInfo, Register
from bursar.core.messages.framework import FrameworkInfo, Subscribe
from bursar.core.messages.offers import Decline, Filters
from bursar.core.resources import PortRange, ReservedResources, Resources
from bursar.master.events import AgentRegistering, FrameworkCalled
from bursar.master.flags import FlagValues
from bursar.master.machine import MasterMachine
from bursar.master.records import Durable
from bursar.runtime.memory import calm_garbage_collector

pytestmark = pytest.mark.benchmark

#: cpus:24;mem:4096;disk:4096;ports:[31000-32000]
RESOURCES = Resources({"cpus": 24_000, "mem": 4096 << 20, "disk": 4096 << 20}, (PortRange(31_000, 32_000),))
ROUNDS = 7
SIZES = [(1_000, 1), (1_000, 50), (10_000, 50)]


class Cluster:
    """A master's machine with agents and frameworks, and a clock that this benchmark turns."""

    def __init__(self, agents: int, frameworks: int) -> None:
        self.now = Instant(1_000_000, 1_700_000_000_000)
        self.machine = MasterMachine(Durable("cluster", 1), FlagValues.defaults(), self.now)
        self.connections = iter(range(1, 1 << 30))
        resources = (ReservedResources((), RESOURCES),)
        for number in range(agents):
            info = AgentInfo(
                AgentId(f"agent-{number:05}"), 1, "boot", hostname=f"host-{number:05}", resources=resources
            )
            self.step(AgentRegistering(ConnectionId(next(self.connections)), Register(info), ()))
        self.frameworks = {}
        for number in range(frameworks):
            framework_id = FrameworkId(f"framework-{number:04}")
            connection = self.frameworks[framework_id] = ConnectionId(next(self.connections))
            self.step(FrameworkCalled(connection, Subscribe(FrameworkInfo(framework_id, "1", f"f{number}"))))

    def step(self, event: Any) -> None:
        self.machine.step(event, self.now)

    def cycle(self) -> int:
        """A full cycle; returns the number of offers that it made."""
        cluster = self.machine.cluster
        before = cluster.counters.offers_made
        cluster.dirty.clear()
        cluster.deadlines.cancel(("allocate", ""))
        cluster.deadlines.set(("cycle", ""), self.now.monotonic_ms)
        self.step(TimePassed())
        return cluster.counters.offers_made - before

    def take_back(self) -> None:
        """Every framework declines everything, and time passes until nothing is filtered."""
        for framework_id, connection in self.frameworks.items():
            offers = tuple(self.machine.cluster.frameworks[framework_id].offers)
            self.step(FrameworkCalled(connection, Decline(offers, Filters(0))))

    def wait(self) -> None:
        """Let the filters expire, unseen."""
        self.now = Instant(self.now.monotonic_ms + 1001, self.now.wall_ms + 1001)
        self.machine.cluster.filters.expire(self.now.monotonic_ms)


def bare_loop(agents: int, frameworks: int) -> None:
    """What any allocator must do, in plain Python: take the poorest framework, move a bag of four amounts, charge it."""
    totals = {"cpus": 24_000 * agents, "mem": 4096 * agents, "disk": 4096 * agents}
    free: dict[int, dict[str, int] | None] = {
        agent: {"cpus": 24_000, "mem": 4096, "disk": 4096} for agent in range(agents)
    }
    held: list[dict[str, int]] = [dict.fromkeys(totals, 0) for _ in range(frameworks)]
    order = [(0, 0, number) for number in range(frameworks)]
    offers: dict[str, tuple[int, int, dict[str, int]]] = {}
    mine: list[set[str]] = [set() for _ in range(frameworks)]
    deadlines: list[tuple[int, int, str]] = []
    begun = time.process_time()
    for agent in range(agents):
        _, count, number = order[0]
        bag = free[agent]
        assert bag is not None
        free[agent] = None
        offer_id = f"1-O{agent}"
        offers[offer_id] = (agent, number, bag)
        mine[number].add(offer_id)
        heapq.heappush(deadlines, (30_000, agent, offer_id))
        share, charged = 0, held[number]
        for kind, amount in bag.items():
            charged[kind] += amount
            share = max(share, charged[kind] * 10**18 // totals[kind])
        heapq.heapreplace(order, (share, count + 1, number))
    bare_loop.seconds = time.process_time() - begun  # type: ignore[attr-defined]


def microseconds(work: Callable[[], Any]) -> float:
    begun = time.process_time()
    work()
    return (time.process_time() - begun) * 1e6


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


@pytest.mark.parametrize(("agents", "frameworks"), SIZES)
def test_full_cycle(figures: Any, agents: int, frameworks: int) -> None:
    calm_garbage_collector()
    begun = time.process_time()
    cluster = Cluster(agents, frameworks)
    adding = (time.process_time() - begun) * 1e6
    cycles, backs, idles, bares = [], [], [], []
    for _ in range(ROUNDS):
        made: list[int] = []
        cycles.append(microseconds(lambda made=made: made.append(cluster.cycle())))  # type: ignore[misc]
        assert made == [agents]
        idles.append(microseconds(lambda: cluster.cycle()))
        backs.append(microseconds(cluster.take_back))
        cluster.wait()
        bare_loop(agents, frameworks)
        bares.append(bare_loop.seconds * 1e6)  # type: ignore[attr-defined]
    cluster.machine.check()
    figures.add(
        "allocator",
        agents=agents,
        frameworks=frameworks,
        cycle_us_per_agent=median(cycles) / agents,
        first_us_per_agent=cycles[0] / agents,
        bare_us_per_agent=median(bares) / agents,
        ratio=median(cycles) / median(bares),
        take_back_us_per_agent=median(backs) / agents,
        nothing_left_us=median(idles),
        add_us_per_agent=adding / agents,
    )
