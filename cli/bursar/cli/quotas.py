"""`bursar quota`: what a role is kept, and what it may have at most."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from bursar.cli import output as out
from bursar.cli.options import ROLE, TextType, ask, master_option, output_option
from bursar.cli.problems import say
from bursar.core.errors import InvalidText
from bursar.core.messages.operator import Quota
from bursar.core.roles import role_problem
from bursar.core.text import parse_amounts

LISTING = out.Listing(
    columns={
        "ROLE": lambda view: view.quota.role,
        "GUARANTEE": lambda view: out.amounts(view.quota.guarantees),
        "LIMIT": lambda view: out.amounts(view.quota.limits),
        "CONSUMED": lambda view: out.amounts(view.consumed),
        "KEPT FREE": lambda view: out.amounts(view.unmet),
    },
    name=lambda view: view.quota.role,
    details={},
)

AMOUNTS = TextType("amounts", parse_amounts)


@click.group()
def quota() -> None:
    """Guarantees and limits of roles, at any level of the tree."""


@quota.command("ls")
@output_option
@master_option
def list_quotas(output: str) -> None:
    """List all quotas, what counts against them and what is kept free for them."""
    out.print_list(ask(lambda client: client.quotas()), LISTING, output)


@quota.command("set")
@click.option("--role", type=ROLE, default=None, help="The role; its descendants count with it.")
@click.option("--guarantee", type=AMOUNTS, default=None, help='Kept free for it, such as "gpus:4;cpus:16".')
@click.option("--limit", type=AMOUNTS, default=None, help='The most that it may have, such as "gpus:8"; 0 is nothing.')
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help='Several roles at once: a JSON array of {"role", "guarantees", "limits"} with texts as above.',
)
@click.option("--force", is_flag=True, help="Even if not all guarantees can be met, or a limit is passed already.")
@output_option
@master_option
def set_quota(
    role: str | None,
    guarantee: dict[str, int] | None,
    limit: dict[str, int] | None,
    path: Path | None,
    force: bool,
    output: str,
) -> None:
    """Set the quota of a role, or of several, all or none. It replaces the quota that the role had.

    As few offers as stand in its way are rescinded before this returns; tasks are never touched.
    """
    if path is not None:
        if role is not None or guarantee is not None or limit is not None:
            raise click.UsageError("--file names the roles with their amounts (give either --file or --role)")
        quotas = _read_file(path)
    elif role is None or (guarantee is None and limit is None):
        raise click.UsageError('name a --role and its --guarantee or --limit, such as --role ml --limit "gpus:8"')
    elif not guarantee and not limit:
        raise click.UsageError(f"amounts that are empty are no quota (bursar quota rm {role} removes what there is)")
    else:
        quotas = [Quota(role, guarantee or {}, limit or {})]
    _change(quotas, force, output)


@quota.command("rm")
@click.argument("roles", metavar="ROLE...", nargs=-1, required=True, type=ROLE)
@output_option
@master_option
def remove_quotas(roles: tuple[str, ...], output: str) -> None:
    """Remove the quotas of roles: nothing is kept for them and nothing limits them, but what does so above."""
    _change([Quota(role) for role in dict.fromkeys(roles)], False, output)


def _change(quotas: list[Quota], force: bool, output: str) -> None:
    response = ask(lambda client: client.set_quotas(quotas, force=force))
    out.print_list(list(response.quotas), LISTING, output)
    if count := response.rescinded_offers:
        say(f"{count} outstanding offer{'s were' if count > 1 else ' was'} rescinded")


def _read_file(path: Path) -> list[Quota]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise click.UsageError(f"--file: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        at = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        form = '[{"role": "ml", "guarantees": "gpus:2", "limits": "gpus:4"}]'
        raise click.UsageError(f"--file: {path} is not JSON{at} (write {form})") from None
    if not isinstance(entries, list) or not entries:
        raise click.UsageError(f"--file: {path} holds no array of quotas")
    return [_read_entry(entry, f"{path}[{index}]") for index, entry in enumerate(entries)]


def _read_entry(entry: Any, where: str) -> Quota:
    if not isinstance(entry, dict) or not isinstance(entry.get("role"), str):
        raise click.UsageError(f'--file: {where} is no object with a "role"')
    if unknown := sorted(set(entry) - {"role", "guarantees", "limits"}):
        raise click.UsageError(f"--file: {where}: unknown {', '.join(map(repr, unknown))} (role, guarantees, limits)")
    if problem := role_problem(entry["role"]):
        raise click.UsageError(f"--file: {where}: {problem}")
    return Quota(entry["role"], *(_read_amounts(entry.get(name, ""), where, name) for name in ("guarantees", "limits")))


def _read_amounts(value: Any, where: str, name: str) -> dict[str, int]:
    if not isinstance(value, str):
        raise click.UsageError(f'--file: {where}.{name} is no text such as "gpus:4;cpus:16"')
    try:
        return parse_amounts(value)
    except InvalidText as error:
        raise click.UsageError(f"--file: {where}.{name}: {error}") from None
