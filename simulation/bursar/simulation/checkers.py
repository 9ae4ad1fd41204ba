"""Judges of the cluster, apart from the code that they judge: each rule is computed anew from what can be seen from outside.

Seen are: what really runs (containers), what is durable (the registry, the checkpoints), and what was said (messages as they
leave). Of the machines' insides only `check()` and the views needed to name a culprit are used. A broken rule raises Violation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bursar.agent.effects import StartContainer
from bursar.agent.machine import AgentMachine
from bursar.agent.state import AgentState, ClusterJoined, GenerationSeen
from bursar.agent.tasks import TaskKey as AgentTaskKey
from bursar.core.clock import Instant
from bursar.core.devices import DeviceCondition, DeviceHealth
from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, Generation, OfferId, TaskId
from bursar.core.machine import Persist, TimePassed
from bursar.core.messages import operator as op
from bursar.core.messages.agent import AcknowledgeUpdates, AgentInfo, DesiredState, Registered, TaskUpdates
from bursar.core.messages.framework import (
    GPU_RESOURCES,
    REVOCABLE_RESOURCES,
    FrameworkInfo,
    LookupResults,
    Offers,
    OfferSettings,
    StatusUpdates,
    Subscribed,
    UpdateFramework,
)
from bursar.core.messages.gangs import Bundle
from bursar.core.messages.offers import Accept, CallResult, Launch, Offer
from bursar.core.messages.rules import Rule, RuleAction, RuleMode
from bursar.core.resources import ReservedResources, ResourceRequest, Resources, Stack, sum_resources
from bursar.core.tasks import AssignedTask, StatusReason, TaskState, TaskStatus
from bursar.master.effects import Reply, SendToFramework
from bursar.master.events import FrameworkCalled, OperatorCalled
from bursar.master.machine import MasterMachine
from bursar.master.records import (
    AgentReachabilityRecorded,
    AgentRecorded,
    Durable,
    FlagRecorded,
    FrameworkRecorded,
    FrameworkRemoved,
    KillRecorded,
    LendingRecorded,
    PreemptionRecorded,
    QuotasRecorded,
    ReservationsRecorded,
    RulesRecorded,
    TaskEnded,
    TaskRecorded,
)
from bursar.simulation.containers import SimulatedContainer
from bursar.simulation.process import Process

Key = tuple[FrameworkId, TaskId]

#: Deadlines of the master whose coming frees nothing and changes nobody's mind.
_QUIET = frozenset({"cycle", "heartbeat"})


#: After the end of a notice, until the master must have acted on it.
NOTICE_SLACK_MS = 1_000
#: Remembered tasks up to which the master's own invariants are looked at in every step.
TASKS_CHECKED = 30


class Violation(AssertionError):
    """A rule of the cluster was broken."""


def require(holds: bool, message: str) -> None:
    """Raise Violation unless a rule holds."""
    if not holds:
        raise Violation(message)


#: Conditions that a device may be in when nothing goes wrong any more.
_LASTING = (DeviceCondition.UNSPECIFIED, DeviceCondition.HEALTHY, DeviceCondition.RETIRED)


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

    @classmethod
    def of(cls, durable: Durable) -> Facts:
        """At the beginning of a reign."""
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
            case LendingRecorded(agent_id, lent):
                self.lent[agent_id] = frozenset(lent)
            case PreemptionRecorded(framework_id, task_id, at_ms):
                self.noticed[framework_id, task_id] = at_ms
            case KillRecorded(framework_id, task_id):
                self.noticed.pop((framework_id, task_id), None)

    def view_of(self, framework: FrameworkInfo, role: str, info: AgentInfo, filter_value: str) -> str:
        """What a framework may see of an agent, by the rules and the flag: `all`, `nothing` or `stripped` of GPUs."""
        for name in self.rules:
            words = RULE_BOOK[name.partition(".")[0]]
            if words.speaks_of(framework, role, info):
                return words.view
        filter_value = self.flags.get("filter-gpu-resources", filter_value)
        if filter_value == "false" or GPU_RESOURCES in framework.capabilities or not info.devices:
            return "all"
        return "nothing" if filter_value == "true" else "stripped"

    def owner_of(self, agent_id: AgentId, uuid: DeviceUuid) -> Stack | None:
        """The bucket of a device: of the most refined reservation that names it, else as declared; None: not there."""
        stacks = [part.stack for part in self.reservations.get(agent_id, ()) if uuid in part.resources.devices]
        declared = [part.stack for part in self.agents[agent_id].resources if uuid in part.resources.devices]
        return max(stacks, key=len) if stacks else (declared[0] if declared else None)

    def amounts_of(self, agent_id: AgentId, stack: Stack) -> dict[str, int]:
        """How much of each scalar kind a bucket has."""
        amounts: dict[str, int] = {}
        for part in self.agents[agent_id].resources:
            if part.stack == stack:
                _add(amounts, part.resources, 1)
        for kept in self.reservations.get(agent_id, ()):
            if kept.stack == stack:
                _add(amounts, kept.resources, 1)
            elif kept.stack[:-1] == stack:
                _add(amounts, kept.resources, -1)
        return amounts


@dataclass(frozen=True, slots=True)
class RuleWords:
    """A rule that the simulated operator may add, and what it means in words of the judge's own."""

    rule: Rule
    #: `all`, `nothing` or `stripped`.
    view: str
    #: (framework, role, agent) → whether the rule speaks of them.
    speaks_of: Callable[[FrameworkInfo, str, AgentInfo], bool]


