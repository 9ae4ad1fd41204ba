"""Mirrors `proto/bursar/v1/executor_service.proto`: the conversation of an executor with its agent (TSK-13)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, FrameworkId, TaskId
from bursar.core.tasks import TaskSpec, TaskState


@dataclass(frozen=True, slots=True)
class ExecutorUpdate:
    """Where a task is; repeated until it is acknowledged."""

    task_id: TaskId
    number: int
    state: TaskState
    message: str = ""
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class ExecutorSubscribe:
    """The first call of a stream: the tasks that it has or had, and what is not acknowledged yet."""

    task_ids: tuple[TaskId, ...] = ()
    updates: tuple[ExecutorUpdate, ...] = ()


#: Of one message between a framework and an executor.
MAX_MESSAGE_BYTES = 64 * 1024
#: Per second and executor, either way: more is dropped.
MAX_MESSAGES_PER_S, MAX_MESSAGE_BYTES_PER_S = 100, 1 << 20


@dataclass(frozen=True, slots=True)
class ExecutorMessage:
    """Bytes between a framework and one of its executors, delivered at most once."""

    framework_id: FrameworkId = FrameworkId("")
    executor_id: TaskId = TaskId("")
    data: bytes = b""


def message_problem(data: bytes) -> tuple[str, str] | None:
    """Say what is wrong with a message, and what to do, or nothing."""
    if len(data) > MAX_MESSAGE_BYTES:
        return f"a message of {len(data)} bytes is too large: at most {MAX_MESSAGE_BYTES} pass", "send it in parts"
    return None


@dataclass(slots=True)
class MessagePace:
    """How much of it passes for one executor, in one direction; soft."""

    _since_ms: int = 0
    _count: int = 0
    _bytes: int = 0

    def admits(self, message: ExecutorMessage, now_ms: int) -> bool:
        """Whether it passes now; `now_ms` is monotonic."""
        if now_ms - self._since_ms >= 1_000:
            self._since_ms, self._count, self._bytes = now_ms, 0, 0
        self._count += 1
        self._bytes += len(message.data)
        fits = len(message.data) <= MAX_MESSAGE_BYTES
        return fits and self._count <= MAX_MESSAGES_PER_S and self._bytes <= MAX_MESSAGE_BYTES_PER_S


ExecutorCall = ExecutorSubscribe | ExecutorUpdate | ExecutorMessage


@dataclass(frozen=True, slots=True)
class ExecutorSubscribed:
    """It is in."""

    framework_id: FrameworkId
    task_id: TaskId
    agent_id: AgentId


@dataclass(frozen=True, slots=True)
class ExecutorLaunch:
    """Run this, unless it is known already."""

    spec: TaskSpec
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExecutorKill:
    """End this task."""

    task_id: TaskId
    grace_ms: int


@dataclass(frozen=True, slots=True)
class ExecutorAcknowledged:
    """An update is durable."""

    task_id: TaskId
    number: int


@dataclass(frozen=True, slots=True)
class ExecutorShutdown:
    """End all tasks, and then yourself."""

    grace_ms: int


@dataclass(frozen=True, slots=True)
class ExecutorRefused:
    """Something that was said was not taken."""

    error: ErrorDetail


ExecutorEvent = (
    ExecutorSubscribed
    | ExecutorLaunch
    | ExecutorKill
    | ExecutorAcknowledged
    | ExecutorShutdown
    | ExecutorRefused
    | ExecutorMessage
)
