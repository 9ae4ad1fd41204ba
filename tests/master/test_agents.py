"""Dialogues: agents that are in, fall silent, change and return after a restart of the master (mesos.md §2.3, design.md §8)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bursar.core.devices import DeviceHealth
from bursar.core.errors import ErrorReason
from bursar.core.ids import ConnectionId, Generation
from bursar.core.messages.agent import (
    DesiredState,
    DevicesChanged,
    Ping,
    Pong,
    Register,
    ResyncRequest,
    TaskRef,
)
from bursar.core.messages.framework import AgentFailure, Offers, Rescind
from bursar.core.messages.operator import AgentState, ListAgentsRequest
from bursar.core.resources import ReservedResources, Resources
from bursar.core.tasks import StatusReason, StatusSource, TaskState
from bursar.master.events import AgentRegistering, AgentStreamEnded

# --- streams ---


def test_the_newest_stream_counts(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    before = framework.offer
    old = agent.connection
    agent.connect()
    assert book.closed[old].reason is ErrorReason.SUPERSEDED
    assert before.offer_id not in framework.offers and framework.agents == {"a"}
    # Words from the old stream are not heard.
    book.step(AgentStreamEnded(old))
    assert agent.view.state is AgentState.ACTIVE


def test_an_older_life_does_not_replace_a_newer_one(book: Any) -> None:
    agent = book.agent(incarnation=5)
    connection = agent.connection
    twin = ConnectionId(900)
    book.step(AgentRegistering(twin, Register(replace(agent.info, incarnation=4), book.CLUSTER), ()))
    assert book.closed[twin].reason is ErrorReason.SUPERSEDED
    assert book.machine.cluster.agents["a"].connection == connection


def test_offers_refer_to_a_description_that_is_sent_once_and_after_changes(book: Any) -> None:
    agent = book.agent(attributes={"rack": "r1"})
    framework = book.framework()
    assert framework.descriptions["a"].attributes == {"rack": "r1"}
    first = framework.descriptions["a"]
    framework.decline(framework.offer, refuse_ms=0)
    book.advance(1000)
    assert [len(event.descriptions) for event in framework.heard(Offers)] == [1, 0]
    agent.connect(attributes={"rack": "r2"}, incarnation=2)
    assert framework.descriptions["a"].version > first.version
    assert framework.descriptions["a"].attributes == {"rack": "r2"}


# --- the link breaks ---


def test_a_broken_link_voids_offers_and_nothing_else(book: Any) -> None:
    agent = book.agent(gpus=2)
    framework = book.framework()
    framework.run(book.spec("t", gpus=1))
    agent.update("t", TaskState.RUNNING)
    book.advance(5000)
    assert framework.agents == {"a"}
    agent.disconnect()
    assert not framework.offers and framework.heard(Rescind)
    assert agent.view.state is AgentState.DISCONNECTED
    assert book.state_of("t") is TaskState.RUNNING
    agent.connect()
    assert agent.view.state is AgentState.ACTIVE and framework.agents == {"a"}
    assert agent.told().keep == (TaskRef("f", "t"),)
    assert framework.heard(AgentFailure) == []


def test_pings_go_out_and_anything_said_is_a_sign_of_life(book: Any) -> None:
    agent = book.agent()
    agent.answers_pings = False
    for _ in range(20):
        book.advance(15_000)
        (ping,) = agent.heard(Ping)
        assert ping.number == 1
        agent.say(ResyncRequest(Generation(1, 1)) if ping.number % 2 else Pong(ping.number))
    assert agent.view.state is AgentState.ACTIVE


def test_a_silent_agent_is_unreachable_after_five_pings(book: Any) -> None:
    agent = book.agent()
    agent.answers_pings = False
    framework = book.framework()
    framework.run(book.spec("t"))
    book.advance(15_000 * 5)
    assert agent.view.state is AgentState.ACTIVE and len(agent.heard(Ping)) == 5
    connection = agent.connection
    book.advance(15_000)
    assert agent.view.state is AgentState.UNREACHABLE
    assert book.closed[connection].reason is ErrorReason.SILENT
    assert ("t", "UNREACHABLE") in framework.states()
    (failure,) = framework.heard(AgentFailure)
    assert failure.agent_id == "a"
    assert book.registry.agents["a"].unreachable


def test_a_broken_link_is_given_as_long_as_pings_would_take(book: Any) -> None:
    agent = book.agent()
    agent.disconnect()
    book.advance(74_999)
    assert agent.view.state is AgentState.DISCONNECTED
    book.advance(1)
    assert agent.view.state is AgentState.UNREACHABLE


def test_a_stall_of_the_master_declares_nobody_dead(book: Any) -> None:
    agent = book.agent()
    agent.disconnect()
    book.advance(70_000)
    book.stall(60_000)
    assert agent.view.state is AgentState.DISCONNECTED
    book.advance(5_000)
    assert agent.view.state is AgentState.UNREACHABLE


def test_a_stall_does_not_delay_what_is_free(book: Any) -> None:
    """Only peers are owed the time; an allocation that is due is due."""
    framework = book.framework()
    with book.batch():
        book.agent()
        book.stall(60_000)
    assert framework.agents == {"a"}


def test_unreachable_tasks_keep_their_devices_and_do_not_count(book: Any) -> None:
    agent = book.agent("a", gpus=2)
    book.agent("b", gpus=2)
    framework = book.framework()
    offer = next(offer for offer in framework.offers.values() if offer.agent_id == "a")
    framework.run(book.spec("t", gpus=2), offer=offer)
    agent.disconnect()
    book.advance(75_000)
    assert book.state_of("t") is TaskState.UNREACHABLE
    assert agent.view.allocated.devices == {"a-gpu0", "a-gpu1"}
    assert book.machine.cluster.shares.held("*").get("gpus", 0) == 2000, "only what is offered of b"
    agent.connect()
    assert book.machine.cluster.shares.held("*")["gpus"] == 4000, "t's and b's"


def test_an_unreachable_task_returns_and_says_so(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    framework.acknowledge(agent.update("t", TaskState.RUNNING))
    agent.disconnect()
    book.advance(75_000)
    framework.statuses()
    agent.connect()
    (status,) = framework.statuses()
    assert (status.state, status.reason) == (TaskState.RUNNING, StatusReason.AGENT_REREGISTERED)
    assert status.source is StatusSource.MASTER and status.update_id
    assert agent.told().keep == (TaskRef("f", "t"),)


def test_an_unreachable_task_may_return_ended(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    framework.acknowledge(agent.update("t", TaskState.RUNNING))
    agent.disconnect()
    book.advance(75_000)
    framework.statuses()
    ended = agent.update("t", TaskState.FINISHED, deliver=False, exit_code=0)
    agent.connect()
    assert framework.states() == [("t", "FINISHED")]
    assert agent.view.allocated == Resources()
    framework.acknowledge(ended)
    assert agent.acknowledged()[-1] == ("t", ended.update_id)


# --- devices change while registered ---


def test_an_unhealthy_device_is_withheld_and_named(book: Any) -> None:
    agent = book.agent(gpus=2)
    framework = book.framework()
    agent.say(DevicesChanged(tuple(book.devices("a", 2, unhealthy=[1])), agent.info.resources))
    assert framework.offered().devices == {"a-gpu0"}
    assert agent.view.withheld.devices == {"a-gpu1"}
    assert any("a-gpu1: unhealthy" in reason for reason in agent.view.withheld_reasons)
    agent.say(DevicesChanged(tuple(book.devices("a", 2)), agent.info.resources))
    assert framework.offered().devices == {"a-gpu0", "a-gpu1"}


def test_a_device_that_vanishes_under_a_task_is_excess_and_the_agent_may_reconnect(book: Any) -> None:
    """A broken link must not shut an agent out for a loss that the master already knows of."""
    agent = book.agent(gpus=2)
    framework = book.framework()
    framework.run(book.spec("t", gpus=2))
    framework.acknowledge(agent.update("t", TaskState.RUNNING))
    less = (ReservedResources((), book.resources(8, 16, ["a-gpu0"])),)
    agent.info = replace(agent.info, devices=tuple(book.devices("a", 1)), resources=less)
    agent.say(DevicesChanged(agent.info.devices, less))
    assert agent.view.excess.devices == {"a-gpu1"}
    agent.connect()
    assert agent.view.state is AgentState.ACTIVE and agent.view.excess.devices == {"a-gpu1"}
    agent.update("t", TaskState.FAILED)
    assert agent.view.excess == Resources() and framework.offered().devices == {"a-gpu0"}


def test_a_reserved_device_that_vanishes_is_withheld_and_health_is_still_heard(book: Any) -> None:
    agent = book.agent(gpus=3)
    book.reserve("a", "ml", book.request(gpus=1))
    framework = book.framework(roles=["ml"])
    (kept,) = book.registry.agents["a"].reservations[0].resources.devices
    assert kept == "a-gpu0"
    left = tuple(book.devices("a", 3, unhealthy=[1])[1:])
    agent.say(DevicesChanged(left, (ReservedResources((), book.resources(8, 16, ["a-gpu1", "a-gpu2"])),)))
    assert framework.offered().devices == {"a-gpu2"}
    assert agent.view.withheld.devices == {"a-gpu0", "a-gpu1"}
    # What is offered and what is recorded is the same, also while not all of it is taken over.
    recorded = {device.uuid: device.health for device in book.registry.agents["a"].info.devices}
    assert recorded == {device.uuid: device.health for device in agent.view.devices}
    assert {uuid for uuid, health in recorded.items() if health is DeviceHealth.UNHEALTHY} == {"a-gpu0", "a-gpu1"}
    well = tuple(book.devices("a", 3)[1:])
    agent.say(DevicesChanged(well, (ReservedResources((), book.resources(8, 16, ["a-gpu1", "a-gpu2"])),)))
    assert framework.offered().devices == {"a-gpu1", "a-gpu2"}
    assert [device.health for device in book.registry.agents["a"].info.devices][1:] == [DeviceHealth.HEALTHY] * 2


def test_changes_that_contradict_themselves_do_not_take_the_master_down(book: Any) -> None:
    agent = book.agent(gpus=2)
    both = book.resources(devices=["a-gpu0"])
    agent.say(
        DevicesChanged(agent.info.devices, (ReservedResources((), both), ReservedResources(book.static("ml"), both)))
    )
    assert agent.view.total.devices == {"a-gpu0", "a-gpu1"}


def test_of_changes_that_are_not_taken_over_the_health_is_recorded_as_it_is_offered_by(book: Any) -> None:
    agent = book.agent(gpus=3)
    framework = book.framework()
    twice = agent.info.resources * 2
    agent.say(DevicesChanged(tuple(book.devices("a", 3, unhealthy=[1])[:2]), twice))
    assert any("not taken over" in event.message for event in book.published)
    assert framework.offered().devices == {"a-gpu0"} and agent.view.total.devices == {"a-gpu0", "a-gpu1", "a-gpu2"}

    def recorded() -> list[DeviceHealth]:
        return [device.health for device in book.registry.agents["a"].info.devices]

    assert recorded() == [DeviceHealth.HEALTHY, DeviceHealth.UNHEALTHY, DeviceHealth.UNHEALTHY]
    agent.say(DevicesChanged(tuple(book.devices("a", 3)), twice))
    assert framework.offered().devices == {"a-gpu0", "a-gpu1", "a-gpu2"} and set(recorded()) == {DeviceHealth.HEALTHY}


# --- desired state ---


def test_an_agent_that_missed_something_gets_everything(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t1"), book.spec("t2"), book.spec("t3"))
    framework.acknowledge(agent.update("t1", TaskState.RUNNING))
    framework.kill("t2")
    book.advance(70_000)
    agent.heard(DesiredState)
    agent.say(ResyncRequest(Generation(1, 0)))
    state = agent.told()
    assert state.keep == (TaskRef("f", "t1"),)
    assert [kill.task_id for kill in state.kill] == ["t2"]
    assert [task.spec.task_id for task in state.launch] == ["t3"], "told while connected: told again however late"


def test_generations_grow_and_a_new_master_has_a_higher_term(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t1"))
    framework.kill("t1")
    before = [state.generation for state in agent.heard(DesiredState)]
    assert before == sorted(before) and len(set(before)) == 3
    book.restart()
    agent.connect()
    assert agent.told().generation > max(before)


# --- after a restart of the master ---


def test_known_agents_are_recovering_until_they_are_back(book: Any) -> None:
    agent = book.agent()
    framework = book.framework()
    framework.run(book.spec("t"))
    book.restart()
    framework.connect()
    assert agent.view.state is AgentState.RECOVERING and not framework.offers
    assert book.state_of("t") is TaskState.STAGING
    agent.connect()
    assert agent.view.state is AgentState.ACTIVE and framework.agents == {"a"}


def test_an_agent_that_does_not_come_back_is_given_up(book: Any) -> None:
    agent = book.agent()
    framework = book.framework(failover_ms=3_600_000)
    framework.run(book.spec("t"))
    book.restart()
    framework.connect()
    book.advance(599_999)
    framework.connect()
    assert agent.view.state is AgentState.RECOVERING
    book.advance(1)
    assert agent.view.state is AgentState.UNREACHABLE
    assert book.state_of("t") is TaskState.UNREACHABLE


def test_unreachable_stays_unreachable_over_a_restart(book: Any) -> None:
    agent = book.agent()
    agent.disconnect()
    book.advance(75_000)
    book.restart()
    assert agent.view.state is AgentState.UNREACHABLE
    agent.connect()
    assert agent.view.state is AgentState.ACTIVE
    assert not book.registry.agents["a"].unreachable


def test_agents_are_listed_with_their_state(book: Any) -> None:
    book.agent("b")
    book.agent("a").disconnect()
    found = book.ask(ListAgentsRequest()).agents
    assert [(agent.agent_id, agent.state) for agent in found] == [
        ("a", AgentState.DISCONNECTED),
        ("b", AgentState.ACTIVE),
    ]
