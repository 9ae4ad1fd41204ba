"""The predicate language: what is written is read back, means what the page says, and costs little whatever it says."""

from __future__ import annotations

from itertools import combinations
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar.core.devices import Device, DeviceHealth, DeviceLink
from bursar.core.errors import InvalidText
from bursar.core.ids import DeviceUuid
from bursar.core.predicates import (
    MAX_PREDICATES,
    MAX_TEXT_LENGTH,
    MAX_VALUE_LENGTH,
    MAX_VALUES,
    AgentFacts,
    Predicate,
    PredicateOperator,
    escape_glob,
    format_predicates,
    is_about_devices,
    largest_clique,
    matches,
    matches_all,
    matches_device,
    matches_glob,
    parse_predicates,
)

GIB = 2**30


def gpu(index: int, peers: tuple[int, ...] = (), **facts: object) -> Device:
    links = tuple(DeviceLink(DeviceUuid(f"gpu{peer}"), "nvlink", 4) for peer in peers)
    return Device(DeviceUuid(f"gpu{index}"), "gpus", index=index, links=links, **facts)  # type: ignore[arg-type]


AGENT = AgentFacts(
    "gpu-1.example",
    {"rack": "r1", "zone": "a", "region": "eu", "gen": 3000, "note": "a, b|c", "gpus": "shadowed", "zero": 0},
    {"cpus": 64000, "mem": 512 * GIB, "gpus": 4000, "licence": 2000},
    (
        gpu(0, (1, 2), model="H100", mem_bytes=80 * GIB, driver="nvml"),
        gpu(1, (0, 2), model="H100", mem_bytes=80 * GIB, driver="nvml"),
        gpu(2, (), model="H100", mem_bytes=80 * GIB, driver="nvml", health=DeviceHealth.UNHEALTHY),
        gpu(3, (), model="A100 PCIe", mem_bytes=40 * GIB, driver="nvml"),
    ),
)
BARE = AgentFacts("cpu-1", {}, {"cpus": 8000, "mem": 16 * GIB})


