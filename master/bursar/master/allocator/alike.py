"""What a cycle remembers of its decisions: agents alike are decided alike, and so are clients that want the same.

Where all that is free is unreserved, no rule and no filter speaks of the client, and quota cuts nothing, a decision depends on what is
free, on what the client wants and takes (`Want`), on how much of that is open, and on what the agent says of itself under the names
that the client's constraints use. Under these the decision of `decision.Question` is kept, and repeated for others (`Portion`). What
differs from agent to agent is which devices it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bursar.core.device_names import device_kinds, gpus_among, has_views
from bursar.core.devices import Device, pick_connected
from bursar.core.ids import DeviceUuid
from bursar.core.messages.framework import REGION_AWARE
from bursar.core.messages.operator import RefusalReason
from bursar.core.predicates import HOSTNAME
from bursar.core.resources import (
    UNRESERVED,
    Holding,
    Ports,
    ReservedResources,
    ResourceRequest,
    Resources,
    subtract_holdings,
    to_reserved,
)
from bursar.core.text import Minimum
from bursar.master.allocator.carve import fitting_count
from bursar.master.allocator.constraints import RoleSettings
from bursar.master.allocator.decision import Proposal, minimum_of
from bursar.master.allocator.shares import Amounts, Client, Node
from bursar.master.state import Agent, Cluster, Framework

#: Refusals for want of amounts. During a cycle neither what quota allows nor what a framework wants grows, so they stand for all
#: agents alike.
WANT_OF_AMOUNTS = frozenset(
    {
        RefusalReason.SUPPRESSED,
        RefusalReason.EXCEEDS_AGENT,
        RefusalReason.NOT_FREE,
        RefusalReason.QUOTA_LIMIT,
        RefusalReason.HEADROOM,
        RefusalReason.TOO_SMALL,
    }
)
#: More often than anything fits.
_ANY_NUMBER = 2**63

FreeAmounts = tuple[frozenset[tuple[str, int]], Ports, int | tuple[str, ...]]
"""What is free and unreserved of an agent: scalars, ports, and how many GPUs, or of which kind each device is."""

Circumstances = tuple[object, ...] | int
"""All that a decision depends on beside what is free and who wants what: how much of it is open, and what the agent says."""


def free_amounts(free: Holding) -> FreeAmounts | None:
    """The amounts by which agents are alike; None where something is reserved, or one device is a view of another."""
    if len(free) != 1 or UNRESERVED not in free:
        return None
    part = free[UNRESERVED]
    devices: int | tuple[str, ...] = len(part.devices)
    if gpus_among(part.devices) is not part.devices:
        if has_views(part.devices):
            return None
        others = device_kinds(part.devices)
        devices = tuple(f"{kind}={part.amount(kind)}" for kind in ("gpus", *others))
    return frozenset(part.scalars.items()), part.ports, devices


OnAgent = tuple[Holding, Holding, tuple[ReservedResources, ...]]
"""What a portion is on one agent: what is offered, what is left, and the former as it travels."""


class _WantKey(NamedTuple):
    shapes: tuple[tuple[int, ResourceRequest], ...]
    states_demand: bool
    settings: RoleSettings | None
    minimum: Minimum
    minds_regions: bool


class Want:
    """What a client wants and takes, as far as its framework says: those who want the same share one."""

    __slots__ = ("_attributes", "_minds_hosts", "_only", "is_constant", "judges_devices", "settings", "shapes")

    def __init__(self, key: _WantKey) -> None:
        #: Index in the demand, and what one takes.
        self.shapes = key.shapes
        self.settings = key.settings
        self._only = key.shapes[0][0] if len(key.shapes) == 1 else None
        names = key.settings.names if key.settings is not None else ()
        self._attributes = (*names, "region") if key.minds_regions else names
        self._minds_hosts = HOSTNAME in names
        #: Whether no circumstances matter.
        self.is_constant = not self._attributes and not key.shapes
        #: Whether what is offered depends on more of the devices than their number.
        self.judges_devices = key.settings is not None and key.settings.judges_offers

    def often(self, free: Holding) -> tuple[int, ...]:
        """How often each shape fits into what is free, by itself: it makes no difference how many more are wanted."""
        return tuple([fitting_count(free, request, _ANY_NUMBER) for _, request in self.shapes])

    def circumstances(self, agent: Agent, framework: Framework, often: tuple[int, ...]) -> Circumstances:
        """What a decision depends on at an agent into which the shapes fit so often."""
        wanted, promised = framework.wanted, framework.promised
        number: Circumstances
        if self._only is not None:
            number = wanted[self._only] - promised[self._only]
            if number > often[0]:
                number = often[0]
            elif number < 0:
                number = 0
        else:
            number = tuple(
                [max(0, min(wanted[i] - promised[i], most)) for (i, _), most in zip(self.shapes, often, strict=True)]
            )
        if not self._attributes:
            return number
        info = agent.info
        said = (number, *map(info.attributes.get, self._attributes))
        return (*said, info.hostname) if self._minds_hosts else said


class Wants:
    """What is wanted, each once."""

    def __init__(self) -> None:
        self._known: dict[_WantKey, Want] = {}

    def of(self, cluster: Cluster, client: Client, framework: Framework) -> Want | None:
        """What a client wants; None where it asks for devices by name."""
        demand = framework.demand
        shapes = tuple(
            [(index, shape.resources) for index, shape in enumerate(demand.shapes) if shape.role == client.role]
        )
        if any(request.devices for _, request in shapes):
            return None
        settings = framework.settings.get(client.role)
        minds_regions = bool(cluster.region) and REGION_AWARE not in framework.info.capabilities
        minimum = minimum_of(cluster, settings, framework)
        key = _WantKey(shapes, demand.version > 0, settings, minimum, minds_regions)
        want = self._known.get(key)
        if want is None:
            want = self._known[key] = Want(key)
        return want


class Portion:
    """What a client is offered of agents alike, and what is left of them then."""

    __slots__ = (
        "_ports",
        "_rest_ports",
        "_rest_scalars",
        "_scalars",
        "_whole",
        "amounts",
        "numbers",
        "promised",
        "rest",
        "same",
    )

    def __init__(
        self, free: Holding, want: Want, proposal: Proposal, amounts: Amounts, left: Holding, rest: Alike | None
    ) -> None:
        holding, self.promised = proposal
        #: As it is charged; such as are alike are one object.
        self.amounts = amounts
        #: What is left; None: nothing.
        self.rest = rest
        part, left_part = holding[UNRESERVED], left.get(UNRESERVED, _NOTHING)
        self._whole = not left
        self._scalars, self._ports = part.scalars, part.ports
        self._rest_scalars, self._rest_ports = left_part.scalars, left_part.ports
        #: The devices are picked in so many turns, so many each.
        self.numbers = tuple(
            [request.gpu_count * self.promised[index] for index, request in want.shapes if self.promised.get(index)]
        )
        #: Where there are no devices: the same on every agent.
        self.same: OnAgent | None = None
        if not free[UNRESERVED].devices:
            self.same = holding, left, to_reserved(holding)

    def of(self, free: Holding, devices: Mapping[DeviceUuid, Device]) -> OnAgent:
        """What it is on another agent."""
        if self._whole:
            return free, {}, to_reserved(free)
        pool = free[UNRESERVED].devices
        picked: frozenset[DeviceUuid] = frozenset()
        for number in self.numbers:
            chosen = pool if number == len(pool) else frozenset(pick_connected(pool, number, devices))
            picked |= chosen
            pool -= chosen
        taken = Resources(self._scalars, self._ports, picked)
        return (
            {UNRESERVED: taken},
            {UNRESERVED: Resources(self._rest_scalars, self._rest_ports, pool)},
            (ReservedResources(UNRESERVED, taken),),
        )


_NOTHING = Resources()


class _Known:
    """What is known of a want and agents alike."""

    __slots__ = ("decisions", "often")

    def __init__(self, often: tuple[int, ...]) -> None:
        self.often = often
        self.decisions: dict[Circumstances, Portion | RefusalReason] = {}


class Alike:
    """Agents of which the same amounts are free."""

    __slots__ = ("_known", "always", "amounts", "cut", "is_plain", "refused")

    def __init__(self, amounts: Amounts, is_plain: bool) -> None:
        #: What is free; such as are alike are one object.
        self.amounts = amounts
        #: There are no devices but whole GPUs.
        self.is_plain = is_plain
        #: Who was refused one of them in this cycle, for want of amounts, is refused all of them.
        self.refused: set[Node] = set()
        #: What quota cut off for these: (role, kind).
        self.cut: set[tuple[str, str]] = set()
        #: What was decided about clients that want this, for those of whom no circumstances matter.
        self.always: dict[Want, Portion | RefusalReason] = {}
        self._known: dict[Want, _Known] = {}

    def recall(self, want: Want, agent: Agent, framework: Framework) -> Portion | RefusalReason | None:
        """What was decided about a client that wants this; None: nothing yet."""
        if want.is_constant:
            return self.always.get(want)
        known = self._known.get(want)
        if known is None:
            return None
        return known.decisions.get(want.circumstances(agent, framework, known.often))

    def place_for(self, want: Want, agent: Agent, framework: Framework, free: Holding) -> Place:
        """Where a decision is to be kept that is about to be made."""
        if want.is_constant:
            return self.always, want
        known = self._known.get(want)
        if known is None:
            known = self._known[want] = _Known(want.often(free))
        return known.decisions, want.circumstances(agent, framework, known.often)


Place = tuple[dict[Any, "Portion | RefusalReason"], Any]
"""Where a decision is kept: put the second into the first."""


class AllAlike:
    """The agents of a cycle, by what is free on them."""

    def __init__(self) -> None:
        self._by_amounts: dict[FreeAmounts, Alike] = {}
        #: By identity, and so kept alive: what is free on agents without devices mostly is one object. None: not alike.
        self.by_holding: dict[int, tuple[Holding, Alike | None]] = {}
        self._amounts: dict[frozenset[tuple[str, int]], Amounts] = {}

    def of(self, free: Holding) -> Alike | None:
        """Those on which as much is free; None where something is reserved, or one device is a view of another."""
        known = self.by_holding.get(id(free))
        return known[1] if known is not None else self._find(free)

    def amounts(self, part: Resources) -> Amounts:
        """What it counts for, one object for all that is alike: shares are worked out once for it."""
        amounts = part.amounts()
        return self._amounts.setdefault(frozenset(amounts.items()), amounts)

    def portion(self, free: Holding, want: Want, proposal: Proposal) -> Portion:
        """What was decided of an agent, as it is of all alike."""
        left = subtract_holdings(free, proposal.holding)
        rest = self.of(left) if left else None
        return Portion(free, want, proposal, self.amounts(proposal.holding[UNRESERVED]), left, rest)

    def _find(self, free: Holding) -> Alike | None:
        key = free_amounts(free)
        alike = None
        if key is not None:
            alike = self._by_amounts.get(key)
            if alike is None:
                alike = self._by_amounts[key] = Alike(self.amounts(free[UNRESERVED]), isinstance(key[2], int))
        self.by_holding[id(free)] = free, alike
        return alike
