"""One life of a daemon: `bursar.core.runtime.driver` in virtual time, with every moment at which it can be killed.

As there, and for the same reasons: the inbox is read in batches, timers fire only after it was read, the records of a batch are
committed in one transaction, everything else of the batch is performed after that and in order, and the next batch is stepped
while the last one commits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from bursar.core.clock import Instant
from bursar.core.machine import Machine, Persist, Stalled, TimePassed
from bursar.simulation.timeline import Timeline

#: As the driver has them.
MAX_BATCH = 512
STALL_MS = 2_000

WALL_EPOCH_MS = 1_700_000_000_000


@dataclass(frozen=True, slots=True)
class Mortality:
    """How likely each commit is to be the last thing that a process lives to see, and how long one takes."""

    before_commit: float = 0.0
    after_commit: float = 0.0
    in_release: float = 0.0
    commit_ms: int = 0


class Owner(Protocol):
    """What a process belongs to: it interprets effects, and lets checkers look at each moment."""

    def stepping(self, event: Any, now: Instant) -> None:
        """The machine is about to handle an event."""

    def stepped(self, event: Any, effects: Sequence[Any]) -> None:
        """The machine has handled it."""

    def commit(self, records: Sequence[Any]) -> None:
        """Make the records of a batch durable."""

    def perform(self, effect: Any) -> None:
        """Let an effect out."""

    def mortality(self) -> Mortality:
        """Asked before each commit."""

    def killed(self) -> None:
        """The process died by itself, at a commit."""


class Process:
    """Runs one machine until it is killed. Invariant: `_stepped` is only set while `_committing`."""

    def __init__(
        self, timeline: Timeline, random: Random, machine: Machine[Any, Any], owner: Owner, *, clock: tuple[int, int]
    ) -> None:
        """`clock`: what to add to virtual time for the monotonic and for the wall clock of this machine."""
        self.machine = machine
        self.alive = True
        self._timeline = timeline
        self._random = random
        self._owner = owner
        self._monotonic_ms, self._wall_ms = clock
        self._inbox: deque[Any] = deque()
        self._committing = False
        #: Records of a transaction that is on its way.
        self._in_flight: list[Any] = []
        self._stepped: list[Any] | None = None
        self._wake_at: int | None = None
        self._stalled_until_ms = 0
        self._stall: Stalled | None = None
        self._arm()

    def now(self) -> Instant:
        """Return what its clocks show."""
        now_ms = self._timeline.now_ms
        return Instant(now_ms + self._monotonic_ms, WALL_EPOCH_MS + now_ms + self._wall_ms)

    @property
    def at_rest(self) -> bool:
        """Whether everything that it was told is stepped, durable and let out."""
        return not self._inbox and not self._committing

    def post(self, event: Any) -> None:
        """Put an event into the inbox; without effect on the dead."""
        if self.alive:
            self._inbox.append(event)
            self._arm()

    def kill(self) -> None:
        """End it: what is not committed is lost; a commit that is on its way is or is not."""
        if not self.alive:
            return
        self.alive = False
        self._inbox.clear()
        if self._in_flight and self._random.random() < 0.5:
            self._owner.commit(self._in_flight)

    def stall(self, for_ms: int, noticed: bool) -> None:
        """Let it stand still; the driver notices a late awakening or not, depending on what woke it."""
        self._stalled_until_ms = self._timeline.now_ms + for_ms
        self._stall = Stalled(for_ms) if noticed and for_ms > STALL_MS else None
        self._timeline.after(for_ms, self._awake)

    # --- inside ---

    def _awake(self) -> None:
        if not self.alive or self._timeline.now_ms < self._stalled_until_ms:
            return
        if self._stall is not None:
            self._inbox.appendleft(self._stall)
            self._stall = None
        self._turn(self._timeline.now_ms)

    def _arm(self) -> None:
        """Wake up when there is something to do."""
        if not self.alive or self._stepped is not None:
            return
        now_ms = self._timeline.now_ms
        if self._inbox:
            at = now_ms
        else:
            deadline = self.machine.next_deadline_ms()
            if deadline is None:
                return
            at = max(now_ms, deadline - self._monotonic_ms)
        at = max(at, self._stalled_until_ms)
        if self._wake_at is None or at < self._wake_at:
            self._wake_at = at
            self._timeline.after(at - now_ms, self._turn, at)

    def _turn(self, at: int) -> None:
        """Step one batch."""
        if self._wake_at == at:
            self._wake_at = None
        if not self.alive or self._stepped is not None or self._timeline.now_ms < self._stalled_until_ms:
            return
        effects = self._step_batch()
        if effects:
            if self._committing:
                self._stepped = effects
            else:
                self._begin(effects)
        self._arm()

    def _step_batch(self) -> list[Any]:
        effects: list[Any] = []
        now = self.now()
        for _ in range(min(len(self._inbox), MAX_BATCH)):
            effects += self._step(self._inbox.popleft(), now)
        if not self._inbox:
            deadline = self.machine.next_deadline_ms()
            if deadline is not None and deadline <= now.monotonic_ms:
                effects += self._step(TimePassed(), now)
        return effects

    def _step(self, event: Any, now: Instant) -> Sequence[Any]:
        self._owner.stepping(event, now)
        effects = self.machine.step(event, now)
        self._owner.stepped(event, effects)
        return effects

    def _begin(self, effects: list[Any]) -> None:
        """Commit the records of a batch, then release the rest."""
        records = [effect.record for effect in effects if isinstance(effect, Persist)]
        rest = [effect for effect in effects if not isinstance(effect, Persist)]
        if not records:
            self._release(rest)
            return
        self._committing = True
        self._in_flight = records
        mortality = self._owner.mortality()
        self._timeline.after(self._random.randint(0, mortality.commit_ms), self._commit, records, rest, mortality)

    def _commit(self, records: list[Any], rest: list[Any], mortality: Mortality) -> None:
        if not self.alive:
            return
        self._in_flight = []
        if self._random.random() < mortality.before_commit:
            self._owner.killed()
            return
        self._owner.commit(records)
        if self._random.random() < mortality.after_commit:
            self._owner.killed()
            return
        if rest and self._random.random() < mortality.in_release:
            self._release(rest[: self._random.randrange(len(rest))])
            self._owner.killed()
            return
        wait_ms = max(0, self._stalled_until_ms - self._timeline.now_ms)
        if wait_ms:
            self._timeline.after(wait_ms, self._committed, rest)
        else:
            self._committed(rest)

    def _committed(self, rest: list[Any]) -> None:
        if not self.alive:
            return
        self._release(rest)
        self._committing = False
        if self._stepped is not None:
            stepped, self._stepped = self._stepped, None
            self._begin(stepped)
        self._arm()

    def _release(self, effects: Sequence[Any]) -> None:
        for effect in effects:
            self._owner.perform(effect)
