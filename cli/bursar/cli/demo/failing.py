"""The scene of a GPU that fails under a task and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from bursar.cli.demo.report import Report
from bursar.cli.local import LocalCluster
from bursar.core.errors import BursarError
from bursar.frameworks.batch import Batch, from_template
from bursar.runtime.credentials import NOBODY
from bursar.sdk import GPU_RESOURCES, FrameworkSession, OperatorClient
from bursar.v1 import resources_pb2, tasks_pb2

#: Its GPUs are simulated, so that they can be told to fail.
HOSTNAME = "gpu-2"
WAIT_S = 15.0


async def fail_a_gpu(report: Report, cluster: LocalCluster, client: OperatorClient) -> None:
    """A task runs on a GPU; the GPU fails; the task is told and goes on; the GPU comes back once the task has ended."""
    report.scene("A GPU fails under a task, and comes back")
    patient = Batch(
        from_template(["sh", "-c", "sleep 1000"], 1),
        name="patient",
        role="trainer",
        capabilities={GPU_RESOURCES},
        constraints=[f"hostname={HOSTNAME}"],
        cpus="0.1",
        mem="32MiB",
        gpus=1,
    )
    session = FrameworkSession(patient, cluster.address, connect_timeout=10, credentials=NOBODY)
    running = asyncio.create_task(session.run())
    orders = cluster.directory / HOSTNAME / "simulated-faults"
    try:
        task = await _until(lambda: _running(client, session.framework_id))
        report.check("a task runs on a GPU", task is not None)
        if task is None:
            return
        (uuid,) = (uuid for part in task.resources for uuid in part.resources.device_uuids)
        device = next(view.device for view in await client.devices(HOSTNAME) if view.device.uuid == uuid)
        report.note("its driver reports XID 79: the GPU has fallen off the bus")
        orders.write_text(f"{device.index} xid 79\n", encoding="utf-8")
        ill = await _until(lambda: _device(client, device.uuid, resources_pb2.DEVICE_CONDITION_CORDONED))
        if ill is not None:
            report.note(f"bursar gpu ls: {ill.device.health_reason}")
        report.check("the GPU is cordoned, and not offered to anybody", ill is not None)
        told = await _until(lambda: _told(client, session.framework_id))
        if told is not None:
            report.note(f"bursar task show: {told.message}")
        report.check("its task is told why, and goes on", told is not None)
        report.note("the GPU is repaired, and its task ends")
        orders.write_text("", encoding="utf-8")
        await client.kill_task(f"{task.framework_id}/{task.task_id}", 0)
        well = await _until(lambda: _device(client, device.uuid, resources_pb2.DEVICE_CONDITION_HEALTHY))
        report.check("a probe brings the GPU back", well is not None and well.use in ("free", "offered"))
    finally:
        orders.unlink(missing_ok=True)
        with contextlib.suppress(BursarError):
            await client.teardown_framework(session.framework_id)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _until(look: Callable[[], Awaitable[Any]]) -> Any:
    """What is looked for, once it is there; None where that takes too long."""
    deadline = time.monotonic() + WAIT_S
    while (found := await look()) is None and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return found


async def _running(client: OperatorClient, framework_id: str) -> Any:
    running = tasks_pb2.TASK_STATE_RUNNING
    return next(
        (task for task in await client.tasks() if (task.framework_id, task.state) == (framework_id, running)), None
    )


async def _told(client: OperatorClient, framework_id: str) -> Any:
    failed = tasks_pb2.STATUS_REASON_DEVICE_FAILED
    return next(
        (task for task in await client.tasks() if (task.framework_id, task.reason) == (framework_id, failed)), None
    )


async def _device(client: OperatorClient, uuid: str, condition: int) -> Any:
    return next(
        (view for view in await client.devices() if view.device.uuid == uuid and view.device.condition == condition),
        None,
    )
