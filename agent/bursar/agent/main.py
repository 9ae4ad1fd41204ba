"""`bursar-agent`: flags in, a running agent out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prometheus_client import CollectorRegistry

from bursar.agent.checkpoint import Checkpoint
from bursar.agent.containers.process import boot_id
from bursar.agent.containers.runtime import RuntimeUnavailable
from bursar.agent.containers.select import runtime_for
from bursar.agent.containers.volumes import VolumeRules, parse_volume_roots
from bursar.agent.daemon import AgentDaemon
from bursar.agent.devices.bindings import DeviceBindings
from bursar.agent.devices.driver import DriverUnavailable
from bursar.agent.devices.exclusive import shared_directories
from bursar.agent.devices.external import declared_with, read_external
from bursar.agent.devices.health import HealthRules
from bursar.agent.devices.select import driver_for
from bursar.agent.devices.shares import ShareSetting, parse_shares
from bursar.agent.devices.source import DeviceSource
from bursar.agent.metrics import AgentMetrics
from bursar.agent.resources import HostResources, discover_host
from bursar.agent.settings import PROGRAM, credentials, load_settings, tolerated_programs
from bursar.agent.watchdog import Watchdog, notify
from bursar.agent.work_dir import WorkDir
from bursar.core.devices import Device
from bursar.core.errors import BursarError
from bursar.core.layouts import PARTITION
from bursar.core.memory.agents import plan_agent
from bursar.core.memory.pools import format_bytes
from bursar.core.memory.text import parse_pools_text
from bursar.core.messages.agent import AgentInfo
from bursar.core.resources import GPUS, MEM
from bursar.core.task_groups import TASK_GROUPS
from bursar.core.tasks import EXECUTORS
from bursar.core.text import parse_amount, parse_attributes
from bursar.core.ulimits import ULIMITS, parse_ulimits
from bursar.core.volumes import PERSISTENT_VOLUMES
from bursar.runtime.settings import Settings, fail
from bursar.runtime.telemetry import configure_logging, logger, reachable_at, serve_metrics


def program_version() -> str:
    """As the package says."""
    try:
        return version("bursar")
    except PackageNotFoundError:
        return "unknown"


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> None:
    """Run an agent until SIGTERM or SIGINT; `doctor` as the first argument looks at the machine instead. Exit status 0; 1 where it cannot start or go on; 2 for a wrong use."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["doctor"]:
        from bursar.agent.doctor.main import main as examine

        sys.exit(examine(argv[1:], environ, program_version()))
    try:
        settings = load_settings(argv, environ, program_version())
        configure_logging(PROGRAM, environ)
        for warning in settings.warnings:
            logger().warning(warning)
        asyncio.run(serve(settings))
    except BursarError as error:
        fail(PROGRAM, error)
    except KeyboardInterrupt:
        sys.exit(130)


async def serve(settings: Settings) -> None:
    """Set everything up, then run. Raises BursarError."""
    log = logger()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    registry = CollectorRegistry()
    metrics = AgentMetrics(registry)
    with contextlib.ExitStack() as opened:
        if address := settings.text("metrics"):
            server = serve_metrics(address, PROGRAM, settings.switch("insecure"), registry)
            opened.callback(server.close)
            log.info("metrics", port=server.port)
            metrics.address = reachable_at(address, server.port)
        daemon = await _build(settings, metrics)
        info = daemon.machine.info
        log.info(
            "the agent runs", agent=info.agent_id, runtime=info.runtime, devices=len(info.devices), pid=os.getpid()
        )
        watching = asyncio.create_task(Watchdog(settings.number("hang-timeout") / 1000).run())
        try:
            await daemon.run(stop)
        finally:
            notify("STOPPING=1")
            watching.cancel()
        log.info("the agent stops; its tasks run on")


