"""The whole agent with the Docker engine, against a scripted master (a simulation)."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from bursar.core.ids import FrameworkId, TaskId
from bursar.core.memory.text import parse_memory_text
from bursar.core.messages.agent import KillTask
from bursar.core.resources import ReservedResources, ResourceRequest, Resources
from bursar.core.tasks import AssignedTask, StatusReason, TaskSpec, TaskState

S = TaskState


@pytest.fixture
def no_container_left(docker_image: str) -> Iterator[None]:
    yield
    client = docker.from_env()
    for container in client.containers.list(all=True, filters={"ancestor": docker_image}, ignore_removed=True):
        container.remove(force=True)
    client.close()


def task(name: str, *command: str, devices: tuple[str, ...] = (), image: str = "") -> AssignedTask:
    spec = TaskSpec(
        TaskId(name), command=command, resources=ResourceRequest({"cpus": 500}), image=image, kill_grace_ms=100
    )
    granted = Resources({"cpus": 500, "mem": 64 << 20}, (), frozenset(devices))  # type: ignore[arg-type]
    return AssignedTask(FrameworkId("f"), "*", spec, (ReservedResources((), granted),))


@pytest.mark.usefixtures("no_container_left")
async def test_containers_from_launch_over_a_killed_agent_to_their_end(
    scripted_master: Any, agent: Any, docker_image: str
) -> None:
    master = scripted_master
    flags = ("--master", master.address, "--devices", "simulated:2", "--default-image", docker_image)
    await agent.start(*flags)
    await master.until(lambda: master.registers() or None)
    info = master.registers()[-1].info
    assert info.runtime == "docker" and info.runs_without_image
    uuids = tuple(device.uuid for device in info.devices)
    wait = "echo $CUDA_VISIBLE_DEVICES; while [ ! -e $BURSAR_SANDBOX/go ]; do sleep 0.05; done; exit 7"
    master.desire(
        launch=(
            task("waits", "sh", "-c", wait, devices=uuids),
            task("absent", "/no/such/program"),
            task("image", "true", image="localhost:1/no/such-image:1"),
            task("endless", "sh", "-c", "while :; do sleep 1; done"),
        )
    )
    await master.until_status("waits", S.RUNNING, 60)
    await master.until_status("endless", S.RUNNING, 60)
    status = await master.until_status("image", S.FAILED, 60)
    assert status.reason is StatusReason.IMAGE_NOT_FOUND
    status = await master.until_status("absent", S.FAILED, 60)
    assert status.exit_code == 127 or status.reason is StatusReason.LAUNCH_FAILED

    await agent.end(signal.SIGKILL)
    await agent.start(*flags)
    await master.until(lambda: len(master.registers()) == 2 or None)
    (sandbox,) = Path(agent.work_dir / "sandboxes").glob("*waits*")
    (sandbox / "go").touch()
    status = await master.until_status("waits", S.FAILED, 60)
    assert status.exit_code == 7
    master.open_log("s1", "waits", follow=True)
    await master.until_log_ended("s1")
    assert master.log_text("s1") == ",".join(uuids) + "\n"
    master.desire(kill=(KillTask(FrameworkId("f"), TaskId("endless"), StatusReason.KILLED_BY_OPERATOR),))
    status = await master.until_status("endless", S.KILLED, 60)
    assert status.reason is StatusReason.KILLED_BY_OPERATOR
    assert sum(status.state.is_terminal and status.task_id == "waits" for status in master.statuses) == 1
    assert await agent.end() == 0


async def test_without_an_engine_it_refuses_and_names_the_way_out(agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    await agent.start("--devices", "none")
    assert await agent.wait() == 1
    assert "--runtime process" in "".join(agent.log) and "Traceback" not in "".join(agent.log)


@pytest.mark.usefixtures("no_container_left")
async def test_the_pools_of_a_tasks_memory_are_what_the_kernel_holds_it_to(
    scripted_master: Any, agent: Any, docker_image: str
) -> None:
    master = scripted_master
    await agent.start("--master", master.address, "--devices", "none", "--default-image", docker_image)
    await master.until(lambda: master.registers() or None)
    settings = parse_memory_text("total=300MiB,shm=70MiB,tmpfs=20MiB,managed=16MiB,overhead=200MiB")
    show = "df -k /dev/shm /tmp | awk '{print $2, $6}' | tail -n 2; echo $BURSAR_MEM_SHM_BYTES"
    spec = TaskSpec(
        TaskId("pools"),
        command=("sh", "-c", show),
        resources=ResourceRequest({"cpus": 500, "mem": 500 << 20}),
        memory=settings,
    )
    granted = Resources({"cpus": 500, "mem": 500 << 20})
    master.desire(launch=(AssignedTask(FrameworkId("f"), "*", spec, (ReservedResources((), granted),)),))
    await master.until_status("pools", S.FINISHED, 60)
    master.open_log("s1", "pools", follow=True)
    await master.until_log_ended("s1")
    assert master.log_text("s1").split("\n") == ["71680 /dev/shm", "20480 /tmp", str(70 << 20), ""]
    assert await agent.end() == 0
