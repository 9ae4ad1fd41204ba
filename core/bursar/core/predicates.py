"""Predicates over what an agent is and has: `rack=r1|r2,gpus>=4,gpu.model=H100*,!spot`.

One small typed language for rules, offer constraints and `--where`: a comma means *and*; there are no regular expressions, and no
text that is accepted costs more than time in proportion to what it is held against (M-10).

    rack             is there                    rack!=r1         `rack=r1` is false
    !rack            is not there                gpus>=4  >  <=  <   compared as numbers
    rack=r1          equals                      mem>=64GiB       amounts as in resource texts; a bare number is MiB
    rack=r1|r2       is one of                   gpu.model=H100*  `*` is any text, `?` one character
    host="a,b"*      double quotes take their content as it is; a backslash there takes the next character as it is

A selector is `hostname`; an amount – `cpus`, `mem`, `disk`, `gpus` – which is 0 where there is none; `gpu.model`, `gpu.mem`,
`gpu.health` (`healthy`, `unhealthy`) and `gpu.driver`, which are true if they are true of *some* GPU; `gpu.count` (as `gpus`) and
`gpu.clique`, the size of the largest set of GPUs of which each has an NVLink to every other; `model` is short for `gpu.model`; any
other name is an attribute (`region` and `zone` are) or, where the agent has no such attribute, a kind of resource. `attribute.NAME` is the attribute even where
NAME means something else. Of what is absent every predicate is false but `!NAME` and `!=`, which are the negations of `NAME` and `=`.
A number attribute is compared as a number (`gen=3.0` is `gen=3`); texts are compared exactly, and have no order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import Enum
from functools import lru_cache

from bursar.core.devices import Device, DeviceHealth
from bursar.core.errors import InvalidText
from bursar.core.ids import DeviceUuid
from bursar.core.resources import BYTE_KINDS, CPUS, DISK, GPUS, MEM, MILLI
from bursar.core.text import format_milli, parse_bytes, parse_milli

MAX_TEXT_LENGTH = 4096
MAX_PREDICATES = 32
MAX_VALUES = 64
MAX_VALUE_LENGTH = 256

HOSTNAME = "hostname"
#: Amounts that every agent has, if only 0 of it.
_AMOUNTS = frozenset({CPUS, MEM, DISK, GPUS, "gpu.count", "gpu.clique"})
#: Facts of single devices.
_DEVICE_TEXTS = frozenset({"gpu.model", "gpu.health", "gpu.driver"})
_DEVICE_SELECTORS = _DEVICE_TEXTS | {"gpu.mem"}
_BYTES = BYTE_KINDS | {"gpu.mem"}
_NUMBERS = _AMOUNTS | {"gpu.mem"}
_TEXTS = _DEVICE_TEXTS | {HOSTNAME}
_BUILT_IN = _NUMBERS | _TEXTS
_ATTRIBUTE = "attribute."
#: Read as, and shown as.
_SHORT = {"model": "gpu.model"}

_SELECTOR = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_MAX_SELECTOR_LENGTH = 63
_BARE = re.compile(r'[^,|"\\\s]+')
_NUMBER = re.compile(r"[0-9]{1,16}(\.[0-9]{1,3})?")
#: Steps after which the search for the largest clique settles for the largest that it has seen.
_MAX_CLIQUE_STEPS = 20_000


class PredicateOperator(Enum):
    """How the values of a predicate are held against what its selector finds."""

    EXISTS = "exists"
    NOT_EXISTS = "not-exists"
    EQUALS = "="
    NOT_EQUALS = "!="
    #: Two values or more.
    IN = "in"
    NOT_IN = "not-in"
    #: At least one value has a `*` or `?`.
    GLOB = "glob"
    NOT_GLOB = "not-glob"
    AT_LEAST = ">="
    AT_MOST = "<="
    GREATER = ">"
    LESS = "<"


_NEGATIONS = {
    PredicateOperator.NOT_EXISTS: PredicateOperator.EXISTS,
    PredicateOperator.NOT_EQUALS: PredicateOperator.EQUALS,
    PredicateOperator.NOT_IN: PredicateOperator.IN,
    PredicateOperator.NOT_GLOB: PredicateOperator.GLOB,
}
_COMPARISONS: dict[PredicateOperator, Callable[[int, int], bool]] = {
    PredicateOperator.AT_LEAST: int.__ge__,
    PredicateOperator.AT_MOST: int.__le__,
    PredicateOperator.GREATER: int.__gt__,
    PredicateOperator.LESS: int.__lt__,
}
#: Longest first: the first that is found is the one that is meant.
_SIGNS = ("!=", ">=", "<=", "=", ">", "<")


@dataclass(frozen=True, slots=True)
class Predicate:
    """One condition; what `parse_predicates` makes is valid."""

    selector: str
    operator: PredicateOperator
    #: As written, without quotes. In globs a backslash makes the next character literal.
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        return format_predicates((self,))


Predicates = tuple[Predicate, ...]
"""All of them must be true; none at all is true of everything."""


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """What predicates are held against: an agent, or an offer of it where the caller gives the offer's amounts and devices."""

    hostname: str = ""
    #: Text, or thousandths.
    attributes: Mapping[str, str | int] = field(default_factory=dict)
    #: kind → integer unit, as `Resources.amounts()`: `gpus` in thousandths.
    amounts: Mapping[str, int] = field(default_factory=dict)
    devices: tuple[Device, ...] = ()

    @property
    def region(self) -> str:
        """The attribute of that name, as text; empty where there is none."""
        return _text(self.attributes.get("region", ""))

    @property
    def zone(self) -> str:
        """The attribute of that name, as text; empty where there is none."""
        return _text(self.attributes.get("zone", ""))


