"""`bursar version`: of this program; `bursar master status` shows the master's."""

from __future__ import annotations

import platform
from importlib import metadata

import click

from bursar.cli import output as out
from bursar.cli.options import output_option


@click.command()
@output_option
def version(output: str) -> None:
    """Show the version of this program."""
    number = metadata.version("bursar")
    if output == "json":
        out.write(
            out.dump_json({"version": number, "python": platform.python_version(), "grpc": metadata.version("grpcio")})
        )
    elif output == "name":
        out.write(f"{number}\n")
    else:
        out.write(f"bursar {number}\n")
