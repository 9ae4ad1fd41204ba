"""`bursar offer`: what is promised at the moment."""

from __future__ import annotations

import click

from bursar.cli import output as out
from bursar.cli.options import ask, master_option, output_option

LISTING = out.Listing(
    columns={
        "OFFER": lambda view: view.offer.offer_id,
        "FRAMEWORK": lambda view: view.offer.framework_id,
        "NAME": lambda view: view.framework_name,
        "ROLE": lambda view: view.offer.role,
        "HOSTNAME": lambda view: view.hostname,
        "RESOURCES": lambda view: out.reserved(view.offer.resources),
        "REVOCABLE": lambda view: "yes" if view.offer.revocable else "-",
        "SINCE": lambda view: out.moment(view.created_at_ms),
    },
    name=lambda view: view.offer.offer_id,
    details={},
)


@click.group()
def offer() -> None:
    """Resources that are promised to a framework and not answered yet."""


@offer.command("ls")
@output_option
@master_option
def list_offers(output: str) -> None:
    """List the outstanding offers."""
    out.print_list(ask(lambda client: client.offers()), LISTING, output)
