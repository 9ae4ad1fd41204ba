"""Gangs under the judges: bundles are whole, what is held is of use, two big ones finish one after the other, none starves."""

from __future__ import annotations

import pytest

from bursar.core.messages.gangs import GangState, GangTopology
from bursar.core.resources import ResourceRequest
from bursar.simulation.faults import Faults
from bursar.simulation.frameworks import Ganging, Greedy, Hog
from bursar.simulation.world import World

#: Each of 4 agents of 8 CPUs as a whole.
WHOLE_AGENT = ResourceRequest({"cpus": 8_000})


def of_four_agents(seed: int, faults: Faults, **flags: str) -> World:
    world = World(seed, faults=faults, flags=flags)
    for _ in range(4):
        world.add_agent(4, cpus=8_000)
    return world


def test_two_gangs_that_each_need_most_of_the_cluster_both_go_on() -> None:
    world = of_four_agents(1, Faults())
    gangs = [
        world.add_framework(Ganging, role, request=WHOLE_AGENT, tasks=3, run_ms=2_000, sloppy=False)
        for role in ("a", "b")
    ]
    world.start()
    world.run_for(5 * 60_000)
    taken = [gang.taken for gang in gangs if isinstance(gang, Ganging)]
    assert min(taken) > 20, taken
    assert max(taken) - min(taken) <= 2, "one after the other"
    # Before there were agents.
    assert all(gang.outcomes.keys() <= {GangState.REFUSED} for gang in gangs if isinstance(gang, Ganging))


def test_a_stream_of_small_tasks_starves_no_gang() -> None:
    world = of_four_agents(2, Faults())
    small = world.add_session("small", ResourceRequest({"cpus": 1_000}), 2_000)
    big = world.add_framework(Ganging, "big", request=WHOLE_AGENT, tasks=3, run_ms=2_000, sloppy=False)
    assert isinstance(big, Ganging)
    world.start()
    world.run_for(5 * 60_000)
    assert big.taken >= 3
    assert small.done > 200
    assert world.checkers.verdicts["a hold is of use"] > 10


@pytest.mark.parametrize("seed", range(6))
def test_gangs_under_faults(seed: int) -> None:
    """Everything at once: whatever happens, bundles are whole and holds bounded, and in the end all is free again."""
    world = World(seed, flags={"offer_timeout": "5s", "gang_hold_timeout": "20s", "agent_ping_timeout": "2s"})
    for gpus in (4, 4, 2, 0):
        world.add_agent(gpus, cpus=8_000)
    cpus = ResourceRequest({"cpus": 3_000, "mem": 1 << 28})
    world.add_framework(Ganging, "research", request=cpus, tasks=4)
    world.add_framework(Ganging, "eng", request=ResourceRequest({"cpus": 500}, (), 2), tasks=3, ttl_ms=20_000)
    linked = GangTopology("", nvlink_clique=True)
    world.add_framework(Ganging, "*", request=ResourceRequest({"cpus": 100}, (), 1), tasks=5, topology=linked)
    world.add_framework(Hog, "a")
    world.add_framework(Greedy, "eng", gpus=False)
    world.run(4_000)
    assert world.checkers.verdicts["a bundle is whole"] > 10
    assert not world.master.machine or not world.master.machine.cluster.ledger.gang_holds
