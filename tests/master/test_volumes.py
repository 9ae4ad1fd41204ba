"""Persistent volumes: made of reserved disk, offered alone to its role, kept until they are destroyed (VOL-2, VOL-4, RSV-13)."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from bursar.core.errors import ErrorReason
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.messages import operator as op
from bursar.core.messages.agent import DesiredState, DevicesChanged, Refused, VolumeOrders, VolumesHeld, VolumeTrouble
from bursar.core.messages.framework import REVOCABLE_RESOURCES
from bursar.core.messages.offers import CreateVolume, Demand, DestroyVolume, Operation, Reserve, Shape, Unreserve
from bursar.core.messages.operator import VolumeState
from bursar.core.resources import ReservedResources, ResourceRequest, Resources
from bursar.core.surroundings import Volume, VolumeKind, VolumeMode
from bursar.core.tasks import TaskState
from bursar.core.volumes import volume_device
from bursar.master.allocator.cycle import in_order
from bursar.master.frameworks import demand_problem

GIB = 2**30
DB = volume_device("ml", "db", 10 * GIB)
A = AgentId("a")


def disk(gib: int) -> ResourceRequest:
    return ResourceRequest({"disk": gib * GIB})


@pytest.fixture
def agent(book: Any) -> Any:
    """`a` has 100 GiB of disk, of which 40 are reserved to ml."""
    return with_disk(book)


def with_disk(book: Any, **more: Any) -> Any:
    parts = (ReservedResources((), Resources({"cpus": 8000, "mem": 16 * GIB, "disk": 100 * GIB})),)
    peer = book.agent(parts=parts, **more)
    book.reserve("a", "ml", disk(40), request_id="reserve")
    return peer


_ids = count(1)


def create(book: Any, volume_id: str = "db", gib: int = 10, role: str = "ml", **more: Any) -> Any:
    return book.ask(op.CreateVolumeRequest(f"c-{next(_ids)}", "a", role, volume_id, gib * GIB, **more))


def destroy(book: Any, volume_id: str = "db", role: str = "ml", **more: Any) -> Any:
    return book.ask(op.DestroyVolumeRequest(f"d-{next(_ids)}", "a", role, volume_id, **more))


def offers(framework: Any) -> list[Any]:
    return list(framework.offers.values())


def volumes(book: Any) -> dict[str, tuple[VolumeState, str]]:
    return {view.volume_id: (view.state, view.detail) for view in book.ask(op.ListVolumesRequest()).volumes}


def mounting(book: Any, task_id: str, *names: str, **more: Any) -> Any:
    mounts = tuple(Volume(VolumeKind.PERSISTENT, name, f"/data/{name}", VolumeMode.READ_WRITE) for name in names)
    return book.spec(task_id, volumes=mounts, **more)


def test_it_is_offered_to_its_role_alone_and_outlives_task_framework_agent_and_master(book: Any, agent: Any) -> None:
    response = create(book)
    assert response.volume.uuid == DB and response.volume.state is VolumeState.FREE
    (order,) = agent.heard(VolumeOrders)
    assert order.make == (DB,) and agent.volumes == {DB}
    framework, other = book.framework(roles=["ml"]), book.framework("g", roles=["eng"])
    assert framework.offered().devices == {DB} and framework.offered().scalars["disk"] == 90 * GIB
    assert not other.offered(), "all of it went to the first"
    framework.run(mounting(book, "t", "db"))
    (launched,) = [task for state in agent.heard(DesiredState) for task in state.launch]
    assert launched.volume_names == (DB,) and launched.device_uuids == ()
    assert volumes(book) == {"db": (VolumeState.IN_USE, "f/t")}
    assert framework.offered().devices == other.offered().devices == frozenset()
    # Not while it is in use, and nobody else gets it.
    refused = destroy(book)
    assert refused.reason is ErrorReason.RESOURCES_IN_USE and "task t of f has volume db of ml" in refused.message
    book.restart()
    assert volumes(book)["db"][0] is VolumeState.IN_USE
    agent.connect()
    (order,) = agent.heard(VolumeOrders)
    assert (order.make, order.keep) == ((), (DB,)), "what was made once is not made again"
    framework.connect()
    agent.update("t", TaskState.FINISHED)
    assert framework.offered().devices == {DB}
    book.ask(op.TeardownFrameworkRequest("bye", "f"))
    assert volumes(book) == {"db": (VolumeState.FREE, "")}
    agent.disconnect()
    assert volumes(book)["db"][0] is VolumeState.AWAY
    agent.connect()
    assert book.framework("h", roles=["ml/train"]).offered().devices == {DB}


def test_a_framework_reserves_creates_and_mounts_in_one_accept_and_destroys(book: Any) -> None:
    parts = (ReservedResources((), Resources({"cpus": 8000, "disk": 100 * GIB})),)
    agent = book.agent(parts=parts)
    framework = book.framework(roles=["ml"])
    result = framework.accept(
        offers(framework),
        Operation("1", Reserve(A, disk(20), "ml")),
        Operation("2", CreateVolume(A, "db", 10 * GIB)),
        book.launch(mounting(book, "t", "db")),
    )
    assert result.error is None and agent.volumes == {DB}
    order, launch = [type(message) for message in agent.inbox if isinstance(message, (VolumeOrders, DesiredState))][-2:]
    assert (order, launch) == (VolumeOrders, DesiredState), "a task finds its volume made"
    (recorded,) = book.registry.agents["a"].volumes
    assert recorded.made and recorded.uuid == DB
    agent.update("t", TaskState.FINISHED)
    stack = next(part.stack for offer in offers(framework) for part in offer.resources if part.stack)
    # The whole reservation cannot be undone under it, nor the volume itself.
    for resources in (Resources(devices=frozenset({DB})), Resources({"disk": 20 * GIB})):
        result = framework.accept(offers(framework), Operation("u", Unreserve(A, ReservedResources(stack, resources))))
        assert result.error is not None
        book.advance(6_000)
    result = framework.accept(offers(framework), Operation("3", DestroyVolume(A, DB)))
    assert result.error is None and agent.volumes == set() and volumes(book) == {}
    book.advance(6_000)
    assert framework.offered().devices == frozenset() and framework.offered().scalars["disk"] == 100 * GIB
    result = framework.accept(
        offers(framework), Operation("u", Unreserve(A, ReservedResources(stack, Resources({"disk": 20 * GIB}))))
    )
    assert result.error is None


def test_what_counts_stays_the_same(book: Any, agent: Any) -> None:
    """A volume counts as the disk that it takes: in shares, in quotas, in the cluster's total."""
    cluster = book.machine.cluster
    before = dict(cluster.shares.total) if hasattr(cluster.shares, "total") else None
    reserved = [view.resources.amounts() for view in book.ask(op.ListReservationsRequest()).reservations]
    book.set_quotas(book.quota("ml", limit="disk:40GiB"))
    create(book)
    assert [view.resources.amounts() for view in book.ask(op.ListReservationsRequest()).reservations] == reserved
    if before is not None:
        assert dict(cluster.shares.total) == before
    framework = book.framework(roles=["ml"])
    framework.run(mounting(book, "t", "db"))
    assert volumes(book)["db"][0] is VolumeState.IN_USE, "the limit counted it when it was reserved"
    cluster.shares.check()
    cluster.ledger.check()


