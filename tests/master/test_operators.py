"""Dialogues with operators: reservations, flags, lists, names, reasons (RSV-*, design.md §5, §10)."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages import operator as op
from bursar.core.messages.framework import Rescind
from bursar.core.messages.offers import Demand
from bursar.core.messages.operator import RefusalReason
from bursar.core.resources import ReservedResources, ResourceRequest
from bursar.core.tasks import TaskState

HOUR_MS = 3_600_000


# --- reserving ---


def test_what_is_free_is_reserved_without_touching_offers(book: Any) -> None:
    book.agent(cpus=8, gpus=4)
    framework = book.framework(demand=Demand(1, (book.shape(cpus=1, gpus=2),)))
    assert framework.offered().devices == {"a-gpu0", "a-gpu1"}
    answer = book.reserve("a", "ml", book.request(gpus=2))
    assert answer.reservation.resources.devices == {"a-gpu2", "a-gpu3"}
    assert answer.reservation.stack == book.dynamic("ml", "operator")
    assert framework.offers and not framework.heard(Rescind)


def test_only_the_offers_in_the_way_are_rescinded(book: Any) -> None:
    book.agent(cpus=8, gpus=4)
    frameworks = [book.framework(name, demand=Demand(1, (book.shape(cpus=1, gpus=1),))) for name in "fghi"]
    holder = {next(iter(framework.offered().devices)): framework for framework in frameworks}
    answer = book.reserve("a", "ml", ResourceRequest(devices=("a-gpu2",)))
    assert answer.reservation.resources.devices == {"a-gpu2"}
    assert {uuid for uuid, framework in holder.items() if framework.heard(Rescind)} == {"a-gpu2"}
    book.reserve("a", "ml", book.request(gpus=1))
    assert sum(bool(framework.offers) for framework in frameworks) == 2


def test_what_tasks_hold_is_never_touched(book: Any) -> None:
    agent = book.agent(gpus=2)
    framework = book.framework()
    framework.run(book.spec("t", gpus=1))
    refused = book.reserve("a", "ml", book.request(gpus=2))
    assert refused.reason is ErrorReason.RESOURCES_IN_USE and "task" in refused.hint
    assert not book.registry.agents["a"].reservations
    agent.update("t", TaskState.FINISHED)
    assert not isinstance(book.reserve("a", "ml", book.request(gpus=2)), ErrorDetail)


REFUSED = {
    "more than there is": ("ml", {"gpus": 3}, ErrorReason.INSUFFICIENT_RESOURCES),
    "nothing": ("ml", {}, ErrorReason.INVALID_ARGUMENT),
    "to everybody": ("*", {"gpus": 1}, ErrorReason.INVALID_ARGUMENT),
    "to a//b": ("a//b", {"gpus": 1}, ErrorReason.INVALID_ARGUMENT),
    "to nobody": ("", {"gpus": 1}, ErrorReason.INVALID_ARGUMENT),
    "less than nothing": ("ml", {"cpus": -1}, ErrorReason.INVALID_ARGUMENT),
    "fewer GPUs than none": ("ml", {"cpus": 1, "gpus": -1}, ErrorReason.INVALID_ARGUMENT),
    "ports that are not there": ("ml", {"ports": "80"}, ErrorReason.INSUFFICIENT_RESOURCES),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_refusal_changes_nothing(book: Any, what: str) -> None:
    role, amounts, reason = REFUSED[what]
    book.agent(gpus=2)
    framework = book.framework()
    before = dict(framework.offers)
    refused = book.reserve("a", role, book.request(**amounts))
    assert refused.reason is reason and refused.message
    assert framework.offers == before and not book.registry.agents["a"].reservations


def test_an_agent_that_is_not_there_is_said_to_be_so(book: Any) -> None:
    refused = book.reserve("nobody", "ml", book.request(gpus=1))
    assert refused.reason is ErrorReason.NOT_FOUND


def test_a_request_that_is_repeated_gets_the_first_answer(book: Any) -> None:
    book.agent(gpus=4)
    first = book.reserve("a", "ml", book.request(gpus=2), request_id="r1")
    assert book.reserve("a", "ml", book.request(gpus=2), request_id="r1") == first
    book.restart()
    assert book.reserve("a", "ml", book.request(gpus=2), request_id="r1") == first
    assert sum(len(part.resources.devices) for part in book.registry.agents["a"].reservations) == 2
    confused = book.unreserve("a", "ml", book.request(gpus=2), request_id="r1")
    assert confused.field == "request_id"


def test_a_refused_request_may_be_repeated_with_success(book: Any) -> None:
    book.agent(connect=False)
    assert isinstance(book.reserve("a", "ml", book.request(cpus=1), request_id="r1"), ErrorDetail)
    book.agents["a"].connect()
    assert not isinstance(book.reserve("a", "ml", book.request(cpus=1), request_id="r1"), ErrorDetail)


def test_reservations_are_partial_and_can_be_taken_back_in_parts(book: Any) -> None:
    agent = book.agent(cpus=8, gpus=4)
    book.reserve("a", "ml", book.request(cpus=4, gpus=4))
    answer = book.unreserve("a", "ml", book.request(gpus=1))
    assert len(answer.reservation.resources.devices) == 1
    (kept,) = book.ask(op.ListReservationsRequest()).reservations
    assert len(kept.resources.devices) == 3 and kept.resources.scalars == {"cpus": 4000}
    book.unreserve("a", "ml", book.request(cpus=4, gpus=3))
    assert book.ask(op.ListReservationsRequest()).reservations == ()
    assert agent.view.free == book.resources(8, 16, agent.uuids)


def test_labels_are_part_of_the_identity(book: Any) -> None:
    book.agent(cpus=8)
    book.reserve("a", "ml", book.request(cpus=2), team="x")
    book.reserve("a", "ml", book.request(cpus=2), team="y")
    assert len(book.registry.agents["a"].reservations) == 2
    assert book.unreserve("a", "ml", book.request(cpus=3), team="x").reason is ErrorReason.INSUFFICIENT_RESOURCES
    answer = book.unreserve("a", "ml", book.request(cpus=2), team="y")
    assert answer.reservation.stack == book.dynamic("ml", "operator", team="y")


def test_what_is_unreserved_must_not_be_held_by_a_task(book: Any) -> None:
    agent = book.agent(gpus=1)
    book.reserve("a", "ml", book.request(gpus=1))
    framework = book.framework(roles=["ml"])
    framework.run(book.spec("t", gpus=1))
    assert book.unreserve("a", "ml", book.request(gpus=1)).reason is ErrorReason.RESOURCES_IN_USE
    agent.update("t", TaskState.FINISHED)
    assert not isinstance(book.unreserve("a", "ml", book.request(gpus=1)), ErrorDetail)


def test_what_was_offered_to_the_role_is_rescinded_when_it_is_unreserved(book: Any) -> None:
    book.agent(gpus=1)
    book.reserve("a", "ml", book.request(cpus=8, mem=16, gpus=1))
    framework = book.framework(roles=["ml"])
    other = book.framework("g")
    assert framework.offers and not other.offers
    framework.suppress()
    book.unreserve("a", "ml", book.request(cpus=8, mem=16, gpus=1))
    assert not framework.offers and other.offered().devices == {"a-gpu0"}


def test_static_reservations_are_the_agents_own(book: Any) -> None:
    book.agent(parts=[ReservedResources(book.static("ml"), book.resources(4))])
    refused = book.unreserve("a", "ml", book.request(cpus=1))
    assert refused.reason is ErrorReason.NOT_FOUND and "static" in refused.hint
    nothing = book.unreserve("a", "other", book.request(cpus=1))
    assert nothing.reason is ErrorReason.NOT_FOUND and "reservation ls" in nothing.hint


def test_reservations_count_for_nobody_until_they_are_used(book: Any) -> None:
    """RSV-16."""
    book.agent(gpus=2)
    book.reserve("a", "ml", book.request(gpus=2))
    role = next(role for role in book.ask(op.ListRolesRequest()).roles if role.role == "ml")
    assert role.share_millionths == 0 and role.reserved.devices == {"a-gpu0", "a-gpu1"}


# --- flags ---


def test_a_flag_is_set_kept_and_unset(new_book: Any) -> None:
    book = new_book(offer_timeout="20s")
    assert book.ask(op.GetFlagRequest("offer-timeout")).flag == op.FlagView("offer-timeout", "20s", "command line")
    assert book.set_flag("offer_timeout", "500ms").flag == op.FlagView("offer-timeout", "500ms", "run time")
    book.restart()
    assert book.ask(op.GetFlagRequest("offer-timeout")).flag.value == "500ms"
    book.agent()
    framework = book.framework()
    assert framework.offer.expires_in_ms == 500
    assert book.unset_flag("--offer-timeout").flag == op.FlagView("offer-timeout", "20s", "command line")
    assert book.registry.flags == {}


def test_flags_of_the_start_need_a_restart(book: Any) -> None:
    refused = book.set_flag("listen", "0.0.0.0:1")
    assert refused.reason is ErrorReason.NEEDS_RESTART and "needs a restart" in refused.message
    assert isinstance(book.unset_flag("work-dir"), ErrorDetail)


def test_an_unknown_flag_is_answered_with_near_ones(book: Any) -> None:
    refused = book.set_flag("filter-gpu-resorces", "true")
    assert refused.reason is ErrorReason.NOT_FOUND and "filter-gpu-resources" in refused.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("filter-gpu-resources", "perhaps"),
        ("gpu-headroom", "gpus:1"),
        ("gpu-headroom", "101%"),
        ("gpu-headroom", ""),
        ("offer-timeout", "soon"),
        ("offer-timeout", "0s"),
        ("offer-timeout", "-1s"),
        ("offer-timeout", "1e3s"),
        ("allocation-interval", "1ms"),
        ("max-agent-ping-timeouts", "0"),
        ("max-agent-ping-timeouts", "1.5"),
        ("max-agent-ping-timeouts", "9" * 5000),
        ("fair-sharing-excluded-resource-names", "a b"),
    ],
)
def test_values_that_cannot_be_change_nothing(book: Any, name: str, value: str) -> None:
    before = book.ask(op.GetFlagRequest(name)).flag
    refused = book.set_flag(name, value)
    assert refused.reason is ErrorReason.INVALID_ARGUMENT and name in refused.message
    assert book.ask(op.GetFlagRequest(name)).flag == before and not book.registry.flags


def test_a_shorter_interval_counts_from_now(book: Any) -> None:
    book.set_flag("allocation-interval", "1h")
    book.set_flag("allocation-interval", "100ms")
    before = book.machine.cluster.counters.cycles
    book.agent()
    book.framework()
    book.advance(1000)
    assert book.machine.cluster.deadlines.next_ms() <= book.now.monotonic_ms + 100
    assert book.machine.cluster.counters.cycles >= before


def test_agents_hear_of_other_ping_intervals(book: Any) -> None:
    from bursar.core.messages.agent import Registered

    agent = book.agent()
    agent.heard(Registered)
    book.set_flag("agent-ping-timeout", "1s")
    (told,) = agent.heard(Registered)
    assert told.ping_interval_ms == 1000


def test_excluded_kinds_do_not_count_in_shares(book: Any) -> None:
    book.agent(gpus=1, cpus=8)
    framework = book.framework(roles=["x"])
    framework.run(book.spec("t", cpus=2, gpus=1))
    share = {role.role: role.share_millionths for role in book.ask(op.ListRolesRequest()).roles}["x"]
    assert share == 1_000_000
    book.set_flag("fair-sharing-excluded-resource-names", "gpus")
    share = {role.role: role.share_millionths for role in book.ask(op.ListRolesRequest()).roles}["x"]
    assert share == 250_000


# --- lists and names ---


def test_every_list_comes_in_pages_without_loss(book: Any) -> None:
    """Ids in which one is the beginning of another sort differently with and without a separator."""
    for name in ["a", "a-b", "a.c", "b"]:
        book.agent(name, gpus=2)
        book.reserve(name, "ml", book.request(cpus=1))
    for name in ["f", "f-1", "f.2"]:
        framework = book.framework(name, demand=Demand(1, (book.shape(3, cpus=1),)))
        for index, offer in enumerate(list(framework.offers.values())):
            framework.run(book.spec(f"t{index}"), book.spec(f"t{index}-x"), offer=offer, refuse_ms=0)
    for method, field in [
        ("Agents", "agents"),
        ("Frameworks", "frameworks"),
        ("Tasks", "tasks"),
        ("Devices", "devices"),
        ("Reservations", "reservations"),
        ("Roles", "roles"),
        ("Offers", "offers"),
        ("Flags", "flags"),
    ]:
        request = getattr(op, f"List{method}Request")
        everything = getattr(book.ask(request()), field)
        assert len(everything) >= 1
        found: list[Any] = []
        token = ""
        while True:
            answer = book.ask(request(page=book.page(2, token)))
            part = getattr(answer, field)
            assert 1 <= len(part) <= 2
            found += part
            token = answer.next_page_token
            if not token:
                break
        assert found == list(everything), method


def test_names_may_be_prefixes_that_are_unique(book: Any) -> None:
    book.agent("abc", hostname="one.host")
    book.agent("abd", hostname="two.host")
    ask = lambda name: book.ask(op.GetAgentRequest(name))
    assert ask("abc").agent.agent_id == ask("two.host").agent.agent_id[:2] + "c"
    ambiguous = ask("ab")
    assert ambiguous.reason is ErrorReason.AMBIGUOUS and "abc" in ambiguous.message and "abd" in ambiguous.message
    assert ask("x").reason is ErrorReason.NOT_FOUND
    assert ask("").reason is ErrorReason.NOT_FOUND


def test_tasks_are_named_with_or_without_their_framework(book: Any) -> None:
    book.agent(cpus=8)
    for name in ("fa", "fb"):
        framework = book.framework(name, demand=Demand(1, (book.shape(2, cpus=1),)))
        framework.run(book.spec("t1"), book.spec(f"only-{name}"))
    ask = lambda name: book.ask(op.GetTaskRequest(name))
    assert ask("fa/t1").task.framework_id == "fa"
    assert ask("only-fb").task.framework_id == "fb"
    assert ask("fb/only").task.task_id == "only-fb"
    assert ask("t1").reason is ErrorReason.AMBIGUOUS
    assert ask("f/t1").reason is ErrorReason.AMBIGUOUS
    assert ask("fa/t2").reason is ErrorReason.NOT_FOUND


def test_tasks_of_one_framework_and_those_that_ended(book: Any) -> None:
    agent = book.agent(cpus=8)
    framework = book.framework("f")
    framework.run(book.spec("t1"), book.spec("t2"))
    agent.update("t1", TaskState.FINISHED)
    names = lambda **how: [task.task_id for task in book.ask(op.ListTasksRequest(**how)).tasks]
    assert names() == ["t2"] and names(all=True) == ["t1", "t2"]
    assert names(framework="f", all=True) == ["t1", "t2"]
    assert book.ask(op.ListTasksRequest(framework="x")).reason is ErrorReason.NOT_FOUND


def test_devices_say_who_has_them(book: Any) -> None:
    book.agent(devices=book.devices("a", 4, unhealthy=[3]), gpus=4)
    book.reserve("a", "ml", ResourceRequest(devices=("a-gpu2",)))
    framework = book.framework(demand=Demand(1, (book.shape(2, cpus=1, gpus=1),)))
    framework.run(book.spec("t", gpus=1), refuse_ms=HOUR_MS)
    uses = {
        view.device.uuid: (view.use, view.reserved_to, view.task_id)
        for view in book.ask(op.ListDevicesRequest()).devices
    }
    assert uses["a-gpu0"] == ("allocated", "", "t")
    assert uses["a-gpu2"] == ("free", "ml", "")
    assert uses["a-gpu3"] == ("withheld", "", "")


def test_the_master_says_what_there_is(book: Any) -> None:
    book.agent()
    book.framework()
    master = book.ask(op.GetMasterRequest()).master
    assert (master.cluster_id, master.term, master.agents, master.frameworks, master.offers) == (
        book.CLUSTER,
        1,
        1,
        1,
        1,
    )


# --- why not? ---


def test_reasons_are_those_of_the_code_that_decides(book: Any) -> None:
    book.agent("gone").disconnect()
    book.agent("gpus", gpus=1)
    book.agent("small", cpus=1)
    book.agent("busy", cpus=8)
    book.agent("kept", cpus=8)
    user = book.framework("user", roles=["user"])
    offer = next(offer for offer in user.offers.values() if offer.agent_id == "busy")
    user.run(book.spec("t", cpus=8), offer=offer)
    user.disconnect()
    book.reserve("kept", "others", book.request(cpus=8))
    framework = book.framework("f", gpu=False, demand=Demand(1, (book.shape(cpus=4),)))
    answer = book.ask(op.ExplainFrameworkRequest("f"))
    reasons = {refusal.reason: refusal for refusal in answer.refusals}
    assert {reason: refusal.example_agent_id for reason, refusal in reasons.items()} == {
        RefusalReason.AGENT_INACTIVE: "gone",
        RefusalReason.HIDDEN_BY_RULE: "gpus",
        RefusalReason.EXCEEDS_AGENT: "small",
        RefusalReason.NOT_FREE: "busy",
        RefusalReason.RESERVED_FOR_OTHERS: "kept",
    }
    assert [refusal.reason for refusal in answer.refusals] == sorted(reasons), "nearest to success last"
    assert all(refusal.message and refusal.hint for refusal in answer.refusals)
    assert answer.agents == 5 and not framework.offers


def test_reasons_of_those_who_want_nothing_or_declined(book: Any) -> None:
    book.agent()
    framework = book.framework(roles=["x", "y"])
    framework.decline(framework.offer, refuse_ms=HOUR_MS)
    framework.decline(framework.offer, refuse_ms=HOUR_MS)
    framework.suppress("y")
    answer = book.ask(op.ExplainFrameworkRequest("f"))
    assert {(refusal.role, refusal.reason) for refusal in answer.refusals} == {
        ("x", RefusalReason.DECLINED),
        ("y", RefusalReason.SUPPRESSED),
    }


def test_everything_that_changes_is_audited(book: Any) -> None:
    book.agent()
    book.reserve("a", "ml", book.request(cpus=1))
    book.set_flag("offer-timeout", "1m")
    book.reserve("a", "*", book.request(cpus=1))
    audited = [(r.principal, r.action) for r in book.records if type(r).__name__ == "Audited"]
    assert audited == [("operator", "ReserveResources"), ("operator", "SetFlag")]


def test_ports_alone_can_be_reserved(book: Any) -> None:
    book.agent(ports="1-2")
    assert book.reserve("a", "x/y", book.request(ports="1")).reservation.resources == book.resources(ports="1")
    assert "x/y" not in book.machine.cluster.shares.roles(), "what is in no share keeps no place in the tree"
