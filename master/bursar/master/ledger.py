"""The only place where free, offered, allocated and withheld change.

Invariant, per agent and bucket (one bucket per reservation stack), asserted by `check`:
`free + offered + allocated + withheld = total + excess`; `excess` is what is held beyond a total that shrank. A device is in
exactly one of them. What roles and frameworks hold, and what is kept for roles, is told to the accounts in the same breath.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol

from bursar.core.device_names import device_kinds, gpus_among, has_views, views_hidden_by
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, OfferId, TaskId
from bursar.core.resources import (
    EMPTY,
    UNRESERVED,
    Holding,
    Resources,
    Stack,
    add_holdings,
    holding_contains,
    holding_total,
    subtract_holdings,
    subtract_ports,
    sum_resources,
)
from bursar.core.role_expressions import plain_holder
from bursar.master.allocator.shares import Client

#: So many different totals of agents are remembered; then it is begun anew.
MAX_TOTALS = 1_000


class TaskKey(NamedTuple):
    """A task, cluster-wide."""

    framework_id: FrameworkId
    task_id: TaskId


class Accounts(Protocol):
    """Where the ledger reports what roles and frameworks hold (fair share, quota); amounts as of `Resources.amounts`."""

    def charge(self, client: Client, amounts: Mapping[str, int], reserved: Mapping[str, int]) -> None:
        """More is held; `reserved` is what of it comes out of reservations to plain roles."""

    def discharge(self, client: Client, amounts: Mapping[str, int], reserved: Mapping[str, int]) -> None:
        """Less is held."""

    def keep(self, role: str, amounts: Mapping[str, int]) -> None:
        """More is reserved to a plain role."""

    def release(self, role: str, amounts: Mapping[str, int]) -> None:
        """Less is reserved to it."""

    def add_total(self, amounts: Mapping[str, int]) -> None:
        """The cluster grew."""

    def subtract_total(self, amounts: Mapping[str, int]) -> None:
        """The cluster shrank."""


class _Entry(NamedTuple):
    """What one offer or task holds on one agent."""

    client: Client
    holding: Holding
    #: The whole holding, as it is charged, and what of it comes out of reservations to plain roles.
    amounts: Mapping[str, int]
    reserved: Mapping[str, int]
    #: It contains what is lent, and can be wanted back.
    revocable: bool = False


@dataclass(slots=True)
class Books:
    """One agent's books. Read by everybody, changed by the Ledger alone."""

    #: What the agent has, by bucket; the dynamic reservations are cut from the unreserved bucket. Never changed in place.
    total: Holding
    #: Never changed in place: a new one stands for a change.
    free: Holding = field(default_factory=dict)
    offered: dict[OfferId, _Entry] = field(default_factory=dict)
    allocated: dict[TaskKey, _Entry] = field(default_factory=dict)
    #: Devices that must not be offered, and why.
    withheld_devices: dict[DeviceUuid, str] = field(default_factory=dict)
    #: Withheld for gangs, all of them together; dropped with every change of what the agent has.
    gang_hold: Holding = field(default_factory=dict)
    #: Withheld for whom it was lent from, until the rest is back; dropped like the gang hold.
    earmark: Holding = field(default_factory=dict)
    #: Whether the agent counts: its total in the cluster's, its tasks in shares (design.md §4).
    counted: bool = True
    #: Whether what is free can be offered: the agent is connected.
    present: bool = False
    #: Sum by bucket, kept with every change: no question about an agent costs a walk over its tasks. Of offers there are few.
    allocated_sum: dict[Stack, Resources] = field(default_factory=dict)
    #: Whether more is held than there is, in any bucket and kind.
    in_excess: bool = False
    #: Whether there are slices or shares: views of cards, of which taking one hides others (design.md §4).
    has_views: bool = False
    #: Whether all its devices are whole GPUs, as they mostly are: nobody need read their names.
    has_gpus_only: bool = True

    @property
    def is_restricted(self) -> bool:
        """Whether what is free may be less than what is not held."""
        return self.in_excess or self.has_views or bool(self.withheld_devices or self.gang_hold or self.earmark)

    def held(self) -> dict[Stack, Resources]:
        """Offered and allocated together, by bucket."""
        return add_holdings(self.offered_sum(), self.allocated_sum)

    def offered_sum(self) -> dict[Stack, Resources]:
        """All that is in offers, by bucket."""
        return _sum(entry.holding for entry in self.offered.values())

    def offered_total(self) -> Resources:
        """All that is in offers."""
        return holding_total(self.offered_sum())

    def allocated_total(self) -> Resources:
        """All that tasks hold."""
        return holding_total(self.allocated_sum)

    def allocated_in(self, stack: Stack) -> Resources:
        """What tasks hold of one bucket."""
        return self.allocated_sum.get(stack, EMPTY)

    def withheld(self) -> dict[Stack, Resources]:
        """Neither free nor held, by bucket: withheld devices, what is held under another bucket than its own, and the gang hold."""
        if not self.withheld_devices and not self.in_excess and not self.has_views:
            return add_holdings(self.gang_hold, self.earmark)
        held = self.held()
        result = {}
        for stack, total in self.total.items():
            rest = total.minus_saturating(held.get(stack, EMPTY))
            if left := rest.minus_saturating(self.offerable(stack, held)):
                result[stack] = left
        return add_holdings(add_holdings(result, self.gang_hold), self.earmark)

    def offerable(self, stack: Stack, held: Holding) -> Resources:
        """What of a bucket may be free when so much is held.

        A device or port that a task holds under another bucket (a reservation of which the registry does not know) is nowhere free.
        """
        rest = self.total[stack].minus_saturating(held.get(stack, EMPTY))
        elsewhere = [part for other, part in held.items() if other != stack]
        devices = rest.devices.difference(self.withheld_devices, *(part.devices for part in elsewhere))
        ports = rest.ports
        for part in elsewhere:
            ports = subtract_ports(ports, part.ports)
        if self.has_views:
            devices -= views_hidden_by(self._taken_from(stack, held), devices)
        return Resources(rest.scalars, ports, devices)

    def _taken_from(self, stack: Stack, held: Holding) -> frozenset[DeviceUuid]:
        """The devices of which a bucket must not show other views: held ones, and for what is unreserved those that are reserved."""
        parts = [*held.values(), *self.gang_hold.values(), *self.earmark.values()]
        if stack == UNRESERVED:
            parts += [part for other, part in self.total.items() if other != UNRESERVED]
        return frozenset().union(*(part.devices for part in parts))

    def excess(self) -> dict[Stack, Resources]:
        """Held beyond the total, by bucket."""
        if not self.in_excess:
            return {}
        return _beyond(self.held(), self.total)


