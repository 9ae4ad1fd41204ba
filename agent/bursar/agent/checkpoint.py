"""What must outlive the agent, in one SQLite file; `commit` makes a batch of records durable in one transaction.

The file holds the present state, not a history: a task is one row, replaced as a whole. What `load` returns equals the fold
of all committed records with `AgentState.apply`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

import msgspec

from bursar.agent.devices.cut_record import CutRecord
from bursar.agent.devices.health import HealthRecord
from bursar.agent.state import (
    AgentState,
    ClusterJoined,
    CutSaved,
    DeviceHealthForgotten,
    DeviceHealthSaved,
    FinishedForgotten,
    GenerationSeen,
    Record,
    SandboxDropped,
    TaskFinished,
    TaskSaved,
)
from bursar.agent.tasks import FinishedTask, TaskKey, TaskRecord
from bursar.core.errors import BursarError
from bursar.core.ids import AgentId, DeviceUuid, Generation
from bursar.runtime.stored import from_json, to_json

#: Of the tables below; a file of an earlier version is brought up to it, one of a later version is refused.
SCHEMA_VERSION = 3

_FIRST = """
CREATE TABLE fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE task (
  framework_id TEXT NOT NULL, task_id TEXT NOT NULL, record BLOB NOT NULL,
  PRIMARY KEY (framework_id, task_id)
);
CREATE TABLE finished (
  sequence INTEGER PRIMARY KEY AUTOINCREMENT,
  framework_id TEXT NOT NULL, task_id TEXT NOT NULL, record BLOB NOT NULL, sandbox INTEGER NOT NULL,
  UNIQUE (framework_id, task_id)
);
"""

#: From each version to the next, beginning with an empty file: additive, so that nothing is lost on the way.
_STEPS = (
    _FIRST,
    "CREATE TABLE device_health (uuid TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;",
    "CREATE TABLE cut (card TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;",
)
assert len(_STEPS) == SCHEMA_VERSION

T = TypeVar("T")


class DiskFull(BursarError):
    """There is no room for the checkpoint; nothing was written."""


class Checkpoint:
    """One open file, written by one thread. Not for two processes at once: the work directory's lock sees to that."""

    def __init__(self, path: Path) -> None:
        """Open or make the file. Raises BursarError."""
        self._path = path
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        try:
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version < SCHEMA_VERSION:
                steps = "".join(_STEPS[version:])
                self._db.executescript(f"BEGIN; {steps} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
            elif version > SCHEMA_VERSION:
                raise BursarError(
                    f"the checkpoint {path} is of version {version}, this agent reads versions up to {SCHEMA_VERSION}",
                    "start the agent that wrote it, or choose another --work-dir",
                )
            (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        except (sqlite3.Error, OSError) as error:
            raise self._problem(error) from error

    def _problem(self, error: Exception) -> BursarError:
        text = str(error)
        if isinstance(error, sqlite3.OperationalError) and ("full" in text or "disk I/O" in text):
            return (DiskFull if "full" in text else BursarError)(
                f"the checkpoint {self._path} cannot be written: {text}",
                "make room on the disk and start the agent again; its tasks run on meanwhile",
            )
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            return BursarError(
                f"the checkpoint {self._path} is damaged: {text}",
                "restore it from a copy, or end this agent's tasks by hand and choose another --work-dir",
            )
        return BursarError(
            f"the checkpoint {self._path} cannot be used: {text}", "see that this user may write to --work-dir"
        )

    # --- facts ------------------------------------------------------------------------------------------------------

    def begin_life(self) -> tuple[AgentId, int]:
        """The agent's id, made at its first start, and the number of this life of it, which grows. Raises BursarError."""
        agent_id = AgentId(self._fact("agent_id") or str(uuid.uuid4()))
        incarnation = int(self._fact("incarnation") or 0) + 1
        self._set_facts({"agent_id": agent_id, "incarnation": str(incarnation)})
        return agent_id, incarnation

    def device_assignment(self) -> dict[str, tuple[DeviceUuid, ...]]:
        """Which devices each static reservation had."""
        return cast(
            "dict[str, tuple[DeviceUuid, ...]]",
            from_json(dict[str, tuple[DeviceUuid, ...]], self._fact("device_assignment") or "{}"),
        )

    def keep_device_assignment(self, assignment: Mapping[str, Sequence[DeviceUuid]]) -> None:
        """Remember which devices each static reservation has. Raises BursarError."""
        self._set_facts({"device_assignment": to_json(dict(assignment)).decode()})

    def _fact(self, name: str) -> str:
        row = self._db.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return row[0] if row else ""

    def _set_facts(self, facts: Mapping[str, str]) -> None:
        with self._transaction():
            self._write_facts(facts)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All that is written inside, or nothing. Raises BursarError."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._problem(error) from error
        finally:
            if self._db.in_transaction:
                self._db.rollback()

    def _write_facts(self, facts: Mapping[str, str]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO fact VALUES (?, ?)", list(facts.items()))

    # --- the machine's state ----------------------------------------------------------------------------------------

    def load(self) -> AgentState:
        """The durable state of the machine. Raises BursarError."""
        try:
            state = AgentState(
                self._fact("cluster_id"), Generation(*map(int, (self._fact("generation") or "0.0").split(".")))
            )
            for (text,) in self._db.execute("SELECT record FROM task ORDER BY rowid"):
                task = from_json(TaskRecord, text)
                state.tasks[task.key] = task
            for text, sandbox in self._db.execute("SELECT record, sandbox FROM finished ORDER BY sequence"):
                finished = from_json(FinishedTask, text)
                state.finished[finished.key] = replace(finished, sandbox=bool(sandbox))
            for (text,) in self._db.execute("SELECT record FROM device_health ORDER BY uuid"):
                health = from_json(HealthRecord, text)
                state.health[health.uuid] = health
            for (text,) in self._db.execute("SELECT record FROM cut ORDER BY card"):
                cut = from_json(CutRecord, text)
                state.cuts[cut.card] = cut
            return state
        except (msgspec.DecodeError, ValueError) as error:
            raise self._problem(sqlite3.DatabaseError(str(error))) from error
        except sqlite3.Error as error:
            raise self._problem(error) from error

    async def commit(self, records: Sequence[object]) -> None:
        """Make records durable, all or none. Raises BursarError."""
        await asyncio.get_running_loop().run_in_executor(self._writer, self.write, records)

    def write(self, records: Sequence[object]) -> None:
        """As `commit`, at once. Raises BursarError."""
        wanted = list(_coalesce(records))
        with self._transaction():
            for record in wanted:
                self._apply(record)

    def _apply(self, record: Record) -> None:
        execute = self._db.execute
        match record:
            case TaskSaved(task):
                execute(
                    "INSERT INTO task VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET record = excluded.record",
                    (*task.key, to_json(task)),
                )
            case TaskFinished(finished):
                execute("DELETE FROM task WHERE framework_id = ? AND task_id = ?", finished.key)
                execute(
                    "INSERT INTO finished (framework_id, task_id, record, sandbox) VALUES (?, ?, ?, ?)",
                    (*finished.key, to_json(finished), finished.sandbox),
                )
            case SandboxDropped(key):
                execute("UPDATE finished SET sandbox = 0 WHERE framework_id = ? AND task_id = ?", key)
            case FinishedForgotten(key):
                execute("DELETE FROM finished WHERE framework_id = ? AND task_id = ?", key)
            case GenerationSeen(generation):
                self._write_facts({"generation": f"{generation.term}.{generation.sequence}"})
            case DeviceHealthSaved(health):
                execute("INSERT OR REPLACE INTO device_health VALUES (?, ?)", (health.uuid, to_json(health)))
            case DeviceHealthForgotten(uuid):
                execute("DELETE FROM device_health WHERE uuid = ?", (uuid,))
            case CutSaved(cut):
                execute("INSERT OR REPLACE INTO cut VALUES (?, ?)", (cut.card, to_json(cut)))
            case ClusterJoined(cluster_id):
                self._write_facts({"cluster_id": cluster_id})

    def close(self) -> None:
        """Wait for the last commit and close the file."""
        self._writer.shutdown()
        self._db.close()


def _coalesce(records: Sequence[object]) -> Iterable[Record]:
    """Leave out what a later record of the same batch replaces: within one transaction nobody sees it."""
    last: dict[tuple[type, TaskKey | None], int] = {}
    for position, record in enumerate(records):
        last[_subject(record)] = position
        if isinstance(record, TaskFinished):
            last[TaskSaved, record.task.key] = position
    for position, record in enumerate(records):
        assert isinstance(record, Record), record
        if not isinstance(record, (TaskSaved, GenerationSeen)) or last[_subject(record)] == position:
            yield record


def _subject(record: object) -> tuple[type, TaskKey | None]:
    if isinstance(record, (TaskSaved, TaskFinished)):
        return type(record), record.task.key
    return type(record), None
