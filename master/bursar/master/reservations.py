"""Dynamic reservations: by operators here, by frameworks through `operations` (RSV-*, mesos.md §2.5)."""

from __future__ import annotations

from collections.abc import Iterable

from bursar.core.errors import ErrorDetail, ErrorReason, InvalidText
from bursar.core.ids import AgentId, OfferId
from bursar.core.messages.operator import (
    ReservationView,
    ReserveResourcesRequest,
    ReserveResourcesResponse,
    UnreserveResourcesRequest,
    UnreserveResourcesResponse,
)
from bursar.core.resources import (
    EMPTY,
    UNRESERVED,
    Holding,
    Reservation,
    ReservationType,
    ResourceRequest,
    Resources,
    Stack,
    add_holdings,
    intersect_ports,
    subtract_holdings,
    subtract_ports,
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
from bursar.core.text import format_request, format_resources, format_shortfall
from bursar.master.allocator.carve import carve
from bursar.master.bundles import let_go
from bursar.master.groups import expander, unknown_groups_problem
from bursar.master.ledger import Books
from bursar.master.offers import rescind
from bursar.master.quotas import reserve_problem
from bursar.master.records import ReservationsRecorded
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
    turn.persist(ReservationsRecorded(agent_id, to_reserved(cluster.agents[agent_id].reservations)))


def reserve(
    cluster: Cluster, turn: Turn, agent: Agent, request: ReserveResourcesRequest, principal: str
) -> ReserveResourcesResponse | ErrorDetail:
    """Reserve free or offered resources, rescinding only the offers that stand in the way (RSV-3).

    Without a source they are unreserved ones; with one they come from under its reservations, which are popped down to what the
    new one may stand on (RSV-4). Devices that are free are preferred to offered ones; which ones are kept is decided here, and
    never what a task holds.
    """
    expression = read_holder_of(cluster, request.role, request.roles)
    if isinstance(expression, ErrorDetail):
        return expression
    if error := request_problem(request.resources):
        return error
    labels = tuple(sorted(request.labels.items()))
    level = Reservation(ReservationType.DYNAMIC, str(expression), principal, labels)
    routes = _routes(cluster, agent, request.source, level, expression)
    if isinstance(routes, ErrorDetail):
        return routes
    let_go(cluster, agent.agent_id)
    found = _first_that_gives(cluster, agent, request.resources, list(routes))
    if isinstance(found, ErrorDetail):
        return found
    source, in_the_way = found
    target, role = routes[source], expression.plain
    # What is kept for an expression is charged to nobody until it is used.
    if role is not None and not request.force:
        payer = plain_holder(source[-1].holder) if source else None
        if error := reserve_problem(cluster, role, request.resources, in_the_way, payer):
            return error
    rescind(cluster, turn, in_the_way, f"resources of {agent.info.hostname} were reserved to {level.holder}")
    resources = _shift(cluster, turn, agent, source, target, request.resources)
    turn.publish(
        "resources_reserved",
        f"{format_resources(resources)} of {agent.info.hostname} reserved to {level.holder}",
        agent_id=agent.agent_id,
    )
    return ReserveResourcesResponse(_view(cluster, agent, target, resources))


def unreserve(
    cluster: Cluster, turn: Turn, agent: Agent, request: UnreserveResourcesRequest
) -> UnreserveResourcesResponse | ErrorDetail:
    """Pop the top level of somebody's dynamic reservations; only what no task holds."""
    expression = read_unreserved_holder(request)
    if isinstance(expression, ErrorDetail):
        return expression
    error = request_problem(request.resources)
    if error is not None:
        return error
    labels = tuple(sorted(request.labels.items()))
    stacks = [
        stack
        for stack in _stacks_of(cluster, agent, expression)
        if stack in agent.reservations and (not labels or stack[-1].labels == labels)
    ]
    if not stacks:
        return _nothing_kept(cluster, agent, expression)
    let_go(cluster, agent.agent_id)
    found = _first_that_gives(cluster, agent, request.resources, stacks)
    if isinstance(found, ErrorDetail):
        return found
    stack, in_the_way = found
    rescind(cluster, turn, in_the_way, f"resources of {agent.info.hostname} were unreserved")
    resources = _shift(cluster, turn, agent, stack, stack[:-1], request.resources)
    turn.publish(
        "resources_unreserved",
        f"{format_resources(resources)} of {agent.info.hostname} given back by {stack[-1].holder}",
        agent_id=agent.agent_id,
    )
    return UnreserveResourcesResponse(_view(cluster, agent, stack, resources))


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


def _nothing_kept(cluster: Cluster, agent: Agent, expression: RoleExpression) -> ErrorDetail:
    static = any(stack[-1].type is ReservationType.STATIC for stack in _stacks_of(cluster, agent, expression))
    return ErrorDetail(
        ErrorReason.NOT_FOUND,
        f"{agent.info.hostname} keeps nothing for {expression} that could be unreserved",
        "this reservation is static: change the agent's --resources and restart it"
        if static
        else "see `bursar reservation ls`",
        "role",
    )


def _first_that_gives(
    cluster: Cluster, agent: Agent, request: ResourceRequest, stacks: Iterable[Stack]
) -> tuple[Stack, list[OfferId]] | ErrorDetail:
    """The first bucket that has what is asked for, and the offers that must be rescinded for it; or what the last one lacks."""
    problem: ErrorDetail | None = None
    books = cluster.ledger.books[agent.agent_id]
    for stack in stacks:
        in_the_way = _offers_to_rescind(cluster, agent, request, stack, books.free.get(stack, EMPTY))
        if not isinstance(in_the_way, ErrorDetail):
            return stack, in_the_way
        problem = in_the_way
    assert problem is not None
    return problem


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


def read_unreserved_holder(request: UnreserveResourcesRequest) -> RoleExpression | ErrorDetail:
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
    return ReservationView(agent.agent_id, agent.info.hostname, stack, resources, covered_roles=covered)


def request_problem(request: ResourceRequest, field: str = "resources") -> ErrorDetail | None:
    """Say why nobody can ask for such resources."""
    wrong = [kind for kind, amount in request.scalars.items() if amount <= 0 or kind == "gpus"]
    if request.gpus < 0:
        wrong.append("gpus")
    if wrong:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"amounts must be above zero: {', '.join(wrong)}",
            "GPUs are whole",
            field,
        )
    if not request:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, "no resources are named", "name some, such as gpus:2", field)
    if len(set(request.devices)) != len(request.devices) or (request.devices and request.gpus > len(request.devices)):
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT, "the devices named are not as many as the GPUs asked for", "", field
        )
    return None


