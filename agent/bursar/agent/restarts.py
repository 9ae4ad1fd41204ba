"""Whether and when a task whose container has ended is started again."""

from __future__ import annotations

from bursar.agent.tasks import TaskRecord, Verdict
from bursar.core.lives import RestartMode
from bursar.core.tasks import StatusReason, TaskState

#: Ends of the command itself, or of what it did; another run may end otherwise.
_OWN_ENDS = frozenset(
    {
        StatusReason.COMMAND_EXITED,
        StatusReason.MEM_LIMIT,
        StatusReason.SHM_LIMIT,
        StatusReason.SIGBUS,
        StatusReason.LAUNCH_FAILED,
    }
)


def may_restart(record: TaskRecord) -> bool:
    """Whether its policy allows another run."""
    policy = record.task.spec.restart
    if policy is None or policy.mode is RestartMode.UNSPECIFIED:
        return False
    return not policy.max_restarts or record.restarts < policy.max_restarts


def wants_restart(record: TaskRecord, verdict: Verdict) -> bool:
    """Whether this end of a container is not the end of its task. Who was told to end has ended, whatever the policy."""
    if record.kill is not None or verdict.state is TaskState.GONE:
        return False
    if record.restart_asked:
        return True
    policy = record.task.spec.restart
    if policy is None or verdict.reason not in _OWN_ENDS or not record.running_at_ms or not may_restart(record):
        return False
    return verdict.state is not TaskState.FINISHED or policy.mode is RestartMode.ALWAYS


def next_in_row(record: TaskRecord, wall_ms: int) -> int:
    """The number of the next restart in its row: a long run begins the row anew."""
    policy = record.task.spec.restart
    is_long = policy is not None and record.run_began_ms and wall_ms - record.run_began_ms >= policy.longest
    return 1 if is_long else record.restarts_in_row + 1


def words_for(record: TaskRecord, verdict: Verdict, delay_ms: int) -> str:
    """For people: what ended, and what follows."""
    policy = record.task.spec.restart
    number = record.restarts + 1
    of = f" of {policy.max_restarts}" if policy is not None and policy.max_restarts and not record.restart_asked else ""
    why = record.restart_asked or verdict.message or verdict.reason.name.lower()
    return f"{why}; restart {number}{of} in {delay_ms} ms"
