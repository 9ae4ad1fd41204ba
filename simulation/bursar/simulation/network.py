"""Streams: in order, delayed, never losing a message while they live; a break loses all that is in flight.

Each side learns of a break in its own time. A machine that is cut off neither hears nor is heard until it is reachable again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.simulation.faults import Faults
from bursar.simulation.timeline import Timeline

CLIENT, SERVER = 0, 1
#: How long a connection takes that nobody answers.
CONNECT_TIMEOUT_MS = 2_000

NOBODY = ErrorDetail(ErrorReason.UNSPECIFIED, "nobody listens there")
BROKEN = ErrorDetail(ErrorReason.UNSPECIFIED, "the connection broke")


class Party(Protocol):
    """One end of streams."""

    def stream_opened(self, stream: Stream) -> None:
        """It stands."""

    def stream_heard(self, stream: Stream, message: Any) -> None:
        """The other side said something."""

    def stream_ended(self, stream: Stream, error: ErrorDetail | None) -> None:
        """It is over, or never stood."""


@dataclass(frozen=True, slots=True)
class _End:
    error: ErrorDetail | None


class Stream:
    """One stream between a client and the master. `kind` is `agent` or `framework`, `host` the client's machine."""

    __slots__ = ("_last_due", "_queues", "_scheduled", "broken", "host", "kind", "network", "number", "open", "parties")

    def __init__(self, network: Network, number: int, kind: str, host: str, client: Party) -> None:
        self.network = network
        self.number = number
        self.kind = kind
        self.host = host
        self.parties: list[Party | None] = [client, None]
        #: Whether each side still has it.
        self.open = [True, False]
        self.broken = False
        self._queues: tuple[deque[tuple[int, Any]], deque[tuple[int, Any]]] = (deque(), deque())
        self._last_due = [0, 0]
        self._scheduled = [False, False]

    def send(self, side: int, message: Any) -> None:
        """Say something to the other side; dropped where the stream is over."""
        if self.open[side] and not self.broken:
            if self.network.on_wire is not None:
                message = self.network.on_wire(self.kind, side, message)
            self._put(1 - side, message)

    def close(self, side: int, error: ErrorDetail | None = None) -> None:
        """End it in good order: the other side hears everything, then the end."""
        if self.open[side]:
            self.open[side] = False
            if not self.broken:
                self._put(1 - side, _End(error))

    def abandon(self, side: int) -> None:
        """The process on this side died: what it said may be lost or not, then the stream is over."""
        if not self.open[side]:
            return
        self.open[side] = False
        self.parties[side] = None
        if self.network.random.random() < 0.5:
            self.break_off()
        elif not self.broken:
            self._put(1 - side, _End(BROKEN))

    def break_off(self) -> None:
        """What is in flight is lost; the sides learn of it later, and not at the same time."""
        if self.broken:
            return
        self.broken = True
        self._queues[0].clear()
        self._queues[1].clear()
        network = self.network
        network.streams.pop(self.number, None)
        for side in (CLIENT, SERVER):
            network.timeline.after(network.random.randint(0, network.faults.break_notice_ms), self._told, side)

    def _told(self, side: int) -> None:
        if self.open[side]:
            self.open[side] = False
            party = self.parties[side]
            if party is not None:
                party.stream_ended(self, BROKEN)

    def _put(self, side: int, message: Any) -> None:
        due = max(self._last_due[side], self.network.timeline.now_ms + self.network.delay_ms())
        self._last_due[side] = due
        self._queues[side].append((due, message))
        if not self._scheduled[side]:
            self._scheduled[side] = True
            self.network.timeline.after(due - self.network.timeline.now_ms, self._deliver, side)

    def _deliver(self, side: int) -> None:
        """Everything that is due, in order; nothing while the machine is cut off."""
        timeline, queue = self.network.timeline, self._queues[side]
        self._scheduled[side] = False
        until = self.network.cut_off_until_ms(self.host)
        if until > timeline.now_ms:
            self._again(side, until)
            return
        while queue and queue[0][0] <= timeline.now_ms and not self.broken:
            _, message = queue.popleft()
            if not self.open[side]:
                continue
            party = self.parties[side]
            if isinstance(message, _End):
                self.open[side] = False
                self.network.streams.pop(self.number, None)
                if party is not None:
                    party.stream_ended(self, message.error)
            elif party is not None:
                party.stream_heard(self, message)
        if queue and not self._scheduled[side]:
            self._again(side, queue[0][0])

    def _again(self, side: int, at_ms: int) -> None:
        self._scheduled[side] = True
        self.network.timeline.after(at_ms - self.network.timeline.now_ms, self._deliver, side)


class Network:
    """All streams."""

    def __init__(self, timeline: Timeline, random: Random, faults: Faults) -> None:
        self.timeline = timeline
        self.random = random
        #: Replaced when faults stop.
        self.faults = faults
        #: Who accepts a stream now: the master's side, or nobody.
        self.listener: Party | None = None
        #: Those that stand, by number.
        self.streams: dict[int, Stream] = {}
        #: Sees each message as it leaves (kind, side, message) and returns what arrives; for the check of the wire's form.
        self.on_wire: Callable[[str, int, Any], Any] | None = None
        self._numbers = 0
        self._cut_off: dict[str, int] = {}

    def connect(self, kind: str, host: str, client: Party) -> Stream:
        """Try to open a stream to the master: `stream_opened` or `stream_ended` follows."""
        self._numbers += 1
        stream = Stream(self, self._numbers, kind, host, client)
        self.timeline.after(self.delay_ms(), self._arrive, stream)
        return stream

    def cut_off(self, host: str, for_ms: int, keep_streams: bool) -> None:
        """Let nothing through between a machine and the rest for a while."""
        self._cut_off[host] = max(self._cut_off.get(host, 0), self.timeline.now_ms + for_ms)
        if not keep_streams:
            for stream in [stream for stream in self.streams.values() if stream.host == host]:
                stream.break_off()

    def cut_off_until_ms(self, host: str) -> int:
        """When a machine is reachable again; in the past where it is."""
        return self._cut_off.get(host, 0)

    def heal(self) -> None:
        """Nobody is cut off any more; what was held back arrives when it was due to."""
        self._cut_off.clear()

    def delay_ms(self) -> int:
        """Of the next message."""
        faults, random = self.faults, self.random
        if faults.slow_message_chance and random.random() < faults.slow_message_chance:
            return random.randint(0, faults.slow_message_ms)
        return random.randint(0, faults.message_ms) if faults.message_ms else 0

    def _arrive(self, stream: Stream) -> None:
        if not stream.open[CLIENT]:
            return
        if self.cut_off_until_ms(stream.host) > self.timeline.now_ms or self.listener is None:
            wait_ms = 0 if self.listener is None else CONNECT_TIMEOUT_MS
            self.timeline.after(wait_ms, self._refuse, stream)
            return
        stream.parties[SERVER] = self.listener
        stream.open[SERVER] = True
        self.streams[stream.number] = stream
        self.listener.stream_opened(stream)
        client = stream.parties[CLIENT]
        assert client is not None
        client.stream_opened(stream)

    @staticmethod
    def _refuse(stream: Stream) -> None:
        client = stream.parties[CLIENT]
        if stream.open[CLIENT] and client is not None:
            stream.open[CLIENT] = False
            client.stream_ended(stream, NOBODY)