class Ledger:
    """All books."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self.books: dict[AgentId, Books] = {}
        #: Agents that are present and have anything free: the only ones that a cycle looks at.
        self.with_free: set[AgentId] = set()
        #: Agents on which something is withheld for a gang, and what for which, by its number.
        self.gang_holds: set[AgentId] = set()
        self._held_for: dict[int, dict[AgentId, Holding]] = {}
        #: Agents of which something is in revocable offers or tasks.
        self.with_loans: set[AgentId] = set()
        #: Agents that have any devices.
        self._with_devices: set[AgentId] = set()
        self._task_agent: dict[TaskKey, AgentId] = {}
        #: What agents without devices have: those that have the same share one.
        self._totals: dict[frozenset[tuple[Stack, Resources]], Holding] = {}
        #: What is free and unreserved on all agents that are present: what headroom is kept of. None: not kept, nobody asked.
        self._free_unreserved: dict[str, int] | None = None

    # --- agents ---

    def add_agent(self, agent_id: AgentId, total: Holding, counted: bool = True, present: bool = False) -> None:
        """Open the books of an agent."""
        assert agent_id not in self.books, agent_id
        books = Books(self._shared(total), counted=counted, present=present)
        self.books[agent_id] = books
        self._note_devices(agent_id, books)
        if counted:
            self._count_total(books)
        self._settle(agent_id, books)

    def remove_agent(self, agent_id: AgentId) -> None:
        """Close the books; nothing may be held."""
        self.end_gang_holds(agent_id)
        self.set_earmark(agent_id, {})
        books = self.books[agent_id]
        assert not books.offered and not books.allocated, agent_id
        if books.counted:
            self._discount_total(books)
        self._set_free(agent_id, books, {})
        del self.books[agent_id]
        self._with_devices.discard(agent_id)

    def set_total(self, agent_id: AgentId, total: Holding) -> None:
        """The agent has other resources now; what is held stays held and may become excess."""
        books = self.books[agent_id]
        total = self._shared(total)
        if total == books.total:
            return
        if books.counted:
            self._discount_total(books)
        books.total = total
        self._note_devices(agent_id, books)
        if books.counted:
            self._count_total(books)
        self._settle(agent_id, books)

    def set_withheld(self, agent_id: AgentId, devices: Mapping[DeviceUuid, str]) -> None:
        """Exactly these devices must not be offered, each for its reason."""
        books = self.books[agent_id]
        if books.withheld_devices != devices:
            books.withheld_devices = dict(devices)
            self._settle(agent_id, books)

    def set_counted(self, agent_id: AgentId, counted: bool) -> None:
        """An unreachable agent counts neither in the cluster's total nor in shares and quotas."""
        books = self.books[agent_id]
        if books.counted == counted:
            return
        books.counted = counted
        (self._count_total if counted else self._discount_total)(books)
        change = self._accounts.charge if counted else self._accounts.discharge
        for entry in (*books.offered.values(), *books.allocated.values()):
            change(entry.client, entry.amounts, entry.reserved)

    def set_present(self, agent_id: AgentId, present: bool) -> None:
        """The agent is connected, or is not: what is free there can be offered or not."""
        books = self.books[agent_id]
        if books.present != present:
            self.end_gang_holds(agent_id)
            self.set_earmark(agent_id, {})
            free = books.free
            self._set_free(agent_id, books, {})
            books.present = present
            self._set_free(agent_id, books, free)

    def hold_for_gang(self, agent_id: AgentId, number: int, holding: Holding) -> None:
        """Exactly this is withheld for one gang, out of what is free and what was withheld for it before."""
        books, before = self.books[agent_id], self.held_for(number).get(agent_id, _ALL_TAKEN)
        if before == holding:
            return
        mine = self._held_for.setdefault(number, {})
        if holding:
            mine[agent_id] = holding
        elif mine.pop(agent_id, None) and not mine:
            del self._held_for[number]
        free = subtract_holdings(add_holdings(books.free, before), holding)
        books.gang_hold = add_holdings(subtract_holdings(books.gang_hold, before), holding)
        (self.gang_holds.add if books.gang_hold else self.gang_holds.discard)(agent_id)
        self._set_free(agent_id, books, self._derive_free(books) if books.has_views else free)

    def held_for(self, number: int) -> Mapping[AgentId, Holding]:
        """What is withheld for a gang, by agent."""
        return self._held_for.get(number, _HELD_NOWHERE)

    def end_gang_holds(self, agent_id: AgentId) -> None:
        """Nothing of an agent is withheld for any gang."""
        for number in [number for number, held in self._held_for.items() if agent_id in held]:
            self.hold_for_gang(agent_id, number, _ALL_TAKEN)

    def holders_on(self, agent_id: AgentId) -> dict[int, Holding]:
        """What of an agent is withheld for which gang, by number."""
        if agent_id not in self.gang_holds:
            return {}
        return {number: held[agent_id] for number, held in self._held_for.items() if agent_id in held}

    def set_earmark(self, agent_id: AgentId, holding: Holding) -> None:
        """Exactly this is withheld for whom it was lent from, out of what is free and what was withheld for it before."""
        books = self.books[agent_id]
        if books.earmark == holding:
            return
        free = subtract_holdings(add_holdings(books.free, books.earmark), holding)
        books.earmark = holding
        self._set_free(agent_id, books, self._derive_free(books) if books.has_views else free)

    # --- offers and tasks ---

    def offer(
        self, agent_id: AgentId, offer_id: OfferId, client: Client, holding: Holding, revocable: bool = False
    ) -> None:
        """Move free resources into an offer."""
        books = self.books[agent_id]
        if holding is books.free and self._free_unreserved is None:
            # The whole remainder, as it mostly is.
            books.free = {}
            self.with_free.discard(agent_id)
        else:
            self._take(agent_id, books, holding)
        books.offered[offer_id] = entry = _entry(client, holding, revocable)
        if revocable:
            self.with_loans.add(agent_id)
        if books.counted:
            self._accounts.charge(client, entry.amounts, entry.reserved)

    def offer_part(
        self,
        books: Books,
        agent_id: AgentId,
        offer_id: OfferId,
        client: Client,
        holding: Holding,
        amounts: Mapping[str, int],
        rest: Holding,
    ) -> None:
        """Move what is free, but for a rest, into an offer; nothing of it is reserved, and there are no views. `amounts` is what it
        counts for. The accounts and `note_offered` are told by the caller, of many together.
        """
        books.offered[offer_id] = _make_entry(_Entry, (client, holding, amounts, _NOTHING, False))
        if rest:
            books.free = rest
        else:
            books.free = _ALL_TAKEN
            self.with_free.discard(agent_id)

    def note_offered(self, amounts: Mapping[str, int]) -> None:
        """So much was offered by `offer_part`, kind by kind."""
        counter = self._free_unreserved
        if counter is not None:
            for kind, amount in amounts.items():
                left = counter[kind] - amount
                assert left >= 0, (kind, left)
                if left:
                    counter[kind] = left
                else:
                    del counter[kind]

    def release_offer(self, agent_id: AgentId, offer_id: OfferId) -> Holding:
        """Make an offer's resources free again; return them."""
        books = self.books[agent_id]
        entry = books.offered.pop(offer_id)
        if entry.revocable:
            self._note_loans(agent_id, books)
        return self._give_back(agent_id, books, entry)

    def release_offers(self, offers: Iterable[tuple[AgentId, OfferId]]) -> list[Holding]:
        """The same for many, told to the accounts once for each client and what it gives back as often."""
        # By identity: what is alike mostly is one object, and what one client gives back comes together.
        due: dict[tuple[int, int], list[_Entry]] = {}
        alike: list[_Entry] = []
        last_client: Client | None = None
        last_amounts: Mapping[str, int] | None = None
        holdings: list[Holding] = []
        all_books, with_free, is_kept = self.books, self.with_free, self._free_unreserved is not None
        for agent_id, offer_id in offers:
            books = all_books[agent_id]
            entry = books.offered.pop(offer_id)
            client, holding, amounts, reserved, revocable = entry
            if revocable:
                self._note_loans(agent_id, books)
            if books.counted:
                if reserved:
                    self._accounts.discharge(client, amounts, reserved)
                else:
                    if client is not last_client or amounts is not last_amounts:
                        last_client, last_amounts = client, amounts
                        alike = due.setdefault((id(client), id(amounts)), [])
                    alike.append(entry)
            holdings.append(holding)
            if is_kept or books.offered or books.allocated or books.is_restricted:
                self._give_back(agent_id, books, entry, told=True)
                continue
            # Nothing is held any more, as it mostly is. Agents that have the same share it.
            books.free = books.total
            if books.present:
                with_free.add(agent_id)
        for alike in due.values():
            amounts = {kind: amount * len(alike) for kind, amount in alike[0].amounts.items()}
            self._accounts.discharge(alike[0].client, amounts, _NOTHING)
        return holdings

    def allocate(
        self, agent_id: AgentId, key: TaskKey, client: Client, holding: Holding, revocable: bool = False
    ) -> None:
        """Move free resources to a task."""
        books = self.books[agent_id]
        assert key not in self._task_agent, key
        self._take(agent_id, books, holding)
        self._book_task(agent_id, books, key, client, holding, revocable)

    def adopt(self, agent_id: AgentId, key: TaskKey, client: Client, holding: Holding, revocable: bool = False) -> None:
        """Book what a task holds already, free or not: it may become excess."""
        books = self.books[agent_id]
        assert key not in self._task_agent, key
        if holding_contains(books.free, holding):
            self._take(agent_id, books, holding)
            self._book_task(agent_id, books, key, client, holding, revocable)
        else:
            self._book_task(agent_id, books, key, client, holding, revocable)
            self._settle(agent_id, books)

    def release_task(self, key: TaskKey) -> AgentId | None:
        """Make a task's resources free again; return the agent, or None where it held nothing (any more)."""
        agent_id = self._task_agent.pop(key, None)
        if agent_id is None:
            return None
        books = self.books[agent_id]
        entry = books.allocated.pop(key)
        books.allocated_sum = subtract_holdings(books.allocated_sum, entry.holding)
        if entry.revocable:
            self._note_loans(agent_id, books)
        self._give_back(agent_id, books, entry)
        return agent_id

    def _book_task(
        self, agent_id: AgentId, books: Books, key: TaskKey, client: Client, holding: Holding, revocable: bool
    ) -> None:
        entry = _entry(client, holding, revocable)
        books.allocated[key] = entry
        books.allocated_sum = add_holdings(books.allocated_sum, holding)
        self._task_agent[key] = agent_id
        if revocable:
            self.with_loans.add(agent_id)
        if books.counted:
            self._accounts.charge(client, entry.amounts, entry.reserved)

    # --- reservations ---

    def restack(self, agent_id: AgentId, source: Stack, target: Stack, resources: Resources) -> None:
        """Move free resources from one bucket to another (reserve, unreserve)."""
        books = self.books[agent_id]
        free = add_holdings(subtract_holdings(books.free, {source: resources}), {target: resources})
        if books.counted:
            self._keep(target, resources, self._accounts.keep)
            self._keep(source, resources, self._accounts.release)
        books.total = add_holdings(subtract_holdings(books.total, {source: resources}), {target: resources})
        if books.in_excess:
            # What comes into a bucket first pays for what is held beyond it.
            self._settle(agent_id, books)
        elif books.has_views:
            self._set_free(agent_id, books, self._derive_free(books))
        else:
            self._set_free(agent_id, books, free)

    # --- queries ---

    @property
    def has_devices(self) -> bool:
        """Whether any agent has any devices."""
        return bool(self._with_devices)

    def free_unreserved(self) -> Mapping[str, int]:
        """What is free and unreserved on all agents that are present: a counter, kept from the first question on."""
        if self._free_unreserved is None:
            self._free_unreserved = {}
            for books in self.books.values():
                self._note_unreserved(books, 1)
        return self._free_unreserved

    def offer_holding(self, agent_id: AgentId, offer_id: OfferId) -> Holding:
        """What an outstanding offer holds."""
        return self.books[agent_id].offered[offer_id].holding

    def task_holding(self, key: TaskKey) -> Holding:
        """What a task holds; empty where nothing (any more)."""
        agent_id = self._task_agent.get(key)
        return {} if agent_id is None else self.books[agent_id].allocated[key].holding

    def device_holders(self, agent_id: AgentId) -> Iterator[tuple[DeviceUuid, OfferId | TaskKey]]:
        """Who holds which device of an agent."""
        books = self.books[agent_id]
        entries: Iterable[tuple[OfferId | TaskKey, _Entry]] = (*books.offered.items(), *books.allocated.items())
        for holder, entry in entries:
            for part in entry.holding.values():
                for uuid in part.devices:
                    yield uuid, holder

    def check(self) -> None:
        """Assert the invariant above for every agent."""
        for agent_id, books in self.books.items():
            assert books.allocated_sum == _sum(entry.holding for entry in books.allocated.values()), agent_id
            held = books.held()
            assert books.in_excess == bool(_beyond(held, books.total)), agent_id
            left = add_holdings(add_holdings(books.free, held), books.withheld())
            right = add_holdings(books.total, {})
            for stack, beyond in books.excess().items():
                base = right.get(stack, EMPTY)
                right[stack] = base + beyond if base else beyond
            assert left == right, (agent_id, left, right)
            assert bool(books.free and books.present) == (agent_id in self.with_free), agent_id
            assert bool(books.gang_hold) == (agent_id in self.gang_holds) and (books.present or not books.gang_hold)
            assert books.gang_hold == _sum(self.holders_on(agent_id).values()), agent_id
            entries = (*books.offered.values(), *books.allocated.values())
            assert any(entry.revocable for entry in entries) == (agent_id in self.with_loans), agent_id
            assert books.present or not books.earmark, agent_id
            devices = [uuid for uuid, _ in self.device_holders(agent_id)]
            assert len(devices) == len(set(devices)), (agent_id, devices)
            free_devices = holding_total(books.free).devices
            assert free_devices.isdisjoint(devices) and free_devices.isdisjoint(books.withheld_devices), agent_id
            assert books.has_views == _has_views(books.total), agent_id
            assert books.has_gpus_only == (not device_kinds(holding_total(books.total).devices)), agent_id
            assert (agent_id in self._with_devices) == any(part.devices for part in books.total.values()), agent_id
            if books.has_views:
                assert not views_hidden_by(devices, free_devices), agent_id
                for task in books.allocated.values():
                    others = [uuid for uuid in devices if uuid not in holding_total(task.holding).devices]
                    assert not views_hidden_by(holding_total(task.holding).devices, others), agent_id
            for entry in (*books.offered.values(), *books.allocated.values()):
                assert entry == _entry(entry.client, entry.holding, entry.revocable), agent_id
        if self._free_unreserved is not None:
            kept, self._free_unreserved = self._free_unreserved, None
            assert kept == self.free_unreserved()
        assert self._task_agent.keys() == {task for books in self.books.values() for task in books.allocated}

    # --- inside ---

    def _shared(self, total: Holding) -> Holding:
        """What an agent has, without empty parts; where it has no devices, one object for all that have the same: a cycle then works
        out once what it comes to.
        """
        if not all(total.values()):
            total = {stack: part for stack, part in total.items() if part}
        for part in total.values():
            if part.devices:
                return total
        if len(self._totals) > MAX_TOTALS:
            self._totals.clear()
        return self._totals.setdefault(frozenset(total.items()), total)

    def _note_devices(self, agent_id: AgentId, books: Books) -> None:
        has_devices = any(part.devices for part in books.total.values())
        books.has_views = has_devices and _has_views(books.total)
        books.has_gpus_only = all(gpus_among(part.devices) is part.devices for part in books.total.values())
        (self._with_devices.add if has_devices else self._with_devices.discard)(agent_id)

    def _count_total(self, books: Books) -> None:
        self._accounts.add_total(holding_total(books.total).amounts())
        for stack, part in books.total.items():
            self._keep(stack, part, self._accounts.keep)

    def _discount_total(self, books: Books) -> None:
        self._accounts.subtract_total(holding_total(books.total).amounts())
        for stack, part in books.total.items():
            self._keep(stack, part, self._accounts.release)

    @staticmethod
    def _keep(stack: Stack, resources: Resources, change: Callable[[str, Mapping[str, int]], None]) -> None:
        """Tell the accounts of a bucket that is kept for a plain role."""
        if stack and (role := plain_holder(stack[-1].holder)) is not None:
            change(role, resources.amounts())

    def _take(self, agent_id: AgentId, books: Books, holding: Holding) -> None:
        free: Holding = books.free
        rest = {} if holding is free else subtract_holdings(free, holding)
        if rest and books.has_views:
            rest = without_views(rest, holding)
        self._set_free(agent_id, books, rest)

    def _give_back(self, agent_id: AgentId, books: Books, entry: _Entry, *, told: bool = False) -> Holding:
        holding = entry.holding
        if books.counted and not told:
            self._accounts.discharge(entry.client, entry.amounts, entry.reserved)
        if books.in_excess:
            # What comes back first pays for what is held beyond the total.
            self._settle(agent_id, books)
            return holding
        if books.has_views:
            self._set_free(agent_id, books, self._derive_free(books))
            return holding
        if not (books.offered or books.allocated or books.is_restricted):
            self._set_free(agent_id, books, books.total)
            return holding
        back = holding
        if books.withheld_devices:
            withheld = books.withheld_devices.keys()
            back = {stack: _without(part, withheld) for stack, part in holding.items()}
        self._set_free(agent_id, books, add_holdings(books.free, back))
        return holding

    def _settle(self, agent_id: AgentId, books: Books) -> None:
        """Derive what is free from everything else; the gang hold and the earmark end."""
        books.earmark = {}
        if books.gang_hold:
            books.gang_hold = {}
            self.gang_holds.discard(agent_id)
            for number in [number for number, held in self._held_for.items() if held.pop(agent_id, None)]:
                if not self._held_for[number]:
                    del self._held_for[number]
        if not (books.offered or books.allocated or books.withheld_devices or books.has_views):
            books.in_excess = False
            self._set_free(agent_id, books, books.total)
            return
        books.in_excess = bool(_beyond(books.held(), books.total))
        self._set_free(agent_id, books, self._derive_free(books))

    def _note_loans(self, agent_id: AgentId, books: Books) -> None:
        if not any(entry.revocable for entry in (*books.offered.values(), *books.allocated.values())):
            self.with_loans.discard(agent_id)

    @staticmethod
    def _derive_free(books: Books) -> Holding:
        """What is free, from everything else."""
        held = books.held()
        free = {stack: rest for stack in books.total if (rest := books.offerable(stack, held))}
        for withheld in (books.gang_hold, books.earmark):
            free = subtract_holdings(free, withheld) if withheld else free
        return free

    def _set_free(self, agent_id: AgentId, books: Books, free: Holding) -> None:
        if self._free_unreserved is not None:
            self._note_unreserved(books, -1)
        books.free = free
        if self._free_unreserved is not None:
            self._note_unreserved(books, 1)
        if free and books.present:
            self.with_free.add(agent_id)
        else:
            self.with_free.discard(agent_id)

    def _note_unreserved(self, books: Books, sign: int) -> None:
        part = books.free.get(UNRESERVED)
        if part is None or not books.present:
            return
        counter = self._free_unreserved
        assert counter is not None
        for kind, amount in part.amounts().items():
            left = counter.get(kind, 0) + sign * amount
            if left:
                counter[kind] = left
            else:
                del counter[kind]


