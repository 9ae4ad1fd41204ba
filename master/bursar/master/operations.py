"""What an accept may contain, and carrying it out: all or nothing (design.md §7).

Everything is planned against the offered resources first, without changing anything; then either the whole plan is carried out, or the
call is refused with a reason per operation and the resources come back, damped.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, Generation, OfferId
from bursar.core.messages.framework import RESERVATION_REFINEMENT
from bursar.core.messages.gangs import GangState
from bursar.core.messages.offers import (
    Accept,
    CallResult,
    CreateVolume,
    DestroyVolume,
    Launch,
    OperationResult,
    Reserve,
    Unreserve,
)
from bursar.core.resources import (
    EMPTY,
    Holding,
    Reservation,
    ReservationType,
    ResourceRequest,
    Resources,
    Stack,
    add_holdings,
    holding_total,
    stack_problem,
    subtract_holdings,
    to_holding,
    to_reserved,
)
from bursar.core.service_ports import unasked_port, with_host_ports
from bursar.core.surroundings import process_problem, volumes_named
from bursar.core.tasks import AssignedTask, TaskSpec, spec_problem
from bursar.core.text import format_shortfall
from bursar.core.volumes import read_volume, volumes_in
from bursar.master import gangs, hoarding, lending, reservations, volumes
from bursar.master.allocator.carve import carve
from bursar.master.allocator.demand import shape_of_task
from bursar.master.allocator.held_back import is_loose, loose_amounts
from bursar.master.allocator.lending import is_of_hold
from bursar.master.bundles import Gang, bundles_among, end_bundles, whole_bundles
from bursar.master.executors import executor_refusal
from bursar.master.ledger import TaskKey, without_views
from bursar.master.offers import damp, damp_all, end_offers, refuse_until_ms
from bursar.master.ports import kept_by_groups, whose_port, without_ports
from bursar.master.quotas import accept_problem
from bursar.master.records import CallDone, KeptVolume, TaskRecorded
from bursar.master.state import Cluster, Framework, OutstandingOffer, Task, Turn
from bursar.master.task_groups import completed, group_refusal
from bursar.master.tasks import add_task, next_generation, send_launches
from bursar.master.versions import version_refusal
from bursar.master.volumes import picked as picked_volumes


@dataclass(slots=True)
class _Restack:
    """Reserve or unreserve."""

    agent_id: AgentId
    source: Stack
    target: Stack
    resources: Resources
    lend: bool = False


@dataclass(slots=True)
class _Start:
    """Launch one task."""

    agent_id: AgentId
    spec: TaskSpec
    holding: dict[Stack, Resources]
    operation_id: str


@dataclass(slots=True)
class _Create:
    """Make a volume."""

    agent_id: AgentId
    volume: KeptVolume


@dataclass(slots=True)
class _Destroy:
    """End a volume."""

    agent_id: AgentId
    uuid: DeviceUuid


@dataclass(slots=True)
class _Plan:
    """What an accept comes to; `remaining` is what is left of the offered, by agent."""

    role: str
    offered: dict[AgentId, dict[Stack, Resources]]
    remaining: dict[AgentId, dict[Stack, Resources]]
    steps: list[_Restack | _Start | _Create | _Destroy] = field(default_factory=list)
    results: list[OperationResult] = field(default_factory=list)
    task_ids: set[str] = field(default_factory=set)
    #: Names of task groups.
    groups: set[str] = field(default_factory=set)
    #: The offers are of what is lent; and all of it was held for a gang.
    revocable: bool = False
    of_hold: bool = False
    #: The amounts that were moved into a bucket of an agent.
    paid: dict[tuple[AgentId, Stack], Resources] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether an operation was refused."""
        return any(result.error for result in self.results)


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
    plan = _plan(cluster, framework, call, turn.now.wall_ms)
    if plan.failed and not call.partial:
        _give_back(cluster, turn, framework, call.offer_ids, until_ms)
        first = next(result.error for result in plan.results if result.error)
        _refuse(cluster, turn, framework, call, first, plan.results)
        return
    if cluster.shares.quota_kinds and (passed := _limit_problem(cluster, plan)) is not None:
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