@pytest.mark.parametrize(
    ("asked", "reason", "words"),
    [
        ({"volume_id": "a/b"}, ErrorReason.INVALID_ARGUMENT, "is not the id of a volume"),
        ({"gib": 0}, ErrorReason.INVALID_ARGUMENT, "above zero"),
        ({"gib": 41}, ErrorReason.INSUFFICIENT_RESOURCES, "reserved to ml"),
        ({"role": "eng"}, ErrorReason.INSUFFICIENT_RESOURCES, "keeps no disk for 'eng'"),
        ({"volume_id": "there"}, ErrorReason.CALL_REFUSED, "there is a volume 'there'"),
        ({"labels": {"x": "y"}}, ErrorReason.INSUFFICIENT_RESOURCES, "keeps no disk"),
    ],
)
def test_what_cannot_be_made_is_refused_and_changes_nothing(
    book: Any, agent: Any, asked: dict[str, Any], reason: ErrorReason, words: str
) -> None:
    create(book, "there", 5)
    before = book.registry.agents["a"]
    refused = create(book, **asked)
    assert refused.reason is reason and words in refused.message and refused.hint
    assert book.registry.agents["a"] == before


def test_an_agent_that_cannot_or_is_away_makes_none(book: Any) -> None:
    agent = with_disk(book, capabilities=())
    assert create(book).reason is ErrorReason.UNSUPPORTED
    agent.disconnect()
    assert create(book).reason is ErrorReason.AGENT_UNAVAILABLE
    assert destroy(book).reason is ErrorReason.NOT_FOUND


