"""What a session with a running task is for; mirrors `bursar/v1/sessions.proto`. Its frames never reach a machine."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class SessionKind(IntEnum):
    """Mirrors `bursar.v1.SessionKind`."""

    UNSPECIFIED = 0
    EXEC = 1
    COPY_OUT = 2
    COPY_IN = 3
    STATS = 4


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """In characters; mirrors `bursar.v1.TerminalSize`."""

    rows: int = 24
    columns: int = 80


@dataclass(frozen=True, slots=True)
class SessionStart:
    """What is wanted; mirrors `bursar.v1.SessionStart`."""

    kind: SessionKind
    command: tuple[str, ...] = ()
    path: str = ""
    #: None: no terminal, and two outputs.
    terminal: TerminalSize | None = None


def start_problem(start: SessionStart) -> tuple[str, str] | None:
    """Say what is wrong with a session as (field, problem), or nothing."""
    texts = (*start.command, start.path)
    if any("\x00" in text for text in texts):
        return "start", "a word or path must not hold a zero byte"
    match start.kind:
        case SessionKind.EXEC:
            if not start.command or not start.command[0]:
                return "start.command", "no program is named"
        case SessionKind.COPY_IN | SessionKind.COPY_OUT:
            if not start.path:
                return "start.path", "no path is named"
        case SessionKind.STATS:
            pass
        case _:
            return "start.kind", "this version does not know such a session"
    return None
