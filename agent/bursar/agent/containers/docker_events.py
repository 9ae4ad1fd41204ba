"""Listening to a Docker engine's events, through its restarts."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from bursar.agent.containers.docker_engine import DockerEngine, root_cause

_RECONNECT_S = (0.1, 0.2, 0.5, 1.0)


class EventThread:
    """Reads the engine's events, and comes back to an engine that went away."""

    def __init__(
        self,
        engine: DockerEngine,
        loop: asyncio.AbstractEventLoop,
        closing: threading.Event,
        on_event: Callable[[dict[str, Any]], None],
        on_connected: Callable[[bool], None],
        on_disconnected: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._loop = loop
        self._closing = closing
        self._on_event = on_event
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._stream: Any = None
        self._thread = threading.Thread(target=self._run, name="docker-events", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def reconnect(self) -> None:
        """Begin anew: the stream seems alive, but the engine does not answer."""
        stream = self._stream
        if stream is not None:
            with contextlib.suppress(Exception):  # whatever state it is in
                stream.close()

    def stop(self) -> None:
        """Blocks until the thread is done, for a little while."""
        self._closing.set()
        self.reconnect()
        self._thread.join(5)

    def _post(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(function, *arguments)

    def _run(self) -> None:
        after_outage = False
        attempt = 0
        while not self._closing.is_set():
            why = "it ended the stream of events"
            try:
                # Listening begins before anybody looks what there is: no end falls in between.
                self._stream = self._engine.events()
                self._post(self._on_connected, after_outage)
                attempt = 0
                for event in self._stream:
                    self._post(self._on_event, event)
            except Exception as error:  # noqa: BLE001 - whatever a dying engine makes of HTTP and JSON
                why = root_cause(error)
            self._stream = None
            after_outage = True
            if not self._closing.is_set():
                self._post(self._on_disconnected, why)
                self._closing.wait(_RECONNECT_S[min(attempt, len(_RECONNECT_S) - 1)])
                attempt += 1
