"""Opening a registry: migrations, terms, what SQLite is told, and words for what goes wrong."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from bursar.core.devices import Device, DeviceCondition, DeviceHealth
from bursar.core.errors import BursarError
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.messages.agent import AgentInfo
from bursar.master import records as r
from bursar.master.registry import schema
from bursar.master.registry.store import Registry, sqlite_url
from bursar.master.registry.versions import MIGRATIONS, NEWEST, migrate
from bursar.master.vacant import is_vacancy
from bursar.runtime.stored import from_json


def test_the_migrations_make_exactly_the_schema(new_url: Callable[[], str]) -> None:
    """And a new registry, which is made without them, is what they make."""
    new, migrated = Registry(new_url()), Registry(new_url())
    try:
        new.open()
        with migrated.engine.begin() as connection:
            migrate(connection)
        seen = []
        for registry in (new, migrated):
            with registry.engine.connect() as connection:
                context = MigrationContext.configure(connection, opts={"compare_type": True})
                assert compare_metadata(context, schema.metadata) == []
                assert context.get_current_revision() == NEWEST
                seen.append(_tables(sa.inspect(connection)))
        assert seen[0] == seen[1]
        assert set(seen[0]) == {*schema.metadata.tables, "alembic_version"}
    finally:
        new.close()
        migrated.close()


def _tables(inspector: sa.Inspector) -> dict[str, Any]:
    """All that a database says of its tables, in no order of columns."""
    return {
        name: (
            {column["name"]: str(column) for column in inspector.get_columns(name)},
            inspector.get_pk_constraint(name),
            sorted(map(str, inspector.get_indexes(name))),
        )
        for name in inspector.get_table_names()
    }


def test_the_newest_migration_is_known_without_alembic() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == NEWEST


def test_a_master_that_ends_while_it_makes_the_registry_leaves_none(
    new_url: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_url()

    class Ended(BaseException):
        """As good as kill -9: nothing is put away."""

    def end(*_: object) -> None:
        raise Ended

    with monkeypatch.context() as patch:
        patch.setattr("bursar.master.registry.versions._version.create", end)
        registry = Registry(url)
        with pytest.raises(Ended):
            registry.open()
        assert sa.inspect(registry.engine).get_table_names() == []
        registry.close()
    registry = Registry(url)
    assert registry.open().term == 1
    registry.close()


def test_a_start_that_has_nothing_to_migrate_does_not_wait_for_alembic(tmp_path: Path) -> None:
    """Neither the first, which makes the registry, nor the next."""
    code = f"import sys; from bursar.master.registry.store import Registry; Registry({sqlite_url(tmp_path)!r}).open(); print(*sys.modules)"
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        assert "sqlalchemy" in done.stdout.split() and "alembic" not in done.stdout.split()


def test_every_opening_is_a_new_term_of_the_same_cluster(new_url: Callable[[], str]) -> None:
    url = new_url()
    seen = []
    for _ in range(3):
        registry = Registry(url)
        durable = registry.open()
        assert (registry.load().cluster_id, registry.load().term) == (durable.cluster_id, durable.term)
        seen.append((durable.cluster_id, durable.term))
        registry.close()
    assert len({cluster_id for cluster_id, _ in seen}) == 1
    assert [term for _, term in seen] == [1, 2, 3]


def test_two_clusters_have_two_ids(new_url: Callable[[], str]) -> None:
    ids = set()
    for _ in range(2):
        registry = Registry(new_url())
        ids.add(registry.open().cluster_id)
        registry.close()
    assert len(ids) == 2 and all(ids)


def test_a_raised_term_outlives_the_master(new_url: Callable[[], str]) -> None:
    url = new_url()
    registry = Registry(url)
    registry.open()
    registry.commit_now([r.TermRaised(41)])
    registry.close()
    registry = Registry(url)
    assert registry.open().term == 42
    registry.close()


def test_sqlite_is_told_to_be_durable(tmp_path: Path) -> None:
    registry = Registry(sqlite_url(tmp_path))
    registry.open()
    # The connection that commits, and one in another thread.
    with registry.engine.connect() as connection, registry.engine.connect() as other:
        for each in (connection, other):
            assert each.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert each.exec_driver_sql("PRAGMA synchronous").scalar() == 2, "FULL"
    registry.close()


def test_a_vacancy_of_the_version_before_is_one(new_url: Callable[[], str]) -> None:
    """Once it was known by its words; whatever else an agent's devices suffer from is left alone."""
    ill = DeviceHealth.UNHEALTHY
    gone = Device(DeviceUuid("g0"), "gpus", health=ill, health_reason="its agent has it no more")
    sick = Device(DeviceUuid("g1"), "gpus", health=ill, health_reason="GPU is lost")
    devices = (gone, sick, Device(DeviceUuid("g2"), "gpus", condition=DeviceCondition.CORDONED))
    infos = [
        AgentInfo(AgentId("a"), 1, "boot", "a.host", devices=devices),
        AgentInfo(AgentId("b"), 1, "boot", "b.host"),
    ]
    registry = Registry(new_url())
    try:
        registry.open()
        registry.commit_now([r.AgentRecorded(info, 1, 5) for info in infos])
        _to_version(registry, "0005")
        assert _devices(registry, "a") == devices, "nothing was said by conditions"
        registry.open()
        vacant = replace(gone, condition=DeviceCondition.VACANT)
        assert is_vacancy(vacant) and not is_vacancy(gone)
        assert registry.load().agents[AgentId("a")].info.devices == (vacant, *devices[1:])
        assert registry.load().agents[AgentId("b")].info == infos[1]
        _to_version(registry, "0005")
        assert _devices(registry, "a") == devices
    finally:
        registry.close()


