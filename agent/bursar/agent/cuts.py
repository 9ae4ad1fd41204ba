"""Cutting a card as an operator ordered: a journalled operation that goes on, or is undone, after a crash at any point.

What is to be done is in the checkpoint before it is done. After each step the card is looked at anew, and the next one follows from what
it has. A step that fails makes what was there before the goal; the outcome, with the driver's words and what is there now, is told to the
master once a look at the devices has shown it. Meanwhile nothing of the card is given to anybody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from bursar.agent.books import Books
from bursar.agent.devices.cut_record import CutPhase, CutRecord
from bursar.agent.devices.cutting import CannotCut, CardLayout, Step, goal_of, next_step, plan
from bursar.agent.effects import CutCard, LookAtCard, LookAtDevices
from bursar.agent.events import DevicesDiscovered
from bursar.agent.state import CutSaved
from bursar.core.device_names import device_kind, parent_of
from bursar.core.devices import DeviceCondition
from bursar.core.errors import InvalidText
from bursar.core.ids import ConnectionId, DeviceUuid
from bursar.core.layouts import parse_layout
from bursar.core.messages.agent import CutReport, DeviceOrder


class Cuts:
    """The room of cards that are being cut."""

    def __init__(self, books: Books) -> None:
        self._books = books
        #: Those whose outcome the present master has heard.
        self._told: tuple[ConnectionId | None, set[tuple[DeviceUuid, int]]] = (None, set())
        #: The last step that was done, so that one without effect is not done for ever.
        self._done: dict[DeviceUuid, Step] = {}

    def begin(self) -> None:
        """Go on where an earlier life of the agent was."""
        for record in self._books.state.cuts.values():
            if record.phase is CutPhase.VERIFYING:
                self._books.effects.append(LookAtDevices())
            elif record.is_open:
                self._books.effects.append(LookAtCard(record.card))

    def ordered(self, orders: Iterable[DeviceOrder]) -> None:
        """All orders that there are; those that were carried out, or are being, are not begun again."""
        for order in orders:
            known = self._books.state.cuts.get(order.uuid)
            if not order.layout or (
                known is not None and (known.is_open or known.ordered_at_ms >= order.ordered_at_ms)
            ):
                continue
            record = CutRecord(order.uuid, order.ordered_at_ms, order.layout)
            self._save(record)
            holders = {uuid for uuid in self._books.held if (parent_of(uuid) or uuid) == order.uuid}
            if holders:
                self._finish(replace(record, problem=f"{min(holders)} is held by {self._books.held[min(holders)]}"))
            else:
                self._books.log("warning", f"cutting {order.uuid} into {order.layout}", device=order.uuid)
                self._books.effects.append(LookAtCard(order.uuid))

    def looked_at(self, card: DeviceUuid, layout: CardLayout | None, problem: str) -> None:
        """What a card has now, or why nobody can say."""
        record = self._books.state.cuts.get(card)
        if record is None or record.phase in (CutPhase.VERIFYING, CutPhase.DONE):
            return
        if layout is None:
            self._failed(record, f"the card cannot be looked at: {problem}")
            return
        record = replace(record, now=layout.shown())
        try:
            if record.phase is CutPhase.ORDERED:
                goal = plan(layout, parse_layout(record.layout))
                record = replace(record, phase=CutPhase.CUTTING, goal=goal, before=goal_of(layout))
                self._save(record)
            assert record.goal is not None
            step = next_step(layout, record.goal)
        except (CannotCut, InvalidText) as error:
            self._failed(record, str(error))
            return
        if step is None:
            self._finish(record)
        elif self._done.get(card) == step:
            self._failed(record, f"{step.shown()} had no effect")
        else:
            self._save(replace(record, doing=step))
            self._books.effects.append(CutCard(card, step))

    def cut(self, card: DeviceUuid, step: Step, problem: str) -> None:
        """A step was done, or was not."""
        record = self._books.state.cuts.get(card)
        if record is None or record.doing != step or not record.is_open:
            return
        if problem:
            self._failed(record, f"{step.shown()}: {problem}")
            return
        self._done[card] = step
        self._books.effects.append(LookAtCard(card))

    def discovered(self, event: DevicesDiscovered) -> None:
        """The devices were looked at: what is there now is known."""
        for record in list(self._books.state.cuts.values()):
            if record.phase is CutPhase.VERIFYING:
                record = _verified(record, event)
                self._save(replace(record, phase=CutPhase.DONE, goal=None))
                outcome = (
                    f"not cut: {record.problem}; there is now: {record.now}" if record.problem else f"cut: {record.now}"
                )
                self._books.log("warning", f"{record.card} is {outcome}", device=record.card)

    def report(self) -> None:
        """A step ends: tell the master how it went, once it has been told of the devices."""
        books = self._books
        if books.connection is None or not books.registered or not books.state.cuts:
            return
        if self._told[0] != books.connection:
            self._told = (books.connection, set())
        for record in books.state.cuts.values():
            key = (record.card, record.ordered_at_ms)
            if record.phase is CutPhase.DONE and key not in self._told[1]:
                self._told[1].add(key)
                books.send(books.connection, CutReport(record.card, record.ordered_at_ms, record.problem, record.now))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _failed(self, record: CutRecord, problem: str) -> None:
        """Undo what was done; where that fails, too, it stays as it is."""
        if record.phase is CutPhase.CUTTING and record.doing is not None and record.before is not None:
            self._done.pop(record.card, None)
            self._books.log("warning", f"{record.card}: {problem}; undoing what was done", device=record.card)
            self._save(replace(record, phase=CutPhase.UNDOING, goal=record.before, doing=None, problem=problem))
            self._books.effects.append(LookAtCard(record.card))
            return
        if record.phase is CutPhase.UNDOING:
            problem = f"{record.problem}; it could not be undone: {problem}"
        self._finish(replace(record, goal=None, problem=problem))

    def _finish(self, record: CutRecord) -> None:
        self._done.pop(record.card, None)
        self._save(replace(record, phase=CutPhase.VERIFYING, doing=None, before=None))
        self._books.effects.append(LookAtDevices())

    def _save(self, record: CutRecord) -> None:
        self._books.persist(CutSaved(record))


def _verified(record: CutRecord, event: DevicesDiscovered) -> CutRecord:
    """What came of it, by what the drivers found: what was reached may be gone again (`nvidia-smi`, a restart of the machine)."""
    goal = record.goal
    if goal is None:
        return record
    found = {device.uuid for device in event.devices} | event.hidden
    bare = any(one.uuid == record.card and one.condition is DeviceCondition.UNCONFIGURED for one in event.devices)
    instances = [uuid for uuid in found if parent_of(uuid) == record.card]
    if goal.is_cut:
        # By number: the driver names instances and profiles in two places, which need not agree to the letter.
        as_reached = len(instances) == sum(len(target.compute) for target in goal.targets)
    else:
        as_reached = record.card in found and not bare
    if as_reached:
        return record
    counts = Counter(device_kind(uuid).removeprefix("mig-") for uuid in instances)
    now = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    now = now or ("no instance" if bare else "whole" if record.card in found else "nothing")
    done = f"{record.problem}; that was undone" if record.problem else "it was done"
    return replace(record, problem=f"{done}, and then something else changed it", now=now)
