"""Persistent volumes: made of reserved disk, kept until they are destroyed, offered like a device (VOL-2, VOL-4).

Which volumes there are is the master's to say, and recorded; whose data is there is the agent's. The two are compared after every
registration and every change: the master tells all that there is to be (`VolumeOrders`), the agent answers with all that it has
(`VolumesHeld`). What is recorded and was made is never made again: a volume whose data is gone is withheld, and said to be so. Data
without a record is told, and stays. Only what was destroyed by somebody is removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from bursar.core.device_names import volume_bytes
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, DeviceUuid, OfferId
from bursar.core.messages.agent import VolumesHeld
from bursar.core.messages.offers import CreateVolume, DestroyVolume
from bursar.core.messages.operator import (
    AgentState,
    CreateVolumeRequest,
    CreateVolumeResponse,
    DestroyVolumeRequest,
    DestroyVolumeResponse,
    VolumeState,
    VolumeView,
)
from bursar.core.resources import (
    DISK,
    EMPTY,
    Holding,
    ResourceRequest,
    Resources,
    Stack,
    add_holdings,
    subtract_holdings,
)
from bursar.core.role_expressions import plain_holder
from bursar.core.text import format_amount
from bursar.core.volumes import (
    PERSISTENT_VOLUMES,
    VolumeName,
    mounted_volumes,
    read_volume,
    role_problem_of,
    volume_device,
    volume_problem,
    volumes_in,
)
from bursar.master.agents import tell_volumes, withhold_unhealthy
from bursar.master.bundles import let_go
from bursar.master.in_the_way import offers_in_the_way
from bursar.master.ledger import TaskKey
from bursar.master.offers import rescind
from bursar.master.records import KeptVolume, VolumesRecorded
from bursar.master.reservation_sources import free_of
from bursar.master.state import Agent, Cluster, Turn
from bursar.master.views import find_agent

_SEE = "see `bursar volume ls`"


# --- changing the books ---


def problem_of_new(
    agent: Agent, role: str, volume_id: str, size_bytes: int, field: str, *, adopt: bool = False
) -> ErrorDetail | None:
    """Say why there cannot be such a volume on an agent, whatever is free there; `adopt`: with data that is there without a record."""
    if problem := volume_problem(volume_id, size_bytes) or role_problem_of(role):
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, problem, "choose another id, or another size", field)
    if PERSISTENT_VOLUMES not in agent.info.capabilities:
        return ErrorDetail(
            ErrorReason.UNSUPPORTED,
            f"agent {agent.info.hostname} keeps no volumes",
            "it is of an earlier version: update it",
            field,
        )
    name = VolumeName(role, volume_id, size_bytes)
    volumes = agent.volumes
    if any(read_volume(uuid).key == name.key for uuid in volumes.kept):
        what, hint = "there is a volume", "choose another id, or destroy that one first (`bursar volume ls`)"
    elif any(read_volume(uuid).key == name.key for uuid in volumes.leaving):
        what, hint = "the data of a former volume is yet to be removed", "try again in a moment"
    elif adopt:
        if volume_device(*name) in volumes.strays:
            return None
        what, hint = "there is no data without a record, and of this size, of a volume", _SEE
    elif any(read_volume(uuid).key == name.key for uuid in volumes.strays):
        what = "there is data without a record of a volume"
        hint = "take it over as it is (--adopt), or have it removed (`bursar volume destroy --stray`); or choose another id"
    else:
        return None
    return ErrorDetail(
        ErrorReason.CALL_REFUSED, f"{what} {volume_id!r} of role {role!r} on {agent.info.hostname}", hint, field
    )


def keep(cluster: Cluster, turn: Turn, agent: Agent, volume: KeptVolume) -> None:
    """Put a volume in the place of disk, which is free by now."""
    agent.volumes.kept[volume.uuid] = volume
    agent.volumes.strays -= {volume.uuid}
    _changed(cluster, turn, agent)
    turn.publish("volume_created", f"volume {_shown(agent, volume.uuid)} is created", agent_id=agent.agent_id)


def give_up(cluster: Cluster, turn: Turn, agent: Agent, uuid: DeviceUuid) -> None:
    """A volume that nobody holds becomes disk again, and its data is removed."""
    agent.volumes.kept.pop(uuid, None)
    agent.volumes.leaving |= {uuid}
    agent.volumes.troubles.pop(uuid, None)
    agent.volumes.strays -= {uuid}
    _changed(cluster, turn, agent)
    turn.publish("volume_destroyed", f"volume {_shown(agent, uuid)} is no more", agent_id=agent.agent_id)


def _changed(cluster: Cluster, turn: Turn, agent: Agent) -> None:
    """Make the books and the registry as the volumes are now, and tell the agent."""
    cluster.ledger.set_total(agent.agent_id, agent.buckets())
    withhold_unhealthy(cluster, agent)
    _record(turn, agent)
    cluster.touch(agent.agent_id)
    tell_volumes(turn, agent)


def _record(turn: Turn, agent: Agent) -> None:
    volumes = agent.volumes
    turn.persist(VolumesRecorded(agent.agent_id, tuple(volumes.kept.values()), tuple(sorted(volumes.leaving))))


def _shown(agent: Agent, uuid: DeviceUuid) -> str:
    name = read_volume(uuid)
    return f"{name} ({format_amount(DISK, name.size_bytes)}) on {agent.info.hostname}"


# --- what frameworks ask, of what they were offered ---


def planned(
    cluster: Cluster, principal: str, at_ms: int, remaining: Mapping[AgentId, Holding], request: CreateVolume, path: str
) -> KeptVolume | ErrorDetail:
    """The volume that is to be made of offered disk: of the most refined reservation to one role that has enough."""
    offered = remaining.get(request.agent_id)
    if offered is None:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, "the offers are of other agents", "", f"{path}.agent_id")
    agent = cluster.agents[request.agent_id]
    for stack in sorted(offered, key=lambda stack: (-len(stack), stack)):
        role = plain_holder(stack[-1].holder) if stack else None
        if role is None or offered[stack].scalars.get(DISK, 0) < request.size_bytes:
            continue
        if problem := problem_of_new(agent, role, request.volume_id, request.size_bytes, f"{path}.volume_id"):
            return problem
        uuid = volume_device(role, request.volume_id, request.size_bytes)
        return KeptVolume(uuid, stack, principal, at_ms)
    if wrong := volume_problem(request.volume_id, request.size_bytes):
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, wrong, "choose another", f"{path}.volume_id")
    return ErrorDetail(
        ErrorReason.INSUFFICIENT_RESOURCES,
        f"the offers have less than {format_amount(DISK, request.size_bytes)} of disk that is reserved to one role",
        "a volume is made of reserved disk: reserve it first, in the same accept if you like",
        f"{path}.size_bytes",
    )


def replaced(holding: Holding, volume: KeptVolume) -> dict[Stack, Resources]:
    """What is left of what was offered, with a volume in place of the disk that it takes."""
    disk, device = as_disk(volume.uuid), Resources(devices=frozenset({volume.uuid}))
    return add_holdings(subtract_holdings(holding, {volume.stack: disk}), {volume.stack: device})


def bucket_of(holding: Holding, request: DestroyVolume, path: str) -> Stack | ErrorDetail:
    """Where among what was offered the volume is that is to end; its disk goes there."""
    stack = next((stack for stack, part in holding.items() if request.uuid in part.devices), None)
    if stack is None or not volumes_in([request.uuid]):
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT,
            f"the offers hold no volume {request.uuid!r}",
            "name one as the offers do, which no task of the same accept takes",
            f"{path}.uuid",
        )
    return stack


def as_disk(uuid: DeviceUuid) -> Resources:
    """What a volume takes."""
    return Resources({DISK: volume_bytes(uuid)})


# --- what agents say ---


def hear(cluster: Cluster, turn: Turn, agent: Agent, message: VolumesHeld) -> None:
    """An agent says whose data it has. What it answered to an older order may be different by now, and only tells of strays."""
    volumes, held = agent.volumes, _well_named(message.held)
    strays = held - volumes.kept.keys() - volumes.leaving
    for uuid in sorted(strays - volumes.strays):
        text = (
            f"{agent.info.hostname} has the data of volume {read_volume(uuid)}, of which there is no record: it stays"
        )
        turn.publish("volume_stray", text, agent_id=agent.agent_id)
    volumes.strays = strays
    if message.order != volumes.order:
        return
    before = dict(volumes.kept), volumes.leaving
    for uuid, volume in volumes.kept.items():
        if uuid in held and not volume.made:
            volumes.kept[uuid] = replace(volume, made=True)
    # Whose data cannot be removed is held still, and asked for again at the next registration.
    volumes.leaving &= held
    if before != (volumes.kept, volumes.leaving):
        _record(turn, agent)
    said = {trouble.uuid: trouble.problem for trouble in message.troubles}
    _note_troubles(cluster, turn, agent, held, said)
    for uuid in sorted(volumes.leaving & said.keys()):
        text = f"the data of volume {read_volume(uuid)} on {agent.info.hostname} cannot be removed: {said[uuid]}"
        turn.publish("volume_not_removed", text, agent_id=agent.agent_id)


def _note_troubles(
    cluster: Cluster, turn: Turn, agent: Agent, held: frozenset[DeviceUuid], said: Mapping[DeviceUuid, str]
) -> None:
    """Volumes whose data is not there are withheld, for as long as it is not; offers of them are rescinded."""
    troubles: dict[DeviceUuid, str] = {}
    for uuid, volume in agent.volumes.kept.items():
        if uuid in held:
            continue
        if volume.made:
            troubles[uuid] = "missing: its data is gone from its agent"
        else:
            # The answer to an order comes once all of it was tried.
            troubles[uuid] = f"missing: it could not be made: {said.get(uuid, 'its agent does not say why')}"
    _withhold(cluster, turn, agent, troubles)


def judge_silent(cluster: Cluster, turn: Turn, agent: Agent) -> None:
    """An agent registered which keeps no volumes (any more): it will never say whose data it has, and can mount none."""
    if PERSISTENT_VOLUMES not in agent.info.capabilities:
        why = "missing: its agent keeps no volumes: it is of an earlier version"
        _withhold(cluster, turn, agent, dict.fromkeys(agent.volumes.kept, why))


def _withhold(cluster: Cluster, turn: Turn, agent: Agent, troubles: dict[DeviceUuid, str]) -> None:
    """Just these are withheld, of the agent's volumes."""
    before, agent.volumes.troubles = agent.volumes.troubles, troubles
    if before == troubles:
        return
    for uuid in sorted(troubles.keys() - before.keys()):
        text = f"volume {_shown(agent, uuid)} is {troubles[uuid]}"
        turn.publish("volume_missing", text, agent_id=agent.agent_id)
    for uuid in sorted(before.keys() & agent.volumes.kept.keys() - troubles.keys()):
        turn.publish("volume_found", f"volume {_shown(agent, uuid)} is there again", agent_id=agent.agent_id)
    offered = {
        OfferId(holder)
        for uuid, holder in cluster.ledger.device_holders(agent.agent_id)
        if uuid in troubles and isinstance(holder, str)
    }
    rescind(cluster, turn, offered, f"the data of a volume of {agent.info.hostname} is missing")
    withhold_unhealthy(cluster, agent)
    cluster.touch(agent.agent_id)


