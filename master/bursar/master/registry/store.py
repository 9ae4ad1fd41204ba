"""Committing records and loading what they mean."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from bursar.core.errors import BursarError
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, TaskId
from bursar.core.messages.agent import AgentInfo, DeviceOrder
from bursar.core.messages.framework import FrameworkInfo
from bursar.core.messages.offers import CallResult
from bursar.core.messages.operator import Quota
from bursar.core.messages.rules import Rule
from bursar.core.resources import ReservedResources, Stack
from bursar.core.tasks import AssignedTask, StatusReason, TaskStatus
from bursar.master import records as r
from bursar.master.allocator.shares import DEFAULT_WEIGHT_MILLI
from bursar.master.registry import schema
from bursar.master.registry.versions import UnknownVersion, bring_up_to_date
from bursar.runtime.stored import from_json, to_json

T = TypeVar("T")


def sqlite_url(work_dir: Path) -> str:
    """The default registry of a work directory."""
    return f"sqlite:///{work_dir / 'registry.sqlite'}"


class Registry:
    """One database. Commits run in one worker thread, so that the event loop goes on; the order is that of the calls."""

    def __init__(self, url: str) -> None:
        """Raises BursarError for a URL that SQLAlchemy cannot use."""
        self.url = url
        try:
            self.engine: Engine = sa.create_engine(url)
        except (SQLAlchemyError, ModuleNotFoundError, ValueError) as error:
            raise BursarError(f"--registry: cannot use {_public(url)}: {error}", "write a SQLAlchemy URL") from error
        if self.engine.dialect.name == "sqlite":
            if database := self.engine.url.database:
                # It holds the environments of tasks, secrets included.
                with contextlib.suppress(OSError):
                    Path(database).touch(mode=0o600)
            sa.event.listen(self.engine, "connect", _configure_sqlite)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="registry")
        #: Commits, records and the seconds they took; for metrics.
        self.commits_total = 0
        self.records_total = 0

    def open(self) -> r.Durable:
        """Migrate, begin a new term and load. Raises BursarError where the database cannot be used."""
        try:
            self._migrate()
            with self.engine.begin() as connection:
                cluster_id, term = _begin_term(connection)
            durable = self.load()
        except UnknownVersion as error:
            raise BursarError(
                f"cannot open the registry {_public(self.url)}: it was made by another version of Bursar ({error})",
                "start the version that made it, or choose another --work-dir or --registry",
            ) from error
        except (SQLAlchemyError, OSError, msgspec.MsgspecError) as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise BursarError(
                f"cannot open the registry {_public(self.url)}: {reason}",
                "check that the directory can be written, that the disk is not full and that no other master uses it",
            ) from error
        durable.cluster_id, durable.term = cluster_id, term
        return durable

    def _migrate(self) -> None:
        with self.engine.begin() as connection:
            bring_up_to_date(connection)

    async def commit(self, batch: Sequence[object]) -> None:
        """Make a batch of records durable in one transaction; raises SQLAlchemyError."""
        await asyncio.get_running_loop().run_in_executor(self._worker, self.commit_now, batch)

    def commit_now(self, batch: Sequence[object]) -> None:
        """The same, in this thread."""
        with self.engine.begin() as connection:
            for kind, group in groupby(batch, type):
                _WRITERS[kind](connection, list(group))
        self.commits_total += 1
        self.records_total += len(batch)

    def load(self) -> r.Durable:
        """Everything that was committed, folded."""
        durable = r.Durable()
        with self.engine.connect() as connection:
            for key, value in connection.execute(sa.select(schema.meta.c.key, schema.meta.c.value)):
                if key == "cluster_id":
                    durable.cluster_id = value
                elif key == "term":
                    durable.term = int(value)
            for row in connection.execute(sa.select(schema.agents)):
                durable.agents[AgentId(row.agent_id)] = r.DurableAgent(
                    from_json(AgentInfo, row.info),
                    row.description_version,
                    row.registered_at_ms,
                    row.unreachable,
                    from_json(tuple[ReservedResources, ...], row.reservations),
                    from_json(tuple[DeviceOrder, ...], row.device_orders),
                    from_json(tuple[Stack, ...], row.lent),
                    row.principal,
                    from_json(tuple[r.KeptVolume, ...], row.volumes),
                    from_json(tuple[DeviceUuid, ...], row.leaving_volumes),
                )
            for row in connection.execute(sa.select(schema.frameworks)):
                info = from_json(FrameworkInfo, row.info)
                durable.frameworks[info.framework_id] = r.DurableFramework(
                    info, row.subscribed_at_ms, row.failover_deadline_ms
                )
            for row in connection.execute(_ordered(schema.removed_frameworks)):
                durable.removed_frameworks[FrameworkId(row.framework_id)] = None
            for row in connection.execute(_ordered(schema.tasks)):
                durable.tasks[FrameworkId(row.framework_id), TaskId(row.task_id)] = r.DurableTask(
                    AgentId(row.agent_id),
                    from_json(AssignedTask, row.task),
                    row.call_id,
                    row.operation_id,
                    StatusReason(row.kill_reason),
                    row.kill_grace_ms,
                    None if row.end_status is None else from_json(TaskStatus, row.end_status),
                    row.ended_at_ms,
                    row.end_acknowledged,
                    row.preempt_at_ms,
                    None if row.restart is None else from_json(r.RestartOrder, row.restart),
                )
            for row in connection.execute(_ordered(schema.calls)):
                durable.calls[FrameworkId(row.framework_id), row.call_id] = from_json(CallResult, row.result)
            for row in connection.execute(sa.select(schema.flags)):
                durable.flags[row.name] = row.value
            durable.rules = tuple(from_json(Rule, row.rule) for row in connection.execute(_ordered(schema.rules)))
            for row in connection.execute(_ordered(schema.requests)):
                durable.requests[row.request_id] = (row.response_type, row.response)
            for row in connection.execute(sa.select(schema.weights)):
                durable.weights[row.role] = row.weight_milli
            for row in connection.execute(sa.select(schema.quotas)):
                durable.quotas[row.role] = from_json(Quota, row.quota)
            for row in connection.execute(sa.select(schema.role_groups)):
                durable.role_groups[row.name] = from_json(tuple[str, ...], row.members)
        return durable

    def close(self) -> None:
        """Let go of the database."""
        self._worker.shutdown(wait=True)
        self.engine.dispose()


def write_json(value: Any) -> str:
    """A core value as JSON, as it is stored."""
    return to_json(value).decode()


def _ordered(table: sa.Table) -> sa.Select[Any]:
    return sa.select(table).order_by(table.c.position)


def _public(url: str) -> str:
    """A URL without its password."""
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return repr(url)


def _configure_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    # FULL: a commit is on disk when it returns, also when the power fails.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.close()


def _begin_term(connection: Connection) -> tuple[str, int]:
    values = {key: value for key, value in connection.execute(sa.select(schema.meta.c.key, schema.meta.c.value))}
    cluster_id = values.get("cluster_id")
    if cluster_id is None:
        cluster_id = str(uuid4())
        connection.execute(sa.insert(schema.meta).values(key="cluster_id", value=cluster_id))
        connection.execute(sa.insert(schema.meta).values(key="term", value="1"))
        return cluster_id, 1
    term = int(values["term"]) + 1
    connection.execute(sa.update(schema.meta).where(schema.meta.c.key == "term").values(value=str(term)))
    return cluster_id, term


# --- how each record is written: one statement per kind and batch ---


def _upsert(connection: Connection, table: sa.Table, keys: list[str], rows: list[dict[str, Any]]) -> None:
    """Insert, or update where the keys are there; portable: the dialects that have ON CONFLICT use it."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
    statement = insert(table)
    changed = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), rows)


