"""Shares of GPUs: views of a card, declared with what holds tasks to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bursar.agent.devices.driver import health_watchers
from bursar.agent.devices.select import driver_for
from bursar.agent.devices.shares import SharedDevices, ShareSetting, parse_shares
from bursar.agent.devices.simulated import SimulatedDevices
from bursar.agent.pinning import is_gpu, visible_id
from bursar.core.device_names import parent_of, views_hidden_by, weight_milli
from bursar.core.errors import InvalidText
from bursar.core.ids import AgentId


def shared(text: str, count: int = 2) -> SharedDevices:
    setting = parse_shares(text)
    assert setting is not None
    return SharedDevices(SimulatedDevices(AgentId("a"), count, "H100"), setting)


def test_every_card_is_there_whole_and_in_shares_that_hide_each_other() -> None:
    driver = shared("300:none")
    found = driver.discover()
    assert driver.discover() == found and driver.name == "simulated"
    assert [one.kind for one in found] == ["gpus"] * 2 + ["gpu-300-none"] * 6
    assert [one.index for one in found] == list(range(8))
    card, share = found[0], found[2]
    assert (parent_of(share.uuid), weight_milli(share.uuid), share.parent_uuid) == (card.uuid, 300, card.uuid)
    assert (share.mem_bytes, share.attributes["enforcement"]) == (24 << 30, "none")
    names = {one.uuid for one in found}
    assert views_hidden_by({share.uuid}, names - {share.uuid}) == {card.uuid}, "other shares of it stay"
    assert views_hidden_by({card.uuid}, names - {card.uuid}) == {one.uuid for one in found[2:5]}


def test_a_task_with_a_share_sees_its_card_once() -> None:
    driver = shared("250:none")
    found = driver.discover()
    card = found[0]
    given = driver.decorate(found[2:4], "process")
    assert given.environment["CUDA_VISIBLE_DEVICES"] == card.uuid and given.pinning == {}
    assert is_gpu(found[2]) and visible_id(found[2]) == card.uuid
    assert driver.decorate((), "docker").environment["CUDA_VISIBLE_DEVICES"] == ""


def test_soft_shares_are_told_to_mps_and_whole_cards_are_not() -> None:
    driver = shared("250:soft")
    found = driver.discover()
    one = driver.decorate(found[2:3], "process").pinning
    assert one == {"CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "25", "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=20480M"}
    two = driver.decorate(found[2:4], "process").pinning
    assert (two["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"], two["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"]) == ("50", "0=40960M")
    assert driver.decorate(found[:1], "process").pinning == {}
    assert driver.decorate(found[2:3], "docker").pinning == {}, "a container does not reach the daemon of the machine"


def test_what_befalls_a_card_befalls_its_shares(tmp_path: Path) -> None:
    faults = tmp_path / "faults"
    faults.write_text("0 ill it smokes\n")
    inner = SimulatedDevices(AgentId("a"), 2, "H100", faults)
    driver = SharedDevices(inner, ShareSetting(500, "none"))
    found = driver.discover()
    assert ["smokes" in one.health_reason for one in found] == [True, False, True, True, False, False]
    (watcher,) = health_watchers(driver)
    faults.write_text("0 ill it smokes\n0 xid 79\n")
    heard = watcher.watch(0.5)
    assert heard and {signal.uuid for signal in heard} == {found[0].uuid, found[2].uuid, found[3].uuid}
    assert watcher.probe(found[2].uuid) == inner.probe(found[0].uuid)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("250", "is not understood"),
        ("0:none", "0 thousandths"),
        ("750:none", "750 thousandths"),
        ("250:hard", "cut the card by MIG"),
        ("250:much", "'much' is no enforcement"),
    ],
)
def test_mistakes_are_explained(text: str, why: str) -> None:
    with pytest.raises(InvalidText, match=why):
        parse_shares(text)


def test_only_drivers_of_gpus_are_shared(tmp_path: Path) -> None:
    setting = parse_shares("500:none")
    assert parse_shares("") is None
    found = driver_for("simulated:1", AgentId("a"), [tmp_path], shares=setting).discover()
    assert [one.kind for one in found] == ["gpus", "gpu-500-none", "gpu-500-none"]
    assert driver_for("none", AgentId("a"), [tmp_path], shares=setting).discover() == ()
