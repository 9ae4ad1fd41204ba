"""What a task is told of its persistent volumes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bursar.agent.containers.runtime import Mount
from bursar.core.surroundings import Volume, VolumeKind

_OTHERS = re.compile(r"[^A-Z0-9]")


def volume_variables(volumes: Sequence[Volume], mounts: Sequence[Mount], runtime: str) -> dict[str, str]:
    """`BURSAR_VOLUME_ID`: the path at which the task finds each, the same in every runtime to whom reads it."""
    return {
        f"BURSAR_VOLUME_{_OTHERS.sub('_', volume.source.upper())}": mount.source
        if runtime == "process"
        else mount.target
        for volume, mount in zip(volumes, mounts, strict=False)
        if volume.kind is VolumeKind.PERSISTENT
    }
