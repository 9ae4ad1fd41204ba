"""What frameworks that speak the contract by hand have in common."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bursar.core.device_names import device_kind, is_volume
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
    LookupCalls,
    LookupResults,
    Offers,
    OfferSettings,
    Reconcile,
    Rescind,
    StatusUpdates,
    StreamError,
    Subscribe,
    Subscribed,
    UpdateFramework,
    UpdateRef,
)
from bursar.core.messages.offers import Accept, CallResult, Decline, Demand, Filters, Offer, Operation
from bursar.core.resources import GPUS, ResourceRequest, Resources
from bursar.core.surroundings import Volume
from bursar.core.tasks import TaskSpec, TaskState, TaskStatus
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
        self,
        resources: ResourceRequest,
        agent_id: AgentId,
        *,
        run_ms: int | None = None,
        exit_code: int = 0,
        volumes: tuple[Volume, ...] = (),
    ) -> TaskSpec:
        """A new task."""
        self._sequence += 1
        random = self.random
        return TaskSpec(
            TaskId(f"{self.name}-task-{self._sequence}"),
            agent_id=agent_id if random.random() < 0.7 else AgentId(""),
            command=program(run_ms, exit_code, deaf=random.random() < 0.2),
            resources=resources,
            volumes=volumes,
            kill_grace_ms=random.choice((None, 0, 500)),
            restart=RestartPolicy(RestartMode.ON_FAILURE, 2, 500) if random.random() < 0.1 else None,
            check=Check(tcp=TcpCheck(80), delay_ms=0, interval_ms=1_000) if random.random() < 0.05 else None,
            # Not drawn: what else a seed does stays as it was.
            max_disconnected_ms=None if self._sequence % 7 else 5_000,
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


def slices_of(resources: Resources) -> dict[str, int]:
    """How many slices of each kind there are."""
    counts: dict[str, int] = {}
    for uuid in sorted(resources.devices):
        if not is_volume(uuid) and (kind := device_kind(uuid)) != GPUS:
            counts[kind] = counts.get(kind, 0) + 1
    return counts
