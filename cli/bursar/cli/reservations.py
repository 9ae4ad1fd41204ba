"""`bursar reserve`, `unreserve` and `reservation`: resources kept for a role."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from bursar.cli import output as out
from bursar.cli.options import RESERVABLE_ROLE, RESOURCES, ROLES, ask, master_option, output_option
from bursar.core.resources import ResourceRequest

F = TypeVar("F", bound=Callable[..., Any])

LISTING = out.Listing(
    columns={
        "AGENT": lambda view: view.agent_id,
        "HOSTNAME": lambda view: view.hostname,
        "ROLE": lambda view: out.holders(view.stack),
        "TYPE": lambda view: out.state(view.stack[-1], "type").lower() if view.stack else "-",
        "RESOURCES": lambda view: out.resources(view.resources),
        "IN USE": lambda view: out.resources(view.allocated),
        "DEVICES": lambda view: ",".join(sorted(view.resources.device_uuids)) or "-",
        "LABELS": lambda view: out.labels(view.stack[-1].labels) if view.stack else "-",
    },
    name=lambda view: view.agent_id,
    details={
        "PRINCIPAL": lambda view: view.stack[-1].principal if view.stack else "",
        "ROLES NOW": lambda view: ",".join(view.covered_roles) or "-",
    },
)


def _what(command: F) -> F:
    for option in (
        master_option,
        output_option,
        click.option(
            "--label",
            "labels",
            multiple=True,
            callback=_read_labels,
            metavar="NAME=VALUE",
            help="Repeatable; part of its identity.",
        ),
        click.option("--resources", type=RESOURCES, required=True, help='For example "gpus:2;cpus:4".'),
        click.option("--agent", required=True, help="An id, prefix or hostname."),
        click.option(
            "--roles",
            type=ROLES,
            default="",
            metavar="EXPR",
            help="Instead, the role expression that they are for: 'ml/** & !ml/interns', '@gpu-users'.",
        ),
        click.option(
            "--role", type=RESERVABLE_ROLE, default="", help="The role that they are for, and its descendants."
        ),
    ):
        command = option(command)
    return command


def _read_labels(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not name or not equals:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE", ctx, param)
        labels[name] = text
    return labels


def _check_holder(role: str, roles: str) -> None:
    if bool(role) == bool(roles):
        raise click.UsageError("name whom it is for: either --role or --roles")


@click.command()
@click.option("--force", is_flag=True, help="Also beyond a limit of the role.")
@click.option(
    "--source",
    type=ROLES,
    default="",
    metavar="EXPR",
    help="Take it from what is reserved to this role or expression, not from what is unreserved.",
)
@_what
def reserve(
    role: str,
    roles: str,
    agent: str,
    resources: ResourceRequest,
    labels: dict[str, str],
    force: bool,
    source: str,
    output: str,
) -> None:
    """Keep resources of one agent for a role, or for all roles that an expression covers.

    Takes what is free or offered (such offers are rescinded), never what a task holds. Prints what was reserved, with the
    devices that were picked.
    """
    _check_holder(role, roles)
    view = ask(lambda client: client.reserve(agent, role, resources, labels, force=force, roles=roles, source=source))
    out.print_one(view, LISTING, output)


@click.command()
@_what
def unreserve(
    role: str, roles: str, agent: str, resources: ResourceRequest, labels: dict[str, str], output: str
) -> None:
    """Give reserved resources back to everybody; only what no task holds."""
    _check_holder(role, roles)
    view = ask(lambda client: client.unreserve(agent, role, resources, labels, roles=roles))
    out.print_one(view, LISTING, output)


@click.group()
def reservation() -> None:
    """Resources kept for a role."""


@reservation.command("ls")
@output_option
@master_option
def list_reservations(output: str) -> None:
    """List all reservations and their devices."""
    out.print_list(ask(lambda client: client.reservations()), LISTING, output)
