"""A framework as in the documentation, and a session of it, for tests of the SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bursar.core.errors import ErrorDetail
from bursar.core.tasks import TaskState
from bursar.sdk import (
    Framework,
    FrameworkSession,
    Offer,
    Status,
    Task,
)


class Sweep(Framework):
    """As in the documentation, and it remembers what it heard."""

    name, role, capabilities = "sweep", "ml/sweep", {"GPU_RESOURCES"}
    stop_when_done = True

    def __init__(self, *tasks: Task) -> None:
        self.todo = list(tasks)
        self.statuses: list[tuple[Task, Status]] = []
        self.offers: list[Offer] = []
        self.heard: list[Any] = []

    def wants(self) -> list[Any]:
        return [(task, 1) for task in self.todo]

    def on_offer(self, offer: Offer) -> Any:
        self.offers.append(offer)
        while self.todo and offer.fits(self.todo[-1]):
            yield self.todo.pop()

    def on_status(self, task: Task, status: Status) -> None:
        self.statuses.append((task, status))
        if status.retryable:
            self.todo.append(task)
        if self.stop_when_done and not self.todo and not self.running:
            self.stop()

    def on_subscribed(self, again: bool) -> None:
        self.heard.append(("subscribed", again))

    def on_disconnected(self, error: ErrorDetail) -> None:
        self.heard.append(("disconnected",))

    def on_agent_failure(self, agent_id: str, message: str) -> None:
        self.heard.append(("agent failure", agent_id))

    def on_rescinded(self, offer_id: str, reason: str) -> None:
        self.heard.append(("rescinded", offer_id))


@asynccontextmanager
async def running(framework: Framework, master: Any) -> AsyncIterator[FrameworkSession]:
    session = FrameworkSession(framework, master.address)
    job = asyncio.get_running_loop().create_task(session.run())
    try:
        yield session
    finally:
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)


def states(framework: Sweep) -> list[TaskState]:
    return [status.state for _, status in framework.statuses]
