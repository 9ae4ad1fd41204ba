"""Pools: a rule for each, settings that override it, and the plan or the conflict that comes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from bursar.core.errors import InvalidText
from bursar.core.resources import MEM
from bursar.core.text import format_amount, format_milli

MIB = 1 << 20
GIB = 1 << 30
#: Largest amount of memory there can be, as in resource texts: 2^53 bytes.
MAX_BYTES = 1 << 53
#: The whole, in thousandths: a fraction is below it.
WHOLE = 1000


@dataclass(frozen=True, slots=True)
class PoolRule:
    """How large a pool is when nobody says (F49-02, F49-03)."""

    #: Of the sum that the pool is a part of, in thousandths, at least `min_bytes`, at most `max_bytes`.
    fraction_milli: int = 0
    min_bytes: int = 0
    #: None: as large as may be. Equal to `min_bytes`: pinned.
    max_bytes: int | None = None

    @property
    def pinned_bytes(self) -> int | None:
        """The size, where that is known without any sum."""
        return self.min_bytes if self.min_bytes == self.max_bytes else None

    def clamp(self, size_bytes: int) -> int:
        """Into the bounds."""
        size_bytes = max(size_bytes, self.min_bytes)
        return size_bytes if self.max_bytes is None else min(size_bytes, self.max_bytes)

    def allows(self, size_bytes: int) -> bool:
        """Whether a size lies in the bounds."""
        return self.clamp(size_bytes) == size_bytes


@dataclass(frozen=True, slots=True)
class PoolSetting:
    """What somebody said about a pool; mirrors `bursar.v1.PoolSetting`. What is None is left to the rule."""

    name: str
    #: Beats the fraction.
    size_bytes: int | None = None
    fraction_milli: int | None = None
    min_bytes: int | None = None
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Component:
    """One line of a plan: a pool or a sum, with where its size comes from."""

    name: str
    size_bytes: int
    #: Who decided: a setting (`app in task.yaml`), `default: …`, `the rest of total`, `sum`.
    source: str
    min_bytes: int = 0
    max_bytes: int | None = None
    #: What holds it to its size (`memory.max`, `ShmSize`, …), or `advisory` where nothing does (F49-11).
    enforced_by: str = "advisory"
    #: Whether it is the sum of the lines above it.
    is_sum: bool = False


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Pools that sum up exactly, and what is worth knowing about how they came to be."""

    components: tuple[Component, ...]
    #: For people: a fraction that could not be kept (F49-07), an old name that was used (F49-15).
    notes: tuple[str, ...] = ()
    _sizes: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sizes", {item.name: item.size_bytes for item in self.components})

    def __getitem__(self, name: str) -> int:
        """Bytes of a pool or sum. Raises KeyError."""
        return self._sizes[name]

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def sizes(self) -> dict[str, int]:
        """All of them, by name."""
        return dict(self._sizes)


class MemoryConflict(InvalidText):
    """Settings that cannot all hold. The message lists every component with its value and its source (F49-06, F49-08)."""

    def __init__(self, problem: str, components: Iterable[Component], hint: str) -> None:
        lines = [f"{item.name} {format_bytes(item.size_bytes)} ({item.source})" for item in components]
        super().__init__(f"memory: {problem}" + (f": {', '.join(lines)}" if lines else ""), hint)
        #: Without the list.
        self.problem = problem


def format_bytes(size_bytes: int) -> str:
    """In the largest unit that is exact; where only bytes are, to three places of the next smaller unit, with a `~`."""
    if size_bytes < 0:
        return f"-{format_bytes(-size_bytes)}"
    if size_bytes == 0:
        return "0"
    if size_bytes * WHOLE % 1024 == 0:
        exact = format_amount(MEM, size_bytes)
        if len(exact) <= 12:
            return exact
    for unit, size in (("TiB", 1 << 40), ("GiB", GIB), ("MiB", MIB), ("KiB", 1 << 10)):
        if size_bytes >= size:
            return f"~{format_milli(size_bytes * WHOLE // size)}{unit}"
    return f"{size_bytes}B"


def format_fraction(fraction_milli: int) -> str:
    """As a percentage."""
    return f"{format_milli(fraction_milli * 100)}%"


def describe_rule(rule: PoolRule, base: str) -> str:
    """A rule in words, such as `10% of total, at least 64MiB`."""
    if rule.pinned_bytes is not None:
        return format_bytes(rule.pinned_bytes)
    parts = [f"{format_fraction(rule.fraction_milli)} of {base}"]
    if rule.min_bytes:
        parts.append(f"at least {format_bytes(rule.min_bytes)}")
    if rule.max_bytes is not None:
        parts.append(f"at most {format_bytes(rule.max_bytes)}")
    return ", ".join(parts)


def rule_with(rule: PoolRule, setting: PoolSetting | None) -> PoolRule:
    """A rule with what somebody said of it put in its place.

    A floor or ceiling that is set moves the other default one out of its way. Raises MemoryConflict where both are set and cross.
    """
    if setting is None:
        return rule
    low = rule.min_bytes if setting.min_bytes is None else setting.min_bytes
    high = rule.max_bytes if setting.max_bytes is None else setting.max_bytes
    fraction = rule.fraction_milli if setting.fraction_milli is None else setting.fraction_milli
    if setting.fraction_milli is not None and setting.min_bytes is None and rule.pinned_bytes is not None:
        low = 0
    if setting.fraction_milli is not None and setting.max_bytes is None and rule.pinned_bytes is not None:
        high = None
    if high is not None and low > high:
        if setting.min_bytes is not None and setting.max_bytes is not None:
            raise MemoryConflict(
                f"the floor of {setting.name}, {format_bytes(low)}, is above its ceiling, {format_bytes(high)}",
                (),
                f"lower {setting.name}.min or raise {setting.name}.max",
            )
        if setting.min_bytes is not None:
            high = low
        else:
            low = high
    return PoolRule(fraction, low, high)
