"""Operators have a GPU cut into instances, or made whole again (docs/devices.md).

The order is durable here, takes the card out of what is offered at once, and is told to the agent now or when it is back. It stands until the
agent has said how it ended.
"""

from __future__ import annotations

from collections.abc import Iterable

from bursar.core.devices import Device, DeviceCondition, DeviceHealth
from bursar.core.errors import ErrorDetail, ErrorReason, InvalidText
from bursar.core.ids import DeviceUuid
from bursar.core.layouts import PARTITION, WHOLE, format_layout, parse_layout
from bursar.core.messages.agent import CutReport, DeviceOrder
from bursar.core.messages.operator import AgentState, PartitionDeviceRequest, PartitionDeviceResponse
from bursar.master.agents import card_of, tell_device_orders, withhold_unhealthy
from bursar.master.device_orders import find_devices
from bursar.master.offers import offers_on, rescind
from bursar.master.records import DeviceOrdersRecorded
from bursar.master.state import Agent, Cluster, Turn
from bursar.master.vacant import is_vacancy


def partition(
    cluster: Cluster, turn: Turn, request: PartitionDeviceRequest, principal: str
) -> PartitionDeviceResponse | ErrorDetail:
    """Order it, or say why not: nothing has changed then."""
    try:
        layout = format_layout(parse_layout(request.layout))
    except InvalidText as error:
        return error.detail
    # By the card's own name, also while it is cut and there is no such device.
    cards = {card_of(one.uuid): one.uuid for known in cluster.agents.values() for one in _there(known)}
    fitting = [uuid for card, uuid in cards.items() if request.device and card.startswith(request.device)]
    found = find_devices(cluster, fitting if len(fitting) == 1 else [request.device])
    if isinstance(found, ErrorDetail):
        return found
    ((agent, devices),) = found
    card = card_of(devices[0].uuid)
    views = frozenset(one.uuid for one in _there(agent) if card_of(one.uuid) == card)
    if problem := _problem(cluster, agent, card, views, layout):
        return problem
    ours = [
        offer_id
        for offer_id in offers_on(cluster, agent.agent_id)
        if any(views & part.resources.devices for part in cluster.offers[offer_id].offer.resources)
    ]
    rescinded = rescind(cluster, turn, ours, "a device is being cut")
    orders = {order.uuid: order for order in cluster.durable.agents[agent.agent_id].device_orders}
    before = orders.get(card)
    at_ms = max(turn.now.wall_ms, before.ordered_at_ms + 1 if before is not None else 1)
    _record(cluster, turn, agent, DeviceOrder(card, False, "", at_ms, layout))
    tell_device_orders(cluster, turn, agent)
    by = f" by {principal}" if principal else ""
    turn.publish("device_cut_ordered", f"{card} of {agent.info.hostname}{by}: {layout}", agent_id=agent.agent_id)
    return PartitionDeviceResponse(card, agent.agent_id, agent.info.hostname, layout, rescinded)


def reported(cluster: Cluster, turn: Turn, agent: Agent, report: CutReport) -> None:
    """An agent says how it ended; it says so again on each stream, which means nothing new."""
    for order in cluster.durable.agents[agent.agent_id].device_orders:
        if order.uuid == report.uuid and order.layout and order.ordered_at_ms == report.ordered_at_ms:
            # What is left is the time, so that a later order is told from this one.
            _record(cluster, turn, agent, DeviceOrder(order.uuid, False, "", order.ordered_at_ms))
            where = f"{report.uuid} of {agent.info.hostname}"
            if report.problem:
                text = f"{where} is not {order.layout}: {report.problem}; there is now: {report.now or 'nobody knows what'}"
                turn.publish("device_not_cut", text, agent_id=agent.agent_id)
            else:
                turn.publish("device_cut", f"{where}: {report.now}", agent_id=agent.agent_id)


def _record(cluster: Cluster, turn: Turn, agent: Agent, order: DeviceOrder) -> None:
    others = (one for one in cluster.durable.agents[agent.agent_id].device_orders if one.uuid != order.uuid)
    turn.persist(DeviceOrdersRecorded(agent.agent_id, (*others, order)))
    withhold_unhealthy(cluster, agent)
    cluster.touch(agent.agent_id)


def _there(agent: Agent) -> Iterable[Device]:
    """What an agent has: the place of an instance that vanished is in nobody's way, and is filled when that is made again."""
    return (device for device in agent.devices.values() if not is_vacancy(device))


def _problem(
    cluster: Cluster, agent: Agent, card: DeviceUuid, views: frozenset[DeviceUuid], layout: str
) -> ErrorDetail | None:
    """Why a card must not be cut now."""
    refused = ErrorReason.CALL_REFUSED
    if agent.state is not AgentState.ACTIVE:
        return ErrorDetail(refused, f"agent {agent.info.hostname} is not connected", "try again when it is", "device")
    if PARTITION not in agent.info.capabilities:
        why = f"agent {agent.info.hostname} cannot cut GPUs"
        return ErrorDetail(
            refused, why, "its device driver cannot (nvml can), or it offers shares (--gpu-shares)", "device"
        )
    if not views:
        return ErrorDetail(refused, f"agent {agent.info.hostname} has {card} no more", "see `bursar gpu ls`", "device")
    for order in cluster.durable.agents[agent.agent_id].device_orders:
        if card_of(order.uuid) == card and order.layout:
            why = f"{card} is being cut already: {order.layout}"
            return ErrorDetail(refused, why, "wait for the event that says how it ended", "device")
        if card_of(order.uuid) == card and order.cordoned:
            return ErrorDetail(refused, f"{order.uuid} is cordoned", "`bursar gpu uncordon` it first", "device")
    books = cluster.ledger.books[agent.agent_id]
    for key, entry in sorted(books.allocated.items()):
        for part in entry.holding.values():
            if held := [uuid for uuid in part.devices if card_of(uuid) == card]:
                why = f"task {key.framework_id}/{key.task_id} has {min(held)}"
                return ErrorDetail(refused, why, "wait until it has ended, or end it (`bursar task kill`)", "device")
    # One without instances has nothing that cutting it could take away, and is only ill for want of them.
    bare = {uuid for uuid in views if agent.devices[uuid].condition is DeviceCondition.UNCONFIGURED}
    for stack, part in books.total.items():
        kept = views & part.devices
        if stack and kept and not (kept <= bare and layout == WHOLE):
            why = f"{min(kept)} is reserved to {stack[-1].holder}"
            return ErrorDetail(refused, why, "`bursar unreserve` it first", "device")
    for uuid in sorted(views - bare):
        if agent.devices[uuid].health is DeviceHealth.UNHEALTHY:
            why = f"{uuid} is not healthy: {agent.devices[uuid].health_reason}"
            return ErrorDetail(refused, why, "cut it when it is (`bursar gpu ls`)", "device")
    return None
