"""A device whose process has not gone is given to nobody (F49-14).

When a container has ended, the device's driver is asked who still uses it; the end is told once that is known. Usually nobody does. A process
that goes within moments only delays the end; one that stays makes the device *busy*: shown with its processes, not offered, asked about
again with growing pauses, and cordoned where it takes too long. A device that somebody else uses – a process of no task – is busy, too.

A driver that cannot say leaves everything as it would be without asking. One that does not answer makes the device busy, until it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from bursar.agent.books import Books
from bursar.agent.containers.runtime import ContainerId
from bursar.agent.devices.health import DeviceSignal, Severity
from bursar.agent.devices.users import Busy, DeviceUser
from bursar.agent.effects import AskWhoUses
from bursar.agent.ward import Ward
from bursar.core.device_names import device_kind, parent_of
from bursar.core.ids import DeviceUuid
from bursar.core.text import format_duration

#: The end of a task waits at most so long for its processes to let go of its devices, and asks again after such pauses.
GRACE_MS = 2_000
_FIRST_PAUSE_MS = 50
#: A driver that has not answered after so long does not answer.
ANSWER_MS = 10_000
#: Between two questions about a busy device: at first, and doubled up to this.
BUSY_PAUSE_MS, LONGEST_PAUSE_MS = 1_000, 30_000

_Users = Mapping[DeviceUuid, tuple[DeviceUser, ...] | None]


@dataclass(slots=True)
class _Departure:
    """A container that has ended, and whose devices are looked at."""

    devices: tuple[DeviceUuid, ...]
    #: What follows once that is over.
    then: Callable[[], None]
    #: Whose it was, for people.
    whose: str
    begun_ms: int
    begun_wall_ms: int
    pause_ms: int = _FIRST_PAUSE_MS
    #: Whether the last question was answered.
    answered: bool = False


class Leaving:
    """The room between the end of a container and that of its task."""

    def __init__(self, books: Books, ward: Ward) -> None:
        self._books = books
        self._ward = ward
        self._departures: dict[ContainerId, _Departure] = {}

    def __contains__(self, container_id: object) -> bool:
        return container_id in self._departures

    def check(self) -> None:
        """Assert what must hold."""
        books = self._books
        for uuid in books.busy:
            assert not self._is_running(uuid), f"{uuid} is busy, and a running container has it"
        for container_id in self._departures:
            assert container_id in books.live or container_id in books.orphans, container_id

    def begin(self) -> None:
        """The agent begins: what is used although no task has it is known before anybody is told of it."""
        self._look_at(self._books.config.users)

    def look(self) -> None:
        """The devices were looked at: does somebody use what is free?"""
        if self._books.config.tells_users:
            self._ask(uuid for uuid in self._books.devices if not self._is_running(uuid))

    def depart(
        self, container_id: ContainerId, devices: tuple[DeviceUuid, ...], whose: str, then: Callable[[], None]
    ) -> None:
        """A container has ended; `then` follows, at once where there is nothing to ask."""
        if container_id in self._departures:
            return
        if not devices or not self._books.config.tells_users:
            then()
            return
        now = self._books.now
        self._departures[container_id] = _Departure(devices, then, whose, now.monotonic_ms, now.wall_ms)
        self._ask_of(container_id)

    def told(self, users: _Users) -> None:
        """A driver has answered."""
        for container_id, departure in list(self._departures.items()):
            if users.keys() >= set(departure.devices):
                self._answered(container_id, departure, users)
        self._look_at(users)

    def due(self, kind: str, subject: str) -> None:
        """`leave` of a container: ask again, or give up asking; `users` of a device: ask again."""
        if kind == "users":
            if (busy := self._books.busy.get(DeviceUuid(subject))) is not None:
                self._ask([DeviceUuid(subject)])
                self._pause(DeviceUuid(subject), busy)
                self._judge(DeviceUuid(subject))
            return
        container_id = ContainerId(subject)
        departure = self._departures[container_id]
        if departure.answered:
            self._ask_of(container_id)
            return
        for uuid in departure.devices:
            self._occupy(uuid, (), departure)
        self._finish(container_id)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _ask_of(self, container_id: ContainerId) -> None:
        departure = self._departures[container_id]
        departure.answered = False
        self._ask((*departure.devices, *self._beside(departure.devices)))
        self._books.deadlines.set(("leave", container_id), self._books.now.monotonic_ms + ANSWER_MS)

    def _ask(self, uuids: Iterable[DeviceUuid]) -> None:
        if wanted := tuple(dict.fromkeys(uuids)):
            self._books.effects.append(AskWhoUses(wanted))

    def _beside(self, devices: Iterable[DeviceUuid]) -> list[DeviceUuid]:
        """Other views of the same cards that nobody has: who uses a card uses all of it, unless it is cut."""
        books = self._books
        cards = {parent_of(uuid) or uuid for uuid in devices if not device_kind(uuid).startswith("mig-")}
        return [uuid for uuid in books.devices if (parent_of(uuid) or uuid) in cards and uuid not in books.held]

    def _answered(self, container_id: ContainerId, departure: _Departure, users: _Users) -> None:
        departure.answered = True
        left = {uuid: rest for uuid in departure.devices if (rest := self._strangers(users[uuid]))}
        waited_ms = self._books.now.monotonic_ms - departure.begun_ms
        if left and waited_ms < GRACE_MS:
            pause_ms = min(departure.pause_ms, GRACE_MS - waited_ms)
            self._books.deadlines.set(("leave", container_id), self._books.now.monotonic_ms + pause_ms)
            departure.pause_ms *= 2
            return
        for uuid, rest in left.items():
            self._occupy(uuid, rest, departure)
        self._finish(container_id)

    def _strangers(self, users: tuple[DeviceUser, ...] | None) -> tuple[DeviceUser, ...]:
        """Those that are of no running container: neighbours on a shared card belong there."""
        running = self._books.live.keys() | self._books.orphans.keys()
        return tuple(
            one for one in users or () if one.container_id not in running or one.container_id in self._departures
        )

    def _finish(self, container_id: ContainerId) -> None:
        self._books.deadlines.cancel(("leave", container_id))
        self._departures.pop(container_id).then()

    def _look_at(self, users: _Users) -> None:
        """What was said of devices that no running container has."""
        leaving = {uuid for one in self._departures.values() for uuid in one.devices}
        for uuid, said in users.items():
            before = self._books.busy.get(uuid)
            if uuid in leaving or self._is_running(uuid):
                continue
            rest = self._strangers(said) if uuid in self._books.devices else ()
            if rest:
                self._occupy(uuid, rest)
                self._judge(uuid)
            elif before is not None:
                self._vacate(uuid)

    def _occupy(self, uuid: DeviceUuid, users: tuple[DeviceUser, ...], departure: _Departure | None = None) -> None:
        before = self._books.busy.get(uuid)
        if before is not None:
            self._books.busy[uuid] = replace(before, users=users or before.users)
            return
        since_ms = departure.begun_wall_ms if departure is not None else self._books.now.wall_ms
        busy = Busy(users, since_ms, departure.whose if departure is not None else "", BUSY_PAUSE_MS)
        self._books.busy[uuid] = busy
        self._books.log("warning", f"device {uuid} is busy: {busy.reason}", device=uuid)
        self._pause(uuid, replace(busy, pause_ms=BUSY_PAUSE_MS // 2))

    def _vacate(self, uuid: DeviceUuid) -> None:
        del self._books.busy[uuid]
        self._books.deadlines.cancel(("users", uuid))
        self._books.log("info", f"device {uuid} is used by nobody any more", device=uuid)

    def _pause(self, uuid: DeviceUuid, busy: Busy) -> None:
        pause_ms = min(2 * busy.pause_ms, LONGEST_PAUSE_MS)
        self._books.busy[uuid] = replace(busy, pause_ms=pause_ms)
        self._books.deadlines.set(("users", uuid), self._books.now.monotonic_ms + pause_ms)

    def _judge(self, uuid: DeviceUuid) -> None:
        """What a task left behind, and what nobody can speak of, must be over in time."""
        busy, patience_ms = self._books.busy[uuid], self._books.config.release_timeout_ms
        foreign = busy.users and not busy.left_by
        if foreign or busy.overdue or self._books.now.wall_ms - busy.since_ms < patience_ms:
            return
        self._books.busy[uuid] = replace(busy, overdue=True)
        text = f"{busy.reason}, for more than {format_duration(patience_ms)}"
        self._ward.signalled((DeviceSignal(uuid, Severity.FATAL, text),))

    def _is_running(self, uuid: DeviceUuid) -> bool:
        """Whether a container has it, which may have ended a moment ago; not while its task waits for another run."""
        container_id = self._books.held.get(uuid)
        key = self._books.live.get(container_id) if container_id is not None else None
        return container_id is not None and (key is None or not self._books.state.tasks[key].waiting)
