"""`bursar agent`: the machines."""

from __future__ import annotations

from typing import Any

import click

from bursar.cli import output as out
from bursar.cli.options import ask, master_option, output_option
from bursar.core.text import format_milli

LISTING = out.Listing(
    columns={
        "AGENT": lambda agent: agent.agent_id,
        "HOSTNAME": lambda agent: agent.hostname,
        "STATE": lambda agent: out.state(agent).lower(),
        "TOTAL": lambda agent: out.main_resources(agent.total),
        "FREE": lambda agent: out.main_resources(agent.free),
        "TASKS": lambda agent: str(agent.tasks),
        "RUNTIME": lambda agent: agent.runtime,
    },
    name=lambda agent: agent.agent_id,
    details={
        "ALL": lambda agent: out.resources(agent.total),
        "OFFERED": lambda agent: out.resources(agent.offered),
        "ALLOCATED": lambda agent: out.resources(agent.allocated),
        "WITHHELD": lambda agent: "\n".join([out.resources(agent.withheld), *agent.withheld_reasons]),
        "ON LOAN": lambda agent: out.loans(agent.loans),
        "EXCESS": lambda agent: out.resources(agent.excess),
        "RESERVATIONS": lambda agent: out.reserved(part for part in agent.buckets if part.stack),
        "ATTRIBUTES": lambda agent: _attributes(agent),
        "DEVICES": lambda agent: "\n".join(_device(device) for device in agent.devices),
        "WITHOUT IMAGE": lambda agent: "tasks need no image" if agent.runs_without_image else "tasks need an image",
        "REGISTERED": lambda agent: out.moment(agent.registered_at_ms),
        "VERSION": lambda agent: agent.version,
        "BOOT": lambda agent: agent.boot_id,
    },
)


def _attributes(agent: Any) -> str:
    values = {}
    for name, value in agent.attributes.items():
        values[name] = format_milli(value.scalar_milli) if value.WhichOneof("value") == "scalar_milli" else value.text
    return ";".join(f"{name}:{values[name]}" for name in sorted(values)) or "-"


def _device(device: Any) -> str:
    text = f"{device.uuid} {device.kind} {device.index} {device.model}"
    return text if not device.health_reason else f"{text} ({device.health_reason})"


@click.group()
def agent() -> None:
    """The machines that run tasks."""


@agent.command("ls")
@output_option
@master_option
def list_agents(output: str) -> None:
    """List all agents."""
    out.print_list(ask(lambda client: client.agents()), LISTING, output)


@agent.command("show")
@click.argument("agent")
@output_option
@master_option
def show_agent(agent: str, output: str) -> None:
    """Show one agent, by id, prefix or hostname."""
    out.print_one(ask(lambda client: client.agent(agent)), LISTING, output)
