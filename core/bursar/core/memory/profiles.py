"""Which pools a task has, by the runtime inside it, and the options that make that runtime keep to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bursar.core.errors import InvalidText
from bursar.core.flags import closest
from bursar.core.memory.pools import GIB, MIB, MemoryConflict, MemoryPlan, PoolRule, format_bytes

APP, SHM, MANAGED, TMPFS, OVERHEAD, METASPACE = "app", "shm", "managed", "tmpfs", "overhead", "metaspace"
#: The sums: what the program may use, and what the kernel holds the container to.
TOTAL, CONTAINER = "total", "container"

#: Names of other systems and what they are here (F49-15).
OLD_NAMES: Mapping[str, str] = {"pinned": MANAGED, "shm-size": SHM, "limit": CONTAINER, "heap": APP}

_NOTHING = PoolRule(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Profile:
    """A kind of program."""

    name: str
    about: str
    #: Parts of the total, fractions of it.
    inside: Mapping[str, PoolRule]
    #: What the container has beyond the total, fractions of the container.
    outside: Mapping[str, PoolRule]


_OVERHEAD = PoolRule(100, 192 * MIB, GIB)
_SHM = PoolRule(100, 64 * MIB)
_APP = PoolRule(0, MIB)

#: The sizes that FLIP-49 found good (F49-03), except that only a JVM has managed memory unless somebody says so: a plain program's is
#: its own affair, and a default would take it away.
PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            "plain",
            "any program",
            {APP: _APP, SHM: _SHM, MANAGED: _NOTHING, TMPFS: _NOTHING},
            {OVERHEAD: _OVERHEAD},
        ),
        Profile(
            "jvm",
            "a Java virtual machine: app is its heap, managed its direct memory",
            {APP: PoolRule(0, 16 * MIB), SHM: _SHM, MANAGED: PoolRule(400, MIB), TMPFS: _NOTHING},
            {METASPACE: PoolRule(0, 256 * MIB, 256 * MIB), OVERHEAD: _OVERHEAD},
        ),
        Profile(
            "pytorch",
            "PyTorch: shm feeds the workers of data loaders, managed is pinned memory for copies to the GPU",
            {APP: _APP, SHM: PoolRule(250, 256 * MIB), MANAGED: PoolRule(100, 64 * MIB), TMPFS: _NOTHING},
            {OVERHEAD: PoolRule(100, 512 * MIB, 2 * GIB)},
        ),
    )
}

#: A JVM's own options for what we set; a user's value for one of them is a second opinion.
_JVM_OPTIONS = ("-Xmx", "-Xms", "-XX:MaxDirectMemorySize=", "-XX:MaxMetaspaceSize=", "-XX:MaxRAMPercentage=")
JAVA_TOOL_OPTIONS = "JAVA_TOOL_OPTIONS"
_JVM_VARIABLES = (JAVA_TOOL_OPTIONS, "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS")


def profile_named(name: str) -> Profile:
    """The profile; an empty name is `plain`. Raises InvalidText."""
    found = PROFILES.get(name or "plain")
    if found is None:
        near = closest(name, list(PROFILES))
        raise InvalidText(
            f"memory: there is no profile {name!r}",
            (f"did you mean {near}? " if near else "") + f"known: {', '.join(PROFILES)}",
        )
    return found


def runtime_environment(
    profile: str, plan: MemoryPlan, environment: Mapping[str, str], command: Sequence[str]
) -> dict[str, str]:
    """What a task's environment needs so that its runtime keeps to the plan, and so that it can read the plan itself.

    Every pool is `BURSAR_MEM_<POOL>_BYTES`. A JVM gets its heap, direct memory and metaspace in `JAVA_TOOL_OPTIONS`, before what the user
    has there. Raises MemoryConflict where the user sets one of those sizes too (F49-08).
    """
    result = {f"BURSAR_MEM_{name.upper()}_BYTES": str(size) for name, size in plan.sizes().items()}
    if (profile or "plain") != "jvm":
        return result
    said = [(name, environment.get(name, "").split()) for name in _JVM_VARIABLES] + [("command", list(command))]
    for place, words in said:
        for word in words:
            if word.startswith(_JVM_OPTIONS):
                raise MemoryConflict(
                    f"{word} in {place} and the profile jvm both set the sizes of the JVM",
                    [item for item in plan.components if item.name in (APP, MANAGED, METASPACE)],
                    f"leave {word} out and set app, managed or metaspace, or use the profile plain",
                )
    options = [
        f"-Xms{plan[APP]}",
        f"-Xmx{plan[APP]}",
        f"-XX:MaxDirectMemorySize={plan[MANAGED]}",
        f"-XX:MaxMetaspaceSize={plan[METASPACE]}",
    ]
    result[JAVA_TOOL_OPTIONS] = " ".join([*options, *environment.get(JAVA_TOOL_OPTIONS, "").split()])
    return result


def describe_profiles() -> str:
    """One line for each, for help texts."""
    return "\n".join(f"{profile.name}: {profile.about}" for profile in PROFILES.values())


def option_for(pool: str, plan: MemoryPlan) -> str:
    """What to write to make a pool half as large again, such as `app: 6GiB`."""
    size = -(-plan[pool] * 3 // 2 // MIB) * MIB
    return f"{pool}: {format_bytes(max(size, MIB))}"