def matches_all(predicates: Iterable[Predicate], facts: AgentFacts) -> bool:
    """Whether every predicate is true of an agent (or an offer)."""
    return all(matches(predicate, facts) for predicate in predicates)


def matches(predicate: Predicate, facts: AgentFacts) -> bool:
    """Whether one predicate is true of an agent (or an offer)."""
    test = _compile(predicate)
    found = any(map(test.holds, _find(predicate.selector, facts)))
    return found != test.negated


def attribute_of(predicate: Predicate) -> str:
    """The attribute, or other kind of resource, that it asks for; empty where it is about what every agent has."""
    return "" if predicate.selector in _BUILT_IN else predicate.selector.removeprefix(_ATTRIBUTE)


def is_about_devices(predicate: Predicate) -> bool:
    """Whether it can be asked of a single device: `gpu.model`, `gpu.mem`, `gpu.health`, `gpu.driver`."""
    return predicate.selector in _DEVICE_SELECTORS


def is_about_amounts(predicate: Predicate) -> bool:
    """Whether it speaks of how much there is: `cpus`, `mem`, `disk`, `gpus`, `gpu.count`, `gpu.clique`. Own kinds are not told."""
    return predicate.selector in _AMOUNTS


def matches_device(predicate: Predicate, device: Device) -> bool:
    """Whether a predicate for which `is_about_devices` holds is true of one device."""
    assert is_about_devices(predicate), predicate
    test = _compile(predicate)
    return any(map(test.holds, _find(predicate.selector, AgentFacts(devices=(device,))))) != test.negated


def parse_predicates(text: str, what: str = "predicates") -> Predicates:
    """Read predicates that are separated by commas; blank text has none. `what` begins every complaint.

    Raises InvalidText: for what does not follow the grammar, an unknown `gpu.` selector, a number that is none, a comparison of
    texts, and more than MAX_TEXT_LENGTH characters, MAX_PREDICATES, or MAX_VALUES of one.
    """
    if len(text) > MAX_TEXT_LENGTH:
        raise InvalidText(f"{what}: {len(text)} characters are too many", f"at most {MAX_TEXT_LENGTH}")
    if not text.strip():
        return ()
    parts = list(_split(text, ",", what))
    if len(parts) > MAX_PREDICATES:
        raise InvalidText(f"{what}: {len(parts)} predicates are too many", f"at most {MAX_PREDICATES}")
    return tuple(_parse_one(part.strip(), what) for part in parts)


def format_predicates(predicates: Iterable[Predicate]) -> str:
    """The text that `parse_predicates` reads back."""
    return ",".join(map(_format_one, predicates))


def split_predicates(text: str, what: str = "predicates") -> list[str]:
    """The parts between commas outside double quotes. Raises InvalidText where a quote is not closed."""
    return list(_split(text, ",", what))


def matches_glob(pattern: str, text: str) -> bool:
    """Whether a pattern of literals, `*` and `?` (a backslash makes the next character literal) is all of a text.

    All ways of matching are followed at once, as the bits of one number: time grows with the text, whatever the pattern.
    """
    (head, tail), literals, anything, loops, end = _compile_glob(pattern)
    if not (text.startswith(head) and text.endswith(tail)):
        # As mostly where it does not match.
        return False
    state = 1
    for character in text:
        state = (state & (literals.get(character, 0) | anything)) << 1 | (state & loops)
        if not state:
            return False
    return bool(state & end)


