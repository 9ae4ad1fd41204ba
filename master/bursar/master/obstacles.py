"""What stands in the way, in particular, and what would change it: one entry per reason of refusal.

`explain` asks the code that decides for the reason; here are the facts behind it, read from the same state. A step that is added to
the allocator's `consider` with a reason of its own needs one more entry in `WORDS`, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from heapq import nsmallest
from itertools import chain, islice
from typing import NamedTuple

from bursar.core.clock import Instant
from bursar.core.device_names import device_kinds
from bursar.core.ids import AgentId, FrameworkId
from bursar.core.messages.framework import REGION_AWARE, RESERVATION_REFINEMENT, REVOCABLE_RESOURCES
from bursar.core.messages.offers import Shape
from bursar.core.messages.operator import FrameworkState, Obstacle, ObstacleKind, RefusalReason
from bursar.core.predicates import AgentFacts, format_predicates, matches
from bursar.core.resources import (
    GPUS,
    MILLI,
    PORTS,
    Holding,
    ReservationType,
    ResourceRequest,
    Resources,
    Stack,
    add_holdings,
    holding_total,
    subtract_ports,
)
from bursar.core.role_expressions import plain_holder
from bursar.core.text import format_amount, format_duration, format_milli, format_request, format_resources
from bursar.master.allocator.backoff import FREE_ROUNDS, shape_of
from bursar.master.allocator.decision import Proposal, Question, consider
from bursar.master.allocator.filters import AgentFilters
from bursar.master.allocator.held_back import HeldBack, guaranteed_first
from bursar.master.allocator.lending import lending_steps
from bursar.master.allocator.rules import CompiledRule
from bursar.master.allocator.shares import Client, Node
from bursar.master.ledger import Books
from bursar.master.rules import describe, why_hidden
from bursar.master.starvation import STARVATION_CYCLES
from bursar.master.state import Agent, Cluster, Framework

#: Names in one sentence; the rest is counted.
MAX_NAMES = 3
#: Shapes, holders, agents and the like that are looked at for facts.
MAX_LOOKED_AT = 5
#: Clients that are asked whether they would be served before.
MAX_RIVALS_ASKED = 100


@dataclass(slots=True)
class Group:
    """Pairs of (framework in a role, agent) that are refused for the same reason."""

    cluster: Cluster
    now: Instant
    reason: RefusalReason
    #: Empty where several roles are counted together.
    role: str
    #: The first pair stands for the others where facts differ.
    client: Client
    agent: Agent
    pairs: int = 0
    agents: dict[AgentId, Agent] = field(default_factory=dict)
    clients: dict[Client, None] = field(default_factory=dict)
    frameworks: dict[FrameworkId, Framework] = field(default_factory=dict)

    def add(self, agent: Agent, client: Client, framework: Framework) -> None:
        """One more pair."""
        self.pairs += 1
        self.agents[agent.agent_id] = agent
        self.clients[client] = None
        self.frameworks[framework.framework_id] = framework

    def choose_example(self) -> None:
        """Let the agent stand for the others of which the least is lacking: fewest kinds of what is wanted are not free."""
        shapes = self.shapes
        if len(self.agents) < 2 or not shapes or len(self.frameworks) > 1:
            return
        request = shapes[0][0].resources
        amounts = _amounts(request)

        def lacking(agent: Agent) -> int:
            free = holding_total(self.cluster.ledger.books[agent.agent_id].free)
            return sum(_there(request, kind, free) < wanted for kind, wanted in amounts)

        self.agent = min(self.agents.values(), key=lacking)

    @property
    def framework(self) -> Framework:
        """That of the first pair."""
        return self.frameworks[self.client.framework_id]

    @property
    def shapes(self) -> list[tuple[Shape, int]]:
        """What the first pair's framework still wants in the role, and how often; empty: anything."""
        framework, role = self.framework, self.client.role
        return [
            (shape, wanted)
            for shape, wanted in zip(framework.demand.shapes, framework.wanted, strict=True)
            if shape.role == role and wanted > 0
        ]


