"""What the agent remembers of a task, and the rules that need nothing else: may it start, and what does its end mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bursar.agent.containers.names import container_id_for
from bursar.agent.containers.runtime import ContainerExit, ContainerId
from bursar.agent.devices.health import is_lost
from bursar.core.devices import Device, DeviceCondition, DeviceHealth
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, TaskId
from bursar.core.lives import CheckStatus
from bursar.core.memory.pools import format_bytes
from bursar.core.messages.agent import KillTask
from bursar.core.resources import DISK, sum_resources
from bursar.core.service_ports import ServicePort
from bursar.core.surroundings import process_problem
from bursar.core.tasks import (
    DEFAULT_KILL_GRACE_MS,
    AssignedTask,
    StatusReason,
    TaskState,
    TaskStatus,
    spec_problem,
)
from bursar.core.text import format_duration
from bursar.core.ulimits import Ulimit, beyond
from bursar.core.volumes import read_volume

#: A runtime's words about a failure are cut to this many characters.
MAX_MESSAGE_LENGTH = 2000
#: What Docker says of containers that a shutdown of the machine took away.
_DOCKER_REBOOT_CODE = 255


class TaskKey(NamedTuple):
    """Names one task."""

    framework_id: FrameworkId
    task_id: TaskId


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task that is live, or has ended and its end is not acknowledged; durable as a whole."""

    task: AssignedTask
    state: TaskState
    #: Of the machine when the launch was taken: with another one the task is dead.
    boot_id: str
    #: Number of the next status update; its text is the `update_id`.
    next_update: int = 1
    #: In order, not yet acknowledged.
    unacknowledged: tuple[TaskStatus, ...] = ()
    #: Who wants its end, once asked.
    kill: KillTask | None = None
    #: When it was first RUNNING, milliseconds since 1970; 0 before.
    running_at_ms: int = 0
    #: By its health check, and by its check, once they have seen it.
    healthy: bool | None = None
    check: CheckStatus | None = None
    #: Why the agent itself ends it, once it does.
    kill_message: str = ""
    #: Starts after the first one, and those of them in a row, for the back-off.
    restarts: int = 0
    restarts_in_row: int = 0
    #: Between two runs: no container, its devices kept.
    waiting: bool = False
    #: Its container is started for another run.
    relaunching: bool = False
    #: Why it is being restarted, once somebody asked.
    restart_asked: str = ""
    #: The newest order to restart it that was taken: each is carried out once.
    restart_order: int = 0
    #: When its present container ran first, milliseconds since 1970.
    run_began_ms: int = 0
    #: Its image is being pulled: it has no container, never had one, and holds no device.
    pulling: bool = False
    #: It was pulled for this launch already: once is enough.
    pulled: bool = False
    #: Of a task that is run by an executor: whether it was given to it, and the number of its last update.
    handed: bool = False
    executor_update: int = 0

    @property
    def key(self) -> TaskKey:
        """Names the task."""
        return TaskKey(self.task.framework_id, self.task.spec.task_id)

    @property
    def begun(self) -> bool:
        """Whether a start was tried, so that there is a sandbox: a refused task has one status only, its end."""
        return not self.state.is_terminal or self.next_update > 2


def has_container(record: TaskRecord) -> bool:
    """Whether a container of it must be there, unless it is being started this moment."""
    between = record.waiting or record.pulling or record.task.spec.runs_on
    return record.state in (TaskState.RUNNING, TaskState.KILLING) and not between


