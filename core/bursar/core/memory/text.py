"""Memory settings as people write them: a mapping in a file, or `app=4GiB,shm=25%` on a command line."""

from __future__ import annotations

from collections.abc import Mapping

from bursar.core.errors import InvalidText
from bursar.core.memory.pools import WHOLE, MemoryConflict, PoolSetting
from bursar.core.memory.profiles import CONTAINER, OLD_NAMES, TOTAL
from bursar.core.memory.tasks import MemorySettings
from bursar.core.resources import MEM
from bursar.core.text import format_amount, format_milli, parse_bytes, parse_milli

_KEYS = ("size", "fraction", "min", "max")
#: Settings in one text or file; more is no setting of memory.
_MAX_ITEMS = 64


def parse_pool(name: str, value: object) -> PoolSetting:
    """One pool: a size (`4GiB`, a bare number is MiB), a part of the whole (`25%`), or a mapping of size, fraction, min and max.

    Raises InvalidText.
    """
    if not isinstance(value, Mapping):
        text = _text(name, value)
        if text.endswith("%"):
            return PoolSetting(name, fraction_milli=_percent(text, name))
        return PoolSetting(name, size_bytes=parse_bytes(text, f"memory.{name}"))
    fraction: int | None = None
    sizes: dict[str, int] = {}
    for key, item in value.items():
        text = _text(f"{name}.{key}", item)
        if key == "fraction":
            percent = text.endswith("%")
            fraction = _percent(text, name) if percent else parse_milli(text, f"memory.{name}.fraction")
        elif key in _KEYS:
            sizes[key] = parse_bytes(text, f"memory.{name}.{key}")
        else:
            raise InvalidText(f"memory.{name}: {key!r} is no setting of a pool", f"known: {', '.join(_KEYS)}")
    return PoolSetting(name, sizes.get("size"), fraction, sizes.get("min"), sizes.get("max"))


def parse_pools(items: Mapping[str, object]) -> tuple[tuple[PoolSetting, ...], tuple[str, ...]]:
    """Pools by name, and a note for each old name that was used (F49-15). Raises InvalidText, MemoryConflict."""
    if len(items) > _MAX_ITEMS:
        raise InvalidText(f"memory: {len(items)} settings are too many", f"at most {_MAX_ITEMS}")
    current, notes = _current_names(items)
    return tuple(parse_pool(name, value) for name, value in current.items()), notes


def parse_memory(items: Mapping[str, object]) -> tuple[MemorySettings, tuple[str, ...]]:
    """The memory of a task: profile, container, total, consumers, and pools by name; and notes, one for each old name.

    Raises InvalidText; MemoryConflict where an old name and the new one are both there.
    """
    current, notes = _current_names(items)
    profile = _text("profile", current.pop("profile", "") or "")
    container, total = (_sum(name, current.pop(name, None)) for name in (CONTAINER, TOTAL))
    consumers = current.pop("consumers", None)
    pools, _ = parse_pools(current)
    weights = {} if consumers is None else _consumers(consumers)
    return MemorySettings(profile, container, total, pools, weights), notes


def parse_memory_text(text: str) -> MemorySettings:
    """A task's settings on a command line: `profile=jvm,container=8GiB,shm=25%,managed.min=64MiB`.

    Raises InvalidText, MemoryConflict.
    """
    return parse_memory(_items(text))[0]


def parse_pools_text(text: str) -> tuple[PoolSetting, ...]:
    """Pools on a command line: `system-reserve=4GiB,cache.fraction=10%`. Raises InvalidText, MemoryConflict."""
    return parse_pools(_items(text))[0]


def _items(text: str) -> dict[str, object]:
    """`a=1,b.min=2` as `{"a": "1", "b": {"min": "2"}}`. Raises InvalidText."""
    items: dict[str, object] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        name, _, detail = key.strip().partition(".")
        if not equals or not name or not value.strip():
            raise InvalidText(
                f"memory: {part!r} is no setting", "write NAME=SIZE, such as app=4GiB, shm=25% or managed.min=64MiB"
            )
        pool = items.setdefault(name, {}) if detail else {}
        if not isinstance(pool, dict) or detail in pool or (not detail and name in items):
            raise InvalidText(
                f"memory: {key.strip()} is set twice", f"say it once; {name}.size can stand beside {name}.min"
            )
        if detail:
            pool[detail] = value.strip()
        else:
            items[name] = value.strip()
    return items


def _sum(name: str, value: object) -> int | None:
    if isinstance(value, Mapping):
        raise InvalidText(f"memory.{name}: a sum has a size and nothing else", f"write {name}: 8GiB")
    return None if value is None else parse_bytes(_text(name, value), f"memory.{name}")


def _current_names(items: Mapping[str, object]) -> tuple[dict[str, object], tuple[str, ...]]:
    result: dict[str, object] = {}
    notes = []
    for given, value in items.items():
        if not isinstance(given, str):
            raise InvalidText(f"memory: {given!r} is not the name of a pool", "names are words")
        name = OLD_NAMES.get(given, given)
        if name != given:
            notes.append(f"{given} is called {name} here")
        if name in result:
            raise MemoryConflict(
                f"{name} is set under two names", (), f"leave {given} out" if name != given else f"keep {name} only"
            )
        result[name] = value
    return result, tuple(notes)


def _percent(text: str, name: str) -> int:
    percent = parse_milli(text.removesuffix("%"), f"memory.{name}")
    if percent % 100:
        raise InvalidText(
            f"memory.{name}: {text} is finer than a thousandth", "write a percentage with at most one place"
        )
    return percent // 100


def _consumers(value: object) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise InvalidText("memory.consumers: expected names and weights", "write consumers: {OPERATOR: 70, PYTHON: 30}")
    result = {}
    for kind, weight in value.items():
        if (
            not isinstance(kind, str)
            or isinstance(weight, bool)
            or not isinstance(weight, int)
            or not 1 <= weight <= WHOLE**2
        ):
            raise InvalidText(f"memory.consumers: {kind!r} has no usable weight", "weights are whole numbers from 1")
        result[kind] = weight
    return result


def _text(name: str, value: object) -> str:
    """A scalar of a file as the text that it was written as."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InvalidText(f"memory.{name}: {value!r} is not an amount", "write a size such as 4GiB")
    return str(value)


def format_settings(settings: MemorySettings) -> str:
    """Settings as `parse_memory_text` reads them; consumers are left out."""
    parts = [f"profile={settings.profile}"] if settings.profile else []
    for name, size in ((CONTAINER, settings.container_bytes), (TOTAL, settings.total_bytes)):
        if size is not None:
            parts.append(f"{name}={_exact(size)}")
    for pool in settings.pools:
        if pool == PoolSetting(pool.name, size_bytes=pool.size_bytes) and pool.size_bytes is not None:
            parts.append(f"{pool.name}={_exact(pool.size_bytes)}")
            continue
        if pool.fraction_milli is not None:
            parts.append(f"{pool.name}.fraction={format_milli(pool.fraction_milli)}")
        for word, size in (("size", pool.size_bytes), ("min", pool.min_bytes), ("max", pool.max_bytes)):
            if size is not None:
                parts.append(f"{pool.name}.{word}={_exact(size)}")
    return ",".join(parts)


def _exact(size_bytes: int) -> str:
    return format_amount(MEM, size_bytes)
