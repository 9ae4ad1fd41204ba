"""What a visibility rule says, read from its texts: which frameworks, which agents, what is kept for GPUs (design.md §6, M-08).

A framework's part is a list of conditions, all of which must be true, separated by commas:

    has=CAP|CAP2     has one of these capabilities        name=nightly-*    its name: as in predicates, also !=, lists and globs
    lacks=CAP|CAP2   has none of these                    principal=bob     its principal, likewise; `!principal`: it has none
    role=EXPRESSION  in a role that the role expression   label.team=vis*   a label, likewise; `label.team` alone: is there
                     covers; role=* is the role `*`

An agent's part is predicates (`bursar.core.predicates`) over the agent's *total*, in use or not. Both parts may be empty: all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from bursar.core.errors import ErrorDetail, ErrorReason, InvalidText
from bursar.core.messages.agent import AgentInfo
from bursar.core.messages.framework import GPU_RESOURCES, FrameworkInfo
from bursar.core.messages.rules import Rule, RuleAction, RuleMode
from bursar.core.predicates import (
    MAX_TEXT_LENGTH,
    AgentFacts,
    Predicates,
    matches_all,
    parse_predicates,
    split_predicates,
)
from bursar.core.resources import GPUS, MILLI, PORTS, sum_resources
from bursar.core.role_expressions import RoleExpression, RoleGroups, parse_role_expression
from bursar.core.roles import DEFAULT_ROLE
from bursar.core.text import parse_milli, parse_resources

GPU_FILTER = "filter-gpu-resources"
"""Name of the built-in rule."""

MAX_RULES = 200
MAX_REASON_LENGTH = 500
MAX_KINDS = 16
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_KIND = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
_CAPABILITY = re.compile(r"[A-Za-z0-9_.-]{1,63}")
_SPECIAL = re.compile(r"\s*(has|lacks|role)\s*=(.*)", re.DOTALL)
_SELECTORS = ("has", "lacks", "role", "name", "principal", "label.NAME")


@dataclass(frozen=True, slots=True)
class Headroom:
    """What is kept for each GPU of an agent: so many percent of the agent's total divided by its GPUs, or these amounts."""

    percent_milli: int = 0
    amounts: Mapping[str, int] | None = None

    def per_gpu(self, total: Mapping[str, int]) -> Mapping[str, int]:
        """Amounts for one GPU of an agent with this total (as `Resources.amounts()`: `gpus` in thousandths)."""
        gpus = total.get(GPUS, 0) // MILLI
        if not gpus:
            return {}
        if self.amounts is not None:
            return self.amounts
        return {
            kind: total[kind] * self.percent_milli // (100 * MILLI * gpus)
            for kind in ("cpus", "mem")
            if total.get(kind, 0) * self.percent_milli
        }


@dataclass(frozen=True, slots=True)
class FrameworkMatch:
    """The framework's part of a rule."""

    #: Each: one of these must be there.
    has: tuple[frozenset[str], ...] = ()
    lacks: frozenset[str] = frozenset()
    #: None: any; the role `*` is covered by no expression and is asked for by `default_role`.
    roles: tuple[RoleExpression, ...] = ()
    default_role: bool = False
    #: On name, principal and labels.
    texts: Predicates = ()

    def matches(self, info: FrameworkInfo, role: str, groups: RoleGroups) -> bool:
        """Whether it speaks of a framework in one of its roles."""
        capabilities = info.capabilities
        if not self.lacks.isdisjoint(capabilities) or any(one.isdisjoint(capabilities) for one in self.has):
            return False
        if self.default_role and role != DEFAULT_ROLE:
            return False
        if not all(expression.covers(role, groups) for expression in self.roles):
            return False
        return not self.texts or matches_all(self.texts, _facts_of_framework(info))


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """A rule made ready to be asked."""

    rule: Rule
    frameworks: FrameworkMatch
    agents: Predicates
    #: Of `strip`: what is taken away.
    stripped: frozenset[str]
    #: None: as the flag says.
    headroom: Headroom | None
    built_in: bool = False

    @property
    def name(self) -> str:
        """Its name."""
        return self.rule.name

    @property
    def action(self) -> RuleAction:
        """What it does."""
        return self.rule.action

    def matches_agent(self, info: AgentInfo, facts: AgentFacts) -> bool:
        """Whether it speaks of an agent: by its total, in use or not; `facts` are those of `facts_of_agent`."""
        if self.rule.resources and not any(_has_kind(info, facts, kind) for kind in self.rule.resources):
            return False
        return matches_all(self.agents, facts)


