"""Mirrors `proto/bursar/v1/operator_service.proto`: what operators ask and order, and what they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from bursar.core.devices import Device
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, TaskId
from bursar.core.images import Image, ImagePull
from bursar.core.lives import CheckStatus
from bursar.core.messages.framework import FrameworkInfo
from bursar.core.messages.gangs import GangGroup, GangTopology, OnMemberLost
from bursar.core.messages.offers import Attributes, Demand, Offer
from bursar.core.messages.rules import Rule, RuleAudit, RuleVerdict, RuleView
from bursar.core.resources import EMPTY, Reservation, ReservedResources, ResourceRequest, Resources
from bursar.core.tasks import StatusReason, TaskSpec, TaskState


class AgentState(IntEnum):
    """Mirrors `bursar.v1.AgentState`."""

    UNSPECIFIED = 0
    ACTIVE = 1
    DISCONNECTED = 2
    RECOVERING = 3
    UNREACHABLE = 4


class FrameworkState(IntEnum):
    """Mirrors `bursar.v1.FrameworkState`."""

    UNSPECIFIED = 0
    ACTIVE = 1
    DISCONNECTED = 2
    REMOVED = 3


class RefusalReason(IntEnum):
    """Mirrors `bursar.v1.RefusalReason`; greater is nearer to success."""

    UNSPECIFIED = 0
    AGENT_INACTIVE = 1
    SUPPRESSED = 2
    HIDDEN_BY_RULE = 3
    OTHER_REGION = 4
    OFFER_CONSTRAINTS = 5
    EXCEEDS_AGENT = 6
    RESERVED_FOR_OTHERS = 7
    CAPABILITY_MISSING = 8
    NOT_FREE = 9
    STRIPPED_BY_RULE = 10
    QUOTA_LIMIT = 11
    HEADROOM = 12
    TOO_SMALL = 13
    DECLINED = 14
    OTHERS_FIRST = 15


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list."""

    page_size: int = 0
    page_token: str = ""


@dataclass(frozen=True, slots=True)
class MasterView:
    """The master itself."""

    cluster_id: str
    term: int
    version: str = ""
    address: str = ""
    started_at_ms: int = 0
    agents: int = 0
    frameworks: int = 0
    tasks: int = 0
    offers: int = 0


@dataclass(frozen=True, slots=True)
class AgentView:
    """One agent."""

    agent_id: AgentId
    hostname: str
    state: AgentState
    attributes: Attributes = field(default_factory=dict)
    runtime: str = ""
    version: str = ""
    total: Resources = EMPTY
    free: Resources = EMPTY
    offered: Resources = EMPTY
    allocated: Resources = EMPTY
    withheld: Resources = EMPTY
    withheld_reasons: tuple[str, ...] = ()
    excess: Resources = EMPTY
    buckets: tuple[ReservedResources, ...] = ()
    devices: tuple[Device, ...] = ()
    tasks: int = 0
    registered_at_ms: int = 0
    boot_id: str = ""
    incarnation: int = 0
    runs_without_image: bool = False
    loans: tuple[LoanView, ...] = ()


@dataclass(frozen=True, slots=True)
class OfferHistory:
    """What became of a framework's offers since the master started, and what follows from it."""

    accepted: int = 0
    declined: int = 0
    unanswered: int = 0
    unused_ms: int = 0
    declined_rounds: int = 0
    unanswered_rounds: int = 0
    pause_ms: int = 0


@dataclass(frozen=True, slots=True)
class FrameworkView:
    """One framework."""

    info: FrameworkInfo
    state: FrameworkState
    suppressed_roles: tuple[str, ...] = ()
    demand: Demand = Demand()
    offered: Resources = EMPTY
    allocated: Resources = EMPTY
    offers: int = 0
    tasks: int = 0
    subscribed_at_ms: int = 0
    failover_deadline_ms: int = 0
    history: OfferHistory = OfferHistory()


@dataclass(frozen=True, slots=True)
class RoleView:
    """One role."""

    role: str
    weight_milli: int = 1000
    share_millionths: int = 0
    offered: Resources = EMPTY
    allocated: Resources = EMPTY
    reserved: Resources = EMPTY
    framework_ids: tuple[FrameworkId, ...] = ()
    guarantees: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    consumed: Mapping[str, int] = field(default_factory=dict)
    limit_left: Mapping[str, int] = field(default_factory=dict)
    unmet: Mapping[str, int] = field(default_factory=dict)
    own_weight_milli: int = 1000
    lent: Resources = EMPTY
    borrowed: Resources = EMPTY


