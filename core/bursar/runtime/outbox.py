"""One bounded queue per peer; what is due at once travels in one message."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, MutableSequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: Items of one message at most, and its size: senders split, no message may exceed 4 MiB.
MAX_ITEMS = 1000
MAX_BATCH_BYTES = 1 << 20
MAX_MESSAGE_BYTES = 4 << 20
#: Bytes that a peer may be behind.
MAX_QUEUED_BYTES = 64 << 20


class Outbox(Generic[T]):
    """Encoded items for one peer, in order. A peer that stops reading overflows it, by items or by bytes, and is disconnected."""

    def __init__(
        self,
        capacity: int,
        on_overflow: Callable[[], None] | None = None,
        *,
        capacity_bytes: int = MAX_QUEUED_BYTES,
        size_of: Callable[[T], int] = lambda item: _size(item),
    ) -> None:
        #: Items with their sizes.
        self._items: deque[tuple[T, int]] = deque()
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._size_of = size_of
        self._on_overflow = on_overflow
        self._ready = asyncio.Event()
        self._closed = False
        #: Waiting to be sent.
        self.queued_bytes = 0
        #: Whether the peer was found not to read.
        self.overflowed = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Add an item; dropped where the outbox is closed or overflows."""
        if self._closed:
            return
        size = self._size_of(item)
        # A single item always fits, however large: the limit of a message is held elsewhere.
        if self._items and (len(self._items) >= self._capacity or self.queued_bytes + size > self._capacity_bytes):
            self.overflowed = True
            self._items.clear()
            self.queued_bytes = 0
            self.close()
            if self._on_overflow is not None:
                self._on_overflow()
            return
        self._items.append((item, size))
        self.queued_bytes += size
        self._ready.set()

    def close(self) -> None:
        """Nothing more comes; what is queued is still taken out."""
        self._closed = True
        self._ready.set()

    async def next_batch(self) -> list[T]:
        """Wait for items and take as many as fit one message; empty once closed and drained."""
        while not self._items:
            if self._closed:
                return []
            self._ready.clear()
            await self._ready.wait()
        batch: list[T] = []
        total = 0
        while self._items and len(batch) < MAX_ITEMS:
            item, size = self._items[0]
            if batch and total + size > MAX_BATCH_BYTES:
                break
            self._items.popleft()
            batch.append(item)
            total += size
        self.queued_bytes -= total
        return batch


def _size(item: Any) -> int:
    return int(item.ByteSize())


def split(message: Any, limit: int = MAX_BATCH_BYTES) -> Iterator[Any]:
    """A message in parts of at most `limit` bytes each, or of one item: its repeated fields are dealt out in order, by field number,
    and whatever else it holds is in every part. Usually there is one part, the message itself.
    """
    if message.ByteSize() <= limit:
        yield message
        return
    rest = type(message)()
    rest.CopyFrom(message)
    repeated = [field.name for field, value in message.ListFields() if isinstance(value, MutableSequence)]
    for name in repeated:
        rest.ClearField(name)
    part, size, is_filled = _copy(rest), rest.ByteSize(), False
    for name in repeated:
        for item in getattr(message, name):
            # A tag and a length come with each.
            item_size = 8 + (len(item.encode()) if isinstance(item, str) else item.ByteSize())
            if is_filled and size + item_size > limit:
                yield part
                part, size = _copy(rest), rest.ByteSize()
            getattr(part, name).append(item)
            size, is_filled = size + item_size, True
    yield part


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy
