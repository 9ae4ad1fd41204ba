"""Dynamic reservations: by operators here, by frameworks through `operations` (RSV-*, mesos.md §2.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bursar.core.device_names import VOLUMES
from bursar.core.errors import ErrorDetail, ErrorReason, InvalidText
from bursar.core.ids import AgentId
from bursar.core.messages.operator import (
    LendReservationsRequest,
    ReservationView,
    ReserveResourcesRequest,
    ReserveResourcesResponse,
    UnreserveResourcesRequest,
    UnreserveResourcesResponse,
)
from bursar.core.resources import (
    DISK,
    EMPTY,
    UNRESERVED,
    Reservation,
    ReservationType,
    ResourceRequest,
    Resources,
    Stack,
    add_holdings,
    subtract_holdings,
    sum_resources,
    to_reserved,
)
from bursar.core.role_expressions import (
    MAX_COST,
    RoleExpression,
    parse_role_expression,
    plain_holder,
    read_holder,
    role_expression,
)
from bursar.core.roles import DEFAULT_ROLE, is_strict_subrole, role_problem
from bursar.core.text import format_resources
from bursar.core.volumes import read_volume, volumes_in
from bursar.master.allocator.carve import carve
from bursar.master.bundles import let_go
from bursar.master.groups import expander, unknown_groups_problem
from bursar.master.offers import rescind
from bursar.master.quotas import reserve_problem
from bursar.master.records import LendingRecorded, ReservationsRecorded
from bursar.master.reservation_sources import Candidates, Picked, find_candidates, free_of, pick_sources
from bursar.master.state import Agent, Cluster, Turn

#: Up to this cost it is looked for whether an expression covers anything at all.
MAX_SEARCHED = 500


def read_holder_of(
    cluster: Cluster, role: str, roles: str, role_field: str = "role", roles_field: str = "roles"
) -> RoleExpression | ErrorDetail:
    """Whom resources are to be reserved to: a plain role, or an expression with groups that exist and that covers somebody."""
    if role and roles:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT, "both a role and a role expression are named", "name one of them", roles_field
        )
    if not roles:
        if problem := role_problem(role):
            return ErrorDetail(
                ErrorReason.INVALID_ARGUMENT, problem, "write a role such as research or eng/backend", role_field
            )
        if role == DEFAULT_ROLE:
            return ErrorDetail(
                ErrorReason.INVALID_ARGUMENT,
                "resources cannot be reserved to '*': unreserved resources are everybody's already",
                "name a role",
                role_field,
            )
        return role_expression(role)
    if roles.strip() == DEFAULT_ROLE:
        return read_holder_of(cluster, DEFAULT_ROLE, "", roles_field)
    try:
        expression = parse_role_expression(roles)
    except InvalidText as error:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, error.detail.message, error.detail.hint, roles_field)
    groups = cluster.holders.groups
    if unknown := unknown_groups_problem(cluster, expression.groups, roles_field):
        return unknown
    cost = expression.cost(groups)
    if cost > MAX_COST:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"the role expression would cost too much to evaluate: {cost} roles, groups and operators in all",
            f"at most {MAX_COST}: name roles above, instead of many below",
            roles_field,
        )
    if cost <= MAX_SEARCHED and expression.covers_nothing(groups):
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"the role expression {str(expression)!r} covers no role, whatever it is called",
            "look at what '&' and '!' leave, and at the members of its groups (`bursar group ls`)",
            roles_field,
        )
    return expression


def move(cluster: Cluster, agent_id: AgentId, source: Stack, target: Stack, resources: Resources) -> None:
    """Move free resources between buckets; `record` makes it last."""
    agent = cluster.agents[agent_id]
    cluster.ledger.restack(agent_id, source, target, resources)
    if len(target) > len(source):
        agent.reservations = add_holdings(agent.reservations, {target: resources})
    else:
        agent.reservations = subtract_holdings(agent.reservations, {source: resources})
    cluster.touch(agent_id)


def record(cluster: Cluster, turn: Turn, agent_id: AgentId) -> None:
    """Make an agent's reservations durable as they are now."""
    agent = cluster.agents[agent_id]
    turn.persist(ReservationsRecorded(agent_id, to_reserved(agent.reservations)))
    gone = {stack for stack in agent.lent if stack not in cluster.ledger.books[agent_id].total}
    if gone:
        agent.lent -= gone
        turn.persist(LendingRecorded(agent_id, tuple(sorted(agent.lent))))


