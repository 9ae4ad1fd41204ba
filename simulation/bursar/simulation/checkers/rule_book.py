"""The rules that a simulated operator may add, and what they mean in words of the judges' own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bursar.core.messages.agent import AgentInfo
from bursar.core.messages.framework import GPU_RESOURCES, FrameworkInfo
from bursar.core.messages.rules import Rule, RuleAction, RuleMode
from bursar.simulation.checkers.cards import thousandths


@dataclass(frozen=True, slots=True)
class RuleWords:
    """A rule that the simulated operator may add, and what it means in words of the judge's own."""

    rule: Rule
    #: `all`, `nothing` or `stripped`.
    view: str
    #: (framework, role, agent) → whether the rule speaks of them.
    speaks_of: Callable[[FrameworkInfo, str, AgentInfo], bool]


def _words(
    name: str, view: str, framework: str, agent: str, speaks_of: Callable[[FrameworkInfo, str, AgentInfo], bool]
) -> RuleWords:
    action = {"all": RuleAction.ALLOW, "nothing": RuleAction.HIDE_AGENT, "stripped": RuleAction.STRIP}[view]
    return RuleWords(Rule(name, action, RuleMode.ENFORCE, framework, agent), view, speaks_of)


def _gpus_milli(info: AgentInfo) -> int:
    return thousandths(device.uuid for device in info.devices)


#: By name; the operator may put a dot and a number behind it.
RULE_BOOK: dict[str, RuleWords] = {
    words.rule.name: words
    for words in (
        _words(
            "no-gpus-for-eng",
            "nothing",
            "role=eng",
            "gpus>=1",
            lambda _, role, info: (role == "eng" or role.startswith("eng/")) and _gpus_milli(info) >= 1000,
        ),
        _words(
            "strip-from-everybody",
            "stripped",
            "",
            "gpus>0,hostname=agent-1*",
            lambda _, role, info: _gpus_milli(info) > 0 and info.hostname.startswith("agent-1"),
        ),
        _words(
            "show-the-default-role",
            "all",
            "role=*,lacks=GPU_RESOURCES",
            "",
            lambda framework, role, _: role == "*" and GPU_RESOURCES not in framework.capabilities,
        ),
        _words(
            "hide-large-from-capable",
            "nothing",
            "has=GPU_RESOURCES",
            "gpus>3",
            lambda framework, _, info: GPU_RESOURCES in framework.capabilities and _gpus_milli(info) > 3000,
        ),
    )
}
