"""Only what the agent allows is mounted, whatever a path is made to look like."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bursar.agent.containers.runtime import LaunchFailed, Mount
from bursar.agent.containers.volumes import VolumeRoot, VolumeRules, parse_volume_roots
from bursar.core.errors import InvalidText
from bursar.core.surroundings import Volume, VolumeKind, VolumeMode
from bursar.core.tasks import StatusReason

RO, RW, RW_DELETE = VolumeMode
HOST, NAMED, FOLDER = VolumeKind.HOST_PATH, VolumeKind.NAMED, VolumeKind.SHARED_FOLDER


@pytest.fixture
def rules(tmp_path: Path) -> VolumeRules:
    """`data` is read only, `scratch` below it may be written to; `outside` is nobody's; `folders` are shared."""
    for name in ("data/set", "data/scratch", "outside/secret", "folders/team"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data/out").symlink_to(tmp_path / "outside")
    (tmp_path / "data/in").symlink_to(tmp_path / "data/set")
    (tmp_path / "folders/out").symlink_to(tmp_path / "outside")
    roots = (VolumeRoot(tmp_path / "data", RO), VolumeRoot(tmp_path / "data/scratch", RW))
    return VolumeRules(tmp_path / "volumes", roots, VolumeRoot(tmp_path / "folders", RW_DELETE))


def host(path: Path, mode: VolumeMode = RO) -> Volume:
    return Volume(HOST, os.fspath(path), "/in", mode)


def refusal(rules: VolumeRules, volume: Volume) -> str:
    with pytest.raises(LaunchFailed) as refused:
        rules.mounts([volume], "ml")
    assert refused.value.reason is StatusReason.VOLUME_REFUSED
    return refused.value.message


def test_what_is_below_a_root_is_mounted(rules: VolumeRules, tmp_path: Path) -> None:
    mounts = rules.mounts([host(tmp_path / "data/set"), host(tmp_path / "data/in"), host(tmp_path / "data")], "ml")
    assert mounts == (
        Mount(f"{tmp_path}/data/set", "/in", True),
        Mount(f"{tmp_path}/data/set", "/in", True),
        Mount(f"{tmp_path}/data", "/in", True),
    )
    (mount,) = rules.mounts([host(tmp_path / "data/scratch", RW)], "ml")
    assert not mount.read_only


def test_what_leads_out_is_refused(rules: VolumeRules, tmp_path: Path) -> None:
    for path in ("data/out", "data/out/secret", "data/set/../../outside", "outside", "", "data2"):
        (tmp_path / "data2").mkdir(exist_ok=True)
        assert "is not below the roots" in refusal(rules, host(tmp_path / path)), path
    assert str(tmp_path / "outside/secret") in refusal(rules, host(tmp_path / "data/out/secret")), (
        "where it leads is said"
    )
    assert "is not below the directory of shared folders" in refusal(rules, Volume(FOLDER, "out"))


def test_more_than_the_root_allows_is_refused(rules: VolumeRules, tmp_path: Path) -> None:
    assert "allowed ro at most" in refusal(rules, host(tmp_path / "data/set", RW))
    assert "allowed rw at most" in refusal(rules, host(tmp_path / "data/scratch", RW_DELETE))


def test_what_is_not_there_or_not_allowed_at_all_is_refused(rules: VolumeRules, tmp_path: Path) -> None:
    assert "No such file" in refusal(rules, host(tmp_path / "data/none"))
    assert "No such file" in refusal(rules, Volume(FOLDER, "none"))
    (tmp_path / "data/loop").symlink_to(tmp_path / "data/loop")
    assert "symbolic links" in refusal(rules, host(tmp_path / "data/loop"))
    closed = VolumeRules(tmp_path / "volumes")
    assert "--volume-roots" in refusal(closed, host(tmp_path / "data"))
    assert "--shared-folders" in refusal(closed, Volume(FOLDER, "team"))


def test_shared_folders_are_mounted_under_one_root(rules: VolumeRules, tmp_path: Path) -> None:
    (mount,) = rules.mounts([Volume(FOLDER, "team", "", RW_DELETE)], "ml")
    assert mount == Mount(f"{tmp_path}/folders/team", "/mnt/bursar/folders/team", False)


def test_named_volumes_are_made_once_and_apart_for_each_role(rules: VolumeRules) -> None:
    sources = [
        rules.mounts([Volume(NAMED, "v", "/v", RW)], role)[0].source for role in ("a/b", "a%2Fb", "a", "a/b", "*")
    ]
    assert sources[0] == sources[3]
    assert len(set(sources)) == 4
    for source in sources:
        assert Path(source).is_dir() and Path(source).is_relative_to(rules.named)


@pytest.mark.parametrize("item", ["", "data", "/", "/data:rwx", ":rw", "//"])
def test_roots_that_are_none(item: str) -> None:
    with pytest.raises(InvalidText):
        parse_volume_roots([item])


def test_roots_as_text() -> None:
    assert parse_volume_roots(["/a", "/b:rw", "/c:rw-delete"]) == (
        VolumeRoot(Path("/a"), RO),
        VolumeRoot(Path("/b"), RW),
        VolumeRoot(Path("/c"), RW_DELETE),
    )
