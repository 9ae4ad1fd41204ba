"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make everything."""
    op.create_table(
        "meta",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "agents",
        sa.Column("agent_id", sa.Text, primary_key=True),
        sa.Column("info", sa.Text, nullable=False),
        sa.Column("description_version", sa.BigInteger, nullable=False),
        sa.Column("registered_at_ms", sa.BigInteger, nullable=False),
        sa.Column("unreachable", sa.Boolean, nullable=False),
        sa.Column("reservations", sa.Text, nullable=False),
    )
    op.create_table(
        "frameworks",
        sa.Column("framework_id", sa.Text, primary_key=True),
        sa.Column("info", sa.Text, nullable=False),
        sa.Column("subscribed_at_ms", sa.BigInteger, nullable=False),
        sa.Column("failover_deadline_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "removed_frameworks",
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("framework_id", sa.Text, nullable=False, unique=True),
    )
    op.create_table(
        "tasks",
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("framework_id", sa.Text, nullable=False),
        sa.Column("task_id", sa.Text, nullable=False),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("call_id", sa.Text, nullable=False),
        sa.Column("operation_id", sa.Text, nullable=False),
        sa.Column("kill_reason", sa.Integer, nullable=False),
        sa.Column("kill_grace_ms", sa.BigInteger, nullable=True),
        sa.Column("end_status", sa.Text, nullable=True),
        sa.Column("ended_at_ms", sa.BigInteger, nullable=False),
        sa.Column("end_acknowledged", sa.Boolean, nullable=False),
        sa.UniqueConstraint("framework_id", "task_id", name="uq_tasks_framework_id_task_id"),
    )
    op.create_table(
        "calls",
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("framework_id", sa.Text, nullable=False),
        sa.Column("call_id", sa.Text, nullable=False),
        sa.Column("result", sa.Text, nullable=False),
        sa.UniqueConstraint("framework_id", "call_id", name="uq_calls_framework_id_call_id"),
    )
    op.create_table(
        "flags",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "requests",
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("request_id", sa.Text, nullable=False, unique=True),
        sa.Column("response_type", sa.Text, nullable=False),
        sa.Column("response", sa.Text, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """There is nothing before the first."""
    for table in ("audit", "requests", "flags", "calls", "tasks", "removed_frameworks", "frameworks", "agents", "meta"):
        op.drop_table(table)
