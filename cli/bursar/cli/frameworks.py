"""`bursar framework`: the clients that own tasks."""

from __future__ import annotations

from typing import Any

import click

from bursar.cli import output as out
from bursar.cli.options import ask, master_option, output_option
from bursar.core.text import format_duration, format_request
from bursar.runtime.codec import decode_request


def _taken(settings: Any) -> str:
    """Which offers a role takes, in a line."""
    words = " or ".join(settings.constraints) or "every offer"
    if settings.HasField("min_allocatable"):
        words += (
            f", at least {settings.min_allocatable.replace('|', ' or ')}"
            if settings.min_allocatable
            else ", however small"
        )
    return f"{words} ({settings.role})"


def _so_far(history: Any) -> str:
    """What became of its offers."""
    words = [f"{history.accepted} used", f"{history.declined} declined", f"{history.unanswered} left unanswered"]
    return f"{', '.join(words)}; unused ones were out for {format_duration(history.unused_ms)} in all"


def _back_off(history: Any) -> str:
    """How long the same is kept from it, and why."""
    if not history.pause_ms:
        return "-"
    if history.unanswered_rounds:
        return f"{format_duration(history.pause_ms)} (unanswered {history.unanswered_rounds}x)"
    return f"{format_duration(history.pause_ms)} (declined {history.declined_rounds}x)"


LISTING = out.Listing(
    columns={
        "FRAMEWORK": lambda framework: framework.info.framework_id,
        "NAME": lambda framework: framework.info.name,
        "STATE": lambda framework: out.state(framework).lower(),
        "ROLES": lambda framework: ",".join(framework.info.roles),
        "CAPABILITIES": lambda framework: ",".join(framework.info.capabilities) or "-",
        "TASKS": lambda framework: str(framework.tasks),
        "ALLOCATED": lambda framework: out.resources(framework.allocated),
        "BACK-OFF": lambda framework: _back_off(framework.history),
    },
    name=lambda framework: framework.info.framework_id,
    details={
        "OFFERED": lambda framework: out.resources(framework.offered),
        "OFFERS": lambda framework: str(framework.offers),
        "OFFERS SO FAR": lambda framework: _so_far(framework.history),
        "WANTS": lambda framework: "\n".join(
            f"{shape.count} x {format_request(decode_request(shape.resources))} ({shape.role})"
            for shape in framework.demand.shapes
        ),
        "TAKES": lambda framework: "\n".join(map(_taken, framework.info.offer_settings)) or "every offer",
        "SUPPRESSED": lambda framework: ",".join(framework.suppressed_roles) or "-",
        "HOSTNAME": lambda framework: framework.info.hostname,
        "PRINCIPAL": lambda framework: framework.info.principal or "-",
        "LABELS": lambda framework: out.labels(framework.info.labels),
        "SUBSCRIBED": lambda framework: out.moment(framework.subscribed_at_ms),
        "ENDS WITHOUT RETURN": lambda framework: out.moment(framework.failover_deadline_ms),
    },
)


@click.group()
def framework() -> None:
    """The clients that accept offers and own tasks."""


@framework.command("ls")
@output_option
@master_option
def list_frameworks(output: str) -> None:
    """List all frameworks."""
    out.print_list(ask(lambda client: client.frameworks()), LISTING, output)


@framework.command("show")
@click.argument("framework")
@output_option
@master_option
def show_framework(framework: str, output: str) -> None:
    """Show one framework, by id or prefix."""
    out.print_one(ask(lambda client: client.framework(framework)), LISTING, output)


@framework.command("teardown")
@click.argument("framework")
@output_option
@master_option
def teardown_framework(framework: str, output: str) -> None:
    """End a framework and all its tasks. Its id can never come back."""
    out.print_one(ask(lambda client: client.teardown_framework(framework)), LISTING, output)
