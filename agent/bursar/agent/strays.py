"""Containers that no live task accounts for: ended, and of the tasks whose they were nothing is told before (B-18).

A task that this agent does not know may run here all the same, where its books were lost and its container was not. So an answer that it is
no more waits for the engine's word that nothing runs under its name.
"""

from __future__ import annotations

from collections.abc import Iterable

from bursar.agent.books import KILL_RETRY_MS, Books
from bursar.agent.containers.runtime import ContainerId
from bursar.agent.effects import EndStray, RemoveContainer
from bursar.agent.leaving import Leaving
from bursar.agent.reporting import Reporting
from bursar.agent.tasks import TaskKey, Verdict, container_of
from bursar.core.ids import DeviceUuid


class Strays:
    """The room of what nobody accounts for. `books.orphans` has each container of it, with the devices that it holds."""

    def __init__(self, books: Books, reporting: Reporting, leaving: Leaving) -> None:
        self._books = books
        self._reporting = reporting
        self._leaving = leaving
        #: What is to be told of a task once its container is no more; None: what was told before.
        self._answers: dict[ContainerId, tuple[TaskKey, Verdict | None]] = {}

    def check(self) -> None:
        """Assert what must hold."""
        for container_id, (key, _) in self._answers.items():
            assert container_id in self._books.orphans, f"an answer of {key} waits for nothing"
            assert key not in self._books.state.tasks, f"{key} is to be answered for, and known"

    def found(self, container_id: ContainerId) -> None:
        """Ours by its label, but no live task's: it may hold devices until it is gone."""
        books = self._books
        books.repaired("container-stray", "a container that no task accounts for is ended", container=container_id)
        devices: tuple[DeviceUuid, ...] = ()
        for key, record in books.state.tasks.items():
            if container_of(books.info.agent_id, key) == container_id:
                devices = record.task.device_uuids
        for key, finished in books.state.finished.items():
            if not devices and container_of(books.info.agent_id, key) == container_id:
                devices = finished.status.device_uuids
        self._end(container_id, devices)

    def unknown(self, key: TaskKey, verdict: Verdict, devices: Iterable[DeviceUuid] = ()) -> None:
        """Answer for a task of which we have nothing, once it is certain that nothing of it runs."""
        container_id = container_of(self._books.info.agent_id, key)
        if container_id in self._answers:
            return
        self._answers[container_id] = key, verdict
        if container_id not in self._books.orphans:
            self._end(container_id, devices)

    def repeat_end(self, key: TaskKey) -> None:
        """The master has forgotten, or not recorded, that this task is over: say so again, unless something of it still runs."""
        container_id = container_of(self._books.info.agent_id, key)
        if container_id in self._books.orphans:
            self._answers.setdefault(container_id, (key, None))
        else:
            self._reporting.repeat_end(key)

    def end(self, container_id: ContainerId) -> None:
        """Have it ended, whoever began it, and ask again where it does not end."""
        self._books.effects.append(EndStray(container_id))
        self._books.deadlines.set(("kill", container_id), self._books.now.monotonic_ms + KILL_RETRY_MS)

    def exited(self, container_id: ContainerId) -> None:
        """Nothing runs under this name."""
        self._books.deadlines.cancel(("kill", container_id))
        devices = self._books.orphans.get(container_id, ())
        self._leaving.depart(container_id, devices, container_id, lambda: self._ended(container_id))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _end(self, container_id: ContainerId, devices: Iterable[DeviceUuid]) -> None:
        books = self._books
        books.orphans[container_id] = tuple(uuid for uuid in devices if uuid not in books.held)
        books.held.update(dict.fromkeys(books.orphans[container_id], container_id))
        self.end(container_id)

    def _ended(self, container_id: ContainerId) -> None:
        for uuid in self._books.orphans.pop(container_id, ()):
            del self._books.held[uuid]
        self._books.effects.append(RemoveContainer(container_id))
        key, verdict = self._answers.pop(container_id, (None, None))
        if key is None:
            return
        if verdict is None or key in self._books.state.finished:
            self._reporting.repeat_end(key)
        else:
            self._reporting.never_here(key, verdict)
