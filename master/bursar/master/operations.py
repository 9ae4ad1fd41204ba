"""Accepts: all or nothing (design.md §7).

Everything is planned first (`accept_plans`); then either the whole plan is carried out, or the call is refused with a reason per operation
and the resources come back, damped.
"""

from __future__ import annotations

from dataclasses import replace

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, FrameworkId, Generation, OfferId
from bursar.core.messages.gangs import GangState
from bursar.core.messages.offers import Accept, CallResult, OperationResult
from bursar.core.resources import EMPTY, Holding, to_holding, to_reserved
from bursar.core.tasks import AssignedTask, TaskSpec
from bursar.master import gangs, hoarding, lending, reservations, volumes
from bursar.master.accept_plans import AcceptPlan, Create, Destroy, Restack, Start, limit_problem, plan_accept
from bursar.master.allocator.demand import shape_of_task
from bursar.master.allocator.lending import is_of_hold
from bursar.master.bundles import Gang, bundles_among, end_bundles, whole_bundles
from bursar.master.offers import damp, damp_all, end_offers, refuse_until_ms
from bursar.master.records import CallDone, TaskRecorded
from bursar.master.state import Cluster, Framework, OutstandingOffer, Task, Turn
from bursar.master.tasks import add_task, next_generation, send_launches


def accept(cluster: Cluster, turn: Turn, framework: Framework, call: Accept) -> None:
    """Carry out an accept, or refuse it; answer exactly once."""
    cluster.filters.answered(framework.framework_id)
    known = cluster.durable.calls.get((framework.framework_id, call.call_id))
    if known is not None:
        turn.to_framework(framework, known)
        return
    until_ms = refuse_until_ms(cluster, turn, call.filters)
    refusal = _offers_problem(cluster, framework, call)
    if refusal is not None:
        _give_back(cluster, turn, framework, call.offer_ids, until_ms)
        _refuse(cluster, turn, framework, call, refusal, [])
        return
    if gang := gangs.gang_of(cluster, call.offer_ids):
        # Whoever names one of them means all.
        call = replace(call, offer_ids=gang.offer_ids)
    plan = plan_accept(cluster, framework, call, turn.now.wall_ms)
    if plan.failed and not call.partial:
        _give_back(cluster, turn, framework, call.offer_ids, until_ms)
        first = next(result.error for result in plan.results if result.error)
        _refuse(cluster, turn, framework, call, first, plan.results)
        return
    if cluster.shares.quota_kinds and (passed := limit_problem(cluster, plan)) is not None:
        _give_back(cluster, turn, framework, call.offer_ids, until_ms)
        _refuse(cluster, turn, framework, call, passed, [])
        return
    _carry_out(cluster, turn, framework, call, plan, until_ms, gang)


