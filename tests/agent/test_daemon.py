"""The agent as a real process, against a scripted master (a simulation) and the real `process` runtime."""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from bursar.core.devices import DeviceCondition
from bursar.core.ids import FrameworkId, TaskId
from bursar.core.messages.agent import DevicesChanged, KillTask, Ping, Pong, TaskReports
from bursar.core.resources import ReservedResources, ResourceRequest, Resources
from bursar.core.tasks import AssignedTask, EnvironmentVariable, StatusReason, TaskSpec, TaskState
from bursar.v1 import agent_service_pb2

S = TaskState


def task(
    name: str,
    *command: str,
    devices: tuple[str, ...] = (),
    environment: tuple[tuple[str, str], ...] = (),
    image: str = "",
) -> AssignedTask:
    variables = tuple(EnvironmentVariable(*pair) for pair in environment)
    spec = TaskSpec(
        TaskId(name), command=command, environment=variables, resources=ResourceRequest({"cpus": 1000}), image=image
    )
    granted = Resources({"cpus": 1000}, (), frozenset(devices))  # type: ignore[arg-type]
    return AssignedTask(FrameworkId("f"), "*", spec, (ReservedResources((), granted),))


async def registered(master: Any, count: int = 1) -> Any:
    await master.until(lambda: len(master.registers()) >= count)
    return master.registers()[-1].info


async def test_a_task_from_launch_to_end(scripted_master: Any, agent: Any) -> None:
    await agent.start(
        "--master",
        scripted_master.address,
        "--runtime",
        "process",
        "--devices",
        "simulated:4",
        "--attributes",
        "rack:r1",
    )
    info = await registered(scripted_master)
    assert info.runtime == "process" and info.runs_without_image and info.attributes == {"rack": "r1"}
    assert len(info.devices) == 4 and info.incarnation == 1
    uuids = tuple(device.uuid for device in info.devices[1:3])
    script = "echo $CUDA_VISIBLE_DEVICES; echo [$SECRET_OF_THE_AGENT] $GREETING $0 >&2; exit 7"
    scripted_master.desire(launch=(task("t", "sh", "-c", script, devices=uuids, environment=(("GREETING", "hello"),)),))
    status = await scripted_master.until_status("t", S.FAILED)
    assert (status.exit_code, status.reason) == (7, StatusReason.COMMAND_EXITED)
    assert [s.state for s in scripted_master.statuses] == [S.STARTING, S.RUNNING, S.FAILED]
    scripted_master.open_log("s1", "t")
    await scripted_master.until_log_ended("s1")
    assert scripted_master.log_text("s1") == ",".join(uuids) + "\n"
    assert scripted_master.log_text("s1", agent_service_pb2.LOG_STREAM_STDERR) == "[] hello sh\n"
    assert await agent.end() == 0


async def test_output_is_followed_until_the_end_and_within_credit(
    scripted_master: Any, agent: Any, tmp_path: Path
) -> None:
    scripted_master.credit = 10
    await agent.start("--master", scripted_master.address, "--runtime", "process", "--devices", "none")
    await registered(scripted_master)
    go = tmp_path / "go"
    script = f"echo first line of several; while [ ! -e {go} ]; do sleep 0.02; done; seq 1 1000"
    scripted_master.desire(launch=(task("t", "sh", "-c", script),))
    await scripted_master.until_status("t", S.RUNNING)
    scripted_master.open_log("s1", "t", follow=True)
    await scripted_master.until(lambda: scripted_master.log_text("s1") == "first line of several\n")
    assert max(len(m.chunk.data) for m in scripted_master.logs["s1"]) <= 10
    go.touch()
    await scripted_master.until_log_ended("s1")
    text = scripted_master.log_text("s1")
    assert text == "first line of several\n" + "".join(f"{n}\n" for n in range(1, 1001))
    scripted_master.open_log("s2", "t", tail_bytes=5)
    await scripted_master.until_log_ended("s2")
    assert scripted_master.log_text("s2") == "1000\n"
    scripted_master.open_log("s3", "unknown")
    await scripted_master.until_log_ended("s3")
    assert "was never here" in scripted_master.logs["s3"][1].error.message


