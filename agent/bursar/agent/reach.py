"""Telling a task whose container may not open its devices any more (pain 3)."""

from __future__ import annotations

from collections.abc import Sequence

from bursar.agent.books import Books, names
from bursar.agent.containers.runtime import ContainerId
from bursar.agent.reporting import Reporting
from bursar.agent.tasks import Verdict
from bursar.core.tasks import StatusReason, TaskState


class Reach:
    """Says it once for each time that it happens."""

    def __init__(self, books: Books, reporting: Reporting) -> None:
        self._books = books
        self._reporting = reporting
        #: Containers that may not open their devices, and the run in which that was said.
        self._cut_off: dict[ContainerId, int] = {}

    def out_of_reach(self, container_id: ContainerId, nodes: Sequence[str]) -> None:
        """It may not open these devices any more: said once, and again after it could meanwhile."""
        key = self._books.live.get(container_id)
        record = self._books.state.tasks[key] if key is not None else None
        if not nodes or key is None or record is None or record.state is not TaskState.RUNNING or record.waiting:
            self._cut_off.pop(container_id, None)
            return
        if self._cut_off.get(container_id) == record.run_began_ms:
            return
        self._cut_off[container_id] = record.run_began_ms
        message = (
            f"its container may not open {', '.join(nodes)} any more: something on its machine has written the container's device"
            " rules anew (systemctl daemon-reload does). What it has open goes on; a restart of the task brings the rest back"
        )
        self._books.log("error", "a task has lost its devices", **names(key), reason=message)
        self._reporting.report(record, Verdict(TaskState.RUNNING, StatusReason.DEVICE_ACCESS_LOST, message))
