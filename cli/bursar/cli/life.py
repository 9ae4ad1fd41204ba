"""What `bursar run` and `bursar batch` say about the life of its task: how long it may run, how it is ended, how it is looked after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, TypeVar

import click

from bursar.cli.options import DURATION_MS, TextType
from bursar.core.lives import parse_check, parse_restart
from bursar.sdk import Check, HealthCheck, RestartPolicy

F = TypeVar("F", bound=Callable[..., Any])

_CHECK = TextType("check", parse_check)
_RESTART = TextType("policy", parse_restart)


@dataclass(frozen=True, slots=True)
class Life:
    """What the options said."""

    max_run_ms: int | None
    kill_grace_ms: int | None
    check: Check | None
    health_check: HealthCheck | None
    restart: RestartPolicy | None
    max_disconnected_ms: int | None = None

    def arguments(self) -> dict[str, Any]:
        """As arguments of `Task`."""
        return {name: getattr(self, name) for name in Life.__slots__}


def life_options(command: F) -> F:
    """The options, given to the command as one argument `life`."""

    @wraps(command)
    def gathered(
        *args: Any,
        max_run_ms: int | None,
        kill_grace_ms: int | None,
        check: Check | None,
        health: Check | None,
        delay_ms: int | None,
        interval_ms: int | None,
        timeout_ms: int | None,
        failures: int | None,
        grace_ms: int | None,
        restart: RestartPolicy | None,
        restart_backoff_ms: int | None,
        max_disconnected_ms: int | None,
        **rest: Any,
    ) -> Any:
        numbers: dict[str, Any] = {"delay_ms": delay_ms, "interval_ms": interval_ms, "timeout_ms": timeout_ms}
        if (
            health is None
            and check is None
            and any(value is not None for value in (*numbers.values(), failures, grace_ms))
        ):
            raise click.UsageError(
                "--check-* says how to look, but there is nothing to look at: give --health or --check, too"
            )
        health_check = None if health is None else HealthCheck(replace(health, **numbers), failures, grace_ms)
        if restart_backoff_ms is not None:
            if restart is None:
                raise click.UsageError("--restart-backoff is about restarts: give --restart, too")
            restart = replace(restart, backoff_ms=restart_backoff_ms)
        looked = check and replace(check, **numbers)
        life = Life(max_run_ms, kill_grace_ms, looked, health_check, restart, max_disconnected_ms)
        return command(*args, life=life, **rest)

    options = [
        click.option(
            "--max-run-time",
            "max_run_ms",
            type=DURATION_MS,
            help="End it after this time, such as 2h: it has failed then.  [as long as it likes]",
        ),
        click.option(
            "--max-disconnected",
            "max_disconnected_ms",
            type=DURATION_MS,
            help="End it when its agent has had no master for so long: it is gone then.  [it runs on]",
        ),
        click.option(
            "--kill-grace",
            "kill_grace_ms",
            type=DURATION_MS,
            help="From SIGTERM to SIGKILL, whoever ends it.  [3s]",
        ),
        click.option(
            "--health",
            type=_CHECK,
            help="End it where this fails: cmd:COMMAND, http:PORT/PATH, https:PORT/PATH or tcp:PORT, inside the task; PORT is a"
            " number, or the NAME of a --port.",
        ),
        click.option("--check", type=_CHECK, help="As --health, but only shown: nothing follows from it."),
        click.option("--check-delay", "delay_ms", type=DURATION_MS, help="From its start to the first look.  [15s]"),
        click.option("--check-interval", "interval_ms", type=DURATION_MS, help="Between two looks.  [10s]"),
        click.option("--check-timeout", "timeout_ms", type=DURATION_MS, help="How long a look may take.  [20s]"),
        click.option("--health-failures", "failures", type=click.IntRange(1), help="In a row, to end it.  [3]"),
        click.option(
            "--health-grace", "grace_ms", type=DURATION_MS, help="From its start, while failures do not count.  [10s]"
        ),
        click.option(
            "--restart",
            type=_RESTART,
            help="Start it again on its agent when it ends by itself: never, on-failure[:COUNT] or always[:COUNT].  [never]",
        ),
        click.option(
            "--restart-backoff",
            "restart_backoff_ms",
            type=DURATION_MS,
            help="Before the first restart; doubled each time, up to 5m.  [1s]",
        ),
    ]
    result: Any = gathered
    for option in reversed(options):
        result = option(result)
    return result  # type: ignore[no-any-return]