async def test_kill_9_of_the_agent_does_not_disturb_the_task(scripted_master: Any, agent: Any, tmp_path: Path) -> None:
    flags = ("--master", scripted_master.address, "--runtime", "process", "--devices", "simulated:1")
    await agent.start(*flags)
    info = await registered(scripted_master)
    go = tmp_path / "go"
    script = f"echo started; while [ ! -e {go} ]; do sleep 0.02; done; echo ended; exit 5"
    scripted_master.desire(launch=(task("t", "sh", "-c", script, devices=(info.devices[0].uuid,)),))
    await scripted_master.until_status("t", S.RUNNING)
    await agent.end(signal.SIGKILL)

    await agent.start(*flags)
    again = await registered(scripted_master, 2)
    assert again.agent_id == info.agent_id and again.incarnation == 2 and again.devices == info.devices
    reports = [message for message in scripted_master.heard if isinstance(message, TaskReports)]
    assert [report.state for report in reports[-1].tasks] == [S.RUNNING]
    go.touch()
    status = await scripted_master.until_status("t", S.FAILED)
    assert status.exit_code == 5
    scripted_master.open_log("s1", "t")
    await scripted_master.until_log_ended("s1")
    assert scripted_master.log_text("s1") == "started\nended\n"
    assert sum(status.state.is_terminal for status in scripted_master.statuses) == 1


async def test_an_end_while_the_agent_was_dead_is_reported_once(
    scripted_master: Any, agent: Any, tmp_path: Path
) -> None:
    flags = ("--master", scripted_master.address, "--runtime", "process", "--devices", "none")
    await agent.start(*flags)
    await registered(scripted_master)
    go, gone = tmp_path / "go", tmp_path / "gone"
    script = f"while [ ! -e {go} ]; do sleep 0.02; done; touch {gone}; exit 3"
    scripted_master.desire(launch=(task("t", "sh", "-c", script),))
    await scripted_master.until_status("t", S.RUNNING)
    await agent.end(signal.SIGKILL)
    go.touch()
    async with asyncio.timeout(10):
        while not gone.exists():
            await asyncio.sleep(0.01)
    scripted_master.acknowledges = False
    await agent.start(*flags)
    status = await scripted_master.until_status("t", S.FAILED)
    assert status.exit_code == 3
    # Not acknowledged, so the next life reports the very same end again.
    await agent.end(signal.SIGKILL)
    await agent.start(*flags)
    await registered(scripted_master, 3)
    await scripted_master.until(lambda: sum(s.state is S.FAILED for s in scripted_master.statuses) == 2 or None)
    ends = {s.update_id: s for s in scripted_master.statuses if s.state.is_terminal}
    assert len(ends) == 1


async def test_a_task_is_killed_with_grace(scripted_master: Any, agent: Any) -> None:
    await agent.start("--master", scripted_master.address, "--runtime", "process", "--devices", "none")
    await registered(scripted_master)
    polite = "trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.02; done"
    stubborn = "trap '' TERM; echo ready; while :; do sleep 0.02; done"
    scripted_master.desire(launch=(task("polite", "sh", "-c", polite), task("stubborn", "sh", "-c", stubborn)))
    for name in ("polite", "stubborn"):
        await scripted_master.until_status(name, S.RUNNING)
        scripted_master.open_log(name, name, follow=True)
        await scripted_master.until(lambda name=name: "ready" in scripted_master.log_text(name) or None)  # type: ignore[misc]
    kills = tuple(
        KillTask(FrameworkId("f"), TaskId(name), StatusReason.KILLED_BY_OPERATOR, 400)
        for name in ("polite", "stubborn")
    )
    scripted_master.desire(kill=kills)
    status = await scripted_master.until_status("polite", S.KILLED)
    assert (status.reason, status.exit_code) == (StatusReason.KILLED_BY_OPERATOR, 9)
    status = await scripted_master.until_status("stubborn", S.KILLED)
    assert status.exit_code == 137
    await scripted_master.until_log_ended("polite")
    assert scripted_master.log_text("polite") == "ready\nbye\n"


