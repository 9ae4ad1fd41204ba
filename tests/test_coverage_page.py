"""`docs/coverage.md` claims nothing without a test, and leaves nothing out."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: How many rows there are of each group, numbered from 1.
GROUPS = {
    "B": 20,
    "F108": 13,
    "F49": 16,
    "GPU": 22,
    "TSK": 15,
    "SU": 8,
    "HC": 5,
    "AR": 9,
    "CON": 7,
    "VOL": 8,
    "NET": 5,
}
PAINS = (*range(1, 13), *range(19, 26))
ROW = re.compile(
    r"^\| (?P<id>[A-Z0-9]+-\d+|pain \d+) \| (?P<mark>.*?) \| (?P<text>.*?) \|(?P<tests>.*)\|$", re.MULTILINE
)
ROWS = [found.groupdict() for found in ROW.finditer((ROOT / "docs" / "coverage.md").read_text(encoding="utf-8"))]


@cache
def names_in(path: str) -> frozenset[str]:
    return frozenset(
        re.findall(r"^ *(?:async )?def (test_\w+)\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    )


def test_every_behaviour_has_one_row() -> None:
    width = {"B": 2, "F108": 2, "F49": 2}
    wanted = [f"{group}-{n:0{width.get(group, 1)}}" for group, last in GROUPS.items() for n in range(1, last + 1)]
    wanted += [f"pain {n}" for n in PAINS]
    assert sorted(row["id"] for row in ROWS) == sorted(wanted)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_what_is_claimed_has_a_test_that_exists(row: dict[str, str]) -> None:
    assert row["mark"] in {"=", "≠", "½", "–"}
    assert row["text"]
    named = re.findall(r"`([^`]+)`", row["tests"])
    assert named or row["mark"] == "–", "claimed without a test"
    for test in named:
        path, _, name = test.partition("::")
        assert (ROOT / path).is_file(), path
        assert name in names_in(path), test
