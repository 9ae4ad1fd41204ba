"""Expressions over roles: who resources may be reserved to (design.md §5, M-13).

`r` is the role r and its descendants, `r/**` the descendants only, `=r` r alone, `@g` whatever the role group g covers; `!` removes
what its operand covers, `&` keeps what both cover, `|` joins, and binds less tightly than `&`; parentheses group. A role with a
character outside letters, digits, `.`, `_`, `-`, `/` stands in double quotes, where a backslash takes the next character as it is:

    (ml/** | eng/backend/image-processing) & !ml/interns

Whether an expression covers a role is a pure function of the name and of the groups: roles need not exist. No expression covers
`*`: what is for everybody is not reserved. A plain role is the simplest expression and means what it means in Mesos (RSV-7).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from bursar.core.errors import InvalidText
from bursar.core.roles import DEFAULT_ROLE, ancestors, is_strict_subrole, role_problem

#: Longest text of one expression, in characters.
MAX_LENGTH = 2048
#: How deeply parentheses and negations may be nested.
MAX_DEPTH = 32
#: Most roles, groups and operators in one text.
MAX_NODES = 256
#: The same for an expression together with every group that it reaches.
MAX_COST = 5000
#: How deeply groups may name groups.
MAX_NESTING = 8

_ROLE = re.compile(r"[A-Za-z0-9._/-]+")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_GROUP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SPACE = re.compile(r"[ \t\r\n]*")
_EXAMPLE = "write for example: (ml/** | eng/backend) & !ml/interns"


@dataclass(frozen=True, slots=True)
class _Role:
    """`r`: the role and its descendants."""

    role: str


@dataclass(frozen=True, slots=True)
class _Below:
    """`r/**`: the descendants only."""

    role: str


@dataclass(frozen=True, slots=True)
class _Exactly:
    """`=r`: this one role."""

    role: str


@dataclass(frozen=True, slots=True)
class _Group:
    """`@g`: whatever the group covers; nobody where there is no such group."""

    name: str


@dataclass(frozen=True, slots=True)
class _Not:
    """`!x`: every role that x does not cover."""

    operand: _Node


@dataclass(frozen=True, slots=True)
class _All:
    """`x & y`: roles that all operands cover."""

    operands: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Any:
    """`x | y`: roles that any operand covers."""

    operands: tuple[_Node, ...]
    #: The operands that are plain roles, found by a look-up for the role and each above it; the others are asked one by one.
    plain: frozenset[str]
    others: tuple[_Node, ...]


_Node = _Role | _Below | _Exactly | _Group | _Not | _All | _Any


@dataclass(frozen=True, slots=True)
class RoleExpression:
    """A set of roles, by description; equal where the canonical text is."""

    root: _Node

    def __str__(self) -> str:
        """The canonical text: one space around `&` and `|`, no parenthesis that is not needed; it is read back as the same."""
        return _text(self.root)

    @property
    def plain(self) -> str | None:
        """The role, where the expression is just one (with its descendants); else None."""
        return self.root.role if isinstance(self.root, _Role) else None

    @property
    def groups(self) -> frozenset[str]:
        """The names of the groups in it; not those that these name in turn."""
        return frozenset(node.name for node in _walk(self.root) if isinstance(node, _Group))

    @property
    def roles(self) -> frozenset[str]:
        """The roles that it names, also those that it removes."""
        return frozenset(node.role for node in _walk(self.root) if isinstance(node, _Role | _Below | _Exactly))

    def covers(self, role: str, groups: RoleGroups = MappingProxyType({})) -> bool:
        """Say whether a role is in the set. An unknown group covers nobody, and so does one inside of itself."""
        return role != DEFAULT_ROLE and _covers(self.root, role, groups, {})

    def cost(self, groups: RoleGroups = MappingProxyType({})) -> int:
        """How much there is to evaluate at most: its nodes and, once each, those of every group that it reaches."""
        reached = reached_groups(self, groups)
        return _size(self.root) + sum(_size(groups[name].root) for name in reached if name in groups)

    def covers_nothing(self, groups: RoleGroups = MappingProxyType({})) -> bool:
        """Say whether there can be no role that it covers, with the groups as they are."""
        named = set(self.roles)
        for name in reached_groups(self, groups):
            if name in groups:
                named |= groups[name].roles
        # What counts of a role is the nearest named one at or above it, and whether it is that one: these are all cases.
        unlike = "x" * (1 + max(map(len, named), default=0))
        cases = [unlike, *named, *(f"{role}/{unlike}" for role in named)]
        return not any(self.covers(role, groups) for role in cases)


RoleGroups = Mapping[str, RoleExpression]
"""By name, what each group covers: the union of its members."""


def parse_role_expression(text: str) -> RoleExpression:
    """Read an expression. Raises InvalidText, which says where; also for one that is too long, or nested too deeply."""
    if len(text) > MAX_LENGTH:
        raise InvalidText(
            f"role expression: {len(text)} characters are too many",
            f"at most {MAX_LENGTH}; gather roles in a group (`bursar group set`) and name that",
        )
    reader = _Reader(text)
    root = reader.read_any(0)
    if reader.position < len(text):
        raise reader.error("an operator (& or |) or the end is expected")
    if _size(root) > MAX_NODES:
        raise InvalidText(
            f"role expression: {_size(root)} roles, groups and operators are too many",
            f"at most {MAX_NODES}; gather roles in a group (`bursar group set`) and name that",
        )
    return RoleExpression(root)


def role_expression(role: str) -> RoleExpression:
    """A role and its descendants, by the role's bare name."""
    return RoleExpression(_Role(role))


