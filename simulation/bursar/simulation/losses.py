"""Losses that nobody reports: a task falls out of one of the books, or a container comes or goes behind an agent's back (B-18).

Each is an act on the inside of what is simulated, as a broken memory or disk would be, and is followed up until it is repaired.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from bursar.agent.tasks import TaskKey as AgentTaskKey
from bursar.agent.tasks import TaskRecord, container_of, has_container
from bursar.core.messages.operator import AgentState
from bursar.core.tasks import StatusReason, TaskState
from bursar.master.ledger import TaskKey
from bursar.master.records import TaskForgotten
from bursar.master.state import Cluster, Task
from bursar.simulation.agents import AgentNode
from bursar.simulation.checkers.repairs import DUE_MS
from bursar.simulation.containers import NOBODY

if TYPE_CHECKING:
    from bursar.simulation.world import World


class Losses:
    """Makes them, and asks the judge when each must be repaired."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._random = world.stream_of("losses")
        self._strays = 0
        #: Each task is struck once: a second loss would look like a first one that is not repaired.
        self._struck: set[tuple[str, str]] = set()

    def strike(self) -> None:
        """One of them, where there is something to lose."""
        acts = (self.master_forgets, self.master_errs, self.agent_forgets, self.container_vanishes, self.stray_comes)
        self._random.choice(acts)()

    # --- the acts ----------------------------------------------------------------------------------------------------

    def master_forgets(self) -> None:
        """A running task is in neither the master's memory nor its registry any more."""
        found = self._running_task()
        if found is None:
            return
        cluster, task, agent = found
        key = task.key
        cluster.ledger.release_task(key)
        cluster.agents[task.agent_id].tasks.discard(key)
        del cluster.tasks[key]
        cluster.frameworks[key.framework_id].tasks.discard(key)
        cluster.touch(task.agent_id)
        forgotten = TaskForgotten(*key)
        cluster.durable.apply(forgotten)
        self._world.master.registry.commit([forgotten])
        self._world.checkers.master.facts.apply(forgotten)
        self._expect(agent, f"the master has lost {key}", lambda: self._is_known(agent, key))

    def master_errs(self) -> None:
        """The master believes a running task in an earlier state."""
        found = self._running_task()
        if found is not None:
            _, task, agent = found
            task.state = TaskState.STARTING
            self._expect(agent, f"the master is wrong about {task.key}", lambda: self._is_as_reported(agent, task.key))

    def agent_forgets(self) -> None:
        """A running task is in neither the agent's memory nor its checkpoint any more; its container runs on."""
        found = [(agent, record) for agent in self._world.agents for record in self._forgettable(agent)]
        found = [(agent, record) for agent, record in found if record.key not in self._struck]
        if not found:
            return
        agent, record = self._random.choice(found)
        self._struck.add(record.key)
        machine = agent.machine
        assert machine is not None
        key, books = record.key, machine.books
        container_id = container_of(agent.agent_id, key)
        for state in (machine.state, agent.checkpoint):
            del state.tasks[key]
        del books.live[container_id]
        books.release(container_id, record.task)
        for kind in ("updates", "run_time", "restart"):
            books.deadlines.cancel((kind, key))
        books.deadlines.cancel(("kill", container_id))
        machine.lives.checkups.stop(key)
        agent.containers.forgotten.add(container_id)
        self._expect(
            agent,
            f"{agent.name} has lost {key}",
            lambda: container_id not in agent.containers.running() and not self._is_live(key),
        )

    def container_vanishes(self) -> None:
        """A container is removed, and no event tells of it."""
        live = [
            (agent, one) for agent in self._world.agents for one in agent.containers.containers.values() if one.live
        ]
        live = [(agent, one) for agent, one in live if (one.framework_id, one.task_id) not in self._struck]
        if live:
            agent, container = self._random.choice(live)
            key = AgentTaskKey(container.framework_id, container.task_id)
            self._struck.add(key)
            agent.containers.vanish(container.container_id)
            what = f"{container.container_id} vanishes from {agent.name}"
            self._expect(agent, what, lambda: not self._has_lost_container(agent, key))

    def stray_comes(self) -> None:
        """A container appears that no task accounts for."""
        agent = self._random.choice(self._world.agents)
        self._strays += 1
        stray = agent.containers.add_stray(f"stray-{self._strays}")
        self._struck.add((NOBODY, stray))
        self._expect(agent, f"{stray} appears on {agent.name}", lambda: stray not in agent.containers.running())

    # --- what must have come of it -----------------------------------------------------------------------------------

    def _expect(self, agent: AgentNode, what: str, is_repaired: Callable[[], bool]) -> None:
        world = self._world
        world.note("world", what)
        faults = world.drawn_faults
        # What stands still, or is slow, is late with everything; and repairs wait for digests in an order of their own.
        slow_ms = (
            2 * (faults.message_ms + faults.commit_ms)
            + faults.start_ms
            + faults.slow_message_ms * (faults.slow_message_chance > 0)
        )
        wait_ms = DUE_MS + 4 * slow_ms + faults.partition_ms * (faults.partitions_per_minute > 0)
        wait_ms += 2 * faults.stall_ms * (faults.stalls_per_minute > 0)

        def follow_up(before: tuple[object, ...]) -> None:
            if is_repaired():
                world.checkers.repairs.repair_is_due(what, True)
            elif before == self._circumstances(agent):
                world.checkers.repairs.repair_is_due(what, False)
            else:
                # They were apart meanwhile: the time begins anew.
                world.timeline.after(wait_ms, follow_up, self._circumstances(agent))

        world.timeline.after(wait_ms, follow_up, self._circumstances(agent))

    def _circumstances(self, agent: AgentNode) -> tuple[object, ...]:
        """What is the same for as long as a master and an agent live and speak with one another."""
        own, master = agent.machine, self._world.master.machine
        registrations = own.registrations_total if own is not None and own.registered else object()
        return agent.lives, registrations, master.cluster.term if master is not None else object()

    def _forgettable(self, agent: AgentNode) -> list[TaskRecord]:
        """Tasks that could be lost from an agent with nothing else to be put right beside."""
        machine, process = agent.machine, agent.process
        if machine is None or process is None or not process.at_rest or agent.twin is not None:
            return []
        settled = [
            record
            for key, record in machine.state.tasks.items()
            if has_container(record)
            and not record.unacknowledged
            and record.task.spec.task_group is None
            and record.task.spec.executor is None
            and container_of(agent.agent_id, key) not in machine.books.starting
        ]
        running = agent.containers.running()
        return [record for record in settled if container_of(agent.agent_id, record.key) in running]

    def _running_task(self) -> tuple[Cluster, Task, AgentNode] | None:
        """One that could be lost from the master with nothing else to be put right beside."""
        process, machine = self._world.master.process, self._world.master.machine
        if process is None or machine is None or not process.at_rest:
            return None
        cluster = machine.cluster
        tasks = [
            task
            for task in cluster.tasks.values()
            if task.state is TaskState.RUNNING
            and task.key not in self._struck
            and task.kill_reason is StatusReason.UNSPECIFIED
            and not task.assigned.revocable
            and task.key not in cluster.gangs.starting
            and task.key.framework_id in cluster.frameworks
            and cluster.agents[task.agent_id].state is AgentState.ACTIVE
        ]
        if not tasks:
            return None
        task = self._random.choice(tasks)
        self._struck.add(task.key)
        (agent,) = (agent for agent in self._world.agents if agent.agent_id == task.agent_id)
        return cluster, task, agent

    def _runs_on(self, agent: AgentNode, key: TaskKey) -> bool:
        own = agent.machine
        record = own.state.tasks.get(AgentTaskKey(*key)) if own is not None else None
        return record is not None and not record.state.is_terminal

    def _is_known(self, agent: AgentNode, key: TaskKey) -> bool:
        machine = self._world.master.machine
        return machine is not None and (key in machine.cluster.tasks or not self._runs_on(agent, key))

    def _is_live(self, key: AgentTaskKey) -> bool:
        machine = self._world.master.machine
        task = machine.cluster.tasks.get(TaskKey(*key)) if machine is not None else None
        return task is not None and not task.state.is_terminal

    def _is_as_reported(self, agent: AgentNode, key: TaskKey) -> bool:
        machine = self._world.master.machine
        task = machine.cluster.tasks.get(key) if machine is not None else None
        return task is None or task.state is not TaskState.STARTING or not self._runs_on(agent, key)

    @staticmethod
    def _has_lost_container(agent: AgentNode, key: AgentTaskKey) -> bool:
        own = agent.machine
        record = own.state.tasks.get(key) if own is not None else None
        there = container_of(agent.agent_id, key) in agent.containers.running()
        return record is not None and has_container(record) and not there
