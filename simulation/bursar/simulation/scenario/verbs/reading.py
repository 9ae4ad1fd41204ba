"""The small grammars that several verbs share; all raise InvalidText."""

from __future__ import annotations

from bursar.core.errors import InvalidText
from bursar.core.messages.offers import Shape
from bursar.core.roles import DEFAULT_ROLE, role_problem
from bursar.core.text import parse_duration, parse_request


def role_in(text: str) -> str:
    """A role."""
    if problem := role_problem(text):
        raise InvalidText(problem, "a role is a path such as eng/backend")
    return text


def roles_in(text: str) -> tuple[str, ...]:
    """Roles, with commas between them."""
    return tuple(role_in(role.strip()) for role in text.split(","))


def texts_in(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(filter(None, (piece.strip() for piece in text.split(","))))


def pairs_in(text: str) -> dict[str, str]:
    """Labels: `team=vision,why=paper`."""
    pairs = [piece.partition("=") for piece in texts_in(text)]
    if any(not name or not equals for name, equals, _ in pairs):
        raise InvalidText(f"{text!r} is not NAME=VALUE", "write labels team=vision,why=paper")
    return {name: value for name, _, value in pairs}


def numbers_in(text: str) -> tuple[int, ...]:
    """Numbers, with commas between them."""
    if not all(piece.isascii() and piece.isdigit() and len(piece) < 5 for piece in texts_in(text)):
        raise InvalidText(f"{text!r} is not a list of numbers", "write numbers with commas between them, such as 0,3")
    return tuple(map(int, texts_in(text)))


#: Digits and the x behind them.
_LONGEST_COUNT = 10


def shape_in(text: str) -> Shape:
    """`ml/train 2x cpus:1;gpus:2`; without a role for `*`, without a count one."""
    pieces = text.split()
    *before, amounts = pieces or [""]
    count, role = 1, DEFAULT_ROLE
    for piece in before:
        if piece.endswith("x") and piece[:-1].isascii() and piece[:-1].isdigit():
            if len(piece) > _LONGEST_COUNT:
                raise InvalidText(f"{piece!r} are too many", "a count has nine digits at most")
            count = int(piece[:-1])
        else:
            role = role_in(piece)
    if len(before) > 2:
        raise InvalidText(f"{text!r} is not a demand", "write 'ml/train 2x cpus:1;gpus:2': role, count, amounts")
    return Shape(role, parse_request(amounts), count)


def time_above_zero(text: str) -> int:
    """A duration that is longer than nothing."""
    ms = parse_duration(text)
    if not ms:
        raise InvalidText(f"{text} is no time at all", "write at least 1ms")
    return ms
