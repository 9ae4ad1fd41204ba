"""Limits that the kernel holds each process of a task to (`setrlimit`), by the names that Docker has for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bursar.core.errors import InvalidText
from bursar.core.resources import MEM
from bursar.core.text import parse_amount

#: The capability of agents that hold tasks to limits; an older one would ignore them.
ULIMITS = "ULIMITS"
#: What `soft` and `hard` are where there is no limit.
UNLIMITED = -1
#: By name: the number of the limit in Linux (`RLIMIT_…`).
NUMBERS = {
    "cpu": 0,
    "fsize": 1,
    "data": 2,
    "stack": 3,
    "core": 4,
    "rss": 5,
    "nproc": 6,
    "nofile": 7,
    "memlock": 8,
    "locks": 10,
    "sigpending": 11,
    "msgqueue": 12,
    "nice": 13,
    "rtprio": 14,
    "rttime": 15,
}
#: Those that are sizes in bytes.
_SIZES = frozenset({"fsize", "data", "stack", "core", "rss", "memlock", "msgqueue"})
_MOST = 2**63 - 1
_HINT = "write NAME=SOFT or NAME=SOFT:HARD, such as nofile=1024:4096, memlock=-1 (no limit) or stack=64MiB"


@dataclass(frozen=True, slots=True)
class Ulimit:
    """One limit; mirrors `bursar.v1.Ulimit`."""

    name: str
    #: What processes begin with, and up to what they may raise it; UNLIMITED for neither.
    soft: int
    hard: int

    def __str__(self) -> str:
        return f"{self.name}={self.soft}" + (f":{self.hard}" if self.hard != self.soft else "")


def parse_ulimit(text: str) -> Ulimit:
    """Read `nofile=1024:4096`, `memlock=-1`, `stack=64MiB`. Raises InvalidText."""
    name, equals, values = text.partition("=")
    soft, colon, hard = values.partition(":")
    if not equals or name not in NUMBERS:
        known = f"; there are {', '.join(NUMBERS)}" if equals else ""
        raise InvalidText(f"ulimit {text!r} is not understood{known}", _HINT)
    first = _value(text, name, soft)
    limit = Ulimit(name, first, _value(text, name, hard) if colon else first)
    if problem := _problem(limit):
        raise InvalidText(f"ulimit {text!r}: {problem}", _HINT)
    return limit


def parse_ulimits(texts: Iterable[str]) -> tuple[Ulimit, ...]:
    """Read several. Raises InvalidText, also where one is named twice."""
    limits = tuple(map(parse_ulimit, texts))
    if problem := ulimits_problem(limits):
        raise InvalidText(problem[1], _HINT)
    return limits


def ulimits_problem(limits: Sequence[Ulimit]) -> tuple[str, str] | None:
    """Say what is wrong with a task's limits as (field, problem), or nothing."""
    for limit in limits:
        if limit.name not in NUMBERS:
            return "ulimits", f"{limit.name!r} is no limit; there are {', '.join(NUMBERS)}"
        if problem := _problem(limit):
            return "ulimits", f"{limit.name}: {problem}"
    if len({limit.name for limit in limits}) < len(limits):
        return "ulimits", "a limit is named twice"
    return None


def beyond(limits: Iterable[Ulimit], most: Iterable[Ulimit]) -> tuple[Ulimit, Ulimit] | None:
    """The first that is higher than what is allowed, and that; None: none is. What `most` does not name is allowed."""
    allowed = {limit.name: limit for limit in most}
    for limit in limits:
        bound = allowed.get(limit.name)
        if bound is not None and _is_higher(limit.hard, bound.hard):
            return limit, bound
    return None


def _is_higher(one: int, other: int) -> bool:
    return other != UNLIMITED and (one == UNLIMITED or one > other)


def _problem(limit: Ulimit) -> str:
    for value in (limit.soft, limit.hard):
        if not UNLIMITED <= value <= _MOST:
            return f"{value} is not a number of 0 or more, or -1 for no limit"
    if _is_higher(limit.soft, limit.hard):
        return f"the soft limit {limit.soft} is higher than the hard one {limit.hard}"
    return ""


def _value(text: str, name: str, value: str) -> int:
    if value in ("-1", "unlimited"):
        return UNLIMITED
    if value.isascii() and value.isdecimal():
        return int(value)
    if name in _SIZES:
        return parse_amount(MEM, value)
    raise InvalidText(f"ulimit {text!r}: {value!r} is not a number", _HINT)
