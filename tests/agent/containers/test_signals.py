"""Tasks do not inherit what the agent's parent ignored."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import signal, subprocess
from bursar.agent.containers.signals import pass_on_no_ignored_signals
ignored = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
for number in ignored:
    signal.signal(number, signal.SIG_IGN)
{call}
text = subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True).stdout
mask = int(text.split()[1], 16)
print(sum(bool(mask >> (number - 1) & 1) for number in ignored))
for number in ignored:
    signal.raise_signal(number)
print("alive")
"""


def _inherited(call: str) -> list[str]:
    program = _PROGRAM.format(call=call)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()


def test_a_child_starts_with_defaults_and_we_go_on_ignoring() -> None:
    assert _inherited("pass_on_no_ignored_signals()") == ["0", "alive"]


def test_without_it_a_child_would_ignore_them() -> None:
    assert _inherited("") == ["3", "alive"]
