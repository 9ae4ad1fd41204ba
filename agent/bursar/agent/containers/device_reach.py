"""Whether a container may still open the device nodes that it was given (pain 3).

What a container may open is decided by its control group, and that can change behind the engine's back: systemd writes the rules anew at a
`daemon-reload` and knows nothing of devices that NVIDIA's runtime let in by itself, or whose nodes have no name under `/dev/char`. The
task then runs on until it opens the device once more.

So a process that lives for a moment joins the container's group and opens the machine's own nodes: it needs nothing of the image.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from bursar.agent.containers.runtime import ContainerId

_TIMEOUT_S = 20.0

#: Reads [[file of the group's processes, nodes], …]; prints for each the nodes that its processes may not open, or null: unknown.
_PROGRAM = """
import errno, json, os, sys
said = []
for group, nodes in json.load(sys.stdin):
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        lost = None
        try:
            with open(group, "w") as file:
                file.write("0")
            lost = []
            for node in nodes:
                try:
                    os.close(os.open(node, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY))
                except OSError as error:
                    if error.errno == errno.EPERM:
                        lost.append(node)
        except OSError:
            pass
        os.write(theirs, json.dumps(lost).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as file:
        said.append(json.loads(file.read() or "null"))
    os.waitpid(child, 0)
json.dump(said, sys.stdout)
"""


@runtime_checkable
class ReachTeller(Protocol):
    """A runtime that knows whether its containers may open their devices."""

    def out_of_reach(self, container_ids: Iterable[ContainerId]) -> Mapping[ContainerId, tuple[str, ...]]:
        """Of each container the nodes that it was given and may not open; left out where nobody can say. Blocks. Raises what it must."""


def out_of_reach(
    containers: Mapping[ContainerId, tuple[int, Sequence[str]]],
    proc: Path = Path("/proc"),
    cgroups: Path = Path("/sys/fs/cgroup"),
) -> dict[ContainerId, tuple[str, ...]]:
    """Of each container (its first process, its nodes) those that it may not open; left out where nobody can say. Blocks.

    Raises OSError, subprocess.SubprocessError, ValueError.
    """
    groups = {name: _processes_file(pid, proc, cgroups) for name, (pid, nodes) in containers.items() if pid and nodes}
    asked = [(name, group) for name, group in groups.items() if group is not None]
    if not asked:
        return {}
    question = json.dumps([[str(group), list(containers[name][1])] for name, group in asked])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _PROGRAM],
        input=question,
        capture_output=True,
        text=True,
        check=True,
        timeout=_TIMEOUT_S,
    )
    answers = json.loads(done.stdout)
    return {name: tuple(lost) for (name, _), lost in zip(asked, answers, strict=True) if lost is not None}


def _processes_file(pid: int, proc: Path, cgroups: Path) -> Path | None:
    """Where a process says that it joins the group that decides on devices; version 1 has one for these alone."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found: Path | None = None
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if ".." in path.split("/"):
            continue
        if "devices" in controllers.split(","):
            found = cgroups / "devices" / path.lstrip("/")
            break
        if not controllers:
            found = cgroups / path.lstrip("/")
    file = found / "cgroup.procs" if found is not None else None
    return file if file is not None and file.is_file() else None