@dataclass(frozen=True, slots=True)
class FinishedTask:
    """A task whose end is acknowledged: remembered so that it is never started twice."""

    #: Its last one.
    status: TaskStatus
    ended_at_ms: int
    #: Whether its sandbox is kept, for its logs.
    sandbox: bool = False

    @property
    def key(self) -> TaskKey:
        """Names the task."""
        return TaskKey(self.status.framework_id, self.status.task_id)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a task ended, or why it was not begun."""

    state: TaskState
    reason: StatusReason
    message: str
    exit_code: int | None = None


def container_of(agent_id: AgentId, key: TaskKey) -> ContainerId:
    """The container of a task, and the name of its sandbox."""
    return container_id_for(agent_id, key.framework_id, key.task_id)


def grace_ms_of(task: AssignedTask, kill: KillTask) -> int:
    """From SIGTERM to SIGKILL: as the kill says, else as the task does."""
    if kill.grace_ms is not None:
        return kill.grace_ms
    return DEFAULT_KILL_GRACE_MS if task.spec.kill_grace_ms is None else task.spec.kill_grace_ms


def launch_problem(
    task: AssignedTask,
    *,
    runtime: str,
    default_image: str,
    devices: Mapping[DeviceUuid, Device],
    held: Mapping[DeviceUuid, ContainerId],
    max_ulimits: Sequence[Ulimit] = (),
) -> Verdict | None:
    """Say why this agent cannot begin a task, or nothing. The master decided; this only verifies (design.md §4)."""
    if problem := spec_problem(task.spec):
        return Verdict(TaskState.ERROR, StatusReason.AGENT_REFUSED, f"{problem[0]}: {problem[1]}")
    if task.spec.image and runtime == "process":
        return Verdict(
            TaskState.ERROR,
            StatusReason.AGENT_REFUSED,
            f"the task has the image {task.spec.image!r}, but this agent runs plain processes;"
            " leave the image out, or run it on an agent with --runtime docker",
        )
    if runtime == "process" and (problem := process_problem(task.spec.container, task.spec.volumes)):
        return Verdict(TaskState.ERROR, StatusReason.AGENT_REFUSED, f"{problem[0]}: {problem[1]}")
    if runtime == "docker" and not task.spec.image and not default_image and not task.spec.runs_on:
        return Verdict(
            TaskState.ERROR,
            StatusReason.AGENT_REFUSED,
            "the task has no image and this agent no default one; name an image, or start the agent with --default-image",
        )
    if (excess := beyond(task.spec.ulimits, max_ulimits)) is not None:
        return Verdict(
            TaskState.ERROR,
            StatusReason.AGENT_REFUSED,
            f"ulimits: {excess[0]} is more than this agent allows ({excess[1]}); ask for less, or for another agent"
            " (--max-ulimits is its operator's)",
        )
    return devices_problem(task, devices, held)


def ports_problem(task: AssignedTask, others: Iterable[tuple[TaskKey, Sequence[ServicePort]]]) -> Verdict | None:
    """Say which task whose container is not gone has a host port of a task, or nothing: the master's books and ours may differ."""
    wanted = {one.host_port: one for one in task.spec.service_ports}
    for key, services in others:
        for one in services:
            if one.host_port in wanted:
                return Verdict(
                    TaskState.DROPPED,
                    StatusReason.AGENT_REFUSED,
                    f"port {one.host_port} ({wanted[one.host_port].name}) is still {one.name!r} of task {key.task_id};"
                    " launch the task again",
                )
    return None


def volumes_problem(task: AssignedTask, others: Iterable[TaskRecord]) -> Verdict | None:
    """Say which other task has a persistent volume of this one, or nothing: the master's books and ours may differ."""
    for other in others:
        both = set(other.task.volume_names).intersection(task.volume_names)
        if both and other.key != TaskKey(task.framework_id, task.spec.task_id) and not other.state.is_terminal:
            return Verdict(
                TaskState.DROPPED,
                StatusReason.AGENT_REFUSED,
                f"volume {read_volume(min(both))} is still task {other.key.task_id}'s; launch the task again",
            )
    return None


def devices_problem(
    task: AssignedTask, devices: Mapping[DeviceUuid, Device], held: Mapping[DeviceUuid, ContainerId]
) -> Verdict | None:
    """Say why a task cannot have its devices now, or nothing."""
    for uuid in task.device_uuids:
        device = devices.get(uuid)
        if device is None:
            return Verdict(
                TaskState.DROPPED,
                StatusReason.DEVICES_CHANGED,
                f"device {uuid} is not there any more; launch the task again",
            )
        if device.health is DeviceHealth.UNHEALTHY:
            why = f": {device.health_reason}" if device.health_reason else ""
            how = "busy" if device.condition is DeviceCondition.BUSY else "not healthy"
            return Verdict(
                TaskState.DROPPED,
                StatusReason.DEVICES_CHANGED,
                f"device {uuid} is {how}{why}; launch the task again",
            )
        if uuid in held:
            return Verdict(
                TaskState.DROPPED,
                StatusReason.AGENT_REFUSED,
                f"device {uuid} is still held by container {held[uuid]}; launch the task again",
            )
    return None


