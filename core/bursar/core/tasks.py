"""Tasks: specification, states, the transition table, statuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

from bursar.core.device_names import VOLUMES, device_kind, is_volume
from bursar.core.errors import InvalidText
from bursar.core.fetching import Fetch, fetches_problem
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, Generation, TaskId, id_problem
from bursar.core.lives import (
    Check,
    CheckStatus,
    HealthCheck,
    RestartMode,
    RestartPolicy,
    check_problem,
    health_problem,
    restart_problem,
)
from bursar.core.memory.pools import MemoryPlan, format_bytes
from bursar.core.memory.profiles import runtime_environment
from bursar.core.memory.tasks import MemorySettings, plan_task, with_container, with_shm
from bursar.core.resources import MEM, ReservedResources, ResourceRequest
from bursar.core.service_ports import PortProtocol, ServicePort, service_ports_problem
from bursar.core.surroundings import ContainerSettings, Volume, settings_problem, volumes_problem
from bursar.core.task_groups import TaskGroup, group_problem
from bursar.core.ulimits import Ulimit, ulimits_problem

DEFAULT_KILL_GRACE_MS = 3000


class TaskState(IntEnum):
    """Where a task is; mirrors `bursar.v1.TaskState` (mesos.md §2.4, partition-aware names only)."""

    UNSPECIFIED = 0
    STAGING = 1
    STARTING = 2
    RUNNING = 3
    KILLING = 4
    FINISHED = 5
    FAILED = 6
    KILLED = 7
    ERROR = 8
    DROPPED = 9
    UNREACHABLE = 10
    GONE = 11
    GONE_BY_OPERATOR = 12
    UNKNOWN = 13

    @property
    def is_terminal(self) -> bool:
        """Whether nothing can follow."""
        return self in TERMINAL_STATES


_S = TaskState
TERMINAL_STATES = frozenset({_S.FINISHED, _S.FAILED, _S.KILLED, _S.ERROR, _S.DROPPED, _S.GONE, _S.GONE_BY_OPERATOR})

_ENDS = frozenset({_S.FINISHED, _S.FAILED, _S.KILLED, _S.GONE, _S.GONE_BY_OPERATOR})

#: from → to: every legal move. An agent may skip states that nobody saw.
TRANSITIONS: Mapping[TaskState, frozenset[TaskState]] = {
    _S.STAGING: _ENDS | {_S.STARTING, _S.RUNNING, _S.KILLING, _S.UNREACHABLE, _S.ERROR, _S.DROPPED},
    _S.STARTING: _ENDS | {_S.RUNNING, _S.KILLING, _S.UNREACHABLE, _S.DROPPED},
    _S.RUNNING: _ENDS | {_S.KILLING, _S.UNREACHABLE},
    _S.KILLING: _ENDS | {_S.UNREACHABLE, _S.DROPPED},
    _S.UNREACHABLE: _ENDS | {_S.STAGING, _S.STARTING, _S.RUNNING, _S.KILLING, _S.DROPPED},
}


def may_follow(current: TaskState, following: TaskState) -> bool:
    """Say whether a task may go from one state to another; staying is not a move."""
    return following in TRANSITIONS.get(current, frozenset())


class StatusSource(IntEnum):
    """Who made a status; mirrors `bursar.v1.StatusSource`."""

    UNSPECIFIED = 0
    MASTER = 1
    AGENT = 2


class StatusReason(IntEnum):
    """Why a task is in its state; mirrors `bursar.v1.StatusReason`."""

    UNSPECIFIED = 0
    COMMAND_EXITED = 1
    KILLED_BY_FRAMEWORK = 2
    KILLED_BY_OPERATOR = 3
    FRAMEWORK_REMOVED = 4
    KILLED_DURING_LAUNCH = 5
    LAUNCH_FAILED = 6
    IMAGE_NOT_FOUND = 7
    MEM_LIMIT = 8
    AGENT_REBOOTED = 9
    CONTAINER_LOST = 10
    ENGINE_LOST = 11
    DEVICES_CHANGED = 12
    AGENT_UNREACHABLE = 13
    AGENT_REREGISTERED = 14
    LAUNCH_TIMEOUT = 15
    INVALID_OFFERS = 16
    RECONCILIATION = 17
    AGENT_REFUSED = 18
    GANG_MEMBER_LOST = 19
    SHM_LIMIT = 20
    SIGBUS = 21
    DEVICE_LOST = 22
    MAX_RUN_TIME = 23
    PULLING_IMAGE = 24
    CHECK_CHANGED = 25
    UNHEALTHY = 26
    RESTARTING = 27
    RESTARTED = 28
    VOLUME_REFUSED = 30
    FETCH_FAILED = 31
    DISK_LIMIT = 32
    DEVICE_FAILED = 35
    DEVICE_CORDONED = 36
    DEVICE_MEM_EXCEEDED = 37
    DEVICE_MEM_LIMIT = 38
    DEVICE_ACCESS_LOST = 39
    DISCONNECTED = 40
    REVOKED = 45
    GROUP_MEMBER_ENDED = 50
    PORT_IN_USE = 33
    EXECUTOR_ENDED = 51


@dataclass(frozen=True, slots=True)
class EnvironmentVariable:
    """Mirrors `bursar.v1.EnvironmentVariable`."""

    name: str
    value: str
    #: Never shown, also not where a value is written into a log by mistake.
    secret: bool = False

    def __repr__(self) -> str:
        return f"EnvironmentVariable({self.name!r}, {'…' if self.secret else repr(self.value)})"


@dataclass(frozen=True, slots=True)
class TaskExecutor:
    """A task that runs others, or is run by one; mirrors `bursar.v1.TaskExecutor`."""

    serves: bool = False
    executor_id: TaskId = TaskId("")


#: The capability of agents that know executors.
EXECUTORS = "EXECUTORS"
EXECUTOR_SOCKET = "BURSAR_EXECUTOR_SOCKET"


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What to run and what it needs; mirrors `bursar.v1.TaskSpec`."""

    task_id: TaskId
    name: str = ""
    agent_id: AgentId = AgentId("")
    command: tuple[str, ...] = ()
    image: str = ""
    environment: tuple[EnvironmentVariable, ...] = ()
    resources: ResourceRequest = ResourceRequest()
    kill_grace_ms: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    container: ContainerSettings | None = None
    volumes: tuple[Volume, ...] = ()
    memory: MemorySettings = MemorySettings()
    max_run_ms: int | None = None
    check: Check | None = None
    health_check: HealthCheck | None = None
    restart: RestartPolicy | None = None
    fetch: tuple[Fetch, ...] = ()
    task_group: TaskGroup | None = None
    service_ports: tuple[ServicePort, ...] = ()
    executor: TaskExecutor | None = None
    ulimits: tuple[Ulimit, ...] = ()
    max_disconnected_ms: int | None = None

    @property
    def runs_on(self) -> TaskId:
        """The executor that runs it; empty: its agent does."""
        return self.executor.executor_id if self.executor is not None else TaskId("")

    @property
    def is_executor(self) -> bool:
        """Whether it runs other tasks."""
        return self.executor is not None and self.executor.serves

    def without_secrets(self) -> TaskSpec:
        """The same with the values of secret variables empty: for everybody but the task."""
        if not any(variable.secret for variable in self.environment):
            return self
        shown = tuple(replace(v, value="") if v.secret else v for v in self.environment)
        return replace(self, environment=shown)


