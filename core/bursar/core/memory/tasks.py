"""The memory of a task: from what was said to pools that sum up exactly.

`container` is what the kernel holds the task to; `total` is what its program may use; `overhead` (and a JVM's `metaspace`) are the
difference. A plan needs one of three beginnings (F49-01): the sizes of `app` and of everything else that has no default, or
`total`, or `container`; more than one are fine as long as they agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bursar.core.errors import InvalidText
from bursar.core.memory.division import Part, divide, grow
from bursar.core.memory.pools import (
    MAX_BYTES,
    WHOLE,
    Component,
    MemoryConflict,
    MemoryPlan,
    PoolSetting,
    format_bytes,
    rule_with,
)
from bursar.core.memory.profiles import (
    APP,
    CONTAINER,
    MANAGED,
    METASPACE,
    OVERHEAD,
    SHM,
    TMPFS,
    TOTAL,
    Profile,
    profile_named,
)

#: In this order a pool whose size nobody said is the rest of the total, or of what is beyond it.
_REST_INSIDE, _REST_OUTSIDE = (APP, SHM, MANAGED, TMPFS), (OVERHEAD, METASPACE)

#: What holds a pool to its size, by runtime of the agent (F49-11); what is not here is advisory.
ENFORCED_BY: Mapping[str, Mapping[str, str]] = {
    "docker": {CONTAINER: "memory.max", SHM: "ShmSize", TMPFS: "size of the tmpfs", MANAGED: "memlock"},
    "process": {},
}
#: Where the runtime inside keeps itself to a pool.
_ENFORCED_BY_PROFILE: Mapping[str, Mapping[str, str]] = {
    "jvm": {APP: "-Xmx", MANAGED: "-XX:MaxDirectMemorySize", METASPACE: "-XX:MaxMetaspaceSize"}
}


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """What somebody said about the memory of a task; mirrors `bursar.v1.MemorySettings`."""

    #: `plain` where empty.
    profile: str = ""
    #: The whole, as the kernel limits it; the task's `mem` is the same thing.
    container_bytes: int | None = None
    #: Without the overhead.
    total_bytes: int | None = None
    pools: tuple[PoolSetting, ...] = ()
    #: Weights of those who share the managed pool (F49-13).
    consumers: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said."""
        return self == MemorySettings()


def with_container(settings: MemorySettings, mem_bytes: int, source: str = "mem") -> MemorySettings:
    """The settings together with the task's `mem`, which is the size of its container; 0 says nothing.

    Raises MemoryConflict where both are there and differ.
    """
    if not mem_bytes:
        return settings
    said = settings.container_bytes
    if said is not None and said != mem_bytes:
        raise MemoryConflict(
            "two sizes of the container",
            [Component(CONTAINER, said, "the memory settings"), Component(CONTAINER, mem_bytes, source)],
            "say one of them",
        )
    return replace(settings, container_bytes=mem_bytes)


def with_shm(settings: MemorySettings, shm_bytes: int, source: str = "container.shm_bytes") -> MemorySettings:
    """The settings together with the container's own size of `/dev/shm`; 0 says nothing. Raises MemoryConflict where both differ."""
    said = next((pool for pool in settings.pools if pool.name == SHM), PoolSetting(SHM))
    if not shm_bytes or said.size_bytes == shm_bytes:
        return settings
    if said.size_bytes is not None:
        raise MemoryConflict(
            "two sizes of /dev/shm",
            [Component(SHM, said.size_bytes, "the memory settings"), Component(SHM, shm_bytes, source)],
            "say one of them",
        )
    others = tuple(pool for pool in settings.pools if pool.name != SHM)
    return replace(settings, pools=(*others, replace(said, size_bytes=shm_bytes)))


