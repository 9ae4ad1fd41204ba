"""Weights, quotas, role groups and rules."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables of what operators decide about roles."""
    op.create_table(
        "weights",
        sa.Column("role", sa.Text, primary_key=True),
        sa.Column("weight_milli", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "quotas",
        sa.Column("role", sa.Text, primary_key=True),
        sa.Column("quota", sa.Text, nullable=False),
    )
    op.create_table(
        "role_groups",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("members", sa.Text, nullable=False),
    )
    op.create_table(
        "rules",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("rule", sa.Text, nullable=False),
    )


def downgrade() -> None:
    """Forget them."""
    for table in ("rules", "role_groups", "quotas", "weights"):
        op.drop_table(table)
