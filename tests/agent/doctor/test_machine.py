"""What the doctor makes of a machine: each thing that can be wrong, with why and what to do."""

from __future__ import annotations

import json
import os
import resource
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from bursar.agent.doctor import machine
from bursar.agent.doctor.findings import Finding, Verdict, as_plain, as_text, fail, ok, warn
from bursar.core.resources import PortRange


def is_explained(finding: Finding) -> bool:
    """Nobody is left alone with a verdict."""
    return bool(finding.found) and (finding.verdict is Verdict.OK or bool(finding.why and finding.todo))


def test_findings_are_shown_and_summed() -> None:
    findings = [
        ok("a", "well"),
        warn("long name", "poor", "it matters " * 20, "help"),
        fail("b", "bad", "why", "do it"),
    ]
    text = as_text(findings)
    assert text.splitlines()[0] == "ok    a          well"
    assert max(map(len, text.splitlines())) <= 120
    assert text.endswith("1 ok, 1 to look at, 1 to repair")
    plain = json.loads(json.dumps(as_plain(findings)))
    assert (plain["ok"], plain["warn"], plain["fail"]) == (1, 1, 1)
    assert plain["findings"][2] == {"check": "b", "verdict": "fail", "found": "bad", "why": "why", "todo": "do it"}


@pytest.mark.parametrize(
    ("files", "directories", "verdict", "found"),
    [
        ({"cgroup.controllers": "cpuset cpu io memory pids rdma\n"}, (), Verdict.OK, "version 2 with cpu"),
        ({"cgroup.controllers": "cpu pids\n"}, (), Verdict.WARN, "version 2, without cpuset, io, memory"),
        ({}, ("cpu", "cpuset", "blkio", "memory", "pids"), Verdict.WARN, "version 1"),
        ({}, ("cpu", "memory"), Verdict.WARN, "version 1, without cpuset, io, pids"),
        ({}, (), Verdict.FAIL, "none under"),
    ],
)
def test_control_groups(
    tmp_path: Path, files: dict[str, str], directories: tuple[str, ...], verdict: Verdict, found: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for name in directories:
        (tmp_path / name).mkdir()
    finding = machine.cgroups(tmp_path)
    assert finding.verdict is verdict and finding.found.startswith(found) and is_explained(finding)


def test_this_machine_is_judged_without_a_fault() -> None:
    for finding in (
        machine.python("1"),
        machine.kernel(),
        machine.clock(),
        machine.identity(),
        machine.user("process"),
    ):
        assert is_explained(finding) and finding.verdict is not Verdict.FAIL


def test_an_old_python_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MIN_PYTHON", (4, 0))
    assert machine.python("1").verdict is Verdict.FAIL


def test_few_open_files_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    assert machine.open_files().verdict is Verdict.WARN
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert machine.open_files() == ok("open files", "without a limit")


@pytest.mark.parametrize("runtime", ["docker", "process"])
def test_a_user_without_rights_is_told_what_that_means(monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    finding = machine.user(runtime)
    assert finding.verdict is Verdict.WARN and is_explained(finding)


def test_a_work_directory_is_looked_at_and_not_made(tmp_path: Path) -> None:
    new = tmp_path / "a" / "b"
    first, second = machine.work_dir(new)
    assert not (tmp_path / "a").exists()
    assert "made at the first start" in first.found and second.check == "disk"
    (tmp_path / "file").touch()
    (refused,) = machine.work_dir(tmp_path / "file")
    assert refused.verdict is Verdict.FAIL and "is no directory" in refused.found


@pytest.mark.parametrize(("kind", "words"), [("tmpfs", "is in memory"), ("nfs4", "is on nfs4")])
def test_a_disk_that_forgets_or_is_elsewhere_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, words: str
) -> None:
    monkeypatch.setattr(machine, "_file_system", lambda _: kind)
    finding = machine.work_dir(tmp_path)[0]
    assert finding.verdict is Verdict.WARN and words in finding.found and is_explained(finding)


@pytest.mark.parametrize(("free", "verdict"), [(2**40, Verdict.OK), (2**32, Verdict.WARN), (2**20, Verdict.FAIL)])
def test_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, verdict: Verdict) -> None:
    usage: Any = type("Usage", (), {"free": free, "total": 2**41})
    monkeypatch.setattr(psutil, "disk_usage", lambda _: usage)
    assert machine.disk("disk", tmp_path).verdict is verdict


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert machine.metrics_port(f"127.0.0.1:{port}").verdict is Verdict.WARN
        finding = machine.offered_ports((PortRange(port, port),), Path("/no/such/file"))
        assert finding.verdict is Verdict.WARN and f"of which {port} are in use" in finding.found
    assert machine.metrics_port(f"127.0.0.1:{port}").verdict is Verdict.OK
    assert machine.metrics_port("").verdict is Verdict.OK


def test_ports_that_the_kernel_hands_out_are_told(tmp_path: Path) -> None:
    (tmp_path / "range").write_text("32768\t60999\n")
    assert machine.offered_ports((PortRange(31000, 32000),), tmp_path / "range").verdict is Verdict.OK
    finding = machine.offered_ports((PortRange(31000, 32000), PortRange(40000, 40010)), tmp_path / "range")
    assert finding.verdict is Verdict.WARN and "[40000-40010]" in finding.why
