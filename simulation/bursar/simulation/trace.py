"""What happened: the last lines for people, and a digest of everything by which two runs are compared.

A digest must not depend on the order of a set or of a hash: sets are sorted, mappings by key.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from hashlib import blake2b
from typing import Any

#: Characters of one line that is shown.
MAX_LINE = 400


def describe(value: Any) -> str:
    """A value in words, without what is as by default; the same in every process."""
    if isinstance(value, str | int | None):
        return value.name if isinstance(value, Enum) else repr(value)
    if is_dataclass(value) and not isinstance(value, type):
        shown = []
        for field in fields(value):
            item = getattr(value, field.name)
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            if item != default:
                shown.append(f"{field.name}={describe(item)}")
        return f"{type(value).__name__}({', '.join(shown)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{describe(key)}: {describe(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, frozenset | set):
        return "{" + ", ".join(sorted(map(describe, value))) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(describe, value)) + "]"
    return repr(value)


class Trace:
    """Remembers the last things that happened; `exact` puts every detail of all of them into the digest."""

    def __init__(self, *, keep: int = 40, exact: bool = False) -> None:
        self._last: deque[tuple[int, str, Any, Sequence[Any]]] = deque(maxlen=keep)
        self._exact = exact
        self._hash = blake2b(digest_size=16)

    def note(self, at_ms: int, who: str, what: Any, outcome: Sequence[Any] = ()) -> None:
        """Something happened at somebody, and this came out of it."""
        entry = (at_ms, who, what, outcome)
        self._last.append(entry)
        if self._exact:
            text = _line(*entry)
        else:
            names = ",".join([type(item).__name__ for item in outcome])
            text = f"{at_ms} {who} {what if isinstance(what, str) else type(what).__name__} {names}"
        self._hash.update(text.encode())

    def digest(self) -> str:
        """Of everything so far."""
        return self._hash.hexdigest()

    def lines(self) -> list[str]:
        """The last things that happened, oldest first, each cut to a readable length."""
        lines = []
        for entry in self._last:
            line = _line(*entry)
            lines.append(line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…")
        return lines


def _line(at_ms: int, who: str, what: Any, outcome: Sequence[Any]) -> str:
    text = what if isinstance(what, str) else describe(what)
    result = f" -> {'; '.join(map(describe, outcome))}" if outcome else ""
    return f"{at_ms / 1000:10.3f} {who:12} {text}{result}"
