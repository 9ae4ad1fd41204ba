"""Which running task has a real device, noted where the next agent of this machine looks (F108-08).

The lock of a device goes when its agent does, but tasks outlive their agent. So a note lies beside the lock file for as long as a
task runs, and who claims the device reads it: a note of another agent whose process still lives keeps the device, a stale one does
not. A process is told from one that got its number later by its start time, and by the boot.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bursar.agent.containers.process import boot_id
from bursar.agent.containers.runtime import ContainerId
from bursar.agent.devices.names import file_safe
from bursar.core.device_names import parent_of
from bursar.core.devices import Device
from bursar.core.ids import AgentId, DeviceUuid

log = logging.getLogger(__name__)

_MAX_NOTE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Note:
    """One device of one container."""

    agent_id: str
    container_id: str
    boot_id: str
    #: Process ids mean something within one namespace only.
    pid_namespace: str
    #: 0: it was about to be started, or nobody could say.
    pid: int = 0
    #: Clock ticks after the boot.
    started: int = 0


class DeviceBindings:
    """The notes of one agent, and its look at those of others. A few small files: does not block for long."""

    def __init__(self, agent_id: AgentId, directories: Sequence[Path]) -> None:
        self._agent_id = agent_id
        self._directories = tuple(directories)

    def bind(self, container_id: ContainerId, devices: Sequence[Device]) -> None:
        """Note that a container has these devices, before it is started: its agent may die at any moment."""
        self._write(container_id, devices, 0, 0)

    def bind_running(self, container_id: ContainerId, devices: Sequence[Device], pid: int) -> None:
        """Note the process of a container; one that has ended already has none."""
        if started := started_at(pid):
            self._write(container_id, devices, pid, started)
        else:
            self.unbind(container_id)

    def _write(self, container_id: ContainerId, devices: Sequence[Device], pid: int, started: int) -> None:
        note = Note(self._agent_id, container_id, boot_id(), _pid_namespace(), pid, started)
        text = json.dumps(asdict(note))
        for device in devices:
            for directory in self._directories:
                path = directory / _name(card_of(device.uuid), container_id)
                try:
                    path.unlink(missing_ok=True)
                    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
                    with open(fd, "w", encoding="utf-8") as file:
                        file.write(text)
                except OSError as error:
                    log.warning("device %s: cannot note its task in %s: %s", device.uuid, path, error.strerror or error)

    def unbind(self, container_id: ContainerId) -> None:
        """The container has ended, or was never started."""
        for directory in self._directories:
            for path in directory.glob(f"bursar-device-*-task-{_digest(container_id)}.json"):
                with contextlib.suppress(OSError):
                    path.unlink()

    def keep_only(self, running: Collection[ContainerId]) -> None:
        """Forget what an earlier life of this agent noted of containers that run no more."""
        for path, note in self._notes("bursar-device-*-task-*.json"):
            if note.agent_id == self._agent_id and note.container_id not in running:
                with contextlib.suppress(OSError):
                    path.unlink()

    def user_of(self, uuid: DeviceUuid) -> str | None:
        """Whose task has the device, an other agent's, as far as it lives or nobody can tell that it does not."""
        for path, note in self._notes(f"bursar-device-{file_safe(card_of(uuid))}-task-*.json"):
            if note.agent_id == self._agent_id:
                continue
            if doubt := _may_live(note):
                return f"a task of agent {note.agent_id} that {doubt}, container {note.container_id} (noted in {path})"
            with contextlib.suppress(OSError):
                path.unlink()
        return None

    def stray_on(self, container_id: ContainerId, devices: Sequence[Device]) -> str | None:
        """Which other container of this agent runs with one of these whole devices, by its note and its process; None: none does.

        The agent's books know better what its tasks hold; this is for a container that fell out of them.
        """
        for device in devices:
            if parent_of(device.uuid) is not None:
                continue  # several containers may have parts of one card
            for _, note in self._notes(f"bursar-device-{file_safe(device.uuid)}-task-*.json"):
                is_another = note.agent_id == self._agent_id and note.container_id != container_id
                if is_another and note.pid and _may_live(note):
                    return note.container_id
        return None

    def _notes(self, pattern: str) -> Iterator[tuple[Path, Note]]:
        for directory in self._directories:
            for path in sorted(directory.glob(pattern)):
                try:
                    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), encoding="utf-8") as file:
                        said = json.loads(file.read(_MAX_NOTE_BYTES))
                    yield path, Note(**{name: type(getattr(_EMPTY, name))(said[name]) for name in _FIELDS})
                except (OSError, ValueError, TypeError, KeyError) as error:
                    log.warning("%s is no note of a task and is ignored: %s", path, error)


def card_of(uuid: DeviceUuid) -> DeviceUuid:
    """What is locked and noted: the card of a slice or share, a whole device itself."""
    return parent_of(uuid) or uuid


def started_at(pid: int) -> int:
    """When a process began, in clock ticks after the boot; 0 where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


_EMPTY = Note("", "", "", "")
_FIELDS = tuple(asdict(_EMPTY))


def _may_live(note: Note) -> str:
    """Why it may live, or nothing."""
    if note.boot_id != boot_id():
        return ""
    if note.pid_namespace != _pid_namespace():
        return "cannot be seen from here, since process ids mean something else there"
    if not note.pid or not note.started:
        return "was being started when its agent ended"
    return "runs on" if started_at(note.pid) == note.started else ""


def _name(card: DeviceUuid, container_id: ContainerId) -> str:
    return f"bursar-device-{file_safe(card)}-task-{_digest(container_id)}.json"


def _digest(container_id: ContainerId) -> str:
    return hashlib.sha256(container_id.encode()).hexdigest()[:16]


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
