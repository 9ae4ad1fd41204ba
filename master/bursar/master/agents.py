"""The life of an agent that is known: what it says, pings, silence, loss; `registration` is how it gets in (mesos.md §2.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace

from bursar.core.device_names import VOLUMES, parent_of
from bursar.core.devices import Device, DeviceCondition, DeviceHealth
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import DeviceUuid, Generation
from bursar.core.messages.agent import (
    AgentInfo,
    DesiredState,
    DeviceOrders,
    DevicesChanged,
    KillTask,
    Ping,
    Pong,
    Registered,
    ResyncRequest,
    TaskRef,
    TaskUpdates,
    VolumeOrders,
)
from bursar.core.messages.framework import AgentFailure
from bursar.core.messages.operator import AgentState
from bursar.core.resources import (
    MAX_AMOUNT,
    InsufficientResources,
    Ports,
    intersect_ports,
    normalize_ports,
    stack_problem,
)
from bursar.core.tasks import AssignedTask, StatusReason, TaskState
from bursar.core.text import format_ports
from bursar.core.volumes import volumes_in
from bursar.master.offers import offers_on, rescind
from bursar.master.records import AgentReachabilityRecorded, AgentRecorded
from bursar.master.state import Agent, Cluster, Turn, buckets_of
from bursar.master.tasks import master_status, on_update
from bursar.master.vacant import is_vacancy, vacancies_of, with_vacancies

#: A launch older than this that its agent never saw is dropped and reported, not sent again.
LAUNCH_TIMEOUT_MS = 60_000


def registered(cluster: Cluster) -> Registered:
    """What an agent that is in is told: by which intervals it and the master time each other out."""
    return Registered(
        cluster.cluster_id,
        cluster.term,
        cluster.flags.duration_ms("agent-ping-timeout"),
        cluster.flags.max_agent_ping_timeouts,
    )


def tell_ping_settings(cluster: Cluster, turn: Turn) -> None:
    """The intervals changed: agents time their master out by them."""
    for agent in cluster.agents.values():
        turn.to_agent(agent, registered(cluster))


def info_problem(info: AgentInfo) -> str | None:
    """Say what is wrong with what an agent declares, or nothing."""
    known = {device.uuid for device in info.devices}
    seen: set[str] = set()
    ports: Ports = ()
    for part in info.resources:
        if problem := stack_problem(part.stack):
            return problem
        for kind, amount in part.resources.scalars.items():
            if amount > MAX_AMOUNT:
                return f"{kind}: {amount} is more than {MAX_AMOUNT}, the largest amount there is"
        unknown = part.resources.devices - known
        if unknown:
            return f"resources name devices that are not described: {', '.join(sorted(unknown))}"
        twice = part.resources.devices & seen
        if twice:
            return f"devices are named twice: {', '.join(sorted(twice))}"
        if volumes := volumes_in(part.resources.devices):
            return f"{VOLUMES} is the kind of persistent volumes, and of no device: {', '.join(volumes)}"
        if VOLUMES in part.resources.scalars:
            return f"{VOLUMES} is the kind of persistent volumes, which are made of reserved disk, not declared"
        seen |= part.resources.devices
        if ports and (common := intersect_ports(ports, part.resources.ports)):
            return f"ports are named twice: {format_ports(common)}"
        ports = normalize_ports((*ports, *part.resources.ports))
    return None


def enter_agent(cluster: Cluster, agent: Agent, *, counted: bool) -> None:
    """Make an agent known, with its books."""
    agent.devices = {device.uuid: device for device in agent.info.devices}
    cluster.add_agent(agent)
    present = agent.state is AgentState.ACTIVE
    cluster.ledger.add_agent(agent.agent_id, agent.buckets(), counted, present)
    withhold_unhealthy(cluster, agent)


def withhold_unhealthy(cluster: Cluster, agent: Agent) -> None:
    """Exactly the devices that are not healthy are withheld, each for its reason."""
    withheld = {device.uuid: why for device in agent.devices.values() if (why := _unhealthy(device))}
    cluster.ledger.set_withheld(agent.agent_id, withheld | cordoned(cluster, agent) | agent.volumes.troubles)


def cordoned(cluster: Cluster, agent: Agent) -> dict[DeviceUuid, str]:
    """The agent's devices that operators took out of service, and why: at once, before the agent has heard of it."""
    known = cluster.durable.agents.get(agent.agent_id)
    orders = known.device_orders if known is not None else ()
    withheld = {
        order.uuid: f"cordoned: by an operator: {order.reason}"
        for order in orders
        if order.cordoned and order.uuid in agent.devices
    }
    cuts = {order.uuid: order.layout for order in orders if order.layout}
    if cuts:
        being_cut = {uuid: cuts[card_of(uuid)] for uuid in agent.devices if card_of(uuid) in cuts}
        withheld |= {uuid: f"busy: its card is being cut: {layout}" for uuid, layout in being_cut.items()}
    return withheld


def card_of(uuid: DeviceUuid) -> DeviceUuid:
    """The card of which a device is a view; a whole device itself."""
    return parent_of(uuid) or uuid


