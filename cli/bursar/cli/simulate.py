"""`bursar simulate`: a whole cluster in this process, from one seed, under faults and judges; needs no master."""

from __future__ import annotations

import time

import click

from bursar.cli import output as out
from bursar.simulation.world import SimulationFailure, Summary, World


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
def simulate(seed: int, steps: int, seeds: int, verbose: bool) -> int:
    """Run a cluster in one thread, in simulated time: master, agents, frameworks and an operator, under seeded faults.

    The same seed and steps give the same run, to the last message. Exit code 1 where a rule of the cluster was broken; what
    happened last and how to see it again are printed.
    """
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


def _line(summary: Summary, seconds: float) -> str:
    rate = int(summary.steps / max(seconds, 0.001))
    return (
        f"seed {summary.seed}: {summary.steps} steps, {summary.simulated_ms // 1000} s simulated, {summary.tasks} tasks"
        f" started, converged; {rate} steps/s; digest {summary.digest}\n"
    )
