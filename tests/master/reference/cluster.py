"""What there is and who holds it.

Nothing is remembered that can be worked out: what is free is derived from what there is and what is held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bursar.core.devices import Device, DeviceHealth
from bursar.core.messages.framework import OfferSettings
from bursar.core.messages.offers import Attributes, Shape
from bursar.core.messages.rules import RuleAction
from bursar.core.resources import EMPTY, Holding, Resources, Stack, add_holdings
from bursar.core.roles import covers

#: The smallest offer, unless the flag says something else: this much CPU or this much memory (OFF-11).
PLAIN_MINIMUM = "cpus:0.01|mem:32MiB"


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


class Cluster:
    """A cluster, and what the rules have set in it."""

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


def path_of(role: str) -> list[str]:
    """The role and those above it, from the top: `a`, `a/b`."""
    parts = role.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def add(held: dict[str, int], amounts: Mapping[str, int]) -> None:
    for kind, amount in amounts.items():
        held[kind] = held.get(kind, 0) + amount
