"""Persistent volumes in the simulation: what is written stays, and judges that would see if it did not (VOL-2)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import bursar.agent.machine as agent_machine
from bursar.agent.volume_room import VolumeRoom
from bursar.core.messages.agent import VolumeOrders
from bursar.master import registration, volumes
from bursar.master.machine import MasterMachine
from bursar.master.records import Durable, VolumesRecorded
from bursar.master.state import Agent, Turn
from bursar.simulation.faults import Faults
from bursar.simulation.frameworks import GIB, Keeping
from bursar.simulation.world import SimulationFailure, World

#: Everybody dies now and then, and somebody removes data by hand.
RESTLESS = Faults(
    volume_acts_per_minute=60,
    volume_losses_per_minute=4,
    master_crashes_per_minute=4,
    master_down_ms=500,
    agent_crashes_per_minute=6,
    agent_down_ms=500,
    agent_crash_before_commit_chance=0.005,
    master_crash_after_commit_chance=0.005,
    stream_breaks_per_minute=4,
)


def keeping(seed: int, faults: Faults = RESTLESS) -> World:
    """A small cluster in which most disk is volumes."""
    world = World(seed, faults=faults, flags={"offer_timeout": "5s", "agent_ping_timeout": "2s"})
    world.add_agent(2, disk_bytes=64 * GIB)
    world.add_agent(0, disk_bytes=16 * GIB, static=("research", 0))
    world.add_framework(Keeping, "research")
    world.add_framework(Keeping, "eng")
    return world


def why_it_fails(*, seeds: int = 4, steps: int = 2_500) -> str:
    for seed in range(seeds):
        try:
            keeping(seed).run(steps)
        except SimulationFailure as failure:
            (why,) = [line for line in str(failure).splitlines() if line.startswith("why: ")]
            return why
    return ""


@pytest.fixture
def without_own_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MasterMachine, "check", lambda self: None)
    monkeypatch.setattr(agent_machine.AgentMachine, "check", lambda self: None)


def test_what_is_kept_is_kept() -> None:
    judged: Counter[str] = Counter()
    for seed in range(2):
        judged.update(keeping(seed).run(2_500).verdicts)
    assert judged["a volume is one task's, and recorded"] > 10
    assert judged["data is removed by an order alone"] > 3


def test_a_master_that_has_removed_what_nobody_destroyed(monkeypatch: pytest.MonkeyPatch) -> None:
    def removing(turn: Turn, agent: Agent) -> None:
        agent.volumes.order += 1
        made = tuple(volume.uuid for volume in agent.volumes.kept.values() if volume.made)
        others = tuple(volume.uuid for volume in agent.volumes.kept.values() if not volume.made)
        turn.to_agent(agent, VolumeOrders(agent.volumes.order, others, (), made))

    monkeypatch.setattr(registration, "tell_volumes", removing)
    assert "which nobody has destroyed" in why_it_fails()


def test_an_agent_that_removes_what_a_task_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VolumeRoom, "_used", lambda self: {})
    monkeypatch.setattr(volumes, "_is_held", lambda cluster, agent, uuid: None)
    assert "from under" in why_it_fails()


@pytest.mark.usefixtures("without_own_checks")
def test_a_registry_that_forgets_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Durable.apply

    def forgetful(self: Durable, record: Any) -> None:
        if not isinstance(record, VolumesRecorded):
            right(self, record)

    monkeypatch.setattr(Durable, "apply", forgetful)
    why = why_it_fails()
    assert "of which there is no record" in why or "which nobody has destroyed" in why
