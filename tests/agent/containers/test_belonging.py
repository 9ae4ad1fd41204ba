"""Which container a process is of."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from bursar.agent.containers.belonging import container_of_process
from bursar.agent.containers.runtime import ContainerId

A, B = ContainerId("a"), ContainerId("b")


def process(proc: Path, pid: int, parent: int, session: int, namespace: str) -> None:
    (proc / str(pid) / "ns").mkdir(parents=True)
    (proc / str(pid) / "ns" / "pid").symlink_to(namespace)
    (proc / str(pid) / "stat").write_text(f"{pid} (a) b) S {parent} {session} {session} 0")


def test_by_its_namespace_its_session_or_its_parents(tmp_path: Path) -> None:
    process(tmp_path, os.getpid(), 1, 1, "pid:[1]")
    process(tmp_path, 10, 1, 10, "pid:[2]")
    process(tmp_path, 11, 10, 11, "pid:[2]")
    process(tmp_path, 12, 11, 11, "pid:[3]")
    process(tmp_path, 20, 1, 20, "pid:[1]")
    process(tmp_path, 21, 1, 20, "pid:[1]")
    process(tmp_path, 22, 20, 22, "pid:[1]")
    process(tmp_path, 23, 22, 23, "pid:[1]")
    process(tmp_path, 30, 1, 30, "pid:[1]")
    first = {A: 10, B: 20, ContainerId("gone"): 0}
    found = {pid: container_of_process(pid, first, tmp_path) for pid in (10, 11, 12, 20, 21, 22, 23, 30, 99)}
    assert found == {10: A, 11: A, 12: A, 20: B, 21: B, 22: B, 23: B, 30: "", 99: ""}


def test_a_child_in_a_session_of_its_own_is_its_parents() -> None:
    with subprocess.Popen(["sleep", "30"], start_new_session=True) as child:
        try:
            assert container_of_process(child.pid, {A: child.pid}) == A
            assert container_of_process(child.pid, {A: os.getpid()}) == A
            assert container_of_process(os.getpid(), {A: child.pid}) == ""
        finally:
            child.kill()
