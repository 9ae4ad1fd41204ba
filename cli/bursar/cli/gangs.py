"""`bursar gang`: tasks that start together or not at all, while they wait for room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from bursar.cli import output as out
from bursar.cli.options import ask, master_option, output_option
from bursar.core.errors import BursarError, ErrorDetail, ErrorReason
from bursar.core.text import format_request
from bursar.runtime.codec import decode_request

_PHASES = {
    "IN_LINE": "in line",
    "FILLING": "filling",
    "CALLING_BACK": "calling back",
    "ON_OFFER": "on offer",
}


def _phase(gang: Any) -> str:
    name = out.state(gang, "phase")
    place = f" ({gang.standing.place} of {gang.standing.places})" if gang.standing.place else ""
    return f"{_PHASES.get(name, name.lower())}{place}"


def _wants(gang: Any) -> str:
    wants = ", ".join(f"{group.count}x {format_request(decode_request(group.resources))}" for group in gang.groups)
    same = f", same {gang.topology.same_attribute}" if gang.topology.same_attribute else ""
    return wants + same + (", NVLink" if gang.topology.nvlink_clique else "")


def _held(gang: Any) -> str:
    agents = f" on {gang.held_agents} agent{'s' if gang.held_agents != 1 else ''}" if gang.held_agents else ""
    return out.amounts(gang.held) + agents


LISTING = out.Listing(
    columns={
        "GANG": lambda gang: gang.standing.gang_id,
        "FRAMEWORK": lambda gang: gang.standing.framework_name or gang.standing.framework_id,
        "ROLE": lambda gang: gang.standing.role,
        "STATE": _phase,
        "WANTS": _wants,
        "ROOM": lambda gang: f"{gang.standing.with_room} of {gang.standing.tasks}",
        "HELD": _held,
        "ON LOAN": lambda gang: out.amounts(gang.on_loan),
        "MISSING": lambda gang: out.amounts(gang.missing),
        "SINCE": lambda gang: out.moment(gang.requested_at_ms),
        "UNTIL": lambda gang: out.moment(gang.standing.until_ms),
    },
    name=lambda gang: f"{gang.standing.framework_id}/{gang.standing.gang_id}",
    details={
        "FRAMEWORK ID": lambda gang: gang.standing.framework_id,
        "HOLDS SINCE": lambda gang: out.moment(gang.holds_since_ms),
        "HOLDS UNTIL": lambda gang: out.moment(gang.holds_until_ms),
        "WHY NOT": lambda gang: "\n".join(
            [gang.standing.message, *(f"- {obstacle.message}" for obstacle in gang.standing.obstacles)]
        ),
        "TRY": lambda gang: gang.standing.hint or "-",
    },
)


@click.group()
def gang() -> None:
    """Tasks that start together or not at all, while they wait for room."""


@gang.command("ls")
@output_option
@master_option
def list_gangs(output: str) -> None:
    """List the gangs that wait, or whose bundle is on offer; the oldest first.

    STATE is `filling` for the one whose turn it is: what becomes free is withheld for it (HELD), and lent meanwhile (ON LOAN). ROOM is
    how many of its tasks have room now. MISSING is what they want beyond what is free or held for them; nothing, although there is no
    room for all: it is there, but not in the right places.
    """
    out.print_list(ask(lambda client: client.gangs()), LISTING, output)


@gang.command("show")
@click.argument("gang")
@output_option
@master_option
def show_gang(gang: str, output: str) -> None:
    """Show one gang, by its id or as FRAMEWORK/GANG: what it asked for, holds and lacks, and what stands in its way."""
    out.print_one(_find(ask(lambda client: client.gangs()), gang), LISTING, output)


def _find(gangs: Sequence[Any], name: str) -> Any:
    """The one of this name. Raises BursarError."""
    framework_id, slash, gang_id = name.rpartition("/")
    found = [
        gang
        for gang in gangs
        if gang.standing.gang_id == gang_id and (not slash or gang.standing.framework_id.startswith(framework_id))
    ]
    if not found:
        raise BursarError(ErrorDetail(ErrorReason.NOT_FOUND, f"no gang {name!r} waits", "see `bursar gang ls`"))
    if len(found) > 1:
        names = ", ".join(LISTING.name(gang) for gang in found[:3])
        what = f"{len(found)} gangs are called {name!r}: {names}{', …' if len(found) > 3 else ''}"
        raise BursarError(ErrorDetail(ErrorReason.AMBIGUOUS, what, "say which, as FRAMEWORK/GANG"))
    return found[0]
