"""`bursar image`: which agents have which images, and having one there before a task needs it."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from bursar.cli import output as out
from bursar.cli.options import ask, master_address, master_option, operator_client, output_option
from bursar.cli.problems import REFUSED, say

#: Between two looks at a pull that is waited for.
LOOK_EVERY_S = 0.5
_OVER = ("PULLED", "FAILED", "CANCELLED")


def _state(member: Any) -> str:
    return out.state(member.pull).lower()


def _words(member: Any) -> str:
    """Where a pull is on an agent, in one line."""
    failure = out.state(member.pull, "failure").lower().replace("_", " ")
    words = [_state(member)]
    if failure not in ("unspecified", "other"):
        words.append(f", {failure}")
    if progress := _progress(member):
        words.append(f" ({progress})")
    if member.pull.message:
        words.append(f": {member.pull.message}")
    return "".join(words)


def _progress(member: Any) -> str:
    progress = member.pull.progress
    if not progress.layers:
        return ""
    text = f"{progress.layers_done}/{progress.layers} layers"
    if progress.size_bytes:
        text += f", {_megabytes(progress.done_bytes)} of {_megabytes(progress.size_bytes)}"
    return text


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def _summary(pull: Any) -> str:
    """How many agents are in which state."""
    counts: dict[str, int] = {}
    for member in pull.members:
        counts[_state(member)] = counts.get(_state(member), 0) + 1
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


PULLS = out.Listing(
    columns={
        "PULL": lambda pull: pull.pull_id,
        "IMAGE": lambda pull: pull.image,
        "AGENTS": _summary,
        "ORDERED": lambda pull: out.moment(pull.ordered_at_ms),
        "BY": lambda pull: pull.principal or "-",
    },
    name=lambda pull: pull.pull_id,
    details={
        "MEMBERS": lambda pull: "\n".join(
            f"{member.hostname or member.agent_id}: {_words(member)}" for member in pull.members
        )
    },
)
IMAGES = out.Listing(
    columns={
        "IMAGE": lambda view: ", ".join(view.image.names) or view.image.image_id[:19],
        "HOSTNAME": lambda view: view.hostname,
        "SIZE": lambda view: _megabytes(view.image.size_bytes),
        "ID": lambda view: view.image.image_id.removeprefix("sha256:")[:12],
    },
    name=lambda view: f"{view.hostname}/{view.image.image_id}",
    details={},
)


@click.group()
def image() -> None:
    """The images of agents: which there are, and pulling one before a task needs it."""


@image.command("ls")
@click.option("--agent", default="", help="Only this agent's: an id, prefix or hostname.")
@output_option
@master_option
def list_images(agent: str, output: str) -> None:
    """List which agents have which images, as they told last: at most half a minute ago."""
    out.print_list(ask(lambda client: client.images(agent)), IMAGES, output)


@image.command("pull")
@click.argument("image")
@click.option("--agents", default="", metavar="AGENT,…", help="Ids, prefixes or hostnames.")
@click.option(
    "--where", default="", help="All active agents of which these predicates are true, such as 'gpus>=1,rack=r1'."
)
@click.option("--all", "everywhere", is_flag=True, help="All active agents.")
@click.option("--wait/--detach", default=True, help="Wait until it is there, and say how far it is.  [--wait]")
@output_option
@master_option
def pull_image(image: str, agents: str, where: str, everywhere: bool, wait: bool, output: str) -> int:
    """Have agents pull an image now, so that tasks need not wait for it. No device is held meanwhile.

    Interrupt (Ctrl-C) leaves it going on; bursar image cancel ends it.

    Exit codes: 0 it is there, or was ordered; 1 it is not there everywhere.

    Example: bursar image pull registry.example.org/train:7 --where 'gpus>=1'
    """
    names = [name for name in (part.strip() for part in agents.split(",")) if name]
    if (bool(names), bool(where), everywhere).count(True) != 1:
        raise click.UsageError("say where: --agents a1,a2, or --where PREDICATES, or --all")
    return asyncio.run(_pull(image, names, where, everywhere, wait, output))


async def _pull(image: str, agents: list[str], where: str, everywhere: bool, wait: bool, output: str) -> int:
    async with operator_client(master_address()) as client:
        pull = await client.pull_image(image, agents=agents, where=where, everywhere=everywhere)
        told: dict[str, str] = {}
        while wait:
            _tell(pull, told)
            if all(out.state(member.pull) in _OVER for member in pull.members):
                break
            await asyncio.sleep(LOOK_EVERY_S)
            pull = await client.image_pull(pull.pull_id)
    out.print_one(pull, PULLS, output)
    return 0 if not wait or all(out.state(member.pull) == "PULLED" for member in pull.members) else REFUSED


def _tell(pull: Any, told: dict[str, str]) -> None:
    """What is different since last said, on stderr."""
    for member in pull.members:
        words = _words(member)
        if told.get(member.agent_id) != words:
            told[member.agent_id] = words
            say(f"bursar: {member.hostname or member.agent_id}: {words}")


@image.command("pulls")
@click.argument("pull", default="")
@output_option
@master_option
def list_pulls(pull: str, output: str) -> None:
    """List pulls that were ordered; with a PULL, show where it is on each agent."""
    if pull:
        out.print_one(ask(lambda client: client.image_pull(pull)), PULLS, output)
    else:
        out.print_list(ask(lambda client: client.image_pulls()), PULLS, output)


@image.command("cancel")
@click.argument("pull")
@output_option
@master_option
def cancel_pull(pull: str, output: str) -> None:
    """End a pull wherever it is not over. A task that waits for the same image goes on waiting for it."""
    out.print_one(ask(lambda client: client.cancel_image_pull(pull)), PULLS, output)
