"""A directory that belongs to one process at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from bursar.core.errors import BursarError


class DirectoryLock:
    """Held until closed; the kernel lets go of it when the process dies, however it dies."""

    def __init__(self, path: Path, program: str) -> None:
        """Make the directory and lock it. Raises BursarError where that cannot be, or another process has it."""
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BursarError(
                f"the work directory {path} cannot be used: {error.strerror or error}",
                "choose one that this user may write to, with --work-dir",
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 100, 0).decode("ascii", "replace").strip()
            os.close(self._file)
            raise BursarError(
                f"the work directory {path} is in use by another {program}" + (f" (pid {holder})" if holder else ""),
                f"stop that {program}, or give this one another --work-dir",
            ) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode("ascii"), 0)

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._file)
