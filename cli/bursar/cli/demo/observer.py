"""A framework that only looks: it holds every offer until it is told to let go. Spoken in the contract itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import grpc
import grpc.aio

from bursar.core.ids import FrameworkId
from bursar.core.messages.framework import (
    FrameworkCall,
    FrameworkInfo,
    Offers,
    Rescind,
    Revive,
    StreamError,
    Subscribe,
    Subscribed,
    Teardown,
)
from bursar.core.messages.offers import Decline, Filters, Offer
from bursar.runtime.client import connect
from bursar.runtime.codec import unwrap, wrap
from bursar.v1 import framework_service_pb2, framework_service_pb2_grpc


class Observer:
    """One framework; use it as `async with`."""

    def __init__(self, address: str, name: str, roles: Sequence[str], capabilities: Sequence[str] = ()) -> None:
        self.name = name
        self._channel = connect(address)
        info = FrameworkInfo(FrameworkId(str(uuid4())), name=name, roles=tuple(roles), capabilities=tuple(capabilities))
        self._calls: asyncio.Queue[FrameworkCall | None] = asyncio.Queue()
        self._calls.put_nowait(Subscribe(info))
        #: Held now, by id.
        self.offers: dict[str, Offer] = {}
        #: All that were ever made to it.
        self.seen: list[Offer] = []
        #: Ids and reasons of offers that were taken back.
        self.rescinded: list[tuple[str, str]] = []
        self._changed = asyncio.Event()
        self._subscribed = asyncio.Event()
        self._problem = ""
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._reader = asyncio.create_task(self._read())
        await asyncio.wait_for(self._subscribed.wait(), 10)
        if self._problem:
            raise RuntimeError(self._problem)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.put_nowait(Teardown())
        self._calls.put_nowait(None)
        assert self._reader is not None
        await asyncio.wait({self._reader}, timeout=3)
        self._reader.cancel()
        await self._channel.close()

    def let_go(self, refuse_ms: int = 0) -> None:
        """Decline everything that is held."""
        if self.offers:
            held = tuple(offer.offer_id for offer in self.offers.values())
            self._calls.put_nowait(Decline(held, Filters(refuse_ms)))
            self.offers.clear()

    def revive(self) -> None:
        """Forget what was declined."""
        self._calls.put_nowait(Revive())

    async def until(self, condition: Callable[[], bool], timeout_s: float = 8) -> bool:
        """Wait until something is true of what was heard; say whether it came true in time."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not condition():
            self._changed.clear()
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                return condition()
        return True

    def agents(self) -> set[str]:
        """Whose offers are held."""
        return {str(offer.agent_id) for offer in self.offers.values()}

    def devices(self) -> set[str]:
        """Devices in the offers that are held."""
        return {
            str(uuid) for offer in self.offers.values() for part in offer.resources for uuid in part.resources.devices
        }

    async def _requests(self) -> AsyncIterator[Any]:
        while (call := await self._calls.get()) is not None:
            yield framework_service_pb2.FrameworkServiceConnectRequest(calls=[wrap("FrameworkCall", call)])

    async def _read(self) -> None:
        stub = framework_service_pb2_grpc.FrameworkServiceStub(self._channel)
        try:
            async for response in stub.Connect(self._requests()):
                for message in response.events:
                    self._hear(unwrap("FrameworkEvent", message))
                self._changed.set()
        except grpc.aio.AioRpcError as error:
            self._problem = self._problem or error.details() or str(error.code())
        self._subscribed.set()
        self._changed.set()

    def _hear(self, event: Any) -> None:
        match event:
            case Subscribed():
                self._subscribed.set()
            case Offers(_, offers):
                self.seen.extend(offers)
                self.offers.update({str(offer.offer_id): offer for offer in offers})
            case Rescind(offer_ids, reason):
                for offer_id in offer_ids:
                    if self.offers.pop(str(offer_id), None):
                        self.rescinded.append((str(offer_id), reason))
            case StreamError(error):
                self._problem = str(error)
