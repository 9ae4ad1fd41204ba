"""Dialogues with the agent's machine about tasks that an executor runs (TSK-13)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from agent_dialogue import AGENT, GPUS, Agent, F, R, S, container, key, of, said, states, statuses, task

from bursar.agent.containers.runtime import ContainerExit, RecoveredContainer
from bursar.agent.effects import (
    AskWhoUses,
    KillContainer,
    LaunchOnExecutor,
    OpenLogStream,
    OpenSessionStream,
    RemoveContainer,
    StartContainer,
    TellExecutor,
)
from bursar.agent.events import (
    ContainersRecovered,
    ContainerStarted,
    DeviceUsersTold,
    ExecutorCalled,
    ExecutorLeft,
    MasterDisconnected,
)
from bursar.agent.machine import AgentMachine
from bursar.core.ids import FrameworkId, TaskId
from bursar.core.messages.agent import OpenLog, OpenSession
from bursar.core.messages.executor import (
    ExecutorAcknowledged,
    ExecutorKill,
    ExecutorMessage,
    ExecutorRefused,
    ExecutorShutdown,
    ExecutorSubscribe,
    ExecutorSubscribed,
    ExecutorUpdate,
)
from bursar.core.messages.sessions import SessionKind, SessionStart
from bursar.core.tasks import AssignedTask, TaskExecutor, TaskState

X = container("x")


def executor(name: str = "x", *gpus: int) -> AssignedTask:
    one = task(name, *gpus)
    return replace(one, spec=replace(one.spec, executor=TaskExecutor(serves=True)))


def on(name: str, *gpus: int, executor_id: str = "x") -> AssignedTask:
    one = task(name, *gpus)
    return replace(one, spec=replace(one.spec, command=(), executor=TaskExecutor(False, TaskId(executor_id))))


class Served(Agent):
    """An agent with an executor x."""

    def subscribe(self, *known: str, updates: tuple[ExecutorUpdate, ...] = ()) -> list[Any]:
        return self.step(ExecutorCalled(X, ExecutorSubscribe(tuple(map(TaskId, known)), updates)))

    def update(self, name: str, number: int, state: TaskState, message: str = "", code: int | None = None) -> list[Any]:
        return self.step(ExecutorCalled(X, ExecutorUpdate(TaskId(name), number, state, message, code)))


def serving() -> Served:
    agent = Served()
    agent.ready()
    agent.run(executor())
    agent.subscribe()
    return agent


def told(effects: Any) -> list[Any]:
    return [effect.event for effect in of(effects, TellExecutor)]


def given(effects: Any) -> list[str]:
    return [effect.task.spec.task_id for effect in of(effects, LaunchOnExecutor)]


def test_a_task_is_given_to_its_executor_and_its_statuses_take_the_way_of_all() -> None:
    agent = serving()
    effects = agent.launch(on("t", 1))
    assert states(effects) == [S.STARTING] and given(effects) == ["t"] and not of(effects, StartContainer)
    assert of(effects, LaunchOnExecutor)[0].devices == (GPUS[1],)
    assert agent.machine.live_devices() == {GPUS[1].uuid: container("t")}
    effects = agent.update("t", 1, S.RUNNING)
    assert states(effects) == [S.RUNNING] and told(effects) == [ExecutorAcknowledged(TaskId("t"), 1)]
    # The same again is acknowledged, and that is all.
    effects = agent.update("t", 1, S.RUNNING)
    assert not states(effects) and told(effects) == [ExecutorAcknowledged(TaskId("t"), 1)]
    effects = agent.update("t", 2, S.FINISHED, "done", 0)
    (end,) = statuses(effects)
    assert (end.state, end.message, end.exit_code) == (S.FINISHED, "done", 0)
    assert not of(effects, RemoveContainer) and not agent.machine.live_devices()
    agent.ack_all("t")
    assert told(agent.update("t", 2, S.FINISHED)) == [ExecutorAcknowledged(TaskId("t"), 2)]


def test_tasks_wait_for_an_executor_that_is_not_connected_yet() -> None:
    agent = Served()
    agent.ready()
    agent.run(executor())
    assert not given(agent.launch(on("t")))
    effects = agent.subscribe()
    assert told(effects) == [ExecutorSubscribed(F, TaskId("x"), AGENT)] and given(effects) == ["t"]
    agent.step(ExecutorLeft(X))
    # The launch may have been lost with the stream: whoever does not know the task is given it again.
    assert given(agent.subscribe("t")) == []
    assert given(agent.subscribe()) == ["t"]


def test_a_kill_goes_through_the_executor_until_the_task_has_ended() -> None:
    agent = serving()
    agent.launch(on("t"))
    agent.update("t", 1, S.RUNNING)
    effects = agent.kill("t", grace_ms=500)
    assert told(effects) == [ExecutorKill(TaskId("t"), 500)] and not of(effects, KillContainer)
    effects = agent.wait(10_500)
    assert told(effects) == [ExecutorKill(TaskId("t"), 0)]
    (end,) = statuses(agent.update("t", 2, S.FINISHED, "", 0))
    assert (end.state, end.reason) == (S.KILLED, R.KILLED_BY_FRAMEWORK)
    assert not told(agent.wait(20_000))


def test_one_that_was_never_given_is_killed_at_once() -> None:
    agent = Served()
    agent.ready()
    agent.run(executor())
    agent.launch(on("t"))
    assert states(agent.kill("t")) == [S.KILLING, S.KILLED]
    assert not given(agent.subscribe())


def test_the_end_of_an_executor_is_the_end_of_its_tasks() -> None:
    agent = serving()
    agent.launch(on("running", 0), on("asked"), task("alone"))
    agent.update("running", 1, S.RUNNING)
    agent.kill("asked")
    agent.step(ExecutorLeft(X))
    agent.launch(on("new"))
    effects = agent.exit("x", 137)
    ends = {one.task_id: (one.state, one.reason) for one in statuses(effects)}
    assert ends == {
        "x": (S.FAILED, R.COMMAND_EXITED),
        "running": (S.FAILED, R.EXECUTOR_ENDED),
        "asked": (S.KILLED, R.KILLED_BY_FRAMEWORK),
        "new": (S.DROPPED, R.EXECUTOR_ENDED),
    }
    assert all("executor x has ended" in one.message for one in statuses(effects) if one.task_id != "x")
    assert of(effects, RemoveContainer) == [RemoveContainer(X)] and not agent.machine.live_devices()
    (late,) = statuses(agent.launch(on("late")))
    assert (late.state, late.reason) == (S.DROPPED, R.EXECUTOR_ENDED)


def test_an_executor_is_told_to_end_and_what_is_left_is_killed_after_the_grace() -> None:
    agent = serving()
    effects = agent.kill("x", grace_ms=700)
    assert told(effects) == [ExecutorShutdown(700)] and not of(effects, KillContainer)
    assert not of(agent.wait(600), KillContainer)
    assert of(agent.wait(100), KillContainer) == [KillContainer(X, 0)]
    (refused,) = statuses(agent.launch(on("t")))
    assert (refused.state, refused.reason) == (S.DROPPED, R.EXECUTOR_ENDED)
    # One that does not listen gets a signal, as any other.
    agent = serving()
    agent.step(ExecutorLeft(X))
    assert of(agent.kill("x", grace_ms=700), KillContainer) == [KillContainer(X, 700)]


def test_nobody_speaks_for_the_tasks_of_others() -> None:
    agent = serving()
    agent.run(task("alone"))
    agent.run(executor("y"))
    agent.launch(on("theirs", executor_id="y"))
    for name in ("alone", "y", "theirs", "x"):
        effects = agent.update(name, 1, S.FINISHED)
        (refusal,) = told(effects)
        assert isinstance(refusal, ExecutorRefused) and not statuses(effects)
    # A task of nobody that it once had: it may forget it.
    assert told(agent.update("nobody", 1, S.FINISHED)) == [ExecutorAcknowledged(TaskId("nobody"), 1)]
    # What is no executor is not heard at all.
    assert not agent.step(ExecutorCalled(container("alone"), ExecutorSubscribe()))


@pytest.mark.parametrize("state", [S.UNSPECIFIED, S.STAGING, S.GONE, S.UNREACHABLE])
def test_states_that_are_not_the_executors_to_say(state: TaskState) -> None:
    agent = serving()
    agent.launch(on("t"))
    effects = agent.update("t", 1, state)
    (refusal,) = told(effects)
    assert isinstance(refusal, ExecutorRefused) and "cannot say" in refusal.error.message and not statuses(effects)


def test_a_restarted_agent_goes_on_and_hears_what_it_has_missed() -> None:
    agent = serving()
    agent.launch(on("a", 0), on("b"), on("c"))
    agent.update("a", 1, S.RUNNING)
    agent.kill("c", grace_ms=100)
    again = Served(agent.durable)
    effects = again.step(ContainersRecovered((RecoveredContainer(X, None),)))
    assert not statuses(effects) and not of(effects, KillContainer)
    assert again.machine.live_devices() == {GPUS[0].uuid: container("a")}
    updates = (ExecutorUpdate(TaskId("a"), 1, S.RUNNING), ExecutorUpdate(TaskId("a"), 2, S.FAILED, "oh", 3))
    effects = again.subscribe("a", "c", updates=updates)
    assert again.durable.tasks[key("a")].state is S.FAILED
    assert given(effects) == ["b"]
    assert ExecutorKill(TaskId("c"), 100) in told(effects)
    assert ExecutorAcknowledged(TaskId("a"), 2) in told(effects)


def test_an_executor_that_ended_while_the_agent_was_down_took_its_tasks_along() -> None:
    for order in (("x", "t"), ("t", "x")):
        agent = serving()
        agent.launch(on("t", 0))
        agent.durable.tasks = {key(name): agent.durable.tasks[key(name)] for name in order}
        again = Served(agent.durable)
        again.step(ContainersRecovered((RecoveredContainer(X, ContainerExit(1, R.COMMAND_EXITED)),)))
        assert again.durable.tasks[key("t")].state is S.FAILED
        assert again.durable.tasks[key("t")].unacknowledged[-1].reason is R.EXECUTOR_ENDED


def test_what_cannot_be() -> None:
    agent = Served(runtime="docker", default_image="i")
    agent.ready()
    agent.run(executor())
    agent.run(task("alone"))
    refusals = statuses(agent.launch(on("gpu", 0), on("nowhere", executor_id="z"), on("no", executor_id="alone")))
    assert [(one.state, one.reason) for one in refusals] == [
        (S.ERROR, R.AGENT_REFUSED),
        (S.DROPPED, R.EXECUTOR_ENDED),
        (S.ERROR, R.AGENT_REFUSED),
    ]
    agent.step(ContainerStarted(X))


def test_an_executor_that_ended_while_it_was_asked_who_uses_its_tasks_devices_took_them_along() -> None:
    def asking(before: Agent | None = None) -> Served:
        agent = Served(before.durable if before else None)
        agent.machine = AgentMachine(replace(agent.machine.books.config, tells_users=True), agent.durable.copy())
        return agent

    agent = asking()
    agent.ready()
    agent.run(executor())
    agent.subscribe()
    agent.launch(on("t", 1))
    agent.update("t", 1, S.RUNNING)
    effects = agent.exit("x", 1)
    assert [one.task_id for one in statuses(effects)] == ["x"] and of(effects, AskWhoUses)
    agent.ack_all("x")
    again = asking(agent)
    again.step(ContainersRecovered(()))
    again.step(DeviceUsersTold({GPUS[1].uuid: ()}))
    record = again.machine.state.tasks[key("t")]
    assert (record.state, record.unacknowledged[-1].reason) == (S.FAILED, R.EXECUTOR_ENDED)
    assert not again.machine.live_devices()


def test_messages_pass_both_ways_while_somebody_is_there() -> None:
    agent = serving()
    mine = ExecutorMessage(F, TaskId("x"), b"hello")
    assert told(agent.hear(mine)) == [ExecutorMessage(data=b"hello")]
    assert of(said(agent.step(ExecutorCalled(X, ExecutorMessage(data=b"hi")))), ExecutorMessage) == [
        ExecutorMessage(F, TaskId("x"), b"hi")
    ]
    # It cannot speak for another, whatever it writes.
    forged = ExecutorMessage(FrameworkId("other"), TaskId("y"), b"hi")
    assert of(said(agent.step(ExecutorCalled(X, forged))), ExecutorMessage) == [ExecutorMessage(F, TaskId("x"), b"hi")]
    (refused,) = told(agent.step(ExecutorCalled(X, ExecutorMessage(data=bytes(65_537)))))
    assert isinstance(refused, ExecutorRefused) and "too large" in refused.error.message
    agent.step(ExecutorLeft(X))
    assert not told(agent.hear(mine)), "nobody is there: it is lost"
    agent.subscribe()
    agent.step(MasterDisconnected(agent.connection))
    assert not said(agent.step(ExecutorCalled(X, ExecutorMessage(data=b"hi")))), "no master: it is lost"


def test_an_executor_that_speaks_without_end_does_not_drown_the_others() -> None:
    agent = serving()
    passed = [said(agent.step(ExecutorCalled(X, ExecutorMessage(data=b"x")))) for _ in range(500)]
    assert sum(map(bool, passed)) == 100


def test_output_and_programs_of_a_task_are_its_executors() -> None:
    agent = serving()
    agent.launch(on("t"))
    agent.update("t", 1, S.RUNNING)
    (log,) = of(agent.hear(OpenLog("s1", F, TaskId("t"), False, 0)), OpenLogStream)
    assert log.error is not None and log.error.hint == "bursar task logs f/x" and "executor x" in log.error.message
    start = SessionStart(SessionKind.EXEC, ("true",))
    (session,) = of(agent.hear(OpenSession("s2", F, TaskId("t"), start)), OpenSessionStream)
    assert session.error is not None and session.error.hint == "bursar task exec f/x"
