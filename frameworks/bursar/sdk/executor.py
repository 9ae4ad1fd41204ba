"""What the program of an executor imports: a task that its framework feeds with tasks (`Task(executor=True)`, `Task(on_executor=…)`).

    from bursar.sdk.executor import Executor, ExecutorTask, run

    class Squares(Executor):
        async def execute(self, task: ExecutorTask) -> str:
            return str(int(task.command[0]) ** 2)

    run(Squares())

It finds its agent by the socket that BURSAR_EXECUTOR_SOCKET names, and finds it again when the agent is restarted.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from bursar.core.errors import BursarError, InvalidText
from bursar.core.ids import TaskId
from bursar.core.messages.executor import (
    ExecutorAcknowledged,
    ExecutorCall,
    ExecutorKill,
    ExecutorLaunch,
    ExecutorMessage,
    ExecutorRefused,
    ExecutorShutdown,
    ExecutorSubscribe,
    ExecutorSubscribed,
    ExecutorUpdate,
    message_problem,
)
from bursar.core.tasks import EXECUTOR_SOCKET, TaskState
from bursar.runtime.codec import unwrap, wrap
from bursar.runtime.rpc import CLIENT_OPTIONS
from bursar.v1 import executor_service_pb2, executor_service_pb2_grpc

log = logging.getLogger("bursar.sdk")

_RETRY_S = (0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True)
class ExecutorTask:
    """One task, as its framework launched it."""

    task_id: str
    name: str
    command: tuple[str, ...]
    labels: Mapping[str, str]
    #: Its own variables, and those that name its devices.
    environment: Mapping[str, str] = field(repr=False)


class Failed(Exception):
    """Raise it in `execute`: the task has FAILED with this message and exit code."""

    def __init__(self, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Executor:
    """Override `execute`. Tasks run side by side in one event loop: leave it for what blocks (`asyncio.to_thread`)."""

    async def execute(self, task: ExecutorTask) -> str | None:
        """Run a task. It has FINISHED when this returns (a text is its message), FAILED when it raises; it is cancelled to be KILLED."""
        raise NotImplementedError(f"{type(self).__name__} has no `execute`: override it, it runs the tasks")

    def on_message(self, data: bytes) -> None:
        """Hear what the framework says (`Framework.message`), at most once: what it says while you are away is lost."""

    def send(self, data: bytes) -> None:
        """Say something to the framework (`Framework.on_message`), at most once: it is lost where agent, master or framework is away.

        In the event loop only. Raises InvalidText for more than 64 KiB; what comes faster than 100 a second, or 1 MiB a second, is
        lost, too. What a task came to is its message and its state: those are certain.
        """
        if problem := message_problem(data):
            raise InvalidText(*problem)
        if self._session is not None:
            self._session.send(data)

    _session: ExecutorSession | None = None


def run(executor: Executor, socket: str | None = None) -> None:
    """Serve until the agent says that it is over. Raises BursarError where there is no socket."""
    path = socket or os.environ.get(EXECUTOR_SOCKET, "")
    if not path:
        raise BursarError(
            f"{EXECUTOR_SOCKET} is not set: this is no executor", "have it launched with Task(executor=True)"
        )
    asyncio.run(ExecutorSession(executor, path).run())


@dataclass(eq=False)
class _Run:
    """A task that is known until its end is acknowledged."""

    work: asyncio.Task[None] | None = None
    numbers: int = 0
    unacknowledged: list[ExecutorUpdate] = field(default_factory=list)
    ended: bool = False


class ExecutorSession:
    """One life of an executor, for programs that have an event loop of their own."""

    def __init__(self, executor: Executor, path: str) -> None:
        self._executor = executor
        self._path = path
        self._runs: dict[TaskId, _Run] = {}
        self._calls: asyncio.Queue[ExecutorCall] = asyncio.Queue()
        self._over = asyncio.Event()
        #: Whether the agent said anything on the present stream.
        self._heard = False
        executor._session = self

    def send(self, data: bytes) -> None:
        """Say something to the framework; lost where no stream is open."""
        if self._heard:
            self._calls.put_nowait(ExecutorMessage(data=data))

    async def run(self) -> None:
        """Until the agent says that it is over."""
        attempt = 0
        while not self._over.is_set():
            if await self._connect():
                attempt = 0
            if not self._over.is_set():
                await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
                attempt += 1

    async def _connect(self) -> bool:
        """One stream; whether it came about."""
        self._calls = asyncio.Queue()
        updates = tuple(update for one in self._runs.values() for update in one.unacknowledged)
        self._calls.put_nowait(ExecutorSubscribe(tuple(self._runs), updates))
        self._heard = False
        try:
            async with grpc.aio.insecure_channel(f"unix:{self._path}", CLIENT_OPTIONS) as channel:
                stub = executor_service_pb2_grpc.ExecutorServiceStub(channel)
                stream = stub.Connect(self._requests())
                stopping = asyncio.create_task(self._over.wait())
                reading = asyncio.create_task(self._read(stream))
                await asyncio.wait({stopping, reading}, return_when=asyncio.FIRST_COMPLETED)
                for one in (stopping, reading):
                    one.cancel()
                await asyncio.gather(stopping, reading, return_exceptions=True)
        except (grpc.RpcError, OSError) as error:
            log.debug("no agent answers: %s", error)
        return self._heard

    async def _requests(self) -> AsyncIterator[Any]:
        while True:
            call = await self._calls.get()
            yield executor_service_pb2.ExecutorServiceConnectRequest(calls=[wrap("ExecutorCall", call)])

    async def _read(self, stream: Any) -> None:
        try:
            async for response in stream:
                for event in response.events:
                    self._hear(unwrap("ExecutorEvent", event))
        except grpc.RpcError as error:
            log.debug("the agent is away: %s", error)

    def _hear(self, event: object) -> None:
        self._heard = True
        match event:
            case ExecutorSubscribed(_, task_id):
                log.debug("subscribed as %s", task_id)
            case ExecutorLaunch(spec, environment):
                if spec.task_id not in self._runs:
                    one = self._runs[spec.task_id] = _Run()
                    task = ExecutorTask(spec.task_id, spec.name, spec.command, spec.labels, environment)
                    one.work = asyncio.create_task(self._execute(one, task))
            case ExecutorKill(task_id, _):
                one = self._runs.setdefault(task_id, _Run())
                if one.work is not None:
                    one.work.cancel()
                elif not one.ended:
                    self._say(one, task_id, TaskState.KILLED, "it was never begun")
            case ExecutorAcknowledged(task_id, number):
                self._acknowledged(task_id, number)
            case ExecutorShutdown():
                asyncio.create_task(self._shut_down()).add_done_callback(lambda _: self._over.set())
            case ExecutorMessage(data=data):
                try:
                    self._executor.on_message(data)
                except Exception:
                    log.exception("a message of the framework could not be handled")
            case ExecutorRefused(error):
                log.error("the agent refused what was said: %s", error)

    async def _execute(self, one: _Run, task: ExecutorTask) -> None:
        task_id = TaskId(task.task_id)
        self._say(one, task_id, TaskState.RUNNING)
        try:
            message = await self._executor.execute(task)
        except asyncio.CancelledError:
            self._say(one, task_id, TaskState.KILLED)
        except Failed as failed:
            self._say(one, task_id, TaskState.FAILED, str(failed), failed.exit_code)
        except Exception as error:
            log.exception("task %s failed", task_id)
            self._say(one, task_id, TaskState.FAILED, f"{type(error).__name__}: {error}")
        else:
            self._say(one, task_id, TaskState.FINISHED, message or "", 0)

    def _say(
        self, one: _Run, task_id: TaskId, state: TaskState, message: str = "", exit_code: int | None = None
    ) -> None:
        one.numbers += 1
        one.ended = state.is_terminal
        update = ExecutorUpdate(task_id, one.numbers, state, message, exit_code)
        one.unacknowledged.append(update)
        self._calls.put_nowait(update)

    def _acknowledged(self, task_id: TaskId, number: int) -> None:
        one = self._runs.get(task_id)
        if one is None:
            return
        one.unacknowledged = [update for update in one.unacknowledged if update.number > number]
        if one.ended and not one.unacknowledged:
            del self._runs[task_id]

    async def _shut_down(self) -> None:
        """End all tasks, and wait until the agent knows; it kills what takes too long."""
        works = [one.work for one in self._runs.values() if one.work is not None]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)
        while self._runs:
            await asyncio.sleep(0.01)
