"""Tasks that use more of a card's memory than their share of that card (pain 6).

Nothing in hardware holds a task to a share, so it is looked: what the processes of its container have of a card is compared with its shares
of it. Who passes them is told, and counted. Of a *soft* share that is a warning: who still uses more after a grace is ended, so that its
neighbours do not fail for want of what is theirs. Of a share that is held to by nothing (*none*) it is only said.

What is soft here begins anew with each life of the agent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from bursar.agent.books import Books, names
from bursar.agent.containers.runtime import ContainerId
from bursar.agent.devices.users import DeviceUser
from bursar.agent.effects import MeasureShares
from bursar.agent.reporting import Reporting
from bursar.agent.tasks import TaskKey, TaskRecord, Verdict, container_of
from bursar.core.device_names import parent_of
from bursar.core.ids import DeviceUuid
from bursar.core.memory.pools import format_bytes
from bursar.core.tasks import StatusReason, TaskState
from bursar.core.text import format_duration

#: Between two looks.
LOOK_MS = 5_000
SOFT, NONE = "soft", "none"


@dataclass(frozen=True, slots=True)
class Allotment:
    """What a container has of one card."""

    key: TaskKey
    container_id: ContainerId
    card: DeviceUuid
    shares: tuple[DeviceUuid, ...]
    kind: str
    enforcement: str
    mem_bytes: int


@dataclass(frozen=True, slots=True)
class _Excess:
    """Since when it uses more than it has; of the run that began then."""

    run_began_ms: int
    since_ms: int


class Overuse:
    """The room of those who share."""

    def __init__(self, books: Books, reporting: Reporting, end: Callable[[TaskKey, StatusReason, str], None]) -> None:
        """`end` has a running task ended for a reason of ours."""
        self._books = books
        self._reporting = reporting
        self._end = end
        #: Tasks that ran with a share when they were last looked at.
        self._sharing: dict[TaskKey, None] = {}
        self._over: dict[tuple[TaskKey, DeviceUuid], _Excess] = {}
        #: Of each task the run of which its framework was told.
        self._told: dict[TaskKey, int] = {}
        #: Cards whose driver says who uses them, but not how much.
        self._mute: set[DeviceUuid] = set()
        #: For metrics: how often a share was passed, and how often that was a task's end, by enforcement.
        self.passed: Counter[str] = Counter({SOFT: 0, NONE: 0})
        self.ended = 0
        #: What each container uses of a card and may use, as of the last look.
        self.used: dict[tuple[TaskKey, DeviceUuid], tuple[int, int]] = {}

    def check(self) -> None:
        """Assert what must hold."""
        assert not self._sharing or ("shares", "") in self._books.deadlines

    def begin(self, record: TaskRecord) -> None:
        """It runs: look at it from now on, if it shares."""
        if self._books.config.share_grace_ms is None or not any(map(self._enforcement, record.task.device_uuids)):
            return
        self._sharing[record.key] = None
        if ("shares", "") not in self._books.deadlines:
            self._look_again(LOOK_MS)

    def look(self) -> None:
        """It is time."""
        shares = tuple(uuid for one in self._allotments() for uuid in one.shares)
        if shares:
            self._books.effects.append(MeasureShares(shares))
        if self._sharing:
            self._look_again(LOOK_MS)
        else:
            self._over.clear()
            self.used.clear()

    def measured(self, users: Mapping[DeviceUuid, tuple[DeviceUser, ...] | None]) -> None:
        """A look was made."""
        allotments = [one for one in self._allotments() if one.shares[0] in users]
        asked = {(one.key, one.card) for one in allotments}
        for gone in [which for which in self._over if which not in asked]:
            del self._over[gone]
        self.used.clear()
        for one in allotments:
            used = self._used(one, users[one.shares[0]])
            if used is not None:
                self.used[one.key, one.card] = (used, one.mem_bytes)
                self._judge(one, used)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _look_again(self, in_ms: int) -> None:
        self._books.deadlines.set(("shares", ""), self._books.now.monotonic_ms + in_ms)

    def _enforcement(self, uuid: DeviceUuid) -> str:
        """Of a share; empty for what is held to its part otherwise, or is a whole."""
        device = self._books.devices.get(uuid)
        enforcement = device.attributes.get("enforcement", "") if device is not None else ""
        return enforcement if enforcement in (SOFT, NONE) else ""

    def _allotments(self) -> Iterator[Allotment]:
        """What each running container has; what an executor's tasks have is that executor's, as their processes are."""
        books, parts = self._books, dict[tuple[TaskKey, DeviceUuid], list[DeviceUuid]]()
        for key in list(self._sharing):
            record = books.state.tasks.get(key)
            if record is None or record.state.is_terminal:
                del self._sharing[key]
                self._told.pop(key, None)
                continue
            runs_on = record.task.spec.runs_on
            whose = TaskKey(key.framework_id, runs_on) if runs_on else key
            holder = books.state.tasks.get(whose)
            if holder is None or holder.state is not TaskState.RUNNING or holder.waiting:
                continue
            for uuid in record.task.device_uuids:
                if self._enforcement(uuid):
                    parts.setdefault((whose, parent_of(uuid) or uuid), []).append(uuid)
        for (key, card), uuids in parts.items():
            first = books.devices[uuids[0]]
            yield Allotment(
                key,
                container_of(books.info.agent_id, key),
                card,
                tuple(uuids),
                first.kind,
                self._enforcement(uuids[0]),
                sum(books.devices[uuid].mem_bytes for uuid in uuids),
            )

    def _used(self, one: Allotment, users: tuple[DeviceUser, ...] | None) -> int | None:
        """Bytes, or None where nobody can say."""
        mine = [user for user in users or () if user.container_id == one.container_id]
        if users is None or any(user.mem_bytes is None for user in mine):
            if one.card not in self._mute:
                self._mute.add(one.card)
                text = (
                    f"the driver does not say what tasks use of {one.card}'s memory: nothing holds them to their shares"
                )
                self._books.log("warning", text, device=one.card)
            return None
        self._mute.discard(one.card)
        return sum(user.mem_bytes or 0 for user in mine)

    def _judge(self, one: Allotment, used: int) -> None:
        books, which = self._books, (one.key, one.card)
        record = books.state.tasks[one.key]
        if used <= one.mem_bytes:
            if self._over.pop(which, None) is not None:
                books.log("info", "a task is back within its share", **names(one.key), device=one.card)
            return
        excess = self._over.get(which)
        if excess is None or excess.run_began_ms != record.run_began_ms:
            excess = self._over[which] = _Excess(record.run_began_ms, books.now.monotonic_ms)
            self._passed(one, used, record)
        grace_ms = books.config.share_grace_ms
        if one.enforcement != SOFT or grace_ms is None:
            return
        left_ms = excess.since_ms + grace_ms - books.now.monotonic_ms
        if left_ms > 0:
            self._look_again(min(left_ms, LOOK_MS))
            return
        self.ended += 1
        after = f" for {format_duration(grace_ms)}" if grace_ms else ""
        self._end(one.key, StatusReason.DEVICE_MEM_LIMIT, f"{_figures(one, used, 'used')}{after}{_HINT}")

    def _passed(self, one: Allotment, used: int, record: TaskRecord) -> None:
        """Say so: to the operator each time, to the framework once a run, unless it hears of the end in the same moment."""
        grace_ms = self._books.config.share_grace_ms or 0
        self.passed[one.enforcement] += 1
        if one.enforcement == SOFT:
            text = f"{_figures(one, used, 'uses')}; it is ended unless it uses less within {format_duration(grace_ms)}{_HINT}"
        else:
            text = f"{_figures(one, used, 'uses')}; nothing holds it to that, and its neighbours may fail for want of memory"
        self._books.log("warning", "a task uses more than its share", **names(one.key), device=one.card, reason=text)
        silent = one.enforcement == SOFT and not grace_ms
        if not silent and self._told.get(one.key) != record.run_began_ms:
            self._told[one.key] = record.run_began_ms
            self._reporting.report(record, Verdict(record.state, StatusReason.DEVICE_MEM_EXCEEDED, text))


_HINT = "; ask for more or larger shares, or use less: a process's CUDA context counts, too"


def _figures(one: Allotment, used: int, verb: str) -> str:
    share = f"its {len(one.shares)} shares ({one.kind}) are" if len(one.shares) > 1 else f"its share ({one.kind}) is"
    return f"it {verb} {format_bytes(used)} of the memory of {one.card}, and {share} {format_bytes(one.mem_bytes)}"
