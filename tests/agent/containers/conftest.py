"""One way to drive every container runtime: the contract is tested on each of them by the same lines."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import subprocess
import tarfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bursar.agent.containers.names import container_id_for
from bursar.agent.containers.process import ProcessRuntime
from bursar.agent.containers.runtime import ContainerExit, ContainerId, ContainerRuntime, ContainerSpec
from bursar.agent.containers.simulated import SimulatedEngine, SimulatedProgram, SimulatedRuntime
from bursar.core.ids import AgentId, FrameworkId, TaskId

PATIENCE_S = 30.0


@dataclass(frozen=True)
class Program:
    """What a test wants a task to do: as a command for real runtimes, and for the one in memory."""

    command: tuple[str, ...]
    simulated: Callable[[ContainerSpec], SimulatedProgram]


@dataclass
class Bench:
    """A runtime under test, what it reported, and how to make tasks for it."""

    kind: str
    tmp_path: Path
    agent_id: AgentId
    make: Callable[[], ContainerRuntime]
    image: str = ""
    #: Of the simulated runtime.
    engine: SimulatedEngine | None = None
    programs: dict[ContainerId, Program] = field(default_factory=dict)
    exits: dict[ContainerId, list[ContainerExit]] = field(default_factory=dict)
    runtimes: list[ContainerRuntime] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def on_exit(self, container_id: ContainerId, end: ContainerExit) -> None:
        self.exits.setdefault(container_id, []).append(end)
        self.changed.set()

    def command(
        self, words: tuple[str, ...], simulated: SimulatedProgram | Callable[[ContainerSpec], SimulatedProgram]
    ) -> Program:
        """A command, and what it amounts to."""
        return Program(words, simulated if callable(simulated) else lambda _: simulated)

    def script(self, text: str, simulated: SimulatedProgram | Callable[[ContainerSpec], SimulatedProgram]) -> Program:
        """A shell script, and what it amounts to."""
        return self.command(("sh", "-c", text), simulated)

    def output(self, spec: ContainerSpec, stream: str = "stdout") -> str:
        """What the sandbox says that a task printed."""
        try:
            return (spec.sandbox / stream).read_text()
        except FileNotFoundError:
            return ""

    async def open(self) -> ContainerRuntime:
        runtime = self.make()
        await runtime.open(self.on_exit)
        self.runtimes.append(runtime)
        return runtime

    def spec(
        self, name: str, program: Program, environment: Mapping[str, str] | None = None, **more: Any
    ) -> ContainerSpec:
        sandbox = self.tmp_path / "sandboxes" / name
        sandbox.mkdir(parents=True, exist_ok=True)
        container_id = container_id_for(self.agent_id, FrameworkId("framework"), TaskId(name))
        self.programs[container_id] = program
        if environment is None:
            environment = {"PATH": os.environ["PATH"]} if self.kind == "process" else {}
        return ContainerSpec(
            container_id=container_id,
            framework_id=FrameworkId("framework"),
            task_id=TaskId(name),
            command=program.command,
            image=self.image,
            environment=environment,
            sandbox=sandbox,
            **{"cpus_milli": 1000, "mem_bytes": 64 * 2**20, **more},
        )

    async def exit_of(self, container_id: ContainerId) -> ContainerExit:
        """The end of a container, told by its runtime."""
        async with asyncio.timeout(PATIENCE_S):
            while container_id not in self.exits:
                self.changed.clear()
                await self.changed.wait()
        return self.exits[container_id][0]

    async def run(self, runtime: ContainerRuntime, spec: ContainerSpec) -> ContainerExit:
        await runtime.start(spec)
        return await self.exit_of(spec.container_id)

    async def printed(self, spec: ContainerSpec, word: str, stream: str = "stdout") -> None:
        """Wait until a task has printed `word`."""
        async with asyncio.timeout(PATIENCE_S):
            while word not in self.output(spec, stream):
                await asyncio.sleep(0.01)


@pytest.fixture(scope="session")
def docker_image(require: Callable[[bool, str], None]) -> Iterator[str]:
    """A tiny image made of busybox alone; nothing is pulled."""
    import docker
    import docker.errors

    try:
        client = docker.from_env(timeout=20)
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        require(False, f"no Docker engine answers: {error}")
        return
    busybox = Path("/bin/busybox")
    require(busybox.exists() and _is_static(busybox), "no static /bin/busybox to make an image of (busybox-static)")
    tag = f"bursar-test-{uuid.uuid4().hex[:8]}"
    client.api.import_image_from_data(_root_file_system(busybox), repository=tag, tag="latest")
    yield f"{tag}:latest"
    with contextlib.suppress(docker.errors.APIError):
        client.images.remove(f"{tag}:latest", force=True)
    client.close()


def _is_static(program: Path) -> bool:
    return subprocess.run(["sh", "-c", f"ldd {program} >/dev/null 2>&1"], check=False).returncode != 0


def _root_file_system(busybox: Path) -> bytes:
    applets = subprocess.run([str(busybox), "--list"], capture_output=True, text=True, check=True).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for directory in ("bin", "tmp", "etc"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(busybox, "bin/busybox")
        for applet in applets:
            if applet != "busybox":
                entry = tarfile.TarInfo(f"bin/{applet}")
                entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(entry)
    return buffer.getvalue()


@pytest.fixture
def docker_agent(docker_image: str) -> Iterator[AgentId]:
    """An agent's id, whose containers are removed at the end whatever happened."""
    import docker

    agent_id = AgentId(f"test-{uuid.uuid4().hex}")
    yield agent_id
    client = docker.from_env(timeout=60)
    for container in client.containers.list(
        all=True, filters={"label": f"bursar.agent_id={agent_id}"}, ignore_removed=True
    ):
        container.remove(force=True)
    client.close()


@pytest.fixture(params=["process", "docker", "simulated"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    """Every runtime, one after the other."""
    async with make_bench(request.param, request, tmp_path) as made:
        yield made


@pytest.fixture(name="make_bench")
def make_bench_fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """`async with make_bench(kind)`: for tests of one runtime alone."""
    for needed in ("docker_image", "docker_agent") if "docker" in request.module.__name__ else ():
        request.getfixturevalue(needed)
    return lambda kind: make_bench(kind, request, tmp_path)


@contextlib.asynccontextmanager
async def make_bench(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    agent_id = AgentId("0f5e7a52-agent")
    if kind == "docker":
        from bursar.agent.containers.docker import DockerRuntime

        image = request.getfixturevalue("docker_image")
        agent_id = request.getfixturevalue("docker_agent")
        bench = Bench(kind, tmp_path, agent_id, lambda: DockerRuntime(agent_id), image)
    elif kind == "process":
        bench = Bench(kind, tmp_path, agent_id, lambda: ProcessRuntime(tmp_path / "records"))
    else:
        engine = SimulatedEngine(lambda spec: bench.programs[spec.container_id].simulated(spec))
        bench = Bench(kind, tmp_path, agent_id, lambda: SimulatedRuntime(engine))
        bench.engine = engine
    yield bench
    for runtime in bench.runtimes:
        await runtime.close()
    last = bench.make()
    await last.open(bench.on_exit)
    for found in await last.recover():
        if found.exit is None:
            await last.kill(found.container_id, 0)
            await bench.exit_of(found.container_id)
        await last.remove(found.container_id)
    await last.close()
