"""`bursar gpu`: every device and what it is used for."""

from __future__ import annotations

from typing import Any

import click

from bursar.cli import output as out
from bursar.cli.options import ask, master_option, output_option
from bursar.core.text import format_amount


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
