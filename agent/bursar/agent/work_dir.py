"""The agent's work directory: one agent's alone, and how it is laid out."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from bursar.agent.containers.runtime import ContainerId
from bursar.core.errors import BursarError
from bursar.runtime.lock import DirectoryLock


class WorkDir:
    """A locked work directory. The kernel lets go of the lock when the agent dies, however it dies."""

    def __init__(self, path: Path) -> None:
        """Make the directory and lock it. Raises BursarError where that cannot be, or another agent has it."""
        self.path = path.absolute()
        self._lock = DirectoryLock(self.path, "agent")
        self._sandboxes = self.path / "sandboxes"
        try:
            self._sandboxes.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            self._lock.close()
            raise BursarError(
                f"the work directory {self.path} cannot be used: {error.strerror or error}",
                "choose one that this user may write to, with --work-dir",
            ) from error

    @property
    def checkpoint(self) -> Path:
        """The file of what must outlive the agent."""
        return self.path / "checkpoint.db"

    @property
    def volumes(self) -> Path:
        """Named volumes, a directory per role; kept when tasks end."""
        return self.path / "volumes"

    @property
    def kept_volumes(self) -> Path:
        """Persistent volumes: their data, and nothing else."""
        return self.path / "persistent"

    @property
    def fetched(self) -> Path:
        """Files that tasks have fetched, by their checksums."""
        return self.path / "fetched"

    @property
    def executors(self) -> Path:
        """Sockets of executors, each in a directory of its own."""
        return self.path / "executors"

    @property
    def simulated_faults(self) -> Path:
        """Where faults of simulated devices are ordered."""
        return self.path / "simulated-faults"

    def sandbox(self, container_id: ContainerId) -> Path:
        """A task's own directory; may not exist."""
        return self._sandboxes / container_id

    def make_sandbox(self, container_id: ContainerId) -> Path:
        """A task's own directory, empty. Raises OSError."""
        path = self.sandbox(container_id)
        path.mkdir(mode=0o755, exist_ok=True)
        return path

    def remove_sandbox(self, container_id: ContainerId) -> None:
        """Remove what a task left. Blocks; errors are ignored: `sweep` tries again at the next start."""
        shutil.rmtree(self.sandbox(container_id), ignore_errors=True)

    def sweep(self, keep: Collection[ContainerId]) -> int:
        """Remove the sandboxes of nobody and say how many there were. Blocks."""
        found = [ContainerId(path.name) for path in self._sandboxes.iterdir()]
        strays = [container_id for container_id in found if container_id not in keep]
        for container_id in strays:
            self.remove_sandbox(container_id)
        return len(strays)

    def close(self) -> None:
        """Let another agent have it."""
        self._lock.close()
