"""All that `bursar run` and `bursar batch` say about a task, the same in both."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

from bursar.cli.life import Life, life_options
from bursar.cli.options import OTHER_DEVICES, labels_option, task_options
from bursar.cli.surroundings import Surroundings, surroundings_options

F = TypeVar("F", bound=Callable[..., Any])


def asked_options(command: F) -> F:
    """`task_options`, and all others as one argument `asked`: the further arguments of `Task`."""

    @wraps(command)
    def gathered(
        *args: Any,
        surroundings: Surroundings,
        life: Life,
        devices: dict[str, int],
        labels: dict[str, str],
        **rest: Any,
    ) -> Any:
        asked = {**surroundings.arguments(), **life.arguments(), "custom": devices, "labels": labels}
        return command(*args, asked=asked, **rest)

    devices_option = click.option(
        "--devices",
        type=OTHER_DEVICES,
        default="",
        help="Devices of other kinds than gpus, such as 'fpgas:1;mig-1g.10gb:2'.",
    )
    told = labels_option("To find it by, as with `bursar task ls --label`; repeatable.")
    result: Any = devices_option(told(task_options(surroundings_options(life_options(gathered)))))
    return result  # type: ignore[no-any-return]
