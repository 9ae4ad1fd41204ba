"""From `--resources` and the machine to what is offered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from bursar.agent.devices.cutting import unconfigured
from bursar.agent.devices.simulated import SimulatedDevices
from bursar.agent.devices.source import DeviceSource
from bursar.agent.resources import (
    SYSTEM_RESERVE_MEM_BYTES,
    HostResources,
    ResolvedResources,
    after_reserve,
    discover_host,
    resolve_resources,
)
from bursar.core.device_names import device_name
from bursar.core.devices import Device
from bursar.core.errors import InvalidText
from bursar.core.ids import AgentId, DeviceUuid
from bursar.core.resources import UNRESERVED, PortRange, Resources, Stack, to_holding

GIB = 2**30
HOST = HostResources(cpus_milli=8000, mem_bytes=17 * GIB, disk_bytes=105 * GIB)
GPUS = SimulatedDevices(AgentId("agent"), 4).discover()
UUIDS = [device.uuid for device in GPUS]


def resolve(
    text: str, devices: Sequence[Device] = GPUS, recorded: Mapping[str, Sequence[DeviceUuid]] | None = None
) -> ResolvedResources:
    return resolve_resources(text, HOST, devices, recorded)


def bucket(resolved: ResolvedResources, role: str = "") -> Resources:
    def holder(stack: Stack) -> str:
        return stack[-1].holder if stack else ""

    return next((part for stack, part in to_holding(resolved.resources).items() if holder(stack) == role), Resources())


def test_everything_is_discovered_without_a_text() -> None:
    resolved = resolve("")
    assert bucket(resolved) == Resources(
        {"cpus": 8000, "mem": 16 * GIB, "disk": 100 * GIB}, (PortRange(31000, 32000),), frozenset(UUIDS)
    )
    assert resolved.devices == GPUS
    assert not resolved.warnings and not resolved.assignment


def test_kinds_that_are_not_named_are_discovered() -> None:
    resolved = resolve("cpus:4;mem:1GiB")
    assert bucket(resolved).scalars == {"cpus": 4000, "mem": GIB, "disk": 100 * GIB}
    assert len(bucket(resolved).devices) == 4
    assert bucket(resolved).ports


def test_gpus_0_hides_all() -> None:
    resolved = resolve("gpus:0")
    assert not bucket(resolved).devices and not resolved.devices


def test_gpus_2_takes_the_first_two() -> None:
    resolved = resolve("gpus:2", list(reversed(GPUS)))
    assert [device.uuid for device in resolved.devices] == UUIDS[:2]
    assert bucket(resolved).devices == frozenset(UUIDS[:2])


@pytest.mark.parametrize("text", ["gpus:5", "gpus(ml):3;gpus:2", "gpus:1.5", "gpus:-1", "ports(a):[1-5];ports:[5-6]"])
def test_impossible_declarations_are_refused(text: str) -> None:
    with pytest.raises(InvalidText) as refusal:
        resolve(text)
    assert refusal.value.detail.hint


def test_more_gpus_than_there_are_says_how_many() -> None:
    with pytest.raises(InvalidText, match="5 gpus are declared, but 4 are there"):
        resolve("gpus:5")


def test_cpus_and_memory_may_exceed_the_machine_with_a_warning() -> None:
    resolved = resolve("cpus:64;cpus(ml):64;mem:1TiB")
    assert bucket(resolved).amount("cpus") == 64_000
    assert [warning.split(":")[0] for warning in resolved.warnings] == ["cpus", "mem"]
    assert not resolve("cpus:8;mem:17GiB").warnings


def test_a_static_reservation_gets_particular_devices_and_says_which() -> None:
    resolved = resolve("gpus(ml):2;gpus:1;cpus(ml):3")
    assert bucket(resolved, "ml") == Resources({"cpus": 3000}, (), frozenset(UUIDS[:2]))
    assert bucket(resolved).devices == {UUIDS[2]}
    assert bucket(resolved).amount("cpus") == 0, "CPUs are named, so they are what the text says"
    assert resolved.assignment == {"ml": tuple(UUIDS[:2])}
    assert len(resolved.devices) == 3


def test_a_reservation_keeps_its_devices_over_restarts() -> None:
    before = {"ml": (UUIDS[3], UUIDS[1])}
    resolved = resolve("gpus:1;gpus(ml):2;gpus(eng):1", recorded=before)
    assert bucket(resolved, "ml").devices == {UUIDS[3], UUIDS[1]}
    assert bucket(resolved).devices == {UUIDS[0]}
    assert resolved.assignment == {"ml": (UUIDS[3], UUIDS[1]), "eng": (UUIDS[2],)}


def test_a_grown_reservation_keeps_what_it_had_and_a_shrunk_one_a_part() -> None:
    before = {"ml": (UUIDS[2],)}
    assert resolve("gpus(ml):2;gpus:2", recorded=before).assignment == {"ml": (UUIDS[2], UUIDS[0])}
    assert resolve("gpus(ml):1;gpus:3", recorded={"ml": UUIDS}).assignment == {"ml": (UUIDS[0],)}


def test_a_vanished_device_is_replaced_and_said() -> None:
    resolved = resolve("gpus(ml):2;gpus:1", devices=GPUS[1:], recorded={"ml": UUIDS[:2]})
    assert resolved.assignment == {"ml": (UUIDS[1], UUIDS[2])}
    assert any(UUIDS[0] in warning for warning in resolved.warnings)


def test_devices_in_no_bucket_are_hidden_and_said() -> None:
    resolved = resolve("gpus(ml):1")
    assert [device.uuid for device in resolved.devices] == UUIDS[:1]
    assert any("hidden" in warning for warning in resolved.warnings)


def test_custom_kinds_and_ports_pass() -> None:
    resolved = resolve("licences:3;ports:[7000-7002];ports(ml):[8000]")
    assert bucket(resolved).amount("licences") == 3000
    assert bucket(resolved).ports == (PortRange(7000, 7002),)
    assert bucket(resolved, "ml").ports == (PortRange(8000, 8000),)
    assert UNRESERVED in {part.stack for part in resolved.resources}


@pytest.mark.parametrize(("total", "left"), [(0, 0), (1, 1), (GIB, GIB // 2), (2 * GIB, GIB), (64 * GIB, 63 * GIB)])
def test_the_reserve_clamps_and_never_goes_below_zero(total: int, left: int) -> None:
    assert after_reserve(total, SYSTEM_RESERVE_MEM_BYTES) == left


def test_planned_pools_say_what_is_offered_and_a_declaration_beyond_them_is_said() -> None:
    host = HostResources(8000, 64 * GIB, 100 * GIB, offerable_mem_bytes=50 * GIB + 5)
    assert bucket(resolve_resources("", host, ())).amount("mem") == 50 * GIB
    (warning,) = resolve_resources("mem:60GiB", host, ()).warnings
    assert "leave ~50GiB for tasks" in warning
    assert not resolve_resources("mem:50GiB", host, ()).warnings


def test_this_machine_can_be_discovered(tmp_path: Path) -> None:
    host = discover_host(tmp_path)
    assert host.cpus_milli >= 1000
    assert 0 < host.mem_bytes <= psutil.virtual_memory().total
    assert host.disk_bytes > 0
    assert resolve_resources("", host, ()).resources


FPGAS = [Device(device_name("fpgas", f"slot-{index}"), "fpgas", index=index) for index in range(3)]


def test_other_kinds_of_devices_are_discovered_declared_and_reserved_as_gpus_are() -> None:
    everything = resolve("", [*GPUS, *FPGAS])
    assert (bucket(everything).gpus, bucket(everything).amount("fpgas")) == (4, 3000)
    assert everything.devices == (*GPUS[:1], *FPGAS[:1], *GPUS[1:2], *FPGAS[1:2], *GPUS[2:3], *FPGAS[2:3], *GPUS[3:])
    some = resolve("gpus(ml):1;fpgas(ml):1;fpgas:1", [*GPUS, *FPGAS])
    assert bucket(some, "ml").devices == {UUIDS[0], FPGAS[0].uuid}
    assert bucket(some).devices == {FPGAS[1].uuid}
    assert some.assignment == {"ml": (FPGAS[0].uuid, UUIDS[0])}
    again = resolve("gpus(ml):1;fpgas(ml):1;fpgas:1", [*GPUS, *FPGAS], {"ml": [FPGAS[2].uuid, UUIDS[3]]})
    assert bucket(again, "ml").devices == {UUIDS[3], FPGAS[2].uuid}


@pytest.mark.parametrize(("text", "why"), [("fpgas:4", "4 fpgas are declared, but 3"), ("fpgas:0.5", "are devices")])
def test_more_or_parts_of_other_devices_cannot_be_declared(text: str, why: str) -> None:
    with pytest.raises(InvalidText, match=why):
        resolve(text, FPGAS)


def test_a_kind_without_devices_is_a_plain_amount() -> None:
    assert bucket(resolve("licences:3")).scalars["licences"] == 3000


@pytest.mark.parametrize(("text", "shared"), [("", 3), ("gpus:2", 2), ("gpus:1;gpus(ml):1", 1), ("gpus:0", 0)])
def test_shares_go_where_their_cards_go(text: str, shared: int) -> None:
    cards = SimulatedDevices(AgentId("a"), 3).discover()
    shares = [
        Device(device_name("gpu-500-none", f"s{n}", parent=card.uuid, weight_milli=500), "gpu-500-none", index=9 + n)
        for card in cards
        for n in range(2)
    ]
    resolved = resolve_resources(text, HOST, (*cards, *shares))
    offered = {device.uuid for device in resolved.devices if device.kind != "gpus"}
    assert offered == {share.uuid for share in shares[: 2 * shared]}
    assert bucket(resolved).amount("gpu-500-none") == 2 * shared * 1000


@pytest.mark.parametrize(("text", "reserved"), [("gpus:4", 0), ("gpus(ml):1;gpus:3", 1)])
def test_a_card_that_was_cut_is_no_missing_gpu(text: str, reserved: int) -> None:
    """Else cutting one would hide its slices, and the agent could not be started again."""
    kind = "mig-3g.40gb"
    names = [device_name(kind, f"MIG-{number}", parent=UUIDS[3], weight_milli=428) for number in range(2)]
    slices = [Device(uuid, kind, index=4 + number, parent_uuid=UUIDS[3]) for number, uuid in enumerate(names)]
    resolved = resolve(text, (*GPUS[:3], *slices), {"ml": UUIDS[:reserved]})
    assert bucket(resolved).devices == {*UUIDS[reserved:3], *names}
    assert bucket(resolved, "ml").devices == set(UUIDS[:reserved])
    with pytest.raises(InvalidText, match="5 gpus are declared, but 4 are there"):
        resolve("gpus:5", (*GPUS[:3], *slices))


@pytest.mark.parametrize(
    ("text", "whole"), [("", 4), ("gpus:4", 4), ("gpus:3", 3), ("gpus:2", 2), ("gpus:0", 0), ("gpus(ml):2;gpus:1", 1)]
)
def test_a_card_without_instances_counts_as_there_and_comes_beside_what_is_declared(text: str, whole: int) -> None:
    """As slices do, so that an operator can name it; whoever is to have a GPU gets one that can be used."""
    devices = (unconfigured(GPUS[0]), *GPUS[1:])
    resolved = resolve(text, devices)
    offered = bucket(resolved).devices
    assert UUIDS[0] in offered and len(offered) == min(whole, 3 - len(bucket(resolved, "ml").devices)) + 1
    assert bucket(resolved, "ml").devices <= set(UUIDS[1:])
    assert {device.uuid for device in resolved.devices} == offered | bucket(resolved, "ml").devices
    with pytest.raises(InvalidText, match="5 gpus are declared, but 4 are there"):
        resolve("gpus:5", devices)


def test_a_card_without_instances_stays_in_the_reservation_that_has_it() -> None:
    """Like any ill device: what a framework has reserved upon it would have no ground else."""
    resolved = resolve("gpus(ml):2;gpus:2", (unconfigured(GPUS[0]), *GPUS[1:]), {"ml": UUIDS[:2]})
    assert bucket(resolved, "ml").devices == set(UUIDS[:2]) and bucket(resolved).devices == set(UUIDS[2:])


def test_a_card_that_is_made_whole_takes_nobody_elses_place() -> None:
    """Told that it is three of four, an agent goes on with those that it has."""
    kind = "mig-3g.40gb"
    part = Device(device_name(kind, "MIG-1", parent=UUIDS[0], weight_milli=428), kind, parent_uuid=UUIDS[0])
    source = DeviceSource(SimulatedDevices(AgentId("a"), 4), "gpus:3", HOST)
    cut = source.resolve((part, *GPUS[1:]), {})
    assert {device.uuid for device in cut.devices} == {part.uuid, *UUIDS[1:]}
    again = source.resolve_again(GPUS, cut)
    assert [device.uuid for device in again.devices] == list(UUIDS[1:])
