"""What quota holds back of an agent: the step of a cycle that applies `quota` to what a client could be offered, who is served first
for a guarantee, and which agents are to be looked at again when more may be given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from bursar.core.device_names import device_kinds, devices_of_kind, gpus_among, parent_of, weight_milli
from bursar.core.devices import Device, pick_connected
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.messages.operator import RefusalReason
from bursar.core.resources import GPUS, MILLI, UNRESERVED, Holding, Resources, Stack
from bursar.core.role_expressions import plain_holder
from bursar.master.allocator.quota import Allowance, allowance, headroom, is_own
from bursar.master.allocator.shares import Amounts, Node, Shares


class Within(NamedTuple):
    """What quota leaves of what could be offered."""

    holding: Holding
    #: The kinds of which something was cut off.
    kinds: list[str]
    #: QUOTA_LIMIT where any kind was cut by a limit, else HEADROOM.
    reason: RefusalReason


Allowances = Mapping[str, Allowance]
"""Kind → what a client of a role may be given of unreserved resources."""


def allowances_of(node: Node, kinds: Iterable[str], free_unreserved: Amounts) -> Allowances:
    """What the clients of a role may be given at the moment."""
    return {kind: allowance(node, kind, free_unreserved.get(kind, 0)) for kind in sorted(kinds)}


def cut_to_quota(
    node: Node,
    allowances: Allowances,
    available: Holding,
    free_unreserved: Amounts,
    root: Node,
    devices: Mapping[DeviceUuid, Device],
) -> Within | None:
    """Cut what could be offered to the clients of a role's node to what quota allows, GPUs whole; None where that is everything.

    What is reserved to a plain role is not cut: it counts whether it is used or not (RSV-15). What is reserved to an expression
    counts once it is used, and so within limits, but it is not taken from the headroom; it is used first, as in an accept.
    """
    loose = [stack for stack in available if is_loose(stack)]
    if not loose:
        return None
    left: dict[Stack, dict[str, int]] = {}
    reasons: list[RefusalReason] = []
    cut_kinds: list[str] = []
    for kind, (most, reason) in allowances.items():
        unreserved = _counted(available[UNRESERVED], kind) if UNRESERVED in available else 0
        shared = {stack: amount for stack in loose if stack and (amount := _counted(available[stack], kind))}
        if not unreserved and not shared:
            continue
        used = 0
        if shared:
            by_limits = allowance(node, kind, None)
            for stack in sorted(shared):
                allowed = min(shared[stack], _whole(kind, by_limits.amount - used, shared[stack]))
                if allowed < shared[stack]:
                    left.setdefault(stack, {})[kind] = allowed
                    reasons.append(by_limits.reason)
                    cut_kinds.append(kind)
                used += allowed
            if free_unreserved.get(kind, 0) < headroom(root, kind):
                # What is taken of it fulfils a guarantee that unreserved resources would have been given for.
                most = max(0, most - used)
            most = min(most, by_limits.amount - used)
        most = _whole(kind, most, unreserved)
        if most < unreserved:
            left.setdefault(UNRESERVED, {})[kind] = most
            reasons.append(reason)
            cut_kinds.append(kind)
    if not left:
        return None
    holding = {
        stack: part
        for stack, whole in available.items()
        if (part := _cut(whole, left[stack], devices) if stack in left else whole)
    }
    return Within(holding, list(dict.fromkeys(cut_kinds)), min(reasons))


def is_loose(stack: Stack) -> bool:
    """Whether what is held of a bucket counts as consumed for being held: what is reserved to a plain role counts in any case."""
    return not stack or plain_holder(stack[-1].holder) is None


def loose_amounts(holding: Holding) -> dict[str, int]:
    """What counts of a holding for being held, kind by kind."""
    found: dict[str, int] = {}
    for stack, part in holding.items():
        if is_loose(stack):
            for kind, amount in part.amounts().items():
                found[kind] = found.get(kind, 0) + amount
    return found


def _counted(part: Resources, kind: str) -> int:
    """What counts against quota: of `gpus` also slices and shares, in thousandths."""
    return part.amounts().get(kind, 0)


def _whole(kind: str, amount: int, there: int) -> int:
    """GPUs whole, unless there are parts of some."""
    return amount - amount % MILLI if kind == GPUS and not there % MILLI else amount


def _cut(whole: Resources, left: Amounts, devices: Mapping[DeviceUuid, Device]) -> Resources:
    scalars = {kind: amount for kind, there in whole.scalars.items() if (amount := left.get(kind, there))}
    picked = whole.devices
    if GPUS in left:
        gpus = gpus_among(whole.devices)
        kept = frozenset(pick_connected(gpus, min(len(gpus), left[GPUS] // MILLI), devices))
        picked = kept | _light_enough(whole.devices - gpus, kept, left[GPUS] - MILLI * len(kept))
    for kind in device_kinds(picked):
        if kind in left:
            mine = devices_of_kind(picked, kind)
            picked = (picked - mine) | frozenset(pick_connected(mine, min(len(mine), left[kind] // MILLI), devices))
    return Resources(scalars, whole.ports, picked)


def _light_enough(
    others: frozenset[DeviceUuid], cards: frozenset[DeviceUuid], room_milli: int
) -> frozenset[DeviceUuid]:
    """Of slices, shares and devices of other kinds, those that do not weigh more than is left; beside their card they weigh nothing."""
    kept = set()
    for uuid in sorted(others):
        weight = 0 if parent_of(uuid) in cards else weight_milli(uuid)
        if weight <= room_milli:
            room_milli -= weight
            kept.add(uuid)
    return frozenset(kept)


def guaranteed_first(shares: Shares, free: Holding) -> Iterator[Node]:
    """The clients to be served before all others: whose taking of what is free would fulfil a guarantee; in the order of shares
    among themselves (mesos.md §3.2, stage 1).
    """
    root = shares.root
    if not root.unmet_below:
        return iter(())
    kinds = [kind for kind in root.unmet_below if any(part.amount(kind) for part in free.values())]
    # The order of shares is brought up to date by asking for it.
    shares.order()
    return _unfulfilled(root, kinds) if kinds else iter(())


def _unfulfilled(node: Node, kinds: list[str]) -> Iterator[Node]:
    for entry in node.order:
        child = entry[3]
        # A role at its limit hopes for nothing, whatever those below it do.
        hoped = [kind for kind in kinds if kind in child.unmet]
        if any(is_own(child, kind) for kind in hoped):
            yield from _clients(child)
        elif any(kind in child.unmet_below for kind in hoped):
            yield from _unfulfilled(child, hoped)


def _clients(node: Node) -> Iterator[Node]:
    if node.client is not None:
        yield node
    else:
        for entry in node.order:
            yield from _clients(entry[3])


_Allowed = tuple[int, int]
"""What a client of a role may be given of a kind: unreserved, and of what is reserved to expressions."""


class HeldBack:
    """The agents of which quota holds something back, and what it allowed then: soft state.

    For each role and kind that was cut, the least that it was allowed. When one of them may be given more, the agents are to be
    looked at again. Where a filter blocked what was cut for a demand, less may be cut differently, and so get past the filter: then
    anything else than before is looked at.
    """

    def __init__(self) -> None:
        self.agents: set[AgentId] = set()
        self._allowed: dict[tuple[str, str], _Allowed] = {}
        self._exactly: dict[tuple[str, str], _Allowed] = {}
        #: (role, kind) of what was cut since the agent at hand was begun, and where any change matters.
        self.cut: set[tuple[str, str]] = set()
        self.blocked: set[tuple[str, str]] = set()
        #: Role → what it may be given, and what of that was written down already: for as long as a cycle makes no offer.
        self._known: dict[str, Allowances] = {}
        self._written: set[tuple[str, str]] = set()
        self._in_cycle = False

    def forget(self, *, in_cycle: bool) -> None:
        """Something was given, or may have changed otherwise: what roles may be given is worked out anew, outside of cycles always."""
        self._in_cycle = in_cycle
        self._known.clear()
        self._written.clear()

    def allowances(self, role: str, node: Node, kinds: Iterable[str], free_unreserved: Amounts) -> Allowances:
        """What clients of a role may be given, worked out once until `forget`."""
        known = self._known.get(role)
        if known is None:
            known = allowances_of(node, kinds, free_unreserved)
            if self._in_cycle:
                self._known[role] = known
        return known

    def begin(self) -> None:
        """Another agent is at hand."""
        self.cut.clear()
        self.blocked.clear()

    def note_cut(self, role: str, kinds: Iterable[str]) -> None:
        """Something was cut off what a client of a role could have been offered."""
        self.cut.update((role, kind) for kind in kinds)

    def note_blocked(self, role: str, kinds: Iterable[str]) -> None:
        """A filter blocked what was cut for a client's demand."""
        self.blocked.update((role, kind) for kind in kinds)

    def park(self, agent_id: AgentId, shares: Shares, free_unreserved: Amounts) -> None:
        """Something is left of the agent at hand, and nobody may have it for now."""
        if not self.cut and not self.blocked:
            return
        self.agents.add(agent_id)
        for key in self.cut - self._written:
            now = _allowed(shares, *key, free_unreserved)
            before = self._allowed.get(key, now)
            self._allowed[key] = (min(now[0], before[0]), min(now[1], before[1]))
        self._written |= self.cut
        for key in self.blocked:
            now = _allowed(shares, *key, free_unreserved)
            if self._exactly.setdefault(key, now) != now:
                # It was another at another agent: nothing will equal both.
                self._exactly[key] = (-1, -1)

    def wake(self, shares: Shares, free_unreserved: Amounts) -> set[AgentId]:
        """The agents to look at again, if there is reason to; they are forgotten."""
        if not self.agents:
            return self.agents
        more = any(
            now[0] > before[0] or now[1] > before[1]
            for key, before in self._allowed.items()
            for now in (_allowed(shares, *key, free_unreserved),)
        )
        if not more and all(_allowed(shares, *key, free_unreserved) == then for key, then in self._exactly.items()):
            return set()
        self._allowed.clear()
        self._exactly.clear()
        woken, self.agents = self.agents, set()
        return woken


def _allowed(shares: Shares, role: str, kind: str, free_unreserved: Amounts) -> _Allowed:
    node = shares.nearest(role)
    return allowance(node, kind, free_unreserved.get(kind, 0)).amount, allowance(node, kind, None).amount
