"""Dialogues: a framework changes its roles and capabilities without a restart (M-04, REG-7)."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import ErrorReason
from bursar.core.messages.framework import Rescind, UpdateFramework
from bursar.core.messages.offers import CallResult, Demand
from bursar.core.tasks import TaskState

HOUR_MS = 3_600_000


def test_offers_in_a_role_that_goes_are_rescinded_before_the_answer(book: Any) -> None:
    book.agent("a"), book.agent("b")
    framework = book.framework(roles=["x"])
    lost = list(framework.offers)
    framework.inbox.clear()
    framework.call(UpdateFramework("change", _with(framework, roles=("y",))))
    said = [type(event) for event in framework.inbox[:2]]
    assert said == [Rescind, CallResult] and framework.inbox[0].offer_ids == tuple(sorted(lost))
    assert {offer.role for offer in framework.offers.values()} == {"y"}
    assert "x" not in book.machine.cluster.shares.roles()


def test_offers_in_a_role_that_stays_stand(book: Any) -> None:
    book.agent()
    framework = book.framework(roles=["x"])
    offer = framework.offer
    assert framework.update(roles=("x", "y")).error is None
    assert framework.offer is offer
    framework.run(book.spec("t"))


def test_an_accept_that_crosses_the_rescind_launches_nothing(book: Any) -> None:
    """The race of M-04: whichever way the role went, by an update or by subscribing again."""
    agent = book.agent()
    framework = book.framework(roles=["x", "y"])
    before = framework.offer
    keep = "y" if before.role == "x" else "x"
    framework.update(roles=(keep,))
    result = framework.accept([before.offer_id], book.launch(book.spec("late")))
    assert result.error is not None and result.error.reason is ErrorReason.INVALID_OFFERS
    again = framework.offer
    framework.connect(roles=("z",), incarnation="2")
    result = framework.accept([again.offer_id], book.launch(book.spec("later")))
    assert result.error is not None and result.error.reason is ErrorReason.INVALID_OFFERS
    assert not agent.tasks and not book.registry.tasks


def test_losing_a_capability_takes_offers_of_gpu_agents_back_and_no_others(book: Any) -> None:
    book.agent("gpu", gpus=2), book.agent("cpu")
    framework = book.framework()
    assert framework.agents == {"gpu", "cpu"}
    framework.update(capabilities=())
    assert framework.agents == {"cpu"}
    book.advance(60_000)
    assert framework.agents == {"cpu"}
    framework.update(capabilities=("GPU_RESOURCES", "FROM_THE_FUTURE"))
    assert framework.agents == {"gpu", "cpu"} and framework.view.info.capabilities[1] == "FROM_THE_FUTURE"


def test_tasks_go_on_and_stay_in_the_role_of_their_launch(book: Any) -> None:
    agent = book.agent()
    framework = book.framework(roles=["x"])
    framework.run(book.spec("t", cpus=2))
    framework.update(roles=("y",))
    agent.update("t", TaskState.RUNNING)
    assert framework.states() == [("t", "RUNNING")] and framework.view.tasks == 1
    assert book.machine.cluster.shares.share_millionths("x") > 0


def test_what_changed_is_kept_over_a_restart(book: Any) -> None:
    framework = book.framework(roles=["x"])
    framework.update(roles=("y", "z"), name="other", labels={"team": "vision"}, failover_timeout_ms=HOUR_MS)
    book.restart()
    assert framework.view.info == framework.info and framework.view.info.roles == ("y", "z")


def test_roles_that_come_are_offered_at_once_and_suppression_is_replaced(book: Any) -> None:
    book.agent("a"), book.agent("b", connect=False)
    framework = book.framework(roles=["x"])
    framework.decline(framework.offer, refuse_ms=HOUR_MS)
    framework.update(roles=("x", "y"), suppressed=["x"])
    assert framework.offer.role == "y", "the filter was of role x"
    book.agents["b"].connect(cluster_id="")
    assert {offer.role for offer in framework.offers.values()} == {"y"}
    framework.decline(*list(framework.offers.values()), refuse_ms=HOUR_MS)
    assert not framework.offers
    framework.update(suppressed=["y"])
    assert {offer.role for offer in framework.offers.values()} == {"x"}, "unsuppressed: its filters are dropped (REG-7)"


def test_a_newly_suppressed_role_keeps_its_offers(book: Any) -> None:
    book.agent()
    framework = book.framework(roles=["x"])
    offer = framework.offer
    framework.update(suppressed=["x"])
    assert framework.offer is offer


def test_demand_changes_in_the_same_moment(book: Any) -> None:
    book.agent()
    framework = book.framework(roles=["x"], demand=Demand(1, (book.shape(cpus=1, role="x"),)))
    framework.update(roles=("y",), demand=Demand(2, (book.shape(2, cpus=2, role="y"),)))
    assert framework.offer.role == "y" and framework.offered() == book.resources(4)
    assert framework.view.demand.version == 2


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no roles": ({"roles": ()}, "at least one role", "info.roles"),
    "a role twice": ({"roles": ("x", "x")}, "twice", "info.roles"),
    "a role that is no role": ({"roles": ("a//b",)}, "a//b", "info.roles"),
    "suppressing the role of somebody else": ({"suppressed": ["z"]}, "suppressed", "suppressed_roles"),
    "another id": ({"framework_id": "g"}, "framework_id", "info.framework_id"),
    "another life": ({"incarnation": "2"}, "incarnation", "info.incarnation"),
    "another principal": ({"principal": "root"}, "principal", "info.principal"),
    "giving up a role that is wanted": ({"roles": ("y",)}, "'x' is not a role", "demand.shapes[0]"),
    "too long a name": ({"name": "n" * 70_000}, "longer", "info"),
    "too long a failover timeout": ({"failover_timeout_ms": 400 * 24 * HOUR_MS}, "365 days", "failover_timeout_ms"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_update_changes_nothing_and_the_stream_goes_on(book: Any, what: str) -> None:
    changes, words, field = REFUSED[what]
    book.agent()
    framework = book.framework(roles=["x"], demand=Demand(1, (book.shape(cpus=1, role="x"),)))
    offer, records = framework.offer, len(book.records)
    error = framework.update(**changes).error
    assert error is not None and words in error.message and field in error.field and error.reason.name
    assert framework.closed is None and framework.offer is offer and len(book.records) == records
    assert framework.view.info == framework.info


def test_an_update_needs_an_id(book: Any) -> None:
    framework = book.framework()
    framework.call(UpdateFramework("", framework.info))
    (result,) = framework.heard(CallResult)
    assert result.error is not None and result.error.field == "call_id" and framework.closed is None


def test_a_repeat_gets_the_first_answer_and_does_not_undo_what_came_later(book: Any) -> None:
    framework = book.framework(roles=["x"])
    framework.update(roles=("y",), call_id="first")
    framework.update(roles=("z",), call_id="second")
    framework.call(UpdateFramework("first", _with(framework, roles=("y",))))
    assert framework.heard(CallResult) == [CallResult("first")]
    assert framework.view.info.roles == ("z",)
    assert framework.lookup("first", "third") == (CallResult("first"), CallResult("third", unknown=True))


def _with(framework: Any, **changes: Any) -> Any:
    fields = {name: getattr(framework.info, name) for name in framework.info.__dataclass_fields__}
    return type(framework.info)(**fields | changes)


@pytest.mark.parametrize("roles", [("a/b",), ("a/c",), ("a", "a/b")])
def test_a_role_that_stays_in_use_keeps_its_count(book: Any, roles: tuple[str, ...]) -> None:
    """Whoever was given more often is served later, also after its framework has changed its roles (mesos.md §3.2)."""
    framework, other = book.framework(roles=["a/b"]), book.framework("g", roles=["e"])
    other.suppress()
    agent = book.agent("one")
    framework.decline(framework.offer)
    agent.disconnect()
    framework.update(roles=roles)
    with book.batch():
        other.revive()
        book.agent("two")
    assert other.agents == {"two"}
