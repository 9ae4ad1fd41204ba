"""Frameworks come, say what they want, and leave."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from bursar.core.errors import InvalidText
from bursar.core.ids import FrameworkId
from bursar.core.messages.framework import FrameworkInfo, OfferSettings, Revive, Suppress, Teardown, UpdateDemand
from bursar.core.messages.offers import Demand, Shape
from bursar.core.predicates import parse_predicates
from bursar.core.text import parse_duration, parse_minimum, parse_request
from bursar.simulation.scenario.peers import Habit
from bursar.simulation.scenario.stage import Stage
from bursar.simulation.scenario.verbs.grammar import Action, Names, verb
from bursar.simulation.scenario.verbs.reading import pairs_in, role_in, roles_in, shape_in, texts_in, time_above_zero
from bursar.simulation.scenario.words import Words

_FAILOVER_MS = 60_000


@dataclass(slots=True)
class _Client:
    """What a script says of a framework."""

    info: dict[str, Any] = field(default_factory=dict)
    suppressed: tuple[str, ...] | None = None
    shapes: tuple[Shape, ...] | None = None
    habit: Habit | None = None
    #: Role → what it says of the offers that it takes.
    settings: dict[str, OfferSettings] = field(default_factory=dict)

    def read(self, words: Words) -> None:
        """Keywords behind the name."""
        keywords = (
            "roles", "capabilities", "suppressed", "demand", "failover", "labels", "principal", "takes", "constraints", "minimum",
        )  # fmt: skip
        while (keyword := words.keyword(keywords)) is not None:
            match keyword:
                case "roles":
                    self.info["roles"] = words.read("roles", roles_in)
                case "capabilities":
                    given = words.read("capabilities", texts_in)
                    self.info["capabilities"] = () if given == ("none",) else given
                case "suppressed":
                    self.suppressed = words.read("roles", roles_in)
                case "demand":
                    self.shapes = (*(self.shapes or ()), words.read("a demand", shape_in))
                case "failover":
                    self.info["failover_timeout_ms"] = words.read("a duration", parse_duration)
                case "labels":
                    self.info["labels"] = words.read("labels", pairs_in)
                case "principal":
                    self.info["principal"] = words.next("the principal")
                case "takes":
                    shape = words.read("amounts", parse_request)
                    for_ms = words.read("a duration", time_above_zero) if words.take("for") else None
                    self.habit = Habit(shape, for_ms)
                case "constraints" | "minimum":
                    self._setting(keyword, words.next(keyword))

    def _setting(self, keyword: str, text: str) -> None:
        """`ml gpu.model=H100,gpus>=4` or `ml gpus:4`; `none` for neither."""
        if text == "none":
            self.settings.clear()
            self.info["offer_settings"] = ()
            return
        role, blank, said = text.partition(" ")
        if not blank:
            raise InvalidText(f"{text!r} says nothing of its role", f"write {keyword} 'ROLE …', or {keyword} none")
        before = self.settings.get(role_in(role), OfferSettings(role))
        if keyword == "constraints":
            parse_predicates(said)
            self.settings[role] = replace(before, constraints=(*before.constraints, said.strip()))
        else:
            least = "" if said.strip() == "none" else said.strip()
            parse_minimum(least)
            self.settings[role] = replace(before, min_allocatable=least)
        self.info["offer_settings"] = tuple(self.settings.values())


_FRAMEWORK = (
    "[roles R,…] [capabilities C,…|none] [suppressed R,…] [demand 'ROLE 2x cpus:1;gpus:2']… [failover 60s]"
    " [labels NAME=VALUE,…] [principal P] [takes AMOUNTS [for 60s]]"
    " [constraints 'ROLE gpu.model=H100,gpus>=4']… [minimum 'ROLE gpus:4|cpus:8']"
)


@verb(f"framework add NAME {_FRAMEWORK}")
def _framework_add(words: Words, names: Names) -> Action:
    name = names.declare("framework", words)
    client = _Client({"failover_timeout_ms": _FAILOVER_MS})
    client.read(words)
    info = FrameworkInfo(FrameworkId(name), "1", name, **client.info)
    demand = Demand() if client.shapes is None else Demand(1, client.shapes)
    return lambda stage: stage.add_framework(
        info, suppressed=client.suppressed or (), demand=demand, habit=client.habit
    )


@verb(f"framework update NAME {_FRAMEWORK}")
def _framework_update(words: Words, names: Names) -> Action:
    name = names.known("framework", words)
    client = _Client()
    client.read(words)

    def act(stage: Stage) -> None:
        framework = stage.frameworks[name]
        framework.habit = client.habit or framework.habit
        info = replace(framework.info, **client.info)
        suppressed, demand = framework.suppressed, framework.demand
        if client.suppressed is not None:
            suppressed = client.suppressed
        elif "roles" in client.info:
            suppressed = tuple(role for role in suppressed if role in info.roles)
        if client.shapes is not None:
            demand = Demand(demand.version + 1, client.shapes)
        elif "roles" in client.info and demand.version:
            kept = tuple(shape for shape in demand.shapes if shape.role in info.roles)
            demand = Demand(demand.version + 1, kept)
        framework.update(info, suppressed, demand)

    return act


@verb("framework deactivate NAME")
def _framework_deactivate(words: Words, names: Names) -> Action:
    name = names.known("framework", words)
    return lambda stage: stage.frameworks[name].disconnect()


@verb("framework activate NAME")
def _framework_activate(words: Words, names: Names) -> Action:
    name = names.known("framework", words)
    return lambda stage: stage.frameworks[name].connect()


@verb("framework remove NAME")
def _framework_remove(words: Words, names: Names) -> Action:
    name = names.known("framework", words)
    return lambda stage: stage.frameworks[name].call(Teardown())


@verb("demand FRAMEWORK none|'ROLE 2x cpus:1;gpus:2'…")
def _demand(words: Words, names: Names) -> Action:
    name = names.known("framework", words)
    given = words.rest()
    if not given:
        raise words.problem("what it wants is missing")
    shapes = () if given == ["none"] else tuple(shape_in(text) for text in given)

    def act(stage: Stage) -> None:
        framework = stage.frameworks[name]
        framework.demand = Demand(framework.demand.version + 1, shapes)
        framework.call(UpdateDemand(framework.demand))

    return act


@verb("suppress FRAMEWORK [ROLE…]")
def _suppress(words: Words, names: Names) -> Action:
    name, roles = names.known("framework", words), tuple(map(role_in, words.rest()))

    def act(stage: Stage) -> None:
        framework = stage.frameworks[name]
        framework.suppressed = tuple(sorted({*framework.suppressed, *(roles or framework.info.roles)}))
        framework.call(Suppress(roles))

    return act


@verb("revive FRAMEWORK [ROLE…]")
def _revive(words: Words, names: Names) -> Action:
    name, roles = names.known("framework", words), tuple(map(role_in, words.rest()))

    def act(stage: Stage) -> None:
        framework = stage.frameworks[name]
        framework.suppressed = tuple(sorted({*framework.suppressed} - {*(roles or framework.info.roles)}))
        framework.call(Revive(roles))

    return act
