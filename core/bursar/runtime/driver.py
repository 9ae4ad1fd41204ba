"""The single writer: reads the inbox in batches, commits what must last, and only then lets effects out.

*Durable before visible* is stated here once, for master and agent alike: the records of a batch are committed in one
transaction before any other effect of that batch is performed, in order. The next batch is stepped while the last one
commits; its effects wait. A commit that fails ends the process: memory is then ahead of the disk, and only a restart from
the disk is honest (design.md §2, §9).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from bursar.core.clock import Instant
from bursar.core.machine import Machine, Persist, Stalled, TimePassed

#: Events stepped per batch: bounds how long a message waits behind its batch.
MAX_BATCH = 512
#: Lateness of the loop that counts as a stall of the process.
STALL_MS = 2000


def now() -> Instant:
    """The real clocks."""
    return Instant(time.monotonic_ns() // 1_000_000, time.time_ns() // 1_000_000)


class Driver:
    """Owns one machine. `post` is called in the event loop only."""

    def __init__(
        self,
        machine: Machine[Any, Any],
        *,
        commit: Callable[[Sequence[object]], Awaitable[None]],
        perform: Callable[[Any], None],
        clock: Callable[[], Instant] = now,
    ) -> None:
        self.machine = machine
        self._commit = commit
        self._perform = perform
        self._clock = clock
        self._inbox: deque[object] = deque()
        self._wake = asyncio.Event()
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()
        #: Events stepped, batches committed and stalls noticed; for metrics.
        self.events_total = 0
        self.batches_total = 0
        self.stalls_total = 0

    def post(self, event: object) -> None:
        """Put an event into the inbox."""
        self._inbox.append(event)
        self._idle.clear()
        self._wake.set()

    def stop(self) -> None:
        """Let `run` return once the inbox is empty and everything is committed."""
        self._stopping = True
        self._wake.set()

    async def settled(self) -> None:
        """Wait until everything posted so far was stepped, committed and performed."""
        await self._idle.wait()

    async def run(self) -> None:
        """Serve the machine until `stop`; raises what a failed commit raised."""
        committing: asyncio.Task[None] | None = None
        waiting: list[object] = []
        try:
            while True:
                effects = self._step_batch()
                if committing is not None:
                    await committing
                    committing = None
                    self._release(waiting)
                waiting = [effect for effect in effects if not isinstance(effect, Persist)]
                records = [effect.record for effect in effects if isinstance(effect, Persist)]
                if records:
                    committing = asyncio.create_task(self._commit_records(records))
                    await asyncio.sleep(0)
                else:
                    self._release(waiting)
                    waiting = []
                if self._inbox or committing is not None:
                    if committing is not None and not self._inbox:
                        await self._wait_for(committing)
                    else:
                        await asyncio.sleep(0)
                    continue
                self._idle.set()
                if self._stopping:
                    return
                await self._sleep()
        finally:
            if committing is not None:
                await asyncio.shield(committing)

    async def _commit_records(self, records: Sequence[object]) -> None:
        self.batches_total += 1
        await self._commit(records)

    async def _wait_for(self, committing: asyncio.Task[None]) -> None:
        """Until the commit is done or there is something to step meanwhile."""
        self._wake.clear()
        waker = asyncio.create_task(self._wake.wait())
        try:
            await asyncio.wait({committing, waker}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waker.cancel()

    def _step_batch(self) -> list[Any]:
        effects: list[Any] = []
        at = self._clock()
        for _ in range(min(len(self._inbox), MAX_BATCH)):
            effects.extend(self.machine.step(self._inbox.popleft(), at))
            self.events_total += 1
        if not self._inbox:
            # Timers fire only after the inbox was read: a peer that was heard in time is never declared dead.
            deadline = self.machine.next_deadline_ms()
            if deadline is not None and deadline <= at.monotonic_ms:
                effects.extend(self.machine.step(TimePassed(), at))
                self.events_total += 1
        return effects

    def _release(self, effects: list[object]) -> None:
        for effect in effects:
            self._perform(effect)

    async def _sleep(self) -> None:
        """Until there is an event or a deadline; a late awakening is told to the machine."""
        self._wake.clear()
        if self._inbox or self._stopping:
            return
        deadline = self.machine.next_deadline_ms()
        before = self._clock().monotonic_ms
        # Bounded, so that a stall is noticed even where nothing was due.
        timeout_ms = 1000 if deadline is None else max(0, min(1000, deadline - before))
        try:
            await asyncio.wait_for(self._wake.wait(), timeout_ms / 1000)
        except TimeoutError:
            late = self._clock().monotonic_ms - before - timeout_ms
            if late > STALL_MS:
                self.stalls_total += 1
                self._inbox.append(Stalled(late))
                # One turn of the loop, so that what arrived meanwhile is read before timers fire.
                await asyncio.sleep(0)
