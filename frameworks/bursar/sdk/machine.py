"""The conversation of one framework with its master, as a pure machine.

Phases: *waiting* (between two attempts), *connecting* (Subscribe is on its way), *subscribed*, *ended*. Whatever breaks leads back to
*waiting*, with a back-off that doubles to two seconds; after each return the machine asks what became of calls whose answers
were lost, repeats kills, and reconciles its tasks with a truncated back-off (RC-3). Nothing here reads a clock or a socket.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto

from bursar.core.clock import Deadlines, Instant
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, ConnectionId, OfferId
from bursar.core.machine import Stalled, TimePassed
from bursar.core.messages.executor import ExecutorMessage
from bursar.core.messages.framework import (
    Acknowledge,
    AgentFailure,
    FrameworkCall,
    FrameworkEvent,
    FrameworkInfo,
    Kill,
    LookupCalls,
    LookupResults,
    MasterHeartbeat,
    Offers,
    PreemptionNotice,
    Reconcile,
    Rescind,
    Restart,
    StatusUpdates,
    StreamError,
    Subscribed,
    Teardown,
)
from bursar.core.messages.gangs import Bundle, GangUpdate
from bursar.core.messages.offers import (
    Accept,
    AgentDescription,
    CallResult,
    CreateVolume,
    Decline,
    DestroyVolume,
    Filters,
    Offer,
    Operation,
)
from bursar.core.tasks import TaskSpec, TaskStatus
from bursar.sdk import effects, events
from bursar.sdk.effects import Effect
from bursar.sdk.gangs import OpenGangs
from bursar.sdk.statement import Statement
from bursar.sdk.tracking import NEVER_SENT, TrackedTasks

#: Between two attempts, and per attempt.
BACKOFF_MIN_MS, BACKOFF_MAX_MS, ATTEMPT_MS = 100, 2_000, 5_000
#: A master that missed so many heartbeats is given up.
MISSED_HEARTBEATS = 3
#: Explicit reconciliation: repeated for tasks without an answer; everything is compared every quarter of an hour (RC-3).
RECONCILE_MIN_MS, RECONCILE_MAX_MS, RECONCILE_ALL_MS = 1_000, 60_000, 900_000
#: An accept without an answer is asked for after so long.
LOOKUP_MS = 30_000
#: How long unregistering is tried.
STOP_MS = 10_000
#: The master ends the stream after Teardown; if it does not, that is good enough.
TEARDOWN_MS = 3_000
#: Ids of one call at most, so that no message grows beyond its limit.
MAX_IDS = 1_000

#: Refusals that another attempt cannot mend.
FATAL_REASONS = frozenset(
    {
        ErrorReason.INVALID_ARGUMENT,
        ErrorReason.CLUSTER_MISMATCH,
        ErrorReason.SUPERSEDED,
        ErrorReason.FRAMEWORK_REMOVED,
        ErrorReason.NOT_SUBSCRIBED,
        ErrorReason.UNSUPPORTED,
    }
)
#: Fatal as long as the framework was never in; later, certificates and tokens may be renewed while it waits.
CREDENTIAL_REASONS = frozenset({ErrorReason.UNAUTHENTICATED, ErrorReason.PERMISSION_DENIED})


class Phase(Enum):
    """Where the conversation is."""

    WAITING = auto()
    CONNECTING = auto()
    SUBSCRIBED = auto()
    ENDED = auto()


class Timer(Enum):
    """What the machine waits for."""

    FIRST_SUBSCRIBE = auto()
    ATTEMPT = auto()
    RETRY = auto()
    HEARTBEAT = auto()
    SILENCE = auto()
    RECONCILE = auto()
    RECONCILE_ALL = auto()
    LOOKUP = auto()
    STOP = auto()
    TEARDOWN = auto()


class SessionMachine:
    """One life of one framework process.

    Invariants (`check`): offers are held only while subscribed; those of `TrackedTasks`.
    """

    def __init__(
        self,
        info: FrameworkInfo,
        addresses: tuple[str, ...],
        *,
        resume: bool = False,
        first_subscribe_ms: int | None = None,
    ) -> None:
        """`resume`: the framework may have tasks of an earlier life. `first_subscribe_ms`: give up if no master is found."""
        self.statement = Statement(info, self._send, self._deliver, self._fresh_call_id)
        self._gangs = OpenGangs(self._send, self._deliver)
        self.addresses = addresses
        self.phase = Phase.WAITING
        self.cluster_id = ""
        self.tasks = TrackedTasks()
        self._resume = resume
        self._first_subscribe_ms = first_subscribe_ms
        self._timers: Deadlines[Timer] = Deadlines()
        self._connection = ConnectionId(0)
        #: Attempts since the last success, and the address that the next one goes to.
        self._attempts = 0
        self._address = 0
        self._was_subscribed = False
        self._last_error = ErrorDetail(ErrorReason.UNSPECIFIED, "no master was found")
        self._heartbeat_ms = 15_000
        self._offers: dict[OfferId, Offer] = {}
        self._descriptions: dict[AgentId, AgentDescription] = {}
        self._calls = 0
        self._reconcile_ms = RECONCILE_MIN_MS
        self._stopping = False
        self._torn_down = False
        self._out: list[Effect] = []

    # --- the machine protocol --------------------------------------------------------------------------------------

    def step(self, event: events.Event, now: Instant) -> list[Effect]:
        """Handle one event."""
        if self.phase is Phase.ENDED:
            return []
        ms = now.monotonic_ms
        match event:
            case events.EventsReceived(connection, received):
                if connection == self._connection and self.phase is Phase.SUBSCRIBED:
                    self._timers.set(Timer.SILENCE, ms + MISSED_HEARTBEATS * self._heartbeat_ms)
                for item in received:
                    if connection == self._connection and self.phase in (Phase.CONNECTING, Phase.SUBSCRIBED):
                        self._on_master_event(item, ms)
            case events.OffersAnswered(answers):
                self._answer_offers(answers, ms)
            case events.StatusesHandled(updates):
                if updates:
                    self._send(Acknowledge(updates))
            case events.StreamEnded():
                if event.connection == self._connection and self.phase is not Phase.WAITING:
                    self._on_stream_ended(event, ms)
            case TimePassed():
                for timer in self._timers.pop_due(ms):
                    self._on_timer(timer, ms)
            case Stalled(by_ms):
                self._timers.shift(by_ms)
            case events.DemandStated(shapes):
                self.statement.state_demand(shapes)
            case events.KillRequested(task_id, grace_ms):
                if task_id in self.tasks.by_id:
                    self.tasks.kills[task_id] = grace_ms
                    self._send(Kill(task_id, grace_ms))
            case events.RestartRequested(task_id, grace_ms):
                if task_id in self.tasks.by_id:
                    self._send(Restart(task_id, grace_ms))
            case events.MessageRequested(executor_id, data):
                if executor_id in self.tasks.by_id:
                    self._send(ExecutorMessage(executor_id=executor_id, data=data))
            case events.ReconcileRequested(task_ids):
                self.tasks.asked |= set(task_ids)
                self._reconcile_ms = RECONCILE_MIN_MS
                self._reconcile(ms)
            case events.CallNotSent(call_id, error):
                self._on_result(CallResult(call_id, error=error))
            case events.SuppressRequested(roles):
                self.statement.suppress(roles)
            case events.ReviveRequested(roles):
                self.statement.revive(roles)
            case events.UpdateRequested(changes, shapes):
                self.statement.change(dict(changes), shapes)
            case events.GangRequested(request):
                self._gangs.request(request, ms)
            case events.GangCancelled(gang_id):
                self._gangs.cancel(gang_id)
            case events.BundleAnswered(bundle_id, tasks):
                self._answer_bundle(bundle_id, tasks, ms)
            case events.StopRequested():
                self._stop(ms)
            case events.SessionStarted(shapes):
                if shapes is not None:
                    self.statement.demand.begin(shapes)
                if self._first_subscribe_ms is not None:
                    self._timers.set(Timer.FIRST_SUBSCRIBE, ms + self._first_subscribe_ms)
                self._open(ms)
        out, self._out = self._out, []
        return out

    @property
    def demand_is_used(self) -> bool:
        """Whether the same demand would mean more now, and must be said again."""
        return self.statement.demand.is_used

    def next_deadline_ms(self) -> int | None:
        """When TimePassed is due."""
        return self._timers.next_ms()

    def check(self) -> None:
        """Assert the invariants."""
        assert self.phase is Phase.SUBSCRIBED or not self._offers, "offers without a subscription"
        assert self.phase is Phase.SUBSCRIBED or not self._gangs.has_bundles, "bundles without a subscription"
        self.tasks.check()
        assert self.phase is Phase.SUBSCRIBED or not self.statement.is_waiting, "an update waits without a subscription"

    # --- connecting ------------------------------------------------------------------------------------------------

    def _open(self, ms: int) -> None:
        self._connection = ConnectionId(self._connection + 1)
        self.phase = Phase.CONNECTING
        self._torn_down = False
        address = self.addresses[self._address % len(self.addresses)]
        self._out.append(effects.OpenStream(self._connection, address))
        self._out.append(effects.SendCalls(self._connection, (self.statement.subscribe(self.cluster_id),)))
        self._timers.set(Timer.ATTEMPT, ms + ATTEMPT_MS)

    def _reconnect(self, error: ErrorDetail, ms: int) -> None:
        """Leave the connection and try again later; offers are void, everything else stays."""
        was_subscribed = self.phase is Phase.SUBSCRIBED
        self._last_error = error
        self._out.append(effects.CloseStream(self._connection))
        self.phase = Phase.WAITING
        self.statement.lost()
        self._gangs.lost()
        self._offers.clear()
        self._descriptions.clear()
        for timer in Timer:
            if timer not in (Timer.STOP, Timer.FIRST_SUBSCRIBE):
                self._timers.cancel(timer)
        if was_subscribed:
            self._out.append(effects.DeliverDisconnected(error))
        if self._stopping and not self._was_subscribed:
            self._end(None)
            return
        if not was_subscribed:
            self._address += 1
        delay = min(BACKOFF_MAX_MS, BACKOFF_MIN_MS << min(self._attempts, 10))
        self._attempts += 1
        self._timers.set(Timer.RETRY, ms + delay)

    def _on_stream_ended(self, event: events.StreamEnded, ms: int) -> None:
        if self._torn_down and event.error is None:
            self._end(None)
        elif event.error is not None and self._is_fatal(event.error):
            self._on_fatal(event.error)
        else:
            self._reconnect(event.error or ErrorDetail(ErrorReason.UNSPECIFIED, "the master ended the connection"), ms)

    def _is_fatal(self, error: ErrorDetail) -> bool:
        return error.reason in FATAL_REASONS or (error.reason in CREDENTIAL_REASONS and not self._was_subscribed)

    def _on_fatal(self, error: ErrorDetail) -> None:
        gone = self._stopping and error.reason is ErrorReason.FRAMEWORK_REMOVED
        self._end(None if gone else error)

    def _end(self, error: ErrorDetail | None, unreachable: bool = False) -> None:
        self._out.append(effects.CloseStream(self._connection))
        self.phase = Phase.ENDED
        self.statement.lost()
        self._gangs.lost()
        self._offers.clear()
        for timer in Timer:
            self._timers.cancel(timer)
        self._out.append(effects.End(error, unreachable))

    def _stop(self, ms: int) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._timers.set(Timer.STOP, ms + STOP_MS)
        if self.phase is Phase.SUBSCRIBED:
            self._tear_down(ms)
        elif self.phase is Phase.WAITING and not self._was_subscribed:
            self._end(None)

    def _tear_down(self, ms: int) -> None:
        self._offers.clear()
        self._gangs.lost()
        self._send(Teardown())
        self._torn_down = True
        self._out.append(effects.EndCalls(self._connection))
        self._timers.set(Timer.TEARDOWN, ms + TEARDOWN_MS)

    def _on_timer(self, timer: Timer, ms: int) -> None:
        if self.phase is Phase.ENDED:
            return
        match timer:
            case Timer.RETRY:
                self._open(ms)
            case Timer.ATTEMPT:
                self._reconnect(ErrorDetail(ErrorReason.SILENT, "the master does not answer Subscribe"), ms)
            case Timer.HEARTBEAT:
                self._send(self.statement.heartbeat())
                self._timers.set(Timer.HEARTBEAT, ms + self._heartbeat_ms)
            case Timer.SILENCE:
                self._reconnect(ErrorDetail(ErrorReason.SILENT, "the master is silent"), ms)
            case Timer.RECONCILE:
                self._reconcile(ms)
            case Timer.RECONCILE_ALL:
                self._send(Reconcile())
                self._begin_reconciliation(ms)
            case Timer.LOOKUP:
                self._look_up(ms)
            case Timer.FIRST_SUBSCRIBE:
                self._end(self._last_error, unreachable=True)
            case Timer.TEARDOWN:
                self._end(None)
            case Timer.STOP:
                self._end(
                    ErrorDetail(
                        self._last_error.reason,
                        f"the framework could not be unregistered: {self._last_error.message}",
                        "its tasks end with its failover timeout; bursar framework teardown ends them at once",
                    )
                )

    # --- what the master says --------------------------------------------------------------------------------------

    def _on_master_event(self, event: FrameworkEvent, ms: int) -> None:
        match event:
            case Subscribed():
                self._on_subscribed(event, ms)
            case StreamError(error):
                if self._is_fatal(error):
                    self._on_fatal(error)
                else:
                    self._reconnect(error, ms)
            case _ if self.phase is not Phase.SUBSCRIBED or self._torn_down:
                pass
            case Offers(descriptions, offers):
                self._on_offers(descriptions, offers)
            case StatusUpdates(statuses):
                self._on_statuses(statuses)
            case CallResult():
                self._on_result(event)
            case LookupResults(results):
                for result in results:
                    self._on_result(result)
            case Bundle():
                self._gangs.on_bundle(event, self._descriptions)
            case GangUpdate():
                self._gangs.on_update(event)
            case Rescind(offer_ids, reason):
                for offer_id in offer_ids:
                    self._offers.pop(offer_id, None)
                self._gangs.on_rescind(set(offer_ids))
                self._out.append(effects.DeliverRescind(offer_ids, reason))
            case AgentFailure(agent_id, message):
                self._out.append(effects.DeliverAgentFailure(agent_id, message))
            case ExecutorMessage(_, executor_id, data):
                self._out.append(effects.DeliverMessage(executor_id, data))
            case PreemptionNotice(preemptions, reason):
                self._out += [effects.DeliverPreemption(one.task_id, one.kill_in_ms, reason) for one in preemptions]
            case MasterHeartbeat():
                pass

    def _on_subscribed(self, event: Subscribed, ms: int) -> None:
        again = self._was_subscribed
        self.phase = Phase.SUBSCRIBED
        self._was_subscribed = True
        self._attempts = 0
        self.cluster_id = event.cluster_id
        self._heartbeat_ms = max(100, event.heartbeat_interval_ms or 15_000)
        for timer in (Timer.ATTEMPT, Timer.FIRST_SUBSCRIBE):
            self._timers.cancel(timer)
        self._timers.set(Timer.HEARTBEAT, ms + self._heartbeat_ms)
        self._timers.set(Timer.SILENCE, ms + MISSED_HEARTBEATS * self._heartbeat_ms)
        self._timers.set(Timer.RECONCILE_ALL, ms + RECONCILE_ALL_MS)
        self._out.append(effects.DeliverSubscribed(event.cluster_id, again))
        if self._stopping:
            self._tear_down(ms)
            return
        self.statement.heard()
        self._gangs.ask_again(ms)
        self._look_up(ms)
        for task_id, grace_ms in self.tasks.kills.items():
            self._send(Kill(task_id, grace_ms))
        if self._resume and not again:
            self._send(Reconcile())
        self._begin_reconciliation(ms)

    def _on_offers(self, descriptions: tuple[AgentDescription, ...], offers: tuple[Offer, ...]) -> None:
        for description in descriptions:
            self._descriptions[description.agent_id] = description
        known, strange = [], []
        for offer in offers:
            found = self._descriptions.get(offer.agent_id)
            if found is None:
                strange.append(offer.offer_id)
                continue
            self._offers[offer.offer_id] = offer
            known.append((offer, found))
        if strange:
            self._send(Decline(tuple(strange)))
        if known:
            self._out.append(effects.DeliverOffers(tuple(known)))

    def _on_statuses(self, statuses: tuple[TaskStatus, ...]) -> None:
        heard = self.tasks.hear(statuses)
        if heard.launched:
            self._out.append(effects.DeliverLaunched(tuple(heard.launched)))
        if heard.repeated:
            self._send(Acknowledge(tuple(heard.repeated)))
        if heard.news:
            self._out.append(effects.DeliverStatuses(tuple(heard.news)))

    # --- what the author says --------------------------------------------------------------------------------------

    def _answer_offers(self, answers: Iterable[events.OfferAnswer], ms: int) -> None:
        declined: dict[int | None, list[OfferId]] = {}
        for answer in answers:
            offer = self._offers.pop(answer.offer_id, None)
            if offer is None:
                for spec in answer.tasks:
                    self._out.append(effects.DeliverRefusal(spec.task_id, NEVER_SENT))
            elif answer.tasks or answer.volumes:
                self.statement.demand.note_launched(offer.role, (spec.resources for spec in answer.tasks))
                self._accept((offer,), answer.tasks, answer.refuse_ms, answer.volumes)
            else:
                declined.setdefault(answer.refuse_ms, []).append(answer.offer_id)
        for refuse_ms, offer_ids in declined.items():
            self._send(Decline(tuple(offer_ids), Filters(refuse_ms)))
        if self.tasks.pending and Timer.LOOKUP not in self._timers:
            self._timers.set(Timer.LOOKUP, ms + LOOKUP_MS)

    def _answer_bundle(self, bundle_id: str, tasks: tuple[TaskSpec, ...], ms: int) -> None:
        if not tasks:
            self._gangs.decline(bundle_id)
        elif (bundle := self._gangs.take(bundle_id)) is None:
            for spec in tasks:
                self._out.append(effects.DeliverRefusal(spec.task_id, NEVER_SENT))
        else:
            self._accept(bundle.offers, tasks, None)
            if Timer.LOOKUP not in self._timers:
                self._timers.set(Timer.LOOKUP, ms + LOOKUP_MS)

    def _accept(
        self,
        offers: tuple[Offer, ...],
        tasks: tuple[TaskSpec, ...],
        refuse_ms: int | None,
        volumes: tuple[CreateVolume | DestroyVolume, ...] = (),
    ) -> None:
        call_id = self._fresh_call_id()
        about_volumes = tuple(Operation(f"{call_id}-v{index}", item) for index, item in enumerate(volumes))
        operations = (*about_volumes, *self.tasks.launch(call_id, tasks))
        self._send(Accept(call_id, tuple(offer.offer_id for offer in offers), operations, Filters(refuse_ms)))

    def _on_result(self, result: CallResult) -> None:
        if self.statement.answered(result):
            return
        launched, refused = self.tasks.answer(result)
        self._out += [effects.DeliverRefusal(task_id, error) for task_id, error in refused]
        if launched:
            self._out.append(effects.DeliverLaunched(tuple(launched)))
        if not self.tasks.pending:
            self._timers.cancel(Timer.LOOKUP)

    # --- after a return --------------------------------------------------------------------------------------------

    def _look_up(self, ms: int) -> None:
        if not self.tasks.pending:
            return
        call_ids = list(self.tasks.pending)
        for start in range(0, len(call_ids), MAX_IDS):
            self._send(LookupCalls(tuple(call_ids[start : start + MAX_IDS])))
        self._timers.set(Timer.LOOKUP, ms + LOOKUP_MS)

    def _begin_reconciliation(self, ms: int) -> None:
        self.tasks.begin_reconciliation()
        self._reconcile_ms = RECONCILE_MIN_MS
        self._timers.set(Timer.RECONCILE_ALL, ms + RECONCILE_ALL_MS)
        self._reconcile(ms)

    def _reconcile(self, ms: int) -> None:
        """Ask for those without an answer (their agents may still be on their way back), ever more slowly."""
        task_ids = self.tasks.unanswered()
        if not task_ids or self.phase is not Phase.SUBSCRIBED:
            return
        for start in range(0, len(task_ids), MAX_IDS):
            self._send(Reconcile(tuple(task_ids[start : start + MAX_IDS])))
        self._timers.set(Timer.RECONCILE, ms + self._reconcile_ms)
        self._reconcile_ms = min(RECONCILE_MAX_MS, 2 * self._reconcile_ms)

    def _fresh_call_id(self) -> str:
        self._calls += 1
        return f"{self.statement.info.incarnation}-{self._calls}"

    def _deliver(self, effect: Effect) -> None:
        self._out.append(effect)

    def _send(self, call: FrameworkCall) -> None:
        """Send while subscribed; what is lost otherwise is said again after the return."""
        if self.phase is Phase.SUBSCRIBED and not self._torn_down:
            self._out.append(effects.SendCalls(self._connection, (call,)))