@dataclass(frozen=True, slots=True)
class AssignedTask:
    """A task with everything decided; mirrors `bursar.v1.AssignedTask`."""

    framework_id: FrameworkId
    role: str
    spec: TaskSpec
    resources: tuple[ReservedResources, ...]
    launched_at_ms: int = 0
    #: It runs on what is lent, and may be ended after a notice.
    revocable: bool = False
    #: Of the desired state with which it was launched first; empty: not known.
    generation: Generation = field(default_factory=Generation)

    def was_told_by(self, seen: Generation) -> bool:
        """Whether an agent that has recorded this generation was told of the task: if it does not have it, it has lost it."""
        return self.generation != Generation() and self.generation <= seen

    @property
    def device_uuids(self) -> tuple[DeviceUuid, ...]:
        """All devices of the machine, sorted; persistent volumes are none."""
        return tuple(sorted(uuid for part in self.resources for uuid in part.resources.devices if not is_volume(uuid)))

    @property
    def volume_names(self) -> tuple[DeviceUuid, ...]:
        """All persistent volumes, sorted."""
        return tuple(sorted(uuid for part in self.resources for uuid in part.resources.devices if is_volume(uuid)))


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """One report about a task; mirrors `bursar.v1.TaskStatus`."""

    task_id: TaskId
    framework_id: FrameworkId
    agent_id: AgentId
    state: TaskState
    reason: StatusReason = StatusReason.UNSPECIFIED
    source: StatusSource = StatusSource.UNSPECIFIED
    message: str = ""
    #: Empty for answers of a reconciliation; others are repeated until acknowledged.
    update_id: str = ""
    timestamp_ms: int = 0
    exit_code: int | None = None
    device_uuids: tuple[DeviceUuid, ...] = ()
    healthy: bool | None = None
    check: CheckStatus | None = None
    service_ports: tuple[ServicePort, ...] = ()


