"""Dialogues with the agent's machine: events in, effects out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pytest

from bursar.agent.containers.runtime import ContainerExit, ContainerId, RecoveredContainer
from bursar.agent.effects import (
    AgentEffect,
    CheckContainer,
    CloseConnection,
    KillContainer,
    Log,
    OpenLogStream,
    OpenSessionStream,
    PullImage,
    RemoveContainer,
    RemoveSandbox,
    SendToMaster,
    StartContainer,
)
from bursar.agent.events import (
    AgentEvent,
    ContainerChecked,
    ContainerExited,
    ContainerLaunchFailed,
    ContainersRecovered,
    ContainerStarted,
    DevicesDiscovered,
    ImageMissed,
    ImagePulled,
    MasterConnected,
    MasterDisconnected,
    MasterMessageReceived,
    SandboxOverfilled,
)
from bursar.agent.machine import AgentConfig, AgentMachine
from bursar.agent.state import AgentState, Record, TaskSaved
from bursar.agent.tasks import TaskKey, container_of
from bursar.core.clock import Instant
from bursar.core.devices import Device, DeviceCondition, DeviceHealth
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, ConnectionId, DeviceUuid, FrameworkId, Generation, TaskId
from bursar.core.lives import Check, CheckStatus, HealthCheck, RestartMode, RestartPolicy, TcpCheck
from bursar.core.machine import Persist, Stalled, TimePassed
from bursar.core.messages.agent import (
    AcknowledgedUpdate,
    AcknowledgeUpdates,
    AgentInfo,
    AgentMessage,
    DesiredState,
    DevicesChanged,
    KillTask,
    MasterMessage,
    OpenLog,
    OpenSession,
    Ping,
    Pong,
    Refused,
    Register,
    Registered,
    RestartTask,
    ResyncRequest,
    TaskRef,
    TaskReports,
    TaskUpdates,
)
from bursar.core.messages.sessions import SessionKind, SessionStart
from bursar.core.resources import ReservedResources, Resources
from bursar.core.service_ports import ServicePort
from bursar.core.tasks import AssignedTask, EnvironmentVariable, StatusReason, TaskSpec, TaskState, TaskStatus

AGENT = AgentId("a1")
F = FrameworkId("f")
GPUS = tuple(Device(DeviceUuid(f"GPU-{n}"), "gpus", index=n) for n in range(4))
R = StatusReason
S = TaskState
E = TypeVar("E")


def info(runtime: str = "process", boot_id: str = "boot-1", devices: tuple[Device, ...] = GPUS) -> AgentInfo:
    return AgentInfo(AGENT, incarnation=1, boot_id=boot_id, hostname="h", devices=devices, runtime=runtime)


def task(
    name: str, *gpus: int, image: str = "", command: tuple[str, ...] = ("true",), grace_ms: int | None = None
) -> AssignedTask:
    spec = TaskSpec(TaskId(name), command=command, image=image, kill_grace_ms=grace_ms)
    # A spec must ask for something; what it asked for is the master's business.
    spec = TaskSpec(
        TaskId(name),
        command=command,
        image=image,
        kill_grace_ms=grace_ms,
        resources=type(spec.resources)({"cpus": 1000}),
    )
    devices = frozenset(GPUS[n].uuid for n in gpus)
    return AssignedTask(F, "*", spec, (ReservedResources((), Resources({"cpus": 1000}, (), devices)),))


def key(name: str) -> TaskKey:
    return TaskKey(F, TaskId(name))


def container(name: str) -> ContainerId:
    return container_of(AGENT, key(name))


class Agent:
    """A machine with its clock, its checkpoint and a master's hand."""

    def __init__(
        self,
        state: AgentState | None = None,
        *,
        runtime: str = "process",
        boot_id: str = "boot-1",
        default_image: str = "",
        sandbox_limit: int = 500,
        finished_limit: int = 10_000,
    ) -> None:
        self.durable = state.copy() if state else AgentState()
        config = AgentConfig(
            info(runtime, boot_id),
            default_image=default_image,
            sandbox_limit=sandbox_limit,
            finished_limit=finished_limit,
        )
        self.machine = AgentMachine(config, self.durable.copy())
        self.ms = 1000
        self.connection = ConnectionId(0)
        self.sequence = 0

    def step(self, event: AgentEvent) -> list[AgentEffect]:
        effects = self.machine.step(event, Instant(self.ms, 1_700_000_000_000 + self.ms))
        for effect in effects:
            if isinstance(effect, Persist):
                record = effect.record
                assert isinstance(record, Record)
                self.durable.apply(record)
        self.machine.check()
        assert self.durable == self.machine.state
        return effects

    def hear(self, message: MasterMessage) -> list[AgentEffect]:
        return self.step(MasterMessageReceived(self.connection, message))

    def connect(self) -> list[AgentEffect]:
        self.connection = ConnectionId(self.connection + 1)
        return self.step(MasterConnected(self.connection))

    def register(self, cluster: str = "c1", term: int = 1) -> list[AgentEffect]:
        return self.hear(Registered(cluster, term, 15_000, 5))

    def ready(self, *found: RecoveredContainer) -> Agent:
        self.step(ContainersRecovered(found))
        self.connect()
        self.register()
        self.full()
        return self

    def full(
        self, launch: Sequence[AssignedTask] = (), kill: Sequence[KillTask] = (), keep: Sequence[TaskRef] = ()
    ) -> list[AgentEffect]:
        generation = self.machine.state.generation
        return self.hear(
            DesiredState(
                Generation(max(1, generation.term), generation.sequence + 1),
                None,
                False,
                tuple(launch),
                tuple(kill),
                tuple(keep),
            )
        )

    def launch(self, *tasks: AssignedTask) -> list[AgentEffect]:
        return self.delta(launch=tasks)

    def kill(
        self, name: str, reason: StatusReason = R.KILLED_BY_FRAMEWORK, grace_ms: int | None = None
    ) -> list[AgentEffect]:
        return self.delta(kill=(KillTask(F, TaskId(name), reason, grace_ms),))

    def delta(self, launch: tuple[AssignedTask, ...] = (), kill: tuple[KillTask, ...] = ()) -> list[AgentEffect]:
        base = self.machine.state.generation
        return self.hear(DesiredState(Generation(base.term, base.sequence + 1), base, launch=launch, kill=kill))

    def run(self, assigned: AssignedTask) -> None:
        self.launch(assigned)
        self.step(ContainerStarted(container(assigned.spec.task_id)))

    def exit(self, name: str, code: int | None = 0, reason: StatusReason = R.COMMAND_EXITED) -> list[AgentEffect]:
        return self.step(ContainerExited(container(name), ContainerExit(code, reason)))

    def ack(self, name: str, update_id: str) -> list[AgentEffect]:
        return self.hear(AcknowledgeUpdates((AcknowledgedUpdate(F, TaskId(name), update_id),)))

    def ack_all(self, name: str) -> list[AgentEffect]:
        return self.ack(name, self.machine.state.tasks[key(name)].unacknowledged[-1].update_id)

    def wait(self, ms: int) -> list[AgentEffect]:
        self.ms += ms
        return self.step(TimePassed())


