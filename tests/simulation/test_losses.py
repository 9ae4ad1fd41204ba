"""What falls out of one of the books is put back from the others, in due time; and whoever does not do so is condemned (B-18)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import bursar.master.comparing as master_comparing
from bursar.agent import admission, lives
from bursar.agent.machine import AgentMachine
from bursar.agent.reporting import Reporting
from bursar.agent.strays import Strays
from bursar.agent.tasks import TaskKey
from bursar.agent.ward import Ward
from bursar.core.books import COMPARE_INTERVAL_MS
from bursar.core.messages.agent import RestartTask
from bursar.core.tasks import AssignedTask, StatusReason, TaskState
from bursar.master import agents as master_agents
from bursar.master import differences, registration
from bursar.master.machine import MasterMachine
from bursar.simulation.checkers.repairs import DUE_MS
from bursar.simulation.faults import Faults
from bursar.simulation.frameworks import Greedy, Hog
from bursar.simulation.world import SimulationFailure, World

RULE = "what is lost from a view is repaired within two periods"
#: Nothing goes wrong but that books lose what was in them, and containers come and go.
LOSING = Faults(losses_per_minute=12)


def cluster(seed: int, faults: Faults) -> World:
    """A small one, with some work that does not end, and little else that happens."""
    world = World(seed, faults=faults, flags={"offer_timeout": "60s", "allocation_interval": "30s"})
    world.add_agent(4)
    world.add_agent(0)
    world.add_framework(Greedy, "*")
    world.add_framework(Greedy, "eng", gpus=False)
    return world


def ending(seed: int, faults: Faults) -> World:
    """Tasks are short: they end before anybody looks."""
    world = World(seed, faults=faults, flags={"offer_timeout": "5s"})
    world.add_agent(4)
    world.add_framework(Hog, "*")
    return world


def busy(seed: int, faults: Faults) -> World:
    """Devices change hands all the time."""
    world = World(seed, faults=faults, flags={"offer_timeout": "5s"})
    world.add_agent(4)
    world.add_agent(8)
    world.add_framework(Hog, "*")
    world.add_framework(Hog, "eng")
    return world


def condemned(faults: Faults = LOSING, *, make: Callable[[int, Faults], World] = cluster, seeds: int = 4) -> str:
    """Why a cluster fails; an empty text where it does not."""
    for seed in range(seeds):
        try:
            make(seed, faults).run(2_500)
        except SimulationFailure as failure:
            (why,) = [line for line in str(failure).splitlines() if line.startswith("why: ")]
            return why
    return ""


@pytest.mark.parametrize("act", ["master_forgets", "master_errs", "agent_forgets", "container_vanishes", "stray_comes"])
def test_each_loss_is_repaired_within_two_periods(act: str) -> None:
    assert DUE_MS < 2.1 * COMPARE_INTERVAL_MS
    for seed in range(1, 5):
        world = cluster(seed, Faults())
        world.start()
        for _ in range(6):
            world.run_for(20_000)
            getattr(world.losses, act)()
        world.run_for(2 * DUE_MS)
        if world.checkers.verdicts[RULE]:
            return
    raise AssertionError("there was nothing to lose")


def test_a_cluster_that_loses_things_comes_right() -> None:
    world = cluster(2, replace(LOSING, agent_crashes_per_minute=1, stream_breaks_per_minute=1))
    summary = world.run(3_000)
    assert summary.verdicts[RULE] > 5


def test_unbroken_it_passes() -> None:
    assert condemned(seeds=1) == ""


#: Two losses at once: a task falls out of its agent's books while its master begins anew and has heard nothing of it.
TWICE = replace(
    LOSING, losses_per_minute=30, master_crashes_per_minute=4, master_down_ms=500, agent_crashes_per_minute=1
)


def test_what_an_agent_lost_is_not_begun_again_by_a_new_master() -> None:
    assert condemned(TWICE) == ""


# --- judges must be able to condemn --------------------------------------------------------------------------------------


def test_a_master_that_does_not_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master_comparing, "_repair", lambda *_: None)
    assert "is not repaired after" in condemned()


def test_machines_that_do_not_look_whether_a_task_was_told_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AssignedTask, "was_told_by", lambda self, seen: False)
    why = condemned(TWICE)
    assert "was started on" in why or "which still runs" in why


def test_a_master_that_tells_nobody_of_the_end_of_what_it_had_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "is_news", lambda *_: False)
    monkeypatch.setattr(differences, "is_news", lambda *_: False)
    assert "was taken; ended: False" in condemned(LOSING, make=ending)


def test_an_agent_that_speaks_of_what_it_lost_as_if_it_were_the_first_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken for a repeat of the real first update, and its framework never hears of the end."""
    original = Reporting.status

    def numbered(self: Reporting, key: TaskKey, verdict: Any, update_id: str, devices: Any) -> Any:
        return original(self, key, verdict, "1" if update_id == "0" else update_id, devices)

    monkeypatch.setattr(Reporting, "status", numbered)
    why = condemned(TWICE)
    assert "was taken; ended: False" in why or "is not repaired after" in why


