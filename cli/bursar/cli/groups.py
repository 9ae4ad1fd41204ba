"""`bursar group`: named sets of roles, for reservations that outlive the list of those who may use them."""

from __future__ import annotations

import click

from bursar.cli import output as out
from bursar.cli.options import ask, master_option, output_option
from bursar.cli.problems import say

LISTING = out.Listing(
    columns={
        "GROUP": lambda group: f"@{group.name}",
        "MEMBERS": lambda group: " | ".join(group.members),
        "ROLES NOW": lambda group: ",".join(group.covered_roles) or "-",
        "RESERVATIONS": lambda group: str(group.reservations),
    },
    name=lambda group: group.name,
    details={},
)


@click.group()
def group() -> None:
    """Named sets of roles: `@NAME` in a role expression."""


@group.command("ls")
@output_option
@master_option
def list_groups(output: str) -> None:
    """List the role groups, and the roles that they cover now."""
    out.print_list(ask(lambda client: client.role_groups()), LISTING, output)


@group.command("set")
@click.argument("name")
@click.argument("members", nargs=-1, required=True, metavar="ROLE...")
@output_option
@master_option
def set_group(name: str, members: tuple[str, ...], output: str) -> None:
    """Make a group of exactly these roles, or change it.

    A ROLE is a role with those below it, or a role expression. What is reserved to the group goes to its new members from now on;
    offers that this forbids are rescinded before this returns, and tasks go on.
    """
    response = ask(lambda client: client.set_role_group(name.removeprefix("@"), members))
    out.print_one(response.group, LISTING, output)
    say_rescinded(response.rescinded_offers)


@group.command("rm")
@click.argument("name")
@click.option("--force", is_flag=True, help="Also where reservations or groups name it: it covers nobody then.")
@output_option
@master_option
def remove_group(name: str, force: bool, output: str) -> None:
    """Forget a group."""
    response = ask(lambda client: client.remove_role_group(name.removeprefix("@"), force=force))
    out.print_one(response.group, LISTING, output)
    say_rescinded(response.rescinded_offers)


def say_rescinded(count: int) -> None:
    """Tell people that offers were rescinded."""
    if count:
        say(f"{count} outstanding offer{'s were' if count > 1 else ' was'} rescinded")
