"""The decision of `allocator/constraints`, against its definition and against every offer that an agent could make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar.core.devices import Device
from bursar.core.errors import InvalidText
from bursar.core.ids import DeviceUuid
from bursar.core.predicates import AgentFacts, matches
from bursar.core.resources import MILLI, Reservation, ReservationType, Resources
from bursar.core.text import parse_minimum
from bursar.master.allocator.constraints import amounts_of, compile_settings, is_allocatable

GROUPS = st.sampled_from(
    [
        "rack=r1",
        "rack!=r1",
        "!rack",
        "rack",
        "rack=r*",
        "licenses=2",
        "licenses=?*",
        "attribute.gpus=yes",
        "gen>=2",
        "hostname=a",
        "zone=z",
        "licenses",
        "!licenses",
        "licenses>=2",
        "gpus>=1",
        "gpus<=1",
        "gpus=0",
        "!gpus",
        "gpu.model=H100",
        "gpu.model!=H100",
        "gpu.clique>=2",
        "cpus>1",
    ]
)
TEXTS = st.lists(st.lists(GROUPS, min_size=1, max_size=3).map(",".join), max_size=3).map(tuple)
AGENTS = st.builds(
    AgentFacts,
    st.sampled_from(["a", "b"]),
    st.dictionaries(
        st.sampled_from(["rack", "zone", "gen", "licenses", "gpus"]), st.sampled_from(["r1", "r2", "z", "yes", 2000])
    ),
)
DEVICES: Mapping[DeviceUuid, Device] = {
    DeviceUuid(uuid): Device(DeviceUuid(uuid), "gpus", model) for uuid, model in [("1", "H100"), ("2", "A100")]
}
STATIC = (Reservation(ReservationType.STATIC, "x"),)
PARTS = st.builds(
    lambda scalars, uuids: Resources(scalars, (), frozenset(map(DeviceUuid, uuids))),
    st.dictionaries(st.sampled_from(["cpus", "licenses"]), st.sampled_from([1000, 2000])),
    st.sets(st.sampled_from(["1", "2"])),
)
#: Devices are in one bucket only.
HOLDINGS: Any = st.tuples(PARTS, PARTS).map(
    lambda parts: {(): parts[0], STATIC: Resources(parts[1].scalars, (), parts[1].devices - parts[0].devices)}
)


@given(TEXTS, AGENTS, HOLDINGS)
def test_an_offer_is_taken_iff_all_of_one_group_is_true(texts: Any, agent: AgentFacts, offered: Any) -> None:
    settings = compile_settings(texts, None)
    amounts: dict[str, int] = {}
    uuids = set()
    for part in offered.values():
        uuids |= part.devices
        for kind, amount in part.scalars.items():
            amounts[kind] = amounts.get(kind, 0) + amount
    amounts |= {"gpus": MILLI * len(uuids)} if uuids else {}
    facts = AgentFacts(agent.hostname, agent.attributes, amounts, tuple(DEVICES[uuid] for uuid in uuids))
    expected = not texts or any(all(matches(one, facts) for one in group) for group in settings.groups)
    assert settings.takes(agent, offered, DEVICES) == expected
    assert amounts_of(offered) == amounts
    if not settings.judges_offers:
        assert settings.may_take(agent) == expected
    if expected:
        assert settings.may_take(agent), "the first look refuses nothing that the second would take"


@given(TEXTS, st.lists(AGENTS, min_size=2, max_size=6))
def test_what_is_remembered_of_one_agent_is_true_of_those_alike(texts: Any, agents: list[AgentFacts]) -> None:
    settings = compile_settings(texts, None)
    compile_settings.cache_clear()
    fresh = [compile_settings.__wrapped__(texts, None).may_take(agent) for agent in agents]
    assert [settings.may_take(agent) for agent in agents] == fresh


def test_the_memory_of_verdicts_is_bounded() -> None:
    settings = compile_settings(("hostname=h1",), "")
    for number in range(10_000):
        assert settings.may_take(AgentFacts(f"h{number}")) == (number == 1)
    assert len(settings._verdicts) <= 4096


def test_those_who_say_the_same_share_what_is_remembered() -> None:
    assert compile_settings(("rack=r1",), None) is compile_settings(("rack=r1",), None)


ALTERNATIVES = st.dictionaries(st.sampled_from(["cpus", "licenses", "gpus"]), st.sampled_from([1, 2]), min_size=1)


@given(st.lists(ALTERNATIVES, max_size=3), HOLDINGS)
def test_a_minimum_is_one_alternative_as_a_whole(alternatives: Any, offered: Any) -> None:
    text = "|".join(";".join(f"{kind}:{n}" for kind, n in one.items()) for one in alternatives)
    amounts = amounts_of(offered)
    expected = not alternatives or any(
        all(amounts.get(kind, 0) >= n * MILLI for kind, n in one.items()) for one in alternatives
    )
    assert is_allocatable(offered, parse_minimum(text)) == expected


@pytest.mark.parametrize("texts", [("",), ("rack=r1", ","), ("a~b",), tuple("a" * 33)])
def test_what_cannot_be_a_constraint_is_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(InvalidText):
        compile_settings(texts, None)
