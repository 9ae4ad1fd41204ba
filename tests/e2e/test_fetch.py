"""Sandboxes from the command line to the task, on plain processes and in Docker: what is fetched into them, and how full they may be."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bursar.cli.demo.setting import Setting, _import_busybox


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server of the directory `served`."""
    (tmp_path / "served").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.docker), "process"])
def machine(
    request: pytest.FixtureRequest, bare_cluster: Any, require: Callable[[bool, str], None], tmp_path: Path
) -> Iterator[Any]:
    flags: tuple[str, ...] = ()
    if request.param == "docker":
        made = _import_busybox(request.getfixturevalue("engine"), f"bursar-test-{uuid.uuid4().hex[:8]}")
        require(made is not None, "no static busybox to make an image of (busybox-static)")
        assert isinstance(made, Setting)
        request.addfinalizer(made.undo)
        flags = ("--runtime", "docker", "--default-image", made.image)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/set").write_text("a set\n")
    bare_cluster.start_master()
    bare_cluster.start_agent("node", *flags, "--volume-roots", str(tmp_path / "data"), devices="none")
    bare_cluster.until_active("node")
    yield bare_cluster
    if request.param == "docker":
        agent_id = bare_cluster.agent("node")["agent_id"]
        engine = request.getfixturevalue("engine")
        for container in engine.containers.list(
            all=True, filters={"label": f"bursar.agent_id={agent_id}"}, ignore_removed=True
        ):
            container.remove(force=True)


def test_files_are_there_when_the_task_starts(machine: Any, url: str, tmp_path: Path) -> None:
    tool = "#!/bin/sh\necho tool runs\n"
    (tmp_path / "served/tool").write_text(tool)
    total = hashlib.sha256(tool.encode()).hexdigest()
    fetches = ("--fetch", f"bin/tool={url}/tool#sha256={total},executable", "--fetch", f"file://{tmp_path}/data/set")
    for _ in range(2):
        done = machine.bursar("run", *fetches, "--", "sh", "-c", "cd $BURSAR_SANDBOX; bin/tool; cat set")
        assert (done.code, done.stdout) == (0, "tool runs\na set\n"), done
        (tmp_path / "served/tool").unlink(missing_ok=True)
    assert [path.name for path in (machine.where / "node/fetched").iterdir()] == [total], "the second came from here"


def test_a_fetch_that_fails_fails_the_launch_and_leaves_nothing(machine: Any, url: str, tmp_path: Path) -> None:
    (tmp_path / "served/data").write_text("data")
    for fetch, words in (
        (f"{url}/missing", "the server answered 404"),
        (f"{url}/data#sha256={'0' * 64}", "its checksum is"),
        ("file:///etc/hostname", "is not below the roots that this agent allows"),
    ):
        done = machine.bursar("run", "--fetch", f"{url}/data", "--fetch", f"second={fetch}", "--", "echo", "never")
        assert done.code == 125 and not done.stdout and "fetch failed" in done.stderr and words in done.stderr, done
    for task in machine.ls("task", "-a"):
        assert (task["state"], task["reason"]) == ("FAILED", "FETCH_FAILED")
    machine.until(lambda: not list((machine.where / "node/sandboxes").iterdir()), "no sandbox is left")
    done = machine.bursar("run", "--fetch", "../x=http://h/a", "--", "true")
    assert done.code == 2 and "not one below the sandbox" in " ".join(done.stderr.split()), done


def test_who_fills_its_disk_is_ended_and_the_others_are_not(machine: Any) -> None:
    other = machine.start(
        "run", "--disk", "20MiB", "--", "sh", "-c", "echo runs; while [ ! -e $BURSAR_SANDBOX/go ]; do sleep 0.1; done"
    )
    other.until_stdout("runs")
    script = (
        "cd $BURSAR_SANDBOX; while :; do dd if=/dev/zero of=part$((i=i+1)) bs=1M count=5 2>/dev/null; sleep 0.2; done"
    )
    done = machine.bursar("run", "--disk", "8MiB", "--", "sh", "-c", script)
    assert done.code != 0 and "disk limit" in done.stderr, done
    assert "more than the 8MiB of disk that it asked for" in done.stderr and "--disk" in done.stderr, done
    (ended,) = [task for task in machine.ls("task", "-a") if task["state"] == "FAILED"]
    assert ended["reason"] == "DISK_LIMIT"
    assert other.alive
    (task,) = machine.ls("task")
    machine.bursar("task", "exec", task["task_id"], "--", "sh", "-c", "touch $BURSAR_SANDBOX/go")
    assert other.finish().code == 0
