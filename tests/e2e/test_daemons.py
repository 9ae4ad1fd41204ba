"""How the daemons start, and how they refuse to: flags, addresses, work directories, what an agent declares."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

GPU_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def refused(done: Any, *words: str, code: int | None = None) -> None:
    """It did not start, and says what, why and what to do, in few lines and without a traceback."""
    assert done.code in ((1, 2) if code is None else (code,)), done
    assert all(word in done.stderr for word in words), done
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 6


#: Starts a daemon's `main` with each line of flags that it reads, and writes what came of it.
REFUSING = """
import contextlib, importlib, io, json, sys
for line in sys.stdin:
    module, flags = json.loads(line)
    said, code = io.StringIO(), None
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            importlib.import_module(module).main(flags)
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, said.getvalue()]), flush=True)
"""


@dataclass
class Refused:
    """As a program leaves it."""

    code: int | None
    stderr: str


class Refusals:
    """One process in which a daemon refuses to start again and again: it is importing that takes the time."""

    def __init__(self, where: Path, process: subprocess.Popen[str]) -> None:
        self._where = where
        self._process = process
        self._count = 0

    def of(self, module: str, defaults: list[str], flags: list[str]) -> Refused:
        """What comes of these flags, in a work directory of their own where they name none."""
        self._count += 1
        assert self._process.stdin is not None and self._process.stdout is not None
        line = [*defaults, "--work-dir", str(self._where / str(self._count)), *flags]
        self._process.stdin.write(json.dumps([module, line]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "it ended instead of refusing"
        return Refused(*json.loads(answer))


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Refusals]:
    """The real thing, started as a program, is in `test_a_taken_port` and `test_without_a_docker_engine`."""
    where = tmp_path_factory.mktemp("refusals")
    with subprocess.Popen(
        [sys.executable, "-c", REFUSING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C"},
    ) as process:
        try:
            yield Refusals(where, process)
        finally:
            process.kill()


# --- the master -----------------------------------------------------------------------------------------------------


def test_flags_from_everywhere(bare_cluster: Any, tmp_path: Path) -> None:
    """Default, file, environment, command line, run time: each wins over those before it. `_` and `-` are one."""
    config = tmp_path / "master.toml"
    config.write_text(
        'offer_timeout = "11s"\nallocation-interval = "1100ms"\nmax-agent-ping-timeouts = 7\nfilter-gpu-resources = false\n'
    )
    variables = {
        "BURSAR_MASTER_ALLOCATION_INTERVAL": "1200ms",
        "BURSAR_MASTER_MAX_AGENT_PING_TIMEOUTS": "8",
        "BURSAR_MASTER_FILTER_GPU_RESOURCES": "false",
        "BURSAR_MASTER_OFER_TIMEOUT": "1s",
    }
    flags = ("--config", str(config), "--max_agent_ping_timeouts", "9", "--filter-gpu-resources")
    bare_cluster.start_master(*flags, **variables)
    assert "BURSAR_MASTER_OFER_TIMEOUT" in bare_cluster.log("master"), "an unknown variable is a warning"
    assert "BURSAR_MASTER_OFFER_TIMEOUT" in bare_cluster.log("master"), "with what was probably meant"

    def seen() -> dict[str, tuple[str, str]]:
        return {flag["name"]: (flag["value"], flag["source"]) for flag in bare_cluster.ls("flag")}

    assert {name: where for name, where in seen().items() if where[1] != "default" and name not in ("listen", "metrics", "work-dir")} == {
        "offer-timeout": ("11s", "file"),
        "allocation-interval": ("1200ms", "environment"),
        "max-agent-ping-timeouts": ("9", "command line"),
        "filter-gpu-resources": ("true", "command line"),
    }  # fmt: skip
    assert bare_cluster.bursar("flag", "set", "max-agent-ping-timeouts", "3").code == 0
    bare_cluster.stop("master")
    bare_cluster.start_master(*flags, **variables)
    assert seen()["max-agent-ping-timeouts"] == ("3", "run time"), "kept, and wins until it is unset"
    unset = bare_cluster.bursar("flag", "unset", "max-agent-ping-timeouts", "-o", "json").json
    assert unset == {"name": "max-agent-ping-timeouts", "value": "9", "source": "command line"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--no-such-flag"], ["--no-such-flag"]),
        (["--offer-timeout", "soon"], ["offer-timeout", "soon"]),
        (["--offer-timout", "1s"], ["did you mean", "offer-timeout"]),
        (["--filter-gpu-resources=maybe"], ["filter-gpu-resources", "maybe"]),
        (["--max-agent-ping-timeouts", "0"], ["max-agent-ping-timeouts"]),
        (["--listen", "nowhere"], ["nowhere", "HOST:PORT"]),
        (["--listen", "0.0.0.0:0"], ["0.0.0.0", "--insecure"]),
        (["--listen", "[::]:0"], ["--insecure"]),
        (["--metrics", "0.0.0.0:0"], ["--insecure"]),
        (["--config", "/nonexistent.toml"], ["/nonexistent.toml"]),
        (["--registry", "nonsense"], ["registry"]),
        (["--work-dir", "/proc/nowhere"], ["/proc/nowhere"]),
        (["extra"], ["extra"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_master_that_cannot_start(refusals: Refusals, flags: list[str], words: list[str]) -> None:
    defaults = ["--listen", "127.0.0.1:0", "--metrics", ""]
    refused(refusals.of("bursar.master.main", defaults, flags), *words)


def test_off_loopback_when_told_so(programs: Any, tmp_path: Path) -> None:
    running = programs.start(
        programs.program("bursar-master"),
        "--listen",
        "0.0.0.0:0",
        "--metrics",
        "",
        "--work-dir",
        str(tmp_path),
        "--insecure",
    )
    running.until_stderr("event=ready")


def test_a_taken_port(own_cluster: Any, tmp_path: Path) -> None:
    """By another master, or by anybody; for the metrics too. The one that has it is not disturbed."""
    master = own_cluster.programs.program("bursar-master")
    work = ("--work-dir", str(tmp_path / "second"))
    refused(
        own_cluster.programs.run(master, "--listen", own_cluster.address, "--metrics", "", *work),
        own_cluster.address,
        "in use",
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(own_cluster.programs.run(master, "--listen", "127.0.0.1:0", "--metrics", address, *work), address)
    same = own_cluster.programs.run(
        master, "--listen", "127.0.0.1:0", "--metrics", "", "--work-dir", str(own_cluster.where / "master")
    )
    refused(same, "work directory", "in use")
    agent = own_cluster.programs.run(
        own_cluster.programs.program("bursar-agent"), "--master", own_cluster.address, "--work-dir",
        str(own_cluster.where / "node-gpu"), "--runtime", "process", "--devices", "none",
    )  # fmt: skip
    refused(agent, "in use by another agent", str(own_cluster.daemons["node-gpu"].pid), "--work-dir")
    assert own_cluster.bursar("run", "--gpus", "4", "--wait", "20s", "--", "true").code == 0
    assert [one["state"] for one in own_cluster.ls("agent")] == ["ACTIVE"]


def test_metrics_are_served(programs: Any, tmp_path: Path) -> None:
    import urllib.request

    port = programs.free_port()
    master = programs.start(
        programs.program("bursar-master"),
        "--listen",
        "127.0.0.1:0",
        "--metrics",
        f"127.0.0.1:{port}",
        "--work-dir",
        str(tmp_path),
    )
    master.until_stderr("event=ready")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    text = opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    assert len({line.split()[2] for line in text.splitlines() if line.startswith("# TYPE bursar_master_")}) >= 12


@pytest.mark.parametrize("program", ["bursar-master", "bursar-agent", "bursar"])
def test_help_and_version(programs: Any, program: str) -> None:
    done = programs.run(programs.program(program), "--help")
    assert done.code == 0 and "Usage" in done.stdout and done.stderr == ""
    done = programs.run(programs.program(program), "--version")
    assert done.code == 0 and re.search(r"\d+\.\d+\.\d+", done.stdout)


# --- agents ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--no-such-flag"], ["--no-such-flag"]),
        (["--runtime", "podman"], ["podman", "docker", "process"]),
        (["--devices", "quantum"], ["quantum"]),
        (["--devices", "simulated:-1"], ["simulated:-1"]),
        (["--devices", "simulated:4", "--resources", "gpus:5"], ["5 gpus", "4"]),
        (["--resources", "gpus:0.5"], ["gpus"]),
        (["--resources", "gpus:-1"], ["gpus"]),
        (["--resources", "cpus:1e3"], ["cpus"]),
        (["--resources", "cpus:nan"], ["cpus"]),
        (["--resources", "cpus:inf"], ["cpus"]),
        (["--resources", "cpus:+1"], ["cpus"]),
        (["--resources", "cpus:1.0001"], ["cpus"]),
        (["--resources", "mem:1XB"], ["mem"]),
        (["--resources", "mem:9007199254740993KiB"], ["mem"]),
        (["--resources", "cpus(a//b):1"], ["a//b"]),
        (["--attributes", "rack"], ["rack"]),
        (["--master", "nowhere"], ["nowhere"]),
        (["--metrics", "0.0.0.0:0"], ["--insecure"]),
        (["--work-dir", "/proc/nowhere"], ["/proc/nowhere"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_an_agent_that_cannot_start(refusals: Refusals, flags: list[str], words: list[str]) -> None:
    defaults = ["--master", "127.0.0.1:1", "--runtime", "process", "--devices", "none"]
    refused(refusals.of("bursar.agent.main", defaults, flags), *words)


def test_without_a_docker_engine(programs: Any, tmp_path: Path) -> None:
    """`docker` is the default; without an engine the agent says which runtime needs none."""
    done = programs.run(
        programs.program("bursar-agent"), "--master", "127.0.0.1:1", "--devices", "none", "--work-dir", str(tmp_path / "a"),
        DOCKER_HOST=f"unix://{tmp_path}/no.sock",
    )  # fmt: skip
    refused(done, "--runtime process", "Docker")


def test_what_agents_declare_and_what_is_found(bare_cluster: Any) -> None:
    """Kinds that are not named are discovered, the others are as named; what exceeds the machine is a warning."""
    bare_cluster.start_master()
    machine = psutil.virtual_memory().total
    declared = {
        "all": ("simulated:4", "cpus:4;mem:1GiB"),
        "none": ("simulated:4", "cpus:1;gpus:0"),
        "two": ("simulated:4:A100", "cpus:1;mem:64;gpus:2"),
        "huge": ("none", "cpus:1000;mem:100TiB"),
        "static": ("simulated:4", "cpus:1;cpus(ml):2;gpus(ml):3"),
        "found": ("none", ""),
    }
    for name, (devices, resources) in declared.items():
        bare_cluster.start_agent(name, "--attributes", "rack:r1;zone:a", devices=devices, resources=resources)
    bare_cluster.until_active(*declared)
    agents = {agent["hostname"]: agent for agent in bare_cluster.ls("agent")}
    total = {name: agent["total"] for name, agent in agents.items()}
    count = {name: len(resources["device_uuids"]) for name, resources in total.items()}
    assert count == {"all": 4, "none": 0, "two": 2, "huge": 0, "static": 3, "found": 0}
    assert total["all"]["cpus_milli"] == 4000 and total["all"]["mem_bytes"] == 2**30
    assert total["two"]["mem_bytes"] == 64 * 2**20, "a bare number is MiB"
    assert total["huge"]["cpus_milli"] == 1_000_000 and total["huge"]["mem_bytes"] == 100 * 2**40
    assert len(re.findall(r"level=warning.*\"(?:cpus|mem): ", bare_cluster.log("huge"))) == 2
    assert 0 < total["found"]["mem_bytes"] < machine and total["found"]["cpus_milli"] == 1000 * len(
        os.sched_getaffinity(0)
    )
    assert total["found"]["ports"] == [{"first": 31000, "last": 32000}]
    uuids = [uuid for resources in total.values() for uuid in resources["device_uuids"]]
    assert len(set(uuids)) == len(uuids) and all(GPU_UUID.fullmatch(uuid) for uuid in uuids), "different on every agent"
    assert [device["index"] for device in agents["two"]["devices"]] == [0, 1] and agents["two"]["devices"][0][
        "model"
    ] == "A100"
    assert json.dumps(agents["all"]["attributes"], sort_keys=True).count("r1") == 1
    (static,) = bare_cluster.ls("reservation")
    assert (static["stack"][-1]["holder"], static["stack"][-1]["type"]) == ("ml", "STATIC")
    assert len(static["resources"]["device_uuids"]) == 3 and static["resources"]["cpus_milli"] == 2000

    for name in ("all", "static"):
        bare_cluster.kill(name)
        bare_cluster.start_agent(name, devices=declared[name][0], resources=declared[name][1])
    bare_cluster.until_active("all", "static")
    again = {agent["hostname"]: agent["total"]["device_uuids"] for agent in bare_cluster.ls("agent")}
    assert again == {name: resources["device_uuids"] for name, resources in total.items()}, "the same after a restart"
    assert bare_cluster.ls("reservation") == [static]
