# ruff: noqa: ASYNC220, ASYNC222 - processes are started and waited for here as an agent that dies would
"""What is particular to plain processes: the shim, its record, and every way in which an agent can die around them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bursar.agent.containers import shim
from bursar.agent.containers.logs import read_logs
from bursar.agent.containers.process import ProcessRuntime, boot_id
from bursar.agent.containers.process_limits import limits_command
from bursar.agent.containers.runtime import ContainerId, LaunchFailed, RuntimeUnavailable
from bursar.agent.containers.simulated import SimulatedProgram
from bursar.core.tasks import StatusReason
from bursar.core.ulimits import parse_ulimits

UNTIL_GO = "until [ -e go ]; do sleep 0.02; done"
NOTHING = SimulatedProgram()
LOST = StatusReason.CONTAINER_LOST


@pytest.fixture
async def bench(make_bench: Any) -> AsyncIterator[Any]:
    async with make_bench("process") as made:
        yield made


async def appears(path: Path) -> None:
    async with asyncio.timeout(20):
        while not path.exists():
            await asyncio.sleep(0.01)


def record_of(bench: Any, spec: Any) -> Path:
    path: Path = bench.tmp_path / "records" / f"{spec.container_id}.record"
    return path


def pid_of(bench: Any, spec: Any) -> int:
    record = shim.read_record(record_of(bench, spec))
    assert record is not None and record.pid is not None
    return record.pid


async def begun(bench: Any, runtime: ProcessRuntime, name: str = "task", text: str = UNTIL_GO) -> Any:
    """A task whose command runs."""
    spec = bench.spec(name, bench.script(f"touch begun; {text}", NOTHING))
    await runtime.start(spec)
    await appears(spec.sandbox / "begun")
    return spec


async def test_agent_is_killed_and_the_next_one_adopts(bench: Any) -> None:
    """The whole way, with a process that is really killed: `kill -9` in the middle of a task."""
    program = """
