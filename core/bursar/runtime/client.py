"""What every client of a master needs: a channel, and refusals as exceptions.

A refused call is a gRPC status whose trailing metadata carries one serialized `bursar.v1.ErrorDetail` under `bursar-error-bin`;
the status text says the same for people who use a generic tool.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from bursar.core.addresses import DEFAULT_MASTER, parse_addresses
from bursar.core.errors import BursarError, ErrorDetail, ErrorReason, MasterUnreachable
from bursar.runtime.codec import decode
from bursar.runtime.rpc import CLIENT_OPTIONS, ERROR_METADATA_KEY
from bursar.v1 import errors_pb2

#: Every channel has its own connections, so that a new attempt is not held back by the back-off of an earlier one.
_CHANNEL_OPTIONS = (*CLIENT_OPTIONS, ("grpc.use_local_subchannel_pool", 1))

_REASONS = {
    grpc.StatusCode.INVALID_ARGUMENT: ErrorReason.INVALID_ARGUMENT,
    grpc.StatusCode.OUT_OF_RANGE: ErrorReason.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND: ErrorReason.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED: ErrorReason.UNSUPPORTED,
    grpc.StatusCode.INTERNAL: ErrorReason.INTERNAL,
}


def masters(master: str | Iterable[str] | None) -> tuple[str, ...]:
    """Addresses of the masters: given, from BURSAR_MASTER, or on this machine. Raises InvalidText."""
    if master is None:
        master = os.environ.get("BURSAR_MASTER") or DEFAULT_MASTER
    return parse_addresses(master if isinstance(master, str) else ",".join(master))


def connect(address: str) -> grpc.aio.Channel:
    """A channel to `HOST:PORT`; it connects with its first call."""
    return grpc.aio.insecure_channel(f"dns:///{address}", options=_CHANNEL_OPTIONS)


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