def of(effects: Sequence[AgentEffect], kind: type[E]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def said(effects: Sequence[AgentEffect]) -> list[AgentMessage]:
    return [effect.message for effect in of(effects, SendToMaster)]


def statuses(effects: Sequence[AgentEffect]) -> list[TaskStatus]:
    return [status for message in said(effects) if isinstance(message, TaskUpdates) for status in message.updates]


def states(effects: Sequence[AgentEffect]) -> list[TaskState]:
    return [status.state for status in statuses(effects)]


# --- registration ---------------------------------------------------------------------------------------------------


def test_the_agent_speaks_first() -> None:
    agent = Agent()
    assert said(agent.connect()) == [], "not before it knows what runs"
    register, reports = said(agent.step(ContainersRecovered(())))
    assert register == Register(info(), "", Generation())
    assert reports == TaskReports((), True)
    assert not agent.machine.registered
    agent.register()
    assert agent.machine.registered and agent.durable.cluster_id == "c1"


def test_many_tasks_are_reported_in_parts_and_completed_once() -> None:
    agent = Agent().ready()
    agent.launch(*(task(f"t{n}") for n in range(450)))
    _, *reports = said(agent.connect())
    assert [(len(part.tasks), part.complete) for part in reports if isinstance(part, TaskReports)] == [
        (200, False),
        (200, False),
        (50, True),
    ]


def test_large_tasks_are_reported_in_smaller_parts() -> None:
    agent = Agent().ready()
    agent.launch(*(task(f"t{n}", command=("x" * 100_000,)) for n in range(10)))
    _, *reports = said(agent.connect())
    sizes = [len(part.tasks) for part in reports if isinstance(part, TaskReports)]
    assert sum(sizes) == 10 and max(sizes) <= 2


def test_another_cluster_is_refused_and_logged_once() -> None:
    agent = Agent().ready()
    agent.connect()
    effects = agent.register("c2")
    assert of(effects, CloseConnection) and "belongs to cluster c1" in str(of(effects, Log)[0].fields)
    agent.connect()
    effects = agent.register("c2")
    assert of(effects, CloseConnection) and not of(effects, Log)
    assert agent.durable.cluster_id == "c1"
    agent.connect()
    agent.register("c1")
    assert agent.machine.registered and agent.machine.refusal == ""


def test_a_master_of_an_older_term_is_refused() -> None:
    agent = Agent().ready()
    agent.hear(DesiredState(Generation(7, 1)))
    agent.connect()
    assert of(agent.register(term=6), CloseConnection)
    agent.connect()
    agent.register(term=7)
    assert agent.machine.registered


def test_a_refusal_is_logged_once_per_change_and_ends_nothing() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    logs = []
    for text in ("no", "no", "other"):
        agent.connect()
        effects = agent.hear(Refused(ErrorDetail(ErrorReason.INCOMPATIBLE_RESOURCES, text, "do this")))
        assert of(effects, CloseConnection) and not of(effects, KillContainer)
        logs += [log.fields["reason"] for log in of(effects, Log)]
    assert logs == ["no (do this)", "other (do this)"]


def test_words_of_an_old_connection_are_not_heard() -> None:
    agent = Agent().ready()
    old = agent.connection
    agent.connect()
    agent.register()
    assert agent.step(MasterMessageReceived(old, DesiredState(Generation(9, 9), launch=(task("t"),)))) == []
    assert agent.step(MasterDisconnected(old)) == [] and agent.machine.registered


def test_pings_are_answered_and_silence_closes() -> None:
    agent = Agent().ready()
    agent.ms += 70_000
    assert said(agent.hear(Ping(3))) == [Pong(3)]
    assert not of(agent.wait(74_000), CloseConnection)
    assert of(agent.wait(1_000), CloseConnection)
    assert agent.machine.next_deadline_ms() is not None, "pruning goes on"


def test_silence_ends_repeats_that_are_due_in_the_same_moment() -> None:
    agent = Agent().ready()
    agent.run(task("t"))
    assert of(agent.wait(5 * 15_000), CloseConnection), "no ping came, and the statuses were due long ago"
    assert not agent.machine.registered


def test_the_interval_of_pings_may_change() -> None:
    agent = Agent().ready()
    agent.hear(Registered("c1", 1, 100, 2))
    assert not of(agent.wait(199), CloseConnection)
    assert of(agent.wait(1), CloseConnection)


def test_after_a_stall_the_master_gets_its_time() -> None:
    agent = Agent().ready()
    agent.ms += 100_000
    agent.step(Stalled(100_000))
    assert not of(agent.wait(0), CloseConnection)
    assert of(agent.wait(75_000), CloseConnection)


def test_a_master_that_does_not_answer_is_left() -> None:
    agent = Agent()
    agent.step(ContainersRecovered(()))
    agent.connect()
    assert of(agent.wait(15_000), CloseConnection)


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


# --- images -----------------------------------------------------------------------------------------------------------


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


# --- generations ----------------------------------------------------------------------------------------------------


def test_a_task_that_it_was_told_of_and_has_lost_is_not_begun_again() -> None:
    agent = Agent().ready()
    agent.launch(task("other"))
    lost = replace(task("t", 0), generation=agent.durable.generation)
    effects = agent.launch(lost)
    assert states(effects) == [S.GONE] and not of(effects, StartContainer)
    assert key("t") in agent.durable.finished, "and it never will be"
    new = replace(task("u", 0), generation=replace(agent.durable.generation, sequence=99))
    assert of(agent.launch(new), StartContainer)


def test_lower_generations_are_refused() -> None:
    agent = Agent().ready()
    agent.hear(DesiredState(Generation(2, 5)))
    for lower in (Generation(2, 4), Generation(1, 9)):
        effects = agent.hear(DesiredState(lower, launch=(task("t"),)))
        assert of(effects, Log) and not of(effects, StartContainer)
    assert agent.durable.generation == Generation(2, 5)


def test_a_delta_that_does_not_build_on_ours_asks_for_everything_once() -> None:
    agent = Agent().ready()
    own = agent.durable.generation
    wrong = Generation(own.term, own.sequence + 5)
    ahead = Generation(own.term, own.sequence + 6)
    assert said(agent.hear(DesiredState(ahead, wrong, launch=(task("t"),)))) == [ResyncRequest(own)]
    assert said(agent.hear(DesiredState(ahead, wrong, launch=(task("t"),)))) == []
    assert agent.durable.generation == own
    assert of(agent.hear(DesiredState(ahead, None, launch=(task("t"),))), StartContainer)
    assert agent.durable.generation == ahead


def test_the_same_desired_state_again_does_nothing() -> None:
    agent = Agent().ready()
    agent.launch(task("t", 0))
    same = DesiredState(agent.durable.generation, None, launch=(task("t", 0),))
    assert agent.hear(same) == [] and agent.hear(same) == []


def test_parts_take_effect_together() -> None:
    agent = Agent().ready()
    generation = Generation(3, 1)
    assert agent.hear(DesiredState(generation, None, True, launch=(task("a"),))) == []
    # A newer one replaces what was gathered.
    generation = Generation(3, 2)
    assert agent.hear(DesiredState(generation, None, True, launch=(task("b"),))) == []
    effects = agent.hear(DesiredState(generation, None, False, launch=(task("c"),)))
    assert [effect.container_id for effect in of(effects, StartContainer)] == [container("b"), container("c")]
    assert agent.durable.generation == generation


def test_absence_never_kills() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    agent.connect()
    agent.register(term=2)
    effects = agent.hear(DesiredState(Generation(2, 1)))
    assert not of(effects, KillContainer) and not statuses(effects)


# --- a task's life --------------------------------------------------------------------------------------------------


def test_a_task_is_recorded_before_it_starts_and_runs_to_its_end() -> None:
    agent = Agent().ready()
    effects = agent.launch(task("t", 2, 1))
    recorded = next(
        n for n, effect in enumerate(effects) if isinstance(effect, Persist) and isinstance(effect.record, TaskSaved)
    )
    started = next(n for n, effect in enumerate(effects) if isinstance(effect, StartContainer))
    assert recorded < started
    (start,) = of(effects, StartContainer)
    assert [device.uuid for device in start.devices] == ["GPU-1", "GPU-2"] and start.image == ""
    assert states(effects) == [S.STARTING]
    assert states(agent.step(ContainerStarted(container("t")))) == [S.RUNNING]
    assert set(agent.machine.live_devices()) == {"GPU-1", "GPU-2"}
    effects = agent.exit("t", 0)
    (status,) = statuses(effects)
    assert (status.state, status.reason, status.exit_code) == (S.FINISHED, R.COMMAND_EXITED, 0)
    assert status.device_uuids == ("GPU-1", "GPU-2") and status.update_id == "3" and status.agent_id == AGENT
    assert of(effects, RemoveContainer) == [RemoveContainer(container("t"))]
    assert agent.machine.live_devices() == {}
    agent.ack_all("t")
    assert agent.durable.tasks == {} and agent.durable.finished[key("t")].status == status


@pytest.mark.parametrize(
    ("code", "reason", "state", "text"),
    [
        (7, R.COMMAND_EXITED, S.FAILED, "exited with 7"),
        (137, R.COMMAND_EXITED, S.FAILED, "signal 9"),
        (137, R.MEM_LIMIT, S.FAILED, "signal 9"),
        (None, R.CONTAINER_LOST, S.GONE, "nobody knows"),
        (None, R.ENGINE_LOST, S.GONE, "nobody knows"),
    ],
)
def test_other_ends(code: int | None, reason: StatusReason, state: TaskState, text: str) -> None:
    agent = Agent().ready()
    agent.run(task("t"))
    (status,) = statuses(agent.exit("t", code, reason))
    assert (status.state, status.reason, status.exit_code) == (state, reason, code) and text in status.message


def test_a_container_may_end_before_its_start_is_told() -> None:
    agent = Agent().ready()
    agent.launch(task("t"))
    assert states(agent.exit("t", 0)) == [S.FINISHED]
    assert agent.step(ContainerStarted(container("t"))) == []


def test_a_failed_launch() -> None:
    agent = Agent().ready()
    agent.launch(task("t", 0))
    (status,) = statuses(agent.step(ContainerLaunchFailed(container("t"), R.IMAGE_NOT_FOUND, "no such image")))
    assert (status.state, status.reason, status.message) == (S.FAILED, R.IMAGE_NOT_FOUND, "no such image")
    assert agent.machine.live_devices() == {}


@pytest.mark.parametrize(
    ("runtime", "default_image", "image", "accepted"),
    [
        ("process", "", "", ""),
        ("process", "", "busybox", None),
        ("process", "ignored", "", ""),
        ("docker", "", "", None),
        ("docker", "default", "", "default"),
        ("docker", "default", "own", "own"),
        ("simulated", "", "", ""),
    ],
)
def test_images(runtime: str, default_image: str, image: str, accepted: str | None) -> None:
    agent = Agent(runtime=runtime, default_image=default_image).ready()
    effects = agent.launch(task("t", image=image))
    if accepted is None:
        (status,) = statuses(effects)
        assert (status.state, status.reason) == (S.ERROR, R.AGENT_REFUSED) and status.message
        assert not of(effects, StartContainer)
    else:
        assert [start.image for start in of(effects, StartContainer)] == [accepted]


def test_devices_are_verified() -> None:
    agent = Agent().ready()
    agent.launch(task("holder", 0))
    sick = (
        GPUS[0],
        GPUS[1],
        Device(GPUS[2].uuid, "gpus", index=2, health=DeviceHealth.UNHEALTHY, health_reason="XID 79"),
    )
    effects = agent.step(DevicesDiscovered(sick, ()))
    (changed,) = said(effects)
    assert isinstance(changed, DevicesChanged)
    assert [device.condition for device in changed.devices] == [
        DeviceCondition.UNSPECIFIED,
        DeviceCondition.UNSPECIFIED,
        DeviceCondition.CORDONED,
    ]
    assert (changed.devices[2].health, changed.devices[2].health_reason) == (DeviceHealth.UNHEALTHY, "XID 79")
    assert [
        "GPU-2 is cordoned: XID 79" in log.text or "GPU-3 is cordoned: it is not there" in log.text
        for log in of(effects, Log)
    ] == [True] * 2
    effects = agent.launch(task("held", 0), task("sick", 2), task("absent", 3), task("good", 1))
    found = {status.task_id: (status.state, status.reason) for status in statuses(effects)}
    assert found == {
        "held": (S.DROPPED, R.AGENT_REFUSED),
        "sick": (S.DROPPED, R.DEVICES_CHANGED),
        "absent": (S.DROPPED, R.DEVICES_CHANGED),
        "good": (S.STARTING, R.UNSPECIFIED),
    }
    assert [start.container_id for start in of(effects, StartContainer)] == [container("good")]


def test_two_tasks_of_one_launch_cannot_share_a_device() -> None:
    agent = Agent().ready()
    effects = agent.launch(task("a", 0), task("b", 0))
    assert states(effects) == [S.STARTING, S.DROPPED]


def test_devices_found_before_the_answer_are_told_after_it() -> None:
    agent = Agent()
    agent.step(ContainersRecovered(()))
    agent.connect()
    assert said(agent.step(DevicesDiscovered(GPUS[:1], ()))) == []
    assert DevicesChanged(GPUS[:1], ()) in said(agent.register())
    assert agent.step(DevicesDiscovered(GPUS[:1], ())) == []


def test_a_bad_task_is_an_error_not_a_crash() -> None:
    agent = Agent().ready()
    bad = task("t", command=("a\x00b",))
    assert states(agent.launch(bad)) == [S.ERROR]
    spec = TaskSpec(TaskId("u"), command=("x",), environment=(EnvironmentVariable("A=B", ""),))
    assert states(agent.launch(AssignedTask(F, "*", spec, ()))) == [S.ERROR]


# --- kill -----------------------------------------------------------------------------------------------------------


def test_kill_a_running_task() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0, grace_ms=500))
    effects = agent.kill("t", R.KILLED_BY_OPERATOR)
    assert of(effects, KillContainer) == [KillContainer(container("t"), 500)] and states(effects) == [S.KILLING]
    assert not of(agent.kill("t", R.KILLED_BY_FRAMEWORK), KillContainer), "the second asks for nothing new"
    assert of(agent.kill("t", grace_ms=100), KillContainer) == [KillContainer(container("t"), 100)]
    (status,) = statuses(agent.exit("t", 143))
    assert (status.state, status.reason, status.exit_code) == (S.KILLED, R.KILLED_BY_OPERATOR, 143)


