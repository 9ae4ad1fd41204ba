"""Tasks that use more of a card than their share, under the judges: they are ended, and nobody else is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bursar.agent import overuse
from bursar.simulation.faults import Faults
from bursar.simulation.frameworks import Feeding, Hog
from bursar.simulation.world import SimulationFailure, World

FAULTS = Faults(
    master_crashes_per_minute=2,
    master_down_ms=500,
    agent_crashes_per_minute=1,
    agent_down_ms=1_000,
    container_losses_per_minute=1,
    stalls_per_minute=1,
    stall_ms=5_000,
    silent_driver_chance=0.1,
    overuses_per_minute=200,
    linger_ms=20_000,
    access_losses_per_minute=20,
)


def sharing(seed: int, steps: int = 4_000) -> World:
    world = World(seed, faults=FAULTS, flags={"offer_timeout": "5s", "agent_ping_timeout": "2s"})
    for _ in range(2):
        agent = world.add_agent(4)
        agent.tells_users = True
        agent.shares.declare("soft")
    for role in ("*", "eng"):
        world.add_framework(Hog, role)
        world.add_framework(Feeding, role)
    world.run(steps)
    return world


def test_who_uses_more_than_its_share_is_ended_and_nobody_else() -> None:
    rule = "nobody is ended for a share that it did not pass for long"
    assert sum(sharing(seed).checkers.verdicts[rule] for seed in range(4)) > 2


def test_one_that_passed_its_share_for_a_moment_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = overuse.Overuse._judge

    def hasty(self: overuse.Overuse, one: overuse.Allotment, used: int) -> None:
        judge(self, one, used)
        for which, excess in self._over.items():
            self._over[which] = replace(excess, since_ms=excess.since_ms - 5_000)
        judge(self, one, used)

    monkeypatch.setattr(overuse.Overuse, "_judge", hasty)
    with pytest.raises(SimulationFailure, match="for its use of a share, which it passed for"):
        for seed in range(4):
            sharing(seed)


def test_nobody_is_ended_for_what_it_uses_of_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overuse.Overuse, "measured", lambda self, users: None)
    with pytest.raises(SimulationFailure, match="uses more than its share, and is not ended"):
        for seed in range(5):
            sharing(seed, 2_000)
