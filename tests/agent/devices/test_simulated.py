"""Simulated GPUs are stable over restarts and different on every agent."""

from __future__ import annotations

from pathlib import Path

from bursar.agent.devices.health import Remedy
from bursar.agent.devices.simulated import SimulatedDevices
from bursar.core.devices import DeviceHealth, pick_connected
from bursar.core.ids import AgentId


def test_uuids_derive_from_the_agent_and_the_index() -> None:
    first = [device.uuid for device in SimulatedDevices(AgentId("one"), 4).discover()]
    assert [device.uuid for device in SimulatedDevices(AgentId("one"), 4).discover()] == first
    assert [device.uuid for device in SimulatedDevices(AgentId("one"), 6).discover()][:4] == first
    assert not set(first) & {device.uuid for device in SimulatedDevices(AgentId("two"), 4).discover()}
    # Kept for good: tasks and reservations of running clusters name them.
    assert first[0] == "GPU-a2af7d48-c82f-5fd4-9167-dc98ceaab5b6"


def test_topology_is_two_nodes_and_cliques_of_four() -> None:
    devices = SimulatedDevices(AgentId("one"), 8).discover()
    assert [device.numa_node for device in devices] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert {len(device.links) for device in devices} == {3}
    assert len({device.pci_address for device in devices}) == 8
    known = {device.uuid: device for device in devices}
    picked = pick_connected([device.uuid for device in devices[2:]], 4, known)
    assert [known[uuid].index for uuid in picked] == [4, 5, 6, 7], "the whole clique, not the first four"


def test_model_says_how_much_memory() -> None:
    (device,) = SimulatedDevices(AgentId("one"), 1, "NVIDIA T4").discover()
    assert (device.model, device.mem_bytes) == ("NVIDIA T4", 16 * 2**30)


def test_faults_are_ordered_in_a_file_and_over_when_their_line_is_gone(tmp_path: Path) -> None:
    orders = tmp_path / "faults"
    driver = SimulatedDevices(AgentId("one"), 3, faults=orders)
    uuids = [device.uuid for device in driver.discover()]
    assert driver.watch(0) is None
    orders.write_text("0 ill fan stopped\n1 gone\n2 xid 79\nnonsense\n9 gone\n")
    (signal,) = driver.watch(0) or ()
    assert (signal.uuid, signal.text[:6]) == (uuids[2], "XID 79")
    first, third = driver.discover()
    assert (first.health, first.health_reason) == (DeviceHealth.UNHEALTHY, "fan stopped")
    assert third.health is DeviceHealth.HEALTHY, "an XID is said, and not seen"
    assert driver.probe(uuids[2]) == "xid 79" and uuids[2] not in driver.remedies()
    assert driver.watch(0) is None, "said once"
    orders.write_text("")
    assert driver.watch(0) == (), "look again"
    assert len(driver.discover()) == 3 and driver.probe(uuids[2]) == ""
    assert driver.remedies() == dict.fromkeys(uuids, Remedy.NONE)
