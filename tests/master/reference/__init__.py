"""The allocator as its documents say it, slow and obvious: what the real one is judged by.

Written from the rules (design.md §4-§7; mesos.md OFF-*, RSV-*, GPU-3, §2.1, §3.2) and apart from the code under test. Nothing is
remembered that can be worked out: what is free is derived from what there is and what is held, shares are summed anew for every
single decision, and every list is walked. The methods of `Reference` are what happens in a cluster; `quiet` says that the batch of
events is over, `advance` that time passes. Values are those of `bursar.core`; so is the choice of the best-connected devices.

One module for each idea, each on those before it: `cluster` (what there is), `shares` (who is next), `visibility` (who sees what), `quota`
(how much), `offers` (what is offered), `answers` (how offers end), `operators` and `peers` (what happens), and time here.
"""

from __future__ import annotations

from .answers import Launch, Reserve, Unreserve
from .cluster import Agent, Filter, Framework, Offer, Rule, Task
from .offers import take
from .peers import Peers

__all__ = [
    "Agent",
    "Filter",
    "Framework",
    "Launch",
    "Offer",
    "Reference",
    "Reserve",
    "Rule",
    "Task",
    "Unreserve",
    "take",
]


class Reference(Peers):
    """A cluster in which everything happens by the book."""

    def advance(self, ms: int) -> None:
        """So much time passes, instant by instant."""
        until_ms = self.now_ms + ms
        while (due := self.next_ms()) <= until_ms:
            self.now_ms = due
            self.instant()
        self.now_ms = until_ms

    def next_ms(self) -> int:
        """When something is due next."""
        return min(
            self.full_cycle_ms,
            *(refusal.until_ms for refusal in self.filters),
            *(offer.expires_ms for offer in self.offers),
            *(agent.given_up_ms for agent in self.agents.values() if agent.given_up_ms is not None),
            *(framework.removed_ms for framework in self.frameworks.values() if framework.removed_ms is not None),
            1 << 62,
        )

    def instant(self) -> None:
        """Everything whose time has come; then one cycle for what changed, or for all where the interval is over."""
        for refusal in [refusal for refusal in self.filters if refusal.until_ms <= self.now_ms]:
            self.filters.remove(refusal)
            self.changed.add(refusal.agent_id)
        for offer in [offer for offer in self.offers if offer.expires_ms <= self.now_ms]:
            self.expire(offer)
        for agent in self.agents.values():
            if agent.given_up_ms is not None and agent.given_up_ms <= self.now_ms:
                agent.given_up_ms, agent.counts = None, False
        for framework in list(self.frameworks.values()):
            if framework.removed_ms is not None and framework.removed_ms <= self.now_ms:
                del self.frameworks[framework.framework_id]
        self.forget()
        if self.full_cycle_ms <= self.now_ms:
            self.full_cycle_ms = self.now_ms + self.interval_ms
            self.changed = set(self.agents)
        self.quiet()
