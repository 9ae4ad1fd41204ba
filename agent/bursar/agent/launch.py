"""A launch: a short list of steps, each with what undoes it. A step that fails has the ones before it undone, in reverse (B-02).

The image is not among them: where it is missing the launch is undone as a whole, the machine has it pulled while the task holds
no device, and launches anew.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bursar.agent.containers.fetcher import Fetcher
from bursar.agent.containers.logs import log_files
from bursar.agent.containers.runtime import ContainerRuntime, ContainerSpec, Decoration, LaunchFailed, Mount
from bursar.agent.containers.volumes import VolumeRules
from bursar.agent.cpusets import near_cpus
from bursar.agent.devices.bindings import DeviceBindings
from bursar.agent.devices.driver import ContainerDecorator
from bursar.agent.effects import LaunchOnExecutor, StartContainer
from bursar.agent.executors_service import SOCKET_NAME, ExecutorSockets
from bursar.agent.pinning import (
    DEVICES_FILE,
    devices_file_content,
    is_gpu,
    task_environment,
    visible_devices,
    visible_id,
)
from bursar.agent.service_ports import check_free, port_variables
from bursar.agent.volume_variables import volume_variables
from bursar.agent.work_dir import WorkDir
from bursar.core.devices import Device
from bursar.core.messages.executor import ExecutorLaunch
from bursar.core.resources import CPUS, MEM, sum_resources
from bursar.core.surroundings import ContainerSettings
from bursar.core.tasks import (
    EXECUTOR_SOCKET,
    PINNING_VARIABLES,
    AssignedTask,
    StatusReason,
    memory_environment,
    memory_plan,
)
from bursar.runtime.telemetry import logger

#: Inside a container.
_SOCKETS = "/run/bursar"


@dataclass(slots=True)
class Draft:
    """What the steps of one launch have come to so far."""

    effect: StartContainer
    volumes: tuple[Mount, ...] = ()
    sandbox: Path = Path()
    decoration: Decoration = field(default_factory=Decoration)
    #: The granted devices that exist.
    real: list[Device] = field(default_factory=list)


def owner_of(task: AssignedTask) -> tuple[int, int] | None:
    """User and group of its processes, where that is not the agent's."""
    return task.spec.container.owner if task.spec.container else None


def link_volumes(sandbox: Path, volumes: Sequence[Mount]) -> None:
    """A plain process finds volumes in its sandbox, under the path that a container would have them at. Raises LaunchFailed."""
    for volume in volumes:
        link = sandbox / volume.target.lstrip("/")
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            if link.is_symlink():
                link.unlink()
            link.symlink_to(volume.source)
        except OSError as error:
            why = f"volume at {volume.target}: it cannot be linked into the sandbox: {error.strerror or error}"
            raise LaunchFailed(StatusReason.VOLUME_REFUSED, why) from error


class Step(NamedTuple):
    """One step. `undo` is called where a later step failed; it must not raise, and a step that failed left nothing itself."""

    name: str
    do: Callable[[Draft], Awaitable[None]]
    undo: Callable[[Draft], Awaitable[None]] | None = None


