"""What counts as used in a sandbox."""

from __future__ import annotations

import os
from pathlib import Path

from bursar.agent.scratch import bytes_below

MIB = 1 << 20


def test_what_is_occupied_counts_once(tmp_path: Path) -> None:
    box, outside = tmp_path / "box", tmp_path / "outside"
    (box / "sub").mkdir(parents=True)
    outside.write_bytes(b"x" * 8 * MIB)
    (box / "link").symlink_to(outside)
    (box / "loop").symlink_to(box)
    assert bytes_below(box, 1 << 40) < MIB, "nothing through a link"
    (box / "sub/file").write_bytes(b"x" * 2 * MIB)
    os.link(box / "sub/file", box / "again")
    with (box / "sparse").open("wb") as file:
        file.truncate(100 * MIB)
    assert 2 * MIB <= bytes_below(box, 1 << 40) < 3 * MIB
    assert bytes_below(tmp_path / "none", 0) == 0


def test_a_look_stops_once_it_is_enough(tmp_path: Path) -> None:
    deep = tmp_path
    for number in range(5):
        deep = deep / str(number)
        deep.mkdir()
        (deep / "file").write_bytes(b"x" * MIB)
    assert 10 < bytes_below(tmp_path, 10) < 3 * MIB < bytes_below(tmp_path, 1 << 40)
