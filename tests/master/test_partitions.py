"""GPUs that operators have cut into instances, or made whole again."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.device_names import device_name
from bursar.core.devices import Device
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
