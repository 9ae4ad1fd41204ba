"""Who is served next: hierarchical weighted dominant shares (mesos.md §3.2; design.md §5)."""

from __future__ import annotations

from bursar.core.resources import sum_resources

from .cluster import Agent, Client, Cluster, Offer, Task, add, path_of

#: A role's weight where none was set, in thousandths (design.md §5).
PLAIN_WEIGHT = 1000


class Shares(Cluster):
    """The order of service."""

    def may_get(self, role: str, framework_id: str) -> bool:
        """Connected, subscribed to the role, and not suppressed in it (OFF-8)."""
        framework = self.frameworks.get(framework_id)
        return (
            framework is not None
            and framework.connected
            and role in framework.roles
            and role not in framework.suppressed
        )

    def clients(self) -> dict[Client, dict[str, int]]:
        """Everybody who holds something or may get something, with what they hold: offered and allocated, reserved and
        unreserved; reservations that lie idle are nobody's (RSV-16), and ports are in no share.
        """
        found: dict[Client, dict[str, int]] = {}
        for framework in self.frameworks.values():
            for role in framework.roles:
                if self.may_get(role, framework.framework_id):
                    found[role, framework.framework_id] = {}
        for holder in (*self.offers, *self.tasks):
            amounts = sum_resources(holder.holding.values()).amounts()
            if amounts and self.agents[holder.agent_id].counts:
                add(found.setdefault((holder.role, holder.framework_id), {}), amounts)
        return found

    def order(self) -> list[Client]:
        """Who is served, the next one first: a walk down the tree of roles, siblings ordered by share, then by how often they
        were given something, then by path. A role that has frameworks of its own and roles below it competes with these as
        its virtual leaf `role/.`; inside a role its frameworks are ordered in the same way. The share is the dominant one, of
        the whole cluster's total, and divided by the weight.
        """
        clients = self.clients()
        total: dict[str, int] = {}
        for agent in self.agents.values():
            if agent.counts:
                add(total, sum_resources(agent.buckets.values()).amounts())

        def share(node: str) -> int:
            held: dict[str, int] = {}
            for (role, framework_id), amounts in clients.items():
                if node in _line(role, framework_id):
                    add(held, amounts)
            weight = self.weights.get(node, PLAIN_WEIGHT)
            return max(
                (
                    amount * 10**18 // (total[kind] * weight)
                    for kind, amount in held.items()
                    if kind in total and kind not in self.excluded
                ),
                default=0,
            )

        def walk(depth: int, members: list[Client]) -> list[Client]:
            branches: dict[str, list[Client]] = {}
            for client in members:
                branches.setdefault(_line(*client)[depth], []).append(client)
            served: list[Client] = []
            for node in sorted(branches, key=lambda node: (share(node), self.given.get(node, 0), node)):
                is_framework = " " in node
                served += branches[node] if is_framework else walk(depth + 1, branches[node])
            return served

        return walk(0, [client for client in clients if self.may_get(*client)])

    def give(self, holder: Offer | Task) -> None:
        """Something was given: an offer, a task's resources. Counts only grow."""
        if sum_resources(holder.holding.values()).amounts():
            for node in _line(holder.role, holder.framework_id):
                self.given[node] = self.given.get(node, 0) + 1

    def forget(self, anew: Agent | None = None) -> None:
        """Who neither holds nor may get anything is forgotten with its count, and a role that has neither anybody nor a
        reservation or quota (ROL-1). The reservations of an agent that is told anew come anew.
        """
        known = {node for client in self.clients() for node in _line(*client)}
        for agent in self.agents.values():
            for stack, part in agent.buckets.items():
                if self.payer(stack) and part.amounts() and agent.counts and agent is not anew:
                    known |= set(path_of(self.payer(stack)))
        known |= {node for role in self.quotas for node in path_of(role)}
        self.given = {node: count for node, count in self.given.items() if node in known}


def _line(role: str, framework_id: str) -> list[str]:
    """The nodes from the top of the tree down to a framework in a role: `a`, `a/b`, `a/b/.`, `a/b/. f`."""
    nodes = path_of(f"{role}/.")
    return [*nodes, f"{nodes[-1]} {framework_id}"]
