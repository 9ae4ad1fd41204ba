"""The room of persistent volumes: what the master orders of them, carried out, and what of their data is here (VOL-2).

Nothing of it is in the checkpoint: the data itself says what is there, and the shell looks at it before the agent begins and after
everything that it does. The machine never asks for data to be made that was there once and is gone, and has nothing removed but what
the master names.
"""

from __future__ import annotations

from collections.abc import Iterable

from bursar.agent.books import Books
from bursar.agent.effects import KeepVolumes
from bursar.agent.tasks import TaskRecord
from bursar.core.ids import DeviceUuid
from bursar.core.messages.agent import VolumeOrders, VolumesHeld, VolumeTrouble


class VolumeRoom:
    """Orders about volumes, and what became of them."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self.held: frozenset[DeviceUuid] = books.config.volumes
        #: Of what the shell was asked last; answers to earlier questions say nothing new.
        self._asked = 0
        #: The newest order on this connection, and what of it is not done for now.
        self._order = 0
        self._in_use: tuple[VolumeTrouble, ...] = ()

    def settle(self) -> None:
        """A step ends: what was in use, and is not any more, is removed now."""
        if self._in_use and self._books.registered:
            used = self._used()
            if gone := tuple(trouble.uuid for trouble in self._in_use if trouble.uuid not in used):
                self._in_use = tuple(trouble for trouble in self._in_use if trouble.uuid in used)
                self._ask((), gone)

    def begin(self) -> None:
        """A master has let us in: it hears of data that it may not know of."""
        self._order, self._in_use = 0, ()
        self._asked += 1
        if self.held:
            self._tell(())

    def ordered(self, message: VolumeOrders) -> None:
        """Have the shell do it, and look."""
        self._order = message.order
        used = self._used()
        self._in_use = tuple(
            VolumeTrouble(uuid, f"task {used[uuid].key.task_id} of {used[uuid].key.framework_id} has it")
            for uuid in message.remove
            if uuid in used
        )
        self._ask(message.make, tuple(uuid for uuid in message.remove if uuid not in used))

    def _ask(self, make: tuple[DeviceUuid, ...], remove: tuple[DeviceUuid, ...]) -> None:
        self._asked += 1
        # What was here is not made again: if it has gone meanwhile, that is to be seen.
        make = tuple(uuid for uuid in make if uuid not in self.held)
        self._books.effects.append(KeepVolumes(self._asked, make, remove))
        for uuid in remove:
            if uuid in self.held:
                self._books.log("info", "removing a volume that was destroyed", volume=uuid)

    def _used(self) -> dict[DeviceUuid, TaskRecord]:
        """The volumes of tasks that have not ended."""
        return {
            uuid: record
            for record in self._books.state.tasks.values()
            if not record.state.is_terminal
            for uuid in record.task.volume_names
        }

    def kept(self, asked: int, held: Iterable[DeviceUuid], troubles: Iterable[VolumeTrouble]) -> None:
        """The shell has done what it was asked, as far as it can, and has looked."""
        self.held = frozenset(held)
        if asked == self._asked and self._books.registered:
            self._tell(troubles)

    def _tell(self, troubles: Iterable[VolumeTrouble]) -> None:
        connection = self._books.connection
        assert connection is not None
        self._books.send(connection, VolumesHeld(self._order, tuple(sorted(self.held)), (*troubles, *self._in_use)))
