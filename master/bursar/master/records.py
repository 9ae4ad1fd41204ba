"""What outlives the master: a closed set of named records, and the state that they fold into.

`Durable` is the meaning of the registry: whatever keeps records (SQL in the program, a list in the simulation) must load as
`Durable` folded from everything that was committed. Offers, filters, suppression and connections are soft: void after a restart
by design.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, TaskId
from bursar.core.messages.agent import AgentInfo, DeviceOrder
from bursar.core.messages.framework import FrameworkInfo
from bursar.core.messages.offers import CallResult
from bursar.core.messages.operator import Quota, RoleWeight
from bursar.core.messages.rules import Rule
from bursar.core.resources import ReservedResources, Stack
from bursar.core.tasks import AssignedTask, StatusReason, TaskStatus
from bursar.master.allocator.shares import DEFAULT_WEIGHT_MILLI

#: How many ended tasks, answered calls and requests are remembered, per framework or in all.
MAX_ENDED_TASKS_PER_FRAMEWORK = 1000
MAX_ENDED_TASKS = 20_000
#: Age at which an ended and acknowledged task is forgotten.
MAX_ENDED_TASK_AGE_MS = 7 * 24 * 3_600_000
MAX_CALLS_PER_FRAMEWORK = 1000
MAX_REQUESTS = 1000
MAX_REMOVED_FRAMEWORKS = 1000


@dataclass(frozen=True, slots=True)
class TermRaised:
    """An agent had seen a higher term: this registry is a restored copy, and its master must outrank the former one."""

    term: int


@dataclass(frozen=True, slots=True)
class AgentRecorded:
    """An agent was admitted, or admitted again with other facts."""

    info: AgentInfo
    description_version: int
    registered_at_ms: int


@dataclass(frozen=True, slots=True)
class AgentReachabilityRecorded:
    """An agent was given up, or came back."""

    agent_id: AgentId
    unreachable: bool


@dataclass(frozen=True, slots=True)
class FrameworkRecorded:
    """A framework subscribed, with whatever it says of itself now."""

    info: FrameworkInfo
    subscribed_at_ms: int


@dataclass(frozen=True, slots=True)
class FailoverDeadlineRecorded:
    """A framework disconnected; when it will be removed (wall time). Persisted, or a master restart would lose it (REG-8)."""

    framework_id: FrameworkId
    deadline_ms: int


@dataclass(frozen=True, slots=True)
class FrameworkRemoved:
    """A framework was torn down or did not come back; its id can never be used again."""

    framework_id: FrameworkId


@dataclass(frozen=True, slots=True)
class TaskRecorded:
    """A launch was accepted, or a task that nobody knew was adopted."""

    agent_id: AgentId
    task: AssignedTask
    #: The call and operation that launched it; empty for an adopted one.
    call_id: str = ""
    operation_id: str = ""


@dataclass(frozen=True, slots=True)
class KillRecorded:
    """The end of a task was asked for, and why: an agent kills only for a recorded reason."""

    framework_id: FrameworkId
    task_id: TaskId
    reason: StatusReason
    grace_ms: int | None


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """A task reached a terminal state."""

    status: TaskStatus
    ended_at_ms: int


@dataclass(frozen=True, slots=True)
class EndAcknowledged:
    """The framework knows of the end (or there is no framework any more)."""

    framework_id: FrameworkId
    task_id: TaskId


@dataclass(frozen=True, slots=True)
class TaskForgotten:
    """An ended task was pruned."""

    framework_id: FrameworkId
    task_id: TaskId


@dataclass(frozen=True, slots=True)
class CallDone:
    """An accept was carried out; kept so that it can be asked for after a reconnect."""

    framework_id: FrameworkId
    result: CallResult


@dataclass(frozen=True, slots=True)
class ReservationsRecorded:
    """All dynamic reservations of an agent, after a change."""

    agent_id: AgentId
    reservations: tuple[ReservedResources, ...]


@dataclass(frozen=True, slots=True)
class FlagRecorded:
    """A flag was set at run time; None is unset."""

    name: str
    value: str | None


@dataclass(frozen=True, slots=True)
class RulesRecorded:
    """All visibility rules of operators, in their order, after a change."""

    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class RequestDone:
    """A mutating operator call was answered: a repeat of its id gets the same answer."""

    request_id: str
    #: Name of the response type, and the response as JSON.
    response_type: str
    response: str


@dataclass(frozen=True, slots=True)
class Audited:
    """Somebody changed something."""

    at_ms: int
    principal: str
    action: str
    detail: str


@dataclass(frozen=True, slots=True)
class WeightsRecorded:
    """Weights of roles were set; one of 1 is forgotten."""

    weights: tuple[RoleWeight, ...]


@dataclass(frozen=True, slots=True)
class QuotasRecorded:
    """Quotas of roles were replaced; one without guarantees and limits is removed."""

    quotas: tuple[Quota, ...]


@dataclass(frozen=True, slots=True)
class RoleGroupRecorded:
    """A role group has these members now, each the text of a role expression; None: there is no such group any more."""

    name: str
    members: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class DeviceOrdersRecorded:
    """All that operators ordered about an agent's devices, after a change: the newest order of each."""

    agent_id: AgentId
    orders: tuple[DeviceOrder, ...]


@dataclass(frozen=True, slots=True)
class LendingRecorded:
    """All reservations of an agent that are lent while they are idle, after a change."""

    agent_id: AgentId
    lent: tuple[Stack, ...]


@dataclass(frozen=True, slots=True)
class PreemptionRecorded:
    """A task was told that it will be ended (wall time): what it runs on is wanted back."""

    framework_id: FrameworkId
    task_id: TaskId
    preempt_at_ms: int


@dataclass(frozen=True, slots=True)
class RestartOrder:
    """Somebody wants a task to begin again; the agent tells the number of the newest order that it has taken."""

    number: int
    #: Who asks, for people.
    message: str = ""
    grace_ms: int | None = None


@dataclass(frozen=True, slots=True)
class RestartOrdered:
    """A restart of a task was asked for: said to its agent until that has taken it."""

    framework_id: FrameworkId
    task_id: TaskId
    order: RestartOrder


@dataclass(frozen=True, slots=True)
class AgentPrincipalRecorded:
    """An agent was let in by what it showed for the first time; from now on its id is that principal's."""

    agent_id: AgentId
    principal: str


@dataclass(frozen=True, slots=True)
class KeptVolume:
    """A persistent volume of an agent."""

    #: Its name, as `core.volumes` makes it.
    uuid: DeviceUuid
    #: The reservation of which it takes disk.
    stack: Stack
    principal: str = ""
    created_at_ms: int = 0
    #: The agent has told that its data is there.
    made: bool = False


@dataclass(frozen=True, slots=True)
class VolumesRecorded:
    """All persistent volumes of an agent, after a change."""

    agent_id: AgentId
    volumes: tuple[KeptVolume, ...]
    #: Those that were destroyed, and of which the agent has not told yet that their data is gone.
    leaving: tuple[DeviceUuid, ...] = ()


Record = (
    TermRaised
    | AgentRecorded
    | AgentReachabilityRecorded
    | FrameworkRecorded
    | FailoverDeadlineRecorded
    | FrameworkRemoved
    | TaskRecorded
    | KillRecorded
    | TaskEnded
    | EndAcknowledged
    | TaskForgotten
    | CallDone
    | ReservationsRecorded
    | FlagRecorded
    | RulesRecorded
    | RequestDone
    | Audited
    | WeightsRecorded
    | QuotasRecorded
    | RoleGroupRecorded
    | DeviceOrdersRecorded
    | LendingRecorded
    | PreemptionRecorded
    | RestartOrdered
    | AgentPrincipalRecorded
    | VolumesRecorded
)


