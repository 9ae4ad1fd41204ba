"""The single writer: reads the inbox in batches, commits what must last, and only then lets effects out.

*Durable before visible* is stated here once, for master and agent alike: the records of a batch are committed in one
transaction before any other effect of that batch is performed, in order. The next batch is stepped while the last one
commits; its effects wait. A commit that fails ends the process: memory is then ahead of the disk, and only a restart from
the disk is honest (design.md §2, §9).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from bursar.core.clock import Instant
from bursar.core.machine import Machine, Persist, Stalled, TimePassed

#: Events stepped per batch: bounds how long a message waits behind its batch.
MAX_BATCH = 512
#: Events that may wait before who reads from peers pauses: half a second's work, so that a pause is nobody's silence.
MAX_WAITING = 10_000
#: The driver looks at the clock at least so often; a gap of `STALL_MS` means that the process did not run.
LOOK_INTERVAL_S = 1.0
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
        self._has_room = asyncio.Event()
        self._looked_ms = clock().monotonic_ms
        #: Events that had arrived when timers were found due, and go before them; None while none is due.
        self._before_timers: int | None = None
        #: Events stepped, batches committed and stalls noticed; for metrics.
        self.events_total = 0
        self.batches_total = 0
        self.stalls_total = 0

    def post(self, event: object) -> None:
        """Put an event into the inbox."""
        self._inbox.append(event)
        self._idle.clear()
        self._wake.set()

    async def room(self) -> None:
        """Wait while very much waits already: who reads from a peer asks before it reads on, and so does flow control reach who floods."""
        while len(self._inbox) >= MAX_WAITING:
            self._has_room.clear()
            await self._has_room.wait()

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
        self._looked_ms = self._clock().monotonic_ms
        try:
            while True:
                if committing is not None and committing.done():
                    committing.result()
                    self._release(waiting)
                    committing = None
                effects = self._step_batch()
                if committing is not None:
                    await self._finish(committing)
                    self._release(waiting)
                    committing = None
                waiting = [effect for effect in effects if not isinstance(effect, Persist)]
                records = [effect.record for effect in effects if isinstance(effect, Persist)]
                if records:
                    committing = asyncio.create_task(self._commit_records(records))
                else:
                    self._release(waiting)
                if self._inbox:
                    await asyncio.sleep(0)
                elif committing is not None:
                    await self._wait_for(committing)
                else:
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

    async def _finish(self, committing: asyncio.Task[None]) -> None:
        """Until the commit is done, however slow the disk is: that is no stall, the loop goes on."""
        while not committing.done():
            await asyncio.wait({committing}, timeout=LOOK_INTERVAL_S)
            self._look()
        committing.result()

    async def _wait_for(self, committing: asyncio.Task[None]) -> None:
        """Until the commit is done or there is something to step meanwhile."""
        self._wake.clear()
        waker = asyncio.create_task(self._wake.wait())
        try:
            await asyncio.wait({committing, waker}, timeout=LOOK_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waker.cancel()

    def _look(self) -> Instant:
        """What time it is. After a gap in which nobody could be heard, the machine is told first of all."""
        at = self._clock()
        gap = at.monotonic_ms - self._looked_ms
        self._looked_ms = at.monotonic_ms
        if gap > STALL_MS:
            self.stalls_total += 1
            self._inbox.appendleft(Stalled(gap))
        return at

    def _step_batch(self) -> list[Any]:
        effects: list[Any] = []
        at = self._look()
        count = min(len(self._inbox), MAX_BATCH)
        for _ in range(count):
            effects.extend(self.machine.step(self._inbox.popleft(), at))
        self.events_total += count
        if len(self._inbox) < MAX_WAITING:
            self._has_room.set()
        if self._timers_may_fire(at, count):
            effects.extend(self.machine.step(TimePassed(), at))
            self.events_total += 1
        return effects

    def _timers_may_fire(self, at: Instant, read: int) -> bool:
        """Only after what had arrived by then was read: a peer that was heard in time is never declared dead. But not later:
        however much arrives all the time, timers are not starved.
        """
        deadline = self.machine.next_deadline_ms()
        if deadline is None or deadline > at.monotonic_ms:
            self._before_timers = None
        elif self._before_timers is None:
            self._before_timers = len(self._inbox)
        else:
            self._before_timers = max(0, self._before_timers - read)
        if self._before_timers != 0:
            return False
        self._before_timers = None
        return True

    def _release(self, effects: list[object]) -> None:
        for effect in effects:
            self._perform(effect)

    async def _sleep(self) -> None:
        """Until there is an event, a deadline, or it is time to look at the clock."""
        self._wake.clear()
        if self._inbox or self._stopping:
            return
        deadline = self.machine.next_deadline_ms()
        timeout_s = LOOK_INTERVAL_S
        if deadline is not None:
            timeout_s = max(0.0, min(timeout_s, (deadline - self._clock().monotonic_ms) / 1000))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), timeout_s)
