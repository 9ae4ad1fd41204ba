"""The tables. Migrations under `migrations/versions` make them; a test holds the two against each other."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(naming_convention={"pk": "pk_%(table_name)s", "ix": "ix_%(table_name)s_%(column_0_name)s"})

#: `cluster_id`, made once, and `term`, one more at every start.
meta = sa.Table(
    "meta", metadata, sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False)
)

agents = sa.Table(
    "agents",
    metadata,
    sa.Column("agent_id", sa.Text, primary_key=True),
    sa.Column("info", sa.Text, nullable=False),
    sa.Column("description_version", sa.BigInteger, nullable=False),
    sa.Column("registered_at_ms", sa.BigInteger, nullable=False),
    sa.Column("unreachable", sa.Boolean, nullable=False),
    #: Dynamic reservations, as JSON.
    sa.Column("reservations", sa.Text, nullable=False),
    #: The newest order about each of its devices, as JSON.
    sa.Column("device_orders", sa.Text, nullable=False, server_default="[]"),
    #: The stacks that are lent while they are idle, as JSON.
    sa.Column("lent", sa.Text, nullable=False, server_default="[]"),
    #: Whose its id is, as authenticated.
    sa.Column("principal", sa.Text, nullable=False, server_default=""),
    #: Its persistent volumes, and the names of those whose data is yet to be removed, as JSON.
    sa.Column("volumes", sa.Text, nullable=False, server_default="[]"),
    sa.Column("leaving_volumes", sa.Text, nullable=False, server_default="[]"),
)

frameworks = sa.Table(
    "frameworks",
    metadata,
    sa.Column("framework_id", sa.Text, primary_key=True),
    sa.Column("info", sa.Text, nullable=False),
    sa.Column("subscribed_at_ms", sa.BigInteger, nullable=False),
    sa.Column("failover_deadline_ms", sa.BigInteger, nullable=False),
)

#: Ids that can never be used again; `position` is the order of removal.
removed_frameworks = sa.Table(
    "removed_frameworks",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("framework_id", sa.Text, nullable=False, unique=True),
)

tasks = sa.Table(
    "tasks",
    metadata,
    #: Order of launch.
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("framework_id", sa.Text, nullable=False),
    sa.Column("task_id", sa.Text, nullable=False),
    sa.Column("agent_id", sa.Text, nullable=False),
    #: The AssignedTask with its devices, as JSON.
    sa.Column("task", sa.Text, nullable=False),
    sa.Column("call_id", sa.Text, nullable=False),
    sa.Column("operation_id", sa.Text, nullable=False),
    sa.Column("kill_reason", sa.Integer, nullable=False),
    sa.Column("kill_grace_ms", sa.BigInteger, nullable=True),
    #: The terminal TaskStatus, as JSON; null while it lives.
    sa.Column("end_status", sa.Text, nullable=True),
    sa.Column("ended_at_ms", sa.BigInteger, nullable=False),
    sa.Column("end_acknowledged", sa.Boolean, nullable=False),
    #: When it will be ended because what it runs on is wanted back; 0: it is not.
    sa.Column("preempt_at_ms", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("restart", sa.Text, nullable=True),
    sa.UniqueConstraint("framework_id", "task_id", name="uq_tasks_framework_id_task_id"),
)

calls = sa.Table(
    "calls",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("framework_id", sa.Text, nullable=False),
    sa.Column("call_id", sa.Text, nullable=False),
    sa.Column("result", sa.Text, nullable=False),
    sa.UniqueConstraint("framework_id", "call_id", name="uq_calls_framework_id_call_id"),
)

flags = sa.Table(
    "flags", metadata, sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False)
)

#: Weights of roles that are not 1, in thousandths.
weights = sa.Table(
    "weights",
    metadata,
    sa.Column("role", sa.Text, primary_key=True),
    sa.Column("weight_milli", sa.BigInteger, nullable=False),
)

#: Guarantees and limits of roles, as JSON.
quotas = sa.Table(
    "quotas", metadata, sa.Column("role", sa.Text, primary_key=True), sa.Column("quota", sa.Text, nullable=False)
)

#: Named sets of roles; the members as JSON.
role_groups = sa.Table(
    "role_groups", metadata, sa.Column("name", sa.Text, primary_key=True), sa.Column("members", sa.Text, nullable=False)
)

#: The operators' visibility rules, as JSON, in the order of `position`.
rules = sa.Table(
    "rules",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("rule", sa.Text, nullable=False),
)

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("request_id", sa.Text, nullable=False, unique=True),
    sa.Column("response_type", sa.Text, nullable=False),
    sa.Column("response", sa.Text, nullable=False),
)

#: Who changed what; append-only.
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("principal", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)
