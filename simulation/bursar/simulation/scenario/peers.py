"""The agents and frameworks of a scenario: they do what the script says, and what any peer does without being told.

An agent starts and ends tasks at once and answers pings; a framework notes offers, acknowledges statuses and says that it is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bursar.core.ids import AgentId, ConnectionId, DeviceUuid, FrameworkId, Generation, OfferId, TaskId
from bursar.core.messages.agent import (
    AcknowledgeUpdates,
    AgentInfo,
    DesiredState,
    KillTask,
    Ping,
    Pong,
    Refused,
    Register,
    TaskReport,
    TaskUpdates,
    VolumeOrders,
    VolumesHeld,
)
from bursar.core.messages.framework import (
    Acknowledge,
    FrameworkHeartbeat,
    FrameworkInfo,
    MasterHeartbeat,
    Preemption,
    PreemptionNotice,
    Rescind,
    StatusUpdates,
    StreamError,
    Subscribe,
    UpdateFramework,
    UpdateRef,
)
from bursar.core.messages.gangs import Bundle, GangUpdate, RequestGang
from bursar.core.messages.offers import Accept, CallResult, Decline, Demand, Filters, Launch, Offer, Operation
from bursar.core.resources import ResourceRequest
from bursar.core.tasks import AssignedTask, StatusReason, StatusSource, TaskSpec, TaskState, TaskStatus
from bursar.core.text import format_duration
from bursar.master.events import AgentRegistering, AgentSpoke, AgentStreamEnded, FrameworkCalled, FrameworkStreamEnded
from bursar.simulation.scenario.bundles import StandingBundle, of_gang
from bursar.simulation.scenario.outcomes import Kind, Outcome, describe, parts_of, refused

if TYPE_CHECKING:
    from bursar.simulation.scenario.stage import Stage

#: State of a task in the outcome that says that it starts.
STARTING = TaskState.STARTING.name

_WORDS = {
    TaskState.FINISHED: "has finished",
    TaskState.FAILED: "has failed",
    TaskState.KILLED: "was killed",
    TaskState.DROPPED: "was dropped",
    TaskState.UNREACHABLE: "is unreachable",
    TaskState.GONE: "is gone",
    TaskState.GONE_BY_OPERATOR: "is gone by order of an operator",
    TaskState.ERROR: "was in error",
}


class AgentPeer:
    """An agent as the master sees it."""

    def __init__(self, stage: Stage, info: AgentInfo) -> None:
        self._stage = stage
        self.info = info
        self.connection: ConnectionId | None = None
        #: Whether no task gets as far as running here.
        self.is_broken = False
        #: What it would report when it registers.
        self.tasks: dict[tuple[FrameworkId, TaskId], TaskReport] = {}
        #: Persistent volumes whose data it has.
        self.volumes: set[DeviceUuid] = set()
        self._generation = Generation()
        self._updates = 0

    @property
    def agent_id(self) -> AgentId:
        """Its id, which is its name in the script."""
        return self.info.agent_id

    def connect(self) -> None:
        """Open a stream and register, the newest life of it."""
        stage = self._stage
        if self.connection is not None:
            stage.forget(self.connection)
        self.info = replace(self.info, incarnation=self.info.incarnation + 1)
        self.connection = stage.connect(self)
        register = Register(self.info, "", self._generation)
        stage.post(AgentRegistering(self.connection, register, tuple(self.tasks.values())))

    def disconnect(self) -> None:
        """The link breaks; tasks go on."""
        connection, self.connection = self.connection, None
        if connection is not None:
            self._stage.forget(connection)
            self._stage.post(AgentStreamEnded(connection))

    def say(self, message: Any) -> None:
        """To the master, where it is connected."""
        if self.connection is not None:
            self._stage.post(AgentSpoke(self.connection, message))

    def closed(self) -> None:
        """The master ended the stream."""
        connection, self.connection = self.connection, None
        if connection is not None:
            self._stage.post(AgentStreamEnded(connection))

    def hear(self, message: Any) -> None:
        """One message of the master."""
        match message:
            case Ping(number):
                self.say(Pong(number))
            case Refused(error):
                self._stage.note(refused(self._stage.at_ms, error, agent=self.agent_id))
            case DesiredState():
                self._generation = message.generation
                for assigned in message.launch:
                    self._start(assigned)
                for kill in message.kill:
                    self._kill(kill)
            case VolumeOrders(order, make, _, remove):
                self.volumes = (self.volumes | set(make)) - set(remove)
                self.say(VolumesHeld(order, tuple(sorted(self.volumes))))
            case AcknowledgeUpdates(updates):
                for update in updates:
                    self._acknowledged((update.framework_id, update.task_id), update.update_id)

    def end(self, framework_id: FrameworkId, task_id: TaskId, state: TaskState = TaskState.FINISHED) -> bool:
        """A task ends; say whether it was running."""
        report = self.tasks.get((framework_id, task_id))
        if report is None or report.state.is_terminal:
            return False
        self._update(framework_id, task_id, state, StatusReason.COMMAND_EXITED)
        return True

    def _start(self, assigned: AssignedTask) -> None:
        key = (assigned.framework_id, assigned.spec.task_id)
        if key in self.tasks:
            return
        self.tasks[key] = TaskReport(assigned.framework_id, assigned, TaskState.STAGING)
        stage = self._stage
        stage.note(
            Outcome(
                Kind.TASK,
                stage.at_ms,
                f"{key[1]} of {key[0]} starts on {self.agent_id}: {describe(self.agent_id, assigned.resources)}"
                + (", revocable" if assigned.revocable else ""),
                framework=key[0],
                role=assigned.role,
                agent=self.agent_id,
                task=key[1],
                resources=parts_of(assigned.resources),
                reason=STARTING,
            )
        )
        if self.is_broken:
            self._update(*key, TaskState.FAILED, StatusReason.LAUNCH_FAILED)
        else:
            self._update(*key, TaskState.RUNNING)

    def _kill(self, kill: KillTask) -> None:
        report = self.tasks.get((kill.framework_id, kill.task_id))
        if report is not None and not report.state.is_terminal:
            self._update(kill.framework_id, kill.task_id, TaskState.KILLED, kill.reason)

    def _update(
        self,
        framework_id: FrameworkId,
        task_id: TaskId,
        state: TaskState,
        reason: StatusReason = StatusReason.UNSPECIFIED,
    ) -> None:
        self._updates += 1
        status = TaskStatus(
            task_id,
            framework_id,
            self.agent_id,
            state,
            reason,
            StatusSource.AGENT,
            update_id=f"{self.agent_id}-{self._updates}",
        )
        report = self.tasks[framework_id, task_id]
        self.tasks[framework_id, task_id] = replace(
            report, state=state, unacknowledged=(*report.unacknowledged, status)
        )
        self.say(TaskUpdates((status,)))

    def _acknowledged(self, key: tuple[FrameworkId, TaskId], update_id: str) -> None:
        report = self.tasks.get(key)
        if report is None:
            return
        left = tuple(status for status in report.unacknowledged if status.update_id != update_id)
        if report.state.is_terminal and not left:
            del self.tasks[key]
        else:
            self.tasks[key] = replace(report, unacknowledged=left)


@dataclass(frozen=True, slots=True)
class Standing:
    """An offer that a framework holds, under its number in the transcript."""

    number: int
    offer: Offer


@dataclass(frozen=True, slots=True)
class Habit:
    """What a framework does with every offer without being told: as many tasks as fit, the rest is declined."""

    shape: ResourceRequest
    #: How long each runs; None is for ever.
    for_ms: int | None = None


@dataclass(slots=True, eq=False)
class FrameworkPeer:
    """A framework as the master sees it; `offers` are those that stand."""

    stage: Stage
    info: FrameworkInfo
    #: Role → names of those that it does not want now; of the script, told again when it comes back.
    suppressed: tuple[str, ...] = ()
    demand: Demand = Demand()
    habit: Habit | None = None
    connection: ConnectionId | None = None
    offers: dict[OfferId, Standing] = field(default_factory=dict)
    #: Gang → the bundle that answers it.
    bundles: dict[str, StandingBundle] = field(default_factory=dict)
    #: Gang → what was asked for last.
    _asked: dict[str, RequestGang] = field(default_factory=dict)
    _calls: int = 0
    #: Call → what the framework is once it is granted.
    _updates: dict[str, UpdateFramework] = field(default_factory=dict)

    @property
    def framework_id(self) -> FrameworkId:
        """Its id, which is its name in the script."""
        return self.info.framework_id

    def connect(self) -> None:
        """Open a stream and subscribe; an old stream is given up."""
        if self.connection is not None:
            self.stage.forget(self.connection)
        self._void_offers()
        self.connection = self.stage.connect(self)
        self.call(Subscribe(self.info, "", self.suppressed, self.demand))

    def disconnect(self) -> None:
        """The link breaks; its offers are void."""
        connection, self.connection = self.connection, None
        if connection is not None:
            self.stage.forget(connection)
            self._void_offers()
            self.stage.post(FrameworkStreamEnded(connection))

    def closed(self) -> None:
        """The master ended the stream."""
        connection, self.connection = self.connection, None
        self._void_offers()
        if connection is not None:
            self.stage.post(FrameworkStreamEnded(connection))

    def call(self, call: Any) -> None:
        """To the master, where it is connected."""
        if self.connection is not None:
            self.stage.post(FrameworkCalled(self.connection, call))

    def accept(self, offers: Sequence[Standing], operations: Iterable[Any], refuse_ms: int | None = None) -> None:
        """Take offers; operations are numbered here."""
        self._calls += 1
        call_id = f"{self.framework_id}-{self._calls}"
        numbered = tuple(Operation(f"{call_id}.{index}", item) for index, item in enumerate(operations))
        ids = tuple(standing.offer.offer_id for standing in offers)
        for offer_id in ids:
            self.offers.pop(offer_id, None)
        self.call(Accept(call_id, ids, numbered, Filters(refuse_ms)))

    def update(self, info: FrameworkInfo, suppressed: tuple[str, ...], demand: Demand) -> None:
        """Become another, on the same stream; while it is away, at once."""
        if self.connection is None:
            self.info, self.suppressed, self.demand = info, suppressed, demand
            return
        self._calls += 1
        call = UpdateFramework(f"{self.framework_id}-{self._calls}", info, suppressed, demand)
        self._updates[call.call_id] = call
        self.call(call)

    def decline(self, offers: Sequence[Standing], refuse_ms: int | None = None) -> None:
        """Refuse offers."""
        ids = tuple(standing.offer.offer_id for standing in offers)
        for offer_id in ids:
            self.offers.pop(offer_id, None)
        self.call(Decline(ids, Filters(refuse_ms)))

    def ask_for_gang(self, request: RequestGang) -> None:
        """Ask for room for all of some tasks at once."""
        self._asked[request.gang_id] = request
        self.call(request)

    def accept_bundle(self, bundle: StandingBundle, tasks: Sequence[TaskId], refuse_ms: int | None = None) -> None:
        """Take all of it, with a task in each place."""
        del self.bundles[bundle.bundle.gang_id]
        self._calls += 1
        call_id = f"{self.framework_id}-{self._calls}"
        launch = Operation(f"{call_id}.0", Launch(bundle.tasks(tasks)))
        self.call(Accept(call_id, bundle.offer_ids, (launch,), Filters(refuse_ms)))

    def decline_bundle(self, bundle: StandingBundle, refuse_ms: int | None = None) -> None:
        """Refuse all of it."""
        del self.bundles[bundle.bundle.gang_id]
        self.call(Decline(bundle.offer_ids, Filters(refuse_ms)))

    def standing(self, agent: str | None = None, role: str | None = None) -> list[Standing]:
        """Its offers, of one agent or role where such is given, in the order in which they were made."""
        found = [
            standing
            for standing in self.offers.values()
            if agent in (None, standing.offer.agent_id) and role in (None, standing.offer.role)
        ]
        return sorted(found, key=lambda standing: standing.number)

    def offered(self, number: int, offer: Offer) -> None:
        """A new offer."""
        standing = self.offers[offer.offer_id] = Standing(number, offer)
        stage = self.stage
        stage.note(
            Outcome(
                Kind.OFFER,
                stage.at_ms,
                f"{name_offer(standing)}: {offer.agent_id} {describe(offer.agent_id, offer.resources)}"
                + (", revocable" if offer.revocable else ""),
                offer=number,
                framework=self.framework_id,
                role=offer.role,
                agent=offer.agent_id,
                resources=parts_of(offer.resources),
            )
        )
        if self.habit is not None:
            self._answer(self.habit, standing)

    def hear(self, event: Any) -> None:
        """One event of the master; offers come through `offered`."""
        stage = self.stage
        match event:
            case Rescind(offer_ids, reason):
                found = [self.offers.pop(offer_id) for offer_id in offer_ids if offer_id in self.offers]
                for standing in sorted(found, key=lambda standing: standing.number):
                    self._gone(Kind.RESCIND, standing, f"is rescinded: {reason}", reason)
                for bundle in [one for one in self.bundles.values() if set(offer_ids) & {*one.offer_ids}]:
                    del self.bundles[bundle.bundle.gang_id]
                    stage.note(bundle.gone(Kind.RESCIND, stage.at_ms, f"is rescinded: {reason}", reason))
            case Bundle(_, gang_id):
                bundle = self.bundles[gang_id] = StandingBundle(stage.number_bundle(), event, self._asked[gang_id])
                for outcome in bundle.outcomes(stage.at_ms):
                    stage.note(outcome)
            case GangUpdate():
                stage.note(of_gang(self.framework_id, event, stage.at_ms))
            case PreemptionNotice(preemptions, reason):
                for one in preemptions:
                    stage.note(self._preempted(one, reason))
            case StatusUpdates(statuses):
                for status in statuses:
                    self._status(status)
            case CallResult(call_id, error=None) if call_id in self._updates:
                granted = self._updates.pop(call_id)
                self.info, self.suppressed, self.demand = granted.info, granted.suppressed_roles, granted.demand
            case CallResult(error=error, operations=operations) if error is not None:
                details = [result.error for result in operations if result.error is not None]
                for detail in details or [error]:
                    stage.note(refused(stage.at_ms, detail, framework=self.framework_id))
            case StreamError(error):
                stage.note(refused(stage.at_ms, error, framework=self.framework_id))
            case MasterHeartbeat():
                self.call(FrameworkHeartbeat(self.demand))

    def _preempted(self, one: Preemption, reason: str) -> Outcome:
        return Outcome(
            Kind.NOTICE,
            self.stage.at_ms,
            f"{one.task_id} of {self.framework_id} is to end in {format_duration(one.kill_in_ms)}: {reason}",
            framework=self.framework_id,
            task=one.task_id,
            message=reason,
        )

    def _answer(self, habit: Habit, standing: Standing) -> None:
        """As many tasks as fit into an offer, one after the other."""
        stage = self.stage
        count = stage.count_fitting(standing.offer, habit.shape)
        if not count:
            self.decline([standing])
            return
        names = [stage.new_task(self.framework_id) for _ in range(count)]
        specs = tuple(TaskSpec(name, command=("true",), resources=habit.shape) for name in names)
        self.accept([standing], [Launch(specs)])
        if habit.for_ms is not None:
            for name in names:
                stage.later(habit.for_ms, stage.end_task, self.framework_id, name)

    def _status(self, status: TaskStatus) -> None:
        if status.update_id:
            self.call(Acknowledge((UpdateRef(status.task_id, status.update_id),)))
        words = _WORDS.get(status.state)
        if status.state is TaskState.RUNNING and status.reason is StatusReason.AGENT_REREGISTERED:
            words = "runs again"
        if words is None:
            return
        why = status.message or ("" if status.reason is StatusReason.COMMAND_EXITED else _said(status.reason))
        self.stage.note(
            Outcome(
                Kind.TASK,
                self.stage.at_ms,
                f"{status.task_id} of {self.framework_id} {words}{f': {why}' if why else ''}",
                framework=self.framework_id,
                agent=status.agent_id,
                task=status.task_id,
                reason=status.state.name,
                message=why or None,
            )
        )

    def lose(self) -> None:
        """The master died, and with it every offer; the framework will subscribe again."""
        self._void_offers("its master is not there any more")

    def _void_offers(self, why: str = "its framework left this stream") -> None:
        for standing in self.standing():
            self._gone(Kind.VOID, standing, f"is void: {why}", why)
        for bundle in self.bundles.values():
            self.stage.note(bundle.gone(Kind.VOID, self.stage.at_ms, f"is void: {why}", why))
        self.offers.clear()
        self.bundles.clear()

    def _gone(self, kind: Kind, standing: Standing, words: str, message: str | None = None) -> None:
        offer = standing.offer
        self.stage.note(
            Outcome(
                kind,
                self.stage.at_ms,
                f"{name_offer(standing)} {words}",
                offer=standing.number,
                framework=self.framework_id,
                role=offer.role,
                agent=offer.agent_id,
                resources=parts_of(offer.resources),
                message=message,
            )
        )


def name_offer(standing: Standing) -> str:
    """How an offer is called in a transcript."""
    offer = standing.offer
    return f"offer {standing.number} to {offer.framework_id} for {offer.role}"


def _said(reason: StatusReason) -> str:
    return "" if reason is StatusReason.UNSPECIFIED else reason.name.lower().replace("_", " ")
