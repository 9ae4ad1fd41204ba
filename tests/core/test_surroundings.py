"""What a task may ask of its container, and what is refused with which words."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import InvalidText
from bursar.core.ids import TaskId
from bursar.core.resources import ResourceRequest
from bursar.core.surroundings import (
    ContainerSettings,
    Volume,
    VolumeKind,
    VolumeMode,
    mode_text,
    parse_volume,
    process_problem,
)
from bursar.core.tasks import EnvironmentVariable, TaskSpec, spec_problem

HOST, NAMED, FOLDER = VolumeKind.HOST_PATH, VolumeKind.NAMED, VolumeKind.SHARED_FOLDER


def make(**fields: Any) -> TaskSpec:
    needs = ResourceRequest({"cpus": 1000, "mem": 2**30})
    return TaskSpec(**({"task_id": TaskId("t"), "command": ("true",), "resources": needs} | fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"container": ContainerSettings()},
        {"container": ContainerSettings(2**30, 1, 1, 1, "1000:100", ("ALL", "NET_BIND_SERVICE"))},
        {"container": ContainerSettings(2**40), "resources": ResourceRequest({"cpus": 1000})},
        {"container": ContainerSettings(user="0")},
        {"volumes": (Volume(HOST, "/", "/data"), Volume(NAMED, "a..b", "/x"), Volume(FOLDER, "a"))},
    ],
)
def test_containers_that_can_be(fields: dict[str, Any]) -> None:
    assert spec_problem(make(**fields)) is None


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"container": ContainerSettings(shm_bytes=-1)}, "container.shm_bytes"),
        ({"container": ContainerSettings(shm_bytes=2**30 + 1)}, "container.shm_bytes"),
        ({"container": ContainerSettings(io_write_bytes_per_s=-1)}, "container.io_write_bytes_per_s"),
        *(
            ({"container": ContainerSettings(user=user)}, "container.user")
            for user in ("root", "-1", "1:", ":1", "1:2:3", "1 ", "99999999999", "4294967295", "1\n", "٣")
        ),
        *(
            ({"container": ContainerSettings(drop_capabilities=(name,))}, "container.drop_capabilities")
            for name in ("", "CAP_CHOWN", "chown", "A B")
        ),
        ({"volumes": (Volume(VolumeKind.UNSPECIFIED, "/a", "/b"),)}, "volumes[0]"),
        *(
            ({"volumes": (Volume(HOST, source, "/b"),)}, "volumes[0]")
            for source in ("", "a", "/a/../b", "/a/./b", "/a//b", "/a/", "/a\x00", "/a\n", "/" + "x" * 4096)
        ),
        *(
            ({"volumes": (Volume(kind, name, "/b"),)}, "volumes[0]")
            for kind in (NAMED, FOLDER)
            for name in ("", ".", "..", "a/b", "../a", "a\x00", "-a", "x" * 129, "a\n")
        ),
        *(
            ({"volumes": (Volume(NAMED, "a", target),)}, "volumes[0]")
            for target in ("", "b", "/", "/proc", "/proc/1", "/dev/shm", "/a/../proc", "/mnt/bursar/sandbox/x")
        ),
        ({"volumes": (Volume(NAMED, "a", "/x"), Volume(NAMED, "b", "/x"))}, "volumes[1]"),
        ({"volumes": tuple(Volume(NAMED, f"v{n}", f"/v{n}") for n in range(65))}, "volumes"),
    ],
)
def test_containers_that_cannot_be(fields: dict[str, Any], where: str) -> None:
    problem = spec_problem(make(**fields))
    assert problem is not None and problem[0] == where and problem[1]


@pytest.mark.parametrize(
    ("text", "volume"),
    [
        ("/data:/in", Volume(HOST, "/data", "/in")),
        ("/data:/in:rw", Volume(HOST, "/data", "/in", VolumeMode.READ_WRITE)),
        ("models:/models:ro", Volume(NAMED, "models", "/models")),
        ("folder/team", Volume(FOLDER, "team")),
        ("folder/team:rw-delete", Volume(FOLDER, "team", "", VolumeMode.READ_WRITE_DELETE)),
        ("folder/team:/t:rw", Volume(FOLDER, "team", "/t", VolumeMode.READ_WRITE)),
    ],
)
def test_volumes_as_text(text: str, volume: Volume) -> None:
    assert parse_volume(text) == volume


@pytest.mark.parametrize(
    "text", ["", "/data", "models", "/data:/in:rwx", "folder/", "folder/../x", "../x:/in", "/a/../b:/c"]
)
def test_texts_that_are_no_volume(text: str) -> None:
    with pytest.raises(InvalidText):
        parse_volume(text)


def test_a_shared_folder_has_a_place_of_its_own_and_modes_have_names() -> None:
    assert Volume(FOLDER, "team").mounted_at == "/mnt/bursar/folders/team"
    assert [mode_text(mode) for mode in VolumeMode] == ["ro", "rw", "rw-delete"]


def test_plain_processes_refuse_what_they_cannot_enforce() -> None:
    assert process_problem(None, ()) is None
    assert process_problem(ContainerSettings(), ()) is None
    problem = process_problem(ContainerSettings(pids_limit=5), ())
    assert problem is not None and problem[0] == "container.pids_limit"
    problem = process_problem(None, (Volume(NAMED, "a", "/a"),))
    assert problem is not None and problem[0] == "volumes"


def test_secrets_are_kept_from_everybody_but_the_task() -> None:
    spec = make(environment=(EnvironmentVariable("A", "open"), EnvironmentVariable("TOKEN", "hidden", True)))
    assert "hidden" not in repr(spec) and "open" in repr(spec)
    shown = spec.without_secrets()
    assert [variable.value for variable in shown.environment] == ["open", ""]
    assert [variable.value for variable in spec.environment] == ["open", "hidden"]
    plain = make(environment=(EnvironmentVariable("A", "open"),))
    assert plain.without_secrets() is plain
