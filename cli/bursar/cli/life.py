"""What `bursar run` says about the life of its task: how long it may run, how it is ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import click

from bursar.cli.options import DURATION_MS

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Life:
    """What the options said."""

    max_run_ms: int | None
    kill_grace_ms: int | None


def life_options(command: F) -> F:
    """The options, given to the command as one argument `life`."""

    @wraps(command)
    def gathered(*args: Any, max_run_ms: int | None, kill_grace_ms: int | None, **rest: Any) -> Any:
        return command(*args, life=Life(max_run_ms, kill_grace_ms), **rest)

    options = [
        click.option(
            "--max-run-time",
            "max_run_ms",
            type=DURATION_MS,
            help="End it after this time, such as 2h: it has failed then.  [as long as it likes]",
        ),
        click.option(
            "--kill-grace",
            "kill_grace_ms",
            type=DURATION_MS,
            help="From SIGTERM to SIGKILL, whoever ends it.  [3s]",
        ),
    ]
    result: Any = gathered
    for option in reversed(options):
        result = option(result)
    return result  # type: ignore[no-any-return]
