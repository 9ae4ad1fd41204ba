"""The world itself: the same seed is the same run, a failure says how to see it again, two greedy frameworks share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bursar.agent.checkpoint import Checkpoint
from bursar.core.resources import ResourceRequest
from bursar.master.registry.store import Registry
from bursar.runtime import codec
from bursar.simulation.checkers import Violation
from bursar.simulation.faults import Faults
from bursar.simulation.frameworks import Hog, Liar, Silent
from bursar.simulation.network import CLIENT
from bursar.simulation.world import SimulationFailure, World, simulate

RUN = "from bursar.simulation.world import simulate; print(simulate(5, 400, exact_trace=True).digest)"
ROOT = Path(__file__).resolve().parents[2]


def test_the_same_seed_is_the_same_run_in_every_process() -> None:
    digests = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        result = subprocess.run(
            [sys.executable, "-c", RUN], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        )
        digests.add(result.stdout.strip())
    assert len(digests) == 1
    assert simulate(5, 400, exact_trace=True).digest in digests
    assert simulate(6, 400, exact_trace=True).digest not in digests


def test_two_frameworks_that_want_all_gpus_for_ten_minutes_never_hold_one_together() -> None:
    """Ground truth is judged at each start of a container: `AgentJudge.container_began`."""
    world = World(1, faults=Faults(), flags={})
    for gpus in (4, 4, 0):
        world.add_agent(gpus)
    hogs = [world.add_framework(Hog, "a"), world.add_framework(Hog, "b")]
    world.start()
    world.run_for(10 * 60_000)
    assert world.now_ms == 10 * 60_000
    books = [world.checkers.frameworks.books[hog.framework_id] for hog in hogs]
    with_gpus = [[end for end in book.ends.values() if end.device_uuids] for book in books]
    assert all(len(ends) > 50 for ends in with_gpus), "both had GPUs, again and again"
    assert world.checkers.verdicts["one container per GPU"] > 200


def test_two_hogs_under_faults() -> None:
    world = World(2)
    for gpus in (4, 2, 0):
        world.add_agent(gpus)
    world.add_framework(Hog, "a")
    world.add_framework(Hog, "b")
    summary = world.run(3_000)
    assert summary.tasks > 50


def test_silent_and_lying_frameworks_stop_nobody() -> None:
    world = World(3, faults=Faults(), flags={"offer_timeout": "1s"})
    world.add_agent(4)
    world.add_agent(0)
    world.add_framework(Silent, "*")
    world.add_framework(Liar, "*")
    session = world.add_session("*", ResourceRequest({"cpus": 100}, (), 1), 20)
    world.start()
    world.run_for(5 * 60_000)
    assert session.done == 20


def test_silent_frameworks_do_not_keep_two_gpus_apart_for_ever() -> None:
    """Parts of an agent that were freed one by one went from one that never answers to the next, one by one."""
    world = World(4, faults=Faults(), flags={"offer_timeout": "1s"})
    world.add_agent(4)
    pieces = world.add_session("*", ResourceRequest({"cpus": 100}, (), 1), 8)
    world.add_framework(Silent, "eng", "eng/backend")
    world.add_framework(Silent, "*")
    pairs = world.add_session("*", ResourceRequest({"cpus": 100}, (), 2), 10)
    world.start()
    world.run_for(15 * 60_000)
    assert (pieces.done, pairs.done) == (8, 10)


def test_a_failure_says_how_to_see_it_again() -> None:
    world = World(7)
    world.populate()

    def broken(*_: object) -> None:
        raise Violation("deliberately")

    world.timeline.after(2_000, broken)
    with pytest.raises(SimulationFailure) as failure:
        world.run(1_000)
    text = str(failure.value)
    assert "seed 7 failed at step" in text and "Violation: deliberately" in text
    assert "bursar simulate --seed 7 --steps 1000" in text
    assert len(text.splitlines()) > 30, "the last lines of the trace are shown"


def test_every_message_survives_the_wire() -> None:
    """What the machines say to each other is the same after it was a protobuf message."""
    wrappers = {
        ("agent", CLIENT): "AgentMessage",
        ("agent", 1 - CLIENT): "MasterMessage",
        ("framework", CLIENT): "FrameworkCall",
        ("framework", 1 - CLIENT): "FrameworkEvent",
    }
    kinds = set()

    def through_the_wire(kind: str, side: int, message: object) -> object:
        wrapper = wrappers[kind, side]
        wire = codec.wrap(wrapper, message)
        arrived = codec.unwrap(wrapper, type(wire).FromString(wire.SerializeToString()))
        kinds.add(type(message).__name__)
        assert arrived == message
        return arrived

    world = World(11)
    for _ in range(2):
        world.add_agent(2)
    world.add_framework(Hog, "a")
    world.add_session("*", ResourceRequest({"cpus": 100}, (), 1), 20)
    world.network.on_wire = through_the_wire
    world.run(1_500)
    assert kinds >= {"Register", "TaskReports", "TaskUpdates", "DesiredState", "Offers", "Accept", "StatusUpdates"}


def test_the_sql_registry_means_the_same(tmp_path: Path) -> None:
    """At every start of a master, what SQL loads equals what the records mean."""
    registry = Registry(f"sqlite:///{tmp_path / 'registry.sqlite'}")
    registry.open()
    try:
        faults = Faults(
            master_crashes_per_minute=20, operator_acts_per_minute=30, agent_crashes_per_minute=2, master_down_ms=100
        )
        world = World(12, faults=faults, twin=registry)
        world.populate()
        world.run(3_000)
        assert world.master.registry.durable.term > 3
    finally:
        registry.close()


def test_the_checkpoint_file_means_the_same(tmp_path: Path) -> None:
    """At every start of an agent, what its file holds equals what the records mean."""
    faults = Faults(agent_crashes_per_minute=400, agent_down_ms=100, reboots_per_minute=60, operator_acts_per_minute=10)
    world = World(13, faults=faults)
    world.populate()
    for agent in world.agents:
        agent.twin = Checkpoint(tmp_path / f"{agent.name}.sqlite")
    world.run(1_000)
    assert sum(agent.lives for agent in world.agents) > 2 * len(world.agents)
