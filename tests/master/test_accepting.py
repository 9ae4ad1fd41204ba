"""Dialogues: what a framework may do with its offers (OFF-3, OFF-4, mesos.md §2.1, design.md §7)."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import ErrorReason
from bursar.core.ids import TaskId
from bursar.core.lives import RestartMode, RestartPolicy
from bursar.core.messages.agent import DesiredState, DevicesChanged
from bursar.core.messages.framework import Rescind
from bursar.core.messages.offers import Accept, CallResult, Launch, Operation, OperationResult, Reserve, Unreserve
from bursar.core.resources import (
    ReservationType,
    ReservedResources,
    ResourceRequest,
    Resources,
    holding_total,
    to_holding,
)
from bursar.core.task_groups import TaskGroup
from bursar.core.tasks import TaskState
from bursar.master.ledger import TaskKey
from bursar.master.records import MAX_CALLS_PER_FRAMEWORK, CallDone, Durable, FrameworkRecorded, FrameworkRemoved


def total(offer: Any) -> Resources:
    return holding_total(to_holding(offer.resources))


def nothing_happened(book: Any) -> None:
    assert not book.machine.cluster.tasks
    assert not any(agent.heard(DesiredState)[1:] for agent in book.agents.values())


# --- an accept that is carried out ---


def test_an_accept_is_recorded_answered_and_told_to_the_agent(book: Any) -> None:
    agent = book.agent(gpus=2)
    framework = book.framework()
    agent.heard(DesiredState)

    result = framework.accept(framework.offer, book.launch(book.spec("t", cpus=2, mem=1, gpus=1)), call_id="c")

    assert result == CallResult("c", operations=(OperationResult("op"),))
    (state,) = agent.heard(DesiredState)
    (task,) = state.launch
    assert task.spec.task_id == "t"
    assert task.resources == (ReservedResources((), book.resources(2, 1, ["a-gpu0"])),)
    assert task.launched_at_ms == book.now.wall_ms
    # The delta builds on what the agent was told before.
    assert state.base is not None and state.generation.sequence == state.base.sequence + 1
    assert agent.view.allocated == book.resources(2, 1, ["a-gpu0"])


def test_records_come_before_words(book: Any) -> None:
    book.agent()
    framework = book.framework()
    before = len(book.records)
    framework.run(book.spec("t"))
    assert [type(record).__name__ for record in book.records[before:]] == ["TaskRecorded", "CallDone"]


def test_a_call_that_is_repeated_gets_the_first_answer_and_happens_once(book: Any) -> None:
    book.agent()
    framework = book.framework()
    offer = framework.offer
    first = framework.accept(offer, book.launch(book.spec("t")), call_id="c")
    again = framework.accept([offer.offer_id], book.launch(book.spec("t")), call_id="c")
    assert again == first and again.error is None
    assert len(book.machine.cluster.tasks) == 1


def test_calls_and_operations_can_be_asked_for_after_a_restart(book: Any) -> None:
    book.agent()
    framework = book.framework()
    done = framework.accept(framework.offer, book.launch(book.spec("t"), operation_id="o1"), call_id="c")
    book.restart()
    framework.connect()
    assert framework.lookup("c", "never", operations=["o1", "o2"]) == (
        done,
        CallResult("never", unknown=True),
        done,
        CallResult("", unknown=True, operations=(OperationResult("o2"),)),
    )


def test_only_the_newest_calls_of_each_framework_are_remembered(book: Any) -> None:
    durable = Durable()
    durable.calls["g", "old"] = CallResult("old")
    durable.apply(FrameworkRecorded(book.framework().info, 0))
    for index in range(MAX_CALLS_PER_FRAMEWORK + 2):
        durable.apply(CallDone("f", CallResult(str(index))))
    assert [call.call_id for call in durable.calls_of("f")][:2] == ["2", "3"]
    assert len(durable.calls) == MAX_CALLS_PER_FRAMEWORK + 1
    assert durable.calls_of("g") == [CallResult("old")]
    durable.apply(FrameworkRemoved("f"))
    assert set(durable.calls) == {("g", "old")}


def test_a_refused_call_never_happened(book: Any) -> None:
    book.agent()
    framework = book.framework()
    framework.accept(framework.offer, book.launch(book.spec("t", cpus=100)), call_id="c")
    assert framework.lookup("c") == (CallResult("c", unknown=True),)


def test_lookups_find_only_ones_own_calls(book: Any) -> None:
    book.agent()
    framework, other = book.framework("f"), book.framework("g")
    framework.accept(framework.offer, book.launch(book.spec("t"), operation_id="o"), call_id="c")
    assert all(result.unknown for result in other.lookup("c", operations=["o"]))


def test_one_accept_spans_offers_of_several_agents(book: Any) -> None:
    book.agent("a")
    book.agent("b")
    framework = book.framework()
    result = framework.accept(
        framework.offers.values(),
        book.launch(book.spec("t1", cpus=8, agent_id="a"), book.spec("t2", cpus=8, agent_id="b")),
    )
    assert result.error is None
    assert {str(key.task_id): task.agent_id for key, task in book.machine.cluster.tasks.items()} == {
        "t1": "a",
        "t2": "b",
    }


def test_with_several_agents_a_task_must_name_one(book: Any) -> None:
    book.agent("a")
    book.agent("b")
    framework = book.framework()
    result = framework.accept(framework.offers.values(), book.launch(book.spec("t")))
    assert result.error.reason is ErrorReason.TASK_INVALID and result.error.field.endswith("agent_id")


def test_several_offers_of_one_agent_are_added(book: Any) -> None:
    book.agent(cpus=4)
    framework = book.framework()
    framework.run(book.spec("t1", cpus=2))
    book.advance(5000)
    small = framework.offer
    book.agents["a"].update("t1", TaskState.FINISHED)
    assert len(framework.offers) == 2
    result = framework.accept(framework.offers.values(), book.launch(book.spec("t2", cpus=4)))
    assert result.error is None and small.offer_id not in framework.offers


def test_all_tasks_of_a_launch_share_what_the_offers_have(book: Any) -> None:
    book.agent(cpus=4, gpus=2)
    framework = book.framework()
    result = framework.accept(
        framework.offer, book.launch(book.spec("t1", cpus=2, gpus=1), book.spec("t2", cpus=2, gpus=1))
    )
    assert result.error is None
    held = [task.assigned.device_uuids for task in book.machine.cluster.tasks.values()]
    assert sorted(held) == [("a-gpu0",), ("a-gpu1",)]


def test_devices_can_be_named(book: Any) -> None:
    book.agent(gpus=4)
    framework = book.framework()
    framework.run(book.spec("t", devices=["a-gpu2", "a-gpu1"]))
    (task,) = book.machine.cluster.tasks.values()
    assert task.assigned.device_uuids == ("a-gpu1", "a-gpu2")


def test_the_master_picks_the_best_connected_devices(book: Any) -> None:
    book.agent(devices=book.linked("a", [(0, 2), (1, 3)]))
    framework = book.framework()
    framework.run(book.spec("t1", gpus=2))
    (task,) = book.machine.cluster.tasks.values()
    assert task.assigned.device_uuids == ("a-gpu0", "a-gpu2")


def test_an_accept_of_nothing_is_a_decline(book: Any) -> None:
    book.agent()
    framework, other = book.framework("f"), book.framework("g")
    owner, onlooker = (framework, other) if framework.offers else (other, framework)
    assert owner.accept(owner.offer).error is None
    assert not owner.offers and onlooker.agents == {"a"}


# --- offers that are not valid ---


@pytest.fixture
def other_offer(book: Any) -> Any:
    """An offer of another framework."""
    book.agent("theirs")
    framework = book.framework("other", roles=["other"])
    framework.suppress()
    return framework.offer


@pytest.mark.parametrize("how", ["expired", "rescinded", "used", "declined", "foreign", "invented", "twice", "none"])
def test_offers_that_are_not_valid_refuse_the_call_for_the_one_who_made_it(
    book: Any, other_offer: Any, how: str
) -> None:
    agent = book.agent(cpus=4)
    framework = book.framework("f", roles=["f"])
    book.agent("b")
    offers: list[Any] = list(framework.offers.values())
    offer = next(offer for offer in offers if offer.agent_id == "a")
    good = next(offer for offer in offers if offer.agent_id == "b")
    named: list[Any] = [good, offer]
    if how == "expired":
        book.advance(30_000)
        named = [offer]
    elif how == "rescinded":
        agent.disconnect()
    elif how == "used":
        framework.run(book.spec("t0"), offer=offer)
    elif how == "declined":
        framework.decline(offer, refuse_ms=60_000)
    elif how == "foreign":
        named = [good, other_offer]
    elif how == "invented":
        named = [good, "1-O999"]
    elif how == "twice":
        named = [good, good]
    elif how == "none":
        named = []
    tasks = set(book.machine.cluster.tasks)

    result = framework.accept(named, book.launch(book.spec("t", agent_id="b")))

    assert result.error.reason is ErrorReason.INVALID_OFFERS and result.error.field == "offer_ids"
    assert result.error.hint
    assert [operation.error.reason for operation in result.operations] == [ErrorReason.INVALID_OFFERS]
    assert set(book.machine.cluster.tasks) == tasks
    # No effect on anyone else.
    assert other_offer.offer_id in book.frameworks["other"].offers or how == "expired"
    assert not book.frameworks["other"].heard(Rescind) or how == "expired"


def test_the_valid_offers_of_a_refused_call_come_back_damped(book: Any) -> None:
    book.agent()
    framework = book.framework()
    offer = framework.offer
    result = framework.accept([offer, "1-O999"], book.launch(book.spec("t")), refuse_ms=0)
    assert result.error
    assert not framework.offers, "the same is not offered again at once"
    book.advance(999)
    assert not framework.offers
    book.advance(1)
    assert total(framework.offer) == total(offer)


def test_offers_of_several_roles_do_not_mix(book: Any) -> None:
    book.agent("a")
    book.agent("b")
    framework = book.framework(roles=["x", "y"])
    assert {offer.role for offer in framework.offers.values()} == {"x", "y"}
    result = framework.accept(framework.offers.values(), book.launch(book.spec("t", agent_id="a")))
    assert result.error.reason is ErrorReason.INVALID_OFFERS
    nothing_happened(book)


def test_an_accept_without_a_call_id_is_refused(book: Any) -> None:
    book.agent()
    framework = book.framework()
    framework.call(Accept("", (framework.offers.popitem()[0],), (book.launch(book.spec("t")),)))
    (result,) = framework.heard(CallResult)
    assert result.error.field == "call_id"
    nothing_happened(book)


# --- operations that are not valid ---


INVALID_TASKS = {
    "too many CPUs": ({"cpus": 9}, ErrorReason.TASK_INVALID, "cpus: 9 wanted, 7 there"),
    "too much memory": ({"mem": 17}, ErrorReason.TASK_INVALID, "mem: 17GiB wanted, 16GiB there"),
    "too many GPUs": ({"gpus": 5}, ErrorReason.TASK_INVALID, "gpus: 5 wanted, 4 there"),
    "a device that is not there": ({"devices": ["a-gpu9"]}, ErrorReason.TASK_INVALID, "a-gpu9"),
    "a device named twice": ({"devices": ["a-gpu0", "a-gpu0"]}, ErrorReason.TASK_INVALID, "twice"),
    "fewer devices than GPUs": ({"gpus": 2, "devices": ["a-gpu0"]}, ErrorReason.TASK_INVALID, "2 GPUs"),
    "ports that are not there": ({"ports": "80"}, ErrorReason.TASK_INVALID, "[80]"),
    "another agent": ({"agent_id": "b"}, ErrorReason.TASK_INVALID, "names agent b"),
    "negative CPUs": ({"resources": ResourceRequest({"cpus": -1})}, ErrorReason.TASK_INVALID, "negative"),
    "negative GPUs": ({"resources": ResourceRequest({"cpus": 1}, gpus=-1)}, ErrorReason.TASK_INVALID, "negative"),
    "fractional GPUs": ({"resources": ResourceRequest({"gpus": 500})}, ErrorReason.TASK_INVALID, "whole"),
    "no resources": ({"resources": ResourceRequest()}, ErrorReason.TASK_INVALID, "some resources"),
    "amounts of zero": ({"resources": ResourceRequest({"cpus": 0})}, ErrorReason.TASK_INVALID, "some resources"),
    "no command": ({"command": ()}, ErrorReason.TASK_INVALID, "command"),
    "an image": ({"image": "busybox"}, ErrorReason.TASK_INVALID, "plain processes"),
}


@pytest.mark.parametrize("what", INVALID_TASKS)
def test_a_task_that_cannot_be_refuses_the_whole_call(book: Any, what: str) -> None:
    book.agent(gpus=4)
    framework = book.framework()
    other = book.framework("g")
    fields, reason, words = INVALID_TASKS[what]
    result = framework.accept(
        framework.offer,
        book.launch(book.spec("good"), operation_id="good"),
        book.launch(book.spec("bad", **fields), operation_id="bad"),
        book.launch(book.spec("other"), operation_id="other"),
    )
    assert result.error.reason is reason
    assert words in result.error.message
    assert result.error.field.startswith("operations[1].launch.tasks[0]")
    assert [(o.operation_id, o.error.reason) for o in result.operations] == [
        ("good", ErrorReason.CALL_REFUSED),
        ("bad", reason),
        ("other", ErrorReason.CALL_REFUSED),
    ]
    nothing_happened(book)
    assert other.agents == {"a"}, "others are offered it at once"


@pytest.mark.parametrize("task_id", ["", ".", "..", "a/b", "a\\b", "a\nb", "x" * 256])
def test_task_ids_have_a_form(book: Any, task_id: str) -> None:
    book.agent()
    framework = book.framework()
    result = framework.accept(framework.offer, book.launch(book.spec(task_id)))
    assert result.error.reason is ErrorReason.TASK_INVALID and result.error.field.endswith("task_id")


@pytest.mark.parametrize("where", ["one launch", "one call", "an earlier call", "an ended task"])
def test_a_task_id_is_used_once(book: Any, where: str) -> None:
    agent = book.agent()
    framework = book.framework()
    operations = [book.launch(book.spec("t")), book.launch(book.spec("t"))]
    if where == "one launch":
        operations = [book.launch(book.spec("t"), book.spec("t"))]
    elif where in ("an earlier call", "an ended task"):
        framework.run(book.spec("t"))
        if where == "an ended task":
            framework.acknowledge(agent.update("t", TaskState.FINISHED))
        book.advance(5000)
        operations = [book.launch(book.spec("t"))]
    count = len(book.machine.cluster.tasks)
    result = framework.accept(framework.offers.values(), *operations)
    assert result.error.reason is ErrorReason.TASK_ID_IN_USE
    assert len(book.machine.cluster.tasks) == count


def test_other_frameworks_have_ids_of_their_own(book: Any) -> None:
    book.agent()
    framework = book.framework("f")
    framework.run(book.spec("t"))
    other = book.framework("g")
    other.run(book.spec("t"))
    assert len(book.machine.cluster.tasks) == 2


def test_a_task_without_an_image_needs_a_default_image_on_docker(book: Any) -> None:
    book.agent(runtime="docker", runs_without_image=False)
    framework = book.framework()
    result = framework.accept(framework.offer, book.launch(book.spec("t")))
    assert "no default image" in result.error.message and "--default-image" in result.error.hint
    book.advance(5000)
    framework.run(book.spec("t2", image="busybox"))


def test_an_operation_of_a_newer_version_is_refused_by_name(book: Any) -> None:
    book.agent()
    framework = book.framework()
    result = framework.accept(framework.offer, book.launch(book.spec("t")), Operation("new", None))
    assert [operation.error.reason for operation in result.operations] == [
        ErrorReason.CALL_REFUSED,
        ErrorReason.UNSUPPORTED,
    ]
    nothing_happened(book)


def test_partial_does_what_is_valid_and_refuses_the_rest(book: Any) -> None:
    book.agent()
    framework = book.framework()
    result = framework.accept(
        framework.offer,
        book.launch(book.spec("t1"), operation_id="o1"),
        book.launch(book.spec("t2", cpus=99), operation_id="o2"),
        book.launch(book.spec("t3"), operation_id="o3"),
        partial=True,
    )
    assert result.error is None
    assert [(o.operation_id, o.error is None) for o in result.operations] == [
        ("o1", True),
        ("o2", False),
        ("o3", True),
    ]
    assert {key.task_id for key in book.machine.cluster.tasks} == {"t1", "t3"}


# --- reserve and unreserve on the way ---


def test_what_is_reserved_can_be_used_by_a_later_operation_of_the_call(book: Any) -> None:
    book.agent(gpus=2)
    framework = book.framework(roles=["ml"], principal="alice")
    result = framework.accept(
        framework.offer,
        Operation("reserve", Reserve("a", book.request(cpus=2, gpus=1), "ml", {"team": "vision"})),
        book.launch(book.spec("t", cpus=3, gpus=1)),
    )
    assert result.error is None, result.error
    (task,) = book.machine.cluster.tasks.values()
    stack = book.dynamic("ml", "alice", team="vision")
    assert dict(to_holding(task.assigned.resources)) == {
        (): book.resources(1),
        stack: book.resources(2, devices=["a-gpu0"]),
    }
    assert book.registry.agents["a"].reservations == (ReservedResources(stack, book.resources(2, devices=["a-gpu0"])),)


def test_what_was_reserved_and_not_used_comes_back_at_once(book: Any) -> None:
    """mesos.md §2.1: what speculative operations created is not refused by being left over."""
    book.agent()
    framework = book.framework(roles=["ml"])
    framework.accept(framework.offer, Operation("r", Reserve("a", book.request(cpus=2), "ml")))
    (offer,) = framework.offers.values()
    assert dict(to_holding(offer.resources))[book.dynamic("ml")] == book.resources(2)


def test_a_reservation_survives_restarts_and_can_be_undone_in_parts(book: Any) -> None:
    agent = book.agent()
    framework = book.framework(roles=["ml"])
    framework.accept(framework.offer, Operation("r", Reserve("a", book.request(cpus=4), "ml")))
    book.restart()
    agent.connect()
    framework.connect()
    stack = book.dynamic("ml")
    assert dict(to_holding(framework.offer.resources))[stack] == book.resources(4)
    result = framework.accept(
        framework.offer, Operation("u", Unreserve("a", ReservedResources(stack, book.resources(1))))
    )
    assert result.error is None, result.error
    assert {part.stack: part.resources for part in agent.view.buckets} == {
        (): book.resources(5, 16),
        stack: book.resources(3),
    }


INVALID_RESERVES = {
    "another role": (lambda book: Reserve("a", book.request(cpus=1), "other"), ErrorReason.INVALID_ARGUMENT),
    "a child": (lambda book: Reserve("a", book.request(cpus=1), "ml/child"), ErrorReason.INVALID_ARGUMENT),
    "another agent": (lambda book: Reserve("b", book.request(cpus=1), "ml"), ErrorReason.INVALID_ARGUMENT),
    "too much": (lambda book: Reserve("a", book.request(cpus=9), "ml"), ErrorReason.INSUFFICIENT_RESOURCES),
    "nothing": (lambda book: Reserve("a", ResourceRequest(), "ml"), ErrorReason.INVALID_ARGUMENT),
    "less than nothing": (
        lambda book: Reserve("a", ResourceRequest({"cpus": -1, "mem": 1}), "ml"),
        ErrorReason.INVALID_ARGUMENT,
    ),
    "a fraction of a GPU": (
        lambda book: Reserve("a", ResourceRequest({"gpus": 500}), "ml"),
        ErrorReason.INVALID_ARGUMENT,
    ),
    "unreserve: unreserved": (
        lambda book: Unreserve("a", ReservedResources((), book.resources(1))),
        ErrorReason.INVALID_ARGUMENT,
    ),
    "unreserve: static": (
        lambda book: Unreserve("a", ReservedResources(book.static("ml"), book.resources(1))),
        ErrorReason.INVALID_ARGUMENT,
    ),
    "unreserve: not there": (
        lambda book: Unreserve("a", ReservedResources(book.dynamic("ml"), book.resources(1))),
        ErrorReason.INSUFFICIENT_RESOURCES,
    ),
    "unreserve: nothing": (
        lambda book: Unreserve("a", ReservedResources(book.dynamic("ml"), Resources())),
        ErrorReason.INSUFFICIENT_RESOURCES,
    ),
}


@pytest.mark.parametrize("what", INVALID_RESERVES)
def test_reserves_that_cannot_be_change_nothing(book: Any, what: str) -> None:
    make, reason = INVALID_RESERVES[what]
    agent = book.agent(
        parts=[
            ReservedResources((), book.resources(8, 16)),
            ReservedResources(book.static("ml"), book.resources(4)),
        ]
    )
    framework = book.framework(roles=["ml"])
    result = framework.accept(framework.offer, Operation("o", make(book)))
    assert result.error.reason is reason, result.error
    assert agent.view.total == book.resources(12, 16)
    assert {part.stack for part in agent.view.buckets} == {(), book.static("ml")}


def test_nobody_can_reserve_to_the_default_role(book: Any) -> None:
    book.agent()
    framework = book.framework()
    result = framework.accept(framework.offer, Operation("o", Reserve("a", book.request(cpus=1), "*")))
    assert "'*'" in result.error.message


def test_a_reservation_keeps_the_best_connected_devices(book: Any) -> None:
    book.agent(devices=book.linked("a", [(0, 3), (1, 2)]))
    framework = book.framework(roles=["ml"])
    framework.accept(framework.offer, Operation("o", Reserve("a", book.request(gpus=2), "ml")))
    (part,) = book.registry.agents["a"].reservations
    assert part.resources.devices == {"a-gpu0", "a-gpu3"}
    assert part.stack[-1].type is ReservationType.DYNAMIC


def test_reserved_resources_are_used_first(book: Any) -> None:
    book.agent(
        parts=[
            ReservedResources((), book.resources(8, 16)),
            ReservedResources(book.static("ml"), book.resources(4)),
        ]
    )
    framework = book.framework(roles=["ml"])
    framework.run(book.spec("t", cpus=5))
    (task,) = book.machine.cluster.tasks.values()
    assert dict(to_holding(task.assigned.resources)) == {
        (): book.resources(1),
        book.static("ml"): book.resources(4),
    }


def test_a_launch_holds_no_task_at_all(book: Any) -> None:
    book.agent()
    framework = book.framework()
    assert framework.accept(framework.offer, Operation("o", Launch(()))).error is None
    nothing_happened(book)


# --- task groups (TSK-4) ---


def member(book: Any, name: str, group: str = "g", task_ids: tuple[str, ...] = (), **more: Any) -> Any:
    return book.spec(name, task_group=TaskGroup(group, tuple(map(TaskId, task_ids))), **more)


def test_a_group_goes_to_its_agent_as_one_and_each_task_knows_all(book: Any) -> None:
    agent = book.agent(gpus=2)
    framework = book.framework()
    agent.heard(DesiredState)
    framework.run(member(book, "a", cpus=2, gpus=1), member(book, "b", cpus=1, gpus=1), book.spec("c"))
    (state,) = agent.heard(DesiredState)
    groups = [task.spec.task_group for task in state.launch]
    assert groups == [TaskGroup("g", (TaskId("a"), TaskId("b")))] * 2 + [None]
    assert [sorted(task.device_uuids) for task in state.launch] == [["a-gpu0"], ["a-gpu1"], []]
    # What a restarted master knows, it knows of groups, too.
    book.restart()
    assert book.machine.cluster.tasks[TaskKey(framework.info.framework_id, TaskId("a"))].assigned.spec.task_group


@pytest.mark.parametrize(
    ("tasks", "field", "words"),
    [
        ([("a", {}), ("b", {"cpus": 100})], "tasks[1].resources", "more than the offers have left"),
        ([("a", {"task_ids": ("a", "b")})], "tasks[0].task_group.task_ids", "'b' is not both"),
        ([("a", {"task_ids": ("a",)}), ("b", {})], "tasks[0].task_group.task_ids", "'b' is not both"),
        ([("a", {"task_ids": ("b",)}), ("b", {})], "tasks[0].task_group.task_ids", "not among the tasks of its own"),
        ([("a", {}), ("a", {})], "tasks[1].task_id", "'a' already"),
        ([("a", {"group": ""})], "tasks[0].task_group.name", "must not be empty"),
        (
            [("a", {}), ("b", {"restart": RestartPolicy(RestartMode.ALWAYS)})],
            "tasks[1].restart",
            "is not started again alone",
        ),
        ([("a", {"agent_id": "a"}), ("b", {"agent_id": "b"})], "tasks[1].agent_id", "share a network"),
    ],
)
def test_a_group_that_cannot_be(book: Any, tasks: list[tuple[str, dict[str, Any]]], field: str, words: str) -> None:
    book.agent("a")
    book.agent("b")
    framework = book.framework()
    named = (
        framework.offers.values()
        if any("agent_id" in more for _, more in tasks)
        else list(framework.offers.values())[:1]
    )
    result = framework.accept(list(named), book.launch(*(member(book, name, **more) for name, more in tasks)))
    assert result.error is not None and words in result.error.message
    assert result.error.field == f"operations[0].launch.{field}"
    nothing_happened(book)


def test_a_group_is_of_one_launch(book: Any) -> None:
    book.agent()
    framework = book.framework()
    result = framework.accept(
        framework.offer,
        book.launch(member(book, "a"), operation_id="1"),
        book.launch(member(book, "b"), operation_id="2"),
    )
    assert result.error is not None and "in two launches of this call" in result.error.message
    nothing_happened(book)


def test_an_older_agent_gets_no_group(book: Any) -> None:
    book.agent(capabilities=())
    framework = book.framework()
    result = framework.accept(framework.offer, book.launch(member(book, "a")))
    assert result.error is not None and "knows no task groups" in result.error.message


@pytest.mark.parametrize(("launched", "is_taken"), [(1, True), (2, False)])
def test_what_is_unreserved_pays_first_for_what_is_held_beyond_a_total_that_shrank(
    book: Any, launched: int, is_taken: bool
) -> None:
    """Of the two CPUs that are unreserved one is owed: a task of two is refused, and nothing breaks."""
    agent = book.agent(cpus=8)
    book.reserve("a", "ml", book.request(cpus=2))
    other = book.framework("other", roles=["eng"])
    other.accept(other.offer, book.launch(book.spec("big", cpus=6)))
    agent.say(DevicesChanged(agent.info.devices, (ReservedResources((), book.resources(7, 16)),)))
    assert agent.view.total.scalars["cpus"] == 7000
    framework = book.framework(roles=["ml"])
    (stack,) = [part.stack for part in agent.view.buckets if part.stack]
    unreserve = Operation("u", Unreserve("a", ReservedResources(stack, book.resources(2))))
    result = framework.accept(framework.offer, unreserve, book.launch(book.spec("t", cpus=launched)))
    assert (result.error is None) == is_taken, result.error
    book.machine.check()
    if is_taken:
        assert agent.view.allocated.scalars["cpus"] == 7000
