"""Dialogues with the machine of an agent: events in, effects out; with its clock, its checkpoint and the hand of a master."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from bursar.agent.containers.runtime import ContainerExit, ContainerId, RecoveredContainer
from bursar.agent.effects import AgentEffect, SendToMaster
from bursar.agent.events import (
    AgentEvent,
    ContainerExited,
    ContainersRecovered,
    ContainerStarted,
    MasterConnected,
    MasterMessageReceived,
)
from bursar.agent.machine import AgentConfig, AgentMachine
from bursar.agent.state import AgentState, Record
from bursar.agent.tasks import TaskKey, container_of
from bursar.core.clock import Instant
from bursar.core.devices import Device
from bursar.core.ids import AgentId, ConnectionId, DeviceUuid, FrameworkId, Generation, TaskId
from bursar.core.machine import Persist, TimePassed
from bursar.core.messages.agent import (
    AcknowledgedUpdate,
    AcknowledgeUpdates,
    AgentInfo,
    AgentMessage,
    DesiredState,
    KillTask,
    MasterMessage,
    Registered,
    TaskRef,
    TaskUpdates,
)
from bursar.core.resources import ReservedResources, Resources
from bursar.core.tasks import AssignedTask, StatusReason, TaskSpec, TaskState, TaskStatus

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
