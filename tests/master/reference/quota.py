"""How much a client may have: limits, which hold down the tree, and what is kept free for guarantees (mesos.md §3.3; design.md §5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bursar.core.devices import pick_connected
from bursar.core.resources import EMPTY, Holding, Resources, Stack
from bursar.core.roles import covers

from .cluster import Agent, path_of
from .visibility import Visibility


class Quotas(Visibility):
    """Limits and guarantees."""

    def consumed(self, roles: Iterable[str], kind: str) -> dict[str, int]:
        """What counts against the quota of each role: what is reserved to it and to those below it, used or not, and what they hold
        of anything else. What is offered counts. So does an agent that is away, until it is given up.
        """
        used = dict.fromkeys(roles, 0)

        def count(payer: str, amount: int) -> None:
            for role in used:
                if covers(role, payer):
                    used[role] += amount

        for agent in self.agents.values():
            for stack, part in agent.buckets.items():
                if agent.counts and self.payer(stack):
                    count(self.payer(stack), part.amount(kind))
        for holder in (*self.offers, *self.tasks):
            if self.agents[holder.agent_id].counts:
                count(holder.role, self.charged(holder.holding, kind))
        return used

    def charged(self, holding: Holding, kind: str) -> int:
        """What counts of a holding against the quota of who holds it."""
        return sum(part.amount(kind) for stack, part in holding.items() if not self.payer(stack))

    def unmet(self, role: str, kind: str, used: Mapping[str, int]) -> int:
        """What is kept free for a role and those below it: what they consume less than they are guaranteed, or what their parts
        hope for where that is more; but not more than the limits let them have. The empty role is all roles together.
        """
        below = sum(self.unmet(child, kind, used) for child in used if child.rpartition("/")[0] == role and child)
        guarantees, limits = self.quotas.get(role, ({}, {}))
        unmet = max(0, guarantees.get(kind, 0) - used.get(role, 0), below)
        return max(0, min(unmet, limits[kind] - used[role])) if kind in limits else unmet

    def quota_roles(self, role: str) -> list[str]:
        """All roles with quota, those above them, and the path of one role."""
        return sorted({node for known in (*self.quotas, role) for node in path_of(known)})

    def allowed(self, role: str, kind: str, wanted: int, *, pool: bool = True) -> int:
        """The most of what is unreserved that may be given to a role, at most `wanted`: no limit is passed, up the tree; and a
        guarantee that can be kept still can be, from what is free in the cluster, or what a limit leaves to those below it. Without
        `pool`: of what no guarantee is kept from.
        """
        before = self.consumed(self.quota_roles(role), kind)
        free = sum(self.free(agent).get((), EMPTY).amount(kind) for agent in self.agents.values() if agent.connected)

        def rooms(given: int) -> list[tuple[int, int]]:
            """Of all places where something is kept for guarantees below: (what is left there, what is missing)."""
            used = {path: amount + given * covers(path, role) for path, amount in before.items()}
            found = []
            for place in ("", *path_of(role)) if pool else path_of(role):
                limits = self.quotas.get(place, ({}, {}))[1]
                if place and kind not in limits:
                    continue
                left = limits[kind] - used[place] if place else free - given
                below = sum(self.unmet(child, kind, used) for child in used if child.rpartition("/")[0] == place)
                found.append((left, max(0, below - max(0, left))))
            return found

        at_first = rooms(0)
        least, most = 0, wanted
        while least < most:
            middle = (least + most + 1) // 2
            fits = all(
                left >= 0 and missing <= was for (left, missing), (_, was) in zip(rooms(middle), at_first, strict=True)
            )
            least, most = (middle, most) if fits else (least, middle - 1)
        return least

    def within_quota(self, agent: Agent, role: str, offerable: Holding) -> dict[Stack, Resources]:
        """Unreserved resources are cut to what is allowed of each kind, GPUs whole; what is reserved to the role or to one above it
        flows regardless (RSV-15). What is reserved to an expression is within limits, and used first; where not all guarantees can be
        kept, so much less is given of what is unreserved. Ports are in no quota.
        """
        cut = dict(offerable)
        if not self.quotas:
            return cut
        shared = sorted(stack for stack in offerable if stack and not self.payer(stack))
        for kind in sorted({kind for part in offerable.values() for kind in part.amounts()}):
            used = 0
            for stack in shared:
                wanted = offerable[stack].amount(kind)
                left = _whole(kind, self.allowed(role, kind, wanted + used, pool=False) - used)
                cut[stack] = self.cut_kind(agent, cut[stack], kind, left)
                used += left
            part = cut.get((), EMPTY)
            if not part.amount(kind):
                continue
            most = self.allowed(role, kind, part.amount(kind))
            if used:
                most = min(most, self.allowed(role, kind, part.amount(kind) + used, pool=False) - used)
                free = sum(self.free(one).get((), EMPTY).amount(kind) for one in self.agents.values() if one.connected)
                roles = self.quota_roles(role)
                before = self.consumed(roles, kind)
                kept = self.unmet("", kind, before)
                if free < kept:
                    # Each unit must fulfil a guarantee, after those of what is reserved to the expression.
                    while most > 0:
                        after = {path: amount + (used + most) * covers(path, role) for path, amount in before.items()}
                        excess = used + most - (kept - self.unmet("", kind, after))
                        if excess <= 0:
                            break
                        most -= excess
            cut[()] = self.cut_kind(agent, part, kind, _whole(kind, max(0, most)))
        return {stack: rest for stack, rest in cut.items() if rest}

    def cut_kind(self, agent: Agent, part: Resources, kind: str, amount: int) -> Resources:
        """At most so much of a kind."""
        if kind == "gpus":
            chosen = frozenset(pick_connected(part.devices, min(len(part.devices), amount // 1000), agent.devices))
            return Resources(part.scalars, part.ports, chosen)
        scalars = {name: min(there, amount) if name == kind else there for name, there in part.scalars.items()}
        return Resources({name: there for name, there in scalars.items() if there}, part.ports, part.devices)

    def fulfils(self, role: str, free: Holding) -> bool:
        """Whether some of what is free would fulfil a guarantee of the role or of one above it, beyond what roles below that one
        hope for, and no limit up the tree forbids it: such clients are served first (mesos.md §3.2, stage 1).
        """
        roles = self.quota_roles(role)
        for path in path_of(role) if self.quotas else ():
            for kind, guarantee in self.quotas.get(path, ({}, {}))[0].items():
                used = self.consumed(roles, kind)
                below = sum(self.unmet(child, kind, used) for child in used if child.rpartition("/")[0] == path)
                limits = {above: self.quotas.get(above, ({}, {}))[1] for above in path_of(path)}
                full = any(kind in limit and used[above] >= limit[kind] for above, limit in limits.items())
                if guarantee - used[path] > below and not full and any(part.amount(kind) for part in free.values()):
                    return True
        return False


def _whole(kind: str, amount: int) -> int:
    return amount - amount % 1000 if kind == "gpus" else amount