def reserve(
    cluster: Cluster, turn: Turn, request: ReserveResourcesRequest, principal: str
) -> ReserveResourcesResponse | ErrorDetail:
    """Reserve free or offered resources, rescinding only the offers that stand in the way (RSV-3); all that is asked for, or nothing.

    Without a source they are unreserved ones; with one they come from under its reservations, which are popped down to what the
    new one may stand on (RSV-4). Which devices are kept is decided here, and without an agent also on which agents; never what a
    task holds.
    """
    expression = read_holder_of(cluster, request.role, request.roles)
    if isinstance(expression, ErrorDetail):
        return expression
    if error := request_problem(request.resources):
        return error
    labels = tuple(sorted(request.labels.items()))
    level = Reservation(ReservationType.DYNAMIC, str(expression), principal, labels)
    found = find_candidates(cluster, request.agent, request.where)
    if isinstance(found, ErrorDetail):
        return found
    routes: dict[AgentId, dict[Stack, Stack]] = {}
    problem: ErrorDetail | None = None
    for agent in found.agents:
        route = _routes(cluster, agent, request.source, level, expression)
        if isinstance(route, ErrorDetail):
            problem = route
        else:
            routes[agent.agent_id] = route
    if not routes and problem is not None:
        if problem.reason is ErrorReason.NOT_FOUND and not request.agent:
            problem = replace(problem, message=f"no agent keeps anything for {request.source}{found.that_match}")
        return problem
    picked = pick_sources(cluster, found, routes, request.resources)
    if isinstance(picked, ErrorDetail):
        return picked
    role = expression.plain
    # What is kept for an expression is charged to nobody until it is used.
    if role is not None and not request.force:
        # All sources have the same owner.
        source = picked[0].stack
        payer = plain_holder(source[-1].holder) if source else None
        going = [offer_id for pick in picked for offer_id in pick.in_the_way]
        if error := reserve_problem(cluster, role, request.resources, going, payer):
            return error
    views, rescinded = _carry_out(
        cluster, turn, picked, routes, request.dry_run, f"reserved to {level.holder}", "resources_reserved"
    )
    return ReserveResourcesResponse(views[0], views, rescinded)


def unreserve(
    cluster: Cluster, turn: Turn, request: UnreserveResourcesRequest
) -> UnreserveResourcesResponse | ErrorDetail:
    """Pop the top level of somebody's dynamic reservations; only what no task holds, and all that is asked for or nothing."""
    expression = read_unreserved_holder(request)
    if isinstance(expression, ErrorDetail):
        return expression
    if error := request_problem(request.resources):
        return error
    labels = tuple(sorted(request.labels.items()))
    found = find_candidates(cluster, request.agent, request.where)
    if isinstance(found, ErrorDetail):
        return found
    routes: dict[AgentId, dict[Stack, Stack]] = {}
    for agent in found.agents:
        stacks = [
            stack
            for stack in _stacks_of(cluster, agent, expression)
            if stack in agent.reservations and (not labels or stack[-1].labels == labels)
        ]
        if stacks:
            routes[agent.agent_id] = {stack: stack[:-1] for stack in stacks}
    if not routes:
        return _nothing_kept(cluster, found, expression)
    picked = pick_sources(cluster, found, routes, request.resources)
    if isinstance(picked, ErrorDetail):
        return _beside_volumes(cluster, picked, routes, request.resources)
    views, rescinded = _carry_out(
        cluster, turn, picked, routes, request.dry_run, f"given back by {expression}", "resources_unreserved"
    )
    return UnreserveResourcesResponse(views[0], views, rescinded)


