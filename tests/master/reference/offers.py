"""Which offers are made: a cycle, agent by agent, decision by decision (design.md §7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bursar.core.devices import Device, pick_connected
from bursar.core.predicates import AgentFacts, matches_all, parse_predicates
from bursar.core.resources import (
    EMPTY,
    Holding,
    ResourceRequest,
    Resources,
    Stack,
    add_holdings,
    holding_contains,
    intersect_ports,
    subtract_holdings,
    subtract_ports,
    sum_resources,
)
from bursar.core.text import parse_minimum

from .cluster import Agent, Framework, Offer
from .quota import Quotas


class Offering(Quotas):
    """What is offered to whom."""

    def consider(
        self, agent: Agent, role: str, framework: Framework, free: Holding
    ) -> tuple[dict[Stack, Resources], dict[int, int]] | None:
        """What would be offered, and how many of which shapes that is for; None for nothing."""
        if self.is_hidden(framework, role, agent):
            return None
        # RSV-7: what is unreserved, or reserved to the role or to one above it.
        # RSV-14: refined reservations are for those who understand them.
        offerable = {
            stack: part
            for stack, part in free.items()
            if not stack or (self.is_for(stack[-1].holder, role) and (len(stack) == 1 or framework.refines))
        }
        offerable = self.shown(framework, role, agent, offerable, free)
        offerable = self.within_quota(agent, role, offerable)
        promised: dict[int, int] = {}
        if framework.version:
            offerable, promised = self.cut(agent, role, framework, self.open(framework), offerable)
            if not promised:
                return None
        # Without a stated demand: the whole remainder (OFF-18).
        if not self.is_worth_an_offer(framework, role, offerable) or not self.takes(framework, role, agent, offerable):
            return None
        if self.filtered(framework.framework_id, role, agent.agent_id, offerable):
            return None
        return offerable, promised

    def is_worth_an_offer(self, framework: Framework, role: str, offered: Holding) -> bool:
        """OFF-11, OFF-16: one of the alternatives of the minimum is in it. The framework's own for the role wins over the
        cluster's, which is not for those that state a demand: their shapes are as large as they say. No alternatives: anything is.
        """
        if not offered:
            return False
        settings = framework.settings.get(role)
        text = settings.min_allocatable if settings is not None else None
        if text is None:
            text = "" if framework.version else self.minimum
        alternatives = parse_minimum(text)
        there = sum_resources(offered.values()).amounts()
        return not alternatives or any(
            all(there.get(kind, 0) >= least for kind, least in alternative) for alternative in alternatives
        )

    def takes(self, framework: Framework, role: str, agent: Agent, offered: Holding) -> bool:
        """OFF-12, M-11: one of the groups of predicates is true of the agent and of what would be offered of it."""
        settings = framework.settings.get(role)
        if settings is None or not settings.constraints:
            return True
        whole = sum_resources(offered.values())
        devices = tuple(agent.devices[uuid] for uuid in sorted(whole.devices))
        facts = AgentFacts(agent.hostname, agent.attributes, whole.amounts(), devices)
        return any(matches_all(parse_predicates(text), facts) for text in settings.constraints)

    def cut(
        self, agent: Agent, role: str, framework: Framework, open_counts: Sequence[int], available: Holding
    ) -> tuple[dict[Stack, Resources], dict[int, int]]:
        """What shapes × counts can use of it, the shapes in the framework's order, each as often as it still fits
        (design.md §7).
        """
        rest = dict(available)
        cut: dict[Stack, Resources] = {}
        promised: dict[int, int] = {}
        for index, shape in enumerate(framework.shapes):
            if shape.role == role:
                for _ in range(open_counts[index]):
                    if take(rest, shape.resources, agent.devices) is None:
                        break
                    promised[index] = promised.get(index, 0) + 1
                    rest = subtract_holdings(rest, take(rest, shape.resources, agent.devices) or {})
                if index in promised:
                    # The devices of one shape are chosen together: they are to be well connected.
                    before = subtract_holdings(available, cut)
                    part = take(before, shape.resources, agent.devices, promised[index])
                    assert part is not None
                    cut = add_holdings(cut, part)
                    rest = subtract_holdings(available, cut)
        return cut, promised

    def filtered(self, framework_id: str, role: str, agent_id: str, offered: Holding) -> bool:
        """OFF-5: whether some refusal contains what would be offered; more, or something else, goes out."""
        return any(
            (refusal.framework_id, refusal.role, refusal.agent_id) == (framework_id, role, agent_id)
            and holding_contains(refusal.refused, offered)
            for refusal in self.filters
        )

    def cycle(self, agent_ids: Iterable[str]) -> None:
        """Agent by agent in the permutation's order: whoever is next and may have something gets it, until nobody may. Where anybody
        says what they want, agents with the fewest free devices come first, unreserved ones before all: what is broken up already is used up (design.md §7).
        """
        demanding = any(framework.version and framework.connected for framework in self.frameworks.values())

        def whole(agent_id: str) -> tuple[int, int]:
            free = self.free(self.agents[agent_id])
            unreserved, whatever = free.get((), EMPTY), sum_resources(free.values())
            return (len(unreserved.devices), len(whatever.devices)) if demanding else (0, 0)

        for agent_id in sorted(agent_ids, key=lambda agent_id: (whole(agent_id), self.place(agent_id))):
            agent = self.agents[agent_id]
            while agent.connected and self.offer_once(agent):
                pass

    def offer_once(self, agent: Agent) -> bool:
        """Make the next offer of an agent; return whether there was one."""
        free = self.free(agent)
        if not free:
            return False
        order = self.order()
        first = [client for client in order if self.fulfils(client[0], free)]
        for role, framework_id in [*first, *order]:
            framework = self.frameworks[framework_id]
            proposal = self.consider(agent, role, framework, free)
            if proposal is not None:
                holding, promised = proposal
                offer = Offer(
                    framework_id,
                    role,
                    agent.agent_id,
                    holding,
                    self.now_ms,
                    self.now_ms + self.timeout_ms,
                    framework.version,
                    promised,
                )
                self.offers.append(offer)
                self.give(offer)
                return True
        return False

    def quiet(self) -> None:
        """The batch of events is over: the agents that changed are offered, and those that changed by that."""
        while True:
            for framework in self.frameworks.values():
                self.look_for(framework)
            if not self.changed:
                return
            agents, self.changed = self.changed, set()
            made = -1
            while made < len(self.offers):
                made = len(self.offers)
                # What anybody consumes or frees, by an offer too, changes what limits and headroom leave elsewhere.
                self.cycle(self.agents if self.quotas else agents)

    def look_for(self, framework: Framework) -> None:
        """A stated demand is another one than agents were looked at for. Where more is open, any agent may serve it; where less
        is, what the framework declined, or did not take, may be cut differently now.
        """
        before, framework.looked_for = framework.looked_for, self.open(framework)
        if not framework.connected or before == framework.looked_for:
            return
        self.changed |= set(self.agents)


def take(
    pool: Holding, request: ResourceRequest, devices: Mapping[str, Device], count: int = 1
) -> dict[Stack, Resources] | None:
    """Cut `count` times a request out of a pool, or None where it is not there.

    Reserved resources go before unreserved ones, the most refined first. The devices are the best-connected set, from one bucket
    where one has enough; named ones are those very devices. Ports are those very ports, so that they fit once.
    """
    stacks = sorted(pool, key=lambda stack: (-len(stack), stack))
    if count > 1 and (request.ports or request.devices):
        return None
    taken: dict[Stack, Resources] = {}
    for kind, amount in request.scalars.items():
        missing = amount * count
        for stack in stacks:
            part = min(missing, pool[stack].scalars.get(kind, 0))
            if part:
                taken = add_holdings(taken, {stack: Resources({kind: part})})
                missing -= part
        if missing:
            return None
    ports = request.ports
    for stack in stacks:
        common = intersect_ports(ports, pool[stack].ports)
        taken = add_holdings(taken, {stack: Resources(ports=common)})
        ports = subtract_ports(ports, common)
    if ports:
        return None
    missing_devices = request.gpu_count * count
    if request.devices:
        named = frozenset(request.devices)
        if sum(len(named & pool[stack].devices) for stack in stacks) < missing_devices:
            return None
        return add_holdings(taken, {stack: Resources(devices=named & pool[stack].devices) for stack in stacks})
    enough = [stack for stack in stacks if len(pool[stack].devices) >= missing_devices]
    for stack in enough[:1] or stacks:
        part = min(missing_devices, len(pool[stack].devices))
        chosen = frozenset(pick_connected(pool[stack].devices, part, devices))
        taken = add_holdings(taken, {stack: Resources(devices=chosen)})
        missing_devices -= part
    return None if missing_devices else taken