def ask(
    cluster: Cluster,
    agent: Agent,
    client: Client,
    framework: Framework,
    free: Holding,
    *,
    filtered: bool = True,
    borrowing: bool = False,
) -> Proposal | RefusalReason:
    """What the allocator would decide if `free` were free on an agent; `filtered`: as if nothing had been declined where False;
    `borrowing`: what is lent, that is.

    Decides nothing, and inside `undisturbed` leaves nothing behind.
    """
    filters = cluster.filters.on(agent.agent_id) if filtered else None
    if filters is not None:
        # What the decision notes, to be faster the next time, is noted in a copy.
        copy = AgentFilters()
        copy.by_client = filters.by_client
        filters = copy
    if borrowing:
        steps = lending_steps(cluster, client, framework)
        # Not the same value: what filters know of that is about regular offers.
        return Question(cluster, exact=True).decide(agent, client, framework, dict(free), filters, steps)
    return consider(cluster, agent, client, framework, free, filters)


@contextmanager
def undisturbed(cluster: Cluster) -> Iterator[None]:
    """What decisions note for the cycle that they are part of is noted elsewhere."""
    held_back = cluster.held_back
    cluster.held_back = HeldBack()
    try:
        with cluster.visibility.uncounted():
            yield
    finally:
        cluster.held_back = held_back


def in_order(cluster: Cluster, free: Holding) -> Iterator[Node]:
    """Who is served, each once, in the order of a cycle with this free on an agent."""
    shares = cluster.shares
    seen: set[Client] = set()
    first = guaranteed_first(shares, free) if shares.quota_kinds else ()
    for node in chain(first, shares.order()):
        assert node.client is not None
        if node.client not in seen:
            seen.add(node.client)
            yield node


# --- the words ---


class Words(NamedTuple):
    """How a reason is told."""

    #: What it means, of agents: "2 agents (a, b): …".
    says: Callable[[Group], str]
    #: What would change it.
    hint: Callable[[Group], str]
    #: The facts, the most telling first.
    obstacles: Callable[[Group], Iterable[Obstacle]]


def _inactive(group: Group) -> Iterator[Obstacle]:
    states = Counter(agent.state for agent in group.agents.values())
    for state, count in sorted(states.items()):
        name = state.name.lower()
        examples = name_some(agent.info.hostname for agent in group.agents.values() if agent.state is state)
        message = f"{examples}: {name}" + (f" ({count} agents)" if count > 1 else "")
        yield Obstacle(ObstacleKind.STATE, name, message)


def _wishes(group: Group) -> Iterator[Obstacle]:
    """Why the frameworks want nothing."""
    found: dict[str, list[Framework]] = {}
    for client in group.clients:
        framework = group.frameworks[client.framework_id]
        if framework.state is not FrameworkState.ACTIVE:
            state = "disconnected"
        elif client.role in framework.suppressed:
            state = "suppressed"
        elif any(shape.role == client.role for shape in framework.demand.shapes):
            state = "fulfilled"
        else:
            state = "no-demand"
        known = found.setdefault(state, [])
        if framework not in known[-1:]:
            known.append(framework)
    words = {
        "disconnected": "not connected",
        "suppressed": "it suppressed the role",
        "fulfilled": "all that it said it wants is offered or placed",
        "no-demand": "its demand names nothing (more) in this role",
    }
    for state, meaning in words.items():
        if frameworks := found.get(state):
            yield Obstacle(
                ObstacleKind.STATE,
                state,
                f"{_names(_framework_name(framework) for framework in frameworks)}: {meaning}",
                frameworks[0].framework_id,
            )


def _wish_hint(group: Group) -> str:
    hints = {
        "disconnected": "start the framework again before its failover time-out ends; see `bursar framework show`",
        "suppressed": "let the framework revive the role",
        "fulfilled": "nothing to do; a framework that wants more states a new demand",
        "no-demand": "let the framework state a demand in this role",
    }
    return hints[next(_wishes(group)).name]


def _rule_of(group: Group, agent: Agent, client: Client) -> CompiledRule | None:
    framework = group.frameworks[client.framework_id]
    return group.cluster.visibility.judge(agent.info, client.role, framework.info).winner


def _by_rule(group: Group) -> list[tuple[CompiledRule, list[Agent]]]:
    """Which rule decides for which agents; the one that decides for most first."""
    found: dict[str, tuple[CompiledRule, list[Agent]]] = {}
    for agent in group.agents.values():
        rule = _rule_of(group, agent, group.client)
        if rule is not None:
            found.setdefault(rule.name, (rule, []))[1].append(agent)
    return [entry for _, entry in sorted(found.items(), key=lambda item: (-len(item[1][1]), item[0]))]


