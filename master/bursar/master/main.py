"""`bursar-master`: wiring, nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc.aio
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import SQLAlchemyError

from bursar.core.errors import BursarError, ErrorDetail, ErrorReason
from bursar.core.flags import format_flag
from bursar.master.flags import MASTER_FLAGS, FlagValues
from bursar.master.machine import MasterMachine
from bursar.master.metrics import MasterMetrics
from bursar.master.registry.answers import ANSWERS
from bursar.master.registry.store import Registry, sqlite_url
from bursar.master.server.agent_service import AgentServicer
from bursar.master.server.framework_service import FrameworkServicer
from bursar.master.server.guard import Guard
from bursar.master.server.hub import Hub
from bursar.master.server.logs import LogRelays
from bursar.master.server.operator_service import OperatorServicer
from bursar.master.server.sessions import SessionRelays
from bursar.master.server.tokens import TokenFile
from bursar.runtime.driver import Driver, now
from bursar.runtime.lock import DirectoryLock
from bursar.runtime.memory import calm_garbage_collector
from bursar.runtime.rpc import SERVER_OPTIONS, require_protection, serve, split_address
from bursar.runtime.rpc_metrics import RpcMetrics
from bursar.runtime.server_tls import ServerTls
from bursar.runtime.settings import Settings, fail, load
from bursar.runtime.telemetry import configure_logging, logger, reachable_at, serve_metrics
from bursar.v1 import agent_service_pb2_grpc, framework_service_pb2_grpc, operator_service_pb2_grpc

PROGRAM = "bursar-master"
SERVICES = ("bursar.v1.FrameworkService", "bursar.v1.AgentService", "bursar.v1.OperatorService")
SNAPSHOT_S = 1.0
#: Beside the metrics: targets for Prometheus' HTTP service discovery.
SD_PATH = "/sd"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a master until SIGTERM or SIGINT."""
    version = metadata.version("bursar")
    try:
        settings = load(
            MASTER_FLAGS,
            sys.argv[1:] if argv is None else argv,
            os.environ,
            PROGRAM,
            summary="Aggregates the resources of agents and offers them to frameworks.",
            version=version,
        )
        configure_logging(PROGRAM)
        for warning in settings.warnings:
            logger().warning(warning)
        asyncio.run(_run(settings, version))
    except BursarError as error:
        fail(PROGRAM, error)
    except KeyboardInterrupt:
        sys.exit(130)


def default_work_dir() -> Path:
    """`/var/lib/bursar/master` for root, below the home directory for others."""
    if os.geteuid() == 0:
        return Path("/var/lib/bursar/master")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "bursar" / "master"


async def _run(settings: Settings, version: str) -> None:
    listen, insecure = settings.text("listen"), settings.switch("insecure")
    tls = ServerTls.of(settings.text("tls-cert"), settings.text("tls-key"), settings.text("tls-ca"))
    tokens = TokenFile(settings.text("tokens")) if settings.text("tokens") else None
    guard = Guard(tokens) if tokens is not None or (tls is not None and tls.ca) else None
    require_protection(listen, tls is not None, guard is not None, insecure, PROGRAM)
    work_dir = Path(settings.text("work-dir") or default_work_dir()).absolute()
    lock = DirectoryLock(work_dir, "master")
    registry = Registry(settings.text("registry") or sqlite_url(work_dir))
    durable = registry.open()
    flags = FlagValues(
        {flag.name: (format_flag(flag, settings.value(flag.name)), settings.source(flag.name)) for flag in MASTER_FLAGS}
    )
    machine = MasterMachine(durable, flags, now(), answers=ANSWERS, version=version, address=listen)
    prometheus = CollectorRegistry()
    metrics = MasterMetrics(prometheus)
    hub = Hub()

    async def commit(records: Sequence[object]) -> None:
        with metrics.commit_seconds.time():
            await registry.commit(records)

    driver = hub.driver = Driver(machine, commit=commit, perform=hub.perform)
    # First what can fail without anybody noticing; a server that has started must be stopped again.
    metrics_server = (
        serve_metrics(settings.text("metrics"), PROGRAM, insecure, prometheus, {SD_PATH: metrics.targets})
        if settings.text("metrics")
        else None
    )
    if metrics_server is not None:
        metrics.address = reachable_at(settings.text("metrics"), metrics_server.port)
    server = _server(hub, LogRelays(hub), SessionRelays(hub), RpcMetrics(prometheus), guard)
    port = await serve(server, listen, SERVICES, None if tls is None else tls.credentials())
    host, _ = split_address(listen)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    machine.address = address
    calm_garbage_collector()
    log = logger()
    log.info(
        "ready",
        address=address,
        metrics=metrics_server.port if metrics_server else "none",
        cluster_id=durable.cluster_id,
        term=durable.term,
        work_dir=str(work_dir),
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    running = asyncio.create_task(driver.run())
    snapshots = asyncio.create_task(_take_snapshots(metrics, machine, driver))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            _end_after_failure(running)
        hub.close_all(ErrorDetail(ErrorReason.SHUTTING_DOWN, "the master is ending", "connect again"))
        await server.stop(1.0)
        driver.stop()
        await running
    finally:
        snapshots.cancel()
        stopped.cancel()
        if metrics_server is not None:
            metrics_server.close()
        registry.close()
        lock.close()
    log.info("stopped")


def _server(
    hub: Hub, logs: LogRelays, sessions: SessionRelays, calls: RpcMetrics, guard: Guard | None = None
) -> grpc.aio.Server:
    server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=[calls] if guard is None else [calls, guard])
    framework_service_pb2_grpc.add_FrameworkServiceServicer_to_server(FrameworkServicer(hub), server)
    agent_service_pb2_grpc.add_AgentServiceServicer_to_server(AgentServicer(hub, logs, sessions), server)
    operators: Any = OperatorServicer(hub, logs, sessions, guarded=guard is not None)
    operator_service_pb2_grpc.add_OperatorServiceServicer_to_server(operators, server)
    return server


def _end_after_failure(running: asyncio.Task[None]) -> None:
    """Memory is ahead of the disk: only a restart from the disk is honest."""
    error = running.exception()
    if isinstance(error, (SQLAlchemyError, OSError)):
        reason = str(getattr(error, "orig", None) or error).splitlines()[0]
        logger().critical("the registry cannot be written; the master ends", reason=reason)
    elif error is not None:
        logger().critical("a bug of ours; the master ends, please report this", exc_info=error)
    sys.stderr.flush()
    os._exit(1)


async def _take_snapshots(metrics: MasterMetrics, machine: MasterMachine, driver: Driver) -> None:
    while True:
        metrics.take(machine, driver)
        await asyncio.sleep(SNAPSHOT_S)


if __name__ == "__main__":
    main()