def _write_term(connection: Connection, batch: list[r.TermRaised]) -> None:
    statement = sa.update(schema.meta).where(schema.meta.c.key == "term").values(value=str(batch[-1].term))
    connection.execute(statement)


def _write_agents(connection: Connection, batch: list[r.AgentRecorded]) -> None:
    for record in batch:
        row = {
            "agent_id": record.info.agent_id,
            "info": write_json(record.info),
            "description_version": record.description_version,
            "registered_at_ms": record.registered_at_ms,
            "unreachable": False,
        }
        table = schema.agents
        found = connection.execute(sa.update(table).where(table.c.agent_id == record.info.agent_id).values(**row))
        if found.rowcount == 0:
            connection.execute(sa.insert(table).values(**row, reservations="[]"))


def _write_reachability(connection: Connection, batch: list[r.AgentReachabilityRecorded]) -> None:
    table = schema.agents
    statement = sa.update(table).where(table.c.agent_id == sa.bindparam("key")).values(unreachable=sa.bindparam("new"))
    connection.execute(statement, [{"key": record.agent_id, "new": record.unreachable} for record in batch])


def _write_frameworks(connection: Connection, batch: list[r.FrameworkRecorded]) -> None:
    rows = {
        record.info.framework_id: {
            "framework_id": record.info.framework_id,
            "info": write_json(record.info),
            "subscribed_at_ms": record.subscribed_at_ms,
            "failover_deadline_ms": 0,
        }
        for record in batch
    }
    _upsert(connection, schema.frameworks, ["framework_id"], list(rows.values()))


