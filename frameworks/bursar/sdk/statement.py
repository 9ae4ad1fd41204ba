"""What a framework says of itself – its info, its demand, the roles in which it wants nothing –, and how the master comes to know it.

Subscribe says all of it; what the author says while that is on its way follows once it was heard. A change of the info waits for
its answer, one at a time: what comes meanwhile goes out with the next.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from bursar.core.errors import ErrorDetail
from bursar.core.messages.framework import (
    FrameworkCall,
    FrameworkHeartbeat,
    FrameworkInfo,
    Revive,
    Subscribe,
    Suppress,
    UpdateDemand,
    UpdateFramework,
)
from bursar.core.messages.offers import CallResult, Demand, Shape
from bursar.sdk import effects
from bursar.sdk.demand import StatedDemand
from bursar.sdk.effects import Effect


class Statement:
    """`send` takes calls, and drops them while there is no subscription; `deliver` takes effects."""

    def __init__(
        self,
        info: FrameworkInfo,
        send: Callable[[FrameworkCall], None],
        deliver: Callable[[Effect], None],
        fresh_call_id: Callable[[], str],
    ) -> None:
        #: What the master knows, as far as it has answered, and what the author wants it to know.
        self.info = self.wanted_info = info
        self.demand = StatedDemand()
        self._send = send
        self._deliver = deliver
        self._fresh_call_id = fresh_call_id
        self._suppressed: set[str] = set()
        #: What the current connection began with, and whether it was heard.
        self._subscribe = Subscribe(info)
        self._is_heard = False
        #: The update that waits for its answer.
        self._updating: UpdateFramework | None = None
        #: Roles in which more is wanted, to be said once the update is answered; None: nothing waits.
        self._held_demand: set[str] | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether an update waits for its answer."""
        return self._updating is not None

    # --- connections ---

    def subscribe(self, cluster_id: str) -> Subscribe:
        """What a connection begins with."""
        suppressed = tuple(sorted(self._suppressed.intersection(self.info.roles)))
        self._subscribe = Subscribe(self.info, cluster_id, suppressed, self._stated())
        return self._subscribe

    def heard(self) -> None:
        """Subscribe was heard: say what the author has said since."""
        self._is_heard = True
        before = set(self._subscribe.suppressed_roles)
        now = self._suppressed.intersection(self.info.roles)
        if suppressed := now - before:
            self._send(Suppress(tuple(sorted(suppressed))))
        if revived := before - now:
            self._send(Revive(tuple(sorted(revived))))
        if self._stated() != self._subscribe.demand:
            self._send(UpdateDemand(self._stated()))
        self._send_update()

    def lost(self) -> None:
        """The connection is no more. Whether an update happened does not matter: Subscribe says what was known before, and the
        update is said again after it.
        """
        self._is_heard = False
        self._updating, self._held_demand = None, None

    def heartbeat(self) -> FrameworkHeartbeat:
        """Repeats the demand. While an update is on its way nobody knows which roles shapes may name: version 0 changes nothing."""
        return FrameworkHeartbeat(Demand() if self.is_waiting else self._stated())

    # --- what the author says ---

    def suppress(self, roles: Collection[str]) -> None:
        """Want nothing in these roles; none: in all."""
        self._suppressed |= set(roles or self.wanted_info.roles)
        self._send(Suppress(tuple(roles)))

    def revive(self, roles: Collection[str]) -> None:
        """Want offers in these roles again; none: in all."""
        self._suppressed -= set(roles or self.wanted_info.roles)
        self._send(Revive(tuple(roles)))

    def state_demand(self, shapes: tuple[Shape, ...]) -> None:
        """A new version; where something more is wanted, filters of earlier declines must not stand in its way."""
        more = self.demand.state(shapes)
        if self.is_waiting:
            self._held_demand = (self._held_demand or set()) | more
        else:
            self._send_demand(more)

    def change(self, changes: Mapping[str, Any], shapes: tuple[Shape, ...] | None) -> None:
        """Have the master know other fields of the info, and the demand that goes with them where `shapes` states one."""
        self.wanted_info = replace(self.wanted_info, **changes)
        more = None if shapes is None else self.demand.state(shapes)
        if self.is_waiting:
            self._held_demand = self._held_demand if more is None else (self._held_demand or set()) | more
        elif self.wanted_info == self.info:
            if more is not None:
                self._send_demand(more)
            self._deliver(effects.DeliverUpdated(self.info, None))
        self._send_update()

    # --- updates ---

    def answered(self, result: CallResult) -> bool:
        """Whether this is the answer to an update; what came meanwhile goes out then."""
        update = self._updating
        if update is None or result.call_id != update.call_id:
            return False
        self._on_updated(update, result.error)
        return True

    def _on_updated(self, update: UpdateFramework, error: ErrorDetail | None) -> None:
        self._updating = None
        if error is None:
            self.info = update.info
            self._suppressed &= set(self.wanted_info.roles) | set(self.info.roles)
        elif self.wanted_info == update.info:
            self.wanted_info = self.info
        more, self._held_demand = self._held_demand, None
        if error is not None or more is not None:
            # What came with a refused update was not heard.
            self.demand.renew()
            self._send_demand(more or set())
        self._deliver(effects.DeliverUpdated(self.info, error))
        self._send_update()

    def _send_update(self) -> None:
        if not self._is_heard or self.is_waiting or self.wanted_info == self.info:
            return
        info = self.wanted_info
        # A greater version than anything that was said: what is wanted in new roles comes with them.
        self.demand.renew()
        suppressed = tuple(sorted(self._suppressed.intersection(info.roles)))
        self._updating = UpdateFramework(self._fresh_call_id(), info, suppressed, self.demand.within(info.roles))
        self._send(self._updating)

    def _send_demand(self, more: set[str]) -> None:
        self._send(UpdateDemand(self._stated()))
        if roles := more.intersection(self.info.roles) - self._suppressed:
            self._send(Revive(tuple(sorted(roles))))

    def _stated(self) -> Demand:
        """The demand, in roles that the master knows."""
        return self.demand.within(self.info.roles)
