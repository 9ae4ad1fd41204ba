"""Judges must be able to condemn: each test breaks one rule of the code on purpose and sees the seed fail for that reason."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

import bursar.agent.machine as agent_machine
import bursar.master.agents as master_agents
import bursar.master.frameworks as master_frameworks
import bursar.master.offers as master_offers
import bursar.master.tasks as master_tasks
from bursar.agent import admission, leaving, lives, task_groups
from bursar.agent.containers.runtime import ContainerExit, RecoveredContainer
from bursar.agent.effects import StartContainer
from bursar.agent.events import ContainerExited
from bursar.core.machine import Persist
from bursar.core.messages import operator as op
from bursar.core.messages.framework import StatusUpdates
from bursar.core.resources import Ports
from bursar.core.service_ports import ServicePort
from bursar.core.tasks import TaskState
from bursar.master import accept_plans, comparing, ledger, registration, rules
from bursar.master.allocator import cycle, decision
from bursar.master.allocator.constraints import RoleSettings
from bursar.master.allocator.visibility import Visibility
from bursar.master.machine import MasterMachine
from bursar.master.records import Durable, TaskRecorded
from bursar.master.state import Cluster, Turn
from bursar.simulation import process
from bursar.simulation.checkers import Violation
from bursar.simulation.containers import SimulatedContainers
from bursar.simulation.faults import Faults
from bursar.simulation.frameworks import Greedy, Hog, Liar, Reserving, Silent
from bursar.simulation.world import SimulationFailure, World

#: Restless, but with everything else in order.
LIVELY = Faults(
    operator_acts_per_minute=40,
    master_crashes_per_minute=4,
    master_down_ms=500,
    agent_crashes_per_minute=4,
    agent_down_ms=500,
    stream_breaks_per_minute=2,
)


def fails(*, faults: Faults = LIVELY, steps: int = 2_000, seeds: int = 3) -> str:
    """Why a small cluster fails; an empty text where it does not."""
    for seed in range(seeds):
        world = World(seed, faults=faults, flags={"offer_timeout": "5s", "agent_ping_timeout": "2s"})
        for gpus in (4, 2, 0):
            world.add_agent(gpus)
        world.add_framework(Hog, "*")
        world.add_framework(Greedy, "eng", gpus=False)
        world.add_framework(Reserving, "research")
        world.add_framework(Liar, "*")
        world.add_framework(Silent, "*", gpus=False)
        try:
            world.run(steps)
        except SimulationFailure as failure:
            (why,) = [line for line in str(failure).splitlines() if line.startswith("why: ")]
            return why
    return ""


@pytest.fixture
def without_own_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machines' own invariants are off: the judges outside must do."""
    monkeypatch.setattr(MasterMachine, "check", lambda self: None)
    monkeypatch.setattr(agent_machine.AgentMachine, "check", lambda self: None)


def test_unbroken_it_passes() -> None:
    assert fails(seeds=1) == ""


def test_a_ledger_that_forgets_what_it_gave_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger.Ledger, "_take", lambda self, agent_id, books, holding: None)
    assert "Error" in fails() or "Violation" in fails()


@pytest.mark.usefixtures("without_own_checks")
def test_devices_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger.Ledger, "_take", lambda self, agent_id, books, holding: None)
    monkeypatch.setattr(master_offers, "run_cycle", _once_per_agent(cycle.run_cycle))
    assert "holds" in fails() or "offered or held" in fails()


def _once_per_agent(run: Callable[..., Any]) -> Callable[..., Any]:
    """A cycle that would never end otherwise: what is free does not shrink."""

    def limited(cluster: Cluster, agent_ids: Any, *rest: Any) -> Any:
        order = cluster.shares.order
        cluster.shares.order = lambda: itertools.islice(order(), 1)  # type: ignore[method-assign]
        try:
            return run(cluster, agent_ids, *rest)
        finally:
            del cluster.shares.order

    return limited


