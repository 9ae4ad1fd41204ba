"""Programs that run tasks for their agent: what they are told may be lost with it, what they say they repeat until it is noted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from bursar.agent.containers.runtime import ContainerExit, ContainerId
from bursar.agent.effects import LaunchOnExecutor
from bursar.agent.events import ExecutorCalled, ExecutorLeft
from bursar.agent.tasks import TaskKey, container_of
from bursar.core.ids import AgentId, TaskId
from bursar.core.messages.executor import (
    ExecutorAcknowledged,
    ExecutorCall,
    ExecutorKill,
    ExecutorMessage,
    ExecutorShutdown,
    ExecutorSubscribe,
    ExecutorUpdate,
)
from bursar.core.tasks import StatusReason, TaskState
from bursar.simulation.containers import SimulatedContainer, SimulatedContainers
from bursar.simulation.timeline import Timeline


@dataclass(slots=True)
class _Work:
    """A task as its executor knows it, until its end is noted."""

    container: SimulatedContainer | None = None
    number: int = 0
    updates: tuple[ExecutorUpdate, ...] = ()


@dataclass(slots=True)
class _Executor:
    container: SimulatedContainer
    connected: bool = False
    works: dict[TaskId, _Work] = field(default_factory=dict)


class SimulatedExecutors:
    """All executors of one machine. They survive agents, and end with their containers."""

    def __init__(
        self,
        agent_id: AgentId,
        timeline: Timeline,
        random: Random,
        containers: SimulatedContainers,
        on_begin: Callable[[SimulatedContainer], None],
    ) -> None:
        self._agent_id = agent_id
        self._timeline = timeline
        self._random = random
        self._containers = containers
        self._on_begin = on_begin
        self._executors: dict[ContainerId, _Executor] = {}
        containers.on_executor = self._began

    def agent_lives(self) -> None:
        """Another life of the agent: connect to it."""
        for executor in self._executors.values():
            executor.connected = False
            self._later(self._connect, executor)

    def tell(self, container_id: ContainerId, event: Any) -> None:
        """The agent says something."""
        executor = self._executors.get(container_id)
        if executor is not None and executor.connected:
            self._later(self._hear, executor, event, self._containers.watcher)

    def launch(self, effect: LaunchOnExecutor) -> None:
        """The agent hands a task over."""
        self.tell(effect.container_id, effect)

    # --- inside ---

    def _later(self, action: Callable[..., None], *arguments: Any) -> None:
        self._timeline.after(self._random.randint(0, 30), action, *arguments)

    def _began(self, container: SimulatedContainer) -> None:
        executor = self._executors[container.container_id] = _Executor(container)
        self._later(self._connect, executor)

    def _connect(self, executor: _Executor) -> None:
        if executor.container.live and not executor.connected and self._containers.watcher is not None:
            executor.connected = True
            updates = tuple(update for work in executor.works.values() for update in work.updates)
            self._call(executor, ExecutorSubscribe(tuple(executor.works), updates))
            if self._random.random() < 0.3:
                self._timeline.after(self._random.randint(0, 5_000), self._break, executor)

    def _break(self, executor: _Executor) -> None:
        """Its stream breaks, and it comes back."""
        if executor.container.live and executor.connected:
            executor.connected = False
            if self._containers.watcher is not None:
                self._containers.watcher(ExecutorLeft(executor.container.container_id))
            self._later(self._connect, executor)

    def _call(self, executor: _Executor, call: ExecutorCall) -> None:
        if executor.connected and self._containers.watcher is not None:
            self._containers.watcher(ExecutorCalled(executor.container.container_id, call))

    def _hear(self, executor: _Executor, event: Any, watcher: Any) -> None:
        if not executor.container.live or not executor.connected or watcher is not self._containers.watcher:
            return
        match event:
            case LaunchOnExecutor():
                self._launch(executor, event)
            case ExecutorKill(task_id):
                work = executor.works.setdefault(task_id, _Work())
                if work.container is None or work.container.live:
                    self._end(executor, task_id, TaskState.KILLED, 143)
            case ExecutorAcknowledged(task_id, number):
                work = executor.works.get(task_id, _Work())
                work.updates = tuple(update for update in work.updates if update.number > number)
                if not work.updates and (work.container is None or not work.container.live):
                    executor.works.pop(task_id, None)
            case ExecutorMessage(data=data):
                self._call(executor, ExecutorMessage(data=b"heard " + data))
            case ExecutorShutdown():
                self._timeline.after(
                    self._random.randint(0, 50),
                    self._containers.end,
                    executor.container,
                    ContainerExit(0, StatusReason.COMMAND_EXITED),
                )

    def _launch(self, executor: _Executor, effect: LaunchOnExecutor) -> None:
        spec, task_id = effect.task.spec, effect.task.spec.task_id
        if task_id in executor.works:
            return
        container = SimulatedContainer(
            container_of(self._agent_id, TaskKey(effect.task.framework_id, task_id)),
            effect.task.framework_id,
            task_id,
            tuple(device.uuid for device in effect.devices),
            spec.command,
        )
        self._on_begin(container)
        executor.works[task_id] = _Work(container)
        self._containers.within[container.container_id] = (executor.container.container_id, container)
        self._say(executor, task_id, TaskState.RUNNING)
        _, run_ms, code, *_ = spec.command
        if run_ms != "-":
            state = TaskState.FAILED if int(code) else TaskState.FINISHED
            self._timeline.after(int(run_ms), self._end, executor, task_id, state, int(code))

    def _end(self, executor: _Executor, task_id: TaskId, state: TaskState, code: int) -> None:
        work = executor.works.get(task_id)
        if work is None or not executor.container.live:
            return
        if work.container is not None:
            if not work.container.live:
                return
            work.container.exit = ContainerExit(code, StatusReason.COMMAND_EXITED)
            self._containers.within.pop(work.container.container_id, None)
        self._say(executor, task_id, state, code)

    def _say(self, executor: _Executor, task_id: TaskId, state: TaskState, code: int | None = None) -> None:
        work = executor.works[task_id]
        work.number += 1
        update = ExecutorUpdate(task_id, work.number, state, exit_code=code)
        work.updates = (*work.updates, update)
        self._call(executor, replace(update))