def _write_failover(connection: Connection, batch: list[r.FailoverDeadlineRecorded]) -> None:
    table = schema.frameworks
    statement = (
        sa.update(table)
        .where(table.c.framework_id == sa.bindparam("key"))
        .values(failover_deadline_ms=sa.bindparam("new"))
    )
    connection.execute(statement, [{"key": record.framework_id, "new": record.deadline_ms} for record in batch])


def _write_removed(connection: Connection, batch: list[r.FrameworkRemoved]) -> None:
    ids = [record.framework_id for record in batch]
    connection.execute(sa.delete(schema.frameworks).where(schema.frameworks.c.framework_id.in_(ids)))
    connection.execute(sa.delete(schema.calls).where(schema.calls.c.framework_id.in_(ids)))
    connection.execute(sa.insert(schema.removed_frameworks), [{"framework_id": framework_id} for framework_id in ids])
    _keep_newest(connection, schema.removed_frameworks, r.MAX_REMOVED_FRAMEWORKS)


def _write_tasks(connection: Connection, batch: list[r.TaskRecorded]) -> None:
    rows = [
        {
            "framework_id": record.task.framework_id,
            "task_id": record.task.spec.task_id,
            "agent_id": record.agent_id,
            "task": write_json(record.task),
            "call_id": record.call_id,
            "operation_id": record.operation_id,
            "kill_reason": 0,
            "kill_grace_ms": None,
            "end_status": None,
            "ended_at_ms": 0,
            "end_acknowledged": False,
        }
        for record in batch
    ]
    connection.execute(sa.insert(schema.tasks), rows)


_THE_TASK = sa.and_(
    schema.tasks.c.framework_id == sa.bindparam("the_framework"), schema.tasks.c.task_id == sa.bindparam("the_task")
)


def _write_kills(connection: Connection, batch: list[r.KillRecorded]) -> None:
    statement = (
        sa.update(schema.tasks)
        .where(_THE_TASK)
        .values(kill_reason=sa.bindparam("reason"), kill_grace_ms=sa.bindparam("grace"))
    )
    rows = [
        {"the_framework": k.framework_id, "the_task": k.task_id, "reason": int(k.reason), "grace": k.grace_ms}
        for k in batch
    ]
    connection.execute(statement, rows)


def _write_ends(connection: Connection, batch: list[r.TaskEnded]) -> None:
    statement = (
        sa.update(schema.tasks)
        .where(_THE_TASK)
        .values(end_status=sa.bindparam("status"), ended_at_ms=sa.bindparam("at"))
    )
    rows = [
        {
            "the_framework": record.status.framework_id,
            "the_task": record.status.task_id,
            "status": write_json(record.status),
            "at": record.ended_at_ms,
        }
        for record in batch
    ]
    connection.execute(statement, rows)


def _write_acknowledged(connection: Connection, batch: list[r.EndAcknowledged]) -> None:
    statement = sa.update(schema.tasks).where(_THE_TASK).values(end_acknowledged=True)
    connection.execute(statement, [{"the_framework": k.framework_id, "the_task": k.task_id} for k in batch])