def compile_gpu_filter(value: str) -> tuple[CompiledRule, ...]:
    """`--filter-gpu-resources` as rules: `true` hides every agent whose total has a GPU from frameworks without
    GPU_RESOURCES (GPU-3), `strip` only its GPUs, keeping headroom for them (M-06), `false` does nothing.
    """
    if value == "false":
        return ()
    action = {"true": RuleAction.HIDE_AGENT, "strip": RuleAction.STRIP}[value]
    kinds = (GPUS,) if action is RuleAction.STRIP else ()
    reason = f"the agent has GPUs and the framework lacks the capability {GPU_RESOURCES}"
    rule = Rule(GPU_FILTER, action, RuleMode.ENFORCE, f"lacks={GPU_RESOURCES}", "gpus>0", kinds, reason=reason)
    return (compile_rule(rule, built_in=True),)


def compile_rule(rule: Rule, *, built_in: bool = False) -> CompiledRule:
    """Read the texts of a rule. Raises InvalidText."""
    stripped = frozenset(rule.resources or (GPUS,)) if rule.action is RuleAction.STRIP else frozenset()
    return CompiledRule(
        rule,
        parse_framework_match(rule.framework),
        parse_predicates(rule.agent, "agent"),
        stripped,
        parse_headroom(rule.headroom) if rule.headroom else None,
        built_in,
    )


