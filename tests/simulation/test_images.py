"""Pulls of images while agents and masters die: each comes to an end, and the judges see where one does not."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.images import ImagePullState
from bursar.core.messages import operator as op
from bursar.master import registration
from bursar.simulation.faults import Faults
from bursar.simulation.world import SimulationFailure, World


def pull_while_everybody_dies(seed: int, *, master_last: bool = True) -> World:
    """Three agents that pull for up to ten seconds; each of them dies, and the master before and after."""
    world = World(seed, faults=Faults(pull_ms=10_000, agent_down_ms=500, master_down_ms=500))
    for runtime in ("docker", "docker", "process"):
        world.add_agent(0, runtime=runtime)
    world.start()
    world.run_for(5_000)
    answers: list[Any] = []
    world.master.ask(op.PullImageRequest("large:1", all=True, request_id="r"), answers.append)
    world.run_for(200)
    assert isinstance(answers[0], op.PullImageResponse) and len(answers[0].pull.members) == 3
    world.master.die()
    world.run_for(1_500)
    world.agents[0].die()
    world.run_for(1_500)
    if master_last:
        world.master.die()
    world.run(world.steps)
    return world


@pytest.mark.parametrize("seed", range(4))
def test_a_pull_comes_to_an_end_whoever_dies(seed: int) -> None:
    world = pull_while_everybody_dies(seed)
    assert world.master.machine is not None
    ((pull_id, order),) = world.master.machine.cluster.images.orders.items()
    assert pull_id.startswith("pull-") and order.image == "large:1" and order.is_over
    for agent in world.agents[:2]:
        pulled = order.members[agent.agent_id].state is ImagePullState.PULLED
        assert pulled == ("large:1" in agent.containers.images)
        told = world.master.machine.cluster.images.on_agents.get(agent.agent_id, ())
        assert pulled == any(image.names == ("large:1",) for image in told)
    assert order.members[world.agents[2].agent_id].state is ImagePullState.FAILED


def test_the_judges_see_a_pull_that_is_not_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "greet", lambda cluster, turn, agent: None)
    with pytest.raises(SimulationFailure, match="pull-.* of large:1 on agent-1 is still PULLING"):
        for seed in range(4):
            pull_while_everybody_dies(seed, master_last=False)
