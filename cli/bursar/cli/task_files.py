"""`bursar task cp`: files into a running task and out of it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import click

from bursar.cli.options import master_address, master_option, operator_client
from bursar.cli.problems import Failure
from bursar.runtime import archives
from bursar.sdk import OperatorClient, TaskSession
from bursar.v1.sessions_pb2 import SESSION_KIND_COPY_IN, SESSION_KIND_COPY_OUT

_READ_BYTES = 64 * 1024
#: Enough for the first entry of an archive, whatever is said of it.
_HEAD_BYTES = 16 * 1024


def _split(text: str) -> tuple[str, str] | None:
    """`TASK:PATH`; None for a path of ours, which has a / before any colon, or none, or is there."""
    task, colon, path = text.partition(":")
    if not colon or text.startswith((".", "/")) or not task:
        return None
    return task, path


@click.command("cp")
@click.argument("source")
@click.argument("target")
@master_option
def cp_command(source: str, target: str) -> int:
    """Copy a file or a directory into a running task, or out of it: one of the two is TASK:PATH.

    As with cp: into TARGET where that is a directory, else under that name. A relative path in a plain process's task is one below its
    sandbox. Owners are not kept.

    Example: bursar task cp TASK:/mnt/bursar/sandbox/model.pt .
    """
    there, from_there = _split(target), _split(source)
    if (there is None) == (from_there is None):
        raise click.UsageError(
            "one of the two must be TASK:PATH, and one a path of yours (./a:b names a file with a colon)"
        )
    if from_there is not None:
        asyncio.run(_copy_out(master_address(), *from_there, Path(target)))
    else:
        assert there is not None
        asyncio.run(_copy_in(master_address(), *there, Path(source)))
    return 0


async def _copy_out(address: str, task: str, path: str, target: Path) -> None:
    into_directory = target.is_dir()
    if not into_directory and not target.parent.is_dir():
        raise Failure(f"{target.parent} is no directory", "make it first")
    directory, rename = (target, "") if into_directory else (target.parent, target.name)
    async with operator_client(address) as client:
        session = await client.open_session(task, SESSION_KIND_COPY_OUT, path=path)
        async with session:
            await _through_pipe(
                lambda source: archives.unpack(source, directory, rename), lambda sink: _receive(session, sink)
            )


async def _copy_in(address: str, task: str, path: str, source: Path) -> None:
    if not os.path.lexists(source):
        raise Failure(f"no such file or directory: {source}")
    async with operator_client(address) as client:
        kind = await _kind_of(client, task, path or ".")
        directory, name = (path or ".", source.resolve().name) if kind == "directory" else os.path.split(path)
        if not name:
            raise Failure(
                f"{path} is no directory in the task", "leave the slash at its end out to make a file of that name"
            )
        session = await client.open_session(task, SESSION_KIND_COPY_IN, path=directory or ".")
        async with session:
            sending = asyncio.create_task(_send(session, source, name))
            try:
                await _receive(session, io.BytesIO())
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            if not sending.cancelled() and (error := sending.exception()):
                raise error


async def _kind_of(client: OperatorClient, task: str, path: str) -> str:
    """`directory`, `file` or `missing`: told by the head of its archive."""
    head = b""
    session = await client.open_session(task, SESSION_KIND_COPY_OUT, path=path)
    async with session:
        while len(head) < _HEAD_BYTES and (piece := await session.read()) is not None:
            head += piece[1] if piece[0] == 1 else b""
    try:
        with tarfile.open(fileobj=io.BytesIO(head), mode="r|") as archive:
            entry = archive.next()
    except tarfile.TarError:
        entry = None
    if entry is None:
        return "missing"
    return "directory" if entry.isdir() else "file"


async def _receive(session: TaskSession, sink: BinaryIO) -> None:
    """Everything that a session prints; its stderr is its problem. Raises Failure."""
    words = b""
    while (piece := await session.read()) is not None:
        if piece[0] == 1:
            await asyncio.to_thread(sink.write, piece[1])
        else:
            words = (words + piece[1])[-2000:]
    if session.exit_code:
        raise Failure(words.decode(errors="replace").strip() or f"the copy failed with exit code {session.exit_code}")


async def _send(session: TaskSession, source: Path, name: str) -> None:
    async def pass_on(read: BinaryIO) -> None:
        while data := await asyncio.to_thread(read.read1, _READ_BYTES):  # type: ignore[attr-defined]
            if not await session.write(data):
                return
        await session.end_input()

    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb") as read:
        packing = asyncio.create_task(asyncio.to_thread(_pack, source, write_fd, name))
        try:
            await pass_on(read)
        finally:
            read.close()
            await asyncio.gather(packing, return_exceptions=True)
    packing.result()


def _pack(source: Path, descriptor: int, name: str) -> None:
    with contextlib.suppress(BrokenPipeError), os.fdopen(descriptor, "wb") as target:
        archives.pack(source, target, name)


async def _through_pipe(unpack: Callable[[BinaryIO], Any], receive: Callable[[BinaryIO], Any]) -> None:
    """Unpack in a thread what is received here. Raises Failure."""
    read_fd, write_fd = os.pipe()

    def work() -> None:
        with os.fdopen(read_fd, "rb") as source:
            unpack(source)

    working = asyncio.create_task(asyncio.to_thread(work))
    problem: BaseException | None = None
    with os.fdopen(write_fd, "wb", 0) as sink:
        try:
            await receive(sink)
        except BrokenPipeError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again once the thread is done
            problem = error
    try:
        await working
    except archives.ArchiveRefused as error:
        if problem is None:
            raise Failure(f"what the task sent cannot be unpacked: {error}") from error
    except OSError as error:
        if problem is None:
            raise Failure(f"cannot write: {error.strerror or error}: {error.filename or ''}") from error
    if problem is not None:
        raise problem
