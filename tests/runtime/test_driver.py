"""Durable before visible, one writer, and time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from bursar.core.clock import Instant
from bursar.core.machine import Persist, Stalled, TimePassed
from bursar.runtime import driver as driver_module
from bursar.runtime.driver import MAX_BATCH, STALL_MS, Driver


class Echo:
    """A machine: a text is an effect of itself; one with `!` is persisted first."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.deadline_ms: int | None = None

    def step(self, event: object, now: Instant) -> list[object]:
        self.seen.append(event)
        if isinstance(event, TimePassed):
            self.deadline_ms = None
        if isinstance(event, str):
            return [Persist(f"record of {event}"), event] if event.endswith("!") else [event]
        return []

    def next_deadline_ms(self) -> int | None:
        return self.deadline_ms

    def check(self) -> None:
        return


class Shell:
    """Records what was committed and performed, in order; a commit waits for `disk`."""

    def __init__(self) -> None:
        self.machine = Echo()
        self.journal: list[object] = []
        self.disk = asyncio.Event()
        self.disk.set()
        self.ms = 0
        self.clock: Callable[[], Instant] | None = None

    def driver(self) -> Driver:
        if self.clock is not None:
            return Driver(self.machine, commit=self.commit, perform=self.journal.append, clock=self.clock)
        return Driver(self.machine, commit=self.commit, perform=self.journal.append)

    async def commit(self, records: Sequence[object]) -> None:
        await self.disk.wait()
        self.journal.append(list(records))


async def finish(driver: Driver, work: Awaitable[Any]) -> None:
    driver.stop()
    await asyncio.wait_for(work, 30)


async def test_effects_wait_for_the_commit_of_their_batch() -> None:
    shell = Shell()
    shell.disk.clear()
    driver = shell.driver()
    running = asyncio.create_task(driver.run())
    for event in ("a", "b!", "c"):
        driver.post(event)
    for _ in range(10):
        await asyncio.sleep(0)
    assert shell.machine.seen == ["a", "b!", "c"] and shell.journal == []
    shell.disk.set()
    await asyncio.wait_for(driver.settled(), 30)
    assert shell.journal == [["record of b!"], "a", "b!", "c"]
    await finish(driver, running)


async def test_the_next_batch_is_stepped_meanwhile_and_its_effects_come_after() -> None:
    shell = Shell()
    shell.disk.clear()
    driver = shell.driver()
    running = asyncio.create_task(driver.run())
    driver.post("a!")
    for _ in range(10):
        await asyncio.sleep(0)
    driver.post("b")
    for _ in range(10):
        await asyncio.sleep(0)
    assert shell.machine.seen == ["a!", "b"] and shell.journal == []
    shell.disk.set()
    await asyncio.wait_for(driver.settled(), 30)
    assert shell.journal == [["record of a!"], "a!", "b"]
    await finish(driver, running)


async def test_a_failed_commit_ends_it_and_nothing_of_the_batch_gets_out() -> None:
    shell = Shell()

    async def fail(records: Sequence[object]) -> None:
        raise OSError("disk full")

    driver = Driver(shell.machine, commit=fail, perform=shell.journal.append)
    driver.post("a!")
    with pytest.raises(OSError, match="disk full"):
        await asyncio.wait_for(driver.run(), 30)
    assert shell.journal == []


async def test_one_transaction_per_batch_and_batches_are_bounded() -> None:
    shell = Shell()
    driver = shell.driver()
    for number in range(MAX_BATCH + 10):
        driver.post(f"{number}!")
    running = asyncio.create_task(driver.run())
    await asyncio.wait_for(driver.settled(), 30)
    commits = [len(item) for item in shell.journal if isinstance(item, list)]
    assert commits == [MAX_BATCH, 10] and driver.batches_total == 2
    assert [item for item in shell.journal if isinstance(item, str)] == [
        f"{number}!" for number in range(MAX_BATCH + 10)
    ]
    await finish(driver, running)


async def test_stop_lets_the_inbox_run_empty() -> None:
    shell = Shell()
    driver = shell.driver()
    driver.post("a!")
    driver.stop()
    await asyncio.wait_for(driver.run(), 30)
    assert shell.journal == [["record of a!"], "a!"]


async def test_timers_fire_after_the_inbox_was_read() -> None:
    shell = Shell()
    shell.clock = lambda: Instant(1000, 0)
    shell.machine.deadline_ms = 1000
    driver = shell.driver()
    for number in range(MAX_BATCH + 1):
        driver.post(str(number))
    driver.stop()
    await asyncio.wait_for(driver.run(), 30)
    assert shell.machine.seen[-1] == TimePassed() and shell.machine.seen.count(TimePassed()) == 1


async def test_a_deadline_wakes_it() -> None:
    shell = Shell()
    driver = shell.driver()
    shell.machine.deadline_ms = 0
    running = asyncio.create_task(driver.run())
    async with asyncio.timeout(30):
        while not shell.machine.seen:
            await asyncio.sleep(0.001)
    assert shell.machine.seen == [TimePassed()]
    await finish(driver, running)


async def test_a_stall_is_told_before_timers_fire() -> None:
    shell = Shell()
    shell.clock = lambda: Instant(shell.ms, 0)
    shell.machine.deadline_ms = 20
    driver = shell.driver()
    running = asyncio.create_task(driver.run())
    for _ in range(3):
        await asyncio.sleep(0)
    # The process was stopped for a minute; the deadline passed long ago.
    shell.ms = 60_000
    async with asyncio.timeout(30):
        while TimePassed() not in shell.machine.seen:
            await asyncio.sleep(0.001)
    stalled = shell.machine.seen[0]
    assert isinstance(stalled, Stalled) and 60_000 - 20 - STALL_MS < stalled.by_ms <= 60_000
    assert driver.stalls_total == 1
    await finish(driver, running)