def _devices(registry: Registry, agent_id: str) -> tuple[Device, ...]:
    """Of an agent, whatever version the registry has: later ones have more columns."""
    with registry.engine.connect() as connection:
        text = sa.select(schema.agents.c.info).where(schema.agents.c.agent_id == agent_id)
        return from_json(AgentInfo, connection.execute(text).scalar_one()).devices


def _to_version(registry: Registry, revision: str) -> None:
    """As the version before of Bursar left it."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with registry.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)


# --- what goes wrong ---


def refused(url: str) -> str:
    """The words of a refusal: what, why and what to do."""
    with pytest.raises(BursarError) as failure:
        registry = Registry(url)
        try:
            registry.open()
        finally:
            registry.close()
    text = str(failure.value)
    assert failure.value.detail.hint and "Traceback" not in text and "sqlalche.me" not in text
    return text


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "registry.sqlite").write_bytes(b"this is not a database, " * 100)
    text = refused(sqlite_url(tmp_path))
    assert "cannot open the registry" in text and "file is not a database" in text


def test_a_damaged_database(tmp_path: Path) -> None:
    registry = Registry(sqlite_url(tmp_path))
    registry.open()
    registry.commit_now([r.Audited(n, "p", "a", "x" * 500) for n in range(100)])
    registry.close()
    path = tmp_path / "registry.sqlite"
    content = bytearray(path.read_bytes())
    content[100 : len(content)] = b"\xff" * (len(content) - 100)
    path.write_bytes(content)
    assert "malformed" in refused(sqlite_url(tmp_path))


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    assert "unable to open database file" in refused(sqlite_url(tmp_path / "nowhere"))


def test_a_database_that_may_not_be_written(tmp_path: Path) -> None:
    registry = Registry(sqlite_url(tmp_path))
    registry.open()
    registry.close()
    assert "readonly" in refused(f"sqlite:///file:{tmp_path}/registry.sqlite?mode=ro&uri=true")


def test_a_database_that_somebody_else_holds(tmp_path: Path) -> None:
    registry = Registry(sqlite_url(tmp_path))
    registry.open()
    registry.close()
    other = sqlite3.connect(tmp_path / "registry.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert "database is locked" in refused(sqlite_url(tmp_path))
    other.close()


@pytest.mark.parametrize("url", ["nonsense", "nosuchdb://x", "sqlite://host/path", "postgresql+nosuchdriver://x/y"])
def test_a_url_that_cannot_be_used(url: str) -> None:
    text = refused(url)
    assert "--registry" in text or "cannot open the registry" in text


def test_a_password_is_never_shown() -> None:
    text = refused("postgresql+psycopg://bursar:secret@127.0.0.1:1/x?connect_timeout=2")
    assert "secret" not in text and "127.0.0.1" in text


def test_a_database_of_a_later_version(tmp_path: Path) -> None:
    registry = Registry(sqlite_url(tmp_path))
    registry.open()
    with registry.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    registry.close()
    assert "9999" in refused(sqlite_url(tmp_path))


def test_a_commit_that_fails_says_so(tmp_path: Path) -> None:
    registry = Registry(sqlite_url(tmp_path))
    registry.open()
    with registry.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE flags")
    with pytest.raises(sa.exc.SQLAlchemyError):
        registry.commit_now([r.FlagRecorded("n", "1")])
    registry.close()


_WRITER = """
import sys
from bursar.master import records as r
from bursar.master.registry.store import Registry
registry = Registry(sys.argv[1])
registry.open()
number = 0
while True:
    number += 1
    registry.commit_now([r.FlagRecorded("n", str(number)), r.Audited(number, "p", "a", "x" * 200)])
    print(number, flush=True)
"""


def test_what_was_committed_survives_a_kill(new_url: Callable[[], str]) -> None:
    url = new_url()
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, url], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    acknowledged = 0
    for line in writer.stdout:
        acknowledged = int(line)
        if acknowledged == 50:
            os.kill(writer.pid, signal.SIGKILL)
            break
    # What it said before it died.
    for line in writer.stdout:
        if line.endswith(b"\n"):
            acknowledged = int(line)
    writer.wait()
    registry = Registry(url)
    durable = registry.open()
    assert durable.term == 2
    found = int(durable.flags["n"])
    assert acknowledged <= found <= acknowledged + 1
    with registry.engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(schema.audit)).scalar() == found
    registry.close()
