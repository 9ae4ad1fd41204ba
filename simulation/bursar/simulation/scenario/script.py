"""The text of a script: prose, commands and what is expected of them; run, written again, compared.

A line whose first character is `#`, or that is blank, is prose and kept. One that begins with `>` belongs to the transcript of the
command above it. Every other line is a command; a backslash at its end continues it on the next.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bursar.core.errors import ErrorDetail, InvalidText
from bursar.core.messages.operator import OperatorRequest, OperatorResponse
from bursar.core.text import format_duration
from bursar.simulation.scenario.outcomes import Outcome, refused
from bursar.simulation.scenario.stage import Stage
from bursar.simulation.scenario.verbs import Action, Names, parse_verb
from bursar.simulation.scenario.words import split_words

MAX_SCRIPT_BYTES = 4 << 20
_INDENT = "  > "

Ask = Callable[[OperatorRequest], OperatorResponse | ErrorDetail]


class ScriptError(InvalidText):
    """A script cannot be carried out: file and line, what, and what to do."""


@dataclass(frozen=True, slots=True)
class Operated:
    """What an operator's command came to."""

    output: str = ""
    refusal: ErrorDetail | None = None


class Operate(Protocol):
    """Carries out an operator's command: the words that stand after `bursar` in a shell."""

    def check(self, words: Sequence[str]) -> None:
        """Raise InvalidText for what is no command of operators, before anything is carried out."""

    def __call__(self, words: Sequence[str], ask: Ask, wall_ms: int) -> Operated:
        """Carry it out with a master that answers `ask`, at that time of day. Raises InvalidText where the words are none of the command's."""


@dataclass(slots=True)
class Entry:
    """One command: where it stands, what is expected of it, what it caused."""

    line: int
    #: As written, continuations and all.
    source: list[str]
    command: str
    expected: list[str] = field(default_factory=list)
    at_ms: int = 0
    outcomes: tuple[Outcome, ...] = ()

    @property
    def lines(self) -> list[str]:
        """The transcript: a time stands in front of what happened later than the command itself."""
        return [
            f"at {format_duration(outcome.at_ms)}: {outcome.text}" if outcome.at_ms > self.at_ms else outcome.text
            for outcome in self.outcomes
        ]


@dataclass(slots=True)
class Transcript:
    """A script that was run."""

    name: str
    source: str
    #: Lines of prose, and commands, in order.
    pieces: list[str | Entry]

    @property
    def entries(self) -> list[Entry]:
        """The commands."""
        return [piece for piece in self.pieces if isinstance(piece, Entry)]

    def text(self) -> str:
        """The script with its transcript: what `--update` writes."""
        lines: list[str] = []
        for piece in self.pieces:
            if isinstance(piece, Entry):
                lines += piece.source
                lines += [f"{_INDENT}{line}".rstrip() for line in piece.lines]
            else:
                lines.append(piece)
        return "".join(f"{line}\n" for line in lines)

    def differing(self) -> list[Entry]:
        """Commands that caused something else than the file says."""
        return [entry for entry in self.entries if [line.rstrip() for line in entry.lines] != entry.expected]

    def difference(self) -> str:
        """As a unified diff from the file to what happened; empty where every command did what is expected."""
        if not self.differing():
            return ""
        return "".join(
            difflib.unified_diff(
                self.source.splitlines(keepends=True),
                self.text().splitlines(keepends=True),
                f"{self.name} (expected)",
                f"{self.name} (happened)",
                n=4,
            )
        )

    def as_data(self) -> dict[str, Any]:
        """As JSON; docs/scenarios.md has the fields."""
        return {
            "scenario": self.name,
            "commands": [
                {
                    "line": entry.line,
                    "command": entry.command,
                    "at_ms": entry.at_ms,
                    "outcomes": [outcome.as_data() for outcome in entry.outcomes],
                }
                for entry in self.entries
            ],
        }


def run_script(source: str, name: str, operate: Operate) -> Transcript:
    """Carry out a script. Raises ScriptError; then nothing of what was done is worth anything."""
    pieces = _read(source, name)
    transcript = Transcript(name, source, pieces)
    actions: list[tuple[Entry, Action]] = []
    names = Names()
    for entry in transcript.entries:
        try:
            actions.append((entry, _parse(entry, names, operate)))
        except InvalidText as error:
            raise _at(name, entry, error) from None
    stage = Stage()
    for entry, action in actions:
        entry.at_ms = stage.at_ms
        try:
            action(stage)
            stage.quiet()
        except InvalidText as error:
            raise _at(name, entry, error) from None
        entry.outcomes, stage.outcomes = tuple(stage.outcomes), []
    return transcript


def _at(name: str, entry: Entry, error: InvalidText) -> ScriptError:
    detail = error.detail
    return ScriptError(f"{name}, line {entry.line}: {detail.message}", detail.hint)


def _read(source: str, name: str) -> list[str | Entry]:
    if len(source) > MAX_SCRIPT_BYTES:
        raise ScriptError(f"{name} is larger than {MAX_SCRIPT_BYTES >> 20} MiB", "split it")
    pieces: list[str | Entry] = []
    entry: Entry | None = None
    continued = False
    for number, raw in enumerate(source.splitlines(), 1):
        line = raw.rstrip()
        text = line.strip()
        if continued and entry is not None:
            entry.source.append(line)
            entry.command = f"{entry.command[:-1].rstrip()} {text}"
            continued = text.endswith("\\")
        elif text.startswith(">"):
            if entry is None:
                raise ScriptError(
                    f"{name}, line {number}: a line of a transcript without a command above it",
                    "lines that begin with '>' say what the command above them causes",
                )
            entry.expected.append(text.removeprefix(">").removeprefix(" "))
        elif not text or text.startswith("#"):
            pieces.append(line)
        else:
            entry = Entry(number, [line], text)
            pieces.append(entry)
            continued = text.endswith("\\")
    if continued and entry is not None:
        raise ScriptError(f"{name}, line {entry.line}: nothing follows the last backslash", "take it away")
    return pieces


def _parse(entry: Entry, names: Names, operate: Operate) -> Action:
    """What a command does. Raises InvalidText."""
    words = split_words(entry.command)
    is_operators = bool(words) and words[0] == "bursar"
    if not is_operators:
        action = parse_verb(words, names)
        if action is not None:
            return action
    order = words[1:] if is_operators else words
    operate.check(order)

    def carry_out(stage: Stage) -> None:
        before = stage.records
        done = operate(order, stage.ask, stage.now.wall_ms)
        if done.refusal is not None:
            stage.note(refused(stage.at_ms, done.refusal))
        elif stage.records == before:
            # What only asks is run for its output; what changes something shows in what it causes.
            for line in done.output.splitlines():
                stage.show(line.rstrip())

    return carry_out
