"""The flags of the master: which there are, which of them can change at run time, and where their values come from.

Rising precedence: default, file, environment, command line, run time. A run-time value is kept in the registry and wins
until it is unset.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bursar.core.errors import ErrorDetail, ErrorReason, InvalidText
from bursar.core.flags import Flag, FlagType, FlagValue, canonical_name, closest, format_flag, parse_flag
from bursar.core.messages.operator import FlagView
from bursar.core.text import parse_minimum
from bursar.master.allocator.rules import parse_headroom


def _kinds_problem(value: FlagValue) -> str | None:
    for kind in value if isinstance(value, tuple) else ():
        if not all(character.isalnum() or character in "_.-" for character in kind):
            return f"{kind!r} is not the name of a resource"
    return None


def _minimum_problem(value: FlagValue) -> None:
    _unless_invalid(parse_minimum, value)


def _headroom_problem(value: FlagValue) -> None:
    _unless_invalid(parse_headroom, value)


def _unless_invalid(parse: Callable[[str], object], value: FlagValue) -> None:
    """Raises InvalidText without the words that say what is parsed: the flag's name says so."""
    try:
        parse(str(value))
    except InvalidText as error:
        message = error.detail.message
        for what in ("gpu-headroom: ", "minimum: ", "resources: "):
            message = message.removeprefix(what)
        raise InvalidText(message, error.detail.hint) from None


#: Every flag of `bursar-master`, in the order of `--help`.
MASTER_FLAGS: tuple[Flag, ...] = (
    Flag("listen", FlagType.TEXT, "127.0.0.1:5050", "Address of the gRPC services.", metavar="HOST:PORT"),
    Flag(
        "metrics",
        FlagType.TEXT,
        "127.0.0.1:5052",
        "Address of the Prometheus metrics; empty: none.",
        metavar="HOST:PORT",
    ),
    Flag(
        "work-dir",
        FlagType.TEXT,
        "",
        "Where the registry lives; empty: /var/lib/bursar/master for root, ~/.local/state/bursar/master otherwise.",
        metavar="DIR",
    ),
    Flag(
        "registry",
        FlagType.TEXT,
        "",
        "SQLAlchemy URL of the registry; empty: SQLite in the work directory.",
        metavar="URL",
    ),
    Flag(
        "filter-gpu-resources",
        FlagType.CHOICE,
        "true",
        "Hide agents that have GPUs from frameworks without the capability GPU_RESOURCES; strip: hide only their GPUs.",
        choices=("true", "false", "strip"),
        runtime_settable=True,
    ),
    Flag(
        "gpu-headroom",
        FlagType.TEXT,
        "50%",
        "What strip keeps for each healthy GPU: a share of the agent's CPUs and memory divided by its GPUs, or amounts"
        " such as cpus:2;mem:8GiB.",
        runtime_settable=True,
        problem=_headroom_problem,
        metavar="SHARE%|AMOUNTS",
    ),
    Flag(
        "allocation-interval",
        FlagType.DURATION,
        1000,
        "Time between full allocation cycles; what changed is allocated at once.",
        runtime_settable=True,
        minimum=10,
    ),
    Flag(
        "offer-timeout",
        FlagType.DURATION,
        30_000,
        "Time after which an unanswered offer is rescinded.",
        runtime_settable=True,
        minimum=100,
    ),
    Flag(
        "gang-hold-timeout",
        FlagType.DURATION,
        600_000,
        "Time for which what becomes free may be withheld for one gang; it then rests for as long.",
        runtime_settable=True,
        minimum=1000,
    ),
    Flag(
        "preemption-notice",
        FlagType.DURATION,
        30_000,
        "Time between the notice to a task that what it runs on is wanted back, and its end.",
        runtime_settable=True,
    ),
    Flag(
        "agent-ping-timeout",
        FlagType.DURATION,
        15_000,
        "Time between pings of an agent.",
        runtime_settable=True,
        minimum=100,
    ),
    Flag(
        "max-agent-ping-timeouts",
        FlagType.INT,
        5,
        "Unanswered pings after which an agent is unreachable.",
        runtime_settable=True,
        minimum=1,
    ),
    Flag(
        "agent-reregister-timeout",
        FlagType.DURATION,
        600_000,
        "Time that agents have to come back after a start of the master.",
        runtime_settable=True,
        minimum=1000,
    ),
    Flag(
        "fair-sharing-excluded-resource-names",
        FlagType.LIST,
        (),
        "Kinds of resources that do not count in fair shares.",
        runtime_settable=True,
        problem=_kinds_problem,
        metavar="NAME,…",
    ),
    Flag(
        "min-allocatable-resources",
        FlagType.TEXT,
        "cpus:0.01|mem:32MiB",
        "The least that is worth an offer: one of these, such as 'cpus:1;mem:1GiB|gpus:1'; empty: no minimum.",
        runtime_settable=True,
        problem=_minimum_problem,
        metavar="RESOURCES|…",
    ),
    Flag(
        "region",
        FlagType.TEXT,
        "",
        "Where the master is; agents whose attribute region is another one are for frameworks with the capability REGION_AWARE.",
        runtime_settable=True,
        metavar="NAME",
    ),
    Flag("insecure", FlagType.BOOL, False, "Listen off loopback without TLS and authentication."),
    Flag("tls-cert", FlagType.TEXT, "", "Speak TLS: the master's certificate (PEM), with its chain.", metavar="FILE"),
    Flag("tls-key", FlagType.TEXT, "", "The key of that certificate (PEM).", metavar="FILE"),
    Flag(
        "tls-ca",
        FlagType.TEXT,
        "",
        "Clients must show certificates signed by one of these CAs (PEM); bursar://KIND/PRINCIPAL in them says who it is.",
        metavar="FILE",
    ),
    Flag(
        "tokens",
        FlagType.TEXT,
        "",
        "Who may speak by a token: lines of PRINCIPAL KIND[,KIND] sha256:HEX (docs/security.md).",
        metavar="FILE",
    ),
)
_BY_NAME = {flag.name: flag for flag in MASTER_FLAGS}


