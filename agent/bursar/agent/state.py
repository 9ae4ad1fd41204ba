"""What an agent remembers over its own death, and the records by which that changes.

`AgentState.apply` is the meaning of a record: the machine changes its durable state by nothing else, so what a checkpoint
loads equals what the machine had (design.md §2).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from bursar.agent.devices.cut_record import CutRecord
from bursar.agent.devices.health import HealthRecord
from bursar.agent.tasks import FinishedTask, TaskKey, TaskRecord
from bursar.core.ids import DeviceUuid, Generation


@dataclass(frozen=True, slots=True)
class ClusterJoined:
    """The work directory belongs to this cluster from now on."""

    cluster_id: str


@dataclass(frozen=True, slots=True)
class GenerationSeen:
    """The desired state up to this generation is recorded."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class TaskSaved:
    """All of a task, new or changed."""

    task: TaskRecord


@dataclass(frozen=True, slots=True)
class TaskFinished:
    """The end of a task is acknowledged: it leaves the tasks and joins the finished."""

    task: FinishedTask


@dataclass(frozen=True, slots=True)
class SandboxDropped:
    """The sandbox of a finished task is not kept any longer."""

    key: TaskKey


@dataclass(frozen=True, slots=True)
class FinishedForgotten:
    """A finished task was so long ago that nobody will launch it again."""

    key: TaskKey


@dataclass(frozen=True, slots=True)
class DeviceHealthSaved:
    """All that is known of a device's health, new or changed."""

    health: HealthRecord


@dataclass(frozen=True, slots=True)
class DeviceHealthForgotten:
    """A device is no more, and that was wanted: what it suffered from means nothing to those that took its place."""

    uuid: DeviceUuid


@dataclass(frozen=True, slots=True)
class CutSaved:
    """All of the newest order to cut a card, and how far it is."""

    cut: CutRecord


Record = (
    ClusterJoined
    | GenerationSeen
    | TaskSaved
    | TaskFinished
    | SandboxDropped
    | FinishedForgotten
    | DeviceHealthSaved
    | DeviceHealthForgotten
    | CutSaved
)


@dataclass(slots=True)
class AgentState:
    """The durable part of the machine. Everything else (connection, timers, which devices are there) is soft."""

    #: Empty before the first registration.
    cluster_id: str = ""
    generation: Generation = field(default_factory=Generation)
    tasks: dict[TaskKey, TaskRecord] = field(default_factory=dict)
    #: Oldest end first.
    finished: dict[TaskKey, FinishedTask] = field(default_factory=dict)
    #: Devices that were ever ill, or that an operator gave orders about.
    health: dict[DeviceUuid, HealthRecord] = field(default_factory=dict)
    #: Cards that an operator had cut, or has.
    cuts: dict[DeviceUuid, CutRecord] = field(default_factory=dict)

    def apply(self, record: Record) -> None:
        """Change the state as a record says."""
        match record:
            case ClusterJoined(cluster_id):
                self.cluster_id = cluster_id
            case GenerationSeen(generation):
                self.generation = generation
            case TaskSaved(task):
                self.tasks[task.key] = task
            case TaskFinished(finished):
                self.tasks.pop(finished.key, None)
                self.finished[finished.key] = finished
            case SandboxDropped(key):
                self.finished[key] = replace(self.finished[key], sandbox=False)
            case FinishedForgotten(key):
                del self.finished[key]
            case DeviceHealthSaved(health):
                self.health[health.uuid] = health
            case DeviceHealthForgotten(uuid):
                self.health.pop(uuid, None)
            case CutSaved(cut):
                self.cuts[cut.card] = cut

    def copy(self) -> AgentState:
        """One that changes on its own; the values are immutable and shared."""
        return AgentState(
            self.cluster_id,
            self.generation,
            dict(self.tasks),
            dict(self.finished),
            dict(self.health),
            dict(self.cuts),
        )
