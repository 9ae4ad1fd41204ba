"""All that a framework's session can learn. Past tense; nothing else crosses into the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bursar.core.errors import ErrorDetail
from bursar.core.ids import ConnectionId, OfferId, TaskId
from bursar.core.machine import Stalled, TimePassed
from bursar.core.messages.framework import FrameworkEvent, UpdateRef
from bursar.core.messages.gangs import RequestGang
from bursar.core.messages.offers import CreateVolume, DestroyVolume, Shape
from bursar.core.tasks import TaskSpec


@dataclass(frozen=True, slots=True)
class SessionStarted:
    """The author's `start` has returned; the demand is what `wants` said."""

    shapes: tuple[Shape, ...] | None = None


@dataclass(frozen=True, slots=True)
class EventsReceived:
    """The master said something."""

    connection: ConnectionId
    events: tuple[FrameworkEvent, ...]


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """A stream is no more; no error means that the master ended it in good order."""

    connection: ConnectionId
    error: ErrorDetail | None = None


@dataclass(frozen=True, slots=True)
class CallNotSent:
    """A call could not be sent at all (too large)."""

    call_id: str
    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class OfferAnswer:
    """What the author made of one offer; no tasks: declined."""

    offer_id: OfferId
    tasks: tuple[TaskSpec, ...] = ()
    #: None: the default of 5 s.
    refuse_ms: int | None = None
    #: Before the tasks are launched.
    volumes: tuple[CreateVolume | DestroyVolume, ...] = ()


@dataclass(frozen=True, slots=True)
class OffersAnswered:
    """The author's `on_offer` has returned, for each of these."""

    answers: tuple[OfferAnswer, ...]


@dataclass(frozen=True, slots=True)
class StatusesHandled:
    """The author's `on_status` has returned, for each of these."""

    updates: tuple[UpdateRef, ...]


@dataclass(frozen=True, slots=True)
class DemandStated:
    """The author wants something else than before."""

    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class KillRequested:
    """The author wants a task to end."""

    task_id: TaskId
    grace_ms: int | None = None


@dataclass(frozen=True, slots=True)
class RestartRequested:
    """The author wants a running task to begin again."""

    task_id: TaskId
    grace_ms: int | None = None


@dataclass(frozen=True, slots=True)
class MessageRequested:
    """The author has something to say to an executor."""

    executor_id: TaskId
    data: bytes


@dataclass(frozen=True, slots=True)
class ReconcileRequested:
    """The author wants to know where tasks are, of whatever life."""

    task_ids: tuple[TaskId, ...]


@dataclass(frozen=True, slots=True)
class SuppressRequested:
    """The author wants no offers for these roles (empty: all)."""

    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReviveRequested:
    """The author wants offers for these roles (empty: all), and filters forgotten."""

    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UpdateRequested:
    """The author wants the master to know other roles, capabilities, …: fields of FrameworkInfo by name."""

    changes: Mapping[str, Any]
    #: What is wanted with them, where that is something else than before.
    shapes: tuple[Shape, ...] | None = None


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The author is done: unregister."""


@dataclass(frozen=True, slots=True)
class GangRequested:
    """The author wants tasks that start together."""

    request: RequestGang


@dataclass(frozen=True, slots=True)
class GangCancelled:
    """The author wants a gang no more."""

    gang_id: str


@dataclass(frozen=True, slots=True)
class BundleAnswered:
    """The author's `on_bundle` has returned; no tasks: declined. Each task names its agent."""

    bundle_id: str
    tasks: tuple[TaskSpec, ...] = ()


Event = (
    SessionStarted
    | EventsReceived
    | StreamEnded
    | CallNotSent
    | OffersAnswered
    | StatusesHandled
    | DemandStated
    | KillRequested
    | RestartRequested
    | MessageRequested
    | ReconcileRequested
    | SuppressRequested
    | ReviveRequested
    | UpdateRequested
    | StopRequested
    | GangRequested
    | GangCancelled
    | BundleAnswered
    | TimePassed
    | Stalled
)
