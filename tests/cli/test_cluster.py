"""`bursar` against a real master and real agents on loopback: plain processes, simulated GPUs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

import bursar.sdk
from bursar.sdk import OperatorClient
from bursar.v1.operator_service_pb2 import AGENT_STATE_ACTIVE

UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Cluster:
    """One master, `node-gpu` with four GPUs, `node-cpu` with none."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.port = free_port()
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    async def start_master(self) -> None:
        await self._start("master", "bursar.master.main", "--listen", f"127.0.0.1:{self.port}", "--metrics", "")

    async def start_agent(self, name: str, devices: str) -> None:
        await self._start(
            name, "bursar.agent.main", "--master", f"127.0.0.1:{self.port}", "--runtime", "process", "--devices", devices,
            "--resources", "cpus:8;mem:4GiB", "--hostname", name,
        )  # fmt: skip

    async def _start(self, name: str, module: str, *arguments: str) -> None:
        with (self.where / f"{name}.log").open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *arguments,
                "--work-dir",
                str(self.where / name),
                stdout=log,
                stderr=log,
                stdin=-3,
            )

    async def until_ready(self) -> None:
        """Until both agents are active."""
        async with asyncio.timeout(60), OperatorClient(f"127.0.0.1:{self.port}", timeout_s=60) as client:
            while sum(agent.state == AGENT_STATE_ACTIVE for agent in await client.agents()) < 2:
                for name, process in self.processes.items():
                    assert process.returncode is None, (self.where / f"{name}.log").read_text()
                await asyncio.sleep(0.05)

    async def kill(self, name: str) -> None:
        self.processes[name].kill()
        await self.processes[name].wait()

    async def close(self) -> None:
        for process in reversed(self.processes.values()):
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                await asyncio.wait_for(process.wait(), 20)


@pytest.fixture
async def cluster(tmp_path: Path, bursar: Any) -> AsyncIterator[Cluster]:
    one = Cluster(tmp_path)
    bursar.address = f"127.0.0.1:{one.port}"
    try:
        await one.start_master()
        await one.start_agent("node-gpu", "simulated:4")
        await one.start_agent("node-cpu", "none")
        await one.until_ready()
        yield one
    finally:
        await one.close()


async def read_until(process: asyncio.subprocess.Process, line: bytes) -> bytes:
    """Read stdout up to a line."""
    assert process.stdout is not None
    seen = b""
    async with asyncio.timeout(20):
        while line not in seen.splitlines():
            chunk = await process.stdout.readline()
            assert chunk, seen
            seen += chunk
    return seen


