"""How a failure becomes words on stderr and an exit code; no traceback ever reaches a user."""

from __future__ import annotations

import logging
import os
import sys
import traceback

import click

from bursar.core.errors import BursarError, ErrorReason, InvalidText, MasterUnreachable

REFUSED, USAGE, NOT_FOUND, NO_MASTER = 1, 2, 3, 4
#: `run` only: --wait has passed; the task was not started or is lost.
WAIT_PASSED, NOT_RUN = 124, 125
#: 128 + SIGPIPE, + SIGTERM; + SIGINT is `program.INTERRUPTED`.
BROKEN_PIPE, TERMINATED = 141, 143


class Failure(click.ClickException):
    """A failure of a command that is not the cluster's: what, and what to do next."""

    exit_code = REFUSED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def show(self, file: object = None) -> None:
        """Print to stderr."""
        say_error(self.message, self.hint)


def exit_code(error: BursarError) -> int:
    """0 is success; 1 refused by the cluster; 2 usage; 3 not found or ambiguous; 4 no master within the time."""
    if isinstance(error, MasterUnreachable):
        return NO_MASTER
    if isinstance(error, InvalidText):
        return USAGE
    if error.detail.reason in (ErrorReason.NOT_FOUND, ErrorReason.AMBIGUOUS):
        return NOT_FOUND
    return REFUSED


def say_error(message: str, hint: str = "") -> None:
    """What is wrong, and what to do next, on stderr."""
    say(f"error: {message}")
    if hint:
        say(f"hint: {hint}")


def say(text: str) -> None:
    """One line on stderr; a stderr that nobody reads is no reason to fail."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        pass


def quiet_loggers() -> None:
    """What libraries log is for those who look for a bug: gRPC's poller may outlive an event loop that was interrupted, and asyncio says so."""
    for name in ("bursar.sdk", "asyncio"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = bool(os.environ.get("BURSAR_DEBUG"))


def say_bug(error: Exception) -> None:
    """Name a bug of ours; its traceback only for those who ask."""
    if os.environ.get("BURSAR_DEBUG"):
        say("".join(traceback.format_exception(error)).rstrip())
    say_error(
        f"this is a bug in bursar: {type(error).__name__}: {error}",
        "please report it; with BURSAR_DEBUG=1 in the environment the same command shows where it happened",
    )
