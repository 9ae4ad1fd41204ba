"""What a container gets, as a user asks for it and as an operator allows it (docs/agent.md)."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bursar.cli.demo.setting import Setting, _import_busybox

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def image(engine: Any, require: Callable[[bool, str], None]) -> Iterator[str]:
    made = _import_busybox(engine, f"bursar-test-{uuid.uuid4().hex[:8]}")
    require(made is not None, "no static busybox to make an image of (busybox-static)")
    assert isinstance(made, Setting)
    yield made.image
    made.undo()


@pytest.fixture
def allowing(bare_cluster: Any, image: str, tmp_path: Path) -> Iterator[Any]:
    """`node-docker` lets tasks read `data`, and share `folders`; `node-plain` runs processes."""
    import docker

    (tmp_path / "data/set").mkdir(parents=True)
    (tmp_path / "data/set/file").write_text("a set\n")
    (tmp_path / "data/out").symlink_to("/etc")
    (tmp_path / "folders/team").mkdir(parents=True)
    bare_cluster.start_master()
    bare_cluster.start_agent(
        "node-docker",
        *("--runtime", "docker", "--default-image", image, "--devices", "none"),
        *("--volume-roots", f"{tmp_path}/data", "--shared-folders", f"{tmp_path}/folders:rw"),
    )
    bare_cluster.until_active("node-docker")
    agent_id = bare_cluster.agent("node-docker")["agent_id"]
    yield bare_cluster
    client = docker.from_env(timeout=20)
    for container in client.containers.list(
        all=True, filters={"label": f"bursar.agent_id={agent_id}"}, ignore_removed=True
    ):
        container.remove(force=True)
    client.close()


def test_limits_volumes_and_secrets_from_the_command_line_to_the_container(allowing: Any, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hidden-value\n")
    script = "ulimit -Sn; ulimit -Hn; df -m /dev/shm | tail -1 | awk '{print $2}'; id -u; cat /in/file; echo made > /mnt/bursar/folders/team/made; echo $TOKEN"
    done = allowing.bursar(
        *(
            "run",
            "--ulimit",
            "nofile=1024:4096",
            "--shm",
            "32MiB",
            "--pids",
            "50",
            "--user",
            "0",
            "--secret",
            f"TOKEN=@{tmp_path}/token",
        ),
        *("--volume", f"{tmp_path}/data/set:/in", "--volume", "folder/team:rw", "--", "sh", "-c", script),
    )
    assert (done.code, done.stdout) == (0, "1024\n4096\n32\n0\na set\nhidden-value\n"), done
    assert (tmp_path / "folders/team/made").read_text() == "made\n"
    (task,) = allowing.bursar("task", "ls", "-a", "-o", "json").json
    assert task["spec"]["container"]["shm_bytes"] == 32 << 20
    shown = [allowing.bursar("task", "show", task["task_id"], "-o", form).stdout for form in ("json", "table")]
    logs = [allowing.log(name) for name in ("master", "node-docker")]
    assert not any("hidden-value" in text for text in (*shown, *logs))
    assert '"TOKEN"' in shown[0], "that there is one is no secret"
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.name != "token" and b"hidden-value" in path.read_bytes() and path.name != "stdout":
            assert path.stat().st_mode & 0o077 == 0, f"{path} can be read by others"


def test_what_the_agent_does_not_allow_is_refused_with_the_way_out(allowing: Any, tmp_path: Path) -> None:
    for volume, words in (
        (
            f"{tmp_path}/data/out:/in",
            "which leads to /etc, is not below the roots that this agent allows (--volume-roots)",
        ),
        ("/etc:/in", "is not below the roots"),
        (f"{tmp_path}/data/set:/in:rw", "allowed ro at most"),
        ("folder/none", "No such file or directory"),
    ):
        done = allowing.bursar("run", "--volume", volume, "--", "true")
        assert done.code == 125 and words in done.stderr and "Traceback" not in done.stderr, done
    done = allowing.bursar("run", "--ulimit", "rtprio=10", "--", "true")
    assert done.code == 125 and "ulimits: rtprio=10 is more than this agent allows (rtprio=0)" in done.stderr, done
    for options, words in (
        (("--shm", "1GiB"), "do not fit into the 134217728 bytes of memory"),
        (("--ulimit", "files=3"), "ulimit 'files=3' is not understood; there are cpu, fsize"),
        (("--user", "root"), "UID or UID:GID in numbers"),
        (("--volume", "/etc/../x:/in"), "holds '.', '..' or an empty part"),
        (("--secret", "TOKEN=open"), "on a command line everybody"),
    ):
        done = allowing.bursar("run", *options, "--", "true")
        assert done.code == 2 and words in " ".join(done.stderr.split()), done


def test_plain_processes_refuse_limits_and_say_which(bare_cluster: Any) -> None:
    bare_cluster.start_master()
    bare_cluster.start_agent("node-plain", devices="none")
    bare_cluster.until_active("node-plain")
    done = bare_cluster.bursar("run", "--wait", "3s", "--pids", "5", "--", "true")
    assert done.code == 124 and "container.pids_limit: plain processes cannot be held to it" in done.stderr, done
    done = bare_cluster.bursar("run", "--ulimit", "nofile=100:200", "--", "sh", "-c", "ulimit -Sn; ulimit -Hn")
    assert (done.code, done.stdout) == (0, "100\n200\n"), done
    script = '[ "$(ulimit -Sn)" = 100 ]'
    done = bare_cluster.bursar("batch", "--count", "1", "--ulimit", "nofile=100:200", "--", "sh", "-c", script)
    assert done.code == 0, done
