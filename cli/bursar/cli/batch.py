"""`bursar batch`: many tasks from one command template."""

from __future__ import annotations

import asyncio
import signal
from pathlib import PurePosixPath

import click

from bursar.cli import output as out
from bursar.cli.options import capabilities_for, master_address, master_option, output_option, task_options
from bursar.cli.problems import REFUSED, say
from bursar.core.errors import InvalidText
from bursar.frameworks.batch import Batch, Ended
from bursar.frameworks.run import describe_end
from bursar.sdk import FrameworkSession


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--count", type=click.IntRange(1, 100_000), required=True, help="How many tasks.")
@click.option("--parallel", type=click.IntRange(1), help="At most so many at once.  [as many as the offers allow]")
@click.option(
    "--attempts",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Launches per task that was lost, not failed.",
)
@task_options
@output_option
@master_option
def batch(
    count: int,
    parallel: int | None,
    attempts: int,
    role: str,
    name: str | None,
    cpus: str,
    mem: str,
    gpus: int,
    image: str,
    env: dict[str, str],
    capabilities: tuple[str, ...],
    constraints: tuple[str, ...],
    command: tuple[str, ...],
    output: str,
) -> int:
    """Run a command many times; {index} (from 0) and {count} are replaced in it.

    Says on stderr what failed, and prints a summary at the end. Exit code 0 where all tasks have ended well, else 1. Interrupt ends
    all tasks. Outputs of tasks: bursar task logs.

    Example: bursar batch --count 8 --gpus 1 -- python train.py --fold {index}
    """
    if not command and not image:
        raise click.UsageError("no command was given; write it after --, as in: bursar batch --count 3 -- echo {index}")
    title = name or (PurePosixPath(command[0]).name if command else image)
    try:
        framework = Batch(
            command,
            count,
            name=title,
            role=role,
            capabilities=capabilities_for(capabilities, gpus),
            constraints=constraints,
            env=env,
            image=image,
            cpus=cpus,
            mem=mem,
            gpus=gpus,
            parallel=parallel,
            attempts=attempts,
            on_end=_say_end,
        )
    except InvalidText as error:
        raise click.UsageError(str(error)) from None
    number = asyncio.run(_run(framework, master_address()))
    _print_summary(framework, output)
    if number is not None:
        return 128 + number
    return 0 if framework.succeeded else REFUSED


async def _run(framework: Batch, master: str) -> int | None:
    """Until all have ended; the number of the signal that ended it before."""
    session = FrameworkSession(framework, master, connect_timeout=10)
    received: list[int] = []

    def on_signal(number: int) -> None:
        received.append(number)
        say("bursar: ending all tasks")
        session.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    await session.run()
    return received[0] if received else None


def _say_end(ended: Ended) -> None:
    if not ended.status.ok:
        words = describe_end(ended.status) or f"exited with {ended.status.exit_code}"
        say(f"bursar: task {ended.index} on {ended.hostname}: {words}")


def _print_summary(framework: Batch, output: str) -> None:
    by_index = sorted(framework.ended, key=lambda ended: ended.index)
    if output == "name":
        out.write("".join(f"{ended.index}\n" for ended in by_index))
    elif output == "json":
        tasks = [
            {
                "index": ended.index,
                "state": ended.status.state.name,
                "exit_code": ended.status.exit_code,
                "attempts": ended.attempts,
                "hostname": ended.hostname,
                "device_uuids": list(ended.status.device_uuids),
                "message": ended.status.message,
            }
            for ended in by_index
        ]
        out.write(out.dump_json({"count": framework.count, "succeeded": framework.succeeded, "tasks": tasks}))
    else:
        well = sum(ended.status.ok for ended in by_index)
        failed, open_ = len(by_index) - well, framework.count - len(by_index)
        out.write(
            f"{framework.count} tasks: {well} finished, {failed} failed"
            + (f", {open_} not ended" if open_ else "")
            + "\n"
        )
