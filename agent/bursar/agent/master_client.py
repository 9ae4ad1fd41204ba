"""The agent's side of `AgentService.Connect`: one stream to one of the masters, opened again for ever.

Events up to the machine, its messages down to the wire; knows nothing of tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio

from bursar.agent.events import MasterConnected, MasterDisconnected, MasterMessageReceived
from bursar.core.errors import BursarError
from bursar.core.ids import ConnectionId
from bursar.core.messages.agent import AgentMessage
from bursar.runtime.codec import unwrap, wrap
from bursar.runtime.credentials import NOBODY, Credentials
from bursar.runtime.handshake import why_not
from bursar.runtime.outbox import Outbox
from bursar.runtime.rpc import CLIENT_OPTIONS
from bursar.v1 import agent_service_pb2, agent_service_pb2_grpc

#: Between two tries, at most; and how long one try to reach a master may take.
MAX_PAUSE_S = 2.0
REACH_TIMEOUT_S = 2.0
FIRST_PAUSE_S = 0.1
#: Messages that wait for a master that does not read.
OUTBOX_CAPACITY = 10_000
#: Problems that are remembered as said.
MAX_SAID = 100


class Logger(Protocol):
    """Where the client tells operators."""

    def info(self, event: str, **values: Any) -> Any:
        """Something of interest."""

    def warning(self, event: str, **values: Any) -> Any:
        """Something to look at."""


@dataclass(slots=True, eq=False)
class _Conversation:
    """One life of one stream."""

    connection: ConnectionId
    address: str
    outbox: Outbox[Any]
    call: Any
    #: Whether the master ever answered on it: then the next try comes soon.
    answered: bool = False
    #: Set by us; otherwise the stream broke or the master ended it.
    closed_for: str = ""


class MasterClient:
    """Keeps a stream to a master open while `run` runs."""

    def __init__(
        self, addresses: Sequence[str], post: Callable[[object], None], log: Logger, credentials: Credentials = NOBODY
    ) -> None:
        self._addresses = tuple(addresses)
        self._credentials = credentials
        self._post = post
        self._log = log
        self._now: _Conversation | None = None
        self._last_connection = 0
        #: Since a master last answered.
        self._said: set[str] = set()
        #: Streams opened so far; for metrics.
        self.connections_total = 0

    @property
    def address(self) -> str | None:
        """The master of the open stream."""
        return self._now.address if self._now else None

    def send(self, connection: ConnectionId, message: AgentMessage) -> None:
        """Queue a message; dropped where the connection is over."""
        if self._now is not None and self._now.connection == connection:
            self._now.outbox.put(wrap("AgentMessage", message))

    def close(self, connection: ConnectionId, reason: str) -> None:
        """End a connection; the next try follows, slowly."""
        if self._now is not None and self._now.connection == connection:
            self._now.closed_for = reason
            self._now.call.cancel()

    async def run(self) -> None:
        """Connect, converse, and again, until cancelled."""
        pause, index, misses = FIRST_PAUSE_S, 0, 0
        while True:
            started = asyncio.get_running_loop().time()
            conversation = await self._converse(self._addresses[index])
            if conversation is not None and conversation.answered and not conversation.closed_for:
                # It was good until it broke: the same one, soon.
                pause, misses = FIRST_PAUSE_S, 0
            else:
                misses += 1
                index = (index + 1) % len(self._addresses)
                if misses % len(self._addresses):
                    continue
                refused = conversation is not None and bool(conversation.closed_for)
                pause = MAX_PAUSE_S if refused else min(2 * pause, MAX_PAUSE_S)
            # Spread, so that a thousand agents do not come back in the same moment.
            wanted = random.uniform(pause / 2, pause)
            took = asyncio.get_running_loop().time() - started
            await asyncio.sleep(max(0.0, wanted - took) if conversation is None else wanted)

    async def _converse(self, address: str) -> _Conversation | None:
        """Hold one conversation to its end; None where the master was not reached."""
        try:
            opened = self._credentials.channel(address, address, CLIENT_OPTIONS)
        except BursarError as error:
            self._complain(address, str(error))
            return None
        async with opened as channel:
            if not await _reach(channel):
                reason = await why_not(address, self._credentials)
                self._complain(address, str(reason) if reason else "no master answers there")
                return None
            self._last_connection += 1
            connection = ConnectionId(self._last_connection)
            call = agent_service_pb2_grpc.AgentServiceStub(channel).Connect()
            outbox: Outbox[Any] = Outbox(OUTBOX_CAPACITY, lambda: _cancel(call))
            conversation = self._now = _Conversation(connection, address, outbox, call)
            self.connections_total += 1
            self._post(MasterConnected(connection))
            writer = asyncio.create_task(self._write(conversation))
            try:
                await self._read(conversation)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.CANCELLED:
                    self._complain(address, error.details() or error.code().name.lower())
            except asyncio.CancelledError:
                # Either our own task was cancelled, or the call was by `close`.
                if not call.cancelled() or _is_cancelling():
                    raise
            finally:
                self._now = None
                outbox.close()
                writer.cancel()
                call.cancel()
                with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                    await writer
                self._post(MasterDisconnected(connection))
            if outbox.overflowed:
                self._complain(address, "the master does not read what it is sent")
            return conversation

    async def _read(self, conversation: _Conversation) -> None:
        while True:
            response = await conversation.call.read()
            if response is grpc.aio.EOF:
                code = await conversation.call.code()
                if code is not grpc.StatusCode.OK:
                    details = await conversation.call.details()
                    self._complain(conversation.address, details or code.name.lower())
                return
            for wrapped in response.messages:
                message = unwrap("MasterMessage", wrapped)
                if message is not None:
                    if not conversation.answered:
                        conversation.answered = True
                        self._said.clear()
                    self._post(MasterMessageReceived(conversation.connection, message))

    async def _write(self, conversation: _Conversation) -> None:
        while batch := await conversation.outbox.next_batch():
            await conversation.call.write(agent_service_pb2.AgentServiceConnectRequest(messages=batch))

    def _complain(self, address: str, problem: str) -> None:
        """Log a problem once until a master answers, not at every try: also where another one comes in between."""
        text = f"{address}: {problem}"
        if text not in self._said:
            if len(self._said) >= MAX_SAID:
                self._said.clear()
            self._said.add(text)
            self._log.warning("no connection to the master; trying again", master=address, reason=problem)


async def _reach(channel: grpc.aio.Channel) -> bool:
    """Connect; False as soon as that fails, or after a while."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REACH_TIMEOUT_S):
            while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    return False
                await channel.wait_for_state_change(state)
            return True
    return False


def _cancel(call: Any) -> None:
    call.cancel()


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