def _beside_volumes(
    cluster: Cluster, problem: ErrorDetail, routes: Mapping[AgentId, Mapping[Stack, Stack]], request: ResourceRequest
) -> ErrorDetail:
    """What cannot be unreserved, and the volumes that take disk of it (RSV-13)."""
    stacks = [(cluster.agents[agent_id], stack) for agent_id, route in routes.items() for stack in route]
    names = [
        str(read_volume(volume.uuid))
        for agent, stack in stacks
        for volume in agent.volumes.kept.values()
        if volume.stack == stack
    ]
    if DISK not in request.scalars or not names:
        return problem
    return replace(
        problem,
        message=f"{problem.message}; volumes take disk of it: {', '.join(sorted(names))}",
        hint="destroy them first, with their data (`bursar volume destroy`), or unreserve less",
    )


def _carry_out(
    cluster: Cluster,
    turn: Turn,
    picked: Sequence[Picked],
    routes: Mapping[AgentId, Mapping[Stack, Stack]],
    dry_run: bool,
    what: str,
    kind: str,
) -> tuple[tuple[ReservationView, ...], int]:
    """Rescind and move, or only say what would be moved."""
    views = []
    rescinded = 0
    for pick in picked:
        agent, source = pick.agent, pick.stack
        target = routes[agent.agent_id][source]
        books = cluster.ledger.books[agent.agent_id]
        # What was given back is shown as the reservation that it was.
        shown = source if kind == "resources_unreserved" else target
        if dry_run:
            offers = [books.offered[offer_id].holding[source] for offer_id in pick.in_the_way]
            pool = sum_resources([free_of(cluster, agent, source), *offers])
            part = carve({source: pool}, pick.request, agent.devices)
            assert part is not None, pick
            resources = part[source]
            rescinded += len(pick.in_the_way)
        else:
            let_go(cluster, agent.agent_id)
            done = "unreserved" if kind == "resources_unreserved" else what
            why = f"resources of {agent.info.hostname} were {done}"
            rescinded += rescind(cluster, turn, pick.in_the_way, why)
            resources = _shift(cluster, turn, agent, source, target, pick.request)
            turn.publish(
                kind, f"{format_resources(resources)} of {agent.info.hostname} {what}", agent_id=agent.agent_id
            )
        views.append(_view(cluster, agent, shown, resources))
    return tuple(views), rescinded


def refine(cluster: Cluster, source: Stack, level: Reservation, expression: RoleExpression) -> Stack | ErrorDetail:
    """Where resources come to when they are re-reserved: the source popped as far as needed, and the level pushed (RSV-4, RSV-6).

    What refines is one plain role: below the plain role under it, or covered by the expression under it. Levels may be skipped.
    """
    role = expression.plain
    for depth in range(len(source), 0, -1):
        below = source[:depth]
        top = below[-1]
        if top.holder == level.holder and level.labels in ((), top.labels):
            if depth == len(source):
                return ErrorDetail(
                    ErrorReason.INVALID_ARGUMENT,
                    f"what is reserved to {top.holder} is to be reserved to it again",
                    "name another role, other labels, or no source",
                    "source",
                )
            return below
        plain = plain_holder(top.holder)
        if role is not None and (
            is_strict_subrole(role, plain) if plain is not None else cluster.holders.covers(top.holder, role)
        ):
            return (*below, level)
        if top.type is ReservationType.STATIC:
            return ErrorDetail(
                ErrorReason.INVALID_ARGUMENT,
                f"{level.holder!r} does not refine {top.holder!r}, which is reserved statically and stays",
                "name one role that it covers, or change the agent's --resources",
                "source",
            )
    return (level,)


def _routes(
    cluster: Cluster, agent: Agent, source: str, level: Reservation, expression: RoleExpression
) -> dict[Stack, Stack] | ErrorDetail:
    """From which buckets to which, the best first."""
    if not source:
        return {UNRESERVED: (level,)}
    try:
        holder = parse_role_expression(source)
    except InvalidText as error:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, error.detail.message, error.detail.hint, "source")
    stacks = _stacks_of(cluster, agent, holder)
    if not stacks:
        return ErrorDetail(
            ErrorReason.NOT_FOUND,
            f"{agent.info.hostname} keeps nothing for {holder}",
            "see `bursar reservation ls`",
            "source",
        )
    routes: dict[Stack, Stack] = {}
    problem: ErrorDetail | None = None
    for stack in stacks:
        target = refine(cluster, stack, level, expression)
        if isinstance(target, ErrorDetail):
            problem = target
        else:
            routes[stack] = target
    return routes if routes or problem is None else problem


