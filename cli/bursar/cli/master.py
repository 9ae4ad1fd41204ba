"""`bursar master`: the first level itself."""

from __future__ import annotations

import click

from bursar.cli import output as out
from bursar.cli.options import ask, master_option, output_option

LISTING = out.Listing(
    columns={
        "CLUSTER": lambda master: master.cluster_id,
        "ADDRESS": lambda master: master.address,
        "VERSION": lambda master: master.version,
        "TERM": lambda master: str(master.term),
        "STARTED": lambda master: out.moment(master.started_at_ms),
        "AGENTS": lambda master: str(master.agents),
        "FRAMEWORKS": lambda master: str(master.frameworks),
        "TASKS": lambda master: str(master.tasks),
        "OFFERS": lambda master: str(master.offers),
    },
    name=lambda master: master.cluster_id,
    details={},
)


@click.group()
def master() -> None:
    """The master."""


@master.command("status")
@output_option
@master_option
def status(output: str) -> None:
    """Show the master and how much there is of everything."""
    out.print_one(ask(lambda client: client.master()), LISTING, output)
