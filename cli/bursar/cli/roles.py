"""`bursar role`: who shares the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

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
        "GUARANTEE": lambda role: out.amounts(role.guarantees),
        "LIMIT": lambda role: out.amounts(role.limits),
        "CONSUMED": lambda role: out.amounts(role.consumed),
        "LEFT": lambda role: out.amounts({kind: max(0, left) for kind, left in role.limit_left.items()}),
    },
    name=lambda role: role.role,
    details={},
)

#: The same as a tree; `ROLE` is the last component then, below the role above.
TREE_COLUMNS: dict[str, Callable[[Any], str]] = {
    "WEIGHT": LISTING.columns["WEIGHT"],
    "SHARE": LISTING.columns["SHARE"],
    "GUARANTEE": LISTING.columns["GUARANTEE"],
    "LIMIT": LISTING.columns["LIMIT"],
    "CONSUMED": LISTING.columns["CONSUMED"],
    "LEFT": LISTING.columns["LEFT"],
    "KEPT FREE": lambda role: out.amounts(role.unmet),
    "RESERVED": lambda role: out.main_resources(role.reserved),
    "FRAMEWORKS": lambda role: str(len(role.framework_ids)),
}

#: Shown where anything is on loan at all: what others borrow of what is kept for the role, and what it borrows.
LOANS: dict[str, Callable[[Any], str]] = {
    "LENT": lambda role: out.main_resources(role.lent),
    "BORROWED": lambda role: out.main_resources(role.borrowed),
}

DEFAULT_WEIGHT_MILLI = 1000


@click.group()
def role() -> None:
    """The names under which frameworks share the cluster."""


@role.command("ls")
@output_option
@master_option
def list_roles(output: str) -> None:
    """List the roles that are in use.

    Where anything is on loan, LENT is what others borrow of what is kept for a role, and BORROWED what the role has on loan from others.
    """
    found = ask(lambda client: client.roles())
    out.print_list(found, replace(LISTING, columns=LISTING.columns | _loan_columns(found)), output)


@role.command("tree")
@output_option
@master_option
def show_tree(output: str) -> None:
    """Show the roles as a tree: weights, shares, quotas with what is used and left, reservations, frameworks.

    What a role holds, keeps and consumes includes the roles below it. LEFT is what the tightest limit of the role and of those above
    it leaves; KEPT FREE is what is held back from others for guarantees. `.` is a role's own place among its children, where that has
    a weight. Where anything is on loan, LENT is what others borrow of what is kept for a role, and BORROWED what the role has on loan
    from others.
    """
    roles = {found.role: found for found in ask(lambda client: client.roles())}
    columns = TREE_COLUMNS | _loan_columns(roles.values())
    order = sorted(roles, key=lambda name: name.split("/"))
    if output == "json":
        out.write(out.dump_json(_nested(roles, order)))
    elif output == "name":
        out.write("".join(f"{name}\n" for name in order))
    else:
        rows = []
        for name in order:
            depth, last = name.count("/"), name.rsplit("/", 1)[-1]
            rows.append(["  " * depth + last, *(show(roles[name]) for show in columns.values())])
            if roles[name].own_weight_milli != DEFAULT_WEIGHT_MILLI:
                own = [format_milli(roles[name].own_weight_milli), *["-"] * (len(columns) - 1)]
                rows.append(["  " * (depth + 1) + ".", *own])
        out.write_table(["ROLE", *columns], rows)


def _loan_columns(roles: Iterable[Any]) -> dict[str, Callable[[Any], str]]:
    return LOANS if any(show(role) != "-" for role in roles for show in LOANS.values()) else {}


def _nested(roles: dict[str, Any], order: list[str]) -> list[dict[str, Any]]:
    """As `role ls`, with `children` in each role; those without a role above them that is known are at the top."""
    entries = {name: out.to_json(roles[name]) | {"children": []} for name in order}
    top: list[dict[str, Any]] = []
    for name in order:
        above = entries.get(name.rpartition("/")[0])
        (top if above is None else above["children"]).append(entries[name])
    return top
