"""Agents come, change and leave."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from bursar.core.devices import Device, DeviceHealth, DeviceLink
from bursar.core.errors import InvalidText
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.messages.agent import AgentInfo, DevicesChanged
from bursar.core.resources import (
    GPUS,
    MEM,
    MILLI,
    PORTS,
    Reservation,
    ReservationType,
    ReservedResources,
    Resources,
    Stack,
    add_holdings,
    to_reserved,
)
from bursar.core.task_groups import TASK_GROUPS
from bursar.core.text import parse_amount, parse_attributes, parse_resources
from bursar.core.volumes import PERSISTENT_VOLUMES
from bursar.simulation.scenario.stage import Stage
from bursar.simulation.scenario.verbs.grammar import Action, Names, verb
from bursar.simulation.scenario.verbs.reading import numbers_in
from bursar.simulation.scenario.words import Words

_LINK_STRENGTH = 10


@dataclass(slots=True)
class _Machine:
    """What a script says of an agent's machine."""

    resources: str = ""
    attributes: dict[str, str | int] = field(default_factory=dict)
    model: str = "Simulated GPU"
    gpu_mem_bytes: int = 16 << 30
    #: Sizes of groups of GPUs that NVLink connects, in order.
    cliques: tuple[int, ...] = ()
    unhealthy: tuple[int, ...] = ()
    #: GPUs that are not found any more.
    gone: tuple[int, ...] = ()

    def read(self, words: Words) -> None:
        """What stands behind the name: resources, then keywords."""
        places = ("resources", "attributes", "region", "zone")
        keywords = (*places, "model", "gpu-mem", "cliques", "unhealthy", "healthy", "gone", "back")
        while (keyword := words.keyword(keywords)) is not None:
            match keyword:
                case "resources":
                    self.resources = words.next("resources")
                case "attributes":
                    self.attributes = words.read("attributes", parse_attributes)
                case "region" | "zone":
                    self.attributes[keyword] = words.next(f"the {keyword}")
                case "model":
                    self.model = words.next("the model")
                case "gpu-mem":
                    self.gpu_mem_bytes = parse_amount(MEM, words.next("the memory of a GPU"))
                case "cliques":
                    self.cliques = words.read("the sizes of cliques", numbers_in)
                case "unhealthy":
                    self.unhealthy = words.read("numbers of GPUs", numbers_in)
                case "healthy":
                    self.unhealthy = ()
                case "gone":
                    self.gone = words.read("numbers of GPUs", numbers_in)
                case "back":
                    self.gone = ()

    def declared(self, name: str) -> tuple[tuple[Device, ...], tuple[ReservedResources, ...]]:
        """Devices `<agent>-gpu0`… and resources, as an agent declares them. Raises InvalidText."""
        items = parse_resources(self.resources)
        count = sum(item.amount for item in items if item.kind == GPUS) // MILLI
        uuids = [DeviceUuid(f"{name}-gpu{index}") for index in range(count)]
        free = iter(uuids)
        holding: dict[Stack, Resources] = {}
        for item in items:
            stack: Stack = () if item.holder is None else (Reservation(ReservationType.STATIC, item.holder),)
            if item.kind == GPUS:
                part = Resources(devices=frozenset(next(free) for _ in range(item.amount // MILLI)))
            elif item.kind == PORTS:
                part = Resources(ports=item.ports)
            else:
                part = Resources({item.kind: item.amount} if item.amount else {})
            holding = add_holdings(holding, {stack: part})
        if sum(self.cliques) > count or any(index >= count for index in (*self.unhealthy, *self.gone)):
            raise InvalidText(f"{name} has {count} GPUs", "cliques, unhealthy and gone speak of those, the first is 0")
        gone = {uuids[index] for index in self.gone}
        left = {stack: replace(part, devices=part.devices - gone) for stack, part in holding.items()}
        devices = tuple(self._device(uuids, index) for index in range(count) if index not in self.gone)
        return devices, to_reserved({stack: part for stack, part in left.items() if part})

    def _device(self, uuids: list[DeviceUuid], index: int) -> Device:
        first, peers = 0, []
        for size in self.cliques:
            if first <= index < first + size:
                peers = [uuid for uuid in uuids[first : first + size] if uuid != uuids[index]]
            first += size
        ill = index in self.unhealthy
        return Device(
            uuids[index],
            GPUS,
            model=self.model,
            mem_bytes=self.gpu_mem_bytes,
            index=index,
            links=tuple(DeviceLink(peer, "nvlink", _LINK_STRENGTH) for peer in peers),
            health=DeviceHealth.UNHEALTHY if ill else DeviceHealth.HEALTHY,
            health_reason="the script says so" if ill else "",
        )


_AGENT = (
    "[attributes rack:r1;…] [region R] [zone Z] [model H100] [gpu-mem 80GiB] [cliques 4,4] [unhealthy 0,3] [gone 1]"
)


@verb(f"agent add NAME RESOURCES {_AGENT}")
def _agent_add(words: Words, names: Names) -> Action:
    name = names.declare("agent", words)
    machine = _Machine(words.next("resources"))
    machine.read(words)
    devices, resources = machine.declared(name)
    info = AgentInfo(
        AgentId(name),
        boot_id="boot",
        hostname=name,
        attributes=machine.attributes,
        resources=resources,
        devices=devices,
        capabilities=(TASK_GROUPS, PERSISTENT_VOLUMES),
    )

    def act(stage: Stage) -> None:
        stage.machines[name] = machine
        stage.add_agent(info)

    return act


@verb(f"agent update NAME [resources RESOURCES] {_AGENT} [healthy] [back]")
def _agent_update(words: Words, names: Names) -> Action:
    name = names.known("agent", words)
    given = words.rest()
    _Machine().read(Words(given, words.usage))

    def act(stage: Stage) -> None:
        old: _Machine = stage.machines[name]
        machine = replace(old, attributes=dict(old.attributes))
        machine.read(Words(given, words.usage))
        devices, resources = machine.declared(name)
        agent, stage.machines[name] = stage.agents[name], machine
        same = replace(machine, unhealthy=old.unhealthy, gone=old.gone) == old
        agent.info = replace(agent.info, attributes=machine.attributes, resources=resources, devices=devices)
        if same and agent.connection is not None:
            # The health of devices changes while the agent runs, and they may vanish; for the rest it is started anew.
            agent.say(DevicesChanged(devices, resources))
        elif agent.connection is not None:
            agent.connect()

    return act


@verb("agent deactivate NAME")
def _agent_deactivate(words: Words, names: Names) -> Action:
    name = names.known("agent", words)
    return lambda stage: stage.agents[name].disconnect()


@verb("agent activate NAME")
def _agent_activate(words: Words, names: Names) -> Action:
    name = names.known("agent", words)
    return lambda stage: stage.agents[name].connect()


@verb("agent remove NAME")
def _agent_remove(words: Words, names: Names) -> Action:
    name = names.known("agent", words)

    def act(stage: Stage) -> None:
        stage.agents[name].disconnect()
        stage.settle()
        stage.advance(stage.patience_ms())

    return act


@verb("agent break NAME")
def _agent_break(words: Words, names: Names) -> Action:
    return _breaking(words, names, is_broken=True)


@verb("agent mend NAME")
def _agent_mend(words: Words, names: Names) -> Action:
    return _breaking(words, names, is_broken=False)


def _breaking(words: Words, names: Names, *, is_broken: bool) -> Action:
    name = names.known("agent", words)

    def act(stage: Stage) -> None:
        stage.agents[name].is_broken = is_broken

    return act
