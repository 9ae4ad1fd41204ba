"""Calling back what is on loan in a large cluster. Milliseconds of the master's processor time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bursar.core.clock import Instant
from bursar.core.ids import AgentId, ConnectionId, FrameworkId, TaskId
from bursar.core.machine import TimePassed
from bursar.core.messages import operator as op
from bursar.core.messages.agent import AgentInfo, Register
from bursar.core.messages.framework import (
    REVOCABLE_RESOURCES,
    FrameworkInfo,
    Offers,
    PreemptionNotice,
    Subscribe,
    UpdateDemand,
)
from bursar.core.messages.gangs import GangGroup, GangTopology, RequestGang
from bursar.core.messages.offers import Accept, Demand, Filters, Launch, Operation, Shape
from bursar.core.resources import Reservation, ReservationType, ReservedResources, ResourceRequest, Resources
from bursar.core.tasks import TaskSpec
from bursar.master.effects import SendToFramework
from bursar.master.events import AgentRegistering, FrameworkCalled, OperatorCalled
from bursar.master.flags import FlagValues
from bursar.master.machine import MasterMachine
from bursar.master.records import Durable
from bursar.runtime.memory import calm_garbage_collector

pytestmark = pytest.mark.benchmark

AGENTS, LOANS = 10_000, 1_000
BORROWER, OWNER = ConnectionId(AGENTS + 1), ConnectionId(AGENTS + 2)
WHOLE = ResourceRequest({"cpus": 8_000})


class Cluster:
    """10,000 agents, kept for `ml` and lent as a whole; others borrow 1,000 of them, a task on each."""

    def __init__(self) -> None:
        self.now = Instant(1_000_000, 1_700_000_000_000)
        self.machine = MasterMachine(Durable("cluster", 1), FlagValues.defaults(), self.now)
        stack = (Reservation(ReservationType.STATIC, "ml"),)
        for n in range(AGENTS):
            resources = (ReservedResources(stack, Resources({"cpus": 8_000, "mem": 32 << 30})),)
            info = AgentInfo(AgentId(f"agent-{n:05}"), 1, "boot", hostname=f"host-{n:05}", resources=resources)
            self.machine.step(AgentRegistering(ConnectionId(n + 1), Register(info), ()), self.now)
        calm_garbage_collector()
        demand = Demand(1, (Shape("eng", WHOLE, LOANS),))
        self.say(BORROWER, subscribe("b", "eng", REVOCABLE_RESOURCES), UpdateDemand(demand))
        self.machine.step(OperatorCalled(0, op.LendReservationsRequest("l", role="ml"), "operator"), self.now)  # type: ignore[arg-type]
        heard = self.pass_time()
        for offer in [offer for event in heard if isinstance(event, Offers) for offer in event.offers]:
            spec = TaskSpec(TaskId(f"t-{offer.agent_id}"), command=("true",), resources=WHOLE)
            launch = Operation("op", Launch((spec,)))
            self.say(BORROWER, Accept(f"c-{offer.offer_id}", (offer.offer_id,), (launch,), Filters(1 << 40)))
        assert sum(task.assigned.revocable for task in self.machine.cluster.tasks.values()) == LOANS
        self.pass_time()

    def say(self, connection: ConnectionId, *calls: Any) -> None:
        for call in calls:
            self.machine.step(FrameworkCalled(connection, call), self.now)

    def pass_time(self) -> list[Any]:
        """What frameworks hear."""
        effects = self.machine.step(TimePassed(), self.now)
        return [effect.event for effect in effects if isinstance(effect, SendToFramework)]

    def occupy(self) -> None:
        """Whom it is kept for uses all the others."""
        demand = Demand(1, (Shape("ml", WHOLE, AGENTS - LOANS),))
        self.say(OWNER, subscribe("o", "ml"), UpdateDemand(demand))
        for event in self.pass_time():
            for offer in event.offers if isinstance(event, Offers) else ():
                if offer.framework_id == "o":
                    spec = TaskSpec(TaskId(f"o-{offer.agent_id}"), command=("true",), resources=WHOLE)
                    launch = Operation("op", Launch((spec,)))
                    self.say(OWNER, Accept(f"c-{offer.offer_id}", (offer.offer_id,), (launch,)))
        self.pass_time()


def subscribe(name: str, role: str, *capabilities: str) -> Subscribe:
    return Subscribe(FrameworkInfo(FrameworkId(name), "1", name, (role,), capabilities=capabilities), "", ())


@contextmanager
def timed(took: list[float]) -> Iterator[None]:
    begun = time.process_time()
    yield
    took.append((time.process_time() - begun) * 1e3)


@pytest.mark.parametrize("who", ["single offers", "a gang"])
def test_calling_back(figures: Any, who: str) -> None:
    cluster = Cluster()
    cluster.occupy()
    took: list[float] = []
    if who == "a gang":
        # More than one message holds would be refused: the largest gang that there may be.
        call: Any = RequestGang("g", "ml", (GangGroup(WHOLE, LOANS),), GangTopology(), 60_000)
    else:
        call = UpdateDemand(Demand(2, (Shape("ml", WHOLE, LOANS),)))
    with timed(took):
        cluster.say(OWNER, call)
    with timed(took):
        heard = cluster.pass_time()
    given = sum(len(event.preemptions) for event in heard if isinstance(event, PreemptionNotice))
    assert given == LOANS
    figures.add(
        f"calling back {LOANS:,} loans among {AGENTS:,} agents",
        by=who,
        ours_ms=sum(took),
        per_loan_us=1000 * sum(took) / LOANS,
    )