def _words(
    name: str, view: str, framework: str, agent: str, speaks_of: Callable[[FrameworkInfo, str, AgentInfo], bool]
) -> RuleWords:
    action = {"all": RuleAction.ALLOW, "nothing": RuleAction.HIDE_AGENT, "stripped": RuleAction.STRIP}[view]
    return RuleWords(Rule(name, action, RuleMode.ENFORCE, framework, agent), view, speaks_of)


#: By name; the operator may put a dot and a number behind it.
RULE_BOOK: dict[str, RuleWords] = {
    words.rule.name: words
    for words in (
        _words(
            "no-gpus-for-eng",
            "nothing",
            "role=eng",
            "gpus>=1",
            lambda _, role, info: (role == "eng" or role.startswith("eng/")) and len(info.devices) >= 1,
        ),
        _words(
            "strip-from-everybody",
            "stripped",
            "",
            "gpus>0,hostname=agent-1*",
            lambda _, role, info: bool(info.devices) and info.hostname.startswith("agent-1"),
        ),
        _words(
            "show-the-default-role",
            "all",
            "role=*,lacks=GPU_RESOURCES",
            "",
            lambda framework, role, _: role == "*" and GPU_RESOURCES not in framework.capabilities,
        ),
        _words(
            "hide-large-from-capable",
            "nothing",
            "has=GPU_RESOURCES",
            "gpus>3",
            lambda framework, _, info: GPU_RESOURCES in framework.capabilities and len(info.devices) > 3,
        ),
    )
}


class Wants(Protocol):
    """A framework that wants tasks of one shape."""

    role: str
    capabilities: tuple[str, ...]
    request: ResourceRequest

    @property
    def framework_id(self) -> FrameworkId:
        """Its id."""


def _covers(holder: str, role: str) -> bool:
    return role == holder or role.startswith(f"{holder}/")


def _is_kept(stack: Stack) -> bool:
    """Whether a bucket is kept for one role: what is kept for an expression counts for whoever uses it."""
    return bool(stack) and not any(character in stack[-1].holder for character in '*@&|!=()"')


def _is_taken(settings: OfferSettings, offer: Offer, agent: AgentInfo) -> bool:
    """Read the few forms of constraints and minima that simulated frameworks use, by hand."""
    gpus = sum(len(part.resources.devices) for part in offer.resources)
    cpus_milli = sum(part.resources.scalars.get("cpus", 0) for part in offer.resources)
    true = {
        "gpus>=2": gpus >= 2,
        "gpus<=1": gpus <= 1,
        "!gpus": gpus == 0,
        "cpus>=0.5": cpus_milli >= 500,
        "cpus<=2,gpus>=1": cpus_milli <= 2000 and gpus >= 1,
        "hostname=agent-1|agent-2": agent.hostname in ("agent-1", "agent-2"),
    }
    least = {None: True, "": True, "gpus:1": gpus >= 1, "cpus:1|gpus:2": cpus_milli >= 1000 or gpus >= 2}
    fits = not settings.constraints or any(true[text] for text in settings.constraints)
    return fits and least[settings.min_allocatable]


def _add(amounts: dict[str, int], resources: Resources, sign: int) -> None:
    for kind, amount in resources.scalars.items():
        amounts[kind] = amounts.get(kind, 0) + sign * amount


@dataclass(slots=True)
class FrameworkBook:
    """What one framework said and heard: its side of every promise."""

    #: call → operation → tasks that it would launch.
    launches: dict[str, dict[str, tuple[TaskId, ...]]] = field(default_factory=dict)
    results: dict[str, CallResult] = field(default_factory=dict)
    #: Calls of which the master said that they never happened.
    denied: set[str] = field(default_factory=set)
    #: Tasks whose launch was acknowledged.
    acknowledged: set[TaskId] = field(default_factory=set)
    ends: dict[TaskId, TaskStatus] = field(default_factory=dict)
    seen: set[tuple[TaskId, str]] = field(default_factory=set)


