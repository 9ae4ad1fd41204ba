"""The agent's shell: one machine, and the adapters that its effects reach.

Thin on purpose: what to do is decided in `machine`; here it is done, and its outcome becomes an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from bursar.agent.books import DEFAULT_RELEASE_TIMEOUT_MS, DEFAULT_SHARE_GRACE_MS
from bursar.agent.checkpoint import Checkpoint
from bursar.agent.compare import Comparison
from bursar.agent.containers.device_reach import ReachTeller
from bursar.agent.containers.fetcher import DEFAULT_CACHE_BYTES, Fetcher
from bursar.agent.containers.runtime import (
    ContainerExit,
    ContainerId,
    ContainerRuntime,
    ImageMissing,
    LaunchFailed,
    PullFailed,
    RecoveredContainer,
    RuntimeUnavailable,
)
from bursar.agent.containers.sessions import Session, SessionRefused
from bursar.agent.containers.volumes import VolumeRules
from bursar.agent.devices.bindings import DeviceBindings
from bursar.agent.devices.cutting import Step
from bursar.agent.devices.driver import (
    DriverUnavailable,
    HealthWatcher,
    health_watchers,
)
from bursar.agent.devices.health import HealthRules
from bursar.agent.devices.source import DeviceSource, Users, with_containers
from bursar.agent.disk import Ballast, commit_patiently
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
    CardCut,
    CardLookedAt,
    ContainerChecked,
    ContainerExited,
    ContainerLaunchFailed,
    ContainersRecovered,
    ContainerStarted,
    DeviceProbed,
    DevicesDiscovered,
    DevicesSignalled,
    DeviceUsersTold,
    ImageMissed,
    ImagePulled,
    ImagesListed,
    NodesOutOfReach,
    PrefetchEnded,
    PrefetchProgressed,
    SandboxOverfilled,
    SharesMeasured,
    VolumesKept,
)
from bursar.agent.executors_service import ExecutorSockets
from bursar.agent.kept_volumes import KeptVolumes
from bursar.agent.launch import Launcher, owner_of
from bursar.agent.logs_service import LogSender
from bursar.agent.machine import AgentConfig, AgentMachine
from bursar.agent.master_client import MasterClient
from bursar.agent.metrics import AgentMetrics
from bursar.agent.resources import ResolvedResources
from bursar.agent.scratch import LOOK_S, bytes_below
from bursar.agent.sessions_service import SessionServer
from bursar.agent.tasks import TaskKey, container_of
from bursar.agent.usage import UsageMeter
from bursar.agent.watchdog import notify
from bursar.agent.work_dir import WorkDir
from bursar.core.errors import BursarError
from bursar.core.ids import DeviceUuid
from bursar.core.images import PullFailure, PullProgress
from bursar.core.lives import CheckStatus
from bursar.core.messages.agent import AgentInfo
from bursar.core.resources import DISK, sum_resources
from bursar.core.tasks import AssignedTask, StatusReason, TaskState
from bursar.core.ulimits import Ulimit
from bursar.runtime.credentials import NOBODY, Credentials
from bursar.runtime.driver import Driver
from bursar.runtime.telemetry import logger

_Subject = TypeVar("_Subject")

#: Between two looks at the devices.
DISCOVERY_INTERVAL_S = 30.0
#: A stopping agent waits so long for starts under way, so that their outcome is recorded.
STOP_TIMEOUT_S = 10.0
#: A driver waits at most so long for something to say: what a stopping agent may have to wait for.
WATCH_S = 0.5
_RETRY_REMOVE_S = (1.0, 5.0, 30.0)


@dataclass(slots=True)
class _Container:
    """A container that may still print."""

    #: Set once it was started, or has ended without.
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    #: Asked to be removed; done when what it printed is complete in the sandbox.
    removal: asyncio.Task[None] | None = None
    #: The removal of the same task's container before this one, which has the same name.
    earlier: asyncio.Task[None] | None = None


class AgentDaemon:
    """Everything of a running agent, from its adapters to its stop."""

    def __init__(
        self,
        *,
        info: AgentInfo,
        default_image: str,
        masters: Sequence[str],
        work_dir: WorkDir,
        checkpoint: Checkpoint,
        runtime: ContainerRuntime,
        devices: DeviceSource,
        resolved: ResolvedResources,
        metrics: AgentMetrics,
        volumes: VolumeRules | None = None,
        health: HealthRules | None = None,
        bindings: DeviceBindings | None = None,
        fetch_cache_bytes: int = DEFAULT_CACHE_BYTES,
        release_timeout_ms: int = DEFAULT_RELEASE_TIMEOUT_MS,
        share_grace_ms: int = DEFAULT_SHARE_GRACE_MS,
        credentials: Credentials = NOBODY,
        max_ulimits: Sequence[Ulimit] = (),
    ) -> None:
        self._work_dir = work_dir
        self._checkpoint = checkpoint
        self._runtime = runtime
        self._devices = devices
        self._resolved = resolved
        self._metrics = metrics
        self._ballast = Ballast(work_dir.path)
        self._bindings = bindings or DeviceBindings(info.agent_id, ())
        rules = volumes or VolumeRules(work_dir.volumes)
        self._kept = rules.kept or KeptVolumes(work_dir.kept_volumes)
        rules = replace(rules, kept=self._kept)
        fetcher = Fetcher(work_dir.fetched, rules.roots, fetch_cache_bytes)
        self._executors = ExecutorSockets(work_dir.executors, lambda event: self.driver.post(event))
        self._launcher = Launcher(
            runtime, devices.driver, rules, work_dir, self._bindings, fetcher, self._is_unwanted, self._executors
        )
        self._log = logger()
        config = AgentConfig(
            info,
            default_image,
            health=health or HealthRules(),
            tells_users=devices.tells_users,
            users=devices.users([device.uuid for device in info.devices]),
            release_timeout_ms=release_timeout_ms,
            max_ulimits=tuple(max_ulimits),
            share_grace_ms=share_grace_ms if devices.measures_shares else None,
            volumes=self._kept.list(),
        )
        self.machine = AgentMachine(config, checkpoint.load())
        self.driver = Driver(self.machine, commit=self._commit, perform=self._perform)
        self.client = MasterClient(masters, self.driver.post, self._log, credentials)
        self._log_sender = LogSender(credentials)
        self._session_server = SessionServer(credentials)
        self._containers: dict[ContainerId, _Container] = {}
        #: Ends told while the containers of an earlier life are still being looked for.
        self._early_exits: list[ContainerExited] | None = []
        self._to_start: deque[StartContainer] = deque()
        #: One look at the devices at a time; and why the last one failed.
        self._looking = asyncio.Lock()
        self._look_failed = ""
        self._starts: set[asyncio.Task[None]] = set()
        self._others: set[asyncio.Task[None]] = set()
        self._prefetches: dict[str, asyncio.Task[None]] = {}
        metrics.watch(self.machine, lambda: self.client.connections_total)
        self._comparison = Comparison(self.machine, runtime, self.driver.post, metrics.registry)
        self._meter = UsageMeter(self.machine, runtime, devices.driver, metrics.registry)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`; tasks run on. Raises BursarError where the checkpoint fails."""
        driving = asyncio.create_task(self.driver.run())
        others: list[asyncio.Task[Any]] = [asyncio.create_task(stop.wait())]
        try:
            try:
                recovered = await self._runtime.recover()
            except RuntimeUnavailable as error:
                raise BursarError(str(error)) from error
            self._take_over(recovered)
            await self._find_executors()
            notify("READY=1")
            await asyncio.to_thread(self._work_dir.sweep, self._wanted_sandboxes())
            self._spawn(self._empty_trash(), self._others)
            others += [asyncio.create_task(self.client.run()), asyncio.create_task(self._watch_devices())]
            others.append(asyncio.create_task(self._watch_images()))
            others.append(asyncio.create_task(self._comparison.run()))
            if self.machine.info.metrics_address:
                others.append(asyncio.create_task(self._meter.run()))
            others += [asyncio.create_task(self._watch_sandboxes())]
            others += [asyncio.create_task(self._watch_health(one)) for one in health_watchers(self._devices.driver)]
            await asyncio.wait({driving, *others}, return_when=asyncio.FIRST_COMPLETED)
            for task in (driving, *others[1:]):
                if task.done():
                    task.result()
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._log_sender.close()
            await self._session_server.close()
            await self._executors.close()
            self._launcher.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    while self._starts:
                        await asyncio.wait(self._starts)
            self.driver.stop()
            try:
                await driving
            finally:
                for task in (*self._starts, *self._others):
                    task.cancel()
                await self._runtime.close()
                self._checkpoint.close()
                self._devices.driver.close()
                self._work_dir.close()

    # --- from the adapters ------------------------------------------------------------------------------------------

    def container_exited(self, container_id: ContainerId, exit: ContainerExit) -> None:
        """The runtime's `on_exit`."""
        self._bindings.unbind(container_id)
        event = ContainerExited(container_id, exit)
        if self._early_exits is not None:
            self._early_exits.append(event)
        else:
            self.driver.post(event)

    def _take_over(self, recovered: Sequence[RecoveredContainer]) -> None:
        for container in recovered:
            entry = self._containers[container.container_id] = _Container()
            entry.settled.set()
        self._bindings.keep_only({one.container_id for one in recovered if one.exit is None})
        early, self._early_exits = self._early_exits or [], None
        self.driver.post(ContainersRecovered(tuple(recovered)))
        for event in early:
            self.driver.post(event)

    async def _find_executors(self) -> None:
        """Listen again where those of an earlier life look for us."""
        state, agent_id = self.machine.state, self.machine.info.agent_id
        for record in list(state.tasks.values()):
            container_id = container_of(agent_id, record.key)
            if record.task.spec.is_executor and not record.state.is_terminal and container_id in self._containers:
                try:
                    await self._executors.open(container_id, owner_of(record.task))
                except (OSError, LaunchFailed) as error:
                    self._log.error("an executor's socket cannot be opened", container=container_id, reason=str(error))

    def _wanted_sandboxes(self) -> set[ContainerId]:
        state, agent_id = self.machine.state, self.machine.info.agent_id
        kept = [*state.tasks, *(key for key, task in state.finished.items() if task.sandbox)]
        return {container_of(agent_id, key) for key in kept} | self._containers.keys()

    async def _watch_sandboxes(self) -> None:
        """End tasks that write more than they asked for; those that asked for no disk are bounded by the machine's alone."""
        while True:
            await asyncio.sleep(LOOK_S)
            state, agent_id = self.machine.state, self.machine.info.agent_id
            running = [record for record in state.tasks.values() if record.state is TaskState.RUNNING]
            for record in running:
                granted = sum_resources(part.resources for part in record.task.resources).scalars.get(DISK, 0)
                if granted > 0:
                    container_id = container_of(agent_id, record.key)
                    used = await asyncio.to_thread(bytes_below, self._work_dir.sandbox(container_id), granted)
                    if used > granted:
                        self.driver.post(SandboxOverfilled(container_id))

    async def _watch_devices(self) -> None:
        while True:
            await asyncio.sleep(DISCOVERY_INTERVAL_S)
            await self._look_at_devices()

    async def _look_at_devices(self) -> None:
        async with self._looking:
            try:
                found = await asyncio.to_thread(self._devices.discover)
            except DriverUnavailable as error:
                if str(error) != self._look_failed and self._resolved.devices:
                    self._log.warning("the devices cannot be looked at; as before until then", reason=str(error))
                self._look_failed = str(error)
                return
            self._look_failed = ""
            self._resolved = self._devices.resolve_again(found, self._resolved)
            devices, resources = self._resolved.devices, self._resolved.resources
            hidden = frozenset(device.uuid for device in found) - {device.uuid for device in devices}
            self.driver.post(DevicesDiscovered(devices, resources, self._devices.remedies(), hidden))
            await self._look_into_containers()

    async def _look_into_containers(self) -> None:
        """Whether tasks may still open the devices that they were given."""
        if not isinstance(self._runtime, ReachTeller):
            return
        books = self.machine.books
        having = [
            container_of(books.info.agent_id, key)
            for key, record in books.state.tasks.items()
            if record.state is TaskState.RUNNING and record.task.device_uuids
        ]
        try:
            found = await asyncio.to_thread(self._runtime.out_of_reach, having) if having else {}
        except Exception as error:  # noqa: BLE001 - whatever it is, it is looked again
            self._log.warning("cannot see whether containers reach their devices", reason=str(error))
            return
        if found:
            self.driver.post(NodesOutOfReach(found))

    async def _watch_health(self, watcher: HealthWatcher) -> None:
        """Hear what a driver says of its own accord, and look at the devices whenever it does."""
        while True:
            try:
                signals = await asyncio.to_thread(watcher.watch, WATCH_S)
            except Exception:  # noqa: BLE001 - a driver's mistake must not take the agent with it
                self._log.exception("a device driver failed while it watched; trying again")
                await asyncio.sleep(DISCOVERY_INTERVAL_S)
                continue
            if signals is not None:
                if signals:
                    self._metrics.count_signals(signals)
                    self.driver.post(DevicesSignalled(signals))
                await self._look_at_devices()

    async def _probe(self, uuid: DeviceUuid) -> None:
        try:
            async with self._looking:
                problem = await asyncio.to_thread(self._devices.probe, uuid)
        except Exception as error:  # noqa: BLE001 - a driver that fails is a device that does not work
            self._log.exception("a device driver failed while it probed", device=uuid)
            problem = f"{type(error).__name__}: {error}"
        self.driver.post(DeviceProbed(uuid, problem))

    async def _look_at_card(self, card: DeviceUuid) -> None:
        layout, problem = None, ""
        try:
            async with self._looking:
                layout = await asyncio.to_thread(self._devices.layout_of, card)
        except Exception as error:  # noqa: BLE001 - whatever it is, the card cannot be looked at
            problem = str(error) or type(error).__name__
        self.driver.post(CardLookedAt(card, layout, problem))

    async def _cut(self, card: DeviceUuid, step: Step) -> None:
        problem = ""
        try:
            async with self._looking:
                await asyncio.to_thread(self._devices.cut, card, step)
        except Exception as error:  # noqa: BLE001 - whatever it is, the step is not done
            problem = str(error) or type(error).__name__
        self.driver.post(CardCut(card, step, problem))

    async def _ask_who_uses(self, uuids: tuple[DeviceUuid, ...]) -> None:
        """One that fails is asked again; one that hangs has not answered."""
        try:
            users = await self._with_containers(await asyncio.to_thread(self._devices.users, uuids))
        except Exception:  # noqa: BLE001 - a driver's mistake must not take the agent with it
            self._log.exception("a device driver failed while it was asked who uses its devices")
            return
        self.driver.post(DeviceUsersTold(users))

    async def _measure_shares(self, uuids: tuple[DeviceUuid, ...]) -> None:
        """A look that fails is made again in time."""
        try:
            users = await self._with_containers(await asyncio.to_thread(self._devices.all_users, uuids))
        except Exception:  # noqa: BLE001 - a driver's mistake must not take the agent with it
            self._log.exception("a device driver failed while it was asked what tasks use of their shares")
            return
        self.driver.post(SharesMeasured(users))

    async def _with_containers(self, users: Users) -> Users:
        if not any(users.values()):
            return users
        running = [*self.machine.books.live, *self.machine.books.orphans]
        first = {container_id: await self._runtime.pid_of(container_id) for container_id in running}
        return await asyncio.to_thread(with_containers, users, first)

    # --- to the adapters --------------------------------------------------------------------------------------------

    async def _commit(self, records: Sequence[object]) -> None:
        begun = time.perf_counter()
        await commit_patiently(self._checkpoint, self._ballast, records, self._log)
        self._metrics.commit_seconds.observe(time.perf_counter() - begun)

    def _perform(self, effect: object) -> None:
        match effect:
            case SendToMaster(connection, message):
                self.client.send(connection, message)
            case StartContainer():
                earlier = self._containers.get(effect.container_id)
                before = earlier.removal if earlier is not None else None
                self._containers[effect.container_id] = _Container(earlier=before)
                self._to_start.append(effect)
                if len(self._to_start) == 1:
                    self._spawn(self._start_all(), self._starts)
            case TellExecutor(container_id, event):
                self._executors.tell(container_id, event)
            case LaunchOnExecutor():
                self._launcher.hand_over(effect)
            case KeepVolumes(asked, make, remove):
                self._keep_volumes(asked, make, remove)
            case PullImage():
                self._spawn(self._pull(effect), self._others)
            case PrefetchImage(pull_id, image):
                self._prefetches[pull_id] = self._spawn(self._prefetch(pull_id, image), self._others)
            case CancelPrefetch(pull_id):
                if (prefetch := self._prefetches.get(pull_id)) is not None:
                    prefetch.cancel()
            case CheckContainer():
                self._spawn(self._check_container(effect), self._others)
            case KillContainer(container_id, grace_ms):
                self._spawn(self._guarded("kill", self._runtime.kill(container_id, grace_ms)), self._others)
            case EndStray(container_id):
                self._spawn(self._guarded("end", self._end_stray(container_id)), self._others)
            case RemoveContainer(container_id):
                entry = self._containers.setdefault(container_id, _Container())
                if entry.removal is None:
                    entry.removal = self._spawn(self._remove(container_id), self._others)
            case RemoveSandbox(container_id):
                self._spawn(self._remove_sandbox(container_id), self._others)
            case ReleaseNetwork(network_id):
                self._spawn(
                    self._patiently("let go of a network", self._runtime.release_network, network_id), self._others
                )
            case ProbeDevice(uuid):
                self._spawn(self._probe(uuid), self._others)
            case LookAtCard(card):
                self._spawn(self._look_at_card(card), self._others)
            case CutCard(card, step):
                self._spawn(self._cut(card, step), self._others)
            case LookAtDevices():
                self._spawn(self._look_at_devices(), self._others)
            case AskWhoUses(uuids):
                self._spawn(self._ask_who_uses(uuids), self._others)
            case MeasureShares(uuids):
                self._spawn(self._measure_shares(uuids), self._others)
            case CloseConnection(connection, reason):
                self.client.close(connection, reason)
            case OpenLogStream():
                self._open_log(effect)
            case OpenSessionStream():
                self._open_session(effect)
            case Log(level, text, fields):
                getattr(self._log, level)(text, **fields)
            case _:
                raise AssertionError(f"unknown effect {effect!r}")

    def _spawn(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    def _keep_volumes(self, asked: int, make: Sequence[DeviceUuid], remove: Sequence[DeviceUuid]) -> None:
        """Here and now: a task that mounts a new volume may be next."""
        troubles = (*self._kept.make(make), *self._kept.set_aside(remove))
        self.driver.post(VolumesKept(asked, tuple(sorted(self._kept.list())), troubles))
        if remove:
            self._spawn(self._empty_trash(), self._others)

    async def _empty_trash(self) -> None:
        for path, failures, problem in await asyncio.to_thread(self._kept.empty_trash):
            words = "data of a destroyed volume cannot be removed; tried again when another is, and at the next start"
            self._log.warning(words, path=os.fspath(path), failures=failures, reason=problem)

    async def _start_all(self) -> None:
        """Begin one start per turn of the loop: a start may block for milliseconds, and a thousand must not delay a pong."""
        while self._to_start:
            self._spawn(self._start(self._to_start[0]), self._starts)
            await asyncio.sleep(0)
            self._to_start.popleft()

    async def _start(self, effect: StartContainer) -> None:
        begun = time.perf_counter()
        self._metrics.launches.inc()
        container_id = effect.container_id
        outcome: object
        try:
            entry = self._containers[container_id]
            if entry.earlier is not None:
                await asyncio.shield(entry.earlier)
            await self._launcher.launch(effect)
            outcome = ContainerStarted(container_id)
            if entry.earlier is not None:
                # Whoever follows its output goes on with that of this run.
                await self._guarded("show the output of", self._runtime.prepare_logs(container_id))
        except ImageMissing:
            outcome = ImageMissed(container_id)
        except LaunchFailed as error:
            outcome = ContainerLaunchFailed(
                container_id, error.reason, error.message, getattr(error, "exit_code", None)
            )
        except OSError as error:
            outcome = ContainerLaunchFailed(
                container_id, StatusReason.LAUNCH_FAILED, f"the sandbox cannot be made: {error.strerror or error}"
            )
        except Exception as error:  # noqa: BLE001
            # An adapter's mistake must not take the agent, and all its other tasks' reports, with it.
            self._log.exception("the runtime failed in an unexpected way", container=container_id)
            outcome = ContainerLaunchFailed(
                container_id, StatusReason.LAUNCH_FAILED, f"{type(error).__name__}: {error}"
            )
        self._metrics.start_seconds.observe(time.perf_counter() - begun)
        if isinstance(outcome, ContainerLaunchFailed):
            self._metrics.launch_failures.labels(outcome.reason.name.lower()).inc()
        self._containers[container_id].settled.set()
        self.driver.post(outcome)

    async def _check_container(self, effect: CheckContainer) -> None:
        status = CheckStatus()
        try:
            async with asyncio.timeout(effect.check.timeout / 1000):
                own = self._runtime.own_network
                ports = {one.name: one.listens_on(own) for one in effect.service_ports}
                status = await self._runtime.check(effect.container_id, effect.check.at(ports))
        except TimeoutError:
            pass
        except Exception as error:  # noqa: BLE001 - a look that could not be made has failed
            self._log.warning("a check cannot be made", container=effect.container_id, reason=str(error))
        self.driver.post(ContainerChecked(effect.container_id, effect.kind, status))

    def _is_unwanted(self, task: AssignedTask) -> bool:
        """Whether a task that is being launched was killed meanwhile; asked from threads."""
        record = self.machine.state.tasks.get(TaskKey(task.framework_id, task.spec.task_id))
        return record is None or record.kill is not None

    async def _pull(self, effect: PullImage) -> None:
        """Have an image: minutes, perhaps; the machine knows that the task holds nothing meanwhile."""
        outcome: object = ImagePulled(effect.container_id)
        try:
            await self._runtime.pull(effect.image)
        except LaunchFailed as error:
            outcome = ContainerLaunchFailed(effect.container_id, error.reason, error.message)
        except Exception as error:  # noqa: BLE001 - as with a start
            self._log.exception("an image cannot be pulled", container=effect.container_id, image=effect.image)
            message = f"{type(error).__name__}: {error}"
            outcome = ContainerLaunchFailed(effect.container_id, StatusReason.LAUNCH_FAILED, message)
        self.driver.post(outcome)

    async def _prefetch(self, pull_id: str, image: str) -> None:
        """Have an image that no task waits for; one that does joins."""

        def tell(progress: PullProgress) -> None:
            self.driver.post(PrefetchProgressed(pull_id, progress))

        outcome = PrefetchEnded(pull_id)
        try:
            await self._runtime.pull(image, tell)
        except PullFailed as error:
            outcome = PrefetchEnded(pull_id, error.failure, error.message)
        except LaunchFailed as error:
            outcome = PrefetchEnded(pull_id, PullFailure.OTHER, error.message)
        except Exception as error:  # noqa: BLE001 - as with a start
            self._log.exception("an image cannot be pulled", image=image)
            outcome = PrefetchEnded(pull_id, PullFailure.OTHER, f"{type(error).__name__}: {error}")
        finally:
            self._prefetches.pop(pull_id, None)
        self.driver.post(outcome)
        await self._list_images()

    async def _watch_images(self) -> None:
        while True:
            await self._list_images()
            await asyncio.sleep(DISCOVERY_INTERVAL_S)

    async def _list_images(self) -> None:
        self.driver.post(ImagesListed(tuple(await self._runtime.images())))

    async def _end_stray(self, container_id: ContainerId) -> None:
        await self._runtime.end_stray(container_id)
        ended = ContainerExit(None, StatusReason.CONTAINER_LOST, "nothing of it runs")
        self.driver.post(ContainerExited(container_id, ended))

    async def _remove(self, container_id: ContainerId) -> None:
        mine = self._containers[container_id]
        await self._patiently("remove a container", self._runtime.remove, container_id)
        await self._executors.remove(container_id)
        mine.settled.set()
        if self._containers.get(container_id) is mine:
            del self._containers[container_id]

    async def _patiently(self, what: str, work: Callable[[_Subject], Awaitable[None]], subject: _Subject) -> None:
        """Until it is done: an engine that is away comes back."""
        attempt = 0
        while True:
            try:
                await work(subject)
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, it may be over next time
                if attempt == 0:
                    self._log.warning(f"cannot {what}; trying again", container=subject, reason=str(error))
                await asyncio.sleep(_RETRY_REMOVE_S[min(attempt, len(_RETRY_REMOVE_S) - 1)])
                attempt += 1

    async def _remove_sandbox(self, container_id: ContainerId) -> None:
        entry = self._containers.get(container_id)
        if entry is not None and entry.removal is not None:
            await entry.removal
        await asyncio.to_thread(self._work_dir.remove_sandbox, container_id)

    async def _guarded(self, what: str, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001
            # The machine asks again in time.
            self._log.warning(f"cannot {what} a container", reason=str(error))

    def _open_session(self, effect: OpenSessionStream) -> None:
        async def open() -> Session:
            if effect.error is not None:
                raise SessionRefused(effect.error.message, effect.error.hint)
            return await self._runtime.open_session(effect.container_id, effect.start)

        if self.client.address is not None:
            self._session_server.serve(self.client.address, effect.stream_id, open)

    def _open_log(self, effect: OpenLogStream) -> None:
        address, container_id = self.client.address, effect.container_id
        if address is None:
            return
        if effect.error is not None:
            self._log_sender.refuse(address, effect.stream_id, effect.error)
            return

        async def prepare() -> None:
            entry = self._containers.get(container_id)
            if entry is not None:
                await entry.settled.wait()
                if entry.removal is not None:
                    # It has ended; what it printed is complete once it was removed.
                    await asyncio.shield(entry.removal)
                elif container_id in self._containers:
                    await self._guarded("show the output of", self._runtime.prepare_logs(container_id))

        self._log_sender.send(
            address,
            effect.stream_id,
            self._work_dir.sandbox(container_id),
            prepare=prepare,
            # A task between two runs has no container, and will print again.
            ended=lambda: container_id not in self._containers and container_id not in self.machine.books.live,
            follow=effect.follow,
            tail_bytes=effect.tail_bytes,
        )
