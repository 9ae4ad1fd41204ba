"""All that the master's machine can ask for, in the imperative."""

from __future__ import annotations

from dataclasses import dataclass

from bursar.core.errors import ErrorDetail
from bursar.core.ids import ConnectionId
from bursar.core.machine import Persist
from bursar.core.messages.agent import MasterMessage
from bursar.core.messages.framework import FrameworkEvent
from bursar.core.messages.operator import ClusterEvent, OperatorResponse


@dataclass(frozen=True, slots=True)
class SendToAgent:
    """Put a message into the outbox of an agent's stream."""

    connection: ConnectionId
    message: MasterMessage


@dataclass(frozen=True, slots=True)
class SendToFramework:
    """Put an event into the outbox of a framework's stream."""

    connection: ConnectionId
    event: FrameworkEvent


@dataclass(frozen=True, slots=True)
class CloseStream:
    """End a stream once its outbox is empty, with a status that says why."""

    connection: ConnectionId
    error: ErrorDetail | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer an operator."""

    token: int
    answer: OperatorResponse | ErrorDetail


@dataclass(frozen=True, slots=True)
class Publish:
    """Tell those who watch, and the log."""

    event: ClusterEvent


MasterEffect = Persist | SendToAgent | SendToFramework | CloseStream | Reply | Publish
