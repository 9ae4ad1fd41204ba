"""`bursar gpu`: every device and what it is used for."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from bursar.cli import output as out
from bursar.cli.options import ask, master_option, output_option
from bursar.core.errors import BursarError
from bursar.core.text import format_amount
from bursar.sdk import OperatorClient


def _health(device: Any) -> str:
    """Its condition; older agents only tell healthy from unhealthy."""
    return out.state(device, "condition" if device.condition else "health").lower()


LISTING = out.Listing(
    columns={
        "DEVICE": lambda view: view.device.uuid,
        "HOSTNAME": lambda view: view.hostname,
        "INDEX": lambda view: str(view.device.index),
        "MODEL": lambda view: view.device.model or "-",
        "MEMORY": lambda view: format_amount("mem", view.device.mem_bytes),
        "HEALTH": lambda view: _health(view.device),
        "USE": lambda view: view.use if not view.reason else f"{view.use} ({view.reason})",
        "RESERVED TO": lambda view: view.reserved_to or "-",
        "TASK": lambda view: f"{view.framework_id}/{view.task_id}" if view.task_id else "-",
    },
    name=lambda view: view.device.uuid,
    details={},
)


@click.group()
def gpu() -> None:
    """The GPUs and other devices."""


@gpu.command("ls")
@click.option("--agent", default="", help="Only this agent's: an id, prefix or hostname.")
@output_option
@master_option
def list_gpus(agent: str, output: str) -> None:
    """List all devices and what they are used for."""
    out.print_list(ask(lambda client: client.devices(agent)), LISTING, output)


@gpu.command("cordon")
@click.argument("devices", metavar="UUID...", nargs=-1, required=True)
@click.option("--reason", default="", help="Shown wherever the device is, and told to the tasks that hold it.")
@output_option
@master_option
def cordon(devices: tuple[str, ...], reason: str, output: str) -> None:
    """Take devices out of service, all or none, until they are uncordoned. UUID may be a unique prefix.

    Offers with them are rescinded. Tasks that hold them are told, and go on.
    """
    out.print_list(list(ask(lambda client: client.cordon_devices(devices, reason)).devices), LISTING, output)


@gpu.command("uncordon")
@click.argument("devices", metavar="UUID...", nargs=-1, required=True)
@output_option
@master_option
def uncordon(devices: tuple[str, ...], output: str) -> None:
    """Put devices back into service, all or none.

    What they suffered from is forgiven: those that failed, or were retired, are probed at once, and healthy if that goes well.
    """
    out.print_list(list(ask(lambda client: client.uncordon_devices(devices)).devices), LISTING, output)


@gpu.command("partition")
@click.argument("device", metavar="UUID")
@click.argument("layout", metavar="LAYOUT")
@click.option("--no-wait", is_flag=True, help="Return once it is ordered.")
@output_option
@master_option
def partition(device: str, layout: str, no_wait: bool, output: str) -> None:
    """Cut a GPU into instances (MIG), or make it whole again; then show what is there.

    LAYOUT is such as 1g.10gb=3,3g.40gb=1, or `whole`. UUID is the card's or that of an instance of it; a unique prefix will do. Refused while a task
    or a reservation has any part of the card. What fails is undone, with the driver's words.
    """

    async def order(client: OperatorClient) -> tuple[str, str]:
        # Listening first, so that the end is not missed, however fast it comes.
        events = client.watch()
        ready = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        ordered = await client.partition_device(device, layout)
        if no_wait:
            ready.cancel()
            return ordered.agent_id, ""
        while True:
            event = await ready
            if event.kind in ("device_cut", "device_not_cut") and event.message.startswith(f"{ordered.card} "):
                return ordered.agent_id, event.message if event.kind == "device_not_cut" else ""
            ready = asyncio.ensure_future(anext(events))

    agent_id, problem = ask(order)
    if problem:
        raise BursarError(problem, "what it needs stands in NVIDIA's words; `bursar gpu ls` shows what is there")
    out.print_list(ask(lambda client: client.devices(agent_id)), LISTING, output)
