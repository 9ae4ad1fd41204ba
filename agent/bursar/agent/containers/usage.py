"""What a task uses, as lines of JSON while somebody looks; and files of plain processes as tar."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import psutil

from bursar.runtime import archives

INTERVAL_S = 1.0


def stats_work(sample: Callable[[], dict[str, int]]) -> Callable[[BinaryIO, BinaryIO], None]:
    """The work of a session that writes a sample per second until nobody reads it; times in nanoseconds, totals since the start."""

    def work(source: BinaryIO, target: BinaryIO) -> None:
        while True:
            figures = {"time_ns": time.monotonic_ns(), **sample()}
            target.write(json.dumps(figures).encode() + b"\n")
            target.flush()
            time.sleep(INTERVAL_S)

    return work


def session_usage(session_id: int) -> dict[str, int]:
    """The sum over the processes of one session (in the kernel's sense). What ended meanwhile is not counted any more."""
    total = {"cpu_ns": 0, "mem_bytes": 0, "mem_limit_bytes": 0, "pids": 0, "read_bytes": 0, "written_bytes": 0}
    for pid in _members(session_id):
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            times = process.cpu_times()
            total["cpu_ns"] += int((times.user + times.system) * 1_000_000_000)
            total["mem_bytes"] += process.memory_info().rss
            total["pids"] += process.num_threads()
            counters = process.io_counters()
            total["read_bytes"] += counters.read_bytes
            total["written_bytes"] += counters.write_bytes
    return total


def _members(session_id: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                if int(fields[3]) == session_id:
                    found.append(int(entry.name))
    return found


def copy_out(sandbox: Path, path: str) -> Callable[[BinaryIO, BinaryIO], None]:
    """The work of a session that sends a path of the host as tar."""

    def work(source: BinaryIO, target: BinaryIO) -> None:
        archives.pack(sandbox / path, target)

    return work


def copy_in(sandbox: Path, path: str) -> Callable[[BinaryIO, BinaryIO], None]:
    """The work of a session that unpacks a tar into a directory of the host; nothing in it leads out of that."""

    def work(source: BinaryIO, target: BinaryIO) -> None:
        directory = sandbox / path
        if not directory.is_dir():
            raise OSError(f"no such directory: {directory}")
        try:
            archives.unpack(source, directory)
        except archives.ArchiveRefused as error:
            raise OSError(f"the archive cannot be unpacked: {error}") from error

    return work
