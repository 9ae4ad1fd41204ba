"""Our own input and terminal: read by a thread, raw while a program elsewhere has the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import threading
import tty
from collections.abc import Iterator

_READ_BYTES = 16 * 1024


def is_terminal() -> bool:
    """Whether stdin is a terminal."""
    try:
        return os.isatty(0)
    except OSError:
        return False


def size() -> tuple[int, int]:
    """Rows and columns; a usual size where they are not known."""
    for descriptor in (1, 0, 2):
        with contextlib.suppress(OSError):
            found = os.get_terminal_size(descriptor)
            if found.lines and found.columns:
                return found.lines, found.columns
    return 24, 80


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Every key goes to the program, Ctrl-C too; as before at the end."""
    before = termios.tcgetattr(0)
    try:
        # What was typed ahead is the program's.
        tty.setraw(0, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        sys.stdout.flush()


class StandardInput:
    """Reads descriptor 0; in a daemon thread, because a read of a terminal cannot be cancelled."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._read: asyncio.Queue[bytes] = asyncio.Queue()
        self._wanted = threading.Semaphore(1)
        threading.Thread(target=self._serve, daemon=True, name="bursar-input").start()

    async def read(self) -> bytes:
        """The next bytes; none at the end."""
        data = await self._read.get()
        self._wanted.release()
        return data

    def _serve(self) -> None:
        data = b"-"
        while data:
            # One piece ahead at most: who is slow to take must not make us hold everything.
            self._wanted.acquire()
            try:
                data = os.read(0, _READ_BYTES)
            except OSError:
                data = b""
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._read.put_nowait, data)
