"""Gangs that a framework has asked for and not got yet, and bundles that its author has not answered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, OfferId
from bursar.core.messages.framework import FrameworkCall
from bursar.core.messages.gangs import Bundle, CancelGang, GangState, GangUpdate, RequestGang
from bursar.core.messages.offers import AgentDescription, Decline
from bursar.sdk import effects
from bursar.sdk.effects import Effect

#: The shortest that a gang may wait.
MIN_GANG_MS = 1_000


class OpenGangs:
    """`send` takes calls, and drops them while there is no subscription; `deliver` takes effects."""

    def __init__(self, send: Callable[[FrameworkCall], None], deliver: Callable[[Effect], None]) -> None:
        self._send = send
        self._deliver = deliver
        #: By id, and until when each waits.
        self._gangs: dict[str, tuple[RequestGang, int]] = {}
        self._bundles: dict[str, Bundle] = {}

    @property
    def has_bundles(self) -> bool:
        """Whether any waits for its answer."""
        return bool(self._bundles)

    # --- what the author says ---

    def request(self, request: RequestGang, ms: int) -> None:
        """Ask for a gang."""
        self._gangs[request.gang_id] = request, ms + request.ttl_ms
        self._send(request)

    def cancel(self, gang_id: str) -> None:
        """Want it no more."""
        if self._gangs.pop(gang_id, None) is not None:
            self._send(CancelGang(gang_id))

    def take(self, bundle_id: str) -> Bundle | None:
        """The author accepts a bundle: nothing more is wanted for its gang. None: it is void by now."""
        bundle = self._bundles.pop(bundle_id, None)
        if bundle is not None:
            self._gangs.pop(bundle.gang_id, None)
        return bundle

    def decline(self, bundle_id: str) -> None:
        """The author, or whoever does not want it any more, gives a bundle back."""
        if (bundle := self._bundles.pop(bundle_id, None)) is not None:
            self._send(Decline(tuple(offer.offer_id for offer in bundle.offers)))

    # --- what the master says ---

    def on_bundle(self, bundle: Bundle, descriptions: Mapping[AgentId, AgentDescription]) -> None:
        """For the author, if it still wants it."""
        self._bundles[bundle.bundle_id] = bundle
        found = tuple(descriptions[offer.agent_id] for offer in bundle.offers if offer.agent_id in descriptions)
        if bundle.gang_id in self._gangs and len(found) == len(bundle.offers):
            self._deliver(effects.DeliverBundle(bundle, found))
        else:
            self.decline(bundle.bundle_id)

    def on_update(self, update: GangUpdate) -> None:
        """A gang waits, or is over without a bundle."""
        if update.state is not GangState.WAITING and self._gangs.pop(update.gang_id, None) is not None:
            self._deliver(effects.DeliverGangEnded(update.gang_id, update.error))

    def on_rescind(self, void: Collection[OfferId]) -> None:
        """Bundles with offers that are void are void."""
        for bundle_id in [b for b, bundle in self._bundles.items() if bundle.offers[0].offer_id in void]:
            del self._bundles[bundle_id]

    # --- connections ---

    def lost(self) -> None:
        """The subscription has ended, and with it every bundle."""
        self._bundles.clear()

    def ask_again(self, ms: int) -> None:
        """Gangs ended with the former stream: ask for what is left of their time."""
        for gang_id, (request, until_ms) in list(self._gangs.items()):
            if until_ms - ms >= MIN_GANG_MS:
                self._send(replace(request, ttl_ms=min(request.ttl_ms, until_ms - ms)))
            else:
                del self._gangs[gang_id]
                error = ErrorDetail(ErrorReason.INSUFFICIENT_RESOURCES, "its time passed without a bundle", "ask again")
                self._deliver(effects.DeliverGangEnded(gang_id, error))