async def _build(settings: Settings, metrics: AgentMetrics) -> AgentDaemon:
    log = logger()
    shown = credentials(settings)
    work_dir = WorkDir(Path(settings.text("work-dir")).expanduser())
    checkpoint = Checkpoint(work_dir.checkpoint)
    agent_id, incarnation = checkpoint.begin_life()
    external = read_external(Path(path).expanduser()) if (path := settings.text("external-resources")) else []
    source = DeviceSource(
        driver_for(
            settings.text("devices"),
            agent_id,
            external=external,
            faults=work_dir.simulated_faults,
            shares=_shares(settings),
        ),
        declared_with(settings.text("resources"), external),
        _host(work_dir.path, settings.text("memory")),
        tolerated_programs(settings),
    )
    resolved = source.resolve(await asyncio.to_thread(_first_look, source), checkpoint.device_assignment())
    for warning in resolved.warnings:
        log.warning(warning)
    if keep_only := getattr(source.driver, "keep_only", None):
        keep_only([device.uuid for device in resolved.devices])
    checkpoint.keep_device_assignment(resolved.assignment)
    runtime = runtime_for(settings.text("runtime"), agent_id, work_dir.path)
    if runtime.name == "process":
        log.warning(
            "the process runtime isolates nothing: tasks run as this user, see all GPUs, and are held to no CPU or memory limit"
        )
    image = settings.text("default-image") if runtime.name == "docker" else ""
    info = AgentInfo(
        agent_id=agent_id,
        incarnation=incarnation,
        boot_id=boot_id(),
        hostname=settings.text("hostname"),
        attributes=parse_attributes(settings.text("attributes")),
        resources=resolved.resources,
        devices=resolved.devices,
        runtime=runtime.name,
        runs_without_image=runtime.name != "docker" or bool(image),
        version=program_version(),
        capabilities=(TASK_GROUPS, EXECUTORS, ULIMITS, PERSISTENT_VOLUMES, *((PARTITION,) if source.can_cut else ())),
        metrics_address=metrics.address,
    )
    daemon = AgentDaemon(
        info=info,
        default_image=image,
        masters=settings.items("master"),
        work_dir=work_dir,
        checkpoint=checkpoint,
        runtime=runtime,
        devices=source,
        resolved=resolved,
        metrics=metrics,
        volumes=_volume_rules(settings, work_dir),
        bindings=DeviceBindings(agent_id, shared_directories()),
        release_timeout_ms=settings.number("device-release-timeout"),
        share_grace_ms=settings.number("gpu-share-grace"),
        max_ulimits=parse_ulimits(settings.items("max-ulimits")),
        fetch_cache_bytes=parse_amount(MEM, settings.text("fetch-cache")),
        health=HealthRules(
            cool_down_ms=settings.number("device-cool-down"), relapses=settings.number("device-relapses")
        ),
        credentials=shown,
    )
    try:
        await runtime.open(daemon.container_exited)
    except RuntimeUnavailable as error:
        raise BursarError(str(error)) from error
    gpus = [device.uuid for device in resolved.devices if device.kind == GPUS]
    if gpus and (pinning := getattr(runtime, "pinning", None)):
        log.info("how containers get their GPUs", by=pinning(gpus))
    return daemon


def _shares(settings: Settings) -> ShareSetting | None:
    """Into what GPUs are shared. Raises InvalidText."""
    return parse_shares(settings.text("gpu-shares"))


def _volume_rules(settings: Settings, work_dir: WorkDir) -> VolumeRules:
    roots = parse_volume_roots(settings.items("volume-roots"))
    folders = settings.text("shared-folders")
    return VolumeRules(work_dir.volumes, roots, parse_volume_roots((folders,))[0] if folders else None)


def _host(work_dir: Path, memory: str) -> HostResources:
    """The machine, its memory divided as --memory says. Raises InvalidText."""
    host = discover_host(work_dir)
    if not memory:
        return host
    plan = plan_agent(host.mem_bytes, parse_pools_text(memory))
    logger().info("memory", **{item.name.replace("-", "_"): format_bytes(item.size_bytes) for item in plan.components})
    return replace(host, offerable_mem_bytes=plan["offerable"])


def _first_look(source: DeviceSource) -> tuple[Device, ...]:
    try:
        return source.discover()
    except DriverUnavailable as error:
        # A machine may have no GPU; but whoever names a script or a plugin expects something of it.
        say = logger().info if source.driver.name == "nvml" else logger().warning
        say("no devices", driver=source.driver.name, reason=str(error))
        return ()


if __name__ == "__main__":
    main()
