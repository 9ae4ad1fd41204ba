"""Gangs in a large cluster: how long the answer takes, and how long a refusal. Milliseconds of the master's processor time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from bursar.core.clock import Instant
from bursar.core.devices import Device, DeviceLink
from bursar.core.ids import AgentId, ConnectionId, DeviceUuid, FrameworkId
from bursar.core.machine import TimePassed
from bursar.core.messages.agent import AgentInfo, Register
from bursar.core.messages.framework import FrameworkInfo, Subscribe
from bursar.core.messages.gangs import Bundle, GangGroup, GangState, GangTopology, GangUpdate, RequestGang
from bursar.core.resources import ReservedResources, ResourceRequest, Resources
from bursar.master.effects import SendToFramework
from bursar.master.events import AgentRegistering, FrameworkCalled
from bursar.master.flags import FlagValues
from bursar.master.machine import MasterMachine
from bursar.master.records import Durable
from bursar.runtime.memory import calm_garbage_collector

pytestmark = pytest.mark.benchmark

AGENTS = 10_000
GPUS = 8
#: Racks of twenty agents.
PER_RACK = 20
TASK = ResourceRequest({"cpus": 16_000, "mem": 128 << 30}, gpus=GPUS)


class Cluster:
    """A master's machine with agents of eight linked GPUs, and a framework that wants nothing but gangs."""

    def __init__(self) -> None:
        self.now = Instant(1_000_000, 1_700_000_000_000)
        self.machine = MasterMachine(Durable("cluster", 1), FlagValues.defaults(), self.now)
        for n in range(AGENTS):
            # Eight kinds of machines: they differ in memory.
            register = Register(agent(n, mem=(256 + n % 8) << 30))
            self.machine.step(AgentRegistering(ConnectionId(n + 1), register, ()), self.now)
        info = FrameworkInfo(FrameworkId("f"), "1", "f", ("ml",), capabilities=("GPU_RESOURCES",))
        self.say(Subscribe(info, "", ("ml",)))
        self.say(None)
        self.asked = 0
        calm_garbage_collector()

    def say(self, call: Any) -> tuple[list[Any], float]:
        """One call, or the passing of no time: what the framework hears, and milliseconds."""
        event = TimePassed() if call is None else FrameworkCalled(ConnectionId(AGENTS + 1), call)
        begun = time.process_time()
        effects = self.machine.step(event, self.now)
        took = (time.process_time() - begun) * 1e3
        return [effect.event for effect in effects if isinstance(effect, SendToFramework)], took

    def ask(self, *groups: GangGroup, **topology: Any) -> tuple[float, float, list[Any]]:
        """Ask for a gang: milliseconds until it is waiting or refused, milliseconds until its bundle, and what was heard."""
        self.asked += 1
        request = RequestGang(f"g{self.asked}", "ml", groups, GangTopology(**topology), 60_000)
        heard, first = self.say(request)
        more, second = self.say(None)
        return first, second, heard + more


def agent(n: int, mem: int) -> AgentInfo:
    uuids = [DeviceUuid(f"GPU-{n:05}-{index}") for index in range(GPUS)]
    devices = tuple(
        Device(uuid, "gpus", index=index, links=tuple(DeviceLink(peer, "nvlink", 10) for peer in uuids if peer != uuid))
        for index, uuid in enumerate(uuids)
    )
    resources = Resources({"cpus": 128_000, "mem": mem}, (), frozenset(uuids))
    return AgentInfo(
        AgentId(f"agent-{n:05}"),
        1,
        "boot",
        hostname=f"host-{n:05}",
        attributes={"rack": f"r{n // PER_RACK}"},
        resources=(ReservedResources((), resources),),
        devices=devices,
    )


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def row(figures: Any) -> Callable[..., None]:
    def add(what: str, ours_ms: float, goal_ms: float) -> None:
        figures.add(f"gangs among {AGENTS:,} agents", what=what, ours_ms=ours_ms, goal_ms=goal_ms)

    return add


@pytest.mark.parametrize("topology", [{}, {"nvlink_clique": True}, {"same_attribute": "rack"}], ids=str)
def test_a_bundle(cluster: Cluster, row: Any, topology: dict[str, Any]) -> None:
    count = PER_RACK if topology.get("same_attribute") else 64
    best = 1e9
    for _ in range(5):
        first, second, heard = cluster.ask(GangGroup(TASK, count), **topology)
        assert any(isinstance(message, Bundle) and len(message.offers) == count for message in heard)
        best = min(best, first + second)
    row(f"{count} whole agents {topology or ''}, asked and answered, best of 5", best, 50)


@pytest.mark.parametrize(
    ("what", "groups", "topology"),
    [
        ("a task larger than any agent", (GangGroup(ResourceRequest({"cpus": 500_000}), 2),), {}),
        ("more GPUs linked than any agent has", (GangGroup(ResourceRequest({}, gpus=9), 2),), {"nvlink_clique": True}),
        ("more in one rack than any has", (GangGroup(TASK, PER_RACK + 1),), {"same_attribute": "rack"}),
        (
            "three shapes, of which one has no room",
            (
                GangGroup(TASK, 8),
                GangGroup(ResourceRequest({"cpus": 1000}), 8),
                GangGroup(ResourceRequest({"mem": 264 << 30}), 8),
            ),
            {},
        ),
    ],
)
def test_a_refusal(
    cluster: Cluster, row: Any, what: str, groups: tuple[GangGroup, ...], topology: dict[str, Any]
) -> None:
    best = 1e9
    for _ in range(5):
        first, _, heard = cluster.ask(*groups, **topology)
        assert [message.state for message in heard if isinstance(message, GangUpdate)] == [GangState.REFUSED]
        best = min(best, first)
    row(f"refused at once: {what}, best of 5", best, 50)
