"""An agent that hangs is restarted (B-14): by systemd where that runs it, and by a thread of its own.

Tasks are not touched either way: the next life adopts them. The thread begins the agent anew in the same process, so that it also works where nobody
watches; systemd's watchdog also ends an agent in which not even a thread can run.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping

from bursar.runtime.telemetry import logger


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell systemd, as sd_notify(3): `READY=1`, `STOPPING=1`, `WATCHDOG=1`; False where nobody listens."""
    path = environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.connect(address)
            sender.sendall(state.encode())
        except OSError:
            return False
    return True


def restart() -> None:
    """Begin this program anew in the same process; what is open is closed, locks are let go."""
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


class Watchdog:
    """Watches an event loop from a thread; `run` is the loop's sign of life."""

    def __init__(self, timeout_s: float, hung: Callable[[], None] = restart) -> None:
        """`hung` is called in the thread once the loop has not turned for `timeout_s`; 0: nobody watches."""
        self._timeout_s = timeout_s
        self._hung = hung
        self._alive_at = time.monotonic()
        self._stopped = threading.Event()

    async def run(self) -> None:
        """Until cancelled: give signs of life, to the thread and to systemd."""
        if self._timeout_s:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        # systemd says how long it waits; a sign at half of that is what sd_watchdog_enabled(3) advises.
        usec = int(os.environ.get("WATCHDOG_USEC") or 0)
        pause_s = min(filter(None, (self._timeout_s / 4, usec / 2_000_000, 10.0)))
        try:
            while True:
                self._alive_at = time.monotonic()
                notify("WATCHDOG=1")
                await asyncio.sleep(pause_s)
        finally:
            self._stopped.set()

    def _watch(self) -> None:
        looked_at = time.monotonic()
        while not self._stopped.wait(min(1.0, self._timeout_s / 4)):
            now = time.monotonic()
            # Who stood still as a whole (a stopped process, a sleeping machine) is given its time again.
            if now - looked_at > self._timeout_s / 2:
                self._alive_at = now
            looked_at = now
            if now - self._alive_at > self._timeout_s:
                logger().critical(
                    "the agent hangs and is begun anew; its tasks run on", for_s=int(now - self._alive_at)
                )
                sys.stderr.flush()
                faulthandler.dump_traceback(all_threads=True)
                self._hung()
                return
