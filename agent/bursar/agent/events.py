"""All that the agent's machine can learn. Past tense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bursar.agent.containers.runtime import ContainerExit, ContainerId, RecoveredContainer
from bursar.agent.devices.cutting import CardLayout, Step
from bursar.agent.devices.health import DeviceSignal, Remedy
from bursar.agent.devices.users import DeviceUser
from bursar.core.devices import Device
from bursar.core.ids import ConnectionId, DeviceUuid
from bursar.core.images import Image, PullFailure, PullProgress
from bursar.core.lives import CheckStatus
from bursar.core.machine import Stalled, TimePassed
from bursar.core.messages.agent import MasterMessage, VolumeTrouble
from bursar.core.messages.executor import ExecutorCall
from bursar.core.resources import ReservedResources
from bursar.core.tasks import StatusReason


@dataclass(frozen=True, slots=True)
class ContainersRecovered:
    """Once, first of all: every container that an earlier life of the agent left, whether it still runs or not."""

    containers: tuple[RecoveredContainer, ...]


@dataclass(frozen=True, slots=True)
class ContainersCompared:
    """Two looks at the engine, some time apart, agree that it is not as the machine's books have it (B-18)."""

    #: Ours by the books since before the first look, and not there.
    missing: tuple[ContainerId, ...]
    #: There, and in no book.
    strays: tuple[ContainerId, ...]


@dataclass(frozen=True, slots=True)
class MasterConnected:
    """A stream to a master is open; nothing was said on it yet. Ends an earlier connection."""

    connection: ConnectionId


@dataclass(frozen=True, slots=True)
class MasterDisconnected:
    """The stream is over."""

    connection: ConnectionId


@dataclass(frozen=True, slots=True)
class MasterMessageReceived:
    """The master said something."""

    connection: ConnectionId
    message: MasterMessage


@dataclass(frozen=True, slots=True)
class ContainerStarted:
    """`StartContainer` succeeded. The container may have ended already: ContainerExited may come before or after this."""

    container_id: ContainerId


@dataclass(frozen=True, slots=True)
class ContainerLaunchFailed:
    """`StartContainer` failed and nothing of the container is left."""

    container_id: ContainerId
    #: LAUNCH_FAILED, IMAGE_NOT_FOUND or ENGINE_LOST.
    reason: StatusReason
    message: str
    #: As a shell would give it, where that is known: 126, 127.
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class ImageMissed:
    """`StartContainer` came to nothing, and nothing is left of it: the engine does not have the image."""

    container_id: ContainerId


@dataclass(frozen=True, slots=True)
class ImagePulled:
    """`PullImage` succeeded."""

    container_id: ContainerId


@dataclass(frozen=True, slots=True)
class ContainerChecked:
    """`CheckContainer` found this."""

    container_id: ContainerId
    #: As in the effect.
    kind: str
    status: CheckStatus


@dataclass(frozen=True, slots=True)
class ContainerExited:
    """A container ended, and with it all its processes."""

    container_id: ContainerId
    exit: ContainerExit


@dataclass(frozen=True, slots=True)
class DevicesDiscovered:
    """What a look at the devices found, changed or not; `resources` is the agent's whole offer to the master."""

    devices: tuple[Device, ...]
    resources: tuple[ReservedResources, ...]
    #: What drivers say must be done to devices, where they say such things; NONE: nothing.
    remedies: Mapping[DeviceUuid, Remedy] = field(default_factory=dict)
    #: Devices that are there and that the agent does not offer (`--resources`).
    hidden: frozenset[DeviceUuid] = frozenset()


@dataclass(frozen=True, slots=True)
class DevicesSignalled:
    """Drivers said something of their devices, of their own accord."""

    signals: tuple[DeviceSignal, ...]


@dataclass(frozen=True, slots=True)
class DeviceProbed:
    """The answer to ProbeDevice; an empty problem: it works."""

    uuid: DeviceUuid
    problem: str