def _rules(group: Group) -> Iterator[Obstacle]:
    for rule, agents in _by_rule(group):
        name = rule.name
        examples = name_some(agent.info.hostname for agent in agents)
        yield Obstacle(
            ObstacleKind.RULE,
            name,
            f"the rule {name} decides for {examples}: {rule.rule.reason or describe(rule.rule)}",
        )
    if group.reason is not RefusalReason.HIDDEN_BY_RULE:
        return
    # An agent that is hidden is hidden with what is kept there for the framework's own role.
    for agent in group.agents.values():
        for stack, part in _books(group, agent).total.items():
            if stack and _covers(group.cluster, stack, group.client.role):
                holder = stack[-1].holder
                text = (
                    f"what is reserved to {holder} on {agent.info.hostname} ({format_resources(part)}) is hidden, too"
                )
                yield _of_reservation(holder, part, agent, text)


def _rule_says(group: Group) -> str:
    rule = _rule_of(group, group.agent, group.client)
    if rule is None:
        return "hidden by a rule"
    hunger = group.cluster.hunger.get(group.framework.framework_id)
    starved = hunger is not None and hunger.rule == rule.name
    if not starved and len(deciding := _by_rule(group)) > 1:
        verb = "hidden" if group.reason is RefusalReason.HIDDEN_BY_RULE else "restricted"
        return f"{verb} by different rules: {name_some(rule.name for rule, _ in deciding)}"
    return why_hidden(rule)[0] + (
        f"; starved by this rule: no offer for {STARVATION_CYCLES} cycles and more" if starved else ""
    )


def _rule_hint(group: Group) -> str:
    rule = _rule_of(group, group.agent, group.client)
    if rule is None or len(_by_rule(group)) > 1:
        return "see `bursar rule test` for what each of them says, and `bursar rule ls`"
    return why_hidden(rule)[1]


def _shapes(group: Group) -> Iterator[Obstacle]:
    """In which dimension shapes exceed: first those in which every agent is too small, else what the nearest agent lacks."""
    agents = list(group.agents.values())
    totals = [holding_total(_books(group, agent).total) for agent in agents]
    for shape, _ in group.shapes[:MAX_LOOKED_AT]:
        request, text = shape.resources, format_request(shape.resources)
        hopeless = False
        for kind, wanted in _amounts(request):
            amounts = [_there(request, kind, total) for total in totals]
            most = max(amounts)
            if most < wanted:
                hopeless = True
                largest = agents[amounts.index(most)]
                message = f"{kind}: {_format(kind, wanted)} wanted, {largest.info.hostname} has {_format(kind, most)}"
                if len(agents) > 1:
                    message += ", and no other has more"
                yield Obstacle(
                    ObstacleKind.SHAPE, text, message, agent_id=largest.agent_id, resource=kind, amount=wanted, of=most
                )
        if hopeless:
            continue
        lacking = [
            [(kind, wanted) for kind, wanted in _amounts(request) if _there(request, kind, total) < wanted]
            for total in totals
        ]
        index = min(range(len(agents)), key=lambda index: len(lacking[index]))
        for kind, wanted in lacking[index]:
            there = _there(request, kind, totals[index])
            name = agents[index].info.hostname
            message = f"{kind}: {_format(kind, wanted)} wanted, {name} has all else and {_format(kind, there)} of it"
            if len(lacking[index]) > 1:
                message = (
                    f"{kind}: {_format(kind, wanted)} wanted, {name}, which lacks least, has {_format(kind, there)}"
                )
            yield Obstacle(
                ObstacleKind.SHAPE,
                text,
                message,
                agent_id=agents[index].agent_id,
                resource=kind,
                amount=wanted,
                of=there,
            )


def _exceeds_says(group: Group) -> str:
    everywhere = len(group.agents) == len(group.cluster.agents)
    says = "smaller in total than what is wanted"
    if everywhere and len(group.agents) > 1:
        says = "no agent could ever fit what is wanted"
    return says + "".join(f"; {obstacle.message}" for obstacle in islice(_shapes(group), 1))


def _exceeds_hint(group: Group) -> str:
    for obstacle in _shapes(group):
        kind = obstacle.resource
        if not obstacle.of:
            return f"add agents that have {kind}, or ask for none"
        return f"ask for at most {kind}:{_format(kind, obstacle.of)} at once, or add larger agents"
    return "ask for less, or add larger agents"