def _write_forgotten(connection: Connection, batch: list[r.TaskForgotten]) -> None:
    statement = sa.delete(schema.tasks).where(_THE_TASK)
    connection.execute(statement, [{"the_framework": k.framework_id, "the_task": k.task_id} for k in batch])


def _write_calls(connection: Connection, batch: list[r.CallDone]) -> None:
    rows = [
        {"framework_id": record.framework_id, "call_id": record.result.call_id, "result": write_json(record.result)}
        for record in batch
    ]
    _upsert(connection, schema.calls, ["framework_id", "call_id"], rows)
    table = schema.calls
    for framework_id in {record.framework_id for record in batch}:
        mine = table.c.framework_id == framework_id
        newest = (
            sa.select(table.c.position)
            .where(mine)
            .order_by(table.c.position.desc())
            .offset(r.MAX_CALLS_PER_FRAMEWORK - 1)
            .limit(1)
        )
        oldest_kept = connection.execute(newest).scalar()
        if oldest_kept is not None:
            connection.execute(sa.delete(table).where(mine, table.c.position < oldest_kept))


def _write_reservations(connection: Connection, batch: list[r.ReservationsRecorded]) -> None:
    table = schema.agents
    statement = sa.update(table).where(table.c.agent_id == sa.bindparam("key")).values(reservations=sa.bindparam("new"))
    connection.execute(statement, [{"key": k.agent_id, "new": write_json(k.reservations)} for k in batch])


def _write_device_orders(connection: Connection, batch: list[r.DeviceOrdersRecorded]) -> None:
    table = schema.agents
    new = sa.update(table).where(table.c.agent_id == sa.bindparam("key")).values(device_orders=sa.bindparam("new"))
    connection.execute(new, [{"key": k.agent_id, "new": write_json(k.orders)} for k in batch])


def _write_agent_principals(connection: Connection, batch: list[r.AgentPrincipalRecorded]) -> None:
    table = schema.agents
    statement = sa.update(table).where(table.c.agent_id == sa.bindparam("key")).values(principal=sa.bindparam("new"))
    connection.execute(statement, [{"key": record.agent_id, "new": record.principal} for record in batch])


def _write_lending(connection: Connection, batch: list[r.LendingRecorded]) -> None:
    table = schema.agents
    statement = sa.update(table).where(table.c.agent_id == sa.bindparam("key")).values(lent=sa.bindparam("new"))
    connection.execute(statement, [{"key": k.agent_id, "new": write_json(k.lent)} for k in batch])


def _write_volumes(connection: Connection, batch: list[r.VolumesRecorded]) -> None:
    table = schema.agents
    statement = (
        sa.update(table)
        .where(table.c.agent_id == sa.bindparam("key"))
        .values(volumes=sa.bindparam("new"), leaving_volumes=sa.bindparam("going"))
    )
    rows = [{"key": k.agent_id, "new": write_json(k.volumes), "going": write_json(k.leaving)} for k in batch]
    connection.execute(statement, rows)


def _write_restarts(connection: Connection, batch: list[r.RestartOrdered]) -> None:
    statement = sa.update(schema.tasks).where(_THE_TASK).values(restart=sa.bindparam("order"))
    rows = [{"the_framework": k.framework_id, "the_task": k.task_id, "order": write_json(k.order)} for k in batch]
    connection.execute(statement, rows)


def _write_preemptions(connection: Connection, batch: list[r.PreemptionRecorded]) -> None:
    statement = sa.update(schema.tasks).where(_THE_TASK).values(preempt_at_ms=sa.bindparam("at"))
    rows = [{"the_framework": k.framework_id, "the_task": k.task_id, "at": k.preempt_at_ms} for k in batch]
    connection.execute(statement, rows)


def _write_flags(connection: Connection, batch: list[r.FlagRecorded]) -> None:
    for record in batch:
        if record.value is None:
            connection.execute(sa.delete(schema.flags).where(schema.flags.c.name == record.name))
        else:
            _upsert(connection, schema.flags, ["name"], [{"name": record.name, "value": record.value}])


