"""How an agent gets in and back in: who is refused, with which resources, and the generations that it has seen."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import ErrorReason
from bursar.core.ids import AgentId, Generation
from bursar.core.messages.agent import (
    AgentInfo,
    DesiredState,
    Refused,
    Register,
    Registered,
)
from bursar.core.messages.operator import AgentState
from bursar.core.resources import PortRange, ReservedResources, Resources
from bursar.core.tasks import StatusReason, TaskState
from bursar.master.events import AgentRegistering
from bursar.master.records import Durable, TermRaised

# --- coming in ---


def test_a_new_agent_is_told_the_cluster_and_a_full_state_then_offered(book: Any) -> None:
    framework = book.framework()
    agent = book.agent()
    (registered,) = agent.heard(Registered)
    assert (registered.cluster_id, registered.term) == (book.CLUSTER, 1)
    assert (registered.ping_interval_ms, registered.max_missed_pings) == (15_000, 5)
    state = agent.told()
    assert state.generation == Generation(1, 1) and not (state.launch or state.kill or state.keep)
    assert framework.agents == {"a"}
    assert agent.view.state is AgentState.ACTIVE


def test_an_agent_of_another_cluster_is_refused_with_what_to_do(book: Any) -> None:
    agent = book.agent(connect=False)
    agent.connect(cluster_id="cluster-2")
    (refused,) = agent.heard(Refused)
    assert refused.error.reason is ErrorReason.CLUSTER_MISMATCH
    assert "cluster-2" in refused.error.message and "--work-dir" in refused.error.hint
    assert not book.machine.cluster.agents and agent.connection is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"agent_id": AgentId("a/b")}, "agent_id"),
        ({"resources": (ReservedResources((), Resources(devices=frozenset({"GPU-x"}))),)}, "not described"),
        ({"resources": (ReservedResources((), Resources({"cpus": 2**53 + 1})),)}, "largest amount"),
        (
            {
                "resources": (
                    ReservedResources((), Resources(ports=(PortRange(1, 10),))),
                    ReservedResources((), Resources(ports=(PortRange(10, 20),))),
                )
            },
            "10",
        ),
    ],
)
def test_an_agent_that_contradicts_itself_is_refused(book: Any, change: dict[str, Any], words: str) -> None:
    agent = book.agent(connect=False)
    agent.connect(**change)
    (refused,) = agent.heard(Refused)
    assert refused.error.reason in (ErrorReason.INVALID_ARGUMENT, ErrorReason.INCOMPATIBLE_RESOURCES)
    assert words in refused.error.message
    assert not book.machine.cluster.agents


@pytest.mark.parametrize("kind", ["ports", "devices"])
def test_nothing_is_in_two_buckets(book: Any, kind: str) -> None:
    part = Resources(ports=(PortRange(5, 8),)) if kind == "ports" else book.resources(devices=["a-gpu0"])
    agent = book.agent(
        gpus=1,
        parts=[ReservedResources((), part), ReservedResources(book.static("ml"), part)],
        connect=False,
    )
    agent.connect()
    (refused,) = agent.heard(Refused)
    assert refused.error.reason is ErrorReason.INVALID_ARGUMENT and "twice" in refused.error.message


@pytest.mark.parametrize("holder", ["*", "a//b", "-x", "a b", ".", ""])
def test_static_reservations_are_to_valid_roles(book: Any, holder: str) -> None:
    agent = book.agent(parts=[ReservedResources(book.static(holder), book.resources(1))], connect=False)
    agent.connect()
    (refused,) = agent.heard(Refused)
    assert refused.error.reason is ErrorReason.INVALID_ARGUMENT


def test_one_stream_is_one_agent(book: Any) -> None:
    agent = book.agent("a")
    book.step(AgentRegistering(agent.connection, Register(AgentInfo(AgentId("b"))), ()))
    assert set(book.machine.cluster.agents) == {"a"}


def test_an_agents_id_stays_the_principals_that_it_was_first_let_in_with(book: Any) -> None:
    """Also over a restart of the master; one from before anybody was asked becomes the first's (B-11)."""
    agent = book.agent("a")
    agent.disconnect()
    agent.shown = "gpu-1"
    agent.connect()
    assert not agent.heard(Refused)
    agent.disconnect()
    for again in (False, True):
        if again:
            book.restart()
        agent.shown = "gpu-2"
        agent.connect()
        (refused,) = agent.heard(Refused)
        assert refused.error.reason is ErrorReason.PERMISSION_DENIED
        assert "gpu-1" in refused.error.message and "gpu-2" in refused.error.message
    agent.shown = "gpu-1"
    agent.connect()
    assert not agent.heard(Refused)
    assert book.machine.cluster.durable.agents["a"].principal == "gpu-1"