def escape_glob(text: str) -> str:
    """The pattern that matches exactly this text."""
    return re.sub(r"([*?\\])", r"\\\1", text)


def largest_clique(devices: Iterable[Device]) -> int:
    """The size of the largest set of devices of which each has an NVLink to every other; 1 for a device alone, 0 for none.

    Exact for every machine that exists; beyond a bound of work it is the largest that was seen.
    """
    known = list(devices)
    position = {device.uuid: index for index, device in enumerate(known)}
    neighbours = [0] * len(known)
    for index, device in enumerate(known):
        for link in device.links:
            peer = position.get(DeviceUuid(link.peer_uuid))
            # Whichever end describes it.
            if link.kind == "nvlink" and peer is not None and peer != index:
                neighbours[index] |= 1 << peer
                neighbours[peer] |= 1 << index
    return _largest_clique(tuple(neighbours))


# --- Reading and writing ---


def _parse_one(part: str, what: str) -> Predicate:
    if not part:
        raise InvalidText(f"{what}: there is nothing between two commas", "write rack=r1,gpus>=4")
    negated = part.startswith("!")
    rest = part[1:].lstrip() if negated else part
    match = _SELECTOR.match(rest)
    if match is None:
        raise InvalidText(
            f"{what}: {part!r} does not begin with a name",
            "write NAME, !NAME, NAME=VALUE or NAME>=NUMBER, such as gpus>=4",
        )
    selector = _SHORT.get(match[0], match[0])
    _check_selector(selector, what)
    rest = rest[match.end() :].lstrip()
    if not rest:
        return Predicate(selector, PredicateOperator.NOT_EXISTS if negated else PredicateOperator.EXISTS)
    if negated:
        raise InvalidText(f"{what}: {part!r} has both a '!' in front and a value", f"write {selector}!=VALUE")
    sign = next((sign for sign in _SIGNS if rest.startswith(sign)), None)
    if sign is None:
        raise InvalidText(
            f"{what}: {part!r}: {rest[:20]!r} is not an operator", "use one of = != >= <= > <, or a name alone"
        )
    written = rest[len(sign) :].strip()
    if written[:1] in ("=", "~", ">", "<", "!"):
        raise InvalidText(
            f"{what}: {part!r}: {sign + written[0]!r} is not an operator",
            "use one of = != >= <= > <; a pattern is written with '=' and * or ?, a value that begins like this in double quotes",
        )
    if sign in ("=", "!="):
        return _parse_equality(selector, sign == "!=", written, part, what)
    operator = PredicateOperator(sign)
    if selector in _TEXTS:
        raise InvalidText(f"{what}: {part!r}: {selector} is a text, which has no order", "use = or !=")
    _parse_number(selector, written, what)
    return Predicate(selector, operator, (written,))


def _parse_equality(selector: str, negated: bool, written: str, part: str, what: str) -> Predicate:
    values: list[str] = []
    globs = False
    for item in _split(written, "|", what):
        value, is_glob = _parse_value(item.strip(), part, what)
        globs = globs or is_glob
        values.append(value)
    if len(values) > MAX_VALUES:
        raise InvalidText(f"{what}: {selector} has {len(values)} values, which are too many", f"at most {MAX_VALUES}")
    if selector in _NUMBERS:
        if globs:
            raise InvalidText(f"{what}: {part!r}: {selector} is a number", "use >=, <=, > or < for a range")
        for value in values:
            _parse_number(selector, _unescape(value), what)
    if selector == "gpu.health" and not globs and not {_unescape(v) for v in values} <= {"healthy", "unhealthy"}:
        raise InvalidText(f"{what}: {part!r}: there is no such health", "use healthy or unhealthy")
    if globs:
        operator = PredicateOperator.NOT_GLOB if negated else PredicateOperator.GLOB
        return Predicate(selector, operator, tuple(values))
    plain = tuple(map(_unescape, values))
    if len(plain) == 1:
        return Predicate(selector, PredicateOperator.NOT_EQUALS if negated else PredicateOperator.EQUALS, plain)
    return Predicate(selector, PredicateOperator.NOT_IN if negated else PredicateOperator.IN, plain)


