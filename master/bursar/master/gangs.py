"""The life of a gang: asked for, waiting its turn, answered by one bundle, taken (design.md §7; field.md, "gang over offers").

Gangs are served before single offers, in one line: by how often they held already, then by fair share, then by age. Whoever fits
into what is free gets a bundle at once. The first that does not may *hold*: what it can use is withheld for it as it becomes free,
on the agents that lack the least, never more than it still needs – so that no stream of small tasks starves it. One gang holds at
a time, so that two that each need most of the cluster come one after the other and never each wait for what the other holds; and
for `--gang-hold-timeout` at most, after which it rests for as long and the next one has its turn. A hold gives way to whatever else
happens to an agent: reservations of operators, its loss, changes of its devices.

Everything here is soft: it ends with the framework's stream, and with the master.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from bursar.core.devices import Device, pick_connected
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, DeviceUuid, OfferId, TaskId, id_problem
from bursar.core.messages.framework import Offers
from bursar.core.messages.gangs import Bundle, BundleMember, GangGroup, GangState, OnMemberLost, RequestGang
from bursar.core.messages.offers import Offer
from bursar.core.messages.operator import AgentState, RefusalReason
from bursar.core.messages.rules import RuleAction
from bursar.core.resources import (
    EMPTY,
    GPUS,
    MILLI,
    UNRESERVED,
    Holding,
    ResourceRequest,
    Resources,
    Stack,
    add_holdings,
    holding_contains,
    holding_total,
    intersect_ports,
    subtract_holdings,
    to_reserved,
)
from bursar.core.role_expressions import plain_holder
from bursar.core.text import format_amounts, format_duration
from bursar.master.allocator.carve import carve
from bursar.master.allocator.constraints import is_foreign
from bursar.master.allocator.cycle import offerable
from bursar.master.allocator.gangs import (
    Cliques,
    Counts,
    HoldPlan,
    Room,
    Spot,
    cliques_of,
    fits,
    missing_of,
    pick_clique,
    place_somewhere,
    plan_hold,
    room_for,
    room_in,
)
from bursar.master.allocator.quota import allowance, headroom, least_limit_left
from bursar.master.allocator.rules import CompiledRule
from bursar.master.allocator.shares import Client, Node
from bursar.master.allocator.visibility import strip
from bursar.master.bundles import Gang, GangKey, GangLaunch, forget_gang, release_hold, tell
from bursar.master.ledger import TaskKey
from bursar.master.offers import new_descriptions, rescind
from bursar.master.reservations import request_problem
from bursar.master.state import Agent, Cluster, Framework, OutstandingOffer, Turn

MAX_GROUPS = 16
#: A bundle is one message: as many fit into it.
MAX_TASKS = 1024
MAX_GPUS = 8192
MIN_TTL_MS = 1000
MAX_TTL_MS = 30 * 86_400_000
MAX_GANGS_PER_FRAMEWORK = 100
#: Gangs that are looked at when something changes; those behind them in line wait.
MAX_CONSIDERED = 8


# --- what a framework says ---


def request(cluster: Cluster, turn: Turn, framework: Framework, call: RequestGang) -> None:
    """A framework asks for a gang: it waits from now on, or is refused with what is missing."""
    key = GangKey(framework.framework_id, call.gang_id)
    gangs = cluster.gangs
    known = gangs.by_key.get(key)
    if known is not None:
        if known.request == call:
            if not known.bundle_id:
                tell(cluster, turn, known, GangState.WAITING)
            return
        _end(cluster, turn, known, "the framework asked for something else under the same gang id")
    gangs.requests += 1
    gang = Gang(key, call, gangs.requests, deadline_ms=turn.now.monotonic_ms + call.ttl_ms)
    error = _form_problem(cluster, framework, call)
    if error is None:
        _look(cluster, gang, None)
        if _places(cluster, gang) is None:
            error = _never_fits(cluster, framework, gang)
        error = error or _limit_in_the_way(cluster, gang)
    if error is not None:
        cluster.counters.calls_refused += 1
        tell(cluster, turn, gang, GangState.REFUSED, error)
        return
    gangs.by_key[key] = gangs.by_number[gang.number] = gang
    cluster.deadlines.set(("gang", str(gang.number)), gang.deadline_ms)
    # It is served once the rest of the batch was read.
    cluster.deadlines.set(("allocate", ""), turn.now.monotonic_ms)
    tell(cluster, turn, gang, GangState.WAITING)


def cancel(cluster: Cluster, turn: Turn, framework: Framework, gang_id: str) -> None:
    """A framework wants a gang no more; one that is not there is ignored."""
    gang = cluster.gangs.by_key.get(GangKey(framework.framework_id, gang_id))
    if gang is not None:
        _end(cluster, turn, gang, "the framework cancelled the gang")
        tell(cluster, turn, gang, GangState.CANCELLED)


def end_in_roles(cluster: Cluster, turn: Turn, framework: Framework, roles: AbstractSet[str]) -> None:
    """A framework gave up roles: its gangs in them are over."""
    for gang in list(cluster.gangs.by_key.values()):
        if gang.key.framework_id == framework.framework_id and gang.request.role in roles:
            _end(cluster, turn, gang, "the framework gave up the role")
            tell(cluster, turn, gang, GangState.CANCELLED)


def gang_of(cluster: Cluster, offer_ids: Sequence[OfferId]) -> Gang | None:
    """The gang whose bundle these outstanding offers belong to."""
    bundle_id = cluster.offers[offer_ids[0]].offer.bundle_id
    return cluster.gangs.by_bundle[bundle_id] if bundle_id else None


def taken(cluster: Cluster, gang: Gang, task_ids: Iterable[TaskId]) -> None:
    """A gang's bundle was accepted; its offers have ended. Its tasks must all run, unless it keeps what does."""
    del cluster.gangs.by_bundle[gang.bundle_id]
    gang.bundle_id, gang.offer_ids = "", ()
    forget_gang(cluster, gang)
    keys = [TaskKey(gang.key.framework_id, task_id) for task_id in task_ids]
    if gang.request.on_member_lost is not OnMemberLost.KEEP and len(keys) > 1:
        launch = GangLaunch(gang.key.gang_id, keys, set(keys))
        cluster.gangs.starting.update(dict.fromkeys(keys, launch))


