"""Reservations that are lent, and tasks that must give back what they run on."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing is lent yet."""
    op.add_column("agents", sa.Column("lent", sa.Text, nullable=False, server_default="[]"))
    op.add_column("tasks", sa.Column("preempt_at_ms", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    """Forget it."""
    op.drop_column("tasks", "preempt_at_ms")
    op.drop_column("agents", "lent")