def _reservations(group: Group) -> Iterator[Obstacle]:
    found: dict[str, tuple[Agent, Resources, int]] = {}
    for agent in group.agents.values():
        for stack, part in _books(group, agent).total.items():
            if stack and not _covers(group.cluster, stack, group.client.role):
                holder = stack[-1].holder
                known = found.get(holder)
                found[holder] = (agent, part, 1) if known is None else (*known[:2], known[2] + 1)
    for holder, (agent, part, places) in sorted(found.items(), key=lambda item: (-item[1][2], item[0])):
        more = f", and something in {places - 1} other places" if places > 1 else ""
        lent = ", lent while it is idle" if any(stack[-1].holder == holder for stack in agent.lent) else ""
        text = f"{format_resources(part)} of {agent.info.hostname} reserved to {holder}{lent}{more}"
        yield _of_reservation(
            holder, part, agent, text, [kind for shape, _ in group.shapes for kind, _ in _amounts(shape.resources)]
        )


def _reservation_hint(group: Group) -> str:
    for stack, part in sorted(_books(group, group.agent).total.items()):
        if stack and not _covers(group.cluster, stack, group.client.role):
            holder = stack[-1].holder
            if stack in group.agent.lent:
                capabilities = group.frameworks[group.client.framework_id].info.capabilities
                if REVOCABLE_RESOURCES not in capabilities:
                    return f"add the capability {REVOCABLE_RESOURCES}, where the framework can do with notices: it is lent while it is idle"
            if stack[-1].type is ReservationType.STATIC:
                return f"run in a role that {holder} covers; the reservation is static: the agent's --resources says it"
            role = plain_holder(holder)
            whose = f"--roles '{holder}'" if role is None or role != holder else f"--role {holder}"
            return (
                f"run in a role that {holder} covers, or `bursar unreserve {whose} --agent {group.agent.info.hostname} "
                f"--resources '{format_resources(part)}'`"
            )
    return "see `bursar reservation ls`; run in a role that is covered, or unreserve"


def _holders(group: Group) -> Iterator[Obstacle]:
    """What is not free on the agent that lacks least, and who holds it: those first that hold most of what is wanted."""
    books, agent = _books(group, group.agent), group.agent
    if group.reason is RefusalReason.NOT_FREE:
        yield from _not_free(group)
    kinds = list(dict.fromkeys(kind for shape, _ in group.shapes for kind, _ in _amounts(shape.resources)))
    found: list[tuple[int, int, Obstacle]] = []
    by_framework: dict[FrameworkId, tuple[int, str, Holding]] = {}
    for key, entry in books.allocated.items():
        count, name, held = by_framework.get(key.framework_id, (0, key.task_id, {}))
        by_framework[key.framework_id] = (count + 1, min(name, key.task_id), add_holdings(held, entry.holding))
    for framework_id, (count, name, held) in by_framework.items():
        part = holding_total(held)
        tasks = f"task {name}" if count == 1 else f"{count} tasks ({name}, …)"
        text = f"{tasks} of {framework_id} {'holds' if count == 1 else 'hold'} {format_resources(part)} of {agent.info.hostname}"
        obstacle = _with_amount(ObstacleKind.TASK, name, text, part, kinds, agent, framework_id)
        found.append((0, -obstacle.amount, obstacle))
    for offer_id, offered in books.offered.items():
        if offered.client == group.client:
            continue
        part = holding_total(offered.holding)
        client = offered.client
        text = (
            f"{format_resources(part)} of {agent.info.hostname} offered to {client.framework_id} in role {client.role}"
        )
        obstacle = _with_amount(ObstacleKind.OFFER, offer_id, text, part, kinds, agent, client.framework_id)
        found.append((1, -obstacle.amount, obstacle))
    for uuid, why in sorted(books.withheld_devices.items()):
        text = f"{uuid} of {agent.info.hostname} is not offered: {why}"
        found.append(
            (2, 0, Obstacle(ObstacleKind.DEVICE, uuid, text, agent_id=agent.agent_id, resource=GPUS, amount=MILLI))
        )
    holder = group.cluster.gangs.holder
    if books.gang_hold and holder is not None:
        part = holding_total(books.gang_hold)
        text = f"{format_resources(part)} of {agent.info.hostname} is withheld for gang {holder.key.gang_id} of {holder.key.framework_id}"
        obstacle = _with_amount(
            ObstacleKind.GANG, holder.key.gang_id, text, part, kinds, agent, holder.key.framework_id
        )
        found.append((2, -obstacle.amount, obstacle))
    if group.reason is RefusalReason.OTHERS_FIRST:
        found = [entry for entry in found if entry[0] == 1]
    for _, _, obstacle in sorted(found, key=lambda entry: (entry[0], entry[1], entry[2].name)):
        yield obstacle
    yield from _rivals(group)


