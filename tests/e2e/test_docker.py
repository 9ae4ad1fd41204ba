"""Tasks in real containers, as a user meets them."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bursar.cli.demo.setting import Setting, _import_busybox

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def image(engine: Any, require: Callable[[bool, str], None]) -> Iterator[str]:
    """A tiny image of this machine's busybox; nothing is pulled."""
    made = _import_busybox(engine, f"bursar-test-{uuid.uuid4().hex[:8]}")
    require(made is not None, "no static busybox to make an image of (busybox-static)")
    assert isinstance(made, Setting)
    yield made.image
    made.undo()


def containers(agent_id: str) -> list[Any]:
    import docker

    client = docker.from_env(timeout=20)
    try:
        return list(
            client.containers.list(all=True, filters={"label": f"bursar.agent_id={agent_id}"}, ignore_removed=True)
        )
    finally:
        client.close()


@pytest.fixture
def docker_cluster(bare_cluster: Any, image: str) -> Iterator[Any]:
    """`node-gpu` with four GPUs runs containers of the image."""
    bare_cluster.start_master()
    bare_cluster.start_agent("node-gpu", "--runtime", "docker", "--default-image", image)
    bare_cluster.until_active("node-gpu")
    agent_id = bare_cluster.agent("node-gpu")["agent_id"]
    yield bare_cluster
    for container in containers(agent_id):
        container.remove(force=True)


def test_a_container_sees_its_gpus_and_its_end_is_the_users(docker_cluster: Any) -> None:
    done = docker_cluster.bursar(
        "run", "--gpus", "2", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; echo oops >&2; exit 7", timeout_s=60
    )
    assert done.code == 7 and done.stderr == "oops\n", done
    assert set(done.stdout.strip().split(",")) < set(docker_cluster.uuids("node-gpu"))
    for command, code in ((["sh", "-c", "kill -9 $$"], 137), (["/nonexistent"], 127), (["/etc"], 126)):
        done = docker_cluster.bursar("run", "--gpus", "1", "--", *command)
        assert done.code == code and "Traceback" not in done.stderr, done
    running = docker_cluster.start("run", "--gpus", "1", "--", "sh", "-c", "echo up; exec sleep 1000")
    running.until_stdout("up")
    running.signal(signal.SIGINT)
    assert running.finish().code == 130
    agent_id = docker_cluster.agent("node-gpu")["agent_id"]
    docker_cluster.until(lambda: not containers(agent_id), "no container is left")


def test_an_image_that_does_not_exist(docker_cluster: Any) -> None:
    """The user is told which; the agent and the others go on."""
    done = docker_cluster.bursar("run", "--gpus", "1", "--image", "no-such-image:1", "--", "true")
    assert done.code == 125 and done.stdout == "" and "no-such-image" in done.stderr, done
    assert docker_cluster.bursar("run", "--gpus", "4", "--", "echo", "served").stdout == "served\n"


def test_a_killed_agent_comes_back_to_its_container(docker_cluster: Any, image: str, tmp_path: Path) -> None:
    script = "i=0; while [ $i -lt 60 ]; do echo $i; i=$((i+1)); sleep 0.1; done; echo last >&2; exit 9"
    running = docker_cluster.start("run", "--gpus", "1", "--", "sh", "-c", script)
    running.until_stdout("3\n")
    docker_cluster.kill("node-gpu")
    docker_cluster.start_agent("node-gpu", "--runtime", "docker", "--default-image", image)
    done = running.finish()
    assert done.stdout.split() == [str(number) for number in range(60)] and (done.code, done.stderr) == (9, "last\n"), (
        done
    )
    assert [(task["state"], task["exit_code"]) for task in docker_cluster.ls("task", "--all")] == [("FAILED", 9)]
