"""Who may see what: an ordered list of rules, the first that matches decides (design.md §6).

The operators' rules come first, then the one that `--filter-gpu-resources` is compiled into; where none matches, all is shown.
Rules in audit mode decide nothing: what they would have decided is counted.

Each rule is asked once of every agent and once of every (role, framework), again where one of these says something new of itself; the
answers are bits of a number, rule by rule. A decision is the lowest bit that both numbers have: agents alike are decided alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from bursar.core.device_names import devices_of_kind, is_volume, weight_milli
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId
from bursar.core.messages.agent import AgentInfo
from bursar.core.messages.framework import FrameworkInfo
from bursar.core.messages.rules import RuleAction, RuleMode
from bursar.core.resources import EMPTY, GPUS, PORTS, UNRESERVED, Holding, Resources, Stack, holding_total
from bursar.core.role_expressions import RoleGroups
from bursar.master.allocator.rules import CompiledRule, Headroom, facts_of_agent
from bursar.master.ledger import Books

#: Answers of peers that are gone are forgotten when there are so many.
_MAX_REMEMBERED = 200_000


class Judgement(NamedTuple):
    """What the rules say of a framework in a role on an agent."""

    #: The rule that decides; None: no rule matches, all is shown.
    winner: CompiledRule | None
    #: Rules in audit mode that would have decided, each if it alone were enforced.
    audited: tuple[CompiledRule, ...]

    @property
    def action(self) -> RuleAction:
        """What is done."""
        return RuleAction.ALLOW if self.winner is None else self.winner.action


class Cell:
    """A rule and how often it decided."""

    __slots__ = ("decisions", "name", "taking")

    def __init__(self, rule: CompiledRule, decisions: int) -> None:
        self.name = rule.name
        self.decisions = decisions
        #: The rule, unless it allows.
        self.taking = None if rule.action is RuleAction.ALLOW else rule


class Visibility:
    """The rules in force, and what they have answered."""

    def __init__(self) -> None:
        self.rules: tuple[CompiledRule, ...] = ()
        #: What `strip` and `headroom` keep where the rule does not say.
        self.headroom = Headroom()
        self.groups: RoleGroups = {}
        #: Grows with every change of the above.
        self.version = 0
        #: By the bit of each rule.
        self._cells: dict[int, Cell] = {}
        #: The same, for decisions that do not count.
        self._uncounted: dict[int, Cell] = {}
        self._enforced = 0
        self._audited = 0
        self._agents: dict[AgentId, tuple[AgentInfo, int]] = {}
        self._clients: dict[tuple[str, FrameworkId], tuple[FrameworkInfo, int]] = {}

    def set_rules(self, rules: Iterable[CompiledRule], headroom: Headroom, groups: RoleGroups) -> None:
        """Other rules, another headroom, or other role groups than before."""
        self.rules = tuple(rules)
        self.headroom, self.groups = headroom, groups
        self.version += 1
        self._agents.clear()
        self._clients.clear()
        bits = {RuleMode.ENFORCE: 0, RuleMode.AUDIT: 0}
        for index, rule in enumerate(self.rules):
            bits[rule.rule.mode] |= 1 << index
        self._enforced, self._audited = bits[RuleMode.ENFORCE], bits[RuleMode.AUDIT]
        counts = self.decisions
        self._cells = {1 << index: Cell(rule, counts.get(rule.name, 0)) for index, rule in enumerate(self.rules)}
        self._uncounted = {1 << index: Cell(rule, 0) for index, rule in enumerate(self.rules)}

    @property
    def decisions(self) -> dict[str, int]:
        """How often each rule decided (in audit mode: would have) in cycles since the master started; none where never."""
        return {cell.name: cell.decisions for cell in self._cells.values() if cell.decisions}

    # --- decisions ---

    def verdict(self, agent: AgentInfo, role: str, framework: FrameworkInfo) -> CompiledRule | None:
        """The rule that takes something from a framework on an agent, counted; None: it may see all of it."""
        # Asked for every pair in a cycle: what is remembered is looked up here, without a call.
        known = self._clients.get((role, framework.framework_id))
        clients = known[1] if known is not None and known[0] is framework else self.class_of_client(role, framework)
        if not clients:
            return None
        entry = self._agents.get(agent.agent_id)
        matching = clients & (entry[1] if entry is not None and entry[0] is agent else self.class_of_agent(agent))
        if not matching:
            return None
        winning = matching & self._enforced
        winning &= -winning
        if self._audited:
            for bit in _bits(self._would_decide(matching, winning)):
                self._cells[bit].decisions += 1
        if not winning:
            return None
        cell = self._cells[winning]
        cell.decisions += 1
        return cell.taking

    def hider(self, agent: AgentInfo, role: str, framework: FrameworkInfo) -> Cell | None:
        """Where all that is to be counted of a verdict is the one rule that hides the agent: that rule. It hides all agents of this
        one's class; whoever need not ask again counts in its place.
        """
        matching = self.class_of_client(role, framework) & self.class_of_agent(agent)
        winning = matching & self._enforced
        winning &= -winning
        if not winning or self._audited & matching:
            return None
        cell = self._cells[winning]
        return cell if cell.taking is not None and cell.taking.action is RuleAction.HIDE_AGENT else None

    def judge(self, agent: AgentInfo, role: str, framework: FrameworkInfo) -> Judgement:
        """The same for people: with the rule that allows, and what rules in audit mode would have done; not counted."""
        matching = self.class_of_client(role, framework) & self.class_of_agent(agent)
        winning = matching & self._enforced
        winning &= -winning
        winner = self.rules[winning.bit_length() - 1] if winning else None
        audited = _bits(self._would_decide(matching, winning))
        return Judgement(winner, tuple(self.rules[bit.bit_length() - 1] for bit in audited))

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Decisions inside are for people: they are not counted."""
        kept = self._cells
        self._cells = self._uncounted
        try:
            yield
        finally:
            self._cells = kept

    def class_of_agent(self, info: AgentInfo) -> int:
        """Which rules speak of an agent, as bits: agents of one class are decided alike."""
        entry = self._agents.get(info.agent_id)
        if entry is not None and entry[0] is info:
            return entry[1]
        facts = facts_of_agent(info)
        bits = sum(1 << index for index, rule in enumerate(self.rules) if rule.matches_agent(info, facts))
        if len(self._agents) > _MAX_REMEMBERED:
            self._agents.clear()
        self._agents[info.agent_id] = info, bits
        return bits

    def class_of_client(self, role: str, info: FrameworkInfo) -> int:
        """Which rules speak of a framework in a role, as bits: such of one class are decided alike."""
        key = (role, info.framework_id)
        entry = self._clients.get(key)
        if entry is not None and entry[0] is info:
            return entry[1]
        groups = self.groups
        bits = sum(1 << index for index, rule in enumerate(self.rules) if rule.frameworks.matches(info, role, groups))
        if len(self._clients) > _MAX_REMEMBERED:
            self._clients.clear()
        self._clients[key] = info, bits
        return bits

    def restrict(
        self, rule: CompiledRule, agent: AgentInfo, books: Books, available: Holding, free: Holding, takes_gpus: bool
    ) -> dict[Stack, Resources]:
        """What is left of what is available where `strip` or `headroom` decides.

        `available` is the part of `free` that the role may have; `takes_gpus` is whether the framework would take GPUs that it
        is shown: the headroom of those goes with them.
        """
        shown = strip(available, rule.stripped)
        if rule.action is RuleAction.STRIP and GPUS not in rule.stripped and rule.headroom is None:
            return shown
        going = holding_total(shown).devices if takes_gpus else frozenset()
        kept = self.kept_for_gpus(rule, agent, books, free, going)
        return {stack: left for stack, part in shown.items() if (left := _without(part, kept.amounts.get(stack, {})))}

    def kept_for_gpus(
        self, rule: CompiledRule, agent: AgentInfo, books: Books, free: Holding, going: frozenset[DeviceUuid]
    ) -> Kept:
        """What a rule keeps of what is free on an agent, and what lacks for it; nothing for the GPUs that are `going`."""
        headroom = self.headroom if rule.headroom is None else rule.headroom
        total: dict[str, int] = {}
        for part in agent.resources:
            for kind, amount in part.resources.amounts().items():
                total[kind] = total.get(kind, 0) + amount
        return keep_for_gpus(books, free, headroom.per_gpu(total), going)

    def would_decide(self, index: int, matching: int) -> bool:
        """Whether the rule at a place in the list, in whatever mode, would decide where these match."""
        before = (1 << index) - 1
        return bool(matching >> index & 1) and not matching & self._enforced & before

    # --- inside ---

    def _would_decide(self, matching: int, winning: int) -> int:
        """The rules in audit mode that come before the one that decides; those that only allow where nothing hides are idle."""
        before = winning - 1 if winning else -1
        return matching & self._audited & before


