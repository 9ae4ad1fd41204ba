"""An agent that hangs is begun anew, and systemd hears of its life."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

from bursar.agent.watchdog import Watchdog, notify

#: Hangs in its first life; says in its second that it has begun anew.
_PROGRAM = """
import asyncio, os, pathlib, sys, time
from bursar.agent.watchdog import Watchdog

async def main():
    asyncio.create_task(Watchdog(1.5).run())
    await asyncio.sleep(0.1)
    lives = pathlib.Path(sys.argv[1])
    lives.write_text(lives.read_text() + f"{os.getpid()} {sys.argv[2]}\\n" if lives.exists() else f"{os.getpid()} {sys.argv[2]}\\n")
    if len(lives.read_text().splitlines()) == 1:
        while True:
            time.sleep(0.01)

asyncio.run(main())
"""


def test_a_program_that_hangs_begins_anew_in_the_same_process_with_the_same_arguments(tmp_path: Path) -> None:
    lives = tmp_path / "lives"
    (tmp_path / "program.py").write_text(_PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(lives), "--flag=1 2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    first, second = lives.read_text().splitlines()
    assert first == second and first.endswith("--flag=1 2")
    assert "the agent hangs and is begun anew" in done.stdout + done.stderr
    assert "in main" in done.stderr, "where it hung"


async def test_a_loop_that_turns_is_left_alone() -> None:
    hung: list[bool] = []
    watching = asyncio.create_task(Watchdog(1.5, lambda: hung.append(True)).run())
    await asyncio.sleep(4)  # more than twice its patience
    watching.cancel()
    assert not hung


async def test_systemd_hears_signs_of_life(tmp_path: Path, monkeypatch: object) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(30)
        assert notify("READY=1", {"NOTIFY_SOCKET": path})
        assert systemd.recv(100) == b"READY=1"
        monkeypatch.setenv("NOTIFY_SOCKET", path)  # type: ignore[attr-defined]
        monkeypatch.setenv("WATCHDOG_USEC", "200000")  # type: ignore[attr-defined]
        watching = asyncio.create_task(Watchdog(0).run())
        for _ in range(3):
            assert await asyncio.to_thread(systemd.recv, 100) == b"WATCHDOG=1"
        watching.cancel()


def test_where_nobody_listens_nothing_happens(tmp_path: Path) -> None:
    assert not notify("READY=1", {})
    assert not notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "nothing")})
    assert not notify("READY=1", {"NOTIFY_SOCKET": "vsock:1:2"})