def tell_device_orders(cluster: Cluster, turn: Turn, agent: Agent) -> None:
    """Say what operators ordered, if anything."""
    if orders := cluster.durable.agents[agent.agent_id].device_orders:
        turn.to_agent(agent, DeviceOrders(orders))


def tell_volumes(turn: Turn, agent: Agent) -> None:
    """Say which volumes there are to be, if any; the agent answers with `VolumesHeld`."""
    volumes = agent.volumes
    if volumes.kept or volumes.leaving or volumes.order:
        volumes.order += 1
        make = [volume.uuid for volume in volumes.kept.values() if not volume.made]
        keep = [volume.uuid for volume in volumes.kept.values() if volume.made]
        turn.to_agent(
            agent, VolumeOrders(volumes.order, tuple(sorted(make)), tuple(sorted(keep)), tuple(sorted(volumes.leaving)))
        )


def _unhealthy(device: Device) -> str:
    """Why a device must not be offered; empty where it may."""
    if device.health is not DeviceHealth.UNHEALTHY:
        return ""
    return f"{_condition(device)}: {device.health_reason or 'its driver says so'}"


def _condition(device: Device) -> str:
    """For people; older agents only tell healthy from unhealthy."""
    if device.condition is DeviceCondition.UNSPECIFIED:
        return "unhealthy" if device.health is DeviceHealth.UNHEALTHY else "healthy"
    return device.condition.name.lower()


def tell_of_health(turn: Turn, agent: Agent, before: Mapping[DeviceUuid, Device]) -> None:
    """Those who watch learn of each device that is in another condition now."""
    for uuid, device in sorted(agent.devices.items()):
        old = _condition(before[uuid]) if uuid in before else "healthy"
        if old != _condition(device):
            why = f": {device.health_reason}" if device.health_reason else ""
            text = f"{uuid} of {agent.info.hostname} was {old} and is {_condition(device)}{why}"
            turn.publish("device_health_changed", text, agent_id=agent.agent_id)


def hear(
    cluster: Cluster, turn: Turn, agent: Agent, message: TaskUpdates | Pong | ResyncRequest | DevicesChanged
) -> None:
    """A registered agent spoke."""
    agent.missed_pings = 0
    match message:
        case TaskUpdates(updates):
            for status in updates:
                on_update(cluster, turn, agent, status)
        case Pong():
            cluster.counters.agent_heartbeats += 1
        case ResyncRequest():
            _send_everything(cluster, turn, agent)
        case DevicesChanged():
            change_devices(cluster, turn, agent, message)


def _send_everything(cluster: Cluster, turn: Turn, agent: Agent) -> None:
    launches: list[AssignedTask] = []
    kills: list[KillTask] = []
    keeps: list[TaskRef] = []
    for task in cluster.live_tasks(sorted(agent.tasks)):
        if task.kill_reason is not StatusReason.UNSPECIFIED:
            kills.append(KillTask(*task.key, task.kill_reason, task.kill_grace_ms))
        elif task.status is None and task.state is TaskState.STAGING:
            # Told before on this stream, or young enough when it was opened; an agent that has it ignores it.
            launches.append(task.assigned)
        else:
            keeps.append(TaskRef(*task.key))
    agent.generation = Generation(cluster.term, agent.generation.sequence + 1)
    # An answer to what was asked before this proves nothing any longer.
    agent.comparing.asked = None
    turn.to_agent(agent, DesiredState(agent.generation, None, False, tuple(launches), tuple(kills), tuple(keeps)))


def change_devices(cluster: Cluster, turn: Turn, agent: Agent, message: DevicesChanged) -> None:
    """Health or number of devices changed (M-05): offers are rescinded, what is held stays held."""
    said = replace(agent.info, devices=message.devices, resources=message.resources)
    problem = info_problem(said)
    vacant = vacancies_of(agent)
    info = said if problem else with_vacancies(said, agent.devices, agent.reservations)
    try:
        total = buckets_of(info.resources, agent.reservations, agent.volumes.kept.values())
    except InsufficientResources as error:
        total, problem = {}, problem or str(error)
    if problem:
        # What there is stays as it is, and so do the reservations; how it is, is heard.
        info = replace(agent.info, devices=_as_said(agent.info.devices, message.devices))
    agent.comparing.untaken = message if problem or info is not said else None
    cluster.describe_anew(agent, info)
    before, agent.devices = agent.devices, {device.uuid: device for device in info.devices}
    turn.persist(AgentRecorded(info, agent.description_version, agent.registered_at_ms))
    rescind(cluster, turn, offers_on(cluster, agent.agent_id), "devices of the agent changed")
    if not problem:
        cluster.ledger.set_total(agent.agent_id, total)
    withhold_unhealthy(cluster, agent)
    cluster.touch(agent.agent_id)
    words = f"not taken over: {problem}" if problem else f"devices of {info.hostname} changed"
    turn.publish("devices_changed", words, agent_id=agent.agent_id)
    tell_of_health(turn, agent, before)
    tell_of_vacancies(turn, agent, vacant)
    tell_of_arrivals(turn, agent, before)


