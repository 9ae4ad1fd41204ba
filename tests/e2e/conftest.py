"""Whole clusters of real processes, met as a user meets them: through the programs. Nothing outlives a test.

A `Cluster` is one master and some agents under one directory, with plain processes as tasks and simulated GPUs. Whatever a test does to
it, `close` ends every process that names its directory. Waiting is always for a condition, never for a time.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from ports import free_port

from bursar.cli.local import remove_remains
from bursar.runtime.credentials import NOBODY, Credentials
from bursar.sdk import OperatorClient
from bursar.v1.operator_service_pb2 import AGENT_STATE_ACTIVE

T = TypeVar("T")

#: On a loaded machine of two cores, where other tests run, too; a condition that comes true returns at once.
TIMEOUT_S = 60.0
READY = re.compile(r"event=ready address=(\S+)")
GPU_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def program(name: str) -> str:
    """The installed program, next to the interpreter that runs the tests."""
    return str(Path(sys.executable).with_name(name))


def until(condition: Callable[[], T], why: str = "", timeout_s: float = TIMEOUT_S) -> T:
    """Look until something is true, and return it. Fails with `why` and what was seen last."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {why or condition} (last: {value!r})"
        time.sleep(0.02)


def environment(**variables: str) -> dict[str, str]:
    """Of every program here: nothing of the one who runs the tests but where programs and the container engine are."""
    engine = {name: value for name, value in os.environ.items() if name.startswith("DOCKER_")}
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C"} | engine | variables


@dataclass(frozen=True)
class Finished:
    """What a program left."""

    code: int
    out: bytes
    err: bytes

    @property
    def stdout(self) -> str:
        return self.out.decode()

    @property
    def stderr(self) -> str:
        return self.err.decode()

    @property
    def json(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out)

    @property
    def names(self) -> list[str]:
        assert self.code == 0, self
        return self.stdout.split()

    def __repr__(self) -> str:
        return f"<exit {self.code}, stdout {self.out[:2000]!r}, stderr {self.err[:2000]!r}>"


@dataclass
class Running:
    """A program that runs; what it says goes to files, so that it never waits for us."""

    process: subprocess.Popen[bytes]
    where: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def stdout(self) -> str:
        return (self.where / "stdout").read_text("utf-8", "replace")

    def stderr(self) -> str:
        return (self.where / "stderr").read_text("utf-8", "replace")

    def until_stdout(self, text: str, timeout_s: float = TIMEOUT_S) -> str:
        """Wait for a text on stdout; return all of stdout."""
        until(lambda: text in self.stdout() or not self.alive, f"{text!r} on stdout", timeout_s)
        assert text in self.stdout(), self
        return self.stdout()

    def until_stderr(self, text: str, timeout_s: float = TIMEOUT_S) -> str:
        """Wait for a text on stderr; return all of stderr."""
        until(lambda: text in self.stderr() or not self.alive, f"{text!r} on stderr", timeout_s)
        assert text in self.stderr(), self
        return self.stderr()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def finish(self, timeout_s: float = 60) -> Finished:
        """Wait for its end."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.close()
            raise AssertionError(f"did not end within {timeout_s} s: {self}") from None
        done = Finished(code, (self.where / "stdout").read_bytes(), (self.where / "stderr").read_bytes())
        assert b"Traceback" not in done.err, done
        return done

    def close(self) -> None:
        if self.alive:
            self.process.kill()
            self.process.wait()

    def __repr__(self) -> str:
        return f"<{self.process.args!r}, stdout {self.stdout()[-2000:]!r}, stderr {self.stderr()[-2000:]!r}>"


class Programs:
    """Starts programs and ends them all."""

    until = staticmethod(until)
    free_port = staticmethod(free_port)
    program = staticmethod(program)

    def __init__(self, where: Path) -> None:
        self.where = where
        self._running: list[Running] = []

    def start(self, *command: str, stdin: int = subprocess.DEVNULL, **variables: str) -> Running:
        """Start a program; its outputs go to files."""
        where = self.where / "outputs" / str(len(self._running))
        where.mkdir(parents=True)
        with (where / "stdout").open("wb") as out, (where / "stderr").open("wb") as err:
            process = subprocess.Popen(
                command, stdin=stdin, stdout=out, stderr=err, env=environment(**variables), start_new_session=True
            )
        running = Running(process, where)
        self._running.append(running)
        return running

    def run(self, *command: str, timeout_s: float = 60, **variables: str) -> Finished:
        """Run a program to its end."""
        return self.start(*command, **variables).finish(timeout_s)

    def close(self) -> None:
        for running in self._running:
            running.close()
        remove_remains(self.where)


@dataclass
class Cluster:
    """One master and some agents."""

    until = staticmethod(until)

    programs: Programs
    where: Path
    port: int = 0
    #: What `ask` shows to the master.
    credentials: Credentials = NOBODY
    daemons: dict[str, Running] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    # --- daemons ---

    def start_master(self, *flags: str, **variables: str) -> str:
        """Start the master, at the port that it had before, and wait until it serves; return its ready line."""
        self.port = self.port or free_port()
        running = self.programs.start(
            program("bursar-master"), "--listen", f"127.0.0.1:{self.port}", "--metrics", "",
            "--work-dir", str(self.where / "master"), *flags, **variables,
        )  # fmt: skip
        self.daemons["master"] = running
        found = until(lambda: READY.search(running.stderr()) or not running.alive, "the master's ready line")
        assert isinstance(found, re.Match), running
        return next(line for line in running.stderr().splitlines() if "event=ready" in line)

    def start_agent(
        self, name: str, *flags: str, devices: str = "simulated:4", resources: str = "cpus:8;mem:4GiB", **variables: str
    ) -> Running:
        """Start an agent; `until_active` waits for it."""
        self.daemons[name] = self.programs.start(
            program("bursar-agent"), "--master", self.address, "--work-dir", str(self.where / name), "--hostname", name,
            "--runtime", "process", "--devices", devices, "--resources", resources, *flags, **variables,
        )  # fmt: skip
        return self.daemons[name]

    def until_active(self, *names: str) -> None:
        """Wait until these agents are active."""

        def active() -> bool:
            for name in names:
                assert self.daemons[name].alive, self.daemons[name]
            return all(self.state(name) == AGENT_STATE_ACTIVE for name in names)

        until(active, f"{names} active")

    def state(self, name: str) -> int:
        """Of an agent; 0 where the master does not know it."""
        agents = self.ask(lambda client: client.agents())
        return next((int(agent.state) for agent in agents if agent.hostname == name), 0)

    def ask(self, question: Callable[[OperatorClient], Awaitable[T]]) -> T:
        """Ask the master without the price of a program; for waiting."""

        async def talk() -> T:
            async with OperatorClient(self.address, credentials=self.credentials) as client:
                return await question(client)

        # In a thread, because the caller may have a loop of its own.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: asyncio.run(talk())).result()

    def kill(self, name: str) -> None:
        """kill -9."""
        self.daemons[name].signal(signal.SIGKILL)
        self.daemons[name].process.wait()

    def stop(self, name: str) -> Finished:
        """As systemd would."""
        self.daemons[name].signal(signal.SIGTERM)
        return self.daemons[name].finish()

    def log(self, name: str) -> str:
        return self.daemons[name].stderr()

    # --- users ---

    def start(self, *arguments: str, **variables: str) -> Running:
        """Start `bursar …`."""
        return self.programs.start(program("bursar"), *arguments, BURSAR_MASTER=self.address, **variables)

    def bursar(self, *arguments: str, timeout_s: float = 60, **variables: str) -> Finished:
        """Run `bursar …`."""
        return self.start(*arguments, **variables).finish(timeout_s)

    def ls(self, noun: str, *options: str) -> list[Any]:
        """`bursar NOUN ls -o json`."""
        items = self.bursar(noun, "ls", *options, "-o", "json").json
        assert isinstance(items, list)
        return items

    def agent(self, name: str) -> Any:
        return self.bursar("agent", "show", name, "-o", "json").json

    def uuids(self, name: str) -> list[str]:
        """An agent's devices, by index."""
        devices = sorted(self.agent(name)["devices"], key=lambda device: device["index"])
        return [device["uuid"] for device in devices]


