"""What agents do, and what really runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bursar.agent.effects import StartContainer
from bursar.agent.machine import AgentMachine
from bursar.agent.state import AgentState, ClusterJoined, GenerationSeen, TaskSaved
from bursar.agent.tasks import TaskKey, TaskRecord
from bursar.core.devices import DeviceCondition
from bursar.core.ids import AgentId, DeviceUuid, Generation
from bursar.core.machine import Persist
from bursar.core.messages.agent import TaskUpdates
from bursar.core.tasks import StatusReason, StatusSource
from bursar.master.records import TaskEnded
from bursar.simulation.checkers.facts import Key
from bursar.simulation.checkers.verdicts import Judge, Violation, require
from bursar.simulation.containers import SimulatedContainer
from bursar.simulation.process import Process


class AgentJudge(Judge):
    """Of agents and their containers."""

    def __init__(self, verdicts: Counter[str]) -> None:
        super().__init__(verdicts)
        #: Where each task was started.
        self.begun: dict[Key, AgentId] = {}
        self._live: dict[DeviceUuid, tuple[AgentId, SimulatedContainer]] = {}
        #: The last container of each task.
        self._runs: dict[Key, SimulatedContainer] = {}
        self._seen_generations: dict[AgentId, Generation] = {}
        self._ports: dict[tuple[AgentId, int], SimulatedContainer] = {}
        #: Of each task: the newest order to restart it, and whether it is being restarted for one; all orders that were carried out.
        self._orders: dict[TaskKey, tuple[int, bool]] = {}
        self._carried_out: dict[TaskKey, set[int]] = {}

    def container_began(self, agent_id: AgentId, container: SimulatedContainer) -> None:
        """No GPU in two live containers, no task started twice."""
        self._judged("one container per GPU")
        key = (container.framework_id, container.task_id)
        before = self._runs.get(key)
        may_begin_again = container.may_restart or TaskKey(*key) in self._carried_out
        again = may_begin_again and before is not None and not before.live and self.begun.get(key) == agent_id
        self._runs[key] = container
        require(
            again or key not in self.begun, f"task {key} was started on {self.begun.get(key)} and again on {agent_id}"
        )
        self.begun[key] = agent_id
        for uuid in container.devices:
            owner = self._live.get(uuid)
            if owner is not None and owner[1].live:
                where, other = owner
                raise Violation(
                    f"{uuid} is in two live containers: {other.framework_id}/{other.task_id} on {where} and"
                    f" {container.framework_id}/{container.task_id} on {agent_id}"
                )
            self._live[uuid] = (agent_id, container)
        for port in container.host_ports:
            self._judged("one container per host port")
            holder = self._ports.get((agent_id, port))
            require(
                holder is None or not holder.live,
                f"port {port} of {agent_id} is in two live containers: of {holder and holder.task_id} and of {container.task_id}",
            )
            self._ports[agent_id, port] = container

    def container_began_on(
        self, agent_id: AgentId, container: SimulatedContainer, left: Mapping[DeviceUuid, int]
    ) -> None:
        """Nobody is given a device that a process of an ended task still uses (F49-14)."""
        self._judged("no task is begun on a device that another one's process uses")
        for uuid in container.devices:
            who = f"process {left.get(uuid)} of an ended task"
            require(uuid not in left, f"{agent_id} begins {container.task_id} on {uuid}, which {who} still uses")

    def container_removed(self, agent_id: AgentId, container: SimulatedContainer) -> None:
        """Only what has ended is removed."""
        require(not container.live, f"{agent_id} removes {container.container_id}, which still runs")

    def started(self, agent_id: AgentId, machine: AgentMachine) -> None:
        """A new life begins with what was committed."""
        machine.check()

    def stepped(self, agent_id: AgentId, process: Process, effects: Sequence[Any]) -> None:
        """Its own invariants; and what it begins, as it knew its devices then: an order may come before the start is on disk."""
        machine = process.machine
        machine.check()
        assert isinstance(machine, AgentMachine)
        for effect in effects:
            if isinstance(effect, StartContainer):
                self._judged("a task is begun on healthy devices only")
                key = TaskKey(effect.task.framework_id, effect.task.spec.task_id)
                again = machine.books.state.tasks[key].relaunching
                for uuid in effect.task.device_uuids:
                    record = machine.books.state.health.get(uuid)
                    require(uuid not in machine.books.busy, f"{agent_id} begins {key.task_id} on {uuid}, which is busy")
                    require(
                        record is None
                        or record.shown is DeviceCondition.HEALTHY
                        # Who has it already goes on, in another run, too.
                        or (again and (record.shown is DeviceCondition.SUSPECT or bool(record.order))),
                        f"{agent_id} begins {effect.task.spec.task_id} on {uuid}, which is {record.shown.name if record else ''}",
                    )

    def _judge_restart(self, record: TaskRecord) -> None:
        """An order to restart a task ends one run of it, not two, whatever is said again and whoever dies meanwhile."""
        before, was_asked = self._orders.get(record.key, (0, False))
        require(record.restart_order >= before, f"{record.key} went from order {before} to {record.restart_order}")
        by_order = record.restart_asked.endswith("asked for it")
        if by_order and not was_asked:
            self._judged("an order to restart is carried out once")
            fresh = record.restart_order not in self._carried_out.setdefault(record.key, set())
            require(fresh, f"{record.key} is restarted once more for order {record.restart_order}")
            self._carried_out[record.key].add(record.restart_order)
        self._orders[record.key] = record.restart_order, by_order

    def commits(self, agent_id: AgentId, records: Iterable[Any]) -> None:
        """Generations never go back."""
        for record in records:
            if isinstance(record, GenerationSeen):
                self._judged("generations never go back")
                before = self._seen_generations.get(agent_id, Generation())
                require(record.generation > before, f"{agent_id} went from generation {before} to {record.generation}")
                self._seen_generations[agent_id] = record.generation
            elif isinstance(record, TaskSaved):
                self._judge_restart(record.task)
            elif isinstance(record, ClusterJoined):
                require(bool(record.cluster_id), f"{agent_id} joined a cluster without an id")

    def said(
        self, agent_id: AgentId, message: Any, checkpoint: AgentState, running: Iterable[SimulatedContainer]
    ) -> None:
        """A status leaves: it must be in the checkpoint, or have been; and who is told ended does not run."""
        if isinstance(message, TaskUpdates):
            there = {(one.framework_id, one.task_id) for one in running}
            for status in message.updates:
                if status.state.is_terminal:
                    self._judged("nothing is told ended while it runs")
                    name = (status.framework_id, status.task_id)
                    require(name not in there, f"{agent_id} says that {name} is {status.state.name}, and it runs")
                self._judged("a status is in the checkpoint before it is sent")
                key = TaskKey(status.framework_id, status.task_id)
                record = checkpoint.tasks.get(key)
                recorded = key in checkpoint.finished or (
                    record is not None and int(status.update_id) < record.next_update
                )
                require(recorded, f"{agent_id} sends update {status.update_id} of {key} before it is in the checkpoint")

    def declared(self, effects: Iterable[Any], running: Callable[[], Iterable[SimulatedContainer]]) -> None:
        """A master ends a task by itself, as lost: nothing of it runs. What an operator gives up is another matter."""
        for effect in effects:
            if isinstance(effect, Persist) and isinstance(effect.record, TaskEnded):
                status = effect.record.status
                if status.source is StatusSource.MASTER and status.reason is StatusReason.CONTAINER_LOST:
                    self._judged("no master declares ended what runs")
                    name = (status.framework_id, status.task_id)
                    there = name in {(one.framework_id, one.task_id) for one in running()}
                    require(not there, f"{name} is {status.state.name} by its master, and it runs")

    def starts(self, agent_id: AgentId, effect: StartContainer, checkpoint: AgentState) -> None:
        """A container is begun: its launch must be in the checkpoint."""
        self._judged("a launch is in the checkpoint before it is begun")
        key = TaskKey(effect.task.framework_id, effect.task.spec.task_id)
        require(key in checkpoint.tasks, f"{agent_id} begins {key} before it is in the checkpoint")

    def probes(self, agent_id: AgentId, uuid: DeviceUuid, containers: Iterable[SimulatedContainer]) -> None:
        """A device is probed: nobody has it."""
        self._judged("a device is probed while nobody has it")
        for container in containers:
            require(uuid not in container.devices, f"{agent_id} probes {uuid}, which {container.container_id} has")
