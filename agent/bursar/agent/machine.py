"""The agent as a pure machine: what a master wants and what a runtime tells become containers, statuses and records.

The rules, all of design.md §8:

* The agent speaks first (Register, then TaskReports); a master of another cluster or of an older term is left again.
* Desired state carries a generation. Lower ones are refused, a delta that does not build on ours makes us ask for all of it,
  and absence never kills.
* A task is begun at most once, whatever is sent again and whenever the agent dies: its launch is recorded before its container
  is started, its end is remembered, and a launch without a container after a restart is reported, not repeated.
* A status is recorded before it is sent, in order per task, and repeated until it or a later one of its task is acknowledged.
* A terminal status follows the end of the container: a device that the master may grant again is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import assert_never

from bursar.agent.containers.runtime import ContainerExit, ContainerId, RecoveredContainer
from bursar.agent.effects import (
    AgentEffect,
    CloseConnection,
    KillContainer,
    Log,
    OpenLogStream,
    RemoveContainer,
    RemoveSandbox,
    SendToMaster,
    StartContainer,
)
from bursar.agent.events import (
    AgentEvent,
    ContainerExited,
    ContainerLaunchFailed,
    ContainersRecovered,
    ContainerStarted,
    DevicesDiscovered,
    MasterConnected,
    MasterDisconnected,
    MasterMessageReceived,
)
from bursar.agent.pinning import granted_devices
from bursar.agent.state import (
    AgentState,
    ClusterJoined,
    FinishedForgotten,
    GenerationSeen,
    Record,
    SandboxDropped,
    TaskFinished,
    TaskSaved,
)
from bursar.agent.tasks import (
    MAX_MESSAGE_LENGTH,
    FinishedTask,
    TaskKey,
    TaskRecord,
    Verdict,
    container_of,
    end_of,
    grace_ms_of,
    launch_problem,
    never_seen,
)
from bursar.core.clock import Deadlines, Instant
from bursar.core.devices import Device
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import ConnectionId, DeviceUuid, Generation
from bursar.core.machine import Persist, Stalled, TimePassed
from bursar.core.messages.agent import (
    AcknowledgeUpdates,
    AgentInfo,
    AgentMessage,
    DesiredState,
    DevicesChanged,
    KillTask,
    OpenLog,
    Ping,
    Pong,
    Refused,
    Register,
    Registered,
    ResyncRequest,
    TaskReport,
    TaskReports,
    TaskUpdates,
)
from bursar.core.tasks import (
    AssignedTask,
    StatusReason,
    StatusSource,
    TaskState,
    TaskStatus,
    may_follow,
)

#: Tasks and statuses per message.
MAX_REPORTS, MAX_UPDATES = 200, 500
#: Estimated size at which a message of reports is split; far below the wire's limit of 4 MiB.
MAX_REPORT_BYTES = 1 << 20
#: Between the repeats of an unacknowledged update (SU-3).
FIRST_RETRY_MS, LAST_RETRY_MS = 10_000, 600_000
#: From Register to an answer.
REGISTER_TIMEOUT_MS = 15_000
#: After a kill's grace, before the runtime is asked again.
KILL_RETRY_MS = 10_000
PRUNE_INTERVAL_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What the machine is told once."""

    #: Who this agent is and what it has; a later DevicesDiscovered replaces devices and resources.
    info: AgentInfo
    #: For tasks without one; empty: none.
    default_image: str = ""
    #: Finished tasks remembered: at most so many, at most so long.
    finished_limit: int = 10_000
    finished_age_ms: int = 30 * 86_400_000
    #: Of those, sandboxes kept for their logs.
    sandbox_limit: int = 500
    sandbox_age_ms: int = 7 * 86_400_000


#: What a deadline is about: `register`, `ping`, `prune`; `updates` of a task; `kill` of a container.
_Due = tuple[str, TaskKey | str]


