"""A framework in a dialogue with the master's machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, ConnectionId, OfferId, TaskId
from bursar.core.messages import operator as op
from bursar.core.messages.framework import (
    Acknowledge,
    FrameworkInfo,
    Kill,
    LookupCalls,
    LookupResults,
    Offers,
    Reconcile,
    Rescind,
    Revive,
    StatusUpdates,
    Subscribe,
    Suppress,
    UpdateDemand,
    UpdateFramework,
    UpdateRef,
)
from bursar.core.messages.gangs import Bundle, GangGroup, GangTopology, GangUpdate, OnMemberLost, RequestGang
from bursar.core.messages.offers import (
    Accept,
    AgentDescription,
    CallResult,
    Decline,
    Demand,
    Filters,
    Offer,
    Operation,
    Shape,
)
from bursar.core.resources import (
    ResourceRequest,
    Resources,
    holding_total,
    to_holding,
)
from bursar.core.tasks import TaskSpec, TaskStatus
from bursar.master.events import (
    FrameworkCalled,
    FrameworkStreamEnded,
)
from dialogue.amounts import launch

if TYPE_CHECKING:
    from dialogue.playbook import Playbook


NO_DEMAND = Demand()


class FrameworkPeer:
    """A framework as the master sees it; `offers` are those that it believes to be outstanding."""

    def __init__(self, book: Playbook, info: FrameworkInfo) -> None:
        self.book = book
        self.info = info
        self.connection: ConnectionId | None = None
        self.inbox: list[Any] = []
        self.offers: dict[OfferId, Offer] = {}
        self.descriptions: dict[AgentId, AgentDescription] = {}
        self.closed: ErrorDetail | None = None
        self.sends_heartbeats = True
        self.demand = NO_DEMAND
        #: Who it is by what it shows; empty where nobody is asked.
        self.shown = ""
        self._calls = 0

    def connect(
        self, *, cluster_id: str = "", suppressed: Sequence[str] = (), demand: Demand = NO_DEMAND, **changes: Any
    ) -> FrameworkPeer:
        """Open a stream and subscribe; `changes` are fields of its info."""
        if changes:
            self.info = replace(self.info, **changes)
        self.connection = self.book.new_connection(self)
        self.offers, self.closed, self.descriptions, self.demand = {}, None, {}, demand
        self.call(Subscribe(self.info, cluster_id, tuple(suppressed), demand))
        return self

    def disconnect(self) -> None:
        connection, self.connection = self.connection, None
        assert connection is not None
        self.book.peers.pop(connection, None)
        self.offers = {}
        self.book.step(FrameworkStreamEnded(connection))

    def call(self, call: Any) -> None:
        assert self.connection is not None, "not connected"
        self.book.step(FrameworkCalled(self.connection, call, self.shown))

    def hear(self, event: Any) -> None:
        self.inbox.append(event)
        match event:
            case Offers(descriptions, offers):
                for description in descriptions:
                    self.descriptions[description.agent_id] = description
                for offer in offers:
                    assert self.descriptions[offer.agent_id].version == offer.description_version
                    self.offers[offer.offer_id] = offer
            case Bundle(bundle_id, _, offers):
                assert len({offer.agent_id for offer in offers}) == len(offers), "one offer per agent"
                for offer in offers:
                    assert offer.bundle_id == bundle_id
                    assert self.descriptions[offer.agent_id].version == offer.description_version
                    self.offers[offer.offer_id] = offer
            case Rescind(offer_ids):
                for offer_id in offer_ids:
                    assert self.offers.pop(offer_id, None) is not None, "rescinded, but not outstanding"

    def heard(self, kind: type) -> list[Any]:
        found = [event for event in self.inbox if isinstance(event, kind)]
        self.inbox = [event for event in self.inbox if not isinstance(event, kind)]
        return found

    def statuses(self) -> list[TaskStatus]:
        """Everything heard of tasks since last asked."""
        return [status for event in self.heard(StatusUpdates) for status in event.statuses]

    def states(self) -> list[tuple[str, str]]:
        """(task, state) of everything heard since last asked."""
        return [(status.task_id, status.state.name) for status in self.statuses()]

    def acknowledge(self, *statuses: TaskStatus) -> None:
        self.call(Acknowledge(tuple(UpdateRef(status.task_id, status.update_id) for status in statuses)))

    def accept(
        self,
        offers: Offer | Iterable[Offer | str],
        *operations: Operation,
        call_id: str = "",
        refuse_ms: int | None = None,
        partial: bool = False,
    ) -> CallResult:
        """Accept, and return the one answer."""
        self._calls += 1
        several = [offers] if isinstance(offers, Offer) else list(offers)
        ids = tuple(OfferId(offer) if isinstance(offer, str) else offer.offer_id for offer in several)
        self._answered(ids)
        self.heard(CallResult)
        call_id = call_id or f"call-{self._calls}"
        with self.book.batch():
            self.call(Accept(call_id, ids, tuple(operations), Filters(refuse_ms), partial))
            (result,) = self.heard(CallResult)
        assert result.call_id == call_id
        return result

    def ask_for_gang(
        self,
        *groups: tuple[int, ResourceRequest],
        gang_id: str = "g",
        role: str = "",
        same: str = "",
        clique: bool = False,
        ttl_ms: int = 3_600_000,
        keep: bool = False,
    ) -> None:
        """Ask for a gang: groups of (count, resources)."""
        self.call(
            RequestGang(
                gang_id,
                role or self.info.roles[0],
                tuple(GangGroup(resources, count) for count, resources in groups),
                GangTopology(same, clique),
                ttl_ms,
                OnMemberLost.KEEP if keep else OnMemberLost.UNSPECIFIED,
            )
        )

    def gang_states(self, gang_id: str = "g") -> list[str]:
        """What it heard of a gang since last asked; `BUNDLE` for a bundle."""
        found = [event for event in self.inbox if isinstance(event, Bundle | GangUpdate) and event.gang_id == gang_id]
        self.inbox = [event for event in self.inbox if event not in found]
        return ["BUNDLE" if isinstance(event, Bundle) else event.state.name for event in found]

    def gang_error(self) -> ErrorDetail:
        """The error of the last update on a gang."""
        error = self.heard(GangUpdate)[-1].error
        assert error is not None
        return error

    @property
    def bundle(self) -> Bundle:
        """The last bundle that it heard of."""
        return [event for event in self.inbox if isinstance(event, Bundle)][-1]

    def take(self, bundle: Bundle, gang: dict[int, ResourceRequest], prefix: str = "t", **more: Any) -> CallResult:
        """Accept a bundle by its first offer, with all its tasks: `<prefix>0`…"""
        specs = [
            TaskSpec(
                TaskId(f"{prefix}{index}"),
                agent_id=member.agent_id,
                command=("sleep", "1"),
                resources=ResourceRequest(gang[member.group].scalars, (), 0, member.device_uuids)
                if member.device_uuids
                else gang[member.group],
            )
            for index, member in enumerate(bundle.members)
        ]
        return self.accept([bundle.offers[0]], launch(*specs), **more)

    def _answered(self, offer_ids: Iterable[OfferId]) -> None:
        """An answer to one offer of a bundle is the answer to all."""
        for offer_id in offer_ids:
            offer = self.offers.pop(offer_id, None)
            if offer is not None and offer.bundle_id:
                self.offers = {key: other for key, other in self.offers.items() if other.bundle_id != offer.bundle_id}

    def run(self, *specs: TaskSpec, offer: Offer | None = None, refuse_ms: int | None = None) -> None:
        """Launch tasks on the only offer that there is."""
        offer = offer or self.offer
        result = self.accept(offer, launch(*specs), refuse_ms=refuse_ms)
        assert result.error is None, result.error

    def run_on(self, agent_id: str, task_id: str, **amounts: Any) -> None:
        """Hold part of an agent by a task; what else is offered of it is declined for no time."""
        (offer,) = [offer for offer in self.offers.values() if offer.agent_id == agent_id]
        self.run(self.book.spec(task_id, **amounts), offer=offer, refuse_ms=0)

    def decline(self, *offers: Offer, refuse_ms: int | None = None) -> None:
        self._answered(offer.offer_id for offer in offers)
        self.call(Decline(tuple(offer.offer_id for offer in offers), Filters(refuse_ms)))

    def want(self, *shapes: Shape, version: int = 1) -> None:
        self.demand = Demand(version, tuple(shapes))
        self.call(UpdateDemand(self.demand))

    def suppress(self, *roles: str) -> None:
        self.call(Suppress(roles))

    def revive(self, *roles: str) -> None:
        self.call(Revive(roles))

    def kill(self, task_id: str, grace_ms: int | None = None) -> None:
        self.call(Kill(TaskId(task_id), grace_ms))

    def reconcile(self, *task_ids: str) -> list[TaskStatus]:
        self.statuses()
        self.call(Reconcile(tuple(map(TaskId, task_ids))))
        return self.statuses()

    def lookup(self, *call_ids: str, operations: Sequence[str] = ()) -> tuple[CallResult, ...]:
        self.call(LookupCalls(tuple(call_ids), tuple(operations)))
        (found,) = self.heard(LookupResults)
        return found.results

    def update(
        self, *, suppressed: Sequence[str] = (), demand: Demand = NO_DEMAND, call_id: str = "", **changes: Any
    ) -> CallResult:
        """Change fields of its info; return the one answer. Offers wait, so that a test sees what was rescinded."""
        self._calls += 1
        info = replace(self.info, **changes)
        call_id = call_id or f"call-{self._calls}"
        with self.book.batch():
            self.call(UpdateFramework(call_id, info, tuple(suppressed), demand))
            (result,) = self.heard(CallResult)
        assert result.call_id == call_id
        if result.error is None:
            self.info = info
            self.demand = demand if demand.version else self.demand
        return result

    @property
    def offer(self) -> Offer:
        """The only outstanding offer."""
        (offer,) = self.offers.values()
        return offer

    def offered(self) -> Resources:
        """All that is offered, ports left out: those of several agents are different ones."""
        return _sum(holding_total(to_holding(offer.resources)) for offer in self.offers.values())

    @property
    def agents(self) -> set[str]:
        """The agents of the outstanding offers."""
        return {offer.agent_id for offer in self.offers.values()}

    @property
    def view(self) -> op.FrameworkView:
        return self.book.ask(op.GetFrameworkRequest(self.info.framework_id)).framework


def _sum(parts: Iterable[Resources]) -> Resources:
    total = Resources()
    for part in parts:
        total = total + Resources(part.scalars, (), part.devices)
    return total
