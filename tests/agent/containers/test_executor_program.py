"""A real executor, written with the SDK, on a real socket of a real agent: as a plain process, and in a container (TSK-13, NET-5)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from bursar.core.ids import FrameworkId, TaskId
from bursar.core.messages.agent import KillTask
from bursar.core.messages.executor import ExecutorMessage
from bursar.core.resources import ReservedResources, ResourceRequest, Resources
from bursar.core.surroundings import parse_volume
from bursar.core.tasks import AssignedTask, StatusReason, TaskExecutor, TaskSpec, TaskState
from bursar.v1 import executor_service_pb2 as wire
from bursar.v1 import executor_service_pb2_grpc

S = TaskState
ROOT = Path(__file__).parents[3]
F = FrameworkId("f")

PROGRAM = """
import asyncio
import contextlib
from bursar.sdk.executor import Executor, Failed, run

class Worker(Executor):
    async def execute(self, task):
        match task.command:
            case ("say", words): return words
            case ("environment", name): return task.environment.get(name, "")
            case ("fail", code): raise Failed("as asked", int(code))
            case ("crash",): import os; os._exit(9)
            case ("wait",): await asyncio.sleep(600)

    def on_message(self, data):
        self.send(data.upper())

run(Worker())
"""


@pytest.fixture(params=["process", "docker"])
def runtime(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A runtime, and the image of its tasks."""
    if request.param == "process":
        yield "process", ""
        return
    import docker

    image = request.getfixturevalue("docker_image")
    yield "docker", image
    client = docker.from_env()
    for container in client.containers.list(all=True, filters={"ancestor": image}, ignore_removed=True):
        container.remove(force=True)
    client.close()


def assigned(spec: TaskSpec, *devices: str) -> AssignedTask:
    granted = Resources({"cpus": 500, "mem": 256 << 20}, (), frozenset(devices))  # type: ignore[arg-type]
    return AssignedTask(F, "*", spec, (ReservedResources((), granted),))


def executor(runtime: str, image: str) -> AssignedTask:
    """Where it is in a container, Python is the host's, read only."""
    python = os.path.realpath(sys.executable)
    places = {"/usr": "/usr", "/usr/lib": "/lib", "/usr/lib64": "/lib64", sys.base_prefix: sys.base_prefix}
    places[str(ROOT)] = str(ROOT)
    volumes = tuple(parse_volume(f"{source}:{target}") for source, target in places.items() if Path(source).is_dir())
    packages = [path for path in sys.path if path]
    spec = TaskSpec(
        TaskId("x"),
        command=("env", f"PYTHONPATH={':'.join(packages)}", python, "-c", PROGRAM),
        image=image,
        resources=ResourceRequest({"cpus": 500, "mem": 256 << 20}),
        volumes=volumes if runtime == "docker" else (),
        executor=TaskExecutor(serves=True),
    )
    return assigned(spec)


def on_x(name: str, *command: str, devices: tuple[str, ...] = ()) -> AssignedTask:
    request = ResourceRequest({"cpus": 500})
    return assigned(
        TaskSpec(TaskId(name), command=command, resources=request, executor=TaskExecutor(False, TaskId("x"))), *devices
    )


async def test_a_worker_is_fed_over_a_killed_agent_until_it_ends(
    scripted_master: Any, agent: Any, runtime: tuple[str, str]
) -> None:
    kind, image = runtime
    # The kernel takes no long path for a socket.
    with tempfile.TemporaryDirectory(prefix="bx", ignore_cleanup_errors=True) as short:
        agent.work_dir = Path(short)
        master = scripted_master
        roots = ",".join(dict.fromkeys(("/usr", sys.base_prefix, str(ROOT))))
        flags = ("--master", master.address, "--devices", "simulated:1", "--runtime", kind, "--volume-roots", roots)
        await agent.start(*flags)
        await master.until(lambda: master.registers() or None)
        (device,) = master.registers()[-1].info.devices

        master.desire(launch=(executor(kind, image), on_x("hello", "say", "hi")))
        status = await master.until_status("hello", S.FINISHED, 60)
        assert (status.message, status.exit_code) == ("hi", 0)
        states = [one.state for one in master.statuses if one.task_id == "hello"]
        assert states == [S.STARTING, S.RUNNING, S.FINISHED]
        (socket,) = Path(short).glob("executors/*/executor.sock")
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600 and stat.S_IMODE(socket.parent.stat().st_mode) == 0o700

        master.desire(launch=(on_x("fails", "fail", "7"), on_x("waits", "wait")))
        status = await master.until_status("fails", S.FAILED, 60)
        assert (status.message, status.exit_code) == ("as asked", 7)
        await master.until_status("waits", S.RUNNING, 60)
        if kind == "process":
            master.desire(launch=(on_x("pinned", "environment", "CUDA_VISIBLE_DEVICES", devices=(device.uuid,)),))
            assert (await master.until_status("pinned", S.FINISHED, 60)).message == device.uuid

        def answers() -> list[bytes]:
            return [one.data for one in master.heard if isinstance(one, ExecutorMessage)]

        master.say(ExecutorMessage(F, TaskId("x"), b"hello"))
        await master.until(lambda: answers() == [b"HELLO"] or None, 60)

        # Another life of the agent: the worker finds it, and goes on.
        await agent.end(signal.SIGKILL)
        await agent.start(*flags)
        await master.until(lambda: len(master.registers()) == 2 or None)
        master.desire(launch=(on_x("after", "say", "still here"),))
        assert (await master.until_status("after", S.FINISHED, 60)).message == "still here"
        master.desire(kill=(KillTask(F, TaskId("waits"), StatusReason.KILLED_BY_FRAMEWORK),))
        status = await master.until_status("waits", S.KILLED, 60)
        assert status.reason is StatusReason.KILLED_BY_FRAMEWORK

        # The worker's end is that of its tasks; the socket goes with it.
        master.desire(launch=(on_x("last", "wait"),))
        await master.until_status("last", S.RUNNING, 60)
        master.desire(launch=(on_x("crash", "crash"),))
        status = await master.until_status("last", S.FAILED, 60)
        assert status.reason is StatusReason.EXECUTOR_ENDED and "its executor x has ended" in status.message
        assert (await master.until_status("x", S.FAILED, 60)).exit_code == 9
        async with asyncio.timeout(30):
            while list(Path(short).glob("executors/*")):
                await asyncio.sleep(0.05)
        assert await agent.end() == 0


