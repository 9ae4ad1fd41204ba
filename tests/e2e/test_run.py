"""`bursar run` on a real cluster: the command's output and exit code are the user's, whatever they are."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from typing import Any

import pytest

GPU_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_gpus_and_the_commands_own_exit_code(cluster: Any) -> None:
    done = cluster.bursar("run", "--gpus", "2", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; exit 7")
    uuids = done.stdout.removesuffix("\n").split(",")
    assert done.code == 7 and done.stderr == "" and len(set(uuids)) == 2
    assert all(GPU_UUID.fullmatch(uuid) for uuid in uuids) and set(uuids) < set(cluster.uuids("node-gpu"))


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 124"], 124),
        (["sh", "-c", "exit 255"], 255),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["/nonexistent/program"], 127),
        (["no-such-program"], 127),
        (["/etc/passwd"], 126),
        (["/tmp"], 126),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_exit_codes_are_those_of_a_shell(cluster: Any, command: list[str], code: int) -> None:
    done = cluster.bursar("run", "--", *command)
    assert done.code == code and done.stdout == "", done
    assert done.stderr.count("\n") <= 1 and (code in (126, 127) or "Killed\n" not in done.stderr), (
        "no words of a shell of ours"
    )


def test_stdout_and_stderr_come_apart_and_whole(cluster: Any) -> None:
    """5 MB of all bytes, and not a word of ours among them."""
    script = (
        "import os, random; r = random.Random(5); data = r.randbytes(5_000_000); words = r.randbytes(1_000_000)\n"
        "os.write(2, b'begin'); n = 0\n"
        "while n < len(data): n += os.write(1, data[n:n + 70_000])\n"
        "n = 0\n"
        "while n < len(words): n += os.write(2, words[n:n + 70_000])\n"
    )
    import random
    import sys

    maker = random.Random(5)
    data, words = maker.randbytes(5_000_000), maker.randbytes(1_000_000)
    done = cluster.bursar("run", "--", sys.executable, "-c", script)
    assert done.code == 0
    assert (len(done.out), hashlib.sha256(done.out).digest()) == (len(data), hashlib.sha256(data).digest())
    assert done.err == b"begin" + words


def test_output_without_a_final_newline_and_early_output_of_a_long_task(cluster: Any) -> None:
    """Output comes while the task runs, not at its end."""
    running = cluster.start("run", "--", "sh", "-c", "printf early; trap 'printf late; exit 3' TERM; sleep 100 & wait")
    running.until_stdout("early")
    (task,) = cluster.bursar("task", "ls", "-o", "name").names
    assert cluster.bursar("task", "kill", task).code == 0
    done = running.finish()
    assert done.stdout == "earlylate" and done.code in (3, 143), done
    assert cluster.bursar("task", "show", task, "-o", "json").json["state"] == "KILLED"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_task_and_the_framework(cluster: Any, number: int, code: int) -> None:
    running = cluster.start("run", "--", "sh", "-c", "echo $$; exec sleep 100")
    pid = int(running.until_stdout("\n"))
    running.signal(number)
    done = running.finish()
    assert done.code == code and done.stdout == f"{pid}\n"
    assert done.stderr == "bursar: ending the task; once more leaves at once\n"
    cluster.until(lambda: not is_alive(pid), "the task has ended")
    assert cluster.ls("framework") == [] and cluster.ls("task") == []


def test_a_task_that_ignores_the_end_is_killed(cluster: Any) -> None:
    running = cluster.start("run", "--", "sh", "-c", "trap '' TERM; echo $$; while :; do sleep 1; done")
    pid = int(running.until_stdout("\n"))
    running.signal(signal.SIGINT)
    done = running.finish()
    assert done.code == 130
    # Killed, and perhaps not reaped yet.
    cluster.until(lambda: not is_alive(pid), "the task has ended")


def test_a_task_leaves_no_children(cluster: Any) -> None:
    """What a task started in the background ends with it."""
    done = cluster.bursar("run", "--", "sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!")
    pid = int(done.stdout)
    assert done.code == 0
    cluster.until(lambda: not is_alive(pid), "the child has ended")


def test_the_environment_of_a_task_is_exactly_this(cluster: Any) -> None:
    """Nothing of the agent's (it has a token), pinning variables of the user dropped, his others kept as they are."""
    fakes = [
        option
        for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "BURSAR_TASK_ID",
                     "BURSAR_SANDBOX", "BURSAR_DEVICES_FILE")
        for option in ("--env", f"{name}=fake")
    ]  # fmt: skip
    own = ["--env", "MINE=a=b c\nd", "--env", "EMPTY="]
    done = cluster.bursar("run", "--gpus", "1", *fakes, *own, "--", "env", "-0")
    seen = dict(line.split("=", 1) for line in done.stdout.split("\0") if line)
    assert done.code == 0
    seen.pop("_", None)  # where /bin/sh is bash, which tells every command its path
    assert set(seen) == {
        "PATH", "HOME", "LANG", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "BURSAR_TASK_ID",
        "BURSAR_SANDBOX", "BURSAR_DEVICES_FILE", "MINE", "EMPTY",
    }  # fmt: skip
    assert seen["MINE"] == "a=b c\nd" and seen["EMPTY"] == "" and "fake" not in seen.values()
    assert seen["CUDA_VISIBLE_DEVICES"] == seen["NVIDIA_VISIBLE_DEVICES"] and seen["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert GPU_UUID.fullmatch(seen["CUDA_VISIBLE_DEVICES"])


def test_a_task_without_gpus_is_told_so(cluster: Any) -> None:
    script = (
        'echo "[$CUDA_VISIBLE_DEVICES] [$NVIDIA_VISIBLE_DEVICES]"; pwd; echo $BURSAR_SANDBOX; cat $BURSAR_DEVICES_FILE'
    )
    done = cluster.bursar("run", "--", "sh", "-c", script)
    lines = done.stdout.splitlines()
    assert lines[0] == "[] [void]"
    assert lines[1] == lines[2], "it runs in a sandbox of its own"
    assert json.loads("".join(lines[3:])) == []


def test_wait_is_bounded(cluster: Any) -> None:
    done = cluster.bursar("run", "--gpus", "5", "--wait", "300ms", "--", "true")
    assert done.code == 124 and done.stdout == "" and "not started within 300ms" in done.stderr, done


def test_waiting_is_explained_with_a_remedy(cluster: Any) -> None:
    """Without a bound it waits, and says after two seconds why and what would help; an interrupt ends it."""
    running = cluster.start("run", "--gpus", "5", "--", "true")
    words = running.until_stderr("waiting:", 10)
    assert "gpus" in words.lower() or "GPU" in words
    running.signal(signal.SIGINT)
    done = running.finish()
    assert done.code == 130 and done.stdout == ""


def test_a_run_without_the_capability_is_told_of_the_filter(cluster: Any) -> None:
    done = cluster.bursar("run", "--gpus", "1", "--capability", "SOMETHING", "--wait", "2500ms", "--", "true")
    assert done.code == 124 and "GPU_RESOURCES" in done.stderr, done


def test_what_becomes_free_goes_to_who_waits(cluster: Any) -> None:
    """Two runs that want all GPUs are one after the other, never together."""
    first = cluster.start("run", "--gpus", "4", "--", "sh", "-c", "echo up; until [ -e go ]; do sleep 0.05; done; pwd")
    first.until_stdout("up")
    second = cluster.start("run", "--gpus", "4", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
    second.until_stderr("waiting:", 10)
    assert second.stdout() == ""
    (task,) = cluster.ls("task")
    cluster.bursar("task", "kill", f"{task['framework_id']}/{task['task_id']}")
    assert first.finish().code == 143
    done = second.finish()
    assert done.code == 0 and set(done.stdout.strip().split(",")) == set(cluster.uuids("node-gpu"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--gpus", "0.5", "--", "true"], "gpus"),
        (["run", "--gpus", "-1", "--", "true"], "gpus"),
        (["run", "--gpus", "nan", "--", "true"], "gpus"),
        (["run", "--gpus", "many", "--", "true"], "gpus"),
        (["run", "--cpus", "1e3", "--", "true"], "cpus"),
        (["run", "--cpus", "0.0001", "--", "true"], "cpus"),
        (["run", "--mem", "1XB", "--", "true"], "mem"),
        (["run", "--role", "a//b", "--", "true"], "a//b"),
        (["run", "--role", "-x", "--", "true"], "-x"),
        (["run", "--role", "a b", "--", "true"], "a b"),
        (["run", "--role", ".", "--", "true"], "."),
        (["run", "--role", "a/*", "--", "true"], "*"),
        (["run", "--no-such-flag", "--", "true"], "--no-such-flag"),
        (["run", "--wait", "soon", "--", "true"], "soon"),
        (["run"], "command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_wrong_usage(cluster: Any, arguments: list[str], words: str) -> None:
    done = cluster.bursar(*arguments)
    assert done.code == 2 and done.stdout == "" and words in done.stderr, done


def test_a_task_with_an_image_never_goes_to_plain_processes(cluster: Any) -> None:
    done = cluster.bursar("run", "--image", "busybox", "--wait", "2500ms", "--", "true")
    assert done.code == 124 and "image" in done.stderr, done