def _parse_value(item: str, part: str, what: str) -> tuple[str, bool]:
    """A value as a glob (quoted pieces escaped), and whether it has a wildcard."""
    pieces: list[str] = []
    is_glob = False
    index = 0
    while index < len(item):
        if item[index] == '"':
            end = index + 1
            content: list[str] = []
            while item[end] != '"':  # the quote is closed: `_split` has seen to it
                end += item[end] == "\\"
                content.append(item[end])
                end += 1
            pieces.append(escape_glob("".join(content)))
            index = end + 1
        elif match := _BARE.match(item, index):
            is_glob = is_glob or "*" in match[0] or "?" in match[0]
            pieces.append(match[0])
            index = match.end()
        else:
            raise InvalidText(
                f"{what}: {part!r} has {item[index]!r} in a value",
                f"put the value in double quotes, such as {_quote(item)}",
            )
    if not item:
        raise InvalidText(f"{what}: {part!r} lacks a value", 'write NAME=VALUE, or NAME="" for the empty text')
    value = "".join(pieces)
    if len(value) > MAX_VALUE_LENGTH:
        raise InvalidText(f"{what}: a value of {len(value)} characters is too long", f"at most {MAX_VALUE_LENGTH}")
    return value, is_glob


def _check_selector(selector: str, what: str) -> None:
    name = selector.removeprefix(_ATTRIBUTE)
    if len(name) > _MAX_SELECTOR_LENGTH:
        raise InvalidText(f"{what}: the name {name[:20]}… is too long", f"at most {_MAX_SELECTOR_LENGTH} characters")
    if not name:
        raise InvalidText(f"{what}: {selector!r} names no attribute", "write attribute.NAME")
    if selector.startswith("gpu.") and selector not in _BUILT_IN:
        known = sorted(one for one in _BUILT_IN if one.startswith("gpu."))
        close = get_close_matches(selector, known, 1)
        raise InvalidText(
            f"{what}: nothing is known of {selector}",
            (f"did you mean {close[0]}? " if close else f"use one of {', '.join(known)}; ")
            + f"an attribute of that name is attribute.{selector}",
        )


def _split(text: str, separator: str, what: str) -> Iterable[str]:
    """Split outside double quotes; raises InvalidText where one is not closed."""
    start = 0
    quoted = escaped = False
    for index, character in enumerate(text):
        if escaped:
            escaped = False
        elif quoted:
            escaped = character == "\\"
            quoted = character != '"'
        elif character == '"':
            quoted = True
        elif character == separator:
            yield text[start:index]
            start = index + 1
    if quoted:
        raise InvalidText(f"{what}: {text!r} has an open quote", 'close it with "')
    yield text[start:]


def _parse_number(selector: str, text: str, what: str) -> int:
    parse = parse_bytes if selector in _BYTES else parse_milli
    return parse(text, f"{what}: {selector}")


def _format_one(predicate: Predicate) -> str:
    selector, operator, values = predicate.selector, predicate.operator, predicate.values
    match operator:
        case PredicateOperator.EXISTS:
            return selector
        case PredicateOperator.NOT_EXISTS:
            return f"!{selector}"
        case PredicateOperator.GLOB | PredicateOperator.NOT_GLOB:
            sign = "=" if operator is PredicateOperator.GLOB else "!="
            return f"{selector}{sign}{'|'.join(map(_format_glob, values))}"
        case PredicateOperator.EQUALS | PredicateOperator.IN:
            return f"{selector}={'|'.join(map(_format_value, values))}"
        case PredicateOperator.NOT_EQUALS | PredicateOperator.NOT_IN:
            return f"{selector}!={'|'.join(map(_format_value, values))}"
        case _:
            return f"{selector}{operator.value}{values[0]}"


def _format_value(value: str) -> str:
    plain = _BARE.fullmatch(value) and "*" not in value and "?" not in value and value[0] not in "=~<>!"
    return value if plain else _quote(value)


