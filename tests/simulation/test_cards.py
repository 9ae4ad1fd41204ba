"""Cards that operators have cut, under the judges: agents die between any two steps, drivers refuse, tasks come and go."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest

import bursar.agent.cuts as agent_cuts
import bursar.master.agents as master_agents
from bursar.agent import ward
from bursar.agent.devices.cut_record import CutPhase, CutRecord
from bursar.agent.machine import AgentMachine
from bursar.core.resources import ResourceRequest
from bursar.master import partitions
from bursar.master.machine import MasterMachine
from bursar.simulation import cards
from bursar.simulation.faults import Faults
from bursar.simulation.frameworks import Greedy, Hog, Reserving
from bursar.simulation.world import SimulationFailure, World

FAULTS = Faults(
    master_crashes_per_minute=4,
    master_down_ms=500,
    agent_crashes_per_minute=4,
    agent_down_ms=500,
    agent_crash_before_commit_chance=0.005,
    agent_crash_after_commit_chance=0.005,
    agent_crash_in_release_chance=0.005,
    reboots_per_minute=0.5,
    stream_breaks_per_minute=3,
    device_failures_per_minute=2,
    device_away_ms=5_000,
    strangers_per_minute=1,
    lingering_chance=0.05,
    losses_per_minute=0.3,
    operator_acts_per_minute=40,
    operator_repeats_chance=0.1,
    cuts_per_minute=200,
    cut_ms=200,
    cut_failure_chance=0.05,
    cut_pending_chance=0.05,
    agent_death_in_cut_chance=0.1,
)


def cutting(seed: int, steps: int = 3_000, faults: Faults = FAULTS) -> World:
    """Operators have cards cut again and again, beside all else that they do."""
    world = World(seed, faults=faults, flags={"offer_timeout": "5s", "agent_ping_timeout": "2s"})
    for gpus in (2, 4):
        world.add_agent(gpus).can_cut = True
    world.add_framework(Hog, "*")
    world.add_framework(Greedy, "eng")
    world.add_framework(Reserving, "research")
    world.add_session("*", ResourceRequest({"cpus": 100}, (), 1), 20)
    world.run(steps)
    return world


def test_cards_are_cut_under_faults() -> None:
    verdicts: Counter[str] = Counter()
    for seed in range(5):
        verdicts += cutting(seed).checkers.verdicts
    assert verdicts["a step of cutting is in the checkpoint before it is done"] > 50
    assert verdicts["a cut that is said to be done is done"] > 10
    assert verdicts["a cut that fails is undone, or it is said that it is not"] > 10
    assert verdicts["a task is begun on what its card is cut into"] > 100


# --- the judges must be able to condemn ---


@pytest.fixture
def without_own_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MasterMachine, "check", lambda self: None)
    monkeypatch.setattr(AgentMachine, "check", lambda self: None)


#: Less chance, so that what is wrong shows.
EASY = replace(FAULTS, cut_failure_chance=0.0, cut_pending_chance=0.0, agent_death_in_cut_chance=0.0)


def fails(faults: Faults = EASY, steps: int = 2_500, seeds: int = 5) -> str:
    """Why a world of cards that are cut fails; an empty text where it does not."""
    for seed in range(seeds):
        try:
            cutting(seed, steps, faults)
        except SimulationFailure as failure:
            (why,) = [line for line in str(failure).splitlines() if line.startswith("why: ")]
            return why
    return ""


@pytest.mark.usefixtures("without_own_checks")
def test_a_card_is_cut_that_a_task_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "_problem", lambda *_: None)
    monkeypatch.setattr(agent_cuts, "parent_of", lambda uuid: "nobody")
    assert re.search("cuts GPU-agent-.*, and .* has", fails())


def test_a_step_that_nobody_will_know_of(monkeypatch: pytest.MonkeyPatch) -> None:
    original = agent_cuts.Cuts._save
    monkeypatch.setattr(agent_cuts.Cuts, "_save", lambda self, record: None if record.doing else original(self, record))
    assert "is done before it is in the checkpoint" in fails()


@pytest.mark.usefixtures("without_own_checks")
def test_a_card_is_offered_while_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master_agents, "cordoned", lambda cluster, agent: {})
    original = ward.Ward._as_busy
    monkeypatch.setattr(ward.Ward, "_as_busy", lambda self, device, cut: original(self, device, None))
    assert "whose card is being cut" in fails()


def test_nothing_is_done_and_that_is_told_as_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_cuts, "next_step", lambda layout, goal: None)
    assert "is cut into whole: CutReport" in fails()


def test_what_fails_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: agent_cuts.Cuts, record: CutRecord, problem: str) -> None:
        self._finish(replace(record, problem=problem))

    monkeypatch.setattr(agent_cuts.Cuts, "_failed", careless)
    assert re.search(r"GPU-agent-.* was \[.*\] and is \[", fails(replace(EASY, cut_failure_chance=0.2)))


def test_an_order_of_which_nobody_hears_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_cuts.Cuts, "report", lambda self: None)
    assert "nobody has said how that ended" in fails(seeds=1)


def test_an_agent_that_does_not_go_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_cuts.Cuts, "begin", lambda self: None)
    assert "does not end" in fails(replace(EASY, agent_death_in_cut_chance=0.3))


@pytest.mark.usefixtures("without_own_checks")
def test_an_agent_that_does_not_look_at_what_it_has_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(self: agent_cuts.Cuts, record: CutRecord) -> None:
        self._save(replace(record, phase=CutPhase.DONE, doing=None, goal=None, before=None))

    monkeypatch.setattr(agent_cuts.Cuts, "_finish", blind)
    why = fails()
    assert "its card is cut otherwise" in why or "whose cards are cut into" in why


@pytest.mark.usefixtures("without_own_checks")
def test_slices_that_are_more_than_their_card(monkeypatch: pytest.MonkeyPatch) -> None:
    heavy = {name: min(1000, 2 * weight) for name, weight in cards._WEIGHT_MILLI.items()}
    monkeypatch.setattr(cards, "_WEIGHT_MILLI", heavy)
    assert "tells of more of" in fails()


@pytest.mark.usefixtures("without_own_checks")
def test_a_card_that_is_there_beside_its_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    original = cards.SimulatedCard.devices
    monkeypatch.setattr(
        cards.SimulatedCard,
        "devices",
        lambda self: (self._whole, *original(self)) if self.is_cut else original(self),
    )
    assert "and of its slices" in fails()
