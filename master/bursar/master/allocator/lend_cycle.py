"""The second part of a cycle: what is lent, and nobody took for whom it is kept, is offered to others as revocable."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from bursar.core.ids import AgentId
from bursar.core.messages.framework import REVOCABLE_RESOURCES
from bursar.master.allocator.cycle import Cycle, Made, in_order
from bursar.master.allocator.decision import Proposal
from bursar.master.allocator.lending import lending_steps, may_lend
from bursar.master.allocator.shares import Node
from bursar.master.state import Agent, Cluster


def run_lend_cycle(cluster: Cluster, agent_ids: AbstractSet[AgentId], now_ms: int, wall_ms: int) -> Made:
    """Offer as revocable what is lent of these agents, and still free after a cycle; return the new offers."""
    cycle = _LendCycle(cluster, wall_ms)
    cluster.held_back.forget(in_cycle=True)
    cycle.offer_agents(in_order(cluster, agent_ids))
    cluster.held_back.forget(in_cycle=False)
    return cycle.finish(now_ms)


class _LendCycle(Cycle):
    revocable = True

    def offer_agents(self, agents: Iterable[Agent]) -> None:
        """Offer what is lent of each agent."""
        for agent in agents:
            self._lend(agent)

    def _lend(self, agent: Agent) -> None:
        """Offer what is lent of one agent, in the order of shares, as often as anybody can use some of it."""
        cluster = self.cluster
        books, filters = cluster.ledger.books[agent.agent_id], cluster.filters.on(agent.agent_id)
        done: set[Node] = set()
        while may_lend(cluster, agent) and not agent.lent.isdisjoint(books.free):
            # Not the same value: what filters know of that is about regular offers.
            free = dict(books.free)
            for node in cluster.shares.order():
                if node in done:
                    continue
                done.add(node)
                plan = self.plan_for(node)
                if REVOCABLE_RESOURCES not in plan.framework.info.capabilities:
                    continue
                steps = lending_steps(cluster, plan.client, plan.framework)
                decision = self.question.decide(agent, plan.client, plan.framework, free, filters, steps)
                if type(decision) is Proposal:
                    self.hand_out(agent, plan, decision)
                    if self.has_quota:
                        cluster.held_back.forget(in_cycle=True)
                    break
            else:
                return