class Checkers:
    """All judges. `thorough`: look at the master's own invariants at every step, not only in small clusters."""

    def __init__(self, *, filter_gpu_resources: str = "true", thorough: bool = False) -> None:
        self._filter = filter_gpu_resources
        self._thorough = thorough
        self._steps = 0
        # Ground truth.
        self._live: dict[DeviceUuid, tuple[AgentId, SimulatedContainer]] = {}
        self._begun: dict[Key, AgentId] = {}
        #: The last container of each task.
        self._runs: dict[Key, SimulatedContainer] = {}
        # The present master.
        self._machine: MasterMachine | None = None
        self._facts = Facts()
        self._quiet = False
        self._now = Instant(0, 0)
        #: Bundles that are out, as they were announced.
        self._bundles: dict[str, set[OfferId]] = {}
        self._picture: Any = None
        self._told_generations: dict[AgentId, Generation] = {}
        self._seen_generations: dict[AgentId, Generation] = {}
        self.books: dict[FrameworkId, FrameworkBook] = {}
        #: How often each rule was looked at: a judge that never sat proves nothing.
        self.verdicts: dict[str, int] = {}

    def _judged(self, rule: str) -> None:
        self.verdicts[rule] = self.verdicts.get(rule, 0) + 1

    # --- what really runs ---

    def container_began(self, agent_id: AgentId, container: SimulatedContainer) -> None:
        """No GPU in two live containers, no task started twice."""
        self._judged("one container per GPU")
        key = (container.framework_id, container.task_id)
        before = self._runs.get(key)
        again = container.may_restart and before is not None and not before.live and self._begun.get(key) == agent_id
        self._runs[key] = container
        require(
            again or key not in self._begun, f"task {key} was started on {self._begun.get(key)} and again on {agent_id}"
        )
        self._begun[key] = agent_id
        for uuid in container.devices:
            owner = self._live.get(uuid)
            if owner is not None and owner[1].live:
                where, other = owner
                raise Violation(
                    f"{uuid} is in two live containers: {other.framework_id}/{other.task_id} on {where} and"
                    f" {container.framework_id}/{container.task_id} on {agent_id}"
                )
            self._live[uuid] = (agent_id, container)

    def container_removed(self, agent_id: AgentId, container: SimulatedContainer) -> None:
        """Only what has ended is removed."""
        require(not container.live, f"{agent_id} removes {container.container_id}, which still runs")

    # --- the master's steps ---

    def master_started(self, machine: MasterMachine, durable: Durable) -> None:
        """What was loaded means what was durable; what a quiet master knew, its successor knows."""
        machine.check()
        self._machine = machine
        self._bundles.clear()
        self._facts = Facts.of(durable)
        require(machine.cluster.durable == durable, "the state that was loaded is not what was committed")
        if self._picture is not None:
            self._judged("a successor knows what was known")
            picture = _picture(machine)
            for name, before in self._picture.items():
                after = picture[name]
                require(before == after, f"{name}: {before!r} before the restart, {after!r} after it")

    def master_died(self, process: Process) -> None:
        """Remember what it knew, if all of that was durable."""
        machine = process.machine
        assert isinstance(machine, MasterMachine)
        self._picture = _picture(machine) if process.at_rest else None
        self._machine = None

    def master_stepping(self, event: Any, now: Instant) -> None:
        """Note whether event-driven work is quiet."""
        machine = self._machine
        assert machine is not None
        cluster = machine.cluster
        self._quiet = False
        self._now = now
        if isinstance(event, TimePassed) and not cluster.is_dirty:
            filters_ms = cluster.filters.deadlines.next_ms()
            due = {kind for (kind, _), at in cluster.deadlines._due.items() if at <= now.monotonic_ms}
            self._quiet = "cycle" in due and due <= _QUIET and (filters_ms is None or filters_ms > now.monotonic_ms)

    def master_stepped(self, event: Any, effects: Sequence[Any]) -> None:
        """Everything that one step may break."""
        machine = self._machine
        assert machine is not None
        self._steps += 1
        # Its cost grows with what is remembered: every step of a small cluster, every so many of a larger one.
        if self._thorough or self._steps % (1 + len(machine.cluster.tasks) // TASKS_CHECKED) == 0:
            machine.check()
        changed = refused = False
        for effect in effects:
            if isinstance(effect, Persist):
                self._judge_borrowing(effect.record)
                self._facts.apply(effect.record)
                changed = True
        for effect in effects:
            match effect:
                case SendToFramework(_, Offers(_, offers)):
                    require(
                        not self._quiet, "a full cycle made offers although event-driven work was quiet: a lost wake-up"
                    )
                    for offer in offers:
                        self._judge_offer(offer, machine)
                case SendToFramework(_, Bundle(bundle_id, gang_id, offers)):
                    require(
                        not self._quiet,
                        f"a full cycle made the bundle of {gang_id} although event-driven work was quiet",
                    )
                    self._bundles[bundle_id] = {offer.offer_id for offer in offers}
                    for offer in offers:
                        require(
                            offer.bundle_id == bundle_id, f"{offer.offer_id} does not say that it is of {bundle_id}"
                        )
                        self._judge_offer(offer, machine)
                case SendToFramework(_, CallResult(error=ErrorDetail())) if isinstance(event, FrameworkCalled):
                    refused = True
                case Reply(_, ErrorDetail()):
                    refused = True
        self._judge_gangs(machine)
        if isinstance(event, TimePassed):
            self._judge_notices()
        if self._quiet:
            self._judged("quiet means that a full cycle makes no offer")
        if refused:
            self._judged("a refusal changes nothing")
            require(not changed, f"refused, and yet something changed: {event!r}")
        if changed and (not isinstance(event, FrameworkCalled) or isinstance(event.call, UpdateFramework)):
            self._judge_outstanding(machine)
        if isinstance(event, OperatorCalled) and changed:
            self._judge_outstanding(machine)

    def _judge_gangs(self, machine: MasterMachine) -> None:
        """A bundle is out as a whole or not at all; what is held for a gang is of use to it, and held for one alone."""
        cluster = machine.cluster
        for bundle_id, offer_ids in list(self._bundles.items()):
            self._judged("a bundle is whole")
            left = offer_ids & cluster.offers.keys()
            require(not left or left == offer_ids, f"of {bundle_id}, {sorted(left)} are out, and the others are not")
            if not left:
                del self._bundles[bundle_id]
        held: dict[str, int] = {}
        for books in cluster.ledger.books.values():
            for part in books.gang_hold.values():
                for kind, amount in part.amounts().items():
                    held[kind] = held.get(kind, 0) + amount
        if held:
            self._judged("a hold is of use")
            holder = cluster.gangs.holder
            require(holder is not None, f"{held} is held for nobody")
            assert holder is not None
            for kind, amount in held.items():
                needed = sum(
                    group.count
                    * (1000 * group.resources.gpus if kind == "gpus" else group.resources.scalars.get(kind, 0))
                    for group in holder.request.groups
                )
                require(amount <= needed, f"{amount} of {kind} is held for {holder.key}, which needs {needed}")

    def _judge_borrowing(self, record: Any) -> None:
        """A task that is new: what is kept for others it only has as borrowed, and only where that is lent."""
        if (
            not isinstance(record, TaskRecorded)
            or (record.task.framework_id, record.task.spec.task_id) in self._facts.tasks
        ):
            return
        task = record.task
        foreign = [
            part.stack for part in task.resources if part.stack and not _covers(part.stack[-1].holder, task.role)
        ]
        what = f"{task.spec.task_id} of {task.framework_id} for {task.role}"
        if foreign:
            self._judged("borrowed is never used as if it were not")
            require(task.revocable, f"{what} gets {foreign} for good")
        if task.revocable:
            lent = self._facts.lent.get(record.agent_id, frozenset())
            require(lent.issuperset(foreign), f"{what} borrows {foreign}, and lent is {sorted(lent)}")

    def _judge_notices(self) -> None:
        """Whoever was given notice is killed when the time is over."""
        for key, at_ms in self._facts.noticed.items():
            self._judged("a notice is followed by the end")
            require(self._now.wall_ms <= at_ms + NOTICE_SLACK_MS, f"{key} was to end at {at_ms}, and nobody ends it")

    def _judge_outstanding(self, machine: MasterMachine) -> None:
        """After a rule, an agent or a reservation changed, no offer stands that could not be made now."""
        self._judged("no forbidden offer stands")
        for outstanding in machine.cluster.offers.values():
            self._judge_visibility(outstanding.offer)

    def _judge_visibility(self, offer: Offer) -> None:
        facts = self._facts
        framework = facts.frameworks.get(offer.framework_id)
        require(framework is not None, f"{offer.offer_id} was made to {offer.framework_id}, which nobody knows")
        assert framework is not None
        info = facts.agents[offer.agent_id]
        view = facts.view_of(framework, offer.role, info, self._filter)
        what = f"{offer.offer_id} shows {offer.agent_id}, which has {len(info.devices)} GPUs, to {offer.framework_id}"
        lacking = "" if GPU_RESOURCES in framework.capabilities else f", which lacks {GPU_RESOURCES}"
        require(
            view != "nothing", f"{what}{lacking}; by the rules {facts.rules} and the flag it must see nothing of it"
        )
        gpus = any(part.resources.devices for part in offer.resources)
        require(
            view != "stripped" or not gpus,
            f"{what}{lacking}; by the rules {facts.rules} and the flag its GPUs are stripped",
        )
        require(offer.role in framework.roles, f"{offer.offer_id} is for the role {offer.role} of {offer.framework_id}")
        if offer.revocable:
            self._judge_loan(offer, framework)
        for part in offer.resources:
            if part.stack and not offer.revocable:
                holder = part.stack[-1].holder
                require(
                    _covers(holder, offer.role),
                    f"{offer.offer_id} gives {offer.role} what is reserved to {holder}",
                )
            for uuid in part.resources.devices:
                bucket = facts.owner_of(offer.agent_id, uuid)
                require(
                    bucket == part.stack,
                    f"{offer.offer_id} offers {uuid} as of {part.stack}, but it belongs to {bucket}",
                )

    def _judge_loan(self, offer: Offer, framework: FrameworkInfo) -> None:
        """What is lent goes, as such, to those who said that they give it back; never to those whom it is kept for."""
        self._judged("what is lent is lent")
        what = f"{offer.offer_id} lends {offer.role} of {offer.framework_id}"
        require(REVOCABLE_RESOURCES in framework.capabilities, f"{what} something, and it lacks {REVOCABLE_RESOURCES}")
        stacks = [part.stack for part in offer.resources if part.stack]
        lent = self._facts.lent.get(offer.agent_id, frozenset())
        require(bool(stacks) and lent.issuperset(stacks), f"{what} {stacks}, and lent is {sorted(lent)}")
        for stack in stacks:
            require(not _covers(stack[-1].holder, offer.role), f"{what} {stack}, which is kept for it")

    def _judge_offer(self, offer: Offer, machine: MasterMachine) -> None:
        """A new offer: permitted, and of what nobody holds."""
        self._judged("an offer is permitted and of free things")
        facts = self._facts
        self._judge_visibility(offer)
        info = facts.agents[offer.agent_id]
        settings = facts.frameworks[offer.framework_id].offer_settings
        for one in settings:
            if one.role == offer.role and not offer.bundle_id:
                self._judged("an offer is what its framework takes")
                require(_is_taken(one, offer, info), f"{offer.offer_id} is not what {offer.framework_id} takes: {one}")
        health = {device.uuid: device.health for device in info.devices}
        held: dict[Stack, list[Resources]] = {}
        holders: dict[DeviceUuid, Any] = {}
        for key, (agent_id, task) in facts.tasks.items():
            if agent_id == offer.agent_id:
                for part in task.resources:
                    held.setdefault(part.stack, []).append(part.resources)
                    holders.update(dict.fromkeys(part.resources.devices, key))
        for outstanding in machine.cluster.offers.values():
            other = outstanding.offer
            if other.agent_id == offer.agent_id:
                for part in other.resources:
                    held.setdefault(part.stack, []).append(part.resources)
                    if other.offer_id != offer.offer_id:
                        holders.update(dict.fromkeys(part.resources.devices, other.offer_id))
        self._judged("a cordoned device is never offered")
        orders = machine.cluster.durable.agents[offer.agent_id].device_orders
        cordoned = {order.uuid for order in orders if order.cordoned}
        for part in offer.resources:
            require(bool(part.resources), f"{offer.offer_id} has an empty part")
            taken = cordoned & part.resources.devices
            require(not taken, f"{offer.offer_id} offers {taken}, which an operator took out of service")
            for uuid in part.resources.devices:
                require(uuid not in holders, f"{offer.offer_id} offers {uuid}, which {holders.get(uuid)} holds")
                require(health.get(uuid) is not DeviceHealth.UNHEALTHY, f"{offer.offer_id} offers {uuid}, which is ill")
            total = facts.amounts_of(offer.agent_id, part.stack)
            for kind in part.resources.scalars:
                used = sum(resources.scalars.get(kind, 0) for resources in held.get(part.stack, ()))
                require(
                    used <= total.get(kind, 0),
                    f"{offer.offer_id}: {used} of {kind} are offered or held on {offer.agent_id} in {part.stack},"
                    f" there are {total.get(kind, 0)}",
                )

        self._judge_limits(offer, machine)

    def _judge_limits(self, offer: Offer, machine: MasterMachine) -> None:
        """No limit of the role or of those above it is passed by what a new offer brings: forced or not, nothing more is given."""
        facts = self._facts
        limits = {
            (role, kind): limit
            for role, quota in facts.quotas.items()
            if _covers(role, offer.role)
            for kind, limit in quota.limits.items()
        }
        loose = [part.resources for part in offer.resources if not _is_kept(part.stack)]
        for (role, kind), limit in limits.items():
            if any(resources.amount(kind) for resources in loose):
                self._judged("no role is offered more than its limit")
                consumed = self._consumed(role, kind, machine)
                require(
                    consumed <= limit,
                    f"{offer.offer_id} lets {role} have {consumed} of {kind}, and its limit is {limit}",
                )

    def _consumed(self, role: str, kind: str, machine: MasterMachine) -> int:
        """All that is reserved to the role and those below it, in use or not, and what they hold of anything else."""
        facts = self._facts
        total = 0
        for agent_id, info in facts.agents.items():
            if agent_id in facts.unreachable:
                continue
            stacks = {part.stack for part in (*info.resources, *facts.reservations.get(agent_id, ()))}
            for stack in stacks:
                if stack and _is_kept(stack) and _covers(role, stack[-1].holder):
                    total += facts.amounts_of(agent_id, stack).get(kind, 0)
                    if kind == "gpus":
                        total += 1000 * sum(facts.owner_of(agent_id, d.uuid) == stack for d in info.devices)
        holders = [(task.role, agent_id, task.resources) for agent_id, task in facts.tasks.values()]
        for outstanding in machine.cluster.offers.values():
            holders.append((outstanding.offer.role, outstanding.offer.agent_id, outstanding.offer.resources))
        for holder, agent_id, parts in holders:
            if _covers(role, holder) and agent_id not in facts.unreachable:
                total += sum(part.resources.amount(kind) for part in parts if not _is_kept(part.stack))
        return total

    # --- what the master lets out: only what is durable ---

    def master_said(self, peer: AgentId | FrameworkId | None, message: Any, durable: Durable) -> None:
        """A message leaves: what it tells must be committed."""
        match message:
            case DesiredState():
                assert peer is not None
                self._judge_desired(AgentId(peer), message, durable)
            case AcknowledgeUpdates(updates):
                for update in updates:
                    task = durable.tasks.get((update.framework_id, update.task_id))
                    require(
                        task is None
                        or task.end is None
                        or task.end_acknowledged
                        or task.end.update_id != update.update_id,
                        f"the end of {update.task_id} is acknowledged to its agent before the registry knows that it is known",
                    )
            case Registered():
                self._durable(peer in durable.agents, f"agent {peer} is let in")
            case Subscribed(framework_id):
                known = framework_id in durable.frameworks or framework_id in durable.removed_frameworks
                self._durable(known, f"framework {framework_id} is subscribed")
            case CallResult(call_id, unknown, error) if error is None and not unknown:
                self._judge_result(peer, call_id, durable)
            case LookupResults(results):
                for result in results:
                    if not result.unknown:
                        self._judge_result(peer, result.call_id, durable)
            case StatusUpdates(statuses):
                for status in statuses:
                    entry = durable.tasks.get((status.framework_id, status.task_id))
                    if status.state.is_terminal and entry is not None:
                        self._durable(entry.end is not None, f"the end of {status.task_id} is told")
            case Offers(_, offers):
                for offer in offers:
                    self._durable(offer.agent_id in durable.agents, f"{offer.offer_id} of {offer.agent_id} is made")

    def _durable(self, holds: bool, what: str) -> None:
        self._judged("nothing is visible before it is durable")
        require(holds, f"visible before durable: {what}, and the registry does not know")

    def _judge_result(self, peer: AgentId | FrameworkId | None, call_id: str, durable: Durable) -> None:
        framework_id = FrameworkId(str(peer))
        known = (framework_id, call_id) in durable.calls or framework_id in durable.removed_frameworks
        # The oldest are forgotten.
        forgotten = len(durable.calls) >= 1000
        self._durable(known or forgotten, f"call {call_id} of {peer} is answered")

    def _judge_desired(self, agent_id: AgentId, message: DesiredState, durable: Durable) -> None:
        before = self._told_generations.get(agent_id, Generation())
        require(
            message.generation >= before,
            f"{agent_id} is told generation {message.generation} after {before}: generations never go back",
        )
        self._told_generations[agent_id] = message.generation
        for task in message.launch:
            entry = durable.tasks.get((task.framework_id, task.spec.task_id))
            self._durable(entry is not None and entry.task == task, f"{task.spec.task_id} is launched")
        for kill in message.kill:
            entry = durable.tasks.get((kill.framework_id, kill.task_id))
            if entry is None:
                removed = kill.framework_id in durable.removed_frameworks
                self._durable(removed, f"{kill.task_id}, a task that nobody knows, is killed")
            else:
                reason = entry.kill_reason is not StatusReason.UNSPECIFIED or entry.end is not None
                self._durable(reason, f"{kill.task_id} is killed for a reason")

    def master_answered(self, answer: Any, durable: Durable) -> None:
        """An operator is told: what was changed must be committed."""
        match answer:
            case op.SetFlagResponse(flag):
                self._durable(flag.name in durable.flags, f"the flag {flag.name} is said to be set")
            case op.TeardownFrameworkResponse(framework):
                gone = framework.info.framework_id in durable.removed_frameworks
                self._durable(gone, f"framework {framework.info.framework_id} is said to be torn down")

    # --- agents ---

    def agent_started(self, agent_id: AgentId, machine: AgentMachine) -> None:
        """A new life begins with what was committed."""
        machine.check()

    def agent_stepped(self, agent_id: AgentId, process: Process, effects: Sequence[Any]) -> None:
        """Its own invariants; and what it begins, as it knew its devices then: an order may come before the start is on disk."""
        machine = process.machine
        machine.check()
        assert isinstance(machine, AgentMachine)
        for effect in effects:
            if isinstance(effect, StartContainer):
                self._judged("a task is begun on healthy devices only")
                for uuid in effect.task.device_uuids:
                    record = machine.books.state.health.get(uuid)
                    require(
                        record is None or record.shown is DeviceCondition.HEALTHY,
                        f"{agent_id} begins {effect.task.spec.task_id} on {uuid}, which is {record.shown.name if record else ''}",
                    )

    def agent_commits(self, agent_id: AgentId, records: Iterable[Any]) -> None:
        """Generations never go back."""
        for record in records:
            if isinstance(record, GenerationSeen):
                self._judged("generations never go back")
                before = self._seen_generations.get(agent_id, Generation())
                require(record.generation > before, f"{agent_id} went from generation {before} to {record.generation}")
                self._seen_generations[agent_id] = record.generation
            elif isinstance(record, ClusterJoined):
                require(bool(record.cluster_id), f"{agent_id} joined a cluster without an id")

    def agent_said(self, agent_id: AgentId, message: Any, checkpoint: AgentState) -> None:
        """A status leaves: it must be in the checkpoint, or have been."""
        if isinstance(message, TaskUpdates):
            for status in message.updates:
                self._judged("a status is in the checkpoint before it is sent")
                key = AgentTaskKey(status.framework_id, status.task_id)
                record = checkpoint.tasks.get(key)
                recorded = key in checkpoint.finished or (
                    record is not None and int(status.update_id) < record.next_update
                )
                require(recorded, f"{agent_id} sends update {status.update_id} of {key} before it is in the checkpoint")

    def agent_starts(self, agent_id: AgentId, effect: StartContainer, checkpoint: AgentState) -> None:
        """A container is begun: its launch must be in the checkpoint."""
        self._judged("a launch is in the checkpoint before it is begun")
        key = AgentTaskKey(effect.task.framework_id, effect.task.spec.task_id)
        require(key in checkpoint.tasks, f"{agent_id} begins {key} before it is in the checkpoint")

    def agent_probes(self, agent_id: AgentId, uuid: DeviceUuid, containers: Iterable[SimulatedContainer]) -> None:
        """A device is probed: nobody has it."""
        self._judged("a device is probed while nobody has it")
        for container in containers:
            require(uuid not in container.devices, f"{agent_id} probes {uuid}, which {container.container_id} has")

    # --- frameworks ---

    def framework_called(self, framework_id: FrameworkId, call: Any) -> None:
        """Remember what was asked for."""
        if isinstance(call, Accept) and call.call_id:
            book = self.books.setdefault(framework_id, FrameworkBook())
            book.denied.discard(call.call_id)
            if call.call_id in book.launches:
                return
            book.launches[call.call_id] = {
                operation.operation_id: tuple(spec.task_id for spec in operation.operation.tasks)
                for operation in call.operations
                if isinstance(operation.operation, Launch)
            }

    def framework_heard(self, framework_id: FrameworkId, event: Any) -> None:
        """Each promise is kept, once."""
        book = self.books.setdefault(framework_id, FrameworkBook())
        match event:
            case StatusUpdates(statuses):
                for status in statuses:
                    self._hear_status(framework_id, book, status)
            case CallResult():
                self._hear_result(book, event)
            case LookupResults(results):
                for result in results:
                    if result.call_id:
                        self._hear_result(book, result)

    def _hear_result(self, book: FrameworkBook, result: CallResult) -> None:
        self._judged("a call has one result")
        before = book.results.get(result.call_id)
        if before is not None:
            require(before == result, f"call {result.call_id} was answered with {before!r}, and later with {result!r}")
        elif result.unknown:
            book.denied.add(result.call_id)
        elif result.error is None:
            book.results[result.call_id] = result
            for operation in result.operations:
                if operation.error is None:
                    book.acknowledged.update(book.launches.get(result.call_id, {}).get(operation.operation_id, ()))

    def _hear_status(self, framework_id: FrameworkId, book: FrameworkBook, status: TaskStatus) -> None:
        require(status.framework_id == framework_id, f"{framework_id} heard of a task of {status.framework_id}")
        end = book.ends.get(status.task_id)
        if not status.update_id:
            if end is not None and status.state is not TaskState.UNKNOWN:
                self._judged("what has ended stays ended")
                require(
                    status.state is end.state,
                    f"{status.task_id} ended {end.state.name}, later it is {status.state.name}",
                )
            return
        token = (status.task_id, status.update_id)
        if token in book.seen:
            return
        book.seen.add(token)
        self._judged("one end per task")
        require(
            end is None,
            f"{status.task_id} ended {end.state.name if end else ''} (update {end.update_id if end else ''}),"
            f" later it is {status.state.name} (update {status.update_id})",
        )
        if status.state.is_terminal:
            book.ends[status.task_id] = status

    # --- at rest ---

    def has_room(self, agent_id: AgentId, framework: Wants) -> bool:
        """Whether one more task of a framework fits beside what runs there, by everything that is allowed."""
        facts = self._facts
        info = facts.agents.get(agent_id)
        if info is None or facts.quotas:
            # Whether quota leaves room is for other judges.
            return False
        known = facts.frameworks.get(framework.framework_id)
        if known is None or facts.view_of(known, framework.role, info, self._filter) != "all":
            return False
        stacks = {part.stack for part in info.resources} | {part.stack for part in facts.reservations.get(agent_id, ())}
        free: dict[str, int] = {}
        mine = [stack for stack in stacks if not stack or _covers(stack[-1].holder, framework.role)]
        for stack in mine:
            for kind, amount in facts.amounts_of(agent_id, stack).items():
                free[kind] = free.get(kind, 0) + amount
        well = [device.uuid for device in info.devices if device.health is not DeviceHealth.UNHEALTHY]
        devices = {uuid for uuid in well if facts.owner_of(agent_id, uuid) in mine}
        for where, task in facts.tasks.values():
            # What is borrowed must come back.
            if where == agent_id and not (
                task.revocable and any(part.stack in mine for part in task.resources if part.stack)
            ):
                for part in task.resources:
                    devices -= part.resources.devices
                    if part.stack in mine:
                        _add(free, part.resources, -1)
        request = framework.request
        enough = all(free.get(kind, 0) >= amount for kind, amount in request.scalars.items())
        return enough and len(devices) >= request.gpu_count

    def unsettled(
        self,
        machine: MasterMachine,
        agents: Mapping[AgentId, tuple[AgentMachine, Sequence[SimulatedContainer]]],
        live_frameworks: Iterable[FrameworkId],
    ) -> list[str]:
        """What is not as it must be once faults have stopped and everything had time to come right; empty: nothing."""
        wrong: list[str] = []
        running: dict[Key, SimulatedContainer] = {}
        for agent_id, (agent_machine, containers) in agents.items():
            for container in containers:
                running[container.framework_id, container.task_id] = container
            held = {uuid for container in containers for uuid in container.devices}
            if agent_machine.live_devices().keys() != held:
                wrong.append(
                    f"{agent_id} counts {sorted(agent_machine.live_devices())} as held, containers hold {held}"
                )
            health = agent_machine.state.health
            idle = [one for one in agent_machine.info.devices if one.uuid not in held]
            idle = [one for one in idle if one.uuid not in health or not health[one.uuid].order]
            if ill := [one.uuid for one in idle if one.condition not in _LASTING]:
                wrong.append(f"{agent_id} has {ill} out of service, although they are well and idle")
            waiting = [key for key, task in agent_machine.state.tasks.items() if task.unacknowledged]
            if waiting:
                wrong.append(f"{agent_id} waits for acknowledgements of {waiting[:3]}")
        live = {tuple(key): task for key, task in machine.cluster.tasks.items() if not task.state.is_terminal}
        for key in sorted(running.keys() - live.keys()):
            wrong.append(f"{key} runs, and no live task accounts for it")
        for key2, task in live.items():
            if key2 not in running:
                wrong.append(f"{key2} is {task.state.name}, and no container runs")
            elif task.state is not TaskState.RUNNING or task.kill_reason is not StatusReason.UNSPECIFIED:
                wrong.append(f"{key2} is {task.state.name} (to end: {task.kill_reason.name})")
        for agent_id, books in machine.cluster.ledger.books.items():
            devices = sum_resources(
                part for entry in books.allocated.values() for part in entry.holding.values()
            ).devices
            there = (
                {uuid for container in agents[agent_id][1] for uuid in container.devices}
                if agent_id in agents
                else set()
            )
            if devices != there:
                wrong.append(f"the ledger holds {sorted(devices)} of {agent_id}, containers {sorted(there)}")
        for framework_id in live_frameworks:
            book = self.books.get(framework_id, FrameworkBook())
            for task_id in sorted(book.acknowledged):
                if (task_id in book.ends) == ((framework_id, task_id) in live):
                    wrong.append(f"{framework_id}/{task_id} was taken; ended: {task_id in book.ends}, live otherwise")
            for call_id in sorted(book.denied):
                for task_ids in book.launches.get(call_id, {}).values():
                    for task_id in task_ids:
                        entry = machine.cluster.durable.tasks.get((framework_id, task_id))
                        if entry is not None and entry.call_id == call_id:
                            wrong.append(f"call {call_id} never happened, but {task_id} was launched by it")
        return wrong


def _picture(machine: MasterMachine) -> dict[str, Any]:
    """What a master must not forget, read from what it works with rather than from what it recorded."""
    cluster = machine.cluster
    return {
        "rules": [compiled.rule for compiled in cluster.visibility.rules if not compiled.built_in],
        "agents": {agent.agent_id: agent.info for agent in cluster.agents.values()},
        "reservations": {agent.agent_id: dict(agent.reservations) for agent in cluster.agents.values()},
        "frameworks": {framework.framework_id: framework.info for framework in cluster.frameworks.values()},
        "held": {
            key: dict(entry.holding)
            for books in cluster.ledger.books.values()
            for key, entry in books.allocated.items()
        },
        "ends": {key: task.status for key, task in cluster.tasks.items() if task.state.is_terminal},
        "kills": {key: (task.kill_reason, task.kill_grace_ms) for key, task in cluster.tasks.items()},
        "flags": dict(cluster.flags.at_run_time),
        "orders": {agent_id: known.device_orders for agent_id, known in cluster.durable.agents.items()},
        "lent": {agent.agent_id: agent.lent for agent in cluster.agents.values()},
        "notices": {key: task.preempt_at_ms for key, task in cluster.tasks.items()},
    }
