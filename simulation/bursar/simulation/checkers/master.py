"""What a master decides: step by step, and from one reign to the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from bursar.core.clock import Instant
from bursar.core.errors import ErrorDetail
from bursar.core.ids import OfferId
from bursar.core.machine import Persist, TimePassed
from bursar.core.messages.framework import Offers, UpdateFramework
from bursar.core.messages.gangs import Bundle
from bursar.core.messages.offers import Accept, CallResult
from bursar.master.effects import Reply, SendToFramework
from bursar.master.events import FrameworkCalled, OperatorCalled
from bursar.master.machine import MasterMachine
from bursar.master.records import Durable, PreemptionRecorded, TaskRecorded
from bursar.simulation.checkers.facts import Facts, covers, is_lent_while_filling
from bursar.simulation.checkers.offers import OfferJudge, needed_of
from bursar.simulation.checkers.verdicts import Judge, require
from bursar.simulation.process import Process

#: Deadlines of the master whose coming frees nothing and changes nobody's mind.
_QUIET = frozenset({"cycle", "heartbeat"})
#: After the end of a notice, until the master must have acted on it.
NOTICE_SLACK_MS = 1_000
#: Remembered tasks up to which the master's own invariants are looked at in every step.
TASKS_CHECKED = 30


class MasterJudge(Judge):
    """Of the master's steps. `thorough`: look at its own invariants at every step, not only in small clusters."""

    def __init__(self, verdicts: Counter[str], *, filter_gpu_resources: str, thorough: bool) -> None:
        super().__init__(verdicts)
        self.facts = Facts()
        self._offers = OfferJudge(verdicts)
        self._filter = filter_gpu_resources
        self._thorough = thorough
        self._steps = 0
        self._machine: MasterMachine | None = None
        self._quiet = False
        self._now = Instant(0, 0)
        #: Bundles that are out, as they were announced.
        self._bundles: dict[str, set[OfferId]] = {}
        #: What a quiet master knew when it died.
        self._picture: Any = None

    def started(self, machine: MasterMachine, durable: Durable) -> None:
        """What was loaded means what was durable; what a quiet master knew, its successor knows."""
        machine.check()
        self._machine = machine
        self._bundles.clear()
        self._offers.of_holds.clear()
        self.facts = self._offers.facts = Facts.of(durable, self._filter)
        require(machine.cluster.durable == durable, "the state that was loaded is not what was committed")
        if self._picture is not None:
            self._judged("a successor knows what was known")
            picture = _picture(machine)
            for name, before in self._picture.items():
                after = picture[name]
                require(before == after, f"{name}: {before!r} before the restart, {after!r} after it")

    def died(self, process: Process) -> None:
        """Remember what it knew, if all of that was durable."""
        machine = process.machine
        assert isinstance(machine, MasterMachine)
        self._picture = _picture(machine) if process.at_rest else None
        self._machine = None

    def stepping(self, event: Any, now: Instant) -> None:
        """Note whether event-driven work is quiet."""
        machine = self._machine
        assert machine is not None
        cluster = machine.cluster
        self._quiet = False
        self._now = now
        if isinstance(event, TimePassed) and not cluster.is_dirty:
            filters_ms = cluster.filters.deadlines.next_ms()
            due = {kind for (kind, _), at in cluster.deadlines._due.items() if at <= now.monotonic_ms}
            self._quiet = "cycle" in due and due <= _QUIET and (filters_ms is None or filters_ms > now.monotonic_ms)

    def stepped(self, event: Any, effects: Sequence[Any]) -> None:
        """Everything that one step may break."""
        machine = self._machine
        assert machine is not None
        self._steps += 1
        # Its cost grows with what is remembered: every step of a small cluster, every so many of a larger one.
        if self._thorough or self._steps % (1 + len(machine.cluster.tasks) // TASKS_CHECKED) == 0:
            machine.check()
        changed = refused = False
        for effect in effects:
            if isinstance(effect, Persist):
                self._judge_borrowing(effect.record, event)
                self._judge_recall(effect.record, machine)
                self.facts.apply(effect.record)
                changed = True
        for effect in effects:
            match effect:
                case SendToFramework(_, Offers(_, offers)):
                    require(
                        not self._quiet, "a full cycle made offers although event-driven work was quiet: a lost wake-up"
                    )
                    for offer in offers:
                        self._offers.judge_new(offer, machine)
                case SendToFramework(_, Bundle(bundle_id, gang_id, offers)):
                    require(
                        not self._quiet,
                        f"a full cycle made the bundle of {gang_id} although event-driven work was quiet",
                    )
                    self._bundles[bundle_id] = {offer.offer_id for offer in offers}
                    for offer in offers:
                        require(
                            offer.bundle_id == bundle_id, f"{offer.offer_id} does not say that it is of {bundle_id}"
                        )
                        self._offers.judge_new(offer, machine)
                case SendToFramework(_, CallResult(error=ErrorDetail())) if isinstance(event, FrameworkCalled):
                    refused = True
                case Reply(_, ErrorDetail()):
                    refused = True
        self._judge_gangs(machine)
        if isinstance(event, TimePassed):
            self._judge_notices()
        if self._quiet:
            self._judged("quiet means that a full cycle makes no offer")
        if refused:
            self._judged("a refusal changes nothing")
            require(not changed, f"refused, and yet something changed: {event!r}")
        if changed and (not isinstance(event, FrameworkCalled) or isinstance(event.call, UpdateFramework)):
            self._judge_outstanding(machine)
        if isinstance(event, OperatorCalled) and changed:
            self._judge_outstanding(machine)

    def _judge_gangs(self, machine: MasterMachine) -> None:
        """A bundle is out as a whole or not at all; what is held for a gang is of use to it, and held for one alone."""
        cluster = machine.cluster
        for bundle_id, offer_ids in list(self._bundles.items()):
            self._judged("a bundle is whole")
            left = offer_ids & cluster.offers.keys()
            require(not left or left == offer_ids, f"of {bundle_id}, {sorted(left)} are out, and the others are not")
            if not left:
                del self._bundles[bundle_id]
        held: dict[int, Counter[str]] = {}
        for agent_id in cluster.ledger.gang_holds:
            for number, parts in cluster.ledger.holders_on(agent_id).items():
                for part in parts.values():
                    held.setdefault(number, Counter()).update(part.amounts())
        for number, amounts in held.items():
            self._judged("a hold is of use")
            holder = cluster.gangs.by_number.get(number)
            require(holder is not None and not holder.bundle_id, f"{amounts} is held for nobody")
            assert holder is not None
            require(
                cluster.gangs.holder is holder or holder.recalls is not None,
                f"{amounts} is held for {holder.key}, which has not its turn, and lacks more than what is called back",
            )
            for kind, amount in amounts.items():
                needed = needed_of(holder.request, kind)
                require(amount <= needed, f"{amount} of {kind} is held for {holder.key}, which needs {needed}")

    def _judge_recall(self, record: Any, machine: MasterMachine) -> None:
        """What was lent while a gang filled is called back for one that is complete with it: beside what runs for good, all has room."""
        if not isinstance(record, PreemptionRecorded):
            return
        where, task = self.facts.tasks[record.framework_id, record.task_id]
        if not is_lent_while_filling(task.revocable, task.resources):
            return
        self._judged("called back is what completes a gang")
        gangs = machine.cluster.gangs
        gang = gangs.recalling.get(where)
        require(gang is not None, f"{record.task_id} on {where} is called back, and no gang needs it")
        assert gang is not None and gang.recalls is not None
        request = gang.request
        placed = [sum(counts) for counts in zip(*gang.recalls.values(), strict=True)]
        require(placed == [group.count for group in request.groups], f"{gang.key} has not all tasks placed: {placed}")
        for agent_id, counts in gang.recalls.items():
            for kind in {kind for group in request.groups for kind in group.resources.scalars}:
                needed = sum(
                    group.resources.scalars.get(kind, 0) * count
                    for group, count in zip(request.groups, counts, strict=True)
                )
                there = sum(
                    part.resources.amount(kind)
                    for part in self.facts.agents[agent_id].resources
                    if not part.stack or covers(part.stack[-1].holder, request.role)
                ) - sum(
                    part.resources.amount(kind)
                    for on, other in self.facts.tasks.values()
                    for part in other.resources
                    if on == agent_id
                    and not other.revocable
                    and (not part.stack or covers(part.stack[-1].holder, request.role))
                )
                require(
                    needed <= there, f"{gang.key} needs {needed} of {kind} on {agent_id}, and at most {there} come back"
                )

    def _judge_borrowing(self, record: Any, event: Any) -> None:
        """A task that is new: what is kept for others it only has as borrowed, and only where that is lent."""
        if (
            not isinstance(record, TaskRecorded)
            or (record.task.framework_id, record.task.spec.task_id) in self.facts.tasks
        ):
            return
        task = record.task
        if isinstance(event, FrameworkCalled) and isinstance(event.call, Accept):
            of_holds = not self._offers.of_holds.isdisjoint(event.call.offer_ids)
            require(
                task.revocable or not of_holds,
                f"{task.spec.task_id} of {task.framework_id} gets for good what is held for a gang",
            )
        foreign = [part.stack for part in task.resources if part.stack and not covers(part.stack[-1].holder, task.role)]
        what = f"{task.spec.task_id} of {task.framework_id} for {task.role}"
        if foreign:
            self._judged("borrowed is never used as if it were not")
            require(task.revocable, f"{what} gets {foreign} for good")
        if task.revocable:
            lent = self.facts.lent.get(record.agent_id, frozenset())
            require(lent.issuperset(foreign), f"{what} borrows {foreign}, and lent is {sorted(lent)}")

    def _judge_notices(self) -> None:
        """Whoever was given notice is killed when the time is over."""
        for key, at_ms in self.facts.noticed.items():
            self._judged("a notice is followed by the end")
            require(self._now.wall_ms <= at_ms + NOTICE_SLACK_MS, f"{key} was to end at {at_ms}, and nobody ends it")

    def _judge_outstanding(self, machine: MasterMachine) -> None:
        """After a rule, an agent or a reservation changed, no offer stands that could not be made now."""
        self._judged("no forbidden offer stands")
        for outstanding in machine.cluster.offers.values():
            self._offers.judge_standing(outstanding.offer)


def _picture(machine: MasterMachine) -> dict[str, Any]:
    """What a master must not forget, read from what it works with rather than from what it recorded."""
    cluster = machine.cluster
    return {
        "rules": [compiled.rule for compiled in cluster.visibility.rules if not compiled.built_in],
        "agents": {agent.agent_id: agent.info for agent in cluster.agents.values()},
        "reservations": {agent.agent_id: dict(agent.reservations) for agent in cluster.agents.values()},
        "frameworks": {framework.framework_id: framework.info for framework in cluster.frameworks.values()},
        "held": {
            key: dict(entry.holding)
            for books in cluster.ledger.books.values()
            for key, entry in books.allocated.items()
        },
        "ends": {key: task.status for key, task in cluster.tasks.items() if task.state.is_terminal},
        "kills": {key: (task.kill_reason, task.kill_grace_ms) for key, task in cluster.tasks.items()},
        "flags": dict(cluster.flags.at_run_time),
        "orders": {agent_id: known.device_orders for agent_id, known in cluster.durable.agents.items()},
        "lent": {agent.agent_id: agent.lent for agent in cluster.agents.values()},
        "volumes": {agent.agent_id: dict(agent.volumes.kept) for agent in cluster.agents.values()},
        "leaving volumes": {agent.agent_id: agent.volumes.leaving for agent in cluster.agents.values()},
        "notices": {key: task.preempt_at_ms for key, task in cluster.tasks.items()},
    }
