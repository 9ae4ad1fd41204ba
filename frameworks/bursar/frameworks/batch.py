"""The framework behind `bursar batch`: many jobs of one size, as many at once as the offers allow, each until it ends for good.

A *job* is what the user wants done; each launch of it is a task. A launch that ended for no fault of the command – it never ran, its
agent was lost – is repeated free of charge, up to a bound; one whose command failed is repeated as often as the user allows. Both wait
longer every time.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bursar.sdk import Amount, Framework, InvalidText, Offer, Status, Task, TaskState, Want

#: Between two launches of a job the pause doubles up to this.
MAX_PAUSE_S = 300.0
#: How often a job may be lost for no fault of its own.
MAX_LOSSES = 20
#: Before the second of several losses in a row; the first is repeated at once.
LOSS_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """A command and its own part of the environment. One text is given to `sh -c`."""

    command: Sequence[str] | str
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ended:
    """How one job ended, for good."""

    index: int
    status: Status
    #: Launches that it took.
    launches: int
    #: Of these, how many followed on a failure of the command, and how many on a loss that was not its fault.
    retried: int
    relaunched: int
    hostname: str


@dataclass(slots=True)
class _Progress:
    """Where one job is."""

    launches: int = 0
    failures: int = 0
    losses: int = 0

    def ended(self, index: int, task: Task, status: Status) -> Ended:
        failed = status.state is TaskState.FAILED and not status.retryable
        return Ended(
            index,
            status,
            self.launches,
            self.failures - failed,
            self.losses - status.retryable,
            task.hostname,
        )


class Batch(Framework):
    """Runs jobs. All methods and `on_…` functions are called in the event loop."""

    def __init__(
        self,
        jobs: Iterable[Job],
        *,
        name: str = "batch",
        role: str = "*",
        capabilities: Iterable[str] = (),
        constraints: Iterable[str] = (),
        image: str = "",
        cpus: Amount = 1,
        mem: Amount = "",
        memory: str = "",
        gpus: Amount = 0,
        parallel: int | None = None,
        retries: int = 0,
        pause_s: float = 1.0,
        max_losses: int = MAX_LOSSES,
        on_end: Callable[[Ended], None] = lambda ended: None,
        on_again: Callable[[int, Status, float], None] = lambda index, status, pause_s: None,
        later: Callable[[float, Callable[[], None]], object] | None = None,
        asked: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises InvalidText.

        `parallel`: at most so many at once. `retries`: how often a job whose command failed is run again, the first time `pause_s` later,
        then twice as long, up to five minutes. `max_losses`: how often it may be lost beside. `on_end` hears of each end for good,
        `on_again` of each that is not. `later` calls a function after so many seconds; the event loop does, where none is given.
        `asked`: further arguments of every `Task`.
        """
        self.name, self.role, self.capabilities = name, role, frozenset(capabilities)
        self.constraints = tuple(constraints)
        self.parallel, self.retries, self.pause_s, self.max_losses = parallel, retries, pause_s, max_losses
        self.on_end, self.on_again, self._later = on_end, on_again, later
        #: Jobs that may be launched, the lowest index first; those that wait for their next launch.
        self._todo: list[tuple[int, Task]] = []
        self.pausing = 0
        self.ended: list[Ended] = []
        self.retried = self.relaunched = 0
        for index, job in enumerate(jobs):
            task = Task(
                job.command,
                f"{name}-{index}",
                image,
                job.env,
                cpus,
                mem,
                gpus,
                memory=memory,
                data=index,
                **asked or {},
            )
            self._todo.append((index, task))
        self.count = len(self._todo)
        self._progress = [_Progress() for _ in range(self.count)]

    def start(self) -> None:
        """An empty batch is done."""
        if not self._todo:
            self.stop()

    def wants(self) -> list[Want]:
        """As many as may run now; all have one shape."""
        room = self._room()
        return [(self._todo[0][1], room)] if room else []

    def on_offer(self, offer: Offer) -> Iterable[Task]:
        """As many as fit."""
        while self._room() and offer.fits(self._todo[0][1]):
            index, task = heapq.heappop(self._todo)
            self._progress[index].launches += 1
            yield task

    def on_status(self, task: Task, status: Status) -> None:
        """Count it, or have it launched again."""
        if not status.terminal or task.data is None:
            return
        index: int = task.data
        progress = self._progress[index]
        pause_s = self._pause_before_another(progress, status)
        if pause_s is None:
            ended = progress.ended(index, task, status)
            self.ended.append(ended)
            self.on_end(ended)
            if len(self.ended) == self.count:
                self.stop()
            return
        self.on_again(index, status, pause_s)
        if pause_s == 0:
            heapq.heappush(self._todo, (index, task))
            return
        self.pausing += 1
        later = self._later or asyncio.get_running_loop().call_later
        later(pause_s, lambda: self._resume(index, task))

    @property
    def succeeded(self) -> bool:
        """Whether all jobs have ended well."""
        return len(self.ended) == self.count and all(ended.status.ok for ended in self.ended)

    def _pause_before_another(self, progress: _Progress, status: Status) -> float | None:
        """How long to wait before a job is launched again; None where it has ended for good."""
        if status.retryable:
            progress.losses += 1
            if progress.losses > self.max_losses:
                return None
            self.relaunched += 1
            return 0 if progress.losses == 1 else _doubled(LOSS_PAUSE_S, progress.losses - 2)
        if status.state is TaskState.FAILED:
            progress.failures += 1
            if progress.failures <= self.retries:
                self.retried += 1
                return _doubled(self.pause_s, progress.failures - 1)
        return None

    def _resume(self, index: int, task: Task) -> None:
        self.pausing -= 1
        heapq.heappush(self._todo, (index, task))
        self.update()

    def _room(self) -> int:
        ready = len(self._todo)
        return ready if self.parallel is None else max(0, min(ready, self.parallel - len(self.running)))


def from_template(command: Sequence[str], count: int, env: Mapping[str, str] | None = None) -> list[Job]:
    """`count` jobs; `{index}` (from 0) and `{count}` are replaced in the command and in the environment's values."""
    return [_fill(Job(tuple(command), env or {}), index, count) for index in range(count)]


def from_lines(text: str, command: Sequence[str] = (), env: Mapping[str, str] | None = None) -> list[Job]:
    """A job per line, without empty ones and those that begin with `#`. Raises InvalidText where there is none.

    With a command, `{line}` is replaced by the line; without, the line is a command for `sh -c`. `{index}` and `{count}` as above.
    """
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if not lines:
        raise InvalidText(
            "the file has no line with a job", "write one job per line; those that begin with # are skipped"
        )
    jobs = [Job(tuple(command) if command else line, env or {}) for line in lines]
    return [_fill(job, index, len(lines), line) for index, (job, line) in enumerate(zip(jobs, lines, strict=True))]


def _fill(job: Job, index: int, count: int, line: str | None = None) -> Job:
    words = {"{index}": str(index), "{count}": str(count)}

    def fill(text: str) -> str:
        for word, value in words.items():
            text = text.replace(word, value)
        # Last: what a line says is the user's own, braces included.
        return text if line is None else text.replace("{line}", line)

    if isinstance(job.command, str):
        return replace(job, env={name: fill(value) for name, value in job.env.items()})
    command = tuple(fill(argument) for argument in job.command)
    return replace(job, command=command, env={name: fill(value) for name, value in job.env.items()})


def _doubled(pause_s: float, times: int) -> float:
    return min(MAX_PAUSE_S, pause_s * (1 << min(times, 20)))
