"""What frameworks are promised: each promise is kept, once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from bursar.core.ids import FrameworkId, TaskId
from bursar.core.messages.executor import ExecutorMessage
from bursar.core.messages.framework import LookupResults, StatusUpdates
from bursar.core.messages.offers import Accept, CallResult, Launch
from bursar.core.tasks import TaskState, TaskStatus
from bursar.simulation.checkers.verdicts import Judge, require


@dataclass(slots=True)
class FrameworkBook:
    """What one framework said and heard: its side of every promise."""

    #: call → operation → tasks that it would launch.
    launches: dict[str, dict[str, tuple[TaskId, ...]]] = field(default_factory=dict)
    results: dict[str, CallResult] = field(default_factory=dict)
    #: Calls of which the master said that they never happened.
    denied: set[str] = field(default_factory=set)
    #: Tasks whose launch was acknowledged.
    acknowledged: set[TaskId] = field(default_factory=set)
    ends: dict[TaskId, TaskStatus] = field(default_factory=dict)
    seen: set[tuple[TaskId, str]] = field(default_factory=set)
    #: Messages to executors that no answer was heard to: who is to hear them.
    said: dict[bytes, TaskId] = field(default_factory=dict)


class FrameworkJudge(Judge):
    """Of what frameworks ask and hear."""

    def __init__(self, verdicts: Counter[str]) -> None:
        super().__init__(verdicts)
        self.books: dict[FrameworkId, FrameworkBook] = {}

    def called(self, framework_id: FrameworkId, call: Any) -> None:
        """Remember what was asked for."""
        if isinstance(call, ExecutorMessage):
            self.books.setdefault(framework_id, FrameworkBook()).said[b"heard " + call.data] = call.executor_id
        if isinstance(call, Accept) and call.call_id:
            book = self.books.setdefault(framework_id, FrameworkBook())
            book.denied.discard(call.call_id)
            if call.call_id in book.launches:
                return
            book.launches[call.call_id] = {
                operation.operation_id: tuple(spec.task_id for spec in operation.operation.tasks)
                for operation in call.operations
                if isinstance(operation.operation, Launch)
            }

    def heard(self, framework_id: FrameworkId, event: Any) -> None:
        """Each promise is kept, once."""
        book = self.books.setdefault(framework_id, FrameworkBook())
        match event:
            case StatusUpdates(statuses):
                for status in statuses:
                    self._hear_status(framework_id, book, status)
            case ExecutorMessage():
                self._judged("a message is delivered at most once, to whom it is for")
                meant = book.said.pop(event.data, None)
                where = f"{framework_id}/{event.executor_id}"
                require(meant is not None, f"{where} answers what it was not told, or once more: {event.data!r}")
                require(meant == event.executor_id, f"{where} answers what {meant} was told")
            case CallResult():
                self._hear_result(book, event)
            case LookupResults(results):
                for result in results:
                    if result.call_id:
                        self._hear_result(book, result)

    def _hear_result(self, book: FrameworkBook, result: CallResult) -> None:
        self._judged("a call has one result")
        before = book.results.get(result.call_id)
        if before is not None:
            require(before == result, f"call {result.call_id} was answered with {before!r}, and later with {result!r}")
        elif result.unknown:
            book.denied.add(result.call_id)
        elif result.error is None:
            book.results[result.call_id] = result
            for operation in result.operations:
                if operation.error is None:
                    book.acknowledged.update(book.launches.get(result.call_id, {}).get(operation.operation_id, ()))

    def _hear_status(self, framework_id: FrameworkId, book: FrameworkBook, status: TaskStatus) -> None:
        require(status.framework_id == framework_id, f"{framework_id} heard of a task of {status.framework_id}")
        end = book.ends.get(status.task_id)
        if not status.update_id:
            if end is not None and status.state is not TaskState.UNKNOWN:
                self._judged("what has ended stays ended")
                require(
                    status.state is end.state,
                    f"{status.task_id} ended {end.state.name}, later it is {status.state.name}",
                )
            return
        token = (status.task_id, status.update_id)
        if token in book.seen:
            return
        book.seen.add(token)
        self._judged("one end per task")
        require(
            end is None,
            f"{status.task_id} ended {end.state.name if end else ''} (update {end.update_id if end else ''}),"
            f" later it is {status.state.name} (update {status.update_id})",
        )
        if status.state.is_terminal:
            book.ends[status.task_id] = status
