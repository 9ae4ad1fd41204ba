"""Reserved devices that their agent has no more: kept as vacancies, filled, rebound or given up (design.md §4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages import operator as op
from bursar.core.messages.agent import DevicesChanged, Refused
from bursar.core.messages.offers import Demand
from bursar.core.resources import ReservedResources, ResourceRequest
from bursar.core.tasks import TaskState
from bursar.master.vacant import is_vacancy, with_vacancies, without_vacancies


def left(book: Any, gone: int, count: int = 4) -> tuple[Any, Any]:
    """The devices without one, and the resources that go with them."""
    devices = tuple(device for device in book.devices("a", count) if device.index != gone)
    return devices, (ReservedResources((), book.resources(8, 16, [device.uuid for device in devices])),)


def vanish(book: Any, agent: Any, gone: int, count: int = 4) -> None:
    """The agent says so, and means it when it registers again."""
    devices, resources = left(book, gone, count)
    agent.info = replace(agent.info, devices=devices, resources=resources)
    agent.say(DevicesChanged(devices, resources))


def kept(book: Any) -> dict[str, Any]:
    """Owner → reservation."""
    return {view.stack[-1].holder: view for view in book.ask(op.ListReservationsRequest()).reservations}


def rebind(book: Any, device: str, to: str = "", **more: Any) -> Any:
    return book.ask(op.RebindReservationRequest(f"r-{book.now.wall_ms}-{device}-{to}-{more}", device, to, **more))


def devices_recorded(book: Any) -> set[str]:
    return {uuid for part in book.registry.agents["a"].reservations for uuid in part.resources.devices}


def test_a_vacancy_is_kept_recorded_and_offered_to_nobody(book: Any) -> None:
    agent = book.agent(gpus=4)
    book.reserve("a", "ml", book.request(cpus=1, gpus=2))
    framework, other = book.framework(roles=["ml"]), book.framework("g", roles=["eng"])
    vanish(book, agent, 0)
    assert kept(book)["ml"].vacant == ("a-gpu0",) and kept(book)["ml"].resources.devices == {"a-gpu0", "a-gpu1"}
    assert framework.offered().devices | other.offered().devices == {"a-gpu1", "a-gpu2", "a-gpu3"}
    assert agent.view.withheld.devices == {"a-gpu0"} and len(agent.view.total.devices) == 4
    assert {event.kind for event in book.published} >= {"reservation_vacant"}
    # What else changed was taken over.
    agent.say(DevicesChanged(*left(book, 0, 5)))
    assert len(agent.view.total.devices) == 5 and kept(book)["ml"].vacant == ("a-gpu0",)
    # It is back: nothing is lost.
    agent.say(
        DevicesChanged(
            tuple(book.devices("a", 4)),
            (ReservedResources((), book.resources(8, 16, [f"a-gpu{n}" for n in range(4)])),),
        )
    )
    assert kept(book)["ml"].vacant == () and not agent.view.withheld
    assert "reservation_filled" in {event.kind for event in book.published}


def test_an_agent_is_let_in_without_a_reserved_device_also_by_a_new_master(book: Any) -> None:
    agent = book.agent(gpus=4)
    book.reserve("a", "ml", book.request(cpus=1, gpus=2))
    vanish(book, agent, 1)
    agent.connect()
    assert not agent.heard(Refused) and kept(book)["ml"].vacant == ("a-gpu1",)
    book.restart()
    assert kept(book)["ml"].vacant == ("a-gpu1",), "it is recorded"
    agent.connect()
    assert not agent.heard(Refused) and kept(book)["ml"].vacant == ("a-gpu1",)
    # With less of anything else it is refused.
    agent.info = replace(agent.info, resources=(ReservedResources((), book.resources(0.5, 16, ["a-gpu0"])),))
    agent.connect()
    (refused,) = agent.heard(Refused)
    assert refused.error.reason is ErrorReason.INCOMPATIBLE_RESOURCES


def test_a_vacancy_is_rebound_at_every_level_and_stays_so(book: Any) -> None:
    agent = book.agent(gpus=4)
    book.reserve("a", "eng", book.request(cpus=2, gpus=3))
    book.ask(op.ReserveResourcesRequest("s", "a", "eng/web", book.request(cpus=1, gpus=2), source="eng"))
    (gone, *_) = sorted(kept(book)["eng/web"].resources.devices)
    vanish(book, agent, int(gone[-1]))
    before = book.registry.agents["a"]
    said = rebind(book, gone, dry_run=True)
    assert (said.to, said.reservation.vacant) == ("a-gpu3", (gone,)) and book.registry.agents["a"] == before
    answer = rebind(book, gone)
    assert (answer.device_uuid, answer.to) == (gone, "a-gpu3")
    assert answer.reservation == kept(book)["eng/web"] and "a-gpu3" in answer.reservation.resources.devices
    assert gone not in devices_recorded(book) and "a-gpu3" in devices_recorded(book)
    assert gone not in {device.uuid for device in book.registry.agents["a"].info.devices}
    book.restart()
    agent.connect()
    assert not agent.heard(Refused) and "a-gpu3" in kept(book)["eng/web"].resources.devices
    # Unreserved again, it is the new device that comes back.
    book.unreserve("a", "eng/web", book.request(cpus=1, gpus=2))
    assert "a-gpu3" in kept(book)["eng"].resources.devices


@pytest.mark.parametrize("restarted", [False, True])
def test_a_device_that_comes_back_after_its_place_was_given_away_is_told_of(book: Any, restarted: bool) -> None:
    """It is offered to all from now on, and whoever reserved it had better know."""
    agent = book.agent(gpus=4)
    book.reserve("a", "ml", book.request(gpus=1))
    vanish(book, agent, 0)
    assert rebind(book, "a-gpu0", "a-gpu3").device_uuid == "a-gpu0"
    book.published.clear()
    agent.info = replace(
        agent.info,
        devices=tuple(book.devices("a", 4)),
        resources=(ReservedResources((), book.resources(8, 16, [f"a-gpu{n}" for n in range(4)])),),
    )
    if restarted:
        book.restart()
        agent.connect()
    else:
        agent.say(DevicesChanged(agent.info.devices, agent.info.resources))
    (event,) = [event for event in book.published if event.kind == "device_appeared"]
    assert event.agent_id == "a" and event.message == "a.host has a-gpu0 now, which nothing reserved keeps"
    assert not kept(book)["ml"].vacant
    agent.say(DevicesChanged(agent.info.devices, agent.info.resources))
    assert sum(event.kind == "device_appeared" for event in book.published) == 1, "once"


def test_who_picks_takes_what_is_free_alike_and_well_connected(book: Any) -> None:
    devices = book.linked("a", [[0, 3, 4], [1, 2]])
    book.agent("a", devices=devices)
    book.ask(op.ReserveResourcesRequest("r", "a", "ml", ResourceRequest(devices=("a-gpu0", "a-gpu3"))))
    assert rebind(book, "a-gpu0", dry_run=True).to == "a-gpu4", "it is linked to the other one that is kept"
    # What is free comes before what is offered.
    framework = book.framework("g", demand=Demand(1, (book.shape(1, cpus=1, gpus=2),)))
    offered = framework.offered().devices
    assert rebind(book, "a-gpu0", dry_run=True).to not in offered and len(offered) == 2


def test_offers_in_the_way_are_rescinded_and_tasks_are_never_touched(book: Any) -> None:
    agent = book.agent(gpus=3)
    book.reserve("a", "ml", book.request(cpus=1, gpus=1))
    other = book.framework("g", roles=["eng"])
    answer = rebind(book, "a-gpu0", "a-gpu2")
    assert answer.rescinded_offers == 1 and answer.reservation.resources.devices == {"a-gpu2"}
    assert other.offered().devices == {"a-gpu0", "a-gpu1"}
    other.run(book.spec("t", cpus=1, devices=["a-gpu1"]))
    error = rebind(book, "a-gpu2", "a-gpu1")
    assert (error.reason, error.field) == (ErrorReason.RESOURCES_IN_USE, "to") and "never touched" in error.hint
    mine = book.framework("f", roles=["ml"])
    mine.run(book.spec("u", gpus=1))
    assert rebind(book, "a-gpu2").reason is ErrorReason.RESOURCES_IN_USE
    assert rebind(book, "a-gpu2", give_up=True).reason is ErrorReason.RESOURCES_IN_USE
    agent.update("u", TaskState.FINISHED)
    assert isinstance(rebind(book, "a-gpu2"), op.RebindReservationResponse)


def test_a_place_that_is_given_up_makes_the_reservation_smaller(book: Any) -> None:
    agent = book.agent(gpus=2)
    book.reserve("a", "ml", book.request(gpus=2))
    vanish(book, agent, 1, count=2)
    assert rebind(book, "a-gpu1", give_up=True).reservation.resources.devices == {"a-gpu0"}
    assert agent.view.total.devices == {"a-gpu0"}
    # The last one: there is no reservation any more.
    assert not rebind(book, "a-gpu0", give_up=True).reservation.resources
    assert not kept(book) and agent.view.free.devices == {"a-gpu0"}


@pytest.mark.parametrize(
    ("device", "more", "reason", "said"),
    [
        ("b-gpu9", {}, ErrorReason.NOT_FOUND, "there is no device"),
        ("a-gpu3", {}, ErrorReason.NOT_FOUND, "nothing reserved keeps a-gpu3"),
        ("a-gpu", {}, ErrorReason.AMBIGUOUS, "fits 5 devices"),
        ("a-gpu4", {}, ErrorReason.NOT_FOUND, "kept for ops statically"),
        ("a-gpu0", {"to": "a-gpu1", "give_up": True}, ErrorReason.INVALID_ARGUMENT, "given up"),
        ("a-gpu0", {"to": "nothing"}, ErrorReason.NOT_FOUND, "there is no device 'nothing'"),
        ("a-gpu0", {"to": "b-gpu0"}, ErrorReason.CALL_REFUSED, "on b.host, and the reservation on a.host"),
        ("a-gpu0", {"to": "a-gpu4"}, ErrorReason.CALL_REFUSED, "a-gpu4 is reserved to ops"),
    ],
)
def test_what_cannot_be_rebound_is_refused_and_nothing_changes(
    book: Any, device: str, more: dict[str, Any], reason: ErrorReason, said: str
) -> None:
    devices = book.devices("a", 5)
    resources = (
        ReservedResources((), book.resources(8, 16, [f"a-gpu{n}" for n in range(4)])),
        ReservedResources(book.static("ops"), book.resources(devices=["a-gpu4"])),
    )
    book.agent("a", devices=devices, parts=resources)
    book.agent("b", gpus=1)
    book.reserve("a", "ml", book.request(gpus=2))
    before = book.registry.agents["a"]
    error = rebind(book, device, **more)
    assert isinstance(error, ErrorDetail) and error.reason is reason and said in error.message, error
    assert error.hint and book.registry.agents["a"] == before


def test_an_agent_that_is_away_is_not_rebound(book: Any) -> None:
    agent = book.agent(gpus=2)
    book.reserve("a", "ml", book.request(gpus=1))
    agent.disconnect()
    error = rebind(book, "a-gpu0")
    assert error.reason is ErrorReason.CALL_REFUSED and "not connected" in error.message


def test_vacancies_are_put_in_and_taken_out_again(book: Any) -> None:
    agent = book.agent(gpus=3)
    book.reserve("a", "ml", book.request(cpus=1, gpus=2))
    known = book.machine.cluster.agents["a"]
    devices, resources = left(book, 0, 3)
    said = replace(agent.info, devices=devices, resources=resources)
    info = with_vacancies(said, known.devices, known.reservations)
    assert [device.uuid for device in info.devices if is_vacancy(device)] == ["a-gpu0"]
    assert without_vacancies(info) == said
    assert with_vacancies(info, known.devices, known.reservations) is info
    assert with_vacancies(said, {}, {}) is said


def test_nothing_is_kept_free_for_a_gpu_that_is_not_there(new_book: Any) -> None:
    book = new_book(filter_gpu_resources="strip", gpu_headroom="cpus:2")
    agent = book.agent(gpus=2)
    book.reserve("a", "ml", book.request(gpus=1))
    vanish(book, agent, 0, 2)
    legacy = book.framework(gpu=False, roles=["eng"])
    book.advance(6000)
    assert legacy.offered().scalars["cpus"] == 6000, "two CPUs for the GPU that is left"