@pytest.mark.parametrize(
    ("own", "asked", "grace_ms"), [(None, None, 3000), (500, None, 500), (500, 70, 70), (None, 0, 0)]
)
def test_grace(own: int | None, asked: int | None, grace_ms: int) -> None:
    agent = Agent().ready()
    agent.run(task("t", grace_ms=own))
    assert of(agent.kill("t", grace_ms=asked), KillContainer) == [KillContainer(container("t"), grace_ms)]


def test_a_kill_that_does_nothing_is_repeated() -> None:
    agent = Agent().ready()
    agent.run(task("t", grace_ms=500))
    agent.kill("t")
    assert not of(agent.wait(10_499), KillContainer)
    assert of(agent.wait(1), KillContainer) == [KillContainer(container("t"), 0)]
    agent.exit("t", 137)
    assert not of(agent.wait(60_000), KillContainer)


def test_kill_during_launch_waits_for_the_start() -> None:
    agent = Agent().ready()
    agent.launch(task("t", 0), task("u", 1))
    assert not of(agent.kill("t"), KillContainer) and not of(agent.kill("u"), KillContainer)
    assert of(agent.step(ContainerStarted(container("t"))), KillContainer)
    (status,) = statuses(agent.exit("t", 143))
    assert (status.state, status.reason) == (S.KILLED, R.KILLED_BY_FRAMEWORK)
    (status,) = statuses(agent.step(ContainerLaunchFailed(container("u"), R.LAUNCH_FAILED, "x")))
    assert (status.state, status.reason) == (S.KILLED, R.KILLED_DURING_LAUNCH)


