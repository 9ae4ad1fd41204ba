"""Executors under the judges: agents, streams and executors come and go, and no task outlives its executor."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.agent import executors
from bursar.agent.machine import AgentMachine
from bursar.simulation.faults import Faults
from bursar.simulation.frameworks import Feeding, Greedy
from bursar.simulation.world import SimulationFailure, World

FAULTS = Faults(
    master_crashes_per_minute=4,
    master_down_ms=500,
    agent_crashes_per_minute=6,
    agent_down_ms=2_000,
    agent_crash_before_commit_chance=0.005,
    agent_crash_after_commit_chance=0.005,
    agent_crash_in_release_chance=0.005,
    reboots_per_minute=0.5,
    stream_breaks_per_minute=3,
    container_losses_per_minute=4,
    start_failure_chance=0.1,
    commit_ms=5,
)


def feeding(seed: int) -> World:
    world = World(seed, faults=FAULTS, flags={"offer_timeout": "5s", "agent_ping_timeout": "2s"})
    for gpus in (4, 2):
        world.add_agent(gpus)
    world.add_framework(Feeding, "*")
    world.add_framework(Feeding, "eng")
    world.add_framework(Greedy, "research")
    return world


@pytest.mark.parametrize("seed", range(4))
def test_executors_and_their_tasks(seed: int) -> None:
    world = feeding(seed)
    world.run(3_000)
    verdicts = world.checkers.verdicts
    assert (
        verdicts["no task outlives its executor"] and verdicts["a task is handed over after that is in the checkpoint"]
    )
    assert verdicts["an executor's update is in the checkpoint before it is acknowledged"]
    assert verdicts["a message is delivered at most once, to whom it is for"]


def test_an_executor_whose_tasks_outlive_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AgentMachine, "check", lambda self: None)
    monkeypatch.setattr(executors.Executors, "ended", lambda self, key: None)
    with pytest.raises(SimulationFailure, match="says that .* has ended, and"):
        for seed in range(3):
            feeding(seed).run(3_000)


def test_an_agent_that_says_what_an_executor_said_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    original = executors.Executors._message_of

    def twice(self: executors.Executors, *said: Any) -> None:
        original(self, *said)
        original(self, *said)

    monkeypatch.setattr(executors.Executors, "_message_of", twice)
    with pytest.raises(SimulationFailure, match="answers what it was not told, or once more"):
        for seed in range(3):
            feeding(seed).run(3_000)