class Launcher:
    """Carries out launches, any number at once."""

    def __init__(
        self,
        runtime: ContainerRuntime,
        driver: object,
        volumes: VolumeRules,
        work_dir: WorkDir,
        bindings: DeviceBindings | None = None,
        fetcher: Fetcher | None = None,
        unwanted: Callable[[AssignedTask], bool] = lambda task: False,
        executors: ExecutorSockets | None = None,
    ) -> None:
        """`unwanted`: whether a task that is being launched is to end already; a long fetch asks it."""
        self._runtime = runtime
        self._driver = driver
        self._volumes = volumes
        self._work_dir = work_dir
        self._bindings = bindings
        self._fetcher = fetcher or Fetcher(work_dir.fetched, volumes.roots)
        self._unwanted = unwanted
        self._executors = executors or ExecutorSockets(work_dir.executors, lambda event: None)
        #: In order. Named volumes stay: they are kept from the first naming on, whatever becomes of the task.
        self.steps: list[Step] = [
            Step("volumes", self._find_volumes),
            Step("sandbox", self._make_sandbox, self._remove_sandbox),
            Step("files", self._fetch_files),
            Step("devices", self._add_devices),
            Step("claim", self._claim_devices, self._free_devices),
            Step("ports", self._check_ports),
            Step("executor", self._open_socket, self._remove_socket),
            Step("container", self._start_container),
        ]

    async def launch(self, effect: StartContainer) -> None:
        """Every step, or none. Raises LaunchFailed (ImageMissing among them), OSError."""
        draft = Draft(effect)
        done: list[Step] = []
        try:
            for step in self.steps:
                await step.do(draft)
                done.append(step)
        except BaseException:
            for step in reversed(done):
                if step.undo is not None:
                    await self._undo(step, draft)
            raise

    async def _undo(self, step: Step, draft: Draft) -> None:
        try:
            await step.undo(draft)  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 - the others are undone all the same
            logger().warning(
                f"the step {step.name} of a launch cannot be undone",
                container=draft.effect.container_id,
                reason=str(error),
            )

    # --- the steps ---------------------------------------------------------------------------------------------------

    async def _find_volumes(self, draft: Draft) -> None:
        """On a thread: a file system may hang."""
        task = draft.effect.task
        if task.spec.volumes:
            owner = task.spec.container.owner if task.spec.container else None
            draft.volumes = await asyncio.to_thread(
                self._volumes.mounts, task.spec.volumes, task.role, owner, task.volume_names
            )

    async def _make_sandbox(self, draft: Draft) -> None:
        draft.sandbox = self._work_dir.make_sandbox(draft.effect.container_id)
        for file in log_files(draft.sandbox):
            file.begin_run()
        content = devices_file_content(draft.effect.devices)
        (draft.sandbox / DEVICES_FILE).write_text(content, encoding="utf-8")
        if self._runtime.name == "process":
            link_volumes(draft.sandbox, draft.volumes)

    async def _remove_sandbox(self, draft: Draft) -> None:
        if any(file.run_began_at() for file in log_files(draft.sandbox)):
            return  # an earlier run of the task has printed into it
        await asyncio.to_thread(self._work_dir.remove_sandbox, draft.effect.container_id)

    async def _fetch_files(self, draft: Draft) -> None:
        """What is left of a fetch that fails goes with the sandbox."""
        task = draft.effect.task
        if task.spec.fetch:
            owner = task.spec.container.owner if task.spec.container else None
            await self._fetcher.fetch_all(task.spec.fetch, draft.sandbox, owner, lambda: self._unwanted(task))

    def close(self) -> None:
        """Give up what takes long."""
        self._fetcher.close()

    async def _add_devices(self, draft: Draft) -> None:
        """What the drivers add; a driver in a process of its own is asked on a thread."""
        driver = self._driver
        if not isinstance(driver, ContainerDecorator):
            return
        if getattr(driver, "may_block", False):
            draft.decoration = await asyncio.to_thread(driver.decorate, draft.effect.devices, self._runtime.name)
        else:
            draft.decoration = driver.decorate(draft.effect.devices, self._runtime.name)

    async def _claim_devices(self, draft: Draft) -> None:
        """Note for other agents of this machine whose the devices are; a simulated one is nobody else's."""
        draft.real = [device for device in draft.effect.devices if device.driver != "simulated"]
        if self._bindings and draft.real:
            if stray := self._bindings.stray_on(draft.effect.container_id, draft.real):
                raise LaunchFailed(
                    StatusReason.DEVICES_CHANGED,
                    f"container {stray}, which no task accounts for, still runs with a device of it; launch the task again",
                )
            self._bindings.bind(draft.effect.container_id, draft.real)

    async def _free_devices(self, draft: Draft) -> None:
        if self._bindings and draft.real:
            self._bindings.unbind(draft.effect.container_id)

    async def _check_ports(self, draft: Draft) -> None:
        """Where the engine connects them it is the engine that refuses."""
        services = draft.effect.task.spec.service_ports
        if services and not self._runtime.own_network:
            await asyncio.to_thread(check_free, services)

    async def _open_socket(self, draft: Draft) -> None:
        if draft.effect.task.spec.is_executor:
            await self._executors.open(draft.effect.container_id, owner_of(draft.effect.task))

    async def _remove_socket(self, draft: Draft) -> None:
        if draft.effect.task.spec.is_executor:
            await self._executors.remove(draft.effect.container_id)

    def hand_over(self, effect: LaunchOnExecutor) -> None:
        """Tell an executor to run a task."""
        spec = effect.task.spec
        environment = {variable.name: variable.value for variable in spec.environment}
        environment = {name: value for name, value in environment.items() if name not in PINNING_VARIABLES}
        if self._runtime.name == "process":
            # A container has its devices from its beginning, and the variables that say which.
            environment |= visible_devices([visible_id(device) for device in effect.devices if is_gpu(device)])
            environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        environment["BURSAR_TASK_ID"] = spec.task_id
        self._executors.tell(effect.container_id, ExecutorLaunch(spec, environment))

    async def _start_container(self, draft: Draft) -> None:
        await self._runtime.start(self._spec(draft))
        if self._bindings and draft.real:
            pid = await self._runtime.pid_of(draft.effect.container_id)
            self._bindings.bind_running(draft.effect.container_id, draft.real, pid)

    def _spec(self, draft: Draft) -> ContainerSpec:
        """Everything that the runtime needs."""
        effect, runtime = draft.effect, self._runtime.name
        task = effect.task
        amounts = sum_resources(part.resources for part in task.resources).scalars
        memory = memory_plan(task.spec, runtime)
        volumes = draft.volumes
        socket: dict[str, str] = {}
        if task.spec.is_executor:
            directory = self._executors.directory_of(effect.container_id)
            seen = Path(_SOCKETS) if runtime == "docker" else directory
            socket[EXECUTOR_SOCKET] = str(seen / SOCKET_NAME)
            # The directory, as the next life of the agent makes another socket in it.
            volumes = (*volumes, *((Mount(str(directory), _SOCKETS),) if runtime == "docker" else ()))
        planned: dict[str, Any] = memory_environment(task.spec, memory) if memory is not None else {}
        return ContainerSpec(
            container_id=effect.container_id,
            framework_id=task.framework_id,
            task_id=task.spec.task_id,
            command=task.spec.command,
            image=effect.image,
            environment=task_environment(
                task_id=task.spec.task_id,
                variables=task.spec.environment,
                granted=effect.devices,
                runtime=runtime,
                sandbox=draft.sandbox,
                agent_environment=os.environ,
                decoration=draft.decoration.environment,
                pinning=draft.decoration.pinning,
                ports=port_variables(task.spec.service_ports, self._runtime.own_network),
            )
            | planned
            | volume_variables(task.spec.volumes, draft.volumes, runtime)
            | socket,
            sandbox=draft.sandbox,
            cpus_milli=amounts.get(CPUS, 0),
            mem_bytes=amounts.get(MEM, 0),
            decoration=draft.decoration,
            cpuset=near_cpus(effect.devices, amounts.get(CPUS, 0)),
            memory=memory,
            labels=task.spec.labels,
            settings=task.spec.container or ContainerSettings(),
            volumes=volumes,
            network_id=effect.network_id,
            service_ports=task.spec.service_ports,
            network_ports=effect.network_ports,
            ulimits=task.spec.ulimits,
        )
