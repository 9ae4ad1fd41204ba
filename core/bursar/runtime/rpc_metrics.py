"""Calls that a server answers, in the shapes that the field's boards know (B-17)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry, Counter, Histogram

BUCKETS_S = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60)


class RpcMetrics(grpc.aio.ServerInterceptor):
    """Counts and times calls by method; streams are counted when they are opened, and not timed."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter("bursar_rpc_requests", "Calls.", ["method"], registry=registry)
        self._failures = Counter(
            "bursar_rpc_failure_requests",
            "Calls that ended with an error, by its gRPC status.",
            ["method", "exception"],
            registry=registry,
        )
        self._seconds = Histogram(
            "bursar_rpc_request_duration_seconds",
            "From a call to its answer.",
            ["method"],
            registry=registry,
            buckets=BUCKETS_S,
        )

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        # Names that nobody serves are anybody's choice: they must not become time series.
        if handler is None:
            return None
        method = str(handler_call_details.method).rpartition("/")[2]
        self._requests.labels(method).inc()
        if handler.request_streaming or handler.response_streaming:
            return handler
        inner = handler.unary_unary

        async def timed(request: Any, context: Any) -> Any:
            begun = time.perf_counter()
            try:
                return await inner(request, context)
            except BaseException:
                self._failures.labels(method, _status(context)).inc()
                raise
            finally:
                self._seconds.labels(method).observe(time.perf_counter() - begun)

        return grpc.unary_unary_rpc_method_handler(
            timed, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )


def _status(context: Any) -> str:
    code = context.code()
    if isinstance(code, int):
        code = next((one for one in grpc.StatusCode if one.value[0] == code), None)
    return str(code.name) if code is not None else "UNKNOWN"
