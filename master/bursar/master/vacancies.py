"""Rebinding a reservation from one device to another: from one that vanished or is ill, above all (design.md §4; see `vacant`)."""

from __future__ import annotations

from collections.abc import Iterable

from bursar.core.device_names import device_kind
from bursar.core.devices import Device
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import DeviceUuid, OfferId
from bursar.core.messages.operator import (
    AgentState,
    RebindReservationRequest,
    RebindReservationResponse,
    ReservationView,
)
from bursar.core.resources import EMPTY, Resources, Stack
from bursar.master.agents import withhold_unhealthy
from bursar.master.bundles import let_go
from bursar.master.device_orders import find_devices
from bursar.master.groups import expander
from bursar.master.ledger import TaskKey
from bursar.master.offers import rescind
from bursar.master.records import AgentRecorded
from bursar.master.reservation_sources import free_of
from bursar.master.reservations import record
from bursar.master.state import Agent, Cluster, Turn, buckets_of
from bursar.master.vacant import is_vacancy, with_vacancies, without_vacancies
from bursar.master.views import reservation_views


def rebind(cluster: Cluster, turn: Turn, request: RebindReservationRequest) -> RebindReservationResponse | ErrorDetail:
    """Have a dynamic reservation keep another device of the same agent instead of one that it keeps; or one less (`give_up`).

    What a task holds is never touched; offers that stand in the way are rescinded.
    """
    if request.give_up and request.to:
        return ErrorDetail(
            ErrorReason.INVALID_ARGUMENT, "a device is named for a reservation that is given up", "name none", "to"
        )
    found = find_devices(cluster, [request.device])
    if isinstance(found, ErrorDetail):
        return ErrorDetail(found.reason, found.message, found.hint, "device")
    ((agent, (device,)),) = found
    stacks = sorted((stack for stack, part in agent.reservations.items() if device.uuid in part.devices), key=len)
    if not stacks:
        return _not_kept(cluster, agent, device)
    if agent.state is not AgentState.ACTIVE:
        return ErrorDetail(
            ErrorReason.CALL_REFUSED,
            f"agent {agent.info.hostname} is not connected: what it has now is not known",
            "start `bursar-agent` there, or wait for it to come back; see `bursar agent ls`",
            "device",
        )
    holders = dict(cluster.ledger.device_holders(agent.agent_id))
    if isinstance(holder := holders.get(device.uuid), TaskKey):
        return _in_use(agent, device.uuid, holder, "device")
    base, top = stacks[0][:-1], stacks[-1]
    new = None if request.give_up else _choose(cluster, agent, device, base, top, request.to)
    if isinstance(new, ErrorDetail):
        return new
    offers = [holder for uuid in (device.uuid, new) if uuid and isinstance(holder := holders.get(uuid), str)]
    if request.dry_run:
        return RebindReservationResponse(_view(cluster, agent, top), device.uuid, new or "", len(set(offers)))
    rescinded = _carry_out(cluster, turn, agent, device.uuid, new, stacks, dict.fromkeys(map(OfferId, offers)))
    what = f"instead of {device.uuid}" if new else "is given up"
    text = f"{new or device.uuid} of {agent.info.hostname} {'is kept for ' + top[-1].holder + ' ' if new else ''}{what}"
    turn.publish("reservation_rebound", text, agent_id=agent.agent_id)
    return RebindReservationResponse(_view(cluster, agent, top), device.uuid, new or "", rescinded)


def _carry_out(
    cluster: Cluster,
    turn: Turn,
    agent: Agent,
    old: DeviceUuid,
    new: DeviceUuid | None,
    stacks: Iterable[Stack],
    offers: Iterable[OfferId],
) -> int:
    """Swap the devices in every level that names the old one; return how many offers were rescinded."""
    let_go(cluster, agent.agent_id)
    rescinded = rescind(cluster, turn, list(offers), f"a reservation of {agent.info.hostname} was rebound")
    reservations = dict(agent.reservations)
    for stack in stacks:
        part = reservations[stack]
        devices = part.devices - {old} | ({new} if new else set())
        if left := Resources(part.scalars, part.ports, frozenset(devices)):
            reservations[stack] = left
        else:
            del reservations[stack]
    info = with_vacancies(without_vacancies(agent.info), agent.devices, reservations)
    agent.reservations = reservations
    if info != agent.info:
        cluster.describe_anew(agent, info)
        agent.devices = {device.uuid: device for device in info.devices}
        turn.persist(AgentRecorded(info, agent.description_version, agent.registered_at_ms))
    if not any(map(is_vacancy, info.devices)):
        agent.comparing.untaken = None
    cluster.ledger.set_total(agent.agent_id, buckets_of(info.resources, reservations, agent.volumes.kept.values()))
    withhold_unhealthy(cluster, agent)
    record(cluster, turn, agent.agent_id)
    cluster.touch(agent.agent_id)
    return rescinded