def test_offers_in_the_way_are_rescinded(book: Any, agent: Any) -> None:
    framework = book.framework(roles=["ml"])
    (offer,) = framework.offers
    response = create(book)
    assert response.rescinded_offers == 1 and offer not in framework.offers
    assert framework.offered().devices == {DB}
    response = destroy(book)
    assert response.rescinded_offers == 1 and response.volume.state is VolumeState.LEAVING
    assert framework.offered().scalars["disk"] == 100 * GIB and not framework.offered().devices


def test_disk_under_a_volume_cannot_be_unreserved(book: Any, agent: Any) -> None:
    create(book)
    refused = book.unreserve("a", "ml", disk(40))
    assert "volumes take disk of it: db of ml" in refused.message and "volume destroy" in refused.hint
    assert not hasattr(book.unreserve("a", "ml", disk(30)), "reason"), "the rest can"
    for asked in (ResourceRequest({"volumes": 1000}), ResourceRequest(devices=(DB,))):
        assert "neither reserved nor unreserved" in book.unreserve("a", "ml", asked).message
        assert "neither reserved nor unreserved" in book.reserve("a", "eng", asked).message
    destroy(book)
    assert not hasattr(book.unreserve("a", "ml", disk(10)), "reason")


def test_a_volume_is_one_tasks_at_a_time(book: Any, agent: Any) -> None:
    create(book)
    framework = book.framework(roles=["ml"])
    result = framework.accept(framework.offer, book.launch(mounting(book, "t", "db"), mounting(book, "u", "db")))
    assert result.error is not None and "mounts volume 'db', which the offers do not hold" in result.error.message
    book.advance(6_000)
    result = framework.accept(framework.offer, book.launch(mounting(book, "v", "none")))
    assert result.error is not None and "'none'" in result.error.message


def test_a_stated_demand_names_it(book: Any, agent: Any) -> None:
    create(book)
    demand = Demand(1, (book.shape(1, role="ml", cpus=1, devices=(DB,)),))
    framework = book.framework(roles=["ml"], demand=demand)
    assert framework.offered().devices == {DB} and framework.offered().scalars["cpus"] == 1000
    framework.run(mounting(book, "t", "db", devices=[DB]))
    assert volumes(book)["db"][0] is VolumeState.IN_USE


def test_it_is_never_lent(book: Any, agent: Any) -> None:
    create(book)
    book.reserve("a", "ml", book.request(cpus=4), request_id="cpus")
    book.ask(op.LendReservationsRequest("lend", "", "ml"))
    borrower = book.framework("b", roles=["eng"], connect=False).connect(capabilities=(REVOCABLE_RESOURCES,))
    assert borrower.offered().devices == frozenset() and borrower.offered().scalars["disk"] == 90 * GIB


def test_lost_data_is_said_and_withheld_and_not_made_again(book: Any, agent: Any) -> None:
    create(book)
    framework = book.framework(roles=["ml"])
    assert framework.offered().devices == {DB}
    agent.volumes.clear()
    agent.connect()
    assert volumes(book)["db"] == (VolumeState.MISSING, "its data is gone from its agent")
    assert framework.offered().devices == frozenset() and agent.view.withheld.devices == {DB}
    assert agent.volumes == set() and "volume_missing" in {event.kind for event in book.published}
    # Somebody brings it back.
    agent.volumes.add(DB)
    agent.connect()
    assert volumes(book)["db"][0] in (VolumeState.FREE, VolumeState.OFFERED) and not agent.view.withheld
    agent.volumes.clear()
    agent.connect()
    assert destroy(book).volume.state is VolumeState.LEAVING and volumes(book) == {}


