"""A session inside a container as the agent sees it, whatever runtime serves it."""

from __future__ import annotations

from typing import Protocol

from bursar.core.messages.sessions import TerminalSize


class SessionRefused(Exception):
    """A session cannot be had; the text says why, for people, and `hint` what to do next."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Session(Protocol):
    """A program with an input and outputs. One reader, one writer."""

    async def read(self) -> tuple[int, bytes] | None:
        """Some output: 1 for stdout or 2 for stderr, and bytes; None at the end of both."""

    async def write(self, data: bytes) -> None:
        """Give input; without effect once nobody reads it."""

    async def end_input(self) -> None:
        """No more input follows. Idempotent."""

    async def resize(self, size: TerminalSize) -> None:
        """Tell the terminal's new size; without effect where there is none."""

    async def exit_code(self) -> int:
        """After `read` gave None: how it ended; 128 + N for signal N."""

    async def close(self) -> None:
        """End it if it still runs, with what it started, and free everything. Idempotent."""
