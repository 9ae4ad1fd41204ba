"""Who uses a device that is known by its files alone: whoever has one of them open (F49-14). Reads `/proc`: called from worker threads.

Of other users' processes only root sees that; an agent that is not root sees its own user's, which its plain processes are.

What a process has open may lie on a network disk that is gone, and whoever asks that for it waits for ever. So a file is asked what it is only
where its name, which the kernel knows by itself, is below `/dev` or that of a device's file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path

from bursar.agent.devices.users import DeviceUser
from bursar.core.ids import DeviceUuid

#: What a file is, by whatever name: a device by its numbers, any other by its place on a disk.
_Identity = tuple[str, int, int]


def users_of_nodes(
    nodes: Mapping[DeviceUuid, Collection[str]], beside: Collection[int] = (), proc: Path = Path("/proc")
) -> dict[DeviceUuid, tuple[DeviceUser, ...]]:
    """Of each device the processes that have one of its files open, but for this one and those of `beside`.

    A device none of whose files is there is left out.
    """
    owners: dict[_Identity, list[DeviceUuid]] = {}
    found: dict[DeviceUuid, list[int]] = {}
    names: set[str] = set()
    for uuid, paths in nodes.items():
        for path in paths:
            if (identity := _identity(path)) is not None:
                owners.setdefault(identity, []).append(uuid)
                found.setdefault(uuid, [])
                names.add(os.path.realpath(path))
    not_asked = {os.getpid(), *beside}
    for entry in proc.iterdir() if owners else ():
        if not entry.name.isdecimal() or int(entry.name) in not_asked:
            continue
        for uuid in {uuid for identity in _open_files(entry, names) for uuid in owners.get(identity, ())}:
            found[uuid].append(int(entry.name))
    return {uuid: tuple(map(DeviceUser, sorted(pids))) for uuid, pids in found.items()}


def _open_files(process: Path, names: Collection[str]) -> set[_Identity]:
    """What a process has open of what may be a device."""
    found = set()
    try:
        for entry in os.listdir(process / "fd"):
            link = f"{process}/fd/{entry}"
            if _may_be_device(link, names) and (identity := _identity(link)) is not None:
                found.add(identity)
    except OSError:
        pass  # it has ended, or is another user's
    return found


def _may_be_device(link: str, names: Collection[str]) -> bool:
    try:
        target = os.readlink(link)
    except OSError:
        return False  # closed meanwhile
    return target.startswith("/dev/") or target in names


def _identity(path: str) -> _Identity | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return "chr" if stat.S_ISCHR(status.st_mode) else "blk", status.st_rdev, 0
    return "file", status.st_dev, status.st_ino
