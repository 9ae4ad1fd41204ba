"""The directories of persistent volumes, on a real disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bursar.agent.containers.runtime import LaunchFailed, Mount
from bursar.agent.containers.volumes import VolumeRules
from bursar.agent.kept_volumes import KeptVolumes
from bursar.agent.launch import link_volumes
from bursar.agent.volume_variables import volume_variables
from bursar.core.ids import DeviceUuid
from bursar.core.surroundings import Volume, VolumeKind, VolumeMode
from bursar.core.tasks import StatusReason
from bursar.core.volumes import volume_device

DB, LOG = volume_device("ml/a b", "db", 100), volume_device("ml", "log", 50)
RW = VolumeMode.READ_WRITE


@pytest.fixture
def kept(tmp_path: Path) -> KeptVolumes:
    return KeptVolumes(tmp_path / "persistent")


def test_they_are_made_listed_kept_and_removed(kept: KeptVolumes, tmp_path: Path) -> None:
    assert kept.list() == frozenset()
    assert kept.make([DB, LOG]) == [] and kept.list() == {DB, LOG}
    file = kept.path_of(DB) / "file"
    file.write_text("kept")
    assert kept.make([DB]) == [] and file.read_text() == "kept", "what is there is not made again"
    assert KeptVolumes(tmp_path / "persistent").list() == {DB, LOG}, "another life finds them"
    assert kept.set_aside([DB, DB]) == [] and kept.list() == {LOG}
    kept.empty_trash()
    assert not list((tmp_path / "persistent").rglob("file"))
    assert kept.make([DB]) == [] and list(kept.path_of(DB).iterdir()) == [], "a new one is empty"


def test_what_cannot_be_removed_is_said(kept: KeptVolumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.make([DB])
    (kept.path_of(DB) / "roots").write_text("")
    kept.set_aside([DB])

    def refuse(*_args: object, **_more: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        (stuck,) = kept.empty_trash()
    assert stuck.path.parent == tmp_path / "persistent/removed" and stuck.path.name.endswith("-db")
    assert stuck.failures >= 1 and "Permission denied" in stuck.problem
    assert kept.empty_trash() == [] and not list((tmp_path / "persistent/removed").iterdir()), "the next time it can"


def test_what_was_set_aside_is_not_walked_through(
    kept: KeptVolumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.make([DB, LOG])
    (kept.path_of(DB) / "much").mkdir()
    kept.set_aside([DB])
    looked: list[str] = []
    for name in ("scandir", "listdir"):
        plain = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path=".", plain=plain: looked.append(os.fspath(path)) or plain(path))
    assert kept.list() == {LOG}
    assert looked and not [path for path in looked if "removed" in path], looked


def test_nothing_but_a_name_of_a_volume_is_touched(kept: KeptVolumes, tmp_path: Path) -> None:
    kept.make([LOG])
    (tmp_path / "precious").mkdir()
    for bad in ("volumes/1/../precious", "volumes/1/ml/..", "GPU-1", "volumes/50/../log", "volumes/1/%2E%2E/x"):
        (trouble,) = kept.set_aside([DeviceUuid(bad)])
        assert "is not the name of a volume" in trouble.problem, bad
        (trouble,) = kept.make([DeviceUuid(bad)])
        assert trouble.uuid == bad
    assert (tmp_path / "precious").is_dir() and kept.list() == {LOG}
    (tmp_path / "persistent/somebody/elses/file").mkdir(parents=True)
    (kept.path_of(LOG).parent / "link").symlink_to(tmp_path / "precious")
    assert kept.list() == {LOG}


def test_what_cannot_be_made_is_said(kept: KeptVolumes, tmp_path: Path) -> None:
    (tmp_path / "persistent").write_text("a file is in the way")
    (trouble,) = kept.make([DB])
    assert trouble.uuid == DB and trouble.problem == "Not a directory"
    assert kept.list() == frozenset()


def test_a_task_gets_the_volumes_that_it_was_given_and_no_others(kept: KeptVolumes, tmp_path: Path) -> None:
    rules = VolumeRules(tmp_path / "volumes", kept=kept)
    volume = Volume(VolumeKind.PERSISTENT, "db", "/data", RW)
    for granted, words in (((), "was not given it"), ((LOG,), "was not given it"), ((DB,), "its data is gone")):
        with pytest.raises(LaunchFailed) as refused:
            rules.mounts([volume], "ml", None, granted)
        assert refused.value.reason is StatusReason.VOLUME_REFUSED and words in refused.value.message
    assert kept.list() == frozenset(), "what is lost is not made anew by a launch"
    kept.make([DB])
    other = volume_device("ml", "db", 7)
    with pytest.raises(LaunchFailed, match="several of that id, and which it means cannot be told: db of ml"):
        rules.mounts([volume], "ml", None, (other, DB))
    path = os.fspath(kept.path_of(DB))
    assert rules.mounts([volume], "ml", (os.getuid(), os.getgid()), (DB, LOG)) == (Mount(path, "/data", False),)
    read_only = Volume(VolumeKind.PERSISTENT, "db", "/data")
    assert rules.mounts([read_only], "ml", None, (DB,)) == (Mount(path, "/data", True),)


def test_plain_processes_find_them_in_their_sandbox(tmp_path: Path) -> None:
    data, sandbox = tmp_path / "data", tmp_path / "sandbox"
    data.mkdir()
    sandbox.mkdir()
    mounts = [Mount(os.fspath(data), "/var/lib/db", False)]
    for _ in range(2):
        # Another run of the same task has the same sandbox.
        link_volumes(sandbox, mounts)
        (sandbox / "var/lib/db/file").write_text("kept")
    assert (data / "file").read_text() == "kept"
    (sandbox / "taken").write_text("")
    with pytest.raises(LaunchFailed) as refused:
        link_volumes(sandbox, [Mount(os.fspath(data), "/taken", False)])
    assert refused.value.reason is StatusReason.VOLUME_REFUSED
    volumes = [Volume(VolumeKind.PERSISTENT, "my-db.1", "/var/lib/db", RW)]
    assert volume_variables(volumes, mounts, "process") == {"BURSAR_VOLUME_MY_DB_1": os.fspath(data)}
    assert volume_variables(volumes, mounts, "docker") == {"BURSAR_VOLUME_MY_DB_1": "/var/lib/db"}
