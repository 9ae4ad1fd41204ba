"""Devices that operators take out of service and put back."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import ErrorDetail, ErrorReason
from bursar.core.messages import operator as op
from bursar.core.messages.agent import DeviceOrders
from bursar.core.messages.framework import Rescind


def cordon(book: Any, *devices: str, reason: str = "fan", request_id: str = "") -> Any:
    return book.ask(op.CordonDevicesRequest(devices, reason, request_id))


def uncordon(book: Any, *devices: str) -> Any:
    return book.ask(op.UncordonDevicesRequest(devices))


def orders(agent: Any) -> list[tuple[str, bool, str]]:
    """The last that the agent was told."""
    told = agent.heard(DeviceOrders)
    return [(order.uuid, order.cordoned, order.reason) for order in told[-1].orders] if told else []


def test_offers_with_it_are_rescinded_and_new_ones_are_without_it(book: Any) -> None:
    agent = book.agent(cpus=8, gpus=2)
    other = book.agent("b", cpus=8, gpus=2)
    framework = book.framework()
    assert len(framework.offered().devices) == 4
    answer = cordon(book, "a-gpu1")
    assert answer.rescinded_offers == 1, "and only that of its agent"
    assert [(view.device.uuid, view.use) for view in answer.devices] == [("a-gpu1", "withheld")]
    assert "by an operator: fan" in answer.devices[0].reason
    (rescind,) = framework.heard(Rescind)
    assert "taken out of service: fan" in rescind.reason
    assert sorted(framework.offered().devices) == ["a-gpu0", "b-gpu0", "b-gpu1"]
    assert orders(agent) == [("a-gpu1", True, "fan")] and not orders(other)
    assert "devices_cordoned" in [event.kind for event in book.published]


def test_it_is_back_once_the_order_is_lifted(book: Any) -> None:
    agent = book.agent(cpus=8, gpus=2)
    framework = book.framework()
    cordon(book, "a-gpu1")
    assert [view.use for view in uncordon(book, "a-gpu1").devices] == ["free"]
    framework.decline(framework.offer, refuse_ms=0)
    assert sorted(framework.offered().devices) == ["a-gpu0", "a-gpu1"]
    assert orders(agent) == [("a-gpu1", False, "")]


def test_each_order_is_later_than_the_one_before_whatever_the_clock_says(book: Any) -> None:
    agent = book.agent(gpus=1)
    for _ in range(3):
        cordon(book, "a-gpu0")
        uncordon(book, "a-gpu0")
    times = [message.orders[0].ordered_at_ms for message in agent.heard(DeviceOrders)]
    assert times == sorted(set(times)) and len(times) == 6


def test_an_order_outlives_the_master_and_is_told_to_an_agent_that_was_away(book: Any) -> None:
    agent = book.agent(cpus=8, gpus=2)
    agent.disconnect()
    cordon(book, "a-gpu0")
    book.restart()
    agent.connect()
    assert orders(agent) == [("a-gpu0", True, "fan")]
    framework = book.framework()
    assert sorted(framework.offered().devices) == ["a-gpu1"]


def test_all_or_none(book: Any) -> None:
    book.agent(cpus=8, gpus=2)
    answer = cordon(book, "a-gpu0", "nonsense")
    assert isinstance(answer, ErrorDetail) and answer.reason is ErrorReason.NOT_FOUND
    assert {view.use for view in book.ask(op.ListDevicesRequest()).devices} == {"free"}


@pytest.mark.parametrize(
    ("devices", "reason"),
    [((), ErrorReason.INVALID_ARGUMENT), (("a-gpu",), ErrorReason.AMBIGUOUS), (("",), ErrorReason.NOT_FOUND)],
)
def test_names_that_fit_no_device_or_several(book: Any, devices: tuple[str, ...], reason: ErrorReason) -> None:
    book.agent(cpus=8, gpus=2)
    for answer in (cordon(book, *devices), uncordon(book, *devices)):
        assert isinstance(answer, ErrorDetail) and answer.reason is reason and answer.hint


def test_a_repeat_gets_the_first_answer(book: Any) -> None:
    book.agent(cpus=8, gpus=1)
    first = cordon(book, "a-gpu0", request_id="r1")
    assert cordon(book, "a-gpu0", request_id="r1") == first