import asyncio, sys
from pathlib import Path
from bursar.agent.containers.process import ProcessRuntime
from bursar.agent.containers.runtime import ContainerSpec
async def main():
    runtime = ProcessRuntime(Path(sys.argv[1]))
    await runtime.open(lambda *_: None)
    command = ("sh", "-c", sys.argv[4])
    environment = {"PATH": "/usr/bin:/bin"}
    await runtime.start(ContainerSpec(sys.argv[2], "f", "t", command, "", environment, Path(sys.argv[3]), 1000, 0))
    print("started", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    spec = bench.spec("orphan", bench.script("", NOTHING))
    text = f"echo early; {UNTIL_GO}; echo late; exit 7"
    arguments = [str(bench.tmp_path / "records"), spec.container_id, str(spec.sandbox), text]
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert agent.stdout is not None and await agent.stdout.readline() == b"started\n"
    agent.kill()
    await agent.wait()
    runtime = await bench.open()
    assert [(found.container_id, found.exit) for found in await runtime.recover()] == [(spec.container_id, None)]
    (spec.sandbox / "go").touch()
    assert (await bench.exit_of(spec.container_id)).exit_code == 7
    assert bench.output(spec) == "early\nlate\n"
    assert len(bench.exits[spec.container_id]) == 1


async def test_agent_died_before_the_start(bench: Any) -> None:
    """Between the record and Popen: there is no such task, and it can be started."""
    spec = bench.spec("unborn", bench.script("exit 3", NOTHING))
    runtime = await bench.open()
    os.close(shim.create_record(record_of(bench, spec), spec.container_id, spec.sandbox, boot_id()))
    assert await runtime.recover() == []
    assert (await bench.run(runtime, spec)).exit_code == 3


async def test_agent_died_in_the_middle_of_the_record(bench: Any) -> None:
    runtime = await bench.open()
    spec = bench.spec("torn", bench.script("exit 3", NOTHING))
    record_of(bench, spec).write_text('{"container_id": "tor')
    assert await runtime.recover() == []
    assert (await bench.run(runtime, spec)).exit_code == 3


async def test_agent_died_before_the_shim_said_anything(bench: Any) -> None:
    """Between Popen and the shim's first line: the lock tells that it lives, and it is waited for."""
    runtime = await bench.open()
    spec = bench.spec("newborn", bench.script("", NOTHING))
    fd = shim.create_record(record_of(bench, spec), spec.container_id, spec.sandbox, boot_id())
    # A shim that is slow to begin.
    slow = shim.SCRIPT.replace('echo "pid', 'until [ -e begin ]; do sleep 0.01; done\necho "pid')
    command = ["/bin/sh", "-c", slow, "bursar", "sh", "-c", f"{UNTIL_GO}; exit 5"]
    child = subprocess.Popen(command, stdin=fd, cwd=spec.sandbox, start_new_session=True)
    os.close(fd)
    recovering = asyncio.create_task(runtime.recover())
    await asyncio.sleep(0.05)
    assert not recovering.done()
    (spec.sandbox / "begin").touch()
    assert [(found.container_id, found.exit) for found in await recovering] == [(spec.container_id, None)]
    (spec.sandbox / "go").touch()
    assert (await bench.exit_of(spec.container_id)).exit_code == 5
    child.returncode = 0


async def test_shim_ended_between_the_agents(bench: Any) -> None:
    first = await bench.open()
    spec = await begun(bench, first, text=f"{UNTIL_GO}; exit 6")
    await first.close()
    (spec.sandbox / "go").touch()
    async with asyncio.timeout(20):
        while shim.shim_lives(record_of(bench, spec)):
            await asyncio.sleep(0.01)
    second = await bench.open()
    (found,) = await second.recover()
    assert found.exit is not None and found.exit.exit_code == 6
    assert [again.exit for again in await second.recover()] == [found.exit], "until it is removed"
    await second.remove(spec.container_id)
    assert await second.recover() == []


@pytest.mark.parametrize("adopted", [False, True])
async def test_killed_shim_is_a_lost_container_and_nothing_of_it_lives_on(bench: Any, adopted: bool) -> None:
    runtime = await bench.open()
    spec = await begun(bench, runtime, text="while true; do echo x >> heartbeat; sleep 0.02; done")
    await appears(spec.sandbox / "heartbeat")
    if adopted:
        await runtime.close()
        runtime = await bench.open()
        await runtime.recover()
    os.kill(pid_of(bench, spec), signal.SIGKILL)
    end = await bench.exit_of(spec.container_id)
    assert (end.exit_code, end.reason) == (None, LOST)
    await asyncio.sleep(0.1)
    before = (spec.sandbox / "heartbeat").read_bytes()
    await asyncio.sleep(0.2)
    assert (spec.sandbox / "heartbeat").read_bytes() == before


async def test_shim_killed_while_nobody_watched(bench: Any) -> None:
    first = await bench.open()
    spec = await begun(bench, first)
    pid = pid_of(bench, spec)
    await first.close()
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    second = await bench.open()
    (found,) = await second.recover()
    assert found.exit is not None and (found.exit.exit_code, found.exit.reason) == (None, LOST)


async def test_end_by_our_sigkill_is_137_for_the_next_agent_too(bench: Any) -> None:
    first = await bench.open()
    spec = await begun(bench, first)
    pid = pid_of(bench, spec)
    await first.kill(spec.container_id, 0)
    await first.close()
    os.waitpid(pid, 0)
    second = await bench.open()
    (found,) = await second.recover()
    assert found.exit is not None and found.exit.exit_code == 137


async def test_another_boot_means_the_task_is_dead(bench: Any) -> None:
    runtime = await bench.open()
    spec = bench.spec("old", bench.script("", NOTHING))
    fd = shim.create_record(record_of(bench, spec), spec.container_id, spec.sandbox, "another-boot")
    os.write(fd, b"pid 1\n")
    os.close(fd)
    (found,) = await runtime.recover()
    assert found.exit is not None and found.exit.reason is StatusReason.AGENT_REBOOTED
    fd = os.open(record_of(bench, spec), os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"exit 4\n")
    os.close(fd)
    (found,) = await runtime.recover()
    assert found.exit is not None and found.exit.exit_code == 4, "it had ended before"


async def test_nothing_is_started_twice(bench: Any) -> None:
    runtime = await bench.open()
    spec = await begun(bench, runtime, text=f"echo x >> runs; {UNTIL_GO}")
    with pytest.raises(LaunchFailed, match="started already"):
        await runtime.start(spec)
    (spec.sandbox / "go").touch()
    await bench.exit_of(spec.container_id)
    with pytest.raises(LaunchFailed, match="started already"):
        await runtime.start(spec)
    assert (spec.sandbox / "runs").read_text() == "x\n"


async def test_a_pid_that_is_somebody_elses_now_is_not_adopted(bench: Any) -> None:
    runtime = await bench.open()
    spec = bench.spec("reused", bench.script("", NOTHING))
    fd = shim.create_record(record_of(bench, spec), spec.container_id, spec.sandbox, boot_id())
    os.write(fd, f"pid {os.getpid()}\n".encode())
    os.close(fd)
    (found,) = await runtime.recover()
    assert found.exit is not None and found.exit.reason is LOST


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1])
async def test_signals_to_the_group_reach_the_command_and_not_the_shim(bench: Any, number: signal.Signals) -> None:
    runtime = await bench.open()
    spec = await begun(bench, runtime, text="while true; do sleep 0.02; done")
    os.killpg(pid_of(bench, spec), number)
    end = await bench.exit_of(spec.container_id)
    assert (end.exit_code, end.reason) == (128 + number, StatusReason.COMMAND_EXITED)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("exit", "3"), 127),  # no program of this name: words of the shim's own language are not obeyed
        (("exec", "true"), 127),
        ((":",), 127),
        (("/bin/sh", "-c", "exit 3"), 3),
        (("/nowhere/program",), 127),
        (("/etc/passwd",), 126),
        (("-x",), 127),
        (("true", "; exit 9", "$(exit 9)", "&"), 0),
    ],
)
async def test_command_is_run_as_it_is(bench: Any, command: tuple[str, ...], code: int) -> None:
    runtime = await bench.open()
    spec = dataclasses.replace(bench.spec("words", bench.script("", NOTHING)), command=command)
    assert (await bench.run(runtime, spec)).exit_code == code


