"""Executors at the master: a task's executor is a live one of its framework on its agent (TSK-6); messages pass, or are dropped (REG-14)."""

from __future__ import annotations

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, FrameworkId
from bursar.core.messages.executor import ExecutorMessage, MessagePace
from bursar.core.tasks import EXECUTORS, StatusReason, TaskSpec
from bursar.master.ledger import TaskKey
from bursar.master.state import Agent, Cluster, Framework, Turn


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


def message_to_executor(cluster: Cluster, turn: Turn, framework: Framework, message: ExecutorMessage) -> None:
    """A framework speaks to one of its executors; what cannot be passed on now is dropped."""
    task = cluster.tasks.get(TaskKey(framework.framework_id, message.executor_id))
    if task is None or task.state.is_terminal or not task.assigned.spec.is_executor:
        _drop(cluster)
        return
    task.paces = task.paces or (MessagePace(), MessagePace())
    agent = cluster.agents[task.agent_id]
    if agent.connection is None or not task.paces[0].admits(message, turn.now.monotonic_ms):
        _drop(cluster)
        return
    turn.to_agent(agent, ExecutorMessage(*task.key, message.data))
    counts = cluster.counters.executor_messages
    counts["to_executor"] = counts.get("to_executor", 0) + 1


def message_of_executor(cluster: Cluster, turn: Turn, agent: Agent, message: ExecutorMessage) -> None:
    """An executor speaks to its framework; what cannot be passed on now is dropped."""
    agent.missed_pings = 0
    task = cluster.tasks.get(TaskKey(message.framework_id, message.executor_id))
    framework = cluster.frameworks.get(message.framework_id)
    if task is None or task.agent_id != agent.agent_id or not task.assigned.spec.is_executor or framework is None:
        _drop(cluster)
        return
    task.paces = task.paces or (MessagePace(), MessagePace())
    if framework.connection is None or not task.paces[1].admits(message, turn.now.monotonic_ms):
        _drop(cluster)
        return
    turn.to_framework(framework, message)
    counts = cluster.counters.executor_messages
    counts["to_framework"] = counts.get("to_framework", 0) + 1


def _drop(cluster: Cluster) -> None:
    counts = cluster.counters.executor_messages
    counts["dropped"] = counts.get("dropped", 0) + 1


def _invalid(message: str, hint: str, path: str) -> ErrorDetail:
    return ErrorDetail(ErrorReason.TASK_INVALID, message, hint, path)
