"""The names of persistent volumes, and what they count as."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar.core.device_names import device_kind, has_views, parent_of, views_hidden_by
from bursar.core.ids import DeviceUuid
from bursar.core.resources import ResourceRequest, Resources
from bursar.core.roles import role_problem
from bursar.core.surroundings import Volume, VolumeKind, VolumeMode, parse_volume, process_problem, volumes_problem
from bursar.core.volumes import read_volume, volume_device, volume_problem, volumes_in

ROLES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
    lambda r: not role_problem(r)
)
IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True)
SIZES = st.integers(1, 2**53)


@given(ROLES, IDS, SIZES)
def test_a_name_says_everything_and_is_read_back(role: str, volume_id: str, size: int) -> None:
    uuid = volume_device(role, volume_id, size)
    name = read_volume(uuid)
    assert name == (role, volume_id, size) and name.key == (role, volume_id)
    assert device_kind(uuid) == "volumes" and parent_of(uuid) is None and not has_views([uuid])
    assert not views_hidden_by([uuid], [uuid]) and volumes_in([uuid, DeviceUuid("GPU-1")]) == [uuid]


@given(ROLES, IDS, SIZES, st.integers(0, 2**53))
def test_a_volume_counts_as_the_disk_that_it_takes_and_nothing_else(role: str, name: str, size: int, more: int) -> None:
    scalars = {"cpus": 1} | ({"disk": more} if more else {})
    with_volume = Resources(scalars, (), frozenset({volume_device(role, name, size)}))
    assert dict(with_volume.amounts()) == {"cpus": 1, "disk": more + size}
    # But nobody who asks for disk is given it.
    assert ResourceRequest({"disk": size}).fits_in(with_volume) == (more >= size)
    assert with_volume.gpus == 0 and with_volume.amount("disk") == more


@pytest.mark.parametrize(
    "text",
    [
        "GPU-1",
        "volumes/x/ml/db",
        "volumes/5/ml",
        "volumes/5//db",
        "volumes/0/ml/db",
        f"volumes/{2**53 + 1}/ml/db",
        "volumes/99999999999999999999/ml/db",
        "volumes/5/a/b/db",
        "volumes/5/ml/..",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a volume"):
        read_volume(text)


def test_ids_and_sizes_that_cannot_be() -> None:
    for bad in ("", "..", "a/b", "-a", "a" * 65, "ä"):
        assert "is not the id of a volume" in volume_problem(bad, 1), bad
    assert "above zero" in volume_problem("db", 0)


def test_it_is_mounted_once_and_by_plain_processes_for_writing_only() -> None:
    volume = parse_volume("volume/db:/data:rw")
    assert volume == Volume(VolumeKind.PERSISTENT, "db", "/data", VolumeMode.READ_WRITE)
    twice = [volume, parse_volume("volume/db:/other")]
    assert (volumes_problem(twice) or ("", ""))[1] == "volume 'db' is mounted twice: mount it once"
    assert volumes_problem([volume, parse_volume("db:/other")]) is None
    assert process_problem(None, [volume]) is None
    assert "kept from writing" in (process_problem(None, [parse_volume("volume/db:/data")]) or ("", ""))[1]
    inside = [volume, parse_volume("volume/log:/data/log:rw")]
    assert (process_problem(None, inside) or ("", ""))[0] == "volumes[1].target"
