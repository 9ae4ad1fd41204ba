"""Dialogues: how long a task runs, how it is looked after and started again, and what an agent itself ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from agent_dialogue import GPUS, Agent, F, R, S, container, key, of, said, statuses, task

from bursar.agent.containers.runtime import ContainerExit, RecoveredContainer
from bursar.agent.effects import CheckContainer, KillContainer, RemoveContainer, StartContainer
from bursar.agent.events import (
    ContainerChecked,
    ContainerExited,
    ContainersRecovered,
    ContainerStarted,
    DevicesDiscovered,
    SandboxOverfilled,
)
from bursar.agent.machine import AgentMachine
from bursar.core.devices import DeviceHealth
from bursar.core.ids import TaskId
from bursar.core.lives import Check, CheckStatus, HealthCheck, RestartMode, RestartPolicy, TcpCheck
from bursar.core.messages.agent import RestartTask, TaskReports
from bursar.core.resources import ReservedResources, Resources
from bursar.core.service_ports import ServicePort
from bursar.core.tasks import AssignedTask, StatusReason, TaskStatus
from bursar.core.ulimits import parse_ulimits

# --- what the agent itself ends ---------------------------------------------------------------------------------------


def limited(name: str, *gpus: int, **fields: Any) -> AssignedTask:
    made = task(name, *gpus)
    return replace(made, spec=replace(made.spec, **fields))


def test_a_task_that_runs_for_too_long_is_ended_and_has_failed() -> None:
    agent = Agent().ready()
    agent.run(limited("t", 0, max_run_ms=60_000, kill_grace_ms=500))
    assert not of(agent.wait(59_999), KillContainer)
    effects = agent.wait(1)
    assert of(effects, KillContainer) == [KillContainer(container("t"), 500)]
    assert [(status.state, status.reason) for status in statuses(effects) if status.state is S.KILLING] == [
        (S.KILLING, R.MAX_RUN_TIME)
    ]
    (status,) = statuses(agent.exit("t", 143))
    assert (status.state, status.reason, status.exit_code) == (S.FAILED, R.MAX_RUN_TIME, 143)
    assert "1m" in status.message


def test_the_time_to_run_goes_on_while_the_agent_is_down() -> None:
    agent = Agent().ready()
    agent.run(limited("t", max_run_ms=60_000))
    later = Agent(agent.durable)
    later.ms = agent.ms + 50_000
    later.ready(RecoveredContainer(container("t"), None))
    assert not of(later.wait(9_999), KillContainer)
    assert of(later.wait(1), KillContainer)


def test_the_end_of_a_task_ends_its_time() -> None:
    agent = Agent().ready()
    agent.run(limited("t", max_run_ms=60_000))
    agent.exit("t")
    assert not of(agent.wait(60_000), KillContainer)


def test_a_kill_that_came_first_keeps_its_reason() -> None:
    agent = Agent().ready()
    agent.run(limited("t", max_run_ms=60_000))
    agent.kill("t", grace_ms=100_000)
    assert not of(agent.wait(60_000), KillContainer)
    (status,) = statuses(agent.exit("t", 143))
    assert (status.state, status.reason) == (S.KILLED, R.KILLED_BY_FRAMEWORK)


@pytest.mark.parametrize(("code", "reason"), [(1, R.DEVICE_LOST), (0, R.COMMAND_EXITED)])
def test_a_failure_on_a_lost_device_is_the_devices(code: int, reason: StatusReason) -> None:
    agent = Agent().ready()
    agent.run(task("t", 1))
    sick = replace(GPUS[1], health=DeviceHealth.UNHEALTHY, health_reason="XID 79")
    agent.step(DevicesDiscovered((GPUS[0], sick), ()))
    (status,) = statuses(agent.exit("t", code))
    assert status.reason is reason
    assert code == 0 or "GPU-1 is not healthy: XID 79" in status.message


# --- checks -----------------------------------------------------------------------------------------------------------

WELL, UNWELL = CheckStatus(is_connected=True), CheckStatus(is_connected=False)
HEALTH = HealthCheck(Check(tcp=TcpCheck(80), delay_ms=1_000, interval_ms=2_000), 2, 5_000)


def checked(agent: Agent, status: CheckStatus, kind: str = "health_check") -> list[TaskStatus]:
    return statuses(agent.step(ContainerChecked(container("t"), kind, status)))


def test_health_is_told_when_it_changes_and_too_many_failures_end_the_task() -> None:
    agent = Agent().ready()
    agent.run(limited("t", 0, health_check=HEALTH))
    assert not of(agent.wait(999), CheckContainer)
    assert of(agent.wait(1), CheckContainer) == [CheckContainer(container("t"), "health_check", HEALTH.check)]
    assert not of(agent.wait(60_000), CheckContainer), "one look at a time"
    (status,) = checked(agent, WELL)
    assert (status.state, status.reason, status.healthy) == (S.RUNNING, R.CHECK_CHANGED, True)
    agent.wait(2_000)
    assert checked(agent, WELL) == []
    (status,) = checked(agent, UNWELL)
    assert (status.state, status.healthy) == (S.RUNNING, False)
    assert checked(agent, WELL)[0].healthy is True, "a success begins the count anew"
    checked(agent, UNWELL)
    effects = agent.step(ContainerChecked(container("t"), "health_check", UNWELL))
    assert of(effects, KillContainer)
    (killing,) = statuses(effects)
    assert (killing.state, killing.reason) == (S.KILLING, R.UNHEALTHY)
    (end,) = statuses(agent.exit("t", 143))
    assert (end.state, end.reason, end.healthy) == (S.KILLED, R.UNHEALTHY, False)
    assert "tcp:80 failed 2 times in a row: nothing listens" in end.message


def test_failures_do_not_count_in_the_grace_period_until_the_first_success() -> None:
    agent = Agent().ready()
    agent.run(limited("t", health_check=HEALTH))
    for _ in range(5):
        agent.ms += 900
        assert checked(agent, UNWELL) == []
    agent.ms += 1_000
    assert checked(agent, UNWELL)[0].healthy is False
    again = Agent().ready()
    again.run(limited("t", health_check=HEALTH))
    checked(again, WELL)
    assert checked(again, UNWELL)[0].healthy is False, "the first success ends it"


def test_a_check_only_tells() -> None:
    agent = Agent().ready()
    check = Check(command=("true",), delay_ms=0, interval_ms=1_000)
    agent.run(limited("t", check=check))
    assert of(agent.wait(0), CheckContainer) == [CheckContainer(container("t"), "check", check)]
    for code in (0, 1, 1, 1, 1):
        told = checked(agent, CheckStatus(exit_code=code), "check")
        assert [status.check for status in told] in ([CheckStatus(exit_code=code)], [])
    assert agent.machine.state.tasks[key("t")].state is S.RUNNING
    (end,) = statuses(agent.exit("t", 0))
    assert end.state is S.FINISHED and end.check == CheckStatus(exit_code=1)


def test_looks_end_with_the_task_and_begin_again_with_the_agent() -> None:
    agent = Agent().ready()
    agent.run(limited("t", health_check=HEALTH))
    agent.wait(1_000)
    checked(agent, WELL)
    later = Agent(agent.durable).ready(RecoveredContainer(container("t"), None))
    assert of(later.wait(1_000), CheckContainer)
    assert checked(later, UNWELL)[0].healthy is False, "it was healthy once: the grace period is over"
    later.exit("t", 0)
    assert checked(later, UNWELL) == [] and not of(later.wait(10_000), CheckContainer)


# --- restarts ---------------------------------------------------------------------------------------------------------


def begin_again(agent: Agent, delay_ms: int) -> StartContainer:
    assert not of(agent.wait(delay_ms - 1), StartContainer)
    (start,) = of(agent.wait(1), StartContainer)
    (status,) = statuses(agent.step(ContainerStarted(container("t"))))
    assert (status.state, status.reason) == (S.RUNNING, R.RESTARTED)
    return start


def test_a_failure_is_restarted_with_a_growing_back_off_and_keeps_its_devices() -> None:
    agent = Agent().ready()
    agent.run(limited("t", 0, restart=RestartPolicy(RestartMode.ON_FAILURE, 2)))
    effects = agent.exit("t", 3)
    assert [(status.state, status.reason) for status in statuses(effects)] == [(S.RUNNING, R.RESTARTING)]
    assert of(effects, RemoveContainer) == [RemoveContainer(container("t"))]
    assert set(agent.machine.live_devices()) == {"GPU-0"}
    assert begin_again(agent, 1_000).devices == GPUS[:1]
    agent.exit("t", 3)
    begin_again(agent, 2_000)
    (end,) = statuses(agent.exit("t", 3))
    assert (end.state, end.reason, end.exit_code) == (S.FAILED, R.COMMAND_EXITED, 3), "twice is enough"
    assert agent.machine.live_devices() == {}


@pytest.mark.parametrize(("mode", "again"), [(RestartMode.ON_FAILURE, False), (RestartMode.ALWAYS, True)])
def test_success_is_the_end_unless_it_is_to_run_always(mode: RestartMode, again: bool) -> None:
    agent = Agent().ready()
    agent.run(limited("t", restart=RestartPolicy(mode)))
    (status,) = statuses(agent.exit("t", 0))
    assert status.state is (S.RUNNING if again else S.FINISHED)


def test_who_is_killed_is_not_restarted_not_even_between_two_runs() -> None:
    for between in (False, True):
        agent = Agent().ready()
        agent.run(limited("t", 0, restart=RestartPolicy(RestartMode.ALWAYS)))
        if between:
            agent.exit("t", 0)
            effects = agent.kill("t")
        else:
            agent.kill("t")
            effects = agent.exit("t", 143)
        assert statuses(effects)[-1].state is S.KILLED
        assert not of(agent.wait(10_000_000), StartContainer) and agent.machine.live_devices() == {}


def test_a_long_run_begins_the_back_off_anew() -> None:
    agent = Agent().ready()
    agent.run(limited("t", restart=RestartPolicy(RestartMode.ALWAYS, backoff_ms=1_000, max_backoff_ms=60_000)))
    for delay_ms in (1_000, 2_000, 4_000):
        agent.exit("t", 1)
        begin_again(agent, delay_ms)
    agent.ms += 60_000
    agent.exit("t", 1)
    begin_again(agent, 1_000)


def test_an_unhealthy_task_is_restarted_where_its_policy_says_so() -> None:
    agent = Agent().ready()
    health = replace(HEALTH, consecutive_failures=1, grace_period_ms=0)
    agent.run(limited("t", health_check=health, restart=RestartPolicy(RestartMode.ON_FAILURE, 1)))
    effects = agent.step(ContainerChecked(container("t"), "health_check", UNWELL))
    assert of(effects, KillContainer) and {status.state for status in statuses(effects)} == {S.RUNNING}
    (status,) = statuses(agent.exit("t", 143))
    assert status.reason is R.RESTARTING and status.healthy is None
    begin_again(agent, 1_000)
    effects = agent.step(ContainerChecked(container("t"), "health_check", UNWELL))
    assert statuses(effects)[-1].state is S.KILLING
    (end,) = statuses(agent.exit("t", 143))
    assert (end.state, end.reason) == (S.KILLED, R.UNHEALTHY)


def test_a_restart_that_is_asked_for_looks_its_devices_up_anew() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    ask = RestartTask(F, TaskId("t"), "an operator asked for it", 500)
    effects = agent.hear(ask)
    assert of(effects, KillContainer) == [KillContainer(container("t"), 500)]
    assert not of(agent.hear(ask), KillContainer), "it is on its way"
    agent.exit("t", 143)
    moved = replace(GPUS[0], index=9)
    agent.step(DevicesDiscovered((moved, *GPUS[1:]), ()))
    (start,) = of(agent.wait(0), StartContainer)
    assert start.devices == (moved,)
    agent.step(ContainerStarted(container("t")))
    agent.exit("t", 0)
    assert agent.machine.state.tasks[key("t")].state is S.FINISHED, "once"


def test_a_restart_without_its_device_is_the_end() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    agent.hear(RestartTask(F, TaskId("t")))
    agent.exit("t", 143)
    agent.step(DevicesDiscovered(GPUS[1:], ()))
    effects = agent.wait(0)
    assert [(status.state, status.reason) for status in statuses(effects)] == [(S.FAILED, R.DEVICE_LOST)]
    assert not of(effects, StartContainer)


def test_only_what_runs_is_restarted() -> None:
    agent = Agent().ready()
    assert agent.hear(RestartTask(F, TaskId("nobody"))) == []
    agent.launch(task("t"))
    assert agent.hear(RestartTask(F, TaskId("t"))) == []
    agent.step(ContainerStarted(container("t")))
    agent.kill("t")
    assert not of(agent.hear(RestartTask(F, TaskId("t"))), KillContainer)


def test_a_restart_goes_on_after_one_of_the_agent() -> None:
    agent = Agent().ready()
    agent.run(limited("t", 0, restart=RestartPolicy(RestartMode.ALWAYS)))
    agent.hear(RestartTask(F, TaskId("t")))
    later = Agent(agent.durable)
    assert of(later.step(ContainersRecovered((RecoveredContainer(container("t"), None),))), KillContainer)
    agent.exit("t", 1)
    waits = Agent(agent.durable)
    waits.step(ContainersRecovered(()))
    assert of(waits.wait(0), StartContainer), "it waited for its next run"


# --- disks and ports ---


def test_who_fills_its_sandbox_is_ended_once_and_has_failed() -> None:
    agent = Agent().ready()
    assigned = task("t")
    parts = (ReservedResources((), Resources({"cpus": 1000, "disk": 1 << 20})),)
    agent.run(replace(assigned, resources=parts))
    effects = agent.step(SandboxOverfilled(container("t")))
    assert [kill.container_id for kill in of(effects, KillContainer)] == [container("t")]
    (status,) = statuses(effects)
    assert (status.state, status.reason) == (S.KILLING, R.DISK_LIMIT)
    assert of(agent.step(SandboxOverfilled(container("t"))), KillContainer) == [], "a second look changes nothing"
    (end,) = statuses(agent.step(ContainerExited(container("t"), ContainerExit(143, R.COMMAND_EXITED))))
    assert (end.state, end.reason) == (S.FAILED, R.DISK_LIMIT) and "1MiB of disk that it asked for" in end.message
    agent.step(SandboxOverfilled(container("t")))
    agent.step(SandboxOverfilled(container("never")))


def with_port(name: str, port: int) -> AssignedTask:
    assigned = task(name)
    services = (ServicePort("web", 80, host_port=port),)
    request = replace(assigned.spec.resources, port_count=1)
    return replace(assigned, spec=replace(assigned.spec, service_ports=services, resources=request))


def test_a_port_that_a_live_task_has_is_given_to_no_other() -> None:
    agent = Agent().ready()
    agent.run(with_port("s", 31000))
    (refusal,) = statuses(agent.launch(with_port("t", 31000)))
    assert (refusal.state, refusal.reason) == (S.DROPPED, R.AGENT_REFUSED)
    assert "port 31000 (web) is still 'web' of task s" in refusal.message
    agent.run(with_port("u", 31001))
    agent.step(ContainerExited(container("s"), ContainerExit(0, R.COMMAND_EXITED)))
    assert of(agent.launch(with_port("v", 31000)), StartContainer)


def test_an_order_to_restart_is_carried_out_once_however_often_it_is_said() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    order = RestartTask(F, TaskId("t"), "somebody", None, 3)
    assert of(agent.hear(order), KillContainer)
    assert not of(agent.hear(order), KillContainer)
    agent.exit("t", 143)
    agent.wait(0)
    agent.step(ContainerStarted(container("t")))
    # Another life, and another connection: its report tells that it was taken.
    later = Agent(agent.durable).ready(RecoveredContainer(container("t"), None))
    report = next(one for one in said(later.connect()) if isinstance(one, TaskReports)).tasks[0]
    assert (report.state, report.restart_order) == (S.RUNNING, 3)
    later.register()
    for number in (1, 3):
        assert not of(later.hear(replace(order, number=number)), KillContainer)
    assert of(later.hear(replace(order, number=4)), KillContainer)


def test_an_order_that_was_taken_is_carried_out_by_the_next_life() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    agent.hear(RestartTask(F, TaskId("t"), "somebody", None, 1))
    later = Agent(agent.durable)
    assert of(later.step(ContainersRecovered((RecoveredContainer(container("t"), None),))), KillContainer)


def test_an_order_that_meets_a_new_run_is_fulfilled_by_it() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    agent.hear(RestartTask(F, TaskId("t"), "somebody", None, 1))
    agent.exit("t", 143)
    agent.wait(0)
    agent.hear(RestartTask(F, TaskId("t"), "somebody", None, 2))
    assert not of(agent.step(ContainerStarted(container("t"))), KillContainer)
    assert agent.machine.state.tasks[key("t")].restart_order == 2


def test_limits_that_the_agent_does_not_allow_are_refused_with_both() -> None:
    agent = Agent()
    allowed = parse_ulimits(("nofile=100", "rtprio=0"))
    agent.machine = AgentMachine(replace(agent.machine.books.config, max_ulimits=allowed), agent.durable.copy())
    agent.ready()
    limited = task("t")
    limited = replace(limited, spec=replace(limited.spec, ulimits=parse_ulimits(("nofile=100:101",))))
    (refusal,) = statuses(agent.launch(limited))
    assert (refusal.state, refusal.reason) == (S.ERROR, R.AGENT_REFUSED)
    assert refusal.message.startswith(
        "ulimits: nofile=100:101 is more than this agent allows (nofile=100); ask for less"
    )
    ours = task("u")
    effects = agent.launch(replace(ours, spec=replace(ours.spec, ulimits=parse_ulimits(("nofile=100", "core=-1")))))
    assert [effect.task.spec.ulimits for effect in of(effects, StartContainer)] == [
        parse_ulimits(("nofile=100", "core=-1"))
    ]
