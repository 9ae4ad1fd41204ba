"""What an author launches, and what is reported about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bursar.core import task_groups as messages
from bursar.core.errors import ErrorDetail, ErrorReason, InvalidText
from bursar.core.fetching import parse_fetch
from bursar.core.ids import AgentId, TaskId
from bursar.core.lives import Check, CheckStatus, HealthCheck, RestartMode, RestartPolicy
from bursar.core.memory.tasks import plan_task
from bursar.core.memory.text import parse_memory, parse_memory_text
from bursar.core.resources import MEM, ResourceRequest, normalize_ports
from bursar.core.service_ports import ServicePort, common_port, parse_service_port, ports_of
from bursar.core.surroundings import ContainerSettings, Volume, parse_volume
from bursar.core.tasks import (
    EnvironmentVariable,
    StatusReason,
    TaskExecutor,
    TaskSpec,
    TaskState,
    TaskStatus,
    spec_problem,
)
from bursar.core.ulimits import parse_ulimits
from bursar.sdk.amounts import Amount, exact, request

#: Ends that the command has no part in: another try elsewhere may well succeed.
_NOT_THE_COMMANDS_FAULT = frozenset(
    {
        StatusReason.AGENT_REBOOTED,
        StatusReason.CONTAINER_LOST,
        StatusReason.ENGINE_LOST,
        StatusReason.DEVICES_CHANGED,
        StatusReason.AGENT_UNREACHABLE,
        StatusReason.LAUNCH_TIMEOUT,
        StatusReason.INVALID_OFFERS,
        StatusReason.GANG_MEMBER_LOST,
        StatusReason.EXECUTOR_ENDED,
        StatusReason.DEVICE_LOST,
        StatusReason.PORT_IN_USE,
    }
)
_LOST_STATES = frozenset({TaskState.DROPPED, TaskState.GONE, TaskState.GONE_BY_OPERATOR, TaskState.UNKNOWN})
#: Refusals that say nothing about the task itself.
_NOT_THE_TASKS_FAULT = frozenset(
    {
        ErrorReason.UNSPECIFIED,
        ErrorReason.INVALID_OFFERS,
        ErrorReason.CALL_REFUSED,
        ErrorReason.AGENT_UNAVAILABLE,
        ErrorReason.SHUTTING_DOWN,
        ErrorReason.RESOURCES_IN_USE,
    }
)


@dataclass(frozen=True, slots=True)
class Status:
    """Where a task is."""

    state: TaskState
    reason: StatusReason = StatusReason.UNSPECIFIED
    #: For people.
    message: str = ""
    #: Of the command, once it ran to an end; 128 + N stands for signal N.
    exit_code: int | None = None
    #: The GPUs that it holds or held.
    device_uuids: tuple[str, ...] = ()
    agent_id: str = ""
    #: By its health check; None: it has none, or none has decided yet.
    healthy: bool | None = None
    #: What its check found last.
    check: CheckStatus | None = None
    #: With the host ports that it got.
    service_ports: tuple[ServicePort, ...] = ()

    @property
    def terminal(self) -> bool:
        """Whether nothing can follow."""
        return self.state.is_terminal or self.state is TaskState.UNKNOWN

    @property
    def ok(self) -> bool:
        """Whether the command ended with exit code 0."""
        return self.state is TaskState.FINISHED

    @property
    def retryable(self) -> bool:
        """Whether it ended for a reason that another try may escape: it never ran, or what ran it broke."""
        return self.state in _LOST_STATES or (self.terminal and not self.ok and self.reason in _NOT_THE_COMMANDS_FAULT)

    @classmethod
    def reported(cls, status: TaskStatus) -> Status:
        """What the cluster reported."""
        return cls(
            status.state,
            status.reason,
            status.message,
            status.exit_code,
            tuple(status.device_uuids),
            str(status.agent_id),
            status.healthy,
            status.check,
            status.service_ports,
        )

    @classmethod
    def refused(cls, error: ErrorDetail) -> Status:
        """A launch that the master did not take: DROPPED where another offer may do, ERROR where the task itself is wrong."""
        if error.reason in _NOT_THE_TASKS_FAULT:
            return cls(TaskState.DROPPED, StatusReason.INVALID_OFFERS, str(error))
        return cls(TaskState.ERROR, message=str(error))


#: Of a task that does not say.
DEFAULT_MEM = "128MiB"


@dataclass(eq=False)
class Task:
    """One task: yield it from `Framework.on_offer`. Compared by identity. Raises InvalidText where it can never be right."""

    #: The program and its arguments; one text is given to `sh -c`.
    command: Sequence[str] | str = ()
    name: str = ""
    #: Empty: the agent's default image where it runs containers, none where it runs processes.
    image: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    cpus: Amount = 1
    #: Where `memory` says how large the container is, it may be left out.
    mem: Amount = ""
    gpus: Amount = 0
    disk: Amount = 0
    #: `[31000-31002]`: these very ports.
    ports: str = ""
    #: These very GPUs, by uuid.
    devices: Sequence[str] = ()
    #: Amounts of other kinds.
    custom: Mapping[str, Amount] = field(default_factory=dict)
    #: From SIGTERM to SIGKILL.
    kill_grace_ms: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    #: Limits and rights of its container; agents that run plain processes refuse them.
    container: ContainerSettings | None = None
    #: `/host/path:/target:rw`, `name:/target:rw`, `folder/name` or `volume/id:/target:rw` (`Offer.volumes`); read only unless `rw` or `rw-delete` is said.
    volumes: Sequence[str] = ()
    #: As `env`, but shown to nobody.
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: Pools of memory: `profile=jvm,container=8GiB,shm=1GiB`, or a mapping of the same (docs/memory.md).
    memory: str | Mapping[str, Any] = ""
    #: After so long, in milliseconds, it is ended and has failed; None: it may run as long as it likes.
    max_run_ms: int | None = None
    #: Its agent ends it when that has had no master for so long, in milliseconds, and it is GONE; None: it runs on.
    max_disconnected_ms: int | None = None
    #: Whether its agent starts it again when it has ended by itself; None: never.
    restart: RestartPolicy | None = None
    #: Looked at while it runs: the result stands in its status, nothing follows from it.
    check: Check | None = None
    #: Ends it when it fails too often; `Status.healthy` says how it is.
    health_check: HealthCheck | None = None
    #: Files brought into the sandbox before it starts: `[PATH=]URI[#sha256=HEX]`, by http, https, or file from the agent's volume roots.
    fetch: Sequence[str] = ()
    #: At which others reach it: `jupyter`, `ssh`, … or `web:8080`; `web:8080@31000` for that very port of the machine. The task listens
    #: on `$BURSAR_PORT_NAME`; `services` says where it is reached, from its first status on.
    service_ports: Sequence[str] = ()
    #: It is an executor: its program (`bursar.sdk.executor`) runs tasks that name it.
    executor: bool = False
    #: The id of the executor that runs it, on whose agent's offers it is yielded; `command` is for that to read.
    on_executor: str = ""
    #: Limits of each of its processes: `nofile=1024:4096`, `memlock=-1`, `stack=64MiB`.
    ulimits: Sequence[str] = ()
    #: The author's own; Bursar does not look at it.
    data: Any = None
    #: Unique among all tasks that the framework ever had; made by the SDK, anew for each launch, where it is left empty.
    id: str = ""

    #: Set by the SDK: where it was launched, and the last status that was reported.
    agent_id: str = field(default="", init=False)
    hostname: str = field(default="", init=False)
    role: str = field(default="", init=False)
    status: Status = field(default=Status(TaskState.UNSPECIFIED), init=False)

    def __post_init__(self) -> None:
        self._id_is_ours = not self.id
        self._memory = parse_memory_text(self.memory) if isinstance(self.memory, str) else parse_memory(self.memory)[0]
        #: What it needs, exact.
        self.request: ResourceRequest = request(
            self.cpus, self.mem or 0, self.gpus, self.disk, self.ports, tuple(self.devices), self.custom
        )
        if self.mem == "":
            # The size of the container is what its pools come to.
            mem_bytes = exact(MEM, DEFAULT_MEM) if self._memory.is_empty else plan_task(self._memory)["container"]
            self.request = replace(self.request, scalars={**self.request.scalars, MEM: mem_bytes})
        self._service_ports = tuple(parse_service_port(text) for text in self.service_ports)
        named, others = ports_of(self._service_ports)
        self.request = replace(
            self.request,
            ports=normalize_ports((*self.request.ports, *named)),
            port_count=self.request.port_count + others,
        )
        #: The volumes, read.
        self.parsed_volumes: tuple[Volume, ...] = tuple(parse_volume(text) for text in self.volumes)
        self._ulimits = parse_ulimits(self.ulimits)
        self._fetch = tuple(parse_fetch(text) for text in self.fetch)
        problem = spec_problem(self._spec(self.id or "unnamed"))
        if problem is not None:
            raise InvalidText(
                f"task {self.name or self.id or '(unnamed)'}: {problem[0]}: {problem[1]}", "correct the task"
            )

    @property
    def services(self) -> dict[str, str]:
        """How its service ports are reached, by name: `http://HOST:PORT`, `ssh -p PORT HOST`, `HOST:PORT`; empty before its first status."""
        return {one.name: one.reach(self.hostname or self.agent_id) for one in self.status.service_ports}

    def prepare(self, fresh_id: str) -> TaskSpec:
        """For the session: the specification to launch, under a fresh id unless the author chose one."""
        if self._id_is_ours:
            self.id = fresh_id
        self.status = Status(TaskState.UNSPECIFIED)
        return self._spec(self.id)

    def _spec(self, task_id: str) -> TaskSpec:
        command = ("sh", "-c", self.command) if isinstance(self.command, str) and self.command else tuple(self.command)
        return TaskSpec(
            TaskId(task_id),
            self.name,
            AgentId(""),
            command,
            self.image,
            (
                *(EnvironmentVariable(name, value) for name, value in self.env.items() if name not in self.secrets),
                *(EnvironmentVariable(name, value, True) for name, value in self.secrets.items()),
            ),
            self.request,
            self.kill_grace_ms,
            dict(self.labels),
            container=self.container,
            volumes=self.parsed_volumes,
            memory=self._memory,
            max_run_ms=self.max_run_ms,
            max_disconnected_ms=self.max_disconnected_ms,
            check=self.check,
            health_check=self.health_check,
            restart=self.restart,
            executor=TaskExecutor(self.executor, TaskId(self.on_executor))
            if self.executor or self.on_executor
            else None,
            fetch=self._fetch,
            service_ports=self._service_ports,
            ulimits=self._ulimits,
        )


class TaskGroup:
    """Tasks to yield as one: on one agent, launched together or not at all, in one network, ended together.

    Where one fails or is killed, the others are killed (`StatusReason.GROUP_MEMBER_ENDED`). None has a restart policy.
    Raises InvalidText where that cannot be.
    """

    def __init__(self, tasks: Iterable[Task], name: str = "") -> None:
        self.tasks = tuple(tasks)
        #: Shown to people; the id of the first task where empty.
        self.name = name
        if not self.tasks:
            raise InvalidText("a task group needs a task", "give it at least one")
        if len(set(map(id, self.tasks))) < len(self.tasks):
            raise InvalidText("a task is twice in its group", "make a Task for each of its members")
        for task in self.tasks:
            if task.restart is not None and task.restart.mode is not RestartMode.UNSPECIFIED:
                raise InvalidText(
                    f"task {task.name or task.id or '(unnamed)'} of a group has a restart policy",
                    "leave it out, and launch the group again",
                )
        names = [task.name or task.id or f"number {number}" for number, task in enumerate(self.tasks, 1)]
        if problem := common_port([task._service_ports for task in self.tasks], names):
            raise InvalidText(problem[1], "have one of them listen elsewhere")

    def join(self, specs: Sequence[TaskSpec]) -> tuple[TaskSpec, ...]:
        """For the session: what the prepared tasks become as a group."""
        ids = tuple(spec.task_id for spec in specs)
        group = messages.TaskGroup(self.name or ids[0], ids)
        return tuple(replace(spec, task_group=group) for spec in specs)
