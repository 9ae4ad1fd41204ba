"""Figures: printed as a table, and written as JSON where BURSAR_BENCH_OUT names a file.

Nothing here asserts a time: machines differ and are shared. What is kept is ratios of two things done side by side.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bursar.cli.demo.setting import Setting, choose
from bursar.cli.local import Interrupts, LocalAgent, LocalCluster


class Figures:
    """Collects what one run measured."""

    def __init__(self) -> None:
        self.tables: dict[str, list[dict[str, Any]]] = {}

    def add(self, table: str, **row: Any) -> None:
        """One row; print it at once, a benchmark may be interrupted."""
        self.tables.setdefault(table, []).append(row)
        print(f"\n{table}: " + ", ".join(f"{name} {_short(value)}" for name, value in row.items()), flush=True)

    def text(self) -> str:
        """All rows as tables for people."""
        lines = []
        for name, rows in self.tables.items():
            columns = list(dict.fromkeys(column for row in rows for column in row))
            cells = [columns, *([_short(row.get(column, "")) for column in columns] for row in rows)]
            widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
            lines += ["", name]
            lines += ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
        return "\n".join(lines)

    def as_json(self) -> str:
        """All rows, and what they were taken on."""
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]}
        return json.dumps({"machine": machine, "figures": self.tables}, indent=2) + "\n"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if value < 100 else f"{value:.0f}"
    return str(value)


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    """Where benchmarks put what they measured."""
    collected = Figures()
    yield collected
    if collected.tables:
        print(collected.text(), flush=True)
        if path := os.environ.get("BURSAR_BENCH_OUT"):
            Path(path).write_text(collected.as_json(), "utf-8")


@pytest.fixture(scope="session")
def percentile() -> Callable[[Sequence[float], int], float]:
    """`percentile(values, 99)`."""

    def pick(values: Sequence[float], percent: int) -> float:
        return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]

    return pick


class Uninterrupted(Interrupts):
    """Leaves signals to pytest."""

    def __init__(self) -> None:
        self.number, self._task = 0, None


@pytest.fixture
def start_cluster(tmp_path: Path) -> Iterator[Callable[..., LocalCluster]]:
    """`start_cluster(agent)`: a master and one agent, or none, ended with the test."""
    started: list[LocalCluster] = []

    def start(agent: LocalAgent | None) -> LocalCluster:
        cluster = LocalCluster(tmp_path / f"cluster-{len(started)}", interrupts=Uninterrupted())
        started.append(cluster)
        cluster.start_master()
        if agent is not None:
            cluster.start_agent(agent)
            asyncio.run(cluster.wait_for_agents(1))
        return cluster

    yield start
    for cluster in started:
        cluster.stop()


@pytest.fixture
def docker_setting(require: Callable[[bool, str], None]) -> Iterator[Setting]:
    """An engine and a tiny image."""
    setting = choose("bursar-bench")
    require(setting.runtime == "docker", setting.why_runtime)
    yield setting
    setting.undo()
