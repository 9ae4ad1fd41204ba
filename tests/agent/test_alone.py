"""Dialogues about tasks that must not go on for long without a master (pain 21)."""

from __future__ import annotations

from dataclasses import replace

from agent_dialogue import Agent, R, S, container, key, of, task

from bursar.agent.containers.runtime import RecoveredContainer
from bursar.agent.effects import KillContainer
from bursar.agent.events import ContainersRecovered, ContainerStarted, MasterDisconnected
from bursar.core.lives import RestartMode, RestartPolicy
from bursar.core.tasks import AssignedTask


def limited(name: str, allowed_ms: int = 10_000, restart: RestartPolicy | None = None) -> AssignedTask:
    assigned = task(name)
    return replace(assigned, spec=replace(assigned.spec, max_disconnected_ms=allowed_ms, restart=restart))


def test_without_a_master_it_ends_after_its_time_and_the_master_hears_of_it_later() -> None:
    agent = Agent().ready()
    agent.run(limited("t"))
    agent.run(task("u"))
    assert not of(agent.wait(60_000), KillContainer), "there is a master"
    agent.step(MasterDisconnected(agent.connection))
    assert not of(agent.wait(9_999), KillContainer)
    (kill,) = of(agent.wait(1), KillContainer)
    assert kill.container_id == container("t")
    agent.exit("t", 143)
    end = agent.machine.state.tasks[key("t")].unacknowledged[-1]
    assert (end.state, end.reason) == (S.GONE, R.DISCONNECTED)
    assert end.message.startswith("its agent had no master for 10s, and it may not go on without one for longer")
    assert agent.machine.state.tasks[key("u")].state is S.RUNNING


def test_a_master_that_is_back_in_time_changes_nothing_and_the_time_begins_anew() -> None:
    agent = Agent().ready()
    agent.run(limited("t"))
    for _ in range(3):
        agent.step(MasterDisconnected(agent.connection))
        assert not of(agent.wait(9_000), KillContainer)
        agent.connect()
        assert not of(agent.wait(500), KillContainer), "a connection is no master yet"
        agent.register()
    assert not of(agent.wait(60_000), KillContainer)


def test_an_agent_that_begins_anew_has_had_none_since_it_began() -> None:
    agent = Agent().ready()
    agent.run(limited("t"))
    again = Agent(agent.durable)
    again.ms = agent.ms
    again.step(ContainersRecovered((RecoveredContainer(container("t"), None),)))
    assert not of(again.wait(9_999), KillContainer)
    assert of(again.wait(1), KillContainer)


def test_one_that_is_between_two_runs_or_begins_again_meanwhile_ends_when_it_runs() -> None:
    agent = Agent().ready()
    agent.run(limited("t", restart=RestartPolicy(RestartMode.ON_FAILURE, 5, 2_000)))
    agent.step(MasterDisconnected(agent.connection))
    agent.wait(9_000)
    agent.exit("t", 1)
    assert not of(agent.wait(1_500), KillContainer), "it waits for its next run"
    agent.wait(1_000)
    assert agent.machine.state.tasks[key("t")].relaunching
    agent.wait(2_000)
    agent.step(ContainerStarted(container("t")))
    assert of(agent.wait(1_000), KillContainer)


def test_one_that_starts_when_there_is_no_master_any_more() -> None:
    agent = Agent().ready()
    agent.launch(limited("t"))
    agent.step(MasterDisconnected(agent.connection))
    agent.wait(20_000)
    agent.step(ContainerStarted(container("t")))
    assert of(agent.wait(1), KillContainer)
