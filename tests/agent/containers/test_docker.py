"""What is particular to Docker: labels, limits, images, and an engine that comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest

from bursar.agent.containers.device_access import EngineDevices
from bursar.agent.containers.docker import DockerRuntime
from bursar.agent.containers.docker_engine import DockerEngine, EngineFacts
from bursar.agent.containers.logs import LogStream, read_logs
from bursar.agent.containers.runtime import Decoration, LaunchFailed, NetworkId, RuntimeUnavailable
from bursar.agent.containers.simulated import SimulatedProgram
from bursar.core.ids import AgentId
from bursar.core.memory.tasks import plan_task
from bursar.core.memory.text import parse_memory_text
from bursar.core.messages.sessions import SessionKind, SessionStart
from bursar.core.surroundings import ContainerSettings
from bursar.core.tasks import StatusReason

UNTIL_GO = "until [ -e go ]; do sleep 0.02; done"
NOTHING = SimulatedProgram()
SOCKET = "/var/run/docker.sock"


@pytest.fixture
async def bench(make_bench: Any) -> AsyncIterator[Any]:
    async with make_bench("docker") as made:
        yield made


@pytest.fixture
def client(docker_image: str) -> Any:
    made = docker.from_env()
    yield made
    made.close()


class Proxy:
    """An engine that can be taken away: a socket before the real one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    async def up(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    def close_door(self) -> None:
        """Take no new connections, as an engine does that is being stopped, before it stops its containers."""
        assert self._server is not None
        self._server.close()

    async def down(self) -> None:
        self.close_door()
        for writer in list(self._writers):
            writer.transport.abort()
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_unix_connection(SOCKET)
        self._writers |= {writer, ours}
        with contextlib.suppress(OSError):
            await asyncio.gather(self._copy(reader, ours), self._copy(theirs, writer))
        self._writers -= {writer, ours}

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    made = Proxy(tmp_path / "engine.sock")
    await made.up()
    yield made
    await made.down()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


async def test_labels_say_whose_a_container_is(bench: Any, client: Any) -> None:
    runtime = await bench.open()
    spec = bench.spec("labelled", bench.script(UNTIL_GO, NOTHING), labels={"team": "a", "bursar.agent_id": "lie"})
    await runtime.start(spec)
    container = client.containers.get(str(spec.container_id))
    assert container.labels["bursar.agent_id"] == bench.agent_id
    assert container.labels["bursar.framework_id"] == "framework"
    assert container.labels["bursar.task_id"] == "labelled"
    assert container.labels["bursar.container_id"] == spec.container_id
    assert container.labels["team"] == "a"


async def test_limits_are_set_and_cpus_may_exceed_the_machine(bench: Any, client: Any) -> None:
    runtime = await bench.open()
    spec = bench.spec("limited", bench.script(UNTIL_GO, NOTHING), cpus_milli=512_500, mem_bytes=32 * 2**20)
    await runtime.start(spec)
    host = client.containers.get(str(spec.container_id)).attrs["HostConfig"]
    assert host["CpuQuota"] / host["CpuPeriod"] == 512.5
    assert (host["Memory"], host["MemorySwap"]) == (32 * 2**20, 32 * 2**20)
    assert host["Init"] is True
    assert host["NetworkMode"] == "bridge"
    assert not host["Privileged"]


async def test_too_much_memory_is_said(bench: Any) -> None:
    runtime = await bench.open()
    spec = bench.spec("hungry", bench.script("exec tail /dev/zero", NOTHING), mem_bytes=16 * 2**20)
    end = await bench.run(runtime, spec)
    assert (end.exit_code, end.reason) == (137, StatusReason.MEM_LIMIT)


async def test_a_full_shm_is_why_sigbus_came(bench: Any) -> None:
    runtime = await bench.open()
    text = "dd if=/dev/zero of=/dev/shm/x bs=64k 2>/dev/null; touch full; until [ -e go ]; do sleep 0.02; done; kill -BUS $$"
    spec = bench.spec("shared", bench.script(text, NOTHING), settings=ContainerSettings(shm_bytes=2 * 2**20))
    await runtime.start(spec)
    await until((spec.sandbox / "full").exists)
    (spec.sandbox / "go").touch()
    end = await bench.exit_of(spec.container_id)
    assert (end.exit_code, end.reason) == (135, StatusReason.SHM_LIMIT), end
    assert "/dev/shm was full (2MiB)" in end.message


async def test_an_overrun_of_planned_memory_names_the_pool(bench: Any) -> None:
    runtime = await bench.open()
    plan = plan_task(parse_memory_text("container=64MiB,shm=32MiB,overhead=8MiB"))
    # Slowly: it must be seen once before it ends.
    text = "dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null; sleep 2.5; exec tail /dev/zero"
    spec = bench.spec("planned", bench.script(text, NOTHING), mem_bytes=plan["container"], memory=plan)
    end = await bench.run(runtime, spec)
    assert (end.exit_code, end.reason) == (137, StatusReason.MEM_LIMIT)
    assert "app" in end.message or "overhead" in end.message, end.message


async def test_an_image_that_is_not_there_is_named_in_the_engines_words(bench: Any) -> None:
    runtime = await bench.open()
    spec = bench.spec("imageless", bench.script("true", NOTHING))
    bench.image = "localhost:1/no/such-image:1"
    missing = bench.spec("imageless", bench.script("true", NOTHING))
    with pytest.raises(LaunchFailed) as failed:
        await runtime.start(missing)
    assert failed.value.reason is StatusReason.IMAGE_NOT_FOUND
    assert "localhost:1/no/such-image:1" in failed.value.message
    assert (await bench.run(runtime, spec)).exit_code == 0, "nothing of the failed launch is in the way"


@pytest.mark.parametrize("image", ["", "Not An Image", "UPPER/case"])
async def test_impossible_images_are_refused(bench: Any, image: str) -> None:
    runtime = await bench.open()
    bench.image = image
    with pytest.raises(LaunchFailed) as failed:
        await runtime.start(bench.spec("bad", bench.script("true", NOTHING)))
    assert failed.value.message
    assert await runtime.recover() == []


async def test_a_container_that_was_created_only_is_not_there(bench: Any, client: Any) -> None:
    """The agent died between create and start."""
    runtime = await bench.open()
    spec = bench.spec("created", bench.script("exit 4", NOTHING))
    labels = {"bursar.agent_id": bench.agent_id, "bursar.container_id": spec.container_id}
    client.containers.create(bench.image, ["true"], name=str(spec.container_id), labels=labels)
    assert await runtime.recover() == []
    client.containers.create(bench.image, ["true"], name=str(spec.container_id), labels=labels)
    assert (await bench.run(runtime, spec)).exit_code == 4


async def test_what_an_earlier_life_started_is_not_started_twice(bench: Any) -> None:
    first = await bench.open()
    spec = bench.spec("once", bench.script(f"echo x >> runs; {UNTIL_GO}; exit 6", NOTHING))
    await first.start(spec)
    await until((spec.sandbox / "runs").exists)
    await first.close()
    second = await bench.open()
    await second.start(spec)
    (spec.sandbox / "go").touch()
    assert (await bench.exit_of(spec.container_id)).exit_code == 6
    assert (spec.sandbox / "runs").read_text() == "x\n"


async def test_a_foreign_container_of_the_same_name_is_left_alone(bench: Any, client: Any) -> None:
    runtime = await bench.open()
    spec = bench.spec("taken", bench.script("true", NOTHING))
    foreign = client.containers.create(bench.image, ["true"], name=str(spec.container_id))
    try:
        with pytest.raises(LaunchFailed, match="not ours"):
            await runtime.start(spec)
        await runtime.remove(spec.container_id)
        await runtime.end_stray(spec.container_id)
        foreign.reload()
    finally:
        foreign.remove(force=True)


async def test_a_container_of_ours_that_this_life_did_not_begin_is_ended(bench: Any, client: Any) -> None:
    """One that another life of the agent was beginning when this one looked at what there is."""
    first, second = await bench.open(), await bench.open()
    spec = bench.spec("late", bench.script(UNTIL_GO, NOTHING))
    await first.start(spec)
    await second.kill(spec.container_id, 0)
    assert spec.container_id in second.running(), "it does not watch it"
    await second.end_stray(spec.container_id)
    assert spec.container_id not in second.running()
    await second.remove(spec.container_id)


async def test_somebody_removes_a_container(bench: Any, client: Any) -> None:
    runtime = await bench.open()
    spec = bench.spec("removed", bench.script(UNTIL_GO, NOTHING))
    await runtime.start(spec)
    client.containers.get(str(spec.container_id)).remove(force=True)
    assert (await bench.exit_of(spec.container_id)).reason in (
        StatusReason.CONTAINER_LOST,
        StatusReason.COMMAND_EXITED,  # its death was told before its removal
    )
    await runtime.remove(spec.container_id)


async def test_logs_of_an_adopted_container_come_once(bench: Any) -> None:
    first = await bench.open()
    spec = bench.spec("twice", bench.script(f"echo one; {UNTIL_GO}; echo two", NOTHING))
    await first.start(spec)
    await first.prepare_logs(spec.container_id)
    await bench.printed(spec, "one")
    await first.close()
    second = await bench.open()
    await second.recover()
    await second.prepare_logs(spec.container_id)
    (spec.sandbox / "go").touch()
    await bench.exit_of(spec.container_id)
    await second.remove(spec.container_id)
    assert bench.output(spec) == "one\ntwo\n"


async def test_logs_are_limited_in_the_sandbox(bench: Any) -> None:
    runtime = DockerRuntime(bench.agent_id, log_limit_bytes=64 * 1024, log_check_interval_s=0.02)
    await runtime.open(bench.on_exit)
    bench.runtimes.append(runtime)
    text = f"i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; {UNTIL_GO}"
    spec = bench.spec("chatty", bench.script(text, NOTHING))
    await runtime.start(spec)
    await runtime.prepare_logs(spec.container_id)
    await bench.printed(spec, "line 19999\n")
    (spec.sandbox / "go").touch()
    await bench.exit_of(spec.container_id)
    await runtime.remove(spec.container_id)
    assert (spec.sandbox / "stdout").stat().st_size <= 64 * 1024
    chunks = [chunk async for chunk in read_logs(spec.sandbox, ended=lambda: True)]
    assert chunks[0].stream is LogStream.STDOUT and chunks[0].skipped_bytes > 0
    assert b"".join(chunk.data for chunk in chunks).endswith(b"line 19999\n")


async def test_no_engine_is_said_with_the_way_out(tmp_path: Path) -> None:
    for url in (f"unix://{tmp_path}/nothing.sock", "tcp://127.0.0.1:9"):
        runtime = DockerRuntime(AgentId("agent"), base_url=url)
        with pytest.raises(RuntimeUnavailable) as refusal:
            await runtime.open(lambda *_: None)
        assert "--runtime process" in str(refusal.value)
        await runtime.close()


async def test_an_engine_that_dies_loses_its_tasks_and_the_agent_goes_on(bench: Any, proxy: Proxy, client: Any) -> None:
    runtime = DockerRuntime(bench.agent_id, base_url=proxy.url, engine_patience_s=0.5)
    await runtime.open(bench.on_exit)
    bench.runtimes.append(runtime)
    spec = bench.spec("survivor", bench.script(UNTIL_GO, NOTHING))
    await runtime.start(spec)
    await proxy.down()
    end = await bench.exit_of(spec.container_id)
    assert (end.exit_code, end.reason) == (None, StatusReason.ENGINE_LOST)
    later = bench.spec("later", bench.script("exit 3", NOTHING))
    with pytest.raises(LaunchFailed) as failed:
        await runtime.start(later)
    assert failed.value.reason is StatusReason.ENGINE_LOST
    await runtime.kill(spec.container_id, 0)
    await runtime.remove(spec.container_id)
    assert client.containers.get(str(spec.container_id)).status == "running"

    await proxy.up()
    await until(lambda: runtime._is_up)
    with pytest.raises(docker.errors.NotFound):  # its devices may be somebody else's by now
        client.containers.get(str(spec.container_id))
    assert (await bench.run(runtime, later)).exit_code == 3
    assert len(bench.exits[spec.container_id]) == 1


async def test_an_engine_that_is_stopped_takes_its_tasks_along(bench: Any, proxy: Proxy, client: Any) -> None:
    """It stops its containers first, and tells of each: their codes alone would look like the tasks' own failure."""
    runtime = DockerRuntime(bench.agent_id, base_url=proxy.url, engine_patience_s=30)
    await runtime.open(bench.on_exit)
    bench.runtimes.append(runtime)
    spec = bench.spec("stopped", bench.script(UNTIL_GO, NOTHING))
    await runtime.start(spec)
    proxy.close_door()
    client.containers.get(str(spec.container_id)).kill("SIGTERM")
    end = await bench.exit_of(spec.container_id)
    assert (end.exit_code, end.reason) == (143, StatusReason.ENGINE_LOST), "though other containers take their time"
    await proxy.down()
    await until(lambda: not runtime._is_up)
    await proxy.up()
    await until(lambda: runtime._is_up)
    with pytest.raises(docker.errors.NotFound):
        client.containers.get(str(spec.container_id))


async def test_a_task_killed_by_somebody_else_is_told_as_such(bench: Any, client: Any) -> None:
    runtime = await bench.open()
    spec = bench.spec("shot", bench.script(UNTIL_GO, NOTHING))
    await runtime.start(spec)
    client.containers.get(str(spec.container_id)).kill("SIGKILL")
    end = await bench.exit_of(spec.container_id)
    assert (end.exit_code, end.reason) == (137, StatusReason.COMMAND_EXITED)


async def test_a_kill_that_comes_before_the_start_is_done_is_not_lost(bench: Any) -> None:
    runtime = await bench.open()
    spec = bench.spec("hasty", bench.script(UNTIL_GO, NOTHING))
    starting = asyncio.create_task(runtime.start(spec))
    await asyncio.sleep(0)
    await runtime.kill(spec.container_id, 0)
    await starting
    assert (await bench.exit_of(spec.container_id)).exit_code == 137


async def test_an_engine_that_is_away_for_a_moment_loses_nothing(bench: Any, proxy: Proxy, client: Any) -> None:
    runtime = DockerRuntime(bench.agent_id, base_url=proxy.url, engine_patience_s=30)
    await runtime.open(bench.on_exit)
    bench.runtimes.append(runtime)
    ends, stays = (bench.spec(name, bench.script(f"{UNTIL_GO}; exit 8", NOTHING)) for name in ("ends", "stays"))
    await runtime.start(ends)
    await runtime.start(stays)
    await proxy.down()
    (ends.sandbox / "go").touch()
    await until(lambda: client.containers.get(str(ends.container_id)).status == "exited")
    await proxy.up()
    assert (await bench.exit_of(ends.container_id)).exit_code == 8
    assert stays.container_id not in bench.exits
    (stays.sandbox / "go").touch()
    end = await bench.exit_of(stays.container_id)
    assert (end.exit_code, end.reason) == (8, StatusReason.COMMAND_EXITED)


async def test_gpus_are_requested_by_uuid_or_given_as_nodes(bench: Any, client: Any) -> None:
    """As far as it can be seen without a GPU: what the engine is asked for."""
    nodes = ("/dev/nvidia0", "/dev/nvidiactl")
    spec = bench.spec("gpu", bench.script("true", NOTHING))
    engine = DockerEngine(bench.agent_id, "", "bridge", 2**20, None, 4)
    engine.connect()

    def asked(has_runtime: bool, decoration: Decoration) -> tuple[Any, Any]:
        import dataclasses

        engine.facts = EngineFacts(EngineDevices(has_runtime))
        host = engine._config(dataclasses.replace(spec, decoration=decoration), "")["HostConfig"]
        requests = [request["DeviceIDs"] for request in host.get("DeviceRequests") or []]
        return requests, [device["PathOnHost"] for device in host.get("Devices") or []]

    real = Decoration(device_requests=("GPU-1", "GPU-2"), fallback_nodes=nodes)
    assert asked(True, real) == ([["GPU-1", "GPU-2"]], list(nodes))
    assert asked(False, real) == ([], list(nodes))
    assert asked(False, Decoration(device_requests=("GPU-1",))) == ([["GPU-1"]], [])
    assert asked(True, Decoration(environment={"CUDA_VISIBLE_DEVICES": "GPU-s"})) == ([], [])
    engine.close()


async def test_devices_named_by_cdi_are_in_the_container_and_no_others(bench: Any, client: Any) -> None:
    """Where the engine has CDI (Docker 25 or newer, switched on), with a vendor's specification of devices that are harmless."""
    directories = [Path(path) for path in client.info().get("CDISpecDirs") or () if os.access(path, os.W_OK)]
    if not directories:
        pytest.skip("this engine has no CDI, or no directory of specifications that can be written to")
    kind = f"bursar.test/toy{os.getpid()}"
    devices = [
        {
            "name": f"GPU-{number}",
            "containerEdits": {
                "env": [f"TOY_{number}=yes"],
                "deviceNodes": [{"path": f"/dev/toy{number}", "hostPath": "/dev/zero"}],
            },
        }
        for number in range(2)
    ]
    specification = directories[0] / f"bursar-test-{os.getpid()}.json"
    specification.write_text(json.dumps({"cdiVersion": "0.5.0", "kind": kind, "devices": devices}))
    runtime = DockerRuntime(bench.agent_id, network_mode="none")
    try:
        await runtime.open(bench.on_exit)
        bench.runtimes.append(runtime)
        show = bench.script("ls /dev | grep toy; env | grep TOY_; head -c 1 /dev/toy1 | wc -c", NOTHING)
        spec = bench.spec("cdi", show, decoration=Decoration(cdi=(f"{kind}=GPU-1",)))
        assert (await bench.run(runtime, spec)).exit_code == 0
        await runtime.remove(spec.container_id)
        assert bench.output(spec).split() == ["toy1", "TOY_1=yes", "1"]
        absent = bench.spec("absent", show, decoration=Decoration(cdi=(f"{kind}=GPU-7",)))
        with pytest.raises(LaunchFailed, match="GPU-7"):
            await runtime.start(absent)
    finally:
        specification.unlink()


async def test_tasks_of_a_group_share_a_network_whoever_of_them_has_ended(bench: Any, client: Any) -> None:
    runtime = await bench.open()
    network_id = NetworkId(f"{bench.agent_id}-net")
    serve = "echo hello > page; exec httpd -f -p 127.0.0.1:8080 -h ."
    fetch = "until wget -q -O - http://127.0.0.1:8080/page; do sleep 0.05; done"
    first = bench.spec("first", bench.script("true", NOTHING), network_id=network_id)
    served = bench.spec("server", bench.script(serve, NOTHING), network_id=network_id)
    asking = bench.spec("asking", bench.script(fetch, NOTHING), network_id=network_id)
    await bench.run(runtime, first)
    await asyncio.gather(runtime.start(served), runtime.start(asking))
    end = await bench.exit_of(asking.container_id)
    assert end.exit_code == 0
    await runtime.remove(asking.container_id)
    assert bench.output(asking) == "hello\n"
    holder = client.containers.get(network_id)
    assert client.containers.get(served.container_id).attrs["HostConfig"]["NetworkMode"] == f"container:{holder.id}"
    assert set(runtime.running()) == {served.container_id}

    # Another life finds it, and keeps it for as long as somebody needs it.
    await runtime.close()
    again = await bench.open()
    found = {one.container_id: one.exit is None for one in await again.recover()}
    assert found == {served.container_id: True, first.container_id: False}
    assert client.containers.get(network_id).id == holder.id
    await again.kill(served.container_id, 0)
    await bench.exit_of(served.container_id)
    await again.close()
    last = await bench.open()
    await last.recover()
    with pytest.raises(docker.errors.NotFound):
        client.containers.get(network_id)
    await last.release_network(network_id)


async def test_the_last_of_a_group_takes_its_network_along(bench: Any, client: Any) -> None:
    runtime = await bench.open()
    network_id = NetworkId(f"{bench.agent_id}-net")
    spec = bench.spec("only", bench.script("cat /proc/net/dev", NOTHING), network_id=network_id)
    assert (await bench.run(runtime, spec)).exit_code == 0
    await runtime.release_network(network_id)
    await runtime.release_network(network_id)
    with pytest.raises(docker.errors.NotFound):
        client.containers.get(network_id)


async def test_programs_of_an_earlier_life_are_ended_and_those_of_others_are_not(bench: Any, client: Any) -> None:
    earlier = await bench.open()
    spec = bench.spec("visited", bench.script(UNTIL_GO, NOTHING))
    await earlier.start(spec)
    container = client.containers.get(str(spec.container_id))
    await earlier.open_session(spec.container_id, SessionStart(SessionKind.EXEC, ("sleep", "3141")))
    container.exec_run(["sleep", "2718"], detach=True)

    def sleeping() -> set[str]:
        return {row[-1] for row in container.top(ps_args="-o pid,args")["Processes"] if row[-1] in lasting}

    lasting = {f"sleep {word}" for word in (3141, 2718, 1618)}
    await until(lambda: sleeping() == {"sleep 3141", "sleep 2718"})
    later = await bench.open()
    await later.recover()
    mine = await later.open_session(spec.container_id, SessionStart(SessionKind.EXEC, ("sleep", "1618")))
    await until(lambda: sleeping() == {"sleep 2718", "sleep 1618"})
    await later.recover()
    assert sleeping() == {"sleep 2718", "sleep 1618"} and spec.container_id in later.running()
    await mine.close()
