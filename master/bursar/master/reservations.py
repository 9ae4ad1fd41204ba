"""Dynamic reservations: by operators here, by frameworks through `operations` (RSV-*, mesos.md §2.5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from bursar.core.errors import ErrorDetail, ErrorReason, InvalidText
from bursar.core.ids import AgentId, OfferId
from bursar.core.messages.operator import (
    AgentState,
    LendReservationsRequest,
    ReservationView,
    ReserveResourcesRequest,
    ReserveResourcesResponse,
    UnreserveResourcesRequest,
    UnreserveResourcesResponse,
)
from bursar.core.predicates import (
    AgentFacts,
    Predicate,
    attribute_of,
    is_about_devices,
    matches,
    matches_device,
    parse_predicates,
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
    count_ports,
    holding_total,
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
from bursar.master.picking import Shortfall, Spot, choose
from bursar.master.quotas import reserve_problem
from bursar.master.records import LendingRecorded, ReservationsRecorded
from bursar.master.state import Agent, Cluster, Turn
from bursar.master.views import find_agent

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
    found = _find_agents(cluster, request.agent, request.where)
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
    picked = _pick(cluster, found, routes, request.resources)
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
        cluster,
        turn,
        picked,
        routes,
        request.dry_run,
        f"reserved to {level.holder}",
        "resources_reserved",
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
    found = _find_agents(cluster, request.agent, request.where)
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
    picked = _pick(cluster, found, routes, request.resources)
    if isinstance(picked, ErrorDetail):
        return picked
    views, rescinded = _carry_out(
        cluster,
        turn,
        picked,
        routes,
        request.dry_run,
        f"given back by {expression}",
        "resources_unreserved",
    )
    return UnreserveResourcesResponse(views[0], views, rescinded)


@dataclass(frozen=True, slots=True)
class _Found:
    """The agents that a request is about."""

    agents: tuple[Agent, ...]
    #: Predicates on single devices: others are left where they are.
    about_devices: tuple[Predicate, ...]
    #: Whether one was named: then no other will do.
    named: bool
    #: For people: ` on the agents that …`.
    that_match: str


@dataclass(frozen=True, slots=True)
class _Picked:
    """What to take of one bucket of one agent, and the offers that must be rescinded for it."""

    agent: Agent
    stack: Stack
    request: ResourceRequest
    in_the_way: tuple[OfferId, ...]


def _find_agents(cluster: Cluster, name: str, where: str) -> _Found | ErrorDetail:
    """One that is named, or all that are active; of these, those that predicates are true of."""
    try:
        predicates = parse_predicates(where, "where")
    except InvalidText as error:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, error.detail.message, error.detail.hint, "where")
    if name:
        agent = find_agent(cluster, name)
        if isinstance(agent, ErrorDetail):
            return agent
        agents = [agent]
    else:
        agents = [agent for agent in cluster.agents.values() if agent.state is AgentState.ACTIVE]
        agents.sort(key=lambda agent: (agent.info.hostname, agent.agent_id))
    matching = [agent for agent in agents if all(is_true_of(cluster, agent, predicate) for predicate in predicates)]
    if not matching:
        if not agents:
            return ErrorDetail(
                ErrorReason.INSUFFICIENT_RESOURCES, "no agent is active", "see `bursar agent ls`", "agent"
            )
        of = len(agents)
        counts = ", ".join(
            f"{predicate} of {sum(is_true_of(cluster, agent, predicate) for agent in agents)}"
            for predicate in predicates
        )
        return ErrorDetail(
            ErrorReason.INSUFFICIENT_RESOURCES,
            f"no agent matches {where!r}: of {of} agent{'s' if of > 1 else ''}, {counts}",
            _missing_attributes(agents, predicates)
            or "loosen the predicates; see `bursar agent show` and `bursar gpu ls`",
            "where",
        )
    text = f" where {where}" if where else ""
    return _Found(tuple(matching), tuple(filter(is_about_devices, predicates)), bool(name), text)


def _missing_attributes(agents: Sequence[Agent], predicates: Iterable[Predicate]) -> str:
    """What to do about attributes that no agent has; empty where there are none such."""
    there = {
        name
        for agent in agents
        for name in (*agent.info.attributes, *sum_resources(part.resources for part in agent.info.resources).amounts())
    }
    missing = [name for predicate in predicates if (name := attribute_of(predicate)) and name not in there]
    if not missing:
        return ""
    known = ", ".join(sorted({name for agent in agents for name in agent.info.attributes})[: _MAX_SHOWN * 2])
    return f"no agent has the attribute {missing[0]}; " + (f"there are {known}" if known else "there are none at all")


def is_true_of(cluster: Cluster, agent: Agent, predicate: Predicate) -> bool:
    """Of an agent with all that it has; what is about devices, of any of them."""
    if is_about_devices(predicate):
        return any(matches_device(predicate, device) for device in agent.info.devices)
    total = holding_total(cluster.ledger.books[agent.agent_id].total)
    info = agent.info
    return matches(predicate, AgentFacts(info.hostname, info.attributes, total.amounts(), info.devices))


def _pick(
    cluster: Cluster, found: _Found, routes: Mapping[AgentId, Mapping[Stack, Stack]], request: ResourceRequest
) -> list[_Picked] | ErrorDetail:
    """What to take of which buckets; changes nothing."""
    agents = [agent for agent in found.agents if agent.agent_id in routes]
    if found.named and not found.about_devices:
        (agent,) = agents
        given = _first_that_gives(cluster, agent, request, list(routes[agent.agent_id]))
        if isinstance(given, ErrorDetail):
            return given
        stack, offers = given
        return [_Picked(agent, stack, request, tuple(offers))]
    by_id = {agent.agent_id: agent for agent in agents}
    spots = [
        _spot(cluster, agent, stack, found.about_devices, order)
        for order, agent in enumerate(agents)
        for stack in routes[agent.agent_id]
    ]
    choices = choose(spots, request)
    if isinstance(choices, Shortfall):
        return _shortfall_problem(found, by_id, request, choices)
    picked = []
    for choice in choices:
        agent, stack = by_id[choice.spot.agent_id], choice.spot.stack
        in_the_way = _offers_to_rescind(cluster, agent, choice.request, stack, _free(cluster, agent, stack))
        if isinstance(in_the_way, ErrorDetail):
            return in_the_way
        picked.append(_Picked(agent, stack, choice.request, tuple(in_the_way)))
    return picked


def _spot(cluster: Cluster, agent: Agent, stack: Stack, about_devices: Sequence[Predicate], order: int) -> Spot:
    books = cluster.ledger.books[agent.agent_id]
    offered = sum_resources(entry.holding[stack] for entry in books.offered.values() if stack in entry.holding)
    free, held = _free(cluster, agent, stack), books.allocated_in(stack)
    if about_devices:
        suit = frozenset(
            uuid
            for uuid, device in agent.devices.items()
            if all(matches_device(predicate, device) for predicate in about_devices)
        )
        free, offered, held = (
            Resources(part.scalars, part.ports, part.devices & suit) for part in (free, offered, held)
        )
    return Spot(agent.agent_id, stack, free, offered, held, agent.devices, order)


def _free(cluster: Cluster, agent: Agent, stack: Stack) -> Resources:
    """What is free of a bucket, with what is held for a gang or earmarked: an operator has the better right."""
    books = cluster.ledger.books[agent.agent_id]
    return books.free.get(stack, EMPTY) + books.gang_hold.get(stack, EMPTY) + books.earmark.get(stack, EMPTY)


def _shortfall_problem(
    found: _Found, agents: Mapping[AgentId, Agent], request: ResourceRequest, short: Shortfall
) -> ErrorDetail:
    """What is lacking, and the closest that can be had."""
    where = f"{len(agents)} agents" if len(agents) > 1 else next(iter(agents.values())).info.hostname
    reason = ErrorReason.RESOURCES_IN_USE if short.in_use else ErrorReason.INSUFFICIENT_RESOURCES
    in_use = "; tasks hold the rest, and are never touched" if short.in_use else ""
    says = f"{format_request(request)} cannot be had of {where}{found.that_match}"
    if short.closest:
        shown = [
            f"{agents[spot.agent_id].info.hostname} {format_request(part)}" for spot, part in short.spots[:_MAX_SHOWN]
        ]
        more = f" and {len(short.spots) - _MAX_SHOWN} more" if len(short.spots) > _MAX_SHOWN else ""
        return ErrorDetail(
            reason,
            f"{says}: the closest is {format_request(short.closest)} ({', '.join(shown)}{more}){in_use}",
            "ask for that"
            + (", or loosen --where" if found.that_match else "; see `bursar agent ls` and `bursar reservation ls`"),
            "resources",
        )
    return ErrorDetail(
        reason,
        f"{says}: nothing of the kind is free or offered there{in_use}",
        "ask for less of each kind; see `bursar agent ls` and `bursar reservation ls`",
        "resources",
    )


#: Agents that a message names at most.
_MAX_SHOWN = 5


def _carry_out(
    cluster: Cluster,
    turn: Turn,
    picked: Sequence[_Picked],
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
            pool = sum_resources([_free(cluster, agent, source), *offers])
            part = carve({source: pool}, pick.request, agent.devices)
            assert part is not None, pick
            resources = part[source]
            rescinded += len(pick.in_the_way)
        else:
            let_go(cluster, agent.agent_id)
            cluster.ledger.set_earmark(agent.agent_id, {})
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


def _nothing_kept(cluster: Cluster, found: _Found, expression: RoleExpression) -> ErrorDetail:
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


def _first_that_gives(
    cluster: Cluster, agent: Agent, request: ResourceRequest, stacks: Iterable[Stack]
) -> tuple[Stack, list[OfferId]] | ErrorDetail:
    """The first bucket that has what is asked for, and the offers that must be rescinded for it; or what the last one lacks."""
    problem: ErrorDetail | None = None
    for stack in stacks:
        in_the_way = _offers_to_rescind(cluster, agent, request, stack, _free(cluster, agent, stack))
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
    missing = {kind: amount - pool.amount(kind) for kind, amount in request.scalars.items()}
    missing["gpus"] = request.gpu_count - pool.gpus
    if request.devices:
        missing["gpus"] = len(set(request.devices) - pool.devices)
    if request.ports:
        missing["ports"] = Resources(ports=subtract_ports(request.ports, pool.ports)).amount("ports")
    if request.port_count:
        others = count_ports(subtract_ports(pool.ports, request.ports))
        missing["ports"] = missing.get("ports", 0) + request.port_count - others
    return {kind: amount for kind, amount in missing.items() if amount > 0}


def _brings(part: Resources, missing: dict[str, int], request: ResourceRequest) -> int:
    """How many parts in a million of what is missing an offer brings, summed over kinds."""
    score = 0
    for kind, amount in missing.items():
        there = part.amount(kind)
        if kind == "gpus":
            there = len(part.devices.intersection(request.devices)) if request.devices else part.gpus
        elif kind == "ports":
            there = part.amount(kind) if request.port_count else count_ports(intersect_ports(request.ports, part.ports))
        score += min(there, amount) * 1_000_000 // amount if there else 0
    return score