def _write_rules(connection: Connection, batch: list[r.RulesRecorded]) -> None:
    connection.execute(sa.delete(schema.rules))
    rows = [
        {"name": rule.name, "position": position, "rule": write_json(rule)}
        for position, rule in enumerate(batch[-1].rules)
    ]
    if rows:
        connection.execute(sa.insert(schema.rules), rows)


def _write_role_groups(connection: Connection, batch: list[r.RoleGroupRecorded]) -> None:
    for record in batch:
        if record.members is None:
            connection.execute(sa.delete(schema.role_groups).where(schema.role_groups.c.name == record.name))
        else:
            row = {"name": record.name, "members": write_json(record.members)}
            _upsert(connection, schema.role_groups, ["name"], [row])


def _write_requests(connection: Connection, batch: list[r.RequestDone]) -> None:
    rows = [{"request_id": k.request_id, "response_type": k.response_type, "response": k.response} for k in batch]
    _upsert(connection, schema.requests, ["request_id"], rows)
    _keep_newest(connection, schema.requests, r.MAX_REQUESTS)


def _write_audit(connection: Connection, batch: list[r.Audited]) -> None:
    rows = [{"at_ms": k.at_ms, "principal": k.principal, "action": k.action, "detail": k.detail} for k in batch]
    connection.execute(sa.insert(schema.audit), rows)


def _write_weights(connection: Connection, batch: list[r.WeightsRecorded]) -> None:
    set_now = {weight.role: weight.weight_milli for record in batch for weight in record.weights}
    rows = [{"role": role, "weight_milli": milli} for role, milli in set_now.items() if milli != DEFAULT_WEIGHT_MILLI]
    _replace(connection, schema.weights, set_now, rows)


def _write_quotas(connection: Connection, batch: list[r.QuotasRecorded]) -> None:
    set_now = {quota.role: quota for record in batch for quota in record.quotas}
    kept = [quota for quota in set_now.values() if quota.guarantees or quota.limits]
    _replace(connection, schema.quotas, set_now, [{"role": quota.role, "quota": write_json(quota)} for quota in kept])


def _replace(connection: Connection, table: sa.Table, roles: Iterable[str], rows: list[dict[str, Any]]) -> None:
    """Exactly these rows for these roles; others stay."""
    connection.execute(
        sa.delete(table).where(table.c.role == sa.bindparam("the_role")), [{"the_role": role} for role in roles]
    )
    if rows:
        connection.execute(sa.insert(table), rows)


def _keep_newest(connection: Connection, table: sa.Table, count: int) -> None:
    newest = sa.select(table.c.position).order_by(table.c.position.desc()).offset(count - 1).limit(1)
    oldest_kept = connection.execute(newest).scalar()
    if oldest_kept is not None:
        connection.execute(sa.delete(table).where(table.c.position < oldest_kept))


_WRITERS: dict[type, Callable[[Connection, list[Any]], None]] = {
    r.TermRaised: _write_term,
    r.AgentRecorded: _write_agents,
    r.AgentReachabilityRecorded: _write_reachability,
    r.FrameworkRecorded: _write_frameworks,
    r.FailoverDeadlineRecorded: _write_failover,
    r.FrameworkRemoved: _write_removed,
    r.TaskRecorded: _write_tasks,
    r.KillRecorded: _write_kills,
    r.TaskEnded: _write_ends,
    r.EndAcknowledged: _write_acknowledged,
    r.TaskForgotten: _write_forgotten,
    r.CallDone: _write_calls,
    r.ReservationsRecorded: _write_reservations,
    r.FlagRecorded: _write_flags,
    r.RulesRecorded: _write_rules,
    r.RequestDone: _write_requests,
    r.LendingRecorded: _write_lending,
    r.AgentPrincipalRecorded: _write_agent_principals,
    r.PreemptionRecorded: _write_preemptions,
    r.Audited: _write_audit,
    r.WeightsRecorded: _write_weights,
    r.QuotasRecorded: _write_quotas,
    r.RoleGroupRecorded: _write_role_groups,
    r.DeviceOrdersRecorded: _write_device_orders,
    r.RestartOrdered: _write_restarts,
    r.VolumesRecorded: _write_volumes,
}