def _offers_problem(cluster: Cluster, framework: Framework, call: Accept) -> ErrorDetail | None:
    """Say why the set of offers cannot be accepted."""
    if not call.call_id:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, "an accept needs a call_id", "choose one per call", "call_id")
    if not call.offer_ids:
        return ErrorDetail(ErrorReason.INVALID_OFFERS, "an accept names no offer", "name at least one", "offer_ids")
    if len(set(call.offer_ids)) != len(call.offer_ids):
        return ErrorDetail(ErrorReason.INVALID_OFFERS, "an offer is named twice", "name each offer once", "offer_ids")
    void = [offer_id for offer_id in call.offer_ids if offer_id not in framework.offers]
    if void:
        return ErrorDetail(
            ErrorReason.INVALID_OFFERS,
            f"not outstanding for this framework: {', '.join(map(str, void[:5]))}",
            "they expired, were rescinded, were used before or belong to somebody else; wait for new offers",
            "offer_ids",
        )
    if len({cluster.offers[offer_id].offer.role for offer_id in call.offer_ids}) > 1:
        return ErrorDetail(
            ErrorReason.INVALID_OFFERS,
            "the offers are of several roles",
            "accept each role's offers by themselves",
            "offer_ids",
        )
    if len({cluster.offers[offer_id].offer.revocable for offer_id in call.offer_ids}) > 1:
        return ErrorDetail(
            ErrorReason.INVALID_OFFERS,
            "some of the offers are revocable, others are not",
            "accept the revocable ones by themselves",
            "offer_ids",
        )
    offers = [cluster.offers[offer_id].offer for offer_id in call.offer_ids]
    lent = {is_of_hold(to_holding(offer.resources)) for offer in offers if offer.revocable}
    if len(lent) > 1:
        return ErrorDetail(
            ErrorReason.INVALID_OFFERS,
            "some of the offers are of what is reserved and lent, others of what is held for a gang and lent",
            "accept each kind by itself: those with a reserved part, and those without",
            "offer_ids",
        )
    bundles = {cluster.offers[offer_id].offer.bundle_id for offer_id in call.offer_ids}
    if bundles != {""} and (len(bundles) > 1 or call.partial):
        return ErrorDetail(
            ErrorReason.INVALID_OFFERS,
            "a bundle cannot be accepted in part"
            if call.partial
            else "a bundle cannot be accepted together with other offers",
            "accept it by itself, without `partial`; the other offers with another call",
            "offer_ids",
        )
    return None


def _carry_out(
    cluster: Cluster, turn: Turn, framework: Framework, call: Accept, plan: AcceptPlan, until_ms: int, gang: Gang | None
) -> None:
    all_ended = end_offers(cluster, call.offer_ids)
    offers = [ended.offer for ended, _ in all_ended]
    launched: dict[AgentId, list[AssignedTask]] = {}
    generations: dict[AgentId, tuple[Generation, Generation]] = {}
    changed: set[AgentId] = set()
    for step in plan.steps:
        match step:
            case Restack(agent_id, source, target, resources):
                reservations.move(cluster, agent_id, source, target, resources)
                changed.add(agent_id)
                if step.lend:
                    agent = cluster.agents[agent_id]
                    lending.set_lent(cluster, turn, agent, agent.lent | {target})
            case Create(agent_id, volume):
                volumes.keep(cluster, turn, cluster.agents[agent_id], volume)
            case Destroy(agent_id, uuid):
                volumes.give_up(cluster, turn, cluster.agents[agent_id], uuid)
            case Start(agent_id, spec, holding, operation_id):
                # Whoever uses nothing of what is lent has nothing to give back.
                revocable = plan.revocable and (plan.of_hold or not is_of_hold(holding))
                if agent_id not in generations:
                    generations[agent_id] = next_generation(cluster.agents[agent_id], cluster.term)
                assigned = AssignedTask(
                    framework.framework_id,
                    plan.role,
                    spec,
                    to_reserved(holding),
                    turn.now.wall_ms,
                    revocable,
                    generations[agent_id][1],
                )
                task = Task(agent_id, assigned, call_id=call.call_id, operation_id=operation_id)
                add_task(cluster, task, held=True)
                turn.persist(TaskRecorded(agent_id, assigned, call.call_id, operation_id))
                turn.publish(
                    "task_launched",
                    f"launched on {cluster.agents[agent_id].info.hostname}",
                    agent_id=agent_id,
                    framework_id=framework.framework_id,
                    task_id=spec.task_id,
                )
                launched.setdefault(agent_id, []).append(assigned)
                if gang is None:
                    _fulfil_demand(framework, plan.role, spec)
                    cluster.reopened.add(framework.framework_id)
                cluster.counters.tasks_launched += 1
    for agent_id in sorted(changed):
        reservations.record(cluster, turn, agent_id)
    untouched = _note_use(cluster, turn, plan, all_ended, until_ms)
    for agent_id, left in plan.remaining.items():
        offered = plan.offered[agent_id]
        # What the call itself made (a fresh reservation) was never refused (mesos.md §2.1).
        refused = {
            stack: common for stack, part in left.items() if (common := part.intersection(offered.get(stack, EMPTY)))
        }
        of_agent = next(offer for offer in offers if offer.agent_id == agent_id)
        damp(cluster, of_agent, refused, untouched.get(agent_id, until_ms))
    result = CallResult(call.call_id, operations=tuple(plan.results))
    turn.persist(CallDone(framework.framework_id, result))
    turn.to_framework(framework, result)
    for agent_id, tasks in launched.items():
        send_launches(turn, cluster.agents[agent_id], generations[agent_id], tasks)
    cluster.counters.offers_accepted += len(offers)
    if gang is not None:
        gangs.taken(cluster, gang, [step.spec.task_id for step in plan.steps if isinstance(step, Start)])


