"""Databases to keep records in: a file of SQLite's, and a PostgreSQL server of our own where its programs are installed."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def _programs() -> Path | None:
    """Where PostgreSQL's programs are, the newest first."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found += [Path(path).parent for path in [shutil.which("initdb")] if path]
    return next((path for path in found if (path / "initdb").exists() and (path / "postgres").exists()), None)


@pytest.fixture(scope="session")
def postgresql(require: Callable[[bool, str], None]) -> Iterator[str]:
    """A server on a socket in a directory of its own; yields a URL without a database. It refuses root, so root runs it as another."""
    programs = _programs()
    require(programs is not None, "no PostgreSQL programs (Debian: postgresql)")
    require(importlib.util.find_spec("psycopg") is not None, "no psycopg (pip install 'psycopg[binary]')")
    assert programs is not None
    # A short path: a socket's name is limited.
    directory = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    prefix: list[str] = []
    if os.geteuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
        require(shutil.which("setpriv") is not None, "no setpriv to run PostgreSQL as an unprivileged user")
        prefix = ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]
        shutil.chown(directory, user)
    try:
        command = [
            str(programs / "initdb"),
            "-D",
            str(directory / "data"),
            "-U",
            "bursar",
            "--auth=trust",
            "-N",
            "-E",
            "UTF8",
        ]
        subprocess.run([*prefix, *command], check=True, capture_output=True, cwd=directory)
        arguments = ["-D", str(directory / "data"), "-k", str(directory), "-c", "listen_addresses="]
        with (directory.parent / f"{directory.name}.log").open("wb") as log:
            server = subprocess.Popen(
                [*prefix, str(programs / "postgres"), *arguments], stdout=log, stderr=log, cwd=directory
            )
        try:
            _wait_for(server, directory)
            yield f"postgresql+psycopg://bursar@/{{name}}?host={directory}"
        finally:
            server.terminate()
            server.wait(20)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        Path(f"{directory}.log").unlink(missing_ok=True)


def _wait_for(server: subprocess.Popen[bytes], directory: Path) -> None:
    import time

    import psycopg

    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(f"host={directory} user=bursar dbname=postgres").close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None and time.monotonic() < deadline, Path(f"{directory}.log").read_text()
            time.sleep(0.05)


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: Any, tmp_path: Path) -> Callable[[], str]:
    """`new_url()`: the URL of an empty database; every test that takes it runs on every kind of database."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path / uuid.uuid4().hex}.sqlite"
    server = request.getfixturevalue("postgresql")

    def create() -> str:
        import psycopg

        name = f"d{uuid.uuid4().hex}"
        base = server.format(name="postgres").replace("+psycopg", "")
        with psycopg.connect(base, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return str(server.format(name=name))

    return create
