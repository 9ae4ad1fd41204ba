"""The conversation with a master: registration, pings, generations, logs, sessions. What is wanted of tasks is handed on."""

from __future__ import annotations

from bursar.agent.books import Books
from bursar.agent.digests import Digests
from bursar.agent.effects import CloseConnection, OpenLogStream, OpenSessionStream
from bursar.agent.reporting import Reporting
from bursar.agent.state import ClusterJoined
from bursar.agent.tasks import TaskKey, TaskRecord, container_of
from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.ids import ConnectionId, Generation
from bursar.core.messages.agent import (
    AgentInfo,
    DesiredState,
    DevicesChanged,
    OpenLog,
    OpenSession,
    Register,
    Registered,
    ResyncRequest,
    TaskReports,
)
from bursar.core.tasks import TaskState

#: From Register to an answer.
REGISTER_TIMEOUT_MS = 15_000
PRUNE_INTERVAL_MS = 3_600_000


class Conversation:
    """One connection after another."""

    def __init__(self, books: Books, reporting: Reporting, digests: Digests) -> None:
        self._books = books
        self._reporting = reporting
        self._digests = digests
        #: Why the last master did not let us in; empty once one has.
        self.refusal = ""
        #: Registrations so far; for metrics.
        self.registrations_total = 0
        #: What the master was told of us on this connection.
        self._announced: AgentInfo | None = None
        self._silence_ms = 0
        self._parts: list[DesiredState] = []
        self._resync_asked = False

    def introduce(self, connection: ConnectionId) -> None:
        """Speak first: who we are, and every task."""
        self._announced = self._books.info
        self._books.send(
            connection, Register(self._books.info, self._books.state.cluster_id, self._books.state.generation)
        )
        parts = self._reporting.reports()
        for number, part in enumerate(parts, 1):
            self._books.send(connection, TaskReports(part, complete=number == len(parts)))
        self._books.deadlines.set(("register", ""), self._books.now.monotonic_ms + REGISTER_TIMEOUT_MS)

    def lose(self) -> None:
        """The connection is over, whoever ended it."""
        self._books.connection = None
        self._books.registered = False
        self._announced = None
        self._parts.clear()
        self._resync_asked = False
        self._reporting.lose()
        self._digests.lose()
        self._books.deadlines.cancel(("register", ""))
        self._books.deadlines.cancel(("ping", ""))

    def close(self, connection: ConnectionId, reason: str, *, refused: bool = False) -> None:
        """Leave this master; a reason is logged when it changes, not at every try."""
        if not refused or reason != self.refusal:
            self._books.log("warning", "left the master; will try again", reason=reason)
        if refused:
            self.refusal = reason
        self._books.effects.append(CloseConnection(connection, reason))
        self.lose()

    def let_in(self, connection: ConnectionId, message: Registered) -> None:
        """The master wants us; a second time only its intervals are new. Another cluster or an older term is left."""
        mine = self._books.state
        if self._announced is None:
            return
        if self._books.registered:
            # The intervals changed at run time.
            self._listen_for(message)
            return
        if mine.cluster_id and message.cluster_id != mine.cluster_id:
            self.close(
                connection,
                f"this work directory belongs to cluster {mine.cluster_id}, but the master leads cluster {message.cluster_id}:"
                " give the right --master, or another --work-dir",
                refused=True,
            )
            return
        if message.term < mine.generation.term:
            self.close(
                connection,
                f"the master is of term {message.term}, but this agent has obeyed one of term {mine.generation.term}:"
                " it was replaced, or its registry was restored from an older copy",
                refused=True,
            )
            return
        if not mine.cluster_id:
            self._books.persist(ClusterJoined(message.cluster_id))
        self._books.deadlines.cancel(("register", ""))
        self._books.registered = True
        self.refusal = ""
        self.registrations_total += 1
        self._listen_for(message)
        self._books.deadlines.set(("prune", ""), self._books.now.monotonic_ms + PRUNE_INTERVAL_MS)
        self._books.log("info", "registered", cluster=message.cluster_id, term=message.term, tasks=len(mine.tasks))
        self._reporting.begin()
        self._digests.begin()

    def _listen_for(self, message: Registered) -> None:
        self._silence_ms = message.ping_interval_ms * message.max_missed_pings
        self._books.deadlines.cancel(("ping", ""))
        self.expect_ping()

    def expect_ping(self) -> None:
        """Something was heard: the silence begins anew."""
        if self._silence_ms:
            self._books.deadlines.set(("ping", ""), self._books.now.monotonic_ms + self._silence_ms)

    def timed_out(self, kind: str) -> None:
        """`register` or `ping`: the master is silent."""
        connection = self._books.connection
        if connection is None:
            return
        if kind == "register":
            self.close(connection, "the master did not answer the registration", refused=True)
        else:
            self.close(connection, f"nothing was heard from the master for {self._silence_ms} ms")

    def show_devices(self) -> None:
        """A step ends: say what the master knows differently."""
        told, info = self._announced, self._books.info
        if told is None or not self._books.registered or self._books.connection is None:
            return
        if (told.devices, told.resources) != (info.devices, info.resources):
            self._announced = info
            self._books.send(self._books.connection, DevicesChanged(info.devices, info.resources))

    def open_log(self, connection: ConnectionId, message: OpenLog) -> None:
        """Somebody wants to read what a task printed."""
        key = TaskKey(message.framework_id, message.task_id)
        error = None
        finished = self._books.state.finished.get(key)
        record = self._books.state.tasks.get(key)
        if record is not None and record.task.spec.runs_on:
            error = _its_executors(record, "what it prints is the executor's output", "logs")
        elif key not in self._books.state.tasks and (finished is None or not finished.sandbox):
            what = "is not kept any more" if finished else "was never here"
            error = ErrorDetail(
                ErrorReason.NOT_FOUND, f"the output of task {message.framework_id}/{message.task_id} {what}"
            )
        self._books.effects.append(
            OpenLogStream(
                connection,
                message.stream_id,
                container_of(self._books.info.agent_id, key),
                message.follow,
                message.tail_bytes,
                error,
            )
        )

    def open_session(self, connection: ConnectionId, message: OpenSession) -> None:
        """Somebody wants into a task: only into one that runs."""
        key = TaskKey(message.framework_id, message.task_id)
        state = self._books.state
        record = state.tasks.get(key)
        problem, hint = "", "bursar task show says where it is"
        if record is not None and record.task.spec.runs_on and not record.state.is_terminal:
            refusal = _its_executors(record, "it has no container of its own", "exec")
            container_id = container_of(self._books.info.agent_id, key)
            self._books.effects.append(
                OpenSessionStream(connection, message.stream_id, container_id, message.start, refusal)
            )
            return
        if record is None or record.state.is_terminal:
            problem = "has ended" if record or key in state.finished else "was never here"
        elif record.state not in (TaskState.RUNNING, TaskState.KILLING):
            problem, hint = f"does not run yet ({record.state.name.lower()})", "try again in a moment"
        error = ErrorDetail(ErrorReason.CALL_REFUSED, f"task {key.framework_id}/{key.task_id} {problem}", hint)
        self._books.effects.append(
            OpenSessionStream(
                connection,
                message.stream_id,
                container_of(self._books.info.agent_id, key),
                message.start,
                error if problem else None,
            )
        )

    def gather(self, connection: ConnectionId, message: DesiredState) -> tuple[DesiredState, ...]:
        """The parts of a desired state once they are complete and newer than ours; until then nothing."""
        if not self._books.registered:
            return ()
        own = self._books.state.generation
        if message.generation < own:
            self._books.log("warning", "refused an old desired state", got=_text(message.generation), have=_text(own))
            return ()
        if message.base is not None and (message.base != own or message.generation == own):
            if message.generation > own and not self._resync_asked:
                self._resync_asked = True
                self._books.send(connection, ResyncRequest(own))
            return ()
        if self._parts and (self._parts[0].generation, self._parts[0].base) != (message.generation, message.base):
            self._parts.clear()
        self._parts.append(message)
        if message.more:
            return ()
        parts, self._parts = self._parts, []
        if message.base is None:
            self._resync_asked = False
        return tuple(parts)


def _its_executors(record: TaskRecord, why: str, verb: str) -> ErrorDetail:
    """What is wanted of a task is to be had of the executor that runs it."""
    key, executor = record.key, record.task.spec.runs_on
    return ErrorDetail(
        ErrorReason.CALL_REFUSED,
        f"task {key.framework_id}/{key.task_id} is run by executor {executor}: {why}",
        f"bursar task {verb} {key.framework_id}/{executor}",
    )


def _text(generation: Generation) -> str:
    return f"{generation.term}.{generation.sequence}"
