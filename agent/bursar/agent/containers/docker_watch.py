"""The containers of a Docker engine whose ends are still to be told: each is told once, with the evidence of how it came."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

from bursar.agent.containers.evidence import BUS_ERROR, KILLED, Testimony, Witness, judge, with_forks
from bursar.agent.containers.runtime import ContainerExit, ContainerId, ExitCallback
from bursar.core.memory.pools import MemoryPlan
from bursar.core.tasks import StatusReason


class Watched:
    """A container whose end is to be told."""

    def __init__(self, container_id: ContainerId, sandbox: Path, plan: MemoryPlan | None = None) -> None:
        self.container_id = container_id
        self.sandbox = sandbox
        self.plan = plan
        #: False until the engine has started it: an end is not told before.
        self.is_started = False
        #: Its end, not told yet.
        self.exit: ContainerExit | None = None
        self.had_oom = False
        self.kill_timer: asyncio.TimerHandle | None = None
        #: The last signal that was asked for; sent again once it runs, if it came too early.
        self.asked_signal = ""
        #: What can be asked of the kernel while it runs, and shortly afterwards.
        self.witness: Witness | None = None
        self._is_let_go = False
        self._lock = threading.Lock()

    def witness_of(self, pid: int) -> None:
        """Hold on to what the kernel knows of it, by its first process; 0 where that is not known. From any thread."""
        with self._lock:
            if pid and not self._is_let_go:
                self.witness = Witness(pid)

    def look(self) -> None:
        """Remember how it is now; all of it only where its memory is planned."""
        if self.witness is not None and self.plan is not None:
            self.witness.look()
        elif self.witness is not None:
            self.witness.look_at_forks()

    def note_oom(self) -> None:
        """The engine saw a process of it killed for want of memory."""
        self.had_oom = True
        if self.witness is not None:
            self.witness.look()

    def let_go(self) -> None:
        """Nobody asks any more."""
        if self.kill_timer is not None:
            self.kill_timer.cancel()
        with self._lock:
            self._is_let_go = True
            if self.witness is not None:
                self.witness.close()


class Watch:
    """All that are watched. For the event loop."""

    def __init__(self) -> None:
        self._watched: dict[ContainerId, Watched] = {}
        self._on_exit: ExitCallback | None = None

    def open(self, on_exit: ExitCallback) -> None:
        """Tell ends from now on."""
        self._on_exit = on_exit

    def close(self) -> None:
        """Tell no more."""
        self._on_exit = None
        for watched in self._watched.values():
            watched.let_go()
        self._watched.clear()

    def __iter__(self) -> Iterator[Watched]:
        return iter(tuple(self._watched.values()))

    def __contains__(self, container_id: ContainerId) -> bool:
        return container_id in self._watched

    def get(self, container_id: ContainerId) -> Watched | None:
        """One of them."""
        return self._watched.get(container_id)

    def begin(self, watched: Watched) -> Watched:
        """Watch one more."""
        self._watched[watched.container_id] = watched
        return watched

    def drop(self, watched: Watched) -> None:
        """It never came to life: there is nothing to tell."""
        if self._watched.get(watched.container_id) is watched:
            del self._watched[watched.container_id]
        watched.let_go()

    def started(self, watched: Watched, end: ContainerExit | None) -> None:
        """Its start is over; tell its end if it has one already, once the caller knows that it started."""
        watched.is_started = True
        if end is not None:
            watched.exit = end
        if watched.exit is not None:
            asyncio.get_running_loop().call_soon(self._tell, watched)

    def ended(self, watched: Watched, end: ContainerExit) -> None:
        """It has ended; the first who says so is believed."""
        if watched.exit is None:
            watched.exit = _judged(watched, end)
        if watched.is_started:
            self._tell(watched)

    def _tell(self, watched: Watched) -> None:
        if self._watched.get(watched.container_id) is not watched or watched.exit is None:
            return
        del self._watched[watched.container_id]
        watched.let_go()
        if self._on_exit is not None:
            self._on_exit(watched.container_id, watched.exit)


def _judged(watched: Watched, end: ContainerExit) -> ContainerExit:
    """An end with the evidence; what the engine says of a command that it could not run stays as it is."""
    if end.reason not in (StatusReason.COMMAND_EXITED, StatusReason.MEM_LIMIT) or end.exit_code in (None, 0):
        return end
    is_oom = watched.had_oom or end.reason is StatusReason.MEM_LIMIT
    testimony = watched.witness.testify() if watched.witness is not None else Testimony()
    if (
        is_oom
        or end.exit_code == BUS_ERROR
        or (end.exit_code == KILLED and (testimony.oom_kills or not watched.asked_signal))
    ):
        assert end.exit_code is not None
        end = judge(end.exit_code, testimony, engine_says_oom=is_oom, plan=watched.plan)
    return with_forks(end, testimony)