def _limit_problem(cluster: Cluster, plan: _Plan) -> ErrorDetail | None:
    """Say which limit would be passed by what the operations use; what is left over is given back."""
    offered: Counter[str] = Counter()
    for holding in plan.offered.values():
        offered.update(_counted(plan, holding))
    used: Counter[str] = Counter()
    for step in plan.steps:
        match step:
            case _Restack(_, source, target, resources):
                # A reservation counts for as long as it is there.
                if is_loose(source) and not is_loose(target):
                    used.update(resources.amounts())
                elif is_loose(target) and not is_loose(source):
                    used.subtract(resources.amounts())
            case _Start(_, _, holding):
                used.update(_counted(plan, holding))
    return accept_problem(cluster, plan.role, offered, used)


def _counted(plan: _Plan, holding: Holding) -> dict[str, int]:
    """What counts of a holding within limits: nothing that is lent."""
    if plan.of_hold:
        return {}
    if plan.revocable:
        holding = {stack: part for stack, part in holding.items() if not stack}
    return loose_amounts(holding)


def _plan(cluster: Cluster, framework: Framework, call: Accept, at_ms: int) -> _Plan:
    offers = [cluster.offers[offer_id].offer for offer_id in call.offer_ids]
    offered: dict[AgentId, dict[Stack, Resources]] = {}
    for offer in offers:
        offered[offer.agent_id] = add_holdings(offered.get(offer.agent_id, {}), to_holding(offer.resources))
    plan = _Plan(offers[0].role, offered, dict(offered), revocable=offers[0].revocable)
    plan.of_hold = plan.revocable and all(is_of_hold(holding) for holding in offered.values())
    for index, operation in enumerate(call.operations):
        path = f"operations[{index}]"
        error: ErrorDetail | None
        match operation.operation:
            case Reserve() | Unreserve() | CreateVolume() | DestroyVolume() if plan.revocable:
                error = ErrorDetail(
                    ErrorReason.INVALID_ARGUMENT,
                    "what is lent can be neither reserved nor unreserved, and no volume made of it",
                    "launch tasks on it, or use offers that are not revocable",
                    path,
                )
            case Launch() as launch:
                error = _plan_launch(cluster, framework, plan, launch, operation.operation_id, path)
            case Reserve() as reserve:
                error = _plan_reserve(cluster, framework, plan, reserve, path)
            case Unreserve() as unreserve:
                error = _plan_unreserve(cluster, plan, unreserve, path)
            case CreateVolume() as create:
                error = _plan_create(cluster, framework, plan, create, at_ms, f"{path}.create_volume")
            case DestroyVolume() as destroy:
                error = _plan_destroy(plan, destroy, f"{path}.destroy_volume")
            case _:
                error = ErrorDetail(
                    ErrorReason.UNSUPPORTED,
                    "this master does not know the operation",
                    "use launch, reserve, unreserve, create_volume or destroy_volume",
                    path,
                )
        plan.results.append(OperationResult(operation.operation_id, error))
    return plan


