"""A full disk is an event, not a crash: the agent waits for room, with some kept in reserve for its own records."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bursar.agent.checkpoint import Checkpoint, DiskFull

#: Kept free for the checkpoint by a file that is removed when the disk is full: enough for some thousand records.
BALLAST_BYTES = 4 * 2**20
RETRY_S = 1.0


class Ballast:
    """Room that only this agent can make."""

    def __init__(self, directory: Path, size_bytes: int = BALLAST_BYTES) -> None:
        self._path = directory / "ballast"
        self._size_bytes = size_bytes
        self.take()

    def take(self) -> bool:
        """Take the room, where it is not taken; False where there is none."""
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(descriptor).st_blocks * 512 < self._size_bytes:
                    os.posix_fallocate(descriptor, 0, self._size_bytes)
            finally:
                os.close(descriptor)
        except OSError:
            # Half a ballast would only take what others wait for.
            self.drop()
            return False
        return True

    def drop(self) -> bool:
        """Give the room up; False where there was none."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True


async def commit_patiently(checkpoint: Checkpoint, ballast: Ballast, records: Sequence[object], log: Any) -> None:
    """Make records durable, however long that takes where the disk is full: until then nothing of them is visible.

    Raises BursarError for what waiting does not help.
    """
    waited = False
    while True:
        try:
            await checkpoint.commit(records)
        except DiskFull as error:
            if ballast.drop():
                log.error("the disk is full: the reserve for the checkpoint is used now; make room", reason=str(error))
                continue
            if not waited:
                log.error(
                    "the disk is full: nothing is begun or reported until there is room; tasks run on",
                    reason=str(error),
                )
            waited = True
            await asyncio.sleep(RETRY_S)
        else:
            if waited:
                log.warning("there is room on the disk again")
            return
