"""Dialogues: what a restarted agent finds of its tasks."""

from __future__ import annotations

from agent_dialogue import Agent, F, R, S, container, key, of, states, statuses, task

from bursar.agent.containers.runtime import ContainerExit, RecoveredContainer
from bursar.agent.effects import AgentEffect, EndStray, KillContainer, RemoveContainer, StartContainer
from bursar.agent.events import ContainersRecovered
from bursar.core.ids import TaskId
from bursar.core.messages.agent import TaskRef
from bursar.core.tasks import StatusReason, TaskState


def running(name: str) -> RecoveredContainer:
    return RecoveredContainer(container(name), None)


def ended(name: str, code: int | None, reason: StatusReason = R.COMMAND_EXITED) -> RecoveredContainer:
    return RecoveredContainer(container(name), ContainerExit(code, reason))


def restarted(agent: Agent, *found: RecoveredContainer, boot_id: str = "boot-1") -> tuple[Agent, list[AgentEffect]]:
    again = Agent(agent.durable, boot_id=boot_id)
    return again, again.step(ContainersRecovered(found))


def last(agent: Agent, name: str) -> tuple[TaskState, StatusReason, int | None]:
    status = agent.machine.state.tasks[key(name)].unacknowledged[-1]
    return status.state, status.reason, status.exit_code


def test_running_tasks_are_adopted_undisturbed() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    agent.launch(task("starting", 1))
    again, effects = restarted(agent, running("t"), running("starting"))
    assert not of(effects, KillContainer) and not of(effects, StartContainer)
    assert last(again, "starting")[0] is S.RUNNING and last(again, "t")[0] is S.RUNNING
    again.connect()
    again.register()
    assert states(again.exit("t", 4)) == [S.FAILED]


def test_tasks_that_ended_meanwhile_are_reported() -> None:
    agent = Agent().ready()
    agent.run(task("t"))
    agent.run(task("killed"))
    agent.kill("killed")
    again, effects = restarted(agent, ended("t", 5), ended("killed", 143))
    assert last(again, "t") == (S.FAILED, R.COMMAND_EXITED, 5)
    assert last(again, "killed") == (S.KILLED, R.KILLED_BY_FRAMEWORK, 143)
    assert len(of(effects, RemoveContainer)) == 2


def test_what_is_not_found_is_reported_and_never_started_again() -> None:
    agent = Agent().ready()
    agent.run(task("ran"))
    agent.launch(task("starting"), task("killed"))
    agent.kill("killed")
    again, effects = restarted(agent)
    assert not of(effects, StartContainer)
    assert last(again, "ran") == (S.GONE, R.CONTAINER_LOST, None)
    assert last(again, "starting") == (S.GONE, R.CONTAINER_LOST, None)
    assert last(again, "killed") == (S.KILLED, R.KILLED_BY_FRAMEWORK, None)


def test_a_new_boot_id_means_that_the_tasks_are_dead() -> None:
    agent = Agent().ready()
    for name in ("vanished", "docker", "done"):
        agent.run(task(name))
    again, _ = restarted(agent, ended("docker", 255), ended("done", 0), boot_id="boot-2")
    assert last(again, "vanished") == (S.GONE, R.AGENT_REBOOTED, None)
    assert last(again, "docker") == (S.GONE, R.AGENT_REBOOTED, 255)
    assert last(again, "done") == (S.FINISHED, R.COMMAND_EXITED, 0)


def test_a_kill_is_resumed() -> None:
    agent = Agent().ready()
    agent.run(task("t", grace_ms=100))
    agent.kill("t")
    _, effects = restarted(agent, running("t"))
    assert of(effects, KillContainer) == [KillContainer(container("t"), 100)]


def test_containers_of_nobody_are_ended_and_removed() -> None:
    agent = Agent().ready()
    again, effects = restarted(agent, running("unknown"), ended("old", 0))
    assert of(effects, EndStray) == [EndStray(container("unknown"))]
    assert of(effects, RemoveContainer) == [RemoveContainer(container("old"))]
    again.connect()
    again.register()
    assert not statuses(again.full(launch=(task("unknown"),))), "nothing is told ended while it runs"
    effects = again.exit("unknown", 137)
    assert of(effects, RemoveContainer) == [RemoveContainer(container("unknown"))] and states(effects) == [S.DROPPED]


def test_a_task_whose_books_were_lost_is_told_gone_only_when_its_container_is() -> None:
    """B-18: the checkpoint was lost, and the container was not; it is ended again and again until it has ended."""
    again = Agent()
    again.step(ContainersRecovered((running("t"),)))
    again.connect()
    again.register()
    keep = (TaskRef(F, TaskId("t")),)
    assert not statuses(again.full(keep=keep))
    assert of(again.wait(10_000), EndStray) == [EndStray(container("t"))], "it did not end: once more"
    again.connect()
    again.register()
    assert not statuses(again.full(keep=keep)), "another master hears no more of it than the first"
    (status,) = statuses(again.exit("t", 137))
    assert (status.state, status.reason) == (S.GONE, R.CONTAINER_LOST)
    assert not statuses(again.exit("t", None, R.CONTAINER_LOST)), "the engine said it twice"


def test_the_end_of_a_task_is_not_told_again_while_its_container_is_back() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    agent.exit("t", None, R.ENGINE_LOST)
    agent.ack_all("t")
    again, _ = restarted(agent, running("t"))
    again.connect()
    again.register()
    assert not statuses(again.full(keep=(TaskRef(F, TaskId("t")),)))
    assert states(again.exit("t", 137)) == [S.GONE]


def test_a_container_that_outlived_its_reported_end_keeps_its_devices_until_it_is_gone() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    agent.exit("t", None, R.ENGINE_LOST)
    agent.ack_all("t")
    again, _ = restarted(agent, running("t"))
    again.connect()
    again.register()
    assert states(again.full(launch=(task("u", 0),))) == [S.DROPPED]
    assert not statuses(again.exit("t", 137)), "its end was reported before"
    assert states(again.full(launch=(task("v", 0),))) == [S.STARTING]