def _plan_launch(
    cluster: Cluster, framework: Framework, plan: _Plan, launch: Launch, operation_id: str, path: str
) -> ErrorDetail | None:
    """All tasks of one launch, or none."""
    remaining = dict(plan.remaining)
    steps: list[_Start] = []
    ids: set[str] = set()
    specs = completed(launch)
    for index, spec in enumerate(specs):
        field_path = f"{path}.launch.tasks[{index}]"
        agent_id = spec.agent_id or (next(iter(remaining)) if len(remaining) == 1 else AgentId(""))
        error = _task_problem(cluster, framework, plan, spec, agent_id, remaining, ids, field_path)
        if error is not None:
            return error
        disks = picked_volumes(remaining[agent_id], volumes_named(spec.volumes))
        if isinstance(disks, str):
            return ErrorDetail(
                ErrorReason.TASK_INVALID,
                f"task {spec.task_id!r} mounts volume {disks!r}, which the offers do not hold (any more)",
                "create it, or wait for an offer that holds it; a volume is one task's at a time",
                f"{field_path}.volumes",
            )
        remaining[agent_id] = subtract_holdings(remaining[agent_id], disks)
        wanted = beside_volumes(spec.resources, disks)
        wants_ports = spec.resources.ports or spec.resources.port_count
        kept = kept_by_groups(cluster, agent_id) if wants_ports else {}
        part = carve(without_ports(remaining[agent_id], kept), wanted, cluster.agents[agent_id].devices)
        if part is None:
            launched = [step for step in (*plan.steps, *steps) if isinstance(step, _Start)]
            here = {step.spec.task_id: step.holding for step in launched if step.agent_id == agent_id}
            if taken := whose_port(cluster, spec, agent_id, remaining[agent_id], here):
                return ErrorDetail(
                    ErrorReason.TASK_INVALID,
                    taken,
                    "name another host port, or none: then any of the offer is taken",
                    f"{field_path}.service_ports",
                )
            there = holding_total(remaining[agent_id])
            missing = format_shortfall(wanted, there) or "the devices asked for"
            return ErrorDetail(
                ErrorReason.TASK_INVALID,
                f"task {spec.task_id!r} asks for more than the offers have left: {missing}",
                "launch fewer or smaller tasks on these offers",
                f"{field_path}.resources",
            )
        remaining[agent_id] = without_views(subtract_holdings(remaining[agent_id], part), part)
        if disks:
            part = add_holdings(part, disks)
        if spec.service_ports:
            granted = holding_total(part).ports
            services = with_host_ports(spec.service_ports, spec.resources.ports, granted)
            spec = replace(spec, service_ports=services)
        steps.append(_Start(agent_id, spec, part, operation_id))
        ids.add(spec.task_id)
    if error := group_refusal(cluster, specs, tuple(step.agent_id for step in steps), plan.groups, path):
        return error
    plan.remaining = remaining
    plan.steps += steps
    plan.task_ids |= ids
    plan.groups |= {spec.task_group.name for spec in specs if spec.task_group is not None}
    return None


def beside_volumes(request: ResourceRequest, disks: Holding) -> ResourceRequest:
    """What a task asks for beside the volumes that it mounts, which it may have named, too."""
    if not disks:
        return request
    given = holding_total(disks).devices
    return replace(request, devices=tuple(uuid for uuid in request.devices if uuid not in given))


def _task_problem(
    cluster: Cluster,
    framework: Framework,
    plan: _Plan,
    spec: TaskSpec,
    agent_id: AgentId,
    remaining: dict[AgentId, dict[Stack, Resources]],
    ids: set[str],
    path: str,
) -> ErrorDetail | None:
    if problem := unasked_port(spec.service_ports, spec.resources.ports) or spec_problem(spec):
        where, what = problem
        return ErrorDetail(ErrorReason.TASK_INVALID, what, "correct the task", f"{path}.{where}")
    if agent_id not in remaining:
        named = spec.agent_id or "none"
        return ErrorDetail(
            ErrorReason.TASK_INVALID,
            f"task {spec.task_id!r} names agent {named}, but the offers are of {', '.join(sorted(remaining))}",
            "name the agent of one of the offers",
            f"{path}.agent_id",
        )
    taken = spec.task_id in ids or spec.task_id in plan.task_ids
    if taken or TaskKey(framework.framework_id, spec.task_id) in cluster.tasks:
        return ErrorDetail(
            ErrorReason.TASK_ID_IN_USE,
            f"this framework had a task {spec.task_id!r} already",
            "choose another task id; ids are never used twice",
            f"{path}.task_id",
        )
    info = cluster.agents[agent_id].info
    if spec.image and info.runtime == "process":
        return ErrorDetail(
            ErrorReason.TASK_INVALID,
            f"task {spec.task_id!r} has an image, but agent {info.hostname} runs plain processes",
            "accept offers of agents whose runtime is docker, or leave the image out",
            f"{path}.image",
        )
    if info.runtime == "process" and (problem := process_problem(spec.container, spec.volumes)):
        return ErrorDetail(
            ErrorReason.TASK_INVALID,
            f"task {spec.task_id!r} does not fit agent {info.hostname}: {problem[1]}",
            "accept offers of agents whose runtime is docker, or leave it out",
            f"{path}.{problem[0]}",
        )
    if not spec.image and not info.runs_without_image and not spec.runs_on:
        return ErrorDetail(
            ErrorReason.TASK_INVALID,
            f"task {spec.task_id!r} has no image, and agent {info.hostname} has no default image",
            "name an image, or start the agent with --default-image",
            f"{path}.image",
        )
    return version_refusal(info, spec, path) or executor_refusal(
        cluster, framework.framework_id, spec, agent_id, f"{path}.executor"
    )


