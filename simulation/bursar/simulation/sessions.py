"""A framework written with the SDK: its real session machine, and an author who wants a number of tasks done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bursar.core.clock import Instant
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import ConnectionId, FrameworkId, TaskId
from bursar.core.messages.framework import GPU_RESOURCES, FrameworkInfo, UpdateRef
from bursar.core.messages.offers import Offer, Shape
from bursar.core.resources import ResourceRequest, sum_resources
from bursar.core.tasks import TaskSpec, TaskState, TaskStatus
from bursar.sdk import effects as ask
from bursar.sdk import events as told
from bursar.sdk.machine import SessionMachine
from bursar.simulation.containers import program
from bursar.simulation.frameworks import ROLES
from bursar.simulation.network import CLIENT, Stream
from bursar.simulation.process import Mortality, Process

if TYPE_CHECKING:
    from bursar.simulation.world import World


class SessionFramework:
    """Wants `count` tasks of one shape to end by themselves; one that was lost is tried again under another id."""

    def __init__(
        self,
        world: World,
        name: str,
        role: str,
        request: ResourceRequest,
        count: int,
        *,
        gpus: bool,
        failover_timeout_ms: int,
        states_demand: bool = True,
    ) -> None:
        self.name = name
        self.role = role
        self.request = request
        self.capabilities: tuple[str, ...] = (GPU_RESOURCES,) if gpus else ()
        self.failover_timeout_ms = failover_timeout_ms
        self.world = world
        self.random = world.stream_of(name)
        self.process: Process | None = None
        #: The author's memory, lost with the process: what runs or may run.
        self.running: set[TaskId] = set()
        #: How many are still to be started.
        self.todo = count
        self.count = count
        self.done = 0
        self._states_demand = states_demand
        self._identity = 1
        self._incarnation = 0
        self._sequence = 0
        self._streams: dict[ConnectionId, Stream] = {}
        #: What waits for a stream to stand.
        self._unsent: dict[ConnectionId, list[Any]] = {}
        self._numbers: dict[int, ConnectionId] = {}

    @property
    def framework_id(self) -> FrameworkId:
        """Of the present identity."""
        return FrameworkId(f"{self.name}-{self._identity}")

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process is not None

    @property
    def roles(self) -> tuple[str, ...]:
        """Its one role."""
        return (self.role,)

    @property
    def machine(self) -> SessionMachine | None:
        """The session of the present life."""
        if self.process is None:
            return None
        machine = self.process.machine
        assert isinstance(machine, SessionMachine)
        return machine

    # --- life ---

    def start(self) -> None:
        """Begin a life of the process."""
        if self.process is not None:
            return
        self._incarnation += 1
        info = FrameworkInfo(
            self.framework_id,
            f"{self.name}-{self._incarnation}",
            self.name,
            (self.role,),
            self.capabilities,
            self.failover_timeout_ms,
        )
        machine = SessionMachine(info, ("master",), resume=self._incarnation > 1)
        self.process = Process(
            self.world.timeline, self.random, machine, self, clock=(self.random.randint(0, 10**9), 0)
        )
        self.process.post(told.SessionStarted(self._shapes()))
        self.world.timeline.after(self.random.randint(5_000, 60_000), self._move, self.process)

    def die(self) -> None:
        """It is killed: the author forgets what runs, and will start the rest anew."""
        if self.process is None:
            return
        self.world.note(self.name, "dies")
        self._end_process()
        self.world.timeline.after(self.random.randint(1, max(1, self.world.faults.framework_down_ms)), self.start)

    def _end_process(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process = None
        for stream in self._streams.values():
            stream.abandon(CLIENT)
        self._streams.clear()
        self._unsent.clear()
        self._numbers.clear()
        self.todo += len(self.running)
        self.running.clear()

    # --- the author ---

    def _shapes(self) -> tuple[Shape, ...] | None:
        if not self._states_demand:
            return None
        return (Shape(self.role, self.request, self.todo),) if self.todo else ()

    def _want_again(self, count: int) -> None:
        self.todo += count
        self._state_demand()

    def _state_demand(self) -> None:
        if self._states_demand and self.process is not None:
            self.process.post(told.DemandStated(self._shapes() or ()))

    def _move(self, process: Process) -> None:
        """Want the rest in another role, now and then, while the former ones' offers are on their way."""
        if process is not self.process or self.world.calm:
            return
        self.role = self.random.choice(ROLES)
        shapes = self._shapes() if self._states_demand else None
        changes = {"roles": (self.role,), "labels": {"moved": "yes"}}
        process.post(told.UpdateRequested(changes, shapes))
        self.world.timeline.after(self.random.randint(5_000, 60_000), self._move, process)

    def _answer(self, process: Process, offers: Sequence[Offer]) -> None:
        if process is not self.process:
            return
        answers = []
        for offer in offers:
            left = sum_resources(part.resources for part in offer.resources)
            tasks: list[TaskSpec] = []
            while self.todo and self._fits(len(tasks) + 1, left):
                self._sequence += 1
                task_id = TaskId(f"{self.name}-{self._sequence}")
                run_ms, code = self.random.choice((10, 500, 5_000)), self.random.choice((0, 0, 3))
                tasks.append(TaskSpec(task_id, command=program(run_ms, code), resources=self.request))
                self.running.add(task_id)
                self.todo -= 1
            answers.append(told.OfferAnswer(offer.offer_id, tuple(tasks), None if tasks else 1_000))
        process.post(told.OffersAnswered(tuple(answers)))

    def _fits(self, times: int, available: Any) -> bool:
        amounts = {kind: amount * times for kind, amount in self.request.scalars.items()}
        return ResourceRequest(amounts, (), self.request.gpus * times).fits_in(available)

    def _handle_statuses(self, process: Process, statuses: Sequence[TaskStatus]) -> None:
        if process is not self.process:
            return
        lost = 0
        for status in statuses:
            if status.task_id not in self.running:
                # Of an earlier life: its work was begun anew.
                if not status.state.is_terminal and status.state is not TaskState.UNKNOWN:
                    process.post(told.KillRequested(status.task_id, 0))
            elif status.state.is_terminal or status.state is TaskState.UNKNOWN:
                self.running.discard(status.task_id)
                if status.state in (TaskState.FINISHED, TaskState.FAILED):
                    self.done += 1
                else:
                    lost += 1
        updates = tuple(UpdateRef(status.task_id, status.update_id) for status in statuses if status.update_id)
        process.post(told.StatusesHandled(updates))
        if lost:
            self._want_again(lost)

    # --- Owner ---

    def stepping(self, event: Any, now: Instant) -> None:
        """See Owner."""

    def stepped(self, event: Any, effects: Sequence[Any]) -> None:
        """See Owner."""
        assert self.process is not None
        self.world.note(self.name, event, effects)
        self.process.machine.check()
        self.world.stepped()

    def commit(self, records: Sequence[Any]) -> None:
        """A session keeps nothing."""
        raise AssertionError(records)

    def mortality(self) -> Mortality:
        """A session commits nothing."""
        raise AssertionError

    def killed(self) -> None:
        """Never at a commit."""

    def perform(self, effect: Any) -> None:
        """See Owner."""
        world, process = self.world, self.process
        if process is None:
            return
        match effect:
            case ask.OpenStream(connection, _):
                stream = world.network.connect("framework", self.name, self)
                self._streams[connection] = stream
                self._numbers[stream.number] = connection
                self._unsent[connection] = []
            case ask.SendCalls(connection, calls):
                if connection in self._unsent:
                    self._unsent[connection].extend(calls)
                elif connection in self._streams:
                    self._send(self._streams[connection], calls)
            case ask.CloseStream(connection):
                closed = self._streams.pop(connection, None)
                self._unsent.pop(connection, None)
                if closed is not None:
                    self._numbers.pop(closed.number, None)
                    closed.abandon(CLIENT)
            case ask.DeliverOffers(offers):
                delay_ms = self.random.randint(0, 100)
                world.timeline.after(delay_ms, self._answer, process, tuple(offer for offer, _ in offers))
            case ask.DeliverStatuses(statuses):
                world.timeline.after(self.random.randint(0, 20), self._handle_statuses, process, statuses)
            case ask.DeliverRefusal(task_id):
                if task_id in self.running:
                    self.running.discard(task_id)
                    self._want_again(1)
            case ask.DeliverLaunched():
                self._state_demand()
            case ask.DeliverUpdated(_, error):
                assert error is None, f"{self.name} may not change its role: {error}"
            case ask.End(error):
                self._ended(error)
            case _:
                pass

    def _ended(self, error: ErrorDetail | None) -> None:
        world = self.world
        assert error is not None and error.reason is ErrorReason.FRAMEWORK_REMOVED, f"{self.name} gave up: {error}"
        assert not world.framework_lives(self.framework_id), f"{self.name} gave up, but it is not removed"
        self._end_process()
        self._identity += 1
        self._incarnation = 0
        world.timeline.after(self.random.randint(1, 5_000), self.start)

    def _send(self, stream: Stream, calls: Sequence[Any]) -> None:
        for call in calls:
            self.world.checkers.frameworks.called(self.framework_id, call)
            stream.send(CLIENT, call)

    # --- Party ---

    def stream_opened(self, stream: Stream) -> None:
        """What waited goes out."""
        connection = self._numbers.get(stream.number)
        if connection is not None:
            self._send(stream, self._unsent.pop(connection))

    def stream_heard(self, stream: Stream, event: Any) -> None:
        """The master spoke."""
        connection = self._numbers.get(stream.number)
        if connection is not None and self.process is not None:
            self.world.checkers.frameworks.heard(self.framework_id, event)
            self.process.post(told.EventsReceived(connection, (event,)))

    def stream_ended(self, stream: Stream, error: ErrorDetail | None) -> None:
        """The master is gone, or was not there."""
        connection = self._numbers.pop(stream.number, None)
        if connection is not None and self.process is not None:
            self._streams.pop(connection, None)
            self._unsent.pop(connection, None)
            self.process.post(told.StreamEnded(connection, error))
