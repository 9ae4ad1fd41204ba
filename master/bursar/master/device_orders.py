"""What operators order about devices: out of service, and back (docs/health.md).

The order is durable here and withholds the device at once; the agent is told, now or when it is back, and keeps it, too. It lies on top of what
the agent knows of the device's health.
"""

from __future__ import annotations

from collections.abc import Iterable

from bursar.core.devices import Device
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.messages.agent import DeviceOrder
from bursar.core.messages.operator import (
    CordonDevicesRequest,
    CordonDevicesResponse,
    DeviceView,
    UncordonDevicesRequest,
    UncordonDevicesResponse,
)
from bursar.master.agents import card_of, tell_device_orders, withhold_unhealthy
from bursar.master.offers import offers_on, rescind
from bursar.master.records import DeviceOrdersRecorded
from bursar.master.state import Agent, Cluster, Turn
from bursar.master.views import device_views

#: A reason is cut to this many characters.
MAX_REASON_LENGTH = 500


def cordon(
    cluster: Cluster, turn: Turn, request: CordonDevicesRequest, principal: str
) -> CordonDevicesResponse | ErrorDetail:
    """Take devices out of service: all or none."""
    found = find_devices(cluster, request.devices)
    if isinstance(found, ErrorDetail):
        return found
    if problem := _being_cut(cluster, found):
        return problem
    reason = request.reason.strip()[:MAX_REASON_LENGTH] or "no reason was given"
    rescinded = 0
    for agent, devices in found:
        _order(cluster, turn, agent, devices, reason)
        uuids = {device.uuid for device in devices}
        ours = [
            offer_id
            for offer_id in offers_on(cluster, agent.agent_id)
            if any(uuids & part.resources.devices for part in cluster.offers[offer_id].offer.resources)
        ]
        rescinded += rescind(cluster, turn, ours, f"a device was taken out of service: {reason}")
        _settle(cluster, turn, agent)
        names = ", ".join(sorted(uuids))
        by = f" by {principal}" if principal else ""
        turn.publish("devices_cordoned", f"{names} of {agent.info.hostname}{by}: {reason}", agent_id=agent.agent_id)
    return CordonDevicesResponse(_views(cluster, found), rescinded)


def uncordon(cluster: Cluster, turn: Turn, request: UncordonDevicesRequest) -> UncordonDevicesResponse | ErrorDetail:
    """Lift orders, and forgive faults: all or none."""
    found = find_devices(cluster, request.devices)
    if isinstance(found, ErrorDetail):
        return found
    if problem := _being_cut(cluster, found):
        return problem
    for agent, devices in found:
        _order(cluster, turn, agent, devices, None)
        _settle(cluster, turn, agent)
        names = ", ".join(sorted(device.uuid for device in devices))
        turn.publish("devices_uncordoned", f"{names} of {agent.info.hostname}", agent_id=agent.agent_id)
    return UncordonDevicesResponse(_views(cluster, found))


_Found = list[tuple[Agent, list[Device]]]


def find_devices(cluster: Cluster, names: Iterable[str]) -> _Found | ErrorDetail:
    """Devices by uuid or unique prefix, by agent."""
    known = {uuid: agent for agent in cluster.agents.values() for uuid in agent.devices}
    by_agent: dict[AgentId, dict[DeviceUuid, Device]] = {}
    wanted = list(names)
    if not wanted:
        return ErrorDetail(ErrorReason.INVALID_ARGUMENT, "no device is named", "name at least one uuid", "devices")
    for name in wanted:
        fitting = [uuid for uuid in known if uuid == name] or [uuid for uuid in known if name and uuid.startswith(name)]
        if not fitting:
            return ErrorDetail(
                ErrorReason.NOT_FOUND, f"there is no device {name!r}", "`bursar gpu ls` lists them", "devices"
            )
        if len(fitting) > 1:
            shown = ", ".join(sorted(fitting)[:5]) + (", …" if len(fitting) > 5 else "")
            return ErrorDetail(
                ErrorReason.AMBIGUOUS, f"{name!r} fits {len(fitting)} devices: {shown}", "write more of it", "devices"
            )
        agent = known[fitting[0]]
        by_agent.setdefault(agent.agent_id, {})[fitting[0]] = agent.devices[fitting[0]]
    return [(cluster.agents[agent_id], list(devices.values())) for agent_id, devices in sorted(by_agent.items())]


def _being_cut(cluster: Cluster, found: _Found) -> ErrorDetail | None:
    for agent, devices in found:
        cards = {order.uuid for order in cluster.durable.agents[agent.agent_id].device_orders if order.layout}
        for device in devices:
            if card_of(device.uuid) in cards:
                return ErrorDetail(
                    ErrorReason.CALL_REFUSED, f"the card of {device.uuid} is being cut", "wait until it is", "devices"
                )
    return None


def _order(cluster: Cluster, turn: Turn, agent: Agent, devices: Iterable[Device], reason: str | None) -> None:
    """Record the newest order about each device; no reason: it is lifted."""
    orders = {order.uuid: order for order in cluster.durable.agents[agent.agent_id].device_orders}
    for device in devices:
        before = orders.get(device.uuid)
        # Later than the one before, whatever the clock says: the agent heeds only newer ones.
        at_ms = max(turn.now.wall_ms, before.ordered_at_ms + 1 if before is not None else 1)
        orders[device.uuid] = DeviceOrder(device.uuid, reason is not None, reason or "", at_ms)
    turn.persist(DeviceOrdersRecorded(agent.agent_id, tuple(orders.values())))
    tell_device_orders(cluster, turn, agent)


def _settle(cluster: Cluster, turn: Turn, agent: Agent) -> None:
    withhold_unhealthy(cluster, agent)
    cluster.touch(agent.agent_id)


def _views(cluster: Cluster, found: _Found) -> tuple[DeviceView, ...]:
    wanted = {device.uuid for _, devices in found for device in devices}
    return tuple(view for agent, _ in found for view in device_views(cluster, agent) if view.device.uuid in wanted)