def end_of(
    record: TaskRecord, exit: ContainerExit, boot_id: str, devices: Mapping[DeviceUuid, Device] | None = None
) -> Verdict:
    """What the end of a container means for its task; `devices` are those that are there by now (None: nobody has looked)."""
    message = exit.message[:MAX_MESSAGE_LENGTH]
    rebooted = record.boot_id != boot_id and exit.exit_code in (None, _DOCKER_REBOOT_CODE)
    if record.kill is not None:
        return _end_of_killed(record, record.kill, message or "ended as asked", exit.exit_code)
    if rebooted or exit.reason is StatusReason.AGENT_REBOOTED:
        message = "the machine was started anew; launch the task again"
        return Verdict(TaskState.GONE, StatusReason.AGENT_REBOOTED, message, exit.exit_code)
    if exit.reason in (StatusReason.CONTAINER_LOST, StatusReason.ENGINE_LOST):
        return Verdict(TaskState.GONE, exit.reason, message or "nobody knows how it ended", exit.exit_code)
    if exit.reason is StatusReason.COMMAND_EXITED and exit.exit_code == 0:
        return Verdict(TaskState.FINISHED, exit.reason, message, 0)
    if exit.exit_code is not None:
        message = message or _exit_text(exit.exit_code)
    if devices is not None and (lost := lost_device(record.task, devices)):
        return Verdict(TaskState.FAILED, StatusReason.DEVICE_LOST, f"{lost}; {message}", exit.exit_code)
    return Verdict(TaskState.FAILED, exit.reason, message, exit.exit_code)


def _end_of_killed(record: TaskRecord, kill: KillTask, message: str, exit_code: int | None = None) -> Verdict:
    """Who was asked to end is KILLED; who ran out of time has FAILED (TSK-10)."""
    if kill.reason is StatusReason.MAX_RUN_TIME:
        allowed = format_duration(record.task.spec.max_run_ms or 0)
        message = f"it may run for {allowed} and was ended then ({message}); allow it more (max_run_ms), or have it end itself"
        return Verdict(TaskState.FAILED, kill.reason, message, exit_code)
    if kill.reason is StatusReason.DISK_LIMIT:
        granted = format_bytes(sum_resources(part.resources for part in record.task.resources).scalars.get(DISK, 0))
        message = f"its sandbox held more than the {granted} of disk that it asked for, so it was ended ({message}); ask for more (--disk), or write less"
        return Verdict(TaskState.FAILED, kill.reason, message, exit_code)
    if record.kill_message:
        message = f"{record.kill_message} ({message})"
    if kill.reason is StatusReason.DISCONNECTED:
        return Verdict(TaskState.GONE, kill.reason, message, exit_code)
    if kill.reason is StatusReason.DEVICE_MEM_LIMIT:
        return Verdict(TaskState.FAILED, kill.reason, message, exit_code)
    return Verdict(TaskState.KILLED, kill.reason, message, exit_code)


def killed_early(record: TaskRecord) -> Verdict:
    """The end of a task that was killed before its container ran."""
    if record.kill is not None and record.kill_message:
        return Verdict(TaskState.KILLED, record.kill.reason, f"{record.kill_message}; it had not been started")
    return Verdict(TaskState.KILLED, StatusReason.KILLED_DURING_LAUNCH, "killed before it was started")


def lost_device(task: AssignedTask, devices: Mapping[DeviceUuid, Device]) -> str:
    """Which of a task's devices is not there, or not healthy, and why; empty where all are well."""
    for uuid in task.device_uuids:
        device = devices.get(uuid)
        if device is None:
            return f"device {uuid} is not there any more"
        if is_lost(device):
            return f"device {uuid} is not healthy" + (f": {device.health_reason}" if device.health_reason else "")
    return ""


def _exit_text(code: int) -> str:
    if 128 < code < 193:
        return f"the command was ended by signal {code - 128}"
    return f"the command exited with {code}"


def never_seen(record: TaskRecord, boot_id: str) -> Verdict:
    """The end of a task of which a restarted agent finds no container.

    It is never started again, also where only its launch was recorded: it may have run and been removed by somebody. A
    launch that was acknowledged happens or is reported, once.
    """
    started = record.state is not TaskState.STARTING
    if record.boot_id != boot_id:
        reason, message = StatusReason.AGENT_REBOOTED, "the machine was started anew; launch the task again"
    elif started:
        reason, message = StatusReason.CONTAINER_LOST, "its container vanished while the agent was down"
    else:
        reason, message = (
            StatusReason.CONTAINER_LOST,
            "the agent was restarted while it started the task, and found no container",
        )
    if record.kill is not None:
        return _end_of_killed(record, record.kill, message)
    return Verdict(TaskState.GONE, reason, message)
