"""Orders to restart a task, kept until its agent has taken them."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing is ordered yet."""
    op.add_column("tasks", sa.Column("restart", sa.Text, nullable=True))


def downgrade() -> None:
    """Forget it."""
    op.drop_column("tasks", "restart")
