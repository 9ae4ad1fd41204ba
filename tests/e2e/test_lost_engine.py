"""An engine that dies in the middle of a task: the task is lost and said so, and nothing else is.

The engine is one of the test's own, beside the machine's, so that it can be killed. It is in a network namespace of its own because
an engine without networks removes the bridge of the other one, and in a mount namespace so that no mount of it survives.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import docker.errors
import psutil
import pytest

from bursar.cli.demo.setting import _import_busybox
from bursar.v1.operator_service_pb2 import AGENT_STATE_ACTIVE

pytestmark = pytest.mark.docker

IMAGE = "bursar-test-own"


class OwnEngine:
    """A dockerd that may be killed and started again."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.url = f"unix://{where}/engine.sock"
        self.client: Any = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, until: Callable[..., Any]) -> None:
        where = self.where
        (where / "pid").unlink(missing_ok=True)
        with (where / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "unshare", "--net", "--mount", "--", "dockerd", "--host", self.url, "--data-root", where / "data",
                    "--exec-root", where / "exec", "--pidfile", where / "pid", "--bridge=none", "--iptables=false",
                    "--ip6tables=false", "--containerd-namespace", "bursar-test", "--containerd-plugins-namespace",
                    "bursar-test-plugins",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={"PATH": os.environ["PATH"]},
            )  # fmt: skip
        until(lambda: self._answers() or not self._is_alive(), "an engine of its own")
        assert self._is_alive(), (where / "log").read_text()[-2000:]

    def end(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(30)

    def names(self) -> list[str]:
        """Of all containers."""
        return [name for one in self.client.api.containers(all=True) for name in one["Names"]]

    def close(self) -> None:
        if self._is_alive():
            with contextlib.suppress(docker.errors.DockerException, OSError, subprocess.TimeoutExpired):
                for container in self.client.containers.list(all=True):
                    container.remove(force=True)
                self.end(signal.SIGTERM)
        for process in psutil.process_iter():
            try:
                if any(str(self.where) in text for text in process.cmdline()):
                    for one in (*process.children(recursive=True), process):
                        one.kill()
            except psutil.Error:
                continue

    def _answers(self) -> bool:
        try:
            self.client = self.client or docker.DockerClient(self.url, version="1.41", timeout=20)
            return bool(self.client.ping())
        except (docker.errors.DockerException, OSError):
            return False

    def _is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None


@pytest.fixture
def own_engine(require: Callable[[bool, str], None], programs: Any) -> Iterator[OwnEngine]:
    require(os.geteuid() == 0, "an engine can be started by root only")
    for name in ("dockerd", "unshare"):
        require(shutil.which(name) is not None, f"no {name} to start an engine with")
    # A short path: that of a socket may have 107 characters.
    where = Path(tempfile.mkdtemp(prefix="bursar-engine-"))
    made = OwnEngine(where)
    try:
        made.start(programs.until)
        require(_import_busybox(made.client, IMAGE) is not None, "no static busybox to make an image of")
        yield made
    finally:
        made.close()
        shutil.rmtree(where)


def test_an_engine_that_dies_loses_its_task_and_the_agent_goes_on(bare_cluster: Any, own_engine: OwnEngine) -> None:
    flags = ("--runtime", "docker", "--default-image", f"{IMAGE}:latest")
    bare_cluster.start_master()
    agent = bare_cluster.start_agent("node-gpu", *flags, DOCKER_HOST=own_engine.url)
    bare_cluster.until_active("node-gpu")
    agent_id = bare_cluster.agent("node-gpu")["agent_id"]

    for number in (signal.SIGKILL, signal.SIGTERM):  # it dies; it is stopped, and takes its containers along
        running = bare_cluster.start("run", "--gpus", "4", "--", "sh", "-c", "echo up; exec sleep 1000")
        running.until_stdout("up")
        (lost,) = own_engine.names()
        own_engine.end(number)
        done = running.finish()
        assert (done.code, done.stdout) == (125, "up\n") and "engine" in done.stderr, done
        assert "lost" in done.stderr and "Traceback" not in done.stderr, done
        while_away = bare_cluster.bursar("run", "--gpus", "1", "--", "true")
        assert while_away.code == 125 and "engine does not answer" in while_away.stderr, while_away

        own_engine.start(bare_cluster.until)
        bare_cluster.until(lambda lost=lost: lost not in own_engine.names(), "the lost container is removed")
        again = bare_cluster.bursar("run", "--gpus", "4", "--", "echo", "served")
        assert (again.code, again.stdout, again.stderr) == (0, "served\n", ""), again

    assert agent.alive and bare_cluster.state("node-gpu") == AGENT_STATE_ACTIVE
    assert bare_cluster.agent("node-gpu")["agent_id"] == agent_id and agent.stderr().count("event=registered") <= 1
    assert bare_cluster.ls("task") == []
    bare_cluster.until(lambda: own_engine.names() == [], "no container is left")