def test_kill_of_an_unknown_task_is_answered_and_prevents_it() -> None:
    agent = Agent().ready()
    (status,) = statuses(agent.kill("t"))
    assert (status.state, status.reason) == (S.KILLED, R.KILLED_DURING_LAUNCH)
    effects = agent.launch(task("t"))
    assert not of(effects, StartContainer) and statuses(effects) == [status]
    assert statuses(agent.kill("t")) == [status]


def test_a_task_that_should_be_kept_but_is_unknown_is_gone() -> None:
    agent = Agent().ready()
    agent.run(task("t"))
    (status,) = statuses(agent.full(keep=(TaskRef(F, TaskId("t")), TaskRef(F, TaskId("lost")))))
    assert (status.task_id, status.state, status.reason) == ("lost", S.GONE, R.CONTAINER_LOST)


# --- statuses -------------------------------------------------------------------------------------------------------


def test_updates_are_repeated_until_acknowledged() -> None:
    agent = Agent().ready()
    agent.run(task("t"))
    agent.hear(Ping(1))
    waited = []
    for pause in (10_000, 20_000, 40_000):
        agent.wait(pause - 1)
        agent.hear(Ping(1))
        waited.append(states(agent.wait(1)))
    assert waited == [[S.STARTING, S.RUNNING]] * 3
    agent.ack("t", "1")
    assert states(agent.wait(10_000)) == [S.RUNNING]
    agent.ack("t", "1")
    agent.ack("t", "99")
    agent.ack("unknown", "1")
    agent.ack("t", "2")
    agent.hear(Ping(1))
    assert states(agent.wait(60_000)) == []


