"""Fetching against a real HTTP server that misbehaves to order."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bursar.agent.containers import fetcher as fetching
from bursar.agent.containers.fetcher import Fetcher
from bursar.agent.containers.runtime import LaunchFailed
from bursar.agent.containers.volumes import VolumeRoot
from bursar.core.fetching import Fetch
from bursar.core.tasks import StatusReason

DATA = bytes(range(256)) * 4000
SUM = hashlib.sha256(DATA).hexdigest()


class Server:
    """`/data` gives DATA; others fail in their way."""

    def __init__(self) -> None:
        server = self
        self.asked: Counter[str] = Counter()
        self.go = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None: ...

            def do_GET(self) -> None:
                server.asked[self.path] += 1
                if self.path == "/missing":
                    self.send_error(404)
                elif self.path == "/around":
                    self.send_response(302)
                    self.send_header("Location", "/around")
                    self.end_headers()
                elif self.path == "/to-file":
                    self.send_response(302)
                    self.send_header("Location", "file:///etc/passwd")
                    self.end_headers()
                elif self.path == "/moved":
                    self.send_response(301)
                    self.send_header("Location", "/data")
                    self.end_headers()
                else:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(DATA)))
                    self.end_headers()
                    if self.path == "/short":
                        self.wfile.write(DATA[:1000])
                    elif self.path == "/slow":
                        self.wfile.write(DATA[:1000])
                        self.wfile.flush()
                        while not server.go.wait(0.05):
                            self.wfile.write(b"x")
                    elif self.path == "/silent":
                        server.go.wait(20)
                    else:
                        self.wfile.write(DATA)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.go.set()
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    path = tmp_path / "sandbox"
    path.mkdir()
    return path


async def failure(fetcher: Fetcher, sandbox: Path, *fetches: Fetch, **more: Any) -> str:
    with pytest.raises(LaunchFailed) as caught:
        async with asyncio.timeout(20):
            await fetcher.fetch_all(fetches, sandbox, **more)
    assert caught.value.reason is StatusReason.FETCH_FAILED
    assert fetches[-1].uri in caught.value.message
    return caught.value.message


async def test_files_come_where_they_shall(server: Server, sandbox: Path, tmp_path: Path) -> None:
    fetcher = Fetcher(tmp_path / "cache")
    await fetcher.fetch_all((Fetch(f"{server.url}/data"), Fetch(f"{server.url}/moved", "a/b/run", SUM, True)), sandbox)
    assert (sandbox / "data").read_bytes() == (sandbox / "a/b/run").read_bytes() == DATA
    assert (sandbox / "data").stat().st_mode & 0o777 == 0o644
    assert (sandbox / "a/b/run").stat().st_mode & 0o777 == 0o755
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [SUM], "only what has a checksum is kept"


async def test_a_file_is_fetched_once_for_all_who_want_it(server: Server, tmp_path: Path) -> None:
    fetcher = Fetcher(tmp_path / "cache")
    sandboxes = [tmp_path / f"s{n}" for n in range(8)]
    for path in sandboxes:
        path.mkdir()
    await asyncio.gather(*(fetcher.fetch_all((Fetch(f"{server.url}/data", "", SUM),), path) for path in sandboxes))
    assert server.asked["/data"] == 1 and all((path / "data").read_bytes() == DATA for path in sandboxes)
    (sandboxes[0] / "data").write_bytes(b"a task may write to its own")
    again = tmp_path / "again"
    again.mkdir()
    await Fetcher(tmp_path / "cache").fetch_all((Fetch(f"{server.url}/data", "", SUM),), again)
    assert server.asked["/data"] == 1 and (again / "data").read_bytes() == DATA
    assert not fetcher._locks


async def test_what_has_gone_bad_in_the_cache_is_fetched_anew(server: Server, sandbox: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / SUM).write_bytes(b"bad")
    (tmp_path / "cache" / "x.part").write_bytes(b"left by an agent that died")
    await Fetcher(tmp_path / "cache").fetch_all((Fetch(f"{server.url}/data", "", SUM),), sandbox)
    assert (sandbox / "data").read_bytes() == DATA and (tmp_path / "cache" / SUM).read_bytes() == DATA
    assert len(list((tmp_path / "cache").iterdir())) == 1


async def test_the_cache_is_bounded_and_the_least_used_goes(sandbox: Path, tmp_path: Path, server: Server) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for number in range(3):
        (cache / f"{number:064x}").write_bytes(b"x" * 600_000)
        os.utime(cache / f"{number:064x}", (1000 + number, 1000 + number))
    await Fetcher(cache, cache_bytes=1_700_000).fetch_all((Fetch(f"{server.url}/data", "", SUM),), sandbox)
    assert {path.name for path in cache.iterdir()} == {SUM, f"{2:064x}"}
    await Fetcher(cache, cache_bytes=1000).fetch_all((Fetch(f"{server.url}/data", "other", SUM),), sandbox)
    assert not list(cache.iterdir()) and (sandbox / "other").read_bytes() == DATA, "larger than the cache: not kept"
    await Fetcher(cache, cache_bytes=0).fetch_all((Fetch(f"{server.url}/data", "third", SUM),), sandbox)
    assert not list(cache.iterdir()) and (sandbox / "third").read_bytes() == DATA


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/missing", "the server answered 404"),
        ("/short", "(?i)incomplete|more expected|broken"),
        ("/around", "(?i)redirect"),
        ("/to-file", "(?i)file|scheme|understood"),
    ],
)
async def test_what_fails_says_why_and_leaves_nothing(
    server: Server, sandbox: Path, tmp_path: Path, path: str, words: str
) -> None:
    fetcher = Fetcher(tmp_path / "cache")
    for checksum in ("", SUM):
        message = await failure(fetcher, sandbox, Fetch(f"{server.url}{path}", "x", checksum))
        assert __import__("re").search(words, message), message
        assert not list(sandbox.iterdir()) and not any((tmp_path / "cache").glob("*"))


async def test_a_wrong_checksum_and_a_closed_port(server: Server, sandbox: Path, tmp_path: Path) -> None:
    fetcher = Fetcher(tmp_path / "cache")
    message = await failure(fetcher, sandbox, Fetch(f"{server.url}/data", "", "0" * 64))
    assert f"its checksum is {SUM}, not {'0' * 64}" in message and not list((tmp_path / "cache").iterdir())
    assert "refused" in await failure(fetcher, sandbox, Fetch("http://127.0.0.1:9/x"))


async def test_a_silent_server_and_an_endless_one_are_given_up(
    server: Server, sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "SILENCE_S", 0.3)
    monkeypatch.setattr(fetching, "WHOLE_S", 0.5)
    fetcher = Fetcher(tmp_path / "cache")
    assert "timed out" in await failure(fetcher, sandbox, Fetch(f"{server.url}/silent"))
    assert "not come within" in await failure(fetcher, sandbox, Fetch(f"{server.url}/slow"))


async def test_a_fetch_that_nobody_wants_any_more_is_given_up(server: Server, sandbox: Path, tmp_path: Path) -> None:
    fetcher = Fetcher(tmp_path / "cache")
    killed = threading.Event()
    asyncio.get_running_loop().call_later(0.2, killed.set)
    message = await failure(fetcher, sandbox, Fetch(f"{server.url}/slow"), unwanted=killed.is_set)
    assert "nobody wants it" in message
    asyncio.get_running_loop().call_later(0.2, fetcher.close)
    assert "nobody wants it" in await failure(fetcher, sandbox, Fetch(f"{server.url}/slow", "", SUM))


async def test_a_disk_that_is_nearly_full_is_not_filled(
    server: Server, sandbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=fetching.SPARE_BYTES + 1000))
    assert "disk has only" in await failure(Fetcher(tmp_path / "cache"), sandbox, Fetch(f"{server.url}/data"))
    assert not list(sandbox.iterdir())


async def test_files_of_the_machine_by_the_agents_rules(sandbox: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "set one").write_bytes(DATA)
    (data / "out").symlink_to("/etc/hostname")
    (data / "in").symlink_to("set one")
    fetcher = Fetcher(tmp_path / "cache", (VolumeRoot(data),))
    await fetcher.fetch_all((Fetch(f"file://{data}/set%20one", "", SUM), Fetch(f"file://{data}/in")), sandbox)
    assert (sandbox / "set one").read_bytes() == (sandbox / "in").read_bytes() == DATA
    for uri, words in (
        ("file:///etc/hostname", "is not below the roots"),
        (f"file://{data}/out", "is not below the roots"),
        (f"file://{data}/../data/%2e%2e/x", "No such file"),
        (f"file://{data}/none", "No such file"),
        (f"file://{data}", "is not a file"),
    ):
        assert words in await failure(fetcher, sandbox, Fetch(uri, "t"))
    assert "gives no file" in await failure(Fetcher(tmp_path / "cache"), sandbox, Fetch(f"file://{data}/in", "t"))
    assert "its checksum is" in await failure(fetcher, sandbox, Fetch(f"file://{data}/in", "t", "0" * 64))
