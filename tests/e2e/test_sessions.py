"""Into running tasks as a user goes: exec, attach, cp, stats (docs/agent.md), on plain processes and in Docker."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bursar.cli.demo.setting import Setting, _import_busybox

#: Ends by itself once `go` is there: none must outlive the test. Ticks while `ticking` is there.
UNTIL_GO = "echo begun; while [ ! -e go ]; do [ ! -e ticking ] || echo tick; sleep 0.05; done; echo gone; exit 7"


@dataclass
class Place:
    """A cluster of one agent, and a task that runs on it."""

    cluster: Any
    runtime: str
    agent_id: str
    run: Any
    task: str

    @property
    def sandbox(self) -> str:
        """Its path inside the task."""
        return "/mnt/bursar/sandbox" if self.runtime == "docker" else "."

    def host_sandbox(self) -> Path:
        (found,) = (self.cluster.where / "node" / "sandboxes").iterdir()
        assert isinstance(found, Path)
        return found

    def exec(self, *words: str) -> Any:
        return self.cluster.bursar("task", "exec", self.task, "--", *words)


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.docker), "process"])
def place(request: pytest.FixtureRequest, bare_cluster: Any, require: Callable[[bool, str], None]) -> Iterator[Place]:
    flags: tuple[str, ...] = ()
    made = None
    if request.param == "docker":
        engine = request.getfixturevalue("engine")
        made = _import_busybox(engine, f"bursar-test-{uuid.uuid4().hex[:8]}")
        require(made is not None, "no static busybox to make an image of (busybox-static)")
        assert isinstance(made, Setting)
        flags = ("--runtime", "docker", "--default-image", made.image)
    bare_cluster.start_master()
    bare_cluster.start_agent("node", *flags, devices="none")
    bare_cluster.until_active("node")
    run = bare_cluster.start("run", "--", "sh", "-c", f"cd /mnt/bursar/sandbox 2>/dev/null; {UNTIL_GO}")
    run.until_stdout("begun")
    (task,) = bare_cluster.ls("task")
    yield Place(bare_cluster, request.param, task["agent_id"], run, task["task_id"])
    if made is not None:
        engine = request.getfixturevalue("engine")
        for container in engine.containers.list(
            all=True, filters={"label": f"bursar.agent_id={task['agent_id']}"}, ignore_removed=True
        ):
            container.remove(force=True)
        made.undo()


def sleeps(word: str) -> bool:
    """Whether exactly `sleep WORD` runs on this machine, in whatever container."""
    return subprocess.run(["pgrep", "-fx", f"sleep {word}"], capture_output=True, check=False).returncode == 0


def go(place: Place) -> None:
    place.exec("touch", f"{place.sandbox}/go")


def test_programs_run_in_the_task_and_their_exit_codes_are_passed_on(place: Place) -> None:
    done = place.exec("sh", "-c", "echo out; echo err >&2; exit 42")
    assert (done.code, done.stdout, done.stderr) == (42, "out\n", "err\n")
    done = place.exec("sh", "-c", "kill -TERM $$")
    assert done.code == 143
    assert place.exec("sh", "-c", "echo $BURSAR_TASK_ID").stdout.strip() == place.task
    done = place.exec("/no/such/program")
    assert done.code in (125, 126, 127) and "no such file" in (done.stderr + done.stdout).lower(), done
    done = place.cluster.bursar("task", "exec", place.task, "--")
    assert done.code == 2, done
    done = place.cluster.bursar("task", "exec", "-t", place.task, "--", "sh")
    assert done.code == 2 and "no terminal" in done.stderr
    done = place.cluster.bursar("task", "exec", "nothing", "--", "true")
    assert done.code == 125 and "no task" in done.stderr.lower(), done


def test_input_goes_in_and_ends(place: Place) -> None:
    text = b"line\n" * 100_000
    done = subprocess.run(
        [place.cluster.programs.program("bursar"), "task", "exec", "-i", place.task, "--", "wc", "-l"],
        input=text, capture_output=True, env={**os.environ, "BURSAR_MASTER": place.cluster.address}, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, b"100000"), done


def test_a_terminal_is_one_from_end_to_end(place: Place) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(
        [place.cluster.programs.program("bursar"), "task", "exec", "-it", place.task, "--", "sh"],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "BURSAR_MASTER": place.cluster.address},
        start_new_session=True,
    )  # fmt: skip
    seen = b""

    def until(word: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 30
        os.set_blocking(ours, False)
        while word not in seen:
            assert time.monotonic() < deadline and process.poll() is None, seen
            try:
                seen += os.read(ours, 4096)
            except BlockingIOError:
                time.sleep(0.02)

    try:
        os.write(ours, b"stty size; tty; echo rea''dy\n")
        until(b"ready")
        assert b"33 99" in seen and b"/dev/" in seen
        mine = str(3_000_000 + os.getpid())
        os.write(ours, f"sleep {mine}\n".encode())
        place.cluster.until(lambda: sleeps(mine))
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 111, 0, 0))
        process.send_signal(signal.SIGWINCH)
        os.write(ours, b"\x03")
        # The terminal forgets what was typed and not read when it interrupts.
        until(b"^C")
        os.write(ours, b"echo interr''upted; while [ \"$(stty size)\" != '44 111' ]; do sleep 0.05; done; exit 9\n")
        assert process.wait(30) == 9
        assert b"interrupted" in seen + os.read(ours, 65536)
        assert termios.tcgetattr(theirs) == before, "our terminal is as it was"
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_what_was_started_does_not_outlive_the_command_the_task_or_the_agent(place: Place) -> None:
    mine = str(1_000_000 + os.getpid())
    session = place.cluster.start("task", "exec", place.task, "--", "sleep", mine)
    place.cluster.until(lambda: sleeps(mine))
    session.signal(signal.SIGINT)
    assert session.finish().code == 130
    place.cluster.until(lambda: not sleeps(mine), "the program is gone with its command")

    session = place.cluster.start("task", "exec", place.task, "--", "sleep", mine)
    place.cluster.until(lambda: sleeps(mine))
    go(place)
    assert place.run.finish().code == 7
    assert session.finish().code != 0
    place.cluster.until(lambda: not sleeps(mine), "the program is gone with its task")
    done = place.exec("true")
    assert done.code == 125 and "has ended" in done.stderr, done


def test_when_the_agent_dies_the_session_says_so_and_nothing_hangs(place: Place) -> None:
    mine = str(2_000_000 + os.getpid())
    session = place.cluster.start("task", "exec", place.task, "--", "sleep", mine)
    place.cluster.until(lambda: sleeps(mine))
    place.cluster.kill("node")
    done = session.finish(30)
    assert done.code == 125 and "broke the session off" in done.stderr and "hint:" in done.stderr, done
    done = place.exec("true")
    assert done.code == 125 and "is not connected" in done.stderr, done
    if place.runtime == "docker":
        # Nothing but the engine knows of it: it ends with the agent's next life.
        place.cluster.start_agent("node", "--runtime", "docker", devices="none")
    place.cluster.until(lambda: not sleeps(mine), "the program does not outlive the agent that was killed")


def test_attach_shows_what_follows_and_ends_as_the_task_does(place: Place) -> None:
    attached = place.cluster.start("task", "attach", place.task)
    left = place.cluster.start("task", "attach", place.task)
    # Both are there once they show something.
    place.exec("touch", f"{place.sandbox}/ticking")
    for one in (attached, left):
        one.until_stdout("tick")
    left.signal(signal.SIGINT)
    done = left.finish()
    assert done.code == 130 and "runs on" in done.stderr
    go(place)
    done = attached.finish()
    assert done.code == 7 and set(done.stdout.split()) == {"tick", "gone"}, done
    assert done.stdout.endswith("gone\n"), "nothing from before, and all to the end"


def test_files_go_both_ways(place: Place, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/data").write_bytes(bytes(range(256)) * 5000)
    (tree / "script").write_text("#!/bin/sh\n")
    (tree / "script").chmod(0o755)
    (tree / "link").symlink_to("script")
    cp = lambda *words: place.cluster.bursar("task", "cp", *words)
    assert cp(str(tree), f"{place.task}:{place.sandbox}").code == 0
    assert place.exec("cat", f"{place.sandbox}/tree/sub/data").out == bytes(range(256)) * 5000
    assert cp(str(tree / "script"), f"{place.task}:{place.sandbox}/renamed").code == 0
    assert place.exec("cat", f"{place.sandbox}/renamed").stdout == "#!/bin/sh\n"
    back = tmp_path / "back"
    back.mkdir()
    assert cp(f"{place.task}:{place.sandbox}/tree", str(back)).code == 0
    assert (back / "tree/sub/data").read_bytes() == bytes(range(256)) * 5000
    assert (back / "tree/link").readlink() == Path("script") and os.access(back / "tree/script", os.X_OK)
    assert cp(f"{place.task}:{place.sandbox}/renamed", str(back / "new-name")).code == 0
    assert (back / "new-name").read_text() == "#!/bin/sh\n"

    for words, expected in (
        ((f"{place.task}:{place.sandbox}/none", str(back)), "no such file"),
        ((str(tree), f"{place.task}:/no/such/place"), "no such"),
        ((str(tmp_path / "none"), f"{place.task}:{place.sandbox}"), "no such file"),
        ((f"{place.task}:{place.sandbox}/renamed", str(tmp_path / "none/none")), "is no directory"),
        (("a", "b"), "must be task:path"),
    ):
        done = cp(*words)
        said = " ".join(done.stderr.lower().split())
        assert done.code in (1, 2) and (expected in said or "could not find" in said) and "bug" not in said, done


def test_what_a_task_uses(place: Place) -> None:
    busy = place.cluster.start("task", "exec", place.task, "--", "sh", "-c", "while :; do :; done")
    stats = place.cluster.start("task", "stats", place.task, "-o", "json")
    found = place.cluster.until(
        lambda: (
            [
                line
                for text in stats.stdout().splitlines()
                if (line := json.loads(text))["cpu_percent"] and line["cpu_percent"] > 20
            ]
            if place.runtime == "docker"
            else stats.stdout().splitlines()[2:] and [json.loads(stats.stdout().splitlines()[-1])]
        ),
        "the loop is seen",
    )
    assert found[0]["pids"] >= 2 and found[0]["mem_bytes"] > 0, found
    busy.signal(signal.SIGTERM)
    done = place.cluster.bursar("task", "stats", "--once")
    assert done.code == 0 and place.task in done.stdout and "MEMORY" in done.stdout, done
    go(place)
    assert stats.finish().code == 0
    done = place.cluster.bursar("task", "stats", place.task)
    assert done.code == 1 and "has ended" in done.stderr, done
