"""GPUs that operators have cut into instances, or made whole again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bursar.agent.devices.cutting import NO_INSTANCE, unconfigured
from bursar.core.device_names import device_name
from bursar.core.devices import Device, DeviceCondition, DeviceHealth
from bursar.core.errors import ErrorDetail
from bursar.core.ids import DeviceUuid
from bursar.core.layouts import PARTITION
from bursar.core.messages import operator as op
from bursar.core.messages.agent import CutReport, DeviceOrders, DevicesChanged
from bursar.core.messages.framework import Rescind
from bursar.core.resources import ReservedResources


def order(book: Any, device: str = "a-gpu0", layout: str = "1g.10gb=2", request_id: str = "") -> Any:
    return book.ask(op.PartitionDeviceRequest(device, layout, request_id))


def cutter(book: Any, **options: Any) -> Any:
    return book.agent(cpus=8, gpus=2, capabilities=(PARTITION,), **options)


def told(agent: Any) -> Any:
    """The last that the agent was told."""
    if new := agent.heard(DeviceOrders):
        agent.last_order = new[-1].orders[0]
    return agent.last_order


def uses(book: Any) -> dict[str, str]:
    return {view.device.uuid: view.use for view in book.ask(op.ListDevicesRequest()).devices}


def test_its_offers_are_rescinded_and_it_is_nobodys_until_its_agent_has_said_how_it_ended(book: Any) -> None:
    agent = cutter(book)
    framework = book.framework()
    assert len(framework.offered().devices) == 2
    answer = order(book, layout="1g.10gb=1, 1g.10gb")
    assert (answer.card, answer.layout, answer.rescinded_offers) == ("a-gpu0", "1g.10gb=2", 1)
    assert framework.heard(Rescind) and sorted(framework.offered().devices) == ["a-gpu1"]
    assert (told(agent).layout, told(agent).cordoned) == ("1g.10gb=2", False)
    part = device_name("mig-1g.10gb", "MIG-1", parent="a-gpu0", weight_milli=142)
    found = (Device(part, "mig-1g.10gb", parent_uuid="a-gpu0"), book.devices("a", 2)[1])
    agent.say(DevicesChanged(found, (ReservedResources((), book.resources(8, 16, [one.uuid for one in found])),)))
    assert uses(book) == {part: "withheld", "a-gpu1": "offered"}, "new parts, too"
    agent.say(CutReport(DeviceUuid("a-gpu0"), told(agent).ordered_at_ms, "", "1 1g.10gb"))
    assert uses(book)[part] != "withheld"
    kinds = [event.kind for event in book.published]
    assert "device_cut_ordered" in kinds and kinds.count("device_cut") == 1
    agent.say(CutReport(DeviceUuid("a-gpu0"), told(agent).ordered_at_ms, "", "1 1g.10gb"))
    assert [event.kind for event in book.published].count("device_cut") == 1, "said again on each stream"


def test_a_failure_is_told_in_the_drivers_words_with_what_is_there(book: Any) -> None:
    agent = cutter(book)
    order(book)
    agent.say(CutReport(DeviceUuid("a-gpu0"), told(agent).ordered_at_ms, "In use by another client", "whole"))
    (event,) = [event for event in book.published if event.kind == "device_not_cut"]
    assert event.message == "a-gpu0 of a.host is not 1g.10gb=2: In use by another client; there is now: whole"
    assert uses(book)["a-gpu0"] == "free"


def test_the_order_outlives_the_master_and_is_told_again(book: Any) -> None:
    agent = cutter(book)
    order(book)
    book.restart()
    agent.connect()
    assert told(agent).layout == "1g.10gb=2" and uses(book)["a-gpu0"] == "withheld"


def test_a_later_order_is_another_one(book: Any) -> None:
    agent = cutter(book)
    order(book)
    first = told(agent).ordered_at_ms
    agent.say(CutReport(DeviceUuid("a-gpu0"), first, "", "whole"))
    order(book, layout="whole")
    assert told(agent).ordered_at_ms > first
    agent.say(CutReport(DeviceUuid("a-gpu0"), first, "", "whole"))
    assert uses(book)["a-gpu0"] == "withheld", "that was the one before"


@pytest.mark.parametrize(
    ("layout", "text"), [("", "not understood"), ("1g.10gb=0", "no layout"), ("quarters", "not understood")]
)
def test_a_layout_that_is_none_is_refused(book: Any, layout: str, text: str) -> None:
    cutter(book)
    error = order(book, layout=layout)
    assert isinstance(error, ErrorDetail) and text in error.message and error.hint


def test_what_somebody_has_is_not_cut(book: Any) -> None:
    agent = cutter(book)
    assert "there is no device" in order(book, "nothing").message
    framework = book.framework()
    framework.accept(framework.offer, book.launch(book.spec("t", cpus=1, gpus=2)))
    assert "task f/t has a-gpu0" in order(book).message
    assert not agent.heard(DeviceOrders)
    other = book.agent("b", gpus=1)
    assert "cannot cut GPUs" in order(book, "b-gpu0").message and other


def test_a_card_that_is_being_cut_is_neither_cut_again_nor_cordoned(book: Any) -> None:
    cutter(book)
    order(book)
    assert "is being cut already: 1g.10gb=2" in order(book, layout="whole").message
    assert "is being cut" in book.ask(op.CordonDevicesRequest(("a-gpu0",), "", "")).message
    book.ask(op.CordonDevicesRequest(("a-gpu1",), "", ""))
    assert "is cordoned" in order(book, "a-gpu1").message


def bare(book: Any, **options: Any) -> Any:
    """An agent whose first card is switched over to instances and has none."""
    return cutter(book, devices=[unconfigured(book.devices("a", 2)[0]), book.devices("a", 2)[1]], **options)


@pytest.mark.parametrize("layout", ["1g.10gb=2", "whole"])
def test_a_card_without_instances_is_offered_to_nobody_and_is_cut_or_made_whole(book: Any, layout: str) -> None:
    agent = bare(book)
    assert book.framework().offered().devices == {"a-gpu1"}
    (view,) = [one for one in book.ask(op.ListDevicesRequest()).devices if one.device.uuid == "a-gpu0"]
    assert (view.use, view.reason) == ("withheld", f"unconfigured: {NO_INSTANCE}")
    assert order(book, layout=layout).layout == layout and told(agent).layout == layout


def test_an_agent_that_comes_back_with_such_a_card_is_told_of(book: Any) -> None:
    agent = cutter(book)
    agent.info = replace(agent.info, devices=(unconfigured(book.devices("a", 2)[0]), book.devices("a", 2)[1]))
    agent.connect()
    (event,) = [event for event in book.published if event.kind == "device_health_changed"]
    assert event.message == f"a-gpu0 of a.host was healthy and is unconfigured: {NO_INSTANCE}"
    agent.connect()
    assert sum(event.kind == "device_health_changed" for event in book.published) == 1, "once"


def test_other_ills_of_such_a_card_are_no_reason_to_cut_it(book: Any) -> None:
    lost = replace(book.devices("a", 2)[0], health=DeviceHealth.UNHEALTHY, health_reason="GPU is lost")
    agent = bare(book)
    agent.say(DevicesChanged((lost, book.devices("a", 2)[1]), agent.info.resources))
    assert "is not healthy: GPU is lost" in order(book).message and not agent.heard(DeviceOrders)
    sick = replace(lost, condition=DeviceCondition.CORDONED)
    agent.say(DevicesChanged((sick, book.devices("a", 2)[1]), agent.info.resources))
    assert "is not healthy" in order(book, layout="whole").message


def test_a_reserved_card_without_instances_is_made_whole_and_not_cut(book: Any) -> None:
    agent = cutter(book)
    book.reserve("a", "ml", book.request(devices=["a-gpu0"]))
    found = (unconfigured(book.devices("a", 2)[0]), book.devices("a", 2)[1])
    agent.say(DevicesChanged(found, agent.info.resources))
    (kept,) = book.ask(op.ListReservationsRequest()).reservations
    assert kept.vacant == () and kept.resources.devices == {"a-gpu0"}, "it is there"
    assert "reserved to ml" in order(book).message
    assert order(book, layout="whole").layout == "whole"
    agent.say(DevicesChanged(tuple(book.devices("a", 2)), agent.info.resources))
    agent.say(CutReport(DeviceUuid("a-gpu0"), told(agent).ordered_at_ms, "", "whole"))
    assert uses(book)["a-gpu0"] in ("free", "offered")


def test_instances_that_are_reserved_and_lost_are_made_again_and_fill_their_place(book: Any) -> None:
    part = device_name("mig-1g.10gb", "MIG-1", parent="a-gpu0", weight_milli=142)
    there, other = Device(part, "mig-1g.10gb", parent_uuid="a-gpu0"), book.devices("a", 2)[1]
    agent = cutter(book, devices=[there, other])
    book.reserve("a", "ml", book.request(devices=[part]))
    assert "reserved to ml" in order(book).message
    lost = (unconfigured(book.devices("a", 2)[0]), other)
    agent.say(DevicesChanged(lost, (ReservedResources((), book.resources(8, 16, ["a-gpu0", "a-gpu1"])),)))
    (kept,) = book.ask(op.ListReservationsRequest()).reservations
    assert kept.vacant == (part,)
    assert order(book, "a-gpu0").layout == "1g.10gb=2"
    agent.say(DevicesChanged((there, other), (ReservedResources((), book.resources(8, 16, [part, "a-gpu1"])),)))
    agent.say(CutReport(DeviceUuid("a-gpu0"), told(agent).ordered_at_ms, "", "1 1g.10gb"))
    (kept,) = book.ask(op.ListReservationsRequest()).reservations
    assert kept.vacant == () and uses(book)[part] in ("free", "offered")
    # With nothing of the card there, nothing can be cut.
    agent.say(DevicesChanged((other,), (ReservedResources((), book.resources(8, 16, ["a-gpu1"])),)))
    assert "has a-gpu0 no more" in order(book, part).message


@pytest.mark.parametrize(("limit", "offered"), [("gpus:0", 0), ("gpus:1", 1), ("gpus:2", 4)])
def test_slices_count_within_a_limit_of_gpus_for_their_thousandths(book: Any, limit: str, offered: int) -> None:
    """A card in slices and a whole one: a limit of one leaves room for the whole one and nothing beside it."""
    parts = [
        Device(device_name(f"mig-{profile}", f"MIG-{number}", parent="a-gpu0", weight_milli=weight), f"mig-{profile}")
        for number, (profile, weight) in enumerate((("3g.40gb", 428), ("3g.40gb", 428), ("1g.10gb", 142)))
    ]
    book.set_quotas(book.quota("ml", limit=limit))
    book.agent(devices=[*parts, book.devices("a", 2)[1]])
    assert len(book.framework(roles=("ml",)).offered().devices) == offered
