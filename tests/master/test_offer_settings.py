"""Dialogues: which offers a framework takes in a role (OFF-11, OFF-12, M-11), and regions (FD-3)."""

from __future__ import annotations

from typing import Any

import pytest

from bursar.core.errors import ErrorReason
from bursar.core.messages.framework import OfferSettings, StreamError
from bursar.core.messages.offers import Demand
from bursar.core.messages.operator import ExplainFrameworkRequest, RefusalReason
from bursar.core.tasks import TaskState
from bursar.master.flags import FlagValues, read_run_time_value

HOUR_MS = 3_600_000


def takes(*constraints: str, role: str = "*", minimum: str | None = None) -> tuple[OfferSettings, ...]:
    return (OfferSettings(role, constraints, minimum),)


def refusals(book: Any, framework_id: str) -> dict[RefusalReason, str]:
    return {refusal.reason: refusal.message for refusal in book.ask(ExplainFrameworkRequest(framework_id)).refusals}


def racks(book: Any) -> None:
    book.agent("a", gpus=1, attributes={"rack": "r1", "gen": 3000})
    book.agent("b", gpus=4, attributes={"rack": "r2", "region": "eu", "zone": "a"})
    book.agent("c")


CONSTRAINTS: dict[str, set[str]] = {
    "rack=r1": {"a"},
    "rack!=r1": {"b", "c"},
    "rack": {"a", "b"},
    "!rack": {"c"},
    "gen>=3": {"a"},
    "gen<3": set(),
    "hostname=a.host|c.host": {"a", "c"},
    "hostname=?.host": {"a", "b", "c"},
    "region=eu,zone=a": {"b"},
    "gpus>=4": {"b"},
    "gpus": {"a", "b"},
    "!gpus": {"c"},
    "gpus<=1": {"a", "c"},
    "gpu.clique>=1": {"a", "b"},
    "cpus>=8,rack=r2": {"b"},
    "mem>=17GiB": set(),
}


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_an_agent_is_offered_where_the_constraint_is_true(book: Any, constraint: str) -> None:
    racks(book)
    framework = book.framework(offer_settings=takes(constraint))
    assert framework.agents == CONSTRAINTS[constraint]
    assert book.full_cycle_offers() == 0


def test_one_of_the_groups_is_enough(book: Any) -> None:
    racks(book)
    framework = book.framework(offer_settings=takes("rack=r1,gpus>=2", "!rack", "gpus>=4"))
    assert framework.agents == {"b", "c"}


def test_each_role_has_its_own(book: Any) -> None:
    racks(book)
    settings = takes("rack=r1", role="x") + takes("rack=r2", role="y")
    framework = book.framework(roles=["x", "y"], offer_settings=settings)
    assert {(offer.role, offer.agent_id) for offer in framework.offers.values()} == {("x", "a"), ("y", "b")}


def test_amounts_are_those_of_the_offer_not_of_the_agent(book: Any) -> None:
    agent = book.agent("a", gpus=4)
    other = book.framework("other", demand=Demand(1, (book.shape(gpus=1, cpus=1),)))
    other.run(book.spec("t", gpus=1))
    framework = book.framework("f", offer_settings=takes("gpus>=4"))
    assert not framework.offers
    assert refusals(book, "f").keys() == {RefusalReason.NOT_FREE}, "it has four, one is in use"
    agent.update("t", TaskState.FINISHED, framework="other")
    assert framework.offered() == book.resources(8, 16, agent.uuids)


def test_amounts_are_those_of_what_the_demand_cuts_out(book: Any) -> None:
    book.agent("a", gpus=4)
    shapes = Demand(1, (book.shape(2, gpus=1),))
    framework = book.framework("f", demand=shapes, offer_settings=takes("gpus>=3"))
    assert not framework.offers
    framework.update(offer_settings=takes("gpus>=2"))
    assert len(framework.offered().devices) == 2


def test_what_is_too_much_at_first_is_offered_once_somebody_took_a_part(book: Any) -> None:
    """A full cycle later would make an offer that the event-driven one had not: design.md §7."""
    book.agent("a", gpus=4)
    few = book.framework("few", offer_settings=takes("gpus<=2"))
    assert not few.offers
    book.framework("other", demand=Demand(1, (book.shape(gpus=3, cpus=1),)))
    assert len(few.offered().devices) == 1
    assert book.full_cycle_offers() == 0


