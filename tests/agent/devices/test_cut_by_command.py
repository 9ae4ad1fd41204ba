"""An operator has a card cut on the command line: `bursar`, a master and an agent as programs, the stand-in for NVIDIA's library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

CARD = "GPU-aaaaaaaa-0000-1111-2222-000000000000"
STANDIN = f"device {CARD} NVIDIA_H100_80GB_HBM3 85899345920 00000000:19:00.0 0 1 0\ncard 0\nfail 0 create 5 23\n"
Bursar = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def bursar(nvml_standin: Path, tmp_path: Path) -> Iterator[Bursar]:
    """Runs one command against a cluster whose one agent has one card."""
    (tmp_path / "standin").write_text(STANDIN)
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(nvml_standin),
        "NVML_STANDIN": str(tmp_path / "standin"),
        "BURSAR_MASTER": address,
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bursar.cli.main", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    agent = ("--master", address, "--runtime", "process", "--devices", "nvml", "--resources", "cpus:1;mem:1GiB")
    with (tmp_path / "log").open("wb") as log:
        programs = [
            subprocess.Popen(
                [sys.executable, "-m", f"bursar.{name}.main", "--work-dir", str(tmp_path / name), *flags],
                env=environment, stdout=log, stderr=log,
            )
            for name, flags in (("master", ("--listen", address, "--metrics", "")), ("agent", agent))
        ]  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while CARD not in run("gpu", "ls").stdout:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            yield run
        finally:
            for program in programs:
                program.kill()
                program.wait()


def test_an_operator_cuts_a_card_and_makes_it_whole_and_hears_what_went_wrong(bursar: Bursar) -> None:
    def kinds(done: subprocess.CompletedProcess[str]) -> list[str]:
        assert done.returncode == 0, done.stderr
        shown: list[Any] = json.loads(done.stdout)
        return [one["device"]["kind"] for one in shown]

    assert kinds(bursar("gpu", "partition", "GPU-aaaa", "3g.40gb,1g.10gb=2", "-o", "json")) == [
        "mig-3g.40gb",
        "mig-1g.10gb",
        "mig-1g.10gb",
    ]
    assert kinds(bursar("gpu", "partition", CARD, "whole", "-o", "json")) == ["gpus"]
    failed = bursar("gpu", "partition", "GPU-aaaa", "1g.10gb=7")
    assert failed.returncode == 1 and "at 5: Insufficient Resources; there is now: whole" in failed.stderr
    refused = bursar("gpu", "partition", "GPU-aaaa", "quarters")
    assert refused.returncode != 0 and "'quarters' is not understood" in refused.stderr and "hint:" in refused.stderr
