"""A full disk is an event, not a crash."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bursar.agent.checkpoint import Checkpoint, DiskFull
from bursar.agent.devices.health import HealthRecord
from bursar.agent.disk import Ballast, commit_patiently
from bursar.agent.state import DeviceHealthSaved
from bursar.core.ids import DeviceUuid


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def error(self, text: str, **_: Any) -> None:
        self.lines.append(text)

    warning = error


def large(name: str) -> DeviceHealthSaved:
    return DeviceHealthSaved(HealthRecord(DeviceUuid(name), reason="x" * 100_000))


def limit(checkpoint: Checkpoint, more_pages: int) -> None:
    """No more room than this: SQLite then answers as it does on a full disk."""
    (pages,) = checkpoint._db.execute("PRAGMA page_count").fetchone()
    checkpoint._db.execute(f"PRAGMA max_page_count={pages + more_pages}")


def test_a_full_disk_has_an_error_of_its_own_and_leaves_the_checkpoint_as_it_was(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "checkpoint.db")
    before = checkpoint.load()
    limit(checkpoint, 2)
    with pytest.raises(DiskFull, match="full"):
        checkpoint.write([large("GPU-1")])
    assert checkpoint.load() == before


async def test_a_commit_waits_for_room_and_says_so_once(tmp_path: Path) -> None:
    checkpoint, log = Checkpoint(tmp_path / "checkpoint.db"), Log()
    ballast = Ballast(tmp_path, 2**20)
    assert (tmp_path / "ballast").stat().st_blocks * 512 >= 2**20
    limit(checkpoint, 2)
    committing = asyncio.create_task(commit_patiently(checkpoint, ballast, [large("GPU-1")], log))
    while len(log.lines) < 2:
        await asyncio.sleep(0.01)
    assert "reserve" in log.lines[0] and not (tmp_path / "ballast").exists()
    assert "until there is room" in log.lines[1] and not committing.done()
    limit(checkpoint, 1000)
    await asyncio.wait_for(committing, 10)
    assert log.lines[2:] == ["there is room on the disk again"]
    assert DeviceUuid("GPU-1") in checkpoint.load().health


def test_a_ballast_that_does_not_fit_is_not_left_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    assert not Ballast(tmp_path, 2**20).take()
    assert not (tmp_path / "ballast").exists()
