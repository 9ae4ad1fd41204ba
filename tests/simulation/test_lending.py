"""Lending under the judges: what is lent goes to borrowers alone, and comes back to whom it is kept for, whatever happens."""

from __future__ import annotations

from typing import Any

import pytest

import bursar.master.lending as master_lending
import bursar.master.operations as master_operations
from bursar.agent.machine import AgentMachine
from bursar.core.messages import operator as op
from bursar.core.resources import ResourceRequest
from bursar.core.tasks import StatusReason
from bursar.master.allocator import lend_cycle
from bursar.master.machine import MasterMachine
from bursar.master.records import LendingRecorded
from bursar.master.state import Turn
from bursar.simulation.faults import Faults
from bursar.simulation.frameworks import Greedy, Hog
from bursar.simulation.world import SimulationFailure, World

RESTLESS = Faults(
    master_crashes_per_minute=4,
    master_down_ms=500,
    agent_crashes_per_minute=4,
    agent_down_ms=500,
    stream_breaks_per_minute=4,
    framework_crashes_per_minute=2,
    device_failures_per_minute=4,
    container_losses_per_minute=4,
)


class Lasting(Greedy):
    """Borrows what it can, mostly for ever."""

    run_ms = (20_000, None, None)

    def update(self) -> None:
        """It stays what it is."""

    def on_subscribed(self) -> None:
        """And never kills its own."""


class Clinging(Hog):
    """Borrows all of it in one task, for ever."""

    run_ms = (None,)  # type: ignore[assignment]


def lending_world(seed: int, faults: Faults = RESTLESS, **flags: str) -> World:
    """Three agents that keep half of what they have for research and lend it; research comes later, again and again."""
    world = World(seed, faults=faults, flags={"preemption_notice": "2s", "offer_timeout": "5s"} | flags)
    for gpus in (4, 2, 0):
        world.add_agent(gpus, static=("research", gpus))
    for at_ms in (1_000, 5_000, 10_000):
        world.timeline.after(at_ms, world.operator.lend_everything)
    world.add_framework(Lasting, "eng", borrows=True)
    world.add_framework(Lasting, "eng/backend", gpus=False, borrows=True)
    world.add_framework(Lasting, "eng", gpus=False)
    world.timeline.after(15_000, come_later, world, "research", ResourceRequest({"cpus": 500}, (), 1))
    world.timeline.after(20_000, come_later, world, "research/vision", ResourceRequest({"cpus": 1_500}))
    return world


def come_later(world: World, role: str, shape: ResourceRequest) -> None:
    """Somebody for whom it is kept."""
    world.add_session(role, shape, 40).start()


def fails(seeds: int = 4, steps: int = 2_500, faults: Faults = RESTLESS) -> str:
    """Why such a world fails; an empty text where it does not."""
    for seed in range(seeds):
        try:
            lending_world(seed, faults).run(steps)
        except SimulationFailure as failure:
            (why,) = [line for line in str(failure).splitlines() if line.startswith("why: ")]
            return why
    return ""


@pytest.mark.parametrize("seed", range(4))
def test_what_is_lent_comes_back(seed: int) -> None:
    world = lending_world(seed)
    summary = world.run(4_000)
    assert summary.verdicts["what is lent is lent"] > 10
    assert summary.verdicts["borrowed is never used as if it were not"] > 5
    assert summary.verdicts["a notice is followed by the end"] > 5
    machine = world.master.machine
    assert machine is not None
    reasons = {task.kill_reason for task in machine.cluster.tasks.values()}
    assert StatusReason.REVOKED in reasons


def test_an_operator_who_changes_his_mind_in_the_middle() -> None:
    world = lending_world(7)
    for at_ms in range(5_000, 60_000, 5_000):
        request = op.LendReservationsRequest(f"mind-{at_ms}", "", "research", withdraw=at_ms % 10_000 == 0)
        world.timeline.after(at_ms, world.operator._send, request, 0)
    world.run(4_000)


@pytest.fixture
def without_own_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machines' own invariants are off: the judges outside must do."""
    monkeypatch.setattr(MasterMachine, "check", lambda self: None)
    monkeypatch.setattr(AgentMachine, "check", lambda self: None)


# --- judges must be able to condemn ---


def test_a_lend_that_is_never_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(seed: int) -> None:
        world = World(seed, flags={"preemption_notice": "2s"}, faults=Faults())
        world.add_agent(4, static=("research", 4))
        world.timeline.after(1_000, world.operator.lend_everything)
        world.add_framework(Clinging, "eng", borrows=True)
        world.timeline.after(15_000, come_later, world, "research", ResourceRequest({"cpus": 500}, (), 1))
        world.run(150)

    for seed in range(4):
        run(seed)
    monkeypatch.setattr(master_lending, "reclaim", lambda *_: None)
    with pytest.raises(SimulationFailure, match="could take one"):
        for seed in range(4):
            run(seed)


def test_a_notice_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master_lending, "notice_over", lambda *_: None)
    assert "nobody ends it" in fails()


@pytest.mark.usefixtures("without_own_checks")
def test_a_master_that_forgets_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master_lending, "recover", lambda *_: None)
    why = fails()
    assert "nobody ends it" in why or "before the restart" in why or "could take one" in why


@pytest.mark.usefixtures("without_own_checks")
def test_borrowed_and_used_as_if_it_were_not(monkeypatch: pytest.MonkeyPatch) -> None:
    original = master_operations.AssignedTask

    def for_good(*words: Any) -> Any:
        return original(*words[:5], False)

    monkeypatch.setattr(master_operations, "AssignedTask", for_good)
    assert "for good" in fails()


@pytest.mark.usefixtures("without_own_checks")
def test_lent_to_those_who_do_not_give_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lend_cycle, "REVOCABLE_RESOURCES", "FROM_THE_FUTURE")
    monkeypatch.setattr("bursar.master.offers.REVOCABLE_RESOURCES", "FROM_THE_FUTURE")
    assert "lacks REVOCABLE_RESOURCES" in fails()


@pytest.mark.usefixtures("without_own_checks")
def test_lent_although_nobody_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Turn.persist
    monkeypatch.setattr(
        Turn, "persist", lambda self, record: None if isinstance(record, LendingRecorded) else original(self, record)
    )
    assert "and lent is []" in fails()
