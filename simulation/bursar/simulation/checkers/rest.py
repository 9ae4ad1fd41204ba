"""How things must be once faults have stopped and everything had time to come right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from bursar.agent.machine import AgentMachine
from bursar.core.devices import DeviceCondition, DeviceHealth
from bursar.core.ids import AgentId, FrameworkId
from bursar.core.resources import ResourceRequest, sum_resources
from bursar.core.tasks import StatusReason, TaskState
from bursar.master.machine import MasterMachine
from bursar.simulation.checkers.cards import is_on_disk, is_slice
from bursar.simulation.checkers.facts import Facts, Key, add_amounts, covers
from bursar.simulation.checkers.frameworks import FrameworkBook
from bursar.simulation.containers import SimulatedContainer

#: Conditions that a device may be in when nothing goes wrong any more.
_LASTING = (
    DeviceCondition.UNSPECIFIED,
    DeviceCondition.HEALTHY,
    DeviceCondition.RETIRED,
    DeviceCondition.UNCONFIGURED,
)


class Wants(Protocol):
    """A framework that wants tasks of one shape."""

    role: str
    capabilities: tuple[str, ...]
    request: ResourceRequest

    @property
    def framework_id(self) -> FrameworkId:
        """Its id."""


def has_room(facts: Facts, agent_id: AgentId, framework: Wants) -> bool:
    """Whether one more task of a framework fits beside what runs there, by everything that is allowed."""
    info = facts.agents.get(agent_id)
    if info is None or facts.quotas:
        # Whether quota leaves room is for other judges.
        return False
    known = facts.frameworks.get(framework.framework_id)
    if known is None or facts.view_of(known, framework.role, info) != "all":
        return False
    stacks = {part.stack for part in info.resources} | {part.stack for part in facts.reservations.get(agent_id, ())}
    free: dict[str, int] = {}
    mine = [stack for stack in stacks if not stack or covers(stack[-1].holder, framework.role)]
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
                    add_amounts(free, part.resources, -1)
    request = framework.request
    enough = all(free.get(kind, 0) >= amount for kind, amount in request.scalars.items())
    return enough and sum(not is_slice(uuid) for uuid in devices) >= request.gpu_count


def unsettled(
    books: Mapping[FrameworkId, FrameworkBook],
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
            wrong.append(f"{agent_id} counts {sorted(agent_machine.live_devices())} as held, containers hold {held}")
        health = agent_machine.state.health
        idle = [one for one in agent_machine.info.devices if one.uuid not in held]
        idle = [one for one in idle if one.uuid not in health or not health[one.uuid].order]
        if ill := [one.uuid for one in idle if one.condition not in _LASTING]:
            wrong.append(f"{agent_id} has {ill} out of service, although they are well and idle")
        for record in agent_machine.state.tasks.values():
            known = machine.cluster.durable.tasks.get((record.task.framework_id, record.task.spec.task_id))
            order = known.restart if known is not None else None
            if order is not None and order.number > record.restart_order and not record.state.is_terminal:
                wrong.append(
                    f"{record.key} was to be restarted (order {order.number}), and its agent has not heard of it"
                )
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
    for wanted in machine.cluster.images.orders.values():
        for agent_id, pull in wanted.members.items():
            if agent_id in agents and not pull.state.is_over:
                wrong.append(f"{wanted.pull_id} of {wanted.image} on {agent_id} is still {pull.state.name}")
    for agent_id, ledger_books in machine.cluster.ledger.books.items():
        devices = sum_resources(
            part for entry in ledger_books.allocated.values() for part in entry.holding.values()
        ).devices
        devices = frozenset(uuid for uuid in devices if not is_on_disk(uuid))
        there = (
            {uuid for container in agents[agent_id][1] for uuid in container.devices} if agent_id in agents else set()
        )
        if devices != there:
            wrong.append(f"the ledger holds {sorted(devices)} of {agent_id}, containers {sorted(there)}")
    for framework_id in live_frameworks:
        book = books.get(framework_id, FrameworkBook())
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