@pytest.mark.parametrize(
    ("text", "of_agent", "of_bare"),
    [
        ("", True, True),
        ("rack", True, False),
        ("!rack", False, True),
        ("rack=r1", True, False),
        ("rack=R1", False, False),
        ("rack!=r1", False, True),
        ("rack!=r2", True, True),
        ("rack=r1|r2", True, False),
        ("rack!=r1|r2", False, True),
        ("rack=r?", True, False),
        ("rack!=r*", False, True),
        ('rack="r?"', False, False),
        ('note="a, b|c"', True, False),
        ('note="a, "*', True, False),
        ("zone=a,region=eu", True, False),
        ("zone=a,region=us", False, False),
        # Numbers are numbers, in attributes too (against OFF-12), and texts have no order.
        ("gen=3", True, False),
        ("gen=3.0", True, False),
        ("gen>=3,gen<3.001", True, False),
        ("gen>3", False, False),
        ("gen=three", False, False),
        ("gen!=three", True, True),
        ("gen=3*", True, False),
        ("zero", True, False),
        ("rack>=1", False, False),
        ("rack<=1", False, False),
        # Amounts are 0 where there are none.
        ("gpus", True, False),
        ("!gpus", False, True),
        ("gpus=4", True, False),
        ("gpus=0", False, True),
        ("gpus<=4", True, True),
        ("gpus>=5", False, False),
        ("gpus>0", True, False),
        ("gpus<1", False, True),
        ("gpu.count=4", True, False),
        ("mem>=512GiB", True, False),
        ("mem>=16384", True, True),
        ("mem=16GiB|512GiB", True, True),
        ("cpus<64", False, True),
        ("licence>=2", True, False),
        ("licence<=2", True, False),
        ("attribute.gpus=shadowed", True, False),
        ("attribute.licence", False, False),
        # True of some GPU; negated: of none.
        ("gpu.model=H100", True, False),
        ("gpu.model=A100*", True, False),
        ("gpu.model!=H100", False, True),
        ("gpu.model!=V100", True, True),
        ('gpu.model="A100 PCIe"|V100', True, False),
        ("gpu.model", True, False),
        ("gpu.mem>=80GiB", True, False),
        ("gpu.mem>80GiB", False, False),
        ("gpu.mem=40GiB", True, False),
        ("gpu.health=unhealthy", True, False),
        ("gpu.health!=unhealthy", False, True),
        ("gpu.driver=nvml", True, False),
        ("gpu.clique>=3", True, False),
        ("gpu.clique>3", False, False),
        ("gpu.clique=0", False, True),
        ("hostname=gpu-*", True, False),
        ("hostname=cpu-1", False, True),
        ("hostname", True, True),
        (" rack = r1 , gpus >= 4 ", True, False),
    ],
)
def test_what_predicates_mean(text: str, of_agent: bool, of_bare: bool) -> None:
    predicates = parse_predicates(text)
    assert matches_all(predicates, AGENT) is of_agent
    assert matches_all(predicates, BARE) is of_bare
    assert parse_predicates(format_predicates(predicates)) == predicates


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (",", "nothing between two commas", "gpus>=4"),
        ("rack=r1,", "nothing between two commas", ""),
        ("=r1", "does not begin with a name", ""),
        ("rack=", "lacks a value", 'NAME=""'),
        ("rack=a|", "lacks a value", ""),
        ("rack~r1", "'~r1' is not an operator", "= !="),
        ("rack==r1", "'==' is not an operator", ""),
        ("rack=~r.*", "'=~' is not an operator", "* or ?"),
        ("gpus=>4", "'=>' is not an operator", ">="),
        ("!rack=r1", "both a '!' in front and a value", "rack!=VALUE"),
        ("rack=a b", "' ' in a value", '"a b"'),
        ('rack="a', "open quote", ""),
        ("gpus>=many", "'many' is not a number", "decimal number"),
        ("gpus>=-1", "-1 is below zero", "never negative"),
        ("gpus>=1e9", "'1e9' is not a number", ""),
        ("gpus>=nan", "'nan' is not a number", ""),
        ("gpus>=99999999999999999", "is too large", "at most"),
        ("gpus=4*", "gpus is a number", "range"),
        ("mem>=64GB", "unknown unit", "GiB"),
        ("gpu.mem=lots", "unknown unit", "GiB"),
        ("hostname>=3", "hostname is a text", "= or !="),
        ("gpu.model>H100", "gpu.model is a text", ""),
        ("gpu.modell=H100", "nothing is known of gpu.modell", "did you mean gpu.model?"),
        ("gpu.zzz", "nothing is known of gpu.zzz", "attribute.gpu.zzz"),
        ("gpu.health=sick", "no such health", "unhealthy"),
        ("attribute.=3", "names no attribute", ""),
        ("a" * 64, "too long", "63"),
        ("rack=" + "a" * (MAX_VALUE_LENGTH + 1), "too long", ""),
        ("a," * MAX_TEXT_LENGTH, "characters are too many", ""),
        (",".join(["a"] * (MAX_PREDICATES + 1)), "predicates are too many", ""),
        ("a=" + "|".join(["b"] * (MAX_VALUES + 1)), "too many", ""),
    ],
)
def test_what_cannot_be_read_says_why(text: str, message: str, hint: str) -> None:
    with pytest.raises(InvalidText) as caught:
        parse_predicates(text, "where")
    assert message in caught.value.detail.message
    assert hint in caught.value.detail.hint
    assert caught.value.detail.message.startswith("where: ")


names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,20}", fullmatch=True).filter(
    lambda name: not name.startswith(("gpu.", "attribute."))
)
values = st.text(st.characters(codec="utf-8"), max_size=20)
numbers = st.integers(0, 10**6).map(lambda amount: f"{amount // 1000}.{amount % 1000:03d}")
globs = st.lists(st.sampled_from("*?") | values.map(escape_glob), min_size=1, max_size=6).map("".join)


@st.composite
def predicate(draw: st.DrawFn) -> Predicate:
    operator = draw(st.sampled_from(PredicateOperator))
    match operator:
        case PredicateOperator.EXISTS | PredicateOperator.NOT_EXISTS:
            return Predicate(draw(names), operator)
        case PredicateOperator.GLOB | PredicateOperator.NOT_GLOB:
            patterns = [f"{draw(globs)}*", *draw(st.lists(globs, max_size=3))]
            return Predicate(f"attribute.{draw(names)}", operator, tuple(patterns))
        case PredicateOperator.EQUALS | PredicateOperator.NOT_EQUALS:
            return Predicate(f"attribute.{draw(names)}", operator, (draw(values),))
        case PredicateOperator.IN | PredicateOperator.NOT_IN:
            some = draw(st.lists(values, min_size=2, max_size=4))
            return Predicate(f"attribute.{draw(names)}", operator, tuple(some))
        case _:
            return Predicate(draw(names), operator, (draw(numbers),))


@given(st.lists(predicate(), min_size=1, max_size=5))
def test_predicates_are_read_back_as_written(written: list[Predicate]) -> None:
    assert parse_predicates(format_predicates(written)) == tuple(written)