def test_the_pause_stops_growing_at_ten_minutes() -> None:
    agent = Agent().ready()
    agent.connect()
    agent.hear(Registered("c1", 1, 0, 0))
    agent.run(task("t"))
    pauses: list[int] = []
    last = agent.ms
    while len(pauses) < 9:
        due = agent.machine.next_deadline_ms()
        assert due is not None
        agent.ms = due
        if statuses(agent.step(TimePassed())):
            pauses.append(agent.ms - last)
            last = agent.ms
    assert pauses == [10_000, 20_000, 40_000, 80_000, 160_000, 320_000, 600_000, 600_000, 600_000]


def test_a_later_acknowledgement_covers_earlier_updates() -> None:
    agent = Agent().ready()
    agent.run(task("t"))
    agent.exit("t")
    agent.ack("t", "3")
    assert key("t") in agent.durable.finished


def test_what_is_not_acknowledged_is_reported_again() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    agent.ack("t", "1")
    agent.step(MasterDisconnected(agent.connection))
    assert agent.exit("t", 3) and agent.machine.next_deadline_ms() is not None
    _, reports = said(agent.connect())
    assert isinstance(reports, TaskReports)
    (report,) = reports.tasks
    assert report.state is S.FAILED and [status.update_id for status in report.unacknowledged] == ["2", "3"]
    assert statuses(agent.register()) == [], "they were in the report"
    assert states(agent.wait(10_000)) == [S.RUNNING, S.FAILED]