@pytest.fixture(scope="session")
def engine(require: Callable[[bool, str], None]) -> Iterator[Any]:
    """A client of the Docker engine of this machine."""
    import docker
    import docker.errors

    try:
        client = docker.from_env(timeout=20)
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        require(False, f"no Docker engine answers: {error}")
        return
    yield client
    client.close()


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Programs of one test."""
    started = Programs(tmp_path)
    try:
        yield started
    finally:
        started.close()


@pytest.fixture
def bare_cluster(programs: Programs, tmp_path: Path) -> Cluster:
    """A cluster of one test; nothing runs yet."""
    return Cluster(programs, tmp_path)


@pytest.fixture(scope="module")
def module_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one module, which starts it as it likes."""
    where = tmp_path_factory.mktemp("cluster")
    started = Programs(where)
    try:
        yield Cluster(started, where)
    finally:
        started.close()


@pytest.fixture
def own_cluster(bare_cluster: Cluster) -> Cluster:
    """A cluster of one test: a master and `node-gpu` with four GPUs."""
    bare_cluster.start_master()
    bare_cluster.start_agent("node-gpu")
    bare_cluster.until_active("node-gpu")
    return bare_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that the tests of a module share and leave as they found it: `node-gpu` with four GPUs, `node-cpu` with none."""
    where = tmp_path_factory.mktemp("cluster")
    programs = Programs(where)
    try:
        shared = Cluster(programs, where)
        shared.start_master()
        shared.start_agent("node-gpu", **_FAKES)
        shared.start_agent("node-cpu", devices="none")
        shared.until_active("node-gpu", "node-cpu")
        yield shared
    finally:
        programs.close()


#: Of an agent's environment: none of it may reach a task.
_FAKES: Mapping[str, str] = {
    "SECRET_TOKEN": "s3cret",
    "CUDA_VISIBLE_DEVICES": "9",
    "LD_PRELOAD": "",
    "BURSAR_TASK_ID": "x",
}


@pytest.fixture(autouse=True)
def _undisturbed(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that shares a cluster leaves no framework, task, reservation or run-time flag behind."""
    yield
    if "cluster" not in request.fixturenames or "busy" in request.fixturenames:
        return
    shared: Cluster = request.getfixturevalue("cluster")

    async def remains(client: OperatorClient) -> list[Any]:
        flags = [flag for flag in await client.flags() if flag.source == "run time"]
        return [*await client.frameworks(), *await client.tasks(), *await client.reservations(), *flags]

    until(lambda: not shared.ask(remains), f"nothing left behind: {shared.ask(remains)}")
