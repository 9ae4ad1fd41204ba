"""Rules about who may see what: kept, changed, tried and explained by operators (design.md §6, M-08, M-09)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from bursar.core.errors import ErrorDetail, ErrorReason, InvalidText
from bursar.core.flags import closest
from bursar.core.messages import operator as op
from bursar.core.messages.operator import AgentState, Page
from bursar.core.messages.rules import Rule, RuleAction, RuleAudit, RuleMode, RuleVerdict, RuleView
from bursar.master import views
from bursar.master.allocator.rules import (
    GPU_FILTER,
    MAX_RULES,
    CompiledRule,
    compile_gpu_filter,
    compile_rule,
    parse_headroom,
    rule_problem,
)
from bursar.master.allocator.visibility import Visibility
from bursar.master.offers import forbidden_offers, rescind_forbidden
from bursar.master.records import RulesRecorded
from bursar.master.state import Agent, Cluster, Framework, Turn

#: Where a rule comes from that is never removed by a name.
_BUILT_IN_HINT = f"change it with `bursar flag set {GPU_FILTER} false` or `strip`"


def compile_rules(cluster: Cluster) -> None:
    """Make the rules in force from what is durable and from the flags."""
    headroom = parse_headroom(str(cluster.flags.value("gpu-headroom")))
    rules = _compile(cluster, cluster.durable.rules)
    cluster.visibility.set_rules(rules, headroom, cluster.holders.groups)


def recover_rules(cluster: Cluster, now_ms: int, wall_ms: int) -> None:
    """After a start of the master: the rules in force, and when each expires."""
    compile_rules(cluster)
    for rule in cluster.durable.rules:
        if rule.expires_at_ms:
            cluster.deadlines.set(("rule", rule.name), now_ms + max(0, rule.expires_at_ms - wall_ms))


def changed(cluster: Cluster, turn: Turn, reason: str) -> int:
    """Make a change of rules, headroom or flag felt at once: rescind what is no longer permitted; return how many offers."""
    compile_rules(cluster)
    cluster.touch_all()
    return rescind_forbidden(cluster, turn, reason)


def expire(cluster: Cluster, turn: Turn, name: str) -> None:
    """A rule's time has come: it is forgotten."""
    rule = next((rule for rule in cluster.durable.rules if rule.name == name), None)
    if rule is None or not rule.expires_at_ms:
        return
    left_ms = rule.expires_at_ms - turn.now.wall_ms
    if left_ms > 0:
        # The clock of the wall was set back, or deadlines moved because the process stalled.
        cluster.deadlines.set(("rule", name), turn.now.monotonic_ms + left_ms)
        return
    _record(cluster, turn, (other for other in cluster.durable.rules if other.name != name))
    rescinded = changed(cluster, turn, f"the rule {name} expired")
    turn.publish("rule_expired", f"rule {name} expired; {_offers(rescinded)} rescinded")


# --- verbs ---


def list_rules(cluster: Cluster, page: Page) -> op.ListRulesResponse:
    """All rules in the order in which they are asked, the built-in one last."""
    shown = [_view(cluster, compiled, index) for index, compiled in enumerate(cluster.visibility.rules)]
    part, token = views.page_of(shown, lambda view: f"{view.position:06d}", page)
    return op.ListRulesResponse(part, token)


def add_rule(cluster: Cluster, turn: Turn, request: op.AddRuleRequest) -> op.AddRuleResponse | ErrorDetail:
    """Add a rule before another one, or after all; or put it in the place of the one that has its name."""
    rule, rules = request.rule, list(cluster.durable.rules)
    if problem := rule_problem(rule, turn.now.wall_ms):
        return problem
    names = [known.name for known in rules]
    there = rule.name in names
    if there and not request.replace:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"there is a rule {rule.name} already",
            f"choose another name, say --replace, or remove that one: bursar rule rm {rule.name}",
            "rule.name",
        )
    if not there and len(rules) >= MAX_RULES:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT, f"there are {MAX_RULES} rules already", "remove some first", "rule"
        )
    if request.before and request.before != GPU_FILTER and request.before not in names:
        return _unknown(cluster, request.before, "before")
    if request.before == rule.name:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, "a rule cannot come before itself", "name another", "before")
    place = names.index(rule.name) if there else len(rules)
    if there:
        del rules[place]
    if request.before in names:
        place = [known.name for known in rules].index(request.before)
    elif request.before == GPU_FILTER:
        place = len(rules)
    rules.insert(place, rule)
    if not request.force and (problem := _hides_everything(cluster, rule, rules)):
        return problem
    _record(cluster, turn, rules)
    cluster.deadlines.cancel(("rule", rule.name))
    if rule.expires_at_ms:
        cluster.deadlines.set(("rule", rule.name), turn.now.monotonic_ms + rule.expires_at_ms - turn.now.wall_ms)
    rescinded = changed(cluster, turn, f"the rule {rule.name} was {'changed' if there else 'added'}")
    verb = "changed" if there else "added"
    turn.publish("rule_changed", f"rule {rule.name} {verb}: {describe(rule)}; {_offers(rescinded)} rescinded")
    return op.AddRuleResponse(_view(cluster, cluster.visibility.rules[place], place), rescinded)