async def test_odd_launches(scripted_master: Any, agent: Any) -> None:
    await agent.start("--master", scripted_master.address, "--runtime", "process", "--devices", "none")
    await registered(scripted_master)
    scripted_master.desire(
        launch=(
            task("absent", "/no/such/program"),
            task("image", "true", image="busybox"),
            task("device", "true", devices=("GPU-1",)),
            task("good", "true"),
        )
    )
    assert (await scripted_master.until_status("absent", S.FAILED)).exit_code == 127
    assert "plain processes" in (await scripted_master.until_status("image", S.ERROR)).message
    assert "GPU-1 is not there" in (await scripted_master.until_status("device", S.DROPPED)).message
    await scripted_master.until_status("good", S.FINISHED)


async def test_a_stop_leaves_tasks_alone_and_a_restart_adopts_them(
    scripted_master: Any, agent: Any, tmp_path: Path
) -> None:
    flags = ("--master", scripted_master.address, "--runtime", "process", "--devices", "none")
    await agent.start(*flags)
    await registered(scripted_master)
    go = tmp_path / "go"
    scripted_master.desire(launch=(task("t", "sh", "-c", f"while [ ! -e {go} ]; do sleep 0.02; done"),))
    await scripted_master.until_status("t", S.RUNNING)
    assert await agent.end(signal.SIGINT) == 0
    await agent.start(*flags)
    await registered(scripted_master, 2)
    go.touch()
    await scripted_master.until_status("t", S.FINISHED)


async def test_the_agent_waits_for_a_master_and_comes_back_to_it(scripted_master: Any, agent: Any) -> None:
    port = int(scripted_master.address.rpartition(":")[2])
    await scripted_master.stop()
    await agent.start("--master", f"127.0.0.1:1,{scripted_master.address}", "--runtime", "process", "--devices", "none")
    await agent.until_logged("no connection to the master")
    await scripted_master.start(port)
    await registered(scripted_master)
    scripted_master.hang_up()
    await registered(scripted_master, 2)
    await scripted_master.stop()
    await agent.until_logged("is lost; tasks run on")
    scripted_master.term = 2
    await scripted_master.start(port)
    await registered(scripted_master, 3)
    assert scripted_master.registers()[-1].generation.term == 1


async def test_a_work_directory_of_another_cluster(scripted_master: Any, agent: Any) -> None:
    flags = ("--master", scripted_master.address, "--runtime", "process", "--devices", "none")
    await agent.start(*flags)
    await agent.until_logged("event=registered")
    await agent.end()
    scripted_master.cluster_id = "c2"
    await agent.start(*flags)
    await agent.until_logged("belongs to cluster c1.*leads cluster c2.*--work-dir")


async def test_two_agents_with_one_work_directory(scripted_master: Any, agent: Any) -> None:
    flags = ("--master", scripted_master.address, "--runtime", "process", "--devices", "none")
    await agent.start(*flags)
    await registered(scripted_master)
    assert agent.process is not None
    second = type(agent)(agent.work_dir)
    await second.start(*flags)
    assert await second.wait() == 1
    assert f"in use by another agent (pid {agent.process.pid})" in "".join(second.log)


async def test_many_starts_do_not_delay_a_pong(scripted_master: Any, agent: Any) -> None:
    await agent.start("--master", scripted_master.address, "--runtime", "process", "--devices", "none")
    await registered(scripted_master)
    scripted_master.desire(launch=tuple(task(f"t{n}", "true") for n in range(200)))
    await scripted_master.until_status("t0", S.STARTING)
    scripted_master.say(Ping(7))
    await scripted_master.until(lambda: Pong(7) in scripted_master.heard)
    told = {status.task_id for status in scripted_master.statuses if status.state is not S.STARTING}
    assert len(told) < 200, "all were started first"
    await scripted_master.until(lambda: sum(status.state is S.FINISHED for status in scripted_master.statuses) == 200)


