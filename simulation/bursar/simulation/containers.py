"""What really runs on a machine, whoever believes what: the ground truth that checkers look at.

What a container does stands in the command of its task, so that it is the same wherever it runs: see `program`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from bursar.agent.containers.runtime import ContainerExit, ContainerId, NetworkId, RecoveredContainer
from bursar.agent.effects import CheckContainer, PrefetchImage, PullImage, StartContainer
from bursar.agent.events import (
    ContainerChecked,
    ContainerExited,
    ContainerLaunchFailed,
    ContainerStarted,
    ImageMissed,
    ImagePulled,
    ImagesListed,
    PrefetchEnded,
    PrefetchProgressed,
)
from bursar.core.ids import DeviceUuid, FrameworkId, TaskId
from bursar.core.images import Image, PullFailure, PullProgress
from bursar.core.lives import CheckStatus
from bursar.core.tasks import DEFAULT_KILL_GRACE_MS, StatusReason
from bursar.simulation.faults import Faults
from bursar.simulation.timeline import Timeline

#: A command's name; the arguments are how long it runs in milliseconds (`-` for ever), its exit code, and `deaf` if it
#: ignores SIGTERM.
COMMAND = "simulated"

#: Whose containers no task accounts for.
NOBODY = FrameworkId("nobody")


def program(run_ms: int | None, exit_code: int = 0, *, deaf: bool = False) -> tuple[str, ...]:
    """The command of a simulated task."""
    return (COMMAND, "-" if run_ms is None else str(run_ms), str(exit_code), *(("deaf",) if deaf else ()))


Watcher = Callable[[Any], None]


@dataclass(slots=True, eq=False)
class SimulatedContainer:
    """One container; live until `exit` is set."""

    container_id: ContainerId
    framework_id: FrameworkId
    task_id: TaskId
    devices: tuple[DeviceUuid, ...]
    command: tuple[str, ...]
    has_image: bool = False
    may_restart: bool = False
    #: Shared with its group, and the tasks of that.
    network_id: NetworkId = NetworkId("")
    group: tuple[TaskId, ...] = ()
    grace_ms: int = DEFAULT_KILL_GRACE_MS
    host_ports: tuple[int, ...] = ()
    is_executor: bool = False
    volumes: tuple[DeviceUuid, ...] = ()
    exit: ContainerExit | None = None
    dying: bool = False
    #: Removed by somebody, and nobody was told.
    vanished: bool = False

    @property
    def live(self) -> bool:
        """Whether its processes run."""
        return self.exit is None

    @property
    def ended_badly(self) -> bool:
        """Whether it was told to end, failed or vanished."""
        return self.dying or self.exit is None or self.exit.exit_code != 0


class SimulatedContainers:
    """The engine of one machine. Survives agents; told of the one that watches."""

    def __init__(
        self,
        timeline: Timeline,
        random: Random,
        faults: Faults,
        *,
        on_begin: Callable[[SimulatedContainer], None],
        on_remove: Callable[[SimulatedContainer], None],
        on_fail: Callable[[SimulatedContainer], None],
        on_end: Callable[[SimulatedContainer], None] = lambda container: None,
    ) -> None:
        self._timeline = timeline
        self._random = random
        #: Replaced when faults stop.
        self.faults = faults
        self._on_begin = on_begin
        self._on_remove = on_remove
        self._on_fail = on_fail
        self._on_end = on_end
        self.containers: dict[ContainerId, SimulatedContainer] = {}
        #: Where an agent listens.
        self.watcher: Watcher | None = None
        #: Starts that were asked for and are not done: void when the agent dies.
        self._starting: dict[ContainerId, SimulatedContainer] = {}
        #: Live ones that their agent has lost from its books: as the notes beside a device's lock do, they keep others from it.
        self.forgotten: set[ContainerId] = set()
        #: Whose image is here, after it was missing.
        self._pulled_for: set[ContainerId] = set()
        #: What runs inside an executor's container, and in which: it ends with that.
        self.within: dict[ContainerId, tuple[ContainerId, SimulatedContainer]] = {}
        #: Told of executors that begin.
        self.on_executor: Callable[[SimulatedContainer], None] = lambda container: None
        #: What was pulled beforehand, and what is being.
        self.images: set[str] = set()
        self._prefetching: set[str] = set()

    # --- what an agent asks for ---

    def start(self, effect: StartContainer) -> None:
        """Begin a task; the answer comes later, maybe after its end."""
        task = effect.task
        container = SimulatedContainer(
            effect.container_id,
            task.framework_id,
            task.spec.task_id,
            tuple(device.uuid for device in effect.devices),
            task.spec.command,
            bool(effect.image),
            task.spec.restart is not None,
            effect.network_id,
            task.spec.task_group.task_ids if task.spec.task_group else (),
            DEFAULT_KILL_GRACE_MS if task.spec.kill_grace_ms is None else task.spec.kill_grace_ms,
            tuple(one.host_port for one in task.spec.service_ports),
            is_executor=task.spec.is_executor,
            volumes=task.volume_names,
        )
        self._starting[effect.container_id] = container
        self._timeline.after(self._random.randint(0, self.faults.start_ms), self._begin, container)

    def pull(self, effect: PullImage) -> None:
        """Fetch an image; it takes its time, and there may be none."""
        delay_ms = self._random.randint(0, self.faults.pull_ms)
        self._timeline.after(delay_ms, self._pulled, effect.container_id, self.watcher)

    def prefetch(self, effect: PrefetchImage) -> None:
        """Fetch an image that no task asks for: half of it first, then the rest, or there is none."""
        watcher, delay_ms = self.watcher, self._random.randint(0, self.faults.pull_ms)
        self._prefetching.add(effect.pull_id)
        half = PrefetchProgressed(effect.pull_id, PullProgress(2, 1, 2_000, 1_000))
        self._timeline.after(delay_ms // 2, self._tell, half, watcher)
        self._timeline.after(delay_ms, self._prefetched, effect, watcher)

    def cancel_prefetch(self, pull_id: str) -> None:
        """Nobody hears of it any more."""
        self._prefetching.discard(pull_id)

    def check(self, effect: CheckContainer) -> None:
        """Look at a container, which may fail."""
        container = self.containers.get(effect.container_id)
        well = container is not None and container.live and self._random.random() >= self.faults.check_failure_chance
        status = CheckStatus(is_connected=well)
        delay_ms = self._random.randint(0, 20)
        self._timeline.after(
            delay_ms, self._tell, ContainerChecked(effect.container_id, effect.kind, status), self.watcher
        )

    def kill(self, container_id: ContainerId, grace_ms: int) -> None:
        """SIGTERM now, SIGKILL after the grace; unknown and ended ones are ignored."""
        container = self.containers.get(container_id)
        if container is None or not container.live:
            return
        if grace_ms == 0:
            self._timeline.after(1, self._end, container, ContainerExit(137, StatusReason.COMMAND_EXITED))
        elif "deaf" in container.command:
            self._timeline.after(grace_ms, self._end, container, ContainerExit(137, StatusReason.COMMAND_EXITED))
        elif not container.dying:
            container.dying = True
            delay_ms = self._random.randint(0, min(50, grace_ms))
            self._timeline.after(delay_ms, self._end, container, ContainerExit(143, StatusReason.COMMAND_EXITED))

    def end_stray(self, container_id: ContainerId) -> None:
        """End what runs under a name, whoever began it; the agent hears of it in any case."""
        self._timeline.after(self._random.randint(1, 50), self._end_stray, container_id, self.watcher)

    def _end_stray(self, container_id: ContainerId, watcher: Watcher | None) -> None:
        container = self.containers.get(container_id)
        if container is not None:
            self._end(container, ContainerExit(137, StatusReason.COMMAND_EXITED))
        self._tell(ContainerExited(container_id, ContainerExit(None, StatusReason.CONTAINER_LOST)), watcher)

    def remove(self, container_id: ContainerId) -> None:
        """Forget an ended container."""
        container = self.containers.get(container_id)
        if container is not None:
            self._on_remove(container)
            del self.containers[container_id]

    def recover(self) -> tuple[RecoveredContainer, ...]:
        """Everything that an earlier agent left."""
        return tuple(RecoveredContainer(item.container_id, item.exit) for item in self.containers.values())

    # --- what happens to it ---

    def agent_died(self) -> None:
        """Starts that were on their way are carried out at once, or never."""
        self.watcher = None
        for container in self._starting.values():
            if self._random.random() < 0.5:
                self._create(container)
        self._starting.clear()
        self._prefetching.clear()

    def lose(self, container_id: ContainerId) -> None:
        """A container vanishes: the agent hears that it is lost, or, where there is none, finds nothing."""
        if container_id in self.within:
            container_id, _ = self.within[container_id]
        container = self.containers[container_id]
        watched = self.watcher is not None
        self._end(container, ContainerExit(None, StatusReason.CONTAINER_LOST, "it vanished"))
        if not watched and self._random.random() < 0.5:
            del self.containers[container_id]

    def vanish(self, container_id: ContainerId) -> None:
        """Somebody removes a container behind the agent's back: nobody is told."""
        container = self.containers.pop(container_id)
        self._end_within(container)
        container.exit = ContainerExit(None, StatusReason.CONTAINER_LOST, "it was removed")
        container.vanished = True

    def add_stray(self, name: str) -> ContainerId:
        """Somebody starts one that is ours by its label, and nobody's by the books."""
        container_id = ContainerId(name)
        self.containers[container_id] = SimulatedContainer(container_id, NOBODY, TaskId(name), (), program(None))
        return container_id

    def running(self) -> set[ContainerId]:
        """Those that run, as the engine lists them: what an executor runs is none of its."""
        return {container.container_id for container in self.containers.values() if container.live}

    def _held_by_forgotten(self) -> list[set[DeviceUuid]]:
        there = [self.containers.get(container_id) for container_id in self.forgotten]
        return [set(container.devices) for container in there if container is not None and container.live]

    def _ports_of_forgotten(self) -> list[set[int]]:
        there = [self.containers.get(container_id) for container_id in self.forgotten]
        return [set(container.host_ports) for container in there if container is not None and container.live]

    def reboot(self) -> None:
        """Nothing survives a restart of the machine but, maybe, a record of it."""
        for container in list(self.containers.values()):
            self._end_within(container)
            if container.live:
                how = self._random.randrange(3)
                if how == 0:
                    container.exit = ContainerExit(255, StatusReason.COMMAND_EXITED)
                elif how == 1:
                    container.exit = ContainerExit(None, StatusReason.AGENT_REBOOTED)
                else:
                    container.exit = ContainerExit(None, StatusReason.CONTAINER_LOST)
                    del self.containers[container.container_id]

    @property
    def live(self) -> list[SimulatedContainer]:
        """What runs."""
        inner = [container for _, container in self.within.values()]
        return [container for container in (*self.containers.values(), *inner) if container.live]

    # --- inside ---

    def _begin(self, container: SimulatedContainer) -> None:
        container_id = container.container_id
        if self._starting.get(container_id) is not container:
            return
        faults, random = self.faults, self._random
        if (
            container.has_image
            and random.random() < faults.image_missing_chance
            and container_id not in self._pulled_for
        ):
            del self._starting[container_id]
            self._tell(ImageMissed(container_id))
            return
        if any(not held.isdisjoint(container.devices) for held in self._held_by_forgotten()):
            del self._starting[container_id]
            self._tell(ContainerLaunchFailed(container_id, StatusReason.DEVICES_CHANGED, "another container has it"))
            return
        if any(not ports.isdisjoint(container.host_ports) for ports in self._ports_of_forgotten()):
            del self._starting[container_id]
            self._tell(ContainerLaunchFailed(container_id, StatusReason.PORT_IN_USE, "another container has it"))
            return
        if random.random() < faults.start_failure_chance:
            del self._starting[container_id]
            container.exit = ContainerExit(127, StatusReason.LAUNCH_FAILED)
            self._on_fail(container)
            self._tell(ContainerLaunchFailed(container_id, StatusReason.LAUNCH_FAILED, "not found", 127))
            return
        del self._starting[container_id]
        self._create(container)
        # Whether its end is told first is chance.
        self._timeline.after(random.randint(0, 5), self._tell, ContainerStarted(container_id), self.watcher)

    def _prefetched(self, effect: PrefetchImage, watcher: Watcher | None) -> None:
        if effect.pull_id not in self._prefetching or self.watcher is not watcher:
            return
        self._prefetching.discard(effect.pull_id)
        if self._random.random() < 0.3:
            failed = PrefetchEnded(effect.pull_id, PullFailure.IMAGE_NOT_FOUND, "there is no such image")
            self._tell(failed, watcher)
            return
        self.images.add(effect.image)
        self._tell(PrefetchEnded(effect.pull_id), watcher)
        self._tell(ImagesListed(tuple(Image(name, (name,), 2_000) for name in sorted(self.images))), watcher)

    def _pulled(self, container_id: ContainerId, watcher: Watcher | None) -> None:
        if self._random.random() < 0.3:
            failed = ContainerLaunchFailed(container_id, StatusReason.IMAGE_NOT_FOUND, "there is no such image")
            self._tell(failed, watcher)
        else:
            self._pulled_for.add(container_id)
            self._tell(ImagePulled(container_id), watcher)

    def _create(self, container: SimulatedContainer) -> None:
        self._on_begin(container)
        self.containers[container.container_id] = container
        if container.is_executor:
            self.on_executor(container)
        _, run_ms, code, *_ = container.command
        if run_ms != "-":
            end = ContainerExit(int(code), StatusReason.COMMAND_EXITED)
            self._timeline.after(int(run_ms), self._end, container, end)

    def end(self, container: SimulatedContainer, end: ContainerExit) -> None:
        """It ends, as it wants to."""
        self._end(container, end)

    def _end_within(self, container: SimulatedContainer) -> None:
        for container_id, (outer, inner) in list(self.within.items()):
            if outer == container.container_id:
                inner.exit = ContainerExit(None, StatusReason.EXECUTOR_ENDED)
                del self.within[container_id]

    def _end(self, container: SimulatedContainer, end: ContainerExit) -> None:
        if container.live:
            container.exit = end
            self._end_within(container)
            self._on_end(container)
            self._tell(ContainerExited(container.container_id, end))

    def _tell(self, event: Any, watcher: Watcher | None = None) -> None:
        """Tell the agent; where an agent is named, only that one: an answer to the dead is not one to their heirs."""
        if self.watcher is not None and watcher in (None, self.watcher):
            self.watcher(event)
