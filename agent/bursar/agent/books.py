"""What the rooms of the agent's machine share: durable state, what runs here, what it holds, and the effects of one step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from bursar.agent.containers.runtime import ContainerId
from bursar.agent.devices.health import HealthRules
from bursar.agent.devices.users import Busy, DeviceUser
from bursar.agent.effects import AgentEffect, KillContainer, Log, SendToMaster
from bursar.agent.state import AgentState, Record
from bursar.agent.tasks import TaskKey
from bursar.core.clock import Deadlines, Instant
from bursar.core.ids import ConnectionId, DeviceUuid, FrameworkId
from bursar.core.machine import Persist
from bursar.core.messages.agent import AgentInfo, AgentMessage, Repair
from bursar.core.task_groups import TaskGroup
from bursar.core.tasks import AssignedTask, TaskStatus
from bursar.core.ulimits import Ulimit

#: A task's device that is used for longer than this after its end is cordoned.
DEFAULT_RELEASE_TIMEOUT_MS = 120_000
#: From a task's passing its soft share of a GPU's memory to its end.
DEFAULT_SHARE_GRACE_MS = 30_000
#: After a kill's grace, before the runtime is asked again.
KILL_RETRY_MS = 10_000
#: Repairs that wait for a master to be told; of more, the newest.
MAX_REPAIRS = 100

#: What a deadline is about: `register`, `ping`, `prune`, `digest`; `updates`, `run_time`, `restart`, `check` and `health_check` of a task; `kill` of a container; `leave` of a container that ended; the health of a `device`; `users` of one; `shares`; `alone` of a task.
Due = tuple[str, TaskKey | str]


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What the machine is told once."""

    #: Who this agent is and what it has; a later DevicesDiscovered replaces devices and resources.
    info: AgentInfo
    #: For tasks without one; empty: none.
    default_image: str = ""
    #: Finished tasks remembered: at most so many, at most so long.
    finished_limit: int = 10_000
    finished_age_ms: int = 30 * 86_400_000
    #: Of those, sandboxes kept for their logs.
    sandbox_limit: int = 500
    sandbox_age_ms: int = 7 * 86_400_000
    #: How patient it is with ill devices.
    health: HealthRules = HealthRules()
    #: Whether some driver can say who uses its devices, and who used them when the agent began.
    tells_users: bool = False
    users: Mapping[DeviceUuid, tuple[DeviceUser, ...] | None] = field(default_factory=dict)
    #: A task's device that is still used after so long is cordoned.
    release_timeout_ms: int = DEFAULT_RELEASE_TIMEOUT_MS
    #: What tasks may ask for at most, each process; what is not named is not bounded.
    max_ulimits: tuple[Ulimit, ...] = ()
    #: A task that uses more of a card's memory than its soft share is ended after so long; None: no driver can say what it uses.
    share_grace_ms: int | None = None
    #: The persistent volumes whose data was there when it began.
    volumes: frozenset[DeviceUuid] = frozenset()


class Books:
    """Read by every room. Durable state is changed by `persist` alone."""

    def __init__(self, config: AgentConfig, state: AgentState) -> None:
        self.config = config
        self.info = config.info
        self.state = state
        self.devices = {device.uuid: device for device in config.info.devices}
        #: The present connection to a master, and whether it has let us in.
        self.connection: ConnectionId | None = None
        self.registered = False
        #: Whether it is known what an earlier life left.
        self.recovered = False
        #: Live tasks by container, and the containers that still run although their task is over or unknown.
        self.live: dict[ContainerId, TaskKey] = {}
        self.orphans: dict[ContainerId, tuple[DeviceUuid, ...]] = {}
        self.held: dict[DeviceUuid, ContainerId] = {}
        #: Devices that no running container has, and that somebody uses.
        self.busy: dict[DeviceUuid, Busy] = {}
        #: Containers whose start was asked for and not answered.
        self.starting: set[ContainerId] = set()
        #: What was repaired and no master was told yet; soft: the log has it, too.
        self.repairs: list[Repair] = []
        self.deadlines: Deadlines[Due] = Deadlines()
        self.now = Instant(0, 0)
        #: Of the present step; statuses are sent together at its end.
        self.effects: list[AgentEffect] = []
        self.updates: list[TaskStatus] = []
        #: Groups of which a task was reported in this step.
        self.groups: dict[tuple[FrameworkId, TaskGroup], None] = {}

    def begin(self, now: Instant) -> None:
        """A step begins."""
        self.effects, self.updates, self.now = [], [], now

    def persist(self, record: Record) -> None:
        """Change the durable state."""
        self.state.apply(record)
        self.effects.append(Persist(record))

    def send(self, connection: ConnectionId, message: AgentMessage) -> None:
        """Say something to the master."""
        self.effects.append(SendToMaster(connection, message))

    def log(self, level: str, text: str, **fields: object) -> None:
        """Tell the operator."""
        self.effects.append(Log(level, text, fields))

    def repaired(self, what: str, text: str, key: TaskKey | None = None, **fields: object) -> None:
        """Something was not as these books had it: say so to the operator, here and through the master (B-18)."""
        self.log("error", f"repaired: {text}", **(names(key) if key is not None else {}), **fields)
        details = "".join(f" ({name} {value})" for name, value in fields.items())
        repair = Repair(what, message=f"{text}{details}")
        if key is not None:
            repair = replace(repair, framework_id=key.framework_id, task_id=key.task_id)
        self.repairs = [*self.repairs, repair][-MAX_REPAIRS:]

    def hold(self, container_id: ContainerId, key: TaskKey, task: AssignedTask) -> None:
        """A live task has a container, and the container its devices."""
        self.live[container_id] = key
        for uuid in task.device_uuids:
            self.held[uuid] = container_id

    def release(self, container_id: ContainerId, task: AssignedTask) -> None:
        """A container does not have its devices any more, or not yet."""
        for uuid in task.device_uuids:
            if self.held.get(uuid) == container_id:
                del self.held[uuid]

    def kill_container(self, container_id: ContainerId, grace_ms: int) -> None:
        """End a container, and ask again where it does not end."""
        self.effects.append(KillContainer(container_id, grace_ms))
        self.deadlines.set(("kill", container_id), self.now.monotonic_ms + grace_ms + KILL_RETRY_MS)


def names(key: TaskKey) -> dict[str, str]:
    """A task in a line of the log."""
    return {"framework": key.framework_id, "task": key.task_id}
