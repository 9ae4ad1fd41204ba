"""Pulling images with Docker: one download for all who want the same, with what the engine tells of its progress."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import docker.errors

from bursar.agent.containers.docker_engine import CONNECTION_ERRORS, DockerEngine, root_cause, words_of
from bursar.agent.containers.runtime import ProgressCallback, PullFailed
from bursar.core.images import Image, PullFailure, PullProgress
from bursar.core.tasks import StatusReason

#: Between two words about the progress of one pull.
TELL_EVERY_S = 0.5
_NOT_FOUND = (
    "not found",
    "manifest unknown",
    "name unknown",
    "does not exist",
    "access denied",
    "unauthorized",
    "no such image",
)
_UNREACHABLE = (
    "no such host",
    "connection refused",
    "connection reset",
    "timeout",
    "timed out",
    "unreachable",
    "no route to host",
    "name resolution",
    "name or service not known",
    "server misbehaving",
    "http response to https",
    "tls",
    "x509",
    "eof",
)


class Layers:
    """What the lines of a pull say of its layers."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._loaded: dict[str, int] = {}
        self._done: set[str] = set()

    def hear(self, line: Mapping[str, Any]) -> None:
        """One line of the engine; what is not about a layer is passed over."""
        layer, status = str(line.get("id") or ""), str(line.get("status") or "")
        if not layer or status.startswith("Pulling from"):
            return
        self._loaded.setdefault(layer, 0)
        detail = line.get("progressDetail") or {}
        if status == "Downloading" and detail.get("total"):
            self._sizes[layer] = int(detail["total"])
            self._loaded[layer] = min(int(detail.get("current") or 0), self._sizes[layer])
        elif status in ("Download complete", "Verifying Checksum", "Extracting", "Pull complete"):
            self._loaded[layer] = self._sizes.get(layer, 0)
        if status in ("Pull complete", "Already exists"):
            self._done.add(layer)

    def progress(self) -> PullProgress:
        """How far it is."""
        return PullProgress(len(self._loaded), len(self._done), sum(self._sizes.values()), sum(self._loaded.values()))


def failure_of(words: str) -> PullFailure:
    """What an engine's words about a pull that failed come to."""
    lowered = words.lower()
    if any(text in lowered for text in _NOT_FOUND):
        return PullFailure.IMAGE_NOT_FOUND
    return PullFailure.REGISTRY_UNREACHABLE if any(text in lowered for text in _UNREACHABLE) else PullFailure.OTHER


@dataclass(slots=True, eq=False)
class _Download:
    """One that is under way, for all who wait for it."""

    task: asyncio.Task[None] | None = None
    listeners: list[ProgressCallback] = field(default_factory=list)
    waiters: int = 0
    unwanted: threading.Event = field(default_factory=threading.Event)
    last: PullProgress = PullProgress()


class DockerImages:
    """The images of one engine."""

    def __init__(self, engine: DockerEngine, pool: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._pool = pool
        self._downloads: dict[str, _Download] = {}

    async def pull(self, image: str, on_progress: ProgressCallback | None = None) -> None:
        """Have an image; who comes second joins the first, and the download ends when the last one is cancelled. Raises PullFailed."""
        download = self._downloads.get(image)
        if download is None or download.unwanted.is_set():
            download = self._downloads[image] = _Download()
            download.task = asyncio.create_task(self._download(image, download))
            download.task.add_done_callback(functools.partial(self._over, image, download))
        assert download.task is not None
        if on_progress is not None:
            download.listeners.append(on_progress)
            on_progress(download.last)
        download.waiters += 1
        try:
            await asyncio.shield(download.task)
        except PullFailed as failed:
            raise PullFailed(failed.failure, failed.message, failed.reason) from failed
        finally:
            download.waiters -= 1
            if on_progress is not None:
                download.listeners.remove(on_progress)
            if not download.waiters:
                download.unwanted.set()

    async def listed(self) -> list[Image]:
        """What the engine has. Raises ENGINE_ERRORS."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._engine.images)

    def _over(self, image: str, download: _Download, task: asyncio.Task[None]) -> None:
        if self._downloads.get(image) is download:
            del self._downloads[image]
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits any more

    async def _download(self, image: str, download: _Download) -> None:
        loop = asyncio.get_running_loop()

        def tell(progress: PullProgress) -> None:
            download.last = progress
            for listener in list(download.listeners):
                listener(progress)

        def on_progress(progress: PullProgress) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(tell, progress)

        await loop.run_in_executor(self._pool, load, self._engine, image, download.unwanted, on_progress)


def load(engine: DockerEngine, image: str, unwanted: threading.Event, tell: Callable[[PullProgress], None]) -> None:
    """Pull, in a thread, and tell how far it is; it ends at the engine's next line once it is unwanted. Raises PullFailed."""
    layers, told_at = Layers(), 0.0
    try:
        lines: Iterable[Any] = engine.pull(image)
        for line in lines:
            if unwanted.is_set():
                lines.close()  # type: ignore[attr-defined]
                raise PullFailed(PullFailure.OTHER, f"image {image}: nobody wants it any more")
            if isinstance(line, dict) and line.get("error"):
                words = str(line["error"])
                raise PullFailed(failure_of(words), f"image {image}: {words}")
            if isinstance(line, dict):
                layers.hear(line)
                if time.monotonic() - told_at >= TELL_EVERY_S:
                    told_at = time.monotonic()
                    tell(layers.progress())
    except docker.errors.DockerException as error:
        words = words_of(error)
        raise PullFailed(failure_of(words), f"image {image}: {words}") from error
    except CONNECTION_ERRORS as error:
        words = f"the Docker engine went away: {root_cause(error)}"
        raise PullFailed(PullFailure.ENGINE_LOST, words, StatusReason.ENGINE_LOST) from error
    tell(layers.progress())
