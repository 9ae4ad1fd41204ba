"""`bursar reserve`, `unreserve` and `reservation`: resources kept for a role."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import click

from bursar.cli import output as out
from bursar.cli.options import (
    CPUS_TEXT,
    GPU_COUNT,
    MEM_TEXT,
    RESERVABLE_ROLE,
    RESOURCES,
    ROLES,
    ask,
    labels_option,
    master_option,
    output_option,
)
from bursar.cli.problems import say
from bursar.core.resources import CPUS, MEM, ResourceRequest
from bursar.core.text import parse_amount

F = TypeVar("F", bound=Callable[..., Any])

LISTING = out.Listing(
    columns={
        "AGENT": lambda view: view.agent_id,
        "HOSTNAME": lambda view: view.hostname,
        "ROLE": lambda view: out.holders(view.stack),
        "TYPE": lambda view: out.state(view.stack[-1], "type").lower() if view.stack else "-",
        "RESOURCES": lambda view: out.resources(view.resources),
        "IN USE": lambda view: out.resources(view.allocated),
        "DEVICES": lambda view: _devices(view),
        "LABELS": lambda view: out.labels(view.stack[-1].labels) if view.stack else "-",
    },
    name=lambda view: view.agent_id,
    details={
        "PRINCIPAL": lambda view: (view.stack and view.stack[-1].principal) or "-",
        "ROLES NOW": lambda view: ",".join(view.covered_roles) or "-",
        "LENT": lambda view: "while idle" if view.lend else "-",
        "ON LOAN": lambda view: out.resources(view.on_loan),
        "BORROWERS": lambda view: _borrowers(view),
    },
)

_ABOUT_LENDING = ("LENT", "ON LOAN", "BORROWERS")


def _devices(view: Any) -> str:
    """Those that it keeps, and which of them its agent has no more."""
    return ",".join(f"{u} (vacant)" if u in view.vacant else u for u in sorted(view.resources.device_uuids)) or "-"


def _borrowers(view: Any) -> str:
    return ", ".join(f"{loan.framework_name or loan.framework_id} in {loan.role}" for loan in view.loans) or "-"


def _what(command: F) -> F:
    for option in (
        master_option,
        output_option,
        labels_option("Repeatable; part of its identity."),
        click.option("--dry-run", is_flag=True, help="Only print what would be done."),
        click.option(
            "--where",
            default="",
            metavar="PREDICATES",
            help='Only agents and devices that these are true of, such as "gpu.model=H100,rack=r1".',
        ),
        click.option("--mem", type=MEM_TEXT, default=None, help="Memory in all."),
        click.option("--cpus", type=CPUS_TEXT, default=None, help="CPUs in all."),
        click.option("--gpus", type=GPU_COUNT, default=None, help="Whole GPUs in all."),
        click.option("--resources", type=RESOURCES, default=None, help='For example "gpus:2;cpus:4".'),
        click.option("--agent", default="", help="An id, prefix or hostname.  [those that the master picks]"),
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


def _check_holder(role: str, roles: str) -> None:
    if bool(role) == bool(roles):
        raise click.UsageError("name whom it is for: either --role or --roles")


def _asked(resources: ResourceRequest | None, gpus: int | None, cpus: str | None, mem: str | None) -> ResourceRequest:
    """What --resources and the options for single kinds say together."""
    asked = resources or ResourceRequest()
    scalars = dict(asked.scalars)
    for kind, text in ((CPUS, cpus), (MEM, mem)):
        if text is not None:
            if kind in scalars:
                raise click.UsageError(f"--{kind} and --resources both say how much {kind}")
            scalars[kind] = parse_amount(kind, text)
    if gpus is not None and asked.gpus:
        raise click.UsageError("--gpus and --resources both say how many GPUs")
    asked = ResourceRequest(scalars, asked.ports, gpus or asked.gpus)
    if not asked:
        raise click.UsageError("say how much: --gpus, --cpus, --mem or --resources")
    return asked


def _print_one(view: Any, output: str) -> None:
    """What is about lending is said where anything of it is lent."""
    hidden = set() if view.lend or view.loans else set(_ABOUT_LENDING)
    details = {title: show for title, show in LISTING.details.items() if title not in hidden}
    out.print_one(view, replace(LISTING, details=details), output)


def _print(response: Any, one: bool, dry_run: bool, verb: str, output: str) -> None:
    """What was chosen: in full for one agent that was named, else as a list."""
    if one:
        _print_one(response.reservation, output)
    else:
        out.print_list(response.reservations, LISTING, output)
    count = response.rescinded_offers
    if dry_run:
        say(f"nothing was {verb}, this is a dry run" + (f"; {count} offer(s) would be rescinded" if count else ""))


@click.command()
@click.option("--force", is_flag=True, help="Also beyond a limit of the role.")
@click.option(
    "--source",
    type=ROLES,
    default="",
    metavar="EXPR",
    help="Take it from what is reserved to this role or expression, not from what is unreserved.",
)
@click.option("--lend", is_flag=True, help="Lend it to others while it is idle.")
@_what
def reserve(
    role: str,
    roles: str,
    agent: str,
    resources: ResourceRequest | None,
    gpus: int | None,
    cpus: str | None,
    mem: str | None,
    where: str,
    labels: dict[str, str],
    force: bool,
    source: str,
    lend: bool,
    dry_run: bool,
    output: str,
) -> None:
    """Keep resources for a role, or for all roles that an expression covers.

    Of one agent, or of those that the master picks: the fewest that have enough, with the best-connected GPUs, and cliques of
    NVLinks whole where that can be. Each GPU comes with its part of the CPUs and the memory. Takes what is free or offered (such
    offers are rescinded), never what a task holds; all that is asked for, or nothing. Prints what was reserved, with the devices
    that were picked.
    """
    _check_holder(role, roles)
    asked = _asked(resources, gpus, cpus, mem)
    response = ask(
        lambda client: client.reserve_where(
            roles,
            asked,
            where,
            role=role,
            agent=agent,
            source=source,
            labels=labels,
            force=force,
            dry_run=dry_run,
            lend=lend,
        )
    )
    _print(response, bool(agent), dry_run, "reserved", output)


@click.command()
@_what
def unreserve(
    role: str,
    roles: str,
    agent: str,
    resources: ResourceRequest | None,
    gpus: int | None,
    cpus: str | None,
    mem: str | None,
    where: str,
    labels: dict[str, str],
    dry_run: bool,
    output: str,
) -> None:
    """Give reserved resources back; only what no task holds.

    To everybody, or to whom they were reserved before. Of one agent, or of those that the master picks.
    """
    _check_holder(role, roles)
    asked = _asked(resources, gpus, cpus, mem)
    response = ask(
        lambda client: client.unreserve_where(
            roles, asked, where, role=role, agent=agent, labels=labels, dry_run=dry_run
        )
    )
    _print(response, bool(agent), dry_run, "given back", output)


@click.group()
def reservation() -> None:
    """Resources kept for a role."""


@reservation.command("ls")
@click.option(
    "--wide", is_flag=True, help="With the principals, the roles known now that are covered, and who borrows of it."
)
@output_option
@master_option
def list_reservations(wide: bool, output: str) -> None:
    """List all reservations and their devices; ON LOAN is what of one others borrow, where anything is lent."""
    found = ask(lambda client: client.reservations())
    if wide:
        more = LISTING.details
    else:
        more = {"ON LOAN": LISTING.details["ON LOAN"]} if any(view.loans for view in found) else {}
    out.print_list(found, replace(LISTING, columns=LISTING.columns | more), output)


@reservation.command("lend")
@click.option("--role", type=RESERVABLE_ROLE, default="", help="What is reserved to this role.")
@click.option("--roles", type=ROLES, default="", metavar="EXPR", help="Instead, to this role expression.")
@click.option("--agent", default="", help="An id, prefix or hostname.  [all]")
@labels_option("Repeatable; only what is reserved under these.")
@click.option("--withdraw", is_flag=True, help="Lend it no longer: offers are rescinded, tasks get a notice.")
@output_option
@master_option
def lend_reservations(role: str, roles: str, agent: str, labels: dict[str, str], withdraw: bool, output: str) -> None:
    """Lend what is idle of reservations to others, as revocable, until whoever it is kept for wants it.

    Only frameworks with the capability REVOCABLE_RESOURCES are offered it. Their tasks get a notice, and are killed after
    --preemption-notice (a flag of the master).
    """
    _check_holder(role, roles)
    response = ask(
        lambda client: client.lend_reservations(role=role, roles=roles, agent=agent, labels=labels, withdraw=withdraw)
    )
    listing = replace(LISTING, columns=LISTING.columns | LISTING.details)
    out.print_list(response.reservations, listing, output)
    if withdraw:
        say(f"{response.rescinded_offers} offer(s) rescinded, {response.preempted_tasks} task(s) given notice")


@reservation.command("rebind")
@click.argument("device")
@click.option("--to", default="", metavar="DEVICE", help="The device to keep instead.  [one that the master picks]")
@click.option("--give-up", is_flag=True, help="Keep one less, instead.")
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@output_option
@master_option
def rebind_reservation(device: str, to: str, give_up: bool, dry_run: bool, output: str) -> None:
    """Have a reservation keep another device instead of DEVICE, which vanished or is ill.

    DEVICE is a uuid or a unique prefix, as `bursar reservation ls` shows it: `(vacant)` is one that its agent has no more. The other one is
    of the same agent, and of what the reservation was taken from: free, or offered (such offers are rescinded). What a task holds is never
    touched. A static reservation is the agent's: at its next start it takes another device by itself.
    """
    if to and give_up:
        raise click.UsageError("either --to or --give-up")
    response = ask(lambda client: client.rebind_reservation(device, to=to, give_up=give_up, dry_run=dry_run))
    _print_one(response.reservation, output)
    would = "would be " if dry_run else "is "
    if response.to:
        say(f"{response.to} {would}kept instead of {response.device_uuid}")
    else:
        say(f"{response.device_uuid} {would}given up")
    if dry_run:
        count = response.rescinded_offers
        say("nothing was changed, this is a dry run" + (f"; {count} offer(s) would be rescinded" if count else ""))
