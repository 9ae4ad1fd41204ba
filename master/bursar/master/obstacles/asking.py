"""Pairs that are refused alike, and asking the code that decides without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain

from bursar.core.clock import Instant
from bursar.core.ids import AgentId, FrameworkId
from bursar.core.messages.offers import Shape
from bursar.core.messages.operator import RefusalReason
from bursar.core.resources import (
    Holding,
    holding_total,
)
from bursar.master.allocator.decision import Proposal, Question, consider
from bursar.master.allocator.filters import AgentFilters
from bursar.master.allocator.held_back import HeldBack, guaranteed_first
from bursar.master.allocator.lending import lending_steps
from bursar.master.allocator.shares import Client, Node
from bursar.master.ledger import Books
from bursar.master.obstacles.wording import amounts_of, how_much
from bursar.master.state import Agent, Cluster, Framework

#: Shapes, holders, agents and the like that are looked at for facts.
MAX_LOOKED_AT = 5


@dataclass(slots=True)
class Group:
    """Pairs of (framework in a role, agent) that are refused for the same reason."""

    cluster: Cluster
    now: Instant
    reason: RefusalReason
    #: Empty where several roles are counted together.
    role: str
    #: The first pair stands for the others where facts differ.
    client: Client
    agent: Agent
    pairs: int = 0
    agents: dict[AgentId, Agent] = field(default_factory=dict)
    clients: dict[Client, None] = field(default_factory=dict)
    frameworks: dict[FrameworkId, Framework] = field(default_factory=dict)

    def add(self, agent: Agent, client: Client, framework: Framework) -> None:
        """One more pair."""
        self.pairs += 1
        self.agents[agent.agent_id] = agent
        self.clients[client] = None
        self.frameworks[framework.framework_id] = framework

    def choose_example(self) -> None:
        """Let the agent stand for the others of which the least is lacking: fewest kinds of what is wanted are not free."""
        shapes = self.shapes
        if len(self.agents) < 2 or not shapes or len(self.frameworks) > 1:
            return
        request = shapes[0][0].resources
        amounts = amounts_of(request)

        def lacking(agent: Agent) -> int:
            free = holding_total(self.books_of(agent).free)
            return sum(how_much(request, kind, free) < wanted for kind, wanted in amounts)

        self.agent = min(self.agents.values(), key=lacking)

    def books_of(self, agent: Agent) -> Books:
        """The ledger's books of an agent."""
        return self.cluster.ledger.books[agent.agent_id]

    @property
    def framework(self) -> Framework:
        """That of the first pair."""
        return self.frameworks[self.client.framework_id]

    @property
    def shapes(self) -> list[tuple[Shape, int]]:
        """What the first pair's framework still wants in the role, and how often; empty: anything."""
        framework, role = self.framework, self.client.role
        return [
            (shape, wanted)
            for shape, wanted in zip(framework.demand.shapes, framework.wanted, strict=True)
            if shape.role == role and wanted > 0
        ]


def ask(
    cluster: Cluster,
    agent: Agent,
    client: Client,
    framework: Framework,
    free: Holding,
    *,
    filtered: bool = True,
    borrowing: bool = False,
) -> Proposal | RefusalReason:
    """What the allocator would decide if `free` were free on an agent; `filtered`: as if nothing had been declined where False;
    `borrowing`: what is lent, that is.

    Decides nothing, and inside `undisturbed` leaves nothing behind.
    """
    filters = cluster.filters.on(agent.agent_id) if filtered else None
    if filters is not None:
        # What the decision notes, to be faster the next time, is noted in a copy.
        filters = AgentFilters(filters.by_client)
    if borrowing:
        steps = lending_steps(cluster, client, framework)
        # Not the same value: what filters know of that is about regular offers.
        return Question(cluster, exact=True).decide(agent, client, framework, dict(free), filters, steps)
    return consider(cluster, agent, client, framework, free, filters)


@contextmanager
def undisturbed(cluster: Cluster) -> Iterator[None]:
    """What decisions note for the cycle that they are part of is noted elsewhere."""
    held_back = cluster.held_back
    cluster.held_back = HeldBack()
    try:
        with cluster.visibility.uncounted():
            yield
    finally:
        cluster.held_back = held_back


def in_order(cluster: Cluster, free: Holding) -> Iterator[Node]:
    """Who is served, each once, in the order of a cycle with this free on an agent."""
    shares = cluster.shares
    seen: set[Client] = set()
    first = guaranteed_first(shares, free) if shares.quota_kinds else ()
    for node in chain(first, shares.order()):
        assert node.client is not None
        if node.client not in seen:
            seen.add(node.client)
            yield node