async def test_metrics(scripted_master: Any, agent: Any) -> None:
    await agent.start(
        "--master",
        scripted_master.address,
        "--runtime",
        "process",
        "--devices",
        "simulated:3",
        "--metrics",
        "127.0.0.1:0",
    )
    port = (await agent.until_logged(r"event=metrics .*port=(\d+)"))[1]
    info = await registered(scripted_master)
    scripted_master.desire(launch=(task("t", "sleep", "100", devices=(info.devices[0].uuid,)), task("u", "true")))
    await scripted_master.until_status("t", S.RUNNING)
    await scripted_master.until_status("u", S.FINISHED)
    text = await asyncio.to_thread(
        lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    )
    for line in (
        'bursar_agent_tasks{state="running"} 1.0',
        'bursar_agent_devices{health="healthy",use="held"} 1.0',
        'bursar_agent_devices{health="healthy",use="free"} 2.0',
        "bursar_agent_registered 1.0",
        "bursar_agent_launches_total 2.0",
        "bursar_agent_container_start_seconds_count 2.0",
        "bursar_agent_connections_total 1.0",
    ):
        assert line in text, text


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (("--resorces=cpus:1",), 2, "did you mean 'resources'"),
        (("--resources=cpus:-1",), 2, "is below zero"),
        (("--resources=gpus:0.5",), 2, "GPUs are granted whole"),
        (("--attributes=x",), 2, "is not name:value"),
        (("--runtime=podman",), 2, "use one of: docker, process"),
        (("--devices=simulated:x",), 2, "does not say how many"),
        (("--resources=gpus:5", "--devices=simulated:4"), 2, "5 gpus are declared, but 4 are there"),
        (("--master=nowhere",), 2, "is not an address"),
        (("--metrics=0.0.0.0:0",), 1, "add --insecure"),
    ],
)
async def test_bad_flags(agent: Any, flags: tuple[str, ...], code: int, text: str) -> None:
    await agent.start("--runtime=process", *flags)
    assert await agent.wait() == code
    log = "".join(agent.log)
    assert text in log and "Traceback" not in log


async def test_a_damaged_checkpoint_is_named(agent: Any) -> None:
    agent.work_dir.mkdir()
    (agent.work_dir / "checkpoint.db").write_bytes(b"nonsense" * 1000)
    await agent.start("--runtime=process", "--devices=none")
    assert await agent.wait() == 1
    assert "checkpoint.db is damaged" in "".join(agent.log) and "Traceback" not in "".join(agent.log)


async def test_a_gpu_that_fails_is_told_of_with_its_task_and_comes_back(
    scripted_master: Any, agent: Any, tmp_path: Path
) -> None:
    flags = ("--runtime", "process", "--devices", "simulated:2", "--device-cool-down", "100ms")
    await agent.start("--master", scripted_master.address, *flags)
    info = await registered(scripted_master)
    (bad, good) = (device.uuid for device in info.devices)
    scripted_master.desire(launch=(task("t", "sleep", "100", devices=(bad,)),))
    await scripted_master.until_status("t", S.RUNNING)
    orders = agent.work_dir / "simulated-faults"
    orders.write_text("0 xid 79\n")

    def conditions() -> list[DeviceCondition]:
        told = [message for message in scripted_master.heard if isinstance(message, DevicesChanged)]
        return [device.condition for device in told[-1].devices] if told else []

    await scripted_master.until(lambda: conditions()[:1] == [DeviceCondition.CORDONED])
    notice = await scripted_master.until(
        lambda: next((one for one in scripted_master.statuses if one.reason is StatusReason.DEVICE_FAILED), None)
    )
    assert notice.state is S.RUNNING and "XID 79: the GPU has fallen off the bus" in notice.message
    scripted_master.desire(
        launch=(task("u", "true", devices=(bad,)), task("v", "true", devices=(good,))),
        kill=(KillTask(FrameworkId("f"), TaskId("t"), StatusReason.KILLED_BY_FRAMEWORK, 0),),
    )
    refused = await scripted_master.until_status("u", S.DROPPED)
    assert "XID 79" in refused.message
    await scripted_master.until_status("v", S.FINISHED)
    orders.write_text("")
    await scripted_master.until(lambda: conditions()[:1] == [DeviceCondition.HEALTHY])
    scripted_master.desire(launch=(task("w", "true", devices=(bad,)),))
    await scripted_master.until_status("w", S.FINISHED)