def _note_use(
    cluster: Cluster, turn: Turn, plan: AcceptPlan, all_ended: list[tuple[OutstandingOffer, Holding]], until_ms: int
) -> dict[AgentId, int]:
    """Which of the offers were used; return when the filters end on agents of which nothing was: these were declined."""
    used = {step.agent_id for step in plan.steps}
    untouched: dict[AgentId, int] = {}
    for ended, holding in all_ended:
        agent_id = ended.offer.agent_id
        if agent_id in used:
            hoarding.used(cluster, ended)
        else:
            framework = cluster.frameworks[ended.offer.framework_id]
            (end_ms,) = hoarding.declined_all(cluster, turn, framework, [(ended, holding)], until_ms)
            untouched[agent_id] = max(end_ms, untouched.get(agent_id, 0))
    return untouched


def _fulfil_demand(framework: Framework, role: str, spec: TaskSpec) -> None:
    if framework.demand.version:
        index = shape_of_task(framework.demand, framework.wanted, role, spec.resources)
        if index is not None:
            framework.wanted[index] -= 1


def _give_back(
    cluster: Cluster, turn: Turn, framework: Framework, offer_ids: tuple[OfferId, ...], until_ms: int
) -> None:
    mine = [offer_id for offer_id in dict.fromkeys(offer_ids) if offer_id in framework.offers]
    mine, bundles = whole_bundles(cluster, mine), bundles_among(cluster, mine)
    damp_all(cluster, framework, end_offers(cluster, mine), until_ms)
    detail = ErrorDetail(
        ErrorReason.CALL_REFUSED, "the accept of its bundle was refused", "correct the call, and ask again"
    )
    end_bundles(cluster, turn, bundles, GangState.CANCELLED, detail)


def _refuse(
    cluster: Cluster,
    turn: Turn,
    framework: Framework,
    call: Accept,
    error: ErrorDetail | None,
    results: list[OperationResult],
) -> None:
    """Nothing was done: every operation says why."""
    assert error is not None
    by_index = {index: result.error for index, result in enumerate(results)}
    skipped = ErrorDetail(
        ErrorReason.CALL_REFUSED, "not done: the whole call was refused", "correct the call and repeat it"
    )
    operations = tuple(
        OperationResult(operation.operation_id, by_index.get(index) or (skipped if results else error))
        for index, operation in enumerate(call.operations)
    )
    cluster.counters.calls_refused += 1
    turn.to_framework(framework, CallResult(call.call_id, error=error, operations=operations))


def lookup(
    cluster: Cluster, framework_id: FrameworkId, call_ids: tuple[str, ...], operation_ids: tuple[str, ...]
) -> list[CallResult]:
    """What became of calls: unknown means never happened, never will."""
    calls = cluster.durable.calls
    found = [calls.get((framework_id, call_id), CallResult(call_id, unknown=True)) for call_id in call_ids]
    by_operation = {
        operation.operation_id: result
        for result in (cluster.durable.calls_of(framework_id) if operation_ids else ())
        for operation in result.operations
    }
    for operation_id in operation_ids:
        unknown = CallResult("", unknown=True, operations=(OperationResult(operation_id),))
        found.append(by_operation.get(operation_id, unknown))
    return found