@given(st.text(max_size=40) | st.text(st.sampled_from('ra=!|,"\\*?<>4 gpus.'), max_size=40))
def test_any_text_is_read_back_or_refused(text: str) -> None:
    try:
        predicates = parse_predicates(text)
    except InvalidText:
        return
    assert parse_predicates(format_predicates(predicates)) == predicates
    assert matches_all(predicates, AGENT) in (True, False)


@given(
    st.lists(predicate(), min_size=1, max_size=3), st.dictionaries(names, values | st.integers(0, 10**6), max_size=4)
)
def test_negated_forms_are_negations(some: list[Predicate], attributes: dict[str, str | int]) -> None:
    pairs = {
        PredicateOperator.EXISTS: PredicateOperator.NOT_EXISTS,
        PredicateOperator.EQUALS: PredicateOperator.NOT_EQUALS,
        PredicateOperator.IN: PredicateOperator.NOT_IN,
        PredicateOperator.GLOB: PredicateOperator.NOT_GLOB,
    }
    for one in some:
        if (negation := pairs.get(one.operator)) is not None:
            # Speak of an attribute that is there, half of the time.
            for selector in (one.selector, *(f"attribute.{name}" for name in attributes)):
                facts = AgentFacts("h", attributes)
                positive = matches(Predicate(selector, one.operator, one.values), facts)
                assert matches(Predicate(selector, negation, one.values), facts) is not positive


def slow_glob(pattern: str, text: str) -> bool:
    """The obvious way, which takes for ever on long ones."""
    if not pattern:
        return not text
    match pattern[0]:
        case "*":
            return any(slow_glob(pattern[1:], text[start:]) for start in range(len(text) + 1))
        case "?":
            return bool(text) and slow_glob(pattern[1:], text[1:])
        case "\\":
            return bool(text) and text[0] == pattern[1:2] and slow_glob(pattern[2:], text[1:])
        case literal:
            return bool(text) and text[0] == literal and slow_glob(pattern[1:], text[1:])


@given(st.lists(st.sampled_from(["a", "b", "*", "?", r"\*", r"\?", r"\\"]), max_size=8), st.text("ab*?\\", max_size=8))
def test_globs_match_what_the_obvious_matcher_matches(pieces: list[str], text: str) -> None:
    pattern = "".join(pieces)
    assert matches_glob(pattern, text) is slow_glob(pattern, text)


@pytest.mark.parametrize("pattern", ["*a" * 128, "*?" * 128, "*" * 256, "a*" * 127 + "b", "*a?" * 85])
def test_no_glob_is_expensive(pattern: str) -> None:
    """A backtracking matcher would take years for these (M-10); work here is one step per character."""
    text = "a" * 1000
    matches_glob(pattern, text)
    started = process_time()
    for _ in range(10):
        matches_glob(pattern, text)
    assert process_time() - started < 1, "a step per character takes milliseconds"


@given(st.integers(0, 7), st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6))))
def test_the_largest_clique_is_the_largest_of_all_sets(size: int, links: set[tuple[int, int]]) -> None:
    devices = [gpu(index, tuple(peer for left, peer in links if left == index != peer)) for index in range(size)]
    linked = links | {(right, left) for left, right in links}
    expected = max(
        count
        for count in range(size + 1)
        if any(all(pair in linked for pair in combinations(group, 2)) for group in combinations(range(size), count))
    )
    assert largest_clique(devices) == expected


def test_only_nvlinks_make_a_clique() -> None:
    left = Device(DeviceUuid("a"), "gpus", links=(DeviceLink(DeviceUuid("b"), "pcie", 9),))
    assert largest_clique([left, Device(DeviceUuid("b"), "gpus")]) == 1


def test_a_machine_of_a_thousand_gpus_costs_a_bounded_search() -> None:
    devices = [gpu(index, tuple(peer for peer in range(200) if (peer * index) % 7 < 4)) for index in range(200)]
    started = process_time()
    assert largest_clique(devices) > 1
    assert process_time() - started < 5


def test_predicates_about_devices_can_be_asked_of_one() -> None:
    (model, unequal, amount) = parse_predicates("gpu.model=H100,gpu.model!=H100,gpus>=1")
    assert is_about_devices(model) and is_about_devices(unequal) and not is_about_devices(amount)
    assert [matches_device(model, device) for device in AGENT.devices] == [True, True, True, False]
    assert [matches_device(unequal, device) for device in AGENT.devices] == [False, False, False, True]


def test_region_and_zone_are_attributes() -> None:
    assert (AGENT.region, AGENT.zone, BARE.region) == ("eu", "a", "")


def test_model_is_short_for_that_of_gpus() -> None:
    assert format_predicates(parse_predicates("model=H100,attribute.model=x")) == "gpu.model=H100,attribute.model=x"
