"""The framework behind `bursar batch`: N tasks from one command template, as many at once as the offers allow."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bursar.sdk import Amount, Framework, Offer, Status, Task, Want


@dataclass(frozen=True, slots=True)
class Ended:
    """How one task of a batch ended, for good."""

    index: int
    status: Status
    #: Launches that it took.
    attempts: int
    hostname: str


class Batch(Framework):
    """Runs `count` tasks; `{index}` (from 0) and `{count}` are replaced in the command and in the environment.

    A task that ended for no fault of its command is tried again, up to `attempts` launches; one whose command failed is not.
    """

    def __init__(
        self,
        command: Sequence[str],
        count: int,
        *,
        name: str = "batch",
        role: str = "*",
        capabilities: Iterable[str] = (),
        constraints: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
        image: str = "",
        cpus: Amount = 1,
        mem: Amount = "128MiB",
        gpus: Amount = 0,
        parallel: int | None = None,
        attempts: int = 3,
        on_end: Callable[[Ended], None] = lambda ended: None,
    ) -> None:
        """`parallel`: at most so many at once. `on_end` hears of each end. Raises InvalidText."""
        self.name, self.role, self.capabilities = name, role, frozenset(capabilities)
        self.constraints = tuple(constraints)
        self.count, self.parallel, self.attempts, self.on_end = count, parallel, attempts, on_end
        self.ended: list[Ended] = []
        self.todo: deque[Task] = deque()
        self._attempts: Counter[int] = Counter()
        for index in range(count):
            words = {"{index}": str(index), "{count}": str(count)}
            filled = [_fill(argument, words) for argument in command]
            environment = {key: _fill(value, words) for key, value in (env or {}).items()}
            task = Task(filled, f"{name}-{index}", image, environment, cpus, mem, gpus, data=index)
            self.todo.append(task)

    def start(self) -> None:
        """An empty batch is done."""
        if not self.todo:
            self.stop()

    def wants(self) -> list[Want]:
        """As many as may run now; all have one shape."""
        room = self._room()
        return [(self.todo[0], room)] if room else []

    def on_offer(self, offer: Offer) -> Iterable[Task]:
        """As many as fit."""
        while self._room() and offer.fits(self.todo[0]):
            task = self.todo.popleft()
            self._attempts[task.data] += 1
            yield task

    def on_status(self, task: Task, status: Status) -> None:
        """Count it, or try it again."""
        if not status.terminal:
            return
        if status.retryable and self._attempts[task.data] < self.attempts:
            self.todo.append(task)
            return
        ended = Ended(task.data, status, self._attempts[task.data], task.hostname)
        self.ended.append(ended)
        self.on_end(ended)
        if len(self.ended) == self.count:
            self.stop()

    @property
    def succeeded(self) -> bool:
        """Whether all tasks have ended well."""
        return len(self.ended) == self.count and all(ended.status.ok for ended in self.ended)

    def _room(self) -> int:
        return (
            len(self.todo) if self.parallel is None else max(0, min(len(self.todo), self.parallel - len(self.running)))
        )


def _fill(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text
