"""An agent and the orders about its persistent volumes (VOL-2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agent_dialogue import Agent, S, info, key, of, said, statuses, task

from bursar.agent.effects import KeepVolumes, StartContainer
from bursar.agent.events import VolumesKept
from bursar.agent.machine import AgentConfig, AgentMachine
from bursar.core.messages.agent import VolumeOrders, VolumesHeld, VolumeTrouble
from bursar.core.resources import ReservedResources, Resources
from bursar.core.surroundings import Volume, VolumeKind, VolumeMode
from bursar.core.tasks import AssignedTask
from bursar.core.volumes import volume_device

DB, LOG = volume_device("ml", "db", 100), volume_device("ml", "log", 50)


def mounting(name: str, *uuids: Any) -> AssignedTask:
    plain = task(name)
    volumes = tuple(
        Volume(VolumeKind.PERSISTENT, uuid.rpartition("/")[2], f"/{uuid.rpartition('/')[2]}", VolumeMode.READ_WRITE)
        for uuid in uuids
    )
    spec = replace(plain.spec, volumes=volumes)
    return replace(
        plain, spec=spec, resources=(ReservedResources((), Resources({"cpus": 1000}, (), frozenset(uuids))),)
    )


def with_data(*uuids: Any) -> Agent:
    """An agent that finds the data of these when it begins."""
    agent = Agent()
    agent.machine = AgentMachine(AgentConfig(info(), volumes=frozenset(uuids)), agent.durable.copy())
    return agent


def asked(effects: list[Any]) -> KeepVolumes:
    (found,) = [effect for effect in effects if isinstance(effect, KeepVolumes)]
    return found


def told(effects: list[Any]) -> VolumesHeld:
    (found,) = [message for message in said(effects) if isinstance(message, VolumesHeld)]
    return found


def test_what_is_ordered_is_made_before_the_task_that_mounts_it_and_told() -> None:
    agent = Agent().ready()
    question = asked(agent.hear(VolumeOrders(1, make=(DB,))))
    assert (question.make, question.remove) == ((DB,), ())
    (start,) = of(agent.launch(mounting("t", DB)), StartContainer)
    assert start.task.volume_names == (DB,) and start.devices == ()
    held = told(agent.step(VolumesKept(question.asked, (DB,))))
    assert held == VolumesHeld(1, (DB,))
    # Said again, it is not made again: if it has gone meanwhile, that is to be seen.
    question = asked(agent.hear(VolumeOrders(2, make=(DB,), keep=())))
    assert question.make == ()
    held = told(agent.step(VolumesKept(question.asked, ())))
    assert held == VolumesHeld(2, ())


def test_data_that_was_there_is_told_without_being_asked() -> None:
    agent = with_data(DB)
    agent.ready()
    agent.connect()
    held = told(agent.register())
    assert held == VolumesHeld(0, (DB,))
    assert not Agent().ready().machine.volumes.held


def test_an_answer_to_an_older_question_is_not_told() -> None:
    agent = Agent().ready()
    first = asked(agent.hear(VolumeOrders(1, make=(DB,))))
    second = asked(agent.hear(VolumeOrders(2, make=(DB, LOG))))
    assert not any(isinstance(one, VolumesHeld) for one in said(agent.step(VolumesKept(first.asked, (DB,)))))
    trouble = VolumeTrouble(LOG, "no space left")
    held = told(agent.step(VolumesKept(second.asked, (DB,), (trouble,))))
    assert held == VolumesHeld(2, (DB,), (trouble,))
    # Nor one of the connection before.
    third = asked(agent.hear(VolumeOrders(3, make=(LOG,))))
    agent.connect()
    agent.register()
    assert not any(isinstance(one, VolumesHeld) for one in said(agent.step(VolumesKept(third.asked, (DB, LOG)))))


def test_what_a_task_has_is_removed_only_once_it_has_ended() -> None:
    agent = with_data(DB)
    agent.ready()
    agent.run(mounting("t", DB))
    question = asked(agent.hear(VolumeOrders(1, remove=(DB,))))
    assert question.remove == ()
    held = told(agent.step(VolumesKept(question.asked, (DB,))))
    assert held.held == (DB,) and held.troubles[0].problem == "task t of f has it"
    question = asked(agent.exit("t"))
    assert question.remove == (DB,)
    held = told(agent.step(VolumesKept(question.asked, ())))
    assert held == VolumesHeld(1, ())


def test_a_second_task_with_the_same_volume_is_dropped() -> None:
    agent = with_data(DB)
    agent.ready()
    agent.run(mounting("t", DB))
    (status,) = statuses(agent.launch(mounting("u", DB)))
    assert status.state is S.DROPPED and "volume db of ml is still task t's" in status.message
    assert key("u") not in agent.machine.state.tasks or agent.machine.state.tasks[key("u")].state.is_terminal
