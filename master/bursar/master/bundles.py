"""Gangs that were asked for and bundles that are out, as plain state; soft, as offers are. `gangs` says how they live.

What `offers` and `tasks` must know of them is here: which offers belong together, and which tasks must start together.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, FrameworkId, OfferId
from bursar.core.messages.gangs import GangState, GangUpdate, RequestGang
from bursar.core.messages.operator import RefusalReason
from bursar.core.resources import Holding, holding_contains
from bursar.core.tasks import TaskState, TaskStatus
from bursar.master.allocator.gangs import Alike, Cliques, Counts, Order, Room

if TYPE_CHECKING:
    from bursar.core.devices import Device
    from bursar.core.ids import DeviceUuid
    from bursar.master.ledger import TaskKey
    from bursar.master.state import Cluster, Turn


class GangKey(NamedTuple):
    """A gang, cluster-wide."""

    framework_id: FrameworkId
    gang_id: str

    def __str__(self) -> str:
        return f"{self.framework_id}/{self.gang_id}"


@dataclass(slots=True, eq=False)
class Gang:
    """A gang that waits, or whose bundle is out (`offer_ids`)."""

    key: GangKey
    request: RequestGang
    #: Grows with every request: its age, and the name of its deadlines.
    number: int
    #: How often it held resources for as long as it may; it then goes behind those that did so less often.
    turns: int = 0
    #: Monotonic time before which it holds nothing.
    rests_until_ms: int = 0
    #: Its bundle, while it is on offer; empty while it waits.
    bundle_id: str = ""
    offer_ids: tuple[OfferId, ...] = ()
    #: Monotonic time at which it has waited long enough.
    deadline_ms: int = 0
    #: Wall time at which it was asked for, and since and until which it holds; 0: it has not its turn.
    requested_at_ms: int = 0
    holds_since_ms: int = 0
    holds_until_ms: int = 0
    #: Agents that it may use, with what was free there when that was found and those that they are like; None: to be found anew.
    spots: dict[AgentId, tuple[Holding, Alike, Order]] | None = None
    #: Those that are alike, by what they have.
    classes: dict[object, Alike] = field(default_factory=dict)
    #: Where its tasks had room when that was last found out, for as long as nothing changed.
    chosen: Counts | None = None
    #: What agents have for it once they are empty; found when something is to be held.
    capacities: dict[AgentId, Room] = field(default_factory=dict)
    #: What stands in its way although all would fit, for people; set when it was last tried.
    hindrance: str = ""
    #: The kind of that.
    hindered_by: RefusalReason = RefusalReason.UNSPECIFIED
    #: How many tasks of each group its bundle will have where, once what is called back for it is there; None: nothing is called back.
    recalls: Counts | None = None
    #: What the bundle will have of each agent then; what of it is there already is withheld.
    promised: dict[AgentId, Holding] = field(default_factory=dict)
    #: Not 0: it is looked for room as if what can be called back for it were back; agents of which anything is on loan come first (-1) or
    #: last (1).
    counts_loans: int = 0
    #: The same gang, looked for room like that; None: to be found anew, or nothing is on loan.
    with_loans: Gang | None = None

    @property
    def at_quota(self) -> bool:
        """Whether what stands in its way is quota: what others are given may then change it."""
        return self.hindered_by in (RefusalReason.QUOTA_LIMIT, RefusalReason.HEADROOM)

    def counting_loans(self, counts_loans: int) -> Gang:
        """The same gang, looked for room anew, as if what can be called back for it were back (see `counts_loans`)."""
        return replace(
            self, spots=None, classes={}, capacities={}, chosen=None, with_loans=None, counts_loans=counts_loans
        )

    def forget_room(self) -> None:
        """What it may have of agents is to be found anew."""
        self.spots = self.with_loans = None

    def hinder(self, reason: RefusalReason, message: str) -> None:
        """Note what stands in its way."""
        self.hindered_by, self.hindrance = reason, message

    @property
    def tasks(self) -> int:
        """How many it has."""
        return sum(group.count for group in self.request.groups)


@dataclass(slots=True, eq=False)
class GangLaunch:
    """Tasks that start together or not at all: one launch of a gang that releases all if one is lost."""

    gang_id: str
    tasks: list[TaskKey]
    #: Those that nobody saw running yet.
    waiting: set[TaskKey]


class Gangs:
    """All gangs. Invariants (`check`): a bundle's offers are outstanding, all of them; the one that holds is waiting, and so are those for
    which loans are called back; nothing is withheld for any other.
    """

    def __init__(self) -> None:
        self.by_key: dict[GangKey, Gang] = {}
        self.by_number: dict[int, Gang] = {}
        #: bundle → gang.
        self.by_bundle: dict[str, Gang] = {}
        #: The one gang for which what becomes free is kept.
        self.holder: Gang | None = None
        #: Agents of which something was called back → for which gang.
        self.recalling: dict[AgentId, Gang] = {}
        #: Numbers of gangs and of bundles so far.
        self.requests = 0
        self.bundles_made = 0
        #: Tasks of launches that are not complete.
        self.starting: dict[TaskKey, GangLaunch] = {}
        #: Cliques of agents, with the devices that they were found of.
        self.cliques: dict[AgentId, tuple[dict[DeviceUuid, Device], Cliques]] = {}

    def check(self, cluster: Cluster) -> None:
        """Assert the invariants."""
        assert {gang.number: gang for gang in self.by_key.values()} == self.by_number
        assert self.by_bundle == {gang.bundle_id: gang for gang in self.by_key.values() if gang.bundle_id}
        members: dict[str, set[OfferId]] = {}
        for offer_id, outstanding in cluster.offers.items():
            if outstanding.offer.bundle_id:
                members.setdefault(outstanding.offer.bundle_id, set()).add(offer_id)
        assert members == {bundle_id: set(gang.offer_ids) for bundle_id, gang in self.by_bundle.items()}
        for key, gang in self.by_key.items():
            framework = cluster.frameworks[key.framework_id]
            assert framework.connection is not None, key
            assert gang.request.role in framework.info.roles, key
            if gang.spots is not None:
                assert all(order in alike.orders for _, alike, order in gang.spots.values()), key
                assert sum(len(alike.orders) for alike in gang.classes.values()) == len(gang.spots), key
        holder = self.holder
        assert holder is None or (self.by_number.get(holder.number) is holder and not holder.bundle_id)
        for agent_id in cluster.ledger.gang_holds:
            for number, held in cluster.ledger.holders_on(agent_id).items():
                gang = self.by_number[number]
                assert gang is holder or gang.recalls is not None, "held for nobody"
                assert gang is holder or holding_contains(gang.promised[agent_id], held), agent_id
        assert holder is None or holder.recalls is None
        for agent_id, gang in self.recalling.items():
            assert gang.recalls is not None and agent_id in gang.recalls and not gang.bundle_id, agent_id


def whole_bundles(cluster: Cluster, offer_ids: Iterable[OfferId]) -> list[OfferId]:
    """Outstanding offers, in this order, and with each member of a bundle all others."""
    found = dict.fromkeys(offer_ids)
    if not cluster.gangs.by_bundle:
        return list(found)
    for bundle_id in bundles_among(cluster, found):
        found.update(dict.fromkeys(cluster.gangs.by_bundle[bundle_id].offer_ids))
    return list(found)


def bundles_among(cluster: Cluster, offer_ids: Iterable[OfferId]) -> list[str]:
    """The bundles that outstanding offers belong to."""
    if not cluster.gangs.by_bundle:
        return []
    bundles = (cluster.offers[offer_id].offer.bundle_id for offer_id in offer_ids)
    return [bundle_id for bundle_id in dict.fromkeys(bundles) if bundle_id]


def let_go(cluster: Cluster, agent_id: AgentId) -> None:
    """Free what is withheld on an agent for gangs, and for who wants back what was lent: somebody with a better right wants it."""
    if agent_id in cluster.ledger.gang_holds:
        cluster.ledger.end_gang_holds(agent_id)
        cluster.touch(agent_id)
    cluster.ledger.set_earmark(agent_id, {})


def end_bundles(
    cluster: Cluster, turn: Turn, bundle_ids: Iterable[str], state: GangState, why: ErrorDetail | None = None
) -> None:
    """The offers of these bundles have ended: their gangs wait again (WAITING), or are over and the framework hears it."""
    for bundle_id in bundle_ids:
        gang = cluster.gangs.by_bundle.pop(bundle_id)
        gang.bundle_id, gang.offer_ids = "", ()
        if state is GangState.WAITING:
            cluster.deadlines.set(("gang", str(gang.number)), gang.deadline_ms)
            gang.forget_room()
        else:
            forget_gang(cluster, gang)
        tell(cluster, turn, gang, state, why)


def tell(cluster: Cluster, turn: Turn, gang: Gang, state: GangState, why: ErrorDetail | None = None) -> None:
    """Say what became of a gang."""
    turn.to_framework(cluster.frameworks[gang.key.framework_id], GangUpdate(gang.key.gang_id, state, why))


def forget_gang(cluster: Cluster, gang: Gang) -> None:
    """A gang is over; its bundle, if it had one, has ended before. What was held for it is free."""
    assert not gang.bundle_id, gang.key
    gangs = cluster.gangs
    del gangs.by_key[gang.key]
    del gangs.by_number[gang.number]
    for kind in ("gang", "gang-hold"):
        cluster.deadlines.cancel((kind, str(gang.number)))
    release_hold(cluster, gang)


def forget_gangs_of(cluster: Cluster, framework_id: FrameworkId) -> None:
    """A framework's stream has ended, and its offers with it: so have its gangs."""
    gangs = cluster.gangs
    for key in [key for key in gangs.by_key if key.framework_id == framework_id]:
        gang = gangs.by_key[key]
        gangs.by_bundle.pop(gang.bundle_id, None)
        gang.bundle_id, gang.offer_ids = "", ()
        forget_gang(cluster, gang)