def _plan_reserve(
    cluster: Cluster, framework: Framework, plan: _Plan, reserve: Reserve, path: str
) -> ErrorDetail | None:
    if reserve.agent_id not in plan.remaining:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT, "the offers are of other agents", "", f"{path}.reserve.agent_id"
        )
    if reserve.role != plan.role:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"resources offered to {plan.role!r} cannot be reserved to {reserve.role!r}",
            "reserve to the role of the offers",
            f"{path}.reserve.role",
        )
    expression = reservations.read_holder_of(cluster, reserve.role, "", f"{path}.reserve.role")
    if isinstance(expression, ErrorDetail):
        return expression
    level = Reservation(
        ReservationType.DYNAMIC, str(expression), framework.info.principal, tuple(sorted(reserve.labels.items()))
    )
    if error := reservations.request_problem(reserve.resources, f"{path}.reserve.resources"):
        return error
    source = reserve.onto
    target = (*source, level)
    if source and RESERVATION_REFINEMENT not in framework.info.capabilities:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"only a framework with the capability {RESERVATION_REFINEMENT} may refine a reservation",
            "subscribe with the capability: refined resources are not offered without it",
            f"{path}.reserve.onto",
        )
    # What is offered is covered by its owner today; one level is pushed, on that (RSV-6).
    if problem := stack_problem(target):
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, problem, "see docs/reservations.md", f"{path}.reserve.onto")
    remaining = plan.remaining[reserve.agent_id]
    devices = cluster.agents[reserve.agent_id].devices
    part = carve({source: remaining.get(source, EMPTY)}, reserve.resources, devices)
    if part is None:
        what = f"resources reserved to {source[-1].holder}" if source else "unreserved resources"
        return ErrorDetail(
            ErrorReason.INSUFFICIENT_RESOURCES,
            f"the offers have less {what} than are to be reserved",
            "reserve less",
            f"{path}.reserve.resources",
        )
    resources = part[source]
    moved = without_views(subtract_holdings(remaining, {source: resources}), {source: resources})
    plan.remaining[reserve.agent_id] = _arrived(cluster, plan, reserve.agent_id, moved, target, resources)
    plan.steps.append(_Restack(reserve.agent_id, source, target, resources, reserve.lend))
    return None


def _plan_create(
    cluster: Cluster, framework: Framework, plan: _Plan, create: CreateVolume, at_ms: int, path: str
) -> ErrorDetail | None:
    volume = volumes.planned(cluster, framework.info.principal, at_ms, plan.remaining, create, path)
    if isinstance(volume, ErrorDetail):
        return volume
    key, agent_id = read_volume(volume.uuid).key, create.agent_id
    for step in plan.steps:
        if isinstance(step, _Create) and step.agent_id == agent_id and read_volume(step.volume.uuid).key == key:
            return ErrorDetail(
                ErrorReason.INVALID_ARGUMENT,
                f"volume {create.volume_id!r} is to be made twice",
                "choose another id",
                f"{path}.volume_id",
            )
    plan.remaining[agent_id] = volumes.replaced(plan.remaining[agent_id], volume)
    plan.steps.append(_Create(agent_id, volume))
    return None


