"""The shim: a few lines of `sh` between the agent and a `process` task, and the record that both write.

A dead agent costs neither the exit code nor the log of a task, and nothing is ever started twice. One file per container, the
*record*, carries everything that a later agent must know; it is the shim's standard input, and it is locked (`flock`) by
that open descriptor for as long as the shim lives:

* the agent creates the record (it must not exist), locks it, writes the header in one line, starts the shim on it and closes
  its own descriptor: from then on the lock belongs to the shim alone;
* the shim appends `pid N` first of all, and `exit N` when the command has ended, each in one write, and only then kills what
  is left of its process group, itself included;
* the agent appends `kill N` before it sends signal N, so that a shim that dies of it need not write anything.

Whoever finds a record therefore knows, without pids that may have been reused: locked – the shim lives (or is just being
started; `pid` follows at once); not locked, without `pid` – it was never started; not locked – over, with `exit` the code.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# The signals are caught, never ignored: a command inherits what is ignored. `exec` in a subshell, since a plain "$@" would
# run words such as `exit` or `cd` in the shim itself. Every `echo` is one write to a file in append mode. The shell's own words
# ("Terminated") go nowhere: stderr is the command's. What a shell puts into the environment by itself is taken out again.
SCRIPT = """trap : HUP INT QUIT USR1 USR2 PIPE ALRM TERM
echo "pid $$" >&0
unset PWD OLDPWD SHLVL
exec 3>&2 2>/dev/null
(exec "$@" </dev/null 2>&3 3>&-)
echo "exit $?" >&0
kill -KILL 0
"""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Variables that a shell changes, adds, or acts upon.
_SHELL_NAME = re.compile(
    r"IFS|PWD|OLDPWD|SHLVL|_|PS[0-9]|PPID|OPTIND|OPTARG|LINENO|ENV|[EU]?UID|POSIXLY_CORRECT|SHELLOPTS|BASH.*|FUNCNAME|LD_.*"
)


@dataclass(slots=True)
class Record:
    """What a record says."""

    container_id: str
    sandbox: str
    boot_id: str
    #: None: the shim has not begun.
    pid: int | None = None
    #: As the shim saw it: 128 + N for signal N.
    exit_code: int | None = None
    #: The last signal that the agent sent, or was about to send.
    last_signal: int | None = None


def shim_arguments(command: Sequence[str], environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The argument vector and the environment of a shim that runs `command` with exactly `environment`.

    Names that a shell would drop, change or obey go around it, through `env`, at the cost of one more `exec`.
    """
    arguments = ["/bin/sh", "-c", SCRIPT, "bursar"]
    around, kept = around_shell(command, environment)
    return [*arguments, *around], kept


def around_shell(command: Sequence[str], environment: Mapping[str, str]) -> tuple[Sequence[str], dict[str, str]]:
    """What a shell is to `exec`, and the environment to start it with, so that a command finds just this environment."""
    awkward = command[0].startswith("-") or any(
        not _IDENTIFIER.fullmatch(name) or _SHELL_NAME.fullmatch(name) for name in environment
    )
    if not awkward:
        return command, dict(environment)
    through = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *command]
    return through, {"PATH": environment.get("PATH", os.defpath)}


def create_record(path: Path, container_id: str, sandbox: Path, boot_id: str) -> int:
    """Make and lock a record; the descriptor becomes the shim's standard input. Raises FileExistsError, OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        header = json.dumps({"container_id": container_id, "sandbox": str(sandbox), "boot_id": boot_id})
        os.write(fd, f"{header}\n".encode("utf-8", "surrogateescape"))
    except OSError:
        os.close(fd)
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return fd


def append_kill(path: Path, signal_number: int) -> None:
    """Write down that a signal is about to be sent. Never makes a record."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(fd, f"kill {signal_number}\n".encode("ascii"))
        finally:
            os.close(fd)


def shim_lives(path: Path) -> bool:
    """Whether the record is locked; False where there is none. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return True
        raise
    finally:
        os.close(fd)
    return False


def read_record(path: Path) -> Record | None:
    """Read a record; None where there is none or its header was never completed (then nothing was started)."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    header, newline, rest = content.partition(b"\n")
    try:
        fields = json.loads(header)
        record = Record(fields["container_id"], fields["sandbox"], fields["boot_id"])
    except (ValueError, KeyError, TypeError):
        return None
    if not newline:
        return None
    lines = rest.split(b"\n")
    for line in lines[:-1]:  # a line without its end was never finished
        word, _, number = line.partition(b" ")
        if not number.isdigit():
            continue
        if word == b"pid":
            record.pid = int(number)
        elif word == b"exit":
            record.exit_code = int(number)
        elif word == b"kill":
            record.last_signal = int(number)
    return record
