"""Mirrors `proto/bursar/v1/gangs.proto`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.messages.offers import Offer
from bursar.core.resources import ResourceRequest


class OnMemberLost(IntEnum):
    """Mirrors `bursar.v1.OnMemberLost`; UNSPECIFIED means RELEASE_ALL."""

    UNSPECIFIED = 0
    RELEASE_ALL = 1
    KEEP = 2


class GangState(IntEnum):
    """Mirrors `bursar.v1.GangState`."""

    UNSPECIFIED = 0
    WAITING = 1
    REFUSED = 2
    EXPIRED = 3
    CANCELLED = 4


@dataclass(frozen=True, slots=True)
class GangGroup:
    """Equal tasks of a gang."""

    resources: ResourceRequest
    count: int


@dataclass(frozen=True, slots=True)
class GangTopology:
    """How the tasks lie to each other."""

    same_attribute: str = ""
    nvlink_clique: bool = False


@dataclass(frozen=True, slots=True)
class RequestGang:
    """Asks for room for all tasks of a gang at once."""

    gang_id: str
    role: str
    groups: tuple[GangGroup, ...]
    topology: GangTopology = GangTopology()
    ttl_ms: int = 0
    on_member_lost: OnMemberLost = OnMemberLost.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class CancelGang:
    """Ends a gang that waits or is on offer."""

    gang_id: str


@dataclass(frozen=True, slots=True)
class BundleMember:
    """One task's place in a bundle."""

    group: int
    agent_id: AgentId
    device_uuids: tuple[DeviceUuid, ...] = ()


@dataclass(frozen=True, slots=True)
class Bundle:
    """The answer to a gang: offers that are taken together."""

    bundle_id: str
    gang_id: str
    offers: tuple[Offer, ...]
    members: tuple[BundleMember, ...]


@dataclass(frozen=True, slots=True)
class GangUpdate:
    """What became of a gang."""

    gang_id: str
    state: GangState
    error: ErrorDetail | None = None