def test_models_are_those_of_the_offered_devices(book: Any) -> None:
    old, new = book.devices("a", 2)
    devices = [_with(old, model="A100"), _with(new, model="H100")]
    book.agent("a", devices=devices)
    book.framework("other", demand=Demand(1, (book.shape(devices=[devices[1].uuid]),)))
    framework = book.framework("f", offer_settings=takes("gpu.model=H100"))
    assert not framework.offers
    framework.update(offer_settings=takes("gpu.model=A*"))
    assert framework.offered().devices == {devices[0].uuid}


def test_a_clique_is_one_of_the_offered_devices(book: Any) -> None:
    book.agent("a", devices=book.linked("a", [(0, 1, 2), (3,)]))
    framework = book.framework("f", offer_settings=takes("gpu.clique>=3"))
    assert len(framework.offered().devices) == 4
    framework.update(offer_settings=takes("gpu.clique>=4"))
    framework.decline(framework.offer, refuse_ms=0)
    book.advance(2000)
    assert not framework.offers


def test_new_constraints_leave_what_is_offered_alone(book: Any) -> None:
    racks(book)
    framework = book.framework()
    framework.update(offer_settings=takes("rack=r9"))
    assert framework.agents == {"a", "b", "c"}
    framework.decline(*framework.offers.values(), refuse_ms=0)
    book.advance(5000)
    assert not framework.offers
    framework.update(offer_settings=())
    assert framework.agents == {"a", "b", "c"}


def test_an_agent_that_comes_back_with_other_attributes_is_judged_anew(book: Any) -> None:
    racks(book)
    framework = book.framework(offer_settings=takes("rack=r2"))
    assert framework.agents == {"b"}
    book.agents["a"].disconnect()
    book.agents["a"].connect(attributes={"rack": "r2"})
    assert framework.agents == {"a", "b"}


def test_constraints_survive_a_restart_and_are_shown(book: Any) -> None:
    racks(book)
    framework = book.framework(offer_settings=takes("rack=r1", minimum="gpus:1"))
    book.restart()
    assert framework.view.info.offer_settings == takes("rack=r1", minimum="gpus:1")
    for agent in book.agents.values():
        agent.connect()
    assert book.machine.cluster.frameworks["f"].settings["*"].groups, "known before it is back"
    framework.connect()
    message = refusals(book, "f")[RefusalReason.OFFER_CONSTRAINTS]
    assert message.startswith("2 agents") and message.endswith("(constraints: rack=r1)")


