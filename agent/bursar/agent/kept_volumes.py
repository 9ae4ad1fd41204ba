"""The data of persistent volumes: a directory for each, below one of the work directory (VOL-2)."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bursar.core.device_names import VOLUMES
from bursar.core.ids import DeviceUuid
from bursar.core.messages.agent import VolumeTrouble
from bursar.core.volumes import read_volume

#: Beside the volumes, and no name of one.
_TRASH = "removed"


class Stuck(NamedTuple):
    """Of data that was set aside and cannot be removed: where, how many steps failed, and the first problem."""

    path: Path
    failures: int
    problem: str


class KeptVolumes:
    """The directories of one agent: `BYTES/ROLE/ID`, as the name of a volume ends. Blocks, but for as long as a directory takes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path_of(self, uuid: DeviceUuid) -> Path:
        """The directory of a volume; it need not be there. Raises ValueError for what is no name of a volume."""
        if read_volume(uuid).role in (".", ".."):
            raise ValueError(f"{uuid!r} is not the name of a volume")
        return self._root / uuid.removeprefix(f"{VOLUMES}/")

    def make(self, uuids: Iterable[DeviceUuid]) -> list[VolumeTrouble]:
        """Make those that are not there; return what could not be made."""
        troubles = []
        for uuid in uuids:
            try:
                path = self.path_of(uuid)
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.mkdir(mode=0o755, exist_ok=True)
            except (OSError, ValueError) as error:
                troubles.append(VolumeTrouble(uuid, getattr(error, "strerror", None) or str(error)))
        return troubles

    def set_aside(self, uuids: Iterable[DeviceUuid]) -> list[VolumeTrouble]:
        """Put the data of some where nobody finds it and `empty_trash` removes it: done at once, however much it is."""
        troubles = []
        for uuid in uuids:
            try:
                path = self.path_of(uuid)
                trash = self._root / _TRASH
                trash.mkdir(mode=0o700, parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    path.rename(trash / f"{path.stat().st_ino}-{path.name}")
                for empty in (path.parent, path.parent.parent):
                    with contextlib.suppress(OSError):
                        empty.rmdir()
            except (OSError, ValueError) as error:
                troubles.append(VolumeTrouble(uuid, getattr(error, "strerror", None) or str(error)))
        return troubles

    def empty_trash(self) -> list[Stuck]:
        """Remove what was set aside. Takes as long as there are files; what cannot be removed is returned, and stays until the next time."""
        stuck = []
        try:
            # Not itself: more may be set aside meanwhile.
            found = sorted((self._root / _TRASH).iterdir())
        except OSError:
            return []
        for path in found:
            problems: list[str] = []

            def note(_call: object, _path: str, info: Any, problems: list[str] = problems) -> None:
                if not isinstance(info[1], FileNotFoundError):  # somebody else was quicker
                    problems.append(str(info[1]))

            shutil.rmtree(path, onerror=note)
            if problems:
                stuck.append(Stuck(path, len(problems), problems[0]))
        return stuck

    def list(self) -> frozenset[DeviceUuid]:
        """The volumes whose data is there."""
        found = set()
        # Sizes; what was set aside, which may be much, and what is somebody else's is not walked through.
        for path in (path for size in self._sizes() for path in size.glob("*/*")):
            uuid = DeviceUuid(f"{VOLUMES}/{path.relative_to(self._root)}")
            with contextlib.suppress(ValueError):
                read_volume(uuid)
                if path.is_dir() and not path.is_symlink():
                    found.add(uuid)
        return frozenset(found)

    def _sizes(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            yield from (path for path in self._root.iterdir() if path.name.isascii() and path.name.isdecimal())

    def own(self, uuid: DeviceUuid, owner: tuple[int, int]) -> None:
        """A volume that nobody has written on yet belongs to the user of the task that mounts it first. Raises OSError."""
        path = self.path_of(uuid)
        if not any(path.iterdir()):
            os.chown(path, *owner)