def remove_rule(cluster: Cluster, turn: Turn, request: op.RemoveRuleRequest) -> op.RemoveRuleResponse | ErrorDetail:
    """Forget a rule; one that allowed may have held others back, so offers may be rescinded here, too."""
    name = request.name
    place = next((index for index, rule in enumerate(cluster.durable.rules) if rule.name == name), None)
    if place is None:
        return _unknown(cluster, name, "name")
    view = _view(cluster, cluster.visibility.rules[place], place)
    _record(cluster, turn, (rule for rule in cluster.durable.rules if rule.name != name))
    cluster.deadlines.cancel(("rule", name))
    rescinded = changed(cluster, turn, f"the rule {name} was removed")
    turn.publish("rule_changed", f"rule {name} removed; {_offers(rescinded)} rescinded")
    return op.RemoveRuleResponse(view, rescinded)


def try_rules(cluster: Cluster, request: op.TryRulesRequest) -> op.TryRulesResponse | ErrorDetail:
    """Which rule decides for every framework in each of its roles on every agent, or for those that are named."""
    frameworks = sorted(cluster.frameworks.values(), key=lambda framework: framework.framework_id)
    agents = sorted(cluster.agents.values(), key=lambda agent: agent.agent_id)
    if request.framework:
        framework = views.find_framework(cluster, request.framework)
        if isinstance(framework, ErrorDetail):
            return framework
        frameworks = [framework]
    if request.agent:
        agent = views.find_agent(cluster, request.agent)
        if isinstance(agent, ErrorDetail):
            return agent
        agents = [agent]
    # There may be millions of pairs: only those of the page are asked.
    clients = [(framework, role) for framework in frameworks for role in sorted(framework.info.roles)]
    total = len(clients) * len(agents)
    size = min(request.page.page_size or views.DEFAULT_PAGE_SIZE, views.MAX_PAGE_SIZE)
    token = request.page.page_token
    first = int(token) if token.isdecimal() and len(token) < 16 else 0
    verdicts = []
    for index in range(first, min(first + size, total)):
        framework, role = clients[index // len(agents)]
        verdicts.append(_verdict(cluster, framework, role, agents[index % len(agents)]))
    return op.TryRulesResponse(tuple(verdicts), str(first + size) if first + size < total else "")


def audit_rules(cluster: Cluster) -> op.AuditRulesResponse:
    """For each rule in audit mode, what it would do now if it were enforced."""
    return op.AuditRulesResponse(
        tuple(
            _audit(cluster, index, compiled)
            for index, compiled in enumerate(cluster.visibility.rules)
            if compiled.rule.mode is RuleMode.AUDIT
        )
    )


# --- words ---


def describe(rule: Rule) -> str:
    """What a rule says, in one line."""
    verb = {
        RuleAction.ALLOW: "shows",
        RuleAction.HIDE_AGENT: "hides",
        RuleAction.STRIP: f"strips {','.join(rule.resources) or 'gpus'} from",
        RuleAction.HEADROOM: "keeps headroom for GPUs on",
    }[rule.action]
    audit = "" if rule.mode is RuleMode.ENFORCE else " (audit only)"
    agents = f"agents with {rule.agent}" if rule.agent else "every agent"
    if rule.resources and rule.action is not RuleAction.STRIP:
        agents += f" that has {' or '.join(rule.resources)}"
    whom = f"frameworks with {rule.framework}" if rule.framework else "every framework"
    preposition = "from" if rule.action is RuleAction.HIDE_AGENT else "for" if rule.action is RuleAction.STRIP else "to"
    return f"{verb} {agents} {preposition} {whom}{audit}"


def why_hidden(compiled: CompiledRule) -> tuple[str, str]:
    """What a framework that waits is told of the rule that keeps agents from it: why, and what would help."""
    rule = compiled.rule
    if compiled.built_in:
        hint = "add the capability, or `bursar flag set filter-gpu-resources false`"
        if rule.action is RuleAction.HIDE_AGENT:
            return "has GPUs, and the framework lacks the capability GPU_RESOURCES", hint
        return "its GPUs, and what is kept for them, are not for frameworks without the capability GPU_RESOURCES", hint
    what = "hidden by" if rule.action is RuleAction.HIDE_AGENT else "what is wanted is kept back by"
    reason = f": {rule.reason}" if rule.reason else f", which {describe(rule)}"
    return f"{what} the rule {rule.name}{reason}", f"see `bursar rule test`; or `bursar rule rm {rule.name}`"


# --- inside ---


def _compile(cluster: Cluster, rules: Iterable[Rule]) -> tuple[CompiledRule, ...]:
    compiled = []
    for rule in rules:
        try:
            compiled.append(compile_rule(rule))
        except InvalidText:
            # Written by a newer version: kept, shown nowhere, decides nothing – as a flag that cannot be read.
            continue
    return (*compiled, *compile_gpu_filter(cluster.flags.filter_gpu_resources))


def _record(cluster: Cluster, turn: Turn, rules: Iterable[Rule]) -> None:
    turn.persist(RulesRecorded(tuple(rules)))


def _view(cluster: Cluster, compiled: CompiledRule, position: int) -> RuleView:
    return RuleView(compiled.rule, position + 1, compiled.built_in, cluster.visibility.decisions.get(compiled.name, 0))


def _unknown(cluster: Cluster, name: str, field: str) -> ErrorDetail:
    if name == GPU_FILTER:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, f"{GPU_FILTER} is built in", _BUILT_IN_HINT, field)
    near = closest(name, [rule.name for rule in cluster.durable.rules])
    hint = f"did you mean {near}?" if near else "see `bursar rule ls`"
    return ErrorDetail(ErrorReason.NOT_FOUND, f"there is no rule {name!r}", hint, field)