def _end(cluster: Cluster, turn: Turn, gang: Gang, why: str) -> None:
    """Take a gang out of the line, and its bundle back; nobody is told what became of the gang."""
    offer_ids = gang.offer_ids
    cluster.gangs.by_bundle.pop(gang.bundle_id, None)
    gang.bundle_id, gang.offer_ids = "", ()
    forget_gang(cluster, gang)
    if offer_ids:
        for offer_id in offer_ids:
            # No bundle any more: single offers that go together.
            cluster.offers[offer_id].offer.bundle_id = ""
        rescind(cluster, turn, offer_ids, why)


# --- what time does ---


def expire(cluster: Cluster, turn: Turn, number: int) -> bool:
    """A gang has waited for as long as it wanted; return whether others must be looked at."""
    gang = cluster.gangs.by_number.get(number)
    if gang is None or gang.bundle_id:
        return False
    _look(cluster, gang, ())
    assert gang.spots is not None
    why = gang.hindrance or f"{room_for(gang.request.groups, _by_value(gang))} of its {gang.tasks} tasks had room"
    detail = ErrorDetail(
        ErrorReason.INSUFFICIENT_RESOURCES,
        f"no bundle within {format_duration(gang.request.ttl_ms)}: {why}",
        "ask again, for longer or for less",
        "ttl_ms",
    )
    forget_gang(cluster, gang)
    tell(cluster, turn, gang, GangState.EXPIRED, detail)
    return True


def turn_over(cluster: Cluster, turn: Turn, number: int) -> bool:
    """A gang has held for as long as it may, or has rested for as long; return whether others must be looked at."""
    gang = cluster.gangs.by_number.get(number)
    if gang is None:
        return False
    if cluster.gangs.holder is gang:
        release_hold(cluster)
        gang.turns += 1
        gang.rests_until_ms = turn.now.monotonic_ms + cluster.flags.duration_ms("gang-hold-timeout")
        cluster.deadlines.set(("gang-hold", str(number)), gang.rests_until_ms)
        turn.publish(
            "gang_hold_ended",
            f"gang {gang.key.gang_id} held for as long as it may, and rests",
            framework_id=gang.key.framework_id,
        )
    return True


# --- serving ---


