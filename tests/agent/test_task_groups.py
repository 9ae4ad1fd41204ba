"""Dialogues with the agent's machine about tasks that live and end together (TSK-4)."""

from __future__ import annotations

from dataclasses import replace

from agent_dialogue import GPUS, Agent, R, S, container, of, states, statuses, task

from bursar.agent.containers.runtime import ContainerExit, RecoveredContainer
from bursar.agent.effects import KillContainer, PullImage, ReleaseNetwork, StartContainer
from bursar.agent.events import ContainerLaunchFailed, ContainersRecovered, ContainerStarted, ImageMissed
from bursar.core.devices import Device, DeviceHealth
from bursar.core.ids import TaskId
from bursar.core.messages.agent import RestartTask
from bursar.core.resources import PortRange, normalize_ports
from bursar.core.service_ports import ServicePort
from bursar.core.task_groups import TaskGroup
from bursar.core.tasks import AssignedTask


def grouped(*tasks: AssignedTask, name: str = "g") -> tuple[AssignedTask, ...]:
    group = TaskGroup(name, tuple(one.spec.task_id for one in tasks))
    return tuple(replace(one, spec=replace(one.spec, task_group=group)) for one in tasks)


def pair(grace_ms: int | None = None) -> tuple[AssignedTask, ...]:
    return grouped(task("a", 0), task("b", 1, grace_ms=grace_ms))


def running(agent: Agent | None = None, grace_ms: int | None = None) -> Agent:
    agent = agent or Agent().ready()
    agent.launch(*pair(grace_ms))
    for name in ("a", "b"):
        agent.step(ContainerStarted(container(name)))
    return agent


def test_all_are_started_at_once_in_one_network_and_finish_one_by_one() -> None:
    agent = Agent().ready()
    effects = agent.launch(*pair(), task("alone"))
    assert states(effects) == [S.STARTING] * 3
    a, b, alone = of(effects, StartContainer)
    assert a.network_id and a.network_id == b.network_id and not alone.network_id
    for name in ("a", "b"):
        agent.step(ContainerStarted(container(name)))
    effects = agent.exit("a")
    assert states(effects) == [S.FINISHED]
    assert not of(effects, KillContainer) and not of(effects, ReleaseNetwork)
    assert agent.machine.live_devices() == {GPUS[1].uuid: container("b")}
    effects = agent.exit("b")
    assert states(effects) == [S.FINISHED]
    assert of(effects, ReleaseNetwork) == [ReleaseNetwork(a.network_id)]


def test_one_that_fails_has_the_others_killed_with_their_own_grace() -> None:
    agent = running(grace_ms=700)
    effects = agent.exit("a", 3)
    failed, killing = statuses(effects)
    assert (failed.task_id, failed.state, failed.reason) == ("a", S.FAILED, R.COMMAND_EXITED)
    assert (killing.task_id, killing.state, killing.reason) == ("b", S.KILLING, R.GROUP_MEMBER_ENDED)
    assert killing.message == "a of its group g failed: the command exited with 3"
    assert of(effects, KillContainer) == [KillContainer(container("b"), 700)]
    (end,) = statuses(agent.exit("b", 143))
    assert (end.state, end.reason, end.exit_code) == (S.KILLED, R.GROUP_MEMBER_ENDED, 143)
    assert "a of its group g failed" in end.message


def test_a_kill_of_one_is_the_end_of_all() -> None:
    agent = running()
    effects = agent.kill("b", grace_ms=50)
    assert [(one.task_id, one.reason) for one in statuses(effects)] == [
        ("b", R.KILLED_BY_FRAMEWORK),
        ("a", R.GROUP_MEMBER_ENDED),
    ]
    # The grace that was asked for is that of the one who was named.
    assert of(effects, KillContainer) == [KillContainer(container("b"), 50), KillContainer(container("a"), 3000)]
    # One that ends well after that has been killed all the same.
    (end,) = statuses(agent.exit("a", 0))
    assert (end.state, end.reason) == (S.KILLED, R.GROUP_MEMBER_ENDED)


def test_a_launch_that_fails_undoes_the_others_started_or_not() -> None:
    agent = Agent().ready()
    agent.launch(*grouped(task("a"), task("b"), task("c")))
    agent.step(ContainerStarted(container("b")))
    effects = agent.step(ContainerLaunchFailed(container("a"), R.LAUNCH_FAILED, "no such program", 127))
    assert of(effects, KillContainer) == [KillContainer(container("b"), 3000)]
    # c is being started: it is killed once it has, and never said to run.
    effects = agent.step(ContainerStarted(container("c")))
    assert of(effects, KillContainer) == [KillContainer(container("c"), 3000)] and not statuses(effects)
    ends = [*statuses(agent.exit("b", 143)), *statuses(agent.exit("c", 143))]
    assert {(one.state, one.reason) for one in ends} == {(S.KILLED, R.GROUP_MEMBER_ENDED)}
    assert all("no such program" in one.message for one in ends)


