"""What this agent believes, said to its master now and then: in a few bytes, and all of it where the master believes something else (B-18)."""

from __future__ import annotations

from zlib import crc32

from bursar.agent.books import Books
from bursar.agent.reporting import split_reports
from bursar.core.books import COMPARE_INTERVAL_MS, device_lines, digest, task_line
from bursar.core.ids import ConnectionId
from bursar.core.messages.agent import BooksDigest, BooksReport, BooksRequest, Register


class Digests:
    """One digest per interval while a master has let us in."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._is_due = False

    def begin(self) -> None:
        """We are in: each agent at its own moment of the interval, or all agents of a new master would speak at once."""
        share = crc32(self._books.info.agent_id.encode()) % COMPARE_INTERVAL_MS
        self._books.deadlines.set(("digest", ""), self._books.now.monotonic_ms + COMPARE_INTERVAL_MS - share // 2)

    def lose(self) -> None:
        """The connection is over."""
        self._is_due = False
        self._books.deadlines.cancel(("digest", ""))

    def due(self) -> None:
        """It is time to say what we believe: at the end of the step, after all else that it says."""
        if self._books.registered:
            self._is_due = True
            self._books.deadlines.set(("digest", ""), self._books.now.monotonic_ms + COMPARE_INTERVAL_MS)

    def flush(self) -> None:
        """A step ends: say what is due, and at once what was repaired."""
        books = self._books
        if books.connection is not None and books.registered and (self._is_due or books.repairs):
            self._is_due = False
            self._tell(books.connection)

    def _tell(self, connection: ConnectionId) -> None:
        books = self._books
        lines = [
            task_line(*key, record.state, is_to_end=record.kill is not None)
            for key, record in books.state.tasks.items()
            if not record.state.is_terminal
        ]
        orders_ms = {uuid: record.order_ms for uuid, record in books.state.health.items() if record.order_ms}
        devices = device_lines(books.info.devices, books.info.resources, orders_ms)
        repairs, books.repairs = tuple(books.repairs), []
        books.send(connection, BooksDigest(books.state.generation, len(lines), digest(lines), digest(devices), repairs))

    def report(self, connection: ConnectionId, request: BooksRequest) -> None:
        """Say all of it: what a registration would, and as of now, so that nothing that was said before is missing in it."""
        books = self._books
        if not books.registered:
            return
        register = Register(books.info, books.state.cluster_id, books.state.generation)
        parts = list(split_reports(books.state.tasks.values()))
        for number, part in enumerate(parts, 1):
            first = register if number == 1 else None
            books.send(connection, BooksReport(request.number, first, part, complete=number == len(parts)))
