"""The limits of a plain process, set by util-linux's `prlimit` in front of its command."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Sequence
from pathlib import Path

from bursar.agent.containers.runtime import LaunchFailed
from bursar.core.tasks import StatusReason
from bursar.core.ulimits import NUMBERS, UNLIMITED, Ulimit

#: The right to raise hard limits (`CAP_SYS_RESOURCE`), as a bit of `CapEff`.
_MAY_RAISE = 1 << 24


def limits_command(limits: Sequence[Ulimit], proc: Path = Path("/proc")) -> tuple[str, ...]:
    """What comes before a command that is to have these; nothing where there are none. Raises LaunchFailed."""
    if not limits:
        return ()
    program = shutil.which("prlimit")
    if program is None:
        raise _refused("this machine has no `prlimit` (util-linux) to set them")
    may_raise = _may_raise(proc)
    for limit in limits:
        if limit.name == "nofile" and (limit.hard == UNLIMITED or limit.hard > _most_files(proc)):
            raise _refused(f"{limit} is more than any process of a machine may have ({_most_files(proc)}, fs.nr_open)")
        most = resource.getrlimit(NUMBERS[limit.name])[1]
        if not may_raise and most != UNLIMITED and (limit.hard == UNLIMITED or limit.hard > most):
            raise _refused(
                f"{limit} is more than the {most} that this agent itself may have; raise that, or run it as root"
            )
    texts = (f"--{limit.name}={_text(limit.soft)}:{_text(limit.hard)}" for limit in limits)
    return (program, *texts, "--")


def _text(value: int) -> str:
    return "unlimited" if value == UNLIMITED else str(value)


def _refused(why: str) -> LaunchFailed:
    return LaunchFailed(StatusReason.LAUNCH_FAILED, f"its ulimits cannot be set: {why}")


def _may_raise(proc: Path) -> bool:
    try:
        lines = (proc / "self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return any(bool(int(line.split()[1], 16) & _MAY_RAISE) for line in lines if line.startswith("CapEff:"))
    except (OSError, ValueError, IndexError):
        return False


def _most_files(proc: Path) -> int:
    try:
        return int((proc / "sys/fs/nr_open").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 1 << 20
