"""What may not be seen, or not be understood: rules, regions, constraints, refined reservations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from bursar.core.messages.framework import REGION_AWARE, RESERVATION_REFINEMENT
from bursar.core.messages.operator import Obstacle, ObstacleKind, RefusalReason
from bursar.core.predicates import AgentFacts, format_predicates, matches
from bursar.core.resources import (
    holding_total,
)
from bursar.core.text import format_resources
from bursar.master.allocator.rules import CompiledRule
from bursar.master.allocator.shares import Client
from bursar.master.obstacles.asking import Group
from bursar.master.obstacles.wording import MAX_NAMES, covers_role, name_some, of_reservation
from bursar.master.rules import describe, why_hidden
from bursar.master.starvation import STARVATION_CYCLES
from bursar.master.state import Agent


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


def deciding_rules(group: Group) -> Iterator[Obstacle]:
    """Which rules decide for which agents, and what they hide of the role's own."""
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
        for stack, part in group.books_of(agent).total.items():
            if stack and covers_role(group.cluster, stack, group.client.role):
                holder = stack[-1].holder
                text = (
                    f"what is reserved to {holder} on {agent.info.hostname} ({format_resources(part)}) is hidden, too"
                )
                yield of_reservation(holder, part, agent, text)


def rule_says(group: Group) -> str:
    """What the rule, or the rules, do."""
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


def rule_hint(group: Group) -> str:
    """What to do about the rule that decides."""
    rule = _rule_of(group, group.agent, group.client)
    if rule is None or len(_by_rule(group)) > 1:
        return "see `bursar rule test` for what each of them says, and `bursar rule ls`"
    return why_hidden(rule)[1]


def constraints_untrue(group: Group) -> Iterator[Obstacle]:
    """What of each of the framework's groups of predicates is not true of the first agent, even if all of it were free."""
    agent, info = group.agent, group.agent.info
    total = holding_total(group.books_of(agent).total)
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


def other_regions(group: Group) -> Iterator[Obstacle]:
    """The regions of the agents, and the capability that is missing."""
    regions = Counter(agent.facts.region for agent in group.agents.values())
    for region, count in sorted(regions.items()):
        examples = name_some(agent.info.hostname for agent in group.agents.values() if agent.facts.region == region)
        text = f"{examples}: in the region {region}, the master is in {group.cluster.region}"
        yield Obstacle(ObstacleKind.STATE, region, text + (f" ({count} agents)" if count > 1 else ""))
    yield Obstacle(ObstacleKind.CAPABILITY, REGION_AWARE, f"the framework lacks the capability {REGION_AWARE}")


def refined_reservations(group: Group) -> Iterator[Obstacle]:
    """What is kept by refined reservations that the role may use."""
    for agent in group.agents.values():
        for stack in sorted(group.books_of(agent).total):
            if len(stack) > 1 and covers_role(group.cluster, stack, group.client.role):
                text = f"{agent.info.hostname} keeps it for {' > '.join(level.holder for level in stack)}"
                yield Obstacle(ObstacleKind.RESERVATION, stack[-1].holder, text, agent_id=agent.agent_id)
    text = f"the framework lacks the capability {RESERVATION_REFINEMENT}"
    yield Obstacle(ObstacleKind.CAPABILITY, RESERVATION_REFINEMENT, text)
