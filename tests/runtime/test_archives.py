"""Unpacking what nobody vouches for: everything stays below the directory."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from bursar.runtime.archives import ArchiveRefused, pack, unpack


def archive(*entries: tuple[str, bytes, str]) -> io.BytesIO:
    """A tar of (name, type, content or link target)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, text in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o755
            if kind == tarfile.REGTYPE:
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
            else:
                info.linkname = text
                tar.addfile(info)
    buffer.seek(0)
    return buffer


FILE, LINK, HARD, DIRECTORY = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize(
    "entries",
    [
        [("../out", FILE, "x")],
        [("a/../../out", FILE, "x")],
        [("/tmp/bursar-out", FILE, "x")],
        [("link", LINK, "/etc")],
        [("link", LINK, "../..")],
        [("d", DIRECTORY, ""), ("link", LINK, "d"), ("link/out", FILE, "x")],
        [("link", HARD, "../secret")],
        [("link", HARD, "/etc/passwd")],
        [("s", LINK, "inside"), ("h", HARD, "s")],
        [("device", tarfile.CHRTYPE, "")],
        [("pipe", tarfile.FIFOTYPE, "")],
        # Chains of links, each of which is inside by its letters.
        [("a", DIRECTORY, ""), ("a/b", LINK, ".."), ("a/b/c", LINK, ".."), ("a/b/c/out", FILE, "x")],
    ],
)
@pytest.mark.parametrize("rename", ["", "new"])
def test_what_leads_out_is_refused(tmp_path: Path, entries: list[tuple[str, bytes, str]], rename: str) -> None:
    (tmp_path / "secret").write_text("secret")
    inside = tmp_path / "x" / "inside"
    inside.mkdir(parents=True)
    with pytest.raises(ArchiveRefused):
        unpack(archive(*entries), inside, rename)
    assert {path.name for path in tmp_path.iterdir()} == {"secret", "x"} and not Path("/tmp/bursar-out").exists()
    assert (tmp_path / "secret").read_text() == "secret" and (tmp_path / "secret").stat().st_nlink == 1
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["inside"]


def test_nothing_is_written_through_a_link_that_is_there_already(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path / "outside")
    (tmp_path / "in/file").symlink_to(tmp_path / "outside/file")
    with pytest.raises(ArchiveRefused, match="through the symbolic link 'link'"):
        unpack(archive(("link/file", FILE, "x")), tmp_path / "in")
    unpack(archive(("file", FILE, "x")), tmp_path / "in")
    assert (tmp_path / "in/file").read_text() == "x" and not (tmp_path / "in/file").is_symlink()
    assert not list((tmp_path / "outside").iterdir())


def test_there_and_back(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/file").write_text("text")
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o4755)
    (source / "link").symlink_to("sub/file")
    os.link(source / "sub/file", source / "hard")
    buffer = io.BytesIO()
    pack(source, buffer)
    for rename, name in (("", "source"), ("other", "other")):
        buffer.seek(0)
        into = tmp_path / f"into-{name}"
        into.mkdir()
        assert unpack(buffer, into, rename) == 6
        assert (into / name / "sub/file").read_text() == (into / name / "hard").read_text() == "text"
        assert (into / name / "link").readlink() == Path("sub/file")
        assert (into / name / "run").stat().st_mode & 0o7777 == 0o755, "no set-id bit"


def test_two_things_cannot_have_one_new_name(tmp_path: Path) -> None:
    with pytest.raises(ArchiveRefused, match="'b' beside 'a'"):
        unpack(archive(("a", FILE, "x"), ("b", FILE, "y")), tmp_path, "new")


def test_garbage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveRefused):
        unpack(io.BytesIO(b"not an archive" * 100), tmp_path)
    with pytest.raises(ArchiveRefused):
        whole = archive(("a", FILE, "x" * 5000)).getvalue()
        unpack(io.BytesIO(whole[:2000]), tmp_path)