def serve(cluster: Cluster, turn: Turn, *, full: bool) -> None:
    """Make bundles for those that fit, and hold for the first that does not. Before the cycle: it offers what is left."""
    gangs = cluster.gangs
    dirty = None if cluster.all_dirty else set(cluster.dirty)
    line = _line(cluster)
    for gang in line[MAX_CONSIDERED:]:
        gang.spots = None
    line = line[:MAX_CONSIDERED]
    for gang in line:
        if dirty is None:
            gang.spots = None
        _look(cluster, gang, dirty or (), sweep=full)
        places = _places(cluster, gang)
        if places is not None:
            _offer_bundle(cluster, turn, gang, places)
    line = [gang for gang in line if not gang.bundle_id]
    now_ms = turn.now.monotonic_ms
    if gangs.holder is not None and not _hold(cluster, gangs.holder):
        release_hold(cluster)
    for gang in line:
        if gangs.holder is not None:
            return
        if gang.rests_until_ms <= now_ms and _hold(cluster, gang):
            gangs.holder = gang
            until_ms = now_ms + cluster.flags.duration_ms("gang-hold-timeout")
            cluster.deadlines.set(("gang-hold", str(gang.number)), until_ms)
            turn.publish(
                "gang_hold_began",
                f"what gang {gang.key.gang_id} needs is withheld for it as it becomes free",
                framework_id=gang.key.framework_id,
            )


def _line(cluster: Cluster) -> list[Gang]:
    """Gangs that wait, in the order in which they are served: the one that holds; then by turns, fair share and age."""
    gangs = cluster.gangs
    waiting = [gang for gang in gangs.by_key.values() if not gang.bundle_id]
    if len(waiting) < 2:
        return waiting
    standing = {gang.number: cluster.shares.standing(_client(gang)) for gang in waiting}
    return sorted(waiting, key=lambda gang: (gang is not gangs.holder, gang.turns, standing[gang.number], gang.number))


def _client(gang: Gang) -> Client:
    return Client(gang.request.role, gang.key.framework_id)


# --- what there is for a gang ---


def _permitted(
    cluster: Cluster, framework: Framework, role: str, agents: Iterable[Agent]
) -> Iterator[tuple[Agent, CompiledRule | None]]:
    """The agents that a framework may be offered at all: the steps of `cycle.consider` that look at an agent as a whole. Filters are
    not among them: a gang was asked for. With each the rule that takes something of it, if one does.
    """
    capabilities, visibility, region = framework.info.capabilities, cluster.visibility, cluster.region
    settings = framework.settings.get(role)
    client_class = visibility.class_of_client(role, framework.info) if visibility.rules else 0
    for agent in agents:
        rule = None
        if client_class and client_class & visibility.class_of_agent(agent.info):
            rule = _rule_of(cluster, framework, role, agent)
            if rule is not None and rule.action is RuleAction.HIDE_AGENT:
                continue
        if region and is_foreign(region, capabilities, agent.facts):
            continue
        if settings is None or settings.may_take(agent.facts):
            yield agent, rule


def _rule_of(cluster: Cluster, framework: Framework, role: str, agent: Agent) -> CompiledRule | None:
    """The rule that takes something of an agent from a framework in a role."""
    rule = cluster.visibility.judge(agent.info, role, framework.info).winner
    return None if rule is None or rule.action is RuleAction.ALLOW else rule


def _cliques(cluster: Cluster, agent: Agent) -> Cliques:
    known = cluster.gangs.cliques.get(agent.agent_id)
    if known is None or known[0] is not agent.devices:
        known = cluster.gangs.cliques[agent.agent_id] = (agent.devices, cliques_of(agent.devices.values()))
    return known[1]


def _capabilities(cluster: Cluster, gang: Gang) -> tuple[str, ...]:
    return cluster.frameworks[gang.key.framework_id].info.capabilities


def _available(cluster: Cluster, gang: Gang, agent_id: AgentId) -> Holding:
    """What an agent has for a gang now: what its role may be offered of what is free or held for it."""
    books = cluster.ledger.books[agent_id]
    there = books.free
    if books.gang_hold and cluster.gangs.holder is gang:
        there = add_holdings(there, books.gang_hold)
    available = offerable(cluster.holders, there, gang.request.role, _capabilities(cluster, gang))
    if not cluster.visibility.rules or not available:
        return available
    framework, agent = cluster.frameworks[gang.key.framework_id], cluster.agents[agent_id]
    rule = _rule_of(cluster, framework, gang.request.role, agent)
    if rule is None:
        return available
    takes_gpus = any(group.resources.gpus for group in gang.request.groups)
    return cluster.visibility.restrict(rule, agent.info, books, available, there, takes_gpus)


