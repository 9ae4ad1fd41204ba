"""`bursar role`: who shares the cluster."""

from __future__ import annotations

import click

from bursar.cli import output as out
from bursar.cli.options import ask, master_option, output_option
from bursar.core.text import format_milli

LISTING = out.Listing(
    columns={
        "ROLE": lambda role: role.role,
        "WEIGHT": lambda role: format_milli(role.weight_milli),
        "SHARE": lambda role: f"{role.share_millionths / 10_000:.2f}%",
        "FRAMEWORKS": lambda role: str(len(role.framework_ids)),
        "ALLOCATED": lambda role: out.resources(role.allocated),
        "OFFERED": lambda role: out.resources(role.offered),
        "RESERVED": lambda role: out.resources(role.reserved),
    },
    name=lambda role: role.role,
    details={},
)


@click.group()
def role() -> None:
    """The names under which frameworks share the cluster."""


@role.command("ls")
@output_option
@master_option
def list_roles(output: str) -> None:
    """List the roles that are in use."""
    out.print_list(ask(lambda client: client.roles()), LISTING, output)
