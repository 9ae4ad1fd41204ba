"""A framework that wants many tasks at once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bursar.core.messages.framework import Subscribe
from bursar.core.messages.gangs import (
    Bundle,
    CancelGang,
    GangGroup,
    GangState,
    GangTopology,
    GangUpdate,
    OnMemberLost,
    RequestGang,
)
from bursar.core.messages.offers import Launch
from bursar.core.resources import ResourceRequest
from bursar.simulation.frameworks.raw import RawFramework
from bursar.simulation.network import Stream

if TYPE_CHECKING:
    from bursar.simulation.world import World

ANYWHERE = GangTopology()


class Ganging(RawFramework):
    """Asks for one gang after the other: `tasks` tasks of one shape, together or not at all; wants no single offers.

    Sloppy, it also declines bundles, forgets to answer them, cancels, and names an odd one out of a bundle.
    """

    def __init__(
        self,
        world: World,
        name: str,
        roles: tuple[str, ...],
        *,
        request: ResourceRequest,
        tasks: int,
        run_ms: int | None = 1_000,
        topology: GangTopology = ANYWHERE,
        ttl_ms: int = 600_000,
        sloppy: bool = True,
        most: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(world, name, roles, **options)
        self._gang = request, tasks, run_ms, topology, ttl_ms
        self._sloppy = sloppy
        self._most = most
        self._gangs = 0
        #: Bundles that were taken, and gangs by how else they ended.
        self.taken = 0
        self.outcomes: dict[GangState, int] = {}

    def subscription(self) -> Subscribe:
        """Single offers are not wanted."""
        return replace(super().subscription(), suppressed_roles=self.roles)

    def on_subscribed(self) -> None:
        """Gangs ended with the former stream."""
        self._ask(self.stream)

    def _ask(self, stream: Stream | None) -> None:
        if stream is not self.stream or self.world.calm or (self._most is not None and self.taken >= self._most):
            return
        self._gangs += 1
        request, tasks, _, topology, ttl_ms = self._gang
        lost = self.random.choice((OnMemberLost.UNSPECIFIED, OnMemberLost.KEEP, OnMemberLost.RELEASE_ALL))
        gang_id = f"{self.name}-gang-{self._gangs}"
        group = GangGroup(request, tasks)
        self.call(RequestGang(gang_id, self.roles[0], (group,), topology, ttl_ms, lost))
        if self._sloppy and self.random.random() < 0.1:
            self.call(CancelGang(gang_id))

    def stream_heard(self, stream: Stream, event: Any) -> None:
        """Bundles and what becomes of gangs, and all the rest."""
        super().stream_heard(stream, event)
        if stream is not self.stream:
            return
        match event:
            case Bundle(_, _, offers):
                self.offers.update((offer.offer_id, offer) for offer in offers)
                self.world.timeline.after(self.random.randint(0, 50), self._answer_bundle, stream, event)
            case GangUpdate(_, state) if state is not GangState.WAITING:
                self.outcomes[state] = self.outcomes.get(state, 0) + 1
                self.world.timeline.after(self.random.randint(500, 3_000), self._ask, stream)

    def _answer_bundle(self, stream: Stream, bundle: Bundle) -> None:
        if stream is not self.stream or any(offer.offer_id not in self.offers for offer in bundle.offers):
            return
        random = self.random
        ids = [offer.offer_id for offer in bundle.offers]
        named = random.sample(ids, random.randint(1, len(ids)))
        answer = random.random() if self._sloppy else 1.0
        if self.world.calm or answer < 0.1:
            self.decline(self.offers[named[0]], None)
        elif answer < 0.2:
            return
        else:
            request, _, run_ms, _, _ = self._gang
            specs = []
            for member in bundle.members:
                shape = replace(request, gpus=0, devices=member.device_uuids) if member.device_uuids else request
                specs.append(replace(self.task(shape, member.agent_id, run_ms=run_ms), agent_id=member.agent_id))
            self.accept(named, [Launch(tuple(specs))], partial=self._sloppy and random.random() < 0.05)
            self.taken += 1
            self.world.timeline.after(random.randint(500, 3_000), self._ask, stream)
        for offer_id in ids:
            self.offers.pop(offer_id, None)
