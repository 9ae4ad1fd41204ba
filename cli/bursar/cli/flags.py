"""`bursar flag`: the master's settings."""

from __future__ import annotations

import click

from bursar.cli import output as out
from bursar.cli.options import ask, master_option, output_option
from bursar.cli.problems import say

LISTING = out.Listing(
    columns={"FLAG": lambda flag: flag.name, "VALUE": lambda flag: flag.value, "SOURCE": lambda flag: flag.source},
    name=lambda flag: flag.name,
    details={},
)


@click.group()
def flag() -> None:
    """The master's flags; some can be changed while it runs."""


@flag.command("ls")
@output_option
@master_option
def list_flags(output: str) -> None:
    """List all flags, and where their values come from."""
    out.print_list(ask(lambda client: client.flags()), LISTING, output)


@flag.command("get")
@click.argument("name")
@output_option
@master_option
def get_flag(name: str, output: str) -> None:
    """Show one flag."""
    out.print_one(ask(lambda client: client.flag(_spelled(name))), LISTING, output)


# A value may begin with a minus: what it means, the flag says.
@flag.command("set", context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("value")
@output_option
@master_option
def set_flag(name: str, value: str, output: str) -> None:
    """Change a flag at run time.

    Offers that the new value forbids are rescinded before this returns. The value outlives restarts, until `flag unset`.
    """
    response = ask(lambda client: client.set_flag(_spelled(name), value))
    out.print_one(response.flag, LISTING, output)
    _say_rescinded(response.rescinded_offers)


@flag.command("unset")
@click.argument("name")
@output_option
@master_option
def unset_flag(name: str, output: str) -> None:
    """Undo a change at run time: back to the command line's, environment's, file's or default value."""
    response = ask(lambda client: client.unset_flag(_spelled(name)))
    out.print_one(response.flag, LISTING, output)
    _say_rescinded(response.rescinded_offers)


def _spelled(name: str) -> str:
    """As on the master's command line: `--` in front and `_` for `-` do no harm."""
    return name.removeprefix("--").replace("_", "-")


def _say_rescinded(count: int) -> None:
    if count:
        say(f"{count} outstanding offer{'s were' if count > 1 else ' was'} rescinded")
