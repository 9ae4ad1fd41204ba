"""The master of the simulation: the real machine, its process, its registry, and what its gRPC servers would do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from bursar.core.clock import Instant
from bursar.core.errors import ErrorDetail
from bursar.core.ids import AgentId, ConnectionId, FrameworkId
from bursar.core.messages.agent import Register, TaskReport, TaskReports
from bursar.core.messages.framework import Subscribe
from bursar.core.messages.operator import OperatorRequest, OperatorResponse
from bursar.master.effects import CloseStream, Publish, Reply, SendToAgent, SendToFramework
from bursar.master.events import (
    AgentRegistering,
    AgentSpoke,
    AgentStreamEnded,
    FrameworkCalled,
    FrameworkStreamEnded,
    OperatorCalled,
)
from bursar.master.flags import FlagValues
from bursar.master.machine import MasterMachine
from bursar.simulation.network import SERVER, Stream
from bursar.simulation.process import Mortality, Process
from bursar.simulation.registry import ANSWERS, SimulatedRegistry

if TYPE_CHECKING:
    from bursar.simulation.world import World

OnAnswer = Callable[[OperatorResponse | ErrorDetail | None], None]
"""Told what the master answered; None: it died before it did."""


class MasterNode:
    """Accepts streams while its process lives."""

    name = "master"

    def __init__(self, world: World, registry: SimulatedRegistry, flags: dict[str, str]) -> None:
        self._world = world
        self.registry = registry
        self._flags = flags
        self._random = world.stream_of("master")
        self.process: Process | None = None
        self.streams: dict[ConnectionId, Stream] = {}
        #: Who is on the other side of a connection, once it said so.
        self.peers: dict[ConnectionId, AgentId | FrameworkId] = {}
        self._connections: dict[int, ConnectionId] = {}
        self._registering: dict[ConnectionId, tuple[Register, list[TaskReport]]] = {}
        self._waiting: dict[int, OnAnswer] = {}
        self._next_connection = 0
        self._next_token = 0

    @property
    def machine(self) -> MasterMachine | None:
        """The machine of the present life."""
        if self.process is None:
            return None
        machine = self.process.machine
        assert isinstance(machine, MasterMachine)
        return machine

    def start(self) -> None:
        """Begin a reign."""
        if self.process is not None:
            return
        world = self._world
        clock = (self._random.randint(0, 10**9), self._random.randint(-200, 200))
        durable = self.registry.begin_term()
        now = Instant(world.now_ms + clock[0], world.wall_ms + clock[1])
        machine = MasterMachine(durable, FlagValues.defaults(**self._flags), now, answers=ANSWERS)
        world.note(self.name, f"starts, term {durable.term}")
        self._next_connection = self._next_token = 0
        self.process = Process(world.timeline, self._random, machine, self, clock=clock)
        world.checkers.master.started(machine, self.registry.durable)
        world.network.listener = self

    def die(self) -> None:
        """It is killed."""
        process = self.process
        if process is None:
            return
        world = self._world
        process.kill()
        world.checkers.master.died(process)
        world.note(self.name, "dies")
        world.network.listener = None
        self.process = None
        for stream in list(self.streams.values()):
            stream.abandon(SERVER)
        self.streams.clear()
        self.peers.clear()
        self._connections.clear()
        self._registering.clear()
        waiting, self._waiting = self._waiting, {}
        for on_answer in waiting.values():
            on_answer(None)
        world.timeline.after(self._random.randint(1, max(1, world.faults.master_down_ms)), self.start)

    def ask(self, request: OperatorRequest, on_answer: OnAnswer) -> None:
        """A unary call of an operator has arrived."""
        if self.process is None:
            on_answer(None)
            return
        self._next_token += 1
        self._waiting[self._next_token] = on_answer
        self.process.post(OperatorCalled(self._next_token, request, "operator"))

    # --- Party ---

    def stream_opened(self, stream: Stream) -> None:
        """Somebody connected."""
        self._next_connection += 1
        connection = ConnectionId(self._next_connection)
        self._connections[stream.number] = connection
        self.streams[connection] = stream

    def stream_heard(self, stream: Stream, message: Any) -> None:
        """Somebody spoke."""
        connection = self._connections.get(stream.number)
        if self.process is None or connection is None:
            return
        if stream.kind == "framework":
            if isinstance(message, Subscribe):
                self.peers.setdefault(connection, message.info.framework_id)
            self.process.post(FrameworkCalled(connection, message))
        elif isinstance(message, Register):
            self.peers[connection] = message.info.agent_id
            self._registering[connection] = (message, [])
        elif connection in self._registering:
            assert isinstance(message, TaskReports), f"an agent said {message!r} before its tasks"
            register, reports = self._registering[connection]
            reports.extend(message.tasks)
            if message.complete:
                del self._registering[connection]
                # As if its certificate named it.
                shown = str(register.info.agent_id)
                self.process.post(AgentRegistering(connection, register, tuple(reports), shown))
        else:
            self.process.post(AgentSpoke(connection, message))

    def stream_ended(self, stream: Stream, error: ErrorDetail | None) -> None:
        """Somebody is gone."""
        connection = self._connections.pop(stream.number, None)
        if connection is not None:
            self._ended(connection, stream)

    def _ended(self, connection: ConnectionId, stream: Stream) -> None:
        self.streams.pop(connection, None)
        self._registering.pop(connection, None)
        if self.process is not None:
            ended = AgentStreamEnded if stream.kind == "agent" else FrameworkStreamEnded
            self.process.post(ended(connection))

    # --- Owner ---

    def stepping(self, event: Any, now: Instant) -> None:
        """See Owner."""
        self._world.checkers.master.stepping(event, now)

    def stepped(self, event: Any, effects: Sequence[Any]) -> None:
        """See Owner."""
        self._world.note(self.name, event, effects)
        self._world.checkers.master.stepped(event, effects)
        self._world.checkers.agents.declared(
            effects, lambda: [one for a in self._world.agents for one in a.containers.live]
        )
        self._world.stepped()

    def commit(self, records: Sequence[Any]) -> None:
        """See Owner."""
        self.registry.commit(records)

    def mortality(self) -> Mortality:
        """See Owner."""
        faults = self._world.faults
        return Mortality(
            faults.master_crash_before_commit_chance,
            faults.master_crash_after_commit_chance,
            faults.master_crash_in_release_chance,
            faults.commit_ms,
        )

    def killed(self) -> None:
        """See Owner."""
        self.die()

    def perform(self, effect: Any) -> None:
        """See Owner."""
        match effect:
            case SendToAgent(connection, message) | SendToFramework(connection, message):
                self._world.checkers.durability.said(self.peers.get(connection), message, self.registry.durable)
                stream = self.streams.get(connection)
                if stream is not None:
                    stream.send(SERVER, message)
            case CloseStream(connection, error):
                closed = self.streams.get(connection)
                if closed is not None:
                    self._connections.pop(closed.number, None)
                    closed.close(SERVER, error)
                    self._ended(connection, closed)
            case Reply(token, answer):
                self._world.checkers.durability.answered(answer, self.registry.durable)
                self._waiting.pop(token)(answer)
            case Publish():
                pass
            case _:
                raise AssertionError(f"no such effect: {effect!r}")
