"""`bursar watch`: what happens in the cluster, as it happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Any, NoReturn

import click

from bursar.cli import output as out
from bursar.cli.options import lines_option, master_address, master_option, operator_client
from bursar.cli.problems import say
from bursar.core.errors import BursarError, ErrorReason
from bursar.sdk import MasterUnreachable, OperatorClient


@click.command("watch")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="PATTERN",
    help="Only events of such a kind: repaired, device_*; repeatable.",
)
@lines_option("an object per line")
@master_option
def watch(kinds: tuple[str, ...], output: str) -> None:
    """Print what happens in the cluster from now on, a line per event, until interrupted.

    Agents and frameworks that come and go, devices that fail and recover, orders of operators, repairs. Nothing is kept for later: what
    happened before, or while no master was there, is in its log.
    """
    asyncio.run(_watch(master_address(), kinds, output))


async def _watch(address: str, kinds: Collection[str], output: str) -> NoReturn:
    """Watch one master after another. Raises BursarError where none answers at first, or none lets us watch."""
    async with operator_client(address) as client:
        await client.master()
        while True:
            try:
                async for event in client.watch():
                    if not kinds or any(fnmatchcase(event.kind, kind) for kind in kinds):
                        _print(event, output)
                say("bursar: the master ended; waiting for one, what happens meanwhile is in its log")
            except MasterUnreachable as error:
                say(f"bursar: {error.detail.message}; waiting for a master, what happens meanwhile is in its log")
            except BursarError as error:
                if error.detail.reason not in (ErrorReason.TOO_SLOW, ErrorReason.SHUTTING_DOWN):
                    raise
                say(f"bursar: {error.detail.message}; some events are not shown")
            await _until_answered(client)


async def _until_answered(client: OperatorClient) -> None:
    """A master is there. The client has a time-out and pauses of its own."""
    while True:
        try:
            await client.master()
        except MasterUnreachable:
            continue
        return


def _print(event: Any, output: str) -> None:
    if output == "json":
        out.write(json.dumps(out.to_json(event)) + "\n")
        return
    task = f"{event.framework_id}/{event.task_id}" if event.task_id else event.framework_id
    who = " ".join(part for part in (event.agent_id, task) if part)
    out.write(f"{out.moment(event.timestamp_ms)} {event.kind}{f' {who}' if who else ''}: {event.message}\n")
