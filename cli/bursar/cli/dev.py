"""`bursar dev`: a whole cluster in the foreground."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click

from bursar.cli.local import Interrupted, Interrupts, LocalAgent, LocalCluster, OwnedDirectory, remove_orphans
from bursar.cli.problems import say

_PREFIX = "bursar-dev-"


@click.command(context_settings={"max_content_width": 120})
@click.option("--agents", "count", type=click.IntRange(1, 64), default=2, show_default=True, help="Agents with GPUs.")
@click.option(
    "--gpus", type=click.IntRange(0, 64), default=4, show_default=True, help="Simulated GPUs of each of them."
)
@click.option(
    "--runtime",
    type=click.Choice(["docker", "process"]),
    default="process",
    show_default=True,
    help="What runs tasks; `docker` needs --default-image or tasks with images.",
)
@click.option("--default-image", default="", help="For tasks without an image, with --runtime docker.")
@click.option(
    "--listen", default="127.0.0.1:5050", show_default=True, help="Address of the master.", metavar="HOST:PORT"
)
@click.option(
    "--metrics", default="127.0.0.1:5052", show_default=True, help="Metrics of the master.", metavar="HOST:PORT"
)
@click.option(
    "--work-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep state and logs here; without it they are temporary.",
)
def dev(
    count: int, gpus: int, runtime: str, default_image: str, listen: str, metrics: str, work_dir: Path | None
) -> None:
    """Run a whole cluster on this machine until Ctrl-C: a master, agents with simulated GPUs, and one agent without any.

    Prints one line when it is ready. Everything is a real process and speaks real gRPC.
    """
    interrupts = Interrupts()
    owned: OwnedDirectory | None = None
    if work_dir is None:
        parent = Path(tempfile.gettempdir())
        remove_orphans(parent, _PREFIX)
        owned = OwnedDirectory(parent, _PREFIX)
    directory = owned.path if owned else work_dir.absolute() if work_dir else Path()
    cluster = LocalCluster(directory, listen, metrics, interrupts)
    try:
        cluster.start_master()
        names = [f"gpu-{index + 1}" for index in range(count)]
        agents = [LocalAgent(name, runtime, f"simulated:{gpus}" if gpus else "none", default_image) for name in names]
        agents.append(LocalAgent("cpu-1", runtime, "none", default_image))
        for agent in agents:
            cluster.start_agent(agent)
        interrupts.run(cluster.wait_for_agents(len(agents)))
        wanted = "--gpus 1 " if gpus else ""
        click.echo(
            f"ready: master {cluster.address}, {len(agents)} agents, {count * gpus} GPUs; try: "
            f"bursar --master {cluster.address} run {wanted}-- sh -c 'echo $CUDA_VISIBLE_DEVICES'"
        )
        while True:
            cluster.check()
            time.sleep(0.1)
    except Interrupted:
        pass
    finally:
        cluster.stop()
        if owned is not None:
            owned.remove()
    say("bursar dev: stopped")
