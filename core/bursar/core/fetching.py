"""Files that an agent fetches into a task's sandbox before it starts; mirrors `Fetch` of `bursar/v1/containers.proto`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from bursar.core.errors import InvalidText

MAX_FETCHES = 64
MAX_URI_BYTES = 8192
SCHEMES = ("http", "https", "file")
#: Of a sandbox, and not for anybody to write.
_OURS = frozenset({"stdout", "stderr", "bursar-devices.json"})
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HOW = "write [PATH=]URI[#sha256=HEX], such as weights.pt=https://example.org/v1/weights.pt#sha256=…"


@dataclass(frozen=True, slots=True)
class Fetch:
    """One file; mirrors `bursar.v1.Fetch`."""

    uri: str
    #: Path in the sandbox; empty: the last part of the uri's path.
    target: str = ""
    #: Hexadecimal, in lower case; empty: whatever comes is taken, and not kept for others.
    sha256: str = ""
    executable: bool = False

    @property
    def path(self) -> str:
        """Where it comes to, relative to the sandbox."""
        return self.target or unquote(urlsplit(self.uri).path).rpartition("/")[2]


def parse_fetch(text: str) -> Fetch:
    """Read `[PATH=]URI[#sha256=HEX]`, or `[PATH=]URI#executable` and both with a comma. Raises InvalidText."""
    head, scheme, rest = text.partition("://")
    target, equals, scheme_name = head.rpartition("=")
    uri, _, fragment = f"{scheme_name}{scheme}{rest}".partition("#")
    sha256, executable = "", False
    for word in filter(None, fragment.split(",")):
        if word.startswith("sha256="):
            sha256 = word.removeprefix("sha256=").lower()
        elif word == "executable":
            executable = True
        else:
            raise InvalidText(f"fetch {text!r}: {word!r} after the # is unknown", _HOW)
    if equals and not target:
        raise InvalidText(f"fetch {text!r}: no path stands before the =", _HOW)
    fetch = Fetch(uri, target, sha256, executable)
    if problem := fetch_problem(fetch):
        raise InvalidText(f"fetch {text!r}: {problem}", _HOW)
    return fetch


def fetch_problem(fetch: Fetch) -> str:
    """Say what is wrong with a fetch whatever the agent's rules, or nothing."""
    if any(character.isspace() or not character.isprintable() for character in fetch.uri):
        return "a URI holds no spaces and no control characters; write %20 for a space"
    if len(fetch.uri.encode("utf-8", "surrogatepass")) > MAX_URI_BYTES:
        return f"the URI is longer than {MAX_URI_BYTES} bytes"
    try:
        parts = urlsplit(fetch.uri)
        host, secret = parts.hostname, parts.password or parts.username
    except ValueError as error:
        return f"{fetch.uri!r} is not a URI: {error}"
    if parts.scheme not in SCHEMES:
        return f"the URI does not begin with one of {', '.join(f'{name}://' for name in SCHEMES)}"
    if secret:
        return "the URI holds a name or password, which everybody who may look at the task could read"
    if parts.scheme == "file" and (host or not parts.path.startswith("/")):
        return "a file on the agent's machine is written file:///absolute/path"
    if parts.scheme != "file" and not host:
        return "the URI names no host"
    if fetch.sha256 and not _SHA256.fullmatch(fetch.sha256):
        return "sha256 is 64 hexadecimal digits"
    return _path_problem(fetch.path)


def _path_problem(path: str) -> str:
    if not path:
        return "the URI's path does not end with a name: say where to, as in PATH=URI"
    if path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
        return f"the path {path!r} is not one below the sandbox, written plainly"
    if any(not character.isprintable() for character in path) or len(path.encode("utf-8", "surrogatepass")) > 1024:
        return f"the path {path!r} holds a control character, or is longer than 1024 bytes"
    if path.split("/")[0] in _OURS:
        return f"{path.split('/')[0]!r} is the agent's own file in a sandbox"
    return ""


def fetches_problem(fetches: Sequence[Fetch]) -> tuple[str, str] | None:
    """Say what is wrong with a task's fetches as (field, problem), or nothing."""
    if len(fetches) > MAX_FETCHES:
        return "fetch", f"{len(fetches)} are more than {MAX_FETCHES}"
    paths: set[str] = set()
    for number, fetch in enumerate(fetches):
        if problem := fetch_problem(fetch):
            return f"fetch[{number}]", problem
        if fetch.path in paths:
            return f"fetch[{number}]", f"another one comes to {fetch.path!r} already"
        if any(path.startswith(f"{fetch.path}/") or fetch.path.startswith(f"{path}/") for path in paths):
            return f"fetch[{number}]", f"{fetch.path!r} is a file for one and a directory for another"
        paths.add(fetch.path)
    return None
