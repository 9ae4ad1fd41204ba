"""Limits of processes, by Docker's names."""

from __future__ import annotations

import re
import resource

import pytest
from docker.types import Ulimit as DockerUlimit

from bursar.core.errors import InvalidText
from bursar.core.ulimits import NUMBERS, Ulimit, beyond, parse_ulimit, parse_ulimits, ulimits_problem


def test_texts_are_read_as_docker_does() -> None:
    assert parse_ulimit("nofile=1024:4096") == Ulimit("nofile", 1024, 4096)
    assert parse_ulimit("nproc=100") == Ulimit("nproc", 100, 100)
    assert parse_ulimit("memlock=-1") == parse_ulimit("memlock=unlimited:-1") == Ulimit("memlock", -1, -1)
    assert parse_ulimit("stack=8MiB:-1") == Ulimit("stack", 8 << 20, -1)
    assert [str(one) for one in parse_ulimits(["nofile=1:2", "core=0"])] == ["nofile=1:2", "core=0"]
    for name in NUMBERS:
        assert DockerUlimit(name=name, soft=1, hard=1)["Name"] == name


def test_numbers_are_those_of_linux() -> None:
    for name, number in NUMBERS.items():
        assert number == getattr(resource, f"RLIMIT_{name.upper()}", number)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nofile", "'nofile' is not understood"),
        ("files=3", "there are cpu, fsize"),
        ("nofile=", "'' is not a number"),
        ("nofile=1k", "'1k' is not a number"),
        ("nofile=-2", "'-2' is not a number"),
        ("nofile=5:4", "soft limit 5 is higher than the hard one 4"),
        ("nofile=-1:4", "soft limit -1 is higher"),
        ("stack=some", "some"),
        (f"cpu={2**63}", "is not a number of 0 or more"),
    ],
)
def test_mistakes_are_explained(text: str, why: str) -> None:
    with pytest.raises(InvalidText, match=re.escape(why)):
        parse_ulimit(text)


def test_what_a_peer_says_is_checked_too() -> None:
    assert ulimits_problem((Ulimit("nofile", 1, 2), Ulimit("core", 0, 0))) is None
    for wrong in (Ulimit("none", 1, 1), Ulimit("nofile", 2, 1), Ulimit("nofile", -5, 1)):
        assert ulimits_problem((wrong,))
    assert ulimits_problem((Ulimit("core", 0, 0), Ulimit("core", 1, 1))) == ("ulimits", "a limit is named twice")
    with pytest.raises(InvalidText, match="twice"):
        parse_ulimits(("core=0", "core=1"))


def test_the_first_that_is_higher_than_what_is_allowed_is_found() -> None:
    most = parse_ulimits(("rtprio=0", "nofile=100", "core=-1"))
    assert beyond(parse_ulimits(("nofile=50:100", "core=-1", "nproc=-1", "rtprio=0")), most) is None
    assert beyond(parse_ulimits(("core=1", "nofile=50:101")), most) == (
        Ulimit("nofile", 50, 101),
        Ulimit("nofile", 100, 100),
    )
    assert beyond(parse_ulimits(("nofile=1:-1",)), most) is not None
