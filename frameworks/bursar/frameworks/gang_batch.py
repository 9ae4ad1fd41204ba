"""The framework behind `bursar batch --gang`: jobs that start together or not at all, as one gang.

What holds for one job of a batch holds here for all together: where one fails or is lost, the others are ended, and the gang is asked for
again as a whole, as often as the user allows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from bursar.frameworks.batch import Batch, Ended, Job
from bursar.sdk import Bundle, ErrorDetail, Status, Task, TaskState

#: How long a gang waits for room, unless somebody says.
WAIT_S = 24 * 3600


class GangBatch(Batch):
    """Runs jobs together. Each is told by its environment its place among them (BURSAR_GANG_RANK, from 0), their number
    (BURSAR_GANG_SIZE), and the hostnames of all, by rank, joined by commas (BURSAR_GANG_HOSTS).
    """

    def __init__(
        self, jobs: Iterable[Job], *, wait_s: float = WAIT_S, same: str = "", nvlink: bool = False, **options: Any
    ) -> None:
        """As of `Batch`, without `parallel`. Raises InvalidText.

        `wait_s`: how long to wait for room for all, anew for each launch. `same`: an attribute that all agents share. `nvlink`: the GPUs of
        each job are linked.
        """
        super().__init__(jobs, **options)
        self.wait_s, self.same, self.nvlink = wait_s, same, nvlink
        self._jobs = [task for _, task in self._todo]
        self._env = [dict(task.env) for task in self._jobs]
        #: Ends of this launch, in their order.
        self._ends: dict[int, Status] = {}
        self._launches = 0
        #: Why there was no room, where the gang ended without.
        self.error: ErrorDetail | None = None

    def wants(self) -> list[Any]:
        """Nothing but the gang."""
        return []

    def on_subscribed(self, again: bool) -> None:
        """The SDK asks again by itself."""
        if not again and self._jobs:
            self._ask()

    def on_bundle(self, bundle: Bundle) -> Iterable[Task]:
        """A job for each place, by index."""
        self._ends = {}
        self._launches += 1
        self._todo = []
        hosts = ",".join(place.offer.hostname for place in bundle.places)
        for task in self._jobs:
            task.env = self._env[task.data] | {
                "BURSAR_GANG_RANK": str(task.data),
                "BURSAR_GANG_SIZE": str(self.count),
                "BURSAR_GANG_HOSTS": hosts,
            }
            yield task

    def on_gang_ended(self, gang_id: str, error: ErrorDetail | None) -> None:
        """There is no room, or there was none for too long."""
        self.error = error
        self.stop()

    def on_status(self, task: Task, status: Status) -> None:
        """Count it; where it did not end well, end the others; once all have ended, have them launched again, or be done."""
        if not status.terminal or task.data is None:
            return
        if not status.ok and all(end.ok for end in self._ends.values()):
            for other in list(self.running.values()):
                if other is not task:
                    self.kill(other)
        self._ends[task.data] = status
        if len(self._ends) == self.count:
            self._launch_ended()

    def _launch_ended(self) -> None:
        cause = self._cause()
        if cause is not None:
            index, status = cause
            pause_s = self._pause_before_another(self._progress[0], status)
            if pause_s is not None:
                self.on_again(index, status, pause_s)
                self.pausing = self.count
                later = self._later or asyncio.get_running_loop().call_later
                later(pause_s, self._once_more)
                return
        for task in self._jobs:
            status = self._ends[task.data]
            ended = Ended(task.data, status, self._launches, self.retried, self.relaunched, task.hostname)
            self.ended.append(ended)
            self.on_end(ended)
        self.stop()

    def _cause(self) -> tuple[int, Status] | None:
        """Why a launch did not end well: what is wrong with a job itself, or else the first that did not."""
        bad = [(index, status) for index, status in self._ends.items() if not status.ok]
        return next((end for end in bad if end[1].state is TaskState.ERROR), bad[0] if bad else None)

    def _once_more(self) -> None:
        self.pausing = 0
        self._ask()

    def _ask(self) -> None:
        self._todo = [(task.data, task) for task in self._jobs]
        self.request_gang([(self._jobs[0], self.count)], ttl=self.wait_s, same=self.same, nvlink=self.nvlink)