def _well_named(uuids: tuple[DeviceUuid, ...]) -> frozenset[DeviceUuid]:
    """Without what is no name of a volume: somebody else's directory."""
    result = set()
    for uuid in uuids:
        try:
            read_volume(uuid)
        except ValueError:
            continue
        result.add(uuid)
    return frozenset(result)


# --- what operators ask ---


def create(
    cluster: Cluster, turn: Turn, request: CreateVolumeRequest, principal: str
) -> CreateVolumeResponse | ErrorDetail:
    """Make a volume of disk that is reserved to a role, free or offered: offers in the way are rescinded, tasks never touched."""
    agent = find_agent(cluster, request.agent)
    if isinstance(agent, ErrorDetail):
        return agent
    if agent.state is not AgentState.ACTIVE:
        return ErrorDetail(
            ErrorReason.AGENT_UNAVAILABLE,
            f"agent {agent.info.hostname} is not connected",
            "try again when it is",
            "agent",
        )
    if problem := problem_of_new(
        agent, request.role, request.volume_id, request.size_bytes, "volume_id", adopt=request.adopt
    ):
        return problem
    wanted = ResourceRequest({DISK: request.size_bytes})
    labels = tuple(sorted(request.labels.items()))
    lacking: ErrorDetail | None = None
    for stack in _stacks_for(cluster, agent, request.role, labels):
        in_the_way = offers_in_the_way(cluster, agent, wanted, stack, free_of(cluster, agent, stack))
        if isinstance(in_the_way, ErrorDetail):
            lacking = in_the_way
            continue
        let_go(cluster, agent.agent_id)
        rescinded = rescind(cluster, turn, in_the_way, f"a volume was made on {agent.info.hostname}")
        uuid = volume_device(request.role, request.volume_id, request.size_bytes)
        # Data that is taken over was there: should it go, it is not made anew.
        keep(cluster, turn, agent, KeptVolume(uuid, stack, principal, turn.now.wall_ms, made=request.adopt))
        return CreateVolumeResponse(_view(cluster, agent, uuid), rescinded)
    if lacking is not None:
        return ErrorDetail(lacking.reason, lacking.message, "reserve more disk first: `bursar reserve`", "size_bytes")
    return ErrorDetail(
        ErrorReason.INSUFFICIENT_RESOURCES,
        f"{agent.info.hostname} keeps no disk for {request.role!r}: a volume is made of disk that is reserved to one role",
        f"reserve it first: bursar reserve --role {request.role} --agent {agent.info.hostname} --resources disk:…",
        "role",
    )


