"""Fetches files into sandboxes: by HTTP, or from the agent's own volume roots; what has a checksum is kept for the next task.

The cache holds a file per checksum, so nothing in it can be out of date. It is bounded: the files that were not used for longest go
first. One task fetches a file, the others that want it wait for that; a file is copied, never linked, as its task may write to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from bursar.agent.containers.runtime import LaunchFailed
from bursar.agent.containers.volumes import VolumeRoot
from bursar.core.fetching import Fetch
from bursar.core.memory.pools import format_bytes
from bursar.core.tasks import StatusReason

DEFAULT_CACHE_BYTES = 2 * 2**30
#: A fetch stops before it leaves less than this on its disk: logs and the checkpoint need some.
SPARE_BYTES = 256 * 2**20
#: A server that is silent for so long is given up; and a whole file after so long.
CONNECT_S, SILENCE_S, WHOLE_S = 10.0, 20.0, 3600.0
MAX_REDIRECTS = 5
_CHUNK_BYTES = 256 * 1024


class Fetcher:
    """Fetches for the tasks of one agent, any number at once."""

    def __init__(
        self, directory: Path, roots: Sequence[VolumeRoot] = (), cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        self._directory, self._roots, self._cache_bytes = directory, tuple(roots), cache_bytes
        self._locks: dict[str, tuple[asyncio.Lock, list[None]]] = {}
        #: No proxies from the environment, and no retries: the framework decides about another try.
        self._http = urllib3.PoolManager(timeout=urllib3.Timeout(connect=CONNECT_S, read=SILENCE_S), maxsize=4)
        self._closed = False
        for stray in directory.glob("*.part"):
            stray.unlink(missing_ok=True)

    def close(self) -> None:
        """Fetches that are under way fail soon."""
        self._closed = True
        self._http.clear()

    async def fetch_all(
        self,
        fetches: Sequence[Fetch],
        sandbox: Path,
        owner: tuple[int, int] | None = None,
        unwanted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Bring files into a sandbox, one after the other, owned by `owner`; given up once `unwanted`. Raises LaunchFailed (FETCH_FAILED)."""
        for fetch in fetches:
            try:
                await self._fetch(fetch, sandbox, owner, lambda: self._closed or unwanted())
            except HTTPError as error:
                raise _failed(fetch, _words(error)) from error
            except OSError as error:
                raise _failed(fetch, error.strerror or str(error)) from error

    async def _fetch(
        self, fetch: Fetch, sandbox: Path, owner: tuple[int, int] | None, unwanted: Callable[[], bool]
    ) -> None:
        target = sandbox / fetch.path
        await asyncio.to_thread(_make_parents, sandbox, target, owner)
        if not fetch.sha256 or self._cache_bytes == 0 or fetch.uri.startswith("file:"):
            await asyncio.to_thread(self._load, fetch, target, unwanted)
        else:
            async with self._lock(fetch.sha256):
                await asyncio.to_thread(self._from_cache, fetch, target, unwanted)
        await asyncio.to_thread(_hand_over, target, 0o755 if fetch.executable else 0o644, owner)

    @contextlib.asynccontextmanager
    async def _lock(self, sha256: str) -> AsyncIterator[None]:
        """One at a time for a file; forgotten when nobody wants it."""
        lock, users = self._locks.setdefault(sha256, (asyncio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                del self._locks[sha256]

    def _from_cache(self, fetch: Fetch, target: Path, unwanted: Callable[[], bool]) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        kept = self._directory / fetch.sha256
        if not self._is_intact(kept, fetch.sha256):
            part = kept.with_suffix(".part")
            self._load(fetch, part, unwanted)
            os.replace(part, kept)
        else:
            os.utime(kept)
        _check_room(target.parent, kept.stat().st_size, fetch)
        shutil.copyfile(kept, target)
        self._trim()

    def _is_intact(self, kept: Path, sha256: str) -> bool:
        """Whether it is there, and still what it was: somebody may have a bad disk."""
        try:
            with kept.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except OSError:
            return False

    def _trim(self) -> None:
        """Let the files go that were not used for longest, until the rest fits."""
        entries = []
        for path in self._directory.iterdir():
            with contextlib.suppress(OSError):
                if path.suffix != ".part":
                    status = path.stat()
                    entries.append((status.st_mtime_ns, status.st_size, path))
        left = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if left <= self._cache_bytes:
                return
            # Whoever copies it at the moment has it open.
            path.unlink(missing_ok=True)
            left -= size

    def _load(self, fetch: Fetch, target: Path, unwanted: Callable[[], bool]) -> None:
        """Write a file anew and compare its checksum; nothing is left of one that fails."""
        digest = hashlib.sha256()
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(target, flags, 0o600), "wb") as file:
                begun = time.monotonic()
                for chunk in self._chunks(fetch):
                    if unwanted():
                        raise _failed(fetch, "nobody wants it any more")
                    if time.monotonic() - begun > WHOLE_S:
                        raise _failed(fetch, f"it has not come within {WHOLE_S:g} s")
                    _check_room(target.parent, len(chunk), fetch)
                    digest.update(chunk)
                    file.write(chunk)
            if fetch.sha256 and digest.hexdigest() != fetch.sha256:
                raise _failed(fetch, f"its checksum is {digest.hexdigest()}, not {fetch.sha256}")
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def _chunks(self, fetch: Fetch) -> Iterator[bytes]:
        if fetch.uri.startswith("file:"):
            with self._open(fetch) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
            return
        retries = urllib3.Retry(total=MAX_REDIRECTS, connect=0, read=0, redirect=MAX_REDIRECTS, status=0, other=0)
        answer = self._http.request(
            "GET", fetch.uri, preload_content=False, retries=retries, headers={"Accept-Encoding": "identity"}
        )
        try:
            if answer.status != 200:
                raise _failed(fetch, f"the server answered {answer.status} {answer.reason or ''}".rstrip())
            # What there is, rather than a whole chunk: who sends a byte at a time must not keep us from looking at the clock.
            while chunk := answer.read1(_CHUNK_BYTES, decode_content=False):
                yield chunk
        finally:
            answer.close()

    def _open(self, fetch: Fetch):  # type: ignore[no-untyped-def]
        """A file of this machine, by the rules of volumes: followed to its end, it lies below a root."""
        if not self._roots:
            raise _failed(fetch, "this agent gives no file of its machine; start it with --volume-roots DIR")
        path = Path(os.path.realpath(unquote(urlsplit(fetch.uri).path), strict=True))
        if not any(path.is_relative_to(os.path.realpath(root.path)) for root in self._roots):
            allowed = ", ".join(os.fspath(root.path) for root in self._roots)
            raise _failed(fetch, f"{path} is not below the roots that this agent allows (--volume-roots): {allowed}")
        if not path.is_file():
            raise _failed(fetch, f"{path} is not a file")
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")


def _make_parents(sandbox: Path, target: Path, owner: tuple[int, int] | None) -> None:
    for directory in reversed(target.relative_to(sandbox).parents[:-1]):
        (sandbox / directory).mkdir(mode=0o755, exist_ok=True)
        if owner is not None:
            os.chown(sandbox / directory, *owner)


def _hand_over(target: Path, mode: int, owner: tuple[int, int] | None) -> None:
    target.chmod(mode)
    if owner is not None:
        os.chown(target, *owner)


def _check_room(directory: Path, count: int, fetch: Fetch) -> None:
    free = shutil.disk_usage(directory).free
    if free - count < SPARE_BYTES:
        raise _failed(fetch, f"the agent's disk has only {format_bytes(free)} left; make room, or choose another agent")


def _words(error: HTTPError) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error).rpartition(">: ")[2] or type(error).__name__


def _failed(fetch: Fetch, why: str) -> LaunchFailed:
    return LaunchFailed(StatusReason.FETCH_FAILED, f"{fetch.uri} cannot be fetched: {why}")
