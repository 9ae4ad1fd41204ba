"""A task's outputs on our own: bytes as they are, written by threads, so that a slow reader delays nothing else."""

from __future__ import annotations

import asyncio
import os
import queue
import select
import threading

from bursar.cli.problems import say


class OutputClosed(Exception):
    """Nobody reads our stdout any more."""


class StandardStreams:
    """Writes task output to file descriptors 1 and 2."""

    def __init__(self) -> None:
        self._writers = {1: _Writer(1), 2: _Writer(2)}

    async def write(self, stream: int, data: bytes) -> None:
        """Write all of `data` to stdout (1) or stderr (2). Raises OutputClosed for stdout; a closed stderr is ignored."""
        error = await self._writers[stream].write(data)
        if error is not None and stream == 1:
            raise OutputClosed(str(error))

    @property
    def is_blocked(self) -> bool:
        """Whether a reader of ours is slow at the moment."""
        return any(writer.busy for writer in self._writers.values())

    def say_skipped(self, stream: int, count: int) -> None:
        """Tell of output that the agent no longer keeps."""
        if not count:
            say("bursar: the log was interrupted; some output may be missing (without --tail none is)")
            return
        say(f"bursar: {count} bytes of std{'out' if stream == 1 else 'err'} are no longer kept and were skipped")


class _Writer:
    """One descriptor and one thread; a daemon, so that a reader that never reads cannot keep us."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._jobs: queue.SimpleQueue[tuple[bytes, asyncio.AbstractEventLoop, asyncio.Future[OSError | None]]] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        self.busy = False

    async def write(self, data: bytes) -> OSError | None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, daemon=True, name=f"bursar-output-{self._descriptor}")
            self._thread.start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[OSError | None] = loop.create_future()
        self.busy = True
        self._jobs.put((data, loop, done))
        try:
            return await done
        finally:
            self.busy = False

    def _serve(self) -> None:
        while True:
            data, loop, done = self._jobs.get()
            error: OSError | None = None
            try:
                _write_all(self._descriptor, data)
            except OSError as problem:
                error = problem
            try:
                loop.call_soon_threadsafe(lambda done=done, error=error: done.done() or done.set_result(error))  # type: ignore[misc]
            except RuntimeError:
                return  # The loop is over.


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            # Somebody made the terminal or pipe non-blocking.
            select.select([], [descriptor], [])
