"""What became of a framework's tasks, as far as it knows: launches without an answer, ends that were asked for, reconciliation (RC-3).

Pure bookkeeping for `SessionMachine`, which does the talking.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import TaskId
from bursar.core.messages.framework import UpdateRef
from bursar.core.messages.offers import CallResult, Launch, Operation
from bursar.core.task_groups import TaskGroup
from bursar.core.tasks import TaskSpec, TaskState, TaskStatus

#: Ended tasks whose late repetitions are recognised.
MAX_ENDED = 10_000

NEVER_SENT = ErrorDetail(
    ErrorReason.INVALID_OFFERS,
    "the connection broke before the master took the launch",
    "it never ran: launch it on another offer",
)

#: Answers that there is no such task.
_NOT_THERE = (TaskState.UNKNOWN, TaskState.UNSPECIFIED)


@dataclass(slots=True)
class TrackedTask:
    """A task that has not ended, as far as this framework knows."""

    state: TaskState = TaskState.STAGING
    #: The accept that carries it, while unanswered.
    call_id: str | None = None
    #: Updates that the author has seen.
    seen: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Heard:
    """What a batch of statuses comes to."""

    #: Taken, although the answer of the accept is not here yet.
    launched: list[TaskId] = field(default_factory=list)
    #: For the author.
    news: list[TaskStatus] = field(default_factory=list)
    #: The author had these: to be acknowledged again.
    repeated: list[UpdateRef] = field(default_factory=list)


class TrackedTasks:
    """The tasks of one framework.

    Invariants (`check`): a task with a `call_id` belongs to exactly that pending accept; no task is both tracked and ended.
    """

    def __init__(self) -> None:
        self.by_id: dict[TaskId, TrackedTask] = {}
        #: Call id → task → the operation that launches it: accepts without an answer.
        self.pending: dict[str, dict[TaskId, str]] = {}
        #: Tasks that should end, until they have, and with which grace.
        self.kills: dict[TaskId, int | None] = {}
        #: Tasks that the author asked for by their ids, known here or not.
        self.asked: set[TaskId] = set()
        #: Those of which the master has said nothing since reconciliation began.
        self._unreconciled: set[TaskId] = set()
        self._ended: OrderedDict[TaskId, None] = OrderedDict()

    def launch(self, call_id: str, tasks: Iterable[TaskSpec]) -> tuple[Operation, ...]:
        """Track what an accept carries. One operation per task, so that a refusal names the one to blame; one for the tasks of a group."""
        launches: dict[str, tuple[TaskSpec, ...]] = {}
        groups: dict[TaskGroup, str] = {}
        for index, spec in enumerate(tasks):
            operation_id = f"{call_id}-{index}"
            if spec.task_group is not None:
                operation_id = groups.setdefault(spec.task_group, operation_id)
            launches[operation_id] = (*launches.get(operation_id, ()), spec)
            self.pending.setdefault(call_id, {})[spec.task_id] = operation_id
            self._ended.pop(spec.task_id, None)
            self.by_id[spec.task_id] = TrackedTask(TaskState.UNSPECIFIED, call_id)
        return tuple(Operation(operation_id, Launch(specs)) for operation_id, specs in launches.items())

    def answer(self, result: CallResult) -> tuple[list[TaskId], list[tuple[TaskId, ErrorDetail]]]:
        """The answer of an accept: what was launched, and what was refused and why. A repeated answer says nothing."""
        launched, refused = [], []
        errors = {item.operation_id: item.error for item in result.operations if item.error is not None}
        for task_id, operation_id in self.pending.pop(result.call_id, {}).items():
            error = NEVER_SENT if result.unknown else errors.get(operation_id) or result.error
            if error is not None:
                self.by_id.pop(task_id, None)
                self.kills.pop(task_id, None)
                refused.append((task_id, error))
            else:
                self.by_id[task_id].call_id = None
                self.by_id[task_id].state = TaskState.STAGING
                launched.append(task_id)
        return launched, refused

    def hear(self, statuses: Sequence[TaskStatus]) -> Heard:
        """Follow statuses: each of them is news once."""
        heard = Heard()
        for status in statuses:
            self._unreconciled.discard(status.task_id)
            task = self.by_id.get(status.task_id)
            if self._is_only_an_answer(status, task):
                heard.news.append(status)
                continue
            if status.task_id in self._ended:
                if status.update_id:
                    heard.repeated.append(UpdateRef(status.task_id, status.update_id))
                continue
            if task is None:
                if not status.update_id and status.state in _NOT_THERE:
                    continue
                task = self.by_id[status.task_id] = TrackedTask(TaskState.UNSPECIFIED)
            if status.update_id:
                if status.update_id in task.seen:
                    heard.repeated.append(UpdateRef(status.task_id, status.update_id))
                    continue
                task.seen.add(status.update_id)
            elif status.state is task.state or (task.call_id is not None and status.state is TaskState.UNKNOWN):
                continue
            if self._settle(status.task_id, task):
                heard.launched.append(status.task_id)
            task.state = status.state
            if status.state.is_terminal or status.state is TaskState.UNKNOWN:
                self._forget(status.task_id)
            heard.news.append(status)
        return heard

    def _is_only_an_answer(self, status: TaskStatus, task: TrackedTask | None) -> bool:
        """Whether it is told because the author asked, and nothing follows from it; what was asked for is then answered."""
        if status.task_id not in self.asked or status.update_id:
            return False
        if task is not None and task.call_id is not None and status.state is TaskState.UNKNOWN:
            return False  # It is on its way.
        self.asked.discard(status.task_id)
        if task is None:
            return status.task_id in self._ended or status.state in _NOT_THERE
        return status.state is task.state

    def _settle(self, task_id: TaskId, task: TrackedTask) -> bool:
        """Return whether a status came before the answer of its accept: it was taken."""
        if task.call_id is None:
            return False
        operations = self.pending[task.call_id]
        operations.pop(task_id, None)
        if not operations:
            del self.pending[task.call_id]
        task.call_id = None
        return True

    def _forget(self, task_id: TaskId) -> None:
        self.by_id.pop(task_id, None)
        self.kills.pop(task_id, None)
        self._unreconciled.discard(task_id)
        self._ended[task_id] = None
        if len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    def begin_reconciliation(self) -> None:
        """All that were taken are to be asked for."""
        self._unreconciled = {task_id for task_id, task in self.by_id.items() if task.call_id is None}

    def unanswered(self) -> list[TaskId]:
        """Those to ask for, sorted."""
        return sorted(self._unreconciled | self.asked)

    def check(self) -> None:
        """Assert the invariants."""
        for call_id, operations in self.pending.items():
            for task_id in operations:
                assert self.by_id[task_id].call_id == call_id, f"{task_id} is not of call {call_id}"
        for task_id, task in self.by_id.items():
            assert task.call_id is None or task.call_id in self.pending, f"{task_id} waits for an unknown call"
            assert not task.state.is_terminal, f"{task_id} has ended and is tracked"
            assert task_id not in self._ended, f"{task_id} has ended and is tracked"
        assert self.kills.keys() <= self.by_id.keys(), "a task is to end that is not there"
        assert self._unreconciled <= self.by_id.keys(), "a task is asked for that is not there"
