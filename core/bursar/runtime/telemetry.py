"""What operators look at: log lines on stderr and metrics over HTTP."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

from bursar.core.errors import BursarError
from bursar.runtime.rpc import require_loopback, split_address


def configure_logging(program: str, environ: Mapping[str, str] = os.environ) -> None:
    """One line per event on stderr, `key=value`; JSON where BURSAR_LOG_FORMAT=json; BURSAR_LOG_LEVEL sets the level.

    Lines of libraries that use `logging` come out in the same form, from WARNING on.
    """
    as_json = environ.get("BURSAR_LOG_FORMAT", "").lower() == "json"
    level = logging.getLevelNamesMapping().get(environ.get("BURSAR_LOG_LEVEL", "info").upper(), logging.INFO)
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name(program),
        structlog.processors.format_exc_info,
        structlog.processors.UnicodeDecoder(),
        _escape,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.processors.LogfmtRenderer(
            key_order=["timestamp", "level", "program", "event"], drop_missing=True
        )
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))


def _escape(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Peers choose names and texts: nothing of theirs may move a terminal's cursor or forge a line."""
    for key, value in event.items():
        if isinstance(value, str) and key != "exception" and not value.isprintable():
            event[key] = "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)
    return event


def _name(program: str) -> Any:
    def add(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["program"] = program
        return event

    return add


def logger(**values: object) -> structlog.typing.FilteringBoundLogger:
    """The log of this program, with values that every line carries."""
    bound: structlog.typing.FilteringBoundLogger = structlog.get_logger(**values)
    return bound


@dataclass(slots=True)
class MetricsServer:
    """Serves `/metrics` from a thread of its own."""

    port: int
    _server: WSGIServer
    _thread: Thread

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def serve_metrics(
    address: str,
    program: str,
    insecure: bool,
    registry: CollectorRegistry = REGISTRY,
    pages: Mapping[str, Callable[[], str]] | None = None,
) -> MetricsServer:
    """Serve the registry's metrics on `HOST:PORT` (port 0: any); `pages`: JSON beside it, by path, asked for from other threads.

    Raises BursarError where the address is off loopback without `insecure`, or cannot be bound.
    """
    require_loopback(address, insecure, f"{program} (metrics)")
    host, port = split_address(address)
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BursarError(
            f"cannot serve metrics on {address}: {reason}",
            "stop what uses the port, or choose another one with --metrics",
        ) from error
    if pages:
        server.set_app(_with_pages(server.get_app(), pages))
    return MetricsServer(server.server_port, server, thread)


def _with_pages(metrics: Any, pages: Mapping[str, Callable[[], str]]) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        page = pages.get(str(environ.get("PATH_INFO", "")))
        if page is None:
            return metrics(environ, start_response)
        start_response("200 OK", [("Content-Type", "application/json; charset=utf-8")])
        return [page().encode()]

    return app


def reachable_at(address: str, port: int) -> str:
    """How others name what listens on an address: one that stands for all of this machine's is its name."""
    host, _ = split_address(address)
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
