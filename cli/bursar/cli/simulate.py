"""`bursar simulate`: a whole cluster in this process; needs no master.

Either from one seed, under faults and judges, or a scenario: a script of commands with its transcript (docs/scenarios.md).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bursar.cli import output as out
from bursar.cli import problems
from bursar.simulation.world import SimulationFailure, Summary, World

if TYPE_CHECKING:
    from bursar.simulation.scenario import Transcript


@click.command()
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The world's one source of chance."
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=10_000,
    show_default=True,
    help="Steps of all machines under faults; then faults stop, and everything must converge.",
)
@click.option(
    "--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Run so many seeds, counting up."
)
@click.option("--verbose", is_flag=True, help="Show the cluster, its faults and what was judged; look at every step.")
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    metavar="FILE",
    help="Carry out a script instead, and print it with its transcript; repeatable, - is stdin.",
)
@click.option("--check", is_flag=True, help="With --scenario: print only where the transcript in the file is another.")
@click.option("--update", is_flag=True, help="With --scenario: write the transcript into the file.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="With --scenario: the script with its transcript, or the transcript as data.",
)
def simulate(
    seed: int,
    steps: int,
    seeds: int,
    verbose: bool,
    scenarios: tuple[str, ...],
    check: bool,
    update: bool,
    output: str,
) -> int:
    """Run a cluster in one thread, in simulated time: master, agents, frameworks and an operator, under seeded faults.

    The same seed and steps give the same run, to the last message. Exit code 1 where a rule of the cluster was broken; what
    happened last and how to see it again are printed.

    With --scenario, carry out a script against a master of its own: agents and frameworks come and go, operators order, time
    passes, and every offer, rescind and refusal is printed below the command that caused it. Try a policy before you set it.
    Exit code 1 where --check finds another transcript, 2 where the script has a mistake.
    """
    if scenarios:
        return _scenarios(scenarios, check, update, output)
    if check or update or output != "text":
        raise click.UsageError("--check, --update and --output are for --scenario FILE")
    for number in range(seed, seed + seeds):
        world = World(number, thorough=verbose)
        world.populate()
        if verbose:
            click.echo(f"seed {number}: {world.shown()}", err=True)
            click.echo(f"faults: {world.drawn_faults.shown() or 'none'}", err=True)
        began = time.monotonic()
        try:
            summary = world.run(steps)
        except SimulationFailure as failure:
            click.echo(str(failure), err=True)
            return 1
        out.write(_line(summary, time.monotonic() - began))
        if verbose:
            for rule, times in summary.verdicts.items():
                click.echo(f"  {times:8} times judged: {rule}", err=True)
    return 0


def _scenarios(files: tuple[str, ...], check: bool, update: bool, output: str) -> int:
    if check and update:
        raise click.UsageError("--check compares, --update writes: give one of them")
    from bursar.cli.scenarios import CommandLine
    from bursar.simulation.scenario import run_script

    code = 0
    transcripts: list[Transcript] = []
    for file in files:
        source = _read(file)
        transcript = run_script(source, Path(file).name if file != "-" else "stdin", CommandLine())
        transcripts.append(transcript)
        if update and file != "-" and transcript.text() != source:
            _write(Path(file), transcript.text())
            problems.say(f"written: {file}")
        differing = transcript.differing() if check else []
        if differing:
            code = problems.REFUSED
        if output == "text" and check:
            out.write(transcript.difference())
        elif output == "text" and not update:
            out.write(transcript.text())
        if differing:
            first = differing[0]
            problems.say_error(
                f"{transcript.name}: {len(differing)} of {len(transcript.entries)} commands caused something else than"
                f" expected, the first in line {first.line}: {first.command}",
                "where that is right, write it into the file with --update",
            )
    if output == "json":
        data = [transcript.as_data() for transcript in transcripts]
        out.write(out.dump_json(data))
    return code


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise problems.Failure(f"{path}: cannot be written: {error.strerror}", "check its permissions") from None


def _line(summary: Summary, seconds: float) -> str:
    rate = int(summary.steps / max(seconds, 0.001))
    return (
        f"seed {summary.seed}: {summary.steps} steps, {summary.simulated_ms // 1000} s simulated, {summary.tasks} tasks"
        f" started, converged; {rate} steps/s; digest {summary.digest}\n"
    )