@dataclass(slots=True)
class FlagValues:
    """The values in force, as text; `started` are those that the program was started with."""

    #: name → (value, source).
    started: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: name → value set at run time.
    at_run_time: dict[str, str] = field(default_factory=dict)
    _parsed: dict[str, FlagValue] = field(default_factory=dict)

    @classmethod
    def defaults(cls, **overrides: str) -> FlagValues:
        """Defaults, with some values as from the command line (`_` for `-`); for the simulation and for tests."""
        values = {flag.name: (format_flag(flag, flag.default), "default") for flag in MASTER_FLAGS}
        for name, value in overrides.items():
            flag = _BY_NAME[canonical_name(name)]
            values[flag.name] = (format_flag(flag, parse_flag(flag, value)), "command line")
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

    def set_at_run_time(self, values: dict[str, str]) -> None:
        """What the registry holds; a value that no longer can be read (an older release wrote it) is left out."""
        self.at_run_time = {
            name: value for name, value in values.items() if isinstance(read_run_time_value(name, value), str)
        }
        self._parsed.clear()

    def change(self, name: str, value: str | None) -> None:
        """Set a value at run time, or unset it."""
        if value is None:
            self.at_run_time.pop(name, None)
        else:
            self.at_run_time[name] = value
        self._parsed.pop(name, None)

    def value(self, name: str) -> FlagValue:
        """The value in force."""
        value = self._parsed.get(name)
        if value is None:
            value = self._parsed[name] = parse_flag(_BY_NAME[name], self.view(name).value)
        return value

    @property
    def filter_gpu_resources(self) -> str:
        """`true`, `false` or `strip`."""
        return str(self.value("filter-gpu-resources"))

    @property
    def excluded_names(self) -> frozenset[str]:
        """Kinds that do not count in fair shares."""
        names = self.value("fair-sharing-excluded-resource-names")
        assert isinstance(names, tuple)
        return frozenset(names)

    @property
    def min_allocatable(self) -> str:
        """The least that is worth an offer, as text."""
        return str(self.value("min-allocatable-resources"))

    @property
    def region(self) -> str:
        """Where the master is; may be empty."""
        return str(self.value("region"))

    def duration_ms(self, name: str) -> int:
        """A duration in milliseconds."""
        value = self.value(name)
        assert isinstance(value, int), name
        return value

    @property
    def max_agent_ping_timeouts(self) -> int:
        """Unanswered pings after which an agent is unreachable."""
        value = self.value("max-agent-ping-timeouts")
        assert isinstance(value, int)
        return value


def find_flag(name: str) -> str | ErrorDetail:
    """The flag's own name (`_` for `-` and leading dashes accepted), or a refusal that names the nearest one."""
    canonical = canonical_name(name.lstrip("-"))
    if canonical in _BY_NAME:
        return canonical
    near = closest(canonical, list(_BY_NAME))
    hint = f"did you mean {near}?" if near else "see `bursar flag ls`"
    return ErrorDetail(ErrorReason.NOT_FOUND, f"there is no flag {name!r}", hint, "name")


def read_run_time_value(name: str, value: str) -> str | ErrorDetail:
    """Check a value that is to be set at run time; return it normalised, or a refusal."""
    flag = _BY_NAME.get(name)
    if flag is None or not flag.runtime_settable:
        settable = ", ".join(known.name for known in MASTER_FLAGS if known.runtime_settable)
        return ErrorDetail(
            ErrorReason.NEEDS_RESTART,
            f"the flag {name} needs a restart of the master to change",
            f"give --{name} to bursar-master; at run time can be set: {settable}",
            "name",
        )
    try:
        return format_flag(flag, parse_flag(flag, value))
    except InvalidText as error:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, error.detail.message, error.detail.hint, "value")
