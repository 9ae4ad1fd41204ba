"""All that the master's machine can learn, in the past tense."""

from __future__ import annotations

from dataclasses import dataclass

from bursar.core.ids import ConnectionId
from bursar.core.machine import Stalled, TimePassed
from bursar.core.messages.agent import (
    BooksDigest,
    BooksReport,
    CutReport,
    DevicesChanged,
    ImagePulls,
    Images,
    Pong,
    Register,
    ResyncRequest,
    TaskReport,
    TaskUpdates,
)
from bursar.core.messages.framework import FrameworkCall
from bursar.core.messages.operator import OperatorRequest


@dataclass(frozen=True, slots=True)
class AgentRegistering:
    """An agent opened a stream and said who it is and what it runs."""

    connection: ConnectionId
    register: Register
    #: All parts of its task reports.
    tasks: tuple[TaskReport, ...]
    #: As authenticated; empty where nobody was.
    principal: str = ""


@dataclass(frozen=True, slots=True)
class AgentSpoke:
    """A registered agent sent a message."""

    connection: ConnectionId
    message: (
        TaskUpdates
        | Pong
        | ResyncRequest
        | DevicesChanged
        | BooksDigest
        | BooksReport
        | ImagePulls
        | Images
        | CutReport
    )


@dataclass(frozen=True, slots=True)
class AgentStreamEnded:
    """An agent's stream is no more."""

    connection: ConnectionId


@dataclass(frozen=True, slots=True)
class FrameworkCalled:
    """A framework sent a call; the first on its stream must be Subscribe."""

    connection: ConnectionId
    call: FrameworkCall
    #: As authenticated; empty where nobody was.
    principal: str = ""


@dataclass(frozen=True, slots=True)
class FrameworkStreamEnded:
    """A framework's stream is no more."""

    connection: ConnectionId


@dataclass(frozen=True, slots=True)
class OperatorCalled:
    """An operator asked or ordered something."""

    #: Names the reply.
    token: int
    request: OperatorRequest
    principal: str = ""
    #: The principal is no operator: only what is its own is there for it.
    own_only: bool = False


MasterEvent = (
    AgentRegistering
    | AgentSpoke
    | AgentStreamEnded
    | FrameworkCalled
    | FrameworkStreamEnded
    | OperatorCalled
    | TimePassed
    | Stalled
)