def _hides_everything(cluster: Cluster, rule: Rule, rules: list[Rule]) -> ErrorDetail | None:
    """Say that with a rule nobody would see anything any more; it is asked for twice, then."""
    if rule.action is not RuleAction.HIDE_AGENT or rule.mode is not RuleMode.ENFORCE:
        return None
    message = ""
    if not (rule.framework or rule.agent or rule.resources):
        message = f"the rule {rule.name} would hide every agent from every framework"
    elif cluster.agents and cluster.frameworks and _all_hidden(cluster, rules):
        message = (
            f"with the rule {rule.name} none of the {len(cluster.frameworks)} frameworks would see any of the"
            f" {len(cluster.agents)} agents"
        )
    if not message:
        return None
    return ErrorDetail(
        ErrorReason.INVALID_ARGUMENT,
        message,
        "narrow it with --framework or --agent, try it with --mode audit, or say --force if that is meant",
        "rule",
    )


def _all_hidden(cluster: Cluster, rules: list[Rule]) -> bool:
    trial = Visibility()
    trial.set_rules(_compile(cluster, rules), cluster.visibility.headroom, cluster.visibility.groups)
    # Agents of one class are decided alike; mostly the first ones are not hidden from all.
    seen: set[int] = set()
    for agent in cluster.agents.values():
        kind = trial.class_of_agent(agent.info)
        if kind in seen:
            continue
        seen.add(kind)
        for framework in cluster.frameworks.values():
            for role in framework.info.roles:
                if trial.judge(agent.info, role, framework.info).action is not RuleAction.HIDE_AGENT:
                    return False
    return True


def _verdict(cluster: Cluster, framework: Framework, role: str, agent: Agent) -> RuleVerdict:
    judgement = cluster.visibility.judge(agent.info, role, framework.info)
    winner = judgement.winner
    if winner is None:
        name, reason = "", "no rule matches: all is shown"
    else:
        name, reason = winner.name, winner.rule.reason or describe(winner.rule)
    return RuleVerdict(
        framework.framework_id,
        framework.info.name,
        role,
        agent.agent_id,
        agent.info.hostname,
        judgement.action,
        name,
        reason,
        tuple(rule.name for rule in judgement.audited),
    )


def _audit(cluster: Cluster, index: int, compiled: CompiledRule) -> RuleAudit:
    """What one rule in audit mode would decide, counted over classes of agents and of frameworks."""
    visibility = cluster.visibility
    agents: dict[int, int] = {}
    for agent in cluster.agents.values():
        if agent.state is AgentState.ACTIVE:
            bits = visibility.class_of_agent(agent.info)
            agents[bits] = agents.get(bits, 0) + 1
    frameworks = pairs = 0
    classes: set[int] = set()
    for framework in cluster.frameworks.values():
        found: set[int] = set()
        for role in framework.info.roles:
            client = visibility.class_of_client(role, framework.info)
            found |= {bits for bits in agents if visibility.would_decide(index, client & bits)}
        pairs += sum(agents[bits] for bits in found)
        frameworks += bool(found)
        classes |= found
    trial = Visibility()
    enforced = compile_rule(replace(compiled.rule, mode=RuleMode.ENFORCE))
    rules = [enforced if other is compiled else other for other in visibility.rules]
    trial.set_rules(rules, visibility.headroom, visibility.groups)
    offers = len(set(forbidden_offers(cluster, trial)) - set(forbidden_offers(cluster, visibility)))
    return RuleAudit(
        compiled.rule,
        visibility.decisions.get(compiled.name, 0),
        frameworks,
        sum(agents[bits] for bits in classes),
        pairs,
        offers,
    )


def _offers(count: int) -> str:
    return f"{count} offer{'' if count == 1 else 's'}"
