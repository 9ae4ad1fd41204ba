"""What an exit code means, by the evidence; and where the kernel keeps it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bursar.agent.containers import evidence
from bursar.agent.containers.evidence import Witness, judge, memory_cgroup, numbers_of, usage_of, with_forks
from bursar.agent.containers.runtime import ContainerExit
from bursar.core.memory.overrun import MemoryUsage
from bursar.core.memory.tasks import plan_task
from bursar.core.memory.text import parse_memory_text
from bursar.core.tasks import StatusReason

R = StatusReason
MIB = 2**20


@pytest.mark.parametrize(
    ("code", "testimony", "engine", "reason"),
    [
        (137, evidence.Testimony(), False, R.COMMAND_EXITED),
        (137, evidence.Testimony(oom_kills=0), False, R.COMMAND_EXITED),
        (137, evidence.Testimony(oom_kills=1), False, R.MEM_LIMIT),
        (137, evidence.Testimony(), True, R.MEM_LIMIT),
        # A child was killed, and its parent gave up.
        (1, evidence.Testimony(oom_kills=2), False, R.MEM_LIMIT),
        # A child was killed, and its parent got along without it.
        (0, evidence.Testimony(oom_kills=1), True, R.COMMAND_EXITED),
        (135, evidence.Testimony(), False, R.SIGBUS),
        (135, evidence.Testimony(shm_bytes=MIB, shm_free_bytes=MIB // 2), False, R.SIGBUS),
        (135, evidence.Testimony(shm_bytes=MIB, shm_free_bytes=0), False, R.SHM_LIMIT),
        # A full /dev/shm alone proves nothing either.
        (1, evidence.Testimony(shm_bytes=MIB, shm_free_bytes=0), False, R.COMMAND_EXITED),
    ],
)
def test_evidence_decides_not_the_code(
    code: int, testimony: evidence.Testimony, engine: bool, reason: StatusReason
) -> None:
    end = judge(code, testimony, engine_says_oom=engine)
    assert (end.exit_code, end.reason) == (code, reason)


def test_a_plan_names_the_pool_and_the_option() -> None:
    plan = plan_task(parse_memory_text("container=1GiB,shm=256MiB"))
    end = judge(137, evidence.Testimony(1, usage=MemoryUsage(anon_bytes=900 * MIB)), plan=plan)
    assert end.reason is R.MEM_LIMIT and "app held" in end.message and "give it more" in end.message


def make_container(tmp_path: Path, cgroup: str) -> tuple[Path, Path]:
    shm = tmp_path / "proc/7/root/dev/shm"
    shm.mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text(cgroup)
    return tmp_path / "proc", tmp_path / "cgroups"


@pytest.mark.parametrize("version", [1, 2])
def test_the_counter_is_read_in_either_version_of_cgroups(tmp_path: Path, version: int) -> None:
    lines = "9:name=systemd:/\n4:memory:/docker/abc\n0::/\n" if version == 1 else "0::/docker/abc\n"
    proc, cgroups = make_container(tmp_path, lines)
    directory = cgroups / "memory/docker/abc" if version == 1 else cgroups / "docker/abc"
    directory.mkdir(parents=True)
    counter = directory / ("memory.oom_control" if version == 1 else "memory.events")
    before = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n" if version == 1 else "low 0\nmax 3\noom 1\noom_kill {}\n"
    counter.write_text(before.format(2))
    (directory / "memory.stat").write_text("anon 5\nshmem 3\nunevictable 1\nkernel 2\n")
    assert memory_cgroup(lines, cgroups) == directory
    witness = Witness(7, proc=proc, cgroups=cgroups)
    assert witness.testify().oom_kills == 0, "what was counted before it began is not its own"
    counter.write_text(before.format(3))
    witness.look()
    counter.unlink()
    testimony = witness.testify()
    assert testimony.oom_kills == 1, "what was seen is remembered when the cgroup is gone"
    assert testimony.usage == MemoryUsage(5, 3, 0, 1, 2)
    witness.close()


def test_an_open_shm_is_readable_after_its_container_is_gone(tmp_path: Path) -> None:
    proc, cgroups = make_container(tmp_path, "")
    witness = Witness(7, proc=proc, cgroups=cgroups)
    os.rename(tmp_path / "proc/7", tmp_path / "gone")
    testimony = witness.testify()
    assert testimony.shm_bytes and testimony.shm_free_bytes is not None
    witness.close()
    assert witness.testify().shm_bytes is None


def test_where_nothing_can_be_seen_nothing_is_claimed(tmp_path: Path) -> None:
    witness = Witness(7, proc=tmp_path, cgroups=tmp_path)
    assert witness.testify() == evidence.Testimony()
    witness.close()


def test_memory_stat_of_version_1() -> None:
    text = "cache 10\nrss 7\nshmem 3\ntotal_rss 8\ntotal_shmem 4\nunevictable 1\nbroken\n"
    assert usage_of(numbers_of(text)) == MemoryUsage(anon_bytes=8, shm_bytes=3, locked_bytes=1)
    assert usage_of({}) is None


@pytest.mark.parametrize("version", [1, 2])
def test_forks_that_were_refused_while_it_ran_are_said_where_it_failed(tmp_path: Path, version: int) -> None:
    proc, cgroups = make_container(tmp_path, "8:pids:/docker/x\n0::/docker/x\n" if version == 1 else "0::/docker/x\n")
    directory = cgroups / ("pids/docker/x" if version == 1 else "docker/x")
    directory.mkdir(parents=True)
    (directory / "pids.events").write_text("max 0\n")
    (directory / "pids.max").write_text("20\n")
    witness = Witness(7, proc=proc, cgroups=cgroups)
    failed = ContainerExit(2, R.COMMAND_EXITED, "exited with code 2")
    assert with_forks(failed, witness.testify()) == failed
    (directory / "pids.events").write_text("max 5\n")
    witness.look_at_forks()
    (directory / "pids.events").unlink()
    testimony = witness.testify()
    witness.close()
    assert with_forks(failed, testimony).message == (
        "exited with code 2; it met its limit of 20 processes and threads 5 times; allow it more with --pids"
    )
    well = ContainerExit(0, R.COMMAND_EXITED, "")
    assert with_forks(well, testimony) == well, "it got along without them"