class AgentMachine:
    """One agent. Durable state is changed by `AgentState.apply` alone, and each record is persisted."""

    def __init__(self, config: AgentConfig, state: AgentState) -> None:
        self.config = config
        self.info = config.info
        self.state = state
        #: Whether a master has let us in on the present connection.
        self.registered = False
        #: Why the last master did not let us in; empty once one has.
        self.refusal = ""
        #: Registrations so far; for metrics.
        self.registrations_total = 0
        self._recovered = False
        self._connection: ConnectionId | None = None
        #: What the master was told on this connection: devices, and the last update of each task.
        self._announced: AgentInfo | None = None
        self._sent: dict[TaskKey, int] = {}
        self._silence_ms = 0
        self._parts: list[DesiredState] = []
        self._resync_asked = False
        #: Containers whose start was asked for and not answered.
        self._starting: set[ContainerId] = set()
        #: Live tasks by container, and the containers that still run although their task is over or unknown.
        self._live: dict[ContainerId, TaskKey] = {}
        self._orphans: dict[ContainerId, tuple[DeviceUuid, ...]] = {}
        self._held: dict[DeviceUuid, ContainerId] = {}
        self._retry_ms: dict[TaskKey, int] = {}
        self._sandboxes: dict[TaskKey, None] = {key: None for key, task in state.finished.items() if task.sandbox}
        self._deadlines: Deadlines[_Due] = Deadlines()
        self._devices = {device.uuid: device for device in self.info.devices}
        self._now = Instant(0, 0)
        self._effects: list[AgentEffect] = []
        self._updates: list[TaskStatus] = []
        for key, record in state.tasks.items():
            if not record.state.is_terminal:
                self._hold(container_of(self.info.agent_id, key), key, record.task)

    # --- the protocol of machines -----------------------------------------------------------------------------------

    def step(self, event: AgentEvent, now: Instant) -> list[AgentEffect]:
        """Handle one event."""
        self._effects, self._updates, self._now = [], [], now
        match event:
            case MasterMessageReceived(connection, message):
                if connection == self._connection:
                    self._hear(connection, message)
            case ContainerStarted(container_id):
                self._container_started(container_id)
            case ContainerExited(container_id, exit):
                self._container_exited(container_id, exit)
            case ContainerLaunchFailed():
                self._launch_failed(event)
            case MasterConnected(connection):
                self._lose_connection()
                self._connection = connection
                if self._recovered:
                    self._introduce(connection)
            case MasterDisconnected(connection):
                if connection == self._connection:
                    if self.registered:
                        self._log("warning", "the connection to the master is lost; tasks run on")
                    self._lose_connection()
            case DevicesDiscovered(devices, resources):
                self._devices_discovered(replace(self.info, devices=devices, resources=resources))
            case ContainersRecovered(containers):
                self._containers_recovered(containers)
            case TimePassed():
                self._time_passed()
            case Stalled(by_ms):
                self._deadlines.shift(by_ms)
            case _:
                assert_never(event)
        self._flush_updates()
        return self._effects

    def next_deadline_ms(self) -> int | None:
        """When TimePassed is due."""
        return self._deadlines.next_ms()

    def live_devices(self) -> dict[DeviceUuid, ContainerId]:
        """Which container holds which device; for checks and metrics."""
        return dict(self._held)

    def check(self) -> None:
        """Assert every invariant."""
        held: dict[DeviceUuid, ContainerId] = {}
        for container_id, devices in self._orphans.items():
            held.update(dict.fromkeys(devices, container_id))
        live = {}
        for key, record in self.state.tasks.items():
            assert key == record.key
            numbers = [int(status.update_id) for status in record.unacknowledged]
            assert numbers == sorted(set(numbers)) and all(number < record.next_update for number in numbers), key
            assert key not in self.state.finished, f"{key} is live and finished"
            if record.unacknowledged:
                assert record.unacknowledged[-1].state is record.state or not record.state.is_terminal
            assert (("updates", key) in self._deadlines) == (self.registered and bool(record.unacknowledged)), key
            if record.state.is_terminal:
                assert record.unacknowledged, f"{key} has ended and is acknowledged, but is not finished"
                continue
            container_id = container_of(self.info.agent_id, key)
            live[container_id] = key
            for uuid in record.task.device_uuids:
                assert uuid not in held, f"{uuid} is held by {held[uuid]} and {container_id}"
                held[uuid] = container_id
        assert held == self._held
        assert live == self._live
        assert self._starting <= live.keys()
        assert self._live.keys().isdisjoint(self._orphans)
        assert len(self.state.finished) <= self.config.finished_limit
        assert list(self._sandboxes) == [key for key, task in self.state.finished.items() if task.sandbox]
        assert not (self.registered and self._connection is None)
        assert not (self.registered and not self._recovered)

    # --- conversation with the master -------------------------------------------------------------------------------

    def _introduce(self, connection: ConnectionId) -> None:
        """Speak first: who we are, and every task."""
        self._announced = self.info
        self._send(connection, Register(self.info, self.state.cluster_id, self.state.generation))
        parts = list(_split_reports(self.state.tasks.values()))
        for number, part in enumerate(parts, 1):
            self._send(connection, TaskReports(part, complete=number == len(parts)))
        self._sent = {key: record.next_update - 1 for key, record in self.state.tasks.items()}
        self._deadlines.set(("register", ""), self._now.monotonic_ms + REGISTER_TIMEOUT_MS)

    def _lose_connection(self) -> None:
        self._connection = None
        self.registered = False
        self._announced = None
        self._parts.clear()
        self._resync_asked = False
        self._sent.clear()
        self._deadlines.cancel(("register", ""))
        self._deadlines.cancel(("ping", ""))
        for key in self._retry_ms:
            self._deadlines.cancel(("updates", key))
        self._retry_ms.clear()

    def _close(self, connection: ConnectionId, reason: str, *, refused: bool = False) -> None:
        """Leave this master; a reason is logged when it changes, not at every try."""
        if not refused or reason != self.refusal:
            self._log("warning", "left the master; will try again", reason=reason)
        if refused:
            self.refusal = reason
        self._effects.append(CloseConnection(connection, reason))
        self._lose_connection()

    def _hear(self, connection: ConnectionId, message: object) -> None:
        if self.registered:
            self._expect_ping()
        match message:
            case Ping(number):
                self._send(connection, Pong(number))
            case Registered():
                self._let_in(connection, message)
            case Refused(error):
                self._close(connection, str(error), refused=True)
            case DesiredState():
                self._desired_state(connection, message)
            case AcknowledgeUpdates():
                self._acknowledged(message)
            case OpenLog():
                self._open_log(connection, message)
            case _:
                # A newer master says things that this version does not know (M-01).
                pass

    def _let_in(self, connection: ConnectionId, message: Registered) -> None:
        mine = self.state
        if self._announced is None:
            return
        if self.registered:
            # The intervals changed at run time.
            self._listen_for(message)
            return
        if mine.cluster_id and message.cluster_id != mine.cluster_id:
            self._close(
                connection,
                f"this work directory belongs to cluster {mine.cluster_id}, but the master leads cluster {message.cluster_id}:"
                " give the right --master, or another --work-dir",
                refused=True,
            )
            return
        if message.term < mine.generation.term:
            self._close(
                connection,
                f"the master is of term {message.term}, but this agent has obeyed one of term {mine.generation.term}:"
                " it was replaced, or its registry was restored from an older copy",
                refused=True,
            )
            return
        if not mine.cluster_id:
            self._persist(ClusterJoined(message.cluster_id))
        self._deadlines.cancel(("register", ""))
        self.registered = True
        self.refusal = ""
        self.registrations_total += 1
        self._listen_for(message)
        self._deadlines.set(("prune", ""), self._now.monotonic_ms + PRUNE_INTERVAL_MS)
        self._log("info", "registered", cluster=message.cluster_id, term=message.term, tasks=len(mine.tasks))
        if self._announced is not self.info:
            self._announce_devices(connection)
        # What came up since the reports; the others were in them and are repeated in due time.
        for key, record in mine.tasks.items():
            if record.unacknowledged:
                self._await_acknowledgement(key)
                told = self._sent.get(key, 0)
                self._updates += [status for status in record.unacknowledged if int(status.update_id) > told]
        self._sent.clear()

    def _listen_for(self, message: Registered) -> None:
        self._silence_ms = message.ping_interval_ms * message.max_missed_pings
        self._deadlines.cancel(("ping", ""))
        self._expect_ping()

    def _expect_ping(self) -> None:
        if self._silence_ms:
            self._deadlines.set(("ping", ""), self._now.monotonic_ms + self._silence_ms)

    def _open_log(self, connection: ConnectionId, message: OpenLog) -> None:
        key = TaskKey(message.framework_id, message.task_id)
        error = None
        finished = self.state.finished.get(key)
        if key not in self.state.tasks and (finished is None or not finished.sandbox):
            what = "is not kept any more" if finished else "was never here"
            error = ErrorDetail(
                ErrorReason.NOT_FOUND, f"the output of task {message.framework_id}/{message.task_id} {what}"
            )
        self._effects.append(
            OpenLogStream(
                connection,
                message.stream_id,
                container_of(self.info.agent_id, key),
                message.follow,
                message.tail_bytes,
                error,
            )
        )

    # --- desired state ----------------------------------------------------------------------------------------------

    def _desired_state(self, connection: ConnectionId, message: DesiredState) -> None:
        if not self.registered:
            return
        own = self.state.generation
        if message.generation < own:
            self._log("warning", "refused an old desired state", got=_text(message.generation), have=_text(own))
            return
        if message.base is not None and (message.base != own or message.generation == own):
            if message.generation > own and not self._resync_asked:
                self._resync_asked = True
                self._send(connection, ResyncRequest(own))
            return
        if self._parts and (self._parts[0].generation, self._parts[0].base) != (message.generation, message.base):
            self._parts.clear()
        self._parts.append(message)
        if message.more:
            return
        parts, self._parts = self._parts, []
        if message.base is None:
            self._resync_asked = False
        for part in parts:
            for task in part.launch:
                self._launch(task)
            for kill in part.kill:
                self._kill(kill)
            for kept in part.keep:
                self._keep(TaskKey(kept.framework_id, kept.task_id))
        if message.generation > own:
            self._persist(GenerationSeen(message.generation))

    def _launch(self, task: AssignedTask) -> None:
        key = TaskKey(task.framework_id, task.spec.task_id)
        if key in self.state.tasks:
            return
        if key in self.state.finished:
            self._repeat_end(key)
            return
        container_id = container_of(self.info.agent_id, key)
        problem = launch_problem(
            task,
            runtime=self.info.runtime,
            default_image=self.config.default_image,
            devices=self._devices,
            held=self._held,
        )
        if problem is None and container_id in self._orphans:
            problem = Verdict(TaskState.DROPPED, StatusReason.AGENT_REFUSED, f"container {container_id} still runs")
        record = TaskRecord(task, TaskState.STAGING, self.info.boot_id)
        if problem is not None:
            self._report(record, problem)
            return
        self._report(record, Verdict(TaskState.STARTING, StatusReason.UNSPECIFIED, ""))
        self._hold(container_id, key, task)
        self._starting.add(container_id)
        image = task.spec.image or self.config.default_image
        devices = granted_devices(task, self._devices)
        self._effects.append(
            StartContainer(container_id, task, "" if self.info.runtime == "process" else image, devices)
        )

    def _kill(self, kill: KillTask) -> None:
        key = TaskKey(kill.framework_id, kill.task_id)
        record = self.state.tasks.get(key)
        if record is None:
            if key in self.state.finished:
                self._repeat_end(key)
            else:
                self._never_here(
                    key, Verdict(TaskState.KILLED, StatusReason.KILLED_DURING_LAUNCH, "killed before it was started")
                )
            return
        if record.state.is_terminal:
            return
        earlier = record.kill
        if earlier is not None and grace_ms_of(record.task, kill) >= grace_ms_of(record.task, earlier):
            return
        if earlier is not None:
            # Only the grace is new; the recorded reason stays.
            self._persist(TaskSaved(replace(record, kill=replace(earlier, grace_ms=kill.grace_ms))))
        else:
            self._report(replace(record, kill=kill), Verdict(TaskState.KILLING, kill.reason, ""))
        container_id = container_of(self.info.agent_id, key)
        if container_id not in self._starting:
            self._kill_container(container_id, grace_ms_of(record.task, kill))

    def _keep(self, key: TaskKey) -> None:
        if key in self.state.tasks:
            return
        if key in self.state.finished:
            self._repeat_end(key)
            return
        self._never_here(key, Verdict(TaskState.GONE, StatusReason.CONTAINER_LOST, "this agent does not know the task"))

    def _never_here(self, key: TaskKey, verdict: Verdict) -> None:
        """Answer for a task of which we have nothing, and see to it that it never begins."""
        status = self._status(key, verdict, "1", ())
        self._finish(FinishedTask(status, self._now.wall_ms))
        self._updates.append(status)

    def _repeat_end(self, key: TaskKey) -> None:
        """The master has forgotten, or not recorded, that this task is over."""
        self._updates.append(self.state.finished[key].status)

    # --- containers -------------------------------------------------------------------------------------------------

    def _containers_recovered(self, containers: Iterable[RecoveredContainer]) -> None:
        assert not self._recovered, "containers are recovered once"
        self._recovered = True
        found = {container.container_id: container for container in containers}
        for container_id, key in list(self._live.items()):
            record = self.state.tasks[key]
            container = found.pop(container_id, None)
            if container is None:
                self._end(key, never_seen(record, self.info.boot_id))
            elif container.exit is not None:
                self._end(key, end_of(record, container.exit, self.info.boot_id))
            else:
                self._adopt(container_id, record)
        for container_id, container in found.items():
            if container.exit is not None:
                self._effects.append(RemoveContainer(container_id))
            else:
                self._end_orphan(container_id)
        if self._connection is not None:
            self._introduce(self._connection)

    def _adopt(self, container_id: ContainerId, record: TaskRecord) -> None:
        self._log("info", "adopted a running task", **_names(record.key))
        if record.kill is not None:
            self._kill_container(container_id, grace_ms_of(record.task, record.kill))
        elif record.state is TaskState.STARTING:
            self._report(record, Verdict(TaskState.RUNNING, StatusReason.UNSPECIFIED, ""))

    def _end_orphan(self, container_id: ContainerId) -> None:
        """Ours by its label, but no live task's: it may hold devices until it is gone."""
        self._log("warning", "found a container that no task accounts for; ending it", container=container_id)
        devices: tuple[DeviceUuid, ...] = ()
        for key, record in self.state.tasks.items():
            if container_of(self.info.agent_id, key) == container_id:
                devices = record.task.device_uuids
        for key, finished in self.state.finished.items():
            if not devices and container_of(self.info.agent_id, key) == container_id:
                devices = finished.status.device_uuids
        self._orphans[container_id] = tuple(uuid for uuid in devices if uuid not in self._held)
        self._held.update(dict.fromkeys(self._orphans[container_id], container_id))
        self._kill_container(container_id, 0)

    def _container_started(self, container_id: ContainerId) -> None:
        self._starting.discard(container_id)
        key = self._live.get(container_id)
        if key is None:
            return
        record = self.state.tasks[key]
        if record.kill is not None:
            self._kill_container(container_id, grace_ms_of(record.task, record.kill))
        elif record.state is TaskState.STARTING:
            self._report(record, Verdict(TaskState.RUNNING, StatusReason.UNSPECIFIED, ""))

    def _launch_failed(self, event: ContainerLaunchFailed) -> None:
        self._starting.discard(event.container_id)
        key = self._live.get(event.container_id)
        if key is None:
            return
        message = event.message[:MAX_MESSAGE_LENGTH]
        self._log("warning", "a task could not be started", **_names(key), reason=message)
        if self.state.tasks[key].kill is not None:
            self._end(key, Verdict(TaskState.KILLED, StatusReason.KILLED_DURING_LAUNCH, "killed before it was started"))
        else:
            self._end(key, Verdict(TaskState.FAILED, event.reason, message, event.exit_code))

    def _container_exited(self, container_id: ContainerId, exit: ContainerExit) -> None:
        self._starting.discard(container_id)
        key = self._live.get(container_id)
        if key is not None:
            if exit.reason is StatusReason.ENGINE_LOST:
                self._log("error", "a task is lost with the container engine", **_names(key), reason=exit.message)
            self._end(key, end_of(self.state.tasks[key], exit, self.info.boot_id))
            return
        for uuid in self._orphans.pop(container_id, ()):
            del self._held[uuid]
        self._deadlines.cancel(("kill", container_id))
        self._effects.append(RemoveContainer(container_id))

    def _end(self, key: TaskKey, verdict: Verdict) -> None:
        """The container of a task is no more."""
        container_id = container_of(self.info.agent_id, key)
        record = self.state.tasks[key]
        self._starting.discard(container_id)
        del self._live[container_id]
        for uuid in record.task.device_uuids:
            del self._held[uuid]
        self._deadlines.cancel(("kill", container_id))
        self._report(record, verdict)
        self._effects.append(RemoveContainer(container_id))

    def _hold(self, container_id: ContainerId, key: TaskKey, task: AssignedTask) -> None:
        self._live[container_id] = key
        for uuid in task.device_uuids:
            self._held[uuid] = container_id

    def _kill_container(self, container_id: ContainerId, grace_ms: int) -> None:
        self._effects.append(KillContainer(container_id, grace_ms))
        self._deadlines.set(("kill", container_id), self._now.monotonic_ms + grace_ms + KILL_RETRY_MS)

    # --- statuses ---------------------------------------------------------------------------------------------------

    def _report(self, record: TaskRecord, verdict: Verdict) -> None:
        """Move a task to another state: recorded first, then said."""
        assert may_follow(record.state, verdict.state), f"{record.key}: {record.state.name} to {verdict.state.name}"
        status = self._status(record.key, verdict, str(record.next_update), record.task.device_uuids)
        self._persist(
            TaskSaved(
                replace(
                    record,
                    state=verdict.state,
                    next_update=record.next_update + 1,
                    unacknowledged=(*record.unacknowledged, status),
                )
            )
        )
        if self.registered:
            self._updates.append(status)
            self._await_acknowledgement(record.key)

    def _status(self, key: TaskKey, verdict: Verdict, update_id: str, devices: tuple[DeviceUuid, ...]) -> TaskStatus:
        return TaskStatus(
            task_id=key.task_id,
            framework_id=key.framework_id,
            agent_id=self.info.agent_id,
            state=verdict.state,
            reason=verdict.reason,
            source=StatusSource.AGENT,
            message=verdict.message,
            update_id=update_id,
            timestamp_ms=self._now.wall_ms,
            exit_code=verdict.exit_code,
            device_uuids=devices,
        )

    def _await_acknowledgement(self, key: TaskKey) -> None:
        if key not in self._retry_ms:
            self._retry_ms[key] = FIRST_RETRY_MS
            self._deadlines.set(("updates", key), self._now.monotonic_ms + FIRST_RETRY_MS)

    def _acknowledged(self, message: AcknowledgeUpdates) -> None:
        """Forget updates up to the acknowledged one: who knows it needs no earlier one. Unknown ones are ignored (SU-2)."""
        if not self.registered:
            return
        for item in message.updates:
            key = TaskKey(item.framework_id, item.task_id)
            record = self.state.tasks.get(key)
            if record is None:
                continue
            ids = [status.update_id for status in record.unacknowledged]
            if item.update_id not in ids:
                continue
            position = ids.index(item.update_id)
            left = record.unacknowledged[position + 1 :]
            self._retry_ms.pop(key, None)
            self._deadlines.cancel(("updates", key))
            if left:
                self._persist(TaskSaved(replace(record, unacknowledged=left)))
                self._await_acknowledgement(key)
            elif record.state.is_terminal:
                end = record.unacknowledged[position]
                self._finish(FinishedTask(end, self._now.wall_ms, sandbox=record.begun))
            else:
                self._persist(TaskSaved(replace(record, unacknowledged=())))

    def _finish(self, finished: FinishedTask) -> None:
        self._persist(TaskFinished(finished))
        if finished.sandbox:
            self._sandboxes[finished.key] = None
        self._prune()

    def _prune(self) -> None:
        """Keep what is remembered of finished tasks within its bounds of number and age."""
        finished, config, wall_ms = self.state.finished, self.config, self._now.wall_ms
        while self._sandboxes:
            key = next(iter(self._sandboxes))
            too_many = len(self._sandboxes) > config.sandbox_limit
            if not too_many and finished[key].ended_at_ms + config.sandbox_age_ms > wall_ms:
                break
            self._drop_sandbox(key)
        while finished:
            key = next(iter(finished))
            if len(finished) <= config.finished_limit and finished[key].ended_at_ms + config.finished_age_ms > wall_ms:
                break
            if key in self._sandboxes:
                self._drop_sandbox(key)
            self._persist(FinishedForgotten(key))

    def _drop_sandbox(self, key: TaskKey) -> None:
        del self._sandboxes[key]
        self._persist(SandboxDropped(key))
        self._effects.append(RemoveSandbox(container_of(self.info.agent_id, key)))

    # --- devices and time -------------------------------------------------------------------------------------------

    def _devices_discovered(self, info: AgentInfo) -> None:
        if info == self.info:
            return
        before = self._devices
        self.info = info
        self._devices = {device.uuid: device for device in info.devices}
        for text in _changes(before, self._devices):
            self._log("warning", text)
        if self.registered and self._connection is not None:
            self._announce_devices(self._connection)

    def _announce_devices(self, connection: ConnectionId) -> None:
        self._announced = self.info
        self._send(connection, DevicesChanged(self.info.devices, self.info.resources))

    def _time_passed(self) -> None:
        for kind, subject in self._deadlines.pop_due(self._now.monotonic_ms):
            match kind:
                case "updates":
                    assert isinstance(subject, tuple)
                    self._repeat_updates(subject)
                case "kill":
                    assert isinstance(subject, str)
                    self._log("warning", "a container does not end; asking again", container=subject)
                    self._kill_container(ContainerId(subject), 0)
                case "prune":
                    self._prune()
                    self._deadlines.set(("prune", ""), self._now.monotonic_ms + PRUNE_INTERVAL_MS)
                case "register":
                    if self._connection is not None:
                        self._close(self._connection, "the master did not answer the registration", refused=True)
                case "ping":
                    if self._connection is not None:
                        self._close(self._connection, f"nothing was heard from the master for {self._silence_ms} ms")
                case _:
                    raise AssertionError(kind)

    def _repeat_updates(self, key: TaskKey) -> None:
        if key not in self._retry_ms:
            # The connection was left in the same moment, for its silence.
            return
        self._updates += self.state.tasks[key].unacknowledged
        self._retry_ms[key] = min(2 * self._retry_ms[key], LAST_RETRY_MS)
        self._deadlines.set(("updates", key), self._now.monotonic_ms + self._retry_ms[key])

    # --- effects ----------------------------------------------------------------------------------------------------

    def _persist(self, record: Record) -> None:
        self.state.apply(record)
        self._effects.append(Persist(record))

    def _send(self, connection: ConnectionId, message: AgentMessage) -> None:
        self._effects.append(SendToMaster(connection, message))

    def _flush_updates(self) -> None:
        if not self._updates or not self.registered or self._connection is None:
            return
        for start in range(0, len(self._updates), MAX_UPDATES):
            self._send(self._connection, TaskUpdates(tuple(self._updates[start : start + MAX_UPDATES])))

    def _log(self, level: str, text: str, **fields: object) -> None:
        self._effects.append(Log(level, text, fields))


