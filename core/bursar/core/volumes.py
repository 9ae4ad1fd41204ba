"""Persistent volumes: disk that is reserved to a role, with a name, so that it outlives the tasks that write on it (VOL-2).

In books and offers a volume is a device of the kind `volumes`, of which the name alone says everything:
`volumes/BYTES/ROLE/ID`, the role in percent-encoding. What it takes is `disk`, and counts as that wherever something is counted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import quote, unquote

from bursar.core.device_names import VOLUMES, is_volume
from bursar.core.ids import DeviceUuid
from bursar.core.resources import MAX_AMOUNT, Resources

#: Of an agent: it makes, keeps and removes volumes.
PERSISTENT_VOLUMES = "PERSISTENT_VOLUMES"

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
#: Of a file name on every file system.
MAX_ROLE_BYTES = 255


class VolumeName(NamedTuple):
    """What the name of a volume says."""

    role: str
    volume_id: str
    size_bytes: int

    @property
    def key(self) -> tuple[str, str]:
        """What is there once on an agent."""
        return self.role, self.volume_id

    def __str__(self) -> str:
        return f"{self.volume_id} of {self.role}"


def volume_device(role: str, volume_id: str, size_bytes: int) -> DeviceUuid:
    """The name of a volume in books and offers."""
    return DeviceUuid(f"{VOLUMES}/{size_bytes}/{quote(role, safe='')}/{volume_id}")


def read_volume(uuid: str) -> VolumeName:
    """The inverse of `volume_device`. Raises ValueError for what is no such name."""
    kind, _, rest = uuid.partition("/")
    size, _, rest = rest.partition("/")
    role, _, volume_id = rest.partition("/")
    if not size.isascii() or not size.isdecimal():
        raise ValueError(f"{uuid!r} is not the name of a volume")
    name = VolumeName(unquote(role), volume_id, int(size))
    if kind != VOLUMES or volume_problem(volume_id, name.size_bytes) or volume_device(*name) != uuid or not role:
        raise ValueError(f"{uuid!r} is not the name of a volume")
    return name


def volumes_in(devices: Iterable[DeviceUuid]) -> list[DeviceUuid]:
    """The volumes among devices, sorted."""
    return sorted(uuid for uuid in devices if is_volume(uuid))


def without_volumes(part: Resources) -> Resources:
    """The rest of it; the same value where there is nothing else, as it mostly is."""
    volumes = volumes_in(part.devices) if part.devices else ()
    return Resources(part.scalars, part.ports, part.devices.difference(volumes)) if volumes else part


def volumes_by_id(devices: Iterable[DeviceUuid]) -> dict[str, DeviceUuid]:
    """What a task means by an id: of volumes of several roles the one of the deepest role. All are offered to one role, on the way to it."""
    ranked = sorted(volumes_in(devices), key=lambda uuid: read_volume(uuid).role.count("/"))
    return {read_volume(uuid).volume_id: uuid for uuid in ranked}


def mounted_volumes(
    devices: Iterable[DeviceUuid], volume_ids: Iterable[str], named: Iterable[DeviceUuid]
) -> list[DeviceUuid] | str:
    """The volumes that a task mounts among `devices`, or the first id that is not there; one that it `named` is meant, and no other."""
    there = frozenset(devices)
    by_id = volumes_by_id(there) | {uuid.rpartition("/")[2]: uuid for uuid in volumes_in(named)}
    found = []
    for volume_id in volume_ids:
        uuid = by_id.get(volume_id)
        if uuid is None or uuid not in there:
            return volume_id
        found.append(uuid)
    return found


def volume_problem(volume_id: str, size_bytes: int) -> str:
    """Say why there cannot be such a volume, or nothing."""
    if not _ID.fullmatch(volume_id):
        return f"{volume_id!r} is not the id of a volume: letters, digits, '.', '_' and '-', not more than 64"
    if size_bytes <= 0:
        return f"a volume must have a size above zero, not {size_bytes} bytes"
    if size_bytes > MAX_AMOUNT:
        return f"a volume of more than {MAX_AMOUNT} bytes, the largest amount there is, cannot be"
    return ""


def role_problem_of(role: str) -> str:
    """Say why a role can have no volumes, or nothing: its directory could not be made."""
    if len(quote(role, safe="")) > MAX_ROLE_BYTES:
        return f"the role {role[:40]!r}… is too long for the name of a directory"
    return ""