async def test_an_executor_that_is_to_end_ends_its_tasks_first(scripted_master: Any, agent: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="bx", ignore_cleanup_errors=True) as short:
        agent.work_dir = Path(short)
        master = scripted_master
        await agent.start("--master", master.address, "--devices", "none", "--runtime", "process")
        await master.until(lambda: master.registers() or None)
        master.desire(launch=(executor("process", ""), on_x("waits", "wait")))
        await master.until_status("waits", S.RUNNING, 60)
        master.desire(kill=(KillTask(F, TaskId("x"), StatusReason.KILLED_BY_FRAMEWORK, 20_000),))
        end = await master.until_status("x", S.KILLED, 60)
        assert end.exit_code == 0, "it went by itself"
        assert (await master.until_status("waits", S.KILLED, 60)).state is S.KILLED
        assert await agent.end() == 0


async def test_words_that_are_none_are_refused_and_harm_nobody(scripted_master: Any, agent: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="bx", ignore_cleanup_errors=True) as short:
        agent.work_dir = Path(short)
        master = scripted_master
        await agent.start("--master", master.address, "--devices", "none", "--runtime", "process")
        await master.until(lambda: master.registers() or None)
        idle = executor("process", "")
        spec = TaskSpec(
            TaskId("x"), command=("sleep", "60"), resources=idle.spec.resources, executor=TaskExecutor(serves=True)
        )
        master.desire(launch=(assigned(spec), on_x("t", "say", "hi")))
        await master.until_status("x", S.RUNNING, 60)
        (socket,) = Path(short).glob("executors/*/executor.sock")

        async def say(*calls: bytes) -> list[Any]:
            """Speak raw bytes; hear what comes until something is refused, the stream ends, or patience does."""
            heard: list[Any] = []
            async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
                connect = channel.stream_stream(
                    "/bursar.v1.ExecutorService/Connect",
                    request_serializer=lambda data: data,
                    response_deserializer=wire.ExecutorServiceConnectResponse.FromString,
                )
                call = connect()
                # The stream may end before all is written.
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    for one in calls:
                        await call.write(one)
                try:
                    async with asyncio.timeout(30):
                        async for response in call:
                            heard += response.events
                            if any(event.WhichOneof("event") == "executor_refused" for event in heard):
                                break
                except grpc.aio.AioRpcError as error:
                    heard.append(error.code())
                except TimeoutError:
                    pass
            return heard

        def batch(**call: Any) -> bytes:
            return wire.ExecutorServiceConnectRequest(calls=[wire.ExecutorCall(**call)]).SerializeToString()

        update = wire.ExecutorUpdate(task_id="t", number=1, state=5)  # type: ignore[arg-type]
        assert grpc.StatusCode.INVALID_ARGUMENT in await say(batch(executor_update=update)), "subscribe first"
        assert await say(b"\xff\xff garbage")
        subscribe = batch(executor_subscribe=wire.ExecutorSubscribe())
        wrong = batch(executor_update=wire.ExecutorUpdate(task_id="x", number=1, state=5))  # type: ignore[arg-type]
        heard = await say(subscribe, wrong)
        assert "is not run by this executor" in heard[-1].executor_refused.error.message
        # Nothing of that has changed anything: the task is still there to be finished.
        assert not [one for one in master.statuses if one.task_id == "t" and one.state.is_terminal]
        right = batch(executor_subscribe=wire.ExecutorSubscribe(task_ids=["t"], updates=[update]))
        asyncio.get_running_loop().create_task(say(right))
        await master.until_status("t", S.FINISHED, 60)
        assert executor_service_pb2_grpc.ExecutorServiceStub  # the service is generated
        master.desire(kill=(KillTask(F, TaskId("x"), StatusReason.KILLED_BY_FRAMEWORK),))
        await master.until_status("x", S.KILLED, 60)
        assert await agent.end() == 0