def _not_free(group: Group) -> Iterator[Obstacle]:
    free = holding_total(_books(group, group.agent).free)
    for shape, _ in group.shapes[:1]:
        for kind, wanted in _amounts(shape.resources):
            there = _there(shape.resources, kind, free)
            if there < wanted:
                name = group.agent.info.hostname
                text = f"{kind}: {_format(kind, wanted)} wanted, {_format(kind, there)} free on {name}"
                if len(group.agents) > 1:
                    text += ", which lacks least"
                yield Obstacle(
                    ObstacleKind.SHAPE,
                    format_request(shape.resources),
                    text,
                    agent_id=group.agent.agent_id,
                    resource=kind,
                    amount=wanted,
                    of=there,
                )


def _rivals(group: Group) -> Iterator[Obstacle]:
    """Who would be served before if all that is held on the first agent were free, and would take it."""
    cluster, agent, own = group.cluster, group.agent, group.client
    node = cluster.shares.client_node(own)
    if node is None or not node.active:
        return
    total = _books(group, agent).total
    for asked, other in enumerate(in_order(cluster, total)):
        client = other.client
        assert client is not None
        if client == own or asked >= MAX_RIVALS_ASKED:
            return
        framework = cluster.frameworks[client.framework_id]
        if type(ask(cluster, agent, client, framework, total)) is Proposal:
            theirs, mine = _siblings(other, node)
            share, weight = cluster.shares.dominant_millionths(theirs), theirs.weight_milli
            against = f"{_percent(cluster.shares.dominant_millionths(mine))} and {format_milli(mine.weight_milli)}"
            text = (
                f"{_framework_name(framework)} in role {client.role} would be served before: share {_percent(share)}, weight "
                f"{format_milli(weight)}, against {against} of {_node_name(mine)}"
            )
            yield Obstacle(
                ObstacleKind.COMPETITOR, client.role, text, client.framework_id, agent.agent_id, amount=share, of=weight
            )


def _not_free_hint(group: Group) -> str:
    name = group.agent.info.hostname
    kinds = {obstacle.kind for obstacle in _holders(group)}
    hints = []
    if ObstacleKind.OFFER in kinds:
        hints.append("wait for the offers to be answered (see `bursar offer ls`)")
    if ObstacleKind.TASK in kinds or not hints:
        hints.append("wait for tasks to end, or end some with `bursar task kill` (see `bursar task ls`)")
    if ObstacleKind.DEVICE in kinds:
        hints.append(f"see `bursar agent show {name}` for what is withheld")
    return "; ".join(hints)


def _limits(group: Group) -> Iterator[Obstacle]:
    """Limits of the role and of those above it that leave less than is wanted; all of them where nothing is stated."""
    node: Node | None = group.cluster.shares.nearest(group.client.role)
    wanted: dict[str, int] = {}
    for shape, _ in group.shapes:
        for kind, amount in _amounts(shape.resources):
            wanted[kind] = min(amount, wanted.get(kind, amount))
    found: list[tuple[int, Obstacle]] = []
    while node is not None and node.parent is not None:
        for kind, limit in node.limit.items():
            consumed = node.consumed(kind)
            left = limit - consumed
            if (left < wanted.get(kind, 0)) if wanted else left <= 0:
                text = (
                    f"{node.path} has consumed {_format(kind, consumed)} of its limit of {_format(kind, limit)} {kind}"
                )
                found.append(
                    (left, Obstacle(ObstacleKind.LIMIT, node.path, text, resource=kind, amount=consumed, of=limit))
                )
        node = node.parent
    for _, obstacle in sorted(found, key=lambda entry: entry[0]):
        yield obstacle


def _limit_hint(group: Group) -> str:
    for obstacle in _limits(group):
        return (
            f"wait for tasks of {obstacle.name} to end, ask for less {obstacle.resource}, or raise the limit with "
            f"`bursar quota set --role {obstacle.name}`"
        )
    return "raise the limit with `bursar quota set`; see `bursar quota ls`"


