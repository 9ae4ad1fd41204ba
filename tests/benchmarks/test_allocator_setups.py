"""The set-ups in which Mesos' own allocator was measured, on ours, the two side by side.

Mesos: apache/mesos c1b42f79, the unmodified hierarchical allocator, g++ 12 `-O2`, on two cores of 2.6 GHz; milliseconds of the
allocator's processor time. Ours: milliseconds of processor time of the master's machine, the messages to frameworks included.
Agents are `cpus:24;mem:4096;disk:4096;ports:[31000-32000]`, empty; a cycle offers everything, one offer per agent.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bursar.core.clock import Instant
from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, ConnectionId, FrameworkId
from bursar.core.machine import TimePassed
from bursar.core.messages.agent import AgentInfo, Register
from bursar.core.messages.framework import FrameworkInfo, OfferSettings, Revive, Subscribe
from bursar.core.messages.offers import Decline, Demand, Filters, Shape
from bursar.core.messages.operator import AddRuleRequest, Quota, RoleWeight, SetQuotasRequest, SetWeightsRequest
from bursar.core.messages.rules import Rule, RuleAction
from bursar.core.resources import UNRESERVED, PortRange, ReservedResources, ResourceRequest, Resources
from bursar.master.allocator.shares import Shares
from bursar.master.effects import Reply
from bursar.master.events import AgentRegistering, FrameworkCalled, OperatorCalled
from bursar.master.flags import FlagValues
from bursar.master.ledger import Ledger
from bursar.master.machine import MasterMachine
from bursar.master.records import Durable
from bursar.runtime.memory import calm_garbage_collector

pytestmark = pytest.mark.benchmark

YEAR_MS = 365 * 86_400_000


def parts() -> tuple[ReservedResources, ...]:
    """What one agent has: objects of its own, as they come from the network."""
    scalars = {"cpus": 24_000, "mem": 4096 << 20, "disk": 4096 << 20}
    return (ReservedResources((), Resources(scalars, (PortRange(31_000, 32_000),))),)


class Cluster:
    """A master's machine with agents and frameworks, and a clock that the benchmark turns."""

    def __init__(self, agents: int, frameworks: int, roles: int = 1) -> None:
        self.now = Instant(1_000_000, 1_700_000_000_000)
        self.machine = MasterMachine(Durable("cluster", 1), FlagValues.defaults(), self.now)
        self.connections = iter(range(1, 1 << 30))
        self.frameworks: dict[FrameworkId, ConnectionId] = {}
        self.add_agents(agents)
        self.add_frameworks(frameworks, roles)
        calm_garbage_collector()

    def step(self, event: Any) -> None:
        self.machine.step(event, self.now)

    def add_agents(self, count: int) -> float:
        """Register so many; milliseconds."""
        events = [
            AgentRegistering(
                ConnectionId(next(self.connections)),
                Register(AgentInfo(AgentId(f"agent-{n:05}"), 1, "boot", hostname=f"host-{n:05}", resources=parts())),
                (),
            )
            for n in range(count)
        ]
        return milliseconds(lambda: [self.step(event) for event in events])

    def add_frameworks(self, count: int, roles: int, *, picky: bool = False) -> float:
        """Subscribe so many, evenly in so many roles (one role is `*`); milliseconds. Picky: with a demand of whole agents and
        offer constraints.
        """
        shape = ResourceRequest({"cpus": 24_000, "mem": 4096 << 20, "disk": 4096 << 20})
        events = []
        for n in range(count):
            role = "*" if roles == 1 else f"role-{n % roles:04}"
            framework_id = FrameworkId(f"framework-{n:04}")
            connection = self.frameworks[framework_id] = ConnectionId(next(self.connections))
            settings = (OfferSettings(role, ("cpus>=1,!rack",)),) if picky else ()
            info = FrameworkInfo(framework_id, "1", f"f{n}", (role,), offer_settings=settings)
            demand = Demand(1, (Shape(role, shape, 1_000_000),)) if picky else Demand()
            events.append(FrameworkCalled(connection, Subscribe(info, demand=demand)))
        return milliseconds(lambda: [self.step(event) for event in events])

    def cycle(self, *, full: bool = True) -> tuple[int, float]:
        """Run a cycle now: (offers made, milliseconds)."""
        cluster = self.machine.cluster
        before = cluster.counters.offers_made
        if full:
            cluster.deadlines.set(("cycle", ""), self.now.monotonic_ms)
        took = milliseconds(lambda: self.step(TimePassed()))
        return cluster.counters.offers_made - before, took

    def decline_all(self, refuse_ms: int) -> float:
        """Every framework declines everything, in one call each; milliseconds."""
        frameworks = self.machine.cluster.frameworks
        events = [
            FrameworkCalled(connection, Decline(tuple(sorted(frameworks[framework_id].offers)), Filters(refuse_ms)))
            for framework_id, connection in self.frameworks.items()
        ]
        return milliseconds(lambda: [self.step(event) for event in events])

    def ask(self, request: Any) -> float:
        """An operator asks, and is not refused; milliseconds."""
        effects: list[Any] = []
        event = OperatorCalled(next(self.connections), request, "operator")
        took = milliseconds(lambda: effects.extend(self.machine.step(event, self.now)))
        (reply,) = [effect for effect in effects if isinstance(effect, Reply)]
        assert not isinstance(reply.answer, ErrorDetail), reply.answer
        return took

    def forget_filters(self) -> None:
        """Let short filters end, unseen."""
        self.now = Instant(self.now.monotonic_ms + 1001, self.now.wall_ms + 1001)
        self.machine.cluster.filters.expire(self.now.monotonic_ms)


