"""The shim's few lines, in every shell that may be /bin/sh."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bursar.agent.containers import shim

SHELLS = [["dash"], ["bash", "--posix"], ["bash"], ["busybox", "sh"], ["sh"]]


@pytest.fixture(params=SHELLS, ids=" ".join)
def shell(request: pytest.FixtureRequest) -> list[str]:
    program = shutil.which(request.param[0])
    if program is None:
        pytest.skip(f"{request.param[0]} is not installed here")
    return [program, *request.param[1:]]


def begin(shell: list[str], tmp_path: Path, *command: str) -> subprocess.Popen[bytes]:
    fd = shim.create_record(tmp_path / "record", "c", tmp_path, "boot")
    try:
        with open(tmp_path / "stderr", "ab") as stderr:
            return subprocess.Popen(
                [*shell, "-c", shim.SCRIPT, "bursar", *command],
                stdin=fd,
                stderr=stderr,
                cwd=tmp_path,
                start_new_session=True,
            )
    finally:
        os.close(fd)


def record(tmp_path: Path) -> shim.Record:
    read = shim.read_record(tmp_path / "record")
    assert read is not None
    return read


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("sh", "-c", "exit 7"), 7),
        (("no-such-command",), 127),
        (("exit", "3"), 127),
        (("/etc/passwd",), 126),
        (("sh", "-c", "kill -KILL $$"), 137),
        (("sh", "-c", "kill -INT $$"), 130),
        (("printf", "%s", "a b", "*", "$HOME"), 0),
    ],
)
def test_exit_code(shell: list[str], tmp_path: Path, command: tuple[str, ...], code: int) -> None:
    child = begin(shell, tmp_path, *command)
    child.wait(20)
    assert (record(tmp_path).pid, record(tmp_path).exit_code) == (child.pid, code)
    assert not shim.shim_lives(tmp_path / "record")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_to_the_group_ends_the_command_and_the_shim_tells(
    shell: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    child = begin(shell, tmp_path, "sh", "-c", "touch begun; while true; do sleep 0.02; done")
    deadline = time.monotonic() + 20
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert shim.shim_lives(tmp_path / "record")
    os.killpg(child.pid, number)
    child.wait(20)
    assert record(tmp_path).exit_code == 128 + number


def test_what_is_left_of_the_group_is_killed(shell: list[str], tmp_path: Path) -> None:
    child = begin(shell, tmp_path, "sh", "-c", "sleep 600 & echo $! > child")
    child.wait(20)
    left = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{left}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":
            return
        time.sleep(0.01)
    pytest.fail("the child lives on")


def test_unfinished_lines_count_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "record"
    fd = shim.create_record(path, "c", tmp_path, "boot")
    os.write(fd, b"pid 12\nkill 15\nexit 1")
    assert (record(tmp_path).pid, record(tmp_path).last_signal, record(tmp_path).exit_code) == (12, 15, None)
    os.write(fd, b"30\nnonsense\nexit x\n")
    assert record(tmp_path).exit_code == 130
    assert shim.shim_lives(path)
    os.close(fd)
    assert not shim.shim_lives(path)
    with pytest.raises(FileExistsError):
        shim.create_record(path, "c", tmp_path, "boot")


@pytest.mark.parametrize("content", [b"", b"{", b"[]\n", b"{}\n", b'{"container_id": "c"}\n', b"\xff\n", b"null\n"])
def test_nonsense_is_no_record(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record").write_bytes(content)
    assert shim.read_record(tmp_path / "record") is None