def test_what_happens_between_report_and_answer_is_told_after_the_answer() -> None:
    agent = Agent().ready()
    agent.run(task("t"))
    agent.connect()
    assert said(agent.exit("t", 0)) == []
    assert states(agent.register()) == [S.FINISHED]


def test_a_finished_task_is_never_started_again() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    agent.exit("t", 0)
    agent.ack_all("t")
    again = Agent(agent.durable).ready()
    effects = again.full(launch=(task("t", 0),), keep=(TaskRef(F, TaskId("t")),))
    assert not of(effects, StartContainer) and states(effects) == [S.FINISHED] * 2


def test_memory_and_sandboxes_of_finished_tasks_are_bounded() -> None:
    agent = Agent(sandbox_limit=2, finished_limit=3).ready()
    removed = []
    for n in range(5):
        agent.run(task(f"t{n}"))
        agent.exit(f"t{n}")
        removed += of(agent.ack_all(f"t{n}"), RemoveSandbox)
    assert [effect.container_id for effect in removed] == [container(f"t{n}") for n in range(3)]
    assert list(agent.durable.finished) == [key("t2"), key("t3"), key("t4")]
    agent.ms += 8 * 86_400_000
    agent.hear(Ping())
    agent.step(MasterDisconnected(agent.connection))
    assert [effect.container_id for effect in of(agent.wait(1), RemoveSandbox)] == [container("t3"), container("t4")]
    agent.wait(30 * 86_400_000)
    assert agent.durable.finished == {}


