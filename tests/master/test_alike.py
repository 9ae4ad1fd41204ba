"""What is repeated for agents and clients that are alike is what would have been decided: a cycle that decides everything anew makes
the same offers, counts the same decisions of rules, and leaves the same books.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bursar.core.clock import Instant
from bursar.core.devices import Device
from bursar.core.ids import AgentId, ConnectionId, DeviceUuid, FrameworkId
from bursar.core.machine import TimePassed
from bursar.core.messages.agent import AgentInfo, Register
from bursar.core.messages.framework import GPU_RESOURCES, FrameworkInfo, OfferSettings, Revive, Subscribe
from bursar.core.messages.offers import Decline, Demand, Filters, Shape
from bursar.core.messages.operator import AddRuleRequest, Quota, SetQuotasRequest
from bursar.core.messages.rules import Rule, RuleAction
from bursar.core.resources import PortRange, ReservedResources, ResourceRequest, Resources
from bursar.master.allocator.alike import Alike
from bursar.master.allocator.cycle import Cycle, _Turn
from bursar.master.events import AgentRegistering, FrameworkCalled, OperatorCalled
from bursar.master.flags import FlagValues
from bursar.master.machine import MasterMachine
from bursar.master.records import Durable

ROLES = ["a", "a/b", "c"]
shapes = st.builds(
    Shape,
    st.sampled_from(ROLES),
    st.builds(ResourceRequest, st.fixed_dictionaries({"cpus": st.integers(1, 2)}), gpus=st.integers(0, 1)),
    st.sampled_from([2, 5, 9, 1000]),
)
texts = st.lists(st.sampled_from(["cpus>=2", "rack=r1", "!rack", "gpus>=1", "gpus<=1", "hostname=h3"]), max_size=2)
#: Roles, stated demand, constraints.
frameworks = st.tuples(st.sampled_from(ROLES), st.lists(shapes, max_size=3), texts, st.booleans())
#: CPUs, GPUs, rack; several of few kinds.
kinds = st.tuples(st.sampled_from([3, 8]), st.sampled_from([0, 0, 2, 4]), st.sampled_from([None, "r1", "r2"]))
agents = st.lists(kinds, min_size=1, max_size=2).flatmap(
    lambda some: st.lists(st.sampled_from(some), min_size=3, max_size=9)
)
quotas = st.builds(
    Quota,
    st.sampled_from(ROLES),
    st.dictionaries(st.sampled_from(["cpus", "gpus"]), st.sampled_from([4000, 12000]), max_size=1),
    st.dictionaries(st.sampled_from(["cpus", "gpus"]), st.sampled_from([15000, 40000]), max_size=1),
)
hiding = st.sampled_from([None, ("role=a/**", "rack=r1"), ("role=c", "cpus>=4"), ("role=a|c", "hostname=h*")])


class Scene:
    """A master, and a clock that the test turns."""

    def __init__(self, agents: Iterable[Any], frameworks: Iterable[Any], quotas: Iterable[Quota], hiding: Any) -> None:
        self.now = Instant(1_000_000, 1_700_000_000_000)
        self.machine = MasterMachine(Durable("cluster", 1), FlagValues.defaults(), self.now)
        self.cluster = self.machine.cluster
        self.connections = (ConnectionId(number) for number in range(1, 1 << 30))
        self.streams: dict[FrameworkId, ConnectionId] = {}
        for number, (cpus, gpus, rack) in enumerate(agents):
            uuids = [DeviceUuid(f"GPU-{number}-{index}") for index in range(gpus)]
            amounts = Resources({"cpus": 1000 * cpus, "mem": 1 << 30}, (PortRange(1, 9),), frozenset(uuids))
            info = AgentInfo(
                AgentId(f"agent-{number}"),
                1,
                "boot",
                hostname=f"h{number}",
                attributes={"rack": rack} if rack else {},
                resources=(ReservedResources((), amounts),),
                devices=tuple(Device(uuid, "gpus", index=i, numa_node=i // 2) for i, uuid in enumerate(uuids)),
            )
            self.step(AgentRegistering(next(self.connections), Register(info), ()))
        for request in quotas:
            self.step(OperatorCalled(next(self.connections), SetQuotasRequest("", (request,), True), "operator"))
        if hiding is not None:
            rule = Rule("hides", RuleAction.HIDE_AGENT, framework=hiding[0], agent=hiding[1])
            self.step(OperatorCalled(next(self.connections), AddRuleRequest(rule), "operator"))
        for number, (role, wanted, constraints, gpus) in enumerate(frameworks):
            framework_id = FrameworkId(f"framework-{number}")
            info = FrameworkInfo(
                framework_id,
                "1",
                f"f{number}",
                (role,),
                capabilities=(GPU_RESOURCES,) if gpus else (),
                offer_settings=(OfferSettings(role, tuple(constraints)),) if constraints else (),
            )
            mine = tuple(
                Shape(
                    role,
                    ResourceRequest({"cpus": 1000 * one.resources.scalars["cpus"]}, gpus=one.resources.gpus),
                    one.count,
                )
                for one in wanted
            )
            self.streams[framework_id] = next(self.connections)
            demand = Demand(1, mine) if mine else Demand()
            self.step(FrameworkCalled(self.streams[framework_id], Subscribe(info, demand=demand)))

    def step(self, event: Any) -> None:
        self.machine.step(event, self.now)

    def cycle(self) -> Any:
        """A full cycle, and what there is to see of it."""
        self.cluster.deadlines.set(("cycle", ""), self.now.monotonic_ms)
        self.step(TimePassed())
        self.machine.check()
        return (
            [(o.offer, dict(o.promised)) for o in self.cluster.offers.values()],
            self.cluster.visibility.decisions,
            {agent_id: books.free for agent_id, books in self.cluster.ledger.books.items()},
            [(node.path, node.count, dict(node.held)) for node in self.cluster.shares.nodes()],
        )

    def decline_some(self) -> None:
        """Every second framework declines, and is not offered the same for a while."""
        for framework_id in sorted(self.streams)[::2]:
            offers = tuple(sorted(self.cluster.frameworks[framework_id].offers))
            self.step(FrameworkCalled(self.streams[framework_id], Decline(offers, Filters(60_000))))


def _decide_all(self: Cycle, agents: Iterable[Any]) -> Iterator[_Turn]:
    for agent in agents:
        yield _Turn(self, agent, None)


@settings(max_examples=60, deadline=None)
@given(
    agents,
    st.lists(frameworks, min_size=1, max_size=6),
    st.lists(quotas, max_size=2, unique_by=lambda quota: quota.role),
    hiding,
)
def test_what_is_repeated_is_what_would_have_been_decided(
    agents: list[Any], frameworks: list[Any], quotas: list[Quota], hiding: Any
) -> None:
    repeating, deciding = (Scene(agents, frameworks, quotas, hiding) for _ in range(2))
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Cycle, "_offer_firsts", _decide_all)
            patch.setattr(Alike, "recall", lambda *_: None)
            patch.setattr(Alike, "place_for", lambda *_: ({}, 0))
            expected = deciding.cycle()
        assert repeating.cycle() == expected
        for scene in (repeating, deciding):
            scene.decline_some()


def test_what_everybody_declined_is_passed_over_without_asking_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene([(8, 0, None)] * 4, [("a", [], [], False), ("a/b", [], [], False), ("c", [], [], False)], [], None)
    for _ in range(4):
        scene.cycle()
        for framework_id, stream in scene.streams.items():
            offers = tuple(sorted(scene.cluster.frameworks[framework_id].offers))
            scene.step(FrameworkCalled(stream, Decline(offers, Filters(60_000))))
    assert not scene.cluster.offers and len(scene.cluster.filters) == 4 * 3
    scene.cycle()
    with monkeypatch.context() as patch:
        patch.delattr(Cycle, "_recall")
        patch.delattr(Cycle, "_decide")
        assert scene.cycle()[0] == []
    # One of them changes its mind, and is asked.
    scene.step(FrameworkCalled(scene.streams[FrameworkId("framework-1")], Revive()))
    assert {offer.framework_id for offer, _ in scene.cycle()[0]} == {"framework-1"}
