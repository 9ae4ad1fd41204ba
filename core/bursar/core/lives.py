"""What keeps watch over a task while it lives; mirrors `proto/bursar/v1/lives.proto` (HC-1 to HC-5)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

from bursar.core.errors import InvalidText

DEFAULT_DELAY_MS, DEFAULT_INTERVAL_MS, DEFAULT_TIMEOUT_MS = 15_000, 10_000, 20_000
DEFAULT_FAILURES, DEFAULT_GRACE_MS = 3, 10_000
#: As the names of service ports are written.
_PORT_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}", re.ASCII)


@dataclass(frozen=True, slots=True)
class HttpCheck:
    """A GET whose status code counts; mirrors `bursar.v1.HttpCheck`."""

    port: int = 0
    path: str = ""
    scheme: str = ""
    #: Of one of the task's service ports, in place of `port`.
    port_name: str = ""


@dataclass(frozen=True, slots=True)
class TcpCheck:
    """A connection that is accepted; mirrors `bursar.v1.TcpCheck`."""

    port: int = 0
    #: Of one of the task's service ports, in place of `port`.
    port_name: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """A look at a running task, again and again, in one of three ways; mirrors `bursar.v1.Check`."""

    command: tuple[str, ...] = ()
    http: HttpCheck | None = None
    tcp: TcpCheck | None = None
    delay_ms: int | None = None
    interval_ms: int | None = None
    timeout_ms: int | None = None

    @property
    def delay(self) -> int:
        """From RUNNING to the first look, in milliseconds."""
        return DEFAULT_DELAY_MS if self.delay_ms is None else self.delay_ms

    @property
    def interval(self) -> int:
        """Between two looks, in milliseconds."""
        return DEFAULT_INTERVAL_MS if self.interval_ms is None else self.interval_ms

    @property
    def timeout(self) -> int:
        """How long a look may take, in milliseconds."""
        return DEFAULT_TIMEOUT_MS if self.timeout_ms is None else self.timeout_ms

    @property
    def port_name(self) -> str:
        """The service port that is looked at; empty for a port by number, and for a command."""
        target = self.http or self.tcp
        return target.port_name if target is not None else ""

    def at(self, ports: Mapping[str, int]) -> Check:
        """The same with its port by number; `ports`: where the task listens, by the names of its service ports."""
        if not self.port_name:
            return self
        port = ports[self.port_name]
        if self.http is not None:
            return replace(self, http=replace(self.http, port=port, port_name=""))
        return replace(self, tcp=TcpCheck(port))

    def __str__(self) -> str:
        if self.http is not None:
            return f"{self.http.scheme or 'http'}:{self.http.port_name or self.http.port}{self.http.path}"
        if self.tcp is not None:
            return f"tcp:{self.tcp.port_name or self.tcp.port}"
        return f"cmd:{' '.join(self.command)}"


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A check that decides; mirrors `bursar.v1.HealthCheck`."""

    check: Check
    consecutive_failures: int | None = None
    grace_period_ms: int | None = None

    @property
    def failures(self) -> int:
        """In a row, before the task is ended."""
        return DEFAULT_FAILURES if self.consecutive_failures is None else self.consecutive_failures

    @property
    def grace(self) -> int:
        """From RUNNING, milliseconds in which failures do not count."""
        return DEFAULT_GRACE_MS if self.grace_period_ms is None else self.grace_period_ms


@dataclass(frozen=True, slots=True)
class CheckStatus:
    """What a look found; mirrors `bursar.v1.CheckStatus`."""

    exit_code: int | None = None
    http_status: int | None = None
    is_connected: bool | None = None

    @property
    def is_healthy(self) -> bool:
        """Exit code 0, a status of 200 to 399, a connection (HC-2)."""
        if self.http_status is not None:
            return 200 <= self.http_status <= 399
        return self.exit_code == 0 or self.is_connected is True

    def __str__(self) -> str:
        if self.exit_code is not None:
            return f"the command exited with {self.exit_code}"
        if self.http_status is not None:
            return f"the answer was {self.http_status}"
        if self.is_connected is not None:
            return "the port is open" if self.is_connected else "nothing listens"
        return "there was no answer in time"


class RestartMode(IntEnum):
    """When a task that has ended by itself is started again; mirrors `bursar.v1.RestartMode`."""

    UNSPECIFIED = 0
    ON_FAILURE = 1
    ALWAYS = 2


