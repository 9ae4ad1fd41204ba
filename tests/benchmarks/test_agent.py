"""One agent under load: a thousand tasks at once, a hundred that idle, five hundred that a new life adopts, and how soon it hears of an end."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bursar.agent.containers.docker import DockerRuntime
from bursar.agent.containers.names import container_id_for
from bursar.agent.containers.runtime import ContainerExit, ContainerId, ContainerSpec
from bursar.cli.local import LocalAgent, LocalCluster
from bursar.core.ids import AgentId, FrameworkId, TaskId
from bursar.sdk import Framework, FrameworkSession, Offer, OperatorClient, Status, Task, TaskState

pytestmark = pytest.mark.benchmark

MANY = 1_000
IDLE = 100
IDLE_S = 20.0
ADOPTED = 500
ENDS = 60


class Held(Framework):
    """Launches so many tasks that do not end, tells when all run, and ends them when it is told to."""

    def __init__(self, count: int, **fields: Any) -> None:
        self.todo = [Task(["sleep", "100000"], cpus=0.01, mem="1MiB", **fields) for _ in range(count)]
        self.launched: list[Task] = []
        self.count = count
        self.up = 0
        self.down = 0
        self.begun = 0.0
        self.all_run = asyncio.Event()

    def wants(self) -> list[tuple[Task, int]]:
        return [(self.todo[-1], len(self.todo))] if self.todo else []

    def on_offer(self, offer: Offer) -> Iterator[Task]:
        self.begun = self.begun or time.perf_counter()
        while self.todo and offer.fits(self.todo[-1]):
            task = self.todo.pop()
            self.launched.append(task)
            yield task

    def on_status(self, task: Task, status: Status) -> None:
        if status.state is TaskState.RUNNING:
            self.up += 1
            if self.up == self.count:
                self.all_run.set()
        elif status.terminal:
            self.down += 1
            assert self.all_run.is_set(), status
            if self.down == self.count:
                self.stop()

    def end(self) -> None:
        for task in self.launched:
            self.kill(task, 1_000)


async def hold(cluster: LocalCluster, framework: Held, meanwhile: Callable[[], Any]) -> tuple[float, float]:
    """Seconds until all run, and from the first kill until all have ended; `meanwhile` is called in a thread in between."""
    session = asyncio.create_task(FrameworkSession(framework, cluster.address).run())
    waiting = asyncio.create_task(framework.all_run.wait())
    await asyncio.wait([session, waiting], timeout=600, return_when=asyncio.FIRST_COMPLETED)
    if not framework.all_run.is_set():
        # What runs is ended with the framework, or it would be left behind.
        framework.stop()
        await asyncio.wait_for(session, 300)
        pytest.fail(f"{framework.up} of {framework.count} run")
    up = time.perf_counter() - framework.begun
    await asyncio.to_thread(meanwhile)
    begun = time.perf_counter()
    framework.end()
    await asyncio.wait_for(session, 300)
    return up, time.perf_counter() - begun


def agent_of(cluster: LocalCluster) -> psutil.Process:
    """The agent that was started last."""
    return psutil.Process(cluster._processes[-1][1].pid)


def seconds_of(process: psutil.Process) -> float:
    """Processor seconds so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def directly(count: int) -> float:
    """Seconds to start and end as many children of this process."""
    begun = time.perf_counter()
    children = [subprocess.Popen(["sleep", "100000"], start_new_session=True) for _ in range(count)]
    for child in children:
        child.terminate()
    for child in children:
        child.wait()
    return time.perf_counter() - begun


