"""The places of reserved devices that vanished have a condition of their own; they were known by their words before."""

import json
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

#: As they are written down: `DeviceHealth.UNHEALTHY`, `DeviceCondition.UNSPECIFIED` and `VACANT`, and the reason.
_UNHEALTHY, _UNSPECIFIED, _VACANT = 2, 0, 8
_VANISHED = "its agent has it no more"


def upgrade() -> None:
    """Say it by the condition."""

    def say(device: dict[str, Any]) -> bool:
        known: bool = device["health"] == _UNHEALTHY and device["health_reason"] == _VANISHED
        if known:
            device["condition"] = _VACANT
        return known

    _rewrite(say)


def downgrade() -> None:
    """Say it by the words alone."""

    def say(device: dict[str, Any]) -> bool:
        known: bool = device.get("condition") == _VACANT
        if known:
            device["condition"], device["health_reason"] = _UNSPECIFIED, _VANISHED
        return known

    _rewrite(say)


def _rewrite(say: Callable[[dict[str, Any]], bool]) -> None:
    """Have every device of every agent looked at, and write the agents of which some was changed."""
    agents = sa.table("agents", sa.column("agent_id", sa.Text), sa.column("info", sa.Text))
    connection = op.get_bind()
    for agent_id, text in list(connection.execute(sa.select(agents.c.agent_id, agents.c.info))):
        info = json.loads(text)
        if sum(map(say, info["devices"])):
            values = {"info": json.dumps(info)}
            connection.execute(sa.update(agents).where(agents.c.agent_id == agent_id).values(values))
