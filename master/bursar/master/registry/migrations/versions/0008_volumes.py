"""Persistent volumes of agents."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """There are none yet."""
    op.add_column("agents", sa.Column("volumes", sa.Text, nullable=False, server_default="[]"))
    op.add_column("agents", sa.Column("leaving_volumes", sa.Text, nullable=False, server_default="[]"))


def downgrade() -> None:
    """Forget them."""
    op.drop_column("agents", "leaving_volumes")
    op.drop_column("agents", "volumes")