#: Set by the agent for every task, the socket for executors; a user's own values for these names are dropped.
PINNING_VARIABLES = frozenset(
    {
        "CUDA_VISIBLE_DEVICES",
        "NVIDIA_VISIBLE_DEVICES",
        "CUDA_DEVICE_ORDER",
        "BURSAR_TASK_ID",
        "BURSAR_SANDBOX",
        "BURSAR_DEVICES_FILE",
        EXECUTOR_SOCKET,
    }
)


#: What the kernel takes as one argument, and what a launch may come to in all; messages stay far below 4 MiB.
MAX_ARGUMENT_BYTES = 128 * 1024 - 1
MAX_SPEC_BYTES = 1024 * 1024


def spec_problem(spec: TaskSpec) -> tuple[str, str] | None:
    """Say what is wrong with a task as (field, problem), whatever the cluster; or nothing. TSK-2, GPU-1."""
    if problem := id_problem(spec.task_id):
        return "task_id", problem
    if not spec.command and not spec.image and not (spec.executor and spec.executor.executor_id):
        return "command", "a task needs a command, or an image that has one"
    for argument in spec.command:
        if "\x00" in argument:
            return "command", "an argument must not contain a zero byte"
        if len(argument.encode("utf-8", "surrogatepass")) > MAX_ARGUMENT_BYTES:
            return "command", f"an argument is longer than {MAX_ARGUMENT_BYTES} bytes"
    if spec.command and not spec.command[0]:
        return "command[0]", "the program must not be empty"
    if "\x00" in spec.image or any(character.isspace() for character in spec.image):
        return "image", f"{spec.image!r} is not an image name"
    for variable in spec.environment:
        if not variable.name or "=" in variable.name or "\x00" in variable.name or "\x00" in variable.value:
            return "environment", f"{variable.name!r} is not the name of a variable, or its value holds a zero byte"
    texts = [*spec.command, spec.image, spec.name, *(v.name + v.value for v in spec.environment)]
    texts += [key + value for key, value in spec.labels.items()]
    if sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) > MAX_SPEC_BYTES:
        return "command", f"command, environment and labels together are larger than {MAX_SPEC_BYTES} bytes"
    request = spec.resources
    if len(set(request.devices)) != len(request.devices):
        return "resources.device_uuids", "a device is named twice"
    named = [uuid for uuid in request.devices if not is_volume(uuid)]
    volume_ids = [uuid.rpartition("/")[2] for uuid in request.devices if is_volume(uuid)]
    if len(set(volume_ids)) != len(volume_ids):
        return "resources.device_uuids", "volumes of one id are named: a task mounts one of them by it"
    if request.gpus and named and request.gpus != len(named):
        return "resources.gpus", f"{request.gpus} GPUs are asked for, but {len(named)} are named"
    if twice := {device_kind(uuid) for uuid in request.devices} & request.scalars.keys():
        return f"resources.{min(twice)}", f"{min(twice)} are asked for by number and by name: name them all, or none"
    if VOLUMES in request.scalars:
        return f"resources.{VOLUMES}", "a volume is named, in the task's volumes, not counted"
    for kind, amount in request.scalars.items():
        if amount < 0:
            return f"resources.{kind}", "an amount must not be negative"
        if kind == "gpus":
            return "resources", "GPUs are whole: use the field gpus"
    if request.gpus < 0:
        return "resources.gpus", "an amount must not be negative"
    if not (request.gpu_count or request.ports or request.port_count or any(request.scalars.values())):
        return "resources", "a task must ask for some resources"
    if spec.kill_grace_ms is not None and spec.kill_grace_ms < 0:
        return "kill_grace_ms", "must not be negative"
    if spec.max_run_ms is not None and spec.max_run_ms <= 0:
        return "max_run_ms", "must be more than 0; leave it out for a task that may run as long as it likes"
    if spec.max_disconnected_ms is not None and spec.max_disconnected_ms <= 0:
        return "max_disconnected_ms", "must be more than 0; leave it out for a task that runs on without a master"
    if spec.restart is not None and (problem_at := restart_problem(spec.restart)):
        return f"restart.{problem_at[0]}", problem_at[1]
    tcp_names = [one.name for one in spec.service_ports if one.protocol is not PortProtocol.UDP]
    if spec.check is not None and (problem_at := check_problem(spec.check, tcp_names)):
        return f"check.{problem_at[0]}", problem_at[1]
    if spec.health_check is not None and (problem_at := health_problem(spec.health_check, tcp_names)):
        return f"health_check.{problem_at[0]}", problem_at[1]
    if spec.container is not None and (problem_at := settings_problem(spec.container, request.scalars.get(MEM, 0))):
        return f"container.{problem_at[0]}", problem_at[1]
    if spec.volumes and (problem_at := volumes_problem(spec.volumes)):
        return problem_at
    if spec.fetch and (problem_at := fetches_problem(spec.fetch)):
        return problem_at
    if spec.task_group is not None and (problem_at := group_problem(spec.task_group, spec.task_id, spec.restart)):
        return problem_at
    if problem_at := service_ports_problem(spec.service_ports, request.ports, request.port_count):
        return problem_at
    if problem_at := ulimits_problem(spec.ulimits):
        return problem_at
    if spec.executor is not None and (problem_at := _executor_problem(spec, spec.executor)):
        return problem_at
    return _memory_problem(spec)


