from __future__ import annotations

import asyncio

from bursar.runtime.outbox import MAX_BATCH_BYTES, MAX_ITEMS, Outbox


def size(item: int) -> int:
    return item


async def test_what_is_due_at_once_travels_together_in_order() -> None:
    outbox: Outbox[int] = Outbox(10, size_of=size)
    for item in (3, 1, 2):
        outbox.put(item)
    assert await outbox.next_batch() == [3, 1, 2]
    assert len(outbox) == 0


async def test_a_batch_is_bounded_by_number_and_size() -> None:
    outbox: Outbox[int] = Outbox(MAX_ITEMS + 2, size_of=size)
    for _ in range(MAX_ITEMS + 1):
        outbox.put(1)
    assert len(await outbox.next_batch()) == MAX_ITEMS
    assert await outbox.next_batch() == [1]
    for item in (MAX_BATCH_BYTES - 1, 1, 1, 5 * MAX_BATCH_BYTES, 1):
        outbox.put(item)
    assert await outbox.next_batch() == [MAX_BATCH_BYTES - 1, 1]
    assert await outbox.next_batch() == [1]
    assert await outbox.next_batch() == [5 * MAX_BATCH_BYTES], "alone, however large"
    assert await outbox.next_batch() == [1]


async def test_a_reader_waits_until_there_is_something() -> None:
    outbox: Outbox[int] = Outbox(10, size_of=size)
    reader = asyncio.create_task(outbox.next_batch())
    await asyncio.sleep(0)
    assert not reader.done()
    outbox.put(1)
    assert await asyncio.wait_for(reader, 30) == [1]


async def test_a_peer_that_stops_reading_overflows_it() -> None:
    told: list[bool] = []
    outbox: Outbox[int] = Outbox(3, lambda: told.append(True), size_of=size)
    for item in range(10):
        outbox.put(item)
    assert outbox.overflowed and told == [True]
    assert await outbox.next_batch() == []


async def test_after_the_close_what_is_queued_is_still_taken() -> None:
    outbox: Outbox[int] = Outbox(3, size_of=size)
    outbox.put(1)
    outbox.close()
    outbox.put(2)
    assert await outbox.next_batch() == [1]
    assert await outbox.next_batch() == []


async def test_a_peer_that_is_too_many_bytes_behind_is_given_up() -> None:
    told: list[bool] = []
    outbox: Outbox[int] = Outbox(1000, lambda: told.append(True), capacity_bytes=100, size_of=size)
    outbox.put(150)
    assert not told, "one item fits, however large"
    assert await outbox.next_batch() == [150] and outbox.queued_bytes == 0
    outbox.put(60)
    outbox.put(40)
    assert outbox.queued_bytes == 100 and not told
    outbox.put(1)
    assert told == [True] and outbox.overflowed
    assert await outbox.next_batch() == []
