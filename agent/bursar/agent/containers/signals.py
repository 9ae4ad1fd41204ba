"""What a task must not inherit: signals that our own parent ignored (nohup, `&` in a script)."""

from __future__ import annotations

import contextlib
import signal
import threading
from types import FrameType

#: Python ignores these for itself and restores them in children.
_RESTORED = frozenset({signal.SIGPIPE, signal.SIGXFSZ})


def pass_on_no_ignored_signals() -> None:
    """Handle with nothing what was ignored: the same for us, but a child starts with the default again.

    A shell cannot undo an ignored signal that it was born with, so this must be done before it is started. Idempotent; without
    effect outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in signal.valid_signals() - _RESTORED:
        if signal.getsignal(number) is signal.SIG_IGN:
            # KILL and STOP cannot be handled, and 32 and 33 are the C library's own.
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, _do_nothing)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass
