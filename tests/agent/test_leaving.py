"""Dialogues about devices whose processes do not go when their container does (F49-14)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from agent_dialogue import GPUS, Agent, R, S, container, of, said, statuses, task
from tests.agent.test_ward import shown

from bursar.agent.books import AgentConfig
from bursar.agent.containers.runtime import ContainerExit, RecoveredContainer
from bursar.agent.devices.users import DeviceUser
from bursar.agent.effects import AgentEffect, AskWhoUses, ProbeDevice, StartContainer
from bursar.agent.events import ContainerExited, ContainersRecovered, DevicesDiscovered, DeviceUsersTold
from bursar.agent.leaving import GRACE_MS
from bursar.agent.machine import AgentMachine
from bursar.core.devices import DeviceCondition
from bursar.core.ids import DeviceUuid
from bursar.core.messages.agent import DevicesChanged, Register, TaskUpdates
from bursar.core.tasks import StatusReason

C = DeviceCondition
G0, G1 = GPUS[0].uuid, GPUS[1].uuid
Users = Mapping[DeviceUuid, tuple[DeviceUser, ...] | None]


class Asking(Agent):
    """An agent whose driver can say who uses its devices."""

    def __init__(self, before: Agent | None = None, users: Users | None = None) -> None:
        super().__init__(before.durable if before else None)
        config: AgentConfig = replace(self.machine.books.config, tells_users=True, users=users or {})
        self.machine = AgentMachine(config, self.durable.copy())
        self.ms = before.ms if before else self.ms

    def ready(self, *found: RecoveredContainer) -> Asking:
        super().ready(*found)
        return self

    def told(self, users: Users | None = None) -> list[AgentEffect]:
        """Nobody uses anything but as said."""
        return self.step(DeviceUsersTold({gpu.uuid: () for gpu in GPUS} | dict(users or {})))

    def end(self, name: str, code: int = 0) -> list[AgentEffect]:
        return self.step(ContainerExited(container(name), ContainerExit(code, StatusReason.COMMAND_EXITED)))


LEFT: Users = {G0: (DeviceUser(4711, "python"),)}


def test_the_end_is_told_once_nobody_uses_the_devices() -> None:
    agent = Asking().ready()
    agent.run(task("t", 0))
    effects = agent.end("t")
    (question,) = of(effects, AskWhoUses)
    assert question.uuids == (G0,) and not statuses(effects)
    (refused,) = statuses(agent.launch(task("u", 0)))
    assert "still held by container" in refused.message
    effects = agent.told()
    (end,) = statuses(effects)
    assert end.state is S.FINISHED and not [one for one in said(effects) if isinstance(one, DevicesChanged)]
    assert of(agent.launch(task("v", 0)), StartContainer)


def test_a_process_that_goes_within_moments_only_delays_the_end() -> None:
    agent = Asking().ready()
    agent.run(task("t", 0))
    agent.end("t")
    assert not statuses(agent.told(LEFT))
    assert of(agent.wait(100), AskWhoUses)
    assert [end.state for end in statuses(agent.told())] == [S.FINISHED]


def test_one_that_stays_makes_the_device_busy_before_the_end_is_told() -> None:
    agent = Asking().ready()
    agent.run(task("t", 0))
    agent.end("t")
    agent.told(LEFT)
    agent.wait(GRACE_MS)
    effects = agent.told(LEFT)
    order = [type(one) for one in said(effects)]
    assert order.index(DevicesChanged) < order.index(TaskUpdates), "never free in between"
    assert shown(effects)[0] is C.BUSY
    device = agent.machine.info.devices[0]
    assert device.health_reason == "process 4711 (python) of task t is still there, since 22:13:21 UTC"
    (refused,) = statuses(agent.launch(task("u", 0)))
    assert (refused.state, refused.reason) == (
        S.DROPPED,
        R.DEVICES_CHANGED,
    ) and "is busy: process 4711" in refused.message
    assert not [one for one in said(agent.told(LEFT)) if isinstance(one, DevicesChanged)], "the same is not said again"
    assert shown(agent.told())[0] is C.UNSPECIFIED
    assert of(agent.launch(task("v", 0)), StartContainer)


def test_it_is_asked_about_with_growing_pauses_and_cordoned_at_last_until_the_process_has_gone() -> None:
    agent = Asking().ready()
    agent.run(task("t", 0))
    agent.end("t")
    agent.wait(GRACE_MS)
    agent.told(LEFT)
    asked = []
    while agent.machine.info.devices[0].condition is not C.CORDONED and agent.ms < 400_000:
        if of(agent.wait(100), AskWhoUses):
            asked.append(agent.ms)
            agent.told(LEFT)
    pauses = [later - sooner for sooner, later in pairwise(asked)]
    assert pauses[:3] == [2_000, 4_000, 8_000] and max(pauses) == 30_000
    assert 120_000 <= agent.ms < 160_000
    reason = agent.machine.info.devices[0].health_reason
    assert reason.startswith("process 4711 (python) of task t is still there") and reason.endswith("for more than 2m")
    assert not of(agent.wait(600_000), ProbeDevice), "not while the process is there"
    assert of(agent.told(), ProbeDevice) == [ProbeDevice(G0)]


def test_a_process_of_nobodys_task_keeps_a_free_gpu_from_being_offered_from_the_start() -> None:
    agent = Asking(users=LEFT)
    agent.step(ContainersRecovered(()))
    (register,) = [one for one in said(agent.connect()) if isinstance(one, Register)]
    assert [one.condition for one in register.info.devices] == [C.BUSY, *[C.UNSPECIFIED] * 3]
    assert register.info.devices[0].health_reason.startswith("process 4711 (python) of no task uses it, since")
    agent.register()
    for _ in range(20):
        agent.wait(30_000)
        agent.told(LEFT)
    assert agent.machine.info.devices[0].condition is C.BUSY, "that is no fault of the device"


def test_free_gpus_are_asked_about_whenever_devices_are_looked_at() -> None:
    agent = Asking().ready()
    agent.run(task("t", 0))
    (question,) = of(agent.step(DevicesDiscovered(GPUS, ())), AskWhoUses)
    assert question.uuids == tuple(gpu.uuid for gpu in GPUS[1:])
    assert shown(agent.told(LEFT | {G1: (DeviceUser(1),)}))[:2] == [C.UNSPECIFIED, C.BUSY], "a task may use its own"


def test_a_container_that_ended_while_the_agent_was_away_is_asked_about() -> None:
    agent = Asking().ready()
    agent.run(task("t", 0))
    agent.run(task("u", 1))
    again = Asking(agent, users=LEFT)
    exited = RecoveredContainer(container("t"), ContainerExit(0, StatusReason.COMMAND_EXITED))
    effects = again.step(ContainersRecovered((exited,)))
    assert len(of(effects, AskWhoUses)) == 2, "also about one of which nothing is left"
    again.connect()
    again.register()
    again.wait(GRACE_MS)
    ends = statuses(again.told(LEFT))
    assert {end.state for end in ends} >= {S.FINISHED, S.GONE}
    assert [one.condition for one in again.machine.info.devices[:2]] == [C.BUSY, C.UNSPECIFIED]


def test_a_driver_that_cannot_say_changes_nothing_and_one_that_does_not_answer_makes_it_busy() -> None:
    agent = Asking().ready()
    agent.run(task("t", 0))
    agent.run(task("u", 1))
    agent.end("t")
    assert [end.state for end in statuses(agent.told({G0: None}))] == [S.FINISHED]
    agent.end("u")
    effects = agent.wait(10_000)
    assert statuses(effects)[-1].state is S.FINISHED and shown(effects)[1] is C.BUSY
    assert "does not say who uses it" in agent.machine.info.devices[1].health_reason
    assert shown(agent.told())[1] is C.UNSPECIFIED


def test_a_kill_that_comes_too_late_changes_nothing() -> None:
    agent = Asking().ready()
    agent.run(task("t", 0))
    agent.end("t")
    assert not statuses(agent.kill("t"))
    assert [end.state for end in statuses(agent.told())] == [S.FINISHED]


def test_tasks_without_devices_are_not_asked_about() -> None:
    agent = Asking().ready()
    agent.run(task("t"))
    effects: Any = agent.end("t")
    assert not of(effects, AskWhoUses) and statuses(effects)