def milliseconds(work: Callable[[], Any]) -> float:
    begun = time.process_time()
    work()
    return (time.process_time() - begun) * 1e3


@pytest.fixture
def row(figures: Any) -> Callable[..., None]:
    def add(setup: str, mesos_ms: str, ours_ms: float, goal_ms: float, **more: Any) -> None:
        figures.add("allocator, as measured of Mesos", setup=setup, mesos_ms=mesos_ms, ours_ms=ours_ms, goal_ms=goal_ms)

    return add


@pytest.mark.parametrize(
    ("agents", "frameworks", "roles", "mesos", "goal"),
    [
        (1_000, 50, 1, "14", 6),
        (10_000, 200, 1, "258", 50),
        (10_000, 1_000, 1, "389", 60),
        (10_000, 1_000, 1_000, "994", 70),
        (50_000, 1_000, 1, "1,686", 350),
    ],
)
def test_full_cycle(row: Any, agents: int, frameworks: int, roles: int, mesos: str, goal: float) -> None:
    cluster = Cluster(agents, frameworks, roles)
    cycles, backs = [], []
    for _ in range(3):
        made, took = cluster.cycle()
        assert made == agents
        cycles.append(took)
        backs.append(cluster.decline_all(0))
        cluster.forget_filters()
    name = f"full cycle, {agents:,} × {frameworks:,}, {roles:,} roles"
    row(f"{name}, the first", mesos, cycles[0], goal)
    row(f"{name}, best of 3", mesos, min(cycles), goal)
    if agents == 10_000 and frameworks == 200:
        row("taking back 10,000 offers", "260", min(backs), 25)


