"""The agent as a real process, and a scripted master for it: a real gRPC server that says what a test tells it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import pytest

from bursar.core.ids import FrameworkId, Generation, TaskId
from bursar.core.messages.agent import (
    AcknowledgedUpdate,
    AcknowledgeUpdates,
    DesiredState,
    MasterMessage,
    OpenLog,
    Register,
    Registered,
    TaskReports,
    TaskUpdates,
)
from bursar.core.tasks import TaskStatus
from bursar.runtime.codec import unwrap, wrap
from bursar.runtime.rpc import SERVER_OPTIONS
from bursar.v1 import agent_service_pb2, agent_service_pb2_grpc

T = TypeVar("T")


class ScriptedMaster:
    """Not the real one: it lets every agent in, acknowledges everything unless told not to, and decides nothing."""

    def __init__(self) -> None:
        self.address = ""
        self.term = 1
        self.cluster_id = "c1"
        self.lets_in = True
        self.acknowledges = True
        self.ping_interval_ms = 15_000
        #: All messages of all agents, in the order heard; statuses apart.
        self.heard: list[Any] = []
        self.statuses: list[TaskStatus] = []
        self.logs: dict[str, list[Any]] = {}
        self.credit = 1 << 20
        self._server: grpc.aio.Server | None = None
        self._changed = asyncio.Condition()
        self._outgoing: asyncio.Queue[MasterMessage | None] = asyncio.Queue()
        self._sequence = 0

    async def start(self, port: int = 0) -> None:
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        agent_service_pb2_grpc.add_AgentServiceServicer_to_server(_Servicer(self), self._server)  # type: ignore[arg-type]
        port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.address = f"127.0.0.1:{port}"
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    def say(self, message: MasterMessage) -> None:
        self._outgoing.put_nowait(message)

    def hang_up(self) -> None:
        self._outgoing.put_nowait(None)

    def desire(self, **what: Any) -> None:
        base = Generation(self.term, self._sequence)
        self._sequence += 1
        self.say(DesiredState(Generation(self.term, self._sequence), base, **what))

    async def until(self, found: Callable[[], T | None], timeout_s: float = 20) -> T:
        """Wait until `found` returns something, looked at whenever something was heard."""

        async def wait() -> T:
            async with self._changed:
                while True:
                    if (result := found()) is not None and result is not False:
                        return result
                    await self._changed.wait()

        return await asyncio.wait_for(wait(), timeout_s)

    async def until_status(self, task_id: str, state: object, timeout_s: float = 20) -> TaskStatus:
        def found() -> TaskStatus | None:
            mine = [s for s in self.statuses if s.task_id == task_id]
            wanted = next((s for s in mine if s.state is state), None)
            ended = next((s for s in mine if s.state.is_terminal), None)
            assert wanted or not ended, f"{task_id} ended otherwise: {ended}"
            return wanted

        return await self.until(found, timeout_s)

    def registers(self) -> list[Register]:
        return [message for message in self.heard if isinstance(message, Register)]

    async def _hear(self, message: Any) -> None:
        async with self._changed:
            self.heard.append(message)
            statuses = list(message.updates) if isinstance(message, TaskUpdates) else []
            if isinstance(message, TaskReports):
                statuses = [status for report in message.tasks for status in report.unacknowledged]
            self.statuses += statuses
            self._changed.notify_all()
        if isinstance(message, TaskReports) and message.complete and self.lets_in:
            self._sequence += 1
            self.say(Registered(self.cluster_id, self.term, self.ping_interval_ms, 5))
            self.say(DesiredState(Generation(self.term, self._sequence)))
        if statuses and self.acknowledges:
            items = (AcknowledgedUpdate(FrameworkId(s.framework_id), TaskId(s.task_id), s.update_id) for s in statuses)
            self.say(AcknowledgeUpdates(tuple(items)))

    def open_log(self, stream_id: str, task_id: str, follow: bool = False, tail_bytes: int | None = None) -> None:
        self.logs[stream_id] = []
        self.say(OpenLog(stream_id, FrameworkId("f"), TaskId(task_id), follow, tail_bytes))

    def log_text(self, stream_id: str, stream: int = agent_service_pb2.LOG_STREAM_STDOUT) -> str:
        return b"".join(
            m.chunk.data
            for m in self.logs[stream_id]
            if m is not None and m.HasField("chunk") and m.chunk.stream == stream
        ).decode()

    async def until_log_ended(self, stream_id: str) -> list[Any]:
        return await self.until(lambda: self.logs[stream_id] if None in self.logs[stream_id] else None)


class _Servicer(agent_service_pb2_grpc.AgentServiceServicer):
    def __init__(self, master: ScriptedMaster) -> None:
        self._master = master

    async def Connect(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        master = self._master
        outgoing = master._outgoing = asyncio.Queue()

        async def listen() -> None:
            async for request in request_iterator:
                for message in request.messages:
                    await master._hear(unwrap("AgentMessage", message))

        listener = asyncio.create_task(listen())
        try:
            while (message := await outgoing.get()) is not None:
                yield agent_service_pb2.AgentServiceConnectResponse(messages=[wrap("MasterMessage", message)])
        finally:
            listener.cancel()

    async def SendLog(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        master = self._master
        stream_id = ""
        yield agent_service_pb2.SendLogResponse(credit_bytes=master.credit)
        async for request in request_iterator:
            stream_id = stream_id or request.stream_id
            async with master._changed:
                master.logs[stream_id].append(request)
                master._changed.notify_all()
            if request.HasField("chunk"):
                yield agent_service_pb2.SendLogResponse(credit_bytes=len(request.chunk.data))
        async with master._changed:
            master.logs[stream_id].append(None)
            master._changed.notify_all()


@pytest.fixture
async def scripted_master() -> AsyncIterator[ScriptedMaster]:
    master = ScriptedMaster()
    await master.start()
    yield master
    await master.stop()


class AgentProcess:
    """One agent's program; its log is kept for the assertion message."""

    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.process: asyncio.subprocess.Process | None = None
        self.log: list[str] = []
        self._reader: asyncio.Task[None] | None = None
        self._line = asyncio.Event()

    async def start(self, *flags: str) -> None:
        self.log.clear()
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "bursar.agent.main",
            "--work-dir",
            str(self.work_dir),
            "--resources",
            "cpus:4;mem:1GiB",
            *flags,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "SECRET_OF_THE_AGENT": "x"},
        )
        self._reader = asyncio.create_task(self._read(self.process))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            self.log.append(line.decode())
            self._line.set()

    async def until_logged(self, pattern: str, timeout_s: float = 20) -> re.Match[str]:
        async with asyncio.timeout(timeout_s):
            while True:
                for line in self.log:
                    if match := re.search(pattern, line):
                        return match
                self._line.clear()
                await self._line.wait()

    async def wait(self, timeout_s: float = 20) -> int:
        assert self.process is not None and self._reader is not None
        code = await asyncio.wait_for(self.process.wait(), timeout_s)
        await self._reader
        return code

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.wait()


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[AgentProcess]:
    process = AgentProcess(tmp_path / "agent")
    yield process
    if process.process is not None:
        await process.end(signal.SIGKILL)
    for record in (tmp_path / "agent" / "containers").glob("*.record"):
        pid = re.search(r"^pid (\d+)$", record.read_text(), re.MULTILINE)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid[1]), signal.SIGKILL)
