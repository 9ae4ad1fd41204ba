"""What a container gets besides its resources and devices: limits, a user, volumes; and what of it can be right.

Mirrors `bursar/v1/containers.proto`. Nothing here gives a task more than a plain container has: there is no privileged mode
and no host namespace to ask for (design.md §11).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from bursar.core.errors import InvalidText

DEFAULT_PIDS_LIMIT = 4096
#: Of the engine, where a task asks for none.
DEFAULT_SHM_BYTES = 64 * 2**20
#: Where a shared folder is mounted unless the task says otherwise (B-06).
FOLDERS_MOUNT = "/mnt/bursar/folders"
#: What a container may do at most; of Docker's own default set, what ordinary programs need as root.
KEPT_CAPABILITIES = frozenset(
    {"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID"}
)
MAX_VOLUMES = 64

_USER = re.compile(r"(\d{1,10})(?::(\d{1,10}))?", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)
_CAPABILITY = re.compile(r"[A-Z][A-Z_]{1,40}", re.ASCII)
#: Where the container's own file systems and ours are.
_RESERVED_TARGETS = ("/", "/proc", "/sys", "/dev", "/mnt/bursar/sandbox")
_MAX_ID = 2**32 - 2


@dataclass(frozen=True, slots=True)
class ContainerSettings:
    """Limits and rights; mirrors `bursar.v1.ContainerSettings`. 0 and empty mean the default."""

    shm_bytes: int = 0
    pids_limit: int = 0
    io_read_bytes_per_s: int = 0
    io_write_bytes_per_s: int = 0
    user: str = ""
    drop_capabilities: tuple[str, ...] = ()

    @property
    def owner(self) -> tuple[int, int] | None:
        """Uid and gid of `user`; None where it is the image's own. A uid alone is its own group."""
        if not self.user:
            return None
        uid, _, gid = self.user.partition(":")
        return int(uid), int(gid or uid)


class VolumeKind(IntEnum):
    """Where a volume comes from; mirrors `bursar.v1.VolumeKind`."""

    UNSPECIFIED = 0
    HOST_PATH = 1
    NAMED = 2
    SHARED_FOLDER = 3
    PERSISTENT = 4


class VolumeMode(IntEnum):
    """What a task may do with a volume, each including those before; mirrors `bursar.v1.VolumeMode`."""

    UNSPECIFIED = 0
    READ_WRITE = 1
    READ_WRITE_DELETE = 2


@dataclass(frozen=True, slots=True)
class Volume:
    """A directory or file of the host inside the container; mirrors `bursar.v1.Volume`."""

    kind: VolumeKind
    source: str
    target: str = ""
    mode: VolumeMode = VolumeMode.UNSPECIFIED

    @property
    def mounted_at(self) -> str:
        """Path in the container."""
        return self.target or f"{FOLDERS_MOUNT}/{self.source}"


_MODES = {"ro": VolumeMode.UNSPECIFIED, "rw": VolumeMode.READ_WRITE, "rw-delete": VolumeMode.READ_WRITE_DELETE}


def mode_text(mode: VolumeMode) -> str:
    """`ro`, `rw` or `rw-delete`."""
    return next(text for text, known in _MODES.items() if known is mode)


def parse_mode(text: str) -> VolumeMode:
    """Read `ro`, `rw` or `rw-delete`. Raises InvalidText."""
    if text not in _MODES:
        raise InvalidText(f"{text!r} is not the mode of a volume", "write ro, rw or rw-delete")
    return _MODES[text]


def parse_volume(text: str) -> Volume:
    """Read `/HOST/PATH:/TARGET[:MODE]`, `NAME:/TARGET[:MODE]`, `folder/NAME[:/TARGET][:MODE]` or `volume/ID:/TARGET[:MODE]`.

    Raises InvalidText.
    """
    parts = text.split(":")
    mode = VolumeMode.UNSPECIFIED
    if len(parts) > 1 and not parts[-1].startswith("/"):
        mode = parse_mode(parts.pop())
    source, target = parts[0], ":".join(parts[1:])
    if source.startswith("/"):
        volume = Volume(VolumeKind.HOST_PATH, source, target, mode)
    elif source.startswith("folder/"):
        volume = Volume(VolumeKind.SHARED_FOLDER, source.removeprefix("folder/"), target, mode)
    elif source.startswith("volume/"):
        volume = Volume(VolumeKind.PERSISTENT, source.removeprefix("volume/"), target, mode)
    else:
        volume = Volume(VolumeKind.NAMED, source, target, mode)
    if problem := volume_problem(volume):
        raise InvalidText(
            f"volume {text!r}: {problem}",
            "write /host/path:/target, name:/target, folder/name or volume/id:/target, each with :ro, :rw or :rw-delete after it",
        )
    return volume


