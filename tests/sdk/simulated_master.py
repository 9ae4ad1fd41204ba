"""A simulation of a master with one agent, over real gRPC on loopback: the contract, and little else.

It serves clients only (FrameworkService and OperatorService); "tasks" are processes of the test's own machine. Faults are switched
on by the tests. The real master is tested under tests/master; this one lets the clients be tested alone.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio

from bursar.core.devices import Device
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.framework import (
    Accept,
    Acknowledge,
    Decline,
    FrameworkHeartbeat,
    Kill,
    LookupCalls,
    LookupResults,
    MasterHeartbeat,
    Offers,
    Reconcile,
    Rescind,
    StatusUpdates,
    StreamError,
    Subscribe,
    Subscribed,
    Teardown,
    UpdateDemand,
    UpdateFramework,
)
from bursar.core.messages.offers import AgentDescription, CallResult, Offer, OperationResult
from bursar.core.resources import ReservedResources, Resources, to_reserved
from bursar.core.tasks import StatusReason, StatusSource, TaskState, TaskStatus
from bursar.runtime.codec import encode, unwrap, wrap
from bursar.runtime.rpc import SERVER_OPTIONS, abort
from bursar.v1 import (
    agent_service_pb2,
    framework_service_pb2,
    framework_service_pb2_grpc,
    operator_service_pb2,
    operator_service_pb2_grpc,
)

GIB = 2**30


class Task:
    def __init__(self, spec: Any, framework_id: str, devices: list[str]) -> None:
        self.spec, self.framework_id, self.devices = spec, framework_id, devices
        self.state = TaskState.STAGING
        self.reason = StatusReason.UNSPECIFIED
        self.exit_code: int | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.log: list[tuple[int, bytes]] = []
        self.grew = asyncio.Event()
        self.killed = False


class SimulatedMaster(
    framework_service_pb2_grpc.FrameworkServiceServicer, operator_service_pb2_grpc.OperatorServiceServicer
):
    """One agent `node-1` with some CPUs, memory and GPUs."""

    def __init__(self, cpus: int = 4, gpus: int = 2) -> None:
        self.cluster_id = "cluster-" + uuid.uuid4().hex[:8]
        self.term = 0
        self.port = 0
        self.cpus_milli, self.mem = cpus * 1000, 8 * GIB
        self.gpus = [f"GPU-0000000{n}-0000-0000-0000-000000000000" for n in range(gpus)]
        self.heartbeat_ms = 200
        self.silent = False
        self.runtime = "process"
        self.runs_without_image = True
        self.offering = True
        #: What the clients said, in order.
        self.calls: list[Any] = []
        self.frameworks: dict[str, Any] = {}
        self.torn_down: set[str] = set()
        self.demands: dict[str, Any] = {}
        self.tasks: dict[str, Task] = {}
        self.results: dict[str, CallResult] = {}
        self.unacknowledged: dict[str, TaskStatus] = {}
        self.offers: dict[str, Offer] = {}
        #: Answers to operators, by method; a function of the request.
        self.operator: dict[str, Callable[[Any], Any]] = {}
        self.operator_calls: list[tuple[str, Any]] = []
        # faults
        self.refuse_accepts: list[ErrorDetail] = []
        self.refuse_updates: list[ErrorDetail] = []
        self.swallow_accepts = 0
        self.lose_results = 0
        self.silent_reconcile = 0
        self.cut_logs_after: int | None = None
        self._numbers = itertools.count(1)
        self._streams: dict[str, asyncio.Queue[Any]] = {}
        self._server: grpc.aio.Server | None = None
        self._jobs: set[asyncio.Task[None]] = set()
        self._runs: list[asyncio.Task[None]] = []
        self.changed = asyncio.Condition()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.term += 1
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        framework_service_pb2_grpc.add_FrameworkServiceServicer_to_server(self, self._server)
        operator_service_pb2_grpc.add_OperatorServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None
        self._streams.clear()
        self.offers.clear()

    async def close(self) -> None:
        for task in self.tasks.values():
            if task.process is not None and task.process.returncode is None:
                os.killpg(task.process.pid, 9)
        await self.stop()
        await asyncio.wait_for(asyncio.gather(*self._runs), 30)
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)

    async def until(self, condition: Callable[[], Any], timeout: float = 10) -> Any:
        """Wait for a condition on this object; checked whenever something was said or done."""

        async def wait() -> Any:
            async with self.changed:
                await self.changed.wait_for(condition)
                return condition()

        return await asyncio.wait_for(wait(), timeout)

    def said(self, kind: type) -> list[Any]:
        return [call for call in self.calls if isinstance(call, kind)]

    def say(self, *events: Any) -> None:
        for queue in self._streams.values():
            queue.put_nowait(events)

    def cut(self) -> None:
        """End all streams of frameworks, as a broken network would."""
        for queue in list(self._streams.values()):
            queue.put_nowait(None)

    def rescind_all(self) -> None:
        ids = tuple(self.offers)
        self.offers.clear()
        self.say(Rescind(ids, "the test wants it"))

    # --- FrameworkService ------------------------------------------------------------------------------------------

    async def Connect(self, request_iterator: Any, context: Any) -> Any:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        who: list[str] = []

        async def read() -> None:
            async for request in request_iterator:
                for message in request.calls:
                    await self._hear(unwrap("FrameworkCall", message), queue, who)
            if who and who[0] in self.torn_down:
                queue.put_nowait(False)

        async def beat() -> None:
            while True:
                await asyncio.sleep(self.heartbeat_ms / 1000)
                if who and not self.silent:
                    queue.put_nowait((MasterHeartbeat(),))

        job, heart = self._spawn(read()), self._spawn(beat())
        try:
            while (events := await queue.get()) not in (None, False):
                yield framework_service_pb2.FrameworkServiceConnectResponse(
                    events=[wrap("FrameworkEvent", e) for e in events]
                )
            if events is None:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        finally:
            job.cancel()
            heart.cancel()
            if who and self._streams.get(who[0]) is queue:
                del self._streams[who[0]]
                self.offers = {k: o for k, o in self.offers.items() if o.framework_id != who[0]}
            self._spawn(self._notify())

    async def _hear(self, call: Any, queue: asyncio.Queue[Any], who: list[str]) -> None:
        self.calls.append(call)
        match call:
            case Subscribe(info, cluster_id):
                problem = None
                if cluster_id not in ("", self.cluster_id):
                    problem = ErrorDetail(ErrorReason.CLUSTER_MISMATCH, "another cluster", "name the right master")
                if info.framework_id in self.torn_down:
                    problem = ErrorDetail(ErrorReason.FRAMEWORK_REMOVED, "the framework was torn down", "use a new id")
                if problem:
                    queue.put_nowait((StreamError(problem),))
                    queue.put_nowait(False)
                else:
                    who[:] = [info.framework_id]
                    self.frameworks[info.framework_id] = info
                    self._streams[info.framework_id] = queue
                    self.demands[info.framework_id] = call.demand
                    queue.put_nowait((Subscribed(info.framework_id, self.cluster_id, self.term, self.heartbeat_ms),))
                    pending = [s for s in self.unacknowledged.values() if s.framework_id == info.framework_id]
                    if pending:
                        queue.put_nowait((StatusUpdates(tuple(pending)),))
            case Accept():
                self._accept(call, who[0], queue)
            case Decline(offer_ids):
                for offer_id in offer_ids:
                    self.offers.pop(offer_id, None)
            case UpdateDemand(demand) | FrameworkHeartbeat(demand):
                if demand.version > self.demands[who[0]].version:
                    self.demands[who[0]] = demand
            case UpdateFramework(call_id, info, _, demand):
                error = self.refuse_updates.pop(0) if self.refuse_updates else None
                if error is None:
                    self.frameworks[who[0]] = info
                    if demand.version > self.demands[who[0]].version:
                        self.demands[who[0]] = demand
                queue.put_nowait((CallResult(call_id, error=error),))
            case Acknowledge(updates):
                for ref in updates:
                    self.unacknowledged.pop(ref.update_id, None)
            case Kill(task_id, _):
                self._kill(self.tasks.get(task_id))
            case LookupCalls(call_ids):
                queue.put_nowait(
                    (LookupResults(tuple(self.results.get(c) or CallResult(c, unknown=True) for c in call_ids)),)
                )
            case Reconcile(task_ids):
                if self.silent_reconcile > 0:
                    self.silent_reconcile -= 1
                else:
                    self._reconcile(task_ids, who[0], queue)
            case Teardown():
                self.torn_down.add(who[0])
                for task in self.tasks.values():
                    if task.framework_id == who[0]:
                        self._kill(task)
                queue.put_nowait(False)
        if not isinstance(call, Teardown | Decline):
            self._make_offers(queue, who)
        await self._notify()

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    def _free(self) -> Resources:
        holders = [t for t in self.tasks.values() if not t.state.is_terminal]
        cpus = self.cpus_milli - sum(t.spec.resources.scalars.get("cpus", 0) for t in holders)
        mem = self.mem - sum(t.spec.resources.scalars.get("mem", 0) for t in holders)
        taken = {uuid for t in holders for uuid in t.devices}
        scalars = {kind: value for kind, value in (("cpus", cpus), ("mem", mem)) if value > 0}
        return Resources(scalars, (), frozenset(self.gpus) - taken)  # type: ignore[arg-type]

    def _make_offers(self, queue: asyncio.Queue[Any], who: list[str]) -> None:
        if (
            not who
            or who[0] in self.torn_down
            or not self.offering
            or self.offers
            or self._streams.get(who[0]) is not queue
        ):
            return
        demand, free = self.demands[who[0]], self._free()
        if demand.version and not any(s.count and s.resources.fits_in(free) for s in demand.shapes):
            return
        info = self.frameworks[who[0]]
        offer_id = f"{self.term}-O{next(self._numbers)}"
        role = demand.shapes[0].role if demand.shapes else info.roles[0]
        offer = Offer(offer_id, info.framework_id, role, "agent-1", 1, to_reserved({(): free}), 30_000)  # type: ignore[arg-type]
        self.offers[offer_id] = offer
        devices = tuple(Device(u, "gpus", "Simulated", 16 * GIB, n) for n, u in enumerate(self.gpus))  # type: ignore[arg-type]
        description = AgentDescription(
            "agent-1",
            1,
            "node-1",
            {"rack": "r1", "generation": 3500},
            devices,
            self.runtime,
            self.runs_without_image,  # type: ignore[arg-type]
        )
        queue.put_nowait((Offers((description,), (offer,)),))

    def offer_again(self) -> None:
        for framework_id, queue in self._streams.items():
            self._make_offers(queue, [framework_id])

    def _accept(self, call: Accept, framework_id: str, queue: asyncio.Queue[Any]) -> None:
        if self.swallow_accepts > 0:
            self.swallow_accepts -= 1
            self.cut()
            return
        error = self.refuse_accepts.pop(0) if self.refuse_accepts else None
        if error is None and any(offer_id not in self.offers for offer_id in call.offer_ids):
            error = ErrorDetail(ErrorReason.INVALID_OFFERS, "an offer is not outstanding", "use another")
        for offer_id in call.offer_ids:
            self.offers.pop(offer_id, None)
        if error is not None:
            results = tuple(OperationResult(o.operation_id, error) for o in call.operations)
            result = CallResult(call.call_id, False, error, results)
        else:
            result = CallResult(
                call.call_id, False, None, tuple(OperationResult(o.operation_id) for o in call.operations)
            )
            for operation in call.operations:
                for spec in operation.operation.tasks:  # type: ignore[union-attr]
                    devices = sorted(self._free().devices)[: spec.resources.gpu_count]
                    task = self.tasks[spec.task_id] = Task(spec, framework_id, list(devices))
                    self._runs.append(self._spawn(self._run(task)))
                    self._fulfil(framework_id, spec.resources)
        self.results[call.call_id] = result
        if self.lose_results > 0:
            self.lose_results -= 1
            self.cut()
        else:
            queue.put_nowait((result,))

    def _fulfil(self, framework_id: str, request: Any) -> None:
        """What was launched is wanted no more, before the framework says so."""
        demand = self.demands[framework_id]
        shapes = [replace(s, count=s.count - 1) if s.resources == request and s.count else s for s in demand.shapes]
        self.demands[framework_id] = replace(demand, shapes=tuple(shapes))

    async def _run(self, task: Task) -> None:
        environment = {"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": ",".join(task.devices)}
        environment |= {v.name: v.value for v in task.spec.environment}
        try:
            task.process = await asyncio.create_subprocess_exec(
                *task.spec.command, stdout=-1, stderr=-1, stdin=-3, env=environment, start_new_session=True
            )
        except OSError as error:
            task.exit_code = 127 if isinstance(error, FileNotFoundError) else 126
            task.log.append((2, f"{task.spec.command[0]}: {error.strerror}\n".encode()))
            await self._report(task, TaskState.FAILED, StatusReason.COMMAND_EXITED)
            return
        await self._report(task, TaskState.RUNNING)
        if task.killed:
            self._kill(task)

        async def copy(number: int, stream: Any) -> None:
            while data := await stream.read(65536):
                task.log.append((number, data))
                task.grew.set()

        await asyncio.gather(copy(1, task.process.stdout), copy(2, task.process.stderr))
        code = await task.process.wait()
        task.exit_code = 128 - code if code < 0 else code
        state = TaskState.KILLED if task.killed else TaskState.FINISHED if code == 0 else TaskState.FAILED
        await self._report(
            task, state, StatusReason.KILLED_BY_FRAMEWORK if task.killed else StatusReason.COMMAND_EXITED
        )

    def _kill(self, task: Task | None) -> None:
        if task is None:
            return
        task.killed = True
        if task.process is not None and task.process.returncode is None:
            os.killpg(task.process.pid, 15)

    async def _report(self, task: Task, state: TaskState, reason: StatusReason = StatusReason.UNSPECIFIED) -> None:
        task.state, task.reason = state, reason
        task.grew.set()
        status = self.status(task, update_id=uuid.uuid4().hex)
        self.unacknowledged[status.update_id] = status
        queue = self._streams.get(task.framework_id)
        if queue is not None:
            queue.put_nowait((StatusUpdates((status,)),))
            if state.is_terminal:
                self._make_offers(queue, [task.framework_id])
        await self._notify()

    def status(self, task: Task, update_id: str = "") -> TaskStatus:
        return TaskStatus(
            task.spec.task_id, task.framework_id, "agent-1", task.state, task.reason, StatusSource.AGENT, "", update_id, 1,  # type: ignore[arg-type]
            task.exit_code if task.state.is_terminal else None, tuple(task.devices),  # type: ignore[arg-type]
        )  # fmt: skip

    def _reconcile(self, task_ids: Any, framework_id: str, queue: asyncio.Queue[Any]) -> None:
        wanted = task_ids or [
            t for t, task in self.tasks.items() if task.framework_id == framework_id and not task.state.is_terminal
        ]
        statuses = []
        for task_id in wanted:
            if task_id in self.tasks:
                statuses.append(self.status(self.tasks[task_id]))
            else:
                statuses.append(TaskStatus(task_id, framework_id, "", TaskState.UNKNOWN, StatusReason.RECONCILIATION))  # type: ignore[arg-type]
        if statuses:
            queue.put_nowait((StatusUpdates(tuple(statuses)),))

    # --- OperatorService -------------------------------------------------------------------------------------------

    async def ReadTaskLog(self, request: Any, context: Any) -> Any:
        task = self.tasks.get(request.task.rpartition("/")[2])
        if task is None:
            await abort(context, ErrorDetail(ErrorReason.NOT_FOUND, f"no task {request.task}", "see bursar task ls"))
            return
        sent = 0
        index = 0
        while True:
            task.grew.clear()
            while index < len(task.log):
                stream, data = task.log[index]
                if self.cut_logs_after is not None and sent + len(data) > self.cut_logs_after:
                    self.cut_logs_after = None
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
                chunk = agent_service_pb2.LogChunk(stream=stream, data=data)  # type: ignore[arg-type]
                yield operator_service_pb2.ReadTaskLogResponse(chunk=chunk)
                sent += len(data)
                index += 1
            if not request.follow or (task.state.is_terminal and index == len(task.log)):
                return
            await task.grew.wait()

    def _spawn(self, job: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        return task


def _method(name: str) -> Any:
    async def answer(self: SimulatedMaster, request: Any, context: Any) -> Any:
        self.operator_calls.append((name, request))
        if name not in self.operator:
            await abort(context, ErrorDetail(ErrorReason.UNSUPPORTED, f"{name} is not simulated"))
        result = self.operator[name](request)
        if isinstance(result, ErrorDetail):
            await abort(context, result)
        return encode(result)

    return answer


for _call in operator_service_pb2.DESCRIPTOR.services_by_name["OperatorService"].methods:
    if not _call.server_streaming:
        setattr(SimulatedMaster, _call.name, _method(_call.name))

__all__ = ["ReservedResources", "SimulatedMaster", "Task"]
