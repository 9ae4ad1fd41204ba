"""Tasks that must not run on for long where nobody can end them: with a time of their own from the moment in which the agent lost its master.

Who replaces an unreachable task elsewhere knows then that the old one has ended (pain 21). An agent that begins anew has had no master since
it began.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bursar.agent.books import Books
from bursar.agent.tasks import TaskKey, TaskRecord
from bursar.core.tasks import StatusReason, TaskState
from bursar.core.text import format_duration

#: Between two attempts to end what begins or ends by itself.
_PAUSE_MS = 1_000


class Alone:
    """The room of an agent without a master."""

    def __init__(self, books: Books, end: Callable[[TaskKey, StatusReason, str], None]) -> None:
        """`end` has a running task ended for a reason of ours."""
        self._books = books
        self._end = end
        #: Monotonic; None while there is a master.
        self._since_ms: int | None = None

    def check(self) -> None:
        """Assert what must hold."""
        assert not self._books.recovered or (self._since_ms is None) == self._books.registered
        for record in self._limited() if self._since_ms is not None else ():
            key, over = record.key, record.kill is not None or record.waiting or record.relaunching
            assert over or ("alone", key) in self._books.deadlines, f"{key} may go on without a master"

    def settle(self) -> None:
        """A step ends: is there a master?"""
        books = self._books
        if not books.recovered or (self._since_ms is None) == books.registered:
            return
        if books.registered:
            self._since_ms = None
            for key in books.state.tasks:
                books.deadlines.cancel(("alone", key))
            return
        self._since_ms = books.now.monotonic_ms
        for record in self._limited():
            self.begin(record)

    def begin(self, record: TaskRecord) -> None:
        """It runs."""
        allowed_ms = record.task.spec.max_disconnected_ms
        if allowed_ms is not None and self._since_ms is not None:
            self._books.deadlines.set(("alone", record.key), self._since_ms + allowed_ms)

    def due(self, key: TaskKey) -> None:
        """It has gone on for as long as it may."""
        record = self._books.state.tasks.get(key)
        if record is None or self._books.registered or record.state is not TaskState.RUNNING:
            return
        if record.relaunching:
            return  # once it runs
        after = format_duration(record.task.spec.max_disconnected_ms or 0)
        message = (
            f"its agent had no master for {after}, and it may not go on without one for longer (max_disconnected_ms)"
        )
        self._end(key, StatusReason.DISCONNECTED, message)
        record = self._books.state.tasks[key]
        if record.kill is None and not record.waiting:
            # Its container has ended this moment, and what follows is not known yet.
            self._books.deadlines.set(("alone", key), self._books.now.monotonic_ms + _PAUSE_MS)

    def _limited(self) -> Iterator[TaskRecord]:
        for record in list(self._books.state.tasks.values()):
            if record.task.spec.max_disconnected_ms is not None and record.state is TaskState.RUNNING:
                yield record
