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


ExecutorCall = ExecutorSubscribe | ExecutorUpdate


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
    ExecutorSubscribed | ExecutorLaunch | ExecutorKill | ExecutorAcknowledged | ExecutorShutdown | ExecutorRefused
)