async def test_environment_is_exact_down_to_names_that_shells_meddle_with(bench: Any) -> None:
    runtime = await bench.open()
    given = {"PATH": "/usr/bin:/bin", "a.b": "1", "IFS": "x", "PWD": "/elsewhere", "LD_PRELOAD": "", "ENV": "/dev/full"}
    spec = dataclasses.replace(bench.spec("odd", bench.script("", NOTHING), given), command=("env",))
    assert (await bench.run(runtime, spec)).exit_code == 0
    assert dict(line.split("=", 1) for line in bench.output(spec).splitlines()) == given


async def test_a_task_may_destroy_its_sandbox(bench: Any) -> None:
    runtime = await bench.open()
    end = await bench.run(runtime, bench.spec("rm", bench.script("rm -rf ./* ./.[!.]*; exit 3", NOTHING)))
    assert end.exit_code == 3
    spec = bench.spec("rmdir", bench.script('rm -rf "$PWD"; exit 4', NOTHING))
    assert (await bench.run(runtime, spec)).exit_code == 4
    await runtime.remove(spec.container_id)


async def test_input_is_empty_and_the_record_out_of_reach(bench: Any) -> None:
    runtime = await bench.open()
    spec = bench.spec("reads", bench.script("cat; readlink /proc/self/fd/0", NOTHING))
    await bench.run(runtime, spec)
    assert bench.output(spec) == "/dev/null\n"


async def test_launches_that_cannot_be(bench: Any) -> None:
    runtime = await bench.open()
    good = bench.spec("bad", bench.script("true", NOTHING))
    for change in (
        {"command": ()},
        {"command": ("true", "\0")},
        {"command": ("true", "x" * 10_000_000)},
        {"environment": {"A": "\0"}},
        {"sandbox": bench.tmp_path / "missing"},
    ):
        with pytest.raises(LaunchFailed) as failed:
            await runtime.start(dataclasses.replace(good, **change))
        assert failed.value.reason is StatusReason.LAUNCH_FAILED and failed.value.message
    assert await runtime.recover() == [], "nothing of them is left"
    assert (await bench.run(runtime, good)).exit_code == 0


async def test_odd_container_ids_are_kept_apart(bench: Any) -> None:
    runtime = await bench.open()
    ids = [ContainerId("a/../../b"), ContainerId("x" * 300), ContainerId("y" * 300)]
    for number, container_id in enumerate(ids):
        spec = bench.spec(f"odd-{number}", bench.script(f"exit {number}", NOTHING))
        assert (await bench.run(runtime, dataclasses.replace(spec, container_id=container_id))).exit_code == number
    assert {found.container_id for found in await runtime.recover()} == set(ids)


