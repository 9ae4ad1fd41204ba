"""`bursar volume`: persistent volumes, made of disk that is reserved to a role."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click

from bursar.cli import output as out
from bursar.cli.groups import say_rescinded
from bursar.cli.options import DISK_BYTES, RESERVABLE_ROLE, ask, labels_option, master_option, output_option
from bursar.cli.problems import Failure
from bursar.core.resources import DISK
from bursar.core.roles import is_strict_subrole
from bursar.core.text import format_amount
from bursar.core.volumes import volumes_by_id
from bursar.v1.operator_service_pb2 import VOLUME_STATE_FREE, VOLUME_STATE_IN_USE, VOLUME_STATE_OFFERED

_USABLE = (VOLUME_STATE_FREE, VOLUME_STATE_OFFERED, VOLUME_STATE_IN_USE)

LISTING = out.Listing(
    columns={
        "AGENT": lambda view: view.agent_id,
        "HOSTNAME": lambda view: view.hostname,
        "ROLE": lambda view: view.role,
        "VOLUME": lambda view: view.volume_id,
        "SIZE": lambda view: format_amount(DISK, view.size_bytes),
        "STATE": lambda view: out.state(view).lower().replace("_", " "),
        "DETAIL": lambda view: view.detail or "-",
    },
    name=lambda view: f"{view.hostname}/{view.role}/{view.volume_id}",
    details={
        "RESERVED TO": lambda view: out.holders(view.stack) if view.stack else "-",
        "PRINCIPAL": lambda view: view.principal or "-",
        "CREATED": lambda view: out.moment(view.created_at_ms) if view.created_at_ms else "-",
    },
)


def devices_for(volume_ids: Collection[str], role: str) -> tuple[str, ...]:
    """The names of volumes that a task of a role can mount together, so that an offer which holds them is asked for.

    Raises Failure where no agent keeps all of them, or what it keeps is gone.
    """
    if not volume_ids:
        return ()
    by_agent: dict[str, list[Any]] = {}
    for view in ask(lambda client: client.volumes()):
        covered = role == view.role or is_strict_subrole(role, view.role)
        if covered and view.volume_id in volume_ids and view.state in _USABLE:
            by_agent.setdefault(view.agent_id, []).append(view)
    there = [views for views in by_agent.values() if {view.volume_id for view in views} == set(volume_ids)]
    if not there:
        names = ", ".join(sorted(volume_ids))
        raise Failure(
            f"no agent keeps {names} for {role!r}, with the data there",
            "name its role (--role); `bursar volume ls` shows all",
        )
    # Those that wait the least; the same ids on several agents may be of several sizes.
    found = min(there, key=lambda views: [view.state != VOLUME_STATE_FREE for view in views])
    # Roles above may have some of the same ids: the master takes the deepest role's, too.
    return tuple(sorted(volumes_by_id(view.uuid for view in found).values()))


_role = click.option("--role", type=RESERVABLE_ROLE, required=True, help="The role that its disk is reserved to.")
_agent = click.option("--agent", required=True, help="An id, prefix or hostname.")


@click.group()
def volume() -> None:
    """Persistent volumes: data that outlives tasks."""


@volume.command("ls")
@output_option
@master_option
def list_volumes(output: str) -> None:
    """List all persistent volumes, and data on agents of which there is no record (`stray`)."""
    out.print_list(ask(lambda client: client.volumes()), LISTING, output)


@volume.command("create")
@click.argument("volume_id", metavar="ID")
@_role
@_agent
@click.option("--size", type=DISK_BYTES, required=True, help='For example "10GiB"; a bare number is MiB.')
@labels_option("Repeatable; only of what is reserved under these.")
@click.option("--adopt", is_flag=True, help="With data of that role, id and size that is `stray` there.")
@output_option
@master_option
def create_volume(
    volume_id: str, role: str, agent: str, size: int, labels: dict[str, str], adopt: bool, output: str
) -> None:
    """Make volume ID of disk that an agent keeps for a role.

    It is offered to frameworks of the role in place of that disk, and a task that mounts it (`volume/ID:/target:rw`) has it alone
    until it ends. The disk must be free, or offered: such offers are rescinded.
    """
    response = ask(lambda client: client.create_volume(role, volume_id, size, agent, labels=labels, adopt=adopt))
    out.print_one(response.volume, LISTING, output)
    say_rescinded(response.rescinded_offers)


@volume.command("destroy")
@click.argument("volume_id", metavar="ID")
@_role
@_agent
@click.option("--stray", is_flag=True, help="Data of which there is no record, and never a volume.")
@click.option("--size", type=DISK_BYTES, default=0, help="Only of this size: where there is `stray` data of several.")
@output_option
@master_option
def destroy_volume(volume_id: str, role: str, agent: str, stray: bool, size: int, output: str) -> None:
    """Remove volume ID with its data, for good; its disk is reserved disk again. Refused while a task has it.

    Data of which there is no record (`stray` in `bursar volume ls`) is removed with --stray only.
    """
    response = ask(lambda client: client.destroy_volume(role, volume_id, agent, stray=stray, size_bytes=size))
    out.print_one(response.volume, LISTING, output)
    say_rescinded(response.rescinded_offers)