def test_data_without_a_record_is_told_and_stays_until_somebody_says_so(book: Any, agent: Any) -> None:
    agent.volumes.add(DB)
    agent.say(VolumesHeld(0, (DB, DeviceUuid("not/a/name"))))
    assert volumes(book) == {"db": (VolumeState.STRAY, "data without a record")} and agent.volumes == {DB}
    assert "volume_stray" in {event.kind for event in book.published}
    refused = create(book, gib=5)
    assert refused.reason is ErrorReason.CALL_REFUSED and "there is data" in refused.message
    assert "of this size" in create(book, gib=5, adopt=True).message
    assert destroy(book, stray=True).volume.state is VolumeState.LEAVING
    assert agent.volumes == set() and volumes(book) == {}
    assert create(book, gib=5).volume.size_bytes == 5 * GIB


def test_data_without_a_record_can_be_taken_over(book: Any, agent: Any) -> None:
    agent.volumes.add(DB)
    agent.say(VolumesHeld(0, (DB,)))
    assert create(book).reason is ErrorReason.CALL_REFUSED
    assert create(book, adopt=True).volume.state is VolumeState.FREE
    assert agent.volumes == {DB} and book.framework(roles=["ml"]).offered().devices == {DB}


def test_what_was_taken_over_is_not_made_anew_if_it_goes_at_once(book: Any, agent: Any) -> None:
    agent.volumes.add(DB)
    agent.say(VolumesHeld(0, (DB,)))
    agent.answers_volume_orders = False
    create(book, adopt=True)
    order = agent.heard(VolumeOrders)[-1]
    assert (order.make, order.keep) == ((), (DB,))
    agent.say(VolumesHeld(order.order, ()))
    assert volumes(book)["db"] == (VolumeState.MISSING, "its data is gone from its agent")


def test_a_removal_is_ordered_until_it_is_done(book: Any, agent: Any) -> None:
    create(book)
    agent.answers_volume_orders = False
    destroy(book)
    assert volumes(book)["db"][0] is VolumeState.LEAVING
    assert "yet to be removed" in create(book).message
    book.restart()
    agent.connect()
    order = agent.heard(VolumeOrders)[-1]
    assert order.remove == (DB,)
    trouble = VolumeTrouble(DB, "the disk is read only")
    agent.say(VolumesHeld(order.order, (DB,), (trouble,)))
    assert volumes(book)["db"][0] is VolumeState.LEAVING
    assert [event.message for event in book.published if event.kind == "volume_not_removed"]
    agent.say(VolumesHeld(order.order - 1, ()))
    assert volumes(book)["db"][0] is VolumeState.LEAVING, "an answer to an older order proves nothing"
    agent.say(VolumesHeld(order.order, ()))
    assert volumes(book) == {} and book.registry.agents["a"].leaving_volumes == ()


def test_what_could_not_be_made_is_offered_to_nobody(book: Any, agent: Any) -> None:
    agent.answers_volume_orders = False
    create(book)
    framework = book.framework(roles=["ml"])
    (order,) = agent.heard(VolumeOrders)
    agent.say(VolumesHeld(order.order, (), (VolumeTrouble(DB, "no space left"),)))
    assert volumes(book)["db"] == (VolumeState.MISSING, "it could not be made: no space left")
    assert not framework.offered().devices
    agent.answers_volume_orders = True
    agent.connect()
    assert framework.offered().devices == {DB}


def test_an_agent_with_less_disk_than_its_volumes_take_is_refused(book: Any, agent: Any) -> None:
    create(book)
    agent.info = replace(agent.info, resources=(ReservedResources((), Resources({"cpus": 8000, "disk": 5 * GIB})),))
    agent.connect()
    (refused,) = agent.heard(Refused)
    assert refused.error.reason is ErrorReason.INCOMPATIBLE_RESOURCES and "volume db of ml" in refused.error.message


