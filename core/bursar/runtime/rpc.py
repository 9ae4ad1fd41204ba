"""gRPC as Bursar uses it: options, servers, and how a refusal travels."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from bursar.core.errors import BursarError, ErrorDetail, ErrorReason
from bursar.runtime.codec import encode
from bursar.runtime.outbox import MAX_MESSAGE_BYTES

#: Trailing metadata that carries the serialized `bursar.v1.ErrorDetail` of a refused call.
ERROR_METADATA_KEY = "bursar-error-bin"
MAX_ERROR_TEXT_BYTES = 700

COMMON_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)
CLIENT_OPTIONS: tuple[tuple[str, Any], ...] = (
    *COMMON_OPTIONS,
    # The client would obey http_proxy even for loopback.
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
SERVER_OPTIONS: tuple[tuple[str, Any], ...] = (
    *COMMON_OPTIONS,
    # A second bind of a taken port would succeed silently.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # Who connects and says nothing does not stay.
    ("grpc.server_handshake_timeout_ms", 10_000),
)

_CODES = {
    ErrorReason.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorReason.TASK_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorReason.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorReason.AMBIGUOUS: grpc.StatusCode.NOT_FOUND,
    ErrorReason.TASK_ID_IN_USE: grpc.StatusCode.ALREADY_EXISTS,
    ErrorReason.TOO_SLOW: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorReason.SILENT: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorReason.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    ErrorReason.AGENT_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorReason.SHUTTING_DOWN: grpc.StatusCode.UNAVAILABLE,
    ErrorReason.SUPERSEDED: grpc.StatusCode.ABORTED,
    ErrorReason.INTERNAL: grpc.StatusCode.INTERNAL,
    ErrorReason.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorReason.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
}


def status_code(reason: ErrorReason) -> grpc.StatusCode:
    """The gRPC status of a refusal; FAILED_PRECONDITION where nothing says it better."""
    return _CODES.get(reason, grpc.StatusCode.FAILED_PRECONDITION)


async def abort(context: Any, error: ErrorDetail) -> None:
    """End a call with a status, the text for people, and the detail for programs. Does not return."""
    error = ErrorDetail(error.reason, _short(error.message), _short(error.hint), _short(error.field))
    metadata = ((ERROR_METADATA_KEY, encode(error).SerializeToString()),)
    await context.abort(status_code(error.reason), str(error), metadata)


def split_address(address: str) -> tuple[str, int]:
    """`HOST:PORT` or `[V6]:PORT`. Raises BursarError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise BursarError(f"{address!r} is not an address", "write HOST:PORT, such as 127.0.0.1:5050")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address. Raises BursarError for what is no address."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_loopback(address: str, insecure: bool, program: str) -> None:
    """Refuse to serve in the clear where others can reach, unless told to (design.md §11). Raises BursarError."""
    if not is_loopback(address) and not insecure:
        raise BursarError(
            f"{program} will not listen on {address}: it would be read in the clear by anybody who reaches it",
            "listen on 127.0.0.1, or add --insecure if the network is trusted",
        )


def require_protection(address: str, has_tls: bool, authenticates: bool, insecure: bool, program: str) -> None:
    """Refuse to listen where others can reach without TLS and authentication, unless told to (design.md §11). Raises BursarError."""
    if is_loopback(address) or insecure or (has_tls and authenticates):
        return
    lacks = " and ".join(word for word, there in (("TLS", has_tls), ("authentication", authenticates)) if not there)
    hint = "add --tls-cert and --tls-key, and --tls-ca or --tokens (docs/security.md)"
    raise BursarError(
        f"{program} will not listen on {address} without {lacks}: anybody who reaches it could run commands on every agent",
        f"listen on 127.0.0.1, {hint}, or add --insecure if the network is trusted",
    )


def _short(text: str) -> str:
    """At most so much that a status can carry it twice: a peer refuses more than 8 KiB of headers, and texts quote what was asked."""
    if len(text.encode("utf-8", "replace")) <= MAX_ERROR_TEXT_BYTES:
        return text
    return text.encode("utf-8", "replace")[:MAX_ERROR_TEXT_BYTES].decode("utf-8", "ignore") + "…"


async def serve(
    server: grpc.aio.Server, address: str, services: Sequence[str], tls: grpc.ServerCredentials | None = None
) -> int:
    """Bind, switch reflection and health on, start; return the port. Raises BursarError where the port is taken."""
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in ("", *services):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    split_address(address)
    try:
        port = server.add_insecure_port(address) if tls is None else server.add_secure_port(address, tls)
    except RuntimeError as error:
        raise BursarError(
            f"cannot listen on {address}: {_bind_problem(str(error))}", "stop what uses the port, or choose another one"
        ) from error
    if port == 0:
        raise BursarError(f"cannot listen on {address}", "stop what uses the port, or choose another one")
    await server.start()
    return port


def _bind_problem(text: str) -> str:
    for known in (
        "Address already in use",
        "Permission denied",
        "Cannot assign requested address",
        "Name or service not known",
    ):
        if known.lower() in text.lower():
            return known.lower()
    return "the address cannot be bound (is it in use already?)"