@dataclass(frozen=True, slots=True)
class OfferView:
    """One outstanding offer."""

    offer: Offer
    hostname: str = ""
    framework_name: str = ""
    created_at_ms: int = 0


@dataclass(frozen=True, slots=True)
class TaskView:
    """One task."""

    framework_id: FrameworkId
    task_id: TaskId
    name: str = ""
    role: str = ""
    agent_id: AgentId = AgentId("")
    hostname: str = ""
    state: TaskState = TaskState.UNSPECIFIED
    reason: StatusReason = StatusReason.UNSPECIFIED
    message: str = ""
    exit_code: int | None = None
    resources: tuple[ReservedResources, ...] = ()
    spec: TaskSpec | None = None
    launched_at_ms: int = 0
    ended_at_ms: int = 0
    healthy: bool | None = None
    check: CheckStatus | None = None
    revocable: bool = False
    preempt_at_ms: int = 0
    services: tuple[ServiceView, ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceView:
    """One service port, as others reach it."""

    name: str
    address: str
    reach: str


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device of one agent."""

    agent_id: AgentId
    hostname: str
    device: Device
    use: str = "free"
    reserved_to: str = ""
    framework_id: str = ""
    task_id: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ReservationView:
    """What one agent keeps under one stack."""

    agent_id: AgentId
    hostname: str
    stack: tuple[Reservation, ...]
    resources: Resources
    allocated: Resources = EMPTY
    covered_roles: tuple[str, ...] = ()
    lend: bool = False
    on_loan: Resources = EMPTY
    loans: tuple[LoanView, ...] = ()
    vacant: tuple[DeviceUuid, ...] = ()


@dataclass(frozen=True, slots=True)
class LoanView:
    """What somebody has on loan of one agent; without a holder it was lent of what is held for a gang."""

    holder: str
    framework_id: FrameworkId
    framework_name: str = ""
    role: str = ""
    resources: Resources = EMPTY
    offers: int = 0
    tasks: int = 0
    ending: int = 0


@dataclass(frozen=True, slots=True)
class FlagView:
    """One flag and where its value comes from."""

    name: str
    value: str
    source: str


class ObstacleKind(IntEnum):
    """Mirrors `bursar.v1.ObstacleKind`, which says what the fields of an obstacle mean."""

    UNSPECIFIED = 0
    STATE = 1
    RULE = 2
    CONSTRAINT = 3
    SHAPE = 4
    RESERVATION = 5
    CAPABILITY = 6
    TASK = 7
    OFFER = 8
    DEVICE = 9
    LIMIT = 10
    GUARANTEE = 11
    MINIMUM = 12
    FILTER = 13
    COMPETITOR = 14
    GANG = 15


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One thing that stands in the way."""

    kind: ObstacleKind
    name: str = ""
    message: str = ""
    framework_id: str = ""
    agent_id: str = ""
    resource: str = ""
    amount: int = 0
    of: int = 0
    until_ms: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason why offers are not made, and how many agents it concerns."""

    role: str
    reason: RefusalReason
    agents: int
    example_agent_id: str = ""
    message: str = ""
    hint: str = ""
    frameworks: int = 0
    example_framework_id: str = ""
    pairs: int = 0
    obstacles: tuple[Obstacle, ...] = ()
    more_obstacles: int = 0


@dataclass(frozen=True, slots=True)
class ServingPlace:
    """When whose turn is."""

    role: str
    framework_id: str
    place: int = 0
    places: int = 0
    share_millionths: int = 0
    weight_milli: int = 1000
    framework_name: str = ""


@dataclass(frozen=True, slots=True)
class ClusterEvent:
    """One thing that happened, for those who watch."""

    timestamp_ms: int
    kind: str
    agent_id: str = ""
    framework_id: str = ""
    task_id: str = ""
    message: str = ""


# Requests and their responses, in the order of the service.


@dataclass(frozen=True, slots=True)
class GetMasterRequest:
    """The master."""


@dataclass(frozen=True, slots=True)
class GetMasterResponse:
    """The master."""

    master: MasterView


@dataclass(frozen=True, slots=True)
class ListAgentsRequest:
    """All agents."""

    page: Page = Page()


@dataclass(frozen=True, slots=True)
class ListAgentsResponse:
    """A page of agents."""

    agents: tuple[AgentView, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class GetAgentRequest:
    """One agent."""

    agent: str


@dataclass(frozen=True, slots=True)
class GetAgentResponse:
    """One agent."""

    agent: AgentView


@dataclass(frozen=True, slots=True)
class ListFrameworksRequest:
    """All frameworks."""

    page: Page = Page()


@dataclass(frozen=True, slots=True)
class ListFrameworksResponse:
    """A page of frameworks."""

    frameworks: tuple[FrameworkView, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class GetFrameworkRequest:
    """One framework."""

    framework: str


@dataclass(frozen=True, slots=True)
class GetFrameworkResponse:
    """One framework."""

    framework: FrameworkView


@dataclass(frozen=True, slots=True)
class TeardownFrameworkRequest:
    """End a framework."""

    request_id: str
    framework: str


@dataclass(frozen=True, slots=True)
class TeardownFrameworkResponse:
    """What is ending."""

    framework: FrameworkView


@dataclass(frozen=True, slots=True)
class ListRolesRequest:
    """All roles that are in use."""

    page: Page = Page()


@dataclass(frozen=True, slots=True)
class ListRolesResponse:
    """A page of roles."""

    roles: tuple[RoleView, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class ListOffersRequest:
    """All outstanding offers."""

    page: Page = Page()


@dataclass(frozen=True, slots=True)
class ListOffersResponse:
    """A page of offers."""

    offers: tuple[OfferView, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class ListTasksRequest:
    """Tasks."""

    page: Page = Page()
    all: bool = False
    framework: str = ""
    agent: str = ""
    roles: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ListTasksResponse:
    """A page of tasks."""

    tasks: tuple[TaskView, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class GetTaskRequest:
    """One task."""

    task: str


@dataclass(frozen=True, slots=True)
class GetTaskResponse:
    """One task."""

    task: TaskView


@dataclass(frozen=True, slots=True)
class RestartTaskRequest:
    """Start a running task again."""

    request_id: str
    task: str
    grace_ms: int | None = None


@dataclass(frozen=True, slots=True)
class RestartTaskResponse:
    """The task as it is now."""

    task: TaskView


@dataclass(frozen=True, slots=True)
class KillTaskRequest:
    """End a task."""

    request_id: str
    task: str
    grace_ms: int | None = None


@dataclass(frozen=True, slots=True)
class KillTaskResponse:
    """The task as it is now."""

    task: TaskView


@dataclass(frozen=True, slots=True)
class ListDevicesRequest:
    """Devices of all agents, or of one."""

    page: Page = Page()
    agent: str = ""


@dataclass(frozen=True, slots=True)
class ListDevicesResponse:
    """A page of devices."""

    devices: tuple[DeviceView, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class ReserveResourcesRequest:
    """Keep resources of one agent for a role."""

    request_id: str
    agent: str
    role: str
    resources: ResourceRequest
    labels: Mapping[str, str] = field(default_factory=dict)
    force: bool = False
    roles: str = ""
    source: str = ""
    where: str = ""
    dry_run: bool = False
    lend: bool = False


@dataclass(frozen=True, slots=True)
class ReserveResourcesResponse:
    """What was reserved."""

    reservation: ReservationView
    reservations: tuple[ReservationView, ...] = ()
    rescinded_offers: int = 0


@dataclass(frozen=True, slots=True)
class UnreserveResourcesRequest:
    """Give reserved resources back."""

    request_id: str
    agent: str
    role: str
    resources: ResourceRequest
    labels: Mapping[str, str] = field(default_factory=dict)
    roles: str = ""
    where: str = ""
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class UnreserveResourcesResponse:
    """What was unreserved."""

    reservation: ReservationView
    reservations: tuple[ReservationView, ...] = ()
    rescinded_offers: int = 0


@dataclass(frozen=True, slots=True)
class ListReservationsRequest:
    """All reservations."""

    page: Page = Page()


@dataclass(frozen=True, slots=True)
class ListReservationsResponse:
    """A page of reservations."""

    reservations: tuple[ReservationView, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class ListFlagsRequest:
    """All flags of the master."""

    page: Page = Page()


@dataclass(frozen=True, slots=True)
class ListFlagsResponse:
    """A page of flags."""

    flags: tuple[FlagView, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class GetFlagRequest:
    """One flag."""

    name: str


@dataclass(frozen=True, slots=True)
class GetFlagResponse:
    """One flag."""

    flag: FlagView


@dataclass(frozen=True, slots=True)
class SetFlagRequest:
    """Change a flag at run time."""

    request_id: str
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class SetFlagResponse:
    """The flag as it is now."""

    flag: FlagView
    rescinded_offers: int = 0


@dataclass(frozen=True, slots=True)
class UnsetFlagRequest:
    """Undo a change at run time."""

    request_id: str
    name: str


@dataclass(frozen=True, slots=True)
class UnsetFlagResponse:
    """The flag as it is now."""

    flag: FlagView
    rescinded_offers: int = 0


@dataclass(frozen=True, slots=True)
class ListRulesRequest:
    """The visibility rules in the order in which they are asked."""

    page: Page = Page()


@dataclass(frozen=True, slots=True)
class ListRulesResponse:
    """One page."""

    rules: tuple[RuleView, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class AddRuleRequest:
    """Adds a visibility rule, or puts it in the place of the one of the same name."""

    rule: Rule
    #: Name of the rule that it is put before; empty: after all others.
    before: str = ""
    replace: bool = False
    #: Also if nobody would see anything any more.
    force: bool = False
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class AddRuleResponse:
    """The rule as it is now."""

    rule: RuleView
    rescinded_offers: int = 0


@dataclass(frozen=True, slots=True)
class RemoveRuleRequest:
    """Forgets a visibility rule."""

    name: str
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class RemoveRuleResponse:
    """The rule as it was."""

    rule: RuleView
    rescinded_offers: int = 0


@dataclass(frozen=True, slots=True)
class TryRulesRequest:
    """Which rule decides for which framework on which agent? Empty: for all."""

    framework: str = ""
    agent: str = ""
    page: Page = Page()


@dataclass(frozen=True, slots=True)
class TryRulesResponse:
    """One page, in the order of frameworks, roles and agents."""

    verdicts: tuple[RuleVerdict, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class AuditRulesRequest:
    """What would rules in audit mode do if they were enforced?"""


@dataclass(frozen=True, slots=True)
class AuditRulesResponse:
    """One for each rule in audit mode, in their order."""

    audits: tuple[RuleAudit, ...]


@dataclass(frozen=True, slots=True)
class ExplainFrameworkRequest:
    """Why is this framework not offered what it wants?"""

    framework: str
    agent: str = ""
    role: str = ""


@dataclass(frozen=True, slots=True)
class GangStanding:
    """How it stands with a gang that waits, or whose bundle is on offer; `until_ms` is wall time, `place` 0 while on offer."""

    gang_id: str
    framework_id: FrameworkId
    role: str
    tasks: int
    with_room: int
    place: int
    places: int
    holds: bool
    until_ms: int
    reason: RefusalReason
    message: str
    hint: str = ""
    obstacles: tuple[Obstacle, ...] = ()
    framework_name: str = ""


@dataclass(frozen=True, slots=True)
class ExplainFrameworkResponse:
    """The reasons, nearest to success last."""

    refusals: tuple[Refusal, ...]
    agents: int = 0
    outstanding_offers: int = 0
    pairs: int = 0
    examined: int = 0
    offered: int = 0
    due: int = 0
    order: tuple[ServingPlace, ...] = ()
    framework_id: str = ""
    gangs: tuple[GangStanding, ...] = ()


@dataclass(frozen=True, slots=True)
class ExplainRoleRequest:
    """Why are the frameworks of this role not offered what they want?"""

    role: str


@dataclass(frozen=True, slots=True)
class ExplainRoleResponse:
    """The reasons, nearest to success last."""

    refusals: tuple[Refusal, ...]
    agents: int = 0
    outstanding_offers: int = 0
    pairs: int = 0
    examined: int = 0
    offered: int = 0
    due: int = 0
    order: tuple[ServingPlace, ...] = ()
    frameworks: int = 0
    gangs: tuple[GangStanding, ...] = ()


@dataclass(frozen=True, slots=True)
class ExplainAgentRequest:
    """Why is this agent not offered?"""

    agent: str


@dataclass(frozen=True, slots=True)
class ExplainAgentResponse:
    """The reasons, nearest to success last."""

    refusals: tuple[Refusal, ...]
    agent_id: str = ""
    outstanding_offers: int = 0
    pairs: int = 0
    examined: int = 0
    offered: int = 0
    due: int = 0
    order: tuple[ServingPlace, ...] = ()
    hostname: str = ""
    frameworks: int = 0


@dataclass(frozen=True, slots=True)
class RoleWeight:
    """The weight of a role, or of `role/.`: the place of its own frameworks among its children."""

    role: str
    weight_milli: int = 1000


@dataclass(frozen=True, slots=True)
class ListWeightsRequest:
    """The weights that are not 1."""

    page: Page = Page()


@dataclass(frozen=True, slots=True)
class ListWeightsResponse:
    """A page of weights."""

    weights: tuple[RoleWeight, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class SetWeightsRequest:
    """Set the weights of some roles, all or none."""

    request_id: str
    weights: tuple[RoleWeight, ...]


@dataclass(frozen=True, slots=True)
class SetWeightsResponse:
    """Those that were named, as they are now."""

    weights: tuple[RoleWeight, ...]


@dataclass(frozen=True, slots=True)
class Quota:
    """What a role and those below it are kept, and may have at most: kind → thousandths, or bytes; GPUs whole."""

    role: str
    guarantees: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QuotaView:
    """A quota, with what counts against it and what is kept free for it now."""

    quota: Quota
    consumed: Mapping[str, int] = field(default_factory=dict)
    unmet: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ListQuotasRequest:
    """All quotas."""

    page: Page = Page()


@dataclass(frozen=True, slots=True)
class ListQuotasResponse:
    """A page of quotas."""

    quotas: tuple[QuotaView, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class SetQuotasRequest:
    """Replace the quotas of some roles, all or none; an empty one is removed."""

    request_id: str
    quotas: tuple[Quota, ...]
    force: bool = False


@dataclass(frozen=True, slots=True)
class SetQuotasResponse:
    """Those that were named, as they are now."""

    quotas: tuple[QuotaView, ...]
    rescinded_offers: int = 0


@dataclass(frozen=True, slots=True)
class RoleGroupView:
    """One role group."""

    name: str
    members: tuple[str, ...]
    covered_roles: tuple[str, ...] = ()
    reservations: int = 0


@dataclass(frozen=True, slots=True)
class ListRoleGroupsRequest:
    """All role groups."""

    page: Page = Page()


@dataclass(frozen=True, slots=True)
class ListRoleGroupsResponse:
    """A page of role groups."""

    groups: tuple[RoleGroupView, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class SetRoleGroupRequest:
    """Make a role group of these members."""

    request_id: str
    name: str
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SetRoleGroupResponse:
    """The group as it is now."""

    group: RoleGroupView
    rescinded_offers: int = 0


@dataclass(frozen=True, slots=True)
class RemoveRoleGroupRequest:
    """Forget a role group."""

    request_id: str
    name: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class RemoveRoleGroupResponse:
    """The group as it was."""

    group: RoleGroupView
    rescinded_offers: int = 0


@dataclass(frozen=True, slots=True)
class CordonDevicesRequest:
    """Takes devices out of service."""

    devices: tuple[str, ...]
    reason: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class CordonDevicesResponse:
    """The devices as they are now."""

    devices: tuple[DeviceView, ...]
    rescinded_offers: int = 0


@dataclass(frozen=True, slots=True)
class UncordonDevicesRequest:
    """Lifts that, and forgives faults."""

    devices: tuple[str, ...]
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class UncordonDevicesResponse:
    """The devices as they are now."""

    devices: tuple[DeviceView, ...]


@dataclass(frozen=True, slots=True)
class LendReservationsRequest:
    """Lend what is idle of reservations, or lend it no longer."""

    request_id: str
    agent: str = ""
    role: str = ""
    roles: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    withdraw: bool = False


@dataclass(frozen=True, slots=True)
class LendReservationsResponse:
    """The reservations as they are now."""

    reservations: tuple[ReservationView, ...]
    rescinded_offers: int = 0
    preempted_tasks: int = 0


@dataclass(frozen=True, slots=True)
class PartitionDeviceRequest:
    """Cut a GPU into instances, or make it whole again."""

    device: str
    layout: str
    request_id: str


@dataclass(frozen=True, slots=True)
class PartitionDeviceResponse:
    """It is ordered."""

    card: str
    agent_id: AgentId
    hostname: str
    layout: str
    rescinded_offers: int = 0


@dataclass(frozen=True, slots=True)
class PullImageRequest:
    """Have agents pull an image; one of the three says which."""

    image: str
    agents: tuple[str, ...] = ()
    where: str = ""
    all: bool = False
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class ImagePullMember:
    """Where a pull is on one agent."""

    agent_id: AgentId
    hostname: str
    pull: ImagePull


@dataclass(frozen=True, slots=True)
class ImagePullView:
    """An order to have an image on some agents."""

    pull_id: str
    image: str
    principal: str = ""
    ordered_at_ms: int = 0
    members: tuple[ImagePullMember, ...] = ()


@dataclass(frozen=True, slots=True)
class PullImageResponse:
    """What was ordered."""

    pull: ImagePullView


@dataclass(frozen=True, slots=True)
class CancelImagePullRequest:
    """End a pull wherever it is not over."""

    pull: str
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class CancelImagePullResponse:
    """As it is now."""

    pull: ImagePullView


@dataclass(frozen=True, slots=True)
class ListImagePullsRequest:
    """The pulls that were ordered, or one of them."""

    page: Page = Page()
    pull: str = ""


@dataclass(frozen=True, slots=True)
class ListImagePullsResponse:
    """A page of them."""

    pulls: tuple[ImagePullView, ...] = ()
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class ImageView:
    """An image of an agent."""

    agent_id: AgentId
    hostname: str
    image: Image


@dataclass(frozen=True, slots=True)
class ListImagesRequest:
    """Which agents have which images."""

    page: Page = Page()
    agent: str = ""


@dataclass(frozen=True, slots=True)
class ListImagesResponse:
    """A page of them."""

    images: tuple[ImageView, ...] = ()
    next_page_token: str = ""


class GangPhase(IntEnum):
    """Mirrors `bursar.v1.GangPhase`."""

    UNSPECIFIED = 0
    IN_LINE = 1
    FILLING = 2
    CALLING_BACK = 3
    ON_OFFER = 4


@dataclass(frozen=True, slots=True)
class GangView:
    """A gang as operators see it."""

    standing: GangStanding
    phase: GangPhase = GangPhase.UNSPECIFIED
    groups: tuple[GangGroup, ...] = ()
    topology: GangTopology = GangTopology()
    on_member_lost: OnMemberLost = OnMemberLost.UNSPECIFIED
    wanted: Mapping[str, int] = field(default_factory=dict)
    held: Mapping[str, int] = field(default_factory=dict)
    held_agents: int = 0
    on_loan: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, int] = field(default_factory=dict)
    requested_at_ms: int = 0
    holds_since_ms: int = 0
    holds_until_ms: int = 0


@dataclass(frozen=True, slots=True)
class ListGangsRequest:
    """The gangs that wait, or whose bundle is on offer."""

    page: Page = Page()


@dataclass(frozen=True, slots=True)
class ListGangsResponse:
    """A page of them."""

    gangs: tuple[GangView, ...] = ()
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class RebindReservationRequest:
    """Have a reservation keep another device, or one less."""

    request_id: str
    device: str
    to: str = ""
    give_up: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class RebindReservationResponse:
    """The reservation as it is now."""

    reservation: ReservationView
    device_uuid: str
    to: str = ""
    rescinded_offers: int = 0


class VolumeState(IntEnum):
    """How a persistent volume is; mirrors `bursar.v1.VolumeState`."""

    UNSPECIFIED = 0
    FREE = 1
    OFFERED = 2
    IN_USE = 3
    AWAY = 4
    MISSING = 5
    LEAVING = 6
    STRAY = 7


@dataclass(frozen=True, slots=True)
class VolumeView:
    """One persistent volume, or data of one of which there is no record (any more)."""

    agent_id: AgentId
    hostname: str
    uuid: DeviceUuid
    role: str
    volume_id: str
    size_bytes: int
    stack: tuple[Reservation, ...] = ()
    principal: str = ""
    created_at_ms: int = 0
    state: VolumeState = VolumeState.UNSPECIFIED
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ListVolumesRequest:
    """All persistent volumes."""

    page: Page = Page()


@dataclass(frozen=True, slots=True)
class ListVolumesResponse:
    """A page of volumes."""

    volumes: tuple[VolumeView, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class CreateVolumeRequest:
    """Make a persistent volume of disk that is reserved to a role."""

    request_id: str
    agent: str
    role: str
    volume_id: str
    size_bytes: int
    labels: Mapping[str, str] = field(default_factory=dict)
    adopt: bool = False


@dataclass(frozen=True, slots=True)
class CreateVolumeResponse:
    """The new volume."""

    volume: VolumeView
    rescinded_offers: int = 0


@dataclass(frozen=True, slots=True)
class DestroyVolumeRequest:
    """End a persistent volume and its data; or, `stray`, data without a record, of this size where several are there."""

    request_id: str
    agent: str
    role: str
    volume_id: str
    stray: bool = False
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DestroyVolumeResponse:
    """What the volume was."""

    volume: VolumeView
    rescinded_offers: int = 0


OperatorRequest = (
    GetMasterRequest
    | ListAgentsRequest
    | GetAgentRequest
    | ListFrameworksRequest
    | GetFrameworkRequest
    | TeardownFrameworkRequest
    | ListRolesRequest
    | ListOffersRequest
    | ListTasksRequest
    | GetTaskRequest
    | KillTaskRequest
    | RestartTaskRequest
    | ListDevicesRequest
    | ReserveResourcesRequest
    | UnreserveResourcesRequest
    | ListReservationsRequest
    | ListFlagsRequest
    | GetFlagRequest
    | SetFlagRequest
    | UnsetFlagRequest
    | ListRulesRequest
    | AddRuleRequest
    | RemoveRuleRequest
    | TryRulesRequest
    | AuditRulesRequest
    | ExplainFrameworkRequest
    | ListWeightsRequest
    | SetWeightsRequest
    | ListQuotasRequest
    | SetQuotasRequest
    | ExplainRoleRequest
    | ExplainAgentRequest
    | ListRoleGroupsRequest
    | SetRoleGroupRequest
    | RemoveRoleGroupRequest
    | CordonDevicesRequest
    | UncordonDevicesRequest
    | LendReservationsRequest
    | PartitionDeviceRequest
    | PullImageRequest
    | CancelImagePullRequest
    | ListImagePullsRequest
    | ListImagesRequest
    | ListGangsRequest
    | RebindReservationRequest
    | ListVolumesRequest
    | CreateVolumeRequest
    | DestroyVolumeRequest
)
OperatorResponse = (
    GetMasterResponse
    | ListAgentsResponse
    | GetAgentResponse
    | ListFrameworksResponse
    | GetFrameworkResponse
    | TeardownFrameworkResponse
    | ListRolesResponse
    | ListOffersResponse
    | ListTasksResponse
    | GetTaskResponse
    | KillTaskResponse
    | RestartTaskResponse
    | ListDevicesResponse
    | ReserveResourcesResponse
    | UnreserveResourcesResponse
    | ListReservationsResponse
    | ListFlagsResponse
    | GetFlagResponse
    | SetFlagResponse
    | UnsetFlagResponse
    | ListRulesResponse
    | AddRuleResponse
    | RemoveRuleResponse
    | TryRulesResponse
    | AuditRulesResponse
    | ExplainFrameworkResponse
    | ListWeightsResponse
    | SetWeightsResponse
    | ListQuotasResponse
    | SetQuotasResponse
    | ExplainRoleResponse
    | ExplainAgentResponse
    | ListRoleGroupsResponse
    | SetRoleGroupResponse
    | RemoveRoleGroupResponse
    | CordonDevicesResponse
    | UncordonDevicesResponse
    | LendReservationsResponse
    | PartitionDeviceResponse
    | PullImageResponse
    | CancelImagePullResponse
    | ListImagePullsResponse
    | ListImagesResponse
    | ListGangsResponse
    | RebindReservationResponse
    | ListVolumesResponse
    | CreateVolumeResponse
    | DestroyVolumeResponse
)
