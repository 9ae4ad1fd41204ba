"""The text forms of resources, attributes, amounts and durations: the same in flags, commands and output.

Resources: `cpus:8;mem:16GiB;gpus:4;ports:[31000-32000]`; what stands in parentheses is whom a static reservation is for: a role,
`gpus(ml):4`, in double quotes where it holds other characters than letters, digits, `.`, `_`, `-`, `/` (a backslash there takes the
next character as it is), or a role expression, `gpus(ml/** | eng):4`, which may be in double quotes as a whole where it holds a
space. A bare number for memory or disk is MiB. Numbers are decimal with at most three places. design.md §4, AG-7, AG-8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bursar.core.device_names import device_kinds
from bursar.core.errors import InvalidText
from bursar.core.resources import (
    BYTE_KINDS,
    GPUS,
    MAX_AMOUNT,
    MILLI,
    PORTS,
    PortRange,
    Ports,
    ResourceRequest,
    Resources,
    count_ports,
    normalize_ports,
    subtract_ports,
)
from bursar.core.role_expressions import parse_role_expression, quote_role, read_holder, unquote_role
from bursar.core.roles import role_problem

_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_NUMBER = re.compile(r"([0-9]{1,16})(?:\.([0-9]{1,3}))?")
_FINE_NUMBER = re.compile(r"[0-9]{1,16}\.[0-9]{4,40}")
_BELOW_ZERO = re.compile(r"-[0-9]+(?:\.[0-9]*)?")
_LONG_NUMBER = re.compile(r"0*[1-9][0-9]{16,}(?:\.[0-9]{1,3})?")
_KIND = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
#: Inside, a backslash takes the next character as it is.
_QUOTED_ROLE = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_PORT = re.compile(r"[0-9]{1,5}")
_DURATION_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_DURATION_ALIASES = {
    "secs": "s",
    "sec": "s",
    "mins": "m",
    "min": "m",
    "hrs": "h",
    "hours": "h",
    "days": "d",
    "weeks": "w",
}
_DURATION = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,3}))?\s*([A-Za-z]+)")


Minimum = tuple[tuple[tuple[str, int], ...], ...]
"""Alternatives, each of amounts by kind (as `Resources.amounts`) that must be there together; none: no minimum."""

MAX_ALTERNATIVES = 16


@dataclass(frozen=True, slots=True)
class ResourceText:
    """One item of a resources text."""

    kind: str
    #: Holder of the static reservation; None is unreserved.
    holder: str | None
    #: Thousandths or bytes; for `gpus` thousandths too; 0 for ports.
    amount: int
    ports: Ports = ()


def parse_milli(text: str, what: str) -> int:
    """Read a decimal number as thousandths.

    Raises InvalidText for signs, exponents, `nan`, `inf`, more than three places, or more than 2^53 after scaling.
    """
    match = _NUMBER.fullmatch(text.strip())
    if not match and _LONG_NUMBER.fullmatch(text.strip()):
        raise InvalidText(f"{what}: {text.strip()[:20]}… is too large", f"at most {MAX_AMOUNT // MILLI}")
    if not match:
        if _BELOW_ZERO.fullmatch(text.strip()):
            raise InvalidText(f"{what}: {text.strip()} is below zero", "amounts are never negative")
        if _FINE_NUMBER.fullmatch(text.strip()):
            raise InvalidText(f"{what}: {text.strip()} has more than three decimal places", "0.001 is the least step")
        raise InvalidText(
            f"{what}: {text.strip()!r} is not a number",
            "write a decimal number with at most three places, without sign or exponent, such as 8 or 0.5",
        )
    whole, places = match.groups()
    value = int(whole) * MILLI + int((places or "").ljust(3, "0"))
    if value > MAX_AMOUNT:
        raise InvalidText(f"{what}: {text.strip()} is too large", f"at most {MAX_AMOUNT // MILLI}")
    return value


def parse_bytes(text: str, what: str) -> int:
    """Read an amount of memory or disk as bytes: a number with KiB, MiB, GiB or TiB; a bare number is MiB."""
    text = text.strip()
    unit = next((unit for unit in _UNITS if text.endswith(unit)), None)
    if unit is None and text[-1:].isalpha():
        raise InvalidText(f"{what}: {text!r} has an unknown unit", "use KiB, MiB, GiB or TiB, or a bare number of MiB")
    milli = parse_milli(text.removesuffix(unit or ""), what)
    value = milli * _UNITS[unit or "MiB"] // MILLI
    if value > MAX_AMOUNT:
        raise InvalidText(f"{what}: {text} is too large", "at most 8 PiB")
    return value


def parse_amount(kind: str, text: str) -> int:
    """Read one scalar in the unit of its kind. GPUs must be whole (GPU-1)."""
    if kind in BYTE_KINDS:
        return parse_bytes(text, kind)
    amount = parse_milli(text, kind)
    if kind == GPUS and amount % MILLI:
        raise InvalidText(f"gpus: {text.strip()} is not a whole number", "GPUs are granted whole")
    return amount


def parse_ports(text: str) -> Ports:
    """Read `[31000-32000,33000]`."""
    inner = text.strip()
    if not (inner.startswith("[") and inner.endswith("]")):
        raise InvalidText(f"ports: {text.strip()!r} is not a list of ranges", "write ports:[31000-32000]")
    ranges: list[PortRange] = []
    for item in filter(None, (part.strip() for part in inner[1:-1].split(","))):
        first, dash, last = item.partition("-")
        if not _PORT.fullmatch(first.strip()) or (dash and not _PORT.fullmatch(last.strip())):
            raise InvalidText(f"ports: {item!r} is not a range", "write first-last, such as 31000-32000")
        span = PortRange(int(first), int(last) if dash else int(first))
        if not 1 <= span.first <= span.last <= 65535:
            raise InvalidText(
                f"ports: {item} is not within 1-65535 in ascending order", "write first-last, such as 31000-32000"
            )
        ranges.append(span)
    merged = normalize_ports(ranges)
    if sum(map(len, merged)) != sum(map(len, ranges)):
        raise InvalidText(f"ports: ranges of {text.strip()} overlap", "name every port once")
    return merged


def parse_resources(text: str, *, port_counts: bool = False) -> list[ResourceText]:
    """Read a resources text, item by item and in order. Raises InvalidText.

    One kind may stand several times for different holders, never twice for one. With `port_counts`, `ports:2` is an amount of them.
    """
    items: list[ResourceText] = []
    seen: set[tuple[str, str | None]] = set()
    for part in _split(text):
        head, colon, value = _partition_value(part)
        if not colon:
            raise InvalidText(f"resources: {part!r} has no value", "write name:value, such as cpus:8")
        kind, holder = _parse_head(head)
        counted = port_counts and kind == PORTS and _PORT.fullmatch(value.strip()) is not None
        if (kind, holder) in seen and not counted:
            raise InvalidText(f"resources: {head.strip()} is there twice", "name each kind once per role")
        seen.add((kind, holder))
        if counted:
            items.append(ResourceText(kind, holder, int(value)))
        elif kind == PORTS:
            items.append(ResourceText(kind, holder, 0, parse_ports(value)))
        else:
            items.append(ResourceText(kind, holder, parse_amount(kind, value)))
    return items


def parse_request(text: str) -> ResourceRequest:
    """Read a resources text without roles as a request. Raises InvalidText, also where nothing is asked for."""
    scalars: dict[str, int] = {}
    ports: Ports = ()
    gpus = port_count = 0
    for item in parse_resources(text, port_counts=True):
        if item.holder is not None:
            raise InvalidText(
                f"resources: {item.kind}({item.holder}) names a role", "give the role separately, as --role"
            )
        if item.kind == PORTS:
            ports, port_count = item.ports or ports, port_count + item.amount
        elif item.kind == GPUS:
            gpus = item.amount // MILLI
        elif item.amount:
            scalars[item.kind] = item.amount
    request = ResourceRequest(scalars, ports, gpus, port_count=port_count)
    if not request:
        raise InvalidText(
            f"resources: {text!r} asks for nothing", "name at least one amount above zero, such as gpus:1"
        )
    return request


def parse_amounts(text: str) -> dict[str, int]:
    """Read a resources text without roles and ports as amounts by kind, GPUs in thousandths; 0 is an amount. Raises InvalidText."""
    amounts: dict[str, int] = {}
    for item in parse_resources(text):
        if item.holder is not None:
            raise InvalidText(
                f"amounts: {item.kind}({item.holder}) names a role", "give the role separately, as --role"
            )
        if item.kind == PORTS:
            raise InvalidText("amounts: ports have no amount", "name scalar kinds and gpus")
        amounts[item.kind] = item.amount
    return amounts


def parse_minimum(text: str, what: str = "minimum") -> Minimum:
    """Read `cpus:0.01|mem:32MiB`, or `cpus:1;mem:1GiB|gpus:1`: one of these, each as a whole. Blank text: no minimum (OFF-11).

    Raises InvalidText.
    """
    if not text.strip():
        return ()
    parts = text.split("|")
    if len(parts) > MAX_ALTERNATIVES:
        raise InvalidText(f"{what}: {len(parts)} alternatives are too many", f"at most {MAX_ALTERNATIVES}")
    alternatives = []
    for part in parts:
        try:
            amounts = parse_amounts(part)
        except InvalidText as error:
            raise InvalidText(f"{what}: {error.detail.message}", error.detail.hint) from None
        alternative = tuple(sorted((kind, amount) for kind, amount in amounts.items() if amount))
        if not alternative:
            raise InvalidText(
                f"{what}: {part.strip()!r} asks for nothing", "leave the alternative out, or name an amount"
            )
        alternatives.append(alternative)
    return tuple(alternatives)


def parse_attributes(text: str) -> dict[str, str | int]:
    """Read `rack:r1;zone:a;gen:3`: a decimal number becomes thousandths, anything else text (AG-7). Raises InvalidText."""
    result: dict[str, str | int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        name, colon, value = part.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or not re.fullmatch(r"[A-Za-z0-9_./-]{1,63}", name):
            raise InvalidText(f"attributes: {part!r} is not name:value", "write rack:r1;zone:a")
        if name in result:
            raise InvalidText(f"attributes: {name} is there twice", "name each attribute once")
        if not value:
            raise InvalidText(f"attributes: {name} has no value", "write rack:r1;zone:a")
        result[name] = parse_milli(value, name) if _NUMBER.fullmatch(value) else value
    return result


def parse_duration(text: str, what: str = "duration") -> int:
    """Read `500ms`, `1s`, `10m`, `1h`, `2d` (and Mesos' `secs`, `mins`, `hrs`, `days`) as milliseconds. Raises InvalidText."""
    match = _DURATION.fullmatch(text.strip())
    unit = match and _DURATION_ALIASES.get(match[3], match[3])
    if not match or unit not in _DURATION_UNITS_MS:
        if _BELOW_ZERO.match(text.strip()):
            raise InvalidText(f"{what}: {text.strip()} is below zero", "write a duration such as 500ms, 1s, 10m or 2h")
        raise InvalidText(
            f"{what}: {text.strip()!r} is not a duration", "write a number and a unit, such as 500ms, 1s, 10m or 2h"
        )
    milli = int(match[1]) * MILLI + int((match[2] or "").ljust(3, "0"))
    value = milli * _DURATION_UNITS_MS[unit] // MILLI
    if value > MAX_AMOUNT // MILLI:
        raise InvalidText(f"{what}: {text.strip()} is too long", "use a shorter duration")
    return value


def format_duration(milliseconds: int) -> str:
    """The shortest text that `parse_duration` reads back."""
    for unit in ("d", "h", "m", "s"):
        if milliseconds and milliseconds % _DURATION_UNITS_MS[unit] == 0:
            return f"{milliseconds // _DURATION_UNITS_MS[unit]}{unit}"
    return f"{milliseconds}ms"


def format_milli(amount: int) -> str:
    """Thousandths as a decimal number without trailing zeros."""
    whole, places = divmod(amount, MILLI)
    return f"{whole}.{places:03d}".rstrip("0") if places else str(whole)


def format_amount(kind: str, amount: int) -> str:
    """One scalar as the text that `parse_amount` reads; bytes in the largest unit that has at most three places."""
    if kind not in BYTE_KINDS:
        return format_milli(amount)
    for unit, size in reversed(_UNITS.items()):
        if amount >= size and amount * MILLI % size == 0:
            return f"{format_milli(amount * MILLI // size)}{unit}"
    # Rounded up: reading cuts off, and so comes back to the same byte.
    return f"{format_milli(-(-amount * MILLI // 2**10))}KiB"


def format_ports(ports: Ports) -> str:
    """As `parse_ports` reads it."""
    return "[" + ",".join(str(r.first) if r.first == r.last else f"{r.first}-{r.last}" for r in ports) + "]"


def format_holder(holder: str) -> str:
    """The holder of a reservation as it stands in parentheses in a resources text."""
    expression = read_holder(holder)
    role = expression.plain
    if role is None:
        return str(expression)
    # A role that looks like an expression is quoted once more.
    return quote_role(quote_role(role)) if _is_expression(role) else quote_role(role)


def _is_expression(role: str) -> bool:
    """Whether the name of a role can also be read as an expression that is something else."""
    try:
        return parse_role_expression(role).plain != role
    except InvalidText:
        return False


def format_resources(resources: Resources, holder: str | None = None) -> str:
    """As `parse_resources` reads it: cpus, mem, disk, gpus, other kinds, ports."""
    others = {kind: amount for kind in device_kinds(resources.devices) if (amount := resources.amount(kind))}
    return _format(
        {**resources.scalars, **others} if others else resources.scalars, resources.gpus, resources.ports, holder
    )


def format_amounts(amounts: Mapping[str, int]) -> str:
    """As `parse_amounts` reads it: cpus, mem, disk, gpus, other kinds."""
    order = {kind: place for place, kind in enumerate(("cpus", "mem", "disk", GPUS))}
    kinds = sorted(amounts, key=lambda kind: (order.get(kind, len(order)), kind))
    return ";".join(f"{kind}:{format_amount(kind, amounts[kind]) if amounts[kind] else 0}" for kind in kinds)


def format_request(request: ResourceRequest) -> str:
    """As `parse_request` reads it."""
    text = _format(request.scalars, request.gpu_count, request.ports, None)
    return ";".join(filter(None, (text, f"ports:{request.port_count}"))) if request.port_count else text


def format_shortfall(request: ResourceRequest, resources: Resources) -> str:
    """What `resources` lack for a request, kind by kind, for people; empty where they are enough."""
    missing = []
    if request.gpu_count > resources.gpus:
        missing.append(f"gpus: {request.gpu_count} wanted, {resources.gpus} there")
    absent = [uuid for uuid in request.devices if uuid not in resources.devices]
    if absent:
        missing.append(f"devices not there: {', '.join(absent)}")
    for kind, amount in sorted(request.scalars.items()):
        there = resources.amount(kind)
        if there < amount:
            missing.append(f"{kind}: {format_amount(kind, amount)} wanted, {format_amount(kind, there)} there")
    if lacking := subtract_ports(request.ports, resources.ports):
        missing.append(f"ports not there: {format_ports(lacking)}")
    others = count_ports(subtract_ports(resources.ports, request.ports))
    if others < request.port_count:
        missing.append(f"ports: {request.port_count} wanted, {others} there")
    return "; ".join(missing)


def _format(scalars: Mapping[str, int], gpus: int, ports: Ports, holder: str | None) -> str:
    suffix = "" if holder is None else f"({format_holder(holder)})"
    first = [kind for kind in ("cpus", "mem", "disk") if kind in scalars]
    others = sorted(kind for kind in scalars if kind not in first)
    parts = [f"{kind}{suffix}:{format_amount(kind, scalars[kind])}" for kind in first]
    if gpus:
        parts.append(f"gpus{suffix}:{gpus}")
    parts += [f"{kind}{suffix}:{format_amount(kind, scalars[kind])}" for kind in others]
    if ports:
        parts.append(f"ports{suffix}:{format_ports(ports)}")
    return ";".join(parts)


def _quoted(text: str) -> list[bool]:
    """For each character, whether it is inside double quotes or one of them; a backslash there escapes."""
    marks: list[bool] = []
    quoted = escaped = False
    for character in text:
        if not quoted:
            quoted = character == '"'
            marks.append(quoted)
            continue
        marks.append(True)
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == '"':
            quoted = False
    if quoted:
        raise InvalidText(f"resources: {text!r} has an open quote", 'close it with "')
    return marks


def _split(text: str) -> Iterable[str]:
    """Split at `;` outside double quotes; blank parts are dropped."""
    start = 0
    cuts = [
        index
        for index, (character, quoted) in enumerate(zip(text, _quoted(text), strict=True))
        if character == ";" and not quoted
    ]
    for cut in (*cuts, len(text)):
        if part := text[start:cut].strip():
            yield part
        start = cut + 1


def _partition_value(part: str) -> tuple[str, str, str]:
    """Split at the first `:` outside double quotes."""
    for index, (character, quoted) in enumerate(zip(part, _quoted(part), strict=True)):
        if character == ":" and not quoted:
            return part[:index], ":", part[index + 1 :]
    return part, "", ""


def _parse_head(head: str) -> tuple[str, str | None]:
    """Read `name` or `name(holder)`."""
    head = head.strip()
    kind, parenthesis, rest = head.partition("(")
    kind = kind.strip()
    if not _KIND.fullmatch(kind):
        raise InvalidText(
            f"resources: {kind!r} is not a name", "a name has letters, digits, '_', '.', '-' and begins with a letter"
        )
    if not parenthesis:
        return kind, None
    rest = rest.strip()
    if not rest.endswith(")"):
        raise InvalidText(f"resources: {head!r} has no closing parenthesis", "write gpus(role):4")
    return kind, _parse_holder(rest[:-1].strip())


def _parse_holder(text: str) -> str | None:
    """Read whom a static reservation is for: a role, in quotes where it must be, or an expression, in quotes as a whole or not."""
    if text in ("*", '"*"'):
        return None
    if not _QUOTED_ROLE.fullmatch(text):
        return _expression(text)
    inside = unquote_role(text)
    if role_problem(inside):
        # No role, but perhaps an expression in quotes.
        return _expression(inside)
    if not _is_expression(inside):
        return quote_role(inside)
    if inside.startswith('"'):
        return _expression(inside)
    raise InvalidText(
        f"resources: ({text}) may mean the role of that name or the expression {parse_role_expression(inside)}",
        f"write ({parse_role_expression(inside)}) for the expression, ({quote_role(text)}) for the role",
    )


def _expression(text: str) -> str:
    try:
        return str(parse_role_expression(text))
    except InvalidText as error:
        if problem := role_problem(text) if re.fullmatch(r"[A-Za-z0-9._/-]*", text) else None:
            raise InvalidText(f"resources: {problem}", "see docs/vocabulary.md for role names") from None
        raise InvalidText(
            f"resources: {error.detail.message}",
            'write a role, gpus(ml):4, one with other characters in double quotes, gpus("a@b"):4, '
            "or an expression, gpus(ml/** | eng):4",
        ) from None
