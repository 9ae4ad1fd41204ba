"""Tasks that an executor runs: given to it on its socket, ended through it, and ended with it (TSK-13).

What an executor says is believed of its own tasks only. Its statuses take the way of all others: recorded, then acknowledged to it, then
sent until the framework has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bursar.agent.books import KILL_RETRY_MS, Books, names
from bursar.agent.containers.runtime import ContainerExit, ContainerId
from bursar.agent.effects import LaunchOnExecutor, TellExecutor
from bursar.agent.pinning import granted_devices
from bursar.agent.state import TaskSaved
from bursar.agent.tasks import (
    MAX_MESSAGE_LENGTH,
    TaskKey,
    TaskRecord,
    Verdict,
    container_of,
    end_of,
    grace_ms_of,
    killed_early,
)
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.executor import (
    MAX_MESSAGE_BYTES,
    ExecutorAcknowledged,
    ExecutorCall,
    ExecutorKill,
    ExecutorMessage,
    ExecutorRefused,
    ExecutorShutdown,
    ExecutorSubscribe,
    ExecutorSubscribed,
    ExecutorUpdate,
    MessagePace,
)
from bursar.core.tasks import AssignedTask, StatusReason, TaskState

_SAYABLE = (TaskState.RUNNING, TaskState.FINISHED, TaskState.FAILED, TaskState.KILLED)


class Executors:
    """The room of executors and their tasks."""

    def __init__(
        self,
        books: Books,
        runs: Callable[[TaskRecord], None],
        end: Callable[[TaskKey, Verdict], None],
        leave: Callable[[TaskKey, Verdict], None],
    ) -> None:
        """`runs`: a task runs from now on. `end`: it has ended. `leave`: so it has, with the processes that had its devices."""
        self._books = books
        self._runs = runs
        self._end = end
        self._leave = leave
        self._connected: set[ContainerId] = set()
        self._paces: dict[ContainerId, MessagePace] = {}

    # --- tasks ------------------------------------------------------------------------------------------------------

    def problem(self, task: AssignedTask) -> Verdict | None:
        """Why a task cannot be run by its executor; nothing where it can, or has none."""
        if not task.spec.runs_on:
            return None
        if task.device_uuids and self._books.info.runtime == "docker":
            message = "a container gets devices when it is made: let the executor itself have those of its tasks"
            return Verdict(TaskState.ERROR, StatusReason.AGENT_REFUSED, message)
        record = self._books.state.tasks.get(_executor_of(task))
        if record is None or record.state.is_terminal or record.kill is not None:
            message = f"executor {task.spec.runs_on} does not run here any more; launch another, and the task on that"
            return Verdict(TaskState.DROPPED, StatusReason.EXECUTOR_ENDED, message)
        if not record.task.spec.is_executor:
            message = f"task {task.spec.runs_on} is no executor"
            return Verdict(TaskState.ERROR, StatusReason.AGENT_REFUSED, message)
        return None

    def begin(self, key: TaskKey) -> None:
        """Its launch is recorded: it has its devices, and is given to its executor, now or when that is there."""
        task = self._books.state.tasks[key].task
        self._books.hold(container_of(self._books.info.agent_id, key), key, task)
        if self._container(_executor_of(task)) in self._connected:
            self._give(key)

    def adopt(self, key: TaskKey) -> None:
        """A life of the agent begins: go on with a task whose executor still runs."""
        record = self._books.state.tasks[key]
        executor = self._books.state.tasks.get(_executor_of(record.task))
        if executor is None or executor.state.is_terminal:
            # The earlier life was still asking who uses its devices.
            self._leave(key, self._bereaved(record, f"its executor {record.task.spec.runs_on} has ended"))
        elif record.kill is not None:
            self.kill(key, grace_ms_of(record.task, record.kill))
        elif record.state is TaskState.RUNNING:
            self._runs(record)

    def kill(self, key: TaskKey, grace_ms: int) -> None:
        """End a task through its executor, however often that takes; one that it never had has ended at once."""
        record = self._books.state.tasks[key]
        if not record.handed:
            self._end(key, killed_early(record))
            return
        container_id = container_of(self._books.info.agent_id, key)
        self._tell(_executor_of(record.task), ExecutorKill(key.task_id, grace_ms))
        self._books.deadlines.set(("kill", container_id), self._books.now.monotonic_ms + grace_ms + KILL_RETRY_MS)

    # --- executors --------------------------------------------------------------------------------------------------

    def shut_down(self, record: TaskRecord, grace_ms: int) -> bool:
        """Have an executor end itself, if it hears that; what is left of it is killed after the grace."""
        container_id = self._container(record.key)
        if not record.task.spec.is_executor or container_id not in self._connected or grace_ms <= 0:
            return False
        self._tell(record.key, ExecutorShutdown(grace_ms))
        self._books.deadlines.set(("kill", container_id), self._books.now.monotonic_ms + grace_ms)
        return True

    def called(self, container_id: ContainerId, call: ExecutorCall) -> None:
        """An executor speaks."""
        key = self._books.live.get(container_id)
        record = self._books.state.tasks.get(key) if key is not None else None
        if key is None or record is None or not record.task.spec.is_executor:
            return
        match call:
            case ExecutorSubscribe(task_ids, updates):
                self._connected.add(container_id)
                self._tell(key, ExecutorSubscribed(key.framework_id, key.task_id, self._books.info.agent_id))
                for update in updates:
                    self._updated(key, update)
                self._catch_up(key, set(task_ids))
            case ExecutorUpdate():
                self._updated(key, call)
            case ExecutorMessage():
                self._message_of(key, container_id, call)

    def message(self, message: ExecutorMessage) -> None:
        """Its framework speaks to an executor: it hears that if it is connected, and else never."""
        self._tell(TaskKey(message.framework_id, message.executor_id), ExecutorMessage(data=message.data))

    def _message_of(self, key: TaskKey, container_id: ContainerId, message: ExecutorMessage) -> None:
        """An executor speaks to its framework: that is passed on if there is a master, and else never."""
        books, size = self._books, len(message.data)
        if size > MAX_MESSAGE_BYTES:
            what = f"a message of {size} bytes is too large: at most {MAX_MESSAGE_BYTES} pass"
            self._refuse(key, what, "send it in parts")
            return
        passes = self._paces.setdefault(container_id, MessagePace()).admits(message, books.now.monotonic_ms)
        if passes and books.connection is not None and books.registered:
            books.send(books.connection, ExecutorMessage(*key, message.data))

    def left(self, container_id: ContainerId) -> None:
        """Its stream is over."""
        self._connected.discard(container_id)

    def ended(self, key: TaskKey) -> None:
        """The container of an executor is no more, and with it all of its tasks."""
        self._connected.discard(self._container(key))
        self._paces.pop(self._container(key), None)
        for task_key in self.tasks_of(key):
            record = self._books.state.tasks[task_key]
            status = self._books.state.tasks[key].unacknowledged[-1]
            message = f"its executor {key.task_id} has ended: {status.message or status.reason.name.lower()}"
            self._leave(task_key, self._bereaved(record, message))

    def _bereaved(self, record: TaskRecord, message: str) -> Verdict:
        """The end of a task whose executor has ended."""
        if record.kill is not None:
            exit = ContainerExit(None, StatusReason.COMMAND_EXITED, message)
            return end_of(record, exit, self._books.info.boot_id)
        if not record.handed:
            return Verdict(TaskState.DROPPED, StatusReason.EXECUTOR_ENDED, f"{message}; it never ran")
        return Verdict(TaskState.FAILED, StatusReason.EXECUTOR_ENDED, message)

    def tasks_of(self, key: TaskKey) -> list[TaskKey]:
        """The live tasks that an executor runs."""
        return [
            record.key
            for record in self._books.state.tasks.values()
            if record.task.spec.runs_on and not record.state.is_terminal and _executor_of(record.task) == key
        ]

    # --- inside ------------------------------------------------------------------------------------------------------

    def _catch_up(self, key: TaskKey, known: set[str]) -> None:
        """It is (back) on line: give it what it does not have, and say again what it was to do."""
        record = self._books.state.tasks[key]
        for task_key in self.tasks_of(key):
            task = self._books.state.tasks[task_key]
            if task.kill is not None and task.handed:
                self._tell(key, ExecutorKill(task_key.task_id, grace_ms_of(task.task, task.kill)))
            elif task_key.task_id not in known:
                self._give(task_key)
        if record.kill is not None:
            self._tell(key, ExecutorShutdown(0))

    def _give(self, key: TaskKey) -> None:
        record = self._books.state.tasks[key]
        if not record.handed:
            self._books.persist(TaskSaved(replace(record, handed=True)))
        devices = granted_devices(record.task, self._books.devices)
        container_id = self._container(_executor_of(record.task))
        self._books.effects.append(LaunchOnExecutor(container_id, record.task, devices))

    def _updated(self, executor: TaskKey, update: ExecutorUpdate) -> None:
        key = TaskKey(executor.framework_id, update.task_id)
        record = self._books.state.tasks.get(key)
        if record is not None and _executor_of(record.task) != executor:
            self._refuse(executor, f"task {update.task_id} is not run by this executor", "report your own tasks")
            return
        if record is not None and not record.state.is_terminal and update.number > record.executor_update:
            if update.state not in _SAYABLE:
                allowed = ", ".join(state.name for state in _SAYABLE)
                self._refuse(executor, f"an executor cannot say that a task is {update.state.name}", f"say {allowed}")
                return
            self._books.persist(TaskSaved(replace(record, executor_update=update.number, handed=True)))
            self._take(key, update)
        self._tell(executor, ExecutorAcknowledged(update.task_id, update.number))

    def _take(self, key: TaskKey, update: ExecutorUpdate) -> None:
        record = self._books.state.tasks[key]
        message = update.message[:MAX_MESSAGE_LENGTH]
        if update.state is TaskState.RUNNING:
            if record.state is TaskState.STARTING:
                self._runs(record)
        elif record.kill is not None:
            exit = ContainerExit(update.exit_code, StatusReason.COMMAND_EXITED, message)
            self._end(key, end_of(record, exit, self._books.info.boot_id))
        else:
            self._end(key, Verdict(update.state, StatusReason.COMMAND_EXITED, message, update.exit_code))

    def _refuse(self, key: TaskKey, message: str, hint: str) -> None:
        self._books.log("warning", "an executor said what it may not", **names(key), reason=message)
        self._tell(key, ExecutorRefused(ErrorDetail(ErrorReason.INVALID_ARGUMENT, message, hint)))

    def _tell(self, key: TaskKey, event: object) -> None:
        container_id = self._container(key)
        if container_id in self._connected:
            self._books.effects.append(TellExecutor(container_id, event))  # type: ignore[arg-type]

    def _container(self, key: TaskKey) -> ContainerId:
        return container_of(self._books.info.agent_id, key)


def _executor_of(task: AssignedTask) -> TaskKey:
    return TaskKey(task.framework_id, task.spec.runs_on)
