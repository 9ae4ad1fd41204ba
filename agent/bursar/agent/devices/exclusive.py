"""A real device never belongs to two agents of one machine (F108-08).

One lock file per device, held by `flock` on an open descriptor: the kernel lets go of it when the agent dies, however it
dies. It is taken in every directory that agents of other users may share, since no single one is writable for all
everywhere: an agent of root and one of a user meet in at least one of them. What still runs of an agent that is gone is found
by the notes beside them (see `bindings`).
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from bursar.agent.containers.runtime import Decoration
from bursar.agent.devices.bindings import DeviceBindings, card_of
from bursar.agent.devices.driver import ContainerDecorator, DeviceDriver
from bursar.agent.devices.names import file_safe
from bursar.core.devices import Device
from bursar.core.ids import AgentId, DeviceUuid

log = logging.getLogger(__name__)


def shared_directories() -> list[Path]:
    """Directories in which every user of this machine may make files, or at least root."""
    candidates = dict.fromkeys([Path("/run/lock"), Path("/tmp"), Path(tempfile.gettempdir())])
    return [path for path in candidates if path.is_dir() and os.access(path, os.W_OK | os.X_OK)]


class DeviceLocks:
    """The devices claimed by this process."""

    def __init__(self, agent_id: AgentId, directories: Sequence[Path]) -> None:
        self._agent_id = agent_id
        self._directories = tuple(directories)
        self._bindings = DeviceBindings(agent_id, directories)
        #: One open descriptor and path per directory.
        self._held: dict[DeviceUuid, list[tuple[int, Path]]] = {}

    def claim(self, uuid: DeviceUuid) -> str | None:
        """Claim a device, or say who has it. A device that is ours already is claimed again without effect."""
        uuid = card_of(uuid)
        if uuid in self._held:
            return None
        if user := self._bindings.user_of(uuid):
            return user
        held: list[tuple[int, Path]] = []
        for directory in self._directories:
            path = lock_file(directory, uuid)
            try:
                fd = _lock(path)
            except OSError as error:
                log.warning("device %s: cannot lock %s: %s", uuid, path, error.strerror or error)
                continue
            if fd is None:
                holder = _holder(path)
                _unlock(held)
                return holder
            _note(fd, f"agent {self._agent_id}, pid {os.getpid()}\n")
            held.append((fd, path))
        if not held:
            return "nobody can say whom: no directory for lock files can be used"
        if user := self._bindings.user_of(uuid):
            _unlock(held)  # its agent ended, and its task stayed, between our look and our lock
            return user
        self._held[uuid] = held
        return None

    def release(self, uuids: Iterable[DeviceUuid]) -> None:
        """Let others have these."""
        for uuid in {card_of(uuid) for uuid in uuids}:
            _unlock(self._held.pop(uuid, []))

    @property
    def held(self) -> frozenset[DeviceUuid]:
        """What is claimed."""
        return frozenset(self._held)


class ExclusiveDevices:
    """A driver whose devices are claimed for this agent; devices that another agent has are left out."""

    def __init__(self, driver: DeviceDriver, agent_id: AgentId, directories: Sequence[Path] | None = None) -> None:
        self.name = driver.name
        self.inner = (driver,)
        self.may_block = bool(getattr(driver, "may_block", False))
        self._driver = driver
        self._locks = DeviceLocks(agent_id, shared_directories() if directories is None else directories)
        #: After `keep_only`: these and no others, whatever they are cut into.
        self._wanted: frozenset[DeviceUuid] | None = None
        #: Who has the devices that were left out, so that each is logged once.
        self._refused: dict[DeviceUuid, str] = {}

    def discover(self) -> tuple[Device, ...]:
        """The devices that could be claimed. Raises DriverUnavailable."""
        mine = []
        for device in self._driver.discover():
            if self._wanted is not None and card_of(device.uuid) not in self._wanted:
                continue
            holder = self._locks.claim(device.uuid)
            if holder is None:
                self._refused.pop(device.uuid, None)
                mine.append(device)
            elif self._refused.get(device.uuid) != holder:
                self._refused[device.uuid] = holder
                log.warning("device %s is left out: it belongs to %s", device.uuid, holder)
        return tuple(mine)

    def keep_only(self, uuids: Collection[DeviceUuid]) -> None:
        """Give back what this agent was told not to use (`--resources gpus:2`), for another agent to claim."""
        self._wanted = frozenset(map(card_of, uuids))
        self._locks.release(self._locks.held - self._wanted)

    def decorate(self, granted: Sequence[Device], runtime: str) -> Decoration:
        """As the driver itself says."""
        if isinstance(self._driver, ContainerDecorator):
            return self._driver.decorate(granted, runtime)
        return Decoration()

    def close(self) -> None:
        """Give back all devices."""
        self._driver.close()
        self._locks.release(self._locks.held)


def holder_of(uuid: DeviceUuid, directories: Iterable[Path]) -> str | None:
    """Who has a device now; it is looked at only, and nobody is kept from claiming it meanwhile."""
    for directory in directories:
        path = lock_file(directory, card_of(uuid))
        try:
            there = path.stat()
            locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        if any(line.split()[5].endswith(f":{there.st_ino}") for line in locks if " FLOCK " in line):
            return _holder(path)
    return None


def lock_file(directory: Path, uuid: DeviceUuid) -> Path:
    """The lock file of a device in one of the shared directories."""
    return directory / f"bursar-device-{file_safe(uuid)}.lock"


def _open(path: Path) -> int:
    """Open or make a lock file.

    Never O_CREAT on a file that is there: in a sticky directory the kernel refuses that for files of other users
    (fs.protected_regular), even to root. A descriptor for reading is enough to lock.
    """
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    for mode in (os.O_RDWR, os.O_RDONLY):
        try:
            return os.open(path, mode | flags)
        except FileNotFoundError:
            break
        except PermissionError:
            continue
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o644)


def _lock(path: Path) -> int | None:
    """Lock the file; None where somebody else has it. Raises OSError."""
    for _ in range(100):
        try:
            fd = _open(path)
        except FileExistsError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = os.stat(path)
            mine = os.fstat(fd)
            if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except FileNotFoundError:
            pass  # its last holder removed it between our open and our lock: make a new one
        except OSError:
            os.close(fd)
            raise
        os.close(fd)
    raise OSError(f"{path} comes and goes")


def _note(fd: int, text: str) -> None:
    """Say in the file who holds it, for people and for the log of the one who is refused."""
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, text.encode(), 0)
    except OSError:
        pass  # the file of another user, opened for reading: the lock is what counts


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()[:200] or "somebody else"
    except OSError:
        return "somebody else"


def _unlock(held: list[tuple[int, Path]]) -> None:
    for fd, path in held:
        try:
            path.unlink()  # while we hold it: whoever has it open already notices (see _lock)
        except OSError:
            pass
        os.close(fd)
