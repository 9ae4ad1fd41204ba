"""What the master has decided, as its records say: what the judges hold its words and deeds against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, TaskId
from bursar.core.messages import operator as op
from bursar.core.messages.agent import AgentInfo
from bursar.core.messages.framework import GPU_RESOURCES, FrameworkInfo
from bursar.core.messages.rules import RuleMode
from bursar.core.resources import ReservedResources, Resources, Stack
from bursar.core.tasks import AssignedTask, StatusReason
from bursar.master.records import (
    AgentReachabilityRecorded,
    AgentRecorded,
    Durable,
    FlagRecorded,
    FrameworkRecorded,
    FrameworkRemoved,
    KeptVolume,
    KillRecorded,
    LendingRecorded,
    PreemptionRecorded,
    QuotasRecorded,
    ReservationsRecorded,
    RulesRecorded,
    TaskEnded,
    TaskForgotten,
    TaskRecorded,
    VolumesRecorded,
)
from bursar.simulation.checkers.cards import disk_of, is_on_disk
from bursar.simulation.checkers.rule_book import RULE_BOOK

Key = tuple[FrameworkId, TaskId]


@dataclass(slots=True)
class Facts:
    """What the master has decided so far in this reign, as its records say: durable, or about to be."""

    agents: dict[AgentId, AgentInfo] = field(default_factory=dict)
    reservations: dict[AgentId, tuple[ReservedResources, ...]] = field(default_factory=dict)
    frameworks: dict[FrameworkId, FrameworkInfo] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    #: Names of the rules in force, in their order; what they say is in `RULE_BOOK`.
    rules: tuple[str, ...] = ()
    #: Tasks that have not ended.
    tasks: dict[Key, tuple[AgentId, AssignedTask]] = field(default_factory=dict)
    quotas: dict[str, op.Quota] = field(default_factory=dict)
    unreachable: set[AgentId] = field(default_factory=set)
    #: The reservations that are lent.
    lent: dict[AgentId, frozenset[Stack]] = field(default_factory=dict)
    #: Tasks that were given notice, and when their time is over (wall time); not those that are being killed.
    noticed: dict[Key, int] = field(default_factory=dict)
    #: The filter of GPUs that the master was started with.
    filter_gpu_resources: str = "true"
    volumes: dict[AgentId, tuple[KeptVolume, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, durable: Durable, filter_gpu_resources: str) -> Facts:
        """At the beginning of a reign; with the filter of GPUs that its master was started with."""
        return cls(
            {agent_id: agent.info for agent_id, agent in durable.agents.items()},
            {agent_id: agent.reservations for agent_id, agent in durable.agents.items()},
            {framework_id: framework.info for framework_id, framework in durable.frameworks.items()},
            dict(durable.flags),
            tuple(rule.name for rule in durable.rules if rule.mode is RuleMode.ENFORCE),
            {key: (task.agent_id, task.task) for key, task in durable.tasks.items() if task.end is None},
            dict(durable.quotas),
            {agent_id for agent_id, agent in durable.agents.items() if agent.unreachable},
            {agent_id: frozenset(agent.lent) for agent_id, agent in durable.agents.items()},
            {
                key: task.preempt_at_ms
                for key, task in durable.tasks.items()
                if task.preempt_at_ms and task.end is None and task.kill_reason is StatusReason.UNSPECIFIED
            },
            filter_gpu_resources,
            {agent_id: agent.volumes for agent_id, agent in durable.agents.items()},
        )

    def apply(self, record: Any) -> None:
        """One more decision."""
        match record:
            case AgentRecorded(info):
                self.agents[info.agent_id] = info
                self.unreachable.discard(info.agent_id)
            case AgentReachabilityRecorded(agent_id, unreachable):
                (self.unreachable.add if unreachable else self.unreachable.discard)(agent_id)
            case QuotasRecorded(quotas):
                for quota in quotas:
                    self.quotas.pop(quota.role, None)
                    if quota.guarantees or quota.limits:
                        self.quotas[quota.role] = quota
            case ReservationsRecorded(agent_id, reservations):
                self.reservations[agent_id] = reservations
            case FrameworkRecorded(info):
                self.frameworks[info.framework_id] = info
            case FrameworkRemoved(framework_id):
                self.frameworks.pop(framework_id, None)
            case FlagRecorded(name, value):
                if value is None:
                    self.flags.pop(name, None)
                else:
                    self.flags[name] = value
            case RulesRecorded(rules):
                self.rules = tuple(rule.name for rule in rules if rule.mode is RuleMode.ENFORCE)
            case TaskRecorded(agent_id, task):
                self.tasks[task.framework_id, task.spec.task_id] = (agent_id, task)
            case TaskEnded(status):
                self.tasks.pop((status.framework_id, status.task_id), None)
                self.noticed.pop((status.framework_id, status.task_id), None)
            case TaskForgotten(framework_id, task_id):
                self.tasks.pop((framework_id, task_id), None)
            case LendingRecorded(agent_id, lent):
                self.lent[agent_id] = frozenset(lent)
            case VolumesRecorded(agent_id, volumes):
                self.volumes[agent_id] = volumes
            case PreemptionRecorded(framework_id, task_id, at_ms):
                self.noticed[framework_id, task_id] = at_ms
            case KillRecorded(framework_id, task_id):
                self.noticed.pop((framework_id, task_id), None)

    def view_of(self, framework: FrameworkInfo, role: str, info: AgentInfo) -> str:
        """What a framework may see of an agent, by the rules and the flag: `all`, `nothing` or `stripped` of GPUs."""
        for name in self.rules:
            words = RULE_BOOK[name.partition(".")[0]]
            if words.speaks_of(framework, role, info):
                return words.view
        filter_value = self.flags.get("filter-gpu-resources", self.filter_gpu_resources)
        if filter_value == "false" or GPU_RESOURCES in framework.capabilities or not info.devices:
            return "all"
        return "nothing" if filter_value == "true" else "stripped"

    def owner_of(self, agent_id: AgentId, uuid: DeviceUuid) -> Stack | None:
        """The bucket of a device: of the most refined reservation that names it, else as declared; None: not there."""
        if is_on_disk(uuid):
            return next((one.stack for one in self.volumes.get(agent_id, ()) if one.uuid == uuid), None)
        stacks = [part.stack for part in self.reservations.get(agent_id, ()) if uuid in part.resources.devices]
        declared = [part.stack for part in self.agents[agent_id].resources if uuid in part.resources.devices]
        return max(stacks, key=len) if stacks else (declared[0] if declared else None)

    def amounts_of(self, agent_id: AgentId, stack: Stack) -> dict[str, int]:
        """How much of each scalar kind a bucket has."""
        amounts: dict[str, int] = {}
        for part in self.agents[agent_id].resources:
            if part.stack == stack:
                add_amounts(amounts, part.resources, 1)
        for kept in self.reservations.get(agent_id, ()):
            if kept.stack == stack:
                add_amounts(amounts, kept.resources, 1)
            elif kept.stack[:-1] == stack:
                add_amounts(amounts, kept.resources, -1)
        for volume in self.volumes.get(agent_id, ()):
            if volume.stack == stack:
                amounts["disk"] = amounts.get("disk", 0) - disk_of(volume.uuid)
        return amounts


def is_lent_while_filling(revocable: bool, parts: Iterable[ReservedResources]) -> bool:
    """Whether an offer or a task is on loan of what is held for a gang: nothing of it is reserved."""
    return revocable and not any(part.stack for part in parts)


def covers(holder: str, role: str) -> bool:
    """Whether a role is that of a holder or below it."""
    return role == holder or role.startswith(f"{holder}/")


def is_kept(stack: Stack) -> bool:
    """Whether a bucket is kept for one role: what is kept for an expression counts for whoever uses it."""
    return bool(stack) and not any(character in stack[-1].holder for character in '*@&|!=()"')


def add_amounts(amounts: dict[str, int], resources: Resources, sign: int) -> None:
    """Add scalars to amounts by kind, `sign` times."""
    for kind, amount in resources.scalars.items():
        amounts[kind] = amounts.get(kind, 0) + sign * amount