def _stacks_for(cluster: Cluster, agent: Agent, role: str, labels: tuple[tuple[str, str], ...]) -> list[Stack]:
    """The reservations to just this role, the least refined first."""
    total = cluster.ledger.books[agent.agent_id].total
    return [
        stack
        for stack in sorted(total, key=lambda stack: (len(stack), stack))
        if stack
        and plain_holder(stack[-1].holder) == role
        and (not labels or stack[-1].labels == labels)
        and (DISK in total[stack].scalars)
    ]


def destroy(cluster: Cluster, turn: Turn, request: DestroyVolumeRequest) -> DestroyVolumeResponse | ErrorDetail:
    """End a volume and its data, or, if asked, data without a record: not while a task has it. Offers that hold it are rescinded."""
    agent = find_agent(cluster, request.agent)
    if isinstance(agent, ErrorDetail):
        return agent
    uuid = _meant(agent, request)
    if isinstance(uuid, ErrorDetail):
        return uuid
    holder = _is_held(cluster, agent, uuid)
    if isinstance(holder, TaskKey):
        return in_use(agent, uuid, holder, "volume_id")
    let_go(cluster, agent.agent_id)
    offers = [] if holder is None else [holder]
    rescinded = rescind(cluster, turn, offers, f"a volume of {agent.info.hostname} was destroyed")
    view = _view(cluster, agent, uuid)
    give_up(cluster, turn, agent, uuid)
    return DestroyVolumeResponse(replace(view, state=VolumeState.LEAVING), rescinded)


