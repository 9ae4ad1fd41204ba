"""What operators change: rules, groups, quotas, weights, reservations (M-08, M-13, OFF-11, WGT-1, QTA-1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from bursar.core.messages.rules import RuleAction
from bursar.core.resources import Reservation, ReservationType, Stack

from .answers import Answers
from .cluster import Offer, Rule


class Operators(Answers):
    """What operators order."""

    def re_reserved(self, source: Stack, level: Reservation) -> Stack:
        """RSV-4: where what is reserved comes to when an operator reserves it anew: levels are popped until the new one refines what
        is left – a role below it, or one that an expression covers –, or is there already, whatever its labels where none are named;
        what the agent's own settings reserved is never popped.
        """
        stack = source
        while stack:
            top = stack[-1]
            if top.holder == level.holder and level.labels in ((), top.labels):
                return stack
            if self.is_for(top.holder, level.holder) and (top.holder in self.meanings or top.holder != level.holder):
                return (*stack, level)
            assert top.type is ReservationType.DYNAMIC, f"popped: {top}"
            stack = stack[:-1]
        return (level,)

    def permissions_changed(self, rescinded: Iterable[Offer]) -> None:
        """Rules, capabilities, role groups or the region are others now. Offers on agents that are hidden, those of kinds that are
        stripped, and those of what is reserved to others are rescinded (design.md §5, §6); which others make room for what is kept for GPUs, is taken as it comes. The rest stays.
        """
        going = [offer for offer in rescinded if offer in self.offers]
        for offer in self.offers:
            framework, agent = self.frameworks[offer.framework_id], self.agents[offer.agent_id]
            rule = self.deciding_rule(framework, offer.role, agent)
            kinds = self.stripped_kinds(framework, offer.role, agent)
            has = any(part.amount(kind) for part in offer.holding.values() for kind in kinds)
            others = any(
                stack and (not self.is_for(stack[-1].holder, offer.role) or (len(stack) > 1 and not framework.refines))
                for stack in offer.holding
            )
            must = self.is_hidden(framework, offer.role, agent) or has or others
            may = must or (rule is not None and rule.action in (RuleAction.STRIP, RuleAction.HEADROOM))
            assert offer in going or not must, f"not rescinded: {offer}"
            assert may or offer not in going, f"rescinded for nothing: {offer}"
        self.rescinded(going)
        self.changed |= set(self.agents)

    def rule_added(self, name: str, rule: Rule, before: str = "") -> None:
        """A rule comes last, or before another one; in the place of the one of its name where there is one."""
        names = [known for known in self.rules if known != name]
        place = list(self.rules).index(name) if name in self.rules else len(names)
        names.insert(names.index(before) if before else place, name)
        self.rules = {known: rule if known == name else self.rules[known] for known in names}

    def group_set(self, name: str, members: Callable[[str], bool]) -> None:
        """M-13: a role group covers others now."""
        self.groups[name] = members

    def minimum_set(self, text: str) -> None:
        """OFF-11: from now on offers are at least this large; what is offered stands."""
        self.minimum = text
        self.changed |= set(self.agents)

    def weights_set(self, weights: Mapping[str, int]) -> None:
        """WGT-1, T22: from now on the order is another one; nothing that is held is touched, and roles that are not named keep
        theirs.
        """
        self.weights |= weights

    def quotas_set(self, quotas: Mapping[str, tuple[Mapping[str, int], Mapping[str, int]]]) -> None:
        """QTA-1: the quotas of these roles are replaced; empty ones are removed."""
        self.quotas = {role: quota for role, quota in (self.quotas | quotas).items() if any(quota)}
        self.forget()
        self.changed |= set(self.agents)

    def excluded_set(self, kinds: Iterable[str]) -> None:
        """GPU-6: from now on these do not count; nothing else happens."""
        self.excluded = frozenset(kinds)
