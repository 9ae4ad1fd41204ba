"""`bursar task`: what runs and what has run."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import click

from bursar.cli import output as out
from bursar.cli.options import (
    DURATION_MS,
    TextType,
    ask,
    labels_option,
    master_address,
    master_option,
    operator_client,
    output_option,
)
from bursar.cli.problems import BROKEN_PIPE
from bursar.cli.streams import OutputClosed, StandardStreams
from bursar.cli.task_files import cp_command
from bursar.cli.task_sessions import attach_command, exec_command
from bursar.cli.task_stats import stats_command
from bursar.core.lives import CheckStatus
from bursar.core.role_expressions import parse_role_expression
from bursar.core.roles import DEFAULT_ROLE
from bursar.core.text import format_request
from bursar.runtime.codec import decode, decode_request
from bursar.sdk import LogReader

_ROLES_OR_DEFAULT = TextType(
    "expression", lambda text: text if text.strip() in ("", DEFAULT_ROLE) else str(parse_role_expression(text))
)

LISTING = out.Listing(
    columns={
        "TASK": lambda task: f"{task.framework_id}/{task.task_id}",
        "NAME": lambda task: task.name or "-",
        "STATE": lambda task: out.state(task).lower(),
        "EXIT": lambda task: str(task.exit_code) if task.HasField("exit_code") else "-",
        "ROLE": lambda task: task.role,
        "HOSTNAME": lambda task: task.hostname or task.agent_id,
        "RESOURCES": lambda task: out.reserved(task.resources),
    },
    name=lambda task: f"{task.framework_id}/{task.task_id}",
    details={
        "REASON": lambda task: out.state(task, "reason").lower().replace("unspecified", ""),
        "MESSAGE": lambda task: task.message,
        "HEALTHY": lambda task: ("yes" if task.healthy else "no") if task.HasField("healthy") else "",
        "SERVICES": lambda task: "\n".join(f"{one.name}: {one.reach}" for one in task.services),
        "CHECK": lambda task: str(decode(CheckStatus, task.check)) if task.HasField("check") else "",
        "COMMAND": lambda task: " ".join(task.spec.command),
        "IMAGE": lambda task: task.spec.image,
        "ASKED FOR": lambda task: format_request(decode_request(task.spec.resources)),
        "DEVICES": lambda task: "\n".join(
            sorted(uuid for part in task.resources for uuid in part.resources.device_uuids)
        ),
        "GROUP": lambda task: _group(task),
        "EXECUTOR": lambda task: "itself" if task.spec.executor.serves else task.spec.executor.executor_id,
        "AGENT": lambda task: task.agent_id,
        "LABELS": lambda task: out.labels(task.spec.labels),
        "REVOCABLE": lambda task: "yes" if task.revocable else "",
        "WANTED BACK": lambda task: out.moment(task.preempt_at_ms) if task.preempt_at_ms else "",
        "LAUNCHED": lambda task: out.moment(task.launched_at_ms),
        "ENDED": lambda task: out.moment(task.ended_at_ms),
    },
)


def _group(task: Any) -> str:
    """The name of its task group, and who else is in it."""
    group = task.spec.task_group
    others = [task_id for task_id in group.task_ids if task_id != task.spec.task_id]
    return f"{group.name} (with {', '.join(others)})" if others else group.name


@click.group()
def task() -> None:
    """What runs and what has run."""


@task.command("ls")
@click.option("-a", "--all", "ended", is_flag=True, help="Also those that have ended.")
@click.option("--framework", default="", help="Only this framework's: an id or prefix.")
@click.option("--agent", default="", help="Only those on this agent: an id, prefix or hostname.")
@click.option(
    "--roles",
    type=_ROLES_OR_DEFAULT,
    default="",
    help="Only those of roles that this role expression covers, such as 'ml/**'.",
)
@labels_option("Only those with this label; repeatable, for and.")
@output_option
@master_option
def list_tasks(ended: bool, framework: str, agent: str, roles: str, labels: dict[str, str], output: str) -> None:
    """List tasks."""
    tasks = ask(lambda client: client.tasks(framework, ended=ended, agent=agent, roles=roles, labels=labels))
    grouped = {"GROUP": lambda task: task.spec.task_group.name or "-"}
    columns = LISTING.columns | (grouped if any(task.spec.HasField("task_group") for task in tasks) else {})
    out.print_list(tasks, replace(LISTING, columns=columns), output)


@task.command("show")
@click.argument("task")
@output_option
@master_option
def show_task(task: str, output: str) -> None:
    """Show one task, by FRAMEWORK_ID/TASK_ID, or its own id or prefix."""
    out.print_one(ask(lambda client: client.task(task)), LISTING, output)


@task.command("kill")
@click.argument("task")
@click.option("--grace", "grace_ms", type=DURATION_MS, help="From SIGTERM to SIGKILL, such as 10s.  [the task's own]")
@output_option
@master_option
def kill_task(task: str, grace_ms: int | None, output: str) -> None:
    """End a task: SIGTERM, grace, SIGKILL. Returns at once; `task show` tells when it has ended."""
    out.print_one(ask(lambda client: client.kill_task(task, grace_ms)), LISTING, output)


@task.command("restart")
@click.argument("task")
@click.option("--grace", "grace_ms", type=DURATION_MS, help="From SIGTERM to SIGKILL, such as 10s.  [the task's own]")
@output_option
@master_option
def restart_task(task: str, grace_ms: int | None, output: str) -> None:
    """Start a running task again on its agent, in a new container, with its devices looked up anew. Returns at once."""
    out.print_one(ask(lambda client: client.restart_task(task, grace_ms)), LISTING, output)


@task.command("logs")
@click.argument("task")
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended.")
@click.option("--tail", "tail_bytes", type=click.IntRange(0), metavar="BYTES", help="Only the end of each output.")
@master_option
def task_logs(task: str, follow: bool, tail_bytes: int | None) -> int:
    """Print a task's outputs: its stdout to stdout, its stderr to stderr."""
    return asyncio.run(_copy_logs(master_address(), task, follow, tail_bytes))


async def _copy_logs(address: str, task: str, follow: bool, tail_bytes: int | None) -> int:
    streams = StandardStreams()
    async with operator_client(address) as client:
        view = await client.task(task)
        reader = LogReader(client, f"{view.framework_id}/{view.task_id}", streams.write, streams.say_skipped)
        try:
            if follow:
                await reader.follow(tail_bytes=tail_bytes)
            else:
                await reader.read(tail_bytes=tail_bytes)
        except OutputClosed:
            return BROKEN_PIPE
    return 0


for _command in (exec_command, attach_command, cp_command, stats_command):
    task.add_command(_command)
