"""How programs begin, and how they end while they do: in processes of their own, for signals are theirs alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)\n"


def begin(tmp_path: Path, module: str, before: str = "") -> subprocess.CompletedProcess[str]:
    (tmp_path / "its_module.py").write_text(module)
    code = f"{before}\nfrom bursar.runtime.program import run\nrun('its_module')"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    return subprocess.run(
        [sys.executable, "-c", code], check=False, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(("code", "status"), [("None", 0), ("3", 3)])
def test_it_exits_as_its_main_says(tmp_path: Path, code: str, status: int) -> None:
    assert begin(tmp_path, f"def main(): return {code}").returncode == status


def test_an_interrupt_ends_what_is_being_imported_and_says_nothing(tmp_path: Path) -> None:
    ended = begin(tmp_path, INTERRUPT + "def main(): print('it ran')")
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


def test_an_interrupt_that_main_does_not_take_is_the_shells_130(tmp_path: Path) -> None:
    ended = begin(tmp_path, "def main():\n    " + INTERRUPT.replace("\n", "") + "; import time; time.sleep(60)")
    assert (ended.returncode, ended.stderr) == (130, "")


def test_where_interrupts_are_ignored_they_stay_so(tmp_path: Path) -> None:
    ignored = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    ended = begin(tmp_path, INTERRUPT + "def main(): print('it ran')", ignored)
    assert (ended.returncode, ended.stdout) == (0, "it ran\n")
