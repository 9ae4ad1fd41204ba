"""Frameworks that take what they are offered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bursar.core.messages.framework import Kill, Revive, Suppress
from bursar.core.messages.offers import Launch, Offer, Reserve, Unreserve
from bursar.core.resources import Ports, ReservationType, ResourceRequest, sum_resources
from bursar.core.service_ports import ServicePort, ports_of
from bursar.core.task_groups import TaskGroup
from bursar.core.tasks import TaskSpec
from bursar.simulation.frameworks.raw import LONG_MS, RawFramework, slices_of
from bursar.simulation.network import Stream


class Greedy(RawFramework):
    """Takes whatever it is offered, all GPUs in one task; reserves for itself now and then."""

    #: How long its tasks run; None is for ever.
    run_ms: tuple[int | None, ...] = (0, 50, 2_000, 20_000, None)
    reserves = 0.0

    def on_offer(self, offer: Offer) -> None:
        """Take all of it, in a few tasks."""
        random, world = self.random, self.world
        if world.calm:
            self.decline(offer, LONG_MS)
            return
        if random.random() < 0.1:
            self.decline(offer, random.choice((None, 0, 100, 30_000)))
            return
        if random.random() < 0.04:
            # The answer to an offer that this rescinds is on its way before the framework hears of it.
            self.update()
        total = sum_resources(part.resources for part in offer.resources)
        operations: list[Any] = []
        cpus, mem, gpus = total.scalars.get("cpus", 0), total.scalars.get("mem", 0), total.gpus
        if cpus and random.random() < self.reserves:
            operations.append(self._restack(offer))
        tasks = random.choice((1, 1, 2)) if cpus > 200 else min(1, cpus)
        for index in range(tasks):
            share = gpus // tasks + (gpus % tasks if index == 0 else 0)
            scalars = {"cpus": max(1, cpus // (tasks * random.choice((1, 1, 2, 4))))}
            if mem and random.random() < 0.8:
                scalars["mem"] = max(1, mem // (tasks * random.choice((1, 2, 8))))
            for kind, count in slices_of(total).items():
                if mine := count // tasks + (count % tasks if index == 0 else 0):
                    scalars[kind] = 1000 * mine
            services = self._services(total.ports)
            names: tuple[Any, ...] = ()
            if share and tasks == 1 and random.random() < 0.2:
                names = tuple(sorted(total.devices))
                scalars = {kind: amount for kind, amount in scalars.items() if kind in ("cpus", "mem")}
            spec = self.task(
                ResourceRequest(scalars, ports_of(services)[0], 0 if names else share, names, ports_of(services)[1]),
                offer.agent_id,
                run_ms=random.choice(self.run_ms),
                exit_code=random.choice((0, 0, 0, 1, 137)),
            )
            spec = replace(spec, service_ports=services)
            operations.append(Launch((spec,)))
        if (
            random.random() < 0.3
            and len(specs := [item.tasks[0] for item in operations if isinstance(item, Launch)]) > 1
        ):
            operations = [item for item in operations if not isinstance(item, Launch)]
            operations.append(Launch(tuple(self._grouped(specs))))
        if not operations:
            self.decline(offer, 1_000)
            return
        self.accept([offer.offer_id], operations, refuse_ms=random.choice((0, 1_000, 5_000)))

    def _grouped(self, specs: list[TaskSpec]) -> Iterator[TaskSpec]:
        """Tasks of a group; the last of them may be one that could not be launched alone, either."""
        group = TaskGroup(f"group-of-{specs[0].task_id}")
        for index, spec in enumerate(specs):
            # They share a network: each listens elsewhere.
            services = tuple(
                replace(one, container_port=one.container_port + 100 * index) for one in spec.service_ports
            )
            yield replace(spec, task_group=group, restart=None, service_ports=services)

    def _services(self, ports: Ports) -> tuple[ServicePort, ...]:
        """One or two service ports now and then: any, or one of the offered by number – the same for two tasks of a call, at times."""
        random = self.random
        if not ports or random.random() < 0.6:
            return ()
        named = random.choice((0, 0, ports[0].first))
        services = (ServicePort("web", 80, host_port=named), ServicePort("ssh", 22))
        return services[: random.choice((1, 1, 2))]

    def _restack(self, offer: Offer) -> Reserve | Unreserve:
        for part in offer.resources:
            if part.stack and part.stack[-1].type is ReservationType.DYNAMIC:
                return Unreserve(offer.agent_id, part)
        unreserved = sum_resources(part.resources for part in offer.resources if not part.stack)
        scalars = {"cpus": max(1, unreserved.scalars.get("cpus", 0) // 2)}
        scalars |= {kind: 1000 for kind in slices_of(unreserved)}
        request = ResourceRequest(scalars, (), self.random.randint(0, unreserved.gpus))
        return Reserve(offer.agent_id, request, offer.role, lend=self.random.random() < 0.5)

    def on_subscribed(self) -> None:
        """Have something killed now and then."""
        self.world.timeline.after(self.random.randint(1_000, 20_000), self._kill_some, self.stream)

    def _kill_some(self, stream: Stream) -> None:
        if stream is not self.stream:
            return
        if self.tasks:
            task_id = self.random.choice(sorted(self.tasks))
            self.call(Kill(task_id, self.random.choice((None, 0, 1_000))))
        if self.random.random() < 0.1 and not self.world.calm:
            self.call(self.random.choice((Suppress(), Revive(), Suppress(self.roles[:1]), Revive(self.roles[:1]))))
        self.world.timeline.after(self.random.randint(1_000, 20_000), self._kill_some, stream)


class Reserving(Greedy):
    """A greedy one that reserves and unreserves."""

    reserves = 0.4


class Hog(Greedy):
    """Wants all GPUs for ever, a short task at a time; never kills, never stops."""

    run_ms = (500, 2_000, 5_000)

    def on_offer(self, offer: Offer) -> None:
        """All of it, in one task."""
        total = sum_resources(part.resources for part in offer.resources)
        if not total.scalars.get("cpus") or self.world.calm:
            self.decline(offer, 1_000)
            return
        spec = self.task(
            ResourceRequest(
                {"cpus": total.scalars["cpus"], **{kind: 1000 * count for kind, count in slices_of(total).items()}},
                (),
                total.gpus,
            ),
            offer.agent_id,
            run_ms=self.random.choice(self.run_ms),
        )
        self.accept([offer.offer_id], [Launch((spec,))])

    def on_subscribed(self) -> None:
        """Nothing else."""