def _capacity(cluster: Cluster, gang: Gang, agent: Agent) -> Room:
    """What it has once nothing else runs there."""
    books = cluster.ledger.books[agent.agent_id]
    total: Holding = books.total
    if books.withheld_devices:
        total = {
            stack: Resources(part.scalars, part.ports, part.devices - books.withheld_devices.keys())
            for stack, part in total.items()
        }
    cliques = _cliques(cluster, agent) if gang.request.topology.nvlink_clique else None
    available = offerable(cluster.holders, total, gang.request.role, _capabilities(cluster, gang))
    if cluster.visibility.rules:
        rule = _rule_of(cluster, cluster.frameworks[gang.key.framework_id], gang.request.role, agent)
        if rule is not None:
            available = strip(available, rule.stripped)
    return room_in(available, cliques)


def _look(cluster: Cluster, gang: Gang, agent_ids: Iterable[AgentId] | None, *, sweep: bool = False) -> None:
    """Find out what these agents have for a gang (None, or the first time: all); with `sweep`, also where it is another thing now."""
    if gang.spots is None or agent_ids is None or agent_ids:
        gang.chosen = None
    framework = cluster.frameworks[gang.key.framework_id]
    books_of = cluster.ledger.books
    spots = gang.spots
    agents: Iterable[Agent]
    if spots is None or agent_ids is None:
        spots = gang.spots = {}
        gang.sums, gang.capacities = {}, {}
        agents = cluster.agents_in_order
    else:
        wanted = {agent_id for agent_id in agent_ids if agent_id in cluster.agents}
        if sweep:
            wanted |= {
                agent.agent_id
                for agent in cluster.agents_in_order
                if (spot := spots.get(agent.agent_id)) is None or spot.free is not books_of[agent.agent_id].free
            }
        agents = [cluster.agents[agent_id] for agent_id in wanted]
        for gone in [agent_id for agent_id in agent_ids if agent_id not in cluster.agents]:
            _forget_spot(gang, gone)
    groups = gang.request.groups
    attribute, by_clique = gang.request.topology.same_attribute, gang.request.topology.nvlink_clique
    role, sums, active = gang.request.role, gang.sums, AgentState.ACTIVE
    holds = cluster.gangs.holder is gang
    if spots:
        agents = list(agents)
        for agent in agents:
            _forget_spot(gang, agent.agent_id)
    # Agents alike are decided alike.
    capabilities = framework.info.capabilities
    known: dict[tuple[object, ...], tuple[Room, tuple[int, ...]]] = {}
    for agent, rule in _permitted(cluster, framework, role, agents):
        if agent.state is not active:
            continue
        agent_id = agent.agent_id
        value = agent.info.attributes.get(attribute) if attribute else None
        if attribute and value is None:
            continue
        books = books_of[agent_id]
        plain = rule is None and not holds
        available = (
            offerable(cluster.holders, books.free, role, capabilities) if plain else _available(cluster, gang, agent_id)
        )
        if by_clique:
            room = room_in(available, _cliques(cluster, agent))
            counts = tuple([fits(room, group.resources) for group in groups])
        else:
            part = holding_total(available) if available else EMPTY
            key = (len(part.devices), part.ports, *part.scalars.items())
            found = known.get(key)
            if found is None:
                room = room_in(available, None)
                found = known[key] = room, tuple([fits(room, group.resources) for group in groups])
            room, counts = found
        spots[agent_id] = Spot(agent_id, agent.order, books.free, room, counts, value)
        total = sums.get(value)
        if total is None:
            sums[value] = list(counts)
        else:
            for index, count in enumerate(counts):
                total[index] += count


def _forget_spot(gang: Gang, agent_id: AgentId) -> None:
    assert gang.spots is not None
    spot = gang.spots.pop(agent_id, None)
    gang.capacities.pop(agent_id, None)
    if spot is not None:
        total = gang.sums[spot.value]
        for index, count in enumerate(spot.fits):
            total[index] -= count


def _enough(gang: Gang) -> list[str | int | None]:
    """The values under which as many tasks of each group have room, each group taken alone."""
    needed = [group.count for group in gang.request.groups]
    return [
        value
        for value, total in gang.sums.items()
        if all(there >= count for there, count in zip(total, needed, strict=True))
    ]


