"""Launches through a real master: its program, SQLite and gRPC, an SDK framework, and an agent that only says what an agent would say.

Beside it, in turns, the same conversation with the master's machine alone: nothing is encoded, sent or stored. What lies between the two is
the price of gRPC, of the codec and of the registry; encoding and decoding the same messages is measured by itself. So is gRPC: one round
goes through a proxy that records every message, and a server that does nothing else plays the master's part of it, byte for byte.
"""

from __future__ import annotations

import asyncio
import importlib.util
import pickle
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import psutil
import pytest

from bursar.cli.local import LocalCluster
from bursar.core.clock import Instant
from bursar.core.ids import AgentId, ConnectionId, FrameworkId, TaskId
from bursar.core.machine import TimePassed
from bursar.core.messages.agent import AgentInfo, DesiredState, Ping, Pong, Register, TaskReports, TaskUpdates
from bursar.core.messages.framework import Acknowledge, FrameworkInfo, Offers, StatusUpdates, Subscribe, UpdateRef
from bursar.core.messages.offers import Accept, Demand, Launch, Operation, Shape
from bursar.core.resources import ReservedResources, ResourceRequest, Resources
from bursar.core.tasks import AssignedTask, StatusReason, TaskSpec, TaskState, TaskStatus
from bursar.master.effects import SendToAgent, SendToFramework
from bursar.master.events import AgentRegistering, AgentSpoke, FrameworkCalled
from bursar.master.flags import FlagValues
from bursar.master.machine import MasterMachine
from bursar.master.records import Durable
from bursar.runtime.codec import unwrap, wrap
from bursar.runtime.rpc import CLIENT_OPTIONS
from bursar.sdk import Framework, FrameworkSession, Offer, Status, Task
from bursar.sdk import TaskState as State
from bursar.v1 import agent_service_pb2, agent_service_pb2_grpc

_spec = importlib.util.spec_from_file_location("bursar_tests_bare_grpc", Path(__file__).with_name("bare_grpc.py"))
assert _spec is not None and _spec.loader is not None
bare_grpc = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bare_grpc)

pytestmark = pytest.mark.benchmark

ROUNDS = 3
TASKS = 1000
LATENCY_TASKS = 200
REQUEST = ResourceRequest({"cpus": 1000, "mem": 16 << 20})


def info_of(agent_id: str, at_once: int) -> AgentInfo:
    total = Resources({"cpus": 1000 * at_once, "mem": 64 << 30})
    return AgentInfo(AgentId(agent_id), 1, "boot", agent_id, resources=(ReservedResources((), total),))


def statuses(launched: tuple[AssignedTask, ...], state: TaskState) -> TaskUpdates:
    """What an agent says once these tasks run, or have ended."""
    reason = StatusReason.COMMAND_EXITED if state.is_terminal else StatusReason.UNSPECIFIED
    return TaskUpdates(
        tuple(
            TaskStatus(
                task.spec.task_id, task.framework_id, AgentId(""), state, reason,
                update_id=f"{task.spec.task_id}-{state}", exit_code=0 if state.is_terminal else None,
            )
            for task in launched
        )
    )  # fmt: skip


class QuickAgent:
    """Registers over gRPC; every task runs and ends as soon as it is heard of. Nothing is stored or started."""

    def __init__(self, address: str, name: str, at_once: int) -> None:
        self._address, self._info = address, info_of(name, at_once)
        self.registered = asyncio.Event()

    async def run(self) -> None:
        async with grpc.aio.insecure_channel(self._address, options=CLIENT_OPTIONS) as channel:
            stub: Any = agent_service_pb2_grpc.AgentServiceStub(channel)
            call = stub.Connect()
            await self._say(call, Register(self._info), TaskReports(()))
            while (response := await call.read()) is not grpc.aio.EOF:
                answers: list[Any] = []
                for wrapped in response.messages:
                    message = unwrap("MasterMessage", wrapped)
                    self.registered.set()
                    if isinstance(message, Ping):
                        answers.append(Pong(message.number))
                    elif isinstance(message, DesiredState) and message.launch:
                        answers += [
                            statuses(message.launch, state) for state in (TaskState.RUNNING, TaskState.FINISHED)
                        ]
                if answers:
                    await self._say(call, *answers)

    async def _say(self, call: Any, *messages: Any) -> None:
        wrapped = [wrap("AgentMessage", message) for message in messages]
        await call.write(agent_service_pb2.AgentServiceConnectRequest(messages=wrapped))