def _bits(number: int) -> Iterator[int]:
    """Each bit that is set, alone, the lowest first."""
    while number:
        lowest = number & -number
        yield lowest
        number ^= lowest


class Kept(NamedTuple):
    """What is kept for GPUs."""

    #: By bucket and kind; never more than is free there.
    amounts: dict[Stack, dict[str, int]]
    #: By kind, what should be kept and is not free.
    lacking: dict[str, int]


def strip(holding: Holding, kinds: frozenset[str]) -> dict[Stack, Resources]:
    """A holding without some kinds."""
    if not kinds:
        return dict(holding)
    result = {}
    for stack, part in holding.items():
        scalars = {kind: amount for kind, amount in part.scalars.items() if kind not in kinds}
        devices = part.devices
        for kind in kinds:
            if devices:
                # With the cards go their slices and shares.
                gone = devices_of_kind(devices, kind)
                devices -= gone if kind != GPUS else gone.union(uuid for uuid in devices if weight_milli(uuid))
        left = Resources(scalars, () if PORTS in kinds else part.ports, devices)
        if left:
            result[stack] = left
    return result


#: How it begins why a device is withheld that nothing need be kept for: no task can have it as it is.
_OF_NO_USE = ("unhealthy", "vacant", "unconfigured")


def keep_for_gpus(
    books: Books, free: Holding, per_gpu: Mapping[str, int], going: frozenset[DeviceUuid] = frozenset()
) -> Kept:
    """What must stay free for GPUs, so that none is ever stranded (M-06).

    For each healthy GPU, idle or held, `max(0, per_gpu − what its holder has)`: from the GPU's bucket first, then from what is
    unreserved. Whoever ends gives back what it has and leaves its GPUs wanting as much: nothing changes for those.
    """
    if not per_gpu:
        return Kept({}, {})
    broken = {uuid for uuid, why in books.withheld_devices.items() if why.startswith(_OF_NO_USE)}
    if not books.has_gpus_only:
        broken |= {uuid for part in books.total.values() for uuid in part.devices if is_volume(uuid)}
    needs: dict[Stack, dict[str, int]] = {}
    held: set[DeviceUuid] = set()
    for entry in (*books.offered.values(), *books.allocated.values()):
        counts: dict[Stack, int] = {}
        for stack, part in entry.holding.items():
            held |= part.devices
            if count := len(part.devices - broken):
                counts[stack] = count
        if counts:
            gpus, has = sum(counts.values()), entry.amounts
            _spread(needs, counts, {kind: gpus * each - has.get(kind, 0) for kind, each in per_gpu.items()})
    for stack, part in books.total.items():
        if idle := len(part.devices - held - broken - going):
            _spread(needs, {stack: idle}, {kind: idle * each for kind, each in per_gpu.items()})
    amounts: dict[Stack, dict[str, int]] = {}
    lacking: dict[str, int] = {}
    for stack, wanted in needs.items():
        if stack == UNRESERVED:
            continue
        there = free.get(stack, EMPTY).scalars
        for kind, amount in wanted.items():
            found = min(amount, there.get(kind, 0))
            if found:
                amounts.setdefault(stack, {})[kind] = found
            if amount > found:
                lacking[kind] = lacking.get(kind, 0) + amount - found
    there = free.get(UNRESERVED, EMPTY).scalars
    for kind, amount in needs.get(UNRESERVED, {}).items():
        lacking[kind] = lacking.get(kind, 0) + amount
    for kind, amount in list(lacking.items()):
        found = min(amount, there.get(kind, 0))
        if found:
            amounts.setdefault(UNRESERVED, {})[kind] = found
        if amount > found:
            lacking[kind] = amount - found
        else:
            del lacking[kind]
    return Kept(amounts, lacking)


def _spread(needs: dict[Stack, dict[str, int]], counts: Mapping[Stack, int], wanted: Mapping[str, int]) -> None:
    """Book what the GPUs of one holder need under their buckets, by how many are in each."""
    left_gpus = sum(counts.values())
    left = {kind: amount for kind, amount in wanted.items() if amount > 0}
    for stack, count in counts.items():
        mine = needs.setdefault(stack, {})
        for kind, amount in left.items():
            part = -(-amount * count // left_gpus)
            mine[kind] = mine.get(kind, 0) + part
            left[kind] = amount - part
        left_gpus -= count


def _without(part: Resources, kept: Mapping[str, int]) -> Resources:
    """A bucket without some amounts of it."""
    if not kept:
        return part
    scalars = {kind: left for kind, amount in part.scalars.items() if (left := amount - kept.get(kind, 0)) > 0}
    return Resources(scalars, part.ports, part.devices)