def test_on_a_static_reservation(book: Any) -> None:
    kept = book.static("ml")
    parts = (ReservedResources((), Resources({"cpus": 8000})), ReservedResources(kept, Resources({"disk": 20 * GIB})))
    agent = book.agent(parts=parts)
    assert create(book).volume.stack == kept
    agent.say(DevicesChanged((), parts))
    assert book.framework(roles=["ml"]).offered().devices == {DB}
    book.restart()
    agent.connect()
    assert agent.view.total.devices == {DB}


def test_an_agent_cannot_declare_one(book: Any) -> None:
    declared = Resources({"cpus": 1000, "volumes": 2000})
    agent = book.agent(parts=(ReservedResources((), declared),))
    (refused,) = agent.heard(Refused)
    assert "made of reserved disk, not declared" in refused.error.message


def two_of_one_id(book: Any) -> tuple[DeviceUuid, Any]:
    """`db` of ml, and one of ml/x, offered together to a framework of ml/x."""
    book.reserve("a", "ml/x", disk(20), request_id="deeper")
    create(book)
    create(book, gib=5, role="ml/x")
    framework = book.framework(roles=["ml/x"])
    deeper = volume_device("ml/x", "db", 5 * GIB)
    assert framework.offered().devices == {DB, deeper}
    return deeper, framework


def test_an_id_means_the_deepest_roles_volume_unless_one_is_named(book: Any, agent: Any) -> None:
    deeper, framework = two_of_one_id(book)
    framework.run(mounting(book, "t", "db"))
    (launched,) = [task for state in agent.heard(DesiredState) for task in state.launch]
    assert launched.volume_names == (deeper,)
    agent.update("t", TaskState.FINISHED)
    framework.run(mounting(book, "u", "db", devices=[DB]))
    launched = [task for state in agent.heard(DesiredState) for task in state.launch][-1]
    assert launched.volume_names == (DB,), "just the one that is named, and not the other beside it"


def test_volumes_of_one_id_are_not_given_to_one_task(book: Any, agent: Any) -> None:
    deeper, framework = two_of_one_id(book)
    result = framework.accept(framework.offer, book.launch(mounting(book, "t", "db", devices=[DB, deeper])))
    assert result.error is not None and "volumes of one id" in result.error.message


@pytest.mark.parametrize(("gib", "is_taken"), [(5, True), (6, False)])
@pytest.mark.parametrize("as_volume", [False, True])
def test_the_disk_of_a_destroyed_volume_pays_first_for_what_is_held_beyond_a_total_that_shrank(
    book: Any, gib: int, is_taken: bool, as_volume: bool
) -> None:
    """Of its ten GiB five are owed: what is made of more is refused, and nothing breaks."""
    kept = book.static("ml")

    def parts(gib: int) -> tuple[ReservedResources, ...]:
        reserved = ReservedResources(kept, Resources({"disk": gib * GIB}))
        return (ReservedResources((), Resources({"cpus": 8000})), reserved)

    agent = book.agent(parts=parts(40))
    create(book)
    framework = book.framework(roles=["ml"])
    framework.run(book.spec("holder", resources=disk(30)))
    agent.say(DevicesChanged((), parts(35)))
    book.advance(6_000)
    assert framework.offered().devices == {DB} and "disk" not in framework.offered().scalars
    another = Operation("log", CreateVolume(A, "log", gib * GIB))
    after = another if as_volume else book.launch(book.spec("t", resources=disk(gib)))
    result = framework.accept(offers(framework), Operation("d", DestroyVolume(A, DB)), after)
    assert (result.error is None) == is_taken, result.error
    book.machine.check()


def test_a_gang_finds_no_room_on_a_volume(book: Any, agent: Any) -> None:
    """Of the disk that ml is kept 20 GiB are a volume: a gang that wants more than is left beside it is given the other agent's."""
    create(book, gib=20)
    book.agent("b", parts=(ReservedResources((), Resources({"cpus": 8000, "disk": 200 * GIB})),))
    framework = book.asleep(roles=["ml"])
    framework.ask_for_gang((1, ResourceRequest({"cpus": 1000, "disk": 81 * GIB})))
    (offer,) = framework.bundle.offers
    assert offer.agent_id == "b"


