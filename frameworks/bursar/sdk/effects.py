"""All that a framework's session can ask for. Imperative; the shell performs them in order."""

from __future__ import annotations

from dataclasses import dataclass

from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, ConnectionId, OfferId, TaskId
from bursar.core.messages.framework import FrameworkCall, FrameworkInfo
from bursar.core.messages.gangs import Bundle
from bursar.core.messages.offers import AgentDescription, Offer
from bursar.core.tasks import TaskStatus


@dataclass(frozen=True, slots=True)
class OpenStream:
    """Connect to a master; what is sent on the connection waits until it stands."""

    connection: ConnectionId
    address: str


@dataclass(frozen=True, slots=True)
class CloseStream:
    """Give a connection up."""

    connection: ConnectionId


@dataclass(frozen=True, slots=True)
class SendCalls:
    """Send these, in order."""

    connection: ConnectionId
    calls: tuple[FrameworkCall, ...]


@dataclass(frozen=True, slots=True)
class EndCalls:
    """Say that no more calls come on this connection."""

    connection: ConnectionId


@dataclass(frozen=True, slots=True)
class DeliverSubscribed:
    """Tell the author that the framework is registered, or registered again."""

    cluster_id: str
    again: bool


@dataclass(frozen=True, slots=True)
class DeliverDisconnected:
    """Tell the author that the master is away; the session is trying again."""

    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class DeliverOffers:
    """Let the author answer these; expects OffersAnswered."""

    offers: tuple[tuple[Offer, AgentDescription], ...]


@dataclass(frozen=True, slots=True)
class DeliverRescind:
    """Tell the author that these offers are void."""

    offer_ids: tuple[OfferId, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class DeliverStatuses:
    """Tell the author where tasks are; expects StatusesHandled."""

    statuses: tuple[TaskStatus, ...]


@dataclass(frozen=True, slots=True)
class DeliverLaunched:
    """Tell the author that the master took these tasks, durably."""

    task_ids: tuple[TaskId, ...]


@dataclass(frozen=True, slots=True)
class DeliverRefusal:
    """Tell the author that a task was not taken; it never ran."""

    task_id: TaskId
    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class DeliverAgentFailure:
    """Tell the author that an agent left."""

    agent_id: AgentId
    message: str


@dataclass(frozen=True, slots=True)
class DeliverMessage:
    """Tell the author what an executor says."""

    executor_id: TaskId
    data: bytes


@dataclass(frozen=True, slots=True)
class DeliverPreemption:
    """Tell the author that a task will be ended, and when."""

    task_id: TaskId
    kill_in_ms: int
    reason: str


@dataclass(frozen=True, slots=True)
class DeliverUpdated:
    """Tell the author that the master knows what was changed, or why it will not have it; `info` holds now."""

    info: FrameworkInfo
    error: ErrorDetail | None


@dataclass(frozen=True, slots=True)
class DeliverBundle:
    """Let the author answer a bundle; expects BundleAnswered."""

    bundle: Bundle
    descriptions: tuple[AgentDescription, ...]


@dataclass(frozen=True, slots=True)
class DeliverGangEnded:
    """Tell the author that a gang was not answered by a bundle, or that its bundle was declined."""

    gang_id: str
    error: ErrorDetail | None


@dataclass(frozen=True, slots=True)
class End:
    """The session is over; an error is for the caller of `run`."""

    error: ErrorDetail | None = None
    #: Whether no master was ever heard.
    unreachable: bool = False


Effect = (
    OpenStream
    | CloseStream
    | SendCalls
    | EndCalls
    | DeliverSubscribed
    | DeliverDisconnected
    | DeliverOffers
    | DeliverRescind
    | DeliverStatuses
    | DeliverLaunched
    | DeliverRefusal
    | DeliverAgentFailure
    | DeliverPreemption
    | DeliverMessage
    | DeliverUpdated
    | DeliverBundle
    | DeliverGangEnded
    | End
)
