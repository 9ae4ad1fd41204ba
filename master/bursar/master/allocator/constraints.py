"""What a framework says of the offers that it takes in a role: constraints on agents and offers, and a least size (OFF-11, OFF-12).

Constraints are groups of predicates (`bursar.core.predicates`): one group must be true, all of it. A predicate on the hostname or on an
attribute is held against the agent; one on amounts or devices (`gpus>=4`, `gpu.model=H100`, `gpu.clique>=4`) against what would be
offered, so that no offer goes out that does not satisfy it. What is already offered stands, whatever the constraints become.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

from bursar.core.devices import Device
from bursar.core.errors import ErrorDetail, ErrorReason, InvalidText
from bursar.core.ids import DeviceUuid
from bursar.core.messages.framework import REGION_AWARE, OfferSettings
from bursar.core.predicates import (
    HOSTNAME,
    AgentFacts,
    Predicate,
    Predicates,
    is_about_amounts,
    is_about_devices,
    matches_all,
    parse_predicates,
)
from bursar.core.resources import UNRESERVED, Holding
from bursar.core.text import Minimum, parse_minimum

MAX_GROUPS = 32
#: Kinds of agents, as far as one role's constraints tell them apart, whose verdict is remembered.
_MAX_VERDICTS = 4096
_ATTRIBUTE = "attribute."


class RoleSettings:
    """Which offers a framework takes in one role. Those that say the same share one object, and what it remembers."""

    __slots__ = ("_on_agents", "_verdicts", "groups", "judges_offers", "minimum", "names")

    def __init__(self, groups: tuple[Predicates, ...], minimum: Minimum | None) -> None:
        #: One of them must be true; none at all: every offer is taken.
        self.groups = groups
        #: Replaces the cluster's; None: that one holds.
        self.minimum = minimum
        #: Whether an agent alone does not decide it.
        self.judges_offers = any(_may_be_about_offers(predicate) for group in groups for predicate in group)
        self._on_agents = tuple(tuple(p for p in group if not _is_about_offers(p)) for group in groups)
        #: The attributes, and the hostname, that they speak of: agents that say the same under these are taken alike.
        self.names = tuple(sorted({_name(p) for group in self._on_agents for p in group}))
        self._verdicts: dict[tuple[str | int | None, ...], bool] = {}

    def may_take(self, agent: AgentFacts) -> bool:
        """Whether anything of an agent may be offered, by what is known of the agent alone. Agents alike are decided alike."""
        if not self.groups:
            return True
        attributes = agent.attributes
        key = tuple([agent.hostname if name == HOSTNAME else attributes.get(name) for name in self.names])
        verdict = self._verdicts.get(key)
        if verdict is None:
            if len(self._verdicts) >= _MAX_VERDICTS:
                self._verdicts.clear()
            verdict = self._verdicts[key] = any(
                matches_all([p for p in group if _speaks_of(p, agent)], agent) for group in self._on_agents
            )
        return verdict

    def takes(self, agent: AgentFacts, offered: Holding, devices: Mapping[DeviceUuid, Device]) -> bool:
        """Whether an offer of this of an agent goes out; `devices`: all of the agent."""
        if not self.groups:
            return True
        amounts = amounts_of(offered)
        there = tuple(devices[uuid] for part in offered.values() for uuid in sorted(part.devices) if uuid in devices)
        facts = AgentFacts(agent.hostname, agent.attributes, amounts, there)
        return any(matches_all(group, facts) for group in self.groups)


def amounts_of(holding: Holding) -> Mapping[str, int]:
    """All amounts of all buckets, as `Resources.amounts`."""
    if len(holding) == 1:
        (part,) = holding.values()
        return part.amounts()
    amounts: dict[str, int] = {}
    for part in holding.values():
        for kind, amount in part.amounts().items():
            amounts[kind] = amounts.get(kind, 0) + amount
    return amounts


def is_allocatable(offered: Holding, minimum: Minimum) -> bool:
    """Whether it is worth an offer: at least one of the alternatives is in it, as a whole; no alternative: anything is."""
    if UNRESERVED in offered and len(offered) == 1:
        # As it mostly is.
        part = offered[UNRESERVED]
        scalars = part.scalars
        for alternative in minimum:
            for kind, least in alternative:
                if scalars.get(kind, 0) < least and (not part.devices or part.amounts().get(kind, 0) < least):
                    break
            else:
                return True
        return not minimum
    for alternative in minimum:
        for kind, least in alternative:
            if sum(part.amounts().get(kind, 0) for part in offered.values()) < least:
                break
        else:
            return True
    return not minimum


def is_foreign(region: str, capabilities: Collection[str], agent: AgentFacts) -> bool:
    """Whether an agent is in another region than the master, and the framework does not understand that (FD-3).

    A master without a region has no other one; an agent without one is where the master is.
    """
    return bool(region) and agent.region not in ("", region) and REGION_AWARE not in capabilities


@lru_cache(maxsize=4096)
def compile_settings(constraints: tuple[str, ...], minimum: str | None) -> RoleSettings:
    """Make settings ready. Raises InvalidText."""
    if len(constraints) > MAX_GROUPS:
        raise InvalidText(f"{len(constraints)} constraints are too many", f"at most {MAX_GROUPS}")
    groups = tuple(parse_predicates(text, "constraints") for text in constraints)
    if not all(groups):
        raise InvalidText("an empty constraint would be true of every offer", "leave it out, or write gpus>=4,rack=r1")
    return RoleSettings(groups, None if minimum is None else parse_minimum(minimum, "min_allocatable"))


def settings_by_role(settings: Iterable[OfferSettings]) -> dict[str, RoleSettings]:
    """The settings of a framework, by role. What cannot be read (another release let it in) says nothing."""
    found = {}
    for one in settings:
        try:
            found[one.role] = compile_settings(one.constraints, one.min_allocatable)
        except InvalidText:
            continue
    return found


def settings_problem(settings: tuple[OfferSettings, ...], roles: Collection[str]) -> ErrorDetail | None:
    """Say what is wrong with the settings of a framework with these roles."""
    seen: set[str] = set()
    for index, one in enumerate(settings):
        path = f"info.offer_settings[{index}]"
        if one.role not in roles:
            return ErrorDetail(
                ErrorReason.INVALID_ARGUMENT,
                f"{one.role!r} is not a role of the framework",
                "name one of its roles",
                f"{path}.role",
            )
        if one.role in seen:
            return ErrorDetail(
                ErrorReason.INVALID_ARGUMENT, f"the role {one.role!r} has settings twice", "name it once", path
            )
        seen.add(one.role)
        try:
            compile_settings(one.constraints, one.min_allocatable)
        except InvalidText as error:
            return ErrorDetail(ErrorReason.INVALID_ARGUMENT, error.detail.message, error.detail.hint, path)
    return None


# --- inside ---


def _is_about_offers(predicate: Predicate) -> bool:
    return is_about_amounts(predicate) or is_about_devices(predicate)


def _may_be_about_offers(predicate: Predicate) -> bool:
    """A name of its own is an attribute where the agent has that, and a kind of resource elsewhere – if it could be a number."""
    if _is_about_offers(predicate):
        return True
    selector = predicate.selector
    if selector == HOSTNAME or selector.startswith(_ATTRIBUTE):
        return False
    return not predicate.values or not all(value[:1].isalpha() for value in predicate.values)


def _speaks_of(predicate: Predicate, agent: AgentFacts) -> bool:
    """Whether the agent alone decides it."""
    return not _may_be_about_offers(predicate) or (
        not _is_about_offers(predicate) and predicate.selector in agent.attributes
    )


def _name(predicate: Predicate) -> str:
    return predicate.selector.removeprefix(_ATTRIBUTE)