_NOTHING: Mapping[str, int] = MappingProxyType({})
_ALL_TAKEN: Holding = MappingProxyType({})
_HELD_NOWHERE: Mapping[AgentId, Holding] = MappingProxyType({})


def without_views(rest: Holding, taken: Holding) -> dict[Stack, Resources]:
    """What is left of a holding once devices were taken from it: their other views go with them."""
    devices = holding_total(taken).devices
    result = {}
    for stack, part in rest.items():
        left = _without(part, views_hidden_by(devices, part.devices)) if part.devices and devices else part
        if left:
            result[stack] = left
    return result


def _has_views(total: Holding) -> bool:
    return any(has_views(part.devices) for part in total.values())


#: What `_Entry(…)` comes to, without a detour: a cycle makes many.
_make_entry: Callable[[type[_Entry], tuple[Client, Holding, Mapping[str, int], Mapping[str, int], bool]], _Entry] = (
    tuple.__new__
)


def _entry(client: Client, holding: Holding, revocable: bool = False) -> _Entry:
    if revocable:
        # What is lent counts where it is reserved, if anywhere, and not in the quotas of those who borrow it. Where nothing of it is
        # reserved, all of it was lent while a gang fills.
        amounts = holding_total(holding).amounts()
        lent = [part for stack, part in holding.items() if stack]
        return _Entry(client, holding, amounts, sum_resources(lent).amounts() if lent else amounts, True)
    if len(holding) == 1:
        ((stack, part),) = holding.items()
        amounts = part.amounts() if part.devices else part.scalars
        if not stack:
            return _make_entry(_Entry, (client, holding, amounts, _NOTHING, False))
        return _Entry(client, holding, amounts, _NOTHING if plain_holder(stack[-1].holder) is None else amounts)
    kept = [part for stack, part in holding.items() if stack and plain_holder(stack[-1].holder) is not None]
    return _Entry(
        client, holding, holding_total(holding).amounts(), sum_resources(kept).amounts() if kept else _NOTHING
    )


def _beyond(held: Holding, total: Holding) -> dict[Stack, Resources]:
    """What is held beyond the total, by bucket."""
    return {stack: beyond for stack, part in held.items() if (beyond := part.minus_saturating(total.get(stack, EMPTY)))}


def _without(resources: Resources, devices: AbstractSet[DeviceUuid]) -> Resources:
    if resources.devices.isdisjoint(devices):
        return resources
    # Not `-`: a view of a dictionary would make a set of it, which others could change in place.
    return Resources(resources.scalars, resources.ports, resources.devices.difference(devices))


def _sum(holdings: Iterable[Holding]) -> dict[Stack, Resources]:
    total: dict[Stack, Resources] = {}
    for holding in holdings:
        total = add_holdings(total, holding)
    return total
