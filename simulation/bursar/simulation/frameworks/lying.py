"""A framework that says whatever a broken or malicious one might say."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bursar.core.ids import AgentId, FrameworkId, OfferId, TaskId
from bursar.core.messages.framework import (
    Acknowledge,
    FrameworkCall,
    FrameworkInfo,
    Kill,
    LookupCalls,
    OfferSettings,
    Reconcile,
    Revive,
    Subscribe,
    Suppress,
    UpdateDemand,
    UpdateFramework,
    UpdateRef,
)
from bursar.core.messages.offers import Accept, Decline, Demand, Launch, Offer, Reserve, Shape, Unreserve
from bursar.core.resources import ReservedResources, ResourceRequest, Resources, sum_resources
from bursar.core.task_groups import TaskGroup
from bursar.core.tasks import TaskSpec
from bursar.simulation.containers import program
from bursar.simulation.frameworks.greedy import Greedy
from bursar.simulation.network import Stream

if TYPE_CHECKING:
    from bursar.simulation.world import World


class Liar(Greedy):
    """Says whatever a broken or malicious framework might say."""

    def __init__(self, world: World, name: str, roles: tuple[str, ...], **options: Any) -> None:
        super().__init__(world, name, roles, **options)
        self._old_offers: deque[OfferId] = deque(maxlen=50)
        self._old_tasks: deque[TaskId] = deque(maxlen=50)
        self._old_calls: deque[Accept | UpdateFramework] = deque(maxlen=20)

    def call(self, call: FrameworkCall) -> None:
        """Remember what was said, to say it again."""
        if isinstance(call, Accept | UpdateFramework):
            self._old_calls.append(call)
        super().call(call)

    def subscription(self) -> Subscribe:
        """Sometimes an impossible one."""
        good = super().subscription()
        if self.world.calm or self.random.random() < 0.8:
            return good
        info = good.info
        bad_roles = self.random.choice(((), ("a//b",), ("a", "a"), ("-x",), (".",), ("a b",), ("*/a",)))
        bad: tuple[Subscribe, ...] = (
            Subscribe(FrameworkInfo(FrameworkId(""), roles=("*",))),
            Subscribe(FrameworkInfo(FrameworkId("a/b"), roles=("*",))),
            Subscribe(FrameworkInfo(info.framework_id, roles=bad_roles)),
            Subscribe(info, "another-cluster"),
            Subscribe(info, suppressed_roles=("not-mine",)),
            Subscribe(info, demand=Demand(1, (Shape("not-mine", ResourceRequest({"cpus": 1}), 1),))),
        )
        return self.random.choice(bad)

    def on_subscribed(self) -> None:
        """Begin to talk."""
        super().on_subscribed()
        self.world.timeline.after(self.random.randint(100, 3_000), self._babble, self.stream)

    def on_offer(self, offer: Offer) -> None:
        """Seldom in good faith."""
        self._old_offers.append(offer.offer_id)
        if self.world.calm or self.random.random() < 0.5:
            super().on_offer(offer)
        else:
            self._lie(offer)

    def _lie(self, offer: Offer) -> None:
        random = self.random
        total = sum_resources(part.resources for part in offer.resources)
        cpu = ResourceRequest({"cpus": 1})
        good = self.task(cpu, offer.agent_id, run_ms=100)
        self._old_tasks.append(good.task_id)
        again = TaskSpec(random.choice(self._old_tasks), command=program(100), resources=cpu)
        bad: list[Any] = [
            Launch((self.task(ResourceRequest({"cpus": 1}, (), total.gpus + 1), offer.agent_id),)),
            Launch((self.task(ResourceRequest({"cpus": 1 << 52}), offer.agent_id),)),
            Launch((self.task(ResourceRequest({"cpus": -1}), offer.agent_id),)),
            Launch((self.task(ResourceRequest({"gpus": 1}), offer.agent_id),)),
            Launch((self.task(ResourceRequest(), offer.agent_id),)),
            Launch((self.task(ResourceRequest({}, (), 0, ("GPU-nowhere",)), offer.agent_id),)),  # type: ignore[arg-type]
            Launch((self.task(cpu, AgentId("nobody")), good)),
            Launch((good, good)),
            Launch((again,)),
            Launch((TaskSpec(TaskId("a/b"), command=("x",), resources=cpu),)),
            Launch((TaskSpec(TaskId("with-image"), command=("x",), image="none such", resources=cpu),)),
            Launch(()),
            Launch((replace(good, task_group=TaskGroup("")),)),
            Launch((replace(good, task_group=TaskGroup("g", (good.task_id, TaskId("nobody")))),)),
            Reserve(offer.agent_id, ResourceRequest({"cpus": 1}), "not/my/role"),
            Reserve(AgentId("nobody"), ResourceRequest({"cpus": 1}), offer.role),
            Reserve(offer.agent_id, ResourceRequest({"cpus": -5}), offer.role),
            Reserve(offer.agent_id, ResourceRequest(), offer.role),
            Unreserve(offer.agent_id, ReservedResources((), Resources({"cpus": 1}))),
            None,
        ]
        operations = [random.choice(bad) for _ in range(random.randint(1, 3))]
        offers = [offer.offer_id]
        match random.randrange(6):
            case 0:
                offers.append(offer.offer_id)
            case 1:
                offers.append(random.choice(self._old_offers))
            case 2:
                offers.append(self.world.any_offer_id(random))
            case 3:
                offers = []
        self.accept(offers, operations, partial=random.random() < 0.3, refuse_ms=random.choice((0, -5, 10**15)))

    def _babble(self, stream: Stream) -> None:
        if stream is not self.stream or self.world.calm:
            return
        random = self.random
        somewhere = self.world.any_offer_id(random)
        task_id = random.choice(self._old_tasks) if self._old_tasks else TaskId("none")
        words: list[FrameworkCall] = [
            Acknowledge((UpdateRef(task_id, "1"), UpdateRef(TaskId("none"), "7"))),
            Kill(TaskId("none")),
            Kill(task_id, -1),
            Decline((somewhere, OfferId("none"))),
            Suppress(("not-mine",)),
            Revive(("not-mine", *self.roles)),
            Reconcile((TaskId("none"), task_id)),
            LookupCalls(("none", f"{self.name}-call-1"), ("none",)),
            Accept("", (somewhere,)),
            UpdateDemand(Demand(-1)),
            UpdateFramework("", self.info()),
            UpdateFramework("a", replace(self.info(), roles=())),
            UpdateFramework("b", replace(self.info(), roles=("a//b",))),
            UpdateFramework("c", replace(self.info(), framework_id=FrameworkId("somebody-else"))),
            UpdateFramework("d", replace(self.info(), incarnation="another")),
            UpdateFramework("e", self.info(), ("not-mine",)),
            UpdateFramework("g", replace(self.info(), offer_settings=(OfferSettings(self.roles[0], ("gpus>=x",)),))),
            UpdateFramework("h", replace(self.info(), offer_settings=(OfferSettings("not-mine"),))),
            UpdateFramework("f", self.info(), (), Demand(9, (Shape("not-mine", ResourceRequest({"cpus": 1}), 1),))),
        ]
        if self._old_calls:
            words.append(random.choice(self._old_calls))
        if random.random() < 0.05:
            words.append(UpdateDemand(Demand(9, (Shape("not-mine", ResourceRequest({"cpus": 1}), 1),))))
            words.append(Subscribe(FrameworkInfo(FrameworkId("somebody-else"))))
        self.call(random.choice(words))
        self.world.timeline.after(random.randint(100, 3_000), self._babble, stream)