def _by_value(gang: Gang, values: Iterable[str | int | None] | None = None) -> dict[str | int | None, list[Spot]]:
    """The agents that it may use, by the attribute that all must share."""
    assert gang.spots is not None
    if not gang.request.topology.same_attribute:
        return {None: list(gang.spots.values())}
    wanted = set(gang.sums if values is None else values)
    found: dict[str | int | None, list[Spot]] = {}
    for spot in gang.spots.values():
        if spot.value in wanted:
            found.setdefault(spot.value, []).append(spot)
    return found


def _places(cluster: Cluster, gang: Gang) -> Counts | None:
    """Where all tasks of a gang have room now, or None."""
    gang.hindrance, gang.at_quota = "", False
    if not _enough(gang):
        return None
    assert gang.spots is not None
    # Whatever was given away since it was looked at.
    books = cluster.ledger.books
    chosen = gang.chosen
    if chosen and all((spot := gang.spots.get(one)) and spot.free is books[one].free for one in chosen):
        return chosen
    stale = [spot.agent_id for spot in gang.spots.values() if spot.free is not books[spot.agent_id].free]
    if stale:
        _look(cluster, gang, stale)
    values = _enough(gang)
    gang.chosen = place_somewhere(gang.request.groups, _by_value(gang, values)) if values else None
    return gang.chosen


# --- refusals ---


def _form_problem(cluster: Cluster, framework: Framework, call: RequestGang) -> ErrorDetail | None:
    """Say what is wrong with the words of a request."""

    def invalid(what: str, hint: str, field: str) -> ErrorDetail:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, what, hint, field)

    if problem := id_problem(call.gang_id):
        return invalid(f"gang_id: {problem}", "choose an id for each gang", "gang_id")
    if call.role not in framework.info.roles:
        return invalid(f"{call.role!r} is not a role of the framework", "name one of its roles", "role")
    if not 1 <= len(call.groups) <= MAX_GROUPS:
        return invalid(
            f"a gang has at least one group and at most {MAX_GROUPS}, not {len(call.groups)}",
            "put equal tasks into one group",
            "groups",
        )
    for index, group in enumerate(call.groups):
        if group.count < 1:
            return invalid("a group has at least one task", "leave the group out", f"groups[{index}].count")
        if error := request_problem(group.resources, f"groups[{index}].resources"):
            return error
        if group.resources.devices:
            return invalid("a gang asks for GPUs by number, not by name", "write gpus:N", f"groups[{index}].resources")
    tasks = sum(group.count for group in call.groups)
    gpus = sum(group.count * group.resources.gpus for group in call.groups)
    if tasks > MAX_TASKS or gpus > MAX_GPUS:
        return invalid(
            f"a gang has at most {MAX_TASKS} tasks and {MAX_GPUS} GPUs, not {tasks} and {gpus}",
            "ask for fewer, larger tasks, or for several gangs",
            "groups",
        )
    if not MIN_TTL_MS <= call.ttl_ms <= MAX_TTL_MS:
        return invalid(
            f"a gang waits for at least {format_duration(MIN_TTL_MS)} and at most {format_duration(MAX_TTL_MS)},"
            f" not {call.ttl_ms} ms",
            "choose another ttl_ms",
            "ttl_ms",
        )
    if len(call.topology.same_attribute) > 255:
        return invalid("the name of an attribute is too long", "name one such as rack", "topology.same_attribute")
    mine = sum(key.framework_id == framework.framework_id for key in cluster.gangs.by_key)
    if mine >= MAX_GANGS_PER_FRAMEWORK:
        return invalid(f"{mine} gangs of the framework wait already", "cancel some, or ask later", "gang_id")
    return None


