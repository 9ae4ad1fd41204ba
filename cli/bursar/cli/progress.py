"""How far a batch is: a bar on a terminal, a line now and then where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

from bursar.cli.problems import say
from bursar.frameworks.batch import Batch

#: Off a terminal, lines are at least so far apart.
LINE_EVERY_S = 10.0


class Progress(Protocol):
    """Shows how far a batch is, on stderr."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, text: str) -> None:
        """A line of its own."""

    def show(self) -> None:
        """Something has changed, or a moment has passed."""


def progress_of(batch: Batch) -> Progress:
    """The one that suits where stderr goes."""
    return Bar(batch) if sys.stderr.isatty() else Lines(batch)


class Lines:
    """A line when something has ended since the last one, never more often than every ten seconds."""

    def __init__(self, batch: Batch, now: Callable[[], float] = time.monotonic) -> None:
        self._batch, self._now = batch, now
        self._next_s = now() + LINE_EVERY_S
        self._said = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left to do: the summary says the rest."""

    def say(self, text: str) -> None:
        """A line of its own."""
        say(f"bursar: {text}")

    def show(self) -> None:
        """See the class."""
        ended = len(self._batch.ended)
        if ended != self._said and self._now() >= self._next_s:
            self._said, self._next_s = ended, self._now() + LINE_EVERY_S
            say(f"bursar: {ended} of {self._batch.count} ended{words_of(self._batch)}")


class Bar:
    """A bar that is drawn again in place; lines go above it."""

    def __init__(self, batch: Batch, console: Any = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._batch = batch
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}", markup=False),
            TimeElapsedColumn(),
            console=console or Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(batch.name, total=batch.count, words="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._bar.console.print(f"bursar: {text}", markup=False, highlight=False, soft_wrap=True)

    def show(self) -> None:
        """Draw what is true now."""
        self._bar.update(self._task, completed=len(self._batch.ended), words=words_of(self._batch).lstrip(", "))


def words_of(batch: Batch) -> str:
    """`, 3 running, 1 failed, 2 retried`: what there is none of is left out."""
    failed = sum(not ended.status.ok for ended in batch.ended)
    counts = {
        "running": len(batch.running),
        "pausing": batch.pausing,
        "failed": failed,
        "retried": batch.retried,
        "relaunched": batch.relaunched,
    }
    return "".join(f", {count} {word}" for word, count in counts.items() if count)