def _plan_destroy(plan: _Plan, destroy: DestroyVolume, path: str) -> ErrorDetail | None:
    if any(isinstance(step, _Create) and step.volume.uuid == destroy.uuid for step in plan.steps):
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            "a volume is to be made and destroyed at once",
            "leave both out",
            f"{path}.uuid",
        )
    left = volumes.given_back(plan.remaining.get(destroy.agent_id, {}), destroy, path)
    if isinstance(left, ErrorDetail):
        return left
    plan.remaining[destroy.agent_id] = left
    plan.steps.append(_Destroy(destroy.agent_id, destroy.uuid))
    return None


def _plan_unreserve(cluster: Cluster, plan: _Plan, unreserve: Unreserve, path: str) -> ErrorDetail | None:
    stack, resources = unreserve.resources.stack, unreserve.resources.resources
    remaining = plan.remaining.get(unreserve.agent_id, {})
    if not stack or stack[-1].type is not ReservationType.DYNAMIC:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            "only a dynamic reservation can be undone",
            "static ones are changed with the agent's --resources",
            f"{path}.unreserve.resources",
        )
    target = stack[:-1]
    if named := volumes_in(resources.devices):
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"a volume cannot be unreserved: {', '.join(str(read_volume(uuid)) for uuid in named)}",
            "destroy it first: then it is disk again",
            f"{path}.unreserve.resources",
        )
    if not remaining.get(stack, EMPTY).contains(resources) or not resources:
        return ErrorDetail(
            ErrorReason.INSUFFICIENT_RESOURCES,
            "the offers do not contain these reserved resources",
            "unreserve what was offered",
            f"{path}.unreserve.resources",
        )
    moved = subtract_holdings(remaining, {stack: resources})
    plan.remaining[unreserve.agent_id] = _arrived(cluster, plan, unreserve.agent_id, moved, target, resources)
    plan.steps.append(_Restack(unreserve.agent_id, stack, target, resources))
    return None


def _arrived(
    cluster: Cluster, plan: _Plan, agent_id: AgentId, moved: dict[Stack, Resources], target: Stack, resources: Resources
) -> dict[Stack, Resources]:
    """What is left of the offered once something of it is in another bucket: there it pays first for what tasks hold beyond the total."""
    owed = cluster.ledger.books[agent_id].excess().get(target, EMPTY)
    usable = resources.minus_saturating(owed.minus_saturating(plan.paid.get((agent_id, target), EMPTY)))
    plan.paid[agent_id, target] = plan.paid.get((agent_id, target), EMPTY) + Resources(resources.scalars)
    return add_holdings(moved, {target: usable}) if usable else moved


def _carry_out(
    cluster: Cluster, turn: Turn, framework: Framework, call: Accept, plan: _Plan, until_ms: int, gang: Gang | None
) -> None:
    all_ended = end_offers(cluster, call.offer_ids)
    offers = [ended.offer for ended, _ in all_ended]
    launched: dict[AgentId, list[AssignedTask]] = {}
    generations: dict[AgentId, tuple[Generation, Generation]] = {}
    changed: set[AgentId] = set()
    for step in plan.steps:
        match step:
            case _Restack(agent_id, source, target, resources):
                reservations.move(cluster, agent_id, source, target, resources)
                changed.add(agent_id)
                if step.lend:
                    agent = cluster.agents[agent_id]
                    lending.set_lent(cluster, turn, agent, agent.lent | {target})
            case _Create(agent_id, volume):
                volumes.keep(cluster, turn, cluster.agents[agent_id], volume)
            case _Destroy(agent_id, uuid):
                volumes.give_up(cluster, turn, cluster.agents[agent_id], uuid)
            case _Start(agent_id, spec, holding, operation_id):
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
        gangs.taken(cluster, gang, [step.spec.task_id for step in plan.steps if isinstance(step, _Start)])


def _note_use(
    cluster: Cluster, turn: Turn, plan: _Plan, all_ended: list[tuple[OutstandingOffer, Holding]], until_ms: int
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
