"""The flags of the master: what they mean, where their values come from, and which can change at run time.

Rising precedence: default, file, environment, command line, run time. A run-time value is kept in the registry and wins
until it is unset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bursar.core.errors import ErrorDetail, ErrorReason, InvalidText
from bursar.core.messages.operator import FlagView
from bursar.core.text import format_duration, parse_duration


def _choice(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        value = text.strip().lower()
        if value not in choices:
            raise InvalidText(f"{text!r} is not one of {', '.join(choices)}", f"use {' or '.join(choices)}")
        return value

    return read


def _duration(minimum_ms: int) -> Callable[[str], str]:
    def read(text: str) -> str:
        value = parse_duration(text)
        if value < minimum_ms:
            raise InvalidText(f"{text} is too short", f"use at least {format_duration(minimum_ms)}")
        return format_duration(value)

    return read


def _count(text: str) -> str:
    if not text.strip().isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise InvalidText(f"{text!r} is not a whole number between 1 and 1000000", "use a whole number such as 5")
    return str(int(text))


def _names(text: str) -> str:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not all(character.isalnum() or character in "_.-" for character in name):
            raise InvalidText(
                f"{name!r} is not the name of a resource", "write names separated by commas, such as gpus"
            )
    return ",".join(names)


def _text(text: str) -> str:
    return text


@dataclass(frozen=True, slots=True)
class FlagSpec:
    """One flag."""

    name: str
    default: str
    help: str
    #: Reads and normalises a value; raises InvalidText.
    read: Callable[[str], str] = _text
    #: Whether it can be set while the master runs.
    at_run_time: bool = False


#: Every flag of `bursar-master`, in the order of `--help`.
MASTER_FLAGS: tuple[FlagSpec, ...] = (
    FlagSpec("listen", "127.0.0.1:5050", "address of the gRPC services, HOST:PORT"),
    FlagSpec("metrics", "127.0.0.1:5052", "address of the Prometheus metrics, HOST:PORT; empty for none"),
    FlagSpec(
        "work-dir",
        "",
        "directory of the registry; the default is ~/.local/state/bursar/master, for root /var/lib/bursar/master",
    ),
    FlagSpec("registry", "", "SQLAlchemy URL of the registry; the default is SQLite under the work directory"),
    FlagSpec(
        "filter-gpu-resources",
        "true",
        "hide agents that have GPUs from frameworks without the capability GPU_RESOURCES: true or false",
        _choice("true", "false"),
        True,
    ),
    FlagSpec("allocation-interval", "1s", "time between full allocation cycles", _duration(10), True),
    FlagSpec("offer-timeout", "30s", "time after which an unanswered offer is rescinded", _duration(100), True),
    FlagSpec("agent-ping-timeout", "15s", "time between pings of an agent", _duration(100), True),
    FlagSpec("max-agent-ping-timeouts", "5", "missed pings after which an agent is unreachable", _count, True),
    FlagSpec(
        "agent-reregister-timeout",
        "10m",
        "time that agents have to come back after a master restart",
        _duration(1000),
        True,
    ),
    FlagSpec(
        "fair-sharing-excluded-resource-names",
        "",
        "resources that do not count in fair shares, NAME,NAME",
        _names,
        True,
    ),
)
_BY_NAME = {flag.name: flag for flag in MASTER_FLAGS}


@dataclass(slots=True)
class FlagValues:
    """The values in force."""

    #: name → (value, source) as the program was started.
    started: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: name → value set at run time.
    at_run_time: dict[str, str] = field(default_factory=dict)

    @classmethod
    def defaults(cls, **overrides: str) -> FlagValues:
        """Defaults, with some values as from the command line (`_` for `-`); for the simulation and for tests."""
        values = {flag.name: (flag.default, "default") for flag in MASTER_FLAGS}
        for name, value in overrides.items():
            flag = _BY_NAME[name.replace("_", "-")]
            values[flag.name] = (flag.read(value), "command line")
        return cls(values)

    def view(self, name: str) -> FlagView:
        """A flag with its value and source."""
        if name in self.at_run_time:
            return FlagView(name, self.at_run_time[name], "run time")
        value, source = self.started[name]
        return FlagView(name, value, source)

    def views(self) -> list[FlagView]:
        """All flags, by name."""
        return [self.view(name) for name in sorted(self.started)]

    def value(self, name: str) -> str:
        """The value in force."""
        return self.view(name).value

    @property
    def filter_gpu_resources(self) -> str:
        """`true` or `false`."""
        return self.value("filter-gpu-resources")

    @property
    def excluded_names(self) -> frozenset[str]:
        """Kinds that do not count in fair shares."""
        return frozenset(filter(None, self.value("fair-sharing-excluded-resource-names").split(",")))

    def duration_ms(self, name: str) -> int:
        """A duration in milliseconds."""
        return parse_duration(self.value(name))

    @property
    def max_agent_ping_timeouts(self) -> int:
        """Missed pings after which an agent is unreachable."""
        return int(self.value("max-agent-ping-timeouts"))


def canonical_name(name: str) -> str:
    """A flag's name as written by people: `_` for `-`, leading dashes, any case."""
    return name.strip().lstrip("-").replace("_", "-").lower()


def find_flag(name: str, known: Mapping[str, object]) -> str | ErrorDetail:
    """The flag's own name, or a refusal that names the nearest ones."""
    canonical = canonical_name(name)
    if canonical in known:
        return canonical
    near = sorted(known, key=lambda other: (-_common(canonical, other), other))[:3]
    return ErrorDetail(ErrorReason.NOT_FOUND, f"there is no flag {name!r}", f"did you mean {', '.join(near)}?", "name")


def read_run_time_value(name: str, value: str) -> str | ErrorDetail:
    """Check a value that is to be set at run time; return it normalised, or a refusal."""
    flag = _BY_NAME.get(name)
    if flag is None or not flag.at_run_time:
        settable = ", ".join(known.name for known in MASTER_FLAGS if known.at_run_time)
        return ErrorDetail(
            ErrorReason.NEEDS_RESTART,
            f"the flag {name} needs a restart of the master to change",
            f"give --{name} to bursar-master; at run time can be set: {settable}",
            "name",
        )
    try:
        return flag.read(value)
    except InvalidText as error:
        detail = error.detail
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, f"{name}: {detail.message}", detail.hint, "value")


def _common(left: str, right: str) -> int:
    pairs = {left[index : index + 2] for index in range(len(left) - 1)}
    return sum(right[index : index + 2] in pairs for index in range(len(right) - 1))
