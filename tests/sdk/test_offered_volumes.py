"""The persistent volumes of an offer, as an author sees them."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import BursarError
from bursar.core.ids import AgentId
from bursar.core.messages import offers as messages
from bursar.core.resources import Reservation, ReservationType, ReservedResources, Resources
from bursar.core.volumes import volume_device
from bursar.sdk import Task
from bursar.sdk.offers import Offer

# In the order of their names the role above comes last.
PARENTS, CHILDS = volume_device("ml", "db", 9 * 2**30), volume_device("ml/x", "db", 5 * 2**30)


def reserved(role: str, **resources: Any) -> ReservedResources:
    return ReservedResources((Reservation(ReservationType.STATIC, role),), Resources(**resources))


def offer() -> Offer:
    parts = (
        ReservedResources((), Resources({"cpus": 8000, "mem": 2**34})),
        reserved("ml", devices=frozenset({PARENTS})),
        reserved("ml/x", devices=frozenset({CHILDS})),
    )
    said: Any = messages.Offer("o", "f", "ml/x", "a", 1, parts)  # type: ignore[arg-type]
    description: Any = messages.AgentDescription("a", 1, "node", runs_without_image=True)  # type: ignore[arg-type]
    return Offer(said, description)


def mounting(**more: Any) -> Task:
    return Task(["true"], volumes=["volume/db:/data:rw"], **more)


def test_an_id_means_the_deepest_roles_volume_as_for_the_master() -> None:
    assert PARENTS > CHILDS
    one = offer()
    assert one.volumes == {"db": 5 * 2**30}
    one.take(mounting())
    assert one.volumes == {"db": 9 * 2**30}, "what is left of that id"
    one.destroy_volume("db")
    assert one.volume_operations == [messages.DestroyVolume(AgentId("a"), PARENTS)] and not one.volumes
    with pytest.raises(BursarError, match="holds no volume 'db' that is not taken"):
        one.destroy_volume("db")
    assert not one.fits(mounting())


def test_what_is_destroyed_is_what_the_id_means() -> None:
    one = offer()
    one.destroy_volume("db")
    assert one.volume_operations == [messages.DestroyVolume(AgentId("a"), CHILDS)]


def test_a_volume_that_a_task_names_is_meant() -> None:
    one = offer()
    assert one.fits(mounting(devices=[PARENTS]))
    one.take(mounting(devices=[PARENTS]))
    assert one.volumes == {"db": 5 * 2**30}
