"""The framework behind `bursar run`: one task, from its offer to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bursar.sdk import ErrorDetail, Framework, Offer, Status, StatusReason, Task, TaskState, Want

#: The task was not started, or nobody knows how it ended.
NOT_RUN = 125


class RunOnce(Framework):
    """Launches its task on the first offer that fits, again if it provably never ran, and remembers how it ended."""

    failover_timeout = "60s"

    def __init__(
        self,
        task: Task,
        *,
        name: str,
        role: str = "*",
        capabilities: Iterable[str] = (),
        constraints: Iterable[str] = (),
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_change` is called after each change of the attributes below."""
        self.task, self.name, self.role, self.capabilities = task, name, role, frozenset(capabilities)
        self.constraints = tuple(constraints)
        self.on_change = on_change
        #: Whether the master has heard of this framework; whether it is reachable now.
        self.subscribed = self.connected = False
        #: On its way to the master; taken by the master; seen by the agent.
        self.placed = self.launched = self.started = False
        #: How it ended.
        self.end: Status | None = None
        #: Why the last offer was not used, for people.
        self.misfit = ""

    def wants(self) -> list[Want]:
        """One, until it is placed."""
        return [] if self.placed or self.end else [(self.task, 1)]

    def on_offer(self, offer: Offer) -> list[Task]:
        """Take it if it fits."""
        if self.placed or self.end:
            return []
        if not offer.fits(self.task):
            self.misfit = (
                offer.image_problem(self.task) or f"{offer.hostname or offer.agent_id} has only {offer.text} to offer"
            )
            return []
        self.placed = True
        return [self.task]

    def on_launched(self, task: Task) -> None:
        """From now on it happens, or its end is reported."""
        self.launched = True
        self.on_change()

    def on_refused(self, task: Task, error: ErrorDetail) -> None:
        """Wait for another offer, unless the task itself is wrong."""
        if task.status.retryable:
            self.placed = False
            self.misfit = str(error)
        else:
            self.end = task.status
        self.on_change()

    def on_status(self, task: Task, status: Status) -> None:
        """Remember how it ends."""
        if status.state in (TaskState.STARTING, TaskState.RUNNING) or status.terminal:
            self.started = True
        if status.terminal:
            self.end = status
        self.on_change()

    def on_subscribed(self, again: bool) -> None:
        """Remember."""
        self.subscribed = self.connected = True
        self.on_change()

    def on_disconnected(self, error: ErrorDetail) -> None:
        """Remember."""
        self.connected = False
        self.on_change()


#: Where a code is known of such a task, it is that of the engine's end rather than its own.
_LOST = (TaskState.GONE, TaskState.GONE_BY_OPERATOR, TaskState.UNKNOWN)


def exit_code(status: Status) -> int:
    """What a shell would say of such an end: the command's own code, 128 + N for signal N, 125 where it was not run or is lost."""
    if status.exit_code is not None and status.state not in _LOST:
        return status.exit_code if 0 <= status.exit_code <= 255 else 255
    return 0 if status.ok else NOT_RUN


_WORDS = {
    TaskState.DROPPED: "was not started",
    TaskState.ERROR: "was refused",
    TaskState.FAILED: "failed",
    TaskState.KILLED: "was killed",
    TaskState.GONE: "is lost",
    TaskState.GONE_BY_OPERATOR: "is lost: an operator declared its agent gone",
    TaskState.UNKNOWN: "is lost: the master does not know it",
}


def describe_end(status: Status) -> str:
    """Say in words how a task ended; empty where its exit code says it all: where its agent found out more, that follows a semicolon."""
    by_itself = status.reason in (StatusReason.UNSPECIFIED, StatusReason.COMMAND_EXITED)
    if status.exit_code is not None and by_itself and (status.ok or "; " not in status.message):
        return ""
    words = "the task " + _WORDS.get(status.state, f"is {status.state.name}")
    if not by_itself:
        words += f" ({status.reason.name.lower().replace('_', ' ')})"
    message = status.message or ("nobody knows how it ended" if status.state is TaskState.GONE else "")
    return f"{words}: {message}" if message else words
