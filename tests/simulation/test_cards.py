"""Cards that operators have cut, under the judges: agents die between any two steps, drivers refuse, tasks come and go."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest

import bursar.agent.cuts as agent_cuts
import bursar.master.agents as master_agents
from bursar.agent import ward
from bursar.agent.devices.cut_record import CutPhase, CutRecord
from bursar.agent.devices.cutting import unconfigured
from bursar.agent.machine import AgentMachine
from bursar.core.devices import Device, DeviceCondition
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
    cut_meddling_chance=0.05,
)


def cutting(seed: int, steps: int = 3_000, faults: Faults = FAULTS) -> World:
    """Operators have cards cut again and again, beside all else that they do. Machines that are often started anew begin with
    cards that are cut, and forget that."""
    world = World(seed, faults=faults, flags={"offer_timeout": "5s", "agent_ping_timeout": "2s"})
    for gpus in (2, 4):
        agent = world.add_agent(gpus)
        agent.can_cut, agent.forgets = True, faults.reboots_per_minute > 1
        for card in agent.gpus.uuids[: gpus // 2] if agent.forgets else ():
            agent.gpus.cards[card].cut_into("3g.40gb,1g.10gb=2")
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


#: Machines are started anew, and forget what their cards are cut into.
FORGETFUL = replace(FAULTS, reboots_per_minute=40, agent_crashes_per_minute=1, cuts_per_minute=100)


def test_cards_that_have_lost_their_instances_are_cut_again() -> None:
    verdicts: Counter[str] = Counter()
    for seed in range(4):
        verdicts += cutting(seed, faults=FORGETFUL).checkers.verdicts
    assert verdicts["a card without instances is of no use, and not ill"] > 20
    assert verdicts["a card without instances is cut again"] > 4


# --- the judges must be able to condemn ---


@pytest.fixture
def without_own_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MasterMachine, "check", lambda self: None)
    monkeypatch.setattr(AgentMachine, "check", lambda self: None)


#: Less chance, so that what is wrong shows.
EASY = replace(
    FAULTS, cut_failure_chance=0.0, cut_pending_chance=0.0, agent_death_in_cut_chance=0.0, cut_meddling_chance=0.0
)


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
    assert "nothing else changed" in fails()


def test_what_fails_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: agent_cuts.Cuts, record: CutRecord, problem: str) -> None:
        self._finish(replace(record, goal=None, problem=problem))

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


@pytest.mark.usefixtures("without_own_checks")
def test_a_card_without_instances_that_is_given_to_somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "unconfigured", lambda card: card)
    assert "which should have instances and has none" in fails(FORGETFUL)


def test_a_card_without_instances_that_is_taken_for_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    condition = DeviceCondition.UNSPECIFIED
    monkeypatch.setattr(cards, "unconfigured", lambda card: replace(unconfigured(card), condition=condition))
    assert "for ill for want of instances" in fails(FORGETFUL)


@pytest.mark.usefixtures("without_own_checks")
def test_a_card_that_is_being_cut_and_is_told_to_want_that(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ward.Ward._as_busy

    def careless(self: ward.Ward, device: Device, cut: CutRecord | None) -> Device:
        return device if device.condition is DeviceCondition.UNCONFIGURED else original(self, device, cut)

    monkeypatch.setattr(ward.Ward, "_as_busy", careless)
    assert "does not say that it is being cut" in fails(replace(FORGETFUL, agent_death_in_cut_chance=0.3))


def test_a_master_that_has_no_card_cut_which_wants_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "DeviceCondition", SimpleNamespace(UNCONFIGURED=None))
    assert "has no instance, and may not be cut" in fails(FORGETFUL)


def test_what_was_cut_and_is_lost_again_is_told_as_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_cuts, "_verified", lambda record, event: record)
    assert "is cut into" in fails(replace(EASY, cut_meddling_chance=0.3))


def test_an_agent_that_takes_its_own_doing_for_that_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    original = agent_cuts._verified
    monkeypatch.setattr(agent_cuts, "_verified", lambda record, event: original(record, replace(event, devices=())))
    assert "nothing else changed" in fails(seeds=1)