@pytest.mark.usefixtures("without_own_checks")
def test_ports_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def always_the_first(services: Sequence[ServicePort], asked: Ports, granted: Ports) -> tuple[ServicePort, ...]:
        return tuple(replace(one, host_port=31000 + index) for index, one in enumerate(services))

    monkeypatch.setattr(accept_plans, "with_host_ports", always_the_first)
    assert fails(seeds=1) == "", "the agent refuses what another task has"
    monkeypatch.setattr(admission, "ports_problem", lambda task, others: None)
    assert "is in two live containers" in fails()


def test_messages_before_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(self: process.Process, effects: list[Any]) -> None:
        self._release([effect for effect in effects if not isinstance(effect, Persist)])
        original(self, [effect for effect in effects if isinstance(effect, Persist)])

    original = process.Process._begin
    monkeypatch.setattr(process.Process, "_begin", begin)
    why = fails()
    assert "visible before durable" in why or "before it is in the checkpoint" in why


@pytest.mark.usefixtures("without_own_checks")
def test_a_launch_that_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Turn.persist
    monkeypatch.setattr(
        Turn, "persist", lambda self, record: None if isinstance(record, TaskRecorded) else original(self, record)
    )
    assert fails() != ""


@pytest.mark.usefixtures("without_own_checks")
def test_a_cycle_without_the_gpu_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Visibility, "verdict", lambda *_: None)
    assert "by the rules" in fails()


@pytest.mark.usefixtures("without_own_checks")
def test_a_toggle_that_rescinds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "rescind_forbidden", lambda *_: 0)
    assert "by the rules" in fails(faults=replace(LIVELY, operator_acts_per_minute=200))


@pytest.mark.usefixtures("without_own_checks")
def test_a_role_given_up_whose_offers_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master_frameworks, "rescind", lambda *_: 0)
    assert "is for the role" in fails(steps=6_000, seeds=8)


@pytest.mark.usefixtures("without_own_checks")
def test_a_capability_given_up_without_consequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(master_frameworks, "rescind_forbidden", lambda *_: 0)
    why = fails(steps=6_000, seeds=8)
    assert "by the rules" in why or "lacks REVOCABLE_RESOURCES" in why


@pytest.mark.usefixtures("without_own_checks")
def test_constraints_that_keep_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RoleSettings, "takes", lambda *_: True)
    assert "is not what" in fails(steps=6_000, seeds=8)


@pytest.mark.usefixtures("without_own_checks")
def test_reservations_that_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision, "offerable", lambda holders, free, *_: dict(free))
    assert "what is reserved to" in fails()


def test_a_wake_up_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    original = master_tasks.apply_status

    def deaf(cluster: Cluster, turn: Turn, task: Any, status: Any) -> None:
        before = set(cluster.dirty)
        original(cluster, turn, task, status)
        cluster.dirty.intersection_update(before)

    monkeypatch.setattr(master_tasks, "apply_status", deaf)
    assert "a lost wake-up" in fails()


@pytest.mark.usefixtures("without_own_checks")
def test_an_agent_that_starts_again_what_it_finds_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    original = lives.Lives.recovered

    def reviving(self: lives.Lives, containers: Any) -> None:
        books = self._books
        found = {container.container_id for container in containers}
        missing = [container_id for container_id in books.live if container_id not in found]
        original(self, (*containers, *(RecoveredContainer(container_id, None) for container_id in missing)))
        for container_id in missing:
            task = books.state.tasks[books.live[container_id]].task
            books.effects.append(StartContainer(container_id, task, "", ()))

    monkeypatch.setattr(lives.Lives, "recovered", reviving)
    faults = replace(LIVELY, container_losses_per_minute=60, agent_crashes_per_minute=20, agent_down_ms=5_000)
    assert "was started on" in fails(faults=faults)