def _choose(
    cluster: Cluster, agent: Agent, old: Device, base: Stack, top: Stack, wanted: str
) -> DeviceUuid | ErrorDetail:
    """The device that takes the place: of what the lowest level was taken from, well, and held by no task.

    What is free before what is offered, the same model before others, the best connected to the others that are kept, in their order.
    """
    books = cluster.ledger.books[agent.agent_id]
    free = free_of(cluster, agent, base)
    offered = books.offered_sum().get(base, EMPTY)
    fitting = {uuid for uuid in free.devices | offered.devices if device_kind(uuid) == old.kind}
    if wanted:
        found = find_devices(cluster, [wanted])
        if isinstance(found, ErrorDetail):
            return ErrorDetail(found.reason, found.message, found.hint, "to")
        ((other, (device,)),) = found
        return device.uuid if device.uuid in fitting else _why_not(cluster, agent, old, base, other, device)
    kept = books.total[top].devices - {old.uuid}

    def order(uuid: DeviceUuid) -> tuple[bool, bool, int, int, DeviceUuid]:
        device = agent.devices[uuid]
        links = sum(link.strength for link in device.links if link.peer_uuid in kept)
        return uuid not in free.devices, device.model != old.model, -links, device.index, uuid

    if not fitting:
        where = "unreserved" if not base else f"reserved to {base[-1].holder}"
        return ErrorDetail(
            ErrorReason.INSUFFICIENT_RESOURCES,
            f"of the {old.kind} that are {where} on {agent.info.hostname}, none is free or offered",
            f"unreserve one, wait for tasks to end, or give the place up: `bursar reservation rebind {old.uuid} --give-up`",
            "device",
        )
    return min(fitting, key=order)


def _why_not(cluster: Cluster, agent: Agent, old: Device, base: Stack, other: Agent, device: Device) -> ErrorDetail:
    """Why a device cannot take the place."""
    books = cluster.ledger.books[agent.agent_id]
    holder = dict(cluster.ledger.device_holders(agent.agent_id)).get(device.uuid)
    if other is not agent:
        what = f"{device.uuid} is on {other.info.hostname}, and the reservation on {agent.info.hostname}"
        hint = "name a device of the same agent; to move it, `bursar unreserve` there and `bursar reserve` here"
    elif device.kind != old.kind:
        what, hint = f"{device.uuid} is one of the {device.kind}, {old.uuid} of the {old.kind}", "name one of its kind"
    elif isinstance(holder, TaskKey):
        return _in_use(agent, device.uuid, holder, "to")
    elif why := books.withheld_devices.get(device.uuid):
        what, hint = f"{device.uuid} is not in service: {why}", "name another one, or none: the master picks"
    else:
        of = next((stack for stack, part in books.total.items() if device.uuid in part.devices), ())
        what = f"{device.uuid} is reserved to {of[-1].holder}" if of else f"{device.uuid} is not free"
        hint = "name another one, or none: the master picks"
    return ErrorDetail(ErrorReason.CALL_REFUSED, what, hint, "to")


def _not_kept(cluster: Cluster, agent: Agent, device: Device) -> ErrorDetail:
    books = cluster.ledger.books[agent.agent_id]
    stack = next((stack for stack, part in books.total.items() if stack and device.uuid in part.devices), None)
    if stack is None:
        what, hint = f"nothing reserved keeps {device.uuid}", "see `bursar reservation ls`"
    else:
        what = f"{device.uuid} is kept for {stack[-1].holder} statically"
        hint = "change the agent's --resources and restart it; a static reservation takes another device by itself then"
    return ErrorDetail(ErrorReason.NOT_FOUND, what, hint, "device")


def _in_use(agent: Agent, uuid: DeviceUuid, holder: TaskKey, field: str) -> ErrorDetail:
    return ErrorDetail(
        ErrorReason.RESOURCES_IN_USE,
        f"task {holder.task_id} of {holder.framework_id} holds {uuid} of {agent.info.hostname}",
        "tasks are never touched: wait for its end, or kill it (`bursar task kill`)",
        field,
    )


def _view(cluster: Cluster, agent: Agent, stack: Stack) -> ReservationView:
    """The reservation as it is now; empty where nothing of it is left."""
    views = reservation_views(cluster, agent, expander(cluster))
    nothing = ReservationView(agent.agent_id, agent.info.hostname, stack, EMPTY)
    return next((view for view in views if view.stack == stack), nothing)
