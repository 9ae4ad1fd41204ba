"""The second part of a cycle: what is lent, and nobody took for whom it is kept, is offered to others as revocable; and so is what is
held for a gang that fills.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

from bursar.core.ids import AgentId
from bursar.core.messages.framework import REVOCABLE_RESOURCES
from bursar.core.resources import UNRESERVED, Holding, subtract_holdings
from bursar.master.allocator.cycle import Cycle, Made, in_order
from bursar.master.allocator.decision import Proposal, Steps
from bursar.master.allocator.lending import hold_steps, lending_steps, may_lend
from bursar.master.allocator.shares import Client, Node
from bursar.master.bundles import Gang
from bursar.master.state import Agent, Cluster, Framework


def run_lend_cycle(cluster: Cluster, agent_ids: AbstractSet[AgentId], now_ms: int, wall_ms: int) -> Made:
    """Offer as revocable what is lent of these agents, and still free after a cycle; return the new offers."""
    cycle = _LendCycle(cluster, wall_ms)
    cluster.held_back.forget(in_cycle=True)
    cycle.offer_agents(in_order(cluster, agent_ids))
    cluster.held_back.forget(in_cycle=False)
    return cycle.finish(now_ms)


_UNRESERVED_ALONE = frozenset({UNRESERVED})


class _LendCycle(Cycle):
    revocable = True

    def offer_agents(self, agents: Iterable[Agent]) -> None:
        """Offer what is lent of each agent."""
        if not any(
            REVOCABLE_RESOURCES in framework.info.capabilities and framework.connection is not None
            for framework in self.cluster.frameworks.values()
        ):
            return
        for agent in agents:
            self._lend(agent)
            if self.cluster.gangs.holder is not None:
                self._lend_hold(agent, self.cluster.gangs.holder)

    def _lend(self, agent: Agent) -> None:
        """Offer what is lent of one agent, in the order of shares, as often as anybody can use some of it."""
        books = self.cluster.ledger.books[agent.agent_id]
        done: set[Node] = set()
        # Not the same value: what filters know of that is about regular offers.
        while may_lend(self.cluster, agent) and not agent.lent.isdisjoint(books.free):
            if not self._hand_out_first(agent, dict(books.free), lending_steps, done):
                return

    def _lend_hold(self, agent: Agent, gang: Gang) -> None:
        """The same with what is held on an agent for the gang that fills: what of it is reserved to nobody, and what is lent anyway."""
        cluster = self.cluster
        mine = cluster.ledger.held_for(gang.number).get(agent.agent_id)
        if mine is None:
            return
        # Its framework has no use for what it waits for.
        own = {
            node for node in cluster.shares.order() if node.client and node.client.framework_id == gang.key.framework_id
        }
        for stacks, steps_of in ((agent.lent, lending_steps), (_UNRESERVED_ALONE, hold_steps)):
            done = set(own)
            while may_lend(cluster, agent):
                held = cluster.ledger.held_for(gang.number).get(agent.agent_id, {})
                there = {stack: part for stack, part in held.items() if stack in stacks}
                if not there or not self._hand_out_first(agent, there, steps_of, done, gang):
                    break

    def _hand_out_first(
        self,
        agent: Agent,
        there: Holding,
        steps_of: Callable[[Cluster, Client, Framework], Steps],
        done: set[Node],
        gang: Gang | None = None,
    ) -> bool:
        """Offer some of what there is to the first that was not asked yet and can use it; it is held for `gang` where that is given."""
        cluster, agent_id = self.cluster, agent.agent_id
        filters = cluster.filters.on(agent_id)
        for node in cluster.shares.order():
            if node in done:
                continue
            done.add(node)
            plan = self.plan_for(node)
            if REVOCABLE_RESOURCES not in plan.framework.info.capabilities:
                continue
            steps = steps_of(cluster, plan.client, plan.framework)
            decision = self.question.decide(agent, plan.client, plan.framework, there, filters, steps)
            if type(decision) is not Proposal:
                continue
            if gang is not None:
                held = cluster.ledger.held_for(gang.number)[agent_id]
                cluster.ledger.hold_for_gang(agent_id, gang.number, subtract_holdings(held, decision.holding))
            self.hand_out(agent, plan, decision)
            if self.has_quota:
                cluster.held_back.forget(in_cycle=True)
            return True
        return False