def test_a_thousand_processes(figures: Any, start_cluster: Any) -> None:
    cluster = start_cluster(LocalAgent("a", "process", "none", "", "cpus:16;mem:64GiB"))
    agent = agent_of(cluster)
    before, seconds = agent.memory_full_info().pss, seconds_of(agent)
    memory: list[float] = []

    def look() -> None:
        memory.append(agent.memory_full_info().pss - before)
        shims = [
            child
            for child in psutil.process_iter(["cmdline"])
            if "sleep 100000" in " ".join(child.info["cmdline"] or [])
        ]
        sample = [child.memory_full_info().pss for child in shims[:: max(1, len(shims) // 50)]]
        memory.append(sum(sample) / len(sample))

    up, down = asyncio.run(hold(cluster, Held(MANY), look))
    direct = directly(MANY)
    figures.add(
        "a thousand processes",
        up_s=up,
        down_s=down,
        agent_cpu_s=seconds_of(agent) - seconds,
        directly_s=direct,
        ratio=(up + down) / direct,
        agent_kib_per_task=memory[0] / MANY / 1024,
        kib_per_process_outside=memory[1] / 1024,
    )


def test_idle_tasks(figures: Any, start_cluster: Any) -> None:
    cluster = start_cluster(LocalAgent("a", "process", "none", "", "cpus:16;mem:64GiB"))
    agent = agent_of(cluster)
    spent: list[float] = []

    def idle() -> None:
        time.sleep(3)
        begun = seconds_of(agent)
        time.sleep(IDLE_S)
        spent.append(seconds_of(agent) - begun)

    asyncio.run(hold(cluster, Held(IDLE), idle))
    figures.add("idle with a hundred processes", percent_of_a_core=100 * spent[0] / IDLE_S)


async def until_active(address: str, active: bool) -> None:
    async with OperatorClient(address) as client:
        while (
            [agent for agent in await client.agents() if agent.state == 1] == []
            if active
            else any(agent.state == 1 for agent in await client.agents())
        ):
            await asyncio.sleep(0.01)


def adopt(cluster: LocalCluster, agent: LocalAgent) -> float:
    """Seconds from the start of a new agent until the master has heard of all its tasks."""
    _, process = cluster._processes.pop()
    process.kill()
    process.wait()
    asyncio.run(until_active(cluster.address, False))
    begun = time.perf_counter()
    cluster.start_agent(agent)
    asyncio.run(until_active(cluster.address, True))
    return time.perf_counter() - begun


def test_adopting_processes(figures: Any, start_cluster: Any) -> None:
    agent = LocalAgent("a", "process", "none", "", "cpus:16;mem:64GiB")
    cluster = start_cluster(agent)
    empty = adopt(cluster, agent)
    took: list[float] = []
    asyncio.run(hold(cluster, Held(ADOPTED), lambda: took.append(adopt(cluster, agent))))
    figures.add("adopting", what="processes", tasks=ADOPTED, seconds=took[0], empty_s=empty)


@pytest.mark.docker
def test_adopting_containers(figures: Any, start_cluster: Any, docker_setting: Any) -> None:
    agent = LocalAgent("a", "docker", "none", docker_setting.image, "cpus:16;mem:64GiB")
    cluster = start_cluster(agent)
    empty = adopt(cluster, agent)
    took: list[float] = []
    up, down = asyncio.run(
        hold(cluster, Held(ADOPTED, image=docker_setting.image), lambda: took.append(adopt(cluster, agent)))
    )
    figures.add("adopting", what="containers", tasks=ADOPTED, seconds=took[0], empty_s=empty, up_s=up, down_s=down)


@pytest.mark.docker
def test_an_end_is_heard_of(figures: Any, docker_setting: Any, tmp_path: Path, percentile: Any) -> None:
    """How much later than another listener of the same engine, which does nothing else, the runtime tells of an end."""
    import docker

    heard: dict[str, float] = {}
    told: dict[ContainerId, float] = {}
    client = docker.from_env(timeout=60)
    stream = client.api.events(decode=True, filters={"type": "container", "event": "die"})

    def listen() -> None:
        for event in stream:
            heard[event["Actor"]["Attributes"]["name"]] = time.perf_counter()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()

    async def measure() -> None:
        agent_id = AgentId("bench-ends")
        runtime = DockerRuntime(agent_id, network_mode="none")
        ended = asyncio.Event()

        def on_exit(container_id: ContainerId, end: ContainerExit) -> None:
            told[container_id] = time.perf_counter()
            ended.set()

        await runtime.open(on_exit)
        try:
            for number in range(ENDS):
                ended.clear()
                sandbox = tmp_path / str(number)
                sandbox.mkdir()
                task_id = TaskId(f"end-{number}")
                container_id = container_id_for(agent_id, FrameworkId("bench"), task_id)
                await runtime.start(
                    ContainerSpec(
                        container_id,
                        FrameworkId("bench"),
                        task_id,
                        ("sleep", "0.1"),
                        docker_setting.image,
                        {},
                        sandbox,
                        100,
                        2**26,
                    )
                )
                await asyncio.wait_for(ended.wait(), 30)
                await runtime.remove(container_id)
        finally:
            await runtime.close()

    try:
        asyncio.run(measure())
    finally:
        stream.close()
        thread.join(5)
        client.close()
    later = [told[container_id] - heard[container_id] for container_id in told if container_id in heard]
    assert len(later) > ENDS // 2
    figures.add(
        "an end is heard of, ms after the engine says it",
        ends=len(later),
        p50=percentile(later, 50) * 1000,
        p99=percentile(later, 99) * 1000,
    )