def _guarantees(group: Group) -> Iterator[Obstacle]:
    """Guarantees of others that are not met: what is kept free for them."""
    own = set()
    node: Node | None = group.cluster.shares.nearest(group.client.role)
    while node is not None:
        own.add(node.path)
        node = node.parent
    kinds = {kind for shape, _ in group.shapes for kind, _ in _amounts(shape.resources)}
    found: list[tuple[int, Obstacle]] = []
    for node in group.cluster.shares.nodes():
        for kind, guarantee in node.guarantee.items():
            left = guarantee - node.consumed(kind)
            if left > 0 and node.path not in own and (not kinds or kind in kinds):
                text = f"{kind}: {_format(kind, left)} kept free for {node.path}, which is guaranteed {_format(kind, guarantee)}"
                found.append(
                    (
                        -left,
                        Obstacle(
                            ObstacleKind.GUARANTEE,
                            node.path,
                            text,
                            resource=kind,
                            amount=guarantee - left,
                            of=guarantee,
                        ),
                    )
                )
    for _, obstacle in sorted(found, key=lambda entry: (entry[0], entry[1].name)):
        yield obstacle


def _guarantee_hint(group: Group) -> str:
    for obstacle in _guarantees(group):
        return (
            f"wait until {obstacle.name} uses it or more is free, lower its guarantee with `bursar quota set --role {obstacle.name}`, or "
            f"give {group.client.role} a guarantee of its own"
        )
    return "lower a guarantee with `bursar quota set`; see `bursar quota ls`"


def _minimum(group: Group) -> Iterator[Obstacle]:
    settings = group.framework.settings.get(group.client.role)
    minimum = settings.minimum if settings is not None and settings.minimum is not None else group.cluster.minimum
    books, agent = _books(group, group.agent), group.agent
    free, total = holding_total(books.free), holding_total(books.total)
    for alternative in minimum:
        for kind, least in alternative:
            there = free.amount(kind)
            if there < least:
                text = (
                    f"{kind}: {_format(kind, there)} free on {agent.info.hostname}, {_format(kind, least)} is the least"
                )
                if total.amount(kind) < least:
                    text += f", and it has only {_format(kind, total.amount(kind))}"
                yield Obstacle(
                    ObstacleKind.MINIMUM, kind, text, agent_id=agent.agent_id, resource=kind, amount=there, of=least
                )


def _constraints(group: Group) -> Iterator[Obstacle]:
    """What of each of the framework's groups of predicates is not true of the first agent, even if all of it were free."""
    agent, info = group.agent, group.agent.info
    total = holding_total(_books(group, agent).total)
    devices = tuple(agent.devices[uuid] for uuid in sorted(total.devices) if uuid in agent.devices)
    facts = AgentFacts(info.hostname, info.attributes, total.amounts(), devices)
    settings = group.framework.settings.get(group.client.role)
    for predicates in () if settings is None else settings.groups:
        wrong = [format_predicates([predicate]) for predicate in predicates if not matches(predicate, facts)]
        text = (
            f"{', '.join(wrong[:MAX_NAMES])} is not true of {info.hostname}"
            if wrong
            else "it is true of all of it alone"
        )
        name = format_predicates(predicates)
        yield Obstacle(ObstacleKind.CONSTRAINT, name, f"the framework takes {name}: {text}", agent_id=agent.agent_id)


def _filters(group: Group) -> Iterator[Obstacle]:
    """What was declined, where and until when; the filter that ends first in front."""
    found: list[tuple[int, Obstacle]] = []
    for agent in group.agents.values():
        filters = group.cluster.filters.on(agent.agent_id)
        entry = None if filters is None else filters.by_client.get(group.client)
        if entry is None:
            continue
        until_ms, _, rest = entry
        while rest is not None:
            until_ms, _, rest = rest
        found.append((until_ms, Obstacle(ObstacleKind.FILTER, agent.info.hostname, agent_id=agent.agent_id)))
        if len(found) > 10 * MAX_LOOKED_AT:
            break
    for until_ms, obstacle in sorted(found, key=lambda entry: (entry[0], entry[1].name)):
        left_ms = max(0, until_ms - group.now.monotonic_ms)
        framework = _framework_name(group.framework)
        text = f"{framework} {_refused(group, obstacle)} for another {format_duration(left_ms)}"
        yield replace(obstacle, message=text, until_ms=group.now.wall_ms + left_ms)