class Rush(Framework):
    """Has so many tasks launched, as many at once as fit, and stops."""

    def __init__(self, count: int) -> None:
        self.todo = [Task(["true"], cpus=1, mem="16MiB") for _ in range(count)]
        self.left = count
        self.begun = self.ended = 0.0

    def wants(self) -> list[tuple[Task, int]]:
        return [(self.todo[-1], len(self.todo))] if self.todo else []

    def on_offer(self, offer: Offer) -> Iterator[Task]:
        self.begun = self.begun or time.perf_counter()
        while self.todo and offer.fits(self.todo[-1]):
            yield self.todo.pop()

    def on_status(self, task: Task, status: Status) -> None:
        if status.terminal:
            assert status.ok, status
            self.left -= 1
            if self.left == 0:
                self.ended = time.perf_counter()
                self.stop()


class OneByOne(Framework):
    """One task after the other: how long until it is launched, durably, and until it runs."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.todo: list[Task] = []
        self.submitted = 0.0
        self.launched: list[float] = []
        self.running_after: list[float] = []

    def on_subscribed(self, again: bool) -> None:
        self.next()

    def next(self) -> None:
        self.todo.append(Task(["true"], cpus=1, mem="16MiB"))
        self.submitted = time.perf_counter()
        self.update()

    def wants(self) -> list[tuple[Task, int]]:
        return [(task, 1) for task in self.todo]

    def on_offer(self, offer: Offer) -> Iterator[Task]:
        if self.todo:
            yield self.todo.pop()

    def on_launched(self, task: Task) -> None:
        self.launched.append(time.perf_counter() - self.submitted)

    def on_status(self, task: Task, status: Status) -> None:
        if status.state is State.RUNNING:
            self.running_after.append(time.perf_counter() - self.submitted)
        elif status.terminal:
            self.left -= 1
            if self.left:
                asyncio.get_running_loop().call_later(0.01, self.next)
            else:
                self.stop()


async def through_grpc(
    cluster: LocalCluster, framework: Framework, agents: int, at_once: int, address: str = ""
) -> float:
    """Run a framework to its end; return the processor seconds that the master took for it."""
    address = address or cluster.address
    quick = [QuickAgent(address, f"agent-{n}", at_once) for n in range(agents)]
    jobs = [asyncio.create_task(agent.run()) for agent in quick]
    await asyncio.gather(*(agent.registered.wait() for agent in quick))
    master = psutil.Process(next(process.pid for name, process in cluster._processes if name == "master"))
    before = master.cpu_times()
    await asyncio.wait_for(FrameworkSession(framework, address).run(), 300)
    after = master.cpu_times()
    for job in jobs:
        job.cancel()
    await asyncio.gather(*jobs, return_exceptions=True)
    return after.user + after.system - before.user - before.system


class Alone:
    """The machine, and peers that answer at once, in one thread."""

    def __init__(self, agents: int, at_once: int, count: int) -> None:
        self.machine = MasterMachine(Durable("c", 1), FlagValues.defaults(), Instant(0, 0))
        self.left = self.ended = count
        self.ms = self.calls = 0
        self.said: list[tuple[str, Any]] = []
        self.events: deque[Any] = deque()
        for n in range(agents):
            self._speak(AgentRegistering(ConnectionId(n + 2), Register(info_of(f"agent-{n}", at_once)), ()))
        framework = FrameworkInfo(FrameworkId("f"), "life", "rush", ("*",))
        self._call(Subscribe(framework, demand=Demand(1, (Shape("*", REQUEST, count),))))

    def _call(self, call: Any) -> None:
        self.said.append(("FrameworkCall", call))
        self.events.append(FrameworkCalled(ConnectionId(1), call, ""))

    def _speak(self, event: Any) -> None:
        self.events.append(event)

    def run(self) -> float:
        """Processor seconds."""
        begun = time.process_time()
        while self.ended:
            while self.events:
                self._perform(self.machine.step(self.events.popleft(), Instant(self.ms, self.ms)))
            self.ms += 1
            self._perform(self.machine.step(TimePassed(), Instant(self.ms, self.ms)))
        return time.process_time() - begun

    def _perform(self, effects: Any) -> None:
        for effect in effects:
            match effect:
                case SendToFramework(_, message):
                    self.said.append(("FrameworkEvent", message))
                    self._framework_hears(message)
                case SendToAgent(connection, message):
                    self.said.append(("MasterMessage", message))
                    if isinstance(message, DesiredState) and message.launch:
                        for state in (TaskState.RUNNING, TaskState.FINISHED):
                            updates = statuses(message.launch, state)
                            self.said.append(("AgentMessage", updates))
                            self._speak(AgentSpoke(connection, updates))

    def _framework_hears(self, event: Any) -> None:
        match event:
            case Offers(_, offers):
                for offer in offers:
                    count = min(
                        self.left, sum(part.resources.scalars.get("cpus", 0) for part in offer.resources) // 1000
                    )
                    self.left -= count
                    self.calls += 1
                    specs = [
                        TaskSpec(TaskId(f"t{self.calls}-{n}"), command=("true",), resources=REQUEST)
                        for n in range(count)
                    ]
                    operations = tuple(Operation(spec.task_id, Launch((spec,))) for spec in specs)
                    self._call(Accept(f"c{self.calls}", (offer.offer_id,), operations))
            case StatusUpdates(reports):
                self.ended -= sum(report.state.is_terminal for report in reports)
                self._call(Acknowledge(tuple(UpdateRef(report.task_id, report.update_id) for report in reports)))


def codec_seconds(said: list[tuple[str, Any]]) -> float:
    """Processor seconds to encode, or decode, each message once, as the master does."""
    mine = [(kind, message) for kind, message in said if kind in ("FrameworkEvent", "MasterMessage")]
    theirs = [(kind, wrap(kind, message)) for kind, message in said if kind in ("FrameworkCall", "AgentMessage")]
    wire = [(kind, type(message), message.SerializeToString()) for kind, message in theirs]
    begun = time.process_time()
    for kind, message in mine:
        wrap(kind, message).SerializeToString()
    for kind, message_class, text in wire:
        unwrap(kind, message_class.FromString(text))
    return time.process_time() - begun


async def record(cluster: LocalCluster, agents: int, at_once: int) -> list[Any]:
    """What is said on each stream while tasks are launched."""
    server = grpc.aio.server(options=bare_grpc.OPTIONS)
    async with grpc.aio.insecure_channel(cluster.address, options=CLIENT_OPTIONS) as channel:
        recorder = bare_grpc.Recorder(channel)
        server.add_generic_rpc_handlers((recorder,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            await through_grpc(cluster, Rush(TASKS), agents, at_once, f"127.0.0.1:{port}")
        finally:
            await server.stop(None)
    return recorder.conversations


class BareServer:
    """A process that says what the master said, and nothing else."""

    def __init__(self, conversations: list[Any], folder: Path) -> None:
        self.conversations = conversations
        file = folder / "conversations"
        file.write_bytes(pickle.dumps(conversations))
        self._process = subprocess.Popen(
            [sys.executable, bare_grpc.__file__, str(file)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._address = f"127.0.0.1:{self._process.stdout.readline().strip()}"

    def seconds(self) -> float:
        """Processor seconds of one time through all conversations."""
        process = psutil.Process(self._process.pid)
        before = process.cpu_times()
        asyncio.run(asyncio.wait_for(bare_grpc.talk(self._address, self.conversations), 300))
        after = process.cpu_times()
        return after.user + after.system - before.user - before.system

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


@pytest.mark.parametrize(("agents", "at_once"), [(1, 4), (1, 64), (16, 16)])
def test_launches(figures: Any, start_cluster: Any, agents: int, at_once: int, tmp_path: Path) -> None:
    cluster = start_cluster(None)
    asyncio.run(through_grpc(cluster, Rush(50), agents, at_once))
    bare = BareServer(asyncio.run(record(cluster, agents, at_once)), tmp_path)
    bare.seconds()
    rates, master, machine, codec, alone_grpc, messages = [], [], [], [], [], 0
    for _ in range(ROUNDS):
        framework = Rush(TASKS)
        master.append(1000 * asyncio.run(through_grpc(cluster, framework, agents, at_once)) / TASKS)
        rates.append(TASKS / (framework.ended - framework.begun))
        alone = Alone(agents, at_once, TASKS)
        machine.append(1000 * alone.run() / TASKS)
        codec.append(1000 * codec_seconds(alone.said) / TASKS)
        alone_grpc.append(1000 * bare.seconds() / TASKS)
        messages = len(alone.said)
    bare.stop()
    figures.add(
        "launches",
        agents=agents,
        at_once=agents * at_once,
        per_s=median(rates),
        master_cpu_ms=median(master),
        machine_ms=median(machine),
        codec_ms=median(codec),
        grpc_ms=median(alone_grpc),
        grpc_share=median(alone_grpc) / median(master),
        rest_share=1 - (median(machine) + median(codec) + median(alone_grpc)) / median(master),
        sent_per_task=sum(map(len, bare.conversations)) / TASKS,
        messages_per_task=messages / TASKS,
    )


def test_latency(figures: Any, start_cluster: Any, percentile: Callable[[list[float], int], float]) -> None:
    cluster = start_cluster(None)
    framework = OneByOne(LATENCY_TASKS)
    asyncio.run(through_grpc(cluster, framework, 1, 4))
    for name, values in (("submit to launched", framework.launched), ("submit to running", framework.running_after)):
        figures.add("launch, ms", what=name, p50=percentile(values, 50) * 1000, p99=percentile(values, 99) * 1000)