@pytest.mark.usefixtures("without_own_checks")
def test_an_end_that_is_told_before_the_container_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    original = SimulatedContainers._end

    def hasty(self: SimulatedContainers, container: Any, end: ContainerExit) -> None:
        if container.devices and container.live:
            # The agent hears of the end; the processes linger.
            self._tell(ContainerExited(container.container_id, end))
            self._timeline.after(3_000, original, self, container, end)
        else:
            original(self, container, end)

    monkeypatch.setattr(SimulatedContainers, "_end", hasty)
    monkeypatch.setattr(SimulatedContainers, "remove", lambda self, container_id: None)
    why = fails()
    assert "is in two live containers" in why or "and it runs" in why


def test_a_registry_that_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Durable.apply_all

    def lossy(self: Durable, records: Sequence[Any]) -> None:
        original(self, [record for record in records if type(record).__name__ != "KillRecorded"])

    monkeypatch.setattr(Durable, "apply_all", lossy)
    assert fails() != ""


def test_two_ends_of_one_task(monkeypatch: pytest.MonkeyPatch) -> None:
    original = master_tasks.on_update

    def credulous(cluster: Cluster, turn: Turn, agent: Any, status: Any) -> None:
        task = cluster.tasks.get(ledger.TaskKey(status.framework_id, status.task_id))
        original(cluster, turn, agent, status)
        framework = cluster.frameworks.get(status.framework_id)
        if task is not None and framework is not None and status.state is TaskState.FINISHED:
            again = replace(status, state=TaskState.FAILED, update_id="99")
            turn.to_framework(framework, StatusUpdates((again,)))

    monkeypatch.setattr(master_tasks, "on_update", credulous)
    monkeypatch.setattr(master_agents, "on_update", credulous)
    assert "later it is FAILED" in fails()


@pytest.mark.usefixtures("without_own_checks")
def test_a_cycle_without_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision, "cut_to_quota", lambda *_: None)
    assert "its limit is" in fails(faults=replace(LIVELY, operator_acts_per_minute=400), seeds=10)


@pytest.mark.usefixtures("without_own_checks")
def test_a_group_whose_members_go_on_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_groups.TaskGroups, "_cause", lambda *_: "")
    assert "runs on" in fails(steps=6_000)


@pytest.mark.usefixtures("without_own_checks")
def test_a_network_that_is_let_go_of_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_groups.TaskGroups, "_live", lambda *_: [])
    assert "lets go of" in fails(steps=6_000)


def test_a_device_given_on_while_a_process_is_left_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving.Leaving, "depart", lambda self, container_id, devices, whose, then: then())
    assert "still uses" in fails(faults=replace(LIVELY, lingering_chance=0.5))


class Lasting(Hog):
    """Its tasks run until somebody else ends them."""

    run_ms = (None,)


def restarting(seed: int) -> None:
    """Somebody has lasting tasks started anew, while streams break."""
    faults = Faults(stream_breaks_per_minute=20, break_notice_ms=10_000)
    world = World(seed, faults=faults, flags={"agent_ping_timeout": "2s"})
    world.add_agent(2)
    world.add_framework(Lasting, "*")
    world.start()
    for number in range(20):
        world.run_for(5_000)
        for framework_id, task_id in world.live_tasks():
            request = op.RestartTaskRequest(f"{number}-{task_id}", f"{framework_id}/{task_id}", 0)
            world.master.ask(request, lambda answer: None)
    world.stop_faults()
    world.converge()
    assert world.checkers.verdicts["an order to restart is carried out once"]


def test_an_order_to_restart_that_is_said_once_only(monkeypatch: pytest.MonkeyPatch) -> None:
    restarting(0)
    monkeypatch.setattr(registration, "repeat_restarts", lambda *_: None)
    monkeypatch.setattr(comparing, "repeat_restarts", lambda *_: None)
    with pytest.raises(Violation, match="was to be restarted"):
        for seed in range(8):
            restarting(seed)