async def test_without_pidfd_ends_are_found_all_the_same(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", missing)
    runtime = await bench.open()
    spec = await begun(bench, runtime, text=f"{UNTIL_GO}; exit 2")
    await runtime.close()
    runtime = await bench.open()
    await runtime.recover()
    other = bench.spec("other", bench.script("exit 1", NOTHING))
    assert (await bench.run(runtime, other)).exit_code == 1
    (spec.sandbox / "go").touch()
    assert (await bench.exit_of(spec.container_id)).exit_code == 2


async def test_outputs_are_limited_while_the_task_runs_on(bench: Any) -> None:
    runtime = ProcessRuntime(bench.tmp_path / "records", log_limit_bytes=64 * 1024, log_check_interval_s=0.02)
    await runtime.open(bench.on_exit)
    bench.runtimes.append(runtime)
    text = f"i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; {UNTIL_GO}; echo end"
    spec = await begun(bench, runtime, text=text)
    await bench.printed(spec, "line 19999\n")
    async with asyncio.timeout(20):
        while (spec.sandbox / "stdout").stat().st_blocks * 512 > 72 * 1024:
            await asyncio.sleep(0.02)
    (spec.sandbox / "go").touch()
    await bench.exit_of(spec.container_id)
    chunks = [chunk async for chunk in read_logs(spec.sandbox, ended=lambda: True)]
    data = b"".join(chunk.data for chunk in chunks)
    written = b"".join(b"line %d\n" % number for number in range(20000)) + b"end\n"
    assert 0 < len(data) <= 72 * 1024
    assert written.endswith(data) and sum(chunk.skipped_bytes for chunk in chunks) == len(written) - len(data)
    await runtime.remove(spec.container_id)
    assert (spec.sandbox / "stdout").read_bytes() == data


async def test_second_kill_can_only_shorten_the_grace(bench: Any) -> None:
    runtime = await bench.open()
    spec = await begun(bench, runtime, text=f"trap '' TERM; touch trapped; {UNTIL_GO}")
    await appears(spec.sandbox / "trapped")
    await runtime.kill(spec.container_id, 600_000)
    await runtime.kill(spec.container_id, 20)
    await runtime.kill(spec.container_id, 600_000)
    assert (await bench.exit_of(spec.container_id)).exit_code == 137


async def test_a_place_that_cannot_be_used_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeUnavailable, match="--work-dir"):
        await ProcessRuntime(tmp_path / "file" / "records").open(lambda *_: None)

    def unlockable(fd: Any, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unlockable)
    with pytest.raises(RuntimeUnavailable, match="not supported"):
        await ProcessRuntime(tmp_path / "records").open(lambda *_: None)


async def test_tasks_hold_nothing_of_the_agents(bench: Any) -> None:
    """No descriptor, no ignored or blocked signal."""
    runtime = await bench.open()
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        text = "ls /proc/self/fd | wc -w; grep -E '^Sig(Ign|Blk)' /proc/self/status"
        spec = bench.spec("clean", bench.script(text, NOTHING))
        await bench.run(runtime, spec)
    finally:
        os.close(read)
        os.close(write)
    count, blocked_name, blocked, ignored_name, ignored = bench.output(spec).split()
    assert int(count) == 4, "input, outputs, and the directory that is listed"
    assert (blocked_name, ignored_name) == ("SigBlk:", "SigIgn:")
    # Signals 32 and 33 are the C library's own; make leaves them ignored in all that it starts.
    own = ~(0b11 << 31)
    assert (int(blocked, 16) & own, int(ignored, 16) & own) == (0, 0)


async def test_no_zombie_and_no_descriptor_is_left(bench: Any) -> None:
    runtime = await bench.open()
    before = set(os.listdir("/proc/self/fd"))
    pids = []
    for number in range(5):
        spec = bench.spec(f"brief-{number}", bench.script("true", NOTHING))
        await bench.run(runtime, spec)
        pids.append(pid_of(bench, spec))
        await runtime.remove(spec.container_id)
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            assert os.waitpid(pid, os.WNOHANG) == (pid, 0), "waited for already"
    assert set(os.listdir("/proc/self/fd")) == before


async def test_limits_that_cannot_be_set_are_explained_before_the_start(
    make_bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        LaunchFailed, match=r"nofile=-1 is more than any process of a machine may have \(\d+, fs.nr_open"
    ):
        limits_command(parse_ulimits(("nofile=-1",)))
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text("Name:\tx\nCapEff:\t0000000000000000\n")
    monkeypatch.setattr(resource, "getrlimit", lambda number: (10, 100))
    assert limits_command(parse_ulimits(("nproc=50:100",)), tmp_path)[1:] == ("--nproc=50:100", "--")
    for text in ("nproc=50:101", "memlock=-1"):
        with pytest.raises(LaunchFailed, match=r"is more than the 100 that this agent itself may have"):
            limits_command(parse_ulimits((text,)), tmp_path)
    (tmp_path / "self/status").write_text("Name:\tx\nCapEff:\t000001ffffffffff\n")
    assert limits_command(parse_ulimits(("memlock=-1",)), tmp_path)[1:] == ("--memlock=unlimited:unlimited", "--")
    assert limits_command(()) == ()
    monkeypatch.setenv("PATH", "/nowhere")
    async with make_bench("process") as bench:
        runtime = await bench.open()
        spec = bench.spec("limited", bench.script("true", SimulatedProgram()), ulimits=parse_ulimits(("core=0",)))
        with pytest.raises(LaunchFailed, match="no `prlimit`"):
            await runtime.start(spec)
        assert await runtime.recover() == []
