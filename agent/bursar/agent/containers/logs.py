"""What tasks print: two files in the sandbox, kept below a size, and how they are read while the task still writes.

A task writes to `stdout` and `stderr` in append mode and knows nothing of us. When a file outgrows its limit its head is
dropped (`LogFiles.cut`): a hole is punched where the file system can do that, so that no byte of the writer is lost and
offsets stay; elsewhere the file is truncated and its tail written back. A small record beside it, `.stdout.cut`, says what
was dropped. Positions are absolute, counted from the first byte that the task ever wrote.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import functools
import logging
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

log = logging.getLogger(__name__)

#: A file that outgrows this loses its head, and keeps half of this at least.
DEFAULT_LOG_LIMIT_BYTES = 10 * 2**20
#: Holes are made of whole blocks.
_BLOCK = 4096
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2


class LogStream(StrEnum):
    """Which of a task's outputs; the value is the name of its file in the sandbox."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class LogChunk:
    """A piece of one output."""

    stream: LogStream
    data: bytes
    #: Bytes before `data` that are no longer kept.
    skipped_bytes: int = 0


@dataclass(frozen=True, slots=True)
class _Cut:
    """What is left of an output, in absolute positions."""

    #: Position of the file's byte 0.
    base: int = 0
    #: The first byte that is kept; at least `base`.
    first: int = 0


class LogFile:
    """One output of one task."""

    def __init__(self, sandbox: Path, stream: LogStream) -> None:
        self.stream = stream
        self.path = sandbox / stream.value
        self._record = sandbox / f".{stream.value}.cut"
        self._start = sandbox / f".{stream.value}.start"

    def cut(self, limit_bytes: int) -> bool:
        """Drop the head of a file that has outgrown the limit; say whether that was so. OSErrors are logged."""
        try:
            if os.stat(self.path).st_size <= limit_bytes:
                return False
            return self._cut(limit_bytes)
        except FileNotFoundError:
            return False
        except OSError as error:
            log.warning("cannot keep %s below %d bytes: %s", self.path, limit_bytes, error)
            return False

    def _cut(self, limit_bytes: int) -> bool:
        cut = self._read_cut()
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            end = cut.base + os.fstat(fd).st_size
            if end - cut.first <= limit_bytes:
                return False
            first = max(cut.first, (end - limit_bytes // 2 - cut.base) // _BLOCK * _BLOCK + cut.base)
            # First the record: a reader skips bytes that are still there rather than read zeros for text.
            self._write_cut(_Cut(cut.base, first))
            if not _punch(fd, first - cut.base):
                tail = _read_all(fd, first - cut.base)
                os.ftruncate(fd, 0)
                os.write(fd, tail)
                self._write_cut(_Cut(first, first))
            return True
        finally:
            os.close(fd)

    def compact(self) -> None:
        """After the writer has ended: make the file consist of what is kept alone, so that people can read it."""
        cut = self._read_cut()
        if cut.first == cut.base:
            return
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            tail = _read_all(fd, cut.first - cut.base)
        finally:
            os.close(fd)
        temporary = self.path.with_name(f".{self.path.name}.new")
        temporary.write_bytes(tail)
        os.replace(temporary, self.path)
        self._write_cut(_Cut(cut.first, cut.first))

    def begin_run(self) -> None:
        """Another container of the same task begins to print here, after the last one."""
        _, end = self.extent()
        if end:
            self._start.write_text(str(end), encoding="ascii")

    def run_began_at(self) -> int:
        """Position at which the present container's own output begins."""
        try:
            return int(self._start.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def extent(self) -> tuple[int, int]:
        """Positions of the first byte kept and of the end."""
        cut = self._read_cut()
        try:
            end = cut.base + os.stat(self.path).st_size
        except FileNotFoundError:
            end = cut.first
        return cut.first, max(end, cut.first)

    def read(self, position: int, size: int) -> tuple[int, bytes]:
        """At most `size` bytes from `position` on, or from the first byte kept; with the position of the first one read.

        Raises OSError, except for a file that does not exist: that one is empty.
        """
        cut = self._read_cut()
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return position, b""
        try:
            end = cut.base + os.fstat(fd).st_size
            position = min(max(position, cut.first), max(end, cut.first))
            return position, os.pread(fd, size, position - cut.base)
        finally:
            os.close(fd)

    def _read_cut(self) -> _Cut:
        try:
            base, first = map(int, self._record.read_text(encoding="ascii").split())
        except (FileNotFoundError, ValueError):
            return _Cut()
        return _Cut(base, max(base, first))

    def _write_cut(self, cut: _Cut) -> None:
        temporary = self._record.with_name(f"{self._record.name}.new")
        temporary.write_text(f"{cut.base} {cut.first}\n", encoding="ascii")
        os.replace(temporary, self._record)


def log_files(sandbox: Path) -> tuple[LogFile, LogFile]:
    """Both outputs of a task."""
    return LogFile(sandbox, LogStream.STDOUT), LogFile(sandbox, LogStream.STDERR)


async def read_logs(
    sandbox: Path,
    *,
    ended: Callable[[], bool],
    follow: bool = False,
    tail_bytes: int | None = None,
    chunk_bytes: int = 64 * 1024,
    interval_s: float = 0.05,
) -> AsyncIterator[LogChunk]:
    """Read both outputs of a task, piece by piece; with `follow` until `ended()` and all was read.

    `tail_bytes` begins that far before the end of each output. Bytes that were cut off since are counted in the next piece;
    a piece without data tells of those at the very end. Raises OSError where a file cannot be read.
    """
    files = log_files(sandbox)
    positions: list[int] = []
    for file in files:
        first, end = file.extent()
        # All that is kept is asked for: what was cut off before is told, as bytes skipped. A tail skips nothing it wants.
        positions.append(0 if tail_bytes is None else max(first, end - tail_bytes))
    while True:
        over = ended() or not follow  # asked before reading: all that was written by then is read below
        quiet = True
        for number, file in enumerate(files):
            while True:
                position, data = file.read(positions[number], chunk_bytes)
                skipped = max(0, position - positions[number])
                positions[number] = position + len(data)
                if not data and not skipped:
                    break
                quiet = False
                yield LogChunk(file.stream, data, skipped)
                if len(data) < chunk_bytes:
                    break
        if over and quiet:
            return
        if quiet:
            await asyncio.sleep(interval_s)


def _read_all(fd: int, offset: int) -> bytes:
    parts = []
    while part := os.pread(fd, 1 << 20, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def _punch(fd: int, length: int) -> bool:
    """Give back the blocks before `length`; False where the file system cannot."""
    fallocate = _fallocate()
    if fallocate is None:
        return False
    while fallocate(fd, _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE, 0, length) != 0:
        number = ctypes.get_errno()
        if number == errno.EINTR:
            continue
        if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.ENODEV):
            return False
        raise OSError(number, os.strerror(number))
    return True


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    try:
        library = ctypes.CDLL(None, use_errno=True)
        function = getattr(library, "fallocate64", None) or library.fallocate
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    function.restype = ctypes.c_int

    def call(fd: int, mode: int, offset: int, length: int) -> int:
        return int(function(fd, mode, offset, length))

    return call