def _executor_problem(spec: TaskSpec, executor: TaskExecutor) -> tuple[str, str] | None:
    """What cannot be said together with `executor`."""
    if executor.serves == bool(executor.executor_id):
        return "executor", "a task is an executor (`serves`), or run by one (`executor_id`): say one of them"
    if executor.executor_id == spec.task_id:
        return "executor.executor_id", "a task cannot run itself"
    if spec.task_group is not None:
        return "task_group", "an executor and its tasks are in no task group"
    if spec.restart is not None and spec.restart.mode is not RestartMode.UNSPECIFIED:
        return "restart", "neither an executor nor its tasks are started again: launch another"
    if executor.executor_id:
        for name in ("image", "container", "volumes", "fetch", "check", "health_check", "service_ports", "ulimits"):
            if getattr(spec, name):
                return name, "its executor runs it, in its own container: say this of the executor"
        if not spec.memory.is_empty:
            return "memory", "its executor runs it, in its own container: say this of the executor"
    return None


def _memory_problem(spec: TaskSpec) -> tuple[str, str] | None:
    """The same check wherever a task passes: SDK and CLI, master, agent (F49-09)."""
    try:
        plan = memory_plan(spec)
        if plan is None:
            return None
        memory_environment(spec, plan)
    except InvalidText as error:
        return "memory", str(error).removeprefix("memory: ")
    if plan["container"] != spec.resources.scalars.get(MEM, 0):
        return (
            "memory",
            f"the pools come to {format_bytes(plan['container'])}, but the task asks for no mem; ask for just as much",
        )
    return None


def memory_plan(spec: TaskSpec, runtime: str = "docker") -> MemoryPlan | None:
    """The pools of a task's memory on an agent of this runtime; None where it says nothing about them. Raises InvalidText."""
    if spec.memory.is_empty:
        return None
    settings = with_container(spec.memory, spec.resources.scalars.get(MEM, 0))
    if spec.container is not None:
        settings = with_shm(settings, spec.container.shm_bytes)
    return plan_task(settings, runtime=runtime)


def memory_environment(spec: TaskSpec, plan: MemoryPlan) -> dict[str, str]:
    """What the plan adds to a task's environment. Raises MemoryConflict."""
    given = {variable.name: variable.value for variable in spec.environment}
    return runtime_environment(spec.memory.profile, plan, given, spec.command)
