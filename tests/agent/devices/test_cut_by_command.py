"""An operator has a card cut on the command line: `bursar`, a master and an agent as programs, the stand-in for NVIDIA's library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

#: Another one than that of tests which may run beside: agents of one machine lock their devices.
CARD = "GPU-dddddddd-0000-1111-2222-000000000000"
AGENT = "gpu-1"
STANDIN = f"device {CARD} NVIDIA_H100_80GB_HBM3 85899345920 00000000:19:00.0 0 1 0\ncard 0\nfail 0 create 5 23\n"


class Cluster:
    """A master and one agent with one card, as programs."""

    def __init__(self, tmp_path: Path, library: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.standin = tmp_path / "standin"
        self.environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(library),
            "NVML_STANDIN": str(self.standin),
            "BURSAR_MASTER": self.address,
        }
        self._directory = tmp_path
        self.programs: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *flags: str) -> None:
        """Begin a life of it."""
        command = [sys.executable, "-m", f"bursar.{name}.main", "--work-dir", str(self._directory / name), *flags]
        with (self._directory / "log").open("ab") as log:
            self.programs[name] = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def start_agent(self) -> None:
        """Begin a life of the agent, which is told that it has one GPU."""
        resources = "cpus:1;mem:1GiB;gpus:1"
        flags = (
            "--hostname",
            AGENT,
            "--master",
            self.address,
            "--runtime",
            "process",
            "--devices",
            "nvml",
            "--resources",
            resources,
        )
        self.start("agent", *flags)

    def kill(self, name: str) -> None:
        """End it, the hard way."""
        self.programs[name].kill()
        self.programs[name].wait()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one command of an operator."""
        command = [sys.executable, "-m", "bursar.cli.main", *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)

    def until_shown(self, text: str) -> str:
        """Wait until `bursar gpu ls` shows a text; return all that it shows."""
        deadline = time.monotonic() + 60
        while text not in (shown := self.run("gpu", "ls").stdout):
            assert time.monotonic() < deadline, (self._directory / "log").read_text()
        return shown


@pytest.fixture
def cluster(nvml_standin: Path, tmp_path: Path) -> Iterator[Cluster]:
    """One whose agent has registered."""
    made = Cluster(tmp_path, nvml_standin)
    made.standin.write_text(STANDIN)
    try:
        made.start("master", "--listen", made.address, "--metrics", "")
        made.start_agent()
        made.until_shown(CARD)
        yield made
    finally:
        for name in made.programs:
            made.kill(name)


def test_an_operator_cuts_a_card_and_makes_it_whole_and_hears_what_went_wrong(cluster: Cluster) -> None:
    bursar = cluster.run

    def kinds(done: subprocess.CompletedProcess[str]) -> list[str]:
        assert done.returncode == 0, done.stderr
        shown: list[Any] = json.loads(done.stdout)
        return [one["device"]["kind"] for one in shown]

    assert kinds(bursar("gpu", "partition", "GPU-dddd", "3g.40gb,1g.10gb=2", "-o", "json")) == [
        "mig-3g.40gb",
        "mig-1g.10gb",
        "mig-1g.10gb",
    ]
    assert kinds(bursar("gpu", "partition", CARD, "whole", "-o", "json")) == ["gpus"]
    failed = bursar("gpu", "partition", "GPU-dddd", "1g.10gb=7")
    assert failed.returncode == 1 and "at 5: Insufficient Resources; there is now: whole" in failed.stderr
    refused = bursar("gpu", "partition", "GPU-dddd", "quarters")
    assert refused.returncode != 0 and "'quarters' is not understood" in refused.stderr and "hint:" in refused.stderr


def test_a_card_whose_instances_a_restart_has_lost_is_shown_and_cut_again(cluster: Cluster) -> None:
    """NVIDIA's driver forgets instances, but not the mode; where no service makes them again, an operator does."""
    assert cluster.run("gpu", "partition", CARD, "3g.40gb,1g.10gb=2").returncode == 0
    reserved = cluster.run("reserve", "--role", "ml", "--resources", "mig-3g.40gb:1", "--agent", AGENT)
    assert reserved.returncode == 0, reserved.stderr
    cluster.kill("agent")
    lines = cluster.standin.read_text().splitlines(keepends=True)
    cluster.standin.write_text("".join(line for line in lines if not line.startswith(("gi ", "ci "))))
    cluster.start_agent()
    shown = cluster.until_shown("unconfigured")
    (line,) = [line for line in shown.splitlines() if line.startswith("GPU-")]
    assert line.startswith(CARD) and "MIG is switched on, and it has no instance" in line
    (line,) = [line for line in shown.splitlines() if line.startswith("mig-")]
    assert " vacant " in line
    again = cluster.run("gpu", "partition", "GPU-dddd", "3g.40gb,1g.10gb=2")
    assert again.returncode == 0, again.stderr
    assert (
        again.stdout.count(" healthy ") == 3 and "vacant" not in again.stdout + cluster.run("reservation", "ls").stdout
    )