def union(expressions: Iterable[RoleExpression]) -> RoleExpression:
    """What any of them covers: what a group of these members covers. There must be at least one."""
    return RoleExpression(_joined([expression.root for expression in expressions]))


def group_name_problem(name: str) -> str | None:
    """Say what is wrong with the name of a group, or nothing."""
    if _GROUP_NAME.fullmatch(name):
        return None
    return f"{name!r} is not a name of a role group: letters, digits, '.', '_', '-', at most 63"


def reached_groups(expression: RoleExpression, groups: RoleGroups) -> frozenset[str]:
    """The groups that an expression names, and those that they name, known or not."""
    reached: set[str] = set()
    left = list(expression.groups)
    while left:
        name = left.pop()
        if name not in reached:
            reached.add(name)
            if name in groups:
                left.extend(groups[name].groups)
    return frozenset(reached)


def groups_problem(groups: RoleGroups) -> str | None:
    """Say what is wrong with how groups name each other, or nothing: in circles, or too deeply."""
    depths: dict[str, int] = {}

    def problem_of(name: str, path: tuple[str, ...]) -> str | None:
        if name in path:
            return f"role groups name each other in a circle: {' → '.join((*path[path.index(name) :], name))}"
        if len(path) >= MAX_NESTING:
            return f"role groups inside each other, more than {MAX_NESTING} deep: {' → '.join(path)}"
        if name in depths or name not in groups:
            return None
        inner = groups[name].groups
        for other in sorted(inner):
            if problem := problem_of(other, (*path, name)):
                return problem
        depths[name] = 1 + max((depths.get(other, 1) for other in inner), default=0)
        if depths[name] > MAX_NESTING:
            return f"role groups inside each other, more than {MAX_NESTING} deep, beginning with {name}"
        return None

    for name in sorted(groups):
        if problem := problem_of(name, ()):
            return problem
    return None


def quote_role(role: str) -> str:
    """A role as it stands in an expression."""
    return role if _ROLE.fullmatch(role) else '"' + re.sub(r'(["\\])', r"\\\1", role) + '"'


def unquote_role(text: str) -> str:
    """The role that stands between double quotes in an expression."""
    return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)


# --- holders: the texts of expressions in reservations ---


def holder_of(role: str) -> str:
    """The text of the holder of a reservation to a plain role, given by its bare name."""
    return quote_role(role)


@lru_cache(maxsize=4096)
def read_holder(holder: str) -> RoleExpression:
    """The holder of a reservation as an expression. Raises InvalidText.

    Earlier versions wrote a role without quotes whatever its characters: what is no expression but a role's name is that role.
    """
    try:
        return parse_role_expression(holder)
    except InvalidText:
        if role_problem(holder) is None and holder != DEFAULT_ROLE:
            return role_expression(holder)
        raise


def plain_holder(holder: str) -> str | None:
    """The role that a holder's text names, where that is all; None for any other expression."""
    return read_holder(holder).plain


def holder_covers(holder: str, role: str, groups: RoleGroups = MappingProxyType({})) -> bool:
    """Say whether what is reserved to `holder` may be offered to `role`."""
    return read_holder(holder).covers(role, groups)


# --- inside ---


def _covers(node: _Node, role: str, groups: RoleGroups, asked: dict[str, bool]) -> bool:
    """`asked` has the groups that were asked; one that is being asked covers nobody."""
    match node:
        case _Role(path):
            return path == role or is_strict_subrole(role, path)
        case _Below(path):
            return is_strict_subrole(role, path)
        case _Exactly(path):
            return path == role
        case _Group(name):
            if name not in asked:
                asked[name] = False
                if name in groups:
                    asked[name] = _covers(groups[name].root, role, groups, asked)
            return asked[name]
        case _Not(operand):
            return not _covers(operand, role, groups, asked)
        case _All(operands):
            return all(_covers(operand, role, groups, asked) for operand in operands)
        case _Any(_, plain, others):
            if plain and (role in plain or not plain.isdisjoint(ancestors(role))):
                return True
            return any(_covers(operand, role, groups, asked) for operand in others)


def _walk(node: _Node) -> Iterable[_Node]:
    left: list[_Node] = [node]
    while left:
        node = left.pop()
        yield node
        match node:
            case _Not(operand):
                left.append(operand)
            case _All(operands) | _Any(operands):
                left.extend(operands)


def _size(node: _Node) -> int:
    return sum(1 for _ in _walk(node))


