"""Mirrors `proto/bursar/v1/agent_service.proto`, the control stream; log bytes never pass through a machine."""

from __future__ import annotations

from dataclasses import dataclass, field

from bursar.core.devices import Device
from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, Generation, TaskId
from bursar.core.images import Image, ImagePull
from bursar.core.messages.executor import ExecutorMessage
from bursar.core.messages.offers import Attributes
from bursar.core.messages.sessions import SessionStart
from bursar.core.resources import ReservedResources
from bursar.core.tasks import AssignedTask, StatusReason, TaskState, TaskStatus


@dataclass(frozen=True, slots=True)
class AgentInfo:
    """Who an agent is and what it has."""

    agent_id: AgentId
    incarnation: int = 0
    boot_id: str = ""
    hostname: str = ""
    attributes: Attributes = field(default_factory=dict)
    resources: tuple[ReservedResources, ...] = ()
    devices: tuple[Device, ...] = ()
    runtime: str = "process"
    runs_without_image: bool = True
    version: str = ""
    capabilities: tuple[str, ...] = ()
    metrics_address: str = ""


@dataclass(frozen=True, slots=True)
class Register:
    """The first message of a stream."""

    info: AgentInfo
    cluster_id: str = ""
    generation: Generation = Generation()


@dataclass(frozen=True, slots=True)
class TaskReport:
    """One task as the agent sees it."""

    framework_id: FrameworkId
    task: AssignedTask
    state: TaskState
    unacknowledged: tuple[TaskStatus, ...] = ()
    restart_order: int = 0


@dataclass(frozen=True, slots=True)
class TaskReports:
    """A part of the tasks that the agent knows."""

    tasks: tuple[TaskReport, ...]
    complete: bool = True


@dataclass(frozen=True, slots=True)
class TaskUpdates:
    """New statuses, each repeated until acknowledged."""

    updates: tuple[TaskStatus, ...]


@dataclass(frozen=True, slots=True)
class Pong:
    """Answers a ping."""

    number: int = 0


@dataclass(frozen=True, slots=True)
class ResyncRequest:
    """Send everything."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class DevicesChanged:
    """Devices changed while registered."""

    devices: tuple[Device, ...]
    resources: tuple[ReservedResources, ...]


@dataclass(frozen=True, slots=True)
class Repair:
    """Something was not as the books had it, and was made so, or the books were (B-18)."""

    what: str
    framework_id: FrameworkId = FrameworkId("")
    task_id: TaskId = TaskId("")
    message: str = ""


@dataclass(frozen=True, slots=True)
class BooksDigest:
    """What an agent believes, in a few bytes; `bursar.core.books` makes the digests."""

    generation: Generation
    tasks: int = 0
    tasks_digest: str = ""
    devices_digest: str = ""
    repairs: tuple[Repair, ...] = ()


@dataclass(frozen=True, slots=True)
class BooksReport:
    """A part of all that an agent believes; answers BooksRequest."""

    number: int
    register: Register | None = None
    tasks: tuple[TaskReport, ...] = ()
    complete: bool = True


@dataclass(frozen=True, slots=True)
class CutReport:
    """How the cutting of a card ended."""

    uuid: DeviceUuid
    ordered_at_ms: int
    problem: str = ""
    now: str = ""


@dataclass(frozen=True, slots=True)
class ImagePulls:
    """Where pulls are: all at first, then those of which something is different."""

    pulls: tuple[ImagePull, ...]


@dataclass(frozen=True, slots=True)
class Images:
    """What the agent's engine has."""

    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True)
class VolumeTrouble:
    """Why a volume could not be made, or its data not removed."""

    uuid: DeviceUuid
    problem: str


@dataclass(frozen=True, slots=True)
class VolumesHeld:
    """The persistent volumes whose data the agent has; answers VolumeOrders."""

    order: int = 0
    held: tuple[DeviceUuid, ...] = ()
    troubles: tuple[VolumeTrouble, ...] = ()


AgentMessage = (
    Register
    | TaskReports
    | TaskUpdates
    | Pong
    | ResyncRequest
    | DevicesChanged
    | BooksDigest
    | BooksReport
    | ImagePulls
    | Images
    | CutReport
    | ExecutorMessage
    | VolumesHeld
)


@dataclass(frozen=True, slots=True)
class Registered:
    """The agent is in."""

    cluster_id: str
    term: int
    ping_interval_ms: int
    max_missed_pings: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The agent is not in."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class TaskRef:
    """Names one task."""

    framework_id: FrameworkId
    task_id: TaskId


@dataclass(frozen=True, slots=True)
class KillTask:
    """End this task."""

    framework_id: FrameworkId
    task_id: TaskId
    reason: StatusReason = StatusReason.UNSPECIFIED
    grace_ms: int | None = None


@dataclass(frozen=True, slots=True)
class DesiredState:
    """What should be true of the agent's tasks; `base` None is everything."""

    generation: Generation
    base: Generation | None = None
    more: bool = False
    launch: tuple[AssignedTask, ...] = ()
    kill: tuple[KillTask, ...] = ()
    keep: tuple[TaskRef, ...] = ()


@dataclass(frozen=True, slots=True)
class AcknowledgedUpdate:
    """Names one update of one task."""

    framework_id: FrameworkId
    task_id: TaskId
    update_id: str


@dataclass(frozen=True, slots=True)
class AcknowledgeUpdates:
    """These updates need not be repeated."""

    updates: tuple[AcknowledgedUpdate, ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there?"""

    number: int = 0


@dataclass(frozen=True, slots=True)
class RestartTask:
    """End this task's container and start the task again; said until it is taken, carried out once."""

    framework_id: FrameworkId
    task_id: TaskId
    message: str = ""
    grace_ms: int | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class OpenLog:
    """Asks the agent to open SendLog."""

    stream_id: str
    framework_id: FrameworkId
    task_id: TaskId
    follow: bool = False
    tail_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceOrder:
    """The newest order of operators about one device."""

    uuid: DeviceUuid
    cordoned: bool
    reason: str = ""
    ordered_at_ms: int = 0
    layout: str = ""


@dataclass(frozen=True, slots=True)
class DeviceOrders:
    """All that operators ordered about an agent's devices."""

    orders: tuple[DeviceOrder, ...]


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Asks the agent to open ServeSession."""

    stream_id: str
    framework_id: FrameworkId
    task_id: TaskId
    start: SessionStart


@dataclass(frozen=True, slots=True)
class BooksRequest:
    """Say all of it."""

    number: int


@dataclass(frozen=True, slots=True)
class StartImagePull:
    """Have this image, though no task asks for it."""

    pull_id: str
    image: str
    principal: str = ""
    ordered_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class CancelImagePull:
    """Nobody wants this pull any more."""

    pull_id: str


@dataclass(frozen=True, slots=True)
class VolumeOrders:
    """Which persistent volumes there are to be; the agent answers with VolumesHeld."""

    order: int
    make: tuple[DeviceUuid, ...] = ()
    keep: tuple[DeviceUuid, ...] = ()
    remove: tuple[DeviceUuid, ...] = ()


MasterMessage = (
    Registered
    | Refused
    | DesiredState
    | AcknowledgeUpdates
    | Ping
    | OpenLog
    | RestartTask
    | DeviceOrders
    | OpenSession
    | BooksRequest
    | StartImagePull
    | CancelImagePull
    | ExecutorMessage
    | VolumeOrders
)