def _meant(agent: Agent, request: DestroyVolumeRequest) -> DeviceUuid | ErrorDetail:
    """What is to be destroyed: one thing, and never data without a record unless that was asked for."""

    def those(uuids: Iterable[DeviceUuid]) -> list[DeviceUuid]:
        named = [uuid for uuid in sorted(uuids) if read_volume(uuid).key == (request.role, request.volume_id)]
        return [uuid for uuid in named if request.size_bytes in (0, volume_bytes(uuid))]

    strays = those(agent.volumes.strays)
    found = strays if request.stray else those(agent.volumes.kept)
    if len(found) == 1:
        return found[0]
    whose = f"{request.volume_id!r} of role {request.role!r} on {agent.info.hostname}"
    if found:
        sizes = ", ".join(format_amount(DISK, volume_bytes(uuid)) for uuid in found)
        what = f"there is data without a record of several volumes {whose}: {sizes}"
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, what, "say which by its size (--size)", "size_bytes")
    if strays:
        what = f"there is no volume {whose}, but data without a record"
        hint = f"`--stray` removes it; {_SEE}"
        return ErrorDetail(ErrorReason.CALL_REFUSED, what, hint, "stray")
    what = "data without a record of a volume" if request.stray else "volume"
    return ErrorDetail(ErrorReason.NOT_FOUND, f"there is no {what} {whose}", _SEE, "volume_id")