def _joined(operands: Iterable[_Node]) -> _Node:
    """`|` of these: flat, each once."""
    flat: dict[_Node, None] = {}
    for operand in operands:
        flat |= dict.fromkeys(operand.operands if isinstance(operand, _Any) else (operand,))
    if len(flat) == 1:
        return next(iter(flat))
    plain = frozenset(operand.role for operand in flat if isinstance(operand, _Role))
    return _Any(tuple(flat), plain, tuple(operand for operand in flat if not isinstance(operand, _Role)))


def _met(operands: Iterable[_Node]) -> _Node:
    """`&` of these: flat, each once."""
    flat: dict[_Node, None] = {}
    for operand in operands:
        flat |= dict.fromkeys(operand.operands if isinstance(operand, _All) else (operand,))
    return next(iter(flat)) if len(flat) == 1 else _All(tuple(flat))


def _text(node: _Node) -> str:
    match node:
        case _Role(role):
            return quote_role(role)
        case _Below(role):
            return f"{quote_role(role)}/**"
        case _Exactly(role):
            return f"={quote_role(role)}"
        case _Group(name):
            return f"@{name}"
        case _Not(operand):
            return f"!({_text(operand)})" if isinstance(operand, _All | _Any) else f"!{_text(operand)}"
        case _All(operands):
            return " & ".join(f"({_text(one)})" if isinstance(one, _Any) else _text(one) for one in operands)
        case _Any(operands):
            return " | ".join(map(_text, operands))


class _Reader:
    """Reads by descent: any → all → one."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self._skip_space()

    def read_any(self, depth: int) -> _Node:
        """`all | all | …`"""
        operands = [self._read_all(depth)]
        while self._take("|"):
            operands.append(self._read_all(depth))
        return _joined(operands)

    def _read_all(self, depth: int) -> _Node:
        """`one & one & …`"""
        operands = [self._read_one(depth)]
        while self._take("&"):
            operands.append(self._read_one(depth))
        return _met(operands)

    def _read_one(self, depth: int) -> _Node:
        """A role, a group, a negation or a parenthesis."""
        if depth > MAX_DEPTH:
            raise self.error(f"more than {MAX_DEPTH} parentheses and negations inside each other are too many")
        if self._take("!"):
            operand = self._read_one(depth + 1)
            return operand.operand if isinstance(operand, _Not) else _Not(operand)
        if self._take("("):
            inner = self.read_any(depth + 1)
            if not self._take(")"):
                raise self.error("an operator (& or |) or ')' is expected")
            return inner
        if self._take("@", space=False):
            match = _GROUP_NAME.match(self.text, self.position)
            if match is None:
                raise self.error("the name of a role group is expected right after '@'")
            self._advance(match.end())
            return _Group(match[0])
        if self._take("=", space=False):
            start = self.position
            role, below = self._read_role()
            if below:
                self.position = start
                raise self.error("'=r' is r alone, 'r/**' its descendants: not both can be meant")
            return _Exactly(role)
        role, below = self._read_role()
        return _Below(role) if below else _Role(role)

    def _read_role(self) -> tuple[str, bool]:
        """A role, and whether `/**` follows."""
        start = self.position
        quoted = _QUOTED.match(self.text, start)
        match = quoted or _ROLE.match(self.text, start)
        if match is None:
            if self.text.startswith('"', start):
                raise self.error("the quote is never closed, which begins")
            raise self.error("a role is expected")
        end = match.end()
        if quoted:
            role = unquote_role(match[0])
            below = self.text.startswith("/**", end)
            end += 3 if below else 0
        else:
            below = match[0].endswith("/") and self.text.startswith("**", end)
            role = match[0][:-1] if below else match[0]
            end += 2 if below else 0
        if self.text.startswith("*", end):
            self.position = end
            raise self.error("the descendants of a role r are written r/**, there is no other '*'")
        problem = role_problem(role) or ("'*' is everybody" if role == DEFAULT_ROLE else None)
        if problem:
            raise self.error(f"{problem}; it stands")
        self._advance(end)
        return role, below

    def _take(self, character: str, space: bool = True) -> bool:
        if not self.text.startswith(character, self.position):
            return False
        self.position += 1
        if space:
            self._skip_space()
        return True

    def _advance(self, position: int) -> None:
        self.position = position
        self._skip_space()

    def _skip_space(self) -> None:
        match = _SPACE.match(self.text, self.position)
        assert match is not None
        self.position = match.end()

    def error(self, what: str) -> InvalidText:
        """What is wrong here."""
        if not self.text.strip():
            return InvalidText("role expression: it is empty, and names no role", _EXAMPLE)
        if self.position >= len(self.text):
            where = "at the end"
        else:
            rest = self.text[self.position : self.position + 20]
            where = f"at character {self.position + 1}, {rest!r}"
        shown = self.text if len(self.text) <= 120 else f"{self.text[:117]}..."
        return InvalidText(f"role expression {shown!r}: {what} {where}", _EXAMPLE)