def test_a_refused_task_leaves_no_sandbox() -> None:
    agent = Agent(sandbox_limit=0).ready()
    agent.launch(task("t", image="x"))
    assert not of(agent.ack_all("t"), RemoveSandbox)


# --- restarts -------------------------------------------------------------------------------------------------------


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
    assert of(effects, KillContainer) == [KillContainer(container("unknown"), 0)]
    assert of(effects, RemoveContainer) == [RemoveContainer(container("old"))]
    again.connect()
    again.register()
    assert states(again.full(launch=(task("unknown"),))) == [S.DROPPED]
    assert of(again.exit("unknown", 137), RemoveContainer) == [RemoveContainer(container("unknown"))]


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


# --- logs -----------------------------------------------------------------------------------------------------------


def test_logs_of_known_tasks_are_opened() -> None:
    agent = Agent().ready()
    agent.run(task("t"))
    (opened,) = of(agent.hear(OpenLog("s1", F, TaskId("t"), True, 10)), OpenLogStream)
    assert opened == OpenLogStream(agent.connection, "s1", container("t"), True, 10)
    (refused,) = of(agent.hear(OpenLog("s2", F, TaskId("unknown"))), OpenLogStream)
    assert refused.error is not None and refused.error.reason is ErrorReason.NOT_FOUND


def test_sessions_are_opened_with_what_runs_alone() -> None:
    agent = Agent().ready()
    start = SessionStart(SessionKind.EXEC, ("true",))

    def ask(name: str) -> OpenSessionStream:
        (opened,) = of(agent.hear(OpenSession("s", F, TaskId(name), start)), OpenSessionStream)
        return opened

    agent.run(task("t"))
    assert ask("t") == OpenSessionStream(agent.connection, "s", container("t"), start)
    agent.full(launch=(task("u", 0),))
    for name, words in (("u", "does not run yet"), ("unknown", "was never here")):
        error = ask(name).error
        assert error is not None and words in error.message and error.hint
    agent.exit("t", 0)
    error = ask("t").error
    assert error is not None and "has ended" in error.message


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