async def test_a_tour(cluster: Cluster, bursar: Any) -> None:
    """Run, look, reserve, use the reservation, give it back: each by what the command before it printed."""
    done = await bursar("run", "--gpus", "2", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; exit 7")
    uuids = done.stdout.strip().split(",")
    assert done.code == 7 and len(set(uuids)) == 2 and all(UUID.fullmatch(uuid) for uuid in uuids) and done.stderr == ""
    name = (await bursar("task", "ls", "--all", "-o", "name")).stdout.strip()
    task = json.loads((await bursar("task", "show", name[:-2], "-o", "json")).stdout)
    assert (task["state"], task["exit_code"], task["hostname"]) == ("FAILED", 7, "node-gpu")
    assert (await bursar("task", "logs", name.partition("/")[2])).stdout == done.stdout
    assert (await bursar("framework", "ls", "-o", "json")).stdout == "[]\n", "run unregisters before it returns"

    reserved = await bursar(
        "reserve", "--role", "research", "--agent", "node-gpu", "--resources", "gpus:3;cpus:4", "-o", "json"
    )
    kept = json.loads(reserved.stdout)["resources"]
    assert reserved.code == 0 and len(kept["device_uuids"]) == 3 and kept["cpus_milli"] == 4000
    waiting = await bursar("run", "--gpus", "2", "--wait", "2500ms", "true")
    assert waiting.code == 124 and "reserved for other roles" in waiting.stderr and waiting.stdout == ""
    inside = await bursar(
        "run", "--role", "research/vision", "--gpus", "3", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"
    )
    assert inside.code == 0 and set(inside.stdout.strip().split(",")) == set(kept["device_uuids"])
    gpus = json.loads((await bursar("gpu", "ls", "-o", "json")).stdout)
    assert sorted(gpu["reserved_to"] for gpu in gpus) == ["", "research", "research", "research"]
    back = ("--role", "research", "--agent", "node-gpu", "--resources", "gpus:3;cpus:4")
    assert (await bursar("unreserve", *back)).code == 0, "what run used is free once it returns"
    assert (await bursar("reservation", "ls", "-o", "json")).stdout == "[]\n"
    refused = await bursar("unreserve", *back)
    assert refused.code in (1, 3) and refused.stdout == "" and "hint: " in refused.stderr

    changed = await bursar("flag", "set", "filter-gpu-resources", "false", "-o", "json")
    assert json.loads(changed.stdout) == {"name": "filter-gpu-resources", "value": "false", "source": "run time"}
    assert (await bursar("flag", "set", "listen", "x:1")).code == 1
    assert (await bursar("agent", "show", "nowhere")).code == 3
    batch = await bursar("batch", "--count", "8", "--gpus", "1", "-o", "json", "--", "sh", "-c", "test {index} -ne 3")
    tasks = json.loads(batch.stdout)["tasks"]
    assert [task["exit_code"] for task in tasks] == [0, 0, 0, 1, 0, 0, 0, 0]
    assert all(UUID.fullmatch(task["device_uuids"][0]) for task in tasks)


@pytest.mark.parametrize("victim", ["master", "node-gpu"])
async def test_run_outlives_a_killed_daemon(cluster: Cluster, bursar: Any, victim: str) -> None:
    """The task goes on undisturbed, its output comes once, and its exit code arrives."""
    script = 'i=0; while [ $i -lt 40 ]; do echo $i; i=$((i+1)); sleep 0.1; done; echo "end $$" >&2; exit 9'
    process = await bursar.start("run", "--gpus", "1", "--", "sh", "-c", script)
    seen = await read_until(process, b"5")
    await cluster.kill(victim)
    await asyncio.sleep(0.5)
    if victim == "master":
        await cluster.start_master()
    else:
        await cluster.start_agent(victim, "simulated:4")
    done = await bursar.finish(process)
    assert (seen.decode() + done.stdout).split() == [str(number) for number in range(40)]
    assert done.code == 9 and re.fullmatch(r"end \d+\n", done.stderr)
    assert (await bursar("framework", "ls", "-o", "name")).stdout == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_ends_task_and_framework(
    cluster: Cluster, bursar: Any, number: signal.Signals, code: int
) -> None:
    process = await bursar.start(
        "run", "--", "sh", "-c", "trap 'echo bye; exit 5' TERM; echo $$; echo up; while :; do sleep 0.1; done"
    )
    pid = int((await read_until(process, b"up")).split()[0])
    process.send_signal(number)
    done = await bursar.finish(process)
    assert done.code == code and done.stdout == "bye\n"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert (await bursar("framework", "ls", "-o", "name")).stdout == ""
    (task,) = json.loads((await bursar("task", "ls", "-a", "-o", "json")).stdout)
    assert task["state"] == "KILLED" and task["reason"] == "KILLED_BY_FRAMEWORK"


async def test_tasks_are_found_by_what_is_known_of_them(cluster: Cluster, bursar: Any) -> None:
    for owner in ("ada", "bob"):
        assert (await bursar("run", "--label", "sweep=lr", "--label", f"owner={owner}", "--", "true")).code == 0
    listing = ("task", "ls", "-a", "-o", "name", "--label", "sweep=lr")
    both, bobs = [(await bursar(*listing, *more)).stdout.split() for more in ((), ("--label", "owner=bob"))]
    assert len(both) == 2 and len(bobs) == 1 and bobs[0] in both
    assert "owner=bob" in (await bursar("task", "show", bobs[0])).stdout
    assert (await bursar(*listing, "--roles", "ml/**")).stdout == ""
    refused = await bursar(*listing, "--agent", "nowhere")
    assert refused.code == 3 and "nowhere" in refused.stderr


async def test_operators_end_what_users_run(cluster: Cluster, bursar: Any) -> None:
    first, second = [await bursar.start("run", "--", "sh", "-c", "echo up; exec sleep 60") for _ in range(2)]
    for process in (first, second):
        await read_until(process, b"up")
    names = (await bursar("task", "ls", "-o", "name")).stdout.split()
    assert len(names) == 2
    followed = await bursar.start("task", "logs", "-f", names[0])
    assert (await bursar("task", "kill", names[0], "--grace", "1s")).code == 0
    assert (await bursar("framework", "teardown", names[1].partition("/")[0])).code == 0
    ends = sorted([(await bursar.finish(process)).code for process in (first, second)])
    assert ends == [125, 143]
    assert (await bursar.finish(followed)).stdout == "up\n"


async def test_large_output_with_a_slow_reader_is_whole(cluster: Cluster, bursar: Any) -> None:
    """More than all buffers on the way: nothing is lost, and neither side takes the other for dead."""
    process = await bursar.start("run", "--", "sh", "-c", "seq 1 1000000")
    await asyncio.sleep(3)
    done = await bursar.finish(process)
    assert done.code == 0 and done.stdout.split() == [str(number) for number in range(1, 1_000_001)]


async def test_the_example_of_the_documentation_runs(cluster: Cluster) -> None:
    """The framework of some 25 lines in the docstring of `bursar.sdk`, as a program of its own."""
    lines = [line for line in (bursar.sdk.__doc__ or "").splitlines() if line.startswith("    ") or not line]
    program = textwrap.dedent("\n".join(lines)).strip()
    assert program.startswith("from bursar.sdk import") and len(program.splitlines()) < 30
    program = program.replace('"train", f"--lr={lr}"', '"sh", "-c", f"echo {lr}"').replace(
        "127.0.0.1:5050", f"127.0.0.1:{cluster.port}"
    )
    program = program.replace("16GiB", "1GiB")
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=-1, stderr=-1)
    stdout, stderr = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, stdout, stderr) == (0, b"", b"")
    async with OperatorClient(f"127.0.0.1:{cluster.port}") as client:
        tasks = await client.tasks(ended=True)
        assert (
            len(tasks) == 3
            and {task.role for task in tasks} == {"ml/sweep"}
            and {task.exit_code for task in tasks} == {0}
        )
        assert await client.frameworks() == []


