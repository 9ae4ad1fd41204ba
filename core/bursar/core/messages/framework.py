"""Mirrors `proto/bursar/v1/framework_service.proto`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, FrameworkId, OfferId, TaskId
from bursar.core.messages.executor import ExecutorMessage
from bursar.core.messages.gangs import Bundle, CancelGang, GangUpdate, RequestGang
from bursar.core.messages.offers import Accept, AgentDescription, CallResult, Decline, Demand, Offer
from bursar.core.tasks import TaskStatus

GPU_RESOURCES = "GPU_RESOURCES"
"""The capability of frameworks that know what to do with agents that have GPUs (GPU-3)."""

REVOCABLE_RESOURCES = "REVOCABLE_RESOURCES"
"""The capability of frameworks that take what is lent, knowing that it may be wanted back (OVR-2)."""

REGION_AWARE = "REGION_AWARE"
#: Understands stacks of two reservations and more; without it those are not offered (RSV-14).
RESERVATION_REFINEMENT = "RESERVATION_REFINEMENT"
"""The capability of frameworks that know that agents may be in another region than the master (FD-3)."""


@dataclass(frozen=True, slots=True)
class OfferSettings:
    """Which offers a framework takes in one role."""

    role: str
    constraints: tuple[str, ...] = ()
    min_allocatable: str | None = None


@dataclass(frozen=True, slots=True)
class FrameworkInfo:
    """Who a framework is and what its software understands."""

    framework_id: FrameworkId
    incarnation: str = ""
    name: str = ""
    roles: tuple[str, ...] = ("*",)
    capabilities: tuple[str, ...] = ()
    failover_timeout_ms: int = 0
    hostname: str = ""
    webui_url: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    principal: str = ""
    offer_settings: tuple[OfferSettings, ...] = ()


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Registers, or registers again."""

    info: FrameworkInfo
    cluster_id: str = ""
    suppressed_roles: tuple[str, ...] = ()
    demand: Demand = Demand()


@dataclass(frozen=True, slots=True)
class Kill:
    """Ends a task."""

    task_id: TaskId
    grace_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Restart:
    """Starts a running task again in a new container."""

    task_id: TaskId
    grace_ms: int | None = None


@dataclass(frozen=True, slots=True)
class UpdateRef:
    """Names one status update."""

    task_id: TaskId
    update_id: str


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Confirms status updates."""

    updates: tuple[UpdateRef, ...]


@dataclass(frozen=True, slots=True)
class Reconcile:
    """Asks where tasks are; empty is all that are not terminal."""

    task_ids: tuple[TaskId, ...] = ()


@dataclass(frozen=True, slots=True)
class Suppress:
    """No new offers for these roles."""

    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Revive:
    """Offers for these roles again, without filters."""

    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UpdateDemand:
    """Replaces the demand."""

    demand: Demand


@dataclass(frozen=True, slots=True)
class FrameworkHeartbeat:
    """Says "I am here", and repeats the demand."""

    demand: Demand = Demand()


@dataclass(frozen=True, slots=True)
class Teardown:
    """Unregisters."""


@dataclass(frozen=True, slots=True)
class LookupCalls:
    """Asks what became of calls."""

    call_ids: tuple[str, ...] = ()
    operation_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UpdateFramework:
    """Changes what the framework says of itself; answered by a CallResult."""

    call_id: str
    info: FrameworkInfo
    suppressed_roles: tuple[str, ...] = ()
    demand: Demand = Demand()


FrameworkCall = (
    Subscribe
    | Accept
    | Decline
    | Kill
    | Acknowledge
    | Reconcile
    | Suppress
    | Revive
    | UpdateDemand
    | FrameworkHeartbeat
    | Teardown
    | LookupCalls
    | UpdateFramework
    | RequestGang
    | CancelGang
    | Restart
    | ExecutorMessage
)


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The first event."""

    framework_id: FrameworkId
    cluster_id: str
    term: int
    heartbeat_interval_ms: int


@dataclass(frozen=True, slots=True)
class Offers:
    """New offers, and the descriptions that they refer to."""

    descriptions: tuple[AgentDescription, ...]
    offers: tuple[Offer, ...]


@dataclass(frozen=True, slots=True)
class Rescind:
    """These offers are void."""

    offer_ids: tuple[OfferId, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StatusUpdates:
    """What happened to tasks."""

    statuses: tuple[TaskStatus, ...]


@dataclass(frozen=True, slots=True)
class AgentFailure:
    """An agent left."""

    agent_id: AgentId
    message: str = ""


@dataclass(frozen=True, slots=True)
class Preemption:
    """One task that is to end."""

    task_id: TaskId
    kill_in_ms: int


@dataclass(frozen=True, slots=True)
class PreemptionNotice:
    """What these tasks run on was lent, and is wanted back."""

    preemptions: tuple[Preemption, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MasterHeartbeat:
    """The master is here."""


@dataclass(frozen=True, slots=True)
class StreamError:
    """Fatal for the stream."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class LookupResults:
    """One result per id asked for."""

    results: tuple[CallResult, ...]


FrameworkEvent = (
    Subscribed
    | Offers
    | Rescind
    | StatusUpdates
    | CallResult
    | AgentFailure
    | MasterHeartbeat
    | StreamError
    | LookupResults
    | Bundle
    | GangUpdate
    | PreemptionNotice
    | ExecutorMessage
)