def _refused(group: Group, obstacle: Obstacle) -> str:
    """What a framework did with the offers of an agent, and why the same is kept from it."""
    filters, client = group.cluster.filters, group.client
    if rounds := filters.rounds_unanswered(client.framework_id):
        return f"left offers unanswered {rounds} times in a row, and is not offered {obstacle.name}"
    books = group.cluster.ledger.books[AgentId(obstacle.agent_id)]
    rounds = filters.history.rounds(client, shape_of(books.total))
    if rounds > FREE_ROUNDS:
        return f"declined agents such as {obstacle.name} {rounds} times in a row, and is not offered it"
    return f"declined {obstacle.name} and asked not to be offered it"


def _filter_hint(group: Group) -> str:
    for obstacle in _filters(group):
        left_ms = obstacle.until_ms - group.now.wall_ms
        hint = f"let the framework revive the role, or wait {format_duration(left_ms)}; a larger offer is made at once"
        if "in a row" in obstacle.message:
            hint += (
                "; the row ends once it takes something; with its demand or constraints stated it is not asked in vain"
            )
        return hint
    return "let the framework revive the role, or wait for its filters to end"


def _region(group: Group) -> Iterator[Obstacle]:
    regions = Counter(agent.facts.region for agent in group.agents.values())
    for region, count in sorted(regions.items()):
        examples = name_some(agent.info.hostname for agent in group.agents.values() if agent.facts.region == region)
        text = f"{examples}: in the region {region}, the master is in {group.cluster.region}"
        yield Obstacle(ObstacleKind.STATE, region, text + (f" ({count} agents)" if count > 1 else ""))
    yield Obstacle(ObstacleKind.CAPABILITY, REGION_AWARE, f"the framework lacks the capability {REGION_AWARE}")


def _refined(group: Group) -> Iterator[Obstacle]:
    for agent in group.agents.values():
        for stack in sorted(_books(group, agent).total):
            if len(stack) > 1 and _covers(group.cluster, stack, group.client.role):
                text = f"{agent.info.hostname} keeps it for {' > '.join(level.holder for level in stack)}"
                yield Obstacle(ObstacleKind.RESERVATION, stack[-1].holder, text, agent_id=agent.agent_id)
    text = f"the framework lacks the capability {RESERVATION_REFINEMENT}"
    yield Obstacle(ObstacleKind.CAPABILITY, RESERVATION_REFINEMENT, text)


WORDS: dict[RefusalReason, Words] = {
    RefusalReason.AGENT_INACTIVE: Words(
        lambda group: "not connected",
        lambda group: "start `bursar-agent` there again, or wait for it to come back; see `bursar agent ls`",
        _inactive,
    ),
    RefusalReason.SUPPRESSED: Words(
        lambda group: "the framework wants nothing (more) in this role",
        _wish_hint,
        _wishes,
    ),
    RefusalReason.HIDDEN_BY_RULE: Words(_rule_says, _rule_hint, _rules),
    RefusalReason.OTHER_REGION: Words(
        lambda group: "in another region than the master, and the framework lacks the capability REGION_AWARE",
        lambda group: "add the capability, where the framework can do with that",
        _region,
    ),
    RefusalReason.OFFER_CONSTRAINTS: Words(
        lambda group: "no offer constraint of the framework is true of it",
        lambda group: "loosen the constraints, or add agents that they are true of; see `bursar agent show`",
        _constraints,
    ),
    RefusalReason.EXCEEDS_AGENT: Words(_exceeds_says, _exceeds_hint, _shapes),
    RefusalReason.RESERVED_FOR_OTHERS: Words(
        lambda group: "what would be enough is reserved for other roles", _reservation_hint, _reservations
    ),
    RefusalReason.CAPABILITY_MISSING: Words(
        lambda group: (
            f"what would be enough is a refined reservation, and the framework lacks {RESERVATION_REFINEMENT}"
        ),
        lambda group: "add the capability, where the framework can do with that",
        _refined,
    ),
    RefusalReason.NOT_FREE: Words(lambda group: "large enough, but in use", _not_free_hint, _holders),
    RefusalReason.STRIPPED_BY_RULE: Words(_rule_says, _rule_hint, _rules),
    RefusalReason.QUOTA_LIMIT: Words(
        lambda group: "enough is free, but the limit of the role, or of a role above it, is reached",
        _limit_hint,
        _limits,
    ),
    RefusalReason.HEADROOM: Words(
        lambda group: "enough is free, but it is kept for the guarantees of other roles", _guarantee_hint, _guarantees
    ),
    RefusalReason.TOO_SMALL: Words(
        lambda group: "what is free is less than the smallest offer",
        lambda group: (
            "wait for tasks to end, or lower the minimum: the framework's own, or `bursar flag set min-allocatable-resources`"
        ),
        _minimum,
    ),
    RefusalReason.DECLINED: Words(lambda group: "the framework declined it a moment ago", _filter_hint, _filters),
    RefusalReason.OTHERS_FIRST: Words(
        lambda group: "it is offered to others, whose turn came first",
        lambda group: (
            "wait for the offers to be answered (see `bursar offer ls`), or raise the role's weight with `bursar weight set`"
        ),
        _holders,
    ),
}