@dataclass(frozen=True, slots=True)
class DeviceUsersTold:
    """The answer to AskWhoUses."""

    #: None: its driver cannot say, and never will.
    users: Mapping[DeviceUuid, tuple[DeviceUser, ...] | None]


@dataclass(frozen=True, slots=True)
class SharesMeasured:
    """The answer to MeasureShares: who uses the cards of these shares, each with its container and with what it uses of the memory."""

    #: None: its driver cannot say.
    users: Mapping[DeviceUuid, tuple[DeviceUser, ...] | None]


@dataclass(frozen=True, slots=True)
class NodesOutOfReach:
    """Containers that were looked into, and the device nodes that each was given and may not open any more; none: all is well."""

    containers: Mapping[ContainerId, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class CardLookedAt:
    """The answer to LookAtCard."""

    card: DeviceUuid
    #: None: nobody can say, for this reason.
    layout: CardLayout | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class CardCut:
    """The answer to CutCard; an empty problem: the step is done."""

    card: DeviceUuid
    step: Step
    problem: str = ""


@dataclass(frozen=True, slots=True)
class SandboxOverfilled:
    """A running task occupies more of its sandbox than the disk that it was granted."""

    container_id: ContainerId


@dataclass(frozen=True, slots=True)
class ExecutorCalled:
    """The program of a container says something on the socket that was made for it alone."""

    container_id: ContainerId
    call: ExecutorCall


@dataclass(frozen=True, slots=True)
class ExecutorLeft:
    """It is not connected any more; it may come back."""

    container_id: ContainerId


@dataclass(frozen=True, slots=True)
class PrefetchProgressed:
    """The engine told how far `PrefetchImage` is."""

    pull_id: str
    progress: PullProgress


@dataclass(frozen=True, slots=True)
class PrefetchEnded:
    """The image is here, where the failure is UNSPECIFIED; or it cannot be had."""

    pull_id: str
    failure: PullFailure = PullFailure.UNSPECIFIED
    message: str = ""


@dataclass(frozen=True, slots=True)
class ImagesListed:
    """What the engine has."""

    images: tuple[Image, ...]


@dataclass(frozen=True, slots=True)
class VolumesKept:
    """What a `KeepVolumes` asked for is done as far as it can be; and whose data is there now, in all."""

    asked: int
    held: tuple[DeviceUuid, ...]
    troubles: tuple[VolumeTrouble, ...] = ()


AgentEvent = (
    ContainersRecovered
    | MasterConnected
    | MasterDisconnected
    | MasterMessageReceived
    | ContainerStarted
    | ContainerLaunchFailed
    | ImageMissed
    | ImagePulled
    | ContainerChecked
    | ContainerExited
    | DevicesDiscovered
    | DevicesSignalled
    | ContainersCompared
    | DeviceProbed
    | DeviceUsersTold
    | CardLookedAt
    | CardCut
    | SandboxOverfilled
    | ExecutorCalled
    | ExecutorLeft
    | PrefetchProgressed
    | PrefetchEnded
    | ImagesListed
    | SharesMeasured
    | NodesOutOfReach
    | VolumesKept
    | TimePassed
    | Stalled
)

__all__ = [
    "AgentEvent",
    "CardCut",
    "CardLookedAt",
    "ContainerChecked",
    "ContainerExited",
    "ContainerLaunchFailed",
    "ContainerStarted",
    "ContainersCompared",
    "ContainersRecovered",
    "DeviceProbed",
    "DeviceUsersTold",
    "DevicesDiscovered",
    "DevicesSignalled",
    "ExecutorCalled",
    "ExecutorLeft",
    "ImageMissed",
    "ImagePulled",
    "ImagesListed",
    "MasterConnected",
    "MasterDisconnected",
    "MasterMessageReceived",
    "NodesOutOfReach",
    "PrefetchEnded",
    "PrefetchProgressed",
    "SandboxOverfilled",
    "SharesMeasured",
    "Stalled",
    "TimePassed",
    "VolumesKept",
]