DEFAULT_BACKOFF_MS, DEFAULT_MAX_BACKOFF_MS = 1_000, 300_000


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When, how often and after how long a task is started again; mirrors `bursar.v1.RestartPolicy`."""

    mode: RestartMode = RestartMode.UNSPECIFIED
    max_restarts: int = 0
    backoff_ms: int | None = None
    max_backoff_ms: int | None = None

    @property
    def longest(self) -> int:
        """Back-off in milliseconds beyond which it does not grow."""
        return DEFAULT_MAX_BACKOFF_MS if self.max_backoff_ms is None else self.max_backoff_ms

    def backoff(self, attempt: int) -> int:
        """Milliseconds before restart number `attempt` of a row, from 1."""
        first = DEFAULT_BACKOFF_MS if self.backoff_ms is None else self.backoff_ms
        return min(first << min(attempt - 1, 40), self.longest)


def restart_problem(policy: RestartPolicy) -> tuple[str, str] | None:
    """Say what is wrong with a policy as (field, problem), or nothing."""
    for field in ("max_restarts", "backoff_ms", "max_backoff_ms"):
        if (getattr(policy, field) or 0) < 0:
            return field, "must not be negative"
    return None


def parse_restart(text: str) -> RestartPolicy:
    """Read `never`, `on-failure[:COUNT]` or `always[:COUNT]`. Raises InvalidText."""
    word, colon, count = text.partition(":")
    modes = {"never": RestartMode.UNSPECIFIED, "on-failure": RestartMode.ON_FAILURE, "always": RestartMode.ALWAYS}
    if word not in modes or (colon and (not count.isdecimal() or word == "never" or len(count) > 9)):
        raise InvalidText(
            f"{text!r} is not a restart policy", "write never, on-failure, on-failure:3, always or always:3"
        )
    return RestartPolicy(modes[word], int(count or 0))


def check_problem(check: Check, names: Collection[str] | None = None) -> tuple[str, str] | None:
    """Say what is wrong with a check as (field, problem), or nothing; `names`: of the task's service ports of TCP, where known."""
    ways = [bool(check.command), check.http is not None, check.tcp is not None]
    if sum(ways) != 1:
        return "check", "name exactly one of command, http and tcp"
    for field in ("interval_ms", "timeout_ms"):
        value = getattr(check, field)
        if value is not None and value <= 0:
            return field, "must be more than 0"
    if check.delay_ms is not None and check.delay_ms < 0:
        return "delay_ms", "must not be negative"
    if any("\x00" in word for word in check.command) or (check.command and not check.command[0]):
        return "command", "the program must not be empty, and no argument hold a zero byte"
    target = check.http or check.tcp
    if target is not None and target.port_name:
        if target.port:
            return "port_name", f"name a port by {target.port_name!r} or by {target.port}, not both"
        if names is not None and target.port_name not in names:
            there = f"there are {', '.join(sorted(names))}" if names else "it has none"
            return "port_name", f"the task has no service port {target.port_name!r} of TCP: {there}"
    elif target is not None and not 0 < target.port < 65_536:
        return "port", f"{target.port} is not a port: 1 to 65535"
    if check.http is not None:
        if check.http.scheme not in ("", "http", "https"):
            return "http.scheme", f"{check.http.scheme!r} is neither http nor https"
        if check.http.path and (
            not check.http.path.startswith("/") or not check.http.path.isprintable() or " " in check.http.path
        ):
            return "http.path", f"{check.http.path!r} is not a path: it begins with / and has no blanks"
    return None


def health_problem(health: HealthCheck, names: Collection[str] | None = None) -> tuple[str, str] | None:
    """Say what is wrong with a health check as (field, problem), or nothing; `names`: as for `check_problem`."""
    if problem := check_problem(health.check, names):
        return problem
    if health.consecutive_failures is not None and health.consecutive_failures <= 0:
        return "consecutive_failures", "must be more than 0"
    if health.grace_period_ms is not None and health.grace_period_ms < 0:
        return "grace_period_ms", "must not be negative"
    return None


def parse_check(text: str) -> Check:
    """Read `cmd:WORDS` (given to `sh -c`), `http:PORT[/PATH]`, `https:PORT[/PATH]` or `tcp:PORT`. Raises InvalidText.

    A port is a number, or the name of one of the task's service ports.
    """
    kind, colon, rest = text.partition(":")
    port, slash, path = rest.partition("/")
    check = None
    if kind == "cmd" and rest.strip():
        check = Check(command=("sh", "-c", rest))
    elif kind in ("http", "https") and (port.isdecimal() or _PORT_NAME.fullmatch(port)):
        number, name = (int(port), "") if port.isdecimal() else (0, port)
        check = Check(http=HttpCheck(number, f"{slash}{path}", "" if kind == "http" else kind, name))
    elif kind == "tcp" and rest.isdecimal():
        check = Check(tcp=TcpCheck(int(rest)))
    elif kind == "tcp" and _PORT_NAME.fullmatch(rest):
        check = Check(tcp=TcpCheck(port_name=rest))
    if check is None or not colon:
        raise InvalidText(
            f"{text!r} is not a check",
            "write cmd:COMMAND, http:PORT/PATH, https:PORT/PATH or tcp:PORT; PORT is a number or the name of a service port (--port)",
        )
    if problem := check_problem(check):
        raise InvalidText(f"check {text!r}: {problem[1]}", "correct it")
    return check
