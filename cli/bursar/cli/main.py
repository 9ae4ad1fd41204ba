"""Entry point of `bursar`: finds the command, and turns every failure into words and an exit code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from bursar.cli import problems
from bursar.cli.options import ROOT_SETTINGS, master_option
from bursar.core.errors import BursarError
from bursar.runtime.program import INTERRUPTED

#: Command → module under `bursar.cli` and its attribute. A module is imported when its command is wanted; one that is not
#: installed is not shown.
COMMANDS = {
    "run": "run:run",
    "batch": "batch:batch",
    "agent": "agents:agent",
    "framework": "frameworks:framework",
    "role": "roles:role",
    "offer": "offers:offer",
    "task": "tasks:task",
    "gpu": "gpus:gpu",
    "image": "images:image",
    "reserve": "reservations:reserve",
    "unreserve": "reservations:unreserve",
    "reservation": "reservations:reservation",
    "group": "groups:group",
    "flag": "flags:flag",
    "explain": "explain:explain",
    "rule": "rules:rule",
    "master": "master:master",
    "dev": "dev:dev",
    "simulate": "simulate:simulate",
    "version": "version:version",
    "weight": "weights:weight",
    "quota": "quotas:quota",
    "memory": "memory:memory",
    "watch": "watch:watch",
    "gang": "gangs:gang",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Those that are installed, in the order of the table."""
        return [name for name, place in COMMANDS.items() if _is_there(place)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one. Raises Failure where a part that it needs is not installed."""
        place = COMMANDS.get(cmd_name)
        if place is None or not _is_there(place):
            return None
        module, _, attribute = place.partition(":")
        try:
            command = getattr(importlib.import_module(f"bursar.cli.{module}"), attribute)
        except ModuleNotFoundError as error:
            raise problems.Failure(
                f"bursar {cmd_name} needs a part that is not installed: {error.name}", "pip install 'bursar[all]'"
            ) from None
        assert isinstance(command, click.Command)
        return command


def _is_there(place: str) -> bool:
    return importlib.util.find_spec(f"bursar.cli.{place.partition(':')[0]}") is not None


@click.group(cls=LazyGroup, context_settings=ROOT_SETTINGS)
@master_option
@click.version_option(package_name="bursar", prog_name="bursar", message="%(prog)s %(version)s")
def cli() -> None:
    """Ask and order a Bursar cluster, and run work on it.

    Ids may be given by any unique prefix, an agent also by its hostname, a task as FRAMEWORK_ID/TASK_ID or by its own id.

    Exit codes: 0 done, 1 refused by the cluster, 2 wrong usage, 3 not found or ambiguous, 4 no master within 10 s; those of
    `bursar run` are the command's own.
    """


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code."""
    _prepare()
    try:
        result: Any = cli.main(
            args=None if arguments is None else list(arguments), prog_name="bursar", standalone_mode=False
        )
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BursarError as error:
        problems.say_error(error.detail.message, error.detail.hint)
        return problems.exit_code(error)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:  # noqa: BLE001 - no traceback ever reaches a user
        problems.say_bug(error)
        return problems.REFUSED


def main() -> NoReturn:
    """The `bursar` program."""
    code = run()
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _forget_stdout()
        code = code or problems.BROKEN_PIPE
    sys.exit(code)


def _prepare() -> None:
    # gRPC's own log lines are not for users.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    for stream in (sys.stdout, sys.stderr):
        # A terminal or locale that cannot show a character gets its escape, not an error.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    problems.quiet_loggers()


def _forget_stdout() -> None:
    """Nobody reads stdout any more: what Python would flush at exit goes nowhere."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass


if __name__ == "__main__":
    main()