def test_an_agent_that_keeps_no_volumes_any_more_has_them_offered_to_nobody(book: Any, agent: Any) -> None:
    create(book)
    framework = book.framework(roles=["ml"])
    assert framework.offered().devices == {DB}
    now, agent.info = agent.info, replace(agent.info, capabilities=())
    agent.answers_volume_orders = False
    agent.disconnect()
    agent.connect()
    assert volumes(book)["db"] == (VolumeState.MISSING, "its agent keeps no volumes: it is of an earlier version")
    book.advance(6_000)
    assert not framework.offered().devices and agent.view.withheld.devices == {DB}
    agent.info, agent.answers_volume_orders = now, True
    agent.disconnect()
    agent.connect()
    book.advance(6_000)
    assert framework.offered().devices == {DB} and not agent.view.withheld


def test_volumes_are_not_counted_in_a_demand_or_a_gang(book: Any, agent: Any) -> None:
    counted = ResourceRequest({"cpus": 1000, "volumes": 1000})
    problem = demand_problem(Demand(1, (Shape("ml", counted, 1),)), ("ml",))
    assert problem is not None and problem.message == "a volume is named, not counted"
    framework = book.asleep(roles=["ml"])
    framework.ask_for_gang((1, counted))
    assert not book.machine.cluster.gangs.by_key


def test_a_missing_volume_is_explained_as_disk_and_to_its_role_alone(book: Any, agent: Any) -> None:
    create(book)
    agent.volumes.clear()
    agent.connect()
    book.framework("hog", roles=["eng"]).run(book.spec("big", cpus=8))
    named = []
    for name, role in (("mine", "ml"), ("other", "eng")):
        demand = Demand(1, (book.shape(1, role=role, cpus=1),))
        framework = book.framework(name, roles=[role], demand=demand)
        answer = book.ask(op.ExplainFrameworkRequest(framework.info.framework_id))
        found = [one for refusal in answer.refusals for one in refusal.obstacles if one.name == DB]
        named.append([(one.resource, one.amount) for one in found])
    assert named == [[("disk", 10 * GIB)], []]


def test_volumes_make_an_agent_no_more_whole(book: Any, agent: Any) -> None:
    """Those with the fewest free devices are offered first, and a volume is none."""
    create(book, "db")
    create(book, "log")
    cluster = book.machine.cluster
    book.agent("b", gpus=1)
    book.framework(roles=["*"], demand=Demand(1, (book.shape(1, cpus=100),)))
    assert [one.agent_id for one in in_order(cluster, {A, AgentId("b")})] == ["a", "b"]
    book.reserve("b", "eng", book.request(gpus=1), request_id="gpu")
    assert [one.agent_id for one in in_order(cluster, {A, AgentId("b")})] == ["a", "b"], "two volumes, against one GPU"


def test_data_without_a_record_is_destroyed_only_if_asked_for_and_told_apart(book: Any, agent: Any) -> None:
    """The record is of a volume that is lost; the data that is there may be the only copy."""
    create(book)
    strays = {volume_device("ml", "db", gib * GIB) for gib in (20, 30)}
    agent.volumes = set(strays)
    agent.connect()
    assert destroy(book).volume.uuid == DB
    refused = destroy(book)
    assert refused.reason is ErrorReason.CALL_REFUSED and "but data without a record" in refused.message
    refused = destroy(book, stray=True)
    assert refused.reason is ErrorReason.INVALID_ARGUMENT and "several volumes" in refused.message
    assert "20GiB, 30GiB" in refused.message and agent.volumes == strays
    assert destroy(book, stray=True, size_bytes=20 * GIB).volume.size_bytes == 20 * GIB
    assert agent.volumes == {volume_device("ml", "db", 30 * GIB)}
    assert destroy(book, stray=True).volume.size_bytes == 30 * GIB and agent.volumes == set()
    assert destroy(book, stray=True).reason is ErrorReason.NOT_FOUND
    create(book)
    assert destroy(book, stray=True).reason is ErrorReason.NOT_FOUND and agent.volumes == {DB}, "nor the other way"
