"""What an agent says of its books: in a few bytes now and then, all of it when asked, and what it has repaired (B-18)."""

from __future__ import annotations

from agent_dialogue import AGENT, Agent, F, container, of, task

from bursar.agent.containers.runtime import ContainerId, RecoveredContainer
from bursar.agent.effects import AgentEffect, EndStray, Log, SendToMaster
from bursar.agent.events import ContainersCompared, ContainersRecovered, MasterDisconnected
from bursar.core.books import COMPARE_INTERVAL_MS, digest, task_line
from bursar.core.messages.agent import BooksDigest, BooksReport, BooksRequest, Ping, Repair, TaskUpdates
from bursar.core.tasks import TaskState


def minutes(agent: Agent, count: int = 1) -> list[AgentEffect]:
    """So many intervals, with a master that is heard."""
    effects: list[AgentEffect] = []
    for _ in range(2 * count):
        effects += agent.wait(COMPARE_INTERVAL_MS // 2)
        if agent.machine.registered:
            effects += agent.hear(Ping(1))
    return effects


def said(effects: object, kind: type) -> list[object]:
    """Messages of a kind."""
    assert isinstance(effects, list)
    return [one.message for one in effects if isinstance(one, SendToMaster) and isinstance(one.message, kind)]


def test_once_per_interval_while_a_master_has_let_it_in() -> None:
    agent = Agent()
    assert not said(minutes(agent, 3), BooksDigest)
    agent.ready()
    agent.run(task("t", 0))
    digests = said(minutes(agent, 3), BooksDigest)
    assert len(digests) == 3
    (line,) = {one.tasks_digest for one in digests if isinstance(one, BooksDigest)}
    assert line == digest([task_line(F, task("t").spec.task_id, TaskState.RUNNING, is_to_end=False)])
    agent.step(MasterDisconnected(agent.connection))
    assert not said(minutes(agent, 3), BooksDigest)


def test_a_task_that_is_to_end_is_told_from_one_that_is_not() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    (before,) = said(minutes(agent), BooksDigest)
    agent.kill("t")
    (after,) = said(minutes(agent), BooksDigest)
    assert isinstance(before, BooksDigest) and isinstance(after, BooksDigest)
    assert before.tasks == after.tasks == 1 and before.tasks_digest != after.tasks_digest
    assert before.devices_digest == after.devices_digest


def test_asked_for_all_it_says_what_a_registration_would() -> None:
    agent = Agent().ready()
    for number in range(3):
        agent.run(task(f"t{number}", number))
    (report,) = said(agent.hear(BooksRequest(7)), BooksReport)
    assert isinstance(report, BooksReport)
    assert report.number == 7 and report.complete and report.register is not None
    assert report.register.info == agent.machine.info and report.register.generation == agent.machine.state.generation
    assert [one.task.spec.task_id for one in report.tasks] == ["t0", "t1", "t2"]


def test_a_repair_is_told_at_once_and_after_the_status_that_follows_from_it() -> None:
    agent = Agent().ready()
    agent.run(task("t", 0))
    effects = agent.step(ContainersCompared((container("t"),), (ContainerId("stray"),)))
    messages = [one.message for one in effects if isinstance(one, SendToMaster)]
    assert [type(one) for one in messages] == [TaskUpdates, BooksDigest]
    (told,) = said(effects, BooksDigest)
    assert isinstance(told, BooksDigest)
    assert [(one.what, one.task_id) for one in told.repairs] == [("container-missing", "t"), ("container-stray", "")]
    assert "stray" in told.repairs[1].message and all("repaired" in one.text for one in of(effects, Log))
    (later,) = said(minutes(agent), BooksDigest)
    assert isinstance(later, BooksDigest) and not later.repairs, "once"


def test_what_was_repaired_without_a_master_is_told_to_the_next() -> None:
    agent = Agent()
    effects = agent.step(ContainersRecovered((RecoveredContainer(ContainerId(f"bursar-{AGENT}-x"), None),)))
    assert of(effects, EndStray)
    agent.connect()
    (told,) = said(agent.register(), BooksDigest)
    assert isinstance(told, BooksDigest)
    assert [one.what for one in told.repairs] == ["container-stray"]
    assert all(isinstance(one, Repair) for one in told.repairs)
