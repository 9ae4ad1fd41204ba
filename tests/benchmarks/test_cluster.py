"""Whole clusters of real processes: how many tasks they get through, how soon one runs, what an idle one takes.

Each rate stands beside the same work done directly, at the same concurrency, in turns with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from bursar.cli.demo.setting import Setting
from bursar.cli.local import LocalAgent, LocalCluster
from bursar.sdk import Framework, FrameworkSession, Offer, Status, Task, TaskState

pytestmark = pytest.mark.benchmark

ROUNDS = 3
PROCESS_TASKS = 500
CONTAINERS = 40
LATENCY_TASKS = 100


class Rush(Framework):
    """Launches so many short tasks, as many at once as the agent holds, and stops."""

    def __init__(self, count: int, **fields: Any) -> None:
        self.todo = [Task(["true"], cpus=1, mem="16MiB", **fields) for _ in range(count)]
        self.left = count
        self.begun = self.ended = 0.0
        self.bad: list[str] = []

    def wants(self) -> list[tuple[Task, int]]:
        return [(self.todo[-1], len(self.todo))] if self.todo else []

    def on_offer(self, offer: Offer) -> Iterator[Task]:
        self.begun = self.begun or time.perf_counter()
        while self.todo and offer.fits(self.todo[-1]):
            yield self.todo.pop()

    def on_status(self, task: Task, status: Status) -> None:
        if status.terminal:
            self.left -= 1
            if not status.ok:
                self.bad.append(status.message)
            if self.left == 0:
                self.ended = time.perf_counter()
                self.stop()


class OneByOne(Framework):
    """Submits a task, waits until it runs and has ended, and then submits the next."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.todo: list[Task] = []
        self.submitted = self.accepted = 0.0
        self.submit_to_running: list[float] = []
        self.accept_to_running: list[float] = []
        self.offered: list[float] = []

    def on_subscribed(self, again: bool) -> None:
        self.next()

    def next(self) -> None:
        if len(self.submit_to_running) == self.count:
            self.stop()
            return
        self.todo.append(Task(["sleep", "0.02"], cpus=1, mem="16MiB"))
        self.submitted = time.perf_counter()
        self.update()

    def wants(self) -> list[tuple[Task, int]]:
        return [(task, 1) for task in self.todo]

    def on_offer(self, offer: Offer) -> Iterator[Task]:
        if self.todo and offer.fits(self.todo[-1]):
            self.accepted = time.perf_counter()
            self.offered.append(self.accepted - self.submitted)
            yield self.todo.pop()

    def on_status(self, task: Task, status: Status) -> None:
        if status.state is TaskState.RUNNING:
            now = time.perf_counter()
            self.submit_to_running.append(now - self.submitted)
            self.accept_to_running.append(now - self.accepted)
        elif status.terminal:
            assert status.ok, status
            assert self._session is not None
            # From an event of its own, so that this status was acknowledged before.
            asyncio.get_running_loop().call_later(0.02, self.next)


def rush(cluster: LocalCluster, count: int, **fields: Any) -> float:
    """Tasks per second, from the first offer to the last end."""
    framework = Rush(count, **fields)
    asyncio.run(asyncio.wait_for(FrameworkSession(framework, cluster.address).run(), 600))
    assert not framework.bad, framework.bad[:3]
    return count / (framework.ended - framework.begun)


def direct_processes(count: int, concurrency: int) -> float:
    """The same commands as children of this process."""
    running: deque[subprocess.Popen[bytes]] = deque()
    begun = time.perf_counter()
    for _ in range(count):
        if len(running) == concurrency:
            running.popleft().wait()
        running.append(subprocess.Popen(["true"], start_new_session=True))
    while running:
        running.popleft().wait()
    return count / (time.perf_counter() - begun)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


@pytest.mark.parametrize("concurrency", [1, 4, 16])
def test_process_tasks(figures: Any, start_cluster: Any, concurrency: int) -> None:
    cluster = start_cluster(LocalAgent("a", "process", "none", "", f"cpus:{concurrency};mem:64GiB"))
    count = PROCESS_TASKS if concurrency > 1 else PROCESS_TASKS // 5
    rush(cluster, 20)
    bursar, direct = [], []
    for _ in range(ROUNDS):
        bursar.append(rush(cluster, count))
        direct.append(direct_processes(count, concurrency))
    figures.add(
        "process tasks",
        concurrency=concurrency,
        tasks=count,
        bursar_per_s=median(bursar),
        direct_per_s=median(direct),
        ratio=median(bursar) / median(direct),
    )