async def test_watching_goes_on_over_a_restart_of_the_master(cluster: Cluster) -> None:
    """Each event is a line; a master that was killed is followed by the next."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bursar.cli.main", "--master", f"127.0.0.1:{cluster.port}",
        "watch", "--kind", "flag_*", "-o", "json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        for _ in range(2):
            event = await _told_while_flags_change(cluster, process)
            assert event["kind"] == "flag_changed" and "filter-gpu-resources" in event["message"]
            await cluster.kill("master")
            assert process.stderr is not None
            async with asyncio.timeout(60):
                assert b"waiting for" in await process.stderr.readline()
            await cluster.start_master()
            await cluster.until_ready()
    finally:
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 30) == 130


async def _told_while_flags_change(cluster: Cluster, process: asyncio.subprocess.Process) -> dict[str, Any]:
    """Change a flag until the watcher, which began at a moment that nobody is told, says so."""
    assert process.stdout is not None
    line = asyncio.create_task(process.stdout.readline())
    async with asyncio.timeout(60), OperatorClient(f"127.0.0.1:{cluster.port}") as client:
        value = False
        while not line.done():
            value = not value
            await client.set_flag("filter-gpu-resources", str(value).lower())
            await asyncio.wait([line], timeout=0.2)
    event: dict[str, Any] = json.loads(await line)
    return event