@pytest.mark.parametrize(
    ("agents", "frameworks", "mesos", "goal"),
    [(1_000, 50, "14", 10), (10_000, 200, "258", 90), (10_000, 1_000, "389", 100)],
)
def test_everything_on(row: Any, agents: int, frameworks: int, mesos: str, goal: float) -> None:
    """With a rule that speaks of every agent, a limit, a demand and constraints of every framework."""
    cluster = Cluster(agents, 0)
    cluster.add_frameworks(frameworks, 1, picky=True)
    rule = Rule("old", RuleAction.HIDE_AGENT, framework="lacks=NOTHING,role=nobody/**", agent="cpus>=1")
    cluster.ask(AddRuleRequest(rule))
    cluster.ask(SetQuotasRequest("", (Quota("*", {}, {"cpus": 24_000 * agents}),), True))
    cycles = []
    for _ in range(3):
        made, took = cluster.cycle()
        assert made == agents
        cycles.append(took)
        cluster.decline_all(0)
        cluster.forget_filters()
    row(f"the same with rules, limits, demand and constraints, {agents:,} × {frameworks:,}", mesos, min(cycles), goal)


def test_nothing_left(row: Any) -> None:
    cluster = Cluster(10_000, 1_000, 100)
    cluster.cycle()
    made, took = cluster.cycle()
    assert made == 0
    row("nothing left to offer, 10,000 × 1,000, 100 roles", "57–68", took, 2)


@pytest.mark.parametrize(("agents", "mesos", "goal"), [(1_000, "418", 20), (10_000, "5,559", 150)])
def test_decline_storm(row: Any, agents: int, mesos: str, goal: float) -> None:
    cluster = Cluster(agents, 50)
    for _ in range(51):
        made, _ = cluster.cycle()
        if made == 0:
            break
        cluster.decline_all(YEAR_MS)
    assert made == 0 and len(cluster.machine.cluster.filters) == agents * 50
    took = min(cluster.cycle()[1] for _ in range(3))
    row(f"everything declined for a year, {agents:,} × 50, a full cycle", mesos, took, goal)


def test_revive(row: Any) -> None:
    cluster = Cluster(10_000, 1_000)
    cluster.cycle()
    cluster.decline_all(YEAR_MS)

    def revive() -> None:
        for connection in cluster.frameworks.values():
            cluster.step(FrameworkCalled(connection, Revive()))

    took = milliseconds(revive)
    row("every framework revived once, 10,000 × 1,000", "3,559", took, 100)
    made, took = cluster.cycle(full=False)
    assert made == 10_000
    row("… and the cycle that follows", "–", took, 60)


def test_adding(row: Any) -> None:
    cluster = Cluster(0, 0)
    row("adding 10,000 agents, their whole registration", "130", cluster.add_agents(10_000), 130)
    ledger, totals = Ledger(Shares()), [{UNRESERVED: part.resources} for _ in range(10_000) for part in parts()]

    def open_books() -> None:
        for n, total in enumerate(totals):
            ledger.add_agent(AgentId(f"agent-{n:05}"), total, present=True)

    row("… of it the books and shares", "130", milliseconds(open_books), 130)
    row("adding 1,000 frameworks in 100 roles to them", "5,889", cluster.add_frameworks(1_000, 100), 50)