async def test_a_gpu_with_a_process_left_on_it_is_not_given_on_before_that_has_gone(
    scripted_master: Any, agent: Any
) -> None:
    flags = ("--runtime", "process", "--devices", "simulated:2", "--device-release-timeout", "6s")
    await agent.start("--master", scripted_master.address, *flags, "--device-cool-down", "100ms")
    (one, other) = (device.uuid for device in (await registered(scripted_master)).devices)
    scripted_master.desire(launch=(task("t", "sleep", "100", devices=(one,)),))
    await scripted_master.until_status("t", S.RUNNING)
    orders = agent.work_dir / "simulated-faults"
    orders.write_text(f"0 process {os.getpid()}\n1 process {os.getpid()}\n")

    def told() -> list[tuple[DeviceCondition, str]]:
        heard = [message for message in scripted_master.heard if isinstance(message, DevicesChanged)]
        return [(device.condition, device.health_reason) for device in heard[-1].devices] if heard else []

    scripted_master.desire(kill=(KillTask(FrameworkId("f"), TaskId("t"), StatusReason.KILLED_BY_FRAMEWORK, 0),))
    await scripted_master.until_status("t", S.KILLED)
    await scripted_master.until(lambda: [condition for condition, _ in told()] == [DeviceCondition.BUSY] * 2)
    assert f"process {os.getpid()} (" in told()[0][1] and "of task t is still there" in told()[0][1]
    assert "of no task uses it" in told()[1][1]
    scripted_master.desire(launch=(task("u", "true", devices=(one,)),))
    assert "is busy: process" in (await scripted_master.until_status("u", S.DROPPED)).message
    await scripted_master.until(lambda: told()[0][0] is DeviceCondition.CORDONED)
    orders.write_text("")
    await scripted_master.until(lambda: {condition for condition, _ in told()} <= WELL)
    scripted_master.desire(launch=(task("v", "true", devices=(one, other)),))
    await scripted_master.until_status("v", S.FINISHED)


WELL = {DeviceCondition.UNSPECIFIED, DeviceCondition.HEALTHY}


async def test_who_uses_more_than_its_soft_share_is_ended_and_its_neighbour_is_not(
    scripted_master: Any, agent: Any
) -> None:
    flags = ("--runtime", "process", "--devices", "simulated:1", "--gpu-shares", "250:soft", "--gpu-share-grace", "1s")
    await agent.start("--master", scripted_master.address, *flags)
    devices = (await registered(scripted_master)).devices
    shares = [device.uuid for device in devices if device.kind == "gpu-250-soft"]
    for name, share in (("greedy", shares[0]), ("modest", shares[1])):
        # In a session of its own, as a daemon would be.
        command = ("sh", "-c", "setsid sleep 100 & echo $! > child; wait")
        scripted_master.desire(launch=(task(name, *command, devices=(share,)),))
        await scripted_master.until_status(name, S.RUNNING)
    pids: dict[str, int] = {}
    while len(pids) < 2:
        await asyncio.sleep(0.01)
        for path in agent.work_dir.glob("sandboxes/*/child"):
            if text := path.read_text().strip():
                pids["greedy" if "greedy" in path.parent.name else "modest"] = int(text)
    (agent.work_dir / "simulated-faults").write_text(
        f"0 process {pids['greedy']} 30GiB\n0 process {pids['modest']} 19GiB\n"
    )
    ended = await scripted_master.until_status("greedy", S.FAILED)
    assert ended.reason is StatusReason.DEVICE_MEM_LIMIT and "it used 30GiB of the memory of GPU-" in ended.message
    said = [one.reason for one in scripted_master.statuses if one.task_id == "greedy"]
    assert said.index(StatusReason.DEVICE_MEM_EXCEEDED) < said.index(StatusReason.DEVICE_MEM_LIMIT)
    assert {one.state for one in scripted_master.statuses if one.task_id == "modest"} <= {S.STARTING, S.RUNNING}
