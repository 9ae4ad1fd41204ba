"""What every client of a master needs: a channel, and refusals as exceptions.

A refused call is a gRPC status whose trailing metadata carries one serialized `bursar.v1.ErrorDetail` under `bursar-error-bin`;
the status text says the same for people who use a generic tool.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from bursar.core.addresses import DEFAULT_MASTER, parse_addresses
from bursar.core.errors import BursarError, ErrorDetail, ErrorReason, MasterUnreachable
from bursar.runtime.codec import decode
from bursar.runtime.credentials import NOBODY, Credentials
from bursar.runtime.rpc import CLIENT_OPTIONS, ERROR_METADATA_KEY
from bursar.v1 import errors_pb2

#: Every channel has its own connections, so that a new attempt is not held back by the back-off of an earlier one.
_CHANNEL_OPTIONS = (*CLIENT_OPTIONS, ("grpc.use_local_subchannel_pool", 1))

#: What makes calls of a channel.
_MULTICALLABLES = frozenset({"unary_unary", "unary_stream", "stream_unary", "stream_stream"})

_REASONS = {
    grpc.StatusCode.INVALID_ARGUMENT: ErrorReason.INVALID_ARGUMENT,
    grpc.StatusCode.OUT_OF_RANGE: ErrorReason.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND: ErrorReason.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED: ErrorReason.UNSUPPORTED,
    grpc.StatusCode.INTERNAL: ErrorReason.INTERNAL,
    grpc.StatusCode.UNAUTHENTICATED: ErrorReason.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED: ErrorReason.PERMISSION_DENIED,
}


def masters(master: str | Iterable[str] | None) -> tuple[str, ...]:
    """Addresses of the masters: given, from BURSAR_MASTER, or on this machine. Raises InvalidText."""
    if master is None:
        master = os.environ.get("BURSAR_MASTER") or DEFAULT_MASTER
    return parse_addresses(master if isinstance(master, str) else ",".join(master))


def connect(address: str, credentials: Credentials = NOBODY) -> grpc.aio.Channel:
    """A channel to `HOST:PORT`; it connects with its first call. Raises BursarError where the credentials are not in order."""
    channel: grpc.aio.Channel = credentials.channel(address, f"dns:///{address}", _CHANNEL_OPTIONS)
    return channel


class _Channel:
    """A channel that knows its calls, so that it can be closed after the last of them."""

    def __init__(self, channel: grpc.aio.Channel, stamp: object) -> None:
        self._channel = channel
        #: What told the files of its credentials apart.
        self.stamp = stamp
        self._calls: set[Any] = set()
        self._closing: asyncio.Task[None] | None = None
        self._then: Callable[[], object] | None = None

    def __getattr__(self, name: str) -> Any:
        """All else: as of the channel."""
        value = getattr(self._channel, name)
        return partial(self._counted, value) if name in _MULTICALLABLES else value

    def _counted(self, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        begin = make(*args, **kwargs)

        def call(*args: Any, **kwargs: Any) -> Any:
            begun = begin(*args, **kwargs)
            self._calls.add(begun)
            begun.add_done_callback(self._ended)
            return begun

        return call

    def close_after_calls(self, then: Callable[[], object]) -> None:
        """Close in the background once no call runs (any more); no new ones are begun."""
        self._then = then
        self._ended(None)

    def _ended(self, call: Any) -> None:
        self._calls.discard(call)
        if self._then is not None and not self._calls and self._closing is None:
            self._closing = asyncio.ensure_future(self._close())

    async def _close(self) -> None:
        await self._channel.close()
        if self._then is not None:
            self._then()


class Channels:
    """A channel for each address, made anew when the files of the credentials were renewed."""

    def __init__(self, credentials: Credentials = NOBODY) -> None:
        self.credentials = credentials
        self._channels: dict[str, _Channel] = {}
        #: Calls still run on them.
        self._former: set[_Channel] = set()

    def to(self, address: str) -> Any:
        """The channel to an address, for calls that begin now. Raises BursarError where the credentials are not in order."""
        now = self.credentials.stamp() if self.credentials.ca else ()
        known = self._channels.get(address)
        if known is not None and known.stamp == now:
            return known
        try:
            channel = _Channel(connect(address, self.credentials), now)
        except BursarError:
            if known is None:
                raise
            # Being replaced this very moment, perhaps: the next call looks again.
            return known
        self._channels[address] = channel
        if known is not None:
            self._former.add(known)
            known.close_after_calls(partial(self._former.discard, known))
        return channel

    async def close(self) -> None:
        """Close the connections."""
        for channel in (*self._former, *self._channels.values()):
            await channel.close()
        self._former, self._channels = set(), {}


async def explained(error: BursarError, address: str, credentials: Credentials) -> BursarError:
    """The same error, or – where no master has spoken – what is wrong with the credentials, if that is why."""
    if not isinstance(error, MasterUnreachable):
        return error
    from bursar.runtime.handshake import why_not

    reason = await why_not(address, credentials)
    return error if reason is None else BursarError(reason)


def error_detail(error: grpc.aio.AioRpcError) -> ErrorDetail | None:
    """The detail that the peer attached to a status; None where it attached none."""
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_METADATA_KEY and isinstance(value, bytes):
            try:
                return decode(ErrorDetail, errors_pb2.ErrorDetail.FromString(value))
            except DecodeError:
                return None
    return None


def to_bursar_error(error: grpc.aio.AioRpcError, address: str) -> BursarError:
    """A status as an exception that can be shown; MasterUnreachable where no master has spoken."""
    detail = error_detail(error)
    if detail is not None:
        return BursarError(detail)
    code, text = error.code(), error.details() or "no reason was given"
    if code in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
    ):
        return unreachable(address, _short(code, text))
    return BursarError(
        ErrorDetail(
            _REASONS.get(code, ErrorReason.UNSPECIFIED), f"the master at {address} answered {code.name}: {text}"
        )
    )


def unreachable(address: str, why: str = "") -> MasterUnreachable:
    """Say that nobody answers at an address."""
    return MasterUnreachable(
        ErrorDetail(
            ErrorReason.UNSPECIFIED,
            f"no master answers at {address}" + (f": {why}" if why else ""),
            "start one (bursar-master, or bursar dev for a whole cluster), or name another with --master or BURSAR_MASTER",
        )
    )


def _short(code: grpc.StatusCode, text: str) -> str:
    """The words of gRPC name its layers; these name what a user can look at."""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    if "onnection refused" in text:
        return "connection refused"
    return text.partition("; last error:")[0] if len(text) > 200 else text
