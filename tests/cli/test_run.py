"""`bursar run` and `bursar batch` as processes, against a simulated master over real gRPC."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.lives import Check, HealthCheck, HttpCheck, TcpCheck
from bursar.core.messages.framework import Accept, Decline, Kill, Subscribe
from bursar.core.messages.operator import ExplainFrameworkResponse, Refusal, RefusalReason
from bursar.core.tasks import TaskState


async def test_output_and_exit_code_are_the_commands_own(master: Any, bursar: Any) -> None:
    done = await bursar("run", "--gpus", "2", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; echo words >&2; exit 7")
    assert (done.code, done.stdout, done.stderr) == (7, ",".join(master.gpus) + "\n", "words\n")
    info = master.said(Subscribe)[0].info
    assert (info.name, info.roles, info.capabilities, info.failover_timeout_ms) == (
        "sh",
        ("*",),
        ("GPU_RESOURCES",),
        60_000,
    )
    assert master.torn_down == {info.framework_id} and not master.unacknowledged
    assert all(task.state.is_terminal for task in master.tasks.values())


async def test_defaults_and_options_reach_the_master(master: Any, bursar: Any) -> None:
    assert (await bursar("run", "true")).code == 0
    spec = master.said(Accept)[0].operations[0].operation.tasks[0]
    assert spec.resources.scalars == {"cpus": 1000, "mem": 128 * 2**20} and spec.resources.gpus == 0
    assert master.said(Subscribe)[0].info.capabilities == ()
    master.calls.clear()
    arguments = [
        "--role",
        "ml/a",
        "--name",
        "mine",
        "--cpus",
        "0.125",
        "--mem",
        "2GiB",
        "--gpus",
        "1",
        "--capability",
        "X",
        "--env",
        "A=1=2",
        "--env",
        "MINE",
        "--env",
        "NOT_SET",
    ]
    done = await bursar("run", *arguments, "--", "sh", "-c", "echo $A $MINE", MINE="here")
    assert (done.code, done.stdout) == (0, "1=2 here\n")
    info, spec = master.said(Subscribe)[0].info, master.said(Accept)[0].operations[0].operation.tasks[0]
    assert (info.name, info.roles, info.capabilities) == ("mine", ("ml/a",), ("X",))
    assert spec.resources.scalars == {"cpus": 125, "mem": 2 * 2**30} and spec.resources.gpus == 1
    assert [variable.name for variable in spec.environment] == ["A", "MINE"]


async def test_options_of_its_life_reach_the_master(master: Any, bursar: Any) -> None:
    assert (await bursar("run", "--max-run-time", "1h", "--kill-grace", "10s", "true")).code == 0
    spec = master.said(Accept)[0].operations[0].operation.tasks[0]
    assert (spec.max_run_ms, spec.kill_grace_ms) == (3_600_000, 10_000)
    looked = ("--health", "http:80/ready", "--check", "tcp:80", "--check-interval", "2s", "--health-failures", "5")
    assert (await bursar("run", *looked, "true")).code == 0
    spec = master.said(Accept)[1].operations[0].operation.tasks[0]
    assert spec.health_check == HealthCheck(Check(http=HttpCheck(80, "/ready"), interval_ms=2_000), 5)
    assert spec.check == Check(tcp=TcpCheck(80), interval_ms=2_000)
    assert "nothing to look at" in (await bursar("run", "--health-failures", "5", "true")).stderr
    done = await bursar("run", "--max-run-time", "0s", "true")
    assert done.code == 2 and "max_run_ms: must be more than 0" in done.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        ("exit 255", 255),
        ("no-such-program-here", 127),
        ("/etc/passwd", 126),
    ],
)
async def test_exit_codes_as_in_a_shell(bursar: Any, command: str, code: int) -> None:
    done = await bursar("run", "--", "sh", "-c", command)
    assert done.code == code


async def test_bytes_come_through_as_they_are(bursar: Any) -> None:
    process = await bursar.start(
        "run", "--", sys.executable, "-c", "import sys; sys.stdout.buffer.write(bytes(range(256)) * 4096)"
    )
    stdout, stderr = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0 and stderr == b""
    assert stdout == bytes(range(256)) * 4096


async def test_a_broken_log_stream_neither_loses_nor_repeats(master: Any, bursar: Any) -> None:
    master.cut_logs_after = 700_000
    process = await bursar.start("run", "--", "sh", "-c", "seq 1 200000; seq 1 2000 >&2")
    stdout, stderr = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0 and master.cut_logs_after is None
    assert stdout.decode().split() == [str(n) for n in range(1, 200_001)]
    assert stderr.decode().split() == [str(n) for n in range(1, 2_001)]


async def test_it_survives_a_restart_of_the_master(master: Any, bursar: Any) -> None:
    process = await bursar.start(
        "run", "--", "sh", "-c", "echo before; while ! test -e /proc/self/cwd/never; do sleep 0.2; done"
    )
    await master.until(lambda: any(task.log for task in master.tasks.values()))
    await master.stop()
    await asyncio.sleep(0.5)
    await master.start()
    await master.until(lambda: len(master.said(Subscribe)) == 2)
    master.offering = False
    (task,) = master.tasks.values()
    task.log.append((1, b"after\n"))
    task.grew.set()
    os.killpg(task.process.pid, signal.SIGKILL)
    done = await bursar.finish(process)
    assert (done.code, done.stdout) == (137, "before\nafter\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_kills_the_task_and_unregisters(
    master: Any, bursar: Any, number: signal.Signals, code: int
) -> None:
    process = await bursar.start(
        "run", "--", "sh", "-c", "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done"
    )
    await master.until(lambda: any(task.log for task in master.tasks.values()))
    process.send_signal(number)
    done = await bursar.finish(process)
    assert done.code == code and done.stdout == "up\nbye\n" and "ending the task" in done.stderr
    assert master.said(Kill) and master.torn_down
    assert [task.state for task in master.tasks.values()] == [TaskState.KILLED]


async def test_a_second_signal_leaves_at_once(master: Any, bursar: Any) -> None:
    master._kill = lambda task: None
    process = await bursar.start("run", "--", "sleep", "60")
    await master.until(lambda: any(task.state is TaskState.RUNNING for task in master.tasks.values()))
    await asyncio.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert (
        await asyncio.wait_for(process.stderr.readline(), 10) == b"bursar: ending the task; once more leaves at once\n"
    )
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 30) == 130
    await process.communicate()
    del master._kill


async def test_a_signal_while_waiting_unregisters(master: Any, bursar: Any) -> None:
    process = await bursar.start("run", "--gpus", "9", "true")
    await master.until(lambda: master.said(Subscribe))
    process.send_signal(signal.SIGINT)
    done = await bursar.finish(process)
    assert done.code == 130 and master.torn_down and not master.tasks


async def test_waiting_is_bounded_and_explained(master: Any, bursar: Any) -> None:
    refusals = (
        Refusal("*", RefusalReason.HIDDEN_BY_RULE, 1, "a", "1 agent has GPUs", "ask for GPUs"),
        Refusal(
            "*", RefusalReason.EXCEEDS_AGENT, 3, "a", "no agent has 9 GPUs; the largest has 2", "ask for at most 2"
        ),
    )
    master.operator["ExplainFramework"] = lambda request: ExplainFrameworkResponse(refusals, 3)
    done = await bursar("run", "--gpus", "9", "--wait", "3s", "true")
    assert done.code == 124 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == "bursar: waiting: no agent has 9 GPUs; the largest has 2 (ask for at most 2)"
    assert lines[-1] == "bursar: not started within 3s, given up" and len(lines) == 3
    assert master.torn_down


async def test_what_does_not_fit_is_declined_at_once(master: Any, bursar: Any) -> None:
    master.runs_without_image = False
    master.operator["ExplainFramework"] = lambda request: ExplainFrameworkResponse((), 1)
    done = await bursar("run", "--wait", "2500ms", "true")
    assert done.code == 124 and master.said(Decline)
    assert done.stderr.splitlines()[-1] == "bursar: not started within 2500ms, given up", "the reason comes first"
    assert "node-1 runs containers and has no default image, and the task names none" in done.stderr


async def test_a_refused_task_is_not_started(master: Any, bursar: Any) -> None:
    master.refuse_accepts = [ErrorDetail(ErrorReason.TASK_INVALID, "what is wrong", "what to do")]
    done = await bursar("run", "true")
    assert (done.code, done.stdout, done.stderr) == (
        125,
        "",
        "bursar: the task was refused: what is wrong (what to do)\n",
    )


async def test_a_torn_down_framework_is_told(master: Any, bursar: Any) -> None:
    from bursar.core.messages.framework import StreamError

    process = await bursar.start("run", "sleep", "60")
    await master.until(lambda: any(task.state is TaskState.RUNNING for task in master.tasks.values()))
    master.say(StreamError(ErrorDetail(ErrorReason.FRAMEWORK_REMOVED, "the framework was torn down")))
    done = await bursar.finish(process)
    assert done.code == 125 and done.stderr == "bursar: the framework was torn down\n"


async def test_a_closed_stdout_ends_the_task(master: Any, bursar: Any) -> None:
    process = await bursar.start("run", "--", "sh", "-c", "while echo yes; do :; done")
    await asyncio.wait_for(process.stdout.readline(), 20)
    process._transport.get_pipe_transport(1).close()
    assert await asyncio.wait_for(process.wait(), 20) == 141
    assert master.torn_down and (await process.stderr.read()) == b""


async def test_batch_prints_a_summary(master: Any, bursar: Any) -> None:
    done = await bursar("batch", "--count", "3", "-o", "json", "--", "sh", "-c", "test {index} -ne 1")
    summary = json.loads(done.stdout)
    assert done.code == 1 and summary["count"] == 3 and not summary["succeeded"]
    assert [(task["index"], task["exit_code"]) for task in summary["tasks"]] == [(0, 0), (1, 1), (2, 0)]
    assert {name: summary[name] for name in ("finished", "failed", "not_ended", "retried", "relaunched")} == {
        "finished": 2, "failed": 1, "not_ended": 0, "retried": 0, "relaunched": 0
    }  # fmt: skip
    assert done.stderr == "bursar: job 1 on node-1: exited with 1\n"
    done = await bursar("batch", "--count", "2", "true")
    assert (done.code, done.stderr) == (0, "")
    titles, values = done.stdout.splitlines()
    assert titles == "JOBS  FINISHED  FAILED  NOT ENDED  RETRIED  RELAUNCHED  TOOK"
    assert re.fullmatch(r"2     2         0       0          0        0           \d+\.\ds", values)


async def test_batch_lists_what_failed(master: Any, bursar: Any) -> None:
    done = await bursar(
        "batch", "--count", "2", "--retries", "1", "--backoff", "10ms", "--", "sh", "-c", "exit {index}"
    )
    assert done.code == 1
    assert done.stderr.splitlines() == [
        "bursar: job 1: exited with 1; again in 10ms",
        "bursar: job 1 on node-1: exited with 1",
    ]
    *_, titles, row = done.stdout.splitlines()
    assert titles.split("  ")[0] == "FAILED JOB" and row.split() == [
        "1",
        "FAILED",
        "1",
        "2",
        "node-1",
        "exited",
        "with",
        "1",
    ]


async def test_a_batch_from_a_file(master: Any, bursar: Any, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_text(f"# jobs\necho one > {tmp_path}/1\n\necho two > {tmp_path}/2\n")
    done = await bursar("batch", "--file", str(lines), "-o", "name")
    assert (done.code, done.stdout) == (0, "0\n1\n")
    assert [(tmp_path / name).read_text() for name in "12"] == ["one\n", "two\n"]
    lines.write_text("3\n4\n")
    done = await bursar("batch", "--file", str(lines), "--", "touch", f"{tmp_path}/{{line}}-{{index}}")
    assert done.code == 0 and (tmp_path / "3-0").exists() and (tmp_path / "4-1").exists()
    lines.write_bytes(b"\xff\xfe")
    done = await bursar("batch", "--file", str(lines))
    assert done.code == 2 and "not a text in UTF-8" in done.stderr


async def test_batch_without_a_master(bursar: Any, unused_tcp_port: int) -> None:
    done = await bursar("--master", f"127.0.0.1:{unused_tcp_port}", "batch", "--count", "1", "true")
    assert done.code == 4 and "no master answers at" in done.stderr and done.stdout == ""


async def test_an_interrupted_batch_unregisters(master: Any, bursar: Any) -> None:
    process = await bursar.start("batch", "--count", "2", "sleep", "60")
    await master.until(lambda: any(task.state is TaskState.RUNNING for task in master.tasks.values()))
    process.send_signal(signal.SIGINT)
    done = await bursar.finish(process)
    assert done.code == 130 and master.torn_down


async def test_run_and_batch_say_which_offers_they_take(master: Any, bursar: Any) -> None:
    await bursar("run", "--constraint", "rack=r1,cpus>=1", "--constraint", "rack=r2", "true")
    await bursar("batch", "--count", "1", "--constraint", "rack=r3", "true")
    taken = [call.info.offer_settings[0].constraints for call in master.said(Subscribe)]
    assert taken == [("rack=r1,cpus>=1", "rack=r2"), ("rack=r3",)]
    wrong = await bursar("run", "--constraint", "gpus>=many", "true")
    assert wrong.code == 2 and "many" in wrong.stderr and len(master.said(Subscribe)) == 2
