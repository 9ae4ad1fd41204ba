"""The arithmetic of pools: down from a sum, or up from the parts; exact in integers.

Rules of FLIP-49 (F49-02 to F49-08): a size beats a fraction; a fraction is kept within its floor and ceiling; where all but one
part is known, that one is the rest and must lie in its bounds; sums that are given must be met exactly; two settings that do not
fit are an error, never a choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bursar.core.memory.pools import (
    WHOLE,
    Component,
    MemoryConflict,
    PoolRule,
    PoolSetting,
    describe_rule,
    format_bytes,
    format_fraction,
)


@dataclass(frozen=True, slots=True)
class Part:
    """A pool that a sum is made of."""

    name: str
    rule: PoolRule
    setting: PoolSetting | None
    #: `default`, `profile jvm`: where its rule comes from.
    rule_source: str
    #: Where its setting comes from, such as `task.yaml`.
    setting_source: str

    @property
    def size_bytes(self) -> int | None:
        """As somebody said it."""
        return None if self.setting is None else self.setting.size_bytes

    @property
    def known_bytes(self) -> int | None:
        """Known without any sum: said, or pinned by its rule."""
        return self.rule.pinned_bytes if self.size_bytes is None else self.size_bytes

    @property
    def said(self) -> str:
        """The source of a size that was said."""
        return f"{self.name} in {self.setting_source}"

    def source(self, base: str) -> str:
        """The source of a size that came of the rule."""
        words = describe_rule(self.rule, base)
        if self.setting is None:
            return f"{self.rule_source}: {words}"
        return f"{self.setting_source}: {words}"

    def component(self, size_bytes: int, source: str) -> Component:
        """The line of a plan."""
        return Component(self.name, size_bytes, source, self.rule.min_bytes, self.rule.max_bytes)


@dataclass(frozen=True, slots=True)
class Division:
    """Parts with their sizes."""

    components: tuple[Component, ...]
    notes: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Their sum."""
        return sum(item.size_bytes for item in self.components)


def grow(parts: Sequence[Part], base: str, inside_bytes: int = 0, inside_name: str = "") -> Division:
    """Sizes from the parts upwards: a fraction is of the sum that comes out (F49-04).

    The sum is that of the parts and of `inside_bytes`, which is known already. A part of `f` thousandths of the sum `s` beside `k` known
    bytes has `k * f / (1000 - f)`, then its bounds. Raises MemoryConflict where the fractions leave nothing for the rest.
    """
    sizes = {part.name: part.known_bytes for part in parts}
    while True:
        open_parts = [part for part in parts if sizes[part.name] is None]
        known = inside_bytes + sum(size for size in sizes.values() if size is not None)
        fractions = sum(part.rule.fraction_milli for part in open_parts)
        if fractions >= WHOLE:
            lines = [
                part.component(part.known_bytes or 0, part.said if part.size_bytes is not None else part.source(base))
                for part in parts
            ]
            raise MemoryConflict(
                f"the fractions of {base} come to {format_fraction(fractions)} and leave nothing for the rest",
                lines,
                f"lower {open_parts[0].name}.fraction, or say its size",
            )
        total = known * WHOLE // (WHOLE - fractions)
        wanted = {part.name: total * part.rule.fraction_milli // WHOLE for part in open_parts}
        bound = next((part for part in open_parts if not part.rule.allows(wanted[part.name])), None)
        if bound is None:
            break
        # One that meets its bound is known now; the others' fractions are of what then comes out.
        sizes[bound.name] = bound.rule.clamp(wanted[bound.name])
    return Division(
        tuple(
            part.component(
                wanted[part.name] if sizes[part.name] is None else sizes[part.name] or 0,
                part.said if part.size_bytes is not None else part.source(base),
            )
            for part in parts
        )
    )


def divide(
    total_bytes: int,
    parts: Sequence[Part],
    base: str,
    total_source: str,
    *,
    rest: Sequence[str],
    inside: Component | None = None,
    fraction_base_bytes: int | None = None,
) -> Division:
    """Sizes from a sum downwards; the first part in the order of `rest` whose size nobody said is what is left (F49-05).

    `inside` is a part whose size is known already and that belongs to the sum. Fractions are of the sum, unless another base is given.
    Raises MemoryConflict where the rest does not lie in its bounds, or where all parts are said and do not come to the sum (F49-06).
    """
    by_name: Mapping[str, Part] = {part.name: part for part in parts}
    remainder = next((by_name[name] for name in rest if by_name[name].size_bytes is None), None)
    fraction_base = total_bytes if fraction_base_bytes is None else fraction_base_bytes
    lines: dict[str, Component] = {}
    for part in parts:
        if part.size_bytes is not None:
            lines[part.name] = part.component(part.size_bytes, part.said)
        elif part is not remainder:
            size = part.rule.clamp(fraction_base * part.rule.fraction_milli // WHOLE)
            lines[part.name] = part.component(size, part.source(base))
    given = [*([inside] if inside else []), *lines.values()]
    left = total_bytes - sum(item.size_bytes for item in given)
    whole = Component(base, total_bytes, total_source, is_sum=True)
    if remainder is None:
        if left:
            more = "more" if left < 0 else "less"
            raise MemoryConflict(
                f"its parts come to {format_bytes(total_bytes - left)}, {format_bytes(abs(left))} {more} than {base}",
                [whole, *given],
                f"set {base} to {format_bytes(total_bytes - left)}, or leave one of its parts out",
            )
        return Division(tuple(lines[part.name] for part in parts))
    if left < 0 or not remainder.rule.allows(left):
        raise _rest_out_of_bounds(remainder, left, whole, given)
    lines[remainder.name] = remainder.component(left, f"the rest of {base}")
    notes = _unkept_fraction(remainder, left, fraction_base, base)
    return Division(tuple(lines[part.name] for part in parts), notes)


def _rest_out_of_bounds(part: Part, left: int, whole: Component, given: Sequence[Component]) -> MemoryConflict:
    """What is left for a part is nothing, too little or too much."""
    rule = part.rule
    if left < 0:
        problem = f"the parts of {whole.name} take {format_bytes(-left)} more than it has"
        if rule.min_bytes:
            problem += f", and {part.name} needs at least {format_bytes(rule.min_bytes)}"
    elif left < rule.min_bytes:
        problem = f"{format_bytes(left)} are left for {part.name}, which needs at least {format_bytes(rule.min_bytes)}"
    else:
        assert rule.max_bytes is not None
        problem = f"{format_bytes(left)} are left for {part.name}, which takes at most {format_bytes(rule.max_bytes)}"
    largest = max(given, key=lambda item: item.size_bytes, default=whole)
    if left < rule.min_bytes:
        needed = whole.size_bytes - left + rule.min_bytes
        hint = f"raise {whole.name} to {format_bytes(needed)} or more, or lower {largest.name}"
    else:
        hint = f"lower {whole.name}, raise {part.name}.max, or leave out the size of another part"
    return MemoryConflict(problem, [whole, *given], hint)


def _unkept_fraction(part: Part, size: int, base_bytes: int, base: str) -> tuple[str, ...]:
    """A fraction that was said and is not what came out: worth a note, not an error (F49-07)."""
    if part.setting is None or part.setting.fraction_milli is None:
        return ()
    if size == part.rule.clamp(base_bytes * part.setting.fraction_milli // WHOLE):
        return ()
    asked = format_fraction(part.setting.fraction_milli)
    return (f"{part.name} is the rest of {base}, {format_bytes(size)}; its fraction of {asked} is not used",)
