"""What the name of a device says."""

from __future__ import annotations

import pytest

from bursar.core.device_names import (
    device_kind,
    device_kinds,
    device_name,
    devices_of_kind,
    gpus_among,
    native_id,
    parent_of,
    views_hidden_by,
    weight_milli,
)
from bursar.core.ids import DeviceUuid
from bursar.core.resources import ResourceRequest, Resources
from bursar.core.text import format_resources, format_shortfall

GPU, OTHER = device_name("gpus", "GPU-1"), device_name("gpus", "GPU-2")
FPGA = device_name("fpgas", "slot-3")
SLICES = [device_name("mig-3g.40gb", f"MIG-{n}", parent="GPU-1", weight_milli=428) for n in (1, 2)]
SMALL = device_name("mig-1g.10gb", "MIG-3", parent="GPU-1", weight_milli=142)
SHARES = [device_name("gpu-shares", f"{n}", parent="GPU-1", weight_milli=250) for n in range(4)]


def test_a_name_says_kind_card_and_weight() -> None:
    assert (GPU, FPGA, SMALL) == ("GPU-1", "fpgas/slot-3", "mig-1g.10gb@142/GPU-1/MIG-3")
    assert [device_kind(uuid) for uuid in (GPU, FPGA, SMALL)] == ["gpus", "fpgas", "mig-1g.10gb"]
    assert [parent_of(uuid) for uuid in (GPU, FPGA, SMALL)] == [None, None, "GPU-1"]
    assert [weight_milli(uuid) for uuid in (GPU, FPGA, SMALL)] == [0, 0, 142]
    assert [native_id(uuid) for uuid in (GPU, FPGA, SMALL)] == ["GPU-1", "slot-3", "MIG-3"]
    everything = frozenset([GPU, FPGA, SMALL])
    assert device_kinds(everything) == ["fpgas", "mig-1g.10gb"]
    assert gpus_among(everything) == {GPU} == devices_of_kind(everything, "gpus")
    assert devices_of_kind(everything, "fpgas") == {FPGA}


@pytest.mark.parametrize(("native", "parent", "weight"), [("a/b", "", 0), ("a", "b/c", 1), ("a", "b", 0), ("a", "", 9)])
def test_names_that_could_be_read_as_something_else_are_refused(native: str, parent: str, weight: int) -> None:
    with pytest.raises(ValueError, match="cannot be a name"):
        device_name("fpgas", native, parent=parent, weight_milli=weight)


def test_every_kind_is_counted_by_itself_and_slices_weigh_on_gpus_once() -> None:
    some = Resources({"cpus": 1000}, devices=frozenset([OTHER, FPGA, SMALL]))
    assert some.amounts() == {"cpus": 1000, "gpus": 1142, "fpgas": 1000, "mig-1g.10gb": 1000}
    assert (some.gpus, some.amount("gpus"), some.amount("fpgas"), some.amount("mem")) == (1, 1000, 1000, 0)
    assert format_resources(some) == "cpus:1;gpus:1;fpgas:1;mig-1g.10gb:1"
    card_and_views = Resources(devices=frozenset([GPU, *SHARES, SMALL]))
    assert card_and_views.amounts()["gpus"] == 1000


def test_requests_for_any_kind_are_measured_against_devices() -> None:
    there = Resources(devices=frozenset([GPU, FPGA]))
    assert ResourceRequest({"fpgas": 1000}, gpus=1).fits_in(there)
    assert not ResourceRequest({"fpgas": 2000}).fits_in(there)
    assert not ResourceRequest(gpus=2).fits_in(there), "an FPGA is no GPU"
    assert format_shortfall(ResourceRequest({"fpgas": 2000}), there) == "fpgas: 2 wanted, 1 there"
    assert ResourceRequest(devices=(GPU, FPGA)).gpu_count == 1


def test_taking_a_view_hides_the_other_views_of_its_card() -> None:
    card = [GPU, *SLICES, SMALL, *SHARES]
    elsewhere = [OTHER, FPGA]
    there = frozenset([*card, *elsewhere])

    def hidden(*taken: DeviceUuid) -> frozenset[DeviceUuid]:
        return views_hidden_by(taken, there - set(taken))

    assert hidden(GPU) == set(card) - {GPU}
    assert hidden(SLICES[0]) == {GPU, *SHARES}, "other slices lie beside it"
    assert hidden(SHARES[0]) == {GPU, *SLICES, SMALL}, "other shares do too"
    assert hidden(OTHER, FPGA) == frozenset()
    assert hidden() == frozenset()
