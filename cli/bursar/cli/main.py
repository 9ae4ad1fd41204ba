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
from bursar.cli.options import ROOT_SETTINGS, credential_options, master_option
from bursar.core.errors import BursarError
from bursar.runtime.program import INTERRUPTED

#: Command → module under `bursar.cli` and its attribute, and what it is for. A module is imported when its command is wanted, so
#: that `--help` need not import them all; one that is not installed is not shown.
COMMANDS = {
    "run": ("run:run", "Run one command on the cluster and wait for its end."),
    "batch": ("batch:batch", "Run many jobs."),
    "agent": ("agents:agent", "The machines that run tasks."),
    "framework": ("frameworks:framework", "The clients that accept offers and own tasks."),
    "role": ("roles:role", "The names under which frameworks share the cluster."),
    "offer": ("offers:offer", "Resources that are promised to a framework."),
    "task": ("tasks:task", "What runs and what has run."),
    "gpu": ("gpus:gpu", "The GPUs and other devices."),
    "image": ("images:image", "The images of agents: which there are, and pulling one."),
    "reserve": ("reservations:reserve", "Keep resources for a role."),
    "unreserve": ("reservations:unreserve", "Give reserved resources back; only what no task holds."),
    "reservation": ("reservations:reservation", "Resources kept for a role."),
    "group": ("groups:group", "Named sets of roles: `@NAME` in a role expression."),
    "flag": ("flags:flag", "The master's flags; some can be changed while it runs."),
    "explain": ("explain:explain", "Why not? What stands in the way of offers."),
    "rule": ("rules:rule", "Who may see what: rules, asked in their order."),
    "master": ("master:master", "The master."),
    "dev": ("dev:dev", "Run a whole cluster on this machine until Ctrl-C."),
    "simulate": ("simulate:simulate", "Run a cluster in one thread, in simulated time."),
    "version": ("version:version", "Show the version of this program."),
    "weight": (
        "weights:weight",
        "Weights of roles.",
    ),
    "quota": ("quotas:quota", "Guarantees and limits of roles, at any level of the tree."),
    "memory": ("memory:memory", "Plans of memory."),
    "watch": ("watch:watch", "Print what happens in the cluster from now on."),
    "gang": ("gangs:gang", "Tasks that start together or not at all."),
    "volume": ("volumes:volume", "Persistent volumes: data that outlives tasks."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Those that are installed, in the order of the table."""
        return [name for name, (place, _) in COMMANDS.items() if _is_there(place)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one. Raises Failure where a part that it needs is not installed."""
        place, _ = COMMANDS.get(cmd_name, ("", ""))
        if not place or not _is_there(place):
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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, without a look into the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


def _is_there(place: str) -> bool:
    return importlib.util.find_spec(f"bursar.cli.{place.partition(':')[0]}") is not None


@click.group(cls=LazyGroup, context_settings=ROOT_SETTINGS)
@master_option
@credential_options
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
