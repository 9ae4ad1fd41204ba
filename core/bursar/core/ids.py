"""Identifiers and the version of desired state."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NewType

AgentId = NewType("AgentId", str)
"""Chosen by an agent at its first start (a UUID), kept in its work directory."""
FrameworkId = NewType("FrameworkId", str)
"""Chosen by a framework, kept over its restarts."""
TaskId = NewType("TaskId", str)
"""Chosen by a framework; unique among all tasks that it ever had."""
OfferId = NewType("OfferId", str)
"""Made by the master, `<term>-O<n>`; never used twice."""
DeviceUuid = NewType("DeviceUuid", str)
"""NVML's form for GPUs: `GPU-` and 8-4-4-4-12 hexadecimal digits."""
ConnectionId = NewType("ConnectionId", int)
"""Made by a shell: one life of one stream. A machine never acts on words from a connection that is not current."""

MAX_ID_BYTES = 255
#: Separators of paths, control characters, and halves of surrogate pairs.
_FORBIDDEN = re.compile(r"[/\\\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True, order=True)
class Generation:
    """A version of an agent's desired state: lower ones are refused (design.md §8)."""

    #: One master's reign; grows at every start of a master on one registry.
    term: int = 0
    #: Grows within a term.
    sequence: int = 0


def id_problem(value: str) -> str | None:
    """Say what is wrong with an id chosen by a peer, or nothing (mesos.md §0, user-supplied ids)."""
    if not value:
        return "an id must not be empty"
    if len(value.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        return f"an id must not be longer than {MAX_ID_BYTES} bytes"
    if value in (".", ".."):
        return "an id must not be '.' or '..'"
    forbidden = _FORBIDDEN.search(value)
    return None if forbidden is None else f"an id must not contain {forbidden.group()!r}"
