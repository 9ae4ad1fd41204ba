"""Fetches pip's wheel from the configured package index, for a Python without ensurepip.

`python fetch_pip.py DIRECTORY` prints the path of the wheel. Standard library alone, because nothing else is there yet.
Indexes are configured exactly as for pip: `PIP_…` variables, then pip's files; both forms of the simple index
(PEP 503 pages, PEP 691 JSON), find-links directories and pages, `file:` addresses.
"""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import re
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

#: pip's own default, for a machine where nothing is configured.
DEFAULT_INDEX = "https://pypi.org/simple"
ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
WHEEL = re.compile(r"^pip-(\d+(?:\.\d+)*)-py(?:2\.py)?3-none-any\.whl$")
TIMEOUT_S = 30


class Wheel(NamedTuple):
    """One wheel that an index offers; the newest compares highest."""

    version: tuple[int, ...]
    url: str
    #: Of the file, in hex; empty where the index does not say.
    sha256: str


def configuration() -> dict[str, str]:
    """What pip would be told: its files in rising precedence, then its variables."""
    home = Path(os.path.expanduser("~"))
    system = [Path(folder) / "pip/pip.conf" for folder in os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")]
    user = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip/pip.conf"
    files = [*system, Path("/etc/pip.conf"), home / ".pip/pip.conf", user, Path(sys.prefix) / "pip.conf"]
    named = os.environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        files = []
    elif named:
        files.append(Path(named))
    options: dict[str, str] = {}
    for section in ("global", "download", "install"):
        for file in files:
            parser = configparser.RawConfigParser()
            try:
                parser.read(file, encoding="utf-8")
            except (OSError, configparser.Error, UnicodeDecodeError):
                continue
            if parser.has_section(section):
                options.update({key.replace("_", "-"): value for key, value in parser.items(section) if value})
    for key, value in os.environ.items():
        if key.startswith("PIP_") and value:
            options[key[4:].lower().replace("_", "-")] = value
    return options


def opener(options: dict[str, str]) -> urllib.request.OpenerDirector:
    """A client with the configured certificates and proxy."""
    context = ssl.create_default_context(cafile=options.get("cert") or None)
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
    if proxy := options.get("proxy"):
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    return urllib.request.build_opener(*handlers)


def read(client: urllib.request.OpenerDirector, url: str) -> tuple[bytes, str, str]:
    """The body, the type and the final address of what lies at a URL; a user and password in it are sent as such."""
    parts = urllib.parse.urlsplit(url)
    headers = {"Accept": ACCEPT, "User-Agent": "bursar-setup"}
    if parts.username:
        secret = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + b64encode(secret.encode()).decode()
        url = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    with client.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
        return answer.read(), answer.headers.get_content_type(), answer.geturl()


class Links(HTMLParser):
    """The links of a PEP 503 page: address, required Python, whether yanked."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect each anchor."""
        values = dict(attrs)
        if tag == "a" and values.get("href"):
            self.found.append((values["href"] or "", values.get("data-requires-python") or "", "data-yanked" in values))


def runs_here(requires: str) -> bool:
    """Whether this Python satisfies a specifier such as `>=3.9,!=3.9.1`; unknown operators do not count."""
    here = sys.version_info[:3]
    for operator, text in re.findall(r"(>=|<=|<|>|!=)\s*(\d+(?:\.\d+)*)", requires):
        bound = tuple(int(part) for part in text.split("."))
        ours = here[: len(bound)]
        holds = {">=": ours >= bound, "<=": ours <= bound, "<": ours < bound, ">": ours > bound, "!=": here != bound}
        if not holds[operator]:
            return False
    return True


def wheels_of_page(body: bytes, kind: str, base: str) -> Iterator[Wheel]:
    """The usable pip wheels that a page of an index lists."""
    if kind.endswith("+json"):
        for file in json.loads(body)["files"]:
            match = WHEEL.match(file["filename"])
            if match and not file.get("yanked") and runs_here(file.get("requires-python") or ""):
                url = urllib.parse.urljoin(base, file["url"])
                yield Wheel(numbers(match), url, (file.get("hashes") or {}).get("sha256", ""))
        return
    links = Links()
    links.feed(body.decode("utf-8", "replace"))
    for href, requires, yanked in links.found:
        url, fragment = urllib.parse.urldefrag(urllib.parse.urljoin(base, href))
        match = WHEEL.match(urllib.parse.unquote(url.rpartition("/")[2]))
        if match and not yanked and runs_here(requires):
            yield Wheel(numbers(match), url, fragment.removeprefix("sha256=") if "sha256=" in fragment else "")


def numbers(match: re.Match[str]) -> tuple[int, ...]:
    """The version of a wheel's name as numbers."""
    return tuple(int(part) for part in match[1].split("."))


def wheels_of_index(client: urllib.request.OpenerDirector, index: str) -> Iterator[Wheel]:
    """What a simple index has of pip."""
    url = index.rstrip("/") + "/pip/"
    if url.startswith("file:"):
        url += "index.html"
    yield from wheels_of_page(*read(client, url))


def wheels_of_links(client: urllib.request.OpenerDirector, place: str) -> Iterator[Wheel]:
    """What a find-links place has of pip: a directory or a page."""
    local = Path(urllib.request.url2pathname(urllib.parse.urlsplit(place).path) if place.startswith("file:") else place)
    if local.is_dir():
        for file in local.iterdir():
            if match := WHEEL.match(file.name):
                yield Wheel(numbers(match), file.resolve().as_uri(), "")
    elif "://" in place:
        yield from wheels_of_page(*read(client, place))


def fetch(folder: Path) -> Path:
    """Download the newest pip wheel that runs here into `folder`.

    Raises:
        SystemExit: with one line, if no configured place has one.

    """
    options = configuration()
    client = opener(options)
    places = [(wheels_of_links, place) for place in options.get("find-links", "").split()]
    if options.get("no-index", "").lower() not in ("1", "true", "yes", "on"):
        indexes = [options.get("index-url") or DEFAULT_INDEX, *options.get("extra-index-url", "").split()]
        places += [(wheels_of_index, index) for index in indexes]
    found: list[Wheel] = []
    refused: list[str] = []
    for look, place in places:
        try:
            found += look(client, place)
        except (OSError, ValueError, KeyError, TypeError) as problem:
            refused.append(f"{redacted(place)}: {problem}")
    for wheel in sorted(found, reverse=True):
        try:
            body = read(client, wheel.url)[0]
        except (OSError, ValueError) as problem:
            refused.append(f"{redacted(wheel.url)}: {problem}")
            continue
        if wheel.sha256 and hashlib.sha256(body).hexdigest() != wheel.sha256:
            refused.append(f"{redacted(wheel.url)}: its hash is not the one the index names")
            continue
        target = folder / urllib.parse.unquote(wheel.url.rpartition("/")[2])
        target.write_bytes(body)
        return target
    raise SystemExit(
        "pip could not be fetched from the configured index (" + ("; ".join(refused) or "it has none") + ")"
    )


def redacted(url: str) -> str:
    """The address without its user and password."""
    return re.sub(r"//[^/@]*@", "//", url)


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1])))
