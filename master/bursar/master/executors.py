"""Tasks that executors run, at the master: their executor is a live one of the same framework on the same agent (TSK-6)."""

from __future__ import annotations

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, FrameworkId
from bursar.core.tasks import EXECUTORS, StatusReason, TaskSpec
from bursar.master.ledger import TaskKey
from bursar.master.state import Cluster


def executor_refusal(
    cluster: Cluster, framework_id: FrameworkId, spec: TaskSpec, agent_id: AgentId, path: str
) -> ErrorDetail | None:
    """Say why a task cannot be an executor, or be run by the one that it names; nothing where it can."""
    if spec.executor is None:
        return None
    info = cluster.agents[agent_id].info
    if EXECUTORS not in info.capabilities:
        return _invalid(
            f"agent {info.hostname} is of a version that knows no executors", "use offers of other agents", path
        )
    if not spec.runs_on:
        return None
    named = f"{path}.executor_id"
    executor = cluster.tasks.get(TaskKey(framework_id, spec.runs_on))
    if executor is None or executor.state.is_terminal or executor.kill_reason is not StatusReason.UNSPECIFIED:
        return _invalid(
            f"executor {spec.runs_on!r} does not run, or is to end", "launch it first, with an earlier call", named
        )
    if not executor.assigned.spec.is_executor:
        return _invalid(f"task {spec.runs_on!r} is no executor", "launch it with `serves`, to run tasks on it", named)
    if executor.agent_id != agent_id:
        return _invalid(
            f"executor {spec.runs_on!r} runs on agent {executor.agent_id}, the task is for {agent_id}",
            "accept an offer of the executor's agent",
            named,
        )
    if info.runtime == "docker" and spec.resources.gpu_count:
        return _invalid(
            "a container gets its devices when it is made: a task on an executor can have none of its own here",
            "let the executor itself ask for the GPUs of its tasks",
            path.removesuffix(".executor") + ".resources",
        )
    return None


def _invalid(message: str, hint: str, path: str) -> ErrorDetail:
    return ErrorDetail(ErrorReason.TASK_INVALID, message, hint, path)
