"""FrameworkService: calls up, events down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from bursar.master.events import FrameworkCalled, FrameworkStreamEnded
from bursar.master.server.guard import principal
from bursar.master.server.hub import Hub
from bursar.master.server.streams import serve_stream
from bursar.runtime.codec import unwrap
from bursar.v1 import framework_service_pb2, framework_service_pb2_grpc


class FrameworkServicer(framework_service_pb2_grpc.FrameworkServiceServicer):
    """Decodes calls into events of the machine."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def Connect(self, requests: AsyncIterator[Any], context: Any) -> None:  # type: ignore[override]
        """One framework's stream."""
        hub = self._hub
        connection, name = hub.connect(), principal()

        async def read() -> None:
            async for request in requests:
                await hub.room()
                for message in request.calls:
                    call = unwrap("FrameworkCall", message)
                    if call is not None:
                        hub.post(FrameworkCalled(connection.connection_id, call, name))

        def to_message(batch: list[Any]) -> Any:
            return framework_service_pb2.FrameworkServiceConnectResponse(events=batch)

        await serve_stream(
            hub,
            connection,
            context,
            read,
            to_message,
            lambda: hub.post(FrameworkStreamEnded(connection.connection_id)),
        )