def _is_held(cluster: Cluster, agent: Agent, uuid: DeviceUuid) -> OfferId | TaskKey | None:
    """The offer or task that has a volume."""
    return dict(cluster.ledger.device_holders(agent.agent_id)).get(uuid)


def in_use(agent: Agent, uuid: DeviceUuid, holder: TaskKey, field: str) -> ErrorDetail:
    """A task has it."""
    return ErrorDetail(
        ErrorReason.RESOURCES_IN_USE,
        f"task {holder.task_id} of {holder.framework_id} has volume {read_volume(uuid)} of {agent.info.hostname}",
        "tasks are never touched: wait for its end, or kill it (`bursar task kill`)",
        field,
    )


# --- what launches ask ---


def picked(
    available: Holding, volume_ids: tuple[str, ...], named: tuple[DeviceUuid, ...]
) -> dict[Stack, Resources] | str:
    """The volumes that a task mounts among what is available, by bucket; or the first that is not there."""
    buckets = {uuid: stack for stack, part in available.items() for uuid in volumes_in(part.devices)}
    found = mounted_volumes(buckets, volume_ids, named)
    if isinstance(found, str):
        return found
    result: dict[Stack, Resources] = {}
    for uuid in found:
        stack = buckets[uuid]
        result[stack] = result.get(stack, EMPTY) + Resources(devices=frozenset({uuid}))
    return result


# --- showing ---


def views(cluster: Cluster) -> Iterator[VolumeView]:
    """All volumes, by agent and name."""
    for agent_id in sorted(cluster.agents):
        agent = cluster.agents[agent_id]
        volumes = agent.volumes
        for uuid in sorted({*volumes.kept, *volumes.leaving, *volumes.strays}):
            yield _view(cluster, agent, uuid)


def _view(cluster: Cluster, agent: Agent, uuid: DeviceUuid) -> VolumeView:
    volumes, name = agent.volumes, read_volume(uuid)
    kept = volumes.kept.get(uuid)
    holder = _is_held(cluster, agent, uuid)
    state, detail = VolumeState.FREE, ""
    if kept is None:
        leaving = uuid in volumes.leaving
        state = VolumeState.LEAVING if leaving else VolumeState.STRAY
        detail = "its data is being removed" if leaving else "data without a record"
    elif isinstance(holder, TaskKey):
        state, detail = VolumeState.IN_USE, f"{holder.framework_id}/{holder.task_id}"
    elif agent.state is not AgentState.ACTIVE:
        state, detail = VolumeState.AWAY, "its agent is not connected"
    elif uuid in volumes.troubles:
        state, detail = VolumeState.MISSING, volumes.troubles[uuid].removeprefix("missing: ")
    elif holder is not None:
        state = VolumeState.OFFERED
    return VolumeView(
        agent.agent_id,
        agent.info.hostname,
        uuid,
        name.role,
        name.volume_id,
        name.size_bytes,
        kept.stack if kept else (),
        kept.principal if kept else "",
        kept.created_at_ms if kept else 0,
        state,
        detail,
    )


def check(cluster: Cluster, agent: Agent) -> None:
    """Assert that books, registry and what is known of an agent's volumes agree."""
    recorded = cluster.durable.agents[agent.agent_id]
    volumes = agent.volumes
    assert recorded.volumes == tuple(volumes.kept.values()), agent.agent_id
    assert recorded.leaving_volumes == tuple(sorted(volumes.leaving)), agent.agent_id
    total = cluster.ledger.books[agent.agent_id].total
    there = {uuid: stack for stack, part in total.items() for uuid in volumes_in(part.devices)}
    assert there == {uuid: volume.stack for uuid, volume in volumes.kept.items()}, (agent.agent_id, there)
    keys = [read_volume(uuid).key for uuid in volumes.kept]
    assert len(keys) == len(set(keys)), (agent.agent_id, keys)
    assert volumes.troubles.keys() <= volumes.kept.keys(), agent.agent_id
