"""What both bidirectional streams have in common: one reader, one writer, and a clean end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from bursar.core.errors import ErrorDetail
from bursar.master.server.hub import Connection, Hub
from bursar.runtime.rpc import abort
from bursar.runtime.telemetry import logger


async def serve_stream(
    hub: Hub,
    connection: Connection,
    context: Any,
    read: Callable[[], Awaitable[None]],
    to_message: Callable[[list[Any]], Any],
    ended: Callable[[], None],
) -> None:
    """Write the outbox until it is closed, or the peer is done; `ended` is called exactly once, whatever happens."""
    reader = asyncio.create_task(_read_until_end(read, connection))
    try:
        while batch := await connection.outbox.next_batch():
            await context.write(to_message(batch))
    except asyncio.CancelledError:
        # The peer went away, or does not read: either way the stream is over.
        if not connection.outbox.overflowed:
            raise
    finally:
        reader.cancel()
        hub.disconnect(connection)
        ended()
    # Last: a peer that does not read keeps this waiting until it does, or goes.
    if connection.error is not None:
        await abort(context, connection.error)


async def _read_until_end(read: Callable[[], Awaitable[None]], connection: Connection) -> None:
    try:
        await read()
    except (asyncio.CancelledError, grpc.RpcError, grpc.aio.BaseError):
        # It is over: the peer went away, or was refused.
        pass
    except Refusal as refusal:
        connection.error = refusal.error
    except Exception:  # noqa: BLE001 - a bug of ours must end this stream, not hang it
        logger().exception("a stream could not be read", connection=connection.connection_id)
    finally:
        connection.outbox.close()


class Refusal(Exception):
    """A peer's message cannot be taken; the stream ends with this."""

    def __init__(self, error: ErrorDetail) -> None:
        super().__init__(str(error))
        self.error = error
