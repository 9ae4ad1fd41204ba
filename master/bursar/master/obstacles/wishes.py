"""What the agent or the framework itself stands in the way with: not there, wants nothing, has declined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from bursar.core.ids import AgentId
from bursar.core.messages.operator import FrameworkState, Obstacle, ObstacleKind
from bursar.core.text import format_duration
from bursar.master.allocator.backoff import FREE_ROUNDS, shape_of
from bursar.master.obstacles.asking import MAX_LOOKED_AT, Group
from bursar.master.obstacles.wording import first_names, framework_name, name_some
from bursar.master.state import Framework


def agents_away(group: Group) -> Iterator[Obstacle]:
    """In which states the agents are."""
    states = Counter(agent.state for agent in group.agents.values())
    for state, count in sorted(states.items()):
        name = state.name.lower()
        examples = name_some(agent.info.hostname for agent in group.agents.values() if agent.state is state)
        message = f"{examples}: {name}" + (f" ({count} agents)" if count > 1 else "")
        yield Obstacle(ObstacleKind.STATE, name, message)


def nothing_wanted(group: Group) -> Iterator[Obstacle]:
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
                f"{first_names(framework_name(framework) for framework in frameworks)}: {meaning}",
                frameworks[0].framework_id,
            )


def wish_hint(group: Group) -> str:
    """By what the framework lacks to want something."""
    hints = {
        "disconnected": "start the framework again before its failover time-out ends; see `bursar framework show`",
        "suppressed": "let the framework revive the role",
        "fulfilled": "nothing to do; a framework that wants more states a new demand",
        "no-demand": "let the framework state a demand in this role",
    }
    return hints[next(nothing_wanted(group)).name]


def offers_declined(group: Group) -> Iterator[Obstacle]:
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
        framework = framework_name(group.framework)
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


def filter_hint(group: Group) -> str:
    """How long it lasts, and what ends it earlier."""
    for obstacle in offers_declined(group):
        left_ms = obstacle.until_ms - group.now.wall_ms
        hint = f"let the framework revive the role, or wait {format_duration(left_ms)}; a larger offer is made at once"
        if "in a row" in obstacle.message:
            hint += (
                "; the row ends once it takes something; with its demand or constraints stated it is not asked in vain"
            )
        return hint
    return "let the framework revive the role, or wait for its filters to end"