def held_while_filling(cluster: Cluster) -> AbstractSet[AgentId]:
    """Agents on which something is held for the gang whose turn it is."""
    holder = cluster.gangs.holder
    return frozenset() if holder is None else cluster.ledger.held_for(holder.number).keys()


def release_hold(cluster: Cluster, gang: Gang) -> None:
    """Nothing is held for a gang, and nothing is called back for it; what was lent stays revocable, and has its notice."""
    gangs = cluster.gangs
    for agent_id in sorted(cluster.ledger.held_for(gang.number)):
        cluster.ledger.hold_for_gang(agent_id, gang.number, {})
        cluster.touch(agent_id)
    if gangs.holder is gang:
        gangs.holder = gang.with_loans = None
        gang.holds_since_ms = gang.holds_until_ms = 0
        cluster.deadlines.cancel(("gang-hold", str(gang.number)))
    gang.recalls, gang.promised = None, {}
    for agent_id in [agent_id for agent_id, other in gangs.recalling.items() if other is gang]:
        del gangs.recalling[agent_id]
        cluster.touch(agent_id)


def others_of_lost_start(cluster: Cluster, key: TaskKey, status: TaskStatus) -> tuple[str, list[TaskKey]]:
    """Note the new status of a task; where it ended without having run, the gang, and the others of its launch: they must end."""
    launch = cluster.gangs.starting.get(key)
    if launch is None:
        return "", []
    ran = status.state in (TaskState.RUNNING, TaskState.FINISHED) or status.exit_code is not None
    if not ran and not status.state.is_terminal:
        return "", []
    launch.waiting.discard(key)
    if ran and launch.waiting:
        return "", []
    for other in launch.tasks:
        cluster.gangs.starting.pop(other, None)
    return (launch.gang_id, []) if ran else (launch.gang_id, [other for other in launch.tasks if other != key])
