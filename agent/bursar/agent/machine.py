"""The agent as a pure machine: what a master wants and what a runtime tells become containers, statuses and records.

The rules, all of design.md §8:

* The agent speaks first (Register, then TaskReports); a master of another cluster or of an older term is left again.
* Desired state carries a generation. Lower ones are refused, a delta that does not build on ours makes us ask for all of it,
  and absence never kills.
* A task is begun at most once, whatever is sent again and whenever the agent dies: its launch is recorded before its container
  is started, its end is remembered, and a launch without a container after a restart is reported, not repeated.
* A status is recorded before it is sent, in order per task, and repeated until it or a later one of its task is acknowledged.
* A terminal status follows the end of the container: a device that the master may grant again is free.
"""

from __future__ import annotations

from typing import assert_never

from bursar.agent.books import AgentConfig, Books
from bursar.agent.containers.runtime import ContainerId
from bursar.agent.conversation import PRUNE_INTERVAL_MS, Conversation
from bursar.agent.cuts import Cuts
from bursar.agent.digests import Digests
from bursar.agent.effects import AgentEffect
from bursar.agent.events import (
    AgentEvent,
    CardCut,
    CardLookedAt,
    ContainerChecked,
    ContainerExited,
    ContainerLaunchFailed,
    ContainersCompared,
    ContainersRecovered,
    ContainerStarted,
    DeviceProbed,
    DevicesDiscovered,
    DevicesSignalled,
    DeviceUsersTold,
    ExecutorCalled,
    ExecutorLeft,
    ImageMissed,
    ImagePulled,
    ImagesListed,
    MasterConnected,
    MasterDisconnected,
    MasterMessageReceived,
    NodesOutOfReach,
    PrefetchEnded,
    PrefetchProgressed,
    SandboxOverfilled,
    SharesMeasured,
    VolumesKept,
)
from bursar.agent.images import ImageRoom
from bursar.agent.leaving import Leaving
from bursar.agent.lives import Lives
from bursar.agent.reporting import Reporting
from bursar.agent.state import AgentState
from bursar.agent.volume_room import VolumeRoom
from bursar.agent.ward import Ward
from bursar.core.clock import Instant
from bursar.core.ids import ConnectionId, DeviceUuid
from bursar.core.machine import Stalled, TimePassed
from bursar.core.messages.agent import (
    AcknowledgeUpdates,
    AgentInfo,
    BooksRequest,
    CancelImagePull,
    DesiredState,
    DeviceOrders,
    OpenLog,
    OpenSession,
    Ping,
    Pong,
    Refused,
    Registered,
    RestartTask,
    StartImagePull,
    VolumeOrders,
)
from bursar.core.messages.executor import ExecutorMessage

__all__ = ["AgentConfig", "AgentMachine"]


