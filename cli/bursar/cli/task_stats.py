"""`bursar task stats`: what running tasks use."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import click

from bursar.cli import output as out
from bursar.cli.options import lines_option, master_address, master_option, operator_client
from bursar.cli.problems import say
from bursar.core.errors import BursarError
from bursar.sdk import OperatorClient
from bursar.v1.operator_service_pb2 import TaskView
from bursar.v1.sessions_pb2 import SESSION_KIND_STATS
from bursar.v1.tasks_pb2 import TASK_STATE_RUNNING

_PRINT_S = 1.0
_TITLES = ("TASK", "NAME", "CPU", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN")


@dataclass
class _Watched:
    """One task, and what it said last."""

    view: TaskView
    before: dict[str, Any] = field(default_factory=dict)
    now: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    is_over: bool = False

    def take(self, sample: dict[str, Any]) -> None:
        self.before, self.now = self.now, sample

    @property
    def cpu_percent(self) -> float | None:
        """Of one core, between the last two samples."""
        passed = int(self.now.get("time_ns", 0)) - int(self.before.get("time_ns", 0))
        if not self.before or passed <= 0:
            return None
        used = int(self.now["cpu_ns"]) - int(self.before["cpu_ns"])
        return max(0, used) * 100 / int(passed)


@click.command("stats")
@click.argument("tasks", nargs=-1, metavar="[TASK]...")
@click.option("--once", is_flag=True, help="Print once, and leave.")
@lines_option("a line per task")
@master_option
def stats_command(tasks: tuple[str, ...], once: bool, output: str) -> int:
    """Show once per second what running tasks use; all of them where none is named. CPU is in per cent of one core.

    Memory is what counts against the limit: without file cache that the kernel would give back. Of a plain process it is the sum over its
    processes.
    """
    return asyncio.run(_watch(master_address(), tasks, once, output))


async def _watch(address: str, names: tuple[str, ...], once: bool, output: str) -> int:
    async with operator_client(address) as client:
        views = [await client.task(name) for name in names] or [
            view for view in await client.tasks() if view.state == TASK_STATE_RUNNING
        ]
        watched = [_Watched(view) for view in views]
        jobs = [asyncio.create_task(_sample(client, entry)) for entry in watched]
        try:
            while True:
                if jobs:
                    await asyncio.wait(jobs, timeout=_PRINT_S)
                settled = all(entry.is_over or entry.before for entry in watched)
                if not once or settled:
                    _print(watched, output)
                if all(job.done() for job in jobs) or (once and settled):
                    break
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
    for entry in watched:
        if entry.problem:
            say(f"bursar: {entry.problem}")
    return 1 if any(entry.problem for entry in watched) else 0


async def _sample(client: OperatorClient, entry: _Watched) -> None:
    rest = b""
    try:
        name = f"{entry.view.framework_id}/{entry.view.task_id}"
        async with await client.open_session(name, SESSION_KIND_STATS) as session:
            while (piece := await session.read()) is not None:
                *lines, rest = (rest + piece[1]).split(b"\n") if piece[0] == 1 else (rest,)
                for line in lines:
                    entry.take(json.loads(line))
    except BursarError as error:
        # Its end is no problem once it was seen.
        entry.problem = "" if entry.now else str(error)
    finally:
        entry.is_over = True


def _print(watched: list[_Watched], output: str) -> None:
    shown = [entry for entry in watched if entry.now and not entry.is_over]
    if output == "json":
        for entry in shown:
            line = {"task": f"{entry.view.framework_id}/{entry.view.task_id}", "cpu_percent": entry.cpu_percent}
            out.write(json.dumps(line | {"wall_ms": int(time.time() * 1000)} | entry.now) + "\n")
        return
    if sys.stdout.isatty():
        out.write("\033[2J\033[H")
    out.write_table(_TITLES, [_row(entry) for entry in shown])


def _row(entry: _Watched) -> list[str]:
    now, cpu = entry.now, entry.cpu_percent
    return [
        f"{entry.view.framework_id}/{entry.view.task_id}",
        entry.view.name or "-",
        "-" if cpu is None else f"{cpu:.1f}%",
        _size(now.get("mem_bytes", 0)),
        _size(now["mem_limit_bytes"]) if now.get("mem_limit_bytes") else "-",
        str(now.get("pids", "-")),
        _size(now.get("read_bytes", 0)),
        _size(now.get("written_bytes", 0)),
    ]


def _size(count: int) -> str:
    amount, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{amount:.0f}{unit}" if unit == "B" else f"{amount:.1f}{unit}"