def _quote(value: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _format_glob(pattern: str) -> str:
    """Wildcards bare, everything else as a value."""
    pieces: list[str] = []
    literal: list[str] = []
    for character, is_wild in _tokens(pattern):
        if is_wild:
            pieces += [_format_value("".join(literal))] if literal else []
            pieces.append(character)
            literal = []
        else:
            literal.append(character)
    pieces += [_format_value("".join(literal))] if literal else []
    return "".join(pieces) or '""'


# --- Evaluation ---


@dataclass(frozen=True, slots=True)
class _Test:
    """A predicate made ready: `holds` of one value that the selector found; negated forms are true where none holds."""

    holds: Callable[[str | int], bool]
    negated: bool


@lru_cache(maxsize=4096)
def _compile(predicate: Predicate) -> _Test:
    selector, values = predicate.selector, predicate.values
    operator = _NEGATIONS.get(predicate.operator, predicate.operator)
    negated = operator is not predicate.operator
    if operator is PredicateOperator.EXISTS:
        # An amount of 0 is not there, nor is a model that no driver told; an attribute may be 0.
        return _Test(bool if selector in _BUILT_IN else lambda found: True, negated)
    if operator is PredicateOperator.GLOB:
        return _Test(lambda found: any(matches_glob(value, _text(found)) for value in values), negated)
    if operator in (PredicateOperator.EQUALS, PredicateOperator.IN):
        wanted = frozenset(values)
        in_numbers = selector in _NUMBERS
        numbers = frozenset(
            _parse_number(selector, value, selector) for value in values if in_numbers or _NUMBER.fullmatch(value)
        )
        return _Test(lambda found: found in numbers if isinstance(found, int) else found in wanted, negated)
    bound = _parse_number(selector, values[0], selector)
    compare = _COMPARISONS[operator]
    return _Test(lambda found: isinstance(found, int) and compare(found, bound), negated)


def _find(selector: str, facts: AgentFacts) -> list[str | int]:
    """What a selector finds: nothing where it is absent, several where it speaks of devices."""
    if selector in _AMOUNTS:
        if selector == "gpu.clique":
            return [MILLI * largest_clique(device for device in facts.devices if device.kind == GPUS)]
        return [facts.amounts.get(GPUS if selector == "gpu.count" else selector, 0)]
    if selector == HOSTNAME:
        return [facts.hostname]
    if selector in _DEVICE_SELECTORS:
        return [_device_fact(selector, device) for device in facts.devices if device.kind == GPUS]
    name = selector.removeprefix(_ATTRIBUTE)
    if (value := facts.attributes.get(name)) is not None:
        return [value]
    if name == selector and (amount := facts.amounts.get(name)) is not None:
        return [amount]
    return []


def _device_fact(selector: str, device: Device) -> str | int:
    match selector:
        case "gpu.model":
            return device.model
        case "gpu.mem":
            return device.mem_bytes
        case "gpu.driver":
            return device.driver
        case _:
            return "healthy" if device.health is DeviceHealth.HEALTHY else "unhealthy"


def _text(value: str | int) -> str:
    return format_milli(value) if isinstance(value, int) else value


def _unescape(pattern: str) -> str:
    return re.sub(r"\\(.)", r"\1", pattern, flags=re.DOTALL)


def _tokens(pattern: str) -> Iterable[tuple[str, bool]]:
    """The characters of a glob, and whether each is a wildcard."""
    escaped = False
    for character in pattern:
        if escaped:
            yield character, False
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            yield character, character in "*?"
    if escaped:
        yield "\\", False


@lru_cache(maxsize=4096)
def _compile_glob(pattern: str) -> tuple[tuple[str, str], Mapping[str, int], int, int, int]:
    """What a text must begin and end with; bits of the characters that each literal consumes, of `?`, of the places where a `*` may
    stay; and the last bit.

    Bit n of the state is set where the first n characters of the pattern (stars not counted) have been found.
    """
    literals: dict[str, int] = {}
    anything = loops = 0
    bit = 1
    fixed: list[list[str]] = [[]]
    for character, is_wild in _tokens(pattern):
        if is_wild:
            fixed.append([])
        else:
            fixed[-1].append(character)
        if is_wild and character == "*":
            loops |= bit
            continue
        if is_wild:
            anything |= bit
        else:
            literals[character] = literals.get(character, 0) | bit
        bit <<= 1
    return ("".join(fixed[0]), "".join(fixed[-1])), literals, anything, loops, bit


@lru_cache(maxsize=4096)
def _largest_clique(neighbours: tuple[int, ...]) -> int:
    """Branch and bound over sets as bits; `neighbours[n]` are the bits of those linked to n."""
    best = 1 if neighbours else 0
    steps = 0
    stack = [(0, (1 << len(neighbours)) - 1)]
    while stack and steps < _MAX_CLIQUE_STEPS:
        steps += 1
        size, candidates = stack.pop()
        best = max(best, size)
        if not candidates or size + candidates.bit_count() <= best:
            continue
        index = candidates.bit_length() - 1
        # Without it, and – looked at first – with it.
        stack.append((size, candidates & ~(1 << index)))
        stack.append((size + 1, candidates & neighbours[index]))
    return best
