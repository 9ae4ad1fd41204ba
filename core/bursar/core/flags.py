"""What a flag of a daemon is: its type, its text form, and whether it may change at run time.

Pure, because the master's machine judges `bursar flag set` with the same words as the command line does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum

from bursar.core.errors import InvalidText
from bursar.core.text import format_duration, parse_duration

FlagValue = str | bool | int | tuple[str, ...]
"""Text and choices are `str`, durations `int` in milliseconds, lists tuples of non-empty texts."""


class FlagType(Enum):
    """How the text of a flag is read."""

    TEXT = "text"
    #: One of `Flag.choices`.
    CHOICE = "choice"
    BOOL = "bool"
    INT = "int"
    #: Milliseconds.
    DURATION = "duration"
    #: Separated by commas.
    LIST = "list"


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of a daemon."""

    #: With hyphens, without the leading ones.
    name: str
    type: FlagType
    default: FlagValue
    help: str
    #: For CHOICE. Where `true` and `false` are among them, `--name` and `--no-name` work as for BOOL.
    choices: tuple[str, ...] = ()
    #: Whether `bursar flag set` may change it.
    runtime_settable: bool = False
    #: What stands for the value in the help.
    metavar: str = ""
    #: For INT and DURATION.
    minimum: int = 0
    #: Says what is wrong with a value, or nothing; may raise InvalidText with what to do, too.
    problem: Callable[[FlagValue], str | None] | None = None
    #: Says why a choice that does not exist (yet) does not.
    hints: tuple[tuple[str, str], ...] = ()

    @property
    def is_switch(self) -> bool:
        """Whether `--name` alone and `--no-name` mean something."""
        return self.type is FlagType.BOOL or (self.type is FlagType.CHOICE and {"true", "false"} <= set(self.choices))


_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_INTEGER = re.compile(r"-?[0-9]{1,18}")


def canonical_name(name: str) -> str:
    """`_` is accepted for `-` everywhere."""
    return name.strip().replace("_", "-")


def parse_flag(flag: Flag, text: str) -> FlagValue:
    """Read the value of a flag. Raises InvalidText with what, why and what to do."""
    value = _parse(flag, text.strip())
    if flag.type in (FlagType.INT, FlagType.DURATION) and isinstance(value, int) and value < flag.minimum:
        least = format_duration(flag.minimum) if flag.type is FlagType.DURATION else str(flag.minimum)
        raise InvalidText(f"{flag.name}: {text.strip()} is too small", f"at least {least}")
    if flag.problem is not None:
        try:
            problem = flag.problem(value)
        except InvalidText as error:
            raise InvalidText(f"{flag.name}: {error.detail.message}", error.detail.hint) from None
        if problem:
            raise InvalidText(f"{flag.name}: {problem}")
    return value


def _parse(flag: Flag, text: str) -> FlagValue:
    match flag.type:
        case FlagType.TEXT:
            return text
        case FlagType.CHOICE:
            return _parse_choice(flag, text)
        case FlagType.BOOL:
            lowered = text.lower()
            if lowered in _TRUE or lowered in _FALSE:
                return lowered in _TRUE
            raise InvalidText(f"{flag.name}: {text!r} is neither true nor false", "write true or false")
        case FlagType.INT:
            if not _INTEGER.fullmatch(text):
                raise InvalidText(f"{flag.name}: {text!r} is not a whole number", "write digits only, such as 5")
            return int(text)
        case FlagType.DURATION:
            return parse_duration(text, flag.name)
        case FlagType.LIST:
            return tuple(item for item in (part.strip() for part in text.split(",")) if item)


def _parse_choice(flag: Flag, text: str) -> str:
    if text in flag.choices:
        return text
    if flag.is_switch:
        lowered = text.lower()
        if lowered in _TRUE:
            return "true"
        if lowered in _FALSE:
            return "false"
    choices = ", ".join(flag.choices)
    for choice, why in flag.hints:
        if text == choice:
            raise InvalidText(f"{flag.name}: {why}", f"use one of: {choices}")
    raise InvalidText(f"{flag.name}: {text!r} is not a choice", f"use one of: {choices}")


def format_flag(flag: Flag, value: FlagValue) -> str:
    """The text that `parse_flag` reads back."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, int):
        return format_duration(value) if flag.type is FlagType.DURATION else str(value)
    return value


def closest(name: str, names: list[str]) -> str | None:
    """The name that was probably meant."""
    found = get_close_matches(name, names, n=1, cutoff=0.6)
    return found[0] if found else None
