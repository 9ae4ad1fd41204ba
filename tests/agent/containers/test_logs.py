# ruff: noqa: ASYNC230 - files are written here as a task would
"""Outputs below a limit, read while they are written."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bursar.agent.containers import logs
from bursar.agent.containers.logs import LogChunk, LogFile, LogStream, read_logs

OUT, ERR = LogStream.STDOUT, LogStream.STDERR


async def read(sandbox: Path, tail_bytes: int | None = None, chunk_bytes: int = 65536) -> list[LogChunk]:
    chunks = read_logs(sandbox, ended=lambda: True, tail_bytes=tail_bytes, chunk_bytes=chunk_bytes)
    return [chunk async for chunk in chunks]


@pytest.fixture(params=["hole", "truncation"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With a file system that can punch holes, and with one that cannot."""
    if request.param == "truncation":
        monkeypatch.setattr(logs, "_punch", lambda fd, length: False)
    return str(request.param)


async def test_reads_both_outputs_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "stdout").write_bytes(b"abcdef")
    (tmp_path / "stderr").write_bytes(b"xyz")
    assert await read(tmp_path, chunk_bytes=4) == [LogChunk(OUT, b"abcd"), LogChunk(OUT, b"ef"), LogChunk(ERR, b"xyz")]
    assert await read(tmp_path, tail_bytes=2) == [LogChunk(OUT, b"ef"), LogChunk(ERR, b"yz")]
    assert await read(tmp_path, tail_bytes=0) == []


async def test_nothing_printed_is_nothing_read(tmp_path: Path) -> None:
    assert await read(tmp_path) == []
    assert await read(tmp_path / "gone", tail_bytes=5) == []


async def test_a_file_that_outgrows_its_limit_keeps_its_tail(tmp_path: Path, how: str) -> None:
    content = bytes(range(256)) * 400
    (tmp_path / "stdout").write_bytes(content)
    file = LogFile(tmp_path, OUT)
    assert file.cut(50_000)
    assert not file.cut(50_000), "once is enough"
    (chunk,) = await read(tmp_path)
    assert content.endswith(chunk.data)
    assert 25_000 <= len(chunk.data) < 25_000 + 4096
    assert chunk.skipped_bytes == len(content) - len(chunk.data)
    assert (await read(tmp_path, tail_bytes=10)) == [LogChunk(OUT, content[-10:])]
    file.compact()
    assert (tmp_path / "stdout").read_bytes() == chunk.data
    assert await read(tmp_path) == [chunk]


async def test_cutting_again_and_again_while_it_is_written(tmp_path: Path, how: str) -> None:
    file = LogFile(tmp_path, OUT)
    written = b""
    with open(tmp_path / "stdout", "ab", buffering=0) as writer:
        for number in range(200):
            line = b"%06d " % number * 100
            writer.write(line)
            written += line
            file.cut(16_384)
    (chunk,) = await read(tmp_path)
    assert written.endswith(chunk.data) and chunk.skipped_bytes + len(chunk.data) == len(written)
    assert len(chunk.data) <= 16_384
    assert (tmp_path / "stdout").stat().st_blocks * 512 <= 16_384 + 4096


async def test_a_slow_follower_is_told_what_it_missed(tmp_path: Path, how: str) -> None:
    file = LogFile(tmp_path, OUT)
    ended = False
    with open(tmp_path / "stdout", "ab", buffering=0) as writer:
        writer.write(b"a" * 1000)
        reader = read_logs(tmp_path, ended=lambda: ended, follow=True, interval_s=0.001)
        assert await anext(reader) == LogChunk(OUT, b"a" * 1000)
        writer.write(b"b" * 60_000 + b"c" * 40_000)
        file.cut(40_000)
        chunk = await anext(reader)
        assert chunk.skipped_bytes + len(chunk.data) == 100_000 and chunk.skipped_bytes > 0
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        writer.write(b"last")
        assert await waiting == LogChunk(OUT, b"last")
        writer.write(b"very last")
        ended = True
        assert [chunk async for chunk in reader] == [LogChunk(OUT, b"very last")]


async def test_all_that_was_there_at_the_end_is_read(tmp_path: Path) -> None:
    """The end is asked for before the files are read, not after."""

    def ended() -> bool:
        (tmp_path / "stdout").write_bytes(b"written just before the end")
        return True

    chunks = [chunk async for chunk in read_logs(tmp_path, ended=ended, follow=True)]
    assert [chunk.data for chunk in chunks] == [b"written just before the end"]


async def test_a_task_that_truncates_its_own_output_is_followed_still(tmp_path: Path) -> None:
    ended = False
    (tmp_path / "stdout").write_bytes(b"first")
    reader = read_logs(tmp_path, ended=lambda: ended, follow=True, interval_s=0.001)
    assert (await anext(reader)).data == b"first"
    (tmp_path / "stdout").write_bytes(b"")
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0.01)
    with open(tmp_path / "stdout", "ab") as file:
        file.write(b"second")
    assert (await waiting).data == b"second"
    ended = True
    assert [chunk async for chunk in reader] == []


def test_small_files_and_missing_ones_are_left_alone(tmp_path: Path) -> None:
    file = LogFile(tmp_path, ERR)
    assert not file.cut(10)
    (tmp_path / "stderr").write_bytes(b"0123456789")
    assert not file.cut(10)
    file.compact()
    assert [path.name for path in tmp_path.iterdir()] == ["stderr"]
