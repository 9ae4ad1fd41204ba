"""The scenes of the demo, and what is checked in each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from bursar.cli.demo.failing import fail_a_gpu
from bursar.cli.demo.observer import Observer
from bursar.cli.demo.report import Report
from bursar.cli.demo.setting import Setting, choose
from bursar.cli.local import Interrupted, Interrupts, LocalAgent, LocalCluster, OwnedDirectory, remove_orphans
from bursar.cli.output import write_table
from bursar.cli.problems import REFUSED, TERMINATED, Failure, quiet_loggers, say, say_bug, say_error
from bursar.core.errors import BursarError
from bursar.core.text import parse_request
from bursar.frameworks.batch import Batch, from_template
from bursar.runtime.credentials import NOBODY
from bursar.runtime.program import INTERRUPTED
from bursar.sdk import GPU_RESOURCES, FrameworkSession, OperatorClient

PREFIX = "bursar-demo-"
TASKS = 16
#: How long something must not happen for us to believe that it does not.
QUIET_S = 1.5
_TASK_SCRIPT = 'echo "begin $(date +%s) $CUDA_VISIBLE_DEVICES"; sleep 1; echo "end $(date +%s)"'


def main() -> int:
    """Tell the story; 0 only if all that was checked held."""
    quiet_loggers()
    console = Console(soft_wrap=not sys.stdout.isatty())
    interrupts = Interrupts()
    begin = time.monotonic()
    report = Report(console)
    try:
        with _stage(console, interrupts) as (cluster, setting):
            interrupts.run(_play(report, cluster, setting))
        console.print()
        report.write_summary()
        console.print(f"{'All held' if report.all_held else 'Not all held'}, in {time.monotonic() - begin:.0f} s.")
        return 0 if report.all_held else REFUSED
    except Interrupted as stop:
        say("demo: interrupted; everything was removed")
        return INTERRUPTED if stop.number == signal.SIGINT else TERMINATED
    except BursarError as error:
        say_error(error.detail.message, error.detail.hint)
        return REFUSED
    except Exception as error:  # noqa: BLE001 - no traceback ever reaches a user
        if isinstance(error, Failure):
            error.show()
        else:
            say_bug(error)
        return REFUSED


@contextlib.contextmanager
def _stage(console: Console, interrupts: Interrupts) -> Iterator[tuple[LocalCluster, Setting]]:
    """A cluster that is gone afterwards, with everything that belongs to it."""
    parent = Path(tempfile.gettempdir())
    if orphans := remove_orphans(parent, PREFIX):
        console.print(f"Removed what {orphans} interrupted demo{'s' if orphans > 1 else ''} had left behind.")
    directory = OwnedDirectory(parent, PREFIX)
    cluster = LocalCluster(directory.path, interrupts=interrupts)
    setting: Setting | None = None
    try:
        interrupts.check()
        setting = choose(directory.path.name.lower(), os.environ.get("BURSAR_DEMO_RUNTIME"), interrupts.check)
        interrupts.check()
        console.print(f"Tasks run as: [bold]{setting.runtime}[/bold], because {setting.why_runtime}.", highlight=False)
        console.print(f"GPUs of gpu-1: [bold]{setting.devices}[/bold], because {setting.why_devices}.", highlight=False)
        yield cluster, setting
    finally:
        cluster.stop()
        directory.remove()
        if setting is not None:
            with contextlib.suppress(Exception):
                setting.undo()


async def _play(report: Report, cluster: LocalCluster, setting: Setting) -> None:
    await _start(report, cluster, setting)
    async with OperatorClient(cluster.address, credentials=NOBODY) as client:
        agents = {agent.agent_id: agent for agent in await client.agents()}
        with_gpus = {agent_id for agent_id, agent in agents.items() if agent.devices}
        await _filter(report, cluster, client, with_gpus, set(agents))
        await _reserve(report, cluster, client)
        await _tasks(report, cluster, client, setting)
        await fail_a_gpu(report, cluster, client)


async def _start(report: Report, cluster: LocalCluster, setting: Setting) -> None:
    report.scene("A master and three agents")
    cluster.start_master()
    image = setting.image if setting.runtime == "docker" else ""
    agents = [
        LocalAgent("gpu-1", setting.runtime, setting.devices, image, resources="cpus:8"),
        LocalAgent(
            "gpu-2", setting.runtime, "simulated:4", image, resources="cpus:8", flags=("--device-cool-down", "500ms")
        ),
        LocalAgent("cpu-1", setting.runtime, "none", image, resources="cpus:8"),
    ]
    for local in agents:
        cluster.start_agent(local)
    await cluster.wait_for_agents(len(agents))
    report.note(f"master at {cluster.address}")
    async with OperatorClient(cluster.address, credentials=NOBODY) as client:
        devices = await client.devices()
        for agent in await client.agents():
            mine = [view.device.uuid for view in devices if view.agent_id == agent.agent_id]
            report.note(f"{agent.hostname}: {len(mine)} GPUs, {agent.runtime}")
        uuids = [view.device.uuid for view in devices]
        report.check("every GPU has an identity of its own and one agent", len(set(uuids)) == len(uuids) >= 2)


async def _filter(
    report: Report, cluster: LocalCluster, client: OperatorClient, with_gpus: set[str], everywhere: set[str]
) -> None:
    report.scene("The GPU filter: who sees the agents with GPUs")
    async with Observer(cluster.address, "legacy", ["legacy"]) as legacy:
        got = await legacy.until(lambda: bool(legacy.offers))
        await asyncio.sleep(QUIET_S)
        report.note(f"legacy (without {GPU_RESOURCES}) holds {len(legacy.offers)} offer(s)")
        report.check(
            f"without {GPU_RESOURCES}: offers, but none of an agent with GPUs", got and not legacy.agents() & with_gpus
        )
        report.note("$ bursar flag set filter-gpu-resources false")
        await client.set_flag("filter-gpu-resources", "false")
        came = await legacy.until(lambda: legacy.agents() == everywhere)
        report.check("filter off: it is offered all agents", came)
        held = {offer_id for offer_id, offer in legacy.offers.items() if str(offer.agent_id) in with_gpus}
        report.note("$ bursar flag set filter-gpu-resources true")
        answer = await client.set_flag("filter-gpu-resources", "true")
        gone = await legacy.until(lambda: {offer_id for offer_id, _ in legacy.rescinded} >= held)
        report.check(
            "filter on again: exactly its offers of agents with GPUs are rescinded",
            gone and answer.rescinded_offers == len(held) and not legacy.agents() & with_gpus and bool(legacy.offers),
        )
        async with Observer(cluster.address, "trainer", ["trainer"], [GPU_RESOURCES]) as trainer:
            seen = await trainer.until(lambda: trainer.agents() >= with_gpus)
            report.check(f"with {GPU_RESOURCES}: it is offered the agents with GPUs", seen)


async def _reserve(report: Report, cluster: LocalCluster, client: OperatorClient) -> None:
    report.scene("A reservation: two GPUs for research")
    devices = await client.devices()
    count = min(2, sum(view.hostname == "gpu-1" for view in devices))
    resources = f"gpus:{count};cpus:1;mem:256MiB"
    report.note(f"$ bursar reserve --role research --agent gpu-1 --resources '{resources}'")
    view = await client.reserve("gpu-1", "research", parse_request(resources))
    kept = set(view.resources.device_uuids)
    for uuid in sorted(kept):
        report.note(f"kept: {uuid}")
    report.check(f"{count} particular GPUs are kept", len(kept) == count)
    async with contextlib.AsyncExitStack() as stack:
        others = await stack.enter_async_context(Observer(cluster.address, "trainer", ["trainer"], [GPU_RESOURCES]))
        await others.until(lambda: bool(others.devices()))
        child = await stack.enter_async_context(
            Observer(cluster.address, "vision", ["research/vision"], [GPU_RESOURCES])
        )
        child_got = await child.until(lambda: kept <= child.devices())
        child.let_go(60_000)
        parent = await stack.enter_async_context(Observer(cluster.address, "research", ["research"], [GPU_RESOURCES]))
        parent_got = await parent.until(lambda: kept <= parent.devices())
        parent.let_go(60_000)
        others.let_go()
        others.revive()
        await asyncio.sleep(QUIET_S)
        offered = {str(u) for offer in others.seen for part in offer.resources for u in part.resources.devices}
        report.check("research is offered them", parent_got)
        report.check("research/vision, below it, is offered them", child_got)
        report.check("another role is offered other GPUs, never these", not offered & kept)


async def _tasks(report: Report, cluster: LocalCluster, client: OperatorClient, setting: Setting) -> None:
    how = "in containers pinned to exactly their GPU" if setting.runtime == "docker" else "each told exactly its GPU"
    report.scene(f"{TASKS} GPU tasks, {how}")
    batch = Batch(
        from_template(["sh", "-c", _TASK_SCRIPT], TASKS),
        name="demo",
        role="research",
        capabilities={GPU_RESOURCES},
        cpus="0.1",
        mem="32MiB",
        gpus=1,
        on_end=lambda ended: report.console.print(
            f"   task {ended.index:2} {ended.status.state.name.lower()} on {ended.hostname}", highlight=False
        ),
    )
    batch.failover_timeout = 60
    session = FrameworkSession(batch, cluster.address, connect_timeout=10, credentials=NOBODY)
    await session.run()
    report.check(f"all {TASKS} tasks finished", batch.succeeded)
    await _check_outputs(report, client, session.framework_id)


async def _check_outputs(report: Report, client: OperatorClient, framework_id: str) -> None:
    rows: list[tuple[str, ...]] = []
    seen_right, spans = True, []
    tasks = [task for task in await client.tasks(ended=True) if task.framework_id == framework_id]
    for task in sorted(tasks, key=lambda task: (task.launched_at_ms, task.task_id)):
        printed, _ = await client.task_output(f"{task.framework_id}/{task.task_id}")
        words = printed.decode("utf-8", "replace").split()
        granted = [uuid for part in task.resources for uuid in part.resources.device_uuids]
        seen = words[2] if len(words) > 2 else "?"
        seen_right = seen_right and seen == ",".join(granted)
        spans += [(uuid, task.launched_at_ms, task.ended_at_ms) for uuid in granted]
        rows.append((task.name, task.hostname, seen, f"{task.ended_at_ms - task.launched_at_ms} ms"))
    write_table(("TASK", "AGENT", "GPU SEEN", "TIME"), rows)
    report.check("every task saw exactly the GPU that it was granted", seen_right and len(tasks) == TASKS)
    overlaps = [
        (left, right)
        for index, left in enumerate(spans)
        for right in spans[index + 1 :]
        if left[0] == right[0] and left[1] < right[2] and right[1] < left[2]
    ]
    report.check("no GPU ever had two tasks", not overlaps and len(spans) == TASKS)
