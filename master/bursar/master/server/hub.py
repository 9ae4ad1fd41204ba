"""Where the machine's effects meet streams, callers and watchers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, ConnectionId
from bursar.core.messages.agent import DesiredState, MasterMessage, Registered
from bursar.core.messages.framework import FrameworkEvent
from bursar.core.messages.operator import ClusterEvent, OperatorRequest
from bursar.master.effects import CloseStream, MasterEffect, Publish, Reply, SendToAgent, SendToFramework
from bursar.master.events import OperatorCalled
from bursar.runtime.codec import encode, wrap, wrap_encoded
from bursar.runtime.driver import Driver
from bursar.runtime.outbox import Outbox, split
from bursar.runtime.telemetry import logger

#: Messages that a peer may be behind before it is disconnected.
STREAM_CAPACITY = 10_000
WATCH_CAPACITY = 10_000


@dataclass(eq=False)
class Connection:
    """One life of one stream."""

    connection_id: ConnectionId
    outbox: Outbox[Any]
    #: Why the stream ends, as soon as it is known.
    error: ErrorDetail | None = None
    #: Ends the handler, where its peer does not read.
    cancel: Callable[[], object] = field(default=lambda: None)


class Hub:
    """Performs effects. All of it runs in the event loop."""

    def __init__(self) -> None:
        self.driver: Driver | None = None
        self._connections: dict[ConnectionId, Connection] = {}
        self._agent_of: dict[ConnectionId, AgentId] = {}
        self._by_agent: dict[AgentId, Connection] = {}
        self._sequence = 0
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._watchers: set[Outbox[Any]] = set()
        self._log = logger()

    # --- streams ---

    def post(self, event: object) -> None:
        """Hand an event to the machine."""
        assert self.driver is not None
        self.driver.post(event)

    async def room(self) -> None:
        """Wait while the machine has very much to do: before reading on from a peer."""
        assert self.driver is not None
        await self.driver.room()

    def connect(self) -> Connection:
        """Open a stream for the handler that calls this."""
        self._sequence += 1
        task = asyncio.current_task()
        assert task is not None
        connection = Connection(ConnectionId(self._sequence), Outbox(STREAM_CAPACITY))
        connection.cancel = task.cancel

        def overflowed() -> None:
            self._log.warning("peer does not read", connection=connection.connection_id)
            connection.error = ErrorDetail(
                ErrorReason.TOO_SLOW, "the stream was not read, and was closed", "read the stream, and connect again"
            )
            task.cancel()

        connection.outbox = Outbox(STREAM_CAPACITY, overflowed)
        self._connections[connection.connection_id] = connection
        return connection

    def disconnect(self, connection: Connection) -> None:
        """The stream is no more."""
        connection.outbox.close()
        self._connections.pop(connection.connection_id, None)
        agent_id = self._agent_of.pop(connection.connection_id, None)
        if agent_id is not None and self._by_agent.get(agent_id) is connection:
            del self._by_agent[agent_id]

    def bind_agent(self, connection: Connection, agent_id: AgentId) -> None:
        """Remember whose stream this is, for what does not pass through the machine (logs); it counts once the agent is in."""
        self._agent_of[connection.connection_id] = agent_id

    def tell_agent(self, agent_id: AgentId, message: MasterMessage) -> bool:
        """Send outside the machine; say whether the agent is connected."""
        connection = self._by_agent.get(agent_id)
        if connection is None:
            return False
        connection.outbox.put(wrap("MasterMessage", message))
        return True

    # --- operators ---

    async def ask(self, request: OperatorRequest, principal: str = "", own_only: bool = False) -> Any:
        """Have the machine answer a request; returns a response or an ErrorDetail. `own_only`: of what is the principal's own."""
        self._sequence += 1
        token = self._sequence
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._replies[token] = future
        try:
            self.post(OperatorCalled(token, request, principal, own_only))
            return await future
        finally:
            self._replies.pop(token, None)

    def watch(self) -> Outbox[Any]:
        """Hear of everything that happens from now on; `unwatch` ends it."""
        outbox: Outbox[Any] = Outbox(WATCH_CAPACITY)
        self._watchers.add(outbox)
        return outbox

    def unwatch(self, outbox: Outbox[Any]) -> None:
        """Hear no more."""
        self._watchers.discard(outbox)
        outbox.close()

    # --- effects ---

    def perform(self, effect: MasterEffect) -> None:
        """Carry out one effect of the machine; the driver calls this once the batch is durable."""
        match effect:
            case SendToFramework(connection_id, event):
                connection = self._connections.get(connection_id)
                if connection is not None:
                    for part in in_parts("FrameworkEvent", event):
                        connection.outbox.put(part)
            case SendToAgent(connection_id, message):
                connection = self._connections.get(connection_id)
                if connection is not None:
                    if isinstance(message, Registered):
                        self._by_agent[self._agent_of[connection_id]] = connection
                    for part in in_parts("MasterMessage", message):
                        connection.outbox.put(part)
            case CloseStream(connection_id, error):
                connection = self._connections.get(connection_id)
                if connection is not None:
                    connection.error = connection.error or error
                    connection.outbox.close()
            case Reply(token, answer):
                future = self._replies.get(token)
                if future is not None and not future.done():
                    future.set_result(answer)
            case Publish(event):
                self._publish(event)
            case _:
                raise AssertionError(effect)

    def close_all(self, error: ErrorDetail) -> None:
        """The master is ending: tell every peer."""
        for connection in self._connections.values():
            connection.error = connection.error or error
            connection.outbox.close()
        for outbox in list(self._watchers):
            outbox.close()
        for future in self._replies.values():
            if not future.done():
                future.set_result(error)

    def _publish(self, event: ClusterEvent) -> None:
        ids = {"agent_id": event.agent_id, "framework_id": event.framework_id, "task_id": event.task_id}
        log = self._log.debug if event.kind == "task_status" else self._log.info
        log(event.kind, message=event.message, **{name: value for name, value in ids.items() if value})
        if self._watchers:
            message = encode(event)
            for outbox in self._watchers:
                outbox.put(message)


def in_parts(wrapper: str, value: FrameworkEvent | MasterMessage) -> Iterator[Any]:
    """A value as one wrapped message, or as several where it is long, none near 4 MiB: descriptions before the offers that refer to
    them, and `more` on all but the last part of a state.
    """
    parts = list(split(encode(value)))
    if isinstance(value, DesiredState):
        for part in parts[:-1]:
            part.more = True
    for part in parts:
        yield wrap_encoded(wrapper, type(value), part)