@dataclass(frozen=True, slots=True)
class DurableAgent:
    """An agent as the registry knows it."""

    info: AgentInfo
    description_version: int
    registered_at_ms: int
    unreachable: bool = False
    reservations: tuple[ReservedResources, ...] = ()
    device_orders: tuple[DeviceOrder, ...] = ()
    lent: tuple[Stack, ...] = ()
    #: Whose its id is; empty where nobody was ever asked.
    principal: str = ""
    volumes: tuple[KeptVolume, ...] = ()
    leaving_volumes: tuple[DeviceUuid, ...] = ()


@dataclass(frozen=True, slots=True)
class DurableFramework:
    """A framework as the registry knows it."""

    info: FrameworkInfo
    subscribed_at_ms: int
    #: 0: was connected when last heard of.
    failover_deadline_ms: int = 0


@dataclass(frozen=True, slots=True)
class DurableTask:
    """A task as the registry knows it: its launch with its devices, and its end; not every update."""

    agent_id: AgentId
    task: AssignedTask
    call_id: str = ""
    operation_id: str = ""
    kill_reason: StatusReason = StatusReason.UNSPECIFIED
    kill_grace_ms: int | None = None
    #: Its terminal status.
    end: TaskStatus | None = None
    ended_at_ms: int = 0
    end_acknowledged: bool = False
    #: When it will be ended because what it runs on is wanted back; 0: it is not.
    preempt_at_ms: int = 0
    #: The newest order to restart it, taken or not.
    restart: RestartOrder | None = None


DurableTaskKey = tuple[FrameworkId, TaskId]


