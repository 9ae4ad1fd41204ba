"""AgentService: the control stream, and what agents open on demand: logs and sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.agent import Register, TaskReport, TaskReports
from bursar.master.events import AgentRegistering, AgentSpoke, AgentStreamEnded
from bursar.master.server.guard import principal
from bursar.master.server.hub import Connection, Hub
from bursar.master.server.logs import LogRelays
from bursar.master.server.sessions import SessionRelays
from bursar.master.server.streams import Refusal, serve_stream
from bursar.runtime.codec import unwrap
from bursar.v1 import agent_service_pb2, agent_service_pb2_grpc

#: Tasks that an agent may report.
MAX_REPORTS = 100_000


class AgentServicer(agent_service_pb2_grpc.AgentServiceServicer):
    """Decodes what agents say into events of the machine."""

    def __init__(self, hub: Hub, logs: LogRelays, sessions: SessionRelays) -> None:
        self._hub = hub
        self._logs = logs
        self._sessions = sessions

    async def Connect(self, requests: AsyncIterator[Any], context: Any) -> None:  # type: ignore[override]
        """One agent's control stream."""
        hub = self._hub
        connection = hub.connect()

        async def read() -> None:
            messages = _messages(requests)
            register, reports = await _registration(messages)
            hub.bind_agent(connection, register.info.agent_id)
            hub.post(AgentRegistering(connection.connection_id, register, tuple(reports), principal()))
            await self._listen(connection, messages)

        def to_message(batch: list[Any]) -> Any:
            return agent_service_pb2.AgentServiceConnectResponse(messages=batch)

        await serve_stream(
            hub, connection, context, read, to_message, lambda: hub.post(AgentStreamEnded(connection.connection_id))
        )

    async def _listen(self, connection: Connection, messages: AsyncIterator[Any]) -> None:
        async for message in messages:
            if isinstance(message, (Register, TaskReports)):
                raise Refusal(
                    ErrorDetail(
                        ErrorReason.INVALID_ARGUMENT, "registered on this stream already", "open another stream"
                    )
                )
            await self._hub.room()
            self._hub.post(AgentSpoke(connection.connection_id, message))

    async def SendLog(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """A task's outputs on their way to somebody who asked."""
        async for credit in self._logs.receive(requests, context):
            yield credit

    async def ServeSession(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """A session with a task, for somebody who asked."""
        async for response in self._sessions.serve(requests, context):
            yield response


async def _messages(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        for wrapped in request.messages:
            message = unwrap("AgentMessage", wrapped)
            if message is not None:
                yield message


async def _registration(messages: AsyncIterator[Any]) -> tuple[Register, list[TaskReport]]:
    """The first words of an agent: Register, and reports until they are complete."""
    register: Register | None = None
    reports: list[TaskReport] = []
    async for message in messages:
        if register is None:
            if not isinstance(message, Register):
                raise Refusal(
                    ErrorDetail(
                        ErrorReason.NOT_SUBSCRIBED, "the first message must be Register", "register, then speak"
                    )
                )
            register = message
        elif isinstance(message, TaskReports):
            reports.extend(message.tasks)
            if len(reports) > MAX_REPORTS:
                raise Refusal(
                    ErrorDetail(
                        ErrorReason.INVALID_ARGUMENT, f"more than {MAX_REPORTS} tasks are reported", "use more agents"
                    )
                )
            if message.complete:
                return register, reports
        else:
            raise Refusal(
                ErrorDetail(
                    ErrorReason.NOT_SUBSCRIBED, "TaskReports must follow Register", "report the tasks, then speak"
                )
            )
    raise Refusal(ErrorDetail(ErrorReason.NOT_SUBSCRIBED, "the stream ended before the registration was complete", ""))
