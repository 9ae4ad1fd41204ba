"""From the volumes that a task names to directories of the host that it may have: rules of the agent, safely resolved.

A path is first followed to its end, through every `..` and symbolic link, and then has to lie below a root. So a link that
stays inside is fine, and one that leads out is refused as plainly as a path that is written so.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from bursar.agent.containers.runtime import LaunchFailed, Mount
from bursar.agent.kept_volumes import KeptVolumes
from bursar.core.errors import InvalidText
from bursar.core.ids import DeviceUuid
from bursar.core.surroundings import Volume, VolumeKind, VolumeMode, mode_text, parse_mode
from bursar.core.tasks import StatusReason
from bursar.core.volumes import read_volume


@dataclass(frozen=True, slots=True)
class VolumeRoot:
    """Host paths below `path` may be mounted, at most so freely."""

    path: Path
    mode: VolumeMode = VolumeMode.UNSPECIFIED


def parse_volume_roots(items: Sequence[str]) -> tuple[VolumeRoot, ...]:
    """Read `/data`, `/data:ro`, `/scratch:rw`; `ro` where nothing is said. Raises InvalidText."""
    roots = []
    for item in items:
        text, _, mode = item.rpartition(":") if ":" in item else (item, "", "ro")
        if not text.startswith("/") or not text.strip("/"):
            raise InvalidText(
                f"{item!r} is not a root for volumes",
                "write an absolute path other than /, such as /data, /scratch:rw or /projects:rw-delete",
            )
        roots.append(VolumeRoot(Path(text), parse_mode(mode)))
    return tuple(roots)


@dataclass(frozen=True, slots=True)
class VolumeRules:
    """What this agent lets tasks mount."""

    #: Directories of the named volumes, one per role; made when needed.
    named: Path
    roots: tuple[VolumeRoot, ...] = ()
    #: The one directory under which shared folders lie; None: there are none.
    folders: VolumeRoot | None = None
    #: The persistent volumes; None: there are none.
    kept: KeptVolumes | None = None

    def mounts(
        self,
        volumes: Sequence[Volume],
        role: str,
        owner: tuple[int, int] | None = None,
        granted: Sequence[DeviceUuid] = (),
    ) -> tuple[Mount, ...]:
        """What to mount for a task that was `granted` persistent volumes; a new named or empty persistent one belongs to `owner`.

        Blocks. Raises LaunchFailed (VOLUME_REFUSED).
        """
        return tuple(self._mount(volume, role, owner, granted) for volume in volumes)

    def _mount(self, volume: Volume, role: str, owner: tuple[int, int] | None, granted: Sequence[DeviceUuid]) -> Mount:
        if volume.kind is VolumeKind.PERSISTENT:
            source = self._persistent(volume, owner, granted)
        elif volume.kind is VolumeKind.NAMED:
            source = self._named(volume, role, owner)
        elif volume.kind is VolumeKind.SHARED_FOLDER:
            if self.folders is None:
                raise _refused(volume, "this agent has no shared folders; start it with --shared-folders DIR")
            source = _resolve(volume, self.folders.path / volume.source)
            _permit(volume, source, (self.folders,), "the directory of shared folders (--shared-folders)")
        else:
            if not self.roots:
                raise _refused(volume, "this agent mounts no path of its host; start it with --volume-roots DIR[:rw]")
            source = _resolve(volume, Path(volume.source))
            _permit(volume, source, self.roots, "the roots that this agent allows (--volume-roots)")
        return Mount(os.fspath(source), volume.mounted_at, read_only=volume.mode is VolumeMode.UNSPECIFIED)

    def _persistent(self, volume: Volume, owner: tuple[int, int] | None, granted: Sequence[DeviceUuid]) -> Path:
        meant = [uuid for uuid in granted if read_volume(uuid).volume_id == volume.source]
        if not meant or self.kept is None:
            raise _refused(volume, "the task was not given it")
        if len(meant) > 1:
            names = ", ".join(str(read_volume(uuid)) for uuid in meant)
            raise _refused(volume, f"the task was given several of that id, and which it means cannot be told: {names}")
        (uuid,) = meant
        path = self.kept.path_of(uuid)
        if not path.is_dir() or path.is_symlink():
            raise _refused(volume, f"its data is gone: {path} is not there; `bursar volume ls` says more")
        if owner is not None:
            try:
                self.kept.own(uuid, owner)
            except OSError as error:
                raise _refused(volume, f"it cannot be given to user {owner[0]}: {error.strerror or error}") from error
        return path

    def _named(self, volume: Volume, role: str, owner: tuple[int, int] | None) -> Path:
        # A role is a path of names; `%` keeps two roles from ever meeting in one directory.
        path = self.named / f"role-{quote(role, safe='')}" / volume.source
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o755)
                if owner is not None:
                    os.chown(path, *owner)
        except OSError as error:
            raise _refused(volume, f"its directory cannot be made: {error.strerror or error}") from error
        return path


def _resolve(volume: Volume, path: Path) -> Path:
    try:
        return Path(os.path.realpath(path, strict=True))
    except OSError as error:
        raise _refused(volume, f"{path} cannot be had on this agent: {error.strerror or error}") from error


def _permit(volume: Volume, source: Path, roots: Sequence[VolumeRoot], what: str) -> None:
    """Raise LaunchFailed unless the resolved path lies below a root that allows the mode."""
    inside = [root for root in roots if source.is_relative_to(os.path.realpath(root.path))]
    if not inside:
        allowed = ", ".join(os.fspath(root.path) for root in roots)
        led = f", which leads to {source}," if os.fspath(source) != volume.source else ""
        raise _refused(volume, f"{volume.source}{led} is not below {what}: {allowed}")
    best = max(root.mode for root in inside)
    if volume.mode > best:
        raise _refused(volume, f"it is allowed {mode_text(best)} at most, and {mode_text(volume.mode)} was asked for")


def _refused(volume: Volume, why: str) -> LaunchFailed:
    return LaunchFailed(StatusReason.VOLUME_REFUSED, f"volume {volume.source!r} at {volume.mounted_at}: {why}")
