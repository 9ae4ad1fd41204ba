"""What agents and frameworks do: they come, change and go (mesos.md §2.2; M-04, M-05, OFF-6 to OFF-8)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bursar.core.devices import Device
from bursar.core.messages.framework import OfferSettings
from bursar.core.messages.offers import Attributes, Shape
from bursar.core.resources import ReservedResources, to_holding

from .cluster import Agent, Framework, Offer
from .operators import Operators

#: An agent that is away is given up after so long: five pings of fifteen seconds (mesos.md §0).
PATIENCE_MS = 75_000


class Peers(Operators):
    """What peers say."""

    def agent_registered(
        self,
        agent_id: str,
        resources: Iterable[ReservedResources],
        devices: Iterable[Device],
        ended: Iterable[tuple[str, str]] = (),
        *,
        hostname: str = "",
        attributes: Attributes | None = None,
    ) -> None:
        """An agent is there for the first time, or again; `ended` are tasks that ended while it was away. Its offers are
        rescinded; what it had it has again, dynamic reservations included (RSV-12).
        """
        agent = self.agents.get(agent_id)
        if agent is None:
            by_uuid = {device.uuid: device for device in devices}
            agent = Agent(agent_id, to_holding(resources), by_uuid, hostname, attributes or {})
            self.agents[agent_id] = agent
        self.rescinded([offer for offer in self.offers if offer.agent_id == agent_id])
        for framework_id, task_id in ended:
            self.task_ended(framework_id, task_id)
        self.forget(anew=agent)
        if not agent.counts:
            agent.counts = True
            for task in self.tasks:
                if task.agent_id == agent_id:
                    # Its tasks count again: they were given what they hold once more.
                    self.give(task)
        agent.connected, agent.given_up_ms = True, None
        self.changed.add(agent_id)

    def agent_disconnected(self, agent_id: str) -> None:
        """It is offered to nobody, and given up after a while; its tasks go on."""
        agent = self.agents[agent_id]
        self.rescinded([offer for offer in self.offers if offer.agent_id == agent_id])
        agent.connected, agent.given_up_ms = False, self.now_ms + PATIENCE_MS

    def devices_changed(self, agent_id: str, devices: Iterable[Device]) -> None:
        """M-05: health changed; the agent's offers are rescinded."""
        agent = self.agents[agent_id]
        self.rescinded([offer for offer in self.offers if offer.agent_id == agent_id])
        agent.devices = {device.uuid: device for device in devices}
        self.forget(anew=agent)
        self.changed.add(agent_id)

    def task_ended(self, framework_id: str, task_id: str) -> None:
        """What it held is free again."""
        (task,) = [task for task in self.tasks if (task.framework_id, task.task_id) == (framework_id, task_id)]
        self.tasks.remove(task)
        self.forget()
        self.changed.add(task.agent_id)

    def framework_subscribed(
        self,
        framework_id: str,
        roles: Sequence[str],
        capable: bool,
        failover_ms: int,
        suppressed: Iterable[str] = (),
        *,
        travels: bool = False,
        refines: bool = False,
        settings: Iterable[OfferSettings] = (),
    ) -> None:
        """A framework is there, or there again: as a new one, but for what its tasks hold."""
        if framework_id in self.frameworks:
            self.stream_ended(framework_id)
        by_role = {one.role: one for one in settings}
        framework = Framework(framework_id, tuple(roles), capable, failover_ms, travels, refines, by_role)
        framework.suppressed = set(suppressed)
        self.frameworks[framework_id] = framework
        self.changed |= set(self.agents)

    def framework_disconnected(self, framework_id: str) -> None:
        """mesos.md §2.2: its offers are void, its filters forgotten; it is removed when its failover timeout is over."""
        self.stream_ended(framework_id)
        framework = self.frameworks[framework_id]
        if framework.failover_ms:
            framework.removed_ms = self.now_ms + framework.failover_ms
        else:
            del self.frameworks[framework_id]

    def stream_ended(self, framework_id: str) -> None:
        """What hangs on the stream goes with it (OFF-6)."""
        self.rescinded([offer for offer in self.offers if offer.framework_id == framework_id])
        self.filters = [refusal for refusal in self.filters if refusal.framework_id != framework_id]
        self.frameworks[framework_id].connected = False
        self.forget()

    def framework_updated(
        self,
        framework_id: str,
        roles: Sequence[str],
        capable: bool,
        suppressed: Iterable[str] = (),
        *,
        travels: bool = False,
        refines: bool = False,
        settings: Iterable[OfferSettings] = (),
        rescinded: Iterable[Offer] = (),
    ) -> None:
        """M-04: other roles, capabilities, settings, and it goes on. What it may not be offered any more is rescinded, but not for
        its own settings; filters of roles that it gave up or revived are dropped (OFF-6, OFF-7).
        """
        framework = self.frameworks[framework_id]
        gone = set(framework.roles) - set(roles)
        revived = framework.suppressed - set(suppressed)
        framework.roles, framework.capable, framework.suppressed = tuple(roles), capable, set(suppressed)
        framework.travels, framework.refines = travels, refines
        framework.settings = {one.role: one for one in settings}
        self.drop_filters(framework, gone | revived)
        self.rescinded(
            offer for offer in list(self.offers) if offer.framework_id == framework_id and offer.role in gone
        )
        self.permissions_changed(rescinded)
        self.forget()
        self.changed |= set(self.agents)

    def drop_filters(self, framework: Framework, roles: Iterable[str]) -> None:
        """Forget what it declined in these roles, and that it was silent."""
        if roles:
            framework.silent_rounds = 0
        for key in [key for key in framework.decline_rounds if key[0] in roles]:
            del framework.decline_rounds[key]
        self.filters = [
            refusal
            for refusal in self.filters
            if refusal.framework_id != framework.framework_id or refusal.role not in roles
        ]

    def suppressed(self, framework_id: str, roles: Iterable[str]) -> None:
        """OFF-8: no new offers for these roles, or for all; outstanding ones stay."""
        framework = self.frameworks[framework_id]
        framework.suppressed |= set(roles or framework.roles)
        self.forget()

    def revived(self, framework_id: str, roles: Iterable[str]) -> None:
        """OFF-7: these roles, or all, are served again, and their filters are dropped."""
        framework = self.frameworks[framework_id]
        revived = set(roles or framework.roles)
        framework.suppressed -= revived
        self.drop_filters(framework, revived)
        self.changed |= set(self.agents)

    def demand_stated(self, framework_id: str, version: int, shapes: Sequence[Shape]) -> None:
        """A newer version replaces all that was wanted; what is on offer already, oldest first, covers part of it."""
        framework = self.frameworks[framework_id]
        if version <= framework.version:
            return
        framework.version, framework.shapes = version, tuple(shapes)
        framework.wanted = [shape.count for shape in shapes]
        open_counts = list(framework.wanted)
        for offer in self.offers:
            if offer.framework_id == framework_id:
                agent = self.agents[offer.agent_id]
                _, promised = self.cut(agent, offer.role, framework, open_counts, offer.holding)
                offer.version, offer.promised = version, promised
                for index, count in promised.items():
                    open_counts[index] -= count
        framework.looked_for = self.open(framework)
        self.changed |= set(self.agents)
