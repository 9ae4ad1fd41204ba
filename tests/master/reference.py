"""The allocator as its documents say it, slow and obvious: what the real one is judged by.

Written from the rules (design.md §4-§7; mesos.md OFF-*, RSV-*, GPU-3, §2.1, §3.2) and apart from the code under test. Nothing is
remembered that can be worked out: what is free is derived from what there is and what is held, shares are summed anew for every
single decision, and every list is walked. The methods of `Reference` are what happens in a cluster; `quiet` says that the batch of
events is over, `advance` that time passes. Values are those of `bursar.core`; so is the choice of the best-connected devices.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bursar.core.devices import Device, DeviceHealth, pick_connected
from bursar.core.messages.framework import OfferSettings
from bursar.core.messages.offers import DEFAULT_REFUSE_MS, MAX_REFUSE_MS, Attributes, Shape
from bursar.core.messages.rules import RuleAction
from bursar.core.predicates import AgentFacts, matches_all, parse_predicates
from bursar.core.resources import (
    EMPTY,
    Holding,
    ReservedResources,
    ResourceRequest,
    Resources,
    Stack,
    add_holdings,
    holding_contains,
    intersect_ports,
    subtract_holdings,
    subtract_ports,
    sum_resources,
    to_holding,
)
from bursar.core.roles import covers
from bursar.core.text import parse_minimum, parse_resources

#: An agent that is away is given up after so long: five pings of fifteen seconds (mesos.md §0).
PATIENCE_MS = 75_000
#: The smallest offer, unless the flag says something else: this much CPU or this much memory (OFF-11).
PLAIN_MINIMUM = "cpus:0.01|mem:32MiB"
#: The longest pause of a framework that never answers.
LONGEST_PAUSE_MS = 300_000
#: The longest pause of a framework that declines the same again and again.
LONGEST_DECLINE_PAUSE_MS = 60_000
#: A role's weight where none was set, in thousandths (design.md §5).
PLAIN_WEIGHT = 1000


@dataclass(eq=False)
class Agent:
    """One machine: what it has by reservation, and whether it is there."""

    agent_id: str
    buckets: dict[Stack, Resources]
    devices: dict[str, Device]
    hostname: str = ""
    attributes: Attributes = field(default_factory=dict)
    connected: bool = True
    #: When it is given up; None while it is connected, or has been given up.
    given_up_ms: int | None = None
    #: An agent that was given up counts neither in the cluster's total, nor do its tasks in shares (design.md §4).
    counts: bool = True

    @property
    def has_gpus(self) -> bool:
        """GPU-3: whether its *total* has a GPU, in use or not, healthy or not."""
        return any(part.devices for part in self.buckets.values())


@dataclass(eq=False)
class Framework:
    """One framework: what it is, and what it said it wants."""

    framework_id: str
    roles: tuple[str, ...]
    #: GPU_RESOURCES.
    capable: bool
    failover_ms: int
    #: REGION_AWARE.
    travels: bool = False
    #: RESERVATION_REFINEMENT.
    refines: bool = False
    #: Role → which offers it takes there.
    settings: Mapping[str, OfferSettings] = field(default_factory=dict)
    connected: bool = True
    removed_ms: int | None = None
    suppressed: set[str] = field(default_factory=set)
    #: Version 0: no demand was stated.
    version: int = 0
    shapes: tuple[Shape, ...] = ()
    #: How many of each shape are still to be launched.
    wanted: list[int] = field(default_factory=list)
    #: What was open of each shape when agents were last looked at for it.
    looked_for: list[int] = field(default_factory=list)
    #: In how many rounds in a row it left offers unanswered, and when the last of them was over.
    silent_rounds: int = 0
    silent_since_ms: int = 0
    #: Role and amounts of an agent's total → the same of declines of such agents.
    decline_rounds: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)


@dataclass(eq=False)
class Offer:
    """What one framework may take of one agent, in one role (OFF-1)."""

    framework_id: str
    role: str
    agent_id: str
    holding: dict[Stack, Resources]
    made_ms: int
    expires_ms: int
    #: The demand that it was cut for, and how many of each shape.
    version: int = 0
    promised: dict[int, int] = field(default_factory=dict)


@dataclass(eq=False)
class Task:
    """What runs, and what it holds."""

    framework_id: str
    task_id: str
    role: str
    agent_id: str
    holding: dict[Stack, Resources]


@dataclass(eq=False)
class Filter:
    """OFF-5: of this agent, the framework is not offered the same or less in this role before then."""

    framework_id: str
    role: str
    agent_id: str
    refused: Holding
    until_ms: int


@dataclass(frozen=True)
class Rule:
    """One rule about who may see what (design.md §6, M-08)."""

    #: HIDE_AGENT, STRIP, HEADROOM or ALLOW.
    action: RuleAction
    #: Whether it speaks of a framework in a role.
    speaks_of: Callable[[Framework, str], bool] = lambda framework, role: True
    #: Predicates on an agent's total.
    agents: str = ""
    #: Only agents that have any of these; what `strip` takes away.
    kinds: tuple[str, ...] = ()
    #: What is kept for each GPU, `50%` or amounts; empty: as the flag says.
    headroom: str = ""
    #: Otherwise it decides nothing.
    enforced: bool = True


Meaning = Callable[[str, Mapping[str, Callable[[str], bool]]], bool]
"""Whether a role expression covers a role, while the role groups cover these."""

Client = tuple[str, str]
"""(role, framework): who is offered something."""


class Reference:
    """A cluster in which everything happens by the book."""

    def __init__(
        self, place: Callable[[str], object], now_ms: int, *, interval_ms: int = 1000, timeout_ms: int = 30_000
    ) -> None:
        #: The place of an agent in the master's permutation (OFF-19).
        self.place = place
        self.now_ms = now_ms
        self.interval_ms = interval_ms
        self.timeout_ms = timeout_ms
        #: `true`, `false` or `strip`.
        self.gpu_filter = "true"
        #: What is kept for each GPU where a rule does not say.
        self.headroom = "50%"
        #: Name → rule, in their order.
        self.rules: dict[str, Rule] = {}
        self.minimum = PLAIN_MINIMUM
        #: Where the master is; empty: nowhere in particular.
        self.region = ""
        #: Kinds that do not count in shares (GPU-6).
        self.excluded: frozenset[str] = frozenset()
        #: Role → thousandths; `role/.` is the place of a role's own frameworks among its children (T24).
        self.weights: dict[str, int] = {}
        #: Role → (guarantees, limits), kind → amount as `Resources.amounts`.
        self.quotas: dict[str, tuple[Mapping[str, int], Mapping[str, int]]] = {}
        #: What holders of reservations mean that are no plain roles (M-13), and whom each role group covers now.
        self.meanings: dict[str, Meaning] = {}
        self.groups: dict[str, Callable[[str], bool]] = {}
        self.agents: dict[str, Agent] = {}
        self.frameworks: dict[str, Framework] = {}
        #: Oldest first.
        self.offers: list[Offer] = []
        self.tasks: list[Task] = []
        self.filters: list[Filter] = []
        #: How often something was given: to a role with all below it, a role's own leaf, a framework in a role.
        self.given: dict[str, int] = {}
        #: Agents to look at once the batch is over.
        self.changed: set[str] = set()
        self.full_cycle_ms = now_ms + interval_ms

    # --- What is there, and who holds it ---

    def is_for(self, holder: str, role: str) -> bool:
        """Whether what is reserved to a holder may be offered to a role: to itself and those below it, or to whom an expression
        covers now (RSV-7, M-13).
        """
        meaning = self.meanings.get(holder)
        return covers(holder, role) if meaning is None else meaning(role, self.groups)

    def payer(self, stack: Stack) -> str:
        """The role that a bucket is charged to, used or not: nobody's are what is unreserved, and what is reserved to an expression,
        which is charged to whom uses it (design.md §5).
        """
        return "" if not stack or stack[-1].holder in self.meanings else stack[-1].holder

    def held_on(self, agent_id: str) -> dict[Stack, Resources]:
        """Offered and allocated together; offered resources are locked (OFF-2)."""
        held: dict[Stack, Resources] = {}
        for holder in (*self.offers, *self.tasks):
            if holder.agent_id == agent_id:
                held = add_holdings(held, holder.holding)
        return held

    def free(self, agent: Agent) -> dict[Stack, Resources]:
        """What nobody holds, by bucket. An unhealthy device is withheld; a device held under another bucket is nowhere free."""
        held = self.held_on(agent.agent_id)
        sick = {uuid for uuid, device in agent.devices.items() if device.health is DeviceHealth.UNHEALTHY}
        in_use = {uuid for part in held.values() for uuid in part.devices}
        free = {}
        for stack, total in agent.buckets.items():
            rest = total.minus_saturating(held.get(stack, EMPTY))
            rest = Resources(rest.scalars, rest.ports, rest.devices - sick - in_use)
            if rest:
                free[stack] = rest
        return free

    def promised(self, framework: Framework) -> list[int]:
        """How many of each shape the outstanding offers were cut for."""
        promised = [0] * len(framework.shapes)
        for offer in self.offers:
            if offer.framework_id == framework.framework_id and offer.version == framework.version:
                for index, count in offer.promised.items():
                    promised[index] += count
        return promised

    def open(self, framework: Framework) -> list[int]:
        """How many of each shape are wanted and not on offer (design.md §7)."""
        return [
            max(0, wanted - promised)
            for wanted, promised in zip(framework.wanted, self.promised(framework), strict=True)
        ]

    # --- Who is served next (mesos.md §3.2; design.md §5) ---

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
                _add(found.setdefault((holder.role, holder.framework_id), {}), amounts)
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
                _add(total, sum_resources(agent.buckets.values()).amounts())

        def share(node: str) -> int:
            held: dict[str, int] = {}
            for (role, framework_id), amounts in clients.items():
                if node in _line(role, framework_id):
                    _add(held, amounts)
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
                    known |= set(_path(self.payer(stack)))
        known |= {node for role in self.quotas for node in _path(role)}
        self.given = {node: count for node, count in self.given.items() if node in known}

    # --- What a client may have of an agent, as a list of steps ---

    def deciding_rule(self, framework: Framework, role: str, agent: Agent) -> Rule | None:
        """The first rule that speaks of both; the last of all is the flag: agents that have a GPU are hidden from frameworks without
        the capability (GPU-3), or only their GPUs (M-06), or nothing is.
        """
        rules = [rule for rule in self.rules.values() if rule.enforced]
        if self.gpu_filter != "false":
            hide = self.gpu_filter == "true"
            action = RuleAction.HIDE_AGENT if hide else RuleAction.STRIP
            rules.append(Rule(action, lambda framework, _: not framework.capable, "gpus>0", () if hide else ("gpus",)))
        whole = sum_resources(agent.buckets.values())
        devices = tuple(agent.devices[uuid] for uuid in sorted(whole.devices))
        facts = AgentFacts(agent.hostname, agent.attributes, whole.amounts(), devices)
        for rule in rules:
            has_any = any(whole.amount(kind) for kind in rule.kinds) or not rule.kinds
            if rule.speaks_of(framework, role) and has_any and matches_all(parse_predicates(rule.agents), facts):
                return rule
        return None

    def is_hidden(self, framework: Framework, role: str, agent: Agent) -> bool:
        """Whether nothing of an agent may be offered: a rule hides it, or it is in another region than the master, where both say
        where they are, and the framework does not understand that (FD-3).
        """
        rule = self.deciding_rule(framework, role, agent)
        near = self.region in ("", agent.attributes.get("region", self.region))
        return (rule is not None and rule.action is RuleAction.HIDE_AGENT) or not (framework.travels or near)

    def stripped_kinds(self, framework: Framework, role: str, agent: Agent) -> tuple[str, ...]:
        """What a rule takes out of offers; GPUs, unless it says something else."""
        rule = self.deciding_rule(framework, role, agent)
        return (rule.kinds or ("gpus",)) if rule is not None and rule.action is RuleAction.STRIP else ()

    def shown(
        self, framework: Framework, role: str, agent: Agent, offerable: Holding, free: Holding
    ) -> dict[Stack, Resources]:
        """What a rule leaves that strips, or keeps headroom for GPUs: the kinds that it takes away are not shown, and of CPUs,
        memory and the like so much is kept as the agent's GPUs need, but not for those that would be in the offer. A rule that
        strips something else than GPUs keeps headroom only if it says how much.
        """
        rule = self.deciding_rule(framework, role, agent)
        if rule is None or rule.action not in (RuleAction.STRIP, RuleAction.HEADROOM):
            return dict(offerable)
        gone = self.stripped_kinds(framework, role, agent)
        rest = {
            stack: Resources(
                {kind: amount for kind, amount in part.scalars.items() if kind not in gone},
                () if "ports" in gone else part.ports,
                frozenset() if "gpus" in gone else part.devices,
            )
            for stack, part in offerable.items()
        }
        if rule.action is RuleAction.HEADROOM or "gpus" in gone or rule.headroom:
            uses_gpus = not framework.version or any(
                count and shape.role == role and shape.resources.gpu_count
                for shape, count in zip(framework.shapes, self.open(framework), strict=True)
            )
            going = sum_resources(rest.values()).devices if uses_gpus else frozenset()
            kept = self.kept_for_gpus(agent, rule.headroom or self.headroom, free, going)
            rest = {stack: part.minus_saturating(kept.get(stack, EMPTY)) for stack, part in rest.items()}
        return {stack: part for stack, part in rest.items() if part}

    def kept_for_gpus(
        self, agent: Agent, headroom: str, free: Holding, going: Collection[str]
    ) -> dict[Stack, Resources]:
        """M-06: for each healthy GPU, busy or idle, what it is to have less what its holder has, from the GPU's bucket first, then
        from what is unreserved. A share is one of the agent's total, divided by its GPUs.
        """
        whole = sum_resources(agent.buckets.values())
        if headroom.endswith("%"):
            per_gpu = {
                kind: whole.amount(kind) * int(headroom[:-1]) // (100 * max(1, len(whole.devices)))
                for kind in ("cpus", "mem")
            }
        else:
            per_gpu = {item.kind: item.amount for item in parse_resources(headroom)}
        healthy = {uuid for uuid, device in agent.devices.items() if device.health is not DeviceHealth.UNHEALTHY}
        busy: set[str] = set()
        missing: dict[Stack, dict[str, int]] = {}
        for holder in (*self.offers, *self.tasks):
            if holder.agent_id == agent.agent_id:
                held = sum_resources(holder.holding.values())
                busy |= held.devices
                by_bucket = {stack: len(part.devices & healthy) for stack, part in holder.holding.items()}
                count = sum(by_bucket.values())
                for kind, each in per_gpu.items():
                    lacks, left = max(0, each * count - held.amount(kind)), count
                    for stack, there in by_bucket.items():
                        if there:
                            part = -(-lacks * there // left)
                            _add(missing.setdefault(stack, {}), {kind: part})
                            lacks, left = lacks - part, left - there
        for stack, bucket in agent.buckets.items():
            idle = len((bucket.devices & healthy) - busy - set(going))
            _add(missing.setdefault(stack, {}), {kind: each * idle for kind, each in per_gpu.items()})
        kept: dict[Stack, Resources] = {}
        elsewhere = missing.pop((), {})
        for stack, amounts in missing.items():
            there = free.get(stack, EMPTY).scalars
            found = {kind: min(amount, there.get(kind, 0)) for kind, amount in amounts.items()}
            kept[stack] = Resources({kind: amount for kind, amount in found.items() if amount})
            _add(elsewhere, {kind: amount - found[kind] for kind, amount in amounts.items()})
        there = free.get((), EMPTY).scalars
        found = {kind: min(amount, there.get(kind, 0)) for kind, amount in elsewhere.items()}
        kept[()] = Resources({kind: amount for kind, amount in found.items() if amount})
        return kept

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

    # --- Quota (mesos.md §3.3; design.md §5: limits hold down the tree) ---

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
        return sorted({node for known in (*self.quotas, role) for node in _path(known)})

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
            for place in ("", *_path(role)) if pool else _path(role):
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
        for path in _path(role) if self.quotas else ():
            for kind, guarantee in self.quotas.get(path, ({}, {}))[0].items():
                used = self.consumed(roles, kind)
                below = sum(self.unmet(child, kind, used) for child in used if child.rpartition("/")[0] == path)
                limits = {above: self.quotas.get(above, ({}, {}))[1] for above in _path(path)}
                full = any(kind in limit and used[above] >= limit[kind] for above, limit in limits.items())
                if guarantee - used[path] > below and not full and any(part.amount(kind) for part in free.values()):
                    return True
        return False

    # --- The cycle (design.md §7) ---

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
            # What anybody consumes or frees changes what limits and headroom leave elsewhere.
            self.cycle(self.agents if self.quotas else agents)

    def look_for(self, framework: Framework) -> None:
        """A stated demand is another one than agents were looked at for. Where more is open, any agent may serve it; where less
        is, what the framework declined, or did not take, may be cut differently now.
        """
        before, framework.looked_for = framework.looked_for, self.open(framework)
        if not framework.connected or before == framework.looked_for:
            return
        self.changed |= set(self.agents)

    # --- Time ---

    def advance(self, ms: int) -> None:
        """So much time passes, instant by instant."""
        until_ms = self.now_ms + ms
        while (due := self.next_ms()) <= until_ms:
            self.now_ms = due
            self.instant()
        self.now_ms = until_ms

    def next_ms(self) -> int:
        """When something is due next."""
        return min(
            self.full_cycle_ms,
            *(refusal.until_ms for refusal in self.filters),
            *(offer.expires_ms for offer in self.offers),
            *(agent.given_up_ms for agent in self.agents.values() if agent.given_up_ms is not None),
            *(framework.removed_ms for framework in self.frameworks.values() if framework.removed_ms is not None),
            1 << 62,
        )

    def instant(self) -> None:
        """Everything whose time has come; then one cycle for what changed, or for all where the interval is over."""
        for refusal in [refusal for refusal in self.filters if refusal.until_ms <= self.now_ms]:
            self.filters.remove(refusal)
            self.changed.add(refusal.agent_id)
        for offer in [offer for offer in self.offers if offer.expires_ms <= self.now_ms]:
            self.expire(offer)
        for agent in self.agents.values():
            if agent.given_up_ms is not None and agent.given_up_ms <= self.now_ms:
                agent.given_up_ms, agent.counts = None, False
        for framework in list(self.frameworks.values()):
            if framework.removed_ms is not None and framework.removed_ms <= self.now_ms:
                del self.frameworks[framework.framework_id]
        self.forget()
        if self.full_cycle_ms <= self.now_ms:
            self.full_cycle_ms = self.now_ms + self.interval_ms
            self.changed = set(self.agents)
        self.quiet()

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

    # --- Offers end ---

    def void(self, offer: Offer) -> None:
        """An offer is over; what it held is free again at once, and is offered again (design.md §7)."""
        self.offers.remove(offer)
        self.changed.add(offer.agent_id)
        self.forget()

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

    def accepted(
        self,
        framework_id: str,
        offers: Sequence[Offer],
        launches: Sequence[tuple[str, str, ResourceRequest]],
        refuse_ms: int | None,
    ) -> list[Task] | None:
        """Launch tasks, (id, agent, what) each, on offers of one role; return them, or None where the call is refused: it is all
        or nothing (design.md §7), and then each offer counts as declined. What is left of an agent's offers is declined
        together (OFF-3). Each launched task fulfils one of a stated demand.
        """
        framework = self.frameworks[framework_id]
        framework.silent_rounds = 0
        remaining: dict[str, dict[Stack, Resources]] = {}
        for offer in offers:
            remaining[offer.agent_id] = add_holdings(remaining.get(offer.agent_id, {}), offer.holding)
        tasks: list[Task] = []
        for task_id, agent_id, request in launches:
            part = take(remaining[agent_id], request, self.agents[agent_id].devices)
            if part is None:
                self.declined(framework_id, offers, refuse_ms, refused=True)
                return None
            remaining[agent_id] = subtract_holdings(remaining[agent_id], part)
            tasks.append(Task(framework_id, task_id, offers[0].role, agent_id, part))
        if self.passes_a_limit(offers, tasks):
            self.declined(framework_id, offers, refuse_ms, refused=True)
            return None
        until_ms = {agent_id: self.refuse_until_ms(refuse_ms) for agent_id in remaining}
        for offer in offers:
            self.void(offer)
            if offer.agent_id in {task.agent_id for task in tasks}:
                framework.decline_rounds.pop((offer.role, self.shape(offer.agent_id)), None)
            else:
                until_ms[offer.agent_id] = max(until_ms[offer.agent_id], self.declined_until_ms(offer, refuse_ms))
        for task, (_, _, request) in zip(tasks, launches, strict=True):
            self.tasks.append(task)
            self.give(task)
            fulfilled = fulfilled_shape(framework, task.role, request)
            if fulfilled is not None:
                framework.wanted[fulfilled] -= 1
        for agent_id, left in remaining.items():
            self.refuse(framework_id, offers[0].role, agent_id, left, until_ms[agent_id])
        return tasks

    def passes_a_limit(self, offers: Sequence[Offer], tasks: Sequence[Task]) -> bool:
        """T21: whether a limit would be passed by what is used, after what is left over was given back. Offers are within limits when
        they are made, but tasks come back with their agents.
        """
        for role in _path(offers[0].role):
            for kind, limit in self.quotas.get(role, ({}, {}))[1].items():
                offered = sum(self.charged(offer.holding, kind) for offer in offers)
                used = sum(self.charged(task.holding, kind) for task in tasks)
                if used and self.consumed([role], kind)[role] - offered + used > limit:
                    return True
        return False

    # --- Agents ---

    def agent_registered(
        self,
        agent_id: str,
        resources: Iterable[ReservedResources],
        devices: Iterable[Device],
        ended: Iterable[tuple[str, str]] = (),
        *,
        hostname: str = "",
        attributes: Attributes | None = None,
    ) -> None:
        """An agent is there for the first time, or again; `ended` are tasks that ended while it was away. Its offers are
        rescinded; what it had it has again, dynamic reservations included (RSV-12).
        """
        agent = self.agents.get(agent_id)
        if agent is None:
            by_uuid = {device.uuid: device for device in devices}
            agent = Agent(agent_id, to_holding(resources), by_uuid, hostname, attributes or {})
            self.agents[agent_id] = agent
        self.rescinded([offer for offer in self.offers if offer.agent_id == agent_id])
        for framework_id, task_id in ended:
            self.task_ended(framework_id, task_id)
        self.forget(anew=agent)
        if not agent.counts:
            agent.counts = True
            for task in self.tasks:
                if task.agent_id == agent_id:
                    # Its tasks count again: they were given what they hold once more.
                    self.give(task)
        agent.connected, agent.given_up_ms = True, None
        self.changed.add(agent_id)

    def agent_disconnected(self, agent_id: str) -> None:
        """It is offered to nobody, and given up after a while; its tasks go on."""
        agent = self.agents[agent_id]
        self.rescinded([offer for offer in self.offers if offer.agent_id == agent_id])
        agent.connected, agent.given_up_ms = False, self.now_ms + PATIENCE_MS

    def devices_changed(self, agent_id: str, devices: Iterable[Device]) -> None:
        """M-05: health changed; the agent's offers are rescinded."""
        agent = self.agents[agent_id]
        self.rescinded([offer for offer in self.offers if offer.agent_id == agent_id])
        agent.devices = {device.uuid: device for device in devices}
        self.forget(anew=agent)
        self.changed.add(agent_id)

    def task_ended(self, framework_id: str, task_id: str) -> None:
        """What it held is free again."""
        (task,) = [task for task in self.tasks if (task.framework_id, task.task_id) == (framework_id, task_id)]
        self.tasks.remove(task)
        self.forget()
        self.changed.add(task.agent_id)

    def rescinded(self, offers: Iterable[Offer]) -> None:
        """OFF-9: resources go back with no filter."""
        for offer in list(offers):
            self.void(offer)

    # --- Frameworks ---

    def framework_subscribed(
        self,
        framework_id: str,
        roles: Sequence[str],
        capable: bool,
        failover_ms: int,
        suppressed: Iterable[str] = (),
        *,
        travels: bool = False,
        refines: bool = False,
        settings: Iterable[OfferSettings] = (),
    ) -> None:
        """A framework is there, or there again: as a new one, but for what its tasks hold."""
        if framework_id in self.frameworks:
            self.stream_ended(framework_id)
        by_role = {one.role: one for one in settings}
        framework = Framework(framework_id, tuple(roles), capable, failover_ms, travels, refines, by_role)
        framework.suppressed = set(suppressed)
        self.frameworks[framework_id] = framework
        self.changed |= set(self.agents)

    def framework_disconnected(self, framework_id: str) -> None:
        """mesos.md §2.2: its offers are void, its filters forgotten; it is removed when its failover timeout is over."""
        self.stream_ended(framework_id)
        framework = self.frameworks[framework_id]
        if framework.failover_ms:
            framework.removed_ms = self.now_ms + framework.failover_ms
        else:
            del self.frameworks[framework_id]

    def stream_ended(self, framework_id: str) -> None:
        """What hangs on the stream goes with it (OFF-6)."""
        self.rescinded([offer for offer in self.offers if offer.framework_id == framework_id])
        self.filters = [refusal for refusal in self.filters if refusal.framework_id != framework_id]
        self.frameworks[framework_id].connected = False
        self.forget()

    def framework_updated(
        self,
        framework_id: str,
        roles: Sequence[str],
        capable: bool,
        suppressed: Iterable[str] = (),
        *,
        travels: bool = False,
        refines: bool = False,
        settings: Iterable[OfferSettings] = (),
        rescinded: Iterable[Offer] = (),
    ) -> None:
        """M-04: other roles, capabilities, settings, and it goes on. What it may not be offered any more is rescinded, but not for
        its own settings; filters of roles that it gave up or revived are dropped (OFF-6, OFF-7).
        """
        framework = self.frameworks[framework_id]
        gone = set(framework.roles) - set(roles)
        revived = framework.suppressed - set(suppressed)
        framework.roles, framework.capable, framework.suppressed = tuple(roles), capable, set(suppressed)
        framework.travels, framework.refines = travels, refines
        framework.settings = {one.role: one for one in settings}
        self.drop_filters(framework, gone | revived)
        self.rescinded(
            offer for offer in list(self.offers) if offer.framework_id == framework_id and offer.role in gone
        )
        self.permissions_changed(rescinded)
        self.forget()
        self.changed |= set(self.agents)

    def drop_filters(self, framework: Framework, roles: Iterable[str]) -> None:
        """Forget what it declined in these roles, and that it was silent."""
        if roles:
            framework.silent_rounds = 0
        for key in [key for key in framework.decline_rounds if key[0] in roles]:
            del framework.decline_rounds[key]
        self.filters = [
            refusal
            for refusal in self.filters
            if refusal.framework_id != framework.framework_id or refusal.role not in roles
        ]

    def suppressed(self, framework_id: str, roles: Iterable[str]) -> None:
        """OFF-8: no new offers for these roles, or for all; outstanding ones stay."""
        framework = self.frameworks[framework_id]
        framework.suppressed |= set(roles or framework.roles)
        self.forget()

    def revived(self, framework_id: str, roles: Iterable[str]) -> None:
        """OFF-7: these roles, or all, are served again, and their filters are dropped."""
        framework = self.frameworks[framework_id]
        revived = set(roles or framework.roles)
        framework.suppressed -= revived
        self.drop_filters(framework, revived)
        self.changed |= set(self.agents)

    def demand_stated(self, framework_id: str, version: int, shapes: Sequence[Shape]) -> None:
        """A newer version replaces all that was wanted; what is on offer already, oldest first, covers part of it."""
        framework = self.frameworks[framework_id]
        if version <= framework.version:
            return
        framework.version, framework.shapes = version, tuple(shapes)
        framework.wanted = [shape.count for shape in shapes]
        open_counts = list(framework.wanted)
        for offer in self.offers:
            if offer.framework_id == framework_id:
                agent = self.agents[offer.agent_id]
                _, promised = self.cut(agent, offer.role, framework, open_counts, offer.holding)
                offer.version, offer.promised = version, promised
                for index, count in promised.items():
                    open_counts[index] -= count
        framework.looked_for = self.open(framework)
        self.changed |= set(self.agents)

    # --- Operators ---

    def moved(self, agent_id: str, source: Stack, target: Stack, resources: Resources) -> None:
        """Free resources changed their bucket: a reservation was made or undone."""
        agent = self.agents[agent_id]
        rest = subtract_holdings(agent.buckets, {source: resources})
        agent.buckets = add_holdings(rest, {target: resources})
        self.forget()
        self.changed.add(agent_id)

    def permissions_changed(self, rescinded: Iterable[Offer]) -> None:
        """Rules, capabilities, role groups or the region are others now. Offers on agents that are hidden, those of kinds that are
        stripped, and those of what is reserved to others are rescinded (design.md §5, §6); which others make room for what is kept for GPUs, is taken as it comes. The rest stays.
        """
        going = [offer for offer in rescinded if offer in self.offers]
        for offer in self.offers:
            framework, agent = self.frameworks[offer.framework_id], self.agents[offer.agent_id]
            rule = self.deciding_rule(framework, offer.role, agent)
            kinds = self.stripped_kinds(framework, offer.role, agent)
            has = any(part.amount(kind) for part in offer.holding.values() for kind in kinds)
            others = any(
                stack and (not self.is_for(stack[-1].holder, offer.role) or (len(stack) > 1 and not framework.refines))
                for stack in offer.holding
            )
            must = self.is_hidden(framework, offer.role, agent) or has or others
            may = must or (rule is not None and rule.action in (RuleAction.STRIP, RuleAction.HEADROOM))
            assert offer in going or not must, f"not rescinded: {offer}"
            assert may or offer not in going, f"rescinded for nothing: {offer}"
        self.rescinded(going)
        self.changed |= set(self.agents)

    def rule_added(self, name: str, rule: Rule, before: str = "") -> None:
        """A rule comes last, or before another one; in the place of the one of its name where there is one."""
        names = [known for known in self.rules if known != name]
        place = list(self.rules).index(name) if name in self.rules else len(names)
        names.insert(names.index(before) if before else place, name)
        self.rules = {known: rule if known == name else self.rules[known] for known in names}

    def group_set(self, name: str, members: Callable[[str], bool]) -> None:
        """M-13: a role group covers others now."""
        self.groups[name] = members

    def minimum_set(self, text: str) -> None:
        """OFF-11: from now on offers are at least this large; what is offered stands."""
        self.minimum = text
        self.changed |= set(self.agents)

    def weights_set(self, weights: Mapping[str, int]) -> None:
        """WGT-1, T22: from now on the order is another one; nothing that is held is touched, and roles that are not named keep
        theirs.
        """
        self.weights |= weights

    def quotas_set(self, quotas: Mapping[str, tuple[Mapping[str, int], Mapping[str, int]]]) -> None:
        """QTA-1: the quotas of these roles are replaced; empty ones are removed."""
        self.quotas = {role: quota for role, quota in (self.quotas | quotas).items() if any(quota)}
        self.forget()
        self.changed |= set(self.agents)

    def excluded_set(self, kinds: Iterable[str]) -> None:
        """GPU-6: from now on these do not count; nothing else happens."""
        self.excluded = frozenset(kinds)


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


def _whole(kind: str, amount: int) -> int:
    return amount - amount % 1000 if kind == "gpus" else amount


def _path(role: str) -> list[str]:
    """The role and those above it, from the top: `a`, `a/b`."""
    parts = role.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _line(role: str, framework_id: str) -> list[str]:
    """The nodes from the top of the tree down to a framework in a role: `a`, `a/b`, `a/b/.`, `a/b/. f`."""
    nodes = _path(f"{role}/.")
    return [*nodes, f"{nodes[-1]} {framework_id}"]


def _add(held: dict[str, int], amounts: Mapping[str, int]) -> None:
    for kind, amount in amounts.items():
        held[kind] = held.get(kind, 0) + amount
