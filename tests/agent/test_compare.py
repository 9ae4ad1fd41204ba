"""Books and engine are compared, and what two looks agree upon is repaired (B-18)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agent_dialogue import Agent, container, of, statuses, task
from prometheus_client import CollectorRegistry

from bursar.agent.compare import Comparison
from bursar.agent.containers.runtime import ContainerId
from bursar.agent.effects import EndStray, Log, RemoveContainer
from bursar.core.lives import RestartMode, RestartPolicy
from bursar.core.tasks import StatusReason, TaskState


class Engine:
    """What runs, as it is told."""

    def __init__(self, *running: ContainerId) -> None:
        self.there: set[ContainerId] | Exception = set(running)

    def running(self) -> set[ContainerId]:
        if isinstance(self.there, Exception):
            raise self.there
        return set(self.there)


def comparing(agent: Agent, engine: Engine) -> tuple[Comparison, list[Any], CollectorRegistry]:
    posted: list[Any] = []
    registry = CollectorRegistry()
    return Comparison(agent.machine, engine, posted.append, registry), posted, registry


async def test_a_container_that_is_gone_at_two_looks_ends_its_task() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    comparison, posted, registry = comparing(agent, Engine())
    await comparison.compare()
    assert not posted, "its end may be on its way"
    await comparison.compare()
    (event,) = posted
    effects = agent.step(event)
    (status,) = statuses(effects)
    assert (status.state, status.reason) == (TaskState.GONE, StatusReason.CONTAINER_LOST)
    assert of(effects, RemoveContainer) and "repaired" in of(effects, Log)[0].text
    assert not agent.machine.live_devices()
    assert (
        registry.get_sample_value(
            "bursar_sync_container_lifecycle_repair_count_total", {"agent_id": "a1", "what": "missing"}
        )
        == 1.0
    )
    await comparison.compare()
    assert len(posted) == 1


async def test_a_stray_is_ended_after_two_looks() -> None:
    agent = Agent().ready()
    comparison, posted, _ = comparing(agent, Engine(ContainerId("stray")))
    await comparison.compare()
    await comparison.compare()
    (event,) = posted
    assert of(agent.step(event), EndStray) == [EndStray(ContainerId("stray"))]
    await comparison.compare()
    await comparison.compare()
    assert len(posted) == 1, "it is ending"


async def test_what_is_as_it_should_be_and_what_is_being_started_is_left_alone() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    agent.launch(task("u", 1))
    engine = Engine(container("t"))
    comparison, posted, _ = comparing(agent, engine)
    for _ in range(3):
        await comparison.compare()
    assert not posted


async def test_an_engine_that_is_away_says_nothing() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    engine = Engine()
    comparison, posted, registry = comparing(agent, engine)
    await comparison.compare()
    engine.there = OSError("away")
    await comparison.compare()
    engine.there = set()
    await comparison.compare()
    assert not posted, "two looks in a row"
    labels = {"agent_id": "a1", "exception": "OSError"}
    assert registry.get_sample_value("bursar_sync_container_lifecycle_failure_count_total", labels) == 1.0


async def test_a_task_between_two_runs_has_no_container_and_is_right() -> None:
    """Its back-off may be longer than two looks."""
    agent = Agent().ready()
    policy = RestartPolicy(RestartMode.ALWAYS, backoff_ms=300_000, max_backoff_ms=300_000)
    assigned = task("t", 0)
    agent.run(replace(assigned, spec=replace(assigned.spec, restart=policy)))
    agent.exit("t", 1)
    comparison, posted, _ = comparing(agent, Engine())
    for _ in range(3):
        await comparison.compare()
    assert not posted


async def test_a_container_that_is_gone_while_its_task_is_ended_is_its_end() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    agent.kill("t")
    comparison, posted, _ = comparing(agent, Engine())
    await comparison.compare()
    await comparison.compare()
    (event,) = posted
    (status,) = statuses(agent.step(event))
    assert status.state is TaskState.KILLED