def _stacks_of(cluster: Cluster, agent: Agent, holder: RoleExpression) -> list[Stack]:
    """The buckets of an agent whose owner is the holder."""
    total = cluster.ledger.books[agent.agent_id].total
    return [stack for stack in sorted(total) if stack and read_holder(stack[-1].holder) == holder]


def _nothing_kept(cluster: Cluster, found: Candidates, expression: RoleExpression) -> ErrorDetail:
    static = any(
        stack[-1].type is ReservationType.STATIC
        for agent in found.agents
        for stack in _stacks_of(cluster, agent, expression)
    )
    who = found.agents[0].info.hostname if found.named else f"no agent{found.that_match}"
    return ErrorDetail(
        ErrorReason.NOT_FOUND,
        f"{who} keeps {'nothing' if found.named else 'anything'} for {expression} that could be unreserved",
        "this reservation is static: change the agent's --resources and restart it"
        if static
        else "see `bursar reservation ls`",
        "role",
    )


def _shift(
    cluster: Cluster, turn: Turn, agent: Agent, source: Stack, target: Stack, request: ResourceRequest
) -> Resources:
    """Move what is asked for, which is free by now, from one bucket to another, level by level; return it."""
    free = cluster.ledger.books[agent.agent_id].free.get(source, EMPTY)
    part = carve({source: free}, request, agent.devices)
    assert part is not None and source in part, request
    while source != target[: len(source)]:
        move(cluster, agent.agent_id, source, source[:-1], part[source])
        part = {source[:-1]: part[source]}
        source = source[:-1]
    if source != target:
        move(cluster, agent.agent_id, source, target, part[source])
    record(cluster, turn, agent.agent_id)
    return part[source]


def read_unreserved_holder(
    request: UnreserveResourcesRequest | LendReservationsRequest,
) -> RoleExpression | ErrorDetail:
    """Whose reservation is meant: also one whose groups do not exist any more."""
    if bool(request.role) == bool(request.roles):
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            "a reservation is named by a role, or by a role expression",
            "name one of them, as `bursar reservation ls` shows it",
            "role",
        )
    if request.role:
        if problem := role_problem(request.role):
            hint = "write a role such as research or eng/backend"
            return ErrorDetail(ErrorReason.INVALID_ARGUMENT, problem, hint, "role")
        return role_expression(request.role)
    try:
        return parse_role_expression(request.roles)
    except InvalidText as error:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, error.detail.message, error.detail.hint, "roles")


def _view(cluster: Cluster, agent: Agent, stack: Stack, resources: Resources) -> ReservationView:
    covered = expander(cluster)(stack[-1].holder)
    lend = stack in agent.lent
    return ReservationView(agent.agent_id, agent.info.hostname, stack, resources, covered_roles=covered, lend=lend)


def request_problem(request: ResourceRequest, field: str = "resources") -> ErrorDetail | None:
    """Say why nobody can ask for such resources."""
    wrong = [kind for kind, amount in request.scalars.items() if amount <= 0 or kind == "gpus"]
    if request.gpus < 0:
        wrong.append("gpus")
    if wrong:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT, f"amounts must be above zero: {', '.join(wrong)}", "GPUs are whole", field
        )
    if VOLUMES in request.scalars or volumes_in(request.devices):
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            "a volume is made of reserved disk, and neither reserved nor unreserved itself",
            "see `bursar volume create` and `bursar volume destroy`",
            field,
        )
    if not request:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, "no resources are named", "name some, such as gpus:2", field)
    if len(set(request.devices)) != len(request.devices) or (request.devices and request.gpus > len(request.devices)):
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT, "the devices named are not as many as the GPUs asked for", "", field
        )
    return None