# --- small things ---


def _books(group: Group, agent: Agent) -> Books:
    return group.cluster.ledger.books[agent.agent_id]


def _covers(cluster: Cluster, stack: Stack, role: str) -> bool:
    return cluster.holders.covers(stack[-1].holder, role)


def _siblings(left: Node, right: Node) -> tuple[Node, Node]:
    """Where the ways down to two clients part."""
    ways = []
    for node in (left, right):
        way = [node]
        while node.parent is not None:
            node = node.parent
            way.append(node)
        ways.append(way[::-1])
    return next(pair for pair in zip(*ways, strict=False) if pair[0] is not pair[1])


def _node_name(node: Node) -> str:
    return node.client.framework_id if node.client is not None else node.path.removesuffix("/.")


def _amounts(request: ResourceRequest) -> list[tuple[str, int]]:
    """What is asked for, kind by kind, in integer units; the scarcest kind of thing first."""
    amounts = [(GPUS, request.gpu_count * MILLI)] if request.gpu_count else []
    amounts += sorted(request.scalars.items())
    if request.ports:
        amounts.append((PORTS, sum(len(span) for span in request.ports)))
    return amounts


def _there(request: ResourceRequest, kind: str, resources: Resources) -> int:
    """How much of a kind is there, of what would do."""
    if kind == PORTS:
        asked = sum(len(span) for span in request.ports)
        return asked - sum(len(span) for span in subtract_ports(request.ports, resources.ports))
    if kind == GPUS and request.devices:
        return MILLI * len(resources.devices.intersection(request.devices))
    return resources.amount(kind)


def _with_amount(
    kind: ObstacleKind,
    name: str,
    text: str,
    part: Resources,
    kinds: Iterable[str],
    agent: Agent,
    framework_id: str = "",
) -> Obstacle:
    """An obstacle that names how much it holds of the first kind that matters."""
    there = [GPUS] if part.gpus else []
    there += [*device_kinds(part.devices), *sorted(part.scalars)]
    resource = next((kind for kind in kinds if part.amount(kind)), there[0] if there else "")
    amount = part.amount(resource) if resource else 0
    return Obstacle(kind, name, text, framework_id, agent.agent_id, resource, amount)


def _of_reservation(holder: str, part: Resources, agent: Agent, text: str, kinds: Iterable[str] = ()) -> Obstacle:
    return _with_amount(ObstacleKind.RESERVATION, holder, text, part, kinds, agent)


def _format(kind: str, amount: int) -> str:
    return str(amount) if kind == PORTS else format_amount(kind, amount)


def _percent(millionths: int) -> str:
    return f"{millionths // 10_000}.{millionths % 10_000 // 100:02d} %"


def _framework_name(framework: Framework) -> str:
    name = framework.info.name
    return framework.framework_id if name in ("", framework.framework_id) else f"{framework.framework_id} ({name})"


def _names(names: Iterable[str]) -> str:
    """The first few."""
    shown: list[str] = []
    for name in names:
        if len(shown) == MAX_NAMES:
            return ", ".join(shown) + ", …"
        shown.append(name)
    return ", ".join(shown)


def name_some(names: Iterable[str]) -> str:
    """The first few names in order, and a mark where there are more."""
    return _names(nsmallest(MAX_NAMES + 1, names))