def test_an_agent_that_does_not_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives.Lives, "compared", lambda *_: None)
    assert "is not repaired after" in condemned()


#: Operators are busy, and connections break while they are.
RESTARTING = Faults(operator_acts_per_minute=400, stream_breaks_per_minute=20, break_notice_ms=20_000, message_ms=300)


def test_restarts_are_carried_out_once() -> None:
    world = cluster(0, RESTARTING)
    summary = world.run(2_500)
    assert summary.verdicts["an order to restart is carried out once"] > 0


def test_an_agent_that_forgets_which_orders_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    original = lives.Lives.restart

    def forgetful(self: lives.Lives, message: RestartTask) -> None:
        key = TaskKey(message.framework_id, message.task_id)
        record = self._books.state.tasks.get(key)
        if record is not None:
            self._books.state.tasks[key] = replace(record, restart_order=0)
        original(self, message)

    monkeypatch.setattr(lives.Lives, "restart", forgetful)
    monkeypatch.setattr(registration, "repeat_restarts", _tell_all(registration.repeat_restarts))
    assert "is restarted once more" in condemned(RESTARTING)


def _tell_all(original: Callable[..., None]) -> Callable[..., None]:
    """Orders are said again, taken or not."""

    def repeat(cluster: Any, turn: Any, agent: Any, reports: Any) -> None:
        original(cluster, turn, agent, [replace(report, restart_order=0) for report in reports])

    return repeat


# --- judges of devices ---------------------------------------------------------------------------------------------------

#: Slow enough that orders and illness meet what is on its way.
ILL = Faults(device_failures_per_minute=60, device_away_ms=5_000, operator_acts_per_minute=120, message_ms=300)


@pytest.fixture
def without_own_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machines' own invariants are off: the judges outside must do."""
    monkeypatch.setattr(MasterMachine, "check", lambda self: None)
    monkeypatch.setattr(AgentMachine, "check", lambda self: None)


@pytest.mark.usefixtures("without_own_checks")
def test_an_agent_that_begins_tasks_on_ill_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "launch_problem", lambda *_, **__: None)
    assert "begins" in condemned(ILL, make=busy)


@pytest.mark.usefixtures("without_own_checks")
def test_an_agent_that_probes_what_a_task_has(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Ward.settle

    def hasty(self: Ward) -> None:
        held, self._books.held = self._books.held, {}
        try:
            original(self)
        finally:
            self._books.held = held

    monkeypatch.setattr(Ward, "settle", hasty)
    assert "probes" in condemned(ILL)


@pytest.mark.usefixtures("without_own_checks")
def test_a_master_that_offers_what_an_operator_cordoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master_agents, "cordoned", lambda *_: {})
    assert "which an operator took out of service" in condemned(ILL, make=busy)


def test_an_agent_that_says_that_what_it_lost_has_ended_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(self: Strays, key: Any, verdict: Any, devices: Any = ()) -> None:
        self._reporting.never_here(key, verdict)

    monkeypatch.setattr(Strays, "unknown", hasty)
    why = condemned()
    assert "agent-1 says that" in why and "and it runs" in why


def test_a_master_that_declares_ended_what_its_agent_has_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    original = registration._judge_missing

    def hasty(cluster: Any, turn: Any, *rest: Any) -> Any:
        staged, lost = original(cluster, turn, *rest)
        for key in lost:
            words = (TaskState.GONE, StatusReason.CONTAINER_LOST, "it is not there")
            registration.master_status(cluster, turn, cluster.tasks[key], *words)
        return staged, []

    monkeypatch.setattr(registration, "_judge_missing", hasty)
    assert "is GONE by its master, and it runs" in condemned()
