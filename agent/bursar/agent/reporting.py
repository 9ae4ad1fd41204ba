"""Statuses of tasks: recorded before they are sent, in order per task, repeated until acknowledged; and the memory of ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from bursar.agent.books import Books
from bursar.agent.effects import RemoveSandbox
from bursar.agent.state import FinishedForgotten, SandboxDropped, TaskFinished, TaskSaved
from bursar.agent.tasks import FinishedTask, TaskKey, TaskRecord, Verdict, container_of
from bursar.core.ids import DeviceUuid
from bursar.core.messages.agent import AcknowledgeUpdates, TaskReport, TaskUpdates
from bursar.core.tasks import StatusReason, StatusSource, TaskState, TaskStatus, may_follow

#: Tasks and statuses per message.
MAX_REPORTS, MAX_UPDATES = 200, 500
#: Estimated size at which a message of reports is split; far below the wire's limit of 4 MiB.
MAX_REPORT_BYTES = 1 << 20
#: Between the repeats of an unacknowledged update (SU-3).
FIRST_RETRY_MS, LAST_RETRY_MS = 10_000, 600_000


class Reporting:
    """What the master hears of tasks, and what is kept of those that have ended."""

    def __init__(self, books: Books) -> None:
        self._books = books
        #: The last update of each task that the reports of this connection told.
        self._sent: dict[TaskKey, int] = {}
        self._retry_ms: dict[TaskKey, int] = {}
        #: Ended tasks with a sandbox, oldest end first.
        self._sandboxes: dict[TaskKey, None] = {key: None for key, task in books.state.finished.items() if task.sandbox}

    def check(self) -> None:
        """Assert what must hold."""
        books = self._books
        for key, record in books.state.tasks.items():
            numbers = [int(status.update_id) for status in record.unacknowledged]
            assert numbers == sorted(set(numbers)) and all(number < record.next_update for number in numbers), key
            if record.unacknowledged:
                assert record.unacknowledged[-1].state is record.state or not record.state.is_terminal
            assert (("updates", key) in books.deadlines) == (books.registered and bool(record.unacknowledged)), key
        assert len(books.state.finished) <= books.config.finished_limit
        assert list(self._sandboxes) == [key for key, task in books.state.finished.items() if task.sandbox]

    # --- on a connection ---------------------------------------------------------------------------------------------

    def reports(self) -> list[tuple[TaskReport, ...]]:
        """Every task, in parts that fit a message: what is said first on a connection."""
        tasks = self._books.state.tasks
        self._sent = {key: record.next_update - 1 for key, record in tasks.items()}
        return list(split_reports(tasks.values()))

    def begin(self) -> None:
        """The master has let us in: say what came up since the reports; the others are repeated in due time."""
        for key, record in self._books.state.tasks.items():
            if record.unacknowledged:
                self.await_acknowledgement(key)
                told = self._sent.get(key, 0)
                self._books.updates += [status for status in record.unacknowledged if int(status.update_id) > told]
        self._sent.clear()

    def lose(self) -> None:
        """The connection is over."""
        self._sent.clear()
        for key in self._retry_ms:
            self._books.deadlines.cancel(("updates", key))
        self._retry_ms.clear()

    # --- statuses ----------------------------------------------------------------------------------------------------

    def report(self, record: TaskRecord, verdict: Verdict) -> None:
        """Move a task to another state, or say the same one again for a reason: recorded first, then said."""
        again = (
            verdict.state is record.state
            and not record.state.is_terminal
            and verdict.reason is not StatusReason.UNSPECIFIED
        )
        assert again or may_follow(record.state, verdict.state), (
            f"{record.key}: {record.state.name} to {verdict.state.name}"
        )
        running_at_ms = record.running_at_ms
        if verdict.state is TaskState.RUNNING and not running_at_ms:
            running_at_ms = self._books.now.wall_ms
            record = replace(record, run_began_ms=running_at_ms)
        status = self.status(record.key, verdict, str(record.next_update), record.task.device_uuids)
        status = replace(
            status, healthy=record.healthy, check=record.check, service_ports=record.task.spec.service_ports
        )
        self._books.persist(
            TaskSaved(
                replace(
                    record,
                    state=verdict.state,
                    running_at_ms=running_at_ms,
                    next_update=record.next_update + 1,
                    unacknowledged=(*record.unacknowledged, status),
                )
            )
        )
        if record.task.spec.task_group is not None:
            self._books.groups[record.key.framework_id, record.task.spec.task_group] = None
        if self._books.registered:
            self._books.updates.append(status)
            self.await_acknowledgement(record.key)

    def status(self, key: TaskKey, verdict: Verdict, update_id: str, devices: tuple[DeviceUuid, ...]) -> TaskStatus:
        """One of ours, not recorded yet."""
        return TaskStatus(
            task_id=key.task_id,
            framework_id=key.framework_id,
            agent_id=self._books.info.agent_id,
            state=verdict.state,
            reason=verdict.reason,
            source=StatusSource.AGENT,
            message=verdict.message,
            update_id=update_id,
            timestamp_ms=self._books.now.wall_ms,
            exit_code=verdict.exit_code,
            device_uuids=devices,
        )

    def await_acknowledgement(self, key: TaskKey) -> None:
        """Repeat what is not acknowledged, from some time on."""
        if key not in self._retry_ms:
            self._retry_ms[key] = FIRST_RETRY_MS
            self._books.deadlines.set(("updates", key), self._books.now.monotonic_ms + FIRST_RETRY_MS)

    def repeat(self, key: TaskKey) -> None:
        """It is that time."""
        if key not in self._retry_ms:
            # The connection was left in the same moment, for its silence.
            return
        self._books.updates += self._books.state.tasks[key].unacknowledged
        self._retry_ms[key] = min(2 * self._retry_ms[key], LAST_RETRY_MS)
        self._books.deadlines.set(("updates", key), self._books.now.monotonic_ms + self._retry_ms[key])

    def acknowledged(self, message: AcknowledgeUpdates) -> None:
        """Forget updates up to the acknowledged one: who knows it needs no earlier one. Unknown ones are ignored (SU-2)."""
        if not self._books.registered:
            return
        for item in message.updates:
            key = TaskKey(item.framework_id, item.task_id)
            record = self._books.state.tasks.get(key)
            if record is None:
                continue
            ids = [status.update_id for status in record.unacknowledged]
            if item.update_id not in ids:
                continue
            position = ids.index(item.update_id)
            left = record.unacknowledged[position + 1 :]
            self._retry_ms.pop(key, None)
            self._books.deadlines.cancel(("updates", key))
            if left:
                self._books.persist(TaskSaved(replace(record, unacknowledged=left)))
                self.await_acknowledgement(key)
            elif record.state.is_terminal:
                end = record.unacknowledged[position]
                self.finish(FinishedTask(end, self._books.now.wall_ms, sandbox=record.begun))
            else:
                self._books.persist(TaskSaved(replace(record, unacknowledged=())))

    def finish(self, finished: FinishedTask) -> None:
        """The end of a task is known: from here on it is only remembered."""
        self._books.persist(TaskFinished(finished))
        if finished.sandbox:
            self._sandboxes[finished.key] = None
        self.prune()

    def repeat_end(self, key: TaskKey) -> None:
        """The master has forgotten, or not recorded, that this task is over."""
        self._books.updates.append(self._books.state.finished[key].status)

    def never_here(self, key: TaskKey, verdict: Verdict) -> None:
        """Answer for a task of which we have nothing, and see to it that it never begins.

        The number is one that no task's first update has: the task may have been here and be lost, and what was said of it then is
        not to be mistaken for this, which would be told to nobody.
        """
        status = self.status(key, verdict, "0", ())
        self.finish(FinishedTask(status, self._books.now.wall_ms))
        self._books.updates.append(status)

    def prune(self) -> None:
        """Keep what is remembered of finished tasks within its bounds of number and age."""
        finished, config, wall_ms = self._books.state.finished, self._books.config, self._books.now.wall_ms
        while self._sandboxes:
            key = next(iter(self._sandboxes))
            too_many = len(self._sandboxes) > config.sandbox_limit
            if not too_many and finished[key].ended_at_ms + config.sandbox_age_ms > wall_ms:
                break
            self._drop_sandbox(key)
        while finished:
            key = next(iter(finished))
            if len(finished) <= config.finished_limit and finished[key].ended_at_ms + config.finished_age_ms > wall_ms:
                break
            if key in self._sandboxes:
                self._drop_sandbox(key)
            self._books.persist(FinishedForgotten(key))

    def _drop_sandbox(self, key: TaskKey) -> None:
        del self._sandboxes[key]
        self._books.persist(SandboxDropped(key))
        self._books.effects.append(RemoveSandbox(container_of(self._books.info.agent_id, key)))

    def flush(self) -> None:
        """A step ends: say its statuses."""
        if not self._books.updates or not self._books.registered or self._books.connection is None:
            return
        for start in range(0, len(self._books.updates), MAX_UPDATES):
            self._books.send(
                self._books.connection, TaskUpdates(tuple(self._books.updates[start : start + MAX_UPDATES]))
            )


def split_reports(records: Iterable[TaskRecord]) -> Iterator[tuple[TaskReport, ...]]:
    """Reports in parts that fit a message; one empty part where there is no task."""
    part: list[TaskReport] = []
    size = 0
    for record in records:
        report = TaskReport(
            record.task.framework_id, record.task, record.state, record.unacknowledged, record.restart_order
        )
        report_size = _estimate_bytes(record)
        if part and (len(part) >= MAX_REPORTS or size + report_size > MAX_REPORT_BYTES):
            yield tuple(part)
            part, size = [], 0
        part.append(report)
        size += report_size
    yield tuple(part)


def _estimate_bytes(record: TaskRecord) -> int:
    """A generous guess at the size on the wire."""
    spec = record.task.spec
    characters = sum(map(len, spec.command))
    characters += sum(len(variable.name) + len(variable.value) for variable in spec.environment)
    characters += sum(len(name) + len(value) for name, value in spec.labels.items())
    characters += sum(len(status.message) for status in record.unacknowledged)
    devices = (len(record.task.device_uuids) + len(spec.service_ports)) * (1 + len(record.unacknowledged))
    return 1024 + 4 * characters + 64 * devices + 300 * len(record.unacknowledged)