@dataclass(slots=True)
class Durable:
    """Everything that survives, as folded from records."""

    cluster_id: str = ""
    #: This master's reign.
    term: int = 0
    agents: dict[AgentId, DurableAgent] = field(default_factory=dict)
    frameworks: dict[FrameworkId, DurableFramework] = field(default_factory=dict)
    removed_frameworks: dict[FrameworkId, None] = field(default_factory=dict)
    tasks: dict[DurableTaskKey, DurableTask] = field(default_factory=dict)
    calls: dict[tuple[FrameworkId, str], CallResult] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    requests: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: Those that are not 1, in thousandths.
    weights: dict[str, int] = field(default_factory=dict)
    #: Those with a guarantee or a limit, by role.
    quotas: dict[str, Quota] = field(default_factory=dict)
    #: Members of role groups, by name.
    role_groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    #: The ids of `calls` by framework, oldest first: an accept must not walk the calls of everybody. None: not yet known.
    _ids: dict[FrameworkId, dict[str, None]] | None = field(default=None, compare=False, repr=False)

    def calls_of(self, framework_id: FrameworkId) -> list[CallResult]:
        """The calls of a framework that are remembered, oldest first."""
        return [self.calls[framework_id, call_id] for call_id in self._call_ids().get(framework_id, ())]

    def _call_ids(self) -> dict[FrameworkId, dict[str, None]]:
        if self._ids is None:
            self._ids = {}
            for framework_id, call_id in self.calls:
                self._ids.setdefault(framework_id, {})[call_id] = None
        return self._ids

    def apply_all(self, records: Iterable[object]) -> None:
        """Fold many records, in order."""
        for record in records:
            self.apply(record)  # type: ignore[arg-type]

    def apply(self, record: Record) -> None:
        """Fold one record."""
        match record:
            case TermRaised(term):
                self.term = term
            case AgentRecorded(info, version, at):
                known = self.agents.get(info.agent_id)
                self.agents[info.agent_id] = (
                    replace(known, info=info, description_version=version, registered_at_ms=at, unreachable=False)
                    if known
                    else DurableAgent(info, version, at)
                )
            case AgentReachabilityRecorded(agent_id, unreachable):
                self.agents[agent_id] = replace(self.agents[agent_id], unreachable=unreachable)
            case FrameworkRecorded(info, at):
                self.frameworks[info.framework_id] = DurableFramework(info, at)
            case FailoverDeadlineRecorded(framework_id, deadline_ms):
                self.frameworks[framework_id] = replace(self.frameworks[framework_id], failover_deadline_ms=deadline_ms)
            case FrameworkRemoved(framework_id):
                del self.frameworks[framework_id]
                self.removed_frameworks[framework_id] = None
                _trim(self.removed_frameworks, MAX_REMOVED_FRAMEWORKS)
                for call_id in self._call_ids().pop(framework_id, ()):
                    del self.calls[framework_id, call_id]
            case TaskRecorded(agent_id, task, call_id, operation_id):
                self.tasks[task.framework_id, task.spec.task_id] = DurableTask(agent_id, task, call_id, operation_id)
            case KillRecorded(framework_id, task_id, reason, grace_ms):
                key = (framework_id, task_id)
                self.tasks[key] = replace(self.tasks[key], kill_reason=reason, kill_grace_ms=grace_ms)
            case TaskEnded(status, at):
                key = (status.framework_id, status.task_id)
                self.tasks[key] = replace(self.tasks[key], end=status, ended_at_ms=at)
            case EndAcknowledged(framework_id, task_id):
                key = (framework_id, task_id)
                self.tasks[key] = replace(self.tasks[key], end_acknowledged=True)
            case TaskForgotten(framework_id, task_id):
                del self.tasks[framework_id, task_id]
            case CallDone(framework_id, result):
                mine = self._call_ids().setdefault(framework_id, {})
                self.calls[framework_id, result.call_id] = result
                mine[result.call_id] = None
                while len(mine) > MAX_CALLS_PER_FRAMEWORK:
                    oldest = next(iter(mine))
                    del mine[oldest], self.calls[framework_id, oldest]
            case ReservationsRecorded(agent_id, reservations):
                self.agents[agent_id] = replace(self.agents[agent_id], reservations=reservations)
            case DeviceOrdersRecorded(agent_id, device_orders):
                self.agents[agent_id] = replace(self.agents[agent_id], device_orders=device_orders)
            case LendingRecorded(agent_id, lent):
                self.agents[agent_id] = replace(self.agents[agent_id], lent=lent)
            case AgentPrincipalRecorded(agent_id, principal):
                self.agents[agent_id] = replace(self.agents[agent_id], principal=principal)
            case VolumesRecorded(agent_id, volumes, leaving):
                self.agents[agent_id] = replace(self.agents[agent_id], volumes=volumes, leaving_volumes=leaving)
            case PreemptionRecorded(framework_id, task_id, at):
                key = (framework_id, task_id)
                self.tasks[key] = replace(self.tasks[key], preempt_at_ms=at)
            case RestartOrdered(framework_id, task_id, order):
                key = (framework_id, task_id)
                self.tasks[key] = replace(self.tasks[key], restart=order)
            case FlagRecorded(name, None):
                self.flags.pop(name, None)
            case FlagRecorded(name, str(value)):
                self.flags[name] = value
            case RulesRecorded(rules):
                self.rules = rules
            case RequestDone(request_id, response_type, response):
                self.requests[request_id] = (response_type, response)
                _trim(self.requests, MAX_REQUESTS)
            case RoleGroupRecorded(name, None):
                self.role_groups.pop(name, None)
            case RoleGroupRecorded(name, tuple(members)):
                self.role_groups[name] = members
            case Audited():
                pass  # kept by the registry for people; no program reads it back
            case WeightsRecorded(weights):
                for weight in weights:
                    self.weights.pop(weight.role, None)
                    if weight.weight_milli != DEFAULT_WEIGHT_MILLI:
                        self.weights[weight.role] = weight.weight_milli
            case QuotasRecorded(quotas):
                for quota in quotas:
                    self.quotas.pop(quota.role, None)
                    if quota.guarantees or quota.limits:
                        self.quotas[quota.role] = quota
            case _:
                raise AssertionError(f"not a record: {record!r}")


def _trim(entries: dict[object, object] | dict[str, tuple[str, str]] | dict[FrameworkId, None], limit: int) -> None:
    """Forget the oldest."""
    while len(entries) > limit:
        del entries[next(iter(entries))]  # type: ignore[arg-type]