def test_latency(figures: Any, start_cluster: Any, percentile: Callable[[list[float], int], float]) -> None:
    cluster = start_cluster(LocalAgent("a", "process", "none", "", "cpus:4;mem:4GiB"))
    framework = OneByOne(LATENCY_TASKS)
    asyncio.run(asyncio.wait_for(FrameworkSession(framework, cluster.address).run(), 300))
    for name, values in (
        ("submit to offer", framework.offered),
        ("accept to running", framework.accept_to_running),
        ("submit to running", framework.submit_to_running),
    ):
        figures.add("latency, ms", what=name, p50=percentile(values, 50) * 1000, p99=percentile(values, 99) * 1000)


def test_idle_memory(figures: Any, start_cluster: Any) -> None:
    cluster = start_cluster(LocalAgent("a", "process", "simulated:8", "", "cpus:4;mem:4GiB"))
    time.sleep(3)
    for name, process in cluster._processes:
        memory = psutil.Process(process.pid).memory_full_info()
        cpu = psutil.Process(process.pid).cpu_percent(2.0)
        figures.add(
            "idle",
            program=name if name == "master" else "agent",
            rss_mib=memory.rss / 2**20,
            pss_mib=memory.pss / 2**20,
            cpu_percent=cpu,
        )


@pytest.mark.docker
def test_docker_containers(figures: Any, start_cluster: Any, docker_setting: Setting, tmp_path: Path) -> None:
    import docker

    client = docker.from_env(timeout=60)

    def bare(_: int) -> None:
        container = client.containers.create(
            docker_setting.image, ["true"], network_mode="host", labels={"bursar.bench": "1"}
        )
        container.start()
        container.wait()
        container.remove()

    def alike(number: int) -> None:
        """With what the agent gives every container: a network of its own, an init process, limits, a sandbox."""
        sandbox = tmp_path / f"sandbox-{number}"
        sandbox.mkdir(exist_ok=True)
        container = client.containers.create(
            docker_setting.image,
            ["true"],
            init=True,
            cpu_period=100_000,
            cpu_quota=100_000,
            mem_limit="16m",
            memswap_limit="16m",
            pids_limit=4096,
            security_opt=["no-new-privileges"],
            mounts=[docker.types.Mount("/sandbox", str(sandbox), type="bind")],
            working_dir="/sandbox",
            labels={"bursar.bench": "1"},
        )
        container.start()
        container.wait()
        for stream in ("stdout", "stderr"):
            (sandbox / stream).write_bytes(container.logs(stdout=stream == "stdout", stderr=stream == "stderr"))
        container.remove()

    def direct(one: Callable[[int], None], count: int, concurrency: int) -> float:
        begun = time.perf_counter()
        with ThreadPoolExecutor(concurrency) as pool:
            list(pool.map(one, range(count)))
        return count / (time.perf_counter() - begun)

    with contextlib.closing(client):
        for concurrency in (1, 4):
            cluster = start_cluster(
                LocalAgent("a", "docker", "none", docker_setting.image, f"cpus:{concurrency};mem:8GiB")
            )
            rush(cluster, 2, image=docker_setting.image)
            count = CONTAINERS // 2 if concurrency == 1 else CONTAINERS
            bursar_rates, alike_rates, bare_rates = [], [], []
            for _ in range(ROUNDS):
                bursar_rates.append(rush(cluster, count, image=docker_setting.image))
                alike_rates.append(direct(alike, count, concurrency))
                bare_rates.append(direct(bare, count, concurrency))
            figures.add(
                "docker containers",
                concurrency=concurrency,
                bursar_per_s=median(bursar_rates),
                alike_per_s=median(alike_rates),
                bare_per_s=median(bare_rates),
                ratio=median(bursar_rates) / median(alike_rates),
                ratio_to_bare=median(bursar_rates) / median(bare_rates),
            )
            cluster.stop()
