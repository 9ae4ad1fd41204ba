"""`bursar weight`: how large a role's share shall be, compared with those next to it."""

from __future__ import annotations

import click

from bursar.cli import output as out
from bursar.cli.options import TextType, ask, master_option, output_option, read_role_name
from bursar.core.errors import InvalidText
from bursar.core.text import format_milli, parse_milli

LISTING = out.Listing(
    columns={"ROLE": lambda weight: weight.role, "WEIGHT": lambda weight: format_milli(weight.weight_milli)},
    name=lambda weight: weight.role,
    details={},
)

DEFAULT_MILLI = 1000


def _read_assignment(text: str) -> tuple[str, int]:
    role, equals, weight = text.rpartition("=")
    if not role or not equals:
        raise InvalidText(f"{text!r} is not ROLE=WEIGHT", "write research=2")
    role = read_role_name(role)
    milli = parse_milli(weight, f"weight of {role}")
    if milli == 0:
        raise InvalidText(
            f"weight of {role}: 0 would mean no share at all", "0.001 is the least; to keep a role out, give it a limit"
        )
    return role, milli


ROLE_NAME = TextType("role", read_role_name)
ASSIGNMENT = TextType("role=weight", _read_assignment)


@click.group()
def weight() -> None:
    """Weights of roles: one of weight 2 gets twice the share of its neighbour of weight 1."""


@weight.command("ls")
@output_option
@master_option
def list_weights(output: str) -> None:
    """List the weights that are not 1."""
    out.print_list(ask(lambda client: client.weights()), LISTING, output)


@weight.command("set")
@click.argument("assignments", metavar="ROLE=WEIGHT...", nargs=-1, required=True, type=ASSIGNMENT)
@output_option
@master_option
def set_weights(assignments: tuple[tuple[str, int], ...], output: str) -> None:
    """Set weights of roles, all or none; other roles keep theirs.

    From 0.001, with at most three decimal places. Felt in the next allocation cycle: no offer is rescinded and no task touched.
    ROLE/. is the place that a role takes among its children with its own frameworks.
    """
    _change(dict(_once(assignments)), output)


@weight.command("reset")
@click.argument("roles", metavar="ROLE...", nargs=-1, required=True, type=ROLE_NAME)
@output_option
@master_option
def reset_weights(roles: tuple[str, ...], output: str) -> None:
    """Give roles the weight 1 again."""
    _change({role: DEFAULT_MILLI for role in roles}, output)


def _once(assignments: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    roles = [role for role, _ in assignments]
    for role in roles:
        if roles.count(role) > 1:
            raise click.UsageError(f"role {role} is named twice (name each role once)")
    return assignments


def _change(weights_milli: dict[str, int], output: str) -> None:
    out.print_list(ask(lambda client: client.set_weights(weights_milli)), LISTING, output)