def _names(key: TaskKey) -> dict[str, str]:
    return {"framework": key.framework_id, "task": key.task_id}


def _text(generation: Generation) -> str:
    return f"{generation.term}.{generation.sequence}"


def _split_reports(records: Iterable[TaskRecord]) -> Iterator[tuple[TaskReport, ...]]:
    """Reports in parts that fit a message; one empty part where there is no task."""
    part: list[TaskReport] = []
    size = 0
    for record in records:
        report = TaskReport(record.task.framework_id, record.task, record.state, record.unacknowledged)
        report_size = _estimate_bytes(record)
        if part and (len(part) >= MAX_REPORTS or size + report_size > MAX_REPORT_BYTES):
            yield tuple(part)
            part, size = [], 0
        part.append(report)
        size += report_size
    yield tuple(part)


def _estimate_bytes(record: TaskRecord) -> int:
    """A generous guess at the size on the wire."""
    spec = record.task.spec
    characters = sum(map(len, spec.command))
    characters += sum(len(variable.name) + len(variable.value) for variable in spec.environment)
    characters += sum(len(name) + len(value) for name, value in spec.labels.items())
    characters += sum(len(status.message) for status in record.unacknowledged)
    devices = len(record.task.device_uuids) * (1 + len(record.unacknowledged))
    return 1024 + 4 * characters + 64 * devices + 300 * len(record.unacknowledged)


def _changes(before: dict[DeviceUuid, Device], after: dict[DeviceUuid, Device]) -> Iterator[str]:
    for uuid in sorted(before.keys() | after.keys()):
        old, new = before.get(uuid), after.get(uuid)
        if new is None:
            yield f"device {uuid} is gone"
        elif old is None:
            yield f"device {uuid} is new"
        elif old.health != new.health:
            why = f": {new.health_reason}" if new.health_reason else ""
            yield f"device {uuid} is now {new.health.name.lower()}{why}"
