"""Why is a framework not offered what it wants? Answered by the code that decides."""

from __future__ import annotations

from bursar.core.messages.operator import AgentState, ExplainFrameworkResponse, Refusal, RefusalReason
from bursar.core.predicates import format_predicates
from bursar.core.text import format_request
from bursar.master.allocator.cycle import Proposal, consider, offerable
from bursar.master.allocator.shares import Client
from bursar.master.state import Agent, Cluster, Framework

_MESSAGES: dict[RefusalReason, tuple[str, str]] = {
    RefusalReason.AGENT_INACTIVE: (
        "not connected",
        "see `bursar agent ls`; start the agent or wait for it to come back",
    ),
    RefusalReason.SUPPRESSED: ("the framework wants nothing (more) in this role", "revive the role, or state a demand"),
    RefusalReason.HIDDEN_BY_RULE: (
        "has GPUs, and the framework lacks the capability GPU_RESOURCES",
        "add the capability, or `bursar flag set filter-gpu-resources false`",
    ),
    RefusalReason.OTHER_REGION: (
        "in another region than the master, and the framework lacks the capability REGION_AWARE",
        "add the capability where the framework can do with that",
    ),
    RefusalReason.OFFER_CONSTRAINTS: (
        "no constraint of the framework is true of it",
        "loosen the constraints, or add agents that they are true of; see `bursar agent show`",
    ),
    RefusalReason.EXCEEDS_AGENT: ("smaller in total than what is wanted", "ask for less, or add larger agents"),
    RefusalReason.RESERVED_FOR_OTHERS: (
        "what would be enough is reserved for other roles",
        "see `bursar reservation ls`; use a role that is covered, or unreserve",
    ),
    RefusalReason.NOT_FREE: (
        "large enough, but in use",
        "wait for tasks to end; see `bursar task ls` and `bursar offer ls`",
    ),
    RefusalReason.QUOTA_LIMIT: (
        "enough is free, but the limit of the role, or of a role above it, is reached",
        "see `bursar quota ls`; wait for tasks of the role to end, or raise the limit",
    ),
    RefusalReason.HEADROOM: (
        "enough is free, but it is kept for the guarantees of other roles",
        "see `bursar quota ls`; wait for tasks to end, add agents, or lower a guarantee",
    ),
    RefusalReason.TOO_SMALL: (
        "what is free is less than the smallest offer",
        "wait for tasks to end; see `bursar agent show`",
    ),
    RefusalReason.DECLINED: (
        "the framework declined it a moment ago",
        "revive the role, or wait for its filter to end",
    ),
}


def explain_framework(cluster: Cluster, framework: Framework) -> ExplainFrameworkResponse:
    """Per role and reason, how many agents are refused; the reason nearest to success last."""
    found: dict[tuple[str, RefusalReason], list[Agent]] = {}
    for role in framework.info.roles:
        for agent in sorted(cluster.agents.values(), key=lambda agent: agent.agent_id):
            reason = _reason(cluster, agent, role, framework)
            if reason is not None:
                found.setdefault((role, reason), []).append(agent)
    refusals = [
        Refusal(
            role,
            reason,
            len(agents),
            agents[0].agent_id,
            _message(framework, role, reason, agents),
            _MESSAGES[reason][1],
        )
        for (role, reason), agents in sorted(found.items(), key=lambda item: (item[0][0], item[0][1]))
    ]
    return ExplainFrameworkResponse(tuple(refusals), len(cluster.agents), len(framework.offers))


def _reason(cluster: Cluster, agent: Agent, role: str, framework: Framework) -> RefusalReason | None:
    if agent.state is not AgentState.ACTIVE:
        return RefusalReason.AGENT_INACTIVE
    if role in framework.suppressed:
        return RefusalReason.SUPPRESSED
    client = Client(role, framework.framework_id)
    books = cluster.ledger.books[agent.agent_id]
    decision = consider(cluster, agent, client, framework, books.free, cluster.filters.on(agent.agent_id))
    if decision is RefusalReason.OFFER_CONSTRAINTS:
        settings = framework.settings[role]
        whole = offerable(books.total, role)
        if settings.may_take(agent.facts) and settings.takes(agent.facts, whole, agent.devices):
            return RefusalReason.NOT_FREE
    return None if isinstance(decision, Proposal) else decision


def _message(framework: Framework, role: str, reason: RefusalReason, agents: list[Agent]) -> str:
    names = ", ".join(agent.info.hostname for agent in agents[:3]) + (", …" if len(agents) > 3 else "")
    wanted = ""
    if reason in (RefusalReason.EXCEEDS_AGENT, RefusalReason.NOT_FREE, RefusalReason.RESERVED_FOR_OTHERS):
        shapes = [format_request(shape.resources) for shape in framework.demand.shapes if shape.role == role]
        if shapes:
            wanted = f" (wanted: {' or '.join(shapes[:3])})"
    if reason is RefusalReason.OFFER_CONSTRAINTS and role in framework.settings:
        groups = [format_predicates(group) for group in framework.settings[role].groups]
        wanted = f" (constraints: {' or '.join(groups[:3])}{' or …' if groups[3:] else ''})"
    return f"{len(agents)} agent{'s' if len(agents) != 1 else ''} ({names}): {_MESSAGES[reason][0]}{wanted}"
