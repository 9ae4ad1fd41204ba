"""All that the agent's machine can ask for. Imperative."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bursar.agent.containers.runtime import ContainerId, NetworkId
from bursar.agent.devices.cutting import Step
from bursar.core.devices import Device
from bursar.core.errors import ErrorDetail
from bursar.core.ids import ConnectionId, DeviceUuid
from bursar.core.lives import Check
from bursar.core.machine import Persist
from bursar.core.messages.agent import AgentMessage
from bursar.core.messages.executor import ExecutorEvent
from bursar.core.messages.sessions import SessionStart
from bursar.core.service_ports import ServicePort
from bursar.core.tasks import AssignedTask


@dataclass(frozen=True, slots=True)
class SendToMaster:
    """Say something on a connection; dropped where that is over."""

    connection: ConnectionId
    message: AgentMessage


@dataclass(frozen=True, slots=True)
class CloseConnection:
    """End a connection and try again, at most 2 s later."""

    connection: ConnectionId
    reason: str


@dataclass(frozen=True, slots=True)
class StartContainer:
    """Start a task; ContainerStarted or ContainerLaunchFailed follows."""

    container_id: ContainerId
    task: AssignedTask
    #: The task's or the agent's default one; empty for none.
    image: str
    #: In the order of the task's environment.
    devices: tuple[Device, ...]
    #: Shared with the other tasks of its group; empty: it has none.
    network_id: NetworkId = NetworkId("")
    #: Of all tasks of its group: the network is made with them.
    network_ports: tuple[ServicePort, ...] = ()


@dataclass(frozen=True, slots=True)
class KeepVolumes:
    """Make and remove persistent volumes, before anything that is asked later; VolumesKept follows."""

    #: Which question it is.
    asked: int
    make: tuple[DeviceUuid, ...]
    remove: tuple[DeviceUuid, ...]


@dataclass(frozen=True, slots=True)
class PullImage:
    """Fetch an image for a task that holds no device meanwhile; ImagePulled or ContainerLaunchFailed follows."""

    container_id: ContainerId
    image: str


@dataclass(frozen=True, slots=True)
class PrefetchImage:
    """Fetch an image that no task asks for, beside one that does; PrefetchProgressed may follow, and PrefetchEnded does."""

    pull_id: str
    image: str


@dataclass(frozen=True, slots=True)
class CancelPrefetch:
    """Nobody waits for that any more; nothing need follow."""

    pull_id: str


@dataclass(frozen=True, slots=True)
class CheckContainer:
    """Look at a running task; ContainerChecked follows, at the latest after the check's time-out."""

    container_id: ContainerId
    #: `check` or `health_check`.
    kind: str
    check: Check
    #: Of the task: a check may name one.
    service_ports: tuple[ServicePort, ...] = ()


@dataclass(frozen=True, slots=True)
class KillContainer:
    """SIGTERM now, SIGKILL after the grace; ContainerExited follows. Asking again is harmless."""

    container_id: ContainerId
    grace_ms: int


@dataclass(frozen=True, slots=True)
class EndStray:
    """See to it that nothing runs under this name, whoever began it: SIGKILL. ContainerExited follows once that is certain, also where nothing ever did."""

    container_id: ContainerId


@dataclass(frozen=True, slots=True)
class RemoveContainer:
    """Remove what is left of an ended container except its sandbox, logs saved in that. Idempotent."""

    container_id: ContainerId


@dataclass(frozen=True, slots=True)
class ReleaseNetwork:
    """The last task of a group has ended: remove what its network hung on. Idempotent."""

    network_id: NetworkId


@dataclass(frozen=True, slots=True)
class RemoveSandbox:
    """Remove the sandbox, after RemoveContainer is done. Idempotent."""

    container_id: ContainerId


@dataclass(frozen=True, slots=True)
class OpenLogStream:
    """Open a stream for a task's output towards the master; or only to say why there is none."""

    connection: ConnectionId
    stream_id: str
    container_id: ContainerId
    follow: bool
    tail_bytes: int | None
    error: ErrorDetail | None = None


@dataclass(frozen=True, slots=True)
class ProbeDevice:
    """Find out whether a device that was ill works again; DeviceProbed follows. No container holds it."""

    uuid: DeviceUuid


@dataclass(frozen=True, slots=True)
class AskWhoUses:
    """Find out which processes use these devices; DeviceUsersTold follows, sooner or later."""

    uuids: tuple[DeviceUuid, ...]


@dataclass(frozen=True, slots=True)
class MeasureShares:
    """Find out what tasks use of the memory of the cards that they have shares of; SharesMeasured follows, sooner or later."""

    uuids: tuple[DeviceUuid, ...]


@dataclass(frozen=True, slots=True)
class LookAtCard:
    """Find out into what a card is cut; CardLookedAt follows."""

    card: DeviceUuid


@dataclass(frozen=True, slots=True)
class CutCard:
    """Do one step of cutting a card; CardCut follows."""

    card: DeviceUuid
    step: Step


@dataclass(frozen=True, slots=True)
class LookAtDevices:
    """Look at all devices now; DevicesDiscovered follows."""


@dataclass(frozen=True, slots=True)
class OpenSessionStream:
    """Open a stream for a session with a running container towards the master; or only to say why there is none."""

    connection: ConnectionId
    stream_id: str
    container_id: ContainerId
    start: SessionStart
    error: ErrorDetail | None = None


@dataclass(frozen=True, slots=True)
class Log:
    """Tell the operator."""

    #: `info`, `warning` or `error`.
    level: str
    text: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TellExecutor:
    """Say something to the program of a container, on its socket; dropped where it is not connected."""

    container_id: ContainerId
    event: ExecutorEvent


@dataclass(frozen=True, slots=True)
class LaunchOnExecutor:
    """Give a task to its executor as an ExecutorLaunch, with the environment that belongs to its devices."""

    container_id: ContainerId
    task: AssignedTask
    devices: tuple[Device, ...]


AgentEffect = (
    Persist
    | SendToMaster
    | CloseConnection
    | StartContainer
    | PullImage
    | PrefetchImage
    | CancelPrefetch
    | CheckContainer
    | KillContainer
    | EndStray
    | RemoveContainer
    | RemoveSandbox
    | OpenLogStream
    | OpenSessionStream
    | Log
    | ProbeDevice
    | ReleaseNetwork
    | AskWhoUses
    | LookAtCard
    | CutCard
    | LookAtDevices
    | TellExecutor
    | LaunchOnExecutor
    | MeasureShares
    | KeepVolumes
)

__all__ = [
    "AgentEffect",
    "AskWhoUses",
    "CancelPrefetch",
    "CheckContainer",
    "CloseConnection",
    "CutCard",
    "EndStray",
    "KeepVolumes",
    "KillContainer",
    "LaunchOnExecutor",
    "Log",
    "LookAtCard",
    "LookAtDevices",
    "MeasureShares",
    "OpenLogStream",
    "OpenSessionStream",
    "Persist",
    "PrefetchImage",
    "ProbeDevice",
    "PullImage",
    "ReleaseNetwork",
    "RemoveContainer",
    "RemoveSandbox",
    "SendToMaster",
    "StartContainer",
    "TellExecutor",
]
