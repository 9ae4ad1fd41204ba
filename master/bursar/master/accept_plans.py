"""What an accept comes to: each operation planned against what was offered, without changing anything (design.md §7)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.messages.framework import RESERVATION_REFINEMENT
from bursar.core.messages.offers import Accept, CreateVolume, DestroyVolume, Launch, OperationResult, Reserve, Unreserve
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
)
from bursar.core.service_ports import unasked_port, with_host_ports
from bursar.core.surroundings import process_problem, volumes_named
from bursar.core.tasks import TaskSpec, spec_problem
from bursar.core.text import format_shortfall
from bursar.core.volumes import read_volume, volumes_in
from bursar.master import reservations, volumes
from bursar.master.allocator.carve import carve
from bursar.master.allocator.held_back import is_loose, loose_amounts
from bursar.master.allocator.lending import is_of_hold
from bursar.master.executors import executor_refusal
from bursar.master.ledger import TaskKey, without_views
from bursar.master.ports import kept_by_groups, whose_port, without_ports
from bursar.master.quotas import accept_problem
from bursar.master.records import KeptVolume
from bursar.master.state import Cluster, Framework
from bursar.master.task_groups import completed, group_refusal
from bursar.master.versions import version_refusal
from bursar.master.volumes import picked as picked_volumes


@dataclass(slots=True)
class Restack:
    """Reserve or unreserve."""

    agent_id: AgentId
    source: Stack
    target: Stack
    resources: Resources
    lend: bool = False


@dataclass(slots=True)
class Start:
    """Launch one task."""

    agent_id: AgentId
    spec: TaskSpec
    holding: dict[Stack, Resources]
    operation_id: str


@dataclass(slots=True)
class Create:
    """Make a volume."""

    agent_id: AgentId
    volume: KeptVolume


@dataclass(slots=True)
class Destroy:
    """End a volume."""

    agent_id: AgentId
    uuid: DeviceUuid


@dataclass(slots=True)
class AcceptPlan:
    """What an accept comes to; `remaining` is what is left of the offered, by agent."""

    role: str
    offered: dict[AgentId, dict[Stack, Resources]]
    remaining: dict[AgentId, dict[Stack, Resources]]
    steps: list[Restack | Start | Create | Destroy] = field(default_factory=list)
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


def limit_problem(cluster: Cluster, plan: AcceptPlan) -> ErrorDetail | None:
    """Say which limit would be passed by what the operations use; what is left over is given back."""
    offered: Counter[str] = Counter()
    for holding in plan.offered.values():
        offered.update(_counted(plan, holding))
    used: Counter[str] = Counter()
    for step in plan.steps:
        match step:
            case Restack(_, source, target, resources):
                # A reservation counts for as long as it is there.
                if is_loose(source) and not is_loose(target):
                    used.update(resources.amounts())
                elif is_loose(target) and not is_loose(source):
                    used.subtract(resources.amounts())
            case Start(_, _, holding):
                used.update(_counted(plan, holding))
    return accept_problem(cluster, plan.role, offered, used)


def _counted(plan: AcceptPlan, holding: Holding) -> dict[str, int]:
    """What counts of a holding within limits: nothing that is lent."""
    if plan.of_hold:
        return {}
    if plan.revocable:
        holding = {stack: part for stack, part in holding.items() if not stack}
    return loose_amounts(holding)


def plan_accept(cluster: Cluster, framework: Framework, call: Accept, at_ms: int) -> AcceptPlan:
    """What the operations come to, one after the other; what was wrong with each is in its result. `at_ms`: wall time."""
    offers = [cluster.offers[offer_id].offer for offer_id in call.offer_ids]
    offered: dict[AgentId, dict[Stack, Resources]] = {}
    for offer in offers:
        offered[offer.agent_id] = add_holdings(offered.get(offer.agent_id, {}), to_holding(offer.resources))
    plan = AcceptPlan(offers[0].role, offered, dict(offered), revocable=offers[0].revocable)
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
                error = _plan_destroy(cluster, plan, destroy, f"{path}.destroy_volume")
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
    cluster: Cluster, framework: Framework, plan: AcceptPlan, launch: Launch, operation_id: str, path: str
) -> ErrorDetail | None:
    """All tasks of one launch, or none."""
    remaining = dict(plan.remaining)
    steps: list[Start] = []
    ids: set[str] = set()
    specs = completed(launch)
    for index, spec in enumerate(specs):
        field_path = f"{path}.launch.tasks[{index}]"
        agent_id = spec.agent_id or (next(iter(remaining)) if len(remaining) == 1 else AgentId(""))
        error = _task_problem(cluster, framework, plan, spec, agent_id, remaining, ids, field_path)
        if error is not None:
            return error
        disks = picked_volumes(remaining[agent_id], volumes_named(spec.volumes), spec.resources.devices)
        if isinstance(disks, str):
            return ErrorDetail(
                ErrorReason.TASK_INVALID,
                f"task {spec.task_id!r} mounts volume {disks!r}, which the offers do not hold (any more)",
                "create it, or wait for an offer that holds it; a volume is one task's at a time",
                f"{field_path}.volumes",
            )
        remaining[agent_id] = subtract_holdings(remaining[agent_id], disks)
        wanted = _beside_volumes(spec.resources, disks)
        wants_ports = spec.resources.ports or spec.resources.port_count
        kept = kept_by_groups(cluster, agent_id) if wants_ports else {}
        part = carve(without_ports(remaining[agent_id], kept), wanted, cluster.agents[agent_id].devices)
        if part is None:
            launched = [step for step in (*plan.steps, *steps) if isinstance(step, Start)]
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
        steps.append(Start(agent_id, spec, part, operation_id))
        ids.add(spec.task_id)
    if error := group_refusal(cluster, specs, tuple(step.agent_id for step in steps), plan.groups, path):
        return error
    plan.remaining = remaining
    plan.steps += steps
    plan.task_ids |= ids
    plan.groups |= {spec.task_group.name for spec in specs if spec.task_group is not None}
    return None


def _beside_volumes(request: ResourceRequest, disks: Holding) -> ResourceRequest:
    """What a task asks for beside the volumes that it mounts, which it may have named, too."""
    if not disks:
        return request
    given = holding_total(disks).devices
    return replace(request, devices=tuple(uuid for uuid in request.devices if uuid not in given))


def _task_problem(
    cluster: Cluster,
    framework: Framework,
    plan: AcceptPlan,
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
    cluster: Cluster, framework: Framework, plan: AcceptPlan, reserve: Reserve, path: str
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
    plan.steps.append(Restack(reserve.agent_id, source, target, resources, reserve.lend))
    return None


def _plan_create(
    cluster: Cluster, framework: Framework, plan: AcceptPlan, create: CreateVolume, at_ms: int, path: str
) -> ErrorDetail | None:
    volume = volumes.planned(cluster, framework.info.principal, at_ms, plan.remaining, create, path)
    if isinstance(volume, ErrorDetail):
        return volume
    key, agent_id = read_volume(volume.uuid).key, create.agent_id
    for step in plan.steps:
        if isinstance(step, Create) and step.agent_id == agent_id and read_volume(step.volume.uuid).key == key:
            return ErrorDetail(
                ErrorReason.INVALID_ARGUMENT,
                f"volume {create.volume_id!r} is to be made twice",
                "choose another id",
                f"{path}.volume_id",
            )
    plan.remaining[agent_id] = volumes.replaced(plan.remaining[agent_id], volume)
    plan.steps.append(Create(agent_id, volume))
    return None


def _plan_destroy(cluster: Cluster, plan: AcceptPlan, destroy: DestroyVolume, path: str) -> ErrorDetail | None:
    if any(isinstance(step, Create) and step.volume.uuid == destroy.uuid for step in plan.steps):
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            "a volume is to be made and destroyed at once",
            "leave both out",
            f"{path}.uuid",
        )
    remaining = plan.remaining.get(destroy.agent_id, {})
    stack = volumes.bucket_of(remaining, destroy, path)
    if isinstance(stack, ErrorDetail):
        return stack
    rest = subtract_holdings(remaining, {stack: Resources(devices=frozenset({destroy.uuid}))})
    disk = volumes.as_disk(destroy.uuid)
    plan.remaining[destroy.agent_id] = _arrived(cluster, plan, destroy.agent_id, rest, stack, disk)
    plan.steps.append(Destroy(destroy.agent_id, destroy.uuid))
    return None


def _plan_unreserve(cluster: Cluster, plan: AcceptPlan, unreserve: Unreserve, path: str) -> ErrorDetail | None:
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
    plan.steps.append(Restack(unreserve.agent_id, stack, target, resources))
    return None


def _arrived(
    cluster: Cluster,
    plan: AcceptPlan,
    agent_id: AgentId,
    moved: dict[Stack, Resources],
    target: Stack,
    resources: Resources,
) -> dict[Stack, Resources]:
    """What is left of the offered once something of it is in another bucket: there it pays first for what tasks hold beyond the total."""
    owed = cluster.ledger.books[agent_id].excess().get(target, EMPTY)
    usable = resources.minus_saturating(owed.minus_saturating(plan.paid.get((agent_id, target), EMPTY)))
    plan.paid[agent_id, target] = plan.paid.get((agent_id, target), EMPTY) + Resources(resources.scalars)
    return add_holdings(moved, {target: usable}) if usable else moved
