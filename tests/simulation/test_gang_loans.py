"""Gangs and those who borrow what is held for them, under the judges: what is lent comes back, and gangs go on as if nothing were lent."""

from __future__ import annotations

from typing import Any

import pytest

import bursar.master.operations as master_operations
from bursar.agent.machine import AgentMachine
from bursar.core.resources import ResourceRequest
from bursar.core.tasks import StatusReason
from bursar.master.gangs import line, recalling
from bursar.master.machine import MasterMachine
from bursar.simulation.faults import Faults
from bursar.simulation.frameworks import Ganging, Greedy
from bursar.simulation.world import SimulationFailure, World

RESTLESS = Faults(
    master_crashes_per_minute=3,
    master_down_ms=500,
    agent_crashes_per_minute=3,
    agent_down_ms=500,
    stream_breaks_per_minute=4,
    framework_crashes_per_minute=2,
    container_losses_per_minute=4,
)
#: Each of 4 agents of 8 CPUs as a whole.
WHOLE_AGENT = ResourceRequest({"cpus": 8_000})


class Lasting(Greedy):
    """Borrows what it can, mostly for ever, and kills none of its own."""

    run_ms = (20_000, None, None)

    def update(self) -> None:
        """It stays what it is."""

    def on_subscribed(self) -> None:
        """And never kills."""


def gang_world(seed: int, faults: Faults = RESTLESS, **flags: str) -> World:
    """Four agents; two gangs that need three of them each, small tasks of a minute, and borrowers that never end."""
    flags = {"preemption_notice": "2s", "offer_timeout": "5s", "gang_hold_timeout": "60s"} | flags
    world = World(seed, faults=faults, flags=flags)
    for gpus in (4, 4, 2, 0):
        world.add_agent(gpus, cpus=8_000)
    for role in ("a", "b"):
        world.add_framework(Ganging, role, request=WHOLE_AGENT, tasks=3, run_ms=2_000, sloppy=faults is RESTLESS)
    world.add_session("small", ResourceRequest({"cpus": 1_000}), 400)
    world.add_framework(Lasting, "eng", borrows=True)
    world.add_framework(Lasting, "eng/backend", gpus=False, borrows=True)
    return world


def run_two_big_gangs(minutes: int) -> tuple[World, list[int]]:
    """Two gangs that each need most of the cluster, and later others, whose only use is what is lent in between, for ever if they may."""
    world = World(3, faults=Faults(), flags={"preemption_notice": "2s", "gang_hold_timeout": "60s"})
    for _ in range(4):
        world.add_agent(0, cpus=8_000)
    for role in ("a", "b"):
        world.add_framework(Ganging, role, request=WHOLE_AGENT, tasks=3, run_ms=2_000, sloppy=False)
    world.start()
    world.timeline.after(10_000, begin, world, Lasting, "eng")
    world.timeline.after(10_000, begin, world, Lasting, "eng/backend")
    world.run_for(minutes * 60_000)
    return world, [framework.taken for framework in world.frameworks if isinstance(framework, Ganging)]


def test_two_gangs_that_each_need_most_of_the_cluster_both_go_on_though_all_is_lent() -> None:
    world, taken = run_two_big_gangs(4)
    assert min(taken) > 4, taken
    assert world.checkers.verdicts["what is held while a gang fills is lent"] > 5
    assert world.checkers.verdicts["called back is what completes a gang"] > 5
    machine = world.master.machine
    assert machine is not None
    reasons = {task.kill_reason for task in machine.cluster.tasks.values()}
    assert StatusReason.REVOKED in reasons


def begin(world: World, kind: type[Greedy], role: str) -> None:
    """One more framework, that borrows."""
    world.add_framework(kind, role, borrows=True).start()


@pytest.mark.parametrize("seed", range(2))
def test_loans_of_gangs_under_faults(seed: int) -> None:
    world = gang_world(seed)
    world.run(2_000)
    verdicts = world.checkers.verdicts
    assert verdicts["what is held while a gang fills is lent"] > 2
    assert verdicts["a hold is of use"] > 10


def fails(seeds: int = 3, steps: int = 2_000, faults: Faults = RESTLESS) -> str:
    """Why such a world fails; an empty text where it does not."""
    for seed in range(seeds):
        try:
            gang_world(seed, faults).run(steps)
        except SimulationFailure as failure:
            (why,) = [text for text in str(failure).splitlines() if text.startswith("why: ")]
            return why
    return ""


@pytest.fixture
def without_own_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machines' own invariants are off: the judges outside must do."""
    monkeypatch.setattr(MasterMachine, "check", lambda self: None)
    monkeypatch.setattr(AgentMachine, "check", lambda self: None)


# --- judges must be able to condemn ---


def test_loans_that_nobody_calls_back_stop_gangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "call_back", lambda *_: None)
    _, taken = run_two_big_gangs(2)
    assert min(taken) <= 3, taken


@pytest.mark.usefixtures("without_own_checks")
def test_what_is_held_given_away_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    original = master_operations.AssignedTask

    def for_good(*words: Any) -> Any:
        return original(*words[:5], False)

    monkeypatch.setattr(master_operations, "AssignedTask", for_good)
    assert "gets for good what is held" in fails()


@pytest.mark.usefixtures("without_own_checks")
def test_called_back_although_the_gang_lacks_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def whatever(cluster: Any, gang: Any) -> Any:
        agent_ids = sorted(cluster.ledger.with_loans)[:1]
        if not agent_ids or cluster.gangs.holder is not gang:
            return None
        (agent_id,) = agent_ids
        loans = recalling.loans_for(cluster, gang, agent_id)
        return ({agent_id: [1]}, {agent_id: {}}, {agent_id: loans}) if loans else None

    monkeypatch.setattr(recalling, "choose", whatever)
    monkeypatch.setattr(recalling, "offer_bundle", lambda *_: False)
    assert "has not all tasks placed" in fails() or "no gang needs it" in fails()
