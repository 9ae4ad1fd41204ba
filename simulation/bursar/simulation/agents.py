"""One machine of the simulated cluster: its devices and containers, its checkpoint, and the agent that runs there now and then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from bursar.agent.compare import INTERVAL_S, TwoLooks
from bursar.agent.devices.cut_record import CutPhase
from bursar.agent.devices.health import DeviceSignal, HealthRules
from bursar.agent.effects import (
    AskWhoUses,
    CancelPrefetch,
    CheckContainer,
    CloseConnection,
    CutCard,
    EndStray,
    KeepVolumes,
    KillContainer,
    LaunchOnExecutor,
    Log,
    LookAtCard,
    LookAtDevices,
    MeasureShares,
    OpenLogStream,
    OpenSessionStream,
    PrefetchImage,
    ProbeDevice,
    PullImage,
    ReleaseNetwork,
    RemoveContainer,
    RemoveSandbox,
    SendToMaster,
    StartContainer,
    TellExecutor,
)
from bursar.agent.events import (
    ContainerLaunchFailed,
    ContainersRecovered,
    DeviceProbed,
    DevicesDiscovered,
    DevicesSignalled,
    DeviceUsersTold,
    MasterConnected,
    MasterDisconnected,
    MasterMessageReceived,
    NodesOutOfReach,
    SharesMeasured,
)
from bursar.agent.machine import AgentConfig, AgentMachine
from bursar.agent.state import AgentState
from bursar.core.clock import Instant
from bursar.core.device_names import parent_of
from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, ConnectionId, DeviceUuid
from bursar.core.layouts import PARTITION
from bursar.core.messages.agent import AgentInfo
from bursar.core.task_groups import TASK_GROUPS
from bursar.core.tasks import EXECUTORS, StatusReason
from bursar.core.ulimits import ULIMITS
from bursar.core.volumes import PERSISTENT_VOLUMES
from bursar.simulation.containers import SimulatedContainer, SimulatedContainers
from bursar.simulation.cutting import Post, SimulatedCutter
from bursar.simulation.devices import SimulatedGpus
from bursar.simulation.executors import SimulatedExecutors
from bursar.simulation.network import CLIENT, Stream
from bursar.simulation.overuse import SHARE_GRACE_MS, SimulatedShares
from bursar.simulation.process import Mortality, Process
from bursar.simulation.volumes import SimulatedVolumes

if TYPE_CHECKING:
    from bursar.simulation.world import World

#: Between two attempts to connect, at most.
RECONNECT_MS = 2_000
#: Between two looks at the engine.
LOOK_MS = int(1000 * INTERVAL_S)
#: Agents that are less patient than in life, so that the end of an illness is seen, and relapses and retirement.
HEALTH = HealthRules(
    suspect_ms=8_000,
    suspicions=2,
    cool_down_ms=2_000,
    longest_cool_down_ms=20_000,
    relapse_window_ms=60_000,
    relapses=4,
)


#: A device that is used longer than this after its task's end is cordoned.
RELEASE_TIMEOUT_MS = 10_000


class CheckpointTwin(Protocol):
    """Another checkpoint that is given the same records and must come to mean the same (the file of an agent, in a test)."""

    def write(self, records: Sequence[object]) -> None:
        """Make records durable."""

    def load(self) -> AgentState:
        """What they mean."""


class AgentNode:
    """A machine with an agent."""

    def __init__(self, world: World, name: str, gpus: SimulatedGpus, runtime: str, finished_limit: int) -> None:
        self.name = name
        self.agent_id = AgentId(name)
        self.gpus = gpus
        self._world = world
        self._runtime = runtime
        self._finished_limit = finished_limit
        self._random = world.stream_of(name)
        self._boots = 1
        #: Whether the machine's driver can say who uses its devices.
        self.tells_users = world.stream_of(f"{name}/driver").random() < 0.7
        #: Whether it can cut cards.
        self.can_cut = bool(gpus.uuids) and world.stream_of(f"{name}/cards").random() < 0.7
        #: Whether nothing makes instances of cards again when the machine is started anew.
        self.forgets = bool(gpus.uuids) and world.stream_of(f"{name}/instances").random() < 0.5
        #: Lives of the agent so far.
        self.lives = 0
        self.checkpoint = AgentState()
        self.twin: CheckpointTwin | None = None
        self.process: Process | None = None
        self.containers = SimulatedContainers(
            world.timeline,
            self._random,
            world.faults,
            on_begin=self._began,
            on_remove=lambda container: world.checkers.agents.container_removed(self.agent_id, container),
            on_fail=lambda container: world.checkers.groups.began(self.agent_id, container),
            on_end=self._ended,
        )
        self.executors = SimulatedExecutors(self.agent_id, world.timeline, self._random, self.containers, self._began)
        self.shares = SimulatedShares(self, world.stream_of(f"{name}/shares"), world.timeline)
        self.cutter = SimulatedCutter(
            world.timeline, world.stream_of(f"{name}/cutter"), gpus, lambda: world.faults, self.holds, self._die_of
        )
        self.volumes = SimulatedVolumes(world.stream_of(f"{name}/volumes"), self.note)
        self._stream: Stream | None = None
        self._connection = ConnectionId(0)

    @property
    def machine(self) -> AgentMachine | None:
        """The machine of the present life."""
        if self.process is None:
            return None
        machine = self.process.machine
        assert isinstance(machine, AgentMachine)
        return machine

    def start(self) -> None:
        """Begin a life of the agent."""
        if self.process is not None:
            return
        world = self._world
        self.lives += 1
        devices, resources = self.gpus.discover()
        info = AgentInfo(
            self.agent_id,
            self.lives,
            f"{self.name}-boot-{self._boots}",
            self.name,
            resources=resources,
            devices=devices,
            runtime=self._runtime,
            runs_without_image=True,
            capabilities=(TASK_GROUPS, EXECUTORS, ULIMITS, PERSISTENT_VOLUMES, *((PARTITION,) if self.can_cut else ())),
        )
        config = AgentConfig(
            info,
            "default-image" if self._runtime == "docker" else "",
            self._finished_limit,
            health=HEALTH,
            tells_users=self.tells_users,
            users=self.gpus.users(self.gpus.there) if self.tells_users else {},
            release_timeout_ms=RELEASE_TIMEOUT_MS,
            share_grace_ms=SHARE_GRACE_MS if self.tells_users else None,
            volumes=frozenset(self.volumes.data),
        )
        if self.twin is not None:
            assert self.twin.load() == self.checkpoint, "the checkpoint and its copy mean different things"
        machine = AgentMachine(config, self.checkpoint.copy())
        world.note(self.name, f"starts, life {self.lives}, boot {self._boots}")
        clock = (self._random.randint(0, 10**9), self._random.randint(-200, 200))
        self.process = process = Process(world.timeline, self._random, machine, self, clock=clock)
        world.checkers.agents.started(self.agent_id, machine)
        world.checkers.groups.life_began(self.agent_id, world.timeline.now_ms)
        world.timeline.after(self._random.randint(0, 20), self._recover, process)
        world.timeline.after(self._random.randint(0, 20), self._connect, process)
        world.timeline.after(LOOK_MS, self._look_at_engine, process, TwoLooks(machine.books))

    def die(self) -> None:
        """It is killed; its containers run on."""
        if self.process is None:
            return
        world = self._world
        self.process.kill()
        self.process = None
        world.note(self.name, "dies")
        self.containers.agent_died()
        self.cutter.agent_died()
        if self._stream is not None:
            self._stream.abandon(CLIENT)
            self._stream = None
        world.timeline.after(self._random.randint(1, max(1, world.faults.agent_down_ms)), self.start)

    def reboot(self) -> None:
        """The machine is started anew."""
        self.die()
        self._world.note(self.name, "is rebooted")
        self.containers.reboot()
        self.gpus.restart(self.forgets)
        self._boots += 1

    def note(self, text: str) -> None:
        """Something happened on this machine, for those who read the trace."""
        self._world.note(self.name, text)

    def holds(self, card: DeviceUuid) -> bool:
        """Whether a container has some of a card."""
        return any(card in (uuid, parent_of(uuid)) for container in self.containers.live for uuid in container.devices)

    def look_at_devices(self) -> None:
        """The agent's periodic look, when something is different."""
        if self.process is not None:
            devices, resources = self.gpus.discover()
            self.process.post(DevicesDiscovered(devices, resources, self.gpus.remedies()))

    def signal_device(self, signal: DeviceSignal) -> None:
        """A driver says something of its own accord about a card, and so about all that it is cut into; nobody hears it while the agent is down."""
        if self.process is not None:
            views = self.gpus.views_of(signal.uuid)
            self.process.post(DevicesSignalled(tuple(replace(signal, uuid=uuid) for uuid in views)))

    # --- inside ---

    def _look_at_engine(self, process: Process, looks: TwoLooks) -> None:
        """The comparison of books and engine (B-18), each minute of a life."""
        if process is not self.process:
            return
        looks.begin()
        if compared := looks.end(self.containers.running()):
            process.post(compared)
        self._world.timeline.after(LOOK_MS, self._look_at_engine, process, looks)

    def _recover(self, process: Process) -> None:
        if process is self.process:
            process.post(ContainersRecovered(self.containers.recover()))
            self.containers.watcher = process.post
            self.executors.agent_lives()

    def _connect(self, process: Process) -> None:
        if process is self.process and self._stream is None:
            self._stream = self._world.network.connect("agent", self.name, self)

    def _began(self, container: SimulatedContainer) -> None:
        judge = self._world.checkers.agents
        judge.container_began(self.agent_id, container)
        if container.volumes:
            self._world.checkers.volumes.began(
                self.agent_id,
                container,
                self.volumes.data | self.volumes.lost,
                self._world.master.registry.durable,
                self.containers.live,
                self.containers.forgotten,
            )
        self._world.checkers.cuts.began(self.agent_id, container, self.gpus)
        self._world.checkers.groups.began(self.agent_id, container)
        if self.tells_users:
            judge.container_began_on(self.agent_id, container, self.gpus.left)

    def _ended(self, container: SimulatedContainer) -> None:
        """Maybe a process of it stays on a device."""
        world = self._world
        for uuid in container.devices:
            if self._random.random() < world.faults.lingering_chance:
                pid = self.gpus.left[uuid] = self._random.randint(2, 99_999)
                world.note(self.name, f"process {pid} of {container.task_id} stays on {uuid}")
                world.timeline.after(self._random.randint(1, world.faults.linger_ms), self._gone, uuid, pid)

    def _gone(self, uuid: DeviceUuid, pid: int) -> None:
        for pids in (self.gpus.left, self.gpus.strangers):
            if pids.get(uuid) == pid:
                del pids[uuid]

    def intrude(self, uuid: DeviceUuid) -> None:
        """A process of nobody's task uses a device for a while; seen at the next look."""
        pid = self.gpus.strangers[uuid] = self._random.randint(2, 99_999)
        self._world.note(self.name, f"process {pid} of nobody uses {uuid}")
        self._world.timeline.after(self._random.randint(1, self._world.faults.linger_ms), self._gone, uuid, pid)
        self.look_at_devices()

    def lose_access(self) -> None:
        """Somebody takes a container's devices away behind everybody's back, and the agent looks; the rest it reaches."""
        having = {one.container_id: () for one in self.containers.containers.values() if one.live and one.devices}
        if self.process is not None and having:
            lost = self._random.choice(list(having))
            self.process.post(NodesOutOfReach({**having, lost: ("/dev/simulated",)}))

    def _look_at_what_was_cut(self) -> None:
        for record in self.machine.state.cuts.values() if self.machine is not None else ():
            if record.phase is CutPhase.VERIFYING:
                self.cutter.meddle(record.card)
        self.look_at_devices()

    def _die_of(self, post: Post) -> None:
        if self.process is not None and self.process.post == post:
            self.die()

    def _asked(self, process: Process, uuids: tuple[DeviceUuid, ...]) -> None:
        if process is self.process:
            process.post(DeviceUsersTold(self.gpus.users(uuids)))

    def _measured(self, process: Process, uuids: tuple[DeviceUuid, ...]) -> None:
        if process is self.process:
            process.post(SharesMeasured(self.shares.users(uuids)))

    def _probed(self, process: Process, uuid: DeviceUuid) -> None:
        if process is self.process:
            process.post(DeviceProbed(uuid, "it is still ill" if self.gpus.is_ill(uuid) else ""))

    def _retry(self) -> None:
        self._stream = None
        if self.process is not None:
            self._world.timeline.after(self._random.randint(50, RECONNECT_MS), self._connect, self.process)

    # --- Party ---

    def stream_opened(self, stream: Stream) -> None:
        """The master is there."""
        if stream is self._stream and self.process is not None:
            self._connection = ConnectionId(self._connection + 1)
            self.process.post(MasterConnected(self._connection))

    def stream_heard(self, stream: Stream, message: Any) -> None:
        """The master spoke."""
        if stream is self._stream and self.process is not None:
            self.process.post(MasterMessageReceived(self._connection, message))

    def stream_ended(self, stream: Stream, error: ErrorDetail | None) -> None:
        """The master is gone, or was not there."""
        if stream is self._stream and self.process is not None:
            self.process.post(MasterDisconnected(self._connection))
            self._retry()

    # --- Owner ---

    def stepping(self, event: Any, now: Instant) -> None:
        """See Owner."""
        if isinstance(event, SharesMeasured):
            self._world.checkers.overuse.measured(self.agent_id, self.lives, event, self.gpus.all, now.monotonic_ms)

    def stepped(self, event: Any, effects: Sequence[Any]) -> None:
        """See Owner."""
        assert self.process is not None
        self._world.note(self.name, event, effects)
        self._world.checkers.agents.stepped(self.agent_id, self.process, effects)
        if self.machine is not None:
            self._world.checkers.cuts.stepped(self.machine)
        self._world.checkers.overuse.stepped(self.agent_id, effects)
        self._world.checkers.groups.stepped(self.agent_id, self._world.timeline.now_ms)
        self._world.stepped()

    def commit(self, records: Sequence[Any]) -> None:
        """See Owner."""
        self._world.checkers.agents.commits(self.agent_id, records)
        self._world.checkers.cuts.recorded(self.agent_id, records, self.gpus)
        for record in records:
            self.checkpoint.apply(record)
        if self.twin is not None:
            self.twin.write(records)

    def mortality(self) -> Mortality:
        """See Owner."""
        faults = self._world.faults
        return Mortality(
            faults.agent_crash_before_commit_chance,
            faults.agent_crash_after_commit_chance,
            faults.agent_crash_in_release_chance,
            faults.commit_ms,
        )

    def killed(self) -> None:
        """See Owner."""
        self.die()

    def perform(self, effect: Any) -> None:
        """See Owner."""
        match effect:
            case SendToMaster(connection, message):
                self._world.checkers.agents.said(self.agent_id, message, self.checkpoint, self.containers.live)
                self._world.checkers.executors.said(self.agent_id, message, self.checkpoint)
                self._world.checkers.cuts.said(self.agent_id, message, self.checkpoint)
                if connection == self._connection and self._stream is not None:
                    self._stream.send(CLIENT, message)
            case CloseConnection(connection, _):
                if connection == self._connection and self._stream is not None:
                    self._stream.close(CLIENT)
                    self._retry()
            case StartContainer():
                self._world.checkers.agents.starts(self.agent_id, effect, self.checkpoint)
                if missing := set(effect.task.volume_names) - self.volumes.data:
                    assert self.process is not None
                    why = f"the data of {sorted(missing)} is gone"
                    failed = ContainerLaunchFailed(effect.container_id, StatusReason.VOLUME_REFUSED, why)
                    self.process.post(failed)
                else:
                    self.containers.start(effect)
            case KeepVolumes():
                assert self.process is not None
                self._world.checkers.volumes.carries_out(
                    self.agent_id,
                    effect,
                    self.volumes.data,
                    self._world.master.registry.durable,
                    self.containers.live,
                    self._world.now_ms,
                )
                self.process.post(self.volumes.carry_out(effect))
            case PullImage():
                self.containers.pull(effect)
            case PrefetchImage():
                self.containers.prefetch(effect)
            case CancelPrefetch(pull_id):
                self.containers.cancel_prefetch(pull_id)
            case CheckContainer():
                self.containers.check(effect)
            case KillContainer(container_id, grace_ms):
                self.containers.kill(container_id, grace_ms)
            case EndStray(container_id):
                self.containers.end_stray(container_id)
            case RemoveContainer(container_id):
                self.containers.remove(container_id)
            case ReleaseNetwork(network_id):
                self._world.checkers.groups.network_released(self.agent_id, network_id, self.containers.live)
            case TellExecutor(container_id, event):
                self._world.checkers.executors.told(self.agent_id, container_id, event, self.checkpoint)
                self.executors.tell(container_id, event)
            case LaunchOnExecutor():
                self._world.checkers.executors.handed(self.agent_id, effect, self.checkpoint)
                self.executors.launch(effect)
            case ProbeDevice(uuid):
                self._world.checkers.agents.probes(self.agent_id, uuid, self.containers.live)
                assert self.process is not None
                self._world.timeline.after(self._random.randint(0, 500), self._probed, self.process, uuid)
            case AskWhoUses(uuids):
                assert self.process is not None
                if self._random.random() >= self._world.faults.silent_driver_chance:
                    self._world.timeline.after(self._random.randint(0, 20), self._asked, self.process, uuids)
            case MeasureShares(uuids):
                assert self.process is not None
                if self.shares.answers():
                    self._world.timeline.after(1, self._measured, self.process, uuids)
            case LookAtCard(card):
                assert self.process is not None
                self.cutter.look_at(card, self.process.post)
            case CutCard(card, step):
                assert self.process is not None
                held = [one for one in self.containers.live if one.container_id not in self.containers.forgotten]
                self._world.checkers.cuts.cuts(self.agent_id, effect, self.checkpoint, held, self.gpus)
                self.cutter.cut(card, step, self.process.post)
            case LookAtDevices():
                self._world.timeline.after(self._random.randint(0, 20), self._look_at_what_was_cut)
            case RemoveSandbox() | OpenLogStream() | OpenSessionStream() | Log():
                pass
            case _:
                raise AssertionError(f"no such effect: {effect!r}")
