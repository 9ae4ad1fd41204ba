"""The machine under crashes at every point of a batch: before the commit, after it, and between any two effects.

A simulated world: a checkpoint that keeps what was committed, an engine whose containers outlive the agent, and a master that
launches, kills, acknowledges, forgets and repeats itself.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bursar.agent.containers.runtime import ContainerExit, ContainerId, RecoveredContainer
from bursar.agent.effects import (
    AgentEffect,
    CloseConnection,
    EndStray,
    KillContainer,
    RemoveContainer,
    SendToMaster,
    StartContainer,
)
from bursar.agent.events import (
    AgentEvent,
    ContainerExited,
    ContainerLaunchFailed,
    ContainersRecovered,
    ContainerStarted,
    MasterConnected,
    MasterDisconnected,
    MasterMessageReceived,
)
from bursar.agent.machine import AgentConfig, AgentMachine
from bursar.agent.state import AgentState, Record
from bursar.agent.tasks import TaskKey, container_of
from bursar.core.clock import Instant
from bursar.core.devices import Device
from bursar.core.ids import AgentId, ConnectionId, DeviceUuid, FrameworkId, Generation, TaskId
from bursar.core.machine import Persist, TimePassed
from bursar.core.messages.agent import (
    AcknowledgedUpdate,
    AcknowledgeUpdates,
    AgentInfo,
    DesiredState,
    KillTask,
    MasterMessage,
    Registered,
    ResyncRequest,
    TaskRef,
    TaskReports,
    TaskUpdates,
)
from bursar.core.resources import ReservedResources, ResourceRequest, Resources
from bursar.core.tasks import AssignedTask, StatusReason, TaskSpec, TaskStatus

AGENT = AgentId("a")
F = FrameworkId("f")
DEVICES = tuple(Device(DeviceUuid(f"GPU-{n}"), "gpus", index=n) for n in range(3))


class World(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.ms = 0
        self.boot = 1
        self.durable = AgentState()
        self.connection = ConnectionId(0)
        self.connected = False
        # The engine.
        self.containers: dict[ContainerId, ContainerExit | None] = {}
        self.starting: list[ContainerId] = []
        self.strays: list[ContainerId] = []
        self.starts: Counter[ContainerId] = Counter()
        self.devices_of: dict[ContainerId, frozenset[DeviceUuid]] = {}
        # The master.
        self.launched: dict[TaskId, AssignedTask] = {}
        self.killed: set[TaskId] = set()
        self.sequence = 0
        self.term = 1
        self.registered = False
        self.received: dict[TaskId, dict[str, TaskStatus]] = {}
        self.unacknowledged: list[TaskStatus] = []

    # --- the agent's process ----------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.start()

    def start(self) -> None:
        info = AgentInfo(AGENT, boot_id=f"boot-{self.boot}", devices=DEVICES, runtime="simulated")
        config = AgentConfig(info, finished_limit=1000)
        self.machine = AgentMachine(config, self.durable.copy())
        found = tuple(RecoveredContainer(*item) for item in sorted(self.containers.items()))
        self.happen(ContainersRecovered(found))

    def happen(self, event: AgentEvent, cut: int | None = None) -> None:
        """Step, commit, perform; with `cut` the process dies before the commit (0) or after so many effects (n - 1)."""
        effects = self.machine.step(event, Instant(self.ms, self.ms))
        self.machine.check()
        if cut == 0:
            return
        for effect in effects:
            if isinstance(effect, Persist):
                assert isinstance(effect.record, Record)
                self.durable.apply(effect.record)
        assert self.durable == self.machine.state
        rest = [effect for effect in effects if not isinstance(effect, Persist)]
        for effect in rest if cut is None else rest[: cut - 1]:
            self.perform(effect)

    def perform(self, effect: AgentEffect) -> None:
        match effect:
            case StartContainer(container_id, task):
                self.starts[container_id] += 1
                assert self.starts[container_id] == 1, "a task was started twice"
                wanted = frozenset(task.device_uuids)
                for other, end in self.containers.items():
                    assert end is not None or not (wanted & self.devices_of[other]), "a device in two containers"
                self.devices_of[container_id] = wanted
                self.starting.append(container_id)
            case RemoveContainer(container_id):
                if container_id in self.containers and self.containers[container_id] is not None:
                    del self.containers[container_id]
            case SendToMaster(connection, message):
                if connection == self.connection and self.connected:
                    self.master_hears(message)
            case EndStray(container_id):
                self.strays.append(container_id)
            case KillContainer() | CloseConnection():
                pass
            case _:
                pass

    def die(self) -> None:
        self.connected = self.registered = False
        # What the engine had begun, it finishes; what was only asked for never happened. Both occur.
        for position, container_id in enumerate(self.starting):
            if position % 2 == 0:
                self.containers[container_id] = None
        self.starting.clear()
        self.strays.clear()

    # --- the master -------------------------------------------------------------------------------------------------

    def master_hears(self, message: object) -> None:
        match message:
            case TaskReports(tasks, complete):
                for report in tasks:
                    assert report.task == self.launched[report.task.spec.task_id]
                    for status in report.unacknowledged:
                        self.take(status)
                if complete:
                    self.registered = True
            case TaskUpdates(updates):
                assert self.registered
                for status in updates:
                    self.take(status)
            case ResyncRequest():
                raise AssertionError("the master speaks in order")

    def take(self, status: TaskStatus) -> None:
        mine = self.received.setdefault(status.task_id, {})
        if status.update_id in mine:
            assert mine[status.update_id] == status, "an update changed"
        else:
            assert not any(earlier.state.is_terminal for earlier in mine.values()), (
                "something followed a terminal status"
            )
            assert all(int(earlier) < int(status.update_id) for earlier in mine), "out of order"
        mine[status.update_id] = status
        self.unacknowledged.append(status)
        if status.state.is_terminal:
            container_id = container_of(AGENT, TaskKey(F, status.task_id))
            assert self.containers.get(container_id, status) is not None, "told the end of a container that runs"

    def ended(self, task_id: TaskId) -> bool:
        return any(status.state.is_terminal for status in self.received.get(task_id, {}).values())

    def say(self, message: MasterMessage, cut: int | None = None) -> None:
        self.happen(MasterMessageReceived(self.connection, message), cut)

    def everything(self) -> DesiredState:
        """The full state as a master has it that may have lost the ends (their acknowledgements were sent, then it died)."""
        self.sequence += 1
        open_tasks = [task for task in self.launched.values() if not self.ended(task.spec.task_id)]
        kills = tuple(KillTask(F, task_id, StatusReason.KILLED_BY_FRAMEWORK) for task_id in sorted(self.killed))
        known = {task.spec.task_id for task in open_tasks if self.received.get(task.spec.task_id)}
        launches = tuple(task for task in open_tasks if task.spec.task_id not in known | self.killed)
        keeps = tuple(TaskRef(F, task_id) for task_id in sorted(known - self.killed))
        return DesiredState(Generation(self.term, self.sequence), None, False, launches, kills, keeps)

    @precondition(lambda self: not self.connected)
    @rule(new_term=st.booleans())
    def connect(self, new_term: bool) -> None:
        if new_term:
            self.term, self.sequence = self.term + 1, 0
        self.connection = ConnectionId(self.connection + 1)
        self.connected, self.registered = True, False
        self.happen(MasterConnected(self.connection))
        assert self.registered
        self.say(Registered("c", self.term, 15_000, 5))
        self.say(self.everything())

    @precondition(lambda self: self.connected)
    @rule()
    def disconnect(self) -> None:
        self.connected = self.registered = False
        self.unacknowledged.clear()
        self.happen(MasterDisconnected(self.connection))

    @precondition(lambda self: len(self.launched) < 12)
    @rule(device=st.sampled_from(DEVICES), cut=st.none() | st.integers(0, 4))
    def launch(self, device: Device, cut: int | None) -> None:
        held = {
            uuid for task in self.launched.values() if not self.ended(task.spec.task_id) for uuid in task.device_uuids
        }
        if device.uuid in held:
            return
        spec = TaskSpec(TaskId(f"t{len(self.launched)}"), command=("x",), resources=ResourceRequest({"cpus": 1}, (), 1))
        task = AssignedTask(
            F, "*", spec, (ReservedResources((), Resources({"cpus": 1}, (), frozenset({device.uuid}))),)
        )
        self.launched[spec.task_id] = task
        self.tell(DesiredStateParts(launch=(task,)), cut)

    @precondition(lambda self: self.launched)
    @rule(data=st.data(), cut=st.none() | st.integers(0, 4))
    def kill(self, data: st.DataObject, cut: int | None) -> None:
        task_id = data.draw(st.sampled_from(sorted(self.launched)))
        self.killed.add(task_id)
        self.tell(DesiredStateParts(kill=(KillTask(F, task_id, StatusReason.KILLED_BY_FRAMEWORK),)), cut)

    def tell(self, parts: DesiredStateParts, cut: int | None) -> None:
        if not self.connected:
            return
        base = Generation(self.term, self.sequence)
        self.sequence += 1
        self.say(DesiredState(Generation(self.term, self.sequence), base, False, parts.launch, parts.kill), cut)
        if cut is not None:
            self.crash_now()

    @precondition(lambda self: self.connected and self.unacknowledged)
    @rule(data=st.data(), cut=st.none() | st.integers(0, 2))
    def acknowledge(self, data: st.DataObject, cut: int | None) -> None:
        status = data.draw(st.sampled_from(self.unacknowledged))
        self.unacknowledged.remove(status)
        self.say(AcknowledgeUpdates((AcknowledgedUpdate(F, status.task_id, status.update_id),)), cut)
        if cut is not None:
            self.crash_now()

    # --- the engine -------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.starting)
    @rule(works=st.booleans(), cut=st.none() | st.integers(0, 3))
    def started(self, works: bool, cut: int | None) -> None:
        container_id = self.starting.pop(0)
        if works:
            self.containers[container_id] = None
            self.happen(ContainerStarted(container_id), cut)
        else:
            self.happen(ContainerLaunchFailed(container_id, StatusReason.LAUNCH_FAILED, "no"), cut)
        if cut is not None:
            self.crash_now()

    @precondition(lambda self: None in self.containers.values())
    @rule(data=st.data(), code=st.sampled_from([0, 1, 143]), cut=st.none() | st.integers(0, 4))
    def exited(self, data: st.DataObject, code: int, cut: int | None) -> None:
        running = sorted(name for name, end in self.containers.items() if end is None)
        container_id = data.draw(st.sampled_from(running))
        self.containers[container_id] = ContainerExit(code, StatusReason.COMMAND_EXITED)
        self.happen(ContainerExited(container_id, ContainerExit(code, StatusReason.COMMAND_EXITED)), cut)
        if cut is not None:
            self.crash_now()

    @precondition(lambda self: self.strays)
    @rule(cut=st.none() | st.integers(0, 3))
    def stray_ended(self, cut: int | None) -> None:
        """The engine is certain that nothing runs under this name."""
        container_id = self.strays.pop(0)
        if self.containers.get(container_id, self) is None:
            self.containers[container_id] = ContainerExit(137, StatusReason.COMMAND_EXITED)
        self.happen(ContainerExited(container_id, ContainerExit(None, StatusReason.CONTAINER_LOST)), cut)
        if cut is not None:
            self.crash_now()

    # --- fate -------------------------------------------------------------------------------------------------------

    def crash_now(self) -> None:
        self.die()
        self.unacknowledged.clear()
        self.start()

    @rule(reboot=st.booleans(), ends=st.booleans())
    def crash(self, reboot: bool, ends: bool) -> None:
        self.die()
        self.unacknowledged.clear()
        for container_id, end in self.containers.items():
            if end is None and (reboot or ends):
                code, reason = (None, StatusReason.AGENT_REBOOTED) if reboot else (3, StatusReason.COMMAND_EXITED)
                self.containers[container_id] = ContainerExit(code, reason)
        self.boot += reboot
        self.start()

    @rule(pause=st.sampled_from([10, 10_000, 20_000, 700_000]))
    def wait(self, pause: int) -> None:
        self.ms += pause
        before = self.connected
        self.happen(TimePassed())
        if before and not self.machine.registered:
            self.connected = self.registered = False
            self.unacknowledged.clear()
            self.happen(MasterDisconnected(self.connection))

    @invariant()
    def no_two_ends(self) -> None:
        for statuses in self.received.values():
            assert sum(status.state.is_terminal for status in statuses.values()) <= 1

    def teardown(self) -> None:
        """Faults stop: everything that was launched comes to exactly one end."""
        if not hasattr(self, "machine"):
            return
        for _ in range(2):
            if self.connected:
                self.disconnect()
            self.connect(False)
            while self.starting:
                container_id = self.starting.pop(0)
                self.containers[container_id] = None
                self.happen(ContainerStarted(container_id))
            while self.strays:
                self.stray_ended(cut=None)
            for container_id in sorted(name for name, end in self.containers.items() if end is None):
                self.containers[container_id] = ContainerExit(0, StatusReason.COMMAND_EXITED)
                self.happen(ContainerExited(container_id, ContainerExit(0, StatusReason.COMMAND_EXITED)))
        for task_id in self.launched:
            assert self.ended(task_id), f"{task_id} never came to an end"
        for status in list(self.unacknowledged):
            self.say(AcknowledgeUpdates((AcknowledgedUpdate(F, status.task_id, status.update_id),)))
        assert self.machine.state.tasks == {} and self.machine.live_devices() == {} and self.containers == {}


class DesiredStateParts:
    """What a delta asks for."""

    def __init__(self, launch: tuple[AssignedTask, ...] = (), kill: tuple[KillTask, ...] = ()) -> None:
        self.launch = launch
        self.kill = kill


TestWorld = World.TestCase
TestWorld.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
