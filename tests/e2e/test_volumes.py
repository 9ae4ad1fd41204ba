"""Persistent volumes from the command line to the disk: what is written outlives the task, the agent and the master (VOL-2)."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bursar.cli.demo.setting import Setting, _import_busybox

from .conftest import until

FIRST = "echo kept >> $BURSAR_VOLUME_DB/file; pwd"
SECOND = "echo more >> $BURSAR_VOLUME_DB/file; cat $BURSAR_VOLUME_DB/file"


def volumes(cluster: Any) -> dict[str, str]:
    return {view["volume_id"]: view["state"] for view in cluster.bursar("volume", "ls", "-o", "json").json}


def until_they_are(cluster: Any, **states: str) -> None:
    until(lambda: volumes(cluster) == states, f"volumes that are {states}")


@pytest.fixture(scope="module")
def image(engine: Any, require: Callable[[bool, str], None]) -> Iterator[str]:
    made = _import_busybox(engine, f"bursar-test-{uuid.uuid4().hex[:8]}")
    require(made is not None, "no static busybox to make an image of (busybox-static)")
    assert isinstance(made, Setting)
    yield made.image
    made.undo()


@pytest.fixture
def contained(bare_cluster: Any, image: str) -> Iterator[Any]:
    """`node` runs containers, whose leftovers are removed."""
    import docker

    bare_cluster.start_master()
    bare_cluster.start_agent(
        "node", "--runtime", "docker", "--default-image", image, devices="none", resources="cpus:4;mem:1GiB;disk:10GiB"
    )
    bare_cluster.until_active("node")
    agent_id = bare_cluster.agent("node")["agent_id"]
    yield bare_cluster
    client = docker.from_env(timeout=20)
    for container in client.containers.list(
        all=True, filters={"label": f"bursar.agent_id={agent_id}"}, ignore_removed=True
    ):
        container.remove(force=True)
    client.close()


@pytest.mark.docker
def test_in_a_container_it_is_mounted_as_it_says(contained: Any) -> None:
    cluster = contained
    where = ("--role", "ml", "--agent", "node")
    assert cluster.bursar("reserve", *where, "--resources", "disk:2GiB").code == 0
    assert cluster.bursar("volume", "create", "db", *where, "--size", "1GiB").code == 0
    run = ("run", "--role", "ml", "--volume")
    script = "id -u; echo kept > $BURSAR_VOLUME_DB/file; ls /data"
    done = cluster.bursar(*run, "volume/db:/data:rw", "--user", "1234", "--", "sh", "-c", script)
    assert (done.code, done.stdout) == (0, "1234\nfile\n"), done
    until(lambda: volumes(cluster)["db"] != "IN_USE", "the volume back")
    done = cluster.bursar(*run, "volume/db:/in", "--", "sh", "-c", "cat /in/file; touch /in/other && echo written")
    assert done.stdout == "kept\n" and "Read-only file system" in done.stderr, done


def test_what_a_process_wrote_is_there_for_the_next(bare_cluster: Any, tmp_path: Path) -> None:
    cluster = bare_cluster
    cluster.start_master()
    cluster.start_agent("node", devices="none", resources="cpus:4;mem:1GiB;disk:10GiB")
    cluster.until_active("node")
    where = ("--role", "ml", "--agent", "node")
    done = cluster.bursar("volume", "create", "db", *where, "--size", "1GiB")
    assert done.code == 1 and "keeps no disk for 'ml'" in done.stderr and "bursar reserve" in done.stderr, done
    assert cluster.bursar("reserve", *where, "--resources", "disk:2GiB").code == 0
    done = cluster.bursar("volume", "create", "db", *where, "--size", "1GiB", "-o", "json")
    assert done.code == 0 and done.json["volume_id"] == "db", done
    done = cluster.bursar("run", "--role", "ml", "--volume", "volume/db:/data:rw", "--", "sh", "-c", FIRST)
    assert done.code == 0, done
    until(lambda: volumes(cluster)["db"] != "IN_USE", "the volume back")
    # Whoever is not of the role has no such volume, and says so.
    done = cluster.bursar("run", "--role", "eng", "--volume", "volume/db:/data:rw", "--", "true")
    assert done.code == 1 and "no agent keeps db for 'eng'" in done.stderr, done
    done = cluster.bursar("unreserve", *where, "--resources", "disk:2GiB")
    assert done.code == 1 and "volumes take disk of it: db of ml" in done.stderr, done
    cluster.kill("node")
    cluster.kill("master")
    cluster.start_master()
    cluster.start_agent("node", devices="none", resources="cpus:4;mem:1GiB;disk:10GiB")
    cluster.until_active("node")
    done = cluster.bursar("run", "--role", "ml", "--volume", "volume/db:/data:rw", "--", "sh", "-c", "cat data/file")
    assert (done.code, done.stdout) == (0, "kept\n"), done
    done = cluster.bursar("run", "--role", "ml", "--volume", "volume/db:/data:rw", "--", "sh", "-c", SECOND)
    assert (done.code, done.stdout) == (0, "kept\nmore\n"), done
    until(lambda: volumes(cluster)["db"] != "IN_USE", "the volume back")
    (data,) = [path for path in tmp_path.rglob("file") if path.parent.name == "db"]
    assert cluster.bursar("volume", "destroy", "db", *where).code == 0
    until_they_are(cluster)
    until(lambda: not data.exists(), "the data gone")
    assert cluster.bursar("unreserve", *where, "--resources", "disk:2GiB").code == 0