async def test_constant_load_does_not_starve_timers_and_what_came_before_goes_first() -> None:
    shell = Shell()
    shell.clock = lambda: Instant(shell.ms, 0)
    driver = shell.driver()
    machine = shell.machine
    machine.deadline_ms = 100
    waiting = 3 * MAX_BATCH
    for number in range(waiting):
        driver.post(number)
    running = asyncio.create_task(driver.run())
    async with asyncio.timeout(20):
        while TimePassed() not in machine.seen:
            # Always more to read than one batch holds.
            for _ in range(MAX_BATCH + 1):
                driver.post("more")
            if len(machine.seen) >= MAX_BATCH:
                shell.ms = 100
            await asyncio.sleep(0)
    fired = machine.seen.index(TimePassed())
    assert machine.seen[:waiting] == list(range(waiting)) and fired >= waiting
    assert fired < waiting + 10 * MAX_BATCH, "timers waited for what came after they were due"
    await finish(driver, running)


async def test_what_was_committed_gets_out_before_more_is_stepped() -> None:
    shell = Shell()
    shell.disk.clear()
    order: list[object] = []
    driver = Driver(shell.machine, commit=shell.commit, perform=lambda effect: order.append(f"performed {effect}"))
    step = shell.machine.step

    def noted(event: object, now: Instant) -> list[object]:
        order.append(f"stepped {event}")
        return step(event, now)

    shell.machine.step = noted  # type: ignore[method-assign]
    running = asyncio.create_task(driver.run())
    driver.post("a!")
    while order != ["stepped a!"]:
        await asyncio.sleep(0)
    shell.disk.set()
    while not shell.journal:
        await asyncio.sleep(0)
    driver.post("b")
    await asyncio.wait_for(driver.settled(), 30)
    assert order == ["stepped a!", "performed a!", "stepped b", "performed b"]
    await finish(driver, running)


async def test_effects_of_many_batches_keep_their_order_whatever_the_disk_does() -> None:
    shell = Shell()
    lags = iter([0.003, 0, 0.001, 0, 0] * 1000)

    async def commit(records: Sequence[object]) -> None:
        await asyncio.sleep(next(lags))
        shell.journal.append(list(records))

    driver = Driver(shell.machine, commit=commit, perform=shell.journal.append)
    running = asyncio.create_task(driver.run())
    posted = []
    for number in range(300):
        posted.append(f"{number}!" if number % 3 else str(number))
        driver.post(posted[-1])
        if number % 7 == 0:
            await asyncio.sleep(0)
    await asyncio.wait_for(driver.settled(), 20)
    assert [item for item in shell.journal if isinstance(item, str)] == posted
    durable: set[object] = set()
    for item in shell.journal:
        if isinstance(item, list):
            durable.update(item)
        else:
            assert not str(item).endswith("!") or f"record of {item}" in durable, "visible before it was durable"
    await finish(driver, running)


async def test_a_slow_disk_is_no_stall() -> None:
    shell = Shell()
    shell.clock = lambda: Instant(shell.ms, 0)
    shell.disk.clear()
    driver = shell.driver()
    running = asyncio.create_task(driver.run())
    driver.post("a!")
    for _ in range(5):
        # The loop goes on meanwhile, and looks at the clock.
        shell.ms += 1000
        driver.post("b")
        for _ in range(5):
            await asyncio.sleep(0)
        driver._look()
    shell.disk.set()
    await asyncio.wait_for(driver.settled(), 30)
    assert driver.stalls_total == 0
    await finish(driver, running)


async def test_a_stall_during_a_commit_is_told_before_anything_that_came_after() -> None:
    shell = Shell()
    shell.clock = lambda: Instant(shell.ms, 0)
    shell.disk.clear()
    driver = shell.driver()
    running = asyncio.create_task(driver.run())
    driver.post("a!")
    for _ in range(5):
        await asyncio.sleep(0)
    shell.ms = 30_000
    shell.machine.deadline_ms = 15_000
    driver.post("b")
    shell.disk.set()
    async with asyncio.timeout(30):
        while TimePassed() not in shell.machine.seen:
            await asyncio.sleep(0.001)
    assert shell.machine.seen == ["a!", Stalled(30_000), "b", TimePassed()]
    await finish(driver, running)


async def test_stop_commits_what_is_under_way() -> None:
    shell = Shell()
    shell.disk.clear()
    driver = shell.driver()
    running = asyncio.create_task(driver.run())
    driver.post("a!")
    for _ in range(5):
        await asyncio.sleep(0)
    driver.stop()
    driver.post("b!")
    for _ in range(5):
        await asyncio.sleep(0)
    assert not running.done() and shell.journal == []
    shell.disk.set()
    await asyncio.wait_for(running, 30)
    assert shell.journal == [["record of a!"], "a!", ["record of b!"], "b!"]


async def test_who_reads_from_peers_pauses_while_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "MAX_WAITING", 1000)
    shell = Shell()
    shell.disk.clear()
    driver = shell.driver()
    most = 0

    async def flood() -> None:
        nonlocal most
        for number in range(5000):
            await driver.room()
            driver.post(f"{number}!")
            most = max(most, len(driver._inbox))

    flooding = [asyncio.create_task(flood()) for _ in range(3)]
    running = asyncio.create_task(driver.run())
    for _ in range(100):
        await asyncio.sleep(0)
    assert not any(task.done() for task in flooding), "the disk is slow"
    shell.disk.set()
    await asyncio.wait_for(asyncio.gather(*flooding), 10)
    await finish(driver, running)
    assert 1000 <= most <= 1002 and len(shell.machine.seen) == 15_000
