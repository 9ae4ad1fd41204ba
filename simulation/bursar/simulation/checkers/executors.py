"""Executors: what is said to them is durable first, and none of their tasks outlives them."""

from __future__ import annotations

from typing import Any

from bursar.agent.containers.runtime import ContainerId
from bursar.agent.effects import LaunchOnExecutor
from bursar.agent.state import AgentState
from bursar.agent.tasks import TaskKey, container_of
from bursar.core.ids import AgentId
from bursar.core.messages.agent import TaskUpdates
from bursar.core.messages.executor import ExecutorAcknowledged
from bursar.simulation.checkers.verdicts import Judge, require


class ExecutorJudge(Judge):
    """Of what agents and executors tell each other, and what the master hears of it."""

    def told(self, agent_id: AgentId, container_id: ContainerId, event: Any, checkpoint: AgentState) -> None:
        """An update that is acknowledged is in the checkpoint, or its task is over."""
        if isinstance(event, ExecutorAcknowledged):
            self._judged("an executor's update is in the checkpoint before it is acknowledged")
            for record in checkpoint.tasks.values():
                mine = record.task.spec.runs_on and container_id == container_of(
                    agent_id, TaskKey(record.key.framework_id, record.task.spec.runs_on)
                )
                if mine and record.key.task_id == event.task_id and not record.state.is_terminal:
                    require(
                        record.executor_update >= event.number,
                        f"{agent_id} acknowledges update {event.number} of {record.key} before it is in the checkpoint",
                    )

    def handed(self, agent_id: AgentId, effect: LaunchOnExecutor, checkpoint: AgentState) -> None:
        """A task that is handed over is known to be, by whoever comes after this life of the agent."""
        self._judged("a task is handed over after that is in the checkpoint")
        key = TaskKey(effect.task.framework_id, effect.task.spec.task_id)
        record = checkpoint.tasks.get(key)
        require(
            key in checkpoint.finished or (record is not None and record.handed),
            f"{agent_id} hands over {key} before that is in the checkpoint",
        )

    def said(self, agent_id: AgentId, message: Any, checkpoint: AgentState) -> None:
        """The end of an executor is told: by then all of its tasks have ended."""
        if not isinstance(message, TaskUpdates):
            return
        for status in message.updates:
            if not status.state.is_terminal:
                continue
            for record in checkpoint.tasks.values():
                spec = record.task.spec
                if record.task.device_uuids:
                    continue  # whose end may wait until nobody uses them any more
                if spec.runs_on == status.task_id and record.key.framework_id == status.framework_id:
                    self._judged("no task outlives its executor")
                    require(
                        record.state.is_terminal,
                        f"{agent_id} says that {status.task_id} has ended, and {record.key} is {record.state.name}",
                    )