REFUSED: dict[str, tuple[tuple[OfferSettings, ...], str]] = {
    "an empty group": (takes("rack=r1", " "), "empty constraint"),
    "an unknown selector": (takes("gpu.colour=red"), "gpu.colour"),
    "no number": (takes("gpus>=many"), "many"),
    "a text in order": (takes("hostname>a"), "no order"),
    "too many groups": (takes(*["a"] * 33), "too many"),
    "too many predicates": (takes(",".join("a" * 40)), "too many"),
    "a long text": (takes("a=" + "x" * 5000), "too many"),
    "the role of somebody else": (takes("rack", role="y"), "'y' is not a role"),
    "a role twice": (takes("rack") + takes("gpus"), "twice"),
    "a minimum that is none": (takes(minimum="cpus:1|"), "asks for nothing"),
    "a minimum of ports": (takes(minimum="ports:[1-5]"), "ports"),
    "half a GPU": (takes(minimum="gpus:0.5"), "whole"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_settings_that_say_nothing_are_refused(book: Any, what: str) -> None:
    settings, words = REFUSED[what]
    framework = book.framework("f")
    error = framework.update(offer_settings=settings).error
    assert error is not None and words in str(error) and error.field.startswith("info.offer_settings[")
    stranger = book.framework("g", connect=False)
    book.frameworks.pop("g")
    stranger.connect(offer_settings=settings)
    (refused,) = stranger.heard(StreamError)
    assert refused.error == error


# --- the least that is worth an offer ---


def test_the_clusters_minimum_is_a_flag(new_book: Any) -> None:
    book = new_book(min_allocatable_resources="cpus:4;mem:8GiB|gpus:1")
    book.agent("a", cpus=4, mem=4), book.agent("b", cpus=4, mem=8), book.agent("c", cpus=1, mem=1, gpus=1)
    framework = book.framework()
    assert framework.agents == {"b", "c"}
    assert refusals(book, "f")[RefusalReason.TOO_SMALL].startswith("1 agent (a.host)")
    book.set_flag("min-allocatable-resources", "cpus:8")
    assert framework.agents == {"b", "c"}, "what is offered stands"
    book.set_flag("min-allocatable-resources", "")
    assert framework.agents == {"a", "b", "c"}


def test_without_a_flag_it_is_a_hundredth_of_a_cpu_or_32_mib(book: Any) -> None:
    book.agent("a", cpus=0.009, mem=31 / 1024), book.agent("b", cpus=0.01, mem=0), book.agent("c", cpus=0, mem=1)
    assert book.framework().agents == {"b", "c"}


def test_a_role_has_its_own_minimum_which_may_be_none(book: Any) -> None:
    book.agent("a", cpus=0.001, mem=0), book.agent("b", cpus=2)
    settings = takes(role="x", minimum="") + takes(role="y", minimum="cpus:2")
    framework = book.framework(roles=["x", "y"], offer_settings=settings)
    assert ("x", "a") in {(offer.role, offer.agent_id) for offer in framework.offers.values()}
    framework.update(suppressed=["x"])
    framework.decline(*framework.offers.values(), refuse_ms=0)
    book.advance(2000)
    assert {(offer.role, offer.agent_id) for offer in framework.offers.values()} == {("y", "b")}


def test_the_clusters_minimum_is_not_for_those_who_state_shapes_but_a_roles_own_is(new_book: Any) -> None:
    book = new_book(min_allocatable_resources="cpus:4")
    book.agent("a")
    tiny = Demand(1, (book.shape(cpus=1),))
    assert book.framework("f", demand=tiny).offered() == book.resources(1)
    assert not book.framework("g", demand=tiny, offer_settings=takes(minimum="cpus:2")).offers


@pytest.mark.parametrize("text", ["cpus", "cpus:-1", "cpus:1|", "ports:[1-2]", "cpus:nan", "|".join(["cpus:1"] * 20)])
def test_a_minimum_that_cannot_be_read_is_refused(text: str) -> None:
    found = read_run_time_value("min-allocatable-resources", text)
    assert not isinstance(found, str) and found.reason is ErrorReason.INVALID_ARGUMENT
    assert "min-allocatable-resources" in found.message


def test_flags_of_offers_have_their_documented_defaults() -> None:
    flags = FlagValues.defaults()
    assert (flags.min_allocatable, flags.region) == ("cpus:0.01|mem:32MiB", "")


# --- regions ---


def test_agents_of_another_region_are_for_those_who_know_of_regions(new_book: Any) -> None:
    book = new_book(region="eu")
    (
        book.agent("here", attributes={"region": "eu"}),
        book.agent("untold"),
        book.agent("away", attributes={"region": "us"}),
    )
    plain = book.framework("plain")
    assert plain.agents == {"here", "untold"}
    assert refusals(book, "plain")[RefusalReason.OTHER_REGION].startswith("1 agent (away.host)")
    aware = book.framework("aware", connect=False).connect(capabilities=("REGION_AWARE",))
    assert aware.agents == {"away"}
    aware.update(capabilities=())
    assert not aware.offers, "a capability that goes takes its offers with it"


def test_where_the_master_is_can_change(book: Any) -> None:
    book.agent("a", attributes={"region": "us"}), book.agent("b", attributes={"region": 7000})
    framework = book.framework()
    assert framework.agents == {"a", "b"}, "a master without a region has no other one"
    response = book.set_flag("region", "us")
    assert response.rescinded_offers == 1 and framework.agents == {"a"}
    book.set_flag("region", "7")
    assert framework.agents == {"b"}
    book.unset_flag("region")
    assert framework.agents == {"a", "b"}


def _with(device: Any, **changes: Any) -> Any:
    fields = {name: getattr(device, name) for name in device.__dataclass_fields__}
    return type(device)(**fields | changes)
