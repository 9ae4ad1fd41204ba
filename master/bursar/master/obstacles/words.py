"""How each reason is told: one entry per reason of refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from bursar.core.messages.framework import RESERVATION_REFINEMENT
from bursar.core.messages.operator import Obstacle, RefusalReason
from bursar.master.obstacles.asking import Group
from bursar.master.obstacles.holders import not_free_hint, reservation_hint, reservations_of_others, who_holds_it
from bursar.master.obstacles.limits import guarantee_hint, guarantees_unmet, limit_hint, limits_reached
from bursar.master.obstacles.sight import (
    constraints_untrue,
    deciding_rules,
    other_regions,
    refined_reservations,
    rule_hint,
    rule_says,
)
from bursar.master.obstacles.sizes import exceeds_hint, exceeds_says, minimum_missed, shapes_exceeding
from bursar.master.obstacles.wishes import agents_away, filter_hint, nothing_wanted, offers_declined, wish_hint


class Words(NamedTuple):
    """How a reason is told."""

    #: What it means, of agents: "2 agents (a, b): …".
    says: Callable[[Group], str]
    #: What would change it.
    hint: Callable[[Group], str]
    #: The facts, the most telling first.
    obstacles: Callable[[Group], Iterable[Obstacle]]


WORDS: dict[RefusalReason, Words] = {
    RefusalReason.AGENT_INACTIVE: Words(
        lambda group: "not connected",
        lambda group: "start `bursar-agent` there again, or wait for it to come back; see `bursar agent ls`",
        agents_away,
    ),
    RefusalReason.SUPPRESSED: Words(
        lambda group: "the framework wants nothing (more) in this role",
        wish_hint,
        nothing_wanted,
    ),
    RefusalReason.HIDDEN_BY_RULE: Words(rule_says, rule_hint, deciding_rules),
    RefusalReason.OTHER_REGION: Words(
        lambda group: "in another region than the master, and the framework lacks the capability REGION_AWARE",
        lambda group: "add the capability, where the framework can do with that",
        other_regions,
    ),
    RefusalReason.OFFER_CONSTRAINTS: Words(
        lambda group: "no offer constraint of the framework is true of it",
        lambda group: "loosen the constraints, or add agents that they are true of; see `bursar agent show`",
        constraints_untrue,
    ),
    RefusalReason.EXCEEDS_AGENT: Words(exceeds_says, exceeds_hint, shapes_exceeding),
    RefusalReason.RESERVED_FOR_OTHERS: Words(
        lambda group: "what would be enough is reserved for other roles", reservation_hint, reservations_of_others
    ),
    RefusalReason.CAPABILITY_MISSING: Words(
        lambda group: (
            f"what would be enough is a refined reservation, and the framework lacks {RESERVATION_REFINEMENT}"
        ),
        lambda group: "add the capability, where the framework can do with that",
        refined_reservations,
    ),
    RefusalReason.NOT_FREE: Words(lambda group: "large enough, but in use", not_free_hint, who_holds_it),
    RefusalReason.STRIPPED_BY_RULE: Words(rule_says, rule_hint, deciding_rules),
    RefusalReason.QUOTA_LIMIT: Words(
        lambda group: "enough is free, but the limit of the role, or of a role above it, is reached",
        limit_hint,
        limits_reached,
    ),
    RefusalReason.HEADROOM: Words(
        lambda group: "enough is free, but it is kept for the guarantees of other roles",
        guarantee_hint,
        guarantees_unmet,
    ),
    RefusalReason.TOO_SMALL: Words(
        lambda group: "what is free is less than the smallest offer",
        lambda group: (
            "wait for tasks to end, or lower the minimum: the framework's own, or `bursar flag set min-allocatable-resources`"
        ),
        minimum_missed,
    ),
    RefusalReason.DECLINED: Words(lambda group: "the framework declined it a moment ago", filter_hint, offers_declined),
    RefusalReason.OTHERS_FIRST: Words(
        lambda group: "it is offered to others, whose turn came first",
        lambda group: (
            "wait for the offers to be answered (see `bursar offer ls`), or raise the role's weight with `bursar weight set`"
        ),
        who_holds_it,
    ),
}
