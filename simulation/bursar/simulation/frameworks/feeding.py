"""A framework with executors of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bursar.core.ids import AgentId, TaskId
from bursar.core.messages.executor import ExecutorMessage
from bursar.core.messages.framework import Kill
from bursar.core.messages.offers import Launch, Offer
from bursar.core.resources import ResourceRequest, sum_resources
from bursar.core.tasks import TaskExecutor
from bursar.simulation.frameworks.raw import LONG_MS, RawFramework, slices_of


class Feeding(RawFramework):
    """Keeps an executor on each agent, and feeds it; kills one of either now and then."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._executors: dict[AgentId, TaskId] = {}
        self._messages = 0

    def on_offer(self, offer: Offer) -> None:
        """An executor where there is none, else tasks for it."""
        random = self.random
        if self.world.calm:
            self.decline(offer, LONG_MS)
            return
        total = sum_resources(part.resources for part in offer.resources)
        executor = self._executors.get(offer.agent_id)
        if total.scalars.get("cpus", 0) < 100:
            self.decline(offer, 1_000)
        elif executor is None or executor not in self.tasks:
            spec = self.task(ResourceRequest({"cpus": 50}), offer.agent_id)
            spec = replace(spec, executor=TaskExecutor(serves=True), restart=None)
            self._executors[offer.agent_id] = spec.task_id
            self.accept([offer.offer_id], [Launch((spec,))])
        else:
            gpus = random.randint(0, min(1, total.gpus))
            slices = dict.fromkeys(list(slices_of(total))[: random.randint(0, 1)], 1000)
            spec = self.task(
                ResourceRequest({"cpus": 50, **slices}, (), gpus),
                offer.agent_id,
                run_ms=random.choice((0, 100, 5_000, None)),
                exit_code=random.choice((0, 0, 3)),
            )
            on = TaskExecutor(False, executor)
            spec = replace(spec, executor=on, restart=None, check=None, health_check=None)
            self.accept([offer.offer_id], [Launch((spec,))])
            self._messages += 1
            self.call(ExecutorMessage(executor_id=executor, data=f"{self._messages} for {executor}".encode()))
            if random.random() < 0.2 and self.tasks:
                self.call(Kill(random.choice(sorted(self.tasks)), random.choice((None, 0, 2_000))))
