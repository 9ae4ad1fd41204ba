"""Orders of operators about devices."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nobody has ordered anything yet."""
    op.add_column("agents", sa.Column("device_orders", sa.Text, nullable=False, server_default="[]"))


def downgrade() -> None:
    """Forget them."""
    op.drop_column("agents", "device_orders")