def test_one_agent_freed(row: Any) -> None:
    cluster = Cluster(10_000, 1_000)
    cluster.cycle()
    times = []
    for framework_id, connection in list(cluster.frameworks.items())[:50]:
        offers = cluster.machine.cluster.frameworks[framework_id].offers
        cluster.step(FrameworkCalled(connection, Decline((min(offers),), Filters(YEAR_MS))))
        made, took = cluster.cycle(full=False)
        assert made == 1
        times.append(took)
    row("one agent freed in 10,000 × 1,000, until it is offered", "–", sorted(times)[len(times) // 2], 0.2)


def test_quota(row: Any) -> None:
    """One framework in each role, with a quota (guarantee and limit) of half an agent or of two."""
    cluster = Cluster(3_000, 3_000, 3_000)
    quotas = [
        Quota(f"role-{n:04}", amounts, amounts)
        for n in range(3_000)
        for amounts in ({"cpus": 12_000, "mem": 2048 << 20} if n % 2 else {"cpus": 48_000, "mem": 8192 << 20},)
    ]
    row("setting 3,000 quotas, force", "–", cluster.ask(SetQuotasRequest("", tuple(quotas), True)), 250)
    _, took = cluster.cycle()
    row("3,000 agents, 3,000 roles with quota, first cycle", "14,682", took, 60)
    made, took = cluster.cycle()
    assert made == 0
    row("… and the next, forced", "14,090", took, 5)


def test_changes(row: Any) -> None:
    """What an operator changes on 10,000 agents with everything offered, until it is answered and all is offered again."""
    cluster = Cluster(10_000, 1_000, 100)
    cluster.cycle()
    changes = {
        "a weight": SetWeightsRequest("", (RoleWeight("role-0001", 3000),)),
        "a limit": SetQuotasRequest("", (Quota("role-0002", {}, {"cpus": 240_000}),), True),
        "a guarantee": SetQuotasRequest("", (Quota("role-0003", {"cpus": 2_400_000}, {}),), True),
    }
    for name, request in changes.items():
        took = cluster.ask(request)
        row(f"{name} changed on 10,000 agents", "–", took + cluster.cycle(full=False)[1], 250)


@pytest.mark.parametrize(("what", "roles"), [("a rule of one role", 1), ("a rule of half of all roles", 50)])
def test_rule_changed(row: Any, what: str, roles: int) -> None:
    """It hides every second agent; what is forbidden now is rescinded, and offered to others."""
    cluster = Cluster(10_000, 1_000, 100)
    cluster.cycle()
    offers = cluster.machine.cluster.offers
    before = len(offers)
    covered = " | ".join(f"role-{n:04}" for n in range(roles))
    rule = Rule("odd", RuleAction.HIDE_AGENT, framework=f"role={covered}", agent="hostname=*1|*3|*5|*7|*9")
    took = cluster.ask(AddRuleRequest(rule))
    rescinded = before - len(offers)
    assert rescinded
    row(f"{what} added on 10,000 agents, {rescinded:,} offers rescinded", "–", took, 250)
    made, took = cluster.cycle(full=False)
    assert made == rescinded
    row("… and the cycle that follows", "–", took, 250)


def test_memory(figures: Any) -> None:
    """Of Python's own objects, without the text of ids that any program would have."""
    gc.collect()
    tracemalloc.start()
    cluster = Cluster(2_000, 50)
    gc.collect()
    agents = tracemalloc.get_traced_memory()[0]
    cluster.cycle()
    gc.collect()
    offered = tracemalloc.get_traced_memory()[0]
    cluster.decline_all(YEAR_MS)
    cluster.machine.cluster.expiring_offers.clear()
    gc.collect()
    one = tracemalloc.get_traced_memory()[0]
    for _ in range(9):
        cluster.cycle()
        cluster.decline_all(YEAR_MS)
    cluster.machine.cluster.expiring_offers.clear()
    gc.collect()
    ten = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    figures.add(
        "memory", what="an agent, everything offered", mesos="15–25 KB", ours_bytes=offered / 2_000, goal="6 KB"
    )
    figures.add("memory", what="… of it for the agent itself", mesos="5–6 KB", ours_bytes=agents / 2_000, goal="")
    figures.add("memory", what="a filter", mesos="4–5 KB", ours_bytes=(ten - one) / 18_000, goal="200 B")


def test_memory_of_a_large_cluster(figures: Any) -> None:
    """What the process has resident: a master's machine without its streams and registry."""
    script = (
        "import resource\n"
        "from tests.benchmarks.test_allocator_setups import Cluster\n"
        "def resident(): return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
        "empty = resident()\n"
        "cluster = Cluster(50_000, 1_000)\n"
        "idle = resident()\n"
        "cluster.cycle()\n"
        "print(empty, idle, resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    empty, idle, offered, most = (int(word) / 2**20 for word in done.stdout.split())
    figures.add(
        "memory, 50,000 × 1,000",
        code_mib=empty,
        agents_mib=idle,
        all_offered_mib=offered,
        highest_mib=most,
        goal="1 GiB",
    )