def _offers_to_rescind(
    cluster: Cluster, agent: Agent, request: ResourceRequest, stack: Stack, free: Resources
) -> list[OfferId] | ErrorDetail:
    """The fewest offers, greedily, whose return makes a request possible within one bucket; or why nothing does."""
    if _fits(free, request, stack, agent):
        return []
    books = cluster.ledger.books[agent.agent_id]
    candidates: list[tuple[OfferId, Resources]] = [
        (offer_id, entry.holding[stack]) for offer_id, entry in books.offered.items() if stack in entry.holding
    ]
    chosen: list[OfferId] = []
    pool = free
    # Those that bring most of what is missing first.
    while candidates and not _fits(pool, request, stack, agent):
        missing = _missing(pool, request)
        candidates.sort(key=lambda item: (-_brings(item[1], missing, request), item[0]))
        offer_id, part = candidates.pop(0)
        if _brings(part, missing, request) == 0:
            break
        chosen.append(offer_id)
        pool = pool + part
    if _fits(pool, request, stack, agent):
        return _needed(chosen, books, free, request, stack, agent)
    held = books.allocated_in(stack)
    offered = [entry.holding.get(stack, EMPTY) for entry in books.offered.values()]
    all_of_it = sum_resources([free, *offered])
    reason = ErrorReason.INSUFFICIENT_RESOURCES
    hint = "ask for less, or another agent; see `bursar agent show`"
    if _fits(all_of_it + held, request, stack, agent):
        reason = ErrorReason.RESOURCES_IN_USE
        hint = "the rest is held by tasks, which are never touched: wait for their end or kill them (`bursar task ls`)"
    where = "unreserved on" if stack == UNRESERVED else f"reserved to {stack[-1].holder} on"
    lacking = format_shortfall(request, all_of_it) or f"{format_request(request)} wanted"
    return ErrorDetail(
        reason, f"not enough that is free or offered, {where} {agent.info.hostname}: {lacking}", hint, "resources"
    )


def _needed(
    chosen: list[OfferId], books: Books, free: Resources, request: ResourceRequest, stack: Stack, agent: Agent
) -> list[OfferId]:
    """The chosen offers without those that later ones made superfluous."""
    needed = list(chosen)
    for offer_id in chosen:
        rest = [other for other in needed if other != offer_id]
        if _fits(
            sum_resources([free, *(books.offered[other].holding[stack] for other in rest)]), request, stack, agent
        ):
            needed = rest
    return needed


def _fits(resources: Resources, request: ResourceRequest, stack: Stack, agent: Agent) -> bool:
    available: Holding = {stack: resources}
    return carve(available, request, agent.devices) is not None


def _missing(pool: Resources, request: ResourceRequest) -> dict[str, int]:
    missing = {kind: amount - pool.scalars.get(kind, 0) for kind, amount in request.scalars.items()}
    missing["gpus"] = request.gpu_count - len(pool.devices)
    if request.devices:
        missing["gpus"] = len(set(request.devices) - pool.devices)
    if request.ports:
        missing["ports"] = Resources(ports=subtract_ports(request.ports, pool.ports)).amount("ports")
    return {kind: amount for kind, amount in missing.items() if amount > 0}


def _brings(part: Resources, missing: dict[str, int], request: ResourceRequest) -> int:
    """How many parts in a million of what is missing an offer brings, summed over kinds."""
    score = 0
    for kind, amount in missing.items():
        there = part.amount(kind)
        if kind == "gpus":
            there = len(part.devices.intersection(request.devices) if request.devices else part.devices)
        elif kind == "ports":
            there = Resources(ports=intersect_ports(request.ports, part.ports)).amount(kind)
        score += min(there, amount) * 1_000_000 // amount if there else 0
    return score
