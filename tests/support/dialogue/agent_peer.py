"""An agent in a dialogue with the master's machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bursar.core.ids import AgentId, ConnectionId, DeviceUuid, FrameworkId, Generation, TaskId
from bursar.core.messages import operator as op
from bursar.core.messages.agent import (
    AcknowledgeUpdates,
    AgentInfo,
    DesiredState,
    DevicesChanged,
    Pong,
    Register,
    ResyncRequest,
    TaskReport,
    TaskUpdates,
    VolumeOrders,
    VolumesHeld,
)
from bursar.core.tasks import StatusReason, StatusSource, TaskState, TaskStatus
from bursar.master.events import (
    AgentRegistering,
    AgentSpoke,
    AgentStreamEnded,
)
from dialogue.amounts import CLUSTER

if TYPE_CHECKING:
    from dialogue.playbook import Playbook


class AgentPeer:
    """An agent as the master sees it: obedient, it runs whatever it is told to."""

    def __init__(self, book: Playbook, agent_id: str, info: AgentInfo) -> None:
        self.book = book
        self.agent_id = AgentId(agent_id)
        self.info = info
        self.connection: ConnectionId | None = None
        self.inbox: list[Any] = []
        #: What it would report at a registration.
        self.tasks: dict[tuple[str, str], TaskReport] = {}
        self.answers_pings = True
        #: What it said that it had at its last registration.
        self.reported: set[tuple[str, str]] = set()
        #: Whether nothing runs of what it has lost, so that it says so.
        self.answers_for_lost = True
        #: Persistent volumes whose data it has.
        self.volumes: set[DeviceUuid] = set()
        self.answers_volume_orders = True
        #: The highest that it has seen; it refuses lower ones.
        self.generation = Generation()
        #: Who it is by what it shows; empty where nobody is asked.
        self.shown = ""
        self._updates = 0

    def connect(
        self, *, cluster_id: str = CLUSTER, reports: Iterable[TaskReport] | None = None, **changes: Any
    ) -> AgentPeer:
        """Open a stream and register; `changes` are fields of its info."""
        if changes:
            self.info = replace(self.info, **changes)
        said = tuple(self.tasks.values()) if reports is None else tuple(reports)
        self.reported = {(one.framework_id, one.task.spec.task_id) for one in said}
        old = self.connection
        self.connection = self.book.new_connection(self)
        if old is not None and old in self.book.peers:
            self.book.peers.pop(old)
        register = Register(self.info, cluster_id, self.generation)
        self.book.step(AgentRegistering(self.connection, register, said, self.shown))
        return self

    def disconnect(self) -> None:
        """The link breaks."""
        connection, self.connection = self.connection, None
        assert connection is not None
        self.book.peers.pop(connection, None)
        self.book.step(AgentStreamEnded(connection))

    def say(self, message: TaskUpdates | Pong | ResyncRequest | DevicesChanged | VolumesHeld) -> None:
        assert self.connection is not None, "not connected"
        self.book.step(AgentSpoke(self.connection, message))

    def hear(self, message: Any) -> None:
        self.inbox.append(message)
        match message:
            case DesiredState():
                assert message.generation >= self.generation, "an agent would refuse it"
                self.generation = message.generation
                for assigned in message.launch:
                    key = (assigned.framework_id, assigned.spec.task_id)
                    self.tasks.setdefault(key, TaskReport(assigned.framework_id, assigned, TaskState.STAGING))
                for kept in message.keep:
                    known = self.tasks.keys() | self.reported
                    if (kept.framework_id, kept.task_id) not in known and self.answers_for_lost:
                        self.update(
                            kept.task_id,
                            TaskState.GONE,
                            framework=kept.framework_id,
                            reason=StatusReason.CONTAINER_LOST,
                            update_id="0",
                        )
            case VolumeOrders(order, make, _, remove) if self.answers_volume_orders:
                self.volumes = (self.volumes | set(make)) - set(remove)
                self.say(VolumesHeld(order, tuple(sorted(self.volumes))))
            case AcknowledgeUpdates(updates):
                for update in updates:
                    key = (update.framework_id, update.task_id)
                    report = self.tasks.get(key)
                    if report is None:
                        continue
                    left = tuple(s for s in report.unacknowledged if s.update_id != update.update_id)
                    if report.state.is_terminal and not left:
                        del self.tasks[key]
                    else:
                        self.tasks[key] = replace(report, unacknowledged=left)

    def update(
        self,
        task_id: str,
        state: TaskState,
        *,
        framework: str = "f",
        update_id: str = "",
        deliver: bool = True,
        **more: Any,
    ) -> TaskStatus:
        """A task changed its state; with `deliver`, the master is told."""
        self._updates += 1
        status = TaskStatus(
            TaskId(task_id),
            FrameworkId(framework),
            self.agent_id,
            state,
            update_id=update_id or f"{self.agent_id}-u{self._updates}",
            source=StatusSource.AGENT,
            **more,
        )
        key = (framework, task_id)
        report = self.tasks.get(key)
        if report is not None:
            self.tasks[key] = replace(report, state=state, unacknowledged=(*report.unacknowledged, status))
        if deliver:
            self.say(TaskUpdates((status,)))
        return status

    def repeat(self, status: TaskStatus) -> None:
        self.say(TaskUpdates((status,)))

    def heard(self, kind: type) -> list[Any]:
        """All messages of a kind, oldest first; they are taken out of the inbox."""
        found = [message for message in self.inbox if isinstance(message, kind)]
        self.inbox = [message for message in self.inbox if not isinstance(message, kind)]
        return found

    def told(self) -> DesiredState:
        """The full state that it was told last."""
        state: DesiredState = self.heard(DesiredState)[-1]
        assert state.base is None
        return state

    def acknowledged(self) -> list[tuple[str, str]]:
        """(task, update) of all acknowledgements since last asked."""
        return [(u.task_id, u.update_id) for message in self.heard(AcknowledgeUpdates) for u in message.updates]

    def never_got(self, *task_ids: str, framework: str = "f") -> None:
        """The launch of these tasks was lost on its way: it knows nothing of them, nor of the desired state that they were in."""
        for task_id in task_ids:
            launched = self.tasks.pop((framework, task_id)).task.generation
            self.generation = min(self.generation, Generation(launched.term, launched.sequence - 1))

    @property
    def view(self) -> op.AgentView:
        return self.book.ask(op.GetAgentRequest(self.agent_id)).agent

    @property
    def uuids(self) -> list[DeviceUuid]:
        return [device.uuid for device in self.info.devices]
