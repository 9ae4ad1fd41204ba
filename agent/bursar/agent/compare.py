"""The periodic comparison of the machine's books with what the engine really has (B-18)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter

from bursar.agent.books import Books
from bursar.agent.containers.runtime import ContainerId
from bursar.agent.events import ContainersCompared
from bursar.agent.machine import AgentMachine
from bursar.agent.tasks import has_container
from bursar.runtime.telemetry import logger

INTERVAL_S = 60.0


@runtime_checkable
class ContainerLister(Protocol):
    """A runtime that can say which of this agent's containers run now."""

    def running(self) -> set[ContainerId]:
        """Blocks; raises whatever the engine's library raises."""


class TwoLooks:
    """Two looks in a row must agree before anything is repaired: an end or a start may be on its way in one."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._settled: set[ContainerId] = set()
        self._missing: set[ContainerId] = set()
        self._strays: set[ContainerId] = set()

    def begin(self) -> None:
        """Before the engine is asked: note what must be there. What is begun, or waits to be begun again, has no container, and is right."""
        books = self._books
        self._settled = {
            container_id
            for container_id, key in books.live.items()
            if container_id not in books.starting and has_container(books.state.tasks[key])
        }

    def end(self, running: set[ContainerId]) -> ContainersCompared | None:
        """What runs, as the engine has said since: return what it and the look before agree upon."""
        books = self._books
        missing = (self._settled & set(books.live)) - running
        strays = running - set(books.live) - set(books.orphans)
        sure_missing, sure_strays = missing & self._missing, strays & self._strays
        self._missing, self._strays = missing - sure_missing, strays - sure_strays
        if not sure_missing and not sure_strays:
            return None
        return ContainersCompared(tuple(sorted(sure_missing)), tuple(sorted(sure_strays)))

    def forget(self) -> None:
        """The engine is away, and says nothing of its containers."""
        self._missing, self._strays = set(), set()


class Comparison:
    """A look per minute."""

    def __init__(
        self,
        machine: AgentMachine,
        runtime: object,
        post: Callable[[ContainersCompared], object],
        registry: CollectorRegistry,
    ) -> None:
        self._machine = machine
        self._runtime = runtime if isinstance(runtime, ContainerLister) else None
        self._post = post
        self._looks = TwoLooks(machine.books)

        def count(what: str, text: str, labels: Iterable[str]) -> Counter:
            return Counter(f"bursar_sync_container_lifecycle_{what}_count", text, list(labels), registry=registry)

        self._triggers = count("trigger", "Comparisons of books and engine.", ["agent_id"])
        self._successes = count("success", "Comparisons that were made.", ["agent_id"])
        self._failures = count("failure", "Comparisons that failed.", ["agent_id", "exception"])
        self._repairs = count("repair", "What was found and repaired.", ["agent_id", "what"])

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.compare()

    async def compare(self) -> None:
        """Once."""
        if self._runtime is None:
            return
        books = self._machine.books
        agent_id = books.info.agent_id
        self._triggers.labels(agent_id).inc()
        self._looks.begin()
        try:
            running = await asyncio.to_thread(self._runtime.running)
        except Exception as error:  # noqa: BLE001 - an engine that is away says nothing of its containers
            self._failures.labels(agent_id, type(error).__name__).inc()
            logger().debug("cannot compare containers", reason=str(error))
            self._looks.forget()
            return
        self._successes.labels(agent_id).inc()
        if compared := self._looks.end(running):
            self._repairs.labels(agent_id, "missing").inc(len(compared.missing))
            self._repairs.labels(agent_id, "stray").inc(len(compared.strays))
            self._post(compared)
