"""Frameworks that speak the contract by hand, well or badly; those written with the SDK are in `sessions`.

Whatever they do must harm nobody but themselves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, FrameworkId, OfferId, TaskId
from bursar.core.lives import Check, HealthCheck, RestartMode, RestartPolicy, TcpCheck
from bursar.core.messages.framework import (
    GPU_RESOURCES,
    REVOCABLE_RESOURCES,
    Acknowledge,
    FrameworkCall,
    FrameworkHeartbeat,
    FrameworkInfo,
    Kill,
    LookupCalls,
    LookupResults,
    Offers,
    OfferSettings,
    Reconcile,
    Rescind,
    Revive,
    StatusUpdates,
    StreamError,
    Subscribe,
    Subscribed,
    Suppress,
    Teardown,
    UpdateDemand,
    UpdateFramework,
    UpdateRef,
)
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
from bursar.core.messages.offers import (
    Accept,
    CallResult,
    Decline,
    Demand,
    Filters,
    Launch,
    Offer,
    Operation,
    Reserve,
    Shape,
    Unreserve,
)
from bursar.core.resources import Ports, ReservationType, ReservedResources, ResourceRequest, Resources, sum_resources
from bursar.core.service_ports import ServicePort, ports_of
from bursar.core.task_groups import TaskGroup
from bursar.core.tasks import TaskExecutor, TaskSpec, TaskState, TaskStatus
from bursar.simulation.containers import program
from bursar.simulation.network import CLIENT, Stream

if TYPE_CHECKING:
    from bursar.simulation.world import World

#: The roles of the cluster.
ROLES = ("*", "research", "research/vision", "eng", "eng/backend")
#: What frameworks ask of offers; the judges read no more than this.
CONSTRAINTS = ("gpus>=2", "gpus<=1", "!gpus", "cpus>=0.5", "cpus<=2,gpus>=1", "hostname=agent-1|agent-2")
MINIMUMS = (None, None, "", "gpus:1", "cpus:1|gpus:2")
HEARTBEAT_MS = 15_000
GIB = 1 << 30
#: Refusal of a framework that wants nothing more.
LONG_MS = 3_600_000


class RawFramework:
    """Subscribes, sends heartbeats, acknowledges, and comes back; what it makes of offers is for its subclasses.

    An identity that was removed for good is followed by another one.
    """

    def __init__(
        self,
        world: World,
        name: str,
        roles: tuple[str, ...],
        *,
        gpus: bool,
        failover_timeout_ms: int,
        borrows: bool = False,
        acknowledges: float = 1.0,
    ) -> None:
        self.name = name
        self.roles = roles
        self.capabilities: tuple[str, ...] = (GPU_RESOURCES,) if gpus else ("FROM_THE_FUTURE",)
        if borrows:
            self.capabilities += (REVOCABLE_RESOURCES,)
        self.failover_timeout_ms = failover_timeout_ms
        self.offer_settings: tuple[OfferSettings, ...] = ()
        self.world = world
        self.random = world.stream_of(name)
        self.stream: Stream | None = None
        self.subscribed = False
        self.alive = False
        self.tasks: dict[TaskId, TaskState] = {}
        self.offers: dict[OfferId, Offer] = {}
        #: Accepts without an answer.
        self.pending: dict[str, None] = {}
        #: Updates without an answer.
        self.updates: dict[str, FrameworkInfo] = {}
        self._acknowledges = acknowledges
        self._identity = 1
        self._life = 0
        self._sequence = 0

    @property
    def framework_id(self) -> FrameworkId:
        """Of the present identity."""
        return FrameworkId(f"{self.name}-{self._identity}")

    # --- life ---

    def start(self) -> None:
        """Begin a life of the process."""
        if not self.alive:
            self.alive = True
            self._life += 1
            self._connect(self._life)

    def die(self) -> None:
        """It is killed; it remembers its tasks, as a good framework does."""
        if not self.alive:
            return
        self.alive = False
        self._life += 1
        self.world.note(self.name, "dies")
        if self.stream is not None:
            self.stream.abandon(CLIENT)
        self._forget_stream()
        self.world.timeline.after(self.random.randint(1, max(1, self.world.faults.framework_down_ms)), self.start)

    def _connect(self, life: int) -> None:
        if self.alive and self.stream is None and life == self._life:
            self.stream = self.world.network.connect("framework", self.name, self)

    def _forget_stream(self) -> None:
        self.stream, self.subscribed = None, False
        self.offers.clear()

    # --- Party ---

    def stream_opened(self, stream: Stream) -> None:
        """Subscribe first."""
        if stream is self.stream:
            self.call(self.subscription())
            self.world.timeline.after(HEARTBEAT_MS, self._beat, stream)

    def stream_heard(self, stream: Stream, event: Any) -> None:
        """The master spoke."""
        if stream is not self.stream:
            return
        self.world.checkers.frameworks.heard(self.framework_id, event)
        match event:
            case Subscribed():
                self.subscribed = True
                self.updates.clear()
                self.call(Reconcile(tuple(self.tasks) if self.random.random() < 0.5 else ()))
                if self.pending:
                    self.call(LookupCalls(tuple(self.pending)))
                self.on_subscribed()
            case Offers(_, offers):
                for offer in offers:
                    self.offers[offer.offer_id] = offer
                self.world.timeline.after(self.random.randint(0, 50), self._answer, stream, offers)
            case Rescind(offer_ids):
                for offer_id in offer_ids:
                    self.offers.pop(offer_id, None)
            case StatusUpdates(statuses):
                for status in statuses:
                    self._hear_status(status)
            case CallResult(call_id):
                self.pending.pop(call_id, None)
                info = self.updates.pop(call_id, None)
                if info is not None and event.error is None:
                    self.roles, self.capabilities = info.roles, info.capabilities
                    self.offer_settings = info.offer_settings
            case LookupResults(results):
                for result in results:
                    self.pending.pop(result.call_id, None)
            case StreamError(error):
                self._hear_error(error)

    def stream_ended(self, stream: Stream, error: ErrorDetail | None) -> None:
        """Try again soon."""
        if stream is self.stream:
            self._forget_stream()
            if error is not None and error.reason is ErrorReason.FRAMEWORK_REMOVED:
                self._hear_error(error)
            self.world.timeline.after(self.random.randint(50, 2_000), self._connect, self._life)

    def _hear_error(self, error: ErrorDetail) -> None:
        if error.reason is ErrorReason.FRAMEWORK_REMOVED and not self.world.framework_lives(self.framework_id):
            self._identity += 1
            self.tasks.clear()
            self.pending.clear()

    def _hear_status(self, status: TaskStatus) -> None:
        if status.state.is_terminal or status.state is TaskState.UNKNOWN:
            self.tasks.pop(status.task_id, None)
        elif status.update_id or status.task_id in self.tasks:
            self.tasks[status.task_id] = status.state
        if status.update_id and self.random.random() < (1.0 if self.world.calm else self._acknowledges):
            self.call(Acknowledge((UpdateRef(status.task_id, status.update_id),)))

    def _beat(self, stream: Stream) -> None:
        if stream is self.stream and self.alive:
            self.call(FrameworkHeartbeat(self.demand()))
            self.world.timeline.after(HEARTBEAT_MS, self._beat, stream)

    def _answer(self, stream: Stream, offers: tuple[Offer, ...]) -> None:
        if stream is self.stream:
            for offer in offers:
                if offer.offer_id in self.offers:
                    self.on_offer(offer)

    # --- words ---

    def call(self, call: FrameworkCall) -> None:
        """Say something."""
        if self.stream is not None:
            self.world.checkers.frameworks.called(self.framework_id, call)
            self.stream.send(CLIENT, call)

    def subscription(self) -> Subscribe:
        """The first call."""
        return Subscribe(self.info(), "" if self.random.random() < 0.5 else self.world.cluster_id, demand=self.demand())

    def info(self) -> FrameworkInfo:
        """What it says of itself."""
        return FrameworkInfo(
            self.framework_id,
            f"{self.name}-life-{self._life}",
            self.name,
            self.roles,
            self.capabilities,
            self.failover_timeout_ms,
            offer_settings=self.offer_settings,
        )

    def update(self) -> None:
        """Take other roles, and gain or lose a capability, as offers come and go."""
        random = self.random
        self._sequence += 1
        call_id = f"{self.name}-call-{self._sequence}"
        roles = tuple(random.sample(ROLES, random.randint(1, 2))) if random.random() < 0.7 else self.roles
        borrowing = (GPU_RESOURCES, REVOCABLE_RESOURCES)
        capabilities = random.choice(((GPU_RESOURCES,), ("FROM_THE_FUTURE",), self.capabilities, borrowing))
        info = replace(self.info(), roles=roles, capabilities=capabilities, offer_settings=())
        self.updates[call_id] = info
        if random.random() < 0.3:
            settings = (
                OfferSettings(role, tuple(random.sample(CONSTRAINTS, random.randint(0, 2))), random.choice(MINIMUMS))
                for role in roles
            )
            info = replace(info, offer_settings=tuple(settings))
            self.updates[call_id] = info
        suppressed = roles[:1] if random.random() < 0.1 else ()
        self.call(UpdateFramework(call_id, info, suppressed, self.demand()))

    def accept(self, offers: list[OfferId], operations: list[Any], *, refuse_ms: int = 0, partial: bool = False) -> str:
        """Accept offers; return the id of the call."""
        self._sequence += 1
        call_id = f"{self.name}-call-{self._sequence}"
        numbered = tuple(Operation(f"{call_id}-{index}", item) for index, item in enumerate(operations))
        for offer_id in offers:
            self.offers.pop(offer_id, None)
        self.pending[call_id] = None
        self.call(Accept(call_id, tuple(offers), numbered, Filters(refuse_ms), partial))
        return call_id

    def decline(self, offer: Offer, refuse_ms: int | None) -> None:
        """Refuse an offer."""
        self.offers.pop(offer.offer_id, None)
        self.call(Decline((offer.offer_id,), Filters(refuse_ms)))

    def task(
        self, resources: ResourceRequest, agent_id: AgentId, *, run_ms: int | None = None, exit_code: int = 0
    ) -> TaskSpec:
        """A new task."""
        self._sequence += 1
        random = self.random
        return TaskSpec(
            TaskId(f"{self.name}-task-{self._sequence}"),
            agent_id=agent_id if random.random() < 0.7 else AgentId(""),
            command=program(run_ms, exit_code, deaf=random.random() < 0.2),
            resources=resources,
            kill_grace_ms=random.choice((None, 0, 500)),
            restart=RestartPolicy(RestartMode.ON_FAILURE, 2, 500) if random.random() < 0.1 else None,
            check=Check(tcp=TcpCheck(80), delay_ms=0, interval_ms=1_000) if random.random() < 0.05 else None,
            health_check=HealthCheck(Check(tcp=TcpCheck(80), interval_ms=3_000)) if random.random() < 0.1 else None,
        )

    # --- for subclasses ---

    def demand(self) -> Demand:
        """What it says that it wants."""
        return Demand()

    def on_subscribed(self) -> None:
        """It is in."""

    def on_offer(self, offer: Offer) -> None:
        """Answer one offer, or not."""
        self.decline(offer, None)


class Feeding(RawFramework):
    """Keeps an executor on each agent, and feeds it; kills one of either now and then."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._executors: dict[AgentId, TaskId] = {}

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
            gpus = random.randint(0, min(1, len(total.devices)))
            spec = self.task(
                ResourceRequest({"cpus": 50}, (), gpus),
                offer.agent_id,
                run_ms=random.choice((0, 100, 5_000, None)),
                exit_code=random.choice((0, 0, 3)),
            )
            on = TaskExecutor(False, executor)
            spec = replace(spec, executor=on, restart=None, check=None, health_check=None)
            self.accept([offer.offer_id], [Launch((spec,))])
            if random.random() < 0.2 and self.tasks:
                self.call(Kill(random.choice(sorted(self.tasks)), random.choice((None, 0, 2_000))))