# --- with other resources ---


def test_an_agent_that_grew_is_taken_in_and_its_tasks_stay(book: Any) -> None:
    agent = book.agent(cpus=4)
    framework = book.framework()
    framework.run(book.spec("t", cpus=4))
    agent.disconnect()
    agent.connect(resources=(ReservedResources((), book.resources(8, 16)),), incarnation=2)
    assert framework.offered().scalars["cpus"] == 4000
    assert book.state_of("t") is TaskState.STAGING


def test_an_agent_with_less_than_its_tasks_hold_is_refused_by_name(book: Any) -> None:
    agent = book.agent(gpus=2)
    framework = book.framework()
    framework.run(book.spec("t", cpus=4, gpus=2))
    agent.disconnect()
    agent.connect(
        resources=(ReservedResources((), book.resources(8, 16, ["a-gpu0"])),),
        devices=tuple(book.devices("a", 1)),
        incarnation=2,
    )
    (refused,) = agent.heard(Refused)
    assert refused.error.reason is ErrorReason.INCOMPATIBLE_RESOURCES
    assert "a-gpu1" in refused.error.message and refused.error.hint
    assert agent.view.state is AgentState.DISCONNECTED


def test_an_agent_with_less_than_is_reserved_on_it_is_refused_by_name(book: Any) -> None:
    agent = book.agent(gpus=2)
    book.reserve("a", "ml", book.request(cpus=2, gpus=2))
    agent.disconnect()
    agent.connect(resources=(ReservedResources((), book.resources(1, 16)),), devices=(), incarnation=2)
    (refused,) = agent.heard(Refused)
    assert refused.error.reason is ErrorReason.INCOMPATIBLE_RESOURCES
    assert "ml" in refused.error.message and "unreserve" in refused.error.hint


def test_an_agent_may_lose_what_nobody_holds(book: Any) -> None:
    agent = book.agent(gpus=2)
    framework = book.framework()
    framework.run(book.spec("t", gpus=1))
    agent.disconnect()
    agent.connect(
        resources=(ReservedResources((), book.resources(8, 16, ["a-gpu0"])),),
        devices=tuple(book.devices("a", 1)),
        incarnation=2,
    )
    assert agent.view.state is AgentState.ACTIVE
    assert framework.offered().devices == set()


def test_a_launch_that_does_not_fit_any_more_is_dropped(book: Any) -> None:
    agent = book.agent(gpus=2)
    framework = book.framework()
    framework.run(book.spec("t", gpus=2))
    agent.never_got("t")
    agent.disconnect()
    agent.connect(
        resources=(ReservedResources((), book.resources(8, 16, ["a-gpu0"])),),
        devices=tuple(book.devices("a", 1)),
        incarnation=2,
    )
    (status,) = framework.statuses()
    assert (status.state, status.reason) == (TaskState.DROPPED, StatusReason.DEVICES_CHANGED)
    assert not agent.told().launch and framework.offered().devices == {"a-gpu0"}


def test_a_device_held_under_a_reservation_that_the_registry_lost_is_nowhere_free(book: Any) -> None:
    agent = book.agent(gpus=1)
    agent.connect(
        reports=[book.report("t", book.resources(1, devices=["a-gpu0"]), stack=book.dynamic("ml"), framework="ghost")]
    )
    framework = book.framework()
    assert framework.offered().devices == set()
    agent.update("t", TaskState.FINISHED, framework="ghost")
    assert agent.view.free.devices == {"a-gpu0"}


# --- generations ---


def test_a_master_of_a_restored_registry_outranks_the_term_that_an_agent_has_seen(book: Any) -> None:
    agent = book.agent("a", gpus=1)
    agent.disconnect()
    agent.generation = Generation(7, 3)
    agent.connect()
    assert agent.heard(DesiredState)[-1].generation == Generation(8, 1)
    book.restart()
    agent.connect()
    assert agent.heard(DesiredState)[-1].generation.term > 8


def test_an_agent_that_the_master_forgot_is_told_a_higher_sequence_of_the_same_term(book: Any) -> None:
    agent = book.agent("a", gpus=1)
    term = agent.heard(DesiredState)[-1].generation.term
    agent.disconnect()
    agent.generation = Generation(term, 50)
    agent.connect()
    assert agent.heard(DesiredState)[-1].generation == Generation(term, 51)


def test_raising_the_term_is_a_record() -> None:
    durable = Durable(term=3)
    durable.apply(TermRaised(9))
    assert durable.term == 9
