"""How offers end: accepted, declined, rescinded, not answered; and the filters that come of it (OFF-3 to OFF-10)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bursar.core.messages.offers import DEFAULT_REFUSE_MS, MAX_REFUSE_MS
from bursar.core.resources import (
    EMPTY,
    Holding,
    Reservation,
    ReservationType,
    ResourceRequest,
    Resources,
    Stack,
    add_holdings,
    subtract_holdings,
    sum_resources,
)

from .cluster import Filter, Framework, Offer, Task, path_of
from .offers import Offering, take

#: The longest pause of a framework that never answers.
LONGEST_PAUSE_MS = 300_000
#: The longest pause of a framework that declines the same again and again.
LONGEST_DECLINE_PAUSE_MS = 60_000


@dataclass(frozen=True)
class Launch:
    """Start a task on an agent."""

    task_id: str
    agent_id: str
    request: ResourceRequest


@dataclass(frozen=True)
class Reserve:
    """RSV-2: push a level on what is offered of a bucket of an agent."""

    agent_id: str
    onto: Stack
    level: Reservation
    request: ResourceRequest


@dataclass(frozen=True)
class Unreserve:
    """RSV-2: pop the top level of what is offered of a bucket."""

    agent_id: str
    stack: Stack
    resources: Resources


@dataclass(frozen=True)
class Moved:
    """What a reservation, or the end of one, comes to."""

    agent_id: str
    source: Stack
    target: Stack
    resources: Resources


class Answers(Offering):
    """What becomes of offers."""

    def void(self, offer: Offer) -> None:
        """An offer is over; what it held is free again at once, and is offered again (design.md §7)."""
        self.offers.remove(offer)
        self.changed.add(offer.agent_id)
        self.forget()

    def rescinded(self, offers: Iterable[Offer]) -> None:
        """OFF-9: resources go back with no filter."""
        for offer in list(offers):
            self.void(offer)

    def refuse(self, framework_id: str, role: str, agent_id: str, refused: Holding, until_ms: int) -> None:
        """A filter comes to be; refusing nothing filters nothing."""
        if refused:
            self.filters.append(Filter(framework_id, role, agent_id, refused, until_ms))

    def refuse_until_ms(self, refuse_ms: int | None) -> int:
        """Five seconds where nothing is said, not less than an allocation interval, at most a year (OFF-5, T9)."""
        asked = DEFAULT_REFUSE_MS if refuse_ms is None else min(refuse_ms, MAX_REFUSE_MS)
        return self.now_ms + max(self.interval_ms, asked)

    def declined(
        self, framework_id: str, offers: Iterable[Offer], refuse_ms: int | None, *, refused: bool = False
    ) -> None:
        """OFF-4: each offer installs a filter. `refused`: the framework did want it, but its call was refused."""
        self.frameworks[framework_id].silent_rounds = 0
        for offer in offers:
            self.void(offer)
            until_ms = self.refuse_until_ms(refuse_ms) if refused else self.declined_until_ms(offer, refuse_ms)
            self.refuse(framework_id, offer.role, offer.agent_id, offer.holding, until_ms)

    def declined_until_ms(self, offer: Offer, refuse_ms: int | None) -> int:
        """Who declined agents of one shape, that is with the same in total, six times in a row waits an allocation interval, and
        twice as long every further time, up to a minute; or as long as its own filter says. Offers that were out together
        are one time. Using something of such an agent, and whatever drops filters, ends the row.
        """
        until_ms = self.refuse_until_ms(refuse_ms)
        if until_ms - self.now_ms >= LONGEST_DECLINE_PAUSE_MS:
            return until_ms
        rows, key = self.frameworks[offer.framework_id].decline_rounds, (offer.role, self.shape(offer.agent_id))
        rounds, since_ms = rows.get(key, (0, 0))
        if rounds == 0 or offer.made_ms > since_ms:
            rounds, since_ms = rounds + 1, self.now_ms
        rows[key] = rounds, since_ms
        if rounds <= 5:
            return until_ms
        pause_ms = max(self.interval_ms, min(self.interval_ms * 2 ** (rounds - 6), LONGEST_DECLINE_PAUSE_MS))
        return max(until_ms, self.now_ms + pause_ms)

    def shape(self, agent_id: str) -> str:
        """Agents that have the same in total have one."""
        return str(sorted(sum_resources(self.agents[agent_id].buckets.values()).amounts().items()))

    def expire(self, offer: Offer) -> None:
        """OFF-10: an offer that is not answered in time is rescinded. In none of its roles is the framework offered the same for a
        while: one allocation interval at first, twice as long with every further round in a row that it leaves unanswered. Offers
        that were out together are one round.
        """
        framework = self.frameworks[offer.framework_id]
        if framework.silent_rounds == 0 or offer.made_ms >= framework.silent_since_ms:
            framework.silent_rounds += 1
            framework.silent_since_ms = self.now_ms
        pause_ms = max(self.interval_ms, min(self.interval_ms * 2 ** (framework.silent_rounds - 1), LONGEST_PAUSE_MS))
        self.void(offer)
        for role in framework.roles:
            self.refuse(offer.framework_id, role, offer.agent_id, offer.holding, self.now_ms + pause_ms)

    def accepted(
        self,
        framework_id: str,
        offers: Sequence[Offer],
        operations: Sequence[Launch | Reserve | Unreserve],
        refuse_ms: int | None,
    ) -> list[Task] | None:
        """Do these things, one after the other, on offers of one role; return the tasks that were launched, or None where the call is
        refused: it is all or nothing (design.md §7), and then each offer counts as declined. What is left of an agent's offers is
        declined together (OFF-3), but not what the call itself made. Each launched task fulfils one of a stated demand.
        """
        framework = self.frameworks[framework_id]
        framework.silent_rounds = 0
        offered: dict[str, dict[Stack, Resources]] = {}
        for offer in offers:
            offered[offer.agent_id] = add_holdings(offered.get(offer.agent_id, {}), offer.holding)
        remaining, done = dict(offered), list[Task | Moved]()
        for operation in operations:
            agent_id = operation.agent_id
            step = self.plan(framework, offers[0].role, remaining[agent_id], operation)
            if step is None:
                self.declined(framework_id, offers, refuse_ms, refused=True)
                return None
            if isinstance(step, Task):
                remaining[agent_id] = subtract_holdings(remaining[agent_id], step.holding)
            else:
                rest = subtract_holdings(remaining[agent_id], {step.source: step.resources})
                remaining[agent_id] = add_holdings(rest, {step.target: step.resources})
            done.append(step)
        if self.passes_a_limit(offers, done):
            self.declined(framework_id, offers, refuse_ms, refused=True)
            return None
        until_ms = {agent_id: self.refuse_until_ms(refuse_ms) for agent_id in remaining}
        for offer in offers:
            self.void(offer)
            if offer.agent_id in {step.agent_id for step in done}:
                framework.decline_rounds.pop((offer.role, self.shape(offer.agent_id)), None)
            else:
                until_ms[offer.agent_id] = max(until_ms[offer.agent_id], self.declined_until_ms(offer, refuse_ms))
        for step, operation in zip(done, operations, strict=True):
            if isinstance(step, Moved):
                self.moved(step.agent_id, step.source, step.target, step.resources)
                continue
            self.tasks.append(step)
            self.give(step)
            assert isinstance(operation, Launch)
            fulfilled = fulfilled_shape(framework, step.role, operation.request)
            if fulfilled is not None:
                framework.wanted[fulfilled] -= 1
        for agent_id, left in remaining.items():
            refused = {stack: part.intersection(offered[agent_id].get(stack, EMPTY)) for stack, part in left.items()}
            refused = {stack: part for stack, part in refused.items() if part}
            self.refuse(framework_id, offers[0].role, agent_id, refused, until_ms[agent_id])
        return [step for step in done if isinstance(step, Task)]

    def plan(
        self, framework: Framework, role: str, there: Holding, operation: Launch | Reserve | Unreserve
    ) -> Task | Moved | None:
        """What an operation would take of what is left of the offers of its agent; None where it may not, or there is too little."""
        agent_id, devices = operation.agent_id, self.agents[operation.agent_id].devices
        match operation:
            case Launch():
                part = take(there, operation.request, devices)
                return None if part is None else Task(framework.framework_id, operation.task_id, role, agent_id, part)
            case Reserve():
                part = take({operation.onto: there.get(operation.onto, EMPTY)}, operation.request, devices)
                if part is None or not self.may_reserve(framework, role, operation):
                    return None
                target = (*operation.onto, operation.level)
                return Moved(agent_id, operation.onto, target, part[operation.onto])
            case Unreserve():
                # RSV-9: the top level is undone, of what is offered, unless the agent's own settings made it.
                stack, wanted = operation.stack, operation.resources
                undoable = bool(stack) and stack[-1].type is ReservationType.DYNAMIC
                if not undoable or not wanted or not there.get(stack, EMPTY).contains(wanted):
                    return None
                return Moved(agent_id, stack, stack[:-1], wanted)

    def may_reserve(self, framework: Framework, role: str, operation: Reserve) -> bool:
        """RSV-8: to the role of the offers, which is not everybody's. RSV-6: by one level, on what is reserved to a role above it, or
        to an expression, by those who understand refinement (RSV-14).
        """
        if operation.level.holder != role or role == "*":
            return False
        below = operation.onto[-1].holder if operation.onto else None
        if below is None:
            return True
        return framework.refines and self.is_for(below, role) and (below in self.meanings or below != role)

    def moved(self, agent_id: str, source: Stack, target: Stack, resources: Resources) -> None:
        """Free resources changed their bucket: a reservation was made or undone."""
        agent = self.agents[agent_id]
        rest = subtract_holdings(agent.buckets, {source: resources})
        agent.buckets = add_holdings(rest, {target: resources})
        self.forget()
        self.changed.add(agent_id)

    def passes_a_limit(self, offers: Sequence[Offer], done: Sequence[Task | Moved]) -> bool:
        """T21: whether a limit would be passed by what is used, after what is left over was given back. Offers are within limits when
        they are made, but tasks come back with their agents. What is reserved to a role counts from then on, and no more once it is
        undone.
        """
        for role in path_of(offers[0].role):
            for kind, limit in self.quotas.get(role, ({}, {}))[1].items():
                offered = sum(self.charged(offer.holding, kind) for offer in offers)
                used = 0
                for step in done:
                    if isinstance(step, Task):
                        used += self.charged(step.holding, kind)
                    else:
                        used += self.charged({step.source: step.resources}, kind)
                        used -= self.charged({step.target: step.resources}, kind)
                if used > 0 and self.consumed([role], kind)[role] - offered + used > limit:
                    return True
        return False


def fulfilled_shape(framework: Framework, role: str, request: ResourceRequest) -> int | None:
    """The shape that a launched task fulfils: the equal one, else the first that is at least as large."""
    open_shapes = [
        (index, shape.resources)
        for index, shape in enumerate(framework.shapes)
        if shape.role == role and framework.wanted[index] > 0
    ]
    for index, resources in open_shapes:
        if resources == request:
            return index
    for index, resources in open_shapes:
        enough = all(resources.scalars.get(kind, 0) >= amount for kind, amount in request.scalars.items())
        if enough and resources.gpu_count >= request.gpu_count:
            return index
    return None
