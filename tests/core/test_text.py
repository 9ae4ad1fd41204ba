"""The text forms: what is written is read back, and what cannot be read says what, why and what to do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bursar.core.errors import InvalidText
from bursar.core.ids import DeviceUuid
from bursar.core.resources import MAX_AMOUNT, PortRange, ResourceRequest, Resources, normalize_ports
from bursar.core.role_expressions import holder_of
from bursar.core.roles import role_problem
from bursar.core.text import (
    ResourceText,
    format_amount,
    format_duration,
    format_ports,
    format_request,
    format_resources,
    parse_amount,
    parse_attributes,
    parse_bytes,
    parse_duration,
    parse_milli,
    parse_ports,
    parse_request,
    parse_resources,
)

kinds = st.from_regex(r"[a-z_][a-z0-9_.-]{0,10}", fullmatch=True).filter(
    lambda kind: kind not in ("cpus", "mem", "disk", "gpus", "ports")
)
ports = st.lists(st.integers(1, 65535).map(lambda first: PortRange(first, min(first + 3, 65535)))).map(normalize_ports)
roles = st.text(min_size=1, max_size=12).filter(lambda role: role != "*" and role_problem(role) is None)
milli = st.integers(1, MAX_AMOUNT)
#: Amounts of bytes that a text can say.
sizes = st.builds(
    lambda number, places, unit: (number * 1000 + places) * unit // 1000,
    st.integers(0, 2**20),
    st.integers(0, 999),
    st.sampled_from([2**10, 2**20, 2**30]),
).filter(bool)


@st.composite
def scalars(draw: st.DrawFn) -> dict[str, int]:
    found = draw(st.dictionaries(kinds, milli, max_size=3))
    for kind, amounts in (("cpus", milli), ("mem", sizes), ("disk", sizes)):
        if draw(st.booleans()):
            found[kind] = draw(amounts)
    return found


@given(scalars(), ports, st.integers(0, 2**40))
def test_requests_are_read_back_as_written(amounts: dict[str, int], some: tuple[PortRange, ...], gpus: int) -> None:
    request = ResourceRequest(amounts, some, gpus)
    if request:
        assert parse_request(format_request(request)) == request


holders = roles.map(holder_of) | st.sampled_from(
    ["ml/**", "=ml", "@g", "!a | b", "(ml/** | eng/backend) & !ml/interns", '"a;b:c"/** & !="d.e)"']
)


@given(scalars(), ports, st.integers(0, 4), st.none() | holders)
def test_resources_are_read_back_as_written(
    amounts: dict[str, int], some: tuple[PortRange, ...], gpus: int, holder: str | None
) -> None:
    devices = frozenset(DeviceUuid(f"gpu{index}") for index in range(gpus))
    text = format_resources(Resources(amounts, some, devices), holder)
    expected = {ResourceText(kind, holder, amount) for kind, amount in amounts.items()}
    if gpus:
        expected.add(ResourceText("gpus", holder, 1000 * gpus))
    if some:
        expected.add(ResourceText("ports", holder, 0, some))
    assert set(parse_resources(text)) == expected


@given(st.sampled_from(["cpus", "mem", "widgets"]), sizes)
def test_amounts_are_read_back_as_written(kind: str, amount: int) -> None:
    assert parse_amount(kind, format_amount(kind, amount)) == amount


@given(ports)
def test_ports_are_read_back_as_written(some: tuple[PortRange, ...]) -> None:
    assert parse_ports(format_ports(some)) == some


@given(st.integers(0, 10**12))
def test_durations_are_read_back_as_written(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds)) == milliseconds


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_resources, parse_request, parse_attributes, parse_duration, parse_ports):
        try:
            parse(text)
        except InvalidText as error:
            assert error.detail.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpus:8", [ResourceText("cpus", None, 8000)]),
        ("cpus:0.5 ; mem:16GiB", [ResourceText("cpus", None, 500), ResourceText("mem", None, 16 * 2**30)]),
        ("mem:1", [ResourceText("mem", None, 2**20)]),
        ("disk:0.5TiB;", [ResourceText("disk", None, 2**39)]),
        ("gpus(ml):4", [ResourceText("gpus", "ml", 4000)]),
        ("gpus(*):4", [ResourceText("gpus", None, 4000)]),
        ("gpus:0", [ResourceText("gpus", None, 0)]),
        ("gpus(a/b-c.d_e):1;gpus:1", [ResourceText("gpus", "a/b-c.d_e", 1000), ResourceText("gpus", None, 1000)]),
        ('gpus("x;y:(z)"):1', [ResourceText("gpus", '"x;y:(z)"', 1000)]),
        (r'gpus("a\"b\\c"):1', [ResourceText("gpus", r'"a\"b\\c"', 1000)]),
        ('gpus("ml"):1', [ResourceText("gpus", "ml", 1000)]),
        (
            'gpus("(ml/** | eng/backend/image-processing) & !ml/interns"):4;cpus(ml/**|"a;b"):1',
            [
                ResourceText("gpus", "(ml/** | eng/backend/image-processing) & !ml/interns", 4000),
                ResourceText("cpus", 'ml/** | "a;b"', 1000),
            ],
        ),
        ("gpus((a | b) & !c):1", [ResourceText("gpus", "(a | b) & !c", 1000)]),
        (r'gpus("\"@g\""):1;cpus(@g):1', [ResourceText("gpus", '"@g"', 1000), ResourceText("cpus", "@g", 1000)]),
        ("ports:[31000-32000,80]", [ResourceText("ports", None, 0, (PortRange(80, 80), PortRange(31000, 32000)))]),
        ("", []),
    ],
)
def test_what_can_be_written(text: str, expected: list[ResourceText]) -> None:
    assert parse_resources(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "cpus",
        "cpus:",
        "cpus:nan",
        "cpus:inf",
        "cpus:1e3",
        "cpus:-1",
        "cpus:+1",
        "cpus:0.0005",
        "cpus:.5",
        "cpus:1.",
        "cpus:1,5",
        "cpus:٣",
        "cpus:9007199254741",
        "cpus:99999999999999999999",
        "gpus:1.5",
        "gpus:-1",
        "gpus:0.001",
        "mem:1GB",
        "mem:1 Gib",
        "mem:1KB",
        "mem:8193TiB",
        "mem:1e3MiB",
        "cpus:1MiB",
        "ports:80",
        "ports:[80",
        "ports:[1-]",
        "ports:[0-5]",
        "ports:[5-1]",
        "ports:[1-70000]",
        "ports:[1-10,10-20]",
        "ports:[1-10,5]",
        "ports:[" + "9" * 5000 + "]",
        "ports:[٣]",
        "cpus:1;cpus:2",
        "cpus(ml):1;cpus(ml):2",
        "cpus(a//b):1",
        "cpus(-x):1",
        "cpus(a b):1",
        "cpus(a@b):1",
        "cpus(a |):1",
        'cpus("a | "):1',
        'cpus("ml/**"):1',
        'cpus("@g"):1',
        "cpus(a | b):1;cpus(a|b):1",
        "cpus(.):1",
        "cpus():1",
        'cpus(""):1',
        'cpus("a):1',
        'cpus("a"b"):1',
        "cpus(ml:1",
        "cpus)ml(:1",
        "8:cpus",
        "c pus:1",
        ":1",
    ],
)
def test_what_cannot_be_written(text: str) -> None:
    with pytest.raises(InvalidText) as caught:
        parse_resources(text)
    assert caught.value.detail.message and caught.value.detail.hint


@pytest.mark.parametrize("text", ["", " ; ", "cpus:0", "gpus:0", "cpus(ml):1"])
def test_a_request_asks_for_something_and_names_no_role(text: str) -> None:
    with pytest.raises(InvalidText):
        parse_request(text)


def test_the_largest_amount() -> None:
    assert parse_milli("9007199254740.992", "cpus") == MAX_AMOUNT
    with pytest.raises(InvalidText):
        parse_milli("9007199254740.993", "cpus")
    assert parse_bytes("8192TiB", "mem") == MAX_AMOUNT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rack:r1;zone:a", {"rack": "r1", "zone": "a"}),
        ("gen:3;ratio:0.25;", {"gen": 3000, "ratio": 250}),
        ("url:http://x:80", {"url": "http://x:80"}),
        ("", {}),
    ],
)
def test_attributes(text: str, expected: dict[str, str | int]) -> None:
    assert parse_attributes(text) == expected


@pytest.mark.parametrize("text", ["rack", "rack:", ":x", "rack:a;rack:b", "a b:c", "gen:99999999999999"])
def test_attributes_that_cannot_be(text: str) -> None:
    with pytest.raises(InvalidText):
        parse_attributes(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500ms", 500),
        ("1s", 1000),
        ("10m", 600_000),
        ("1.5h", 5_400_000),
        ("2d", 172_800_000),
        ("10mins", 600_000),
        ("3 secs", 3000),
        ("1weeks", 7 * 86_400_000),
        ("0s", 0),
    ],
)
def test_durations(text: str, expected: int) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    "text", ["", "1", "s", "-1s", "1e3s", "1.0005s", "infs", "1fortnight", "1s2m", "999999999999d"]
)
def test_durations_that_cannot_be(text: str) -> None:
    with pytest.raises(InvalidText):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("-1", "gpus: -1 is below zero", "never negative"),
        ("-0.5", "gpus: -0.5 is below zero", "never negative"),
        ("0.0001", "gpus: 0.0001 has more than three decimal places", "0.001"),
        ("1e3", "gpus: '1e3' is not a number", "exponent"),
        ("inf", "gpus: 'inf' is not a number", "decimal number"),
        ("--1", "gpus: '--1' is not a number", "decimal number"),
    ],
)
def test_what_is_wrong_with_a_number_is_said(text: str, said: str, hint: str) -> None:
    with pytest.raises(InvalidText) as raised:
        parse_milli(text, "gpus")
    assert raised.value.detail.message == said and hint in raised.value.detail.hint


def test_a_duration_below_zero_is_called_that() -> None:
    for text in ("-1", "-5s"):
        with pytest.raises(InvalidText, match=f"wait: {text} is below zero"):
            parse_duration(text, "wait")
