"""The master's machine: a table of contents. Events in, effects out; everything is decided in the modules named here.

Deadlines are keyed by (kind, id): `offers` that expire together, `ping` of an agent, `unreachable` and `reregister` (an agent is given up),
`failover` (a framework is removed), `rule` (one expires), `silent` (a framework is cut off), `retry` (unacknowledged updates), `heartbeat`, `cycle`
(full allocation), `allocate` (what changed), `gang` (it waited long enough), `gang-hold` (it held for long enough, or rested) and `preempt` (a task's notice is over).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import assert_never

from bursar.core.clock import Instant
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, ConnectionId, FrameworkId
from bursar.core.machine import Stalled, TimePassed
from bursar.core.messages import framework as calls
from bursar.core.messages.agent import BooksDigest, BooksReport, CutReport, ImagePulls, Images, VolumesHeld
from bursar.core.messages.executor import ExecutorMessage
from bursar.core.messages.framework import FrameworkCall, LookupResults, StatusUpdates
from bursar.core.messages.gangs import CancelGang, RequestGang
from bursar.core.messages.offers import Accept, Decline
from bursar.core.messages.operator import AgentState, FrameworkState, OperatorResponse
from bursar.core.resources import to_holding, to_reserved
from bursar.core.tasks import StatusReason, TaskState
from bursar.master import (
    agents,
    comparing,
    executors,
    frameworks,
    gangs,
    groups,
    images,
    lending,
    offers,
    operations,
    operators,
    partitions,
    registration,
    rules,
    starvation,
    tasks,
    volumes,
)
from bursar.master.allocator.constraints import settings_by_role
from bursar.master.bundles import held_while_filling
from bursar.master.effects import MasterEffect, Reply, SendToFramework
from bursar.master.events import (
    AgentRegistering,
    AgentSpoke,
    AgentStreamEnded,
    FrameworkCalled,
    FrameworkStreamEnded,
    MasterEvent,
    OperatorCalled,
)
from bursar.master.flags import FlagValues
from bursar.master.ledger import TaskKey
from bursar.master.own import answer_own
from bursar.master.records import Durable, RequestDone
from bursar.master.state import Agent, Cluster, Framework, Task, Turn

#: Turns an answer into JSON and back, for the memory of answered requests; the shell provides it.
AnswerCodec = tuple[Callable[[OperatorResponse], str], Callable[[str, str], OperatorResponse]]


class MasterMachine:
    """Pure and synchronous (design.md §2). Constructed from what the registry holds; a new term begins."""

    def __init__(
        self,
        durable: Durable,
        flags: FlagValues,
        now: Instant,
        *,
        answers: AnswerCodec | None = None,
        version: str = "",
        address: str = "",
    ) -> None:
        flags.set_at_run_time(durable.flags)
        self.cluster = Cluster(durable, flags)
        self.cluster.started_at_ms = now.wall_ms
        self._answers = answers
        self._version = version
        #: Where clients reach this master; for people.
        self.address = address
        self._recover(now)

    # --- Machine ---

    def step(self, event: MasterEvent, now: Instant) -> Sequence[MasterEffect]:
        """Handle one event."""
        turn = Turn(now, self.cluster.durable)
        cluster = self.cluster
        match event:
            case AgentRegistering():
                registration.register(cluster, turn, event)
            case AgentSpoke(connection, message):
                if (agent := cluster.agent_of(connection)) is None:
                    pass
                elif isinstance(message, CutReport):
                    partitions.reported(cluster, turn, agent, message)
                elif isinstance(message, (BooksDigest, BooksReport)):
                    comparing.hear(cluster, turn, agent, message)
                elif isinstance(message, ExecutorMessage):
                    executors.message_of_executor(cluster, turn, agent, message)
                elif isinstance(message, VolumesHeld):
                    volumes.hear(cluster, turn, agent, message)
                elif isinstance(message, (ImagePulls, Images)):
                    images.hear(cluster, turn, agent, message)
                else:
                    agents.hear(cluster, turn, agent, message)
            case AgentStreamEnded(connection):
                if (agent := cluster.agent_of(connection)) is not None:
                    agents.stream_ended(cluster, turn, agent)
            case FrameworkCalled(connection, call, principal):
                self._call(turn, connection, call, principal)
            case FrameworkStreamEnded(connection):
                if (framework := cluster.framework_of(connection)) is not None:
                    frameworks.stream_ended(cluster, turn, framework)
            case OperatorCalled():
                self._operate(turn, event)
            case TimePassed():
                self._time_passed(turn)
            case Stalled(by_ms):
                cluster.deadlines.shift(by_ms)
            case _:
                assert_never(event)
        if cluster.is_dirty and ("allocate", "") not in cluster.deadlines:
            # Allocation waits for the rest of the batch, not longer: time passes once the inbox was read.
            cluster.deadlines.set(("allocate", ""), now.monotonic_ms)
        return turn.effects

    def next_deadline_ms(self) -> int | None:
        """Monotonic time at which `TimePassed` is due."""
        own = self.cluster.deadlines.next_ms()
        filters = self.cluster.filters.deadlines.next_ms()
        return min((at for at in (own, filters) if at is not None), default=None)

    def check(self) -> None:
        """Assert every invariant of the state."""
        cluster = self.cluster
        cluster.ledger.check()
        cluster.shares.check()
        cluster.gangs.check(cluster)
        durable = cluster.durable
        assert durable.term == cluster.term
        assert durable.agents.keys() == cluster.agents.keys()
        assert durable.frameworks.keys() == cluster.frameworks.keys()
        # A TaskKey is a tuple: the same keys.
        assert durable.tasks.keys() == cluster.tasks.keys()
        tasks_of: dict[FrameworkId, set[TaskKey]] = {}
        for key in cluster.tasks:
            tasks_of.setdefault(key.framework_id, set()).add(key)
        cluster.holders.check({name: groups.group_of(members) for name, members in durable.role_groups.items()})
        assert cluster.flags.at_run_time.items() <= durable.flags.items()
        for agent in cluster.agents.values():
            assert (agent.connection is not None) == (agent.state is AgentState.ACTIVE), agent.agent_id
            recorded = durable.agents[agent.agent_id]
            assert recorded.info == agent.info
            assert recorded.reservations == to_reserved(agent.reservations), agent.agent_id
            assert recorded.lent == tuple(sorted(agent.lent)), agent.agent_id
            volumes.check(cluster, agent)
            assert recorded.unreachable == (agent.state is AgentState.UNREACHABLE), agent.agent_id
            assert cluster.ledger.books[agent.agent_id].counted == (agent.state is not AgentState.UNREACHABLE)
            assert cluster.ledger.books[agent.agent_id].present == (agent.state is AgentState.ACTIVE)
            assert agent.tasks == cluster.ledger.books[agent.agent_id].allocated.keys(), agent.agent_id
            if agent.state is not AgentState.ACTIVE:
                assert not cluster.ledger.books[agent.agent_id].offered, agent.agent_id
        for framework in cluster.frameworks.values():
            assert (framework.connection is not None) == (framework.state is FrameworkState.ACTIVE)
            assert framework.tasks == tasks_of.get(framework.framework_id, set())
            promised = [0] * len(framework.wanted)
            for offer_id in framework.offers:
                outstanding = cluster.offers[offer_id]
                assert outstanding.offer.framework_id == framework.framework_id
                if outstanding.demand_version == framework.demand.version:
                    for index, count in outstanding.promised.items():
                        promised[index] += count
            assert framework.promised == promised, framework.framework_id
            assert not framework.offers or framework.state is FrameworkState.ACTIVE
        assert cluster.agent_connections == {
            a.connection: a.agent_id for a in cluster.agents.values() if a.connection is not None
        }
        assert cluster.framework_connections == {
            f.connection: f.framework_id for f in cluster.frameworks.values() if f.connection is not None
        }
        for key, task in cluster.tasks.items():
            entry = durable.tasks[key.framework_id, key.task_id]
            assert (entry.end is not None) == task.state.is_terminal, key
            assert entry.end_acknowledged == task.end_acknowledged, key
            assert entry.preempt_at_ms == task.preempt_at_ms, key
            assert entry.restart == task.restart, key
            if task.assigned.revocable and not task.state.is_terminal:
                assert task.agent_id in cluster.lenders, key
            assert task.state.is_terminal != (key in cluster.agents[task.agent_id].tasks), key
        ended = {key for key, task in cluster.tasks.items() if task.end_acknowledged}
        assert {key for keys in cluster.orphans.values() for key in keys} == {
            key for key in cluster.tasks if key.framework_id not in cluster.frameworks
        }
        assert ended == cluster.ended_anywhere.keys() == {key for keys in cluster.ended.values() for key in keys}
        for offer_id, outstanding in cluster.offers.items():
            assert outstanding.offer.offer_id == offer_id
            assert offer_id in cluster.frameworks[outstanding.offer.framework_id].offers
            for part in outstanding.offer.resources:
                if outstanding.offer.revocable:
                    # What is lent stays so for as long as it is offered.
                    assert not part.stack or part.stack in cluster.agents[outstanding.offer.agent_id].lent, offer_id
                    continue
                assert not part.stack or cluster.holders.covers(part.stack[-1].holder, outstanding.offer.role), offer_id
            assert (
                to_reserved(cluster.ledger.offer_holding(outstanding.offer.agent_id, offer_id))
                == outstanding.offer.resources
            )

    # --- inside ---

    def _recover(self, now: Instant) -> None:
        """Rebuild the state from the registry: agents are awaited, frameworks have what is left of their time."""
        cluster, durable = self.cluster, self.cluster.durable
        groups.load_groups(cluster)
        rules.recover_rules(cluster, now.monotonic_ms, now.wall_ms)
        for agent_id, known in sorted(durable.agents.items()):
            state = AgentState.UNREACHABLE if known.unreachable else AgentState.RECOVERING
            agent = Agent(known.info, state, known.registered_at_ms, known.description_version)
            agent.reservations = to_holding(known.reservations)
            agent.volumes.kept = {volume.uuid: volume for volume in known.volumes}
            agent.volumes.leaving = frozenset(known.leaving_volumes)
            agents.enter_agent(cluster, agent, counted=not known.unreachable)
            if state is AgentState.RECOVERING:
                patience_ms = cluster.flags.duration_ms("agent-reregister-timeout")
                cluster.deadlines.set(("reregister", agent_id), now.monotonic_ms + patience_ms)
        for framework_id, entry in sorted(durable.frameworks.items()):
            framework = Framework(entry.info, FrameworkState.DISCONNECTED, entry.subscribed_at_ms)
            framework.settings = settings_by_role(entry.info.offer_settings)
            deadline_ms = entry.failover_deadline_ms or now.wall_ms + entry.info.failover_timeout_ms
            framework.failover_deadline_ms = deadline_ms
            cluster.frameworks[framework_id] = framework
            # Whatever its time-out, a framework gets a moment to come back: it was the master that left.
            left_ms = max(deadline_ms - now.wall_ms, 2 * frameworks.HEARTBEAT_INTERVAL_MS)
            cluster.deadlines.set(("failover", framework_id), now.monotonic_ms + left_ms)
        for entry2 in sorted(durable.tasks.values(), key=lambda entry: entry.ended_at_ms):
            task = Task(
                entry2.agent_id,
                entry2.task,
                call_id=entry2.call_id,
                operation_id=entry2.operation_id,
                kill_reason=entry2.kill_reason,
                kill_grace_ms=entry2.kill_grace_ms,
                ended_at_ms=entry2.ended_at_ms,
                preempt_at_ms=entry2.preempt_at_ms,
                restart=entry2.restart,
                end_acknowledged=entry2.end_acknowledged,
            )
            if entry2.end is not None:
                task.state, task.status = entry2.end.state, entry2.end
                task.seen_updates.add(entry2.end.update_id)
                if not entry2.end_acknowledged:
                    task.unacknowledged.append(entry2.end)
            elif durable.agents[entry2.agent_id].unreachable:
                task.state = TaskState.UNREACHABLE
            tasks.add_task(cluster, task, held=False)
            if task.end_acknowledged:
                tasks.note_ended(cluster, task)
        lending.recover(cluster, now.monotonic_ms, now.wall_ms)
        cluster.deadlines.set(("cycle", ""), now.monotonic_ms + cluster.flags.duration_ms("allocation-interval"))
        cluster.deadlines.set(("heartbeat", ""), now.monotonic_ms + frameworks.HEARTBEAT_INTERVAL_MS)

    def _call(self, turn: Turn, connection: ConnectionId, call: FrameworkCall, principal: str) -> None:
        """One call of a framework."""
        cluster = self.cluster
        framework = cluster.framework_of(connection)
        if isinstance(call, calls.Subscribe):
            if framework is not None and framework.framework_id != call.info.framework_id:
                detail = ErrorDetail(ErrorReason.INVALID_ARGUMENT, "one stream, one framework", "open another stream")
                frameworks.cut_off(cluster, turn, framework, detail)
            else:
                frameworks.subscribe(cluster, turn, connection, call, principal)
            return
        if framework is None:
            if connection not in cluster.framework_connections:
                detail = ErrorDetail(
                    ErrorReason.NOT_SUBSCRIBED, "the first call must be Subscribe", "subscribe, then call"
                )
                frameworks.refuse(turn, connection, detail)
            return
        frameworks.heard(cluster, turn, framework)
        match call:
            case Accept():
                operations.accept(cluster, turn, framework, call)
            case Decline():
                offers.decline(cluster, turn, framework, call)
            case calls.Kill(task_id, grace_ms):
                task = cluster.tasks.get(TaskKey(framework.framework_id, task_id))
                if task is None:
                    status = tasks.unknown_status(turn, framework.framework_id, task_id)
                    turn.to_framework(framework, StatusUpdates((status,)))
                elif task.state.is_terminal:
                    tasks.reconcile(cluster, turn, framework, (task_id,))
                else:
                    tasks.kill(cluster, turn, task, StatusReason.KILLED_BY_FRAMEWORK, grace_ms)
            case calls.Restart(task_id, grace_ms):
                task = cluster.tasks.get(TaskKey(framework.framework_id, task_id))
                if task is not None:
                    tasks.restart(cluster, turn, task, "its framework asked for it", grace_ms)
            case ExecutorMessage():
                executors.message_to_executor(cluster, turn, framework, call)
            case calls.Acknowledge(updates):
                tasks.acknowledge(cluster, turn, framework, updates)
            case calls.Reconcile(task_ids):
                tasks.reconcile(cluster, turn, framework, task_ids)
            case calls.Suppress(roles):
                frameworks.suppress(cluster, turn, framework, roles)
            case calls.Revive(roles):
                frameworks.revive(cluster, turn, framework, roles)
            case calls.UpdateDemand(demand) | calls.FrameworkHeartbeat(demand):
                problem = frameworks.demand_problem(demand, framework.info.roles)
                if problem is not None:
                    frameworks.cut_off(cluster, turn, framework, problem)
                else:
                    frameworks.set_demand(cluster, framework, demand)
            case calls.Teardown():
                frameworks.remove(cluster, turn, framework, "torn down by itself")
            case calls.LookupCalls(call_ids, operation_ids):
                found = operations.lookup(cluster, framework.framework_id, call_ids, operation_ids)
                turn.effects.append(SendToFramework(connection, LookupResults(tuple(found))))
            case calls.UpdateFramework():
                frameworks.update(cluster, turn, framework, call, principal)
            case RequestGang():
                gangs.request(cluster, turn, framework, call)
            case CancelGang(gang_id):
                gangs.cancel(cluster, turn, framework, gang_id)
            case _:
                assert_never(call)

    def _operate(self, turn: Turn, event: OperatorCalled) -> None:
        """One request of an operator; a repeat of one that changed something gets the first answer."""
        request = event.request
        if event.own_only:
            own = answer_own(self.cluster, turn, request, event.principal)
            turn.effects.append(Reply(event.token, own))
            return
        request_id = getattr(request, "request_id", "")
        mutating = isinstance(request, operators.MUTATING) and not getattr(request, "dry_run", False)
        if mutating and request_id and self._answers is not None:
            remembered = self.cluster.durable.requests.get(request_id)
            if remembered is not None:
                expected = type(request).__name__.replace("Request", "Response")
                if remembered[0] == expected:
                    turn.effects.append(Reply(event.token, self._answers[1](*remembered)))
                else:
                    detail = ErrorDetail(
                        ErrorReason.INVALID_ARGUMENT,
                        f"the request id {request_id!r} was used for another kind of request",
                        "choose a new id for every request, and keep it only to repeat that one",
                        "request_id",
                    )
                    turn.effects.append(Reply(event.token, detail))
                return
        answer = operators.answer(self.cluster, turn, request, event.principal, self._version, self.address)
        if mutating and request_id and self._answers is not None and not isinstance(answer, ErrorDetail):
            turn.persist(RequestDone(request_id, type(answer).__name__, self._answers[0](answer)))
        turn.effects.append(Reply(event.token, answer))

    def _time_passed(self, turn: Turn) -> None:
        """Everything whose time has come."""
        cluster = self.cluster
        now_ms = turn.now.monotonic_ms
        cluster.dirty |= cluster.filters.expire(now_ms)
        full = partial = False
        for kind, name in cluster.deadlines.pop_due(now_ms):
            match kind:
                case "allocate":
                    partial = True
                case "cycle":
                    full = True
                case "offers":
                    offers.expire_all(cluster, turn, name)
                case "ping":
                    agents.ping(cluster, turn, cluster.agents[AgentId(name)])
                case "unreachable" | "reregister":
                    agents.give_up(cluster, turn, cluster.agents[AgentId(name)])
                case "rule":
                    rules.expire(cluster, turn, name)
                case "heartbeat":
                    frameworks.heartbeat(cluster, turn)
                    cluster.deadlines.set(("heartbeat", ""), now_ms + frameworks.HEARTBEAT_INTERVAL_MS)
                case "preempt":
                    lending.notice_over(cluster, turn, name)
                case "gang":
                    partial |= gangs.expire(cluster, turn, int(name))
                case "gang-hold":
                    partial |= gangs.turn_over(cluster, turn, int(name))
                case _:
                    self._framework_time_passed(turn, kind, cluster.frameworks.get(FrameworkId(name)))
        if cluster.claims:
            lending.settle(cluster, turn)
        if cluster.gangs.by_key and (full or partial or cluster.is_dirty):
            gangs.serve(cluster, turn, full=full)
        if full:
            tasks.prune(cluster, turn)
            cluster.deadlines.cancel(("allocate", ""))
            self._allocate(turn, full=True)
            starvation.after_cycle(cluster, turn)
            cluster.deadlines.set(("cycle", ""), now_ms + cluster.flags.duration_ms("allocation-interval"))
        elif partial or cluster.is_dirty:
            self._allocate(turn, full=False)
        if any(gang.at_quota for gang in cluster.gangs.by_key.values()):
            # What was given to others may have fulfilled their guarantees.
            gangs.serve(cluster, turn, full=False)

    def _allocate(self, turn: Turn, *, full: bool) -> None:
        """One cycle; then see who was left without what is on loan, and lend what nobody took for whom it is kept."""
        cluster = self.cluster
        everywhere = full or cluster.all_dirty or bool(cluster.reopened) or cluster.shares.quota_moved
        lenders = set(cluster.lenders | held_while_filling(cluster))
        if not everywhere:
            lenders &= cluster.dirty
        offers.allocate(cluster, turn, full=full)
        if cluster.gangs.by_key:
            # What they left is for gangs, too.
            cluster.dirty.update(cluster.first_in_line)
        cluster.first_in_line.clear()
        if lenders:
            lending.reclaim(cluster, turn, lenders)
            offers.lend_idle(cluster, turn, lenders)

    def _framework_time_passed(self, turn: Turn, kind: str, framework: Framework | None) -> None:
        if framework is None:
            return
        match kind:
            case "failover":
                frameworks.remove(self.cluster, turn, framework, "it did not come back within its failover timeout")
            case "retry":
                tasks.retry_updates(self.cluster, turn, framework)
            case "silent":
                detail = ErrorDetail(
                    ErrorReason.SILENT,
                    "the framework was silent for too long",
                    "send a heartbeat every interval, and reconnect",
                )
                frameworks.cut_off(self.cluster, turn, framework, detail)
            case _:
                raise AssertionError(kind)