class Silent(RawFramework):
    """Never answers an offer."""

    def on_offer(self, offer: Offer) -> None:
        """Hoard it."""


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
        cpus, mem, gpus = total.scalars.get("cpus", 0), total.scalars.get("mem", 0), len(total.devices)
        if cpus and random.random() < self.reserves:
            operations.append(self._restack(offer))
        tasks = random.choice((1, 1, 2)) if cpus > 200 else min(1, cpus)
        for index in range(tasks):
            share = gpus // tasks + (gpus % tasks if index == 0 else 0)
            scalars = {"cpus": max(1, cpus // (tasks * random.choice((1, 1, 2, 4))))}
            if mem and random.random() < 0.8:
                scalars["mem"] = max(1, mem // (tasks * random.choice((1, 2, 8))))
            services = self._services(total.ports)
            names: tuple[Any, ...] = ()
            if share and tasks == 1 and random.random() < 0.2:
                names = tuple(sorted(total.devices))
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
        for spec in specs:
            yield replace(spec, task_group=group, restart=None, service_ports=())

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
        request = ResourceRequest(
            {"cpus": max(1, unreserved.scalars.get("cpus", 0) // 2)},
            (),
            self.random.randint(0, len(unreserved.devices)),
        )
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
            ResourceRequest({"cpus": total.scalars["cpus"]}, (), len(total.devices)),
            offer.agent_id,
            run_ms=self.random.choice(self.run_ms),
        )
        self.accept([offer.offer_id], [Launch((spec,))])

    def on_subscribed(self) -> None:
        """Nothing else."""


class Flapping(Greedy):
    """Connects, takes, disconnects."""

    def on_subscribed(self) -> None:
        """Soon gone."""
        super().on_subscribed()
        self.world.timeline.after(self.random.randint(10, 30_000), self._flap, self.stream)

    def _flap(self, stream: Stream) -> None:
        if stream is not self.stream or self.world.calm:
            return
        if self.random.random() < 0.2:
            self.call(Teardown())
            return
        stream.close(CLIENT)
        self._forget_stream()
        self.world.timeline.after(self.random.randint(50, 5_000), self._connect, self._life)


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
            Launch((self.task(ResourceRequest({"cpus": 1}, (), len(total.devices) + 1), offer.agent_id),)),
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