def _never_fits(cluster: Cluster, framework: Framework, gang: Gang) -> ErrorDetail | None:
    """Say what is missing if a gang could not start on the whole cluster, empty; agents that are away count."""
    groups, attribute = gang.request.groups, gang.request.topology.same_attribute
    seen = [agent for agent, _ in _permitted(cluster, framework, gang.request.role, cluster.agents_in_order)]
    spots: dict[str | int | None, list[Spot]] = {}
    for agent in seen:
        value = agent.info.attributes.get(attribute) if attribute else None
        if not attribute or value is not None:
            room = _capacity(cluster, gang, agent)
            counts = tuple([fits(room, group.resources) for group in groups])
            spots.setdefault(value, []).append(Spot(agent.agent_id, agent.order, {}, room, counts, value))
    field = "groups"
    if place_somewhere(groups, spots) is not None:
        return None
    if not seen:
        hidden = len(cluster.agents)
        why = f"none of the {hidden} agents may be offered to the framework" if hidden else "there are no agents"
    elif not spots:
        why, field = f"no agent has the attribute {attribute}", "topology.same_attribute"
    else:
        all_spots = [spot for some in spots.values() for spot in some]
        why = missing_of(groups, [spot.room for spot in all_spots])
        if not why and attribute:
            # Together they are enough, so no value alone is: the one that comes the nearest.
            best = max(spots, key=lambda value: (room_for(groups, {value: spots[value]}), str(value)))
            there = missing_of(groups, [spot.room for spot in spots[best]])
            why, field = f"no {attribute} has enough; on {attribute} {best}, {there}", "topology.same_attribute"
        if not why:
            why = f"{room_for(groups, spots)} of its {gang.tasks} tasks have room"
        if len(seen) < len(cluster.agents):
            why += f"; {len(cluster.agents) - len(seen)} more agents may not be offered to it: see `bursar explain`"
    return ErrorDetail(
        ErrorReason.INSUFFICIENT_RESOURCES,
        f"the gang could never start in this cluster: {why}",
        "ask for less, or add agents",
        field,
    )


# --- quota ---


def _limit_in_the_way(cluster: Cluster, gang: Gang) -> ErrorDetail | None:
    """Which limit a gang could not keep even if its role held nothing; what is reserved to the role or above it may come on top."""
    shares = cluster.shares
    role = gang.request.role
    top = shares.find(role.split("/")[0])
    for kind in shares.quota_kinds:
        needed = _needed(gang, kind) - (top.reserved.get(kind, 0) if top is not None else 0)
        node: Node | None = shares.nearest(role)
        while node is not None:
            limit = node.limit.get(kind)
            if limit is not None and needed > limit:
                return ErrorDetail(
                    ErrorReason.INSUFFICIENT_RESOURCES,
                    f"the gang needs {format_amounts({kind: _needed(gang, kind)})}, and the limit of {node.path} is"
                    f" {format_amounts({kind: limit}) or 'none'}",
                    "ask for less, or have the limit raised",
                    "groups",
                )
            node = node.parent
    return None


def _needed(gang: Gang, kind: str) -> int:
    """How much of a kind all its tasks need."""
    if kind == GPUS:
        return sum(MILLI * group.resources.gpus * group.count for group in gang.request.groups)
    return sum(group.resources.scalars.get(kind, 0) * group.count for group in gang.request.groups)


def _limit_left_in_the_way(cluster: Cluster, gang: Gang) -> bool:
    """Whether a limit, as far as it is used now, leaves less than a gang needs: holding would not bring it nearer."""
    shares = cluster.shares
    node = shares.nearest(gang.request.role)
    top = shares.find(gang.request.role.split("/")[0])
    for kind in shares.quota_kinds:
        left = least_limit_left(node, kind)
        if left is not None and _needed(gang, kind) - (top.reserved.get(kind, 0) if top is not None else 0) > left:
            gang.hindrance, gang.at_quota = f"of {kind}, a limit of its role or of one above it is used up", True
            return True
    return False


def _within_quota(cluster: Cluster, gang: Gang, holdings: Iterable[Holding]) -> str:
    """Why limits or headroom do not let a gang have all this together; empty where they do (`held_back.cut_to_quota`)."""
    shares = cluster.shares
    client = _client(gang)
    node = shares.client_node(client) or shares.nearest(client.role)
    loose: dict[tuple[str, bool], int] = {}
    for holding in holdings:
        for stack, part in holding.items():
            if not stack or plain_holder(stack[-1].holder) is None:
                for kind in shares.quota_kinds:
                    key = kind, bool(stack)
                    loose[key] = loose.get(key, 0) + part.amount(kind)
    for kind in shares.quota_kinds:
        unreserved, shared = loose.get((kind, False), 0), loose.get((kind, True), 0)
        if not unreserved and not shared:
            continue
        free = cluster.ledger.free_unreserved().get(kind, 0)
        if cluster.gangs.holder is gang:
            books = cluster.ledger.books
            free += sum(
                books[agent_id].gang_hold.get(UNRESERVED, EMPTY).amount(kind) for agent_id in cluster.ledger.gang_holds
            )
        most, by_limits = allowance(node, kind, free), allowance(node, kind, None)
        least = min(most.amount, by_limits.amount - shared)
        if free < headroom(shares.root, kind):
            least = min(least, most.amount - shared)
        if unreserved > least or shared > by_limits.amount:
            if most.reason is RefusalReason.HEADROOM:
                return f"of {kind}, what it needs is kept free for the guarantees of others"
            return f"of {kind}, a limit of its role or of one above it is used up"
    return ""


