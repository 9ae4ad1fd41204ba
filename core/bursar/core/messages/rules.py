"""Mirrors `proto/bursar/v1/rules.proto`: who may see what."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from bursar.core.ids import AgentId, FrameworkId


class RuleAction(IntEnum):
    """What a rule that matches does; mirrors `bursar.v1.RuleAction`."""

    UNSPECIFIED = 0
    ALLOW = 1
    HIDE_AGENT = 2
    STRIP = 3
    HEADROOM = 4

    @property
    def word(self) -> str:
        """As people write it: `hide-agent`."""
        return self.name.lower().replace("_", "-")


class RuleMode(IntEnum):
    """Whether a rule decides or only counts; mirrors `bursar.v1.RuleMode`."""

    UNSPECIFIED = 0
    ENFORCE = 1
    AUDIT = 2


@dataclass(frozen=True, slots=True)
class Rule:
    """One visibility rule, as operators write it; its texts follow the grammars of `bursar.master.allocator.rules`."""

    name: str
    action: RuleAction
    mode: RuleMode = RuleMode.ENFORCE
    #: Which frameworks: `lacks=GPU_RESOURCES,role=ml/**`; empty: all.
    framework: str = ""
    #: Which agents, as predicates; empty: all.
    agent: str = ""
    #: Only agents that have any of these kinds; what `strip` takes away.
    resources: tuple[str, ...] = ()
    #: What `strip` and `headroom` keep for each GPU: amounts or a percentage; empty: as --gpu-headroom says.
    headroom: str = ""
    reason: str = ""
    #: Wall time; 0: never.
    expires_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class RuleView:
    """A rule and what became of it."""

    rule: Rule
    position: int
    built_in: bool = False
    #: In allocation cycles since the master started; in audit mode what it would have decided.
    decisions: int = 0


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """What the rules say of one framework in one role on one agent."""

    framework_id: FrameworkId
    framework_name: str
    role: str
    agent_id: AgentId
    hostname: str
    action: RuleAction
    rule: str = ""
    reason: str = ""
    audited: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RuleAudit:
    """What a rule in audit mode would do if it were enforced, now."""

    rule: Rule
    decisions: int
    frameworks: int
    agents: int
    pairs: int
    offers: int
