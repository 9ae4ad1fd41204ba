"""What only some versions of agents can do: an older one would ignore it without a word, so it is refused here (M-01)."""

from __future__ import annotations

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.agent import AgentInfo
from bursar.core.tasks import TaskSpec
from bursar.core.ulimits import ULIMITS


def version_refusal(info: AgentInfo, spec: TaskSpec, path: str) -> ErrorDetail | None:
    """Say what of a task its agent would ignore; nothing where it knows all of it."""
    if spec.ulimits and ULIMITS not in info.capabilities:
        return ErrorDetail(
            ErrorReason.TASK_INVALID,
            f"task {spec.task_id!r} has ulimits, and agent {info.hostname} is of a version that would ignore them",
            "use offers of other agents, or upgrade this one; or leave the ulimits out",
            f"{path}.ulimits",
        )
    return None
