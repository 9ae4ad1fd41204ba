"""The master's command line, its restart, and time."""

from __future__ import annotations

from collections.abc import Sequence

from bursar.core.errors import ErrorDetail, InvalidText
from bursar.core.text import format_duration, parse_duration
from bursar.master.flags import find_flag
from bursar.simulation.scenario.outcomes import Kind, Outcome
from bursar.simulation.scenario.peers import STARTING
from bursar.simulation.scenario.stage import MAX_ADVANCE_MS, Stage
from bursar.simulation.scenario.verbs.grammar import Action, Names, verb
from bursar.simulation.scenario.words import Words


@verb("master FLAG VALUE")
def _master(words: Words, names: Names) -> Action:
    if words.take("restart"):
        return Stage.restart
    flag = find_flag(words.next("the name of a flag"))
    if isinstance(flag, ErrorDetail):
        raise InvalidText(flag.message, flag.hint)
    value = words.next("the value")

    def act(stage: Stage) -> None:
        if stage.has_started:
            raise InvalidText(
                "the master runs already, its command line cannot be changed",
                f"write this line before all others, or `flag set {flag} {value}`",
            )
        stage.set_flag(flag, value)

    return act


@verb("advance DURATION [quietly]")
def _advance(words: Words, names: Names) -> Action:
    ms = words.read("a duration", parse_duration)
    if ms > MAX_ADVANCE_MS:
        raise words.problem(f"{format_duration(ms)} is longer than {format_duration(MAX_ADVANCE_MS)}")
    if not words.take("quietly"):
        return lambda stage: stage.advance(ms)

    def act(stage: Stage) -> None:
        before, stage.outcomes = stage.outcomes, []
        stage.advance(ms)
        told, stage.outcomes = stage.outcomes, before
        stage.show(_summary(told))

    return act


def _summary(outcomes: Sequence[Outcome]) -> str:
    """How much of what happened, for whom long transcripts say too little."""
    counts = {
        "offer": sum(outcome.kind is Kind.OFFER for outcome in outcomes),
        "rescind": sum(outcome.kind is Kind.RESCIND for outcome in outcomes),
        "refusal": sum(outcome.kind is Kind.REFUSED for outcome in outcomes),
        "task started": sum(outcome.kind is Kind.TASK and outcome.reason == STARTING for outcome in outcomes),
        "task ended": sum(outcome.kind is Kind.TASK and outcome.reason != STARTING for outcome in outcomes),
    }
    return ", ".join(f"{count} {_plural(noun, count)}" for noun, count in counts.items())


def _plural(noun: str, count: int) -> str:
    first, blank, rest = noun.partition(" ")
    return noun if count == 1 else f"{first}s{blank}{rest}"


@verb("cycle full")
def _cycle(words: Words, names: Names) -> Action:
    def act(stage: Stage) -> None:
        count = len(stage.outcomes)
        stage.full_cycle()
        if len(stage.outcomes) == count:
            stage.show("a full cycle offers nothing more")

    return act