def parse_framework_match(text: str) -> FrameworkMatch:
    """Read the framework's part. Raises InvalidText."""
    what = "framework"
    has: list[frozenset[str]] = []
    lacks: set[str] = set()
    roles: list[RoleExpression] = []
    default_role = False
    texts: list[str] = []
    if len(text) > MAX_TEXT_LENGTH:
        raise InvalidText(f"{what}: {len(text)} characters are too many", f"at most {MAX_TEXT_LENGTH}")
    for part in split_predicates(text, what) if text.strip() else ():
        special = _SPECIAL.fullmatch(part)
        if special is None:
            texts.append(part)
        elif special[1] != "role":
            names = frozenset(name.strip() for name in special[2].split("|"))
            if wrong := [name for name in sorted(names) if not _CAPABILITY.fullmatch(name)]:
                raise InvalidText(
                    f"{what}: {wrong[0]!r} is not a capability", f"write {special[1]}={GPU_RESOURCES}, several with |"
                )
            if special[1] == "has":
                has.append(names)
            else:
                lacks |= names
        elif special[2].strip() == DEFAULT_ROLE:
            default_role = True
        else:
            roles.append(_parse_roles(special[2].strip(), what))
    predicates = parse_predicates(",".join(texts), what)
    for predicate in predicates:
        name = predicate.selector
        if name in ("has", "lacks", "role"):
            raise InvalidText(f"{what}: {name!r} is not written like that", f"write {name}=VALUE, nothing else")
        if name not in ("name", "principal") and not (name.startswith("label.") and len(name) > len("label.")):
            close = get_close_matches(name, [*_SELECTORS[:-1], "label."], 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InvalidText(f"{what}: there is no selector {name!r}", f"{hint}use one of {', '.join(_SELECTORS)}")
    return FrameworkMatch(tuple(has), frozenset(lacks), tuple(roles), default_role, predicates)


def parse_headroom(text: str) -> Headroom:
    """Read `50%` or `cpus:2;mem:8GiB`. Raises InvalidText."""
    what = "gpu-headroom"
    text = text.strip()
    if text.endswith("%"):
        percent = parse_milli(text[:-1], what)
        if percent > 100 * MILLI:
            raise InvalidText(f"{what}: {text} is more than all", "at most 100%")
        return Headroom(percent)
    amounts: dict[str, int] = {}
    for item in parse_resources(text):
        if item.holder is not None or item.kind in (GPUS, PORTS):
            raise InvalidText(
                f"{what}: {item.kind}{f'({item.holder})' if item.holder else ''} cannot be kept for a GPU",
                "name amounts such as cpus:2;mem:8GiB, or a share such as 50%",
            )
        amounts[item.kind] = item.amount
    if not amounts:
        raise InvalidText(f"{what}: nothing is named", "write cpus:2;mem:8GiB, or 50%, or 0% for none")
    return Headroom(amounts=amounts)


def rule_problem(rule: Rule, now_ms: int) -> ErrorDetail | None:
    """Say what is wrong with a rule that an operator wrote, or nothing."""

    def refusal(message: str, hint: str, field: str) -> ErrorDetail:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, message, hint, f"rule.{field}")

    if not _NAME.fullmatch(rule.name):
        return refusal(
            f"{rule.name!r} is not a name of a rule",
            "use small letters, digits, '.', '_' and '-', at most 63, such as no-cpu-work-on-r1",
            "name",
        )
    if rule.name == GPU_FILTER:
        return refusal(
            f"{GPU_FILTER} is the name of the built-in rule",
            f"choose another; see `bursar flag set {GPU_FILTER}`",
            "name",
        )
    if rule.action is RuleAction.UNSPECIFIED:
        return refusal("the rule has no action", "use hide-agent, strip, headroom or allow", "action")
    if rule.mode is RuleMode.UNSPECIFIED:
        return refusal("the rule has no mode", "use enforce or audit", "mode")
    if len(rule.reason) > MAX_REASON_LENGTH:
        return refusal(
            f"a reason of {len(rule.reason)} characters is too long", f"at most {MAX_REASON_LENGTH}", "reason"
        )
    if len(set(rule.resources)) != len(rule.resources) or len(rule.resources) > MAX_KINDS:
        return refusal(
            "kinds of resources are named twice, or too many", f"name each once, at most {MAX_KINDS}", "resources"
        )
    if wrong := [kind for kind in rule.resources if not _KIND.fullmatch(kind)]:
        return refusal(
            f"{wrong[0]!r} is not a kind of resource",
            "use cpus, mem, disk, gpus, ports or a name of your own",
            "resources",
        )
    if rule.headroom and rule.action not in (RuleAction.STRIP, RuleAction.HEADROOM):
        return refusal(f"{rule.action.word} keeps no headroom", "leave it out, or use strip or headroom", "headroom")
    if rule.expires_at_ms and rule.expires_at_ms <= now_ms:
        return refusal("the rule has expired already", "choose a time to come, such as --expires 7d", "expires_at_ms")
    for read, text, field in (
        (parse_framework_match, rule.framework, "framework"),
        (lambda text: parse_predicates(text, "agent"), rule.agent, "agent"),
        (lambda text: text and parse_headroom(text), rule.headroom, "headroom"),
    ):
        try:
            read(text)
        except InvalidText as error:
            return refusal(error.detail.message, error.detail.hint, field)
    return None


def facts_of_agent(info: AgentInfo) -> AgentFacts:
    """What predicates see of an agent: its total, and the devices that it offers."""
    total = sum_resources(part.resources for part in info.resources)
    devices = tuple(device for device in info.devices if device.uuid in total.devices)
    return AgentFacts(info.hostname, info.attributes, total.amounts(), devices)


def _has_kind(info: AgentInfo, facts: AgentFacts, kind: str) -> bool:
    if kind == PORTS:
        return any(part.resources.ports for part in info.resources)
    return facts.amounts.get(kind, 0) > 0


def _facts_of_framework(info: FrameworkInfo) -> AgentFacts:
    texts: dict[str, str | int] = {f"label.{name}": value for name, value in info.labels.items()}
    for name, value in (("name", info.name), ("principal", info.principal)):
        if value:
            texts[name] = value
    return AgentFacts(attributes=texts)


def _parse_roles(text: str, what: str) -> RoleExpression:
    try:
        return parse_role_expression(text)
    except InvalidText as error:
        raise InvalidText(f"{what}: {error.detail.message}", error.detail.hint) from None
