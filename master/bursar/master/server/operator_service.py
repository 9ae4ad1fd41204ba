"""OperatorService: one method per noun and verb, all answered by the machine; logs, sessions and events are streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import fields, replace
from typing import Any

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.operator import GetTaskRequest, Page, TaskView
from bursar.core.messages.sessions import SessionStart
from bursar.master.server.guard import peer, principal
from bursar.master.server.hub import Hub
from bursar.master.server.logs import LogRelays
from bursar.master.server.sessions import SessionRelays
from bursar.master.server.streams import Refusal
from bursar.master.server.tokens import OPERATOR
from bursar.runtime.codec import decode, encode, operator_types
from bursar.runtime.rpc import abort
from bursar.v1 import operator_service_pb2 as pb
from bursar.v1 import sessions_pb2

#: Answered outside the machine.
STREAMED = frozenset({"ReadTaskLog", "OpenTaskSession", "Watch"})
#: Pages are cut to this, so that no message comes near 4 MiB.
MAX_ANSWER_BYTES = 2 << 20


def _smaller_page(question: Any, answer: Any) -> Page | None:
    """Half of what an answer holds, where it is a page of several items."""
    page = getattr(question, "page", None)
    if page is None:
        return None
    items = next(len(value) for value in (getattr(answer, f.name) for f in fields(answer)) if isinstance(value, tuple))
    return replace(page, page_size=items // 2) if items > 1 else None


def _unary(method: str) -> Callable[..., Awaitable[Any]]:
    request_type, _ = operator_types(method)

    async def handle(self: OperatorServicer, request: Any, context: Any) -> Any:
        question: Any = decode(request_type, request)
        while True:
            answer = await self.ask(question)
            if isinstance(answer, ErrorDetail):
                await abort(context, answer)
            message = encode(answer)
            smaller = _smaller_page(question, answer) if message.ByteSize() > MAX_ANSWER_BYTES else None
            if smaller is None:
                return message
            question = replace(question, page=smaller)

    handle.__name__ = method
    handle.__doc__ = f"See {method} in operator_service.proto."
    return handle


class OperatorServicer:
    """Unary methods are made from the contract; each is decode, ask, encode."""

    def __init__(self, hub: Hub, logs: LogRelays, sessions: SessionRelays, *, guarded: bool) -> None:
        self.hub = hub
        #: Everybody who comes so far has been asked who they are.
        self._guarded = guarded
        self._logs = logs
        self._sessions = sessions

    async def ask(self, question: Any) -> Any:
        """Have the machine answer the caller; who is no operator hears of what is its own. A response or an ErrorDetail."""
        return await self.hub.ask(question, principal(), own_only=not self._is_operator())

    def _is_operator(self) -> bool:
        """Whether the caller may ask everything: so does nobody of whom a guard should know, and has not heard."""
        known = peer()
        return not self._guarded if known is None else OPERATOR in known.kinds

    async def _task(self, name: str) -> TaskView | ErrorDetail:
        """A task that the caller may look into."""
        answer = await self.ask(GetTaskRequest(name))
        if isinstance(answer, ErrorDetail):
            return answer
        view: TaskView = answer.task
        return view

    async def ReadTaskLog(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """A task's outputs, from its agent."""
        answer = await self._task(request.task)
        if isinstance(answer, ErrorDetail):
            await abort(context, answer)
            return
        tail = request.tail_bytes if request.HasField("tail_bytes") else None
        try:
            async for chunk in self._logs.read(answer, request.follow, tail):
                yield pb.ReadTaskLogResponse(chunk=chunk)
        except Refusal as refusal:
            await abort(context, refusal.error)

    async def OpenTaskSession(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """A program in a task's container, files, what it uses."""
        first = await anext(aiter(requests), None)
        if first is None:
            return
        task = await self._task(first.task)
        async for frame in self._sessions.open(task, decode(SessionStart, first.start), requests):
            yield sessions_pb2.OpenTaskSessionResponse(frame=frame)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """What happens, from now on."""
        if not self._is_operator():
            await abort(context, ErrorDetail(ErrorReason.PERMISSION_DENIED, "Watch is for operators", "ask one"))
            return
        outbox = self.hub.watch()
        try:
            # Tells the caller that nothing is missed from here on.
            await context.send_initial_metadata(())
            while batch := await outbox.next_batch():
                yield pb.WatchResponse(events=batch)
        finally:
            self.hub.unwatch(outbox)
        if outbox.overflowed:
            await abort(
                context, ErrorDetail(ErrorReason.TOO_SLOW, "the events were not read", "read them, and watch again")
            )


for _method in pb.DESCRIPTOR.services_by_name["OperatorService"].methods:
    if _method.name not in STREAMED:
        setattr(OperatorServicer, _method.name, _unary(_method.name))
