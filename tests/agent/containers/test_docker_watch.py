"""Ends of containers: told once, not before their start is, and with the evidence."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from bursar.agent.containers.docker_watch import Watch, Watched
from bursar.agent.containers.runtime import ContainerExit, ContainerId
from bursar.core.tasks import StatusReason

ONE = ContainerId("bursar-1")
EXITED = ContainerExit(3, StatusReason.COMMAND_EXITED, "exited with code 3")


def watching() -> tuple[Watch, Watched, list[tuple[ContainerId, ContainerExit]]]:
    watch, told = Watch(), list[tuple[ContainerId, ContainerExit]]()
    watch.open(lambda container_id, end: told.append((container_id, end)))
    return watch, watch.begin(Watched(ONE, Path("/sandbox"))), told


async def test_an_end_is_told_once_and_not_before_the_start_is() -> None:
    watch, watched, told = watching()
    watch.ended(watched, EXITED)
    assert not told and ONE in watch
    watch.started(watched, None)
    assert not told, "whoever started it must hear of that first"
    await asyncio.sleep(0)
    assert told == [(ONE, EXITED)] and ONE not in watch
    watch.ended(watched, ContainerExit(0, StatusReason.COMMAND_EXITED, "again"))
    assert told == [(ONE, EXITED)]


async def test_what_never_came_to_life_is_not_told() -> None:
    watch, watched, told = watching()
    watch.drop(watched)
    watch.started(watched, EXITED)
    await asyncio.sleep(0)
    assert not told


def test_dropping_leaves_alone_what_took_its_place() -> None:
    watch, watched, _ = watching()
    other = watch.begin(Watched(ONE, Path("/sandbox")))
    watch.drop(watched)
    assert watch.get(ONE) is other


def test_nothing_is_held_of_one_that_was_let_go() -> None:
    watch, watched, _ = watching()
    watch.drop(watched)
    watched.witness_of(os.getpid())
    assert watched.witness is None


def test_sigkill_that_was_asked_for_needs_no_evidence() -> None:
    watch, watched, told = watching()
    watched.is_started, watched.asked_signal = True, "SIGKILL"
    killed = ContainerExit(137, StatusReason.COMMAND_EXITED, "exited with code 137")
    watch.ended(watched, killed)
    assert told == [(ONE, killed)]


def test_want_of_memory_is_judged_from_what_the_engine_saw() -> None:
    watch, watched, told = watching()
    watched.is_started = True
    watched.note_oom()
    watch.ended(watched, ContainerExit(137, StatusReason.COMMAND_EXITED, "exited with code 137"))
    assert [end.reason for _, end in told] == [StatusReason.MEM_LIMIT]
