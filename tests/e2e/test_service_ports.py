"""Service ports from the command line to a client of the task, on plain processes and in Docker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bursar.cli.demo.setting import Setting, _import_busybox


def free_ports(count: int) -> int:
    """The first of so many free ports in a row, away from those that the kernel hands out."""
    for first in range(21000, 29000, 16):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(contextlib.closing(socket.create_server(("", port))))
            return first
    raise AssertionError("no free ports")


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.docker), "process"])
def machine(
    request: pytest.FixtureRequest, bare_cluster: Any, require: Callable[[bool, str], None]
) -> Iterator[tuple[Any, int]]:
    """A cluster of one agent, and the first of its four ports."""
    flags: tuple[str, ...] = ()
    if request.param == "docker":
        made = _import_busybox(request.getfixturevalue("engine"), f"bursar-test-{uuid.uuid4().hex[:8]}")
        require(made is not None, "no static busybox to make an image of (busybox-static)")
        assert isinstance(made, Setting)
        request.addfinalizer(made.undo)
        flags = ("--runtime", "docker", "--default-image", made.image)
    first = free_ports(4)
    resources = f"cpus:4;mem:1GiB;ports:[{first}-{first + 3}]"
    bare_cluster.start_master()
    bare_cluster.start_agent("node", *flags, resources=resources, devices="none")
    bare_cluster.until_active("node")
    yield bare_cluster, first
    if request.param == "docker":
        agent_id = bare_cluster.agent("node")["agent_id"]
        engine = request.getfixturevalue("engine")
        for container in engine.containers.list(all=True, filters={"label": f"bursar.agent_id={agent_id}"}):
            container.remove(force=True)


#: Serves one answer after the other on the port that it was given; busybox' own, as python is in no image.
SERVE = "while :; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\nhere' | busybox nc -l -p $BURSAR_PORT_JUPYTER >/dev/null; done"


def answer(address: str) -> str:
    until = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5) as found:
                return str(found.read().decode())
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def test_others_reach_a_task_by_its_named_ports(machine: tuple[Any, int]) -> None:
    cluster, first = machine
    asked = ("--name", "notebook", "--port", f"web:8000@{first + 1}", "--port", "jupyter", "--port", "ssh")
    notebook = cluster.start("run", *asked, "--", "sh", "-c", SERVE)
    try:
        cluster.until(lambda: [t for t in cluster.ls("task") if t["state"] == "RUNNING"], "it runs")
        (task,) = cluster.ls("task")
        shown = cluster.bursar("task", "show", task["task_id"])
        reach = f"http://node:{first}"
        assert f"jupyter: {reach}" in shown.stdout and f"ssh: ssh -p {first + 2} node" in shown.stdout, shown
        told = json.loads(cluster.bursar("task", "show", task["task_id"], "-o", "json").stdout)
        assert [one["address"] for one in told["services"]] == [f"node:{first + n}" for n in (1, 0, 2)]
        assert answer(f"http://127.0.0.1:{first}") == "here"

        other = cluster.bursar("run", "--wait", "1s", "--port", f"other:80@{first}", "--", "true")
        assert other.code == 124 and "large enough, but in use" in other.stderr, other
        beside = cluster.bursar("run", "--port", "web:80", "--", "sh", "-c", "echo $BURSAR_HOST_PORT_WEB")
        assert beside.stdout == f"{first + 3}\n", beside
    finally:
        notebook.signal(signal.SIGTERM)
        notebook.finish()
    again = cluster.bursar("run", "--port", f"other:80@{first}", "--", "true")
    assert again.code == 0, "a port comes back with the end of its task"


def test_a_port_that_something_else_has_fails_the_launch_by_name(machine: tuple[Any, int]) -> None:
    cluster, first = machine
    with contextlib.closing(socket.create_server(("", first))):
        done = cluster.bursar("run", "--port", f"web:80@{first}", "--", "echo", "never")
        assert done.code == 125 and not done.stdout, done
        assert f"(port in use): port {first} of this machine, which was to be 'web', is in use by" in done.stderr
        assert f"(pid {os.getpid()})" in done.stderr
        (task,) = cluster.ls("task", "-a")
        assert (task["state"], task["reason"]) == ("FAILED", "PORT_IN_USE")
        cluster.until(lambda: not list((cluster.where / "node/sandboxes").iterdir()), "no sandbox is left")
    assert cluster.bursar("batch", "--count", "2", "--port", "web:80", "--disk", "1GiB", "--", "true").code == 0


def test_a_check_finds_a_port_by_its_name_on_either_network(machine: tuple[Any, int]) -> None:
    cluster, _ = machine
    often = ("--check-delay", "0s", "--check-interval", "200ms", "--health-failures", "1000")
    watched = ("--port", "jupyter", "--health", "http:jupyter/x", *often)
    task = cluster.start("run", *watched, "--", "sh", "-c", f"sleep 0.5; {SERVE}")
    try:
        cluster.until(lambda: [t for t in cluster.ls("task") if t["state"] == "RUNNING"], "it runs")
        (one,) = cluster.ls("task")
        healthy = lambda: "HEALTHY:     yes" in cluster.bursar("task", "show", one["task_id"]).stdout
        cluster.until(healthy, "its port answers")
    finally:
        task.signal(signal.SIGTERM)
        task.finish()
    done = cluster.bursar("run", "--port", "web:80", "--health", "tcp:other", "--", "true")
    assert done.code == 2 and "no service port 'other' of TCP: there are web" in done.stderr, done
