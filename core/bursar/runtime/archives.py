"""Files as tar archives, for sessions. Unpacking trusts nobody: an archive comes from a task, or from whoever may talk to the master."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path, PurePosixPath
from typing import BinaryIO


class ArchiveRefused(Exception):
    """An archive holds what must not be unpacked; the text says what."""


def pack(path: Path, target: BinaryIO, name: str = "") -> None:
    """Write what is at a path, as it is (links as links), as a stream that begins with `name`, or the path's own. Raises OSError."""
    path.lstat()
    with tarfile.open(fileobj=target, mode="w|") as archive:
        archive.add(path, arcname=name or path.name or ".")


def unpack(source: BinaryIO, directory: Path, rename: str = "") -> int:
    """Unpack a stream below a directory, and return how many entries; `rename`: a new name for the one thing that it holds.

    Nothing is written outside: neither absolute names nor `..`, no devices, no link that leads out, and nothing *through* a link, whoever
    made that. Owners and set-id bits are not taken over. Raises ArchiveRefused and OSError.
    """
    count, root = 0, ""
    try:
        with tarfile.open(fileobj=source, mode="r|") as archive:
            for member in archive:
                first, _, rest = _clean(member.name).partition("/")
                if rename:
                    if root not in ("", first):
                        raise ArchiveRefused(f"it holds {first!r} beside {root!r}")
                    root = first
                    member.name = f"{rename}/{rest}" if rest else rename
                    if member.islnk():
                        member.linkname = "/".join((rename, *PurePosixPath(_clean(member.linkname)).parts[1:]))
                _extract(archive, member, directory)
                count += 1
    except tarfile.TarError as error:
        raise ArchiveRefused(str(error)) from error
    return count


def _clean(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts:
        if name in (".", "./"):
            return "."
        raise ArchiveRefused(f"the name {name!r} leads out of the archive")
    return "/".join(parts)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
    for name in (member.name, member.linkname if member.islnk() else ""):
        for parent in reversed(PurePosixPath(name).parents):
            _check_real(directory / parent, name)
    if member.islnk():
        _check_real(directory / member.linkname, member.linkname)
    place = directory / member.name
    if place.is_symlink() or (not member.isdir() and place.exists() and not place.is_dir()):
        # Replaced, never written through.
        os.unlink(place)
    archive.extract(member, directory, filter="data")


def _check_real(path: Path, name: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise ArchiveRefused(f"{name!r} leads through the symbolic link {path.name!r}")
