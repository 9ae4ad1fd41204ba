"""The interface between the agent and whatever runs its tasks.

A runtime keeps no state of its own that a restart would miss: what runs is found again by label (docker) or by the records
that its shims keep locked (process).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NewType, Protocol

from bursar.agent.containers.sessions import Session
from bursar.core.ids import FrameworkId, TaskId
from bursar.core.images import Image, PullFailure, PullProgress
from bursar.core.lives import Check, CheckStatus
from bursar.core.memory.pools import MemoryPlan
from bursar.core.messages.sessions import SessionStart
from bursar.core.service_ports import ServicePort
from bursar.core.surroundings import ContainerSettings
from bursar.core.tasks import StatusReason
from bursar.core.ulimits import Ulimit

ContainerId = NewType("ContainerId", str)
"""`bursar-<agent>-<framework>-<task>` made safe for an engine: unique on the host, the same after a restart of the agent."""
NetworkId = NewType("NetworkId", str)
"""Names what the tasks of one group share: unique on the host, the same after a restart of the agent."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A path of the host inside the container."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True)
class Decoration:
    """What device drivers add to a container: a plain map, never an engine's own object (F108-04)."""

    environment: Mapping[str, str] = field(default_factory=dict)
    #: Device nodes of the host, such as `/dev/nvidia0`.
    device_nodes: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    #: Uuids for an engine that has a vendor runtime of its own (Docker's device requests).
    device_requests: tuple[str, ...] = ()
    #: Variables that pin: they win over the user's own of the same name.
    pinning: Mapping[str, str] = field(default_factory=dict)
    #: Nodes for an engine that has no better way to give `device_requests`.
    fallback_nodes: tuple[str, ...] = ()
    #: Qualified names of the Container Device Interface (`vendor.com/class=name`).
    cdi: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """Everything a runtime needs to start one task; no choice is left to it."""

    container_id: ContainerId
    framework_id: FrameworkId
    task_id: TaskId
    #: Empty: the image's own.
    command: tuple[str, ...]
    #: Empty for the `process` runtime.
    image: str
    #: Complete: the pinning variables and the user's own.
    environment: Mapping[str, str]
    #: Exists, belongs to this task alone; working directory and home of the task, and where its logs are kept.
    sandbox: Path
    cpus_milli: int
    #: 0: no limit.
    mem_bytes: int
    decoration: Decoration = Decoration()
    #: Pools within `mem_bytes`; None: one pool.
    memory: MemoryPlan | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    settings: ContainerSettings = ContainerSettings()
    #: CPUs near the devices (`0-7,16-23`); empty: any.
    cpuset: str = ""
    #: Resolved and permitted.
    volumes: tuple[Mount, ...] = ()
    #: Its network is that of all containers with the same id; empty: it has one of its own.
    network_id: NetworkId = NetworkId("")
    #: Every one with its host port.
    service_ports: tuple[ServicePort, ...] = ()
    #: Those of everybody with the same network.
    network_ports: tuple[ServicePort, ...] = ()
    #: Of each of its processes.
    ulimits: tuple[Ulimit, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerExit:
    """How a container ended."""

    #: 128 + N for signal N; None where nobody knows.
    exit_code: int | None
    #: COMMAND_EXITED, MEM_LIMIT, SHM_LIMIT, SIGBUS, CONTAINER_LOST, ENGINE_LOST or AGENT_REBOOTED: from evidence, not from the code.
    reason: StatusReason
    message: str = ""


@dataclass(frozen=True, slots=True)
class RecoveredContainer:
    """A container of this agent found at start: still running where `exit` is None."""

    container_id: ContainerId
    exit: ContainerExit | None


class LaunchFailed(Exception):
    """A container could not be started; nothing of it is left."""

    def __init__(self, reason: StatusReason, message: str) -> None:
        super().__init__(message)
        #: LAUNCH_FAILED, IMAGE_NOT_FOUND, PORT_IN_USE, … or ENGINE_LOST.
        self.reason = reason
        self.message = message


class ImageMissing(LaunchFailed):
    """The engine does not have the image of a container: `pull` it and start again."""

    def __init__(self, image: str) -> None:
        super().__init__(StatusReason.IMAGE_NOT_FOUND, f"image {image} is not on this machine")


class PullFailed(LaunchFailed):
    """An image cannot be had."""

    def __init__(self, failure: PullFailure, message: str, reason: StatusReason = StatusReason.IMAGE_NOT_FOUND) -> None:
        super().__init__(reason, message)
        self.failure = failure


class RuntimeUnavailable(Exception):
    """The engine cannot be used at all; the message says why and what to do (for example `--runtime process`)."""


ExitCallback = Callable[[ContainerId, ContainerExit], None]
"""Called in the event loop, exactly once per container that was started or recovered as running."""


ProgressCallback = Callable[[PullProgress], None]
"""Called in the event loop, now and then while an image is pulled."""


class ContainerRuntime(Protocol):
    """What runs tasks. All methods are called in one event loop; blocking work goes to threads inside."""

    #: `docker`, `process` or `simulated`.
    name: str
    #: Whether tasks have a network of their own, so that the engine connects their service ports.
    own_network: bool

    async def open(self, on_exit: ExitCallback) -> None:
        """Connect and begin to watch. Raises RuntimeUnavailable."""

    async def recover(self) -> list[RecoveredContainer]:
        """Find every container of this agent from an earlier life and watch those that still run.

        One that was never begun, because the agent died first, is not among them. Raises RuntimeUnavailable.
        """

    async def start(self, spec: ContainerSpec) -> None:
        """Start a container; on return it runs (or has already ended, which `on_exit` tells).

        Raises LaunchFailed; ImageMissing where a `pull` may help. Nothing of the container is left then.
        """

    async def pull(self, image: str, on_progress: ProgressCallback | None = None) -> None:
        """Have an image on this machine, from its registry if need be. May take minutes. Raises LaunchFailed, PullFailed.

        Who wants one that is being pulled joins that. It is given up when everybody who waited was cancelled.
        """

    async def images(self) -> list[Image]:
        """What the engine has; nothing where there is none, or it does not answer."""

    async def kill(self, container_id: ContainerId, grace_ms: int) -> None:
        """SIGTERM now, SIGKILL after the grace; returns at once, `on_exit` tells the end. Unknown ids are ignored."""

    async def end_stray(self, container_id: ContainerId) -> None:
        """SIGKILL to whatever runs under this name, watched or not; on return nothing of it does, or ever did.

        The end of one that is watched is told by `on_exit`, too. Raises whatever the engine's library raises, TimeoutError: nobody knows.
        """

    async def pid_of(self, container_id: ContainerId) -> int:
        """The process that lives as long as the container does, in this machine's numbers; 0 where nobody can say."""

    async def check(self, container_id: ContainerId, check: Check) -> CheckStatus:
        """Look at a running container once, from inside its namespaces. Nothing is set where that cannot be done.

        Whoever asks cancels it at the check's time-out; what was begun in the container ends then, if it can be reached.
        """

    async def remove(self, container_id: ContainerId) -> None:
        """Remove what is left of an ended container, logs saved in the sandbox (`stdout`, `stderr`). Idempotent."""

    async def release_network(self, network_id: NetworkId) -> None:
        """Remove what held the network that containers shared; none of them is left. Idempotent."""

    async def prepare_logs(self, container_id: ContainerId) -> None:
        """Make the outputs of a running container appear in its sandbox from now on, if they do not anyway."""

    async def open_session(self, container_id: ContainerId, start: SessionStart) -> Session:
        """Begin a session with a running container; it ends with the container. Raises SessionRefused."""

    async def close(self) -> None:
        """Stop watching. Containers run on."""
