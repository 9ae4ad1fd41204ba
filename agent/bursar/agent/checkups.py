"""Checks and health checks of running tasks: when to look, and what follows from what was seen (HC-1 to HC-4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bursar.agent.books import Books, names
from bursar.agent.containers.runtime import ContainerId
from bursar.agent.effects import CheckContainer
from bursar.agent.reporting import Reporting
from bursar.agent.tasks import TaskKey, TaskRecord, Verdict, container_of
from bursar.core.lives import Check, CheckStatus
from bursar.core.tasks import StatusReason, TaskState

CHECK, HEALTH_CHECK = "check", "health_check"


class Checkups:
    """What is soft here (failures in a row) begins anew with each life of the agent."""

    def __init__(self, books: Books, reporting: Reporting, end: Callable[[TaskKey, StatusReason, str], None]) -> None:
        """`end` has a running task ended for a reason of ours."""
        self._books = books
        self._reporting = reporting
        self._end = end
        #: In a row.
        self._failures: dict[TaskKey, int] = {}
        #: Tasks whose health check has succeeded once: their grace period is over.
        self._was_healthy: set[TaskKey] = set()

    def begin(self, record: TaskRecord) -> None:
        """It runs: look at it from now on."""
        for kind in (CHECK, HEALTH_CHECK):
            check = _check_of(record, kind)
            if check is not None:
                self._books.deadlines.set((kind, record.key), self._books.now.monotonic_ms + check.delay)
        if record.healthy:
            self._was_healthy.add(record.key)

    def stop(self, key: TaskKey) -> None:
        """It runs no longer."""
        for kind in (CHECK, HEALTH_CHECK):
            self._books.deadlines.cancel((kind, key))
        self._failures.pop(key, None)
        self._was_healthy.discard(key)

    def look(self, kind: str, key: TaskKey) -> None:
        """It is time."""
        record = self._books.state.tasks[key]
        check = _check_of(record, kind)
        if check is not None and record.state is TaskState.RUNNING:
            container_id = container_of(self._books.info.agent_id, key)
            self._books.effects.append(CheckContainer(container_id, kind, check, record.task.spec.service_ports))

    def seen(self, container_id: ContainerId, kind: str, status: CheckStatus) -> None:
        """A look was made."""
        key = self._books.live.get(container_id)
        record = self._books.state.tasks[key] if key is not None else None
        check = _check_of(record, kind) if record is not None else None
        if key is None or record is None or check is None or record.state is not TaskState.RUNNING:
            return
        self._books.deadlines.set((kind, key), self._books.now.monotonic_ms + check.interval)
        if kind == HEALTH_CHECK:
            self._judge(key, record, status)
        elif status != record.check:
            self._report(replace(record, check=status), f"check {check}: {status}")

    def _judge(self, key: TaskKey, record: TaskRecord, status: CheckStatus) -> None:
        health = record.task.spec.health_check
        assert health is not None
        if status.is_healthy:
            self._was_healthy.add(key)
            self._failures.pop(key, None)
            if not record.healthy:
                self._report(replace(record, healthy=True), f"health check {health.check}: {status}")
            return
        if key not in self._was_healthy and self._books.now.wall_ms < record.running_at_ms + health.grace:
            return
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        self._books.log("warning", "a health check failed", **names(key), reason=str(status), failures=failures)
        if record.healthy is not False:
            self._report(replace(record, healthy=False), f"health check {health.check}: {status}")
        if failures >= health.failures:
            times = f"{failures} times in a row" if failures > 1 else "once"
            self._end(key, StatusReason.UNHEALTHY, f"its health check {health.check} failed {times}: {status}")

    def _report(self, record: TaskRecord, message: str) -> None:
        self._reporting.report(record, Verdict(TaskState.RUNNING, StatusReason.CHECK_CHANGED, message))


def _check_of(record: TaskRecord, kind: str) -> Check | None:
    spec = record.task.spec
    if kind == CHECK:
        return spec.check
    return spec.health_check.check if spec.health_check is not None else None
