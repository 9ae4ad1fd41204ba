"""Gangs in the session's machine: asked for, answered as a whole, asked for again after an interruption."""

from __future__ import annotations

from typing import Any

import pytest
from tests.sdk.test_machine import AWAY, INFO, World, calls, of, started

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages.framework import Offers, Rescind
from bursar.core.messages.gangs import Bundle, BundleMember, CancelGang, GangGroup, GangState, GangUpdate, RequestGang
from bursar.core.messages.offers import Accept, AgentDescription, CallResult, Decline, Offer, OperationResult
from bursar.core.resources import ReservedResources, ResourceRequest, Resources
from bursar.core.tasks import TaskSpec
from bursar.sdk import effects, events
from bursar.sdk.framework import Framework
from bursar.sdk.offers import Bundle as AuthorsBundle
from bursar.sdk.session import FrameworkSession
from bursar.sdk.tasks import Task

GANG = RequestGang("g", "*", (GangGroup(ResourceRequest({"cpus": 1000}), 2),), ttl_ms=60_000)


def described(*agents: str) -> Offers:
    return Offers(tuple(AgentDescription(agent, 1, agent) for agent in agents), ())  # type: ignore[arg-type]


def bundle(*agents: str, bundle_id: str = "B1", gang_id: str = "g") -> Any:
    resources = (ReservedResources((), Resources({"cpus": 1000})),)
    offers: Any = tuple(
        Offer(f"{bundle_id}-{a}", INFO.framework_id, "*", a, 1, resources, 0, bundle_id) for a in agents
    )  # type: ignore[arg-type]
    return Bundle(bundle_id, gang_id, offers, tuple(BundleMember(0, agent) for agent in agents))  # type: ignore[arg-type]


def asked() -> World:
    world = started()
    world.subscribe()
    assert calls(world.step(events.GangRequested(GANG)), RequestGang) == [GANG]
    return world


def test_a_bundle_is_delivered_and_accepted_as_a_whole() -> None:
    world = asked()
    (delivered,) = of(world.hear(described("a", "b"), bundle("a", "b")), effects.DeliverBundle)
    assert [about.agent_id for about in delivered.descriptions] == ["a", "b"]
    out = world.step(events.BundleAnswered("B1", (TaskSpec("t1", agent_id="a"), TaskSpec("t2", agent_id="b"))))  # type: ignore[arg-type]
    (accept,) = calls(out, Accept)
    assert accept.offer_ids == ("B1-a", "B1-b") and len(accept.operations) == 2
    done = CallResult(accept.call_id, operations=tuple(OperationResult(o.operation_id) for o in accept.operations))
    (launched,) = of(world.hear(done), effects.DeliverLaunched)
    assert launched.task_ids == ("t1", "t2")


def test_no_tasks_decline_it_and_the_author_hears_that_the_gang_ended() -> None:
    world = asked()
    world.hear(described("a"), bundle("a"))
    (decline,) = calls(world.step(events.BundleAnswered("B1")), Decline)
    assert decline.offer_ids == ("B1-a",)
    assert of(world.hear(GangUpdate("g", GangState.CANCELLED)), effects.DeliverGangEnded) == [
        effects.DeliverGangEnded("g", None)
    ]
    assert not of(world.hear(GangUpdate("g", GangState.CANCELLED)), effects.DeliverGangEnded), "once"


def test_an_answer_to_a_rescinded_bundle_launches_nothing() -> None:
    world = asked()
    world.hear(described("a"), bundle("a"), Rescind(("B1-a",)))  # type: ignore[arg-type]
    out = world.step(events.BundleAnswered("B1", (TaskSpec("t1", agent_id="a"),)))  # type: ignore[arg-type]
    assert not calls(out, Accept) and [refusal.task_id for refusal in of(out, effects.DeliverRefusal)] == ["t1"]


def test_after_an_interruption_it_is_asked_for_what_is_left_of_its_time() -> None:
    world = asked()
    world.ms += 20_000
    world.step(events.StreamEnded(world.connection, AWAY))
    world.wait(200)
    (again,) = calls(world.subscribe(), RequestGang)
    assert again.gang_id == "g" and 39_000 < again.ttl_ms <= 40_000
    world.step(events.StreamEnded(world.connection, AWAY))
    world.ms += 60_000
    world.wait(200)
    out = world.subscribe()
    assert not calls(out, RequestGang) and [ended.gang_id for ended in of(out, effects.DeliverGangEnded)] == ["g"]


def test_a_bundle_of_a_gang_that_was_cancelled_meanwhile_is_declined() -> None:
    world = asked()
    assert calls(world.step(events.GangCancelled("g")), CancelGang)
    out = world.hear(described("a"), bundle("a"))
    assert calls(out, Decline) and not of(out, effects.DeliverBundle)


def test_a_refusal_reaches_the_author_with_its_reason() -> None:
    world = asked()
    error = ErrorDetail(ErrorReason.INSUFFICIENT_RESOURCES, "too large")
    assert of(world.hear(GangUpdate("g", GangState.REFUSED, error)), effects.DeliverGangEnded) == [
        effects.DeliverGangEnded("g", error)
    ]


class Training(Framework):
    """Takes one task for each place."""

    def on_bundle(self, bundle: AuthorsBundle) -> Any:
        return [Task(["train"], gpus=2) for _ in bundle.places]


def test_each_task_goes_to_its_place_and_takes_the_linked_gpus() -> None:
    framework = Training()
    session = FrameworkSession(framework, "127.0.0.1:1")
    gang_id = framework.request_gang([({"cpus": 1, "gpus": 2}, 1)], ttl="10m", nvlink=True, same="rack")
    requested = session._inbox.pop()
    assert isinstance(requested, events.GangRequested) and requested.request.gang_id == gang_id
    assert requested.request.ttl_ms == 600_000 and requested.request.topology.nvlink_clique
    resources = (ReservedResources((), Resources({"cpus": 4000, "mem": 1 << 30}, (), frozenset({"x", "y"}))),)  # type: ignore[arg-type]
    offer: Any = Offer("O1", INFO.framework_id, "*", "a", 1, resources)  # type: ignore[arg-type]
    message: Any = Bundle("B1", gang_id, (offer,), (BundleMember(0, "a", ("x", "y")),))  # type: ignore[arg-type]
    session._perform(effects.DeliverBundle(message, (AgentDescription("a", 1, "host"),)))  # type: ignore[arg-type]
    answered = session._inbox.pop()
    assert isinstance(answered, events.BundleAnswered)
    (spec,) = answered.tasks
    assert (spec.agent_id, spec.resources.devices, spec.resources.gpus) == ("a", ("x", "y"), 0)


def test_more_tasks_than_places_are_the_authors_mistake() -> None:
    class Eager(Framework):
        def on_bundle(self, bundle: AuthorsBundle) -> Any:
            return [Task(["x"], mem="1MiB"), Task(["x"], mem="1MiB")]

    session = FrameworkSession(Eager(), "127.0.0.1:1")
    with pytest.raises(Exception, match="more tasks than gang g has places"):
        session._answer_bundle(AuthorsBundle("g", [], []))