def settings_problem(settings: ContainerSettings, mem_bytes: int) -> tuple[str, str] | None:
    """Say what is wrong with a container's settings as (field, problem), or nothing; `mem_bytes` 0 means no limit."""
    for field in ("shm_bytes", "pids_limit", "io_read_bytes_per_s", "io_write_bytes_per_s"):
        if getattr(settings, field) < 0:
            return field, "must not be negative"
    if mem_bytes and settings.shm_bytes > mem_bytes:
        return (
            "shm_bytes",
            f"{settings.shm_bytes} bytes do not fit into the {mem_bytes} bytes of memory asked for, of which they are a part",
        )
    if settings.user:
        if not _USER.fullmatch(settings.user):
            return "user", f"{settings.user!r} is not UID or UID:GID in numbers; names differ from image to image"
        if max(settings.owner or ()) > _MAX_ID:
            return "user", f"{settings.user!r} is larger than any id of a user or group"
    for name in settings.drop_capabilities:
        if not _CAPABILITY.fullmatch(name) or name.startswith("CAP_"):
            return "drop_capabilities", f"{name!r} is not a capability, such as NET_BIND_SERVICE or ALL"
    return None


def volume_problem(volume: Volume) -> str:
    """Say what is wrong with a volume whatever the agent's rules, or nothing."""
    source, target = volume.source, volume.mounted_at
    if volume.kind is VolumeKind.HOST_PATH:
        if problem := _path_problem(source):
            return f"the source {source!r} {problem}"
    elif volume.kind is VolumeKind.UNSPECIFIED:
        return "it does not say what kind it is: a host path, a name or a shared folder"
    elif not _NAME.fullmatch(source):
        return f"{source!r} is not a name: letters, digits, '.', '_' and '-', not more than 128, no '/' and no '..'"
    if not volume.target and volume.kind is not VolumeKind.SHARED_FOLDER:
        return "it does not say where in the container: a path such as /data"
    if problem := _path_problem(target):
        return f"the target {target!r} {problem}"
    for reserved in _RESERVED_TARGETS:
        if target == reserved or (reserved != "/" and target.startswith(f"{reserved}/")):
            return f"the target {target!r} is the container's own: choose another, such as /data"
    return ""


def volumes_problem(volumes: Sequence[Volume]) -> tuple[str, str] | None:
    """Say what is wrong with a task's volumes as (field, problem), or nothing."""
    if len(volumes) > MAX_VOLUMES:
        return "volumes", f"{len(volumes)} are more than {MAX_VOLUMES}"
    targets: set[str] = set()
    persistent = volumes_named(volumes)
    for number, volume in enumerate(volumes):
        if volume.kind is VolumeKind.PERSISTENT and persistent.count(volume.source) > 1:
            return f"volumes[{number}]", f"volume {volume.source!r} is mounted twice: mount it once"
        if problem := volume_problem(volume):
            return f"volumes[{number}]", problem
        if volume.mounted_at in targets:
            return f"volumes[{number}]", f"another one is mounted at {volume.mounted_at!r} already"
        targets.add(volume.mounted_at)
    return None


def volumes_named(volumes: Sequence[Volume]) -> tuple[str, ...]:
    """The ids of the persistent volumes among what a task mounts."""
    return tuple(volume.source for volume in volumes if volume.kind is VolumeKind.PERSISTENT)


def _path_problem(path: str) -> str:
    if "\x00" in path or any(ord(character) < 32 for character in path):
        return "holds a control character"
    if not path.startswith("/"):
        return "is not an absolute path"
    if len(path) > 1 and any(part in ("", ".", "..") for part in path[1:].split("/")):
        return "holds '.', '..' or an empty part; write it plainly"
    if len(path.encode("utf-8", "surrogatepass")) > 4095:
        return "is longer than 4095 bytes"
    return ""


def process_problem(settings: ContainerSettings | None, volumes: Sequence[Volume]) -> tuple[str, str] | None:
    """Say as (field, problem) what of a task needs containers; a plain process cannot be held to it."""
    if settings is not None and settings != ContainerSettings():
        default = ContainerSettings()
        field = next(name for name in ContainerSettings.__slots__ if getattr(settings, name) != getattr(default, name))
        return (
            f"container.{field}",
            "plain processes cannot be held to it: leave it out, or use an agent that runs containers",
        )
    targets = [volume.mounted_at for volume in volumes]
    for number, volume in enumerate(volumes):
        if any(volume.mounted_at.startswith(f"{target}/") for target in targets):
            return (
                f"volumes[{number}].target",
                "plain processes find volumes by links, so that none can be inside another: choose a path beside the others",
            )
        if volume.kind is not VolumeKind.PERSISTENT:
            return (
                "volumes",
                "plain processes see the machine as it is: leave them out, or use an agent that runs containers",
            )
        if volume.mode is VolumeMode.UNSPECIFIED:
            return (
                f"volumes[{number}]",
                "plain processes cannot be kept from writing: mount the volume rw, or use an agent that runs containers",
            )
    return None
