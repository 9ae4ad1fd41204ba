"""Names of roles and what they cover (mesos.md §3.1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar.core.roles import ancestors, covers, is_strict_subrole, role_problem


@pytest.mark.parametrize(
    "role",
    ["*", "a", "a/b", "a/b/c", "A", "ü", "a:b", "a@b", "a.b", "...", "a-", "a*", "a" * 500, "/".join("abcdefgh")],
)
def test_valid(role: str) -> None:
    assert role_problem(role) is None


@pytest.mark.parametrize(
    "role",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/.",
        "a/../b",
        "a/*",
        "*/a",
        "-a",
        "a/-b",
        "a b",
        "a\tb",
        "a\nb",
        "a\x7f",
        "a\x0b",
    ],
)
def test_invalid(role: str) -> None:
    assert role_problem(role)


paths = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=4)


@given(paths, paths)
def test_a_role_covers_itself_and_its_descendants(holder: list[str], role: list[str]) -> None:
    one, other = "/".join(holder), "/".join(role)
    assert covers(one, other) == (role[: len(holder)] == holder)
    assert is_strict_subrole(other, one) == (covers(one, other) and one != other)
    assert (one in ancestors(other)) == is_strict_subrole(other, one)


def test_ancestors_are_nearest_first() -> None:
    assert ancestors("a/b/c") == ["a/b", "a"] and ancestors("a") == []