class AgentMachine:
    """One agent: rooms around one set of books, and the way of each event through them."""

    def __init__(self, config: AgentConfig, state: AgentState) -> None:
        self.books = Books(config, state)
        self.reporting = Reporting(self.books)
        self.digests = Digests(self.books)
        self.conversation = Conversation(self.books, self.reporting, self.digests)
        self.ward = Ward(self.books, self.reporting)
        self.leaving = Leaving(self.books, self.ward)
        self.lives = Lives(self.books, self.reporting, self.leaving)
        self.overuse = self.lives.overuse
        self.cuts = Cuts(self.books)
        self.images = ImageRoom(self.books)
        self.volumes = VolumeRoom(self.books)

    # --- the protocol of machines -----------------------------------------------------------------------------------

    def step(self, event: AgentEvent, now: Instant) -> list[AgentEffect]:
        """Handle one event."""
        books = self.books
        books.begin(now)
        match event:
            case MasterMessageReceived(connection, message):
                if connection == books.connection:
                    self._hear(connection, message)
            case ContainerStarted(container_id):
                self.lives.started(container_id)
            case ContainerExited(container_id, exit):
                self.lives.exited(container_id, exit)
            case ContainerChecked(container_id, kind, status):
                self.lives.checkups.seen(container_id, kind, status)
            case ExecutorCalled(container_id, call):
                self.lives.executors.called(container_id, call)
            case ExecutorLeft(container_id):
                self.lives.executors.left(container_id)
            case SandboxOverfilled(container_id):
                self.lives.sandbox_overfilled(container_id)
            case ImageMissed(container_id):
                self.lives.image_missed(container_id)
            case ImagePulled(container_id):
                self.lives.image_pulled(container_id)
            case ContainerLaunchFailed():
                self.lives.launch_failed(event)
            case PrefetchProgressed(pull_id, progress):
                self.images.progressed(pull_id, progress)
            case PrefetchEnded(pull_id, failure, message):
                self.images.ended(pull_id, failure, message)
            case ImagesListed(images):
                self.images.listed(images)
            case MasterConnected(connection):
                self.conversation.lose()
                books.connection = connection
                if books.recovered:
                    self.conversation.introduce(connection)
            case MasterDisconnected(connection):
                if connection == books.connection:
                    if books.registered:
                        books.log("warning", "the connection to the master is lost; tasks run on")
                    self.conversation.lose()
            case ContainersCompared(missing, strays):
                self.lives.compared(missing, strays)
            case DevicesDiscovered():
                self.ward.discovered(event)
                if books.recovered:
                    self.leaving.look()
                    self.cuts.discovered(event)
            case CardLookedAt(card, layout, problem):
                self.cuts.looked_at(card, layout, problem)
            case CardCut(card, step, problem):
                self.cuts.cut(card, step, problem)
            case DevicesSignalled(signals):
                self.ward.signalled(signals)
            case DeviceProbed(uuid, problem):
                self.ward.probed(uuid, problem)
            case DeviceUsersTold(users):
                self.leaving.told(users)
            case NodesOutOfReach(containers):
                for container_id, nodes in containers.items():
                    self.lives.reach.out_of_reach(container_id, nodes)
            case SharesMeasured(users):
                self.overuse.measured(users)
            case VolumesKept(asked, held, troubles):
                self.volumes.kept(asked, held, troubles)
            case ContainersRecovered(containers):
                self.lives.recovered(containers)
                self.leaving.begin()
                self.cuts.begin()
                self.ward.begin()
                self.ward.settle()
                if books.connection is not None:
                    self.conversation.introduce(books.connection)
            case TimePassed():
                self._time_passed()
            case Stalled(by_ms):
                books.deadlines.shift(by_ms)
            case _:
                assert_never(event)
        self.lives.groups.settle()
        self.lives.alone.settle()
        self.volumes.settle()
        self.ward.settle()
        self.conversation.show_devices()
        self.cuts.report()
        self.reporting.flush()
        self.digests.flush()
        self.images.flush()
        return books.effects

    def next_deadline_ms(self) -> int | None:
        """When TimePassed is due."""
        return self.books.deadlines.next_ms()

    def check(self) -> None:
        """Assert every invariant."""
        self.reporting.check()
        self.lives.check()
        self.ward.check()
        self.leaving.check()
        self.images.check()
        self.overuse.check()
        self.lives.alone.check()
        assert not (self.registered and self.books.connection is None)
        assert not (self.registered and not self.books.recovered)

    # --- for those who look ------------------------------------------------------------------------------------------

    @property
    def state(self) -> AgentState:
        """The durable part."""
        return self.books.state

    @property
    def info(self) -> AgentInfo:
        """Who this agent is and what it has now."""
        return self.books.info

    @property
    def registered(self) -> bool:
        """Whether a master has let us in on the present connection."""
        return self.books.registered

    @property
    def refusal(self) -> str:
        """Why the last master did not let us in; empty once one has."""
        return self.conversation.refusal

    @property
    def registrations_total(self) -> int:
        """Registrations so far; for metrics."""
        return self.conversation.registrations_total

    def live_devices(self) -> dict[DeviceUuid, ContainerId]:
        """Which container holds which device; for checks and metrics."""
        return dict(self.books.held)

    # --- the way of messages and of time -----------------------------------------------------------------------------

    def _hear(self, connection: ConnectionId, message: object) -> None:
        if self.registered:
            self.conversation.expect_ping()
        match message:
            case Ping(number):
                self.books.send(connection, Pong(number))
            case Registered():
                was_in = self.registered
                self.conversation.let_in(connection, message)
                if self.registered and not was_in:
                    self.images.begin()
                    self.volumes.begin()
            case Refused(error):
                self.conversation.close(connection, str(error), refused=True)
            case DesiredState():
                self.lives.converge(self.conversation.gather(connection, message))
            case AcknowledgeUpdates():
                self.reporting.acknowledged(message)
            case DeviceOrders(orders):
                if self.registered:
                    self.ward.ordered(orders)
                    self.cuts.ordered(orders)
            case RestartTask():
                if self.registered:
                    self.lives.restart(message)
            case ExecutorMessage():
                if self.registered:
                    self.lives.executors.message(message)
            case StartImagePull():
                if self.registered:
                    self.images.order(message)
            case CancelImagePull(pull_id):
                if self.registered:
                    self.images.cancel(pull_id)
            case VolumeOrders():
                if self.registered:
                    self.volumes.ordered(message)
            case OpenLog():
                self.conversation.open_log(connection, message)
            case OpenSession():
                self.conversation.open_session(connection, message)
            case BooksRequest():
                self.digests.report(connection, message)
            case _:
                # A newer master says things that this version does not know (M-01).
                pass

    def _time_passed(self) -> None:
        for kind, subject in self.books.deadlines.pop_due(self.books.now.monotonic_ms):
            match kind:
                case "updates":
                    assert isinstance(subject, tuple)
                    self.reporting.repeat(subject)
                case "run_time":
                    assert isinstance(subject, tuple)
                    self.lives.run_time_over(subject)
                case "check" | "health_check":
                    assert isinstance(subject, tuple)
                    self.lives.checkups.look(kind, subject)
                case "restart":
                    assert isinstance(subject, tuple)
                    self.lives.restart_due(subject)
                case "kill":
                    assert isinstance(subject, str)
                    self.lives.kill_due(ContainerId(subject))
                case "leave" | "users":
                    assert isinstance(subject, str)
                    self.leaving.due(kind, subject)
                case "device":
                    assert isinstance(subject, str)
                    self.ward.due(DeviceUuid(subject))
                case "prune":
                    self.reporting.prune()
                    self.books.deadlines.set(("prune", ""), self.books.now.monotonic_ms + PRUNE_INTERVAL_MS)
                case "digest":
                    self.digests.due()
                case "alone":
                    assert isinstance(subject, tuple)
                    self.lives.alone.due(subject)
                case "shares":
                    self.overuse.look()
                case "register" | "ping":
                    self.conversation.timed_out(kind)
                case _:
                    raise AssertionError(kind)
