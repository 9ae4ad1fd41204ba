"""Dialogues: a task that waits for its image."""

from __future__ import annotations

from agent_dialogue import GPUS, Agent, R, S, container, of, states, statuses, task

from bursar.agent.effects import KillContainer, PullImage, StartContainer
from bursar.agent.events import (
    ContainerLaunchFailed,
    ContainersRecovered,
    ContainerStarted,
    DevicesDiscovered,
    ImageMissed,
    ImagePulled,
)
from bursar.agent.state import AgentState


def pulling(state: AgentState | None = None) -> Agent:
    agent = Agent(state, runtime="docker").ready()
    agent.launch(task("t", 0, image="big:1"))
    return agent


def test_no_device_is_held_while_an_image_is_pulled() -> None:
    agent = pulling()
    effects = agent.step(ImageMissed(container("t")))
    assert of(effects, PullImage) == [PullImage(container("t"), "big:1")]
    assert [(status.state, status.reason) for status in statuses(effects)] == [(S.STARTING, R.PULLING_IMAGE)]
    assert agent.machine.live_devices() == {}
    effects = agent.step(ImagePulled(container("t")))
    assert [start.container_id for start in of(effects, StartContainer)] == [container("t")]
    assert agent.machine.live_devices() == {GPUS[0].uuid: container("t")}
    assert states(agent.step(ContainerStarted(container("t")))) == [S.RUNNING]


def test_a_device_that_is_lost_while_an_image_is_pulled_drops_the_task() -> None:
    agent = pulling()
    agent.step(ImageMissed(container("t")))
    agent.step(DevicesDiscovered(GPUS[1:], ()))
    effects = agent.step(ImagePulled(container("t")))
    assert not of(effects, StartContainer)
    assert [(status.state, status.reason) for status in statuses(effects)] == [(S.DROPPED, R.DEVICES_CHANGED)]


def test_a_task_may_be_killed_while_its_image_is_pulled() -> None:
    agent = pulling()
    agent.step(ImageMissed(container("t")))
    effects = agent.kill("t")
    assert states(effects)[-1] is S.KILLED and not of(effects, KillContainer)
    assert agent.step(ImagePulled(container("t"))) == []


def test_an_image_is_pulled_once() -> None:
    agent = pulling()
    agent.step(ImageMissed(container("t")))
    agent.step(ImagePulled(container("t")))
    (status,) = statuses(agent.step(ImageMissed(container("t"))))
    assert (status.state, status.reason) == (S.FAILED, R.IMAGE_NOT_FOUND)


def test_a_pull_that_fails_is_the_end_of_the_launch() -> None:
    agent = pulling()
    agent.step(ImageMissed(container("t")))
    (status,) = statuses(agent.step(ContainerLaunchFailed(container("t"), R.IMAGE_NOT_FOUND, "no such image")))
    assert (status.state, status.reason, status.message) == (S.FAILED, R.IMAGE_NOT_FOUND, "no such image")


def test_a_pull_goes_on_after_a_restart_of_the_agent() -> None:
    agent = pulling()
    agent.step(ImageMissed(container("t")))
    later = Agent(agent.durable, runtime="docker", boot_id="boot-2")
    effects = later.step(ContainersRecovered(()))
    assert of(effects, PullImage) and not of(effects, StartContainer)
    later.connect()
    later.register()
    assert of(later.step(ImagePulled(container("t"))), StartContainer)
    later.step(ContainerStarted(container("t")))
    assert statuses(later.exit("t", 0))[-1].state is S.FINISHED