# --- bundles ---


def _offer_bundle(cluster: Cluster, turn: Turn, gang: Gang, places: Counts) -> bool:
    """Carve what was chosen and offer it, all of it or nothing; say whether it was."""
    framework = cluster.frameworks[gang.key.framework_id]
    chosen = sorted([cluster.agents[agent_id] for agent_id in places], key=lambda agent: agent.order)
    holdings: list[tuple[Agent, dict[Stack, Resources]]] = []
    members: list[BundleMember] = []
    for agent in chosen:
        holding = _carve(cluster, gang, agent, places[agent.agent_id], members)
        if holding is None:
            # Amounts are there, but not in this form.
            gang.hindrance = f"{agent.info.hostname} has the amounts, but not together"
            return False
        holdings.append((agent, holding))
    if cluster.shares.quota_kinds:
        gang.hindrance = _within_quota(cluster, gang, [holding for _, holding in holdings])
        if gang.hindrance:
            gang.at_quota = True
            return False
    if cluster.gangs.holder is gang:
        release_hold(cluster)
        cluster.deadlines.cancel(("gang-hold", str(gang.number)))
    cluster.deadlines.cancel(("gang", str(gang.number)))
    cluster.gangs.bundles_made += 1
    bundle_id = f"{cluster.term}-B{cluster.gangs.bundles_made}"
    expires_in_ms = cluster.flags.duration_ms("offer-timeout")
    client = _client(gang)
    offers = []
    for agent, holding in holdings:
        cluster.offer_sequence += 1
        offer_id = OfferId(f"{cluster.term}-O{cluster.offer_sequence}")
        cluster.ledger.offer(agent.agent_id, offer_id, client, holding)
        offer = Offer(
            offer_id,
            framework.framework_id,
            client.role,
            agent.agent_id,
            agent.description_version,
            to_reserved(holding),
            expires_in_ms,
            bundle_id,
        )
        cluster.offers[offer_id] = OutstandingOffer(offer, turn.now.wall_ms)
        framework.offers.add(offer_id)
        offers.append(offer)
    gang.bundle_id, gang.offer_ids, gang.spots = bundle_id, tuple(offer.offer_id for offer in offers), None
    cluster.gangs.by_bundle[bundle_id] = gang
    expires_at_ms = turn.now.monotonic_ms + expires_in_ms
    cluster.expiring_offers.setdefault(str(expires_at_ms), []).extend(gang.offer_ids)
    cluster.deadlines.set(("offers", str(expires_at_ms)), expires_at_ms)
    cluster.counters.offers_made += len(offers)
    if descriptions := new_descriptions(cluster, framework, offers):
        turn.to_framework(framework, Offers(descriptions, ()))
    turn.to_framework(framework, Bundle(bundle_id, gang.key.gang_id, tuple(offers), tuple(members)))
    return True


def _carve(
    cluster: Cluster, gang: Gang, agent: Agent, counts: Sequence[int], members: list[BundleMember]
) -> dict[Stack, Resources] | None:
    """Cut the tasks that go to an agent out of what it has, and note them as members; None where that is not possible."""
    rest = _available(cluster, gang, agent.agent_id)
    holding: dict[Stack, Resources] = {}
    for index, count in enumerate(counts):
        request = gang.request.groups[index].resources
        if not count:
            continue
        if request.gpus and gang.request.topology.nvlink_clique:
            cliques = _cliques(cluster, agent)
            for _ in range(count):
                try:
                    uuids = tuple(pick_clique(holding_total(rest).devices, cliques, agent.devices, request.gpus))
                except ValueError:
                    return None
                named = ResourceRequest(request.scalars, request.ports, devices=uuids)
                part = carve(rest, named, agent.devices)
                if part is None:
                    return None
                rest, holding = subtract_holdings(rest, part), add_holdings(holding, part)
                members.append(BundleMember(index, agent.agent_id, uuids))
            continue
        part = carve(rest, request, agent.devices, count)
        if part is None:
            return None
        rest, holding = subtract_holdings(rest, part), add_holdings(holding, part)
        members += [BundleMember(index, agent.agent_id)] * count
    return holding


# --- holding ---