def tell_of_vacancies(turn: Turn, agent: Agent, before: AbstractSet[DeviceUuid]) -> None:
    """Those who watch learn which reserved devices an agent has no more, and which are back; `before`: those that were not there."""
    now = vacancies_of(agent)
    for uuid in sorted(now - before):
        holder = next(stack[-1].holder for stack, part in agent.reservations.items() if uuid in part.devices)
        text = f"{agent.info.hostname} has {uuid} no more, which is kept for {holder}: see `bursar reservation rebind`"
        turn.publish("reservation_vacant", text, agent_id=agent.agent_id)
    for uuid in sorted((before - now) & agent.devices.keys()):
        turn.publish("reservation_filled", f"{agent.info.hostname} has {uuid} again", agent_id=agent.agent_id)


def tell_of_arrivals(turn: Turn, agent: Agent, before: Mapping[DeviceUuid, Device]) -> None:
    """Those who watch learn which devices an agent has that it had not `before`: one whose place was given to another is kept for nobody now."""
    cards = {parent_of(uuid) or uuid for uuid in before}
    for uuid in sorted(agent.devices.keys() - before.keys()):
        if is_vacancy(agent.devices[uuid]) or (parent_of(uuid) or uuid) in cards:
            continue  # it is not there; or a card was cut, which has its own events
        holder = next(
            (part.stack[-1].holder for part in agent.info.resources if part.stack and uuid in part.resources.devices),
            "",
        )
        kept = f"which is kept for {holder}" if holder else "which nothing reserved keeps"
        turn.publish("device_appeared", f"{agent.info.hostname} has {uuid} now, {kept}", agent_id=agent.agent_id)


def _as_said(known: Iterable[Device], said: Iterable[Device]) -> tuple[Device, ...]:
    """The devices that were known, each as it is now; one of which nothing is said has vanished."""
    now = {device.uuid: device for device in said}
    return tuple(now.get(device.uuid) or (device if is_vacancy(device) else _vanished(device)) for device in known)


def _vanished(device: Device) -> Device:
    ill, unknown = DeviceHealth.UNHEALTHY, DeviceCondition.UNSPECIFIED
    return replace(device, health=ill, condition=unknown, health_reason="it has vanished")


def stream_ended(cluster: Cluster, turn: Turn, agent: Agent) -> None:
    """The link broke: no offers, tasks go on; given up after the time that pings would have taken."""
    connection = agent.connection
    assert connection is not None
    cluster.agent_connections.pop(connection, None)
    agent.connection = None
    agent.state = AgentState.DISCONNECTED
    cluster.ledger.set_present(agent.agent_id, False)
    # Nobody is offered it; a gang that counted on it looks elsewhere.
    cluster.touch(agent.agent_id)
    rescind(cluster, turn, offers_on(cluster, agent.agent_id), f"agent {agent.info.hostname} disconnected")
    cluster.deadlines.cancel(("ping", agent.agent_id))
    patience_ms = cluster.flags.duration_ms("agent-ping-timeout") * cluster.flags.max_agent_ping_timeouts
    cluster.deadlines.set(("unreachable", agent.agent_id), turn.now.monotonic_ms + patience_ms)
    turn.publish("agent_state_changed", f"agent {agent.info.hostname} disconnected", agent_id=agent.agent_id)


def ping(cluster: Cluster, turn: Turn, agent: Agent) -> None:
    """Ask whether an agent is there; too many pings without an answer, and it is given up (AG-1)."""
    if agent.missed_pings >= cluster.flags.max_agent_ping_timeouts:
        detail = ErrorDetail(ErrorReason.SILENT, "the agent did not answer pings", "it may register again")
        connection = agent.connection
        stream_ended(cluster, turn, agent)
        if connection is not None:
            turn.close(connection, detail)
        give_up(cluster, turn, agent)
        return
    agent.missed_pings += 1
    turn.to_agent(agent, Ping(agent.missed_pings))
    cluster.deadlines.set(
        ("ping", agent.agent_id), turn.now.monotonic_ms + cluster.flags.duration_ms("agent-ping-timeout")
    )


def give_up(cluster: Cluster, turn: Turn, agent: Agent) -> None:
    """An agent is unreachable: its tasks may come back, their devices stay bound to them, nothing of it counts."""
    for kind in ("ping", "unreachable", "reregister"):
        cluster.deadlines.cancel((kind, agent.agent_id))
    agent.state = AgentState.UNREACHABLE
    turn.persist(AgentReachabilityRecorded(agent.agent_id, True))
    cluster.ledger.set_counted(agent.agent_id, False)
    cluster.counters.agents_made_unreachable += 1
    message = f"agent {agent.info.hostname} is unreachable"
    for task in cluster.live_tasks(sorted(agent.tasks)):
        if task.state is not TaskState.UNREACHABLE:
            master_status(cluster, turn, task, TaskState.UNREACHABLE, StatusReason.AGENT_UNREACHABLE, message)
    for framework_id in sorted({key.framework_id for key in agent.tasks}):
        framework = cluster.frameworks.get(framework_id)
        if framework is not None:
            turn.to_framework(framework, AgentFailure(agent.agent_id, message))
    turn.publish("agent_state_changed", message, agent_id=agent.agent_id)
