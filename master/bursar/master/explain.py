"""Why is somebody not offered what they want? Answered by the code that decides: `allocator.decision`.

For every pair of (framework in a role, agent) in question, the decision is asked for as it would fall now; pairs with the same reason
are counted together, and `obstacles` tells what stands in the way in particular. Nothing here changes a decision to come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum
from itertools import islice
from typing import TypeVar

from bursar.core.clock import Instant
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import DeviceUuid
from bursar.core.messages.framework import REVOCABLE_RESOURCES
from bursar.core.messages.operator import (
    AgentState,
    ExplainAgentResponse,
    ExplainFrameworkResponse,
    ExplainRoleResponse,
    FrameworkState,
    Refusal,
    RefusalReason,
    ServingPlace,
)
from bursar.core.predicates import format_predicates
from bursar.core.resources import GPUS, UNRESERVED, Holding, Resources, add_holdings
from bursar.core.roles import covers
from bursar.core.text import format_request
from bursar.master.allocator.decision import Proposal
from bursar.master.allocator.lending import may_lend
from bursar.master.allocator.shares import Client
from bursar.master.gangs.explaining import explain_gangs
from bursar.master.obstacles.asking import Group, ask, in_order, undisturbed
from bursar.master.obstacles.wording import name_some
from bursar.master.obstacles.words import WORDS
from bursar.master.state import Agent, Cluster, Framework

T = TypeVar("T")

#: Pairs that are looked at for one answer: about a tenth of a second. Of more, so many are looked at, evenly spread.
MAX_PAIRS = 10_000
#: Refusals in one answer; of more, those of all roles are counted together.
MAX_REFUSALS = 30
MAX_OBSTACLES = 8
#: Places in the order of shares: of those asked for, and before them.
MAX_PLACES, MAX_PLACES_BEFORE = 10, 3

_STRUCTURAL = (
    RefusalReason.OFFER_CONSTRAINTS,
    RefusalReason.EXCEEDS_AGENT,
    RefusalReason.RESERVED_FOR_OTHERS,
    RefusalReason.CAPABILITY_MISSING,
    RefusalReason.NOT_FREE,
)
#: Refusals after which it matters what is lent of the agent.
_LOOKS_ELSEWHERE = (RefusalReason.RESERVED_FOR_OTHERS, RefusalReason.NOT_FREE)
#: What is said even to who has an offer: more is free, and wanted.
_HELD_BACK = (RefusalReason.STRIPPED_BY_RULE, RefusalReason.QUOTA_LIMIT, RefusalReason.HEADROOM)


class Standing(Enum):
    """What a pair may be other than refused."""

    #: It has an outstanding offer, and nothing more is kept from it.
    OFFERED = 1
    #: Nothing stands in the way; the next cycle makes the offer.
    DUE = 2


def standing(cluster: Cluster, agent: Agent, client: Client, framework: Framework) -> RefusalReason | Standing:
    """How a framework in a role stands with an agent; asked inside `undisturbed`."""
    if agent.state is not AgentState.ACTIVE:
        return RefusalReason.AGENT_INACTIVE
    if framework.state is not FrameworkState.ACTIVE or client.role in framework.suppressed:
        return RefusalReason.SUPPRESSED
    regular = _regularly(cluster, agent, client, framework)
    borrows = agent.lent and REVOCABLE_RESOURCES in framework.info.capabilities
    if borrows and isinstance(regular, RefusalReason) and regular in _LOOKS_ELSEWHERE:
        return _on_loan(cluster, agent, client, framework)
    return regular


def _on_loan(cluster: Cluster, agent: Agent, client: Client, framework: Framework) -> RefusalReason | Standing:
    """How it stands with what is lent of the agent."""
    books = cluster.ledger.books[agent.agent_id]
    if any(entry.client == client and entry.revocable for entry in books.offered.values()):
        return Standing.OFFERED
    decision = ask(cluster, agent, client, framework, books.free, borrowing=True)
    if isinstance(decision, Proposal):
        return Standing.DUE if may_lend(cluster, agent) else RefusalReason.NOT_FREE
    whole = ask(cluster, agent, client, framework, books.total, borrowing=True)
    return RefusalReason.NOT_FREE if isinstance(whole, Proposal) and decision in _STRUCTURAL else decision


def _regularly(cluster: Cluster, agent: Agent, client: Client, framework: Framework) -> RefusalReason | Standing:
    books = cluster.ledger.books[agent.agent_id]
    decision = ask(cluster, agent, client, framework, books.free)
    if isinstance(decision, Proposal):
        return Standing.DUE
    others: Holding = books.free
    for entry in books.offered.values():
        if entry.client == client:
            return decision if decision in _HELD_BACK else Standing.OFFERED
        others = add_holdings(others, entry.holding)
    if decision is RefusalReason.DECLINED:
        # What was declined may be less than what is wanted.
        unfiltered = ask(cluster, agent, client, framework, books.free, filtered=False)
        decision = decision if isinstance(unfiltered, Proposal) else unfiltered
    if decision not in _STRUCTURAL:
        return decision
    # It is not enough now: would all of the agent be? Whoever declined all of it is told so only if it would.
    whole = ask(cluster, agent, client, framework, books.total, filtered=False)
    if isinstance(whole, RefusalReason) and whole < RefusalReason.NOT_FREE:
        return whole
    if others is not books.free:
        # It would: and is it only offers that are in the way?
        without = ask(cluster, agent, client, framework, others)
        if isinstance(without, Proposal):
            return RefusalReason.OTHERS_FIRST
        if without in (RefusalReason.DECLINED, RefusalReason.QUOTA_LIMIT):
            # Others have it because the framework did not want it, or may not have it.
            return without
    return RefusalReason.NOT_FREE


class Survey:
    """Pairs of clients and agents, looked at and counted by role and reason; made inside `undisturbed`."""

    def __init__(self, cluster: Cluster, now: Instant, clients: Sequence[Client], agents: Sequence[Agent]) -> None:
        self.cluster = cluster
        self.pairs = len(clients) * len(agents)
        self.examined = self.offered = self.due = 0
        groups: dict[tuple[str, RefusalReason], Group] = {}
        for client, agent in _spread(clients, agents, MAX_PAIRS):
            framework = cluster.frameworks[client.framework_id]
            self.examined += 1
            reason = standing(cluster, agent, client, framework)
            if reason is Standing.OFFERED:
                self.offered += 1
            elif reason is Standing.DUE:
                self.due += 1
            else:
                assert isinstance(reason, RefusalReason)
                group = groups.get((client.role, reason))
                if group is None:
                    group = groups[client.role, reason] = Group(cluster, now, reason, client.role, client, agent)
                group.add(agent, client, framework)
        self.groups = list(groups.values())
        if len(self.groups) > MAX_REFUSALS:
            self.groups = _without_roles(self.groups)
        self.groups.sort(key=lambda group: (group.role, group.reason))
        #: One for each group; within a role the reason nearest to success last.
        self.refusals = tuple(_refusal(group) for group in self.groups)


def explain_framework(
    cluster: Cluster, now: Instant, framework: Framework, agent: Agent | None = None, role: str = ""
) -> ExplainFrameworkResponse | ErrorDetail:
    """Of all agents or one, in all roles of a framework or one."""
    roles = framework.info.roles
    if role and role not in roles:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"{framework.framework_id} is not in the role {role!r}",
            f"name one of its roles: {name_some(sorted(roles))}",
            "role",
        )
    clients = [Client(name, framework.framework_id) for name in ([role] if role else roles)]
    agents = _all_agents(cluster) if agent is None else [agent]
    with undisturbed(cluster):
        survey = Survey(cluster, now, clients, agents)
        gangs = explain_gangs(cluster, now, clients) if agent is None else ()
    return ExplainFrameworkResponse(
        survey.refusals,
        len(agents),
        len(framework.offers),
        survey.pairs,
        survey.examined,
        survey.offered,
        survey.due,
        serving_order(cluster, clients),
        framework.framework_id,
        gangs,
    )


def explain_role(cluster: Cluster, now: Instant, role: str) -> ExplainRoleResponse | ErrorDetail:
    """All frameworks of a role, and of those below it, on all agents."""
    clients = [client for client in _all_clients(cluster) if client.role == role or covers(role, client.role)]
    if not clients and cluster.shares.find(role) is None:
        return ErrorDetail(
            ErrorReason.NOT_FOUND,
            f"the role {role!r} is not in use: no framework is in it or below it, and nothing is kept for it",
            "see `bursar role ls`",
            "role",
        )
    agents, asked = _all_agents(cluster), set(clients)
    with undisturbed(cluster):
        survey = Survey(cluster, now, clients, agents)
        gangs = explain_gangs(cluster, now, asked)
    frameworks = {client.framework_id for client in clients}
    outstanding = sum(
        Client(cluster.offers[offer_id].offer.role, framework_id) in asked
        for framework_id in frameworks
        for offer_id in cluster.frameworks[framework_id].offers
    )
    return ExplainRoleResponse(
        survey.refusals,
        len(agents),
        outstanding,
        survey.pairs,
        survey.examined,
        survey.offered,
        survey.due,
        serving_order(cluster, clients),
        len(frameworks),
        gangs,
    )


def explain_agent(cluster: Cluster, now: Instant, agent: Agent) -> ExplainAgentResponse:
    """All frameworks in all their roles on one agent."""
    clients = _all_clients(cluster)
    with undisturbed(cluster):
        survey = Survey(cluster, now, clients, [agent])
    return ExplainAgentResponse(
        survey.refusals,
        agent.agent_id,
        len(cluster.ledger.books[agent.agent_id].offered),
        survey.pairs,
        survey.examined,
        survey.offered,
        survey.due,
        serving_order(cluster, clients),
        agent.info.hostname,
        len(cluster.frameworks),
    )


def serving_order(cluster: Cluster, clients: Iterable[Client]) -> tuple[ServingPlace, ...]:
    """When these are served, and some of those who come before the first of them."""
    kinds = cluster.shares.quota_kinds
    # Something of every kind: so that those come first whose guarantees are not met.
    something = Resources(
        dict.fromkeys(kinds - {GPUS}, 1), (), frozenset({DeviceUuid("any")}) if GPUS in kinds else frozenset()
    )
    order = [node.client for node in in_order(cluster, {UNRESERVED: something})]
    places = {client: place for place, client in enumerate(order, 1) if client is not None}
    asked = sorted(clients, key=lambda client: (places.get(client, len(order) + 1), client))[:MAX_PLACES]
    first = places.get(asked[0], 1) if asked else 1
    before = [client for client in order[: min(first - 1, MAX_PLACES_BEFORE)] if client is not None]
    return tuple(
        ServingPlace(
            client.role,
            client.framework_id,
            places.get(client, 0),
            len(order),
            cluster.shares.share_millionths(client.role),
            cluster.shares.weight_milli(client.role),
            cluster.frameworks[client.framework_id].info.name,
        )
        for client in (*before, *asked)
    )


def count_refusals(cluster: Cluster, at_most: int) -> dict[tuple[str, RefusalReason], int]:
    """Pairs of clients and agents that are refused, by role and reason: exact where there are at most so many pairs, else scaled up
    from so many, evenly spread.
    """
    clients, agents = _all_clients(cluster), cluster.agents_in_order
    pairs, examined = len(clients) * len(agents), 0
    found: Counter[tuple[str, RefusalReason]] = Counter()
    with undisturbed(cluster):
        for client, agent in _spread(clients, agents, at_most):
            examined += 1
            reason = standing(cluster, agent, client, cluster.frameworks[client.framework_id])
            if isinstance(reason, RefusalReason):
                found[client.role, reason] += 1
    return {key: count * pairs // examined for key, count in found.items()}


# --- inside ---


def _all_agents(cluster: Cluster) -> list[Agent]:
    return [cluster.agents[agent_id] for agent_id in sorted(cluster.agents)]


def _all_clients(cluster: Cluster) -> list[Client]:
    return sorted(
        Client(role, framework.framework_id)
        for framework in cluster.frameworks.values()
        for role in framework.info.roles
    )


def _spread(clients: Sequence[Client], agents: Sequence[Agent], at_most: int) -> Iterable[tuple[Client, Agent]]:
    """All pairs; of very many as many as are allowed, evenly spread over both."""
    if len(clients) * len(agents) <= at_most:
        return ((client, agent) for client in clients for agent in agents)
    some = _evenly(clients, at_most)
    each = min(len(agents), max(1, at_most // len(some)))
    step = len(agents) // each
    return (
        (client, agents[(index + place * step) % len(agents)])
        for index, client in enumerate(some)
        for place in range(each)
    )


def _evenly(items: Sequence[T], at_most: int) -> Sequence[T]:
    if len(items) <= at_most:
        return items
    return [items[index * len(items) // at_most] for index in range(at_most)]


def _without_roles(groups: Iterable[Group]) -> list[Group]:
    """Count what is refused for the same reason in many roles together."""
    merged: dict[RefusalReason, Group] = {}
    for group in groups:
        known = merged.get(group.reason)
        if known is None:
            group.role = ""
            merged[group.reason] = group
        else:
            known.pairs += group.pairs
            known.agents |= group.agents
            known.clients |= group.clients
            known.frameworks |= group.frameworks
    return list(merged.values())


def _refusal(group: Group) -> Refusal:
    words = WORDS[group.reason]
    if group.reason is RefusalReason.NOT_FREE:
        group.choose_example()
    obstacles = iter(words.obstacles(group))
    shown = tuple(islice(obstacles, MAX_OBSTACLES))
    return Refusal(
        group.role,
        group.reason,
        len(group.agents),
        group.agent.agent_id,
        _message(group, words.says(group)),
        words.hint(group),
        len(group.frameworks),
        group.client.framework_id,
        group.pairs,
        shown,
        sum(1 for _ in obstacles),
    )


def _message(group: Group, says: str) -> str:
    wanted = ""
    if group.reason in (RefusalReason.EXCEEDS_AGENT, RefusalReason.NOT_FREE, RefusalReason.RESERVED_FOR_OTHERS):
        shapes = [format_request(shape.resources) for shape, _ in group.shapes]
        if shapes:
            wanted = f" (wanted: {' or '.join(shapes[:3])})"
    settings = group.framework.settings.get(group.client.role)
    if group.reason is RefusalReason.OFFER_CONSTRAINTS and settings is not None:
        groups = [format_predicates(predicates) for predicates in settings.groups]
        wanted = f" (constraints: {' or '.join(groups[:3])}{' or …' if groups[3:] else ''})"
    count = len(group.agents)
    names = name_some(agent.info.hostname for agent in group.agents.values())
    return f"{count} agent{'s' if count != 1 else ''} ({names}): {says}{wanted}"
