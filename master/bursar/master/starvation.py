"""Frameworks that starve because a rule hides the cluster from them: noticed, named, and told once (M-07).

"All machines have GPUs now, and the frameworks that do not know GPUs get nothing" must not look like a busy cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

from bursar.core.messages.operator import AgentState
from bursar.core.messages.rules import RuleAction
from bursar.core.resources import GPUS, PORTS, ResourceRequest
from bursar.master.allocator.rules import CompiledRule
from bursar.master.state import Cluster, Framework, Hunger, Turn

#: Full allocation cycles in a row without an offer, after which the rules are asked; and again after as many.
STARVATION_CYCLES = 10
#: The part of the active agents that one rule must keep from a framework.
STARVATION_PERCENT = 50


@dataclass(frozen=True, slots=True)
class Culprit:
    """The rule that keeps most agents from a framework."""

    rule: CompiledRule
    agents: int
    of: int


def after_cycle(cluster: Cluster, turn: Turn) -> None:
    """A full cycle has run: count it for those who want something and have no offer; name the rule where one starves them."""
    hunger = cluster.hunger
    for framework_id in [known for known in hunger if known not in cluster.frameworks]:
        del hunger[framework_id]
    for framework_id, framework in cluster.frameworks.items():
        if framework.offers or framework.connection is None or not _hungry_roles(framework):
            if framework_id in hunger:
                fed(cluster, turn, framework)
            continue
        mine = hunger.setdefault(framework_id, Hunger())
        mine.cycles += 1
        if mine.cycles % STARVATION_CYCLES == 0:
            _judge(cluster, turn, framework, mine)


def fed(cluster: Cluster, turn: Turn, framework: Framework) -> None:
    """A framework was made an offer, or wants none: it does not starve."""
    mine = cluster.hunger.pop(framework.framework_id, None)
    if mine is not None and mine.rule:
        _publish_end(turn, framework, mine.rule)


def culprit_of(cluster: Cluster, framework: Framework) -> Culprit | None:
    """The rule that keeps most active agents from a framework, in all roles in which it wants something."""
    visibility = cluster.visibility
    roles = _hungry_roles(framework)
    counts: dict[str, int] = {}
    rules: dict[str, CompiledRule] = {}
    # Agents alike are judged alike.
    classes: dict[int, CompiledRule | None] = {}
    of = 0
    for agent in cluster.agents.values():
        if agent.state is not AgentState.ACTIVE:
            continue
        of += 1
        bits = visibility.class_of_agent(agent.info)
        if bits not in classes:
            excluding = [
                winner
                for role in roles
                if (winner := visibility.judge(agent.info, role, framework.info).winner) is not None
                and _excludes(winner, framework, role)
            ]
            classes[bits] = excluding[0] if len(excluding) == len(roles) else None
        rule = classes[bits]
        if rule is not None:
            rules[rule.name] = rule
            counts[rule.name] = counts.get(rule.name, 0) + 1
    if not counts:
        return None
    name = min(counts, key=lambda name: (-counts[name], name))
    return Culprit(rules[name], counts[name], of)


def _judge(cluster: Cluster, turn: Turn, framework: Framework, mine: Hunger) -> None:
    culprit = culprit_of(cluster, framework)
    starved = culprit is not None and culprit.agents * 100 >= culprit.of * STARVATION_PERCENT
    rule = culprit.rule.name if culprit is not None and starved else ""
    if rule == mine.rule:
        return
    if mine.rule:
        _publish_end(turn, framework, mine.rule)
    mine.rule = rule
    if culprit is not None and starved:
        verb = "hides" if culprit.rule.action is RuleAction.HIDE_AGENT else "keeps what it wants on"
        turn.publish(
            "starved_by_filter",
            f"STARVED_BY_FILTER{{{rule}}}: framework {framework.info.name or framework.framework_id} had no offer for"
            f" {mine.cycles} cycles, and the rule {rule} {verb} {culprit.agents} of {culprit.of} agents",
            framework_id=framework.framework_id,
        )


def _publish_end(turn: Turn, framework: Framework, rule: str) -> None:
    name = framework.info.name or framework.framework_id
    turn.publish(
        "starvation_ended",
        f"framework {name} is not starved by the rule {rule} any more",
        framework_id=framework.framework_id,
    )


def _hungry_roles(framework: Framework) -> list[str]:
    """Roles in which it wants something that is not on offer: not suppressed, and demand open or none stated."""
    roles = [role for role in framework.info.roles if role not in framework.suppressed]
    if not framework.demand.version:
        return roles
    open_roles = {shape.role for shape, count in zip(framework.demand.shapes, framework.open, strict=True) if count > 0}
    return [role for role in roles if role in open_roles]


def _excludes(rule: CompiledRule, framework: Framework, role: str) -> bool:
    """Whether a rule leaves nothing that a framework could want: it hides the agent, or strips what every shape needs."""
    if rule.action is RuleAction.HIDE_AGENT:
        return True
    shapes = [
        shape.resources
        for shape, count in zip(framework.demand.shapes, framework.open, strict=True)
        if shape.role == role and count > 0
    ]
    return bool(shapes) and all(_needs(request, rule.stripped) for request in shapes)


def _needs(request: ResourceRequest, kinds: frozenset[str]) -> bool:
    if GPUS in kinds and request.gpu_count or PORTS in kinds and (request.ports or request.port_count):
        return True
    return not kinds.isdisjoint(request.scalars)