def plan_task(settings: MemorySettings, source: str = "the memory settings", runtime: str = "docker") -> MemoryPlan:
    """The plan of a task: its pools, `total` and `container`, which sum up exactly.

    `source` names where the settings come from. Raises InvalidText for settings that make no sense by themselves, MemoryConflict
    for those that do not fit together.
    """
    profile = profile_named(settings.profile)
    parts = _parts(settings, profile, source)
    inside = [parts[name] for name in profile.inside]
    outside = [parts[name] for name in profile.outside]
    total, container = settings.total_bytes, settings.container_bytes
    fine = all(part.known_bytes is not None for part in inside if part.name in (APP, MANAGED)) and (
        parts[APP].size_bytes is not None
    )
    notes: tuple[str, ...] = ()
    if total is not None:
        division = divide(total, inside, TOTAL, f"{TOTAL} in {source}", rest=_REST_INSIDE)
        total_source = f"{TOTAL} in {source}"
    elif fine:
        division = grow(inside, TOTAL)
        total_source = "sum of its pools"
    elif container is not None:
        beyond = [
            part.component(
                part.rule.clamp(container * part.rule.fraction_milli // WHOLE)
                if part.size_bytes is None
                else part.size_bytes,
                part.source(CONTAINER) if part.size_bytes is None else part.said,
            )
            for part in outside
        ]
        total = container - sum(item.size_bytes for item in beyond)
        if total <= 0:
            raise MemoryConflict(
                f"what a container has beyond {TOTAL} leaves nothing of {format_bytes(container)}",
                [Component(CONTAINER, container, f"{CONTAINER} in {source}"), *beyond],
                f"raise {CONTAINER}, or set {OVERHEAD}, such as {OVERHEAD}: {format_bytes(container // 10)}",
            )
        total_source = f"{CONTAINER} without {' and '.join(item.name for item in beyond)}"
        division = divide(total, inside, TOTAL, total_source, rest=_REST_INSIDE)
    else:
        raise _no_beginning(parts, profile)
    notes += division.notes
    whole = Component(TOTAL, division.total_bytes, total_source, is_sum=True)
    if container is None:
        around = grow(outside, CONTAINER, whole.size_bytes, TOTAL)
        container_source = f"sum of {TOTAL} and {' and '.join(profile.outside)}"
    else:
        container_source = f"{CONTAINER} in {source}"
        rest = tuple(name for name in _REST_OUTSIDE if name in profile.outside)
        around = divide(container, outside, CONTAINER, container_source, rest=rest, inside=whole)
        if settings.total_bytes is None and not fine:
            # The overhead came first there; the rest is that same overhead, and its rule the better explanation.
            around = replace(around, components=tuple(beyond), notes=())
    notes += around.notes
    size = whole.size_bytes + around.total_bytes
    if size > MAX_BYTES:
        raise InvalidText(f"memory: {CONTAINER} would have {format_bytes(size)}", "at most 8 PiB")
    last = Component(CONTAINER, size, container_source, is_sum=True)
    enforced = {**ENFORCED_BY.get(runtime, {}), **_ENFORCED_BY_PROFILE.get(profile.name, {})}
    return MemoryPlan(
        tuple(
            replace(item, enforced_by=enforced.get(item.name, "sum" if item.name == TOTAL else "advisory"))
            for item in (*division.components, whole, *around.components, last)
        ),
        notes,
    )


def _parts(settings: MemorySettings, profile: Profile, source: str) -> dict[str, Part]:
    """Every pool of a profile with its rule and setting. Raises InvalidText."""
    said: dict[str, PoolSetting] = {}
    rules = {**profile.inside, **profile.outside}
    for setting in settings.pools:
        if setting.name not in rules:
            raise InvalidText(
                f"memory: the profile {profile.name} has no pool {setting.name!r}", f"it has {', '.join(rules)}"
            )
        if setting.name in said:
            raise InvalidText(f"memory: {setting.name} is set twice", "say it once")
        check_setting(setting)
        said[setting.name] = setting
    for name, size in ((CONTAINER, settings.container_bytes), (TOTAL, settings.total_bytes)):
        if size is not None and not 0 < size <= MAX_BYTES:
            raise InvalidText(f"memory: {name} has {size} bytes", "more than 0, at most 8 PiB")
    origin = "default" if profile.name == "plain" else f"profile {profile.name}"
    return {
        name: Part(name, rule_with(rule, said.get(name)), said.get(name), origin, source)
        for name, rule in rules.items()
    }


def check_setting(setting: PoolSetting) -> None:
    """Raise InvalidText for what no pool can be: negative, too large, a fraction of all, a size outside its own bounds."""
    name = setting.name
    for what, size in (("size", setting.size_bytes), ("min", setting.min_bytes), ("max", setting.max_bytes)):
        if size is not None and not 0 <= size <= MAX_BYTES:
            raise InvalidText(f"memory: {name}.{what} is {size} bytes", "not negative, at most 8 PiB")
    if setting.fraction_milli is not None and not 0 <= setting.fraction_milli < WHOLE:
        raise InvalidText(f"memory: {name}.fraction is not below 1", "write a part of the whole, such as 0.25")
    size, low, high = setting.size_bytes, setting.min_bytes, setting.max_bytes
    if size is not None and ((low is not None and size < low) or (high is not None and size > high)):
        bounds = [f"{name}.{word}" for word, bound in (("min", low), ("max", high)) if bound is not None]
        raise MemoryConflict(
            f"the size of {name}, {format_bytes(size)}, is outside its own {' and '.join(bounds)}",
            (),
            "a size that is said needs no bounds: leave them out",
        )


def _no_beginning(parts: Mapping[str, Part], profile: Profile) -> MemoryConflict:
    """None of the three beginnings is there: name them all (F49-01)."""
    needed = [name for name in (APP, MANAGED) if parts[name].known_bytes is None]
    said = [part.component(part.size_bytes, part.said) for part in parts.values() if part.size_bytes is not None]
    return MemoryConflict(
        f"not enough is said to size a task of the profile {profile.name}",
        said,
        f"say {CONTAINER} (or the task's mem), or {TOTAL}, or {' and '.join(needed or [APP])}",
    )


def split_managed(plan: MemoryPlan, weights: Mapping[str, int], present: frozenset[str]) -> dict[str, int]:
    """The managed pool among the kinds of consumers that a task has, by their weights, exactly (F49-13).

    A kind that is not there does not count. Raises InvalidText for a kind without a weight, or a weight below 1.
    """
    for kind, weight in sorted(weights.items()):
        if weight < 1:
            raise InvalidText(f"memory: the consumer {kind!r} has the weight {weight}", "weights are 1 or more")
    if missing := sorted(present - weights.keys()):
        raise InvalidText(
            f"memory: {', '.join(missing)} uses managed memory, but has no weight",
            f"name it among the consumers, such as {missing[0]}: 50",
        )
    total = sum(weights[kind] for kind in present)
    result, given, seen = {}, 0, 0
    for kind in sorted(present):
        # Cut at the running sum: no byte is lost.
        seen += weights[kind]
        upto = plan[MANAGED] * seen // total
        result[kind] = upto - given
        given = upto
    return result
