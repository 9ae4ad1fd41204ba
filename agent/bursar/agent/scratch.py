"""How full sandboxes are. No file system that every machine has can hold a directory to a size, so the agent looks, and ends who took more."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

#: Between two looks; a sandbox may grow beyond its bound by what can be written in that time.
LOOK_S = 5.0


def bytes_below(directory: Path, enough: int) -> int:
    """What the files below a directory occupy; may stop early once it is more than `enough`. Blocks; follows no link.

    Sparse files count as what they occupy, hard links once. What vanishes meanwhile does not count.
    """
    total = 0
    seen: set[tuple[int, int]] = set()
    todo = [os.fspath(directory)]
    while todo and total <= enough:
        with contextlib.suppress(OSError), os.scandir(todo.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                        identity = (status.st_dev, status.st_ino)
                        if identity in seen:
                            continue
                        seen.add(identity)
                    total += status.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
    return total