def _hold(cluster: Cluster, gang: Gang) -> bool:
    """Withhold what a gang can use of what is free; say whether it may hold at all: with everything free, it would fit."""
    assert gang.spots is not None
    groups = gang.request.groups

    def capacity(agent_id: AgentId) -> Room:
        room = gang.capacities.get(agent_id)
        if room is None:
            room = gang.capacities[agent_id] = _capacity(cluster, gang, cluster.agents[agent_id])
        return room

    best: HoldPlan | None = None
    for _, spots in sorted(_by_value(gang).items(), key=lambda item: str(item[0])):
        plan = plan_hold(groups, spots, capacity)
        if not plan.homeless and (best is None or plan.tasks > best.tasks):
            best = plan
    if best is None:
        gang.hindrance = "agents that it needs are away or were changed"
        return False
    wanted: dict[AgentId, dict[Stack, Resources]] = {}
    if gang.at_quota or (cluster.shares.quota_kinds and _limit_left_in_the_way(cluster, gang)):
        return False
    for agent_id in (*best.filled, *(agent_id for agent_id in best.filling if agent_id not in best.filled)):
        if holding := _part_to_hold(cluster, gang, cluster.agents[agent_id], best):
            if cluster.shares.quota_kinds and _within_quota(cluster, gang, (*wanted.values(), holding)):
                # The rest is kept for guarantees.
                continue
            wanted[agent_id] = holding
    for agent_id in sorted(cluster.ledger.gang_holds | wanted.keys()):
        books = cluster.ledger.books[agent_id]
        before, after = books.gang_hold, wanted.get(agent_id, {})
        cluster.ledger.hold_for_gang(agent_id, after)
        if not holding_contains(after, before):
            cluster.touch(agent_id)
        if agent_id in gang.spots:
            # All in all it has what it had.
            gang.spots[agent_id].free = books.free
    return True


def _part_to_hold(cluster: Cluster, gang: Gang, agent: Agent, plan: HoldPlan) -> dict[Stack, Resources]:
    """What an agent has of what the tasks of a plan need there."""
    available = _available(cluster, gang, agent.agent_id)
    groups = gang.request.groups
    none = (0,) * len(groups)
    filled, filling = plan.filled.get(agent.agent_id, none), plan.filling.get(agent.agent_id, none)
    counts = [now + later for now, later in zip(filled, filling, strict=True)]
    stacks = sorted(available, key=lambda stack: (-len(stack), stack))
    result: dict[Stack, Resources] = {}

    def take(stack: Stack, part: Resources) -> None:
        result[stack] = result.get(stack, EMPTY) + part

    needed: dict[str, int] = {}
    for group, count in zip(groups, counts, strict=True):
        for kind, amount in group.resources.scalars.items():
            needed[kind] = needed.get(kind, 0) + amount * count
        if count and group.resources.ports:
            for stack in stacks:
                if common := intersect_ports(group.resources.ports, available[stack].ports):
                    take(stack, Resources(ports=common))
    for kind, amount in needed.items():
        for stack in stacks:
            there = min(amount, available[stack].scalars.get(kind, 0))
            if there > 0:
                take(stack, Resources({kind: there}))
                amount -= there
    cliques = _cliques(cluster, agent) if gang.request.topology.nvlink_clique else None
    devices = _devices_to_hold(holding_total(available).devices, groups, filled, filling, cliques, agent.devices)
    for stack in stacks:
        if part := available[stack].devices & devices:
            take(stack, Resources(devices=part))
    return result


def _devices_to_hold(
    free: frozenset[DeviceUuid],
    groups: Sequence[GangGroup],
    filled: Sequence[int],
    filling: Sequence[int],
    cliques: Cliques | None,
    devices: Mapping[DeviceUuid, Device],
) -> frozenset[DeviceUuid]:
    wanted = sum(
        group.resources.gpus * (now + later) for group, now, later in zip(groups, filled, filling, strict=True)
    )
    if wanted >= len(free):
        return free
    if cliques is None or not wanted:
        return frozenset(pick_connected(free, wanted, devices))
    rest = free
    for group, now, later in zip(groups, filled, filling, strict=True):
        for task in range(now + later if group.resources.gpus else 0):
            if task < now:
                picked = frozenset(pick_clique(rest, cliques, devices, group.resources.gpus))
            else:
                # It fills where most is there already.
                part = max((clique & rest for clique in cliques), key=lambda part: (len(part), min(part, default="")))
                picked = frozenset(sorted(part)[: group.resources.gpus])
            rest -= picked
    return free - rest
