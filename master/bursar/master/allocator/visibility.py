"""Who may see an agent at all: an ordered list of rules, each with a name (design.md §6).

Today there is one, compiled from `--filter-gpu-resources`; the operators' own rules come before it in the same list.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

from bursar.core.messages.framework import GPU_RESOURCES


class RuleAction(Enum):
    """What a rule that matches does."""

    ALLOW = "allow"
    HIDE_AGENT = "hide-agent"


@dataclass(frozen=True, slots=True)
class Rule:
    """Matches a framework by a capability that it lacks and an agent by having GPUs; the first match decides."""

    name: str
    action: RuleAction
    #: Why, for people.
    reason: str
    #: Matches frameworks without this capability; None: all.
    lacks_capability: str | None = None
    #: Matches agents whose *total* has a GPU, in use or not; None: all.
    has_gpus: bool | None = None

    def matches(self, capabilities: Collection[str], agent_has_gpus: bool) -> bool:
        """Whether this rule speaks of such a framework on such an agent."""
        if self.lacks_capability is not None and self.lacks_capability in capabilities:
            return False
        return self.has_gpus is None or self.has_gpus == agent_has_gpus


def compile_gpu_filter(value: str) -> tuple[Rule, ...]:
    """`--filter-gpu-resources` as rules: `true` hides every agent whose total has a GPU from frameworks without
    GPU_RESOURCES (GPU-3), `false` hides nothing.
    """
    if value == "false":
        return ()
    assert value == "true", value
    return (
        Rule(
            "filter-gpu-resources",
            RuleAction.HIDE_AGENT,
            f"the agent has GPUs and the framework lacks the capability {GPU_RESOURCES}",
            lacks_capability=GPU_RESOURCES,
            has_gpus=True,
        ),
    )


def deciding_rule(rules: tuple[Rule, ...], capabilities: Collection[str], agent_has_gpus: bool) -> Rule | None:
    """The first rule that matches; None where none does, which allows."""
    for rule in rules:
        if rule.matches(capabilities, agent_has_gpus):
            return rule
    return None


def is_hidden(rules: tuple[Rule, ...], capabilities: Collection[str], agent_has_gpus: bool) -> Rule | None:
    """The rule that hides the agent, if one does."""
    rule = deciding_rule(rules, capabilities, agent_has_gpus)
    return rule if rule is not None and rule.action is RuleAction.HIDE_AGENT else None
