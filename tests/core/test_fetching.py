"""What a fetch may say, whatever the agent."""

from __future__ import annotations

import pytest

from bursar.core.errors import InvalidText
from bursar.core.fetching import Fetch, fetches_problem, parse_fetch

SUM = "0" * 64


@pytest.mark.parametrize(
    ("text", "fetch", "path"),
    [
        ("https://h/a/b.tar", Fetch("https://h/a/b.tar"), "b.tar"),
        ("x/y=https://h:8080/a?q=1", Fetch("https://h:8080/a?q=1", "x/y"), "x/y"),
        (f"http://h/a#sha256={SUM}", Fetch("http://h/a", "", SUM), "a"),
        (f"http://h/a#sha256={SUM},executable", Fetch("http://h/a", "", SUM, True), "a"),
        ("file:///data/set%20one", Fetch("file:///data/set%20one"), "set one"),
    ],
)
def test_what_is_read(text: str, fetch: Fetch, path: str) -> None:
    assert parse_fetch(text) == fetch and parse_fetch(text).path == path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "does not begin with one of"),
        ("/etc/passwd", "does not begin with one of"),
        ("ftp://h/a", "does not begin with one of"),
        ("http:///a", "names no host"),
        ("file://host/a", "file:///absolute"),
        ("http://h/", "does not end with a name"),
        ("=http://h/a", "no path stands before"),
        ("../x=http://h/a", "not one below the sandbox"),
        ("/x=http://h/a", "not one below the sandbox"),
        ("a//b=http://h/a", "not one below the sandbox"),
        ("http://h/..", "not one below the sandbox"),
        ("http://h/%2e%2e", "not one below the sandbox"),
        ("http://h/a%2f..%2fb", "does not|sandbox|b"),
        ("stdout=http://h/a", "the agent's own file"),
        ("bursar-devices.json=http://h/a", "the agent's own file"),
        ("http://user:word@h/a", "everybody who may look"),
        ("http://h/a b", "no spaces"),
        ("http://h/a\n", "no spaces"),
        ("http://h/a#sha256=12", "64 hexadecimal"),
        ("http://h/a#md5=12", "unknown"),
        ("http://[h/a", "is not a URI"),
        ("http://h/" + "a" * 9000, "longer than"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    if text == "http://h/a%2f..%2fb":
        assert parse_fetch(text).path == "b", "only the last part counts"
        return
    with pytest.raises(InvalidText, match=words):
        parse_fetch(text)


def test_two_fetches_must_not_meet() -> None:
    one = Fetch("http://h/a", "d/x")
    assert fetches_problem((one, Fetch("http://h/b", "d/y"))) is None
    for other in ("d/x", "d/x/z", "d"):
        problem = fetches_problem((one, Fetch("http://h/b", other)))
        assert problem is not None and problem[0] == "fetch[1]"
    assert fetches_problem(tuple(Fetch("http://h/b", f"f{n}") for n in range(65))) is not None