def test_one_that_cannot_be_launched_keeps_all_from_it() -> None:
    agent = Agent().ready()
    ill = Device(GPUS[1].uuid, "gpus", index=1, health=DeviceHealth.UNHEALTHY, health_reason="XID 79")
    agent.machine.books.devices[ill.uuid] = ill
    effects = agent.launch(*pair(), task("alone"))
    a, b, alone = statuses(effects)
    assert (a.task_id, a.state, a.reason) == ("a", S.DROPPED, R.GROUP_MEMBER_ENDED)
    assert "b of its group g was not launched" in a.message and "XID 79" in a.message
    assert (b.task_id, b.state, b.reason) == ("b", S.DROPPED, R.DEVICES_CHANGED)
    assert alone.state is S.STARTING
    assert [one.container_id for one in of(effects, StartContainer)] == [container("alone")]


def test_a_part_of_a_group_is_not_launched() -> None:
    agent = Agent().ready()
    agent.kill("b")  # before the launch came
    (only,) = statuses(agent.launch(pair()[0]))
    assert (only.state, only.reason) == (S.DROPPED, R.GROUP_MEMBER_ENDED)
    assert "b is not among its tasks" in only.message


def test_a_launch_that_is_repeated_changes_nothing() -> None:
    agent = running()
    agent.exit("a")
    agent.ack_all("a")
    effects = agent.launch(*pair())
    assert [(one.task_id, one.state) for one in statuses(effects)] == [("a", S.FINISHED)]
    assert not of(effects, StartContainer) and not of(effects, KillContainer)


def test_one_that_waits_for_its_image_ends_with_the_others() -> None:
    agent = Agent(runtime="docker", default_image="i").ready()
    agent.launch(*pair())
    agent.step(ContainerStarted(container("a")))
    assert of(agent.step(ImageMissed(container("b"))), PullImage)
    effects = agent.exit("a", 1)
    assert [(one.task_id, one.state) for one in statuses(effects)] == [
        ("a", S.FAILED),
        ("b", S.KILLING),
        ("b", S.KILLED),
    ]
    assert len(of(effects, ReleaseNetwork)) == 1


def test_a_restarted_agent_finds_what_its_group_has_lost_meanwhile() -> None:
    agent = running()
    again = Agent(agent.durable)
    found = (
        RecoveredContainer(container("a"), None),
        RecoveredContainer(container("b"), ContainerExit(1, R.COMMAND_EXITED)),
    )
    effects = again.step(ContainersRecovered(found))
    assert of(effects, KillContainer) == [KillContainer(container("a"), 3000)]
    assert again.durable.tasks[next(iter(again.durable.tasks))].kill is not None


def test_a_restarted_agent_keeps_a_group_that_is_whole() -> None:
    agent = running()
    again = Agent(agent.durable)
    effects = again.step(ContainersRecovered(tuple(RecoveredContainer(container(n), None) for n in ("a", "b"))))
    assert not of(effects, KillContainer) and not of(effects, ReleaseNetwork)
    assert of(again.exit("a", 1), KillContainer) == [KillContainer(container("b"), 3000)]


def test_nobody_restarts_one_alone() -> None:
    agent = running()
    assert not agent.hear(RestartTask(pair()[0].framework_id, TaskId("a")))


def served(one: AssignedTask, port: int) -> AssignedTask:
    spec = replace(one.spec, service_ports=(ServicePort("web", port, host_port=31000 + port),), image="x")
    ports = normalize_ports((PortRange(31000 + port, 31000 + port),))
    return replace(one, spec=replace(spec, resources=replace(spec.resources, ports=ports)))


def test_their_network_is_made_with_the_ports_of_all_and_keeps_them_until_it_goes() -> None:
    agent = Agent(runtime="docker").ready()
    a, b = grouped(served(task("a"), 80), served(task("b"), 81))
    starts = of(agent.launch(a, b), StartContainer)
    assert {one.host_port for one in starts[0].network_ports} == {31080, 31081}
    assert starts[0].network_ports == starts[1].network_ports
    for name in ("a", "b"):
        agent.step(ContainerStarted(container(name)))
    agent.exit("a")
    (dropped,) = statuses(agent.launch(served(task("c"), 80)))
    assert dropped.state is S.DROPPED and "is still 'web' of task a" in dropped.message
    agent.exit("b")
    assert states(agent.launch(served(task("d"), 80))) == [S.STARTING]
