"""Mirrors `proto/bursar/v1/offers.proto` and the descriptions of `resources.proto`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bursar.core.devices import Device
from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, DeviceUuid, FrameworkId, OfferId
from bursar.core.resources import Reservation, ReservedResources, ResourceRequest
from bursar.core.tasks import TaskSpec

DEFAULT_REFUSE_MS = 5000
MAX_REFUSE_MS = 365 * 86_400_000

Attributes = Mapping[str, str | int]
"""name → text, or thousandths."""


@dataclass(frozen=True, slots=True)
class AgentDescription:
    """What an offer refers to."""

    agent_id: AgentId
    version: int
    hostname: str
    attributes: Attributes = field(default_factory=dict)
    devices: tuple[Device, ...] = ()
    runtime: str = ""
    runs_without_image: bool = False


@dataclass(slots=True)
class Offer:
    """Resources of one agent promised to one framework in one role. Never changed; not frozen, for a cycle makes many."""

    offer_id: OfferId
    framework_id: FrameworkId
    role: str
    agent_id: AgentId
    description_version: int
    resources: tuple[ReservedResources, ...]
    expires_in_ms: int = 0
    bundle_id: str = ""
    revocable: bool = False


@dataclass(frozen=True, slots=True)
class Filters:
    """How long what was not used should not be offered again; None is the default of 5 s."""

    refuse_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """Starts tasks."""

    tasks: tuple[TaskSpec, ...]


@dataclass(frozen=True, slots=True)
class Reserve:
    """Pushes one reservation level."""

    agent_id: AgentId
    resources: ResourceRequest
    role: str
    labels: Mapping[str, str] = field(default_factory=dict)
    #: The offered reservation that this refines; empty: unreserved resources.
    onto: tuple[Reservation, ...] = ()
    lend: bool = False


@dataclass(frozen=True, slots=True)
class Unreserve:
    """Pops the top level."""

    agent_id: AgentId
    resources: ReservedResources


@dataclass(frozen=True, slots=True)
class CreateVolume:
    """Makes a persistent volume of reserved disk."""

    agent_id: AgentId
    volume_id: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DestroyVolume:
    """Ends a persistent volume that was offered, and its data."""

    agent_id: AgentId
    uuid: DeviceUuid


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing to do with what was offered; None is one that this version does not know."""

    operation_id: str
    operation: Launch | Reserve | Unreserve | CreateVolume | DestroyVolume | None


@dataclass(frozen=True, slots=True)
class Accept:
    """Takes offers, all or nothing unless `partial`."""

    call_id: str
    offer_ids: tuple[OfferId, ...]
    operations: tuple[Operation, ...] = ()
    filters: Filters = Filters()
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Decline:
    """Refuses offers."""

    offer_ids: tuple[OfferId, ...]
    filters: Filters = Filters()


@dataclass(frozen=True, slots=True)
class OperationResult:
    """What became of one operation; no error means done."""

    operation_id: str
    error: ErrorDetail | None = None


@dataclass(frozen=True, slots=True)
class CallResult:
    """The one answer to a call."""

    call_id: str
    unknown: bool = False
    error: ErrorDetail | None = None
    operations: tuple[OperationResult, ...] = ()


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape of work and how many are wanted."""

    role: str
    resources: ResourceRequest
    count: int


@dataclass(frozen=True, slots=True)
class Demand:
    """Everything that a framework wants; version 0 means that none was stated."""

    version: int = 0
    shapes: tuple[Shape, ...] = ()
